//! A stream of frames, for as long as something else is going on.
//!
//! One call of `BPF_PROG_RUN` makes the whole stream: setting up and taking down its pages waits for RCU, some
//! 20 ms, in which a call of a million frames would be done. A signal ends it.

use std::{
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use gateway_lab::Node;
use nix::{
    libc,
    sys::{
        pthread::{pthread_kill, pthread_self},
        signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction},
    },
};

use crate::{cpu::Thread, kernel::Kernel};

/// Interrupts the system call and does nothing else.
const WAKE: Signal = Signal::SIGUSR1;

/// Does `work` while the generator of `kernel` sends its frames from `node`, out of the device `ifindex`. The thread that
/// sends is passed to it.
///
/// # Errors
/// Those of `work` and of the generator.
pub(crate) fn during<T>(
    kernel: &Kernel,
    node: &Node,
    ifindex: u32,
    work: impl FnOnce(&Thread) -> Result<T>,
) -> Result<T> {
    extern "C" fn ignore(_: libc::c_int) {}
    let action = SigAction::new(SigHandler::Handler(ignore), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(WAKE, &action) }.context("cannot catch a signal")?;
    let stop = AtomicBool::new(false);
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let generator = scope.spawn(|| {
            node.enter(|| {
                tell.send((pthread_self(), Thread::own()))?;
                while !stop.load(Ordering::Relaxed) {
                    kernel.generate(ifindex)?;
                }
                Ok(())
            })?
        });
        let (thread, sending) = told.recv().context("the generator did not start")?;
        let done = work(&sending);
        stop.store(true, Ordering::Relaxed);
        // A signal that comes just before the system call is lost.
        while !generator.is_finished() {
            pthread_kill(thread, WAKE).context("cannot stop the generator")?;
            thread::sleep(Duration::from_millis(1));
        }
        match generator.join() {
            Ok(result) => result.and(done),
            Err(_) => bail!("the generator panicked"),
        }
    })
}
