//! Empties the maps of a data plane, so that the next test finds them as the kernel makes them.
//!
//! The kernel looks at some hundred thousand instructions when it loads the programs, which takes seconds. So they
//! are loaded once and used again, and only the maps begin anew. Every map there is gets emptied; of a type that
//! is not known here, none is left as it is without a word.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::{Map, MapData, MapType, RingBuf};

// Commands, `enum bpf_cmd` in include/uapi/linux/bpf.h.
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const MAP_UPDATE_BATCH: libc::c_long = 26;

/// The part of `union bpf_attr` that is about one element.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

/// The part of `union bpf_attr` that is about many elements.
#[repr(C)]
struct Batch {
    from: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Empties every map that is pinned in a directory, but for the list of programs.
pub(crate) fn maps(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory).context("cannot read the pinned maps")? {
        let path = entry?.path();
        map(&path).with_context(|| format!("cannot empty {}", path.display()))?;
    }
    Ok(())
}

/// The maps that are pinned in a directory and hold something, but for the list of programs and the messages.
pub(crate) fn full(directory: &Path) -> Result<Vec<String>> {
    let mut full = Vec::new();
    for entry in fs::read_dir(directory).context("cannot read the pinned maps")? {
        let entry = entry?;
        let holds = holds(&entry.path());
        if holds.with_context(|| format!("cannot look into {}", entry.path().display()))? {
            full.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    full.sort();
    Ok(full)
}

/// Keys and values of a map.
pub(crate) type Elements = Vec<(Vec<u8>, Vec<u8>)>;

/// Keys and values of every map that is pinned in a directory, by name, but for programs, devices, tables and messages.
pub(crate) fn contents(directory: &Path) -> Result<BTreeMap<String, Elements>> {
    let mut contents = BTreeMap::new();
    for entry in fs::read_dir(directory).context("cannot read the pinned maps")? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let elements = elements(&entry.path()).with_context(|| format!("cannot read {name}"))?;
        contents.insert(name, elements);
    }
    Ok(contents)
}

/// Keys and values of a map; of an array, those that are not zero, of a queue, the first.
fn elements(path: &Path) -> Result<Elements> {
    let data = MapData::from_pin(path)?;
    let info = data.info()?;
    let descriptor = data.fd().as_fd();
    let key = info.key_size() as usize;
    let (size, all) = (info.value_size() as usize, cpus()?);
    let mut found = Vec::new();
    #[expect(clippy::wildcard_enum_match_arm, reason = "the kernel has many more types")]
    match info.map_type()? {
        kind @ (MapType::Array | MapType::PerCpuArray) => {
            let length = if kind == MapType::Array { size } else { size.next_multiple_of(8) * all };
            let mut value = vec![0u8; length];
            for index in 0..info.max_entries() {
                let index = index.to_ne_bytes();
                if lookup(descriptor, &index, &mut value)? && value.iter().any(|byte| *byte != 0) {
                    found.push((index.to_vec(), value.clone()));
                }
            }
        }
        MapType::Hash | MapType::LruHash => {
            let mut next = next_key(descriptor, None, key)?;
            while let Some(key) = next {
                let mut value = vec![0u8; size];
                lookup(descriptor, &key, &mut value)?;
                next = next_key(descriptor, Some(&key), key.len())?;
                found.push((key, value));
            }
        }
        MapType::Queue => {
            let mut value = vec![0u8; size];
            if lookup(descriptor, &[], &mut value)? {
                found.push((Vec::new(), value));
            }
        }
        _ => {}
    }
    Ok(found)
}

fn holds(path: &Path) -> Result<bool> {
    let data = MapData::from_pin(path)?;
    let info = data.info()?;
    let kind = info.map_type()?;
    if matches!(kind, MapType::ProgramArray | MapType::RingBuf) {
        return Ok(false);
    }
    let mut value = vec![0u8; (info.value_size() as usize).next_multiple_of(8) * cpus()?];
    if matches!(kind, MapType::Hash | MapType::LruHash | MapType::LpmTrie) {
        return Ok(next_key(data.fd().as_fd(), None, info.key_size() as usize)?.is_some());
    }
    if matches!(kind, MapType::Queue) {
        return lookup(data.fd().as_fd(), &[], &mut value);
    }
    for index in 0..info.max_entries() {
        let found = lookup(data.fd().as_fd(), &index.to_ne_bytes(), &mut value)?;
        if found && value.iter().any(|byte| *byte != 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn map(path: &Path) -> Result<()> {
    let data = MapData::from_pin(path)?;
    let info = data.info()?;
    let (key, elements) = (info.key_size() as usize, info.max_entries());
    let descriptor = data.fd().as_fd();
    #[expect(clippy::wildcard_enum_match_arm, reason = "the kernel has many more types")]
    match info.map_type()? {
        MapType::Array => zero(descriptor, elements, info.value_size() as usize),
        MapType::PerCpuArray => {
            zero(descriptor, elements, (info.value_size() as usize).next_multiple_of(8) * cpus()?)
        }
        MapType::Hash | MapType::LruHash | MapType::LpmTrie => delete_all(descriptor, key),
        MapType::ArrayOfMaps | MapType::DevMap => {
            (0..elements).try_for_each(|index| delete(descriptor, &index.to_ne_bytes()))
        }
        MapType::Queue => pop_all(descriptor, info.value_size() as usize),
        MapType::RingBuf => {
            let mut messages = RingBuf::try_from(Map::from_map_data(MapData::from_pin(path)?)?)?;
            while messages.next().is_some() {}
            Ok(())
        }
        MapType::ProgramArray => Ok(()),
        other => bail!("maps of type {other:?} are not known"),
    }
}

fn cpus() -> Result<usize> {
    aya::util::nr_cpus().map_err(|(what, error)| anyhow!("cannot read {what}: {error}"))
}

/// Writes zeros into the elements of an array; `size` is that of an element on all CPUs together.
fn zero(map: BorrowedFd<'_>, elements: u32, size: usize) -> Result<()> {
    /// Bytes of values in one call.
    const AT_ONCE: usize = 1 << 20;
    let length = (AT_ONCE / size).clamp(1, elements as usize);
    let zeros = vec![0u8; length * size];
    let indices: Vec<u32> = (0..elements).collect();
    for indices in indices.chunks(length) {
        let mut attributes = Batch {
            from: 0,
            next: 0,
            keys: indices.as_ptr() as u64,
            values: zeros.as_ptr() as u64,
            count: indices.len() as u32,
            map: map.as_raw_fd().cast_unsigned(),
            element_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes are those of the command; keys and values are as many as it says.
        unsafe { bpf(MAP_UPDATE_BATCH, &mut attributes) }.context("cannot write zeros")?;
    }
    Ok(())
}

/// Deletes the elements of a hash map, each when the next one is known: from the beginning, the kernel would look
/// through all that is empty by then.
fn delete_all(map: BorrowedFd<'_>, size: usize) -> Result<()> {
    let mut key = next_key(map, None, size)?;
    while let Some(found) = key {
        key = next_key(map, Some(&found), size)?;
        delete(map, &found)?;
    }
    Ok(())
}

/// The key that follows another one, or the first one.
fn next_key(map: BorrowedFd<'_>, key: Option<&[u8]>, size: usize) -> Result<Option<Vec<u8>>> {
    let mut next = vec![0u8; size];
    let mut attributes = element(map, key.map_or(0, |key| key.as_ptr() as u64), next.as_mut_ptr() as u64);
    // SAFETY: the attributes are those of the command, with a key of the map or none, and room for another one.
    match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attributes) } {
        Ok(()) => Ok(Some(next)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error).context("cannot read a key"),
    }
}

fn delete(map: BorrowedFd<'_>, key: &[u8]) -> Result<()> {
    let mut attributes = element(map, key.as_ptr() as u64, 0);
    // SAFETY: the attributes are those of the command, with a key of the map.
    match unsafe { bpf(MAP_DELETE_ELEM, &mut attributes) } {
        Err(error) if !is_missing(&error) => Err(error).context("cannot delete an element"),
        _ => Ok(()),
    }
}

/// Reads an element, if it is there.
fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> Result<bool> {
    let mut attributes =
        element(map, if key.is_empty() { 0 } else { key.as_ptr() as u64 }, value.as_mut_ptr() as u64);
    // SAFETY: the attributes are those of the command, with a key of the map and room for a value.
    match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attributes) } {
        Ok(()) => Ok(true),
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(error).context("cannot read an element"),
    }
}

fn pop_all(map: BorrowedFd<'_>, size: usize) -> Result<()> {
    let mut value = vec![0u8; size];
    loop {
        let mut attributes = element(map, 0, value.as_mut_ptr() as u64);
        // SAFETY: the attributes are those of the command, and there is room for a value.
        match unsafe { bpf(MAP_LOOKUP_AND_DELETE_ELEM, &mut attributes) } {
            Ok(()) => {}
            Err(error) if is_missing(&error) => return Ok(()),
            Err(error) => return Err(error).context("cannot take an element"),
        }
    }
}

fn element(map: BorrowedFd<'_>, key: u64, value: u64) -> Element {
    Element { map: map.as_raw_fd().cast_unsigned(), padding: 0, key, value, flags: 0 }
}

fn is_missing(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

/// bpf(2).
///
/// # Safety
/// `attributes` is what `command` expects.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<()> {
    // SAFETY: the caller vouches for the attributes.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
