//! Maps `BINDINGS`, `ROUTES_V4`, `ROUTES_V6`, `RULES` and `ROUTERS`: which route decides a packet.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, LpmTrie, lpm_trie::Key},
    macros::btf_map,
};
use gateway_common::{
    config::Config,
    route::{
        ANY_INTERFACE, BindingKey, MAX_BINDINGS, MAX_ROUTERS, MAX_RULES, MAX_RULES_PER_PREFIX,
        MAX_TABLE_SLOTS, Route, Router, Rule,
    },
};

use crate::family::Datapath;

/// Two tries, one of them in force ([`Config::bindings`]): the values are table slots.
#[btf_map]
static BINDINGS: ArrayOfMaps<LpmTrie<BindingKey, u32, { MAX_BINDINGS as usize }>, 2> = ArrayOfMaps::new();

// The capacity of the inner tries is set when they are made; the kernel does not compare it.
#[btf_map]
static ROUTES_V4: ArrayOfMaps<LpmTrie<[u8; 4], Route, 1024>, { MAX_TABLE_SLOTS as usize }> =
    ArrayOfMaps::new();

#[btf_map]
static ROUTES_V6: ArrayOfMaps<LpmTrie<[u8; 16], Route, 1024>, { MAX_TABLE_SLOTS as usize }> =
    ArrayOfMaps::new();

#[btf_map]
static RULES: Array<Rule, { MAX_RULES as usize }> = Array::new();

#[btf_map]
static ROUTERS: Array<Router, { MAX_ROUTERS as usize }> = Array::new();

/// What a route is asked about.
pub(crate) struct Query<F: Datapath> {
    /// The inside host.
    pub(crate) source: F::Address,
    /// The host on the outside.
    pub(crate) destination: F::Address,
    /// IP protocol.
    pub(crate) proto: u8,
    /// The outside host's port, host byte order, where the packet shows one.
    pub(crate) port: Option<u16>,
}

/// The route that decides `query` of a host behind the interface in slot `inside`; `None` where nothing covers it.
#[inline(always)]
pub(crate) fn lookup<F: Datapath>(config: &Config, inside: u32, query: &Query<F>) -> Option<Route> {
    let table = table::<F>(config, inside, query.source)?;
    let route = F::route(table, query.destination)?;
    let rules = u32::from(route.rules);
    for at in 0..MAX_RULES_PER_PREFIX {
        if at >= rules {
            break;
        }
        let rule = RULES.get(route.rule + at)?;
        if rule.matches(query.proto, query.port) {
            return Some(rule.route);
        }
    }
    Some(*route)
}

/// The slot of the table that serves `source`: a binding with the interface, or else one without.
#[inline(always)]
fn table<F: Datapath>(config: &Config, inside: u32, source: F::Address) -> Option<u32> {
    let bindings = BINDINGS.get(config.bindings)?;
    let mut key = Key::new(
        32 + 128,
        BindingKey { interface: BindingKey::interface(inside), source: F::mapped(&source) },
    );
    if config.interface_bindings != 0
        && let Some(slot) = bindings.get(&key)
    {
        return Some(*slot);
    }
    key.data.interface = ANY_INTERFACE;
    bindings.get(&key).copied()
}

/// The router that a route of target `gateway` names.
#[inline(always)]
pub(crate) fn router(index: u32) -> Option<&'static Router> {
    // SAFETY: array elements live as long as the map, and the map as long as the program.
    ROUTERS.get_ptr(index).map(|router| unsafe { &*router })
}

/// [`Datapath::route`] of IPv4.
#[inline(always)]
pub(crate) fn longest_prefix_v4(slot: u32, address: [u8; 4]) -> Option<&'static Route> {
    ROUTES_V4.get(slot)?.get(&Key::new(32, address))
}

/// [`Datapath::route`] of IPv6.
#[inline(always)]
pub(crate) fn longest_prefix_v6(slot: u32, address: [u8; 16]) -> Option<&'static Route> {
    ROUTES_V6.get(slot)?.get(&Key::new(128, address))
}
