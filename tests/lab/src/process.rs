//! Programs that run in a lab.

use std::{
    fmt::Write as _,
    io::Read,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// What a program left behind when it ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// Whether the program reported success.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Standard output of a program that succeeded.
    ///
    /// # Errors
    /// Everything the program said, if it failed.
    pub fn ok(self) -> Result<String> {
        if self.success() {
            return Ok(self.stdout);
        }
        bail!("{}", self.describe());
    }

    /// Fails if the program succeeded.
    pub fn expect_failure(self) -> Result<Self> {
        if self.success() {
            bail!("should have failed: {}", self.describe());
        }
        Ok(self)
    }

    fn describe(&self) -> String {
        let mut text = match self.code {
            Some(code) => format!("`{}` exited with {code}", self.line),
            None => format!("`{}` was ended by a signal", self.line),
        };
        for (name, content) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !content.trim().is_empty() {
                let _ = write!(text, "\n{name}: {}", content.trim());
            }
        }
        text
    }
}

/// Runs a program to its end; kills it, and fails, when it takes longer than `limit`.
pub(crate) fn finish(command: &mut Command, limit: Duration) -> Result<Finished> {
    let line = line(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{line}`"))?;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = wait(&mut child, limit)?;
    if status.is_none() {
        child.kill()?;
        child.wait()?;
    }
    let text = |reader: Option<thread::JoinHandle<String>>| {
        reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
    };
    let (stdout, stderr) = (text(stdout), text(stderr));
    let code = status.and_then(|status| status.code());
    let finished = Finished { line, code, stdout, stderr };
    if status.is_none() {
        bail!("took longer than {limit:?}: {}", finished.describe());
    }
    Ok(finished)
}

/// A program in the background, killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    line: String,
    child: Child,
    kept: bool,
}

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        let line = line(command);
        let child = command.stdin(Stdio::null()).spawn().with_context(|| format!("cannot run `{line}`"))?;
        Ok(Self { line, child, kept: false })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("pid")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal `{}`", self.line))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait(&mut self.child, limit)?.with_context(|| format!("`{}` still runs after {limit:?}", self.line))
    }

    /// Waits for its end and returns what it wrote; for programs spawned with pipes.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let stdout = self.child.stdout.take().map(drain);
        let stderr = self.child.stderr.take().map(drain);
        let status = self.wait(limit)?;
        let text = |reader: Option<thread::JoinHandle<String>>| {
            reader.and_then(|reader| reader.join().ok()).unwrap_or_default()
        };
        let line = self.line.clone();
        Ok(Finished { line, code: status.code(), stdout: text(stdout), stderr: text(stderr) })
    }

    /// Lets it run on when this is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.kept {
            let _gone = self.child.kill();
            let _reaped = self.child.wait();
        }
    }
}

/// Asks `ready` again and again until it says yes.
///
/// # Errors
/// If it has not after `limit`; `what` completes the sentence "waited in vain for".
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !ready() {
        if begin.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let begin = Instant::now();
    // Most programs end at once: look often at first.
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begin.elapsed() > limit {
            return Ok(None);
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _partial = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
