//! Map `LOG_NAMES`: what the numbers in records stand for.
//!
//! A session is recorded under a number for as long as it lives, and a record may be read long after its route is gone.
//! So a number keeps its meaning for as long as the maps are there: the next daemon finds it in the map, and the same
//! names get the same number again. Where the numbers come to their end, the routes of a table to one target share one,
//! and their records name no route.
//!
//! Numbers are not taken back. A session keeps its own for days, and a record until it is read: whether anything still
//! refers to a number could be told only by a walk through all sessions in the middle of a change, and a record that names
//! a route that it never had is worse than one that names none.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock},
};

use anyhow::{Context as _, Result};
use aya::maps::{HashMap as Map, MapData};
use gateway_common::record::{LOG_NAME_LEN, MAX_LOG_NAMES};

use crate::{
    dataplane::LogNames,
    model::{RouteKey, Target},
};

/// Numbers kept back for the routes that share one.
const SHARED: u32 = 4_096;

/// What numbers stand for. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Meanings(Arc<RwLock<HashMap<u16, Arc<LogNames>>>>);

impl Meanings {
    /// What a number stands for.
    pub(super) fn of(&self, number: u16) -> Option<Arc<LogNames>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    fn set(&self, number: u16, names: Arc<LogNames>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(number, names);
    }
}

/// The side that gives numbers out.
pub(super) struct Names {
    map: Map<MapData, u32, [u8; LOG_NAME_LEN]>,
    numbers: HashMap<Arc<LogNames>, u16>,
    meanings: Meanings,
    /// The next number.
    next: u32,
}

impl Names {
    /// Takes the map over.
    pub(super) fn new(map: Map<MapData, u32, [u8; LOG_NAME_LEN]>) -> Result<Self> {
        let mut names = Self { map, numbers: HashMap::new(), meanings: Meanings::default(), next: 1 };
        let known: Vec<_> = names.map.iter().collect();
        for element in known {
            let (number, text) = element.context("cannot read the names of records")?;
            names.next = names.next.max(number + 1);
            if let Some(known) = decode(&text) {
                names.remember(number as u16, Arc::new(known));
            }
        }
        Ok(names)
    }

    /// What numbers stand for, for readers.
    pub(super) fn meanings(&self) -> Meanings {
        self.meanings.clone()
    }

    /// The number that a route is recorded under.
    pub(super) fn number(&mut self, table: &str, key: &RouteKey, target: &Target) -> Result<u16> {
        let mut names =
            LogNames { table: table.to_owned(), route: Some(key.to_string()), target: target.to_string() };
        if let Some(number) = self.numbers.get(&names) {
            return Ok(*number);
        }
        if self.next + SHARED > MAX_LOG_NAMES {
            names.route = None;
            if let Some(number) = self.numbers.get(&names) {
                return Ok(*number);
            }
        }
        self.give(names)
    }

    fn give(&mut self, names: LogNames) -> Result<u16> {
        // The last one means nothing.
        if self.next >= MAX_LOG_NAMES {
            return Ok(MAX_LOG_NAMES as u16);
        }
        let number = self.next;
        self.map.insert(number, encode(&names), 0).context("cannot write the names of records")?;
        self.next += 1;
        self.remember(number as u16, Arc::new(names));
        Ok(number as u16)
    }

    /// The number of what no route covers.
    pub(super) fn unrouted(&mut self) -> Result<u16> {
        let names = LogNames { table: String::new(), route: None, target: String::new() };
        match self.numbers.get(&names) {
            Some(number) => Ok(*number),
            None => self.give(names),
        }
    }

    fn remember(&mut self, number: u16, names: Arc<LogNames>) {
        self.numbers.insert(Arc::clone(&names), number);
        self.meanings.set(number, names);
    }
}

/// Table, route and target, each followed by a zero byte. All of them fit: names have 63 bytes at most.
fn encode(LogNames { table, route, target }: &LogNames) -> [u8; LOG_NAME_LEN] {
    let mut text = [0; LOG_NAME_LEN];
    let words = [table, route.as_deref().unwrap_or_default(), target];
    let bytes = words.into_iter().flat_map(|word| word.bytes().chain([0]));
    text.iter_mut().zip(bytes).for_each(|(place, byte)| *place = byte);
    text
}

fn decode(text: &[u8; LOG_NAME_LEN]) -> Option<LogNames> {
    let mut words = text.split(|byte| *byte == 0).map(|word| String::from_utf8(word.to_vec()).ok());
    let (table, route, target) = (words.next()??, words.next()??, words.next()??);
    Some(LogNames { table, route: Some(route).filter(|route| !route.is_empty()), target })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_were_written() {
        let long = "n".repeat(63);
        for route in [Some("2001:db8:1234:5678:9abc:def0:1234:5678/128 proto tcp dport 10000-60000"), None] {
            let names = LogNames {
                table: long.clone(),
                route: route.map(str::to_owned),
                target: format!("pool {long}"),
            };
            assert_eq!(decode(&encode(&names)), Some(names));
        }
    }
}
