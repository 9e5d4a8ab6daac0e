//! Counters: per CPU, so that no packet waits for another.

use aya_ebpf::{
    btf_maps::{Array, PerCpuArray},
    macros::btf_map,
};
use gateway_common::{
    DropReason, Verdict,
    counter::{Counter, CounterOwner, DROPS_LEN, SessionClass, SessionCounters, TRAFFIC_LEN, traffic_index},
    pool::{MAX_POOL_ADDRESSES, PoolCounters},
    proxy::{MAX_PROXY_HOSTS, PROXIED},
    route::MAX_ROUTE_COUNTERS,
};

#[btf_map]
static TRAFFIC: PerCpuArray<Counter, { TRAFFIC_LEN as usize }> = PerCpuArray::new();

#[btf_map]
static DROPS: PerCpuArray<Counter, { DROPS_LEN as usize }> = PerCpuArray::new();

#[btf_map]
static ROUTE_COUNTERS: PerCpuArray<Counter, { MAX_ROUTE_COUNTERS as usize }> = PerCpuArray::new();

/// The daemon's alone.
#[btf_map]
static ROUTE_OWNERS: Array<CounterOwner, { MAX_ROUTE_COUNTERS as usize }> = Array::new();

#[btf_map]
static POOL_COUNTERS: PerCpuArray<PoolCounters, { MAX_POOL_ADDRESSES as usize }> = PerCpuArray::new();

#[btf_map]
static SESSION_COUNTERS: PerCpuArray<SessionCounters, 4> = PerCpuArray::new();

/// Sessions of each proxy host; a CPU that removes what another has opened goes below zero.
#[btf_map]
static PROXY_FLOWS: PerCpuArray<u64, { MAX_PROXY_HOSTS as usize }> = PerCpuArray::new();

/// Adds `by` to the sessions of the host of a [`gateway_common::session::Session::pool_address`].
#[inline(always)]
pub(crate) fn flows(pool_address: u16, by: i64) {
    if let Some(flows) = PROXY_FLOWS.get_ptr_mut(u32::from(pool_address & !PROXIED)) {
        // SAFETY: as in `add`.
        unsafe { *flows = (*flows).wrapping_add_signed(by) };
    }
}

/// Counts a packet by its way and verdict.
#[inline(always)]
pub(crate) fn traffic(ingress: u32, egress: u32, verdict: Verdict, bytes: u64) {
    add(&TRAFFIC, traffic_index(ingress, egress, verdict), bytes);
}

/// Counts a dropped packet by its reason.
#[inline(always)]
pub(crate) fn drop(reason: DropReason, bytes: u64) {
    add(&DROPS, reason as u32, bytes);
}

/// Counts a packet on the route that decided it.
#[inline(always)]
pub(crate) fn route(counter: u16, bytes: u64) {
    add(&ROUTE_COUNTERS, u32::from(counter), bytes);
}

#[inline(always)]
fn add<const N: usize>(map: &PerCpuArray<Counter, N>, index: u32, bytes: u64) {
    if let Some(counter) = map.get_ptr_mut(index) {
        // SAFETY: the element is this CPU's own and programs do not preempt each other.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
        }
    }
}

/// Updates the counters of a pool address.
#[inline(always)]
pub(crate) fn pool(address: u32, update: impl FnOnce(&mut PoolCounters)) {
    if let Some(counters) = POOL_COUNTERS.get_ptr_mut(address) {
        // SAFETY: as in `add`.
        update(unsafe { &mut *counters });
    }
}

/// Updates the counters of sessions of an IP protocol.
#[inline(always)]
pub(crate) fn session(proto: u8, update: impl FnOnce(&mut SessionCounters)) {
    if let Some(counters) = SESSION_COUNTERS.get_ptr_mut(SessionClass::of(proto) as u32) {
        // SAFETY: as in `add`.
        update(unsafe { &mut *counters });
    }
}
