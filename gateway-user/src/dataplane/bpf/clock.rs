//! The clock of the packet path: ticks, counted by the kernel's jiffies.
//!
//! Jiffies are not shown to user space; their length is, and the program `sweep` tells the present tick.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use gateway_common::config::tick_shift;
use nix::time::{ClockId, clock_getres, clock_gettime};

use super::sweep::Program;

/// The clock that times in sessions are of.
#[derive(Clone)]
pub(super) struct Clock {
    program: Arc<Program>,
    scale: Scale,
}

/// How long a tick is.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    /// Nanoseconds of a jiffy.
    jiffy: u64,
}

impl Scale {
    /// The scale of this kernel: the coarse clocks move with every jiffy.
    pub(super) fn of_this_kernel() -> Result<Self> {
        let resolution =
            clock_getres(ClockId::CLOCK_MONOTONIC_COARSE).context("cannot read the length of a jiffy")?;
        let jiffy =
            resolution.tv_sec().cast_unsigned() * 1_000_000_000 + resolution.tv_nsec().cast_unsigned();
        Ok(Self { jiffy: jiffy.max(1) })
    }

    /// [`gateway_common::config::Config::tick_shift`].
    pub(super) fn shift(self) -> u32 {
        tick_shift(self.jiffy)
    }

    /// Length of so many ticks.
    pub(super) fn duration(self, ticks: u32) -> Duration {
        Duration::from_nanos(u64::from(ticks) * (self.jiffy << self.shift()))
    }

    /// Ticks of a time, rounded up: a session is never removed early.
    pub(super) fn ticks(self, time: Duration) -> u32 {
        let ticks = time.as_nanos().div_ceil(u128::from(self.jiffy << self.shift()));
        u32::try_from(ticks).unwrap_or(u32::MAX)
    }
}

impl Clock {
    pub(super) fn new(program: Arc<Program>, scale: Scale) -> Self {
        Self { program, scale }
    }

    /// The present tick.
    pub(super) fn now(&self) -> Result<u32> {
        self.program.now()
    }

    /// Time between `tick` and `now`.
    pub(super) fn since(&self, now: u32, tick: u32) -> Duration {
        self.scale.duration(now.saturating_sub(tick))
    }
}

/// The present time of the monotonic clock, nanoseconds, as `bpf_ktime_get_ns` tells it.
pub(super) fn monotonic() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).context("cannot read the clock")?;
    Ok(time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned())
}
