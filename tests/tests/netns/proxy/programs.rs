//! The proxies that people use, set up to intercept port 80 of whatever reaches their host.

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};
use gateway_lab::{Lab, Node, Process, skip, wait_until};
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(20);

/// Whether a program is there. If not, the calling test is reported as skipped, and should return.
pub(crate) fn installed(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let there = env::split_paths(&path).any(|directory| directory.join(name).is_file());
    if !there {
        skip(&format!("{name} is not installed (cargo xtask setup)"));
    }
    there
}

/// Squid in intercept mode: netfilter of its host redirects connections to it, and it connects to where they were
/// meant to go, from its host's own address.
pub(crate) struct Squid {
    process: Process,
    log: PathBuf,
}

impl Squid {
    /// Starts it on port 3129 of a node.
    pub(crate) fn start(lab: &Lab, node: &Node) -> Result<Self> {
        let directory = directory(lab, node, "squid")?;
        let (at, log) = (directory.display(), directory.join("access.log"));
        // No cache, no pinger, no name server: requests name addresses.
        let config = format!(
            "http_port 127.0.0.1:3128\n\
             http_port 3129 intercept\n\
             http_access allow all\n\
             cache deny all\n\
             pinger_enable off\n\
             dns_nameservers 127.0.0.1\n\
             pid_filename {at}/squid.pid\n\
             cache_log {at}/cache.log\n\
             logformat flow %>a %<a\n\
             access_log stdio:{at}/access.log flow\n\
             coredump_dir none\n\
             netdb_filename none\n\
             visible_hostname proxy\n"
        );
        fs::write(directory.join("squid.conf"), config)?;
        nft(
            node,
            &directory,
            "table inet proxy {\n chain in {\n  type nat hook prerouting priority dstnat\n  \
             tcp dport 80 redirect to :3129\n }\n}\n",
        )?;
        let config = directory.join("squid.conf").display().to_string();
        let output = directory.join("output");
        let process = node.spawn_logged(&["squid", "-N", "-f", &config], &output)?;
        listening(node, 3129).with_context(|| fs::read_to_string(&output).unwrap_or_default())?;
        Ok(Self { process, log })
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// Client and server of each request, as soon as there are this many.
    pub(crate) fn flows(&self, count: usize) -> Result<Vec<String>> {
        flows(&self.log, count)
    }

    /// Addresses of the clients so far.
    pub(crate) fn clients(&self) -> Result<BTreeSet<String>> {
        let first = |line: String| line.split(' ').next().unwrap_or_default().to_owned();
        Ok(flows(&self.log, 0)?.into_iter().map(first).collect())
    }
}

/// Haproxy in TPROXY mode: its host delivers connections to it as they are, and it connects to where they were meant
/// to go, from the client's address.
pub(crate) struct Haproxy {
    _process: Process,
    log: PathBuf,
}

impl Haproxy {
    /// Starts it on port 3130 of a node.
    pub(crate) fn start(lab: &Lab, node: &Node) -> Result<Self> {
        let directory = directory(lab, node, "haproxy")?;
        let config = "\
            global\n  log stdout format raw local0\n\
            defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n\
            frontend intercepted\n  bind :3130 transparent\n  log global\n  log-format \"%ci %fi\"\n  \
              default_backend original\n\
            backend original\n  option transparent\n  source 0.0.0.0 usesrc clientip\n";
        let path = directory.join("haproxy.cfg");
        fs::write(&path, config)?;
        // Connections to port 80, and all that answers the ones that were made, belong to this host.
        nft(
            node,
            &directory,
            "table ip proxy {\n chain in {\n  type filter hook prerouting priority mangle\n  \
             meta l4proto tcp socket transparent 1 meta mark set 1 accept\n  \
             tcp dport 80 tproxy to :3130 meta mark set 1 accept\n }\n}\n",
        )?;
        node.ip(&["rule", "add", "fwmark", "1", "lookup", "100"])?;
        node.ip(&["route", "add", "local", "0.0.0.0/0", "dev", "lo", "table", "100"])?;
        let log = directory.join("log");
        let config = path.display().to_string();
        let process = node.spawn_logged(&["haproxy", "-db", "-f", &config], &log)?;
        listening(node, 3130).with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
        Ok(Self { _process: process, log })
    }

    /// Client and server of each connection, as soon as this many have ended; those of checks are not counted.
    pub(crate) fn flows(&self, count: usize) -> Result<Vec<String>> {
        flows(&self.log, count)
    }
}

/// Lines of a log that name a client and a server, as soon as there are this many. Checks have no server.
fn flows(log: &Path, count: usize) -> Result<Vec<String>> {
    let of_client = |line: &&str| {
        (line.starts_with("10.0.1.") || line.starts_with("2001:db8:1:")) && !line.ends_with(" -")
    };
    let read = || -> Vec<String> {
        let text = fs::read_to_string(log).unwrap_or_default();
        text.lines().filter(of_client).map(str::to_owned).collect()
    };
    wait_until("the log of the proxy", LIMIT, || read().len() >= count)?;
    Ok(read())
}

/// A directory that a proxy can write to which has given up the rights of root.
fn directory(lab: &Lab, node: &Node, name: &str) -> Result<PathBuf> {
    let directory = lab.sandbox.dir().join(format!("{}-{name}", node.name()));
    fs::create_dir_all(&directory)?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))?;
    Ok(directory)
}

fn nft(node: &Node, directory: &Path, rules: &str) -> Result<()> {
    let path = directory.join("rules.nft");
    fs::write(&path, rules)?;
    node.ok(&["nft", "-f", &path.display().to_string()]).map(drop)
}

fn listening(node: &Node, port: u16) -> Result<()> {
    wait_until("the proxy to listen", LIMIT, || {
        let sockets = node.ok(&["ss", "--no-header", "--listening", "--tcp", "--numeric"]);
        sockets.is_ok_and(|text| text.contains(&format!(":{port} ")))
    })
}
