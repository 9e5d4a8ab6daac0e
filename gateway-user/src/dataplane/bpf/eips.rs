//! Map `EIPS`: which outside address stands for which inside host.

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
}

impl Eips {
    /// Takes the map over, with what it holds.
    pub(super) fn new(map: maps::HashMap<MapData, EipKey, MappedAddress>) -> Result<Self> {
        let written = map.iter().collect::<Result<_, _>>().context("cannot read map EIPS")?;
        Ok(Self { map, written })
    }

    /// How many EIPs there are.
    pub(super) fn count(&self) -> usize {
        self.written.len() / 2
    }

    /// Writes the EIPs of `to`, both directions of each.
    pub(super) fn write(&mut self, to: &BTreeMap<IpAddr, Eip>) -> Result<()> {
        for (key, value) in elements(to) {
            if self.written.get(&key) != Some(&value) {
                self.map.insert(key, value, 0).context("cannot write an EIP")?;
                self.written.insert(key, value);
            }
        }
        Ok(())
    }

    /// Removes what [`Eips::write`] would not write. From then on their packets are dropped.
    pub(super) fn remove_unused(&mut self, to: &BTreeMap<IpAddr, Eip>) -> Result<()> {
        let wanted: HashMap<_, _> = elements(to).collect();
        let unused: Vec<EipKey> =
            self.written.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
        for key in unused {
            self.map.remove(&key).context("cannot remove an EIP")?;
            self.written.remove(&key);
        }
        Ok(())
    }
}

fn elements(eips: &BTreeMap<IpAddr, Eip>) -> impl Iterator<Item = (EipKey, MappedAddress)> {
    eips.values().flat_map(|eip| {
        let (address, host) = (family::from_ip(eip.address), family::from_ip(eip.host));
        [(EipKey::of_host(host), address), (EipKey::of_eip(address), host)]
    })
}
