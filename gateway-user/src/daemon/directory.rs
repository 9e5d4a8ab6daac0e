//! The directories of a daemon, held so that no second daemon works on them.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, ErrorKind},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};

use crate::refused::Refused;

/// Where the kernel's BPF file system belongs.
const BPFFS: &str = "/sys/fs/bpf";

/// A directory that belongs to this daemon for as long as this lives.
pub(super) struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Lock {
    /// Takes the state directory, which is made if it is missing.
    pub(super) fn take_state(path: &Path) -> anyhow::Result<Self> {
        Self::take(path, "state directory", "--state-dir")
    }

    /// Takes the pin directory, which is made if it is missing. Mounts the BPF file system if it is to be
    /// there and is not.
    pub(super) fn take_pins(path: &Path) -> anyhow::Result<Self> {
        if path.starts_with(BPFFS) {
            mount_bpffs()?;
        }
        let lock = Self::take(path, "pin directory", "--pin-dir")?;
        let metadata = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        if metadata.uid() != geteuid().as_raw() || metadata.permissions().mode() & 0o022 != 0 {
            return Err(Refused::error(
                format!("others than this user may write to the pin directory {}", path.display()),
                format!("chown it to this user and chmod 0700 {}", path.display()),
            ));
        }
        Ok(lock)
    }

    /// Removes the directory, which has to be empty by now; the data plane may have done so.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        match fs::remove_dir(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.path.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn take(path: &Path, what: &str, option: &str) -> anyhow::Result<Self> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("cannot make the {what} {shown}"))?;
        let file = File::open(path).with_context(|| format!("cannot open the {what} {shown}"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Self { path: path.to_owned(), _file: file }),
            Err((_, Errno::EWOULDBLOCK)) => Err(Refused::error(
                format!("another gatewayd works on the {what} {shown}"),
                format!("stop it first, or give this one its own {option}"),
            )),
            Err((_, errno)) => {
                Err(io::Error::from(errno)).with_context(|| format!("cannot lock the {what} {shown}"))
            }
        }
    }
}

/// Refuses a pin directory that is not in a BPF file system.
pub fn check_bpffs(path: &Path) -> anyhow::Result<()> {
    let found = statfs(path).with_context(|| format!("cannot look at {}", path.display()))?;
    if found.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    Err(Refused::error(
        format!("the pin directory {} is not in a BPF file system", path.display()),
        format!("use a directory below {BPFFS}, or mount one: mount -t bpf bpf DIR"),
    ))
}

fn mount_bpffs() -> anyhow::Result<()> {
    match statfs(BPFFS) {
        Ok(found) if found.filesystem_type() == BPF_FS_MAGIC => return Ok(()),
        Ok(_) => {}
        Err(errno) if io::Error::from(errno).kind() == ErrorKind::NotFound => {
            return Err(Refused::error(
                format!("{BPFFS} does not exist"),
                "this kernel has no BPF file system, or /sys is not mounted",
            ));
        }
        Err(errno) => return Err(io::Error::from(errno)).with_context(|| format!("cannot look at {BPFFS}")),
    }
    // Nobody but root gets at what is pinned.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=0700")).map_err(|errno| {
        Refused::error(
            format!("the BPF file system is not mounted, and mounting it failed: {errno}"),
            format!("mount -t bpf bpf {BPFFS}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    #[test]
    fn a_directory_has_one_daemon_at_a_time() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("a/state");
        let first = Lock::take_state(&path).expect("taken");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o700);
        let error = Lock::take_state(&path).err().expect("refused");
        assert!(error.to_string().starts_with("another gatewayd works on the state directory "), "{error}");
        drop(first);
        Lock::take_state(&path).expect("taken again").remove().expect("removed");
        assert!(!path.exists());
    }

    #[test]
    fn pins_that_others_may_write_are_refused() {
        let parent = tempfile::tempdir().expect("a directory");
        let path = parent.path().join("pins");
        Lock::take_pins(&path).expect("taken");
        fs::set_permissions(&path, Permissions::from_mode(0o770)).expect("set");
        let error = Lock::take_pins(&path).err().expect("refused");
        assert!(error.downcast_ref::<Refused>().is_some_and(|refused| refused.hint.contains("chmod 0700")));
    }

    #[test]
    fn a_pin_directory_on_a_disk_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        let error = check_bpffs(directory.path()).expect_err("refused");
        assert!(error.to_string().ends_with("is not in a BPF file system"), "{error}");
    }
}
