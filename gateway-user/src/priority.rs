//! Priorities of threads that have much to do, so that packets do not wait for them.
//!
//! Where packets are polled by kernel threads, a thread that computes takes half of a processor that one of those needs
//! all of. A thread that stands back gets the smaller part that its nice value is worth, and all of a processor that has
//! nothing else to do.

use std::io;

use tracing::warn;

/// Nice value of threads that somebody waits for: one part in ten of a processor that is wanted.
pub(crate) const AWAITED: i32 = 10;
/// Nice value of threads that nobody waits for: one part in 24.
pub(crate) const UNNOTICED: i32 = 14;
/// Nice value of threads that stand back for nobody.
pub(crate) const FULL: i32 = 0;

/// Sets the nice value of the calling thread. Where the system refuses, a warning is logged.
pub(crate) fn set(nice: i32) {
    // SAFETY: the call takes numbers only; 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0 {
        let error = io::Error::last_os_error();
        let thread = std::thread::current();
        warn!("cannot set the priority of the thread `{}` to {nice}: {error}", thread.name().unwrap_or("?"));
    }
}
