//! ICMP errors about packets of sessions.

use std::net::IpAddr;

use gateway_common::{DropReason, Verdict};
use gateway_user::model::Target;

use super::{
    Action, Arrival, Model, Step, Stop, fits,
    hairpin::turn,
    nat::{Place, Side},
    policy::{self, Question},
    way::faces,
    wire::{self, Fragment, Ip, Kind, Quoted},
};

impl Model {
    /// What becomes of an error about a packet of a session; `None`: it is none. `turned`: it has gone the first half of
    /// its way to another inside host.
    pub(super) fn related(
        &mut self,
        arrival: &Arrival<'_>,
        ip: &Ip,
        side: Side,
        turned: bool,
    ) -> Step<Option<Action>> {
        let Some(quoted) = quoted(arrival.frame, ip) else { return Ok(None) };
        let Some(id) = self.nat.find_flow(quoted.proto, quoted.destination, quoted.source, side) else {
            return Ok(None);
        };
        if side == Side::Outside && self.nat.session(id).turns != turned {
            return Ok(None);
        }
        if !wire::is_sound_error(arrival.frame, ip, &quoted) {
            return Err(DropReason::BadChecksum.into());
        }
        let session = self.nat.session(id).clone();
        if session.cut {
            return Err(DropReason::NoSession.into());
        }
        if side == Side::Inside {
            self.reverse_path(arrival, ip)?;
        }
        let direction = &session.directions[side as usize];
        let (mut next_hop, mut route) = (direction.next_hop.clone(), direction.route.clone());
        if session.turns || direction.generation != Some(self.generation) {
            if !(if session.turns { self.keeps_ends(&session) } else { self.is_of_pool(&session) }) {
                return Err(DropReason::NoSession.into());
            }
            let to = if side == Side::Inside { session.server.0 } else { session.client.0 };
            match if session.turns && side == Side::Inside { Ok(turn(arrival)) } else { self.towards(to) } {
                Err(Stop::Drop(DropReason::NeighborUnresolved)) => {}
                way => next_hop = way?,
            }
            let device = if side == Side::Inside { arrival.ingress.name } else { &next_hop.device };
            if session.turns && !faces(self.network.find(device), Side::Inside) {
                return Err(DropReason::NoSession.into());
            }
            let port = matches!(session.proto, 6 | 17).then_some(session.server.1);
            let (client, server, proto) = (session.client.0, session.server.0, session.proto);
            route =
                policy::route(&self.state, &self.network, Question { device, client, server, proto, port })?;
            let denied = match route.target {
                Target::Blackhole => DropReason::Blackhole,
                Target::Prohibit => DropReason::Prohibited,
                Target::Direct
                | Target::Pool(_)
                | Target::Eip
                | Target::Gateway { .. }
                | Target::Proxy(_)
                | Target::Host => {
                    return self.pass_on(arrival, ip, side, (&session, &quoted), (next_hop, route)).map(Some);
                }
            };
            self.count_route(&route, arrival);
            return Err(denied.into());
        }
        self.pass_on(arrival, ip, side, (&session, &quoted), (next_hop, route)).map(Some)
    }

    fn pass_on(
        &mut self,
        arrival: &Arrival<'_>,
        ip: &Ip,
        side: Side,
        (session, quoted): (&super::Session, &Quoted),
        (next_hop, route): (super::NextHop, super::Found),
    ) -> Step<Action> {
        self.count_route(&route, arrival);
        fits(ip, &next_hop)?;
        let (verdict, place): (_, Place) = match side {
            Side::Inside => (Verdict::Snat, session.translated),
            Side::Outside => (Verdict::Reply, session.client),
        };
        let from = self.network.find(&next_hop.device).mac();
        let ends = (from, next_hop.mac);
        let frame = wire::forward_error(arrival.frame, ip, quoted, side == Side::Inside, place, ends);
        let action = Action::Send { verdict, egress: next_hop.device, frame };
        if session.turns && side == Side::Inside { self.inward(arrival, action) } else { Ok(action) }
    }
}

/// What an error quotes that is for the sender of what it quotes.
fn quoted(frame: &[u8], ip: &Ip) -> Option<Quoted> {
    let error = match (ip.kind, ip.source) {
        (Kind::OtherIcmp { kind }, IpAddr::V4(_)) => matches!(kind, 3 | 11 | 12),
        (Kind::OtherIcmp { kind }, IpAddr::V6(_)) => (1..5).contains(&kind),
        _ => false,
    };
    if !error || ip.fragment != Fragment::Whole {
        return None;
    }
    wire::quoted(frame, ip).filter(|quoted| quoted.source.0 == ip.destination)
}
