//! Routes: what an element of a table's trie says.

use crate::{
    family::MappedAddress,
    parse::{NO_PORT, PROTO_TCP, PROTO_UDP},
    pod,
};

/// Elements of `ROUTES_V4` and `ROUTES_V6`: two halves, each with room for all tables and the copies that a
/// replacement needs for a moment. Slot 0 is never used.
pub const MAX_TABLE_SLOTS: u32 = 1_024;
/// Routes with selectors; `RULES` has two halves of this size.
pub const MAX_RULES: u32 = 65_536;
/// Routes with selectors that one prefix may have.
pub const MAX_RULES_PER_PREFIX: u32 = 16;
/// Routers that routes may name; `ROUTERS` has two halves of this size.
pub const MAX_ROUTERS: u32 = 1_024;
/// Elements of `ROUTE_COUNTERS`. Counter 0 is shared by routes that got no counter of their own.
pub const MAX_ROUTE_COUNTERS: u32 = 16_384;

/// What a route does with a packet. Numbers are part of the ABI.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// Nothing covers the packet (the default of a prefix that only has selectors).
    None = 0,
    /// Forward, source unchanged.
    Direct = 1,
    /// Translate the source to an address of pool [`Route::object`].
    Pool = 2,
    /// Forward to the router [`Route::object`].
    Gateway = 3,
    /// Drop.
    Blackhole = 4,
    /// Drop and tell the client.
    Prohibit = 5,
    /// Hand to the host's own stack.
    Host = 6,
    /// Translate the source to its own EIP.
    Eip = 7,
    /// Send to a host of proxy [`Route::object`].
    Proxy = 8,
}

impl Target {
    /// The target with this number.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::None),
            1 => Some(Self::Direct),
            2 => Some(Self::Pool),
            3 => Some(Self::Gateway),
            4 => Some(Self::Blackhole),
            5 => Some(Self::Prohibit),
            6 => Some(Self::Host),
            7 => Some(Self::Eip),
            8 => Some(Self::Proxy),
            _ => None,
        }
    }
}

/// [`Route::flags`]: a system route, which leads to the inside only.
pub const SYSTEM: u8 = 1;

/// Value of `ROUTES_V4` and `ROUTES_V6` tries, and part of a [`Rule`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// [`Target`].
    pub target: u8,
    /// [`SYSTEM`] or 0.
    pub flags: u8,
    /// How many elements of `RULES`, from [`Route::rule`] on, are asked before this one.
    pub rules: u16,
    /// Number of the pool, router or proxy.
    pub object: u32,
    /// Element of `ROUTE_COUNTERS`.
    pub counter: u16,
    /// What its sessions are recorded under: key of `LOG_NAMES`, or 0 where they are not, see [`crate::record`].
    pub log: u16,
    /// First element of `RULES`.
    pub rule: u32,
}

/// Map `RULES`: a route with selectors. Consecutive elements belong to one prefix; the first match wins.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// IP protocol; 0 matches every one.
    pub proto: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Lowest destination port, host byte order.
    pub port_low: u16,
    /// Highest destination port, host byte order, included. 0-65535 matches also what has no ports.
    pub port_high: u16,
    /// What to do; its `rules` is 0.
    pub route: Route,
}

impl Rule {
    /// Whether a packet of `proto` to `port` (host byte order, or [`NO_PORT`]) matches.
    #[inline(always)]
    pub const fn matches(&self, proto: u8, port: u32) -> bool {
        if self.proto != 0 && self.proto != proto {
            return false;
        }
        if port == NO_PORT {
            return self.port_low == 0 && self.port_high == u16::MAX;
        }
        self.port_low as u32 <= port && port <= self.port_high as u32
    }

    /// Whether a port decides that the packet does not show: it is a later fragment, and nobody can tell whether
    /// the rule is for it.
    #[inline(always)]
    pub const fn is_hidden(&self, proto: u8, port: u32) -> bool {
        port == NO_PORT
            && matches!(proto, PROTO_TCP | PROTO_UDP)
            && (self.proto == 0 || self.proto == proto)
            && (self.port_low != 0 || self.port_high != u16::MAX)
    }
}

/// Map `ROUTERS`: where `gateway ADDR [dev IF]` points.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Router {
    /// See [`crate::family::MappedAddress`].
    pub address: MappedAddress,
    /// Egress interface, 0: as the host's routing table says.
    pub ifindex: u32,
}

/// Key data of `BINDINGS` tries: a binding that names an interface, or [`ANY_INTERFACE`].
///
/// The prefix length counts the 32 bits of the interface and the bits of the mapped address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BindingKey {
    /// Slot of the inside interface plus 1, network byte order.
    pub interface: u32,
    /// See [`crate::family::MappedAddress`].
    pub source: MappedAddress,
}

/// [`BindingKey::interface`] of a binding that names none.
pub const ANY_INTERFACE: u32 = 0;

impl BindingKey {
    /// The [`BindingKey::interface`] of the interface in `slot`.
    #[inline(always)]
    pub const fn interface(slot: u32) -> u32 {
        (slot + 1).to_be()
    }
}

/// Elements of one `BINDINGS` trie.
pub const MAX_BINDINGS: u32 = 4_096;

const _: () = assert!(MAX_ROUTE_COUNTERS <= 1 << u16::BITS);
const _: () = assert!(size_of::<Route>() == 16);
const _: () = assert!(size_of::<Rule>() == 24);
const _: () = assert!(size_of::<Router>() == 20);
const _: () = assert!(size_of::<BindingKey>() == 20);

pod!(Route, Rule, Router, BindingKey);
