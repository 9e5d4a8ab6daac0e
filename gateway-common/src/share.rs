//! How clients share a destination that is at its limit: dynamic thresholds (Choudhury and Hahne, 1998).
//!
//! The last of what there is, connections or tokens, is kept for those who have little: the less there is left, the less
//! a client may have that takes some of it. So those who want more than their part all stop at the same number, whatever
//! they ask for, and who wants less gets it. That is max-min fairness without a queue, and without a number of clients.
//!
//! The threshold falls with the third power of what is left. So a hundredth of the connections, which is all that is
//! withheld, tells clients apart that have half of all from those that have one in a thousand.
//!
//! What each client has is noted only where much of what there may be is taken ([`Limit::is_shared`]): elsewhere nobody
//! has to stand back, and a new connection costs nothing for it.

use crate::{limit::Limit, pod};

/// Elements of `SHARES`.
pub const MAX_SHARES: u32 = 1 << SHARE_BITS;
const SHARE_BITS: u32 = 17;
/// Elements of `CONTENTIONS`.
pub const MAX_CONTENTIONS: u32 = 1 << CONTENTION_BITS;
const CONTENTION_BITS: u32 = 14;

/// A round is a power of two of nanoseconds, about a second: with each, what a client has opened counts half.
const ROUND_SHIFT: u32 = 30;
/// For so many rounds clients share a destination after one of them has been refused that has little.
pub const CONTENTION: u32 = 32;
/// One in so many connections at a time is for those who have little.
const RESERVE: u32 = 100;
/// No fewer than so many: of these one is withheld from who has much.
const LEAST_RESERVE: u32 = 2;
/// Connections at a time below which nothing is kept: it would be a great part of them.
const LEAST_SHARED: u32 = 4;
/// From this part of the connections at a time on, it is noted who has them.
const NOTED: u32 = 8;
/// As soon as this part of the burst is taken, it is noted who takes it. More than half of it is never withheld.
const NOTED_TOKENS: u64 = 4;
/// Longest time whose tokens are kept for those who have little, nanoseconds.
const LONGEST_RESERVE: u64 = 1 << 40;

/// What is left of a reserve, and the cube of it, are fractions of these powers of two.
const LEFT_SHIFT: u32 = 10;
const CUBE_SHIFT: u32 = 3 * LEFT_SHIFT;

/// [`Share::recent`] is in units of so many nanoseconds, a power of two.
const UNIT_SHIFT: u32 = 6;
/// Bits of an amount in [`Share::recent`].
const AMOUNT_BITS: u32 = 26;
const AMOUNT: u32 = (1 << AMOUNT_BITS) - 1;
/// A round, in these units.
const ROUND: u64 = 1 << (ROUND_SHIFT - UNIT_SHIFT);
/// What a client comes to that opens all connections that there may be, just before a round ends.
const ALL: u64 = 2 * ROUND;

/// What one client has of one destination. Map `SHARES`: pairs whose hashes meet have an element in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Sessions that were noted when they began.
    pub sessions: u32,
    /// What it has opened, half of it for each round that has passed since: the time that the limit's rate takes for that,
    /// below the lowest bits of the number of the round.
    pub recent: u32,
}

/// The number of the round at a time of the monotonic clock, nanoseconds.
#[inline(always)]
#[must_use]
pub const fn round(now: u64) -> u32 {
    (now >> ROUND_SHIFT) as u32
}

/// The element of `CONTENTIONS` of a destination with this tag.
#[inline(always)]
#[must_use]
pub const fn contention(tag: u64) -> u32 {
    ((tag >> 32) as u32).wrapping_mul(0x9e37_79b1) >> (u32::BITS - CONTENTION_BITS)
}

/// The element of `SHARES` of a client with this hash at a destination with this tag.
#[inline(always)]
#[must_use]
pub const fn share(tag: u64, client: u32) -> u32 {
    ((tag >> 32) as u32 ^ client).wrapping_mul(0x9e37_79b1) >> (u32::BITS - SHARE_BITS)
}

/// Whether clients have to share in a round, by what `CONTENTIONS` has: the last such round.
#[inline(always)]
#[must_use]
pub const fn is_contended(until: u32, round: u32) -> bool {
    until.wrapping_sub(round) <= CONTENTION
}

impl Share {
    /// What the client has opened, in `round`.
    #[inline(always)]
    #[must_use]
    pub const fn opened(&self, round: u32) -> u32 {
        let rounds = round.wrapping_sub(self.recent >> AMOUNT_BITS) & (u32::MAX >> AMOUNT_BITS);
        // No amount outlives the shift.
        (self.recent & AMOUNT) >> if rounds > AMOUNT_BITS { AMOUNT_BITS } else { rounds }
    }

    /// [`Share::recent`] after one more connection in `round`.
    #[inline(always)]
    #[must_use]
    pub const fn after(&self, round: u32, limit: &Limit) -> u32 {
        let amount = self.opened(round) + (limit.interval >> UNIT_SHIFT);
        round << AMOUNT_BITS | if amount > AMOUNT { AMOUNT } else { amount }
    }
}

impl Limit {
    /// Whether it is noted who opens a connection where there are so many `sessions`, and a bucket is full at `full`.
    #[inline(always)]
    #[must_use]
    pub const fn is_shared(&self, sessions: u32, full: u64, now: u64) -> bool {
        self.concurrent != 0 && sessions >= self.concurrent / NOTED
            || self.interval != 0 && full.saturating_sub(now) > self.ahead / NOTED_TOKENS
    }

    /// Whether a client with `mine` of `sessions` has so little that it is for others to make room, once it is refused
    /// because there are so many. Who is alone never has.
    #[inline(always)]
    #[must_use]
    pub const fn has_few(mine: u32, sessions: u32) -> bool {
        mine as u64 * 2 <= sessions as u64
    }

    /// As [`Limit::has_few`], of a client that has [opened](Share::opened) so much, and is refused because it is too soon:
    /// it has also opened less than half of what a round or the burst have room for.
    #[inline(always)]
    #[must_use]
    pub const fn has_opened_few(&self, share: &Share, round: u32, sessions: u32) -> bool {
        let burst = (self.ahead + self.interval as u64) >> UNIT_SHIFT;
        let most = if burst < ROUND { burst } else { ROUND };
        Self::has_few(share.sessions, sessions) && share.opened(round) as u64 * 2 <= most
    }

    /// Whether a client with `mine` of `sessions` leaves what there is to those who have less.
    #[inline(always)]
    #[must_use]
    pub const fn is_crowded_by(&self, mine: u32, sessions: u32) -> bool {
        let left = self.concurrent.saturating_sub(sessions);
        let reserve = match self.concurrent / RESERVE + 1 {
            least if least < LEAST_RESERVE => LEAST_RESERVE,
            reserve => reserve,
        };
        self.concurrent >= LEAST_SHARED
            && left < reserve
            && mine as u64 > threshold(self.concurrent as u64, left as u64, reserve as u64)
    }

    /// As [`Limit::is_crowded_by`], of a client that has [opened](Share::opened) so much, and a bucket that is full at
    /// `full`. Half of the bucket is kept: no token is lost for that.
    #[inline(always)]
    #[must_use]
    pub const fn is_drained_by(&self, opened: u32, full: u64, now: u64) -> bool {
        // What is left when this connection has taken its token.
        let left = self.ahead.saturating_sub(full.saturating_sub(now));
        let reserve = if self.ahead / 2 > LONGEST_RESERVE { LONGEST_RESERVE } else { self.ahead / 2 };
        self.interval != 0 && left < reserve && opened as u64 > threshold(ALL, left, reserve)
    }
}

/// The most that a client may have that takes something where `left` of `reserve` is left, out of `all`.
#[inline(always)]
const fn threshold(all: u64, left: u64, reserve: u64) -> u64 {
    let part = match (left << LEFT_SHIFT).checked_div(reserve) {
        Some(part) => part,
        None => 0,
    };
    (all * (part * part * part)) >> CUBE_SHIFT
}

const _: () = assert!(size_of::<Share>() == 8);

pod!(Share);

#[cfg(test)]
mod tests;
