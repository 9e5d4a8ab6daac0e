//! The kernel's neighbor table, as far as it tells when a MAC address that sessions remember is wrong.
//!
//! Sessions cache the MAC address of their next hop. Most neighbor events say nothing about it: an entry
//! turns from reachable to stale and back every half minute, and one that is dropped for lack of use still
//! has its host behind it. What counts is an entry that gets another MAC address, and one that stops
//! answering while the host's routes may know another way.

use std::collections::HashMap;

use anyhow::Context as _;
use rtnetlink::packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{
        NeighbourAddress, NeighbourAttribute, NeighbourExtFlags, NeighbourFlags, NeighbourMessage,
        NeighbourState,
    },
};

use super::{Neighbor, socket::Sockets};

type Mac = [u8; 6];

/// Entries without a counterpart in the kernel that are remembered at most, see [`Table::crowded`].
const REMEMBERED: usize = 16_384;

/// What is known of the neighbors.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<Neighbor, Entry>,
    gone: usize,
}

/// One neighbor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Whether and where it can be reached.
    pub(super) state: State,
    /// Whether the kernel keeps it resolved by itself (`NTF_EXT_MANAGED`).
    pub(super) managed: bool,
    /// Set by an operator or by another program that knows better than ARP or ND.
    pub(super) fixed: bool,
}

/// Whether and where a neighbor can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The kernel would send to this MAC address; `stale`: nobody has verified it for a while.
    Valid { mac: Mac, stale: bool },
    /// The kernel has no MAC address for it.
    Unresolved(Before),
    /// The kernel has forgotten it. Sessions may remember this MAC address.
    Gone { was: Mac },
}

/// What a neighbor was before it became unresolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Before {
    /// Never resolved: no session knows it.
    Unknown,
    /// It stopped answering, and sessions were sent to look for another way.
    Lost,
    /// Forgotten for lack of use. Sessions may remember this MAC address.
    Gone(Mac),
}

impl Table {
    /// Takes in an event (`removed`: `RTM_DELNEIGH`) or an element of a dump. Returns whether a next hop that
    /// a session remembers may be wrong.
    pub(super) fn observe(&mut self, message: &NeighbourMessage, removed: bool) -> bool {
        let Some(neighbor) = key(message) else { return false };
        if removed { self.remove(neighbor) } else { self.update(neighbor, entry(message)) }
    }

    /// Replaces everything by what the kernel says in a dump.
    pub(super) async fn resync(&mut self, sockets: &Sockets) -> anyhow::Result<()> {
        let request = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
        *self = sockets
            .dump(request, Self::default, |table, message| {
                if let RouteNetlinkMessage::NewNeighbour(message) = message {
                    table.observe(&message, false);
                }
            })
            .await
            .context("cannot read the neighbors of the host")?;
        Ok(())
    }

    /// What is known of one neighbor.
    pub(super) fn get(&self, neighbor: &Neighbor) -> Option<&Entry> {
        self.entries.get(neighbor)
    }

    /// Neighbors that nobody has verified for a while.
    pub(super) fn stale(&self) -> impl Iterator<Item = (&Neighbor, &Entry)> {
        self.entries.iter().filter(|(_, entry)| matches!(entry.state, State::Valid { stale: true, .. }))
    }

    /// Whether so many forgotten neighbors are remembered that the data plane should be told, so that they
    /// can be let go.
    pub(super) fn crowded(&self) -> bool {
        self.gone > REMEMBERED
    }

    /// The data plane was told, and will look up every next hop again: what they were does not matter.
    pub(super) fn told(&mut self) {
        self.entries.retain(|_, entry| !matches!(entry.state, State::Gone { .. }));
        self.gone = 0;
        for entry in self.entries.values_mut() {
            if matches!(entry.state, State::Unresolved(Before::Gone(_))) {
                entry.state = State::Unresolved(Before::Unknown);
            }
        }
    }

    fn update(&mut self, neighbor: Neighbor, mut now: Entry) -> bool {
        let before = self.entries.get(&neighbor).map(|entry| entry.state);
        let moved = match (before, now.state) {
            // No session knows it. (What the kernel tells of is never gone.)
            (None | Some(State::Unresolved(Before::Unknown)), _) | (_, State::Gone { .. }) => false,
            (
                Some(
                    State::Valid { mac: was, .. }
                    | State::Gone { was }
                    | State::Unresolved(Before::Gone(was)),
                ),
                State::Valid { mac, .. },
            ) => was != mac,
            // It answers again: what was sent another way may come back.
            (Some(State::Unresolved(Before::Lost)), State::Valid { .. }) => true,
            (Some(State::Valid { .. }), State::Unresolved(_)) => {
                now.state = State::Unresolved(Before::Lost);
                true
            }
            // Looked for after it was forgotten: that is no reason to think it has moved.
            (Some(State::Gone { was }), State::Unresolved(_)) => {
                now.state = State::Unresolved(Before::Gone(was));
                false
            }
            (Some(still @ State::Unresolved(Before::Lost | Before::Gone(_))), State::Unresolved(_)) => {
                now.state = still;
                false
            }
        };
        if matches!(before, Some(State::Gone { .. })) {
            self.gone -= 1;
        }
        self.entries.insert(neighbor, now);
        moved
    }

    fn remove(&mut self, neighbor: Neighbor) -> bool {
        let Some(entry) = self.entries.get_mut(&neighbor) else { return false };
        match entry.state {
            State::Valid { mac: was, .. } | State::Unresolved(Before::Gone(was)) => {
                entry.state = State::Gone { was };
                self.gone += 1;
            }
            State::Unresolved(Before::Unknown | Before::Lost) => {
                self.entries.remove(&neighbor);
            }
            State::Gone { .. } => {}
        }
        false
    }
}

/// The neighbor that a message is about and the MAC address that the kernel would send to, if it has one.
pub(super) fn valid(message: &NeighbourMessage) -> Option<(Neighbor, Mac)> {
    match entry(message).state {
        State::Valid { mac, .. } => Some((key(message)?, mac)),
        State::Unresolved(_) | State::Gone { .. } => None,
    }
}

/// Which neighbor a message is about; `None` for bridges' tables and proxy entries.
fn key(message: &NeighbourMessage) -> Option<Neighbor> {
    if message.header.family == AddressFamily::Bridge || message.header.flags.contains(NeighbourFlags::Proxy)
    {
        return None;
    }
    message.attributes.iter().find_map(|attribute| {
        let address = match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => (*address).into(),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => (*address).into(),
            _ => return None,
        };
        Some(Neighbor { ifindex: message.header.ifindex, address })
    })
}

fn entry(message: &NeighbourMessage) -> Entry {
    let mut mac = Mac::default();
    let mut managed = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().unwrap_or(mac),
            NeighbourAttribute::ExtFlags(flags) => managed = flags.contains(NeighbourExtFlags::Managed),
            _ => {}
        }
    }
    let state = match message.header.state {
        NeighbourState::Stale => State::Valid { mac, stale: true },
        NeighbourState::Reachable
        | NeighbourState::Delay
        | NeighbourState::Probe
        | NeighbourState::Noarp
        | NeighbourState::Permanent => State::Valid { mac, stale: false },
        _ => State::Unresolved(Before::Unknown),
    };
    let fixed = matches!(message.header.state, NeighbourState::Noarp | NeighbourState::Permanent)
        || message.header.flags.contains(NeighbourFlags::ExtLearned);
    Entry { state, managed, fixed }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];

    fn message(state: NeighbourState, mac: Option<Mac>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 2;
        message.header.state = state;
        message
            .attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 1].into())));
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    /// Whether the data plane has to be told after each of the steps (`None`: the entry is deleted).
    fn moves(steps: &[Option<(NeighbourState, Option<Mac>)>]) -> Vec<bool> {
        let mut table = Table::default();
        steps
            .iter()
            .map(|step| match *step {
                Some((state, mac)) => table.observe(&message(state, mac), false),
                None => table.observe(&message(Stale, Some(A)), true),
            })
            .collect()
    }

    use NeighbourState::{Delay, Failed, Incomplete, Probe, Reachable, Stale};

    #[test]
    fn verification_of_a_neighbor_moves_nothing() {
        let life = [Incomplete, Reachable, Stale, Delay, Probe, Reachable, Stale]
            .map(|state| Some((state, (state != Incomplete).then_some(A))));
        assert_eq!(moves(&life), [false; 7]);
    }

    #[test]
    fn another_mac_address_moves_sessions() {
        assert_eq!(moves(&[Some((Reachable, Some(A))), Some((Stale, Some(B)))]), [false, true]);
    }

    #[test]
    fn a_neighbor_that_stops_answering_and_returns_moves_sessions() {
        let life = [
            Some((Probe, Some(A))),
            Some((Failed, Some(A))),
            Some((Incomplete, None)),
            Some((Reachable, Some(A))),
        ];
        assert_eq!(moves(&life), [false, true, false, true]);
    }

    #[test]
    fn a_neighbor_that_never_answered_moves_nothing() {
        let life = [
            Some((Incomplete, None)),
            Some((Failed, None)),
            None,
            Some((Incomplete, None)),
            Some((Reachable, Some(A))),
        ];
        assert_eq!(moves(&life), [false; 5]);
    }

    #[test]
    fn a_forgotten_neighbor_is_remembered_until_sessions_have_looked_again() {
        let same = [Some((Stale, Some(A))), None, Some((Reachable, Some(A)))];
        assert_eq!(moves(&same), [false; 3]);
        let other = [Some((Stale, Some(A))), None, Some((Reachable, Some(B)))];
        assert_eq!(moves(&other), [false, false, true]);
        let asked =
            |mac| [Some((Stale, Some(A))), None, Some((Incomplete, None)), Some((Reachable, Some(mac)))];
        assert_eq!(moves(&asked(A)), [false; 4]);
        assert_eq!(moves(&asked(B)), [false, false, false, true]);

        let mut table = Table::default();
        table.observe(&message(Stale, Some(A)), false);
        table.observe(&message(Stale, Some(A)), true);
        assert_eq!(table.gone, 1);
        table.told();
        assert!(!table.observe(&message(Reachable, Some(B)), false), "nobody remembers A");
        assert_eq!(table.gone, 0);
    }

    #[test]
    fn entries_of_operators_are_fixed() {
        assert!(entry(&message(NeighbourState::Permanent, Some(A))).fixed);
        let mut learned = message(Reachable, Some(A));
        learned.header.flags = NeighbourFlags::ExtLearned;
        assert!(entry(&learned).fixed);
        assert!(!entry(&message(Reachable, Some(A))).fixed);
    }

    #[test]
    fn bridge_tables_are_ignored() {
        let mut table = Table::default();
        let mut bridge = NeighbourMessage::default();
        bridge.attributes = vec![NeighbourAttribute::LinkLayerAddress(A.to_vec())];
        assert!(!table.observe(&bridge, false));
        assert!(table.get(&Neighbor { ifindex: 0, address: IpAddr::from([10, 0, 0, 1]) }).is_none());
    }
}
