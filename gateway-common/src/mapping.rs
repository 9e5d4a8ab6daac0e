//! Endpoint-independent mappings (RFC 4787 4.1, RFC 5382 4.1): one address and port of a pool for an inside
//! host's address and port, whatever the destination.
//!
//! A mapping is two elements of the session tables. Where a session's tuples name the outside host, a mapping's
//! have the zero address. No packet can meet them: the zero address is a martian on either side (RFC 1812 5.3.7,
//! RFC 4291 2.5.2), and is dropped before any session that is not confirmed is looked at; no mapping ever carries
//! a policy's generation or the state of an established connection, so that none is confirmed.
//!
//! * The *claim*, under [`claim_key`]: `0:0` to the pool's address and port. To insert it is to claim the port for
//!   all destinations. Its value says whose the mapping is: [`Session::translated`] is the inside host,
//!   [`Session::counter`] the number of the pool, and [`Session::mark`] how many sessions hold it.
//! * The *pointer*, under [`pointer_key`]: the inside host's address and port to `0`, with the pool's number as
//!   the port. Its value says which claim to look at, and nothing but the claim is believed.
//!
//! Sessions of the mapping are sessions as all others, with two elements of their own, and packets never look at
//! the mapping again. They hold it: it lives as long as the last of them.

use crate::{
    family::Family,
    session::{SIDE_INSIDE, SIDE_OUTSIDE, Tuple},
};

/// [`crate::session::Session::generation`] of a mapping in use, and of its pointer. Not one of a policy.
pub const LIVE: u32 = 1;

/// [`crate::session::Session::flags`] of the outside element of a session that holds a mapping.
pub const HELD: u8 = 1;
/// [`crate::session::Session::flags`] of the outside element of a session with a host that is inside, too.
pub const HAIRPIN: u8 = 2;
/// [`crate::session::Session::flags`] of an outside element: a packet from outside has opened the session.
pub const INWARD: u8 = 4;
/// [`crate::session::Session::flags`] of the outside element of a session that counts in [`crate::share::Share::sessions`].
pub const SHARED: u8 = 8;

/// [`crate::family::NextHop::slot`] of the inside element of such a session: back in. No interface has it.
pub const LOOP: u16 = u16::MAX;

/// Key of the claim of a pool's address and port, for a protocol.
#[inline(always)]
pub fn claim_key<F: Family>(address: F::Address, port: [u8; 2], proto: u8) -> Tuple<F> {
    Tuple {
        source: F::Address::default(),
        destination: address,
        source_port: [0; 2],
        destination_port: port,
        proto,
        side: SIDE_OUTSIDE,
        origin: 0,
    }
}

/// Key of the pointer to the mapping of an inside host's address and port in a pool.
#[inline(always)]
pub fn pointer_key<F: Family>(client: F::Address, port: [u8; 2], proto: u8, pool: u32) -> Tuple<F> {
    Tuple {
        source: client,
        destination: F::Address::default(),
        source_port: port,
        destination_port: (pool as u16).to_be_bytes(),
        proto,
        side: SIDE_INSIDE,
        origin: 0,
    }
}

/// Whether a key of the session tables is one of a mapping.
#[inline(always)]
pub fn is_key<F: Family>(tuple: &Tuple<F>) -> bool {
    let outside = if tuple.side == SIDE_INSIDE { &tuple.destination } else { &tuple.source };
    F::is_zero(outside)
}

/// Whether a key of the session tables is that of a claim.
#[inline(always)]
pub fn is_claim<F: Family>(tuple: &Tuple<F>) -> bool {
    tuple.side == SIDE_OUTSIDE && F::is_zero(&tuple.source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{V4, V6, parse, pool::MAX_POOLS, session::Session};

    #[test]
    fn keys_of_mappings_are_told_from_those_of_sessions() {
        let (client, address) = (V4::address([10, 0, 1, 2]), V4::address([198, 51, 100, 1]));
        let claim = claim_key::<V4>(address, [1, 2], 17);
        let pointer = pointer_key::<V4>(client, [3, 4], 17, MAX_POOLS - 1);
        assert!(is_key(&claim) && is_claim(&claim));
        assert!(is_key(&pointer) && !is_claim(&pointer));
        // SAFETY: all-zero bytes are a valid `Session`.
        let mut session: Session<V4> = unsafe { core::mem::zeroed() };
        session.translated = address;
        let inside = Tuple { destination: V4::address([192, 0, 2, 1]), ..pointer };
        assert!(!is_key(&inside) && !is_key(&inside.pair(&session)));
    }

    #[test]
    fn no_packet_has_the_zero_address() {
        assert!(parse::is_martian_source_v4(0) && parse::is_martian_destination_v4(0));
        assert!(parse::is_martian_source_v6(&[0; 4]) && parse::is_unspecified_or_loopback_v6(&[0; 4]));
        assert!(V4::is_zero(&0) && V6::is_zero(&[0; 4]) && !V6::is_zero(&[0, 0, 0, 1]));
    }
}
