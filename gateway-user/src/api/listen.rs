//! The control socket.

use std::{
    fs::{self, DirBuilder, Permissions},
    io::{self, ErrorKind},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::Path,
};

use anyhow::Context as _;
use nix::unistd::{Group, chown};
use tokio::net::UnixListener;
use tracing::warn;

use crate::refused::Refused;

/// The group whose members may use the socket, if there is such a group.
const GROUP: &str = "gateway";

/// Listens on `path`, which belongs to this user and to group `gateway`. Replaces the socket of a daemon that is gone.
///
/// # Errors
/// Somebody answers on the socket, or `path` is something else.
pub fn listen(path: &Path) -> anyhow::Result<UnixListener> {
    let shown = path.display();
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .with_context(|| format!("cannot make the directory of the socket {shown}"))?;
    }
    clear(path)?;
    let listener = UnixListener::bind(path).with_context(|| format!("cannot listen on {shown}"))?;
    // Until here nobody but the owner can connect: that takes the permission to write.
    if let Ok(Some(group)) = Group::from_name(GROUP)
        && let Err(error) = chown(path, None, Some(group.gid))
    {
        // It stays closed to the group then, which is safe.
        warn!("cannot give {shown} to group {GROUP}: {error}");
    }
    fs::set_permissions(path, Permissions::from_mode(0o660))
        .with_context(|| format!("cannot set the mode of {shown}"))?;
    Ok(listener)
}

/// Removes the socket of a daemon that is gone.
fn clear(path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let kind = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {shown}")),
        Ok(metadata) => metadata.file_type(),
    };
    if !kind.is_socket() {
        return Err(Refused::error(
            format!("{shown} exists and is not a socket"),
            "move it away, or choose another path with --socket",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot remove the old socket {shown}"))
        }
        Ok(_) => Err(answered(path, None)),
        Err(error) => Err(answered(path, Some(&error))),
    }
}

fn answered(path: &Path, error: Option<&io::Error>) -> anyhow::Error {
    let shown = path.display();
    let message = match error {
        None => format!("another daemon answers on {shown}"),
        Some(error) => format!("{shown} may be in use: {error}"),
    };
    Refused::error(message, "stop it first, or choose another path with --socket")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_answers_is_left_alone_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("run/gateway.sock");
        let first = listen(&path).expect("listens");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let error = listen(&path).expect_err("refused");
        assert!(error.to_string().starts_with("another daemon answers on "), "{error}");
        drop(first);
        listen(&path).expect("the stale socket is replaced");
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "precious").expect("written");
        assert!(listen(&path).expect_err("refused").to_string().ends_with("is not a socket"));
        assert_eq!(fs::read_to_string(&path).expect("there"), "precious");
    }
}
