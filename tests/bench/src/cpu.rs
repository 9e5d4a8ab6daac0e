//! What runs on which processor.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::{Pid, gettid},
};

/// Where programs, the generator of packets and everything else runs.
pub(crate) const COMMON: usize = 0;

/// Where what is measured runs, alone.
pub(crate) const MEASURED: usize = 1;

/// Keeps the calling thread, and all that it starts from now on, on one processor.
pub(crate) fn pin_to(cpu: usize) -> Result<()> {
    pin(Pid::from_raw(0), &[cpu])
}

/// Keeps all threads of a process, and those that they start from now on, on these processors.
pub(crate) fn pin_process(process: u32, cpus: &[usize]) -> Result<()> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).context("cannot list the threads")?;
    for thread in threads {
        let name = thread?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok()).context("a thread without a number")?;
        pin(Pid::from_raw(number), cpus)?;
    }
    Ok(())
}

/// A thread, of the kernel or of a program.
pub(crate) struct Thread(Pid);

impl Thread {
    /// The calling one.
    pub(crate) fn own() -> Self {
        Self(gettid())
    }

    /// The kernel's thread that polls `device`. Devices of other namespaces have such threads too: the name must be
    /// unique on this machine.
    pub(crate) fn polling(device: &str) -> Result<Self> {
        let prefix = format!("napi/{device}-");
        let processes = fs::read_dir("/proc").context("cannot list the processes")?.flatten();
        let mut threads = processes.filter(|process| {
            fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.starts_with(&prefix))
        });
        let thread = threads
            .next()
            .with_context(|| format!("no kernel thread polls {device}: kernels before 5.12 have none"))?;
        let pid = thread.file_name().to_str().and_then(|name| name.parse().ok());
        Ok(Self(Pid::from_raw(pid.context("a process without a number")?)))
    }

    /// Keeps it on one processor.
    pub(crate) fn pin_to(&self, cpu: usize) -> Result<()> {
        pin(self.0, &[cpu])
    }

    /// Processor time that it has used.
    pub(crate) fn time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/schedstat", self.0);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let time = text.split(' ').next().and_then(|word| word.parse().ok());
        Ok(Duration::from_nanos(time.with_context(|| format!("{path} holds {text}"))?))
    }
}

fn pin(thread: Pid, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu))?;
    sched_setaffinity(thread, &set)
        .with_context(|| format!("cannot keep a thread on CPUs {cpus:?}; the benchmarks need CPUs 0 and 1"))
}
