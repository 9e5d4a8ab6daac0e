//! What tests must not leave behind.

use std::{fs, path::Path, thread, time::Duration};

/// Names the namespaces, pins and directories that begin with `prefix`, if any are left after a while.
pub(crate) fn of(prefix: &str) -> Option<String> {
    // The guards of the last labs may still be at work.
    for _ in 0..50 {
        if list(prefix).is_empty() {
            return None;
        }
        thread::sleep(Duration::from_millis(100));
    }
    Some(format!("the tests left behind: {}", list(prefix).join(", ")))
}

fn list(prefix: &str) -> Vec<String> {
    let places = ["/run/netns", "/sys/fs/bpf", "/tmp"].map(Path::new);
    let entries = places.into_iter().filter_map(|place| fs::read_dir(place).ok()).flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    ours.map(|entry| entry.path().display().to_string()).collect()
}
