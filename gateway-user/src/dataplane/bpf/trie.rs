//! A trie of routes, one family of a table.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    sync::mpsc::{SyncSender, sync_channel},
    thread::{self, Scope, ScopedJoinHandle},
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::lpm_trie::Key};
use gateway_common::{family, route::Route};
use ipnet::{Ipv4Net, Ipv6Net};

use super::sys;

/// Elements that are entered with one system call.
const BATCH: usize = 4_096;

/// Batches that may wait for the thread that enters them.
const AHEAD: usize = 4;

/// How often a batch is tried for which the kernel has no memory at the moment: it refills its caches at once.
const ATTEMPTS: usize = 100;

/// IPv4 address, network byte order.
pub(super) type V4 = u32;
/// IPv6 address, words in network byte order.
pub(super) type V6 = [u32; 4];

/// A trie of keys `K`.
pub(super) struct Trie<K> {
    fd: OwnedFd,
    key: PhantomData<K>,
}

impl<K: Pod> Trie<K> {
    /// An empty trie.
    pub(super) fn create(capacity: u32) -> Result<Self> {
        let fd = sys::create_trie::<Key<K>, Route>(capacity).context("cannot make a table")?;
        Ok(Self { fd, key: PhantomData })
    }

    /// Makes it the element `slot` of an array of tries.
    pub(super) fn enter(&self, outer: BorrowedFd<'_>, slot: u32) -> io::Result<()> {
        sys::update(outer, &slot, &self.fd.as_raw_fd())
    }

    /// Enters an element, or replaces it.
    pub(super) fn insert(&self, key: &Key<K>, route: &Route) -> io::Result<()> {
        sys::update(self.fd.as_fd(), key, route)
    }

    /// Removes an element, if it is there.
    pub(super) fn remove(&self, key: &Key<K>) -> io::Result<()> {
        match sys::delete(self.fd.as_fd(), key) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Removes elements, in order, up to the first that is not there.
    pub(super) fn remove_all(&self, keys: &[Key<K>]) -> io::Result<()> {
        sys::delete_batch(self.fd.as_fd(), keys)
    }
}

/// Elements on their way into a trie. Where there are many of them, a thread enters them while others are added: the
/// kernel takes longer to enter an element than user space to make it.
pub(super) struct Batch<'scope, 'env, K> {
    scope: &'scope Scope<'scope, 'env>,
    trie: &'env Trie<K>,
    elements: Elements<K>,
    thread: Option<Entering<'scope, K>>,
}

/// Keys and their values.
struct Elements<K> {
    keys: Vec<Key<K>>,
    routes: Vec<Route>,
}

/// The thread that enters elements, and the way to it; it ends at the first error.
type Entering<'scope, K> = (SyncSender<Elements<K>>, ScopedJoinHandle<'scope, io::Result<()>>);

impl<'scope, 'env, K: Pod + Send + Sync> Batch<'scope, 'env, K> {
    pub(super) fn new(scope: &'scope Scope<'scope, 'env>, trie: &'env Trie<K>) -> Self {
        Self { scope, trie, elements: Elements::new(), thread: None }
    }

    /// Enters an element, now or with the others.
    pub(super) fn add(&mut self, key: Key<K>, route: Route) -> io::Result<()> {
        self.elements.keys.push(key);
        self.elements.routes.push(route);
        if self.elements.keys.len() < BATCH {
            return Ok(());
        }
        let full = std::mem::replace(&mut self.elements, Elements::new());
        let (sender, _) = self.thread.get_or_insert_with(|| {
            let (sender, receiver) = sync_channel::<Elements<K>>(AHEAD);
            let trie = self.trie;
            // It has the priority of whoever adds them, as every thread that another one starts.
            let enter = move || receiver.into_iter().try_for_each(|elements| elements.enter(trie));
            (sender, self.scope.spawn(enter))
        });
        // It has failed, and says how.
        if sender.send(full).is_err() { self.join() } else { Ok(()) }
    }

    /// Waits until all are entered.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.join()?;
        self.elements.enter(self.trie)
    }

    fn join(&mut self) -> io::Result<()> {
        let Some((sender, thread)) = self.thread.take() else { return Ok(()) };
        drop(sender);
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that enters elements has failed")))
    }
}

impl<K: Pod> Elements<K> {
    fn new() -> Self {
        Self { keys: Vec::new(), routes: Vec::new() }
    }

    fn enter(&self, trie: &Trie<K>) -> io::Result<()> {
        let (mut done, mut attempts) = (0, 0);
        while done < self.keys.len() {
            let (keys, routes) = (&self.keys[done..], &self.routes[done..]);
            let (entered, result) = sys::update_batch(trie.fd.as_fd(), keys, routes);
            done += entered;
            let Err(error) = result else { continue };
            match error.raw_os_error() {
                // Kernels before 5.13.
                Some(sys::ENOTSUPP) => {
                    trie.insert(&self.keys[done], &self.routes[done])?;
                    done += 1;
                }
                Some(libc::ENOMEM) if attempts < ATTEMPTS => {
                    attempts += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                _ => return Err(error),
            }
        }
        Ok(())
    }
}

/// The key of an IPv4 prefix.
pub(super) fn key_v4(net: Ipv4Net) -> Key<V4> {
    Key::new(net.prefix_len().into(), u32::from(net.network()).to_be())
}

/// The key of an IPv6 prefix.
pub(super) fn key_v6(net: Ipv6Net) -> Key<V6> {
    Key::new(net.prefix_len().into(), family::from_ip(net.network().into()))
}
