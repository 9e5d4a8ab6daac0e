//! EIPs: outside addresses that are mapped 1:1 to inside hosts.

use crate::{
    family::MappedAddress,
    pod,
    session::{SIDE_INSIDE, SIDE_OUTSIDE},
};

/// EIPs there can be.
pub const MAX_EIPS: u32 = 4_096;
/// Elements of `EIPS`: two for each EIP, in two halves. One of them is in force ([`crate::config::Policy::eips`]); the
/// other one is written for the next change, so that all EIPs change with one word.
pub const MAX_EIP_ELEMENTS: u32 = 4 * MAX_EIPS;

/// Key of map `EIPS`. Its value is the address of the other side, see [`MappedAddress`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EipKey {
    /// See [`EipKey::side`].
    pub address: MappedAddress,
    /// [`SIDE_INSIDE`]: `address` is the host's, and the value is its EIP. [`SIDE_OUTSIDE`]: the other way round.
    pub side: u16,
    /// Which half the element belongs to, 0 or 1.
    pub half: u16,
}

impl EipKey {
    /// The key of an inside host: whose EIP has it?
    #[inline(always)]
    pub const fn of_host(address: MappedAddress, half: u16) -> Self {
        Self { address, side: SIDE_INSIDE as u16, half }
    }

    /// The key of an EIP: whose is it?
    #[inline(always)]
    pub const fn of_eip(address: MappedAddress, half: u16) -> Self {
        Self { address, side: SIDE_OUTSIDE as u16, half }
    }
}

const _: () = assert!(size_of::<EipKey>() == 20);

pod!(EipKey);
