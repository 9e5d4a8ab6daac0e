//! Map `EIPS`: which outside address stands for which inside host.
//!
//! The map has two halves. A change is written into the one that is not in force, and comes into force with one word,
//! [`gateway_common::config::Policy::eips`]. So no packet meets an EIP that is two hosts' at a time, nor a host with
//! two EIPs. The half before stays as it was until the next change, for packets that are under way.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use aya::maps::{self, MapData};
use gateway_common::{
    eip::EipKey,
    family::{self, MappedAddress},
};

use crate::model::Eip;

pub(super) struct Eips {
    map: maps::HashMap<MapData, EipKey, MappedAddress>,
    written: HashMap<EipKey, MappedAddress>,
    /// The half in force.
    half: u16,
}

impl Eips {
    /// Takes the map over, with what it holds; `half` is in force.
    pub(super) fn new(map: maps::HashMap<MapData, EipKey, MappedAddress>, half: u32) -> Result<Self> {
        let written = map.iter().collect::<Result<_, _>>().context("cannot read map EIPS")?;
        Ok(Self { map, written, half: half.min(1) as u16 })
    }

    /// How many EIPs there are.
    pub(super) fn count(&self) -> usize {
        self.in_half(self.half).count() / 2
    }

    /// Writes the EIPs of `to`, both directions of each, and returns the half to put in force.
    pub(super) fn write(&mut self, to: &BTreeMap<IpAddr, Eip>) -> Result<u32> {
        if self.holds(to, self.half) {
            return Ok(self.half.into());
        }
        let half = 1 - self.half;
        let wanted: HashMap<_, _> = elements(to, half).collect();
        let unused: Vec<EipKey> =
            self.in_half(half).map(|(key, _)| *key).filter(|key| !wanted.contains_key(key)).collect();
        for key in unused {
            self.map.remove(&key).context("cannot remove an EIP")?;
            self.written.remove(&key);
        }
        for (key, value) in wanted {
            if self.written.get(&key) != Some(&value) {
                self.map.insert(key, value, 0).context("cannot write an EIP")?;
                self.written.insert(key, value);
            }
        }
        Ok(half.into())
    }

    /// Notes that the half that [`Eips::write`] named last is in force.
    pub(super) fn commit(&mut self, half: u32) {
        self.half = half.min(1) as u16;
    }

    fn holds(&self, eips: &BTreeMap<IpAddr, Eip>, half: u16) -> bool {
        self.in_half(half).count() == 2 * eips.len()
            && elements(eips, half).all(|(key, value)| self.written.get(&key) == Some(&value))
    }

    fn in_half(&self, half: u16) -> impl Iterator<Item = (&EipKey, &MappedAddress)> {
        self.written.iter().filter(move |(key, _)| key.half == half)
    }
}

fn elements(eips: &BTreeMap<IpAddr, Eip>, half: u16) -> impl Iterator<Item = (EipKey, MappedAddress)> {
    eips.values().flat_map(move |eip| {
        let (address, host) = (family::from_ip(eip.address), family::from_ip(eip.host));
        [(EipKey::of_host(host, half), address), (EipKey::of_eip(address, half), host)]
    })
}
