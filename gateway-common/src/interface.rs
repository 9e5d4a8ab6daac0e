//! Map `INTERFACES`: what the program knows of an interface, indexed by ifindex.

use crate::pod;

/// Interfaces the gateway can attach to at the same time.
pub const MAX_INTERFACES: u32 = 32;

/// The slot of "no interface of the gateway" in traffic counters.
pub const NO_SLOT: u32 = MAX_INTERFACES;

/// Ifindexes below this bound are usable; the kernel numbers devices from 1 up per network namespace.
pub const MAX_IFINDEX: u32 = 65_536;

/// The interface faces the clients.
pub const INSIDE: u32 = 1;
/// The interface faces the internet.
pub const OUTSIDE: u32 = 2;
/// The record is in use.
pub const ATTACHED: u32 = 4;
/// The program runs in generic mode.
pub const GENERIC: u32 = 8;
/// `XDP_TX` does not wake the receiver: what goes back out of the interface is redirected to it.
pub const REDIRECT_ONLY: u32 = 16;
/// Hosts of proxies are behind the interface: its frames are looked up in `PROXY_MACS`.
pub const PROXIES: u32 = 32;

/// Map `INTERFACES`, indexed by ifindex.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// [`INSIDE`] | [`OUTSIDE`] | [`ATTACHED`] | [`GENERIC`] | [`REDIRECT_ONLY`] | [`PROXIES`].
    pub flags: u32,
    /// Dense number below [`MAX_INTERFACES`]: index of `EGRESS` and of the traffic counters.
    pub slot: u32,
    /// MAC address.
    pub mac: [u8; 6],
    /// MTU in bytes.
    pub mtu: u16,
    /// Primary IPv4 address, the source of ICMP errors; zero when there is none.
    pub address4: [u8; 4],
    /// Primary IPv6 address; zero when there is none.
    pub address6: [u8; 16],
}

const _: () = assert!(size_of::<Interface>() == 36);

pod!(Interface);
