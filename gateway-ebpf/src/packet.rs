//! Access to the frame: the only raw packet pointers of the crate.

use core::{arch::asm, intrinsics::is_val_statically_known};

use aya_ebpf::{EbpfContext as _, programs::XdpContext};
use gateway_common::{
    DropReason, checksum,
    parse::{Bytes, Wire},
};

/// Bound of every offset: tags, the longest headers that the parser follows, and what lies behind them. Offsets
/// that were stored in between come back to the verifier without theirs.
pub(crate) const MAX_OFFSET: usize = 16_383;

/// A MAC address in words of memory order.
pub(crate) type Mac = [u16; 3];

/// A MAC address as words.
#[inline(always)]
pub(crate) fn mac_words(mac: [u8; 6]) -> Mac {
    let [a, b, c, d, e, f] = mac;
    [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
}

/// A MAC address from words.
#[inline(always)]
pub(crate) fn mac_bytes(words: Mac) -> [u8; 6] {
    let [[a, b], [c, d], [e, f]] = words.map(u16::to_ne_bytes);
    [a, b, c, d, e, f]
}

/// The frame being looked at.
///
/// Every access is checked against the end of the frame, which is what the verifier wants to see, and takes
/// the pointers afresh, so that nothing survives a helper that moves the packet.
pub(crate) struct Frame<'a> {
    ctx: &'a XdpContext,
}

impl<'a> Frame<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }

    /// Ifindex of the interface the frame arrived on.
    #[inline(always)]
    pub(crate) fn ingress_ifindex(&self) -> u32 {
        self.ctx.ingress_ifindex() as u32
    }

    /// Length of the frame.
    ///
    /// Read as volatile: where the compiler knows that an offset is within the length, it leaves out the check
    /// against the end that the verifier wants to see.
    #[inline(always)]
    pub(crate) fn bytes(&self) -> u64 {
        // SAFETY: the context is valid while the program runs.
        unsafe {
            let end = (&raw const (*self.ctx.ctx).data_end).read_volatile();
            let start = (&raw const (*self.ctx.ctx).data).read_volatile();
            u64::from(end) - u64::from(start)
        }
    }

    /// The program's context, for helpers.
    #[inline(always)]
    pub(crate) fn context(&self) -> *mut aya_ebpf::bindings::xdp_md {
        self.ctx.as_ptr().cast()
    }

    /// Writes `value` at `offset`.
    #[inline(always)]
    pub(crate) fn write<T: Wire>(&self, offset: usize, value: T) -> Result<(), DropReason> {
        let pointer = self.pointer::<T>(offset).ok_or(DropReason::Truncated)?;
        // SAFETY: `pointer` is in bounds and `T` is plain data.
        unsafe { *pointer = value };
        Ok(())
    }

    /// Writes `words` at `offset`, one by one: from a map value to the frame, the compiler would call a function
    /// that moves bytes.
    #[inline(always)]
    pub(crate) fn write_words<const N: usize>(
        &self,
        offset: usize,
        words: [u32; N],
    ) -> Result<(), DropReason> {
        let pointer = self.pointer::<[u32; N]>(offset).ok_or(DropReason::Truncated)?.cast::<u32>();
        for (index, word) in words.into_iter().enumerate() {
            // SAFETY: `pointer` leads to `N` words in bounds.
            unsafe { pointer.add(index).write_volatile(word) };
        }
        Ok(())
    }

    /// Changes the checksum at `offset` by `delta`, see [`checksum::apply`].
    #[inline(always)]
    pub(crate) fn update_checksum(&self, offset: usize, delta: u16) -> Result<(), DropReason> {
        let pointer = self.pointer::<u16>(offset).ok_or(DropReason::Truncated)?;
        // SAFETY: `pointer` is in bounds and a `u16` is plain data.
        unsafe { *pointer = checksum::apply(u16::from_be(*pointer), delta).to_be() };
        Ok(())
    }

    /// Changes the UDP checksum at `offset` by `delta`, see [`checksum::apply_udp`].
    #[inline(always)]
    pub(crate) fn update_udp_checksum(&self, offset: usize, delta: u16) -> Result<(), DropReason> {
        let pointer = self.pointer::<u16>(offset).ok_or(DropReason::Truncated)?;
        // SAFETY: as above.
        unsafe { *pointer = checksum::apply_udp(u16::from_be(*pointer), delta).to_be() };
        Ok(())
    }

    /// Pointer to a `T` at `offset`, if the frame holds all of it.
    ///
    /// Wider types than the frame's alignment are fine: every machine with an efficient BPF JIT reads
    /// unaligned words, and the verifier rejects the program on one that does not.
    #[inline(always)]
    fn pointer<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        if offset > MAX_OFFSET {
            return None;
        }
        let mut start = self.ctx.data() + offset;
        if !is_val_statically_known(offset) {
            // The verifier must see the check and the access made with one register: without this the compiler
            // is free to add up the two separately.
            // An empty template would leave two line records at one instruction, which the kernel rejects.
            // SAFETY: the instruction does nothing.
            unsafe { asm!("{0} = {0}", inout(reg) start, options(nomem, nostack, preserves_flags, pure)) };
        }
        if start + size_of::<T>() > self.ctx.data_end() {
            return None;
        }
        Some(start as *mut T)
    }
}

impl Bytes for Frame<'_> {
    #[inline(always)]
    fn read<T: Wire>(&self, offset: usize) -> Option<T> {
        let pointer = self.pointer::<T>(offset)?;
        // SAFETY: `pointer` is in bounds and `T` accepts every bit pattern.
        Some(unsafe { *pointer })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.bytes() as usize
    }
}
