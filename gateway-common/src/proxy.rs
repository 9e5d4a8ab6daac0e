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

const _: () = assert!(MAX_PROXY_HOSTS <= PROXIED as u32);
const _: () = assert!(size_of::<Proxy>() == 8_196);
const _: () = assert!(size_of::<ProxyHost>() == 40);
const _: () = assert!(size_of::<ProxyMac>() == 8);

pod!(Proxy, ProxyHost, ProxyMac);

#[cfg(test)]
mod tests {
    use super::*;

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
