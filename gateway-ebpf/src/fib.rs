//! The host's routing table and neighbours, asked through `bpf_fib_lookup`.

use aya_ebpf::{bindings, btf_maps::PerCpuArray, helpers::generated::bpf_fib_lookup, macros::btf_map};
use gateway_common::family::{MappedAddress, NextHop, is_same};

use crate::{config, family::Datapath, packet::Frame};

// Results of the helper, `enum` beside `struct bpf_fib_lookup` in include/uapi/linux/bpf.h.
const SUCCESS: i64 = 0;
const FORWARDING_DISABLED: i64 = 5;
const NO_NEIGHBOR: i64 = 7;

/// The lookup is bound to the interface given, as if a socket on it sent the packet.
const OUTPUT: u32 = bindings::BPF_FIB_LOOKUP_OUTPUT;

/// `struct bpf_fib_lookup`, with its unions resolved the way this crate uses them.
#[repr(C)]
struct Parameters {
    family: u8,
    l4_protocol: u8,
    source_port: u16,
    destination_port: u16,
    /// 0 on input: no length check. On output the MTU of the way out.
    mtu: u16,
    ifindex: u32,
    tos_or_flowinfo: u32,
    source: [u32; 4],
    destination: [u32; 4],
    vlan: u32,
    source_mac: [u8; 6],
    destination_mac: [u8; 6],
}

#[btf_map]
static PARAMETERS: PerCpuArray<Parameters, 1> = PerCpuArray::new();

const _: () = assert!(size_of::<Parameters>() == size_of::<bindings::bpf_fib_lookup>());

/// What the host says of a destination.
pub(crate) enum Answer {
    /// Through an attached interface, to this next hop.
    Hop(NextHop),
    /// Through the attached interface `slot`, but the next hop's MAC address is not known.
    Unresolved {
        /// Egress slot.
        slot: u32,
        /// Egress interface.
        ifindex: u32,
        /// MTU of the way.
        mtu: u16,
        /// The next hop.
        address: MappedAddress,
    },
    /// The host does not forward on the ingress interface.
    Disabled,
    /// Not to be forwarded: no route, one of the host's own addresses, or an interface that is not attached.
    Elsewhere,
}

/// Asks for the way from `source` to `destination`. `through` is the interface the packet came from or,
/// with `output`, the one it must leave through. With `on_link`, a way through another router is none.
#[inline(always)]
pub(crate) fn lookup<F: Datapath>(
    frame: &Frame<'_>,
    source: F::Address,
    destination: F::Address,
    through: u32,
    output: bool,
    on_link: bool,
) -> Answer {
    // In a map: the stack is short, and this is the end of the longest chain of calls.
    let Some(parameters) = PARAMETERS.get_ptr_mut(0) else { return Answer::Elsewhere };
    // SAFETY: the element is this CPU's own.
    let parameters = unsafe { &mut *parameters };
    *parameters = Parameters {
        family: F::AF,
        l4_protocol: 0,
        source_port: 0,
        destination_port: 0,
        mtu: 0,
        ifindex: through,
        tos_or_flowinfo: 0,
        source: F::words(&source),
        destination: F::words(&destination),
        vlan: 0,
        source_mac: [0; 6],
        destination_mac: [0; 6],
    };
    // SAFETY: `Parameters` has the layout of the structure that the helper reads and writes.
    let result = unsafe {
        bpf_fib_lookup(
            frame.context().cast(),
            core::ptr::from_mut(parameters).cast(),
            size_of::<Parameters>() as i32,
            if output { OUTPUT } else { 0 },
        )
    };
    if result == FORWARDING_DISABLED {
        return Answer::Disabled;
    }
    if result != SUCCESS && result != NO_NEIGHBOR {
        return Answer::Elsewhere;
    }
    // The helper replaces the destination by the router.
    let next = F::mapped(&F::from_words(parameters.destination));
    if on_link && !is_same(&next, &F::mapped(&destination)) {
        return Answer::Elsewhere;
    }
    let Some(egress) = config::interface(parameters.ifindex) else { return Answer::Elsewhere };
    // Before 5.12 the helper does not tell the MTU.
    let mtu = if parameters.mtu == 0 { egress.mtu } else { parameters.mtu };
    if result == NO_NEIGHBOR {
        return Answer::Unresolved {
            slot: egress.slot,
            ifindex: parameters.ifindex,
            mtu: egress.mtu,
            address: next,
        };
    }
    Answer::Hop(NextHop::new(egress.slot as u16, mtu, parameters.destination_mac, parameters.source_mac))
}
