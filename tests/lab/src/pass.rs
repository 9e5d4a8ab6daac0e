//! The smallest XDP program: every frame passes.
//!
//! A device of a veth pair that runs no XDP program sees what its peer sends with `XDP_TX` only when the next
//! frame comes along (`veth_xdp_flush` in drivers/net/veth.c wakes a receiver that has a program). With this
//! program at the other end a veth pair behaves like a wire.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use anyhow::{Context as _, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_PROG_TYPE_XDP: u32 = 6;

/// `struct bpf_insn`.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `r0 = XDP_PASS; exit`.
static PROGRAM: [Instruction; 2] = [
    Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 2 },
    Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
];

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    license: u64,
}

/// The fields of `union bpf_attr` for `BPF_OBJ_PIN`.
#[repr(C)]
struct Pin {
    path: u64,
    program: libc::c_int,
    flags: u32,
}

/// Loads the program and pins it at `path`.
pub(crate) fn pin(path: &Path) -> Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let load = Load {
        kind: BPF_PROG_TYPE_XDP,
        instructions: PROGRAM.len() as u32,
        code: PROGRAM.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    let loaded = bpf(BPF_PROG_LOAD, &load).context("cannot load an XDP program")?;
    // SAFETY: the kernel has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(loaded) };
    let pin = Pin { path: name.as_ptr() as u64, program: program.as_raw_fd(), flags: 0 };
    bpf(BPF_OBJ_PIN, &pin).with_context(|| format!("cannot pin a program at {}", path.display()))?;
    Ok(())
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of attributes; the pointers in them are to values that
    // the caller keeps alive.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
