//! Limits of sources: what a client, or all clients of a prefix together, may open.
//!
//! The longest prefix of `LIMITS` that covers a client says which limit is its own. What it has open is counted in a
//! [`crate::limit::Bucket`] of `SOURCES`. A session remembers in its [`Charge`] where it was counted, so that it is
//! taken off there, whatever the limits are by then.

use crate::{family::MappedAddress, limit::Limit, parse::Wire, pod, ports::mix};

/// Numbers of limits are from 1 to this.
pub const MAX_LIMITS: u32 = 1_023;

/// Which bucket a session is counted in: the number of a limit, and whether all of its prefix share one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Charge(u16);

impl Charge {
    /// Bits of [`Charge::number`].
    pub const BITS: u32 = 11;

    /// Nobody limits the session.
    pub const NONE: Self = Self(0);

    /// The limit `limit`, from 1 to [`MAX_LIMITS`], of each client or of all together.
    #[inline(always)]
    pub const fn of(limit: u32, per_prefix: bool) -> Self {
        Self((limit as u16) << 1 | per_prefix as u16)
    }

    /// The number that it is kept as.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        self.0
    }

    /// The inverse of [`Charge::number`].
    #[inline(always)]
    pub const fn from_number(number: u16) -> Self {
        Self(number)
    }

    /// Whether a limit counts the session.
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// Number of the limit.
    #[inline(always)]
    pub const fn limit(self) -> u32 {
        (self.0 >> 1) as u32
    }

    /// Whether all clients of the prefix share a bucket.
    #[inline(always)]
    pub const fn is_per_prefix(self) -> bool {
        self.0 & 1 != 0
    }
}

/// Key of the trie `LIMITS`, behind a prefix length that counts all bits before those of the source's prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LimitKey {
    /// See [`LimitKey::realm`].
    pub realm: u32,
    /// Zero: the trie wants keys of a multiple of 8 bytes.
    pub reserved: u32,
    /// See [`MappedAddress`].
    pub source: MappedAddress,
}

impl LimitKey {
    /// Half of the map and family, network byte order: prefixes of one do not cover the other.
    #[inline(always)]
    pub const fn realm(half: u32, ipv4: bool) -> u32 {
        (half << 1 | ipv4 as u32).to_be()
    }
}

/// Value of `LIMITS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceLimit {
    /// Number of a [`Charge`].
    pub charge: u32,
    /// Zero.
    pub reserved: u32,
    /// What may be opened.
    pub limit: Limit,
}

/// Key of `SOURCES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Source {
    /// The client's address; zero where the prefix shares a bucket.
    pub address: MappedAddress,
    /// Number of a [`Charge`].
    pub charge: u32,
}

// SAFETY: the type is `repr(C)`, has no padding, and accepts every bit pattern.
unsafe impl Wire for Source {}

impl Source {
    /// Where a session of `client` is counted under `charge`.
    #[inline(always)]
    pub const fn of(charge: Charge, client: MappedAddress) -> Self {
        let address = if charge.is_per_prefix() { [0; 4] } else { client };
        Self { address, charge: charge.number() as u32 }
    }

    /// A hash of all of it in the upper half of a word, see [`crate::limit::Bucket::sessions`].
    #[inline(always)]
    #[must_use]
    pub const fn tag(&self) -> u64 {
        let mut hash = mix(0, self.charge);
        let mut at = 0;
        while at < 4 {
            hash = mix(hash, self.address[at]);
            at += 1;
        }
        (hash as u64) << 32
    }
}

/// Map `LIMIT_COUNTERS`, per CPU, indexed by the number of the limit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitCounters {
    /// Connections that were admitted.
    pub admitted: u64,
    /// Connections that were refused because of the rate.
    pub over_rate: u64,
    /// Connections that were refused because there were too many at the time.
    pub over_concurrent: u64,
}

const _: () = assert!(MAX_LIMITS < 1 << (Charge::BITS - 1));
const _: () = assert!(size_of::<LimitKey>() == 24);
const _: () = assert!(size_of::<SourceLimit>() == 24);
const _: () = assert!(size_of::<Source>() == 20);
const _: () = assert!(size_of::<LimitCounters>() == 24);

pod!(LimitKey, SourceLimit, Source, LimitCounters);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_round_trip() {
        for limit in [1, 2, 512, MAX_LIMITS] {
            for per_prefix in [false, true] {
                let charge = Charge::from_number(Charge::of(limit, per_prefix).number());
                assert_eq!((charge.limit(), charge.is_per_prefix()), (limit, per_prefix));
                assert!(charge.is_some() && charge.number() < 1 << Charge::BITS);
            }
        }
        assert!(!Charge::NONE.is_some());
    }

    #[test]
    fn clients_share_a_bucket_only_where_their_prefix_does() {
        let (one, other) = ([0, 0, 1, 2], [0, 0, 1, 3]);
        let (each, all) = (Charge::of(1, false), Charge::of(1, true));
        assert_ne!(Source::of(each, one), Source::of(each, other));
        assert_eq!(Source::of(all, one), Source::of(all, other));
        assert_ne!(Source::of(each, one).tag(), Source::of(each, other).tag());
        assert_eq!(Source::of(each, one).tag() as u32, 0);
    }
}
