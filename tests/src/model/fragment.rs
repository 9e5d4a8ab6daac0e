//! Datagrams in fragments.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use gateway_common::DropReason;

use super::{
    Step, Stop,
    nat::Side,
    wire::{Fragment, Ip, Shown},
};

/// The datagrams whose first fragment has been translated. Nothing is forgotten: a scenario is over before
/// anything expires.
#[derive(Default)]
pub(super) struct Datagrams {
    known: HashMap<Key, Datagram>,
    /// Identifications that were given.
    given: HashSet<(IpAddr, u8, bool, u32)>,
}

/// Source, destination, identification, protocol in IPv4, and whether it comes from inside.
type Key = (IpAddr, IpAddr, u32, u8, bool);

struct Datagram {
    shown: Shown,
    /// Where the data of the first fragment ends.
    end: usize,
    /// The identification that the programs chose, once it is seen.
    identification: Option<u32>,
}

impl Datagrams {
    /// What is known of a later fragment.
    pub(super) fn complete(&self, mut ip: Ip, side: Side) -> Result<Ip, DropReason> {
        if ip.fragment == Fragment::Later
            && let Some(datagram) = self.known.get(&key(&ip, side))
        {
            if ip.part.offset < datagram.end || ip.part_end() > 65_535 {
                return Err(DropReason::Malformed);
            }
            // Of the next headers that fragments name, the first one's counts (RFC 8200 4.5).
            ip.proto = datagram.shown.proto;
            ip.shown = Some(datagram.shown);
        }
        Ok(ip)
    }

    /// Takes note of a first fragment.
    pub(super) fn teach(&mut self, ip: &Ip, side: Side) -> Result<(), DropReason> {
        let Some(shown) = ip.flow().filter(|_| ip.fragment == Fragment::First) else { return Ok(()) };
        let end = ip.part_end();
        let known = self.known.entry(key(ip, side)).or_insert(Datagram { shown, end, identification: None });
        if known.shown == shown && known.end == end { Ok(()) } else { Err(DropReason::Malformed) }
    }

    /// The identification that a fragment leaves with. What the programs chose is in `output`, the packet as they
    /// sent it; no other datagram with the server may have had it.
    pub(super) fn identification(&mut self, ip: &Ip, side: Side, output: Option<&Ip>) -> Step<Option<u32>> {
        let Some(datagram) = self.known.get_mut(&key(ip, side)).filter(|_| ip.fragment != Fragment::Whole)
        else {
            return Ok(None);
        };
        if datagram.identification.is_none()
            && let Some(output) = output
        {
            let (inside, chosen) = (side == Side::Inside, output.part.identification);
            let server = if inside { ip.destination } else { ip.source };
            if !self.given.insert((server, key_proto(ip), inside, chosen)) {
                return Err(Stop::Illegal(format!("the identification {chosen:#x} is given again")));
            }
            datagram.identification = Some(chosen);
        }
        Ok(datagram.identification)
    }
}

fn key(ip: &Ip, side: Side) -> Key {
    (ip.source, ip.destination, ip.part.identification, key_proto(ip), side == Side::Inside)
}

fn key_proto(ip: &Ip) -> u8 {
    if ip.is_v4() { ip.proto } else { 0 }
}
