//! Map `ADDRESSES`: addresses that mean something to the gateway, by [`crate::family::MappedAddress`].

use crate::pod;

/// The address is one of the host's own.
pub const LOCAL: u32 = 1;
/// The address belongs to a pool; [`Address::index`] is its element of `POOL_ADDRESSES`.
pub const POOL: u32 = 2;
/// The address is the broadcast address of a connected subnet.
pub const BROADCAST: u32 = 4;
/// The address is an EIP; see [`crate::eip`].
pub const EIP: u32 = 8;
/// The address belongs to a pool with endpoint-independent mappings.
pub const MAPPING: u32 = 16;

/// Map `ADDRESSES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    /// [`LOCAL`] | [`POOL`] | [`BROADCAST`] | [`EIP`] | [`MAPPING`].
    pub flags: u32,
    /// See the flags.
    pub index: u32,
}

/// Elements of `ADDRESSES`.
pub const MAX_ADDRESSES: u32 = 32_768;

const _: () = assert!(size_of::<Address>() == 8);

pod!(Address);
