//! One host of a lab: a network namespace.

use std::{
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::process::{Finished, Process, finish};

/// How long a command may take unless it says otherwise.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);

/// One host of a lab. Cheap to clone; it names the namespace and does not own it.
#[derive(Clone, Debug)]
pub struct Node {
    name: Arc<str>,
    namespace: Arc<File>,
}

impl Node {
    pub(crate) fn create(name: String) -> Result<Self> {
        finish(Command::new("ip").args(["netns", "add", &name]), COMMAND_LIMIT)?.ok()?;
        let node = Self::open(name)?;
        node.enter(|| -> Result<()> {
            // Duplicate address detection would hold IPv6 addresses back for a second; router solicitations
            // and automatic addresses would be packets that nobody asked for.
            for family in ["all", "default"] {
                set(&format!("net.ipv6.conf.{family}.accept_dad"), "0")?;
                set(&format!("net.ipv6.conf.{family}.router_solicitations"), "0")?;
                set(&format!("net.ipv6.conf.{family}.accept_ra"), "0")?;
                set(&format!("net.ipv4.conf.{family}.rp_filter"), "0")?;
            }
            // Not the rate limits of a host on the internet: a test may provoke as many errors as it likes.
            set("net.ipv4.icmp_ratelimit", "0")
        })??;
        node.ip(&["link", "set", "lo", "up"])?;
        Ok(node)
    }

    pub(crate) fn open(name: String) -> Result<Self> {
        let path = Path::new("/run/netns").join(&name);
        let namespace = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { name: name.into(), namespace: Arc::new(namespace) })
    }

    /// Name of the namespace, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A program that will run in this namespace. Mounts stay those of the caller: unlike `ip netns exec`,
    /// the BPF file system remains in sight.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let namespace = Arc::clone(&self.namespace);
        let mut command = Command::new(program);
        command.process_group(0);
        // SAFETY: between fork and exec only setns(2) is called, a plain system call that neither allocates
        // nor takes a lock.
        unsafe {
            command.pre_exec(move || setns(&namespace, CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        command
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// If it cannot be started, or takes longer than half a minute. A program that fails is not an error here.
    pub fn run(&self, words: &[&str]) -> Result<Finished> {
        self.run_for(COMMAND_LIMIT, words)
    }

    /// Runs a program to its end, which must come within `limit`.
    pub fn run_for(&self, limit: Duration, words: &[&str]) -> Result<Finished> {
        finish(&mut self.words(words)?, limit)
    }

    /// Runs a program that must succeed; returns its standard output.
    pub fn ok(&self, words: &[&str]) -> Result<String> {
        self.run(words)?.ok().with_context(|| format!("in {}", self.name))
    }

    /// `ip ARGUMENTS`, in this namespace; must succeed.
    pub fn ip(&self, arguments: &[&str]) -> Result<String> {
        self.ok(&[&["ip"], arguments].concat())
    }

    /// Starts a program in the background; what it writes is lost.
    pub fn spawn(&self, words: &[&str]) -> Result<Process> {
        Process::spawn(self.words(words)?.stdout(Stdio::null()).stderr(Stdio::null()))
    }

    /// Starts a program in the background; what it writes is read by [`Process::finish`].
    pub fn spawn_piped(&self, words: &[&str]) -> Result<Process> {
        Process::spawn(self.words(words)?.stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// Starts a program in the background; what it writes is appended to a file.
    pub fn spawn_logged(&self, words: &[&str], log: &Path) -> Result<Process> {
        let file = File::options().create(true).append(true).open(log);
        let file = file.with_context(|| format!("cannot write {}", log.display()))?;
        Process::spawn(self.words(words)?.stdout(file.try_clone()?).stderr(file))
    }

    /// Runs `work` on a thread that is in this namespace. Sockets made there stay there for life.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| -> Result<T> {
                setns(&*self.namespace, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter {}", self.name))?;
                Ok(work())
            });
            inside.join().map_err(|_| anyhow!("panicked in {}", self.name))?
        })
    }

    /// Sets a sysctl of this namespace: `net.ipv4.ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        self.enter(|| set(key, value))?
    }

    /// MAC address of a device, as `aa:bb:cc:dd:ee:ff`.
    pub fn mac(&self, device: &str) -> Result<String> {
        let shown = self.ip(&["-oneline", "link", "show", "dev", device])?;
        let mut words = shown.split_whitespace();
        let found = words.find(|word| *word == "link/ether").and_then(|_| words.next());
        found.map(str::to_owned).with_context(|| format!("{device} in {} has no MAC address", self.name))
    }

    fn words(&self, words: &[&str]) -> Result<Command> {
        let Some((program, arguments)) = words.split_first() else { bail!("no program named") };
        let mut command = self.command(program);
        command.args(arguments);
        Ok(command)
    }
}

/// Writes a sysctl of the calling thread's namespace.
fn set(key: &str, value: &str) -> Result<()> {
    let path = format!("/proc/sys/{}", key.replace('.', "/"));
    fs::write(&path, value).with_context(|| format!("cannot set {key} to {value}"))
}
