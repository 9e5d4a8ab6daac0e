//! Packets to and from EIPs.

use std::net::IpAddr;

use gateway_common::{DropReason, Verdict};
use gateway_user::model::{Role, Target};

use super::{
    Action, Arrival, Model, Step, fits,
    hairpin::turn,
    nat::{NextHop, Side},
    policy::{self, Question},
    way::faces,
    wire::{self, Fragment, Ip, Kind, Quoted},
};

/// Source and destination.
type Ends = (IpAddr, IpAddr);

impl Model {
    /// A packet from inside by a route of target `eip`.
    pub(super) fn by_eip(&mut self, arrival: &Arrival<'_>, ip: &Ip) -> Step<Action> {
        // An error that is the EIP's has been told from others before.
        if is_error(ip) && ip.fragment == Fragment::Whole {
            return Err(DropReason::NoSession.into());
        }
        may_pass(arrival, ip)?;
        self.leave(arrival, ip, None)
    }

    /// What becomes of an error from inside about a packet that came to a host by its EIP; `None`: it is none.
    pub(super) fn error_of_eip(&mut self, arrival: &Arrival<'_>, ip: &Ip) -> Step<Option<Action>> {
        if !is_error(ip) || ip.fragment != Fragment::Whole {
            return Ok(None);
        }
        let quoted = wire::quoted_addresses(arrival.frame, ip);
        let Some(quoted) = quoted.filter(|quoted| quoted.source.0 == ip.destination) else { return Ok(None) };
        let host = quoted.destination.0;
        if !self.state.eips.values().any(|eip| eip.host == host) {
            return Ok(None);
        }
        self.reverse_path(arrival, ip)?;
        let question = Question {
            device: arrival.ingress.name,
            client: host,
            server: ip.destination,
            proto: quoted.proto,
            port: Some(quoted.source.1).filter(|port| *port != 0),
        };
        let found = policy::route(&self.state, &self.network, question)
            .ok()
            .filter(|found| found.target == Target::Eip);
        let Some(found) = found else { return Ok(None) };
        self.count_route(&found, arrival);
        if !wire::is_sound_error(arrival.frame, ip, &quoted) {
            return Err(DropReason::BadChecksum.into());
        }
        self.leave(arrival, ip, Some(&quoted)).map(Some)
    }

    /// A packet for an EIP, that does not come from an inside interface.
    pub(super) fn for_eip(&mut self, arrival: &Arrival<'_>, ip: &Ip) -> Step<Action> {
        let quoted = may_pass(arrival, ip)?;
        let one_armed = arrival.ingress.role == Some(Role::Both);
        if one_armed && self.reverse_path(arrival, ip).is_ok() {
            // From a client.
            let question = Question {
                device: arrival.ingress.name,
                client: ip.source,
                server: ip.destination,
                proto: ip.proto,
                port: ip.selectable_ports().map(|(_, destination)| destination),
            };
            let found = policy::route(&self.state, &self.network, question)?;
            self.count_route(&found, arrival);
            return match found.target {
                Target::Eip => self.leave(arrival, ip, quoted.as_ref()),
                Target::Blackhole => Err(DropReason::Blackhole.into()),
                Target::Prohibit => Err(DropReason::Prohibited.into()),
                Target::Direct
                | Target::Pool(_)
                | Target::Gateway { .. }
                | Target::Proxy(_)
                | Target::Host => Err(DropReason::NoSession.into()),
            };
        }
        let host = self.state.eips[&ip.destination].host;
        if self.is_the_hosts(ip.source) || self.is_pool_address(ip.source) || self.is_eip(ip.source) {
            return Err(DropReason::SpoofedSource.into());
        }
        if !one_armed {
            self.loose_reverse_path(arrival, ip)?;
        }
        let next_hop = self.way_in(host)?;
        let found = self.admit(ip, quoted.as_ref(), &next_hop, ip.source, host)?;
        self.count_route(&found, arrival);
        self.exchange(arrival, ip, quoted.as_ref(), (ip.source, host), Side::Outside, &next_hop)
    }

    pub(super) fn is_eip(&self, address: IpAddr) -> bool {
        self.state.eips.contains_key(&address)
    }

    fn leave(&mut self, arrival: &Arrival<'_>, ip: &Ip, quoted: Option<&Quoted>) -> Step<Action> {
        // An error is about a packet to whom the EIP stands for.
        let host = quoted.map_or(ip.source, |quoted| quoted.destination.0);
        let eip = self.state.eips.values().find(|eip| eip.host == host).ok_or(DropReason::NoEip)?.address;
        if self.is_pool_address(ip.destination) {
            let half = turn(arrival);
            fits(ip, &half)?;
            // Others than these have no session.
            if quoted.is_none() && ip.flow().is_none() && ip.fragment != Fragment::Later {
                return Err(DropReason::NoSession.into());
            }
            let action = self.exchange(arrival, ip, quoted, (eip, ip.destination), Side::Inside, &half)?;
            return self.inward(arrival, action);
        }
        let Some(other) = self.state.eips.get(&ip.destination).map(|other| other.host) else {
            let next_hop = self.towards(ip.destination)?;
            return self.exchange(arrival, ip, quoted, (eip, ip.destination), Side::Inside, &next_hop);
        };
        let next_hop = self.way_in(other)?;
        // An error is about what the other host has sent to this EIP.
        let quoted_to_eip = quoted.map(|quoted| quoted.to(eip));
        self.admit(ip, quoted_to_eip.as_ref(), &next_hop, eip, other)?;
        self.exchange(arrival, ip, quoted, (eip, other), Side::Inside, &next_hop)
    }

    /// The second half of a hairpin, to an EIP.
    pub(super) fn let_in(&mut self, arrival: &Arrival<'_>, ip: &Ip) -> Step<Action> {
        let quoted = may_pass(arrival, ip)?;
        let host = self.state.eips[&ip.destination].host;
        let next_hop = self.way_in(host)?;
        let found = self.admit(ip, quoted.as_ref(), &next_hop, ip.source, host)?;
        self.count_route(&found, arrival);
        self.exchange(arrival, ip, quoted.as_ref(), (ip.source, host), Side::Outside, &next_hop)
    }

    fn way_in(&self, host: IpAddr) -> Step<NextHop> {
        let way = self.network.way(host).filter(|way| faces(way.device, Side::Inside));
        self.resolved(way.ok_or(DropReason::NoRoute)?)
    }

    /// Whether a packet may go in: the inside host's answer would leave by its EIP.
    fn admit(
        &self,
        ip: &Ip,
        quoted: Option<&Quoted>,
        next_hop: &NextHop,
        remote: IpAddr,
        host: IpAddr,
    ) -> Step<policy::Found> {
        let (server, proto, port) = match quoted {
            Some(quoted) => {
                let port = Some(quoted.destination.1).filter(|port| *port != 0);
                (quoted.destination.0, quoted.proto, port)
            }
            None => (remote, ip.proto, ip.selectable_ports().map(|(source, _)| source)),
        };
        let device = &next_hop.device;
        let found = policy::route(
            &self.state,
            &self.network,
            Question { device, client: host, server, proto, port },
        )?;
        match found.target {
            Target::Eip => Ok(found),
            Target::Pool(_) | Target::Direct | Target::Gateway { .. } | Target::Proxy(_) | Target::Host => {
                Err(DropReason::NoSession.into())
            }
            Target::Blackhole | Target::Prohibit => Err(DropReason::NoRoute.into()),
        }
    }

    fn exchange(
        &self,
        arrival: &Arrival<'_>,
        ip: &Ip,
        quoted: Option<&Quoted>,
        ends: Ends,
        side: Side,
        next_hop: &NextHop,
    ) -> Step<Action> {
        fits(ip, next_hop)?;
        let macs = (self.network.find(&next_hop.device).mac(), next_hop.mac);
        let frame = match quoted {
            None => wire::exchange(arrival.frame, ip, ends, macs)?,
            Some(quoted) => {
                wire::exchange_in_error(arrival.frame, ip, quoted, ends, side == Side::Inside, macs)
            }
        };
        Ok(Action::Send { verdict: Verdict::Eip, egress: next_hop.device.clone(), frame })
    }
}

fn is_error(ip: &Ip) -> bool {
    match ip.kind {
        Kind::OtherIcmp { kind } if ip.is_v4() => matches!(kind, 3 | 11 | 12),
        Kind::OtherIcmp { kind } => matches!(kind, 1..=4),
        Kind::Tcp(_) | Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::Other => false,
    }
}

/// Whether routers pass the packet on; what it quotes, if it is an ICMP error.
fn may_pass(arrival: &Arrival<'_>, ip: &Ip) -> Step<Option<Quoted>> {
    let Kind::OtherIcmp { kind } = ip.kind else { return Ok(None) };
    let of_link = if ip.is_v4() { matches!(kind, 4 | 5 | 9 | 10) } else { matches!(kind, 130..=137 | 143) };
    if of_link {
        return Err(DropReason::UnsupportedProtocol.into());
    }
    match (is_error(ip), ip.fragment) {
        (false, _) | (_, Fragment::Later) => Ok(None),
        (true, Fragment::First) => Err(DropReason::FragmentUnmatched.into()),
        (true, Fragment::Whole) => {
            let quoted = wire::quoted_addresses(arrival.frame, ip);
            let quoted = quoted.filter(|quoted| quoted.source.0 == ip.destination);
            let quoted = quoted.ok_or(DropReason::NoSession)?;
            if wire::is_sound_error(arrival.frame, ip, &quoted) {
                Ok(Some(quoted))
            } else {
                Err(DropReason::BadChecksum.into())
            }
        }
    }
}
