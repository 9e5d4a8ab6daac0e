//! The parts of bpf(2) that aya does not offer: batches with a cursor, and questions about maps and links.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
    path::Path,
};

use anyhow::Context as _;
use aya::Pod;
use aya_obj::generated::bpf_map_info;

// Commands, `enum bpf_cmd` in include/uapi/linux/bpf.h.
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const MAP_DELETE_BATCH: libc::c_long = 27;
const LINK_DETACH: libc::c_long = 34;

/// The kernel's own error number for what it cannot do (include/linux/errno.h).
pub(super) const ENOTSUPP: i32 = 524;

/// Where a walk through a map stands: the kernel's number of the next bucket of a hash map, the index that was read
/// last of an array.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor(Option<u32>);

impl Cursor {
    /// Whether the walk has yet to begin.
    pub(super) fn is_start(self) -> bool {
        self.0.is_none()
    }
}

/// Reads an array, or whole buckets of a hash map, from `cursor` on, until `keys` and `values` hold up to `max` elements.
///
/// Returns `false` at the end of the map, with the cursor back at its beginning. Elements added or removed
/// meanwhile may be seen or not; all others are seen once.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut Vec<K>,
    values: &mut Vec<V>,
    max: usize,
) -> io::Result<bool> {
    let mut max = max;
    loop {
        keys.clear();
        values.clear();
        keys.reserve(max);
        values.reserve(max);
        let mut next = 0u32;
        let mut attributes = BatchAttributes {
            in_batch: cursor.0.as_ref().map_or(0, |bucket| std::ptr::from_ref(bucket) as u64),
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: max as u32,
            map_fd: map.as_raw_fd().cast_unsigned(),
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes are those of the command, and its pointers lead to room for `max` elements.
        let result = unsafe { bpf(MAP_LOOKUP_BATCH, &mut attributes) };
        let more = match result {
            Ok(_) => true,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => false,
                // A bucket with more elements than that: try again with more room.
                Some(libc::ENOSPC) => {
                    max *= 2;
                    continue;
                }
                _ => return Err(error),
            },
        };
        // SAFETY: the kernel has written that many elements, and `Pod` accepts every bit pattern.
        unsafe {
            keys.set_len(attributes.count as usize);
            values.set_len(attributes.count as usize);
        }
        cursor.0 = more.then_some(next);
        return Ok(more);
    }
}

/// Reads all elements of an array, with a call for many of them.
pub(super) fn elements<V: Pod>(array: BorrowedFd<'_>) -> io::Result<Vec<V>> {
    /// Elements that one call reads.
    const READ: usize = 4_096;
    let (mut cursor, mut indices, mut values) = (Cursor::default(), Vec::<u32>::new(), Vec::new());
    let mut all = Vec::new();
    loop {
        let more = lookup_batch(array, &mut cursor, &mut indices, &mut values, READ)?;
        all.append(&mut values);
        if !more {
            return Ok(all);
        }
    }
}

/// Makes a trie of keys `K`, which begin with their prefix length, and values `V`.
pub(super) fn create_trie<K: Pod, V: Pod>(capacity: u32) -> io::Result<OwnedFd> {
    // `enum bpf_map_type` and flags of BPF_MAP_CREATE in include/uapi/linux/bpf.h.
    const LPM_TRIE: u32 = 11;
    const NO_PREALLOC: u32 = 1;
    #[repr(C)]
    struct Attributes {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
    }
    let mut attributes = Attributes {
        map_type: LPM_TRIE,
        key_size: size_of::<K>() as u32,
        value_size: size_of::<V>() as u32,
        max_entries: capacity,
        map_flags: NO_PREALLOC,
    };
    // SAFETY: the attributes are those of the command; it returns a descriptor that nobody else has.
    unsafe {
        let descriptor = bpf(MAP_CREATE, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(descriptor).map_err(io::Error::other)?))
    }
}

/// Removes an element from a map.
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command, and the pointer leads to the key.
    unsafe { bpf(MAP_DELETE_ELEM, &mut attributes) }.map(drop)
}

/// Enters an element into a map.
pub(super) fn update<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: std::ptr::from_ref(value) as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command, and the pointers lead to key and value.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut attributes) }.map(drop)
}

/// Enters elements into a map, in order. Returns how many are in; the error says why no more.
///
/// [`ENOTSUPP`]: a map of this kind takes no batches on this kernel (tries do from 5.13 on).
pub(super) fn update_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> (usize, io::Result<()>) {
    debug_assert_eq!(keys.len(), values.len(), "a value for each key");
    let mut attributes = BatchAttributes {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command, and its pointers lead to `count` keys and values.
    batch(unsafe { bpf(MAP_UPDATE_BATCH, &mut attributes) }, &attributes)
}

/// Removes elements from a map, in order, up to the first that is not there.
pub(super) fn delete_batch<K: Pod>(map: BorrowedFd<'_>, keys: &[K]) -> io::Result<()> {
    let mut attributes = BatchAttributes {
        in_batch: 0,
        out_batch: 0,
        keys: keys.as_ptr() as u64,
        values: 0,
        count: keys.len() as u32,
        map_fd: map.as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command, and its pointer leads to `count` keys.
    unsafe { bpf(MAP_DELETE_BATCH, &mut attributes) }.map(drop)
}

/// How many elements a batch has done.
fn batch(result: io::Result<libc::c_long>, attributes: &BatchAttributes) -> (usize, io::Result<()>) {
    let done = match &result {
        // The command does not get as far as to write a count.
        Err(error) if error.raw_os_error() == Some(ENOTSUPP) => 0,
        _ => attributes.count as usize,
    };
    (done, result.map(drop))
}

/// The `batch` member of `union bpf_attr`.
#[repr(C)]
struct BatchAttributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Runs a program on the frame `input` and returns the first bytes of what it leaves behind, which is no longer.
pub(super) fn run<T: Pod>(program: BorrowedFd<'_>, input: &[u8]) -> io::Result<T> {
    /// The `test` member of `union bpf_attr`, up to what XDP needs.
    #[repr(C)]
    struct Attributes {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
    }
    debug_assert!(size_of::<T>() <= input.len(), "the program does not make the frame longer");
    let mut output = input.to_vec();
    let mut attributes = Attributes {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        retval: 0,
        data_size_in: input.len() as u32,
        data_size_out: output.len() as u32,
        data_in: input.as_ptr() as u64,
        data_out: output.as_mut_ptr() as u64,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: the attributes are those of the command, and the pointers lead to as many bytes as it says.
    unsafe { bpf(PROG_TEST_RUN, &mut attributes)? };
    // SAFETY: `output` is as long as `input`, and `Pod` accepts every bit pattern.
    Ok(unsafe { output.as_ptr().cast::<T>().read_unaligned() })
}

/// What the kernel says of a map.
pub(super) fn map_info(map: BorrowedFd<'_>) -> io::Result<bpf_map_info> {
    info(map)
}

/// The device that an XDP link is attached to; 0 when the device is gone.
pub(super) fn link_ifindex(link: BorrowedFd<'_>) -> io::Result<u32> {
    /// The beginning of `struct bpf_link_info` with its `xdp` member.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct XdpLinkInfo {
        kind: u32,
        id: u32,
        prog_id: u32,
        padding: u32,
        ifindex: u32,
        rest: [u32; 27],
    }
    info::<XdpLinkInfo>(link).map(|info| info.ifindex)
}

/// Detaches a link from its device at once; without effect where the device is gone.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = link.as_raw_fd().cast_unsigned();
    // SAFETY: the attributes are those of the command, a descriptor.
    unsafe { bpf(LINK_DETACH, &mut attributes) }.map(drop)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> anyhow::Result<OwnedFd> {
    #[repr(C)]
    struct Attributes {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    let mut attributes = Attributes { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: the attributes are those of the command; it returns a descriptor that nobody else has.
    unsafe {
        let descriptor = bpf(OBJ_GET, &mut attributes)
            .with_context(|| format!("cannot open the pinned object {}", path.display()))?;
        Ok(OwnedFd::from_raw_fd(i32::try_from(descriptor)?))
    }
}

/// Reads the element 0 of an array map, in bytes.
pub(super) fn first_element(map: BorrowedFd<'_>, size: usize) -> io::Result<Vec<u8>> {
    let key = 0u32;
    let mut value = vec![0u8; size];
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: (&raw const key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command, and the pointers lead to key and value.
    unsafe { bpf(MAP_LOOKUP_ELEM, &mut attributes)? };
    Ok(value)
}

/// The element of a hash map under `key`.
pub(super) fn lookup<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = std::mem::MaybeUninit::<V>::uninit();
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(key) as u64,
        value: value.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command; on success the kernel has written the whole value.
    unsafe {
        match bpf(MAP_LOOKUP_ELEM, &mut attributes) {
            Ok(_) => Ok(Some(value.assume_init())),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The key behind `key`; the first one for `None`, and for a key that is not there.
pub(super) fn next_key<K: Pod>(map: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = std::mem::MaybeUninit::<K>::uninit();
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: key.map_or(0, |key| std::ptr::from_ref(key) as u64),
        value: next.as_mut_ptr() as u64,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command; on success the kernel has written the whole key.
    unsafe {
        match bpf(MAP_GET_NEXT_KEY, &mut attributes) {
            Ok(_) => Ok(Some(next.assume_init())),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Empties the element `index` of an array of maps.
pub(super) fn clear_inner_map(map: BorrowedFd<'_>, index: u32) -> io::Result<()> {
    let mut attributes = ElementAttributes {
        map_fd: map.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: (&raw const index) as u64,
        value: 0,
        flags: 0,
    };
    // SAFETY: the attributes are those of the command, and the pointer leads to the key.
    match unsafe { bpf(MAP_DELETE_ELEM, &mut attributes) } {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn info<T: Copy>(object: BorrowedFd<'_>) -> io::Result<T> {
    #[repr(C)]
    struct Attributes {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    // SAFETY: the callers' types are plain integers.
    let mut info: T = unsafe { std::mem::zeroed() };
    let mut attributes = Attributes {
        bpf_fd: object.as_raw_fd().cast_unsigned(),
        info_len: size_of::<T>() as u32,
        info: (&raw mut info) as u64,
    };
    // SAFETY: the attributes are those of the command, and the pointer leads to `info_len` bytes.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(info)
}

/// bpf(2).
///
/// # Safety
/// `attributes` is what `command` expects.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the caller vouches for the attributes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
