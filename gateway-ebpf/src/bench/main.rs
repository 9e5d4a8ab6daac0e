//! The kernel's side of the benchmarks: frames in, frames out, and what the gateway is compared with. No part
//! of the gateway.
//!
//! Single packets, by `BPF_PROG_RUN` with a repeat count. The kernel does not restore the packet between two
//! repeats, so each program writes the headers anew and then tail calls its subject: `measure` the gateway's
//! own program, just as it is loaded, `measure_other` that of another build, and `control` one that does
//! nothing. The difference is the gateway.
//!
//! Streams: `generate` makes frames, `count` takes them at the end; `relay` is the least that a program can do
//! with a packet and still send it on.
#![no_std]
#![no_main]
#![expect(clippy::needless_pass_by_value, reason = "the macro `xdp` passes the context by value")]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, DevMap, HashMap, PerCpuArray, ProgramArray},
    helpers::bpf_redirect,
    macros::{btf_map, xdp},
    programs::XdpContext,
};

/// Bytes of a frame.
const FRAME: usize = 60;
/// Where a frame begins in an element of [`FRAMES`], so that its IP header is aligned.
const LEAD: usize = 2;
/// Frames that take turns, at most.
const MAX_FRAMES: usize = 65_536;

/// Element of [`SUBJECTS`]: [`nothing`].
const NOTHING: u32 = 0;
/// Element of [`SUBJECTS`]: the gateway's program.
const GATEWAY: u32 = 1;
/// Element of [`SUBJECTS`]: the program of another build.
const OTHER: u32 = 2;

/// Frames as clients send them.
#[btf_map]
static FRAMES: Array<[u32; 16], MAX_FRAMES> = Array::new();

/// Which flow is next. There may be more flows than frames: each frame stands for as many as there are laps
/// through all frames, with a source port that is one higher in every lap. All counts are powers of two.
#[repr(C)]
struct Turn {
    /// The flow whose turn it was.
    last: u32,
    /// The next one is the last one times this, plus 1. With 1 flows come in their order; with other numbers
    /// that are 1 modulo 4 in one that no processor foresees (Hull and Dobell 1962: each of them once).
    factor: u32,
    /// Number of flows, less 1.
    flows: u32,
    /// Number of frames, less 1.
    frames: u32,
    /// The power of two that is the number of frames.
    shift: u32,
}

#[btf_map]
static TURN: Array<Turn, 1> = Array::new();

/// What `control` and the `measure`s continue with.
#[btf_map]
static SUBJECTS: ProgramArray<3> = ProgramArray::new();

/// A hash map of the kernel's, with keys and values of the sizes that IPv4 sessions have. User space gives it the
/// capacity of their table. Keys are what stands on the wire from the source address on.
#[btf_map]
static TABLE: HashMap<[u64; 2], [u64; 8], 2_097_152> = HashMap::new();

/// Where frames go and which ones are expected.
#[repr(C)]
struct Plan {
    /// Ifindex that `generate` sends to.
    egress: u32,
    /// A frame counts as expected if its source address under `mask` is this; both in network byte order.
    source: u32,
    mask: u32,
    /// Ethernet addresses that `relay` writes.
    ethernet: [u32; 3],
}

#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();

/// Device that `relay` sends to.
#[btf_map]
static DEVICES: DevMap<1> = DevMap::new();

/// Frames that `generate` made.
#[btf_map]
static GENERATED: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Frames that arrived.
#[repr(C)]
struct Arrived {
    expected: u64,
    others: u64,
}

#[btf_map]
static ARRIVED: PerCpuArray<Arrived, 1> = PerCpuArray::new();

/// The least that a program can do.
#[xdp]
fn nothing(_: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Restores the frame, then does nothing.
#[xdp]
fn control(ctx: XdpContext) -> u32 {
    or_aborted(|| {
        restore(&ctx)?;
        continue_with::<NOTHING>(&ctx)
    })
}

/// Restores the frame, then runs the gateway's program.
#[xdp]
fn measure(ctx: XdpContext) -> u32 {
    or_aborted(|| {
        restore(&ctx)?;
        continue_with::<GATEWAY>(&ctx)
    })
}

/// Restores the frame, then runs the program of another build.
#[xdp]
fn measure_other(ctx: XdpContext) -> u32 {
    or_aborted(|| {
        restore(&ctx)?;
        continue_with::<OTHER>(&ctx)
    })
}

/// Restores the frame, looks it up in [`TABLE`], then does nothing.
#[xdp]
fn look_up(ctx: XdpContext) -> u32 {
    or_aborted(|| {
        let key = restore(&ctx)?;
        let value = TABLE.get_ptr(key)?;
        // SAFETY: the pointer is to a map value, which nobody removes.
        if unsafe { (*value)[0] } == 0 {
            return None;
        }
        continue_with::<NOTHING>(&ctx)
    })
}

/// Puts what [`look_up`] looks up into [`TABLE`].
#[xdp]
fn fill(ctx: XdpContext) -> u32 {
    or_aborted(|| {
        let key = restore(&ctx)?;
        TABLE.insert(key, [1; 8], 0).ok()?;
        Some(xdp_action::XDP_TX)
    })
}

/// Makes a frame and sends it to a device.
#[xdp]
fn generate(ctx: XdpContext) -> u32 {
    or_aborted(|| {
        restore(&ctx)?;
        let plan = PLAN.get(0)?;
        let generated = GENERATED.get_ptr_mut(0)?;
        // SAFETY: the element is this CPU's own.
        unsafe { *generated += 1 };
        // SAFETY: the helper takes no pointers.
        Some(unsafe { bpf_redirect(plan.egress, 0) }.cast_unsigned() as u32)
    })
}

/// Sends a frame on with other Ethernet addresses.
#[xdp]
fn relay(ctx: XdpContext) -> u32 {
    or_aborted(|| {
        let frame = frame(&ctx)?;
        if is_of_a_flow(frame) {
            let plan = PLAN.get(0)?;
            // SAFETY: the frame holds these bytes.
            unsafe { *(frame as *mut [u32; 3]) = plan.ethernet };
            return DEVICES.redirect(0, 0).ok();
        }
        Some(xdp_action::XDP_PASS)
    })
}

/// Counts and drops UDP and TCP packets; the host gets all others.
#[xdp]
fn count(ctx: XdpContext) -> u32 {
    or_aborted(|| {
        let Some(frame) = frame(&ctx) else { return Some(xdp_action::XDP_PASS) };
        if !is_of_a_flow(frame) {
            return Some(xdp_action::XDP_PASS);
        }
        let plan = PLAN.get(0)?;
        let arrived = ARRIVED.get_ptr_mut(0)?;
        // SAFETY: the frame holds these bytes; the element is this CPU's own.
        unsafe {
            let source = *((frame + 26) as *const u32);
            if source & plan.mask == plan.source {
                (*arrived).expected += 1;
            } else {
                (*arrived).others += 1;
            }
        }
        Some(xdp_action::XDP_DROP)
    })
}

#[inline(always)]
fn or_aborted(run: impl FnOnce() -> Option<u32>) -> u32 {
    run().unwrap_or(xdp_action::XDP_ABORTED)
}

/// Start of the frame, if it has [`FRAME`] bytes.
#[inline(always)]
fn frame(ctx: &XdpContext) -> Option<usize> {
    let start = ctx.data();
    if start + FRAME > ctx.data_end() { None } else { Some(start) }
}

#[inline(always)]
fn is_of_a_flow(frame: usize) -> bool {
    // SAFETY: `frame` is the start of a frame of `FRAME` bytes.
    let (kind, proto) = unsafe { (*((frame + 12) as *const u16), *((frame + 23) as *const u8)) };
    kind == 0x0800_u16.to_be() && (proto == 17 || proto == 6)
}

/// Writes the next frame over the packet. Returns what stands on the wire from the source address on.
///
/// In the words in which a gateway reads headers: a processor is slow to read what was written in smaller
/// pieces a moment ago, and on a real packet nothing was.
#[inline(always)]
fn restore(ctx: &XdpContext) -> Option<[u64; 2]> {
    let turn = TURN.get_ptr_mut(0)?;
    // SAFETY: the pointer is to a map value; one program runs at a time.
    let (this, lap) = unsafe {
        let Turn { last, factor, flows, frames, shift } = *turn;
        let this = last.wrapping_mul(factor).wrapping_add(1) & flows;
        (*turn).last = this;
        (this & frames, this >> (shift & 31))
    };
    let from = FRAMES.get_ptr(this)?;
    let to = frame(ctx)?;
    // SAFETY: `from` is an element of 64 bytes, `to` the start of a frame of `FRAME` bytes.
    unsafe {
        let [a, b, c, d] = (*from)[9].to_ne_bytes();
        let [a, b] = u16::from_be_bytes([a, b]).wrapping_add(lap as u16).to_be_bytes();
        let ports = u32::from_ne_bytes([a, b, c, d]);
        let key = [word((*from)[7], (*from)[8]), word(ports, (*from)[10])];
        let from = from.cast::<u8>().add(LEAD) as usize;
        copy::<u16>(from, to, 0);
        copy::<u32>(from, to, 2);
        copy::<u32>(from, to, 6);
        copy::<u16>(from, to, 10);
        copy::<u16>(from, to, 12);
        copy::<u32>(from, to, 14);
        copy::<u32>(from, to, 18);
        copy::<u32>(from, to, 22);
        copy::<u32>(from, to, 26);
        copy::<u32>(from, to, 30);
        ((to + 34) as *mut u32).write_volatile(ports);
        copy::<u32>(from, to, 38);
        copy::<u32>(from, to, 42);
        copy::<u32>(from, to, 46);
        copy::<u32>(from, to, 50);
        // Payload, for UDP and TCP alike: the opposite of what the port has changed, so that checksums hold.
        ((to + 54) as *mut u16).write_volatile((!(lap as u16)).to_be());
        copy::<u16>(from, to, 56);
        copy::<u16>(from, to, 58);
        Some(key)
    }
}

/// The word that holds `first` and then `second`.
#[inline(always)]
fn word(first: u32, second: u32) -> u64 {
    let (low, high) = if cfg!(target_endian = "little") { (first, second) } else { (second, first) };
    u64::from(low) | u64::from(high) << 32
}

/// # Safety
/// Both are addresses of plain data, `offset + size_of::<T>()` bytes at least.
#[inline(always)]
unsafe fn copy<T>(from: usize, to: usize, offset: usize) {
    // SAFETY: the caller vouches for the addresses.
    unsafe { ((to + offset) as *mut T).write_volatile(((from + offset) as *const T).read_volatile()) }
}

/// The index is a constant, so that the JIT makes a direct jump of it.
#[inline(always)]
fn continue_with<const SUBJECT: u32>(ctx: &XdpContext) -> Option<u32> {
    // SAFETY: nothing of this program needs to be dropped.
    unsafe { SUBJECTS.tail_call(ctx, SUBJECT) };
    None
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing in this crate can panic; the verifier would reject a reachable loop.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
