//! Namespaces and links of any shape, under one name and with one end.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{self, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    guard::{self, Guard},
    node::Node,
    process::finish,
};

/// A set of namespaces with a name of its own, a directory and a place for pins. Dropping it removes all of
/// that, and kills whatever still runs in the namespaces.
pub struct Sandbox {
    name: String,
    guard: Option<Guard>,
}

impl Sandbox {
    /// An empty sandbox under a name that no other process uses. It begins with `GATEWAY_LAB_PREFIX` where
    /// that is set, so that whoever runs many tests can see what they left.
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let moment = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().subsec_micros();
        let prefix = env::var("GATEWAY_LAB_PREFIX").unwrap_or_else(|_| "gw".to_owned());
        Self::named(&format!("{prefix}{}-{number}-{moment:05x}", process::id()))
    }

    /// An empty sandbox under this name.
    ///
    /// # Errors
    /// If a sandbox of this name exists.
    pub fn named(name: &str) -> Result<Self> {
        let taken = fs::read_dir("/run/netns")
            .into_iter()
            .flatten()
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{name}-")));
        let sandbox = Self { name: name.to_owned(), guard: None };
        if taken || sandbox.dir().exists() {
            bail!("a lab named {name} is there already");
        }
        let sandbox = Self { guard: Some(Guard::start(name)?), ..sandbox };
        let directory = sandbox.dir();
        fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(sandbox)
    }

    /// The name, which begins the name of every namespace.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A directory for configurations, sockets and logs.
    pub fn dir(&self) -> PathBuf {
        Path::new("/tmp").join(&self.name)
    }

    /// A directory of the BPF file system, for pins. Whoever pins makes it.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.name)
    }

    /// Adds a host.
    pub fn node(&self, name: &str) -> Result<Node> {
        Node::create(format!("{}-{name}", self.name))
    }

    /// Connects two hosts by a pair of veth devices, up and ready to carry what XDP sends.
    ///
    /// Both ends use NAPI (generic receive offload brings it): without it, frames that XDP redirects into a
    /// device are lost at its peer. Both ends send whole frames with whole checksums, as a wire would
    /// deliver them.
    pub fn link(&self, one: (&Node, &str), other: (&Node, &str)) -> Result<()> {
        let pair = ["link", "add", one.1, "netns", one.0.name(), "type", "veth", "peer", "name", other.1];
        let mut add = Command::new("ip");
        add.args(pair).args(["netns", other.0.name()]);
        finish(&mut add, Duration::from_secs(10))?.ok()?;
        // A device takes redirected frames only if its peer used NAPI when it came up: both first, then up.
        for (node, device) in [one, other] {
            node.ok(&["ethtool", "--features", device, "tx", "off", "gro", "on"])?;
        }
        for (node, device) in [one, other] {
            node.ip(&["link", "set", device, "up"])?;
        }
        Ok(())
    }

    /// Lets everything outlive this process.
    pub fn keep(mut self) -> Result<()> {
        self.guard.take().map_or(Ok(()), Guard::keep)
    }
}

/// Removes the sandbox of this name, kept by an earlier process.
pub fn remove(name: &str) -> Result<()> {
    guard::clean(name)
}
