//! The sockets of the host.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use gateway_common::{
    parse::{PROTO_TCP, PROTO_UDP},
    session::Tuple,
};

use crate::family::Datapath;

/// `BPF_F_CURRENT_NETNS`.
const CURRENT_NETWORK: u64 = u64::MAX;

/// Whether a packet with the outside tuple `tuple` would find a socket of the host: connected, listening or
/// bound. 1 if so, 0 if not.
///
/// Echo identifiers cannot be asked for.
#[inline(never)]
pub(crate) fn has<F: Datapath>(context: *mut xdp_md, tuple: &Tuple<F>) -> u32 {
    // `struct bpf_sock_tuple`: two addresses and two ports, which is how a tuple begins.
    let begin = core::ptr::from_ref(tuple).cast_mut().cast();
    let length = (2 * size_of::<F::Address>() + 4) as u32;
    // SAFETY: the memory is a tuple, and the socket that is found is given back.
    unsafe {
        let socket = match tuple.proto {
            PROTO_TCP => bpf_skc_lookup_tcp(context.cast(), begin, length, CURRENT_NETWORK, 0),
            PROTO_UDP => bpf_sk_lookup_udp(context.cast(), begin, length, CURRENT_NETWORK, 0),
            _ => return 0,
        };
        if socket.is_null() {
            return 0;
        }
        bpf_sk_release(socket.cast());
        1
    }
}
