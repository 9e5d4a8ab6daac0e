//! Gives the memory of replaced tables back.
//!
//! When nobody holds a trie any more, a worker of the kernel frees it in one go (`trie_free`
//! in `kernel/bpf/lpm_trie.c`): with a million prefixes that keeps a CPU from threads that poll devices for some tenths
//! of a second. So a thread of low priority deletes the elements before, in batches between which others may run,
//! and what is left to the kernel is next to nothing. Where the daemon ends meanwhile, the kernel frees the rest.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::lpm_trie::Key};
use ipnet::IpNet;

use super::trie::{Trie, V4, V6, key_v4, key_v6};
use crate::{model::Table, priority};

/// Elements of a batch: some tenths of a millisecond. The kernel lets others run between two elements.
const BATCH: usize = 256;

/// The way to the thread.
pub(super) struct Reaper(mpsc::Sender<Replaced>);

/// Tries that no packet reads, and what is in them.
struct Replaced {
    table: Arc<Table>,
    v4: Trie<V4>,
    v6: Trie<V6>,
}

impl Reaper {
    /// Starts the thread, which ends when the reaper is dropped and all is freed.
    pub(super) fn start() -> Result<Self> {
        let (sender, queue) = mpsc::channel();
        let run = move || {
            // Nobody waits for it, and the memory is enough for both tables.
            priority::set(priority::UNNOTICED);
            while let Ok(replaced) = queue.recv() {
                empty(&replaced);
            }
        };
        thread::Builder::new().name("reaper".to_owned()).spawn(run).context("cannot start a thread")?;
        Ok(Self(sender))
    }

    /// Frees tries that no packet reads, which hold no more than the prefixes of `table`.
    pub(super) fn take(&self, table: Arc<Table>, v4: Trie<V4>, v6: Trie<V6>) {
        // Without the thread the tries are dropped here.
        let _ = self.0.send(Replaced { table, v4, v6 });
    }
}

/// Deletes the elements. What cannot be deleted is freed with the trie.
fn empty(replaced: &Replaced) {
    let Replaced { table, v4, v6 } = replaced;
    let (mut keys_v4, mut keys_v6) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
    let mut last = None;
    for prefix in table.routes.keys().map(|key| key.prefix) {
        if last.replace(prefix) == Some(prefix) {
            continue;
        }
        let done = match prefix {
            IpNet::V4(net) => add(v4, &mut keys_v4, key_v4(net)),
            IpNet::V6(net) => add(v6, &mut keys_v6, key_v6(net)),
        };
        if done.is_err() {
            return;
        }
    }
}

fn add<K: Pod>(trie: &Trie<K>, keys: &mut Vec<Key<K>>, key: Key<K>) -> io::Result<()> {
    keys.push(key);
    if keys.len() < BATCH {
        return Ok(());
    }
    let deleted = trie.remove_all(keys);
    keys.clear();
    deleted
}
