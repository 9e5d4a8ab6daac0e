//! The session tables as user space reads them: IPv4's is an array of buckets ([`gateway_common::table`]), IPv6's a
//! hash map of the kernel's.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result};
use aya::{Pod, maps::Array};
use gateway_common::{
    Family, V4, V6,
    config::Config,
    session::{Session, Tuple},
    table::{self, Bucket, SLOTS},
};

use super::{
    pins::Pins,
    sys::{self, Cursor},
};

/// The table of a family.
pub(super) struct SessionTable<F: Family> {
    map: OwnedFd,
    buckets: Vec<Bucket<V4>>,
    indices: Vec<u32>,
    secret: u32,
    count: u32,
    family: std::marker::PhantomData<F>,
}

/// How the sessions of a family are kept.
pub(super) trait Stored: Family + Sized
where
    Tuple<Self>: Pod,
    Session<Self>: Pod,
{
    /// Name of the map.
    const MAP: &'static str;

    /// See [`SessionTable::read`].
    fn read(
        table: &mut SessionTable<Self>,
        cursor: &mut Cursor,
        elements: &mut Vec<(Tuple<Self>, Session<Self>)>,
        max: usize,
    ) -> io::Result<bool>;

    /// See [`SessionTable::find`].
    fn find(table: &SessionTable<Self>, tuple: &Tuple<Self>) -> io::Result<Option<Session<Self>>>;
}

impl<F: Stored> SessionTable<F>
where
    Tuple<F>: Pod,
    Session<F>: Pod,
{
    /// The pinned table. `CONFIG` has been written.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        let config: Array<_, Config> = pins.open("CONFIG")?;
        let config = config.get(&0, 0).context("cannot read the configuration")?;
        Ok(Self {
            map: sys::open_pin(&pins.map(F::MAP))?,
            buckets: Vec::new(),
            indices: Vec::new(),
            secret: config.secret,
            count: config.buckets,
            family: std::marker::PhantomData,
        })
    }

    /// Another reader of the same table.
    pub(super) fn try_clone(&self) -> Result<Self> {
        Ok(Self {
            map: self.map.try_clone()?,
            buckets: Vec::new(),
            indices: Vec::new(),
            family: std::marker::PhantomData,
            ..*self
        })
    }

    /// Reads some `max` elements from `cursor` on. Returns `false` at the end of the table, with the cursor back at its
    /// beginning. Elements added or removed meanwhile may be seen or not; all others are seen once.
    pub(super) fn read(
        &mut self,
        cursor: &mut Cursor,
        elements: &mut Vec<(Tuple<F>, Session<F>)>,
        max: usize,
    ) -> Result<bool> {
        elements.clear();
        F::read(self, cursor, elements, max).context("cannot read the session table")
    }

    /// The element under `tuple`.
    pub(super) fn find(&self, tuple: &Tuple<F>) -> Result<Option<Session<F>>> {
        F::find(self, tuple).context("cannot read a session")
    }

    fn map(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Stored for V4 {
    const MAP: &'static str = "SESSIONS_V4";

    fn read(
        table: &mut SessionTable<V4>,
        cursor: &mut Cursor,
        elements: &mut Vec<(Tuple<V4>, Session<V4>)>,
        max: usize,
    ) -> io::Result<bool> {
        let max = max.div_ceil(SLOTS);
        let SessionTable { map, buckets, indices, secret, count, .. } = table;
        let more = sys::lookup_batch(map.as_fd(), cursor, indices, buckets, max)?;
        for (index, bucket) in indices.iter().zip(&*buckets) {
            let there = bucket.elements(*index, *secret, *count);
            elements.extend(there.map(|slot| (slot.tuple, slot.session)));
        }
        Ok(more)
    }

    fn find(table: &SessionTable<V4>, tuple: &Tuple<V4>) -> io::Result<Option<Session<V4>>> {
        let place = table::place(tuple.words(), table.secret, table.count);
        for index in [place.first, place.second] {
            let bucket: Option<Bucket<V4>> = sys::lookup(table.map(), &index)?;
            let bucket = bucket.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let mut there = bucket.elements(index, table.secret, table.count);
            if let Some(slot) = there.find(|slot| slot.tuple == *tuple) {
                return Ok(Some(slot.session));
            }
        }
        Ok(None)
    }
}

impl Stored for V6 {
    const MAP: &'static str = "SESSIONS_V6";

    fn read(
        table: &mut SessionTable<V6>,
        cursor: &mut Cursor,
        elements: &mut Vec<(Tuple<V6>, Session<V6>)>,
        max: usize,
    ) -> io::Result<bool> {
        let (mut tuples, mut sessions) = (Vec::new(), Vec::new());
        let more = sys::lookup_batch(table.map(), cursor, &mut tuples, &mut sessions, max)?;
        elements.extend(tuples.into_iter().zip(sessions));
        Ok(more)
    }

    fn find(table: &SessionTable<V6>, tuple: &Tuple<V6>) -> io::Result<Option<Session<V6>>> {
        sys::lookup(table.map(), tuple)
    }
}
