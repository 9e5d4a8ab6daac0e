//! Map `ADDRESSES`: the addresses of the host and of the pools, and EIPs.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context as _, Result};
use aya::maps::{self, MapData};
use gateway_common::{
    address::{Address, BROADCAST, EIP, LOCAL},
    family::{self, MappedAddress},
};
use ipnet::IpNet;

use crate::dataplane::Host;

pub(super) struct Addresses {
    map: maps::HashMap<MapData, MappedAddress, Address>,
    written: HashMap<IpAddr, Address>,
}

impl Addresses {
    /// Takes the map over, with what it holds.
    pub(super) fn new(map: maps::HashMap<MapData, MappedAddress, Address>) -> Result<Self> {
        let mut written = HashMap::new();
        for element in &map {
            let (address, value) = element.context("cannot read map ADDRESSES")?;
            written.insert(family::to_ip(&address), value);
        }
        Ok(Self { map, written })
    }

    /// Enters every address of the host, of `pools` (with what it means), and of `eips`.
    pub(super) fn add<'a>(
        &mut self,
        host: &Host,
        pools: impl Iterator<Item = (IpAddr, Address)>,
        eips: impl Iterator<Item = &'a IpAddr>,
    ) -> Result<()> {
        self.enter(wanted(host, pools, eips))
    }

    /// Removes what [`Addresses::add`] would not enter.
    pub(super) fn remove_unused<'a>(
        &mut self,
        host: &Host,
        pools: impl Iterator<Item = (IpAddr, Address)>,
        eips: impl Iterator<Item = &'a IpAddr>,
    ) -> Result<()> {
        let wanted = wanted(host, pools, eips);
        let unused: Vec<IpAddr> =
            self.written.keys().filter(|address| !wanted.contains_key(*address)).copied().collect();
        for address in unused {
            self.map
                .remove(&family::from_ip(address))
                .with_context(|| format!("cannot remove address {address}"))?;
            self.written.remove(&address);
        }
        // An address of the host that was a pool's, too, means less than before.
        self.enter(wanted)
    }

    fn enter(&mut self, wanted: HashMap<IpAddr, Address>) -> Result<()> {
        for (address, value) in wanted {
            if self.written.get(&address) != Some(&value) {
                self.map
                    .insert(family::from_ip(address), value, 0)
                    .with_context(|| format!("cannot enter address {address}"))?;
                self.written.insert(address, value);
            }
        }
        Ok(())
    }
}

fn wanted<'a>(
    host: &Host,
    pools: impl Iterator<Item = (IpAddr, Address)>,
    eips: impl Iterator<Item = &'a IpAddr>,
) -> HashMap<IpAddr, Address> {
    let mut wanted: HashMap<IpAddr, Address> = HashMap::new();
    for net in host.addresses() {
        wanted.entry(net.addr()).or_default().flags |= LOCAL;
        if let Some(broadcast) = broadcast(net) {
            wanted.entry(broadcast).or_default().flags |= BROADCAST;
        }
    }
    for (address, meaning) in pools {
        let value = wanted.entry(address).or_default();
        value.flags |= meaning.flags;
        value.index = meaning.index;
    }
    for address in eips {
        wanted.entry(*address).or_default().flags |= EIP;
    }
    wanted
}

/// The broadcast address of a connected subnet; links of two hosts (RFC 3021) have none.
fn broadcast(net: &IpNet) -> Option<IpAddr> {
    match net {
        IpNet::V4(net) if net.prefix_len() < 31 => Some(Ipv4Addr::into(net.broadcast())),
        IpNet::V4(_) | IpNet::V6(_) => None,
    }
}
