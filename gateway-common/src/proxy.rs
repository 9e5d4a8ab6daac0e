//! Proxies: hosts that packets are sent through, unchanged but for TTL and Ethernet header.
//!
//! Every proxy has a table of [`SLOTS`] slots that name its hosts. The two addresses of a flow choose a slot
//! ([`slot`]), whichever of them the packet comes from, so that all flows of two hosts, in both directions, meet the
//! same host of the proxy. User space fills the slots; hosts that take no new flows have none.
//!
//! A flow that was sent to a host is a session whose translation changes nothing. [`crate::session::Tuple::origin`]
//! keeps its two sides apart, which show the same addresses.

use crate::{
    family::{MappedAddress, NextHop},
    pod, pool,
    session::{SIDE_INSIDE, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN},
    tcp::State,
};

/// Elements of `PROXIES`.
pub const MAX_PROXIES: u32 = 256;
/// Elements of `PROXY_HOSTS`, and of `PROXY_MACS`.
pub const MAX_PROXY_HOSTS: u32 = 4_096;
/// Hosts of one proxy.
pub const MAX_HOSTS_PER_PROXY: u32 = 256;
/// Slots of a proxy. A prime, so that the steps of Maglev's permutations (Eisenbud et al., NSDI 2016, 3.4) reach all
/// of them, and a hundred times and more what most proxies have hosts, so that shares are even.
pub const SLOTS: usize = 4_093;

/// What a slot says where no host of the proxy takes new flows.
pub const NO_HOST: u16 = u16::MAX;

/// [`Proxy::fail`]: the packet is dropped.
pub const FAIL_CLOSED: u32 = 0;
/// [`Proxy::fail`]: the packet is forwarded, source unchanged.
pub const FAIL_DIRECT: u32 = 1;
/// [`Proxy::fail`]: its source is translated to an address of the pool [`Proxy::object`].
pub const FAIL_POOL: u32 = 2;
/// [`Proxy::fail`]: it is sent through the proxy [`Proxy::object`].
pub const FAIL_PROXY: u32 = 3;

/// Map `PROXIES`, indexed by the number of the proxy. All zero where there is none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// What becomes of new flows while the slots are empty: [`FAIL_CLOSED`], [`FAIL_DIRECT`], [`FAIL_POOL`] or
    /// [`FAIL_PROXY`].
    pub fail: u32,
    /// Number of the pool or proxy that goes with it.
    pub object: u32,
    /// 1 where there is a proxy of this number.
    pub in_use: u16,
    /// Elements of `PROXY_HOSTS`, or [`NO_HOST`].
    pub slots: [u16; SLOTS],
}

/// [`ProxyHost::flags`]: the element is in use.
pub const IN_USE: u32 = 1;
/// [`ProxyHost::flags`]: the host is up.
pub const UP: u32 = 2;
/// [`ProxyHost::flags`]: it gets no new flows; those that it has go on.
pub const DRAINED: u32 = 4;
/// [`ProxyHost::flags`]: [`ProxyHost::next_hop`] is known.
pub const RESOLVED: u32 = 8;

/// Map `PROXY_HOSTS`. An element keeps its number while the host is one of its proxy, also across daemons: sessions
/// name it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyHost {
    /// Its own address; packets of both families go to it.
    pub address: MappedAddress,
    /// The way to it, where [`RESOLVED`] is set.
    pub next_hop: NextHop,
    /// Number of the proxy.
    pub proxy: u32,
    /// [`IN_USE`] | [`UP`] | [`DRAINED`] | [`RESOLVED`].
    pub flags: u32,
}

/// Key of map `PROXY_MACS`: where frames of a proxy host come from. The value is its element of `PROXY_HOSTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ProxyMac {
    /// MAC address.
    pub mac: [u8; 6],
    /// Slot of the interface.
    pub slot: u16,
}

/// Marks a [`crate::session::Session::pool_address`] that is an element of `PROXY_HOSTS`: the session's packets from
/// inside go to that host.
pub const PROXIED: u16 = 1 << 15;

/// The [`crate::session::Tuple::origin`] of frames that come from `host`.
#[inline(always)]
pub const fn origin(host: u16) -> u16 {
    host + 1
}

/// The slot of the flows between two hosts, in either order.
#[inline(always)]
pub const fn slot(one: &MappedAddress, other: &MappedAddress, secret: u32) -> usize {
    let sum = pool::spread(one, secret).wrapping_add(pool::spread(other, secret));
    (pool::respread(sum) % SLOTS as u32) as usize
}

/// The state that a session begins in, whatever segment of TCP is first: nothing shows yet that it lives.
pub const FIRST_STATE: State = State::Opening;

/// What a segment with these flags from `side`, which is not the one that began the session, does to a connection that
/// goes through a proxy host.
///
/// Answers need not come by the gateway. So a connection counts as established once the client has sent two segments of
/// which the second is no SYN: it acknowledges what has reached the client by whatever way. Until then the session is
/// half open, as any other is: it counts as such, and does not stay for long. A SYN that is answered in the server's name
/// shows nothing, because hosts that intercept answer everybody. A SYN from inside begins a connection anew that one
/// side has ended. A reset is believed, because the session claims nothing that another flow could want; a client that
/// does not believe it goes on, and so does the session.
#[inline(always)]
pub const fn step(state: State, side: u8, flags: u8) -> State {
    let inside = side == SIDE_INSIDE;
    if matches!(state, State::Gone) {
        return state;
    }
    if flags & TCP_RST != 0 {
        return if state.is_half_open() { State::Refused } else { State::Reset };
    }
    if flags & TCP_SYN != 0 {
        return match state {
            State::Opening if !inside => State::Answered,
            _ if inside && flags & TCP_ACK == 0 && is_over(state) => State::Opening,
            State::Established
            | State::Opening
            | State::Answered
            | State::InsideFin
            | State::OutsideFin
            | State::BothFins
            | State::Reset
            | State::Refused
            | State::Gone => state,
        };
    }
    if flags & TCP_FIN == 0 {
        return match state {
            State::Opening | State::Answered => State::Established,
            State::Reset | State::Refused if inside => State::Established,
            State::Established
            | State::InsideFin
            | State::OutsideFin
            | State::BothFins
            | State::Reset
            | State::Refused
            | State::Gone => state,
        };
    }
    match (state, inside) {
        (State::InsideFin, false) | (State::OutsideFin, true) | (State::BothFins, _) => State::BothFins,
        (_, true) => State::InsideFin,
        (_, false) => State::OutsideFin,
    }
}

/// Whether a client's SYN to a session in this state asks for another connection.
#[inline(always)]
pub const fn is_over(state: State) -> bool {
    !matches!(state, State::Established | State::Opening | State::Answered)
}

/// The state that decides how long a session is kept. `answered`: answers come by the gateway. Where they do not, one
/// FIN is all that the gateway sees of the end.
#[inline(always)]
pub const fn state_for_idle_time(state: State, answered: bool) -> State {
    if answered || !matches!(state, State::InsideFin) { state } else { State::BothFins }
}

const _: () = assert!(MAX_PROXY_HOSTS <= PROXIED as u32);
const _: () = assert!(size_of::<Proxy>() == 8_196);
const _: () = assert!(size_of::<ProxyHost>() == 40);
const _: () = assert!(size_of::<ProxyMac>() == 8);

pod!(Proxy, ProxyHost, ProxyMac);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SIDE_OUTSIDE;

    fn address(last: u16) -> MappedAddress {
        let [high, low] = last.to_be_bytes();
        [0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes([10, 0, high, low])]
    }

    #[test]
    fn both_directions_of_a_flow_have_one_slot() {
        for last in 0..1_000 {
            let (client, server) = (address(last), address(10_000 + 7 * last));
            assert_eq!(slot(&client, &server, 7), slot(&server, &client, 7));
        }
    }

    #[test]
    fn a_connection_that_answers_past_the_gateway_ends_with_one_fin() {
        let established = step(FIRST_STATE, SIDE_INSIDE, TCP_ACK);
        assert_eq!(established, State::Established);
        let fin = step(established, SIDE_INSIDE, TCP_FIN | TCP_ACK);
        assert_eq!(fin, State::InsideFin);
        assert!(state_for_idle_time(fin, false).is_closed());
        assert!(!state_for_idle_time(fin, true).is_closed());
        assert_eq!(step(fin, SIDE_OUTSIDE, TCP_FIN | TCP_ACK), State::BothFins);
        assert_eq!(step(fin, SIDE_INSIDE, TCP_SYN), State::Opening);
    }

    #[test]
    fn syns_and_their_answers_leave_a_connection_half_open() {
        let mut state = FIRST_STATE;
        for (side, flags) in [
            (SIDE_INSIDE, TCP_SYN),
            (SIDE_OUTSIDE, TCP_SYN | TCP_ACK),
            (SIDE_INSIDE, TCP_SYN),
            (SIDE_OUTSIDE, TCP_SYN | TCP_ACK),
        ] {
            state = step(state, side, flags);
            assert!(state.is_half_open(), "{state:?}");
        }
        assert_eq!(step(state, SIDE_OUTSIDE, TCP_RST), State::Refused);
        assert_eq!(step(state, SIDE_INSIDE, TCP_ACK), State::Established);
        assert_eq!(step(FIRST_STATE, SIDE_OUTSIDE, TCP_ACK), State::Established);
    }

    #[test]
    fn only_a_clients_syn_makes_a_connection_half_open_and_none_moves_a_session_that_is_gone() {
        for state in State::ALL {
            for side in [SIDE_INSIDE, SIDE_OUTSIDE] {
                for flags in 0..=u8::MAX {
                    let next = step(*state, side, flags);
                    let begins = side == SIDE_INSIDE
                        && is_over(*state)
                        && flags & (TCP_SYN | TCP_ACK | TCP_RST) == TCP_SYN
                        && *state != State::Gone;
                    assert_eq!(
                        next.is_half_open() && !state.is_half_open(),
                        begins,
                        "{state:?} {flags:#x} {next:?}"
                    );
                    assert_eq!(next == State::Gone, *state == State::Gone);
                }
            }
        }
    }

    #[test]
    fn a_client_that_does_not_believe_a_reset_goes_on() {
        let reset = step(State::Established, SIDE_OUTSIDE, TCP_RST);
        assert_eq!(reset, State::Reset);
        assert_eq!(step(reset, SIDE_OUTSIDE, TCP_ACK), State::Reset);
        assert_eq!(step(reset, SIDE_INSIDE, TCP_ACK), State::Established);
    }

    #[test]
    fn flows_are_spread_evenly_over_four_hosts() {
        for secret in [0, 1, 0xdead_beef] {
            let mut flows = [0u32; 4];
            for client in 0..100 {
                for server in 0..100 {
                    flows[slot(&address(client), &address(20_000 + server), secret) % 4] += 1;
                }
            }
            for share in flows {
                assert!(share.abs_diff(2_500) < 400, "{share} of 2500 flows");
            }
        }
    }
}
