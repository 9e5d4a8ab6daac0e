//! A trie of routes, one family of a table.

use std::{
    io,
    marker::PhantomData,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::lpm_trie::Key};
use gateway_common::{family, route::Route};
use ipnet::{Ipv4Net, Ipv6Net};

use super::sys;

/// Elements that are entered with one system call.
const BATCH: usize = 4_096;

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

/// Elements on their way into a trie.
pub(super) struct Batch<'a, K> {
    trie: &'a Trie<K>,
    keys: Vec<Key<K>>,
    routes: Vec<Route>,
}

impl<'a, K: Pod> Batch<'a, K> {
    pub(super) fn new(trie: &'a Trie<K>) -> Self {
        Self { trie, keys: Vec::new(), routes: Vec::new() }
    }

    /// Enters an element, now or with the others.
    pub(super) fn add(&mut self, key: Key<K>, route: Route) -> io::Result<()> {
        self.keys.push(key);
        self.routes.push(route);
        if self.keys.len() == BATCH { self.flush() } else { Ok(()) }
    }

    /// Enters what is under way.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let (mut done, mut attempts) = (0, 0);
        while done < self.keys.len() {
            let (keys, routes) = (&self.keys[done..], &self.routes[done..]);
            let (entered, result) = sys::update_batch(self.trie.fd.as_fd(), keys, routes);
            done += entered;
            let Err(error) = result else { continue };
            match error.raw_os_error() {
                // Kernels before 5.13.
                Some(sys::ENOTSUPP) => {
                    self.trie.insert(&self.keys[done], &self.routes[done])?;
                    done += 1;
                }
                Some(libc::ENOMEM) if attempts < ATTEMPTS => {
                    attempts += 1;
                    thread::sleep(Duration::from_millis(1));
                }
                _ => return Err(error),
            }
        }
        self.keys.clear();
        self.routes.clear();
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
