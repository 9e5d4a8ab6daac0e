//! Priorities of threads that have much to do, so that packets do not wait for them.
//!
//! Where packets are polled by kernel threads, a thread that computes takes half of a processor that one of those needs
//! all of. A thread that stands back gets the smaller part that its nice value is worth, and all of a processor that has
//! nothing else to do.

use std::{io, panic, thread};

use tokio::sync::oneshot;
use tracing::warn;

/// Nice value of threads that somebody waits for: one part in 19 of a processor that is wanted. Two of them, one that
/// fills the kernel's tables and one that writes to disk, take a tenth.
pub(crate) const AWAITED: i32 = 13;
/// Nice value of threads that nobody waits for: one part in 24.
pub(crate) const UNNOTICED: i32 = 14;
/// Nice value of threads that stand back for nobody.
pub(crate) const FULL: i32 = 0;

/// Sets the nice value of the calling thread. Where the system refuses, a warning is logged.
pub(crate) fn set(nice: i32) {
    // SAFETY: the call takes numbers only; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0 {
        let error = io::Error::last_os_error();
        let thread = thread::current();
        warn!("cannot set the priority of the thread `{}` to {nice}: {error}", thread.name().unwrap_or("?"));
    }
}

/// Does what may take long, and is waited for, on a thread that stands back.
///
/// # Errors
/// There is no thread for it, or it has panicked.
pub(crate) async fn stand_back<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, done) = oneshot::channel();
    let run = move || {
        set(AWAITED);
        // Whoever asked may have gone.
        drop(sender.send(work()));
    };
    thread::Builder::new().name("bulk".to_owned()).spawn(run)?;
    done.await.map_err(|_| io::Error::other("the thread has failed"))
}

/// The same for a thread that waits for it and keeps its own priority: to take it back may not be allowed.
pub(crate) fn standing_back<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let run = move || {
        set(AWAITED);
        work()
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap_or_else(|panic| panic::resume_unwind(panic))
}
