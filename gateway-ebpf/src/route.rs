//! Maps `BINDINGS`, `ROUTES_V4`, `ROUTES_V6`, `RULES` and `ROUTERS`: which route decides a packet.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, LpmTrie, lpm_trie::Key},
    helpers::generated::bpf_loop,
    macros::btf_map,
};
use gateway_common::{
    DropReason,
    config::Policy,
    family::MappedAddress,
    route::{
        ANY_INTERFACE, BindingKey, MAX_BINDINGS, MAX_ROUTERS, MAX_RULES, MAX_RULES_PER_PREFIX,
        MAX_TABLE_SLOTS, Route, Router, Rule,
    },
};

use crate::family::Datapath;

/// Two tries, one of them in force ([`Policy::bindings`]): the values are table slots.
#[btf_map]
static BINDINGS: ArrayOfMaps<LpmTrie<BindingKey, u32, { MAX_BINDINGS as usize }>, 2> = ArrayOfMaps::new();

// The capacity of the inner tries is set when they are made; the kernel does not compare it.
#[btf_map]
static ROUTES_V4: ArrayOfMaps<LpmTrie<u32, Route, 1024>, { MAX_TABLE_SLOTS as usize }> = ArrayOfMaps::new();

#[btf_map]
static ROUTES_V6: ArrayOfMaps<LpmTrie<[u32; 4], Route, 1024>, { MAX_TABLE_SLOTS as usize }> =
    ArrayOfMaps::new();

#[btf_map]
static RULES: Array<Rule, { 2 * MAX_RULES as usize }> = Array::new();

#[btf_map]
static ROUTERS: Array<Router, { 2 * MAX_ROUTERS as usize }> = Array::new();

/// What a route is asked about.
pub(crate) struct Query<F: Datapath> {
    /// The inside host.
    pub(crate) source: F::Address,
    /// The host on the outside.
    pub(crate) destination: F::Address,
    /// IP protocol.
    pub(crate) proto: u8,
    /// The outside host's port, see [`gateway_common::parse::Packet::server_port`].
    pub(crate) port: u32,
}

/// The route that decides `query` of a host behind the interface in slot `inside`.
///
/// # Errors
/// [`DropReason::NoRoute`] where nothing covers it; [`DropReason::FragmentUnmatched`] where a port decides that
/// a later fragment does not show: it must not leave by a route that its datagram would not have taken.
#[inline(always)]
pub(crate) fn lookup<F: Datapath>(
    policy: Policy,
    inside: u32,
    query: &Query<F>,
) -> Result<Route, DropReason> {
    lookup_for(policy, inside, &F::mapped(&query.source), query)
}

/// As [`lookup`], by the table of the host `source`, which may be of another family than the packet.
///
/// # Errors
/// As [`lookup`].
#[inline(always)]
pub(crate) fn lookup_for<F: Datapath>(
    policy: Policy,
    inside: u32,
    source: &MappedAddress,
    query: &Query<F>,
) -> Result<Route, DropReason> {
    let table = table(policy, inside, source).ok_or(DropReason::NoRoute)?;
    let route = F::route(table, query.destination).ok_or(DropReason::NoRoute)?;
    if route.rules == 0 {
        return Ok(*route);
    }
    let mut search =
        Search { first: route.rule, proto: u32::from(query.proto), port: query.port, found: NOT_FOUND };
    let rules = u32::from(route.rules).min(MAX_RULES_PER_PREFIX);
    // SAFETY: the callback has the signature that the helper calls, and `search` outlives the call.
    unsafe {
        bpf_loop(rules, ask_rule as *mut c_void, (&raw mut search).cast(), 0);
    }
    match search.found {
        NOT_FOUND => Ok(*route),
        HIDDEN => Err(DropReason::FragmentUnmatched),
        found => RULES.get(found).map(|rule| rule.route).ok_or(DropReason::Internal),
    }
}

/// The search for the first rule that matches. A callback, because the verifier would walk a loop over each
/// combination of rules that may match.
#[repr(C)]
struct Search {
    first: u32,
    proto: u32,
    port: u32,
    /// Element of `RULES`, [`NOT_FOUND`] or [`HIDDEN`].
    found: u32,
}

const NOT_FOUND: u32 = u32::MAX;
const HIDDEN: u32 = u32::MAX - 1;

unsafe extern "C" fn ask_rule(nth: u32, search: *mut c_void) -> i64 {
    // SAFETY: `lookup` passes its `Search`.
    let search = unsafe { &mut *search.cast::<Search>() };
    let index = search.first + nth;
    let Some(rule) = RULES.get(index) else { return 1 };
    if rule.is_hidden(search.proto as u8, search.port) {
        search.found = HIDDEN;
        return 1;
    }
    if !rule.matches(search.proto as u8, search.port) {
        return 0;
    }
    search.found = index;
    1
}

/// The slot of the table that serves `source`: a binding with the interface, or else one without.
#[inline(always)]
fn table(policy: Policy, inside: u32, source: &MappedAddress) -> Option<u32> {
    let bindings = BINDINGS.get(policy.bindings())?;
    let [w0, w1, w2, w3] = *source;
    let mut key = [32 + 128, BindingKey::interface(inside), w0, w1, w2, w3];
    if policy.names_interfaces() {
        // SAFETY: prefix length, interface and four words.
        let found = bindings.get(unsafe { as_key::<_, BindingKey>(&key) }).copied();
        if found.is_some_and(|slot| slot != 0) {
            return found;
        }
    }
    key[1] = ANY_INTERFACE;
    // SAFETY: as above.
    bindings.get(unsafe { as_key::<_, BindingKey>(&key) }).copied()
}

/// A trie key from aligned words. [`Key`] is packed, and would be put together byte by byte.
///
/// # Safety
/// `W` is the prefix length followed by the words of a `K`.
#[inline(always)]
pub(crate) unsafe fn as_key<W, K>(words: &W) -> &Key<K> {
    const { assert!(size_of::<W>() == size_of::<Key<K>>()) };
    // SAFETY: the caller vouches for the layout, and `Key` has no alignment.
    unsafe { &*core::ptr::from_ref(words).cast() }
}

/// The router that a route of target `gateway` names.
#[inline(always)]
pub(crate) fn router(index: u32) -> Option<&'static Router> {
    // SAFETY: array elements live as long as the map, and the map as long as the program.
    ROUTERS.get_ptr(index).map(|router| unsafe { &*router })
}

/// [`Datapath::route`] of IPv4.
#[inline(always)]
pub(crate) fn longest_prefix_v4(slot: u32, address: u32) -> Option<&'static Route> {
    let key = [32, address];
    // SAFETY: prefix length and one word.
    ROUTES_V4.get(slot)?.get(unsafe { as_key::<_, u32>(&key) })
}

/// [`Datapath::route`] of IPv6.
#[inline(always)]
pub(crate) fn longest_prefix_v6(slot: u32, address: [u32; 4]) -> Option<&'static Route> {
    let [w0, w1, w2, w3] = address;
    let key = [128, w0, w1, w2, w3];
    // SAFETY: prefix length and four words.
    ROUTES_V6.get(slot)?.get(unsafe { as_key::<_, [u32; 4]>(&key) })
}
