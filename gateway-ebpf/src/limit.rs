//! Map `DESTINATIONS`: what each address of a pool has open towards each destination, and how fast it opens more.
//! A session is counted before its outside element is entered, and until that is removed.

use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use gateway_common::{DropReason, limit::Limit, ports::Destination};

use crate::bucket::{self, Buckets, NO_ROOM, OVER_CONCURRENT, OVER_RATE};

pub(crate) use crate::bucket::REFUSED;

#[btf_map]
static DESTINATIONS: Buckets<Destination> = HashMap::new();

/// Why a connection was refused, after what all of [`admit`] have said together.
#[inline(always)]
pub(crate) const fn reason(refused: u32) -> Option<DropReason> {
    if refused & OVER_RATE != 0 {
        Some(DropReason::DestinationRate)
    } else if refused & OVER_CONCURRENT != 0 {
        Some(DropReason::DestinationConcurrent)
    } else if refused & NO_ROOM != 0 {
        Some(DropReason::SessionTableFull)
    } else {
        None
    }
}

/// See [`bucket::admit`]. A function of its own, for its stack.
#[inline(never)]
pub(crate) fn admit(destination: &Destination, limit: &Limit) -> u32 {
    bucket::admit(&DESTINATIONS, destination, destination.tag(), limit)
}

/// See [`bucket::take_back`]. Returns nothing of interest.
#[inline(never)]
pub(crate) fn take_back(destination: &Destination, limit: &Limit) -> u32 {
    bucket::take_back(&DESTINATIONS, destination, limit.interval);
    0
}

/// See [`bucket::ended`].
#[inline(always)]
pub(crate) fn ended(destination: &Destination) {
    bucket::ended(&DESTINATIONS, destination);
}

/// The number of sessions to a destination.
#[inline(always)]
pub(crate) fn sessions(destination: &Destination) -> u32 {
    bucket::sessions(&DESTINATIONS, destination)
}

/// See [`bucket::visit`].
#[inline(always)]
pub(crate) fn visit(destination: &Destination) {
    bucket::visit(&DESTINATIONS, destination, destination.tag());
}
