//! Maps `POOLS`, `POOL_MEMBERS` and `POOL_ADDRESSES`.
//!
//! A pool address keeps its element of `POOL_ADDRESSES` as long as it is in its pool, also across daemons:
//! sessions name it.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    os::fd::AsFd as _,
};

use anyhow::{Context as _, Result};
use aya::maps::{Array, IterableMap as _, MapData};
use gateway_common::{
    address::{Address, MAPPING, POOL},
    family,
    limit::Limit,
    pool::{
        DRAINED, ENDPOINT_INDEPENDENT, IN_USE, MAX_POOL_ADDRESSES, MAX_POOL_MEMBERS, MAX_POOLS, OF_HOST,
        Pool, PoolAddress, REFUSE_ICMP, REFUSE_RESET,
    },
};
use ipnet::IpNet;

use super::{space::Space, sys};
use crate::{
    dataplane::Host,
    model::{self, Mapping, Refuse},
};

pub(super) struct Pools {
    records: Array<MapData, Pool>,
    members: Array<MapData, u32>,
    addresses: Array<MapData, PoolAddress>,
    numbers: BTreeMap<String, u32>,
    /// Elements of `POOL_ADDRESSES`, with what they hold.
    elements: HashMap<IpAddr, (u32, PoolAddress)>,
    runs: BTreeMap<String, (u32, u32)>,
    pool_space: Space,
    address_space: Space,
    member_space: Space,
}

impl Pools {
    /// Takes the maps over, with the numbers that they hold.
    pub(super) fn new(
        pools: Array<MapData, Pool>,
        members: Array<MapData, u32>,
        addresses: Array<MapData, PoolAddress>,
        half: u32,
    ) -> Result<Self> {
        let mut pool_space = Space::new("pools", 0, MAX_POOLS);
        let mut address_space = Space::new("pool addresses", 0, MAX_POOL_ADDRESSES);
        let mut elements = HashMap::new();
        let written: Vec<PoolAddress> =
            sys::elements(addresses.map().fd().as_fd()).context("cannot read the pool addresses")?;
        for (element, address) in (0..).zip(written) {
            if address.flags & IN_USE != 0 {
                elements.insert(family::to_ip(&address.address), (element, address));
                address_space.take(element);
                pool_space.take(address.pool);
            }
        }
        let half_size = MAX_POOL_MEMBERS / 2;
        Ok(Self {
            records: pools,
            members,
            addresses,
            numbers: BTreeMap::new(),
            elements,
            runs: BTreeMap::new(),
            pool_space,
            address_space,
            member_space: Space::new("pool members", half * half_size, (half + 1) * half_size),
        })
    }

    /// Numbers of pools by name.
    pub(super) fn numbers(&self) -> &BTreeMap<String, u32> {
        &self.numbers
    }

    /// Elements of `POOL_ADDRESSES`.
    pub(super) fn elements(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.elements.iter().map(|(address, (element, _))| (*address, *element))
    }

    /// What map `ADDRESSES` says of the pools' addresses.
    pub(super) fn meanings(&self) -> impl Iterator<Item = (IpAddr, Address)> {
        self.elements.iter().map(|(address, (element, value))| {
            let mapping = if value.flags & ENDPOINT_INDEPENDENT == 0 { 0 } else { MAPPING };
            (*address, Address { flags: POOL | mapping, index: *element })
        })
    }

    /// Writes the pools of `to`. New flows use them at once; addresses that left keep their elements, for
    /// their sessions, until [`Pools::remove_unused`].
    pub(super) fn write(&mut self, to: &BTreeMap<String, model::Pool>, host: &Host) -> Result<()> {
        let of_host: HashSet<IpAddr> = host.addresses().map(IpNet::addr).collect();
        for space in [&mut self.pool_space, &mut self.address_space, &mut self.member_space] {
            space.begin_change();
        }
        for pool in to.values() {
            let number = self.number(pool)?;
            let length = pool.addresses.len() as u32;
            let start = self.member_space.run(length)?;
            let mapping = match pool.mapping {
                Mapping::EndpointDependent => 0,
                Mapping::EndpointIndependent => ENDPOINT_INDEPENDENT,
            };
            let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) =
                pool.addresses.iter().copied().partition(IpAddr::is_ipv4);
            for (at, address) in (start..).zip(v4.iter().chain(&v6)) {
                let flag = |condition, flag| if condition { flag } else { 0 };
                let flags = IN_USE
                    | mapping
                    | flag(of_host.contains(address), OF_HOST)
                    | flag(pool.drained.contains(address), DRAINED);
                let mss = u32::from(pool.mss);
                let value = PoolAddress { address: family::from_ip(*address), pool: number, flags, mss };
                let element = self.element(*address, value)?;
                self.members.set(at, element, 0).context("cannot write a pool member")?;
            }
            let value = Pool {
                first: start,
                v4: v4.len() as u16,
                v6: v6.len() as u16,
                port_low: pool.ports.low,
                port_high: pool.ports.high,
                flags: mapping
                    | match pool.refuse {
                        Refuse::Drop => 0,
                        Refuse::Reset => REFUSE_RESET,
                        Refuse::Icmp => REFUSE_ICMP,
                    },
                limit: limit(pool),
            };
            self.records.set(number, value, 0).context("cannot write a pool")?;
            if let Some((start, length)) = self.runs.insert(pool.name.clone(), (start, length)) {
                self.member_space.give_back(start, length);
            }
        }
        Ok(())
    }

    /// Removes pools and addresses that `to` does not have. Their sessions end with the next generation.
    pub(super) fn remove_unused(&mut self, to: &BTreeMap<String, model::Pool>) -> Result<()> {
        let kept: HashMap<IpAddr, &str> = to
            .values()
            .flat_map(|pool| pool.addresses.iter().map(|address| (*address, pool.name.as_str())))
            .collect();
        let unused: Vec<IpAddr> =
            self.elements.keys().filter(|address| !kept.contains_key(*address)).copied().collect();
        for address in unused {
            if let Some((element, _)) = self.elements.remove(&address) {
                self.addresses
                    .set(element, PoolAddress::default(), 0)
                    .context("cannot clear a pool address")?;
                self.address_space.give_back(element, 1);
            }
        }
        let gone: Vec<String> = self.numbers.keys().filter(|name| !to.contains_key(*name)).cloned().collect();
        for name in gone {
            if let Some(number) = self.numbers.remove(&name) {
                self.records.set(number, Pool::default(), 0).context("cannot clear a pool")?;
                self.pool_space.give_back(number, 1);
            }
            if let Some((start, length)) = self.runs.remove(&name) {
                self.member_space.give_back(start, length);
            }
        }
        Ok(())
    }

    /// The number of a pool: the one it has, or that its addresses had under another daemon.
    fn number(&mut self, pool: &model::Pool) -> Result<u32> {
        if let Some(number) = self.numbers.get(&pool.name) {
            return Ok(*number);
        }
        let taken: Vec<u32> = self.numbers.values().copied().collect();
        let inherited = pool
            .addresses
            .iter()
            .filter_map(|address| self.elements.get(address).map(|(_, value)| value.pool))
            .find(|number| !taken.contains(number));
        let number = match inherited {
            Some(number) => number,
            None => self.pool_space.one()?,
        };
        self.numbers.insert(pool.name.clone(), number);
        Ok(number)
    }

    fn element(&mut self, address: IpAddr, value: PoolAddress) -> Result<u32> {
        let element = match self.elements.get(&address) {
            Some((element, same)) if *same == value => return Ok(*element),
            Some((element, _)) => *element,
            None => self.address_space.one()?,
        };
        self.addresses.set(element, value, 0).context("cannot write a pool address")?;
        self.elements.insert(address, (element, value));
        Ok(element)
    }
}

/// What each address of a pool may open towards each destination.
pub(super) fn limit(pool: &model::Pool) -> Limit {
    let limits = &pool.per_destination;
    Limit::new(limits.rate, limits.burst(), limits.concurrent)
}
