//! Tests that cannot run here say so.

use std::{
    fs,
    io::{Write as _, stderr},
    path::Path,
    thread,
};

use nix::{
    sys::statfs::{BPF_FS_MAGIC, statfs},
    unistd::geteuid,
};

/// Whether this process may make a lab. If not, the calling test is reported as skipped, and should return.
pub fn runnable() -> bool {
    let lack = if geteuid().is_root() { lacking() } else { Some("needs root".to_owned()) };
    if let Some(lack) = &lack {
        skip(lack);
    }
    lack.is_none()
}

/// Reports the calling test as skipped. `cargo xtask test` counts these lines, so they pass the capture of
/// the test harness.
pub fn skip(why: &str) {
    let thread = thread::current();
    let line = format!("SKIP {}: {why}\n", thread.name().unwrap_or("a test"));
    let _unheard = stderr().write_all(line.as_bytes());
}

fn lacking() -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |name: &str| std::env::split_paths(&path).any(|directory| directory.join(name).is_file());
    for program in ["ip", "ethtool"] {
        if !there(program) {
            return Some(format!("{program} is not installed (cargo xtask setup)"));
        }
    }
    if !statfs(Path::new("/sys/fs/bpf")).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC) {
        return Some("no bpf file system on /sys/fs/bpf (cargo xtask setup)".to_owned());
    }
    fs::metadata("/proc/self/ns/net").is_err().then(|| "this kernel has no network namespaces".to_owned())
}
