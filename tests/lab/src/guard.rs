//! Takes a lab down when its owner is done, or dead.
//!
//! The guard is a process of its own that waits for the end of a pipe. The kernel closes the pipe however
//! the owner ends: return, panic, Ctrl-C, `kill -9`. So there is one way to clean up, and nothing skips it.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// Waits for the pipe, then kills what runs in the namespaces of the lab `$1` and removes every trace of it.
const SCRIPT: &str = r#"
lab=${1:?}
read -r word
[ "$word" = keep ] && exit 0
namespaces=$(ip netns list | cut -d ' ' -f 1 | grep "^$lab-")
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    pids=$(for namespace in $namespaces; do ip netns pids "$namespace"; done)
    [ -z "$pids" ] && break
    kill -9 $pids
    sleep 0.05
done 2>/dev/null
for namespace in $namespaces; do ip netns del "$namespace"; done
rm -rf "/sys/fs/bpf/$lab" "/tmp/$lab"
"#;

/// The process that cleans up after a lab.
pub(crate) struct Guard {
    process: Child,
}

impl Guard {
    /// Starts watching over the lab of this name.
    pub(crate) fn start(lab: &str) -> Result<Self> {
        Ok(Self { process: spawn(lab, Stdio::piped())? })
    }

    /// Lets the lab outlive its owner.
    pub(crate) fn keep(mut self) -> Result<()> {
        if let Some(pipe) = self.process.stdin.as_mut() {
            pipe.write_all(b"keep\n").context("the guard of the lab is gone")?;
        }
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // Whoever comes after may rely on the names being free.
        let _ended = self.process.wait();
    }
}

/// Takes a lab down at once.
pub(crate) fn clean(lab: &str) -> Result<()> {
    let status = spawn(lab, Stdio::null())?.wait().context("cannot wait for the clean-up")?;
    if !status.success() {
        bail!("cleaning up the lab {lab} failed: {status}");
    }
    Ok(())
}

fn spawn(lab: &str, stdin: Stdio) -> Result<Child> {
    Command::new("sh")
        .args(["-c", SCRIPT, "lab-guard", lab])
        .stdin(stdin)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Ctrl-C in the owner's terminal is for the owner.
        .process_group(0)
        .spawn()
        .context("cannot run sh")
}
