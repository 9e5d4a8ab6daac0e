//! What a machine needs before it can build, test and show the gateway, and how to get it.

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};

use crate::{cargo, term};

/// The linker of the XDP object. Later versions want an LLVM on the machine; this one uses rustc's own.
const BPF_LINKER: &str = "0.10.3";

/// Where programs and maps are pinned.
const BPFFS: &str = "/sys/fs/bpf";

/// Programs that the tests and the demo run, and the Debian packages that bring them.
const PROGRAMS: &[(&str, &str)] = &[
    ("cc", "gcc"),
    ("conntrack", "conntrack"),
    ("curl", "curl"),
    ("ethtool", "ethtool"),
    ("haproxy", "haproxy"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nft", "nftables"),
    ("ping", "iputils-ping"),
    ("promtool", "prometheus"),
    ("ps", "procps"),
    ("python3", "python3"),
    ("squid", "squid"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
];

/// How much of a machine is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// To build: the toolchain and the BPF linker.
    Build,
    /// To run the tests and the demo as well: network tools and a mounted bpffs.
    Everything,
}

/// Installs what is missing. Says nothing about what is there.
///
/// # Errors
/// Says what is missing and how to get it where this program cannot: without root, off Debian.
pub(crate) fn ensure(scope: Scope) -> Result<()> {
    for need in Need::all(scope) {
        if let Some(lack) = need.lack()? {
            eprintln!("{} {lack}", term::warn("setup:"));
            need.meet()?;
            if let Some(lack) = need.lack()? {
                bail!("{lack}, still, after an attempt to install it");
            }
        }
    }
    Ok(())
}

/// Reports what is there and what is missing; fails if anything is.
pub(crate) fn check() -> Result<()> {
    let mut missing = 0;
    for need in Need::all(Scope::Everything) {
        match need.lack()? {
            None => println!("{} {}", term::good("     ok"), need.title()),
            Some(lack) => {
                missing += 1;
                println!("{} {}: {lack}", term::error("missing"), need.title());
            }
        }
    }
    if missing > 0 {
        bail!("{missing} of the requirements are not met; `cargo xtask setup` installs them");
    }
    Ok(())
}

/// One requirement.
#[derive(Clone, Copy)]
enum Need {
    Components,
    BpfLinker,
    Programs,
    BpfFileSystem,
}

impl Need {
    fn all(scope: Scope) -> &'static [Self] {
        match scope {
            Scope::Build => &[Self::Components, Self::BpfLinker],
            Scope::Everything => &[Self::Components, Self::BpfLinker, Self::Programs, Self::BpfFileSystem],
        }
    }

    fn title(self) -> String {
        match self {
            Self::Components => "rust components: rust-src, clippy, rustfmt".to_owned(),
            Self::BpfLinker => format!("bpf-linker {BPF_LINKER}"),
            Self::Programs => {
                let names: Vec<_> = PROGRAMS.iter().map(|(program, _)| *program).collect();
                format!("programs: {}", names.join(", "))
            }
            Self::BpfFileSystem => format!("bpf file system on {BPFFS}"),
        }
    }

    /// What is missing, in words; `None` when the requirement is met.
    fn lack(self) -> Result<Option<String>> {
        Ok(match self {
            Self::Components => {
                let missing = missing_components()?;
                (!missing.is_empty()).then(|| format!("rust components missing: {}", missing.join(", ")))
            }
            Self::BpfLinker => match bpf_linker_version() {
                Some(version) if version == BPF_LINKER => None,
                Some(version) => Some(format!("bpf-linker is {version}, {BPF_LINKER} is needed")),
                None => Some(format!("bpf-linker {BPF_LINKER} is not installed")),
            },
            Self::Programs => {
                let missing: Vec<_> = missing_programs().map(|(program, _)| program).collect();
                (!missing.is_empty()).then(|| format!("programs missing: {}", missing.join(", ")))
            }
            Self::BpfFileSystem => {
                let mounted = statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
                (!mounted).then(|| format!("no bpf file system on {BPFFS}"))
            }
        })
    }

    fn meet(self) -> Result<()> {
        match self {
            Self::Components => cargo::run(
                Command::new("rustup")
                    .args(["component", "add"])
                    .args(missing_components()?)
                    .args(["--toolchain", &toolchain()?]),
            )
            .context("rustup is needed to add components of the toolchain: https://rustup.rs"),
            // Built by the pinned toolchain, whose LLVM it then uses.
            Self::BpfLinker => cargo::run(cargo::cargo().args([
                "install",
                "bpf-linker",
                "--version",
                BPF_LINKER,
                "--locked",
                "--force",
            ])),
            Self::Programs => install_packages(),
            Self::BpfFileSystem => {
                if !geteuid().is_root() {
                    bail!("root is needed to mount it: sudo mount -t bpf bpf {BPFFS}");
                }
                mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>)
                    .with_context(|| format!("cannot mount a bpf file system on {BPFFS}"))?;
                eprintln!("{} mounted a bpf file system on {BPFFS}", term::warn("setup:"));
                Ok(())
            }
        }
    }
}

fn missing_components() -> Result<Vec<&'static str>> {
    let output = Command::new("rustc")
        .current_dir(cargo::root())
        .args(["--print", "sysroot"])
        .output()
        .context("cannot run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let there = [
        ("rust-src", "lib/rustlib/src/rust/library/core"),
        ("clippy", "bin/cargo-clippy"),
        ("rustfmt", "bin/rustfmt"),
    ];
    Ok(there.into_iter().filter(|(_, path)| !sysroot.join(path).exists()).map(|(name, _)| name).collect())
}

/// The channel that `rust-toolchain.toml` pins.
fn toolchain() -> Result<String> {
    let path = cargo::root().join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let channel = text.lines().find_map(|line| line.trim().strip_prefix("channel"));
    let channel = channel.and_then(|rest| rest.split('"').nth(1));
    channel.map(str::to_owned).with_context(|| format!("{} names no channel", path.display()))
}

fn bpf_linker_version() -> Option<String> {
    let output = Command::new("bpf-linker").arg("--version").output().ok()?;
    String::from_utf8_lossy(&output.stdout).split_whitespace().nth(1).map(str::to_owned)
}

fn missing_programs() -> impl Iterator<Item = (&'static str, &'static str)> {
    PROGRAMS.iter().copied().filter(|(program, _)| !in_path(program))
}

/// Looks in the administrator's directories too: a user's `PATH` often lacks them.
fn in_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let administrator = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(administrator).any(|directory| directory.join(program).is_file())
}

fn install_packages() -> Result<()> {
    let packages: BTreeSet<_> = missing_programs().map(|(_, package)| package).collect();
    let packages: Vec<_> = packages.into_iter().collect();
    let line = packages.join(" ");
    if !Path::new("/usr/bin/apt-get").exists() {
        bail!("no apt-get here: install what your distribution calls {line}");
    }
    if !geteuid().is_root() {
        bail!("root is needed to install packages: sudo apt-get install -y {line}");
    }
    let install = || {
        cargo::run(
            Command::new("apt-get")
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(["install", "--yes", "--quiet=2", "--no-install-recommends"])
                .args(&packages),
        )
    };
    let update = || cargo::run(Command::new("apt-get").args(["update", "--quiet=2"]));
    // The package lists of a fresh image are empty, or so old that packages they name are gone.
    if !has_package_lists() {
        update()?;
    }
    install().or_else(|_| update().and_then(|()| install()))
}

fn has_package_lists() -> bool {
    let lists = fs::read_dir("/var/lib/apt/lists").into_iter().flatten().flatten();
    lists.into_iter().any(|list| list.file_name().to_string_lossy().contains("_Packages"))
}
