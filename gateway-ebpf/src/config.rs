//! Maps `CONFIG` and `INTERFACES`, and the clock.

use aya_ebpf::{btf_maps::Array, helpers::generated::bpf_jiffies64, macros::btf_map};
use gateway_common::{
    config::Config,
    interface::{ATTACHED, Interface, MAX_IFINDEX},
};

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
static INTERFACES: Array<Interface, { MAX_IFINDEX as usize }> = Array::new();

/// The configuration in force.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    // SAFETY: array elements live as long as the map, and the map as long as the program.
    CONFIG.get_ptr(0).map(|config| unsafe { &*config })
}

/// The interface with this ifindex, if the gateway is attached to it.
#[inline(always)]
pub(crate) fn interface(ifindex: u32) -> Option<&'static Interface> {
    // SAFETY: as above.
    let interface = INTERFACES.get_ptr(ifindex).map(|interface| unsafe { &*interface })?;
    if interface.flags & ATTACHED == 0 { None } else { Some(interface) }
}

/// The present tick, see [`gateway_common::config::MAX_TICK`].
#[inline(always)]
pub(crate) fn now(config: &Config) -> u32 {
    // SAFETY: the helper has no arguments.
    let jiffies = unsafe { bpf_jiffies64() };
    (jiffies >> (config.tick_shift & 63)) as u32
}
