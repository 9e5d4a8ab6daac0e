//! The gateway's XDP programs.
//!
//! `gateway` sees every packet of every attached interface and sends those of confirmed sessions on. It tail
//! calls `decide_v4` or `decide_v6` for all others; these have a stack and a verifier budget of their own.
//! [`path`] reads like the checklist of all three. `related_v4` and `related_v6` continue with ICMP errors about
//! packets of sessions, `eip_v4` and `eip_v6` with packets to and from EIPs, `map_v4` and `map_v6` with flows of
//! endpoint-independent mappings, `hairpin_v4` and `hairpin_v6` with those between two inside hosts, whose second half
//! is that of `inward_v4` and `inward_v6`, `proxy_v4` and `proxy_v6` with what goes to proxy hosts. `encapsulate`
//! puts frames into tunnels, and `decapsulate` takes them out.
//! `sweep` removes sessions that the daemon suspects to be idle; it runs on the daemon's demand only.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(
    internal_features,
    reason = "the BPF target has no `core::sync::atomic` types with compare and swap"
)]
#![expect(
    unreachable_pub,
    clippy::needless_pass_by_value,
    clippy::redundant_closure,
    reason = "entries are exported with a given signature; only a closure is inlined, a function is called"
)]

mod address;
mod atomic;
mod border;
mod bucket;
mod claim;
mod config;
mod count;
mod eip;
mod event;
mod family;
mod fib;
mod forward;
mod fragment;
mod hairpin;
mod inward;
mod limit;
mod mapping;
mod mss;
mod neighbor;
mod open;
mod option;
mod packet;
mod path;
mod pool;
mod ports;
mod proxy;
mod record;
mod redirect;
mod refuse;
mod related;
mod rewrite;
mod route;
mod session;
mod socket;
mod source;
mod stamp;
mod sweep;
mod table;
mod tcp;
mod tunnel;
mod usage;
mod watch;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use gateway_common::{
    DropReason, V4, V6, Verdict,
    config::{
        Config, EIP_V4, EIP_V6, ENCAPSULATE, HAIRPIN_V4, HAIRPIN_V6, INWARD_V4, INWARD_V6, MAP_V4, MAP_V6,
        PROXY_V4, PROXY_V6, RELATED_V4, RELATED_V6,
    },
    interface::NO_SLOT,
    tunnel::host_of,
};

use crate::{
    packet::Frame,
    path::{Context, InForce, Outcome},
};

/// Every packet's first program: those of confirmed sessions leave from here.
#[xdp]
pub fn gateway(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        |config| {
            let in_force = InForce::now(config);
            if in_force.is_watched() {
                watch::arrived(&Frame::new(&ctx));
            }
            in_force
        },
        unknown_device,
        |context| path::fast(context, &ctx),
        |_, _| xdp_action::XDP_DROP,
    )
}

/// Decides IPv4 and ARP packets that `gateway` has no confirmed session for.
#[xdp]
pub fn decide_v4(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::now,
        lost_device,
        |context| path::decide::<V4, RELATED_V4, EIP_V4, MAP_V4, HAIRPIN_V4, PROXY_V4>(context, &ctx),
        refuse::answer::<V4>,
    )
}

/// Decides IPv6 packets that `gateway` has no confirmed session for.
#[xdp]
pub fn decide_v6(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::now,
        lost_device,
        |context| path::decide::<V6, RELATED_V6, EIP_V6, MAP_V6, HAIRPIN_V6, PROXY_V6>(context, &ctx),
        refuse::answer::<V6>,
    )
}

/// Translates IPv4 ICMP errors that `decide_v4` has found the session of. Nobody is told of those dropped.
#[xdp]
pub fn related_v4(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V4>,
        lost_device,
        |context| related::forward::<V4, INWARD_V4>(context, &ctx),
        |_, _| xdp_action::XDP_DROP,
    )
}

/// Translates `ICMPv6` errors that `decide_v6` has found the session of.
#[xdp]
pub fn related_v6(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V6>,
        lost_device,
        |context| related::forward::<V6, INWARD_V6>(context, &ctx),
        |_, _| xdp_action::XDP_DROP,
    )
}

/// Translates IPv4 packets to and from EIPs that `decide_v4` has found.
#[xdp]
pub fn eip_v4(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V4>,
        lost_device,
        |context| eip::forward::<V4, INWARD_V4>(context, &ctx),
        refuse::answer::<V4>,
    )
}

/// Translates IPv6 packets to and from EIPs that `decide_v6` has found.
#[xdp]
pub fn eip_v6(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V6>,
        lost_device,
        |context| eip::forward::<V6, INWARD_V6>(context, &ctx),
        refuse::answer::<V6>,
    )
}

/// Opens IPv4 sessions of endpoint-independent mappings, for packets that `decide_v4` has found a pool for.
#[xdp]
pub fn map_v4(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V4>,
        lost_device,
        |context| mapping::open::<V4>(context),
        refuse::answer::<V4>,
    )
}

/// Opens IPv6 sessions of endpoint-independent mappings.
#[xdp]
pub fn map_v6(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V6>,
        lost_device,
        |context| mapping::open::<V6>(context),
        refuse::answer::<V6>,
    )
}

/// The first half of the way from inside to an inside host, by a session of the sender's, for IPv4.
#[xdp]
pub fn hairpin_v4(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V4>,
        lost_device,
        |context| hairpin::turn::<V4, INWARD_V4>(context, &ctx),
        refuse::answer::<V4>,
    )
}

/// The first half of the way from inside to an inside host, by a session of the sender's, for IPv6.
#[xdp]
pub fn hairpin_v6(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V6>,
        lost_device,
        |context| hairpin::turn::<V6, INWARD_V6>(context, &ctx),
        refuse::answer::<V6>,
    )
}

/// The second half of the way from inside to an inside host, by an EIP, a session or a mapping, for IPv4.
#[xdp]
pub fn inward_v4(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V4>,
        lost_device,
        |context| inward::forward::<V4>(context),
        inward::refuse::<V4>,
    )
}

/// The second half of the way from inside to an inside host, for IPv6.
#[xdp]
pub fn inward_v6(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V6>,
        lost_device,
        |context| inward::forward::<V6>(context),
        inward::refuse::<V6>,
    )
}

/// Sends IPv4 packets to proxy hosts, for which `decide_v4` has found a session or a route.
#[xdp]
pub fn proxy_v4(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V4>,
        lost_device,
        |context| redirect::forward::<V4>(context),
        refuse::answer::<V4>,
    )
}

/// Sends IPv6 packets to proxy hosts.
#[xdp]
pub fn proxy_v6(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::of_subject::<V6>,
        lost_device,
        |context| redirect::forward::<V6>(context),
        refuse::answer::<V6>,
    )
}

/// Takes frames of proxy hosts out of their tunnels. What is not the gateway's to take out goes on as it is.
#[xdp]
pub fn decapsulate(ctx: XdpContext) -> u32 {
    // First of all: what is counted is the frame inside.
    let origin = tunnel::unwrap(&Frame::new(&ctx));
    enter(
        &ctx,
        InForce::now,
        lost_device,
        |context| path::out_of_tunnel(context, &ctx, origin),
        |_, _| xdp_action::XDP_DROP,
    )
}

/// Puts frames into the tunnels of the proxy hosts that they go to.
#[xdp]
pub fn encapsulate(ctx: XdpContext) -> u32 {
    enter(
        &ctx,
        InForce::decided,
        lost_device,
        |context| tunnel::encapsulate(context),
        |_, _| xdp_action::XDP_DROP,
    )
}

/// Retires and removes sessions, see [`gateway_common::session`]. Its packet is a list of tuples.
#[xdp]
pub fn sweep(ctx: XdpContext) -> u32 {
    match sweep::run(&Frame::new(&ctx)) {
        Some(()) => xdp_action::XDP_PASS,
        None => xdp_action::XDP_ABORTED,
    }
}

/// Runs `decide`, counts the packet and says what the driver does with it; `in_force` tells the policy, `unknown` does
/// that for a device that is not the gateway's, and `refuse` may turn a dropped packet into an answer to its sender.
/// The only place that counts, and that tells whoever watches.
#[inline(always)]
fn enter(
    ctx: &XdpContext,
    in_force: impl FnOnce(&Config) -> InForce,
    unknown: impl FnOnce(bool, u64) -> u32,
    decide: impl FnOnce(&Context<'_>) -> Result<Outcome, DropReason>,
    refuse: impl FnOnce(&Context<'_>, DropReason) -> u32,
) -> u32 {
    let frame = Frame::new(ctx);
    let Some(config) = config::config() else {
        // Cannot happen: the element of an array is always there.
        return xdp_action::XDP_DROP;
    };
    let in_force = in_force(config);
    let Some(ingress) = config::interface(frame.ingress_ifindex()) else {
        if in_force.is_watched() {
            watch::unknown(in_force.is_active());
        }
        return unknown(in_force.is_active(), frame.bytes());
    };
    let context = Context::new(&frame, config, ingress, in_force);
    let result = if in_force.is_active() { decide(&context) } else { Ok(Outcome::HOST) };
    let reason = match result {
        Ok(outcome) => {
            if let Some(host) = host_of(outcome.slot) {
                tunnel::towards(host, outcome.verdict);
                path::call::<ENCAPSULATE>(ctx);
            }
            let action = if outcome.slot == NO_SLOT {
                xdp_action::XDP_PASS
            } else {
                forward::send(ingress, outcome.slot)
            };
            // What says that a packet was dropped: that packet is counted.
            if matches!(outcome.verdict, Verdict::Drop) {
                return action;
            }
            if action != xdp_action::XDP_DROP {
                count::traffic(ingress.slot, outcome.slot, outcome.verdict, context.bytes);
                if in_force.is_watched() {
                    watch::sent(outcome.verdict, outcome.slot);
                }
                return action;
            }
            DropReason::Internal
        }
        Err(reason) => reason,
    };
    count::traffic(ingress.slot, NO_SLOT, Verdict::Drop, context.bytes);
    count::drop(reason, context.bytes);
    if in_force.is_watched() {
        watch::dropped(reason);
    }
    let action = refuse(&context, reason);
    if action == tunnel::BACK {
        path::call::<ENCAPSULATE>(ctx);
        return xdp_action::XDP_DROP;
    }
    action
}

/// The program is on a device that the gateway does not know, such as a port of a bond.
#[inline(always)]
fn unknown_device(active: bool, bytes: u64) -> u32 {
    if !active {
        count::traffic(NO_SLOT, NO_SLOT, Verdict::Host, bytes);
        return xdp_action::XDP_PASS;
    }
    count::traffic(NO_SLOT, NO_SLOT, Verdict::Drop, bytes);
    count::drop(DropReason::Internal, bytes);
    xdp_action::XDP_DROP
}

/// The device was detached while its packet was on the way to its stage, which has no stack left to count it
/// as [`unknown_device`] does.
#[inline(always)]
fn lost_device(active: bool, bytes: u64) -> u32 {
    if !active {
        return xdp_action::XDP_PASS;
    }
    count::drop(DropReason::Internal, bytes);
    xdp_action::XDP_DROP
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing in this crate can panic; the verifier would reject a reachable loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
