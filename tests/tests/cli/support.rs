//! Runs `gwctl`, and a daemon without packets for it to talk to.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Instant,
};

use anyhow::{Context as _, Result};
use gateway_user::{
    api::{self, listen, serve},
    control::{self, Base, Store},
    dataplane::{Host, Link, memory::Memory},
    model::Snapshot,
};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// What a command printed, and how it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: i32,
}

/// `gwctl`, with an environment in which nothing surprises it.
pub(crate) fn gwctl(socket: &Path) -> Result<Command> {
    let mut command = Command::new(gateway_lab::program("gwctl")?);
    command.env_clear().env("GWCTL_SOCKET", socket).stdin(Stdio::null());
    Ok(command)
}

/// Runs `gwctl` with the words of `line`; one that is quoted may have spaces.
pub(crate) fn run(socket: &Path, line: &str) -> Result<Said> {
    finish(gwctl(socket)?.args(words(line)))
}

/// Runs a command to its end.
pub(crate) fn finish(command: &mut Command) -> Result<Said> {
    let output = command.output().context("gwctl does not start")?;
    Ok(Said {
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
        code: output.status.code().context("gwctl was killed")?,
    })
}

fn words(line: &str) -> Vec<String> {
    let parts = line.split('"').enumerate();
    parts
        .flat_map(|(number, part)| match number % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect(),
            _ => vec![part.to_owned()],
        })
        .collect()
}

/// A control plane that believes to have two interfaces, `eth0` and `eth1`.
pub(crate) struct Daemon {
    /// The data plane, open to the test.
    pub(crate) memory: Memory,
    directory: TempDir,
    stop: CancellationToken,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Daemon {
    /// Starts it, and returns when it answers.
    pub(crate) fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let memory = Memory::default();
        let stop = CancellationToken::new();
        let (ready, started) = std::sync::mpsc::channel();
        let serving = work(directory.path().to_owned(), memory.clone(), stop.clone(), move || {
            // The test that waited has failed already if nobody listens.
            let _unheard = ready.send(());
        });
        let thread = thread::spawn(move || {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()?
                .block_on(serving)
        });
        let daemon = Self { memory, directory, stop, thread: Some(thread) };
        started.recv().context("the control plane did not start")?;
        Ok(daemon)
    }

    /// The socket.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.directory.path())
    }

    /// Runs `gwctl` with the words of `line`.
    pub(crate) fn run(&self, line: &str) -> Result<Said> {
        run(&self.socket(), line)
    }

    /// Runs each of `lines`, and writes down what a user would see: output, messages, exit code.
    pub(crate) fn transcript(&self, lines: &str) -> Result<String> {
        let mut text = String::new();
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let Said { out, err, code } = self.run(line)?;
            write!(text, "$ gwctl {line}\n{out}{err}")?;
            if code != 0 {
                writeln!(text, "[{code}]")?;
            }
            text.push('\n');
        }
        Ok(self.without_chance(&text))
    }

    /// Replaces what differs from run to run.
    fn without_chance(&self, text: &str) -> String {
        let pid = std::process::id();
        let lines = text.lines().map(|line| match line.split_once(&format!("pid {pid}, up ")) {
            Some((before, _)) => format!("{before}pid PID, up TIME\n"),
            None => format!("{line}\n"),
        });
        lines.collect::<String>().replace(&self.directory.path().display().to_string(), "DIR")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(Err(error)) = self.thread.take().and_then(|thread| thread.join().ok()) {
            eprintln!("the control plane failed: {error:#}");
        }
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("gateway.sock")
}

async fn work(
    directory: PathBuf,
    memory: Memory,
    stop: CancellationToken,
    ready: impl FnOnce(),
) -> Result<()> {
    let link = |index| Link {
        index,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        up: true,
        veth: false,
        addresses: Vec::new(),
    };
    let host = Host { links: [("eth0".to_owned(), link(2)), ("eth1".to_owned(), link(3))].into() };
    let base = Base { snapshot: Arc::new(Snapshot::default()), fingerprint: "base".to_owned() };
    let store = Store::open(&directory)?;
    let (handle, control) = control::start(Box::new(memory), host, base, store).await?;
    let context = api::Context {
        control: handle,
        config_file: PathBuf::from("/etc/gateway/gateway.toml"),
        metrics: None,
        started: Instant::now(),
        inspect: Arc::new(|_| gateway_user::netlink::Sysctls::default()),
        monitor: gateway_user::monitor::Hub::default(),
        usage: Arc::default(),
    };
    let listener = listen(&socket(&directory))?;
    ready();
    serve(listener, context, stop).await?;
    control.stop(false).await
}
