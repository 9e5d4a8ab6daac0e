//! What the kernel program and user space agree on.
//!
//! Two kinds of things live here, and nothing else:
//!
//! * **The ABI**: `#[repr(C)]` layouts of every map key and value. Wire values are kept in network byte
//!   order as byte arrays, padding is explicit and zero, and sizes are asserted. A change of any layout
//!   bumps [`ABI_VERSION`]; the daemon refuses pins of another version.
//! * **Pure packet logic** that both sides run: checksums, the parser, tuples. No allocation, no panics.
#![cfg_attr(not(any(feature = "user", test)), no_std)]

pub mod address;
pub mod checksum;
pub mod config;
pub mod counter;
pub mod eip;
pub mod event;
pub mod family;
pub mod fragment;
pub mod interface;
pub mod limit;
pub mod mapping;
pub mod parse;
pub mod pool;
pub mod ports;
pub mod proxy;
pub mod quote;
pub mod reason;
pub mod record;
pub mod route;
pub mod session;
pub mod share;
pub mod source;
pub mod table;
pub mod tcp;
pub mod tunnel;
pub mod usage;
pub mod verdict;
pub mod watch;

pub use family::{Family, V4, V6};
pub use reason::DropReason;
pub use verdict::Verdict;

/// Version of every layout in this crate. Pinned maps carry it in [`config::Config::abi`].
pub const ABI_VERSION: u32 = 11;

/// Marks a type as plain old data for aya.
macro_rules! pod {
    ($($ty:ty),+ $(,)?) => {
        $(
            #[cfg(feature = "user")]
            // SAFETY: `#[repr(C)]`, `Copy`, every bit pattern is valid and there is no implicit padding
            // (sizes are asserted beside the definitions).
            unsafe impl aya::Pod for $ty {}
        )+
    };
}
pub(crate) use pod;
