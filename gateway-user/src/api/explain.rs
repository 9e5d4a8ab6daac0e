//! `explain`: the walk on paper, and what the programs say.

use std::net::{IpAddr, SocketAddr};

use etherparse::{NetHeaders, PacketHeaders, TransportHeader};
use gateway_common::{
    DropReason,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
};

use super::{
    ApiError, ErrorKind,
    request::about,
    types::{Endpoint, ExplainLive, ExplainQuery, ExplainRow, ExplainStep},
};
use crate::{
    dataplane::{Connected, Host, NextHopRow, Observe, Trial, Tried},
    explain::{End, Present, Question, Walk, Way, World, frame, walk},
    model::{Proto, Snapshot, ValueError, prefix::parse_address},
};

/// Source port and identifier of packets whose asker does not mind.
const SOURCE_PORT: u16 = 40_000;
/// MAC address of their sender, which nobody has (RFC 7042 2.1: locally administered).
const SENDER: [u8; 6] = [0x02, 0, 0, 0, 0, 1];

impl ExplainQuery {
    /// The packet that is asked about.
    ///
    /// # Errors
    /// Names the word that makes no sense.
    pub fn question(&self) -> Result<Question, ApiError> {
        self.read_question().map_err(about("explain"))
    }

    /// The inverse of [`ExplainQuery::question`].
    pub fn of(question: &Question) -> Self {
        let Question { from, source_port, to, port, proto, iif } = question;
        let icmp = *proto == Proto::Icmp;
        Self {
            to: if icmp { to.to_string() } else { SocketAddr::new(*to, *port).to_string() },
            from: SocketAddr::new(*from, *source_port).to_string(),
            proto: Some(proto.to_string()),
            iif: iif.clone(),
            live: false,
        }
    }

    fn read_question(&self) -> Result<Question, ValueError> {
        let (to, port) = endpoint("to", &self.to)?;
        let (from, source_port) = endpoint("from", &self.from)?;
        if to.is_ipv4() != from.is_ipv4() {
            let message = format!("{from} and {to} are of different families");
            return Err(ValueError::invalid("from", message).hint("give two IPv4 or two IPv6 addresses"));
        }
        let proto: Option<Proto> = self.proto.as_deref().map(str::parse).transpose()?;
        let proto = proto.unwrap_or(if port.is_some() { Proto::Tcp } else { Proto::Icmp });
        let port = match (proto, port) {
            (Proto::Icmp, Some(port)) => {
                let message = format!("port {port} makes no sense for icmp");
                return Err(ValueError::invalid("to", message).hint("leave it out, or give `proto tcp`"));
            }
            (Proto::Tcp | Proto::Udp, None) => {
                let message = format!("{to} needs a port: packets of {proto} have one");
                return Err(
                    ValueError::invalid("to", message).hint("write ADDR:PORT, or [ADDR]:PORT for IPv6")
                );
            }
            (_, port) => port.unwrap_or(0),
        };
        let source_port = source_port.unwrap_or(SOURCE_PORT);
        Ok(Question { from, source_port, to, port, proto, iif: self.iif.clone() })
    }
}

/// `ADDR`, `ADDR:PORT` or `[ADDR]:PORT`.
fn endpoint(field: &'static str, text: &str) -> Result<(IpAddr, Option<u16>), ValueError> {
    match text.parse::<SocketAddr>() {
        Ok(address) => Ok((address.ip(), Some(address.port()))),
        Err(_) => Ok((parse_address(field, text)?, None)),
    }
}

/// The answer of a daemon.
pub(super) fn answer(
    state: &Snapshot,
    host: &Host,
    observe: &dyn Observe,
    query: &ExplainQuery,
) -> Result<Result<ExplainRow, ApiError>, anyhow::Error> {
    let question = match query.question() {
        Ok(question) => question,
        Err(error) => return Ok(Err(error)),
    };
    let number = number(question.proto, question.to.is_ipv4());
    let server_port = if question.proto == Proto::Icmp { 0 } else { question.port };
    let present = Present {
        session: observe.session(
            number,
            (question.from, question.source_port),
            (question.to, server_port),
        )?,
        destinations: observe.destinations()?,
        limits: observe.limits()?,
        proxies: observe.proxies()?,
    };
    let connected = Connected::of(host, state);
    let told = |to| {
        let way = observe.next_hop(to)?;
        Ok(way.map(|NextHopRow { ifindex, router, mac }| Way { device: name(host, ifindex), router, mac }))
    };
    let world = World {
        state,
        connected: &connected,
        host: Some(host),
        ways: None,
        told: Some(&told),
        present: Some(&present),
    };
    let walk = walk(&world, &question);
    let mut row = ExplainRow::of(&question, &walk);
    if query.live {
        let Some((name, link)) = walk.iif.as_ref().and_then(|name| Some((name, host.links.get(name)?)))
        else {
            let message = format!("which interface has {} behind it is not known", question.from);
            let error = ApiError::new("explain", ErrorKind::Invalid, message);
            return Ok(Err(error.hint("say it: `iif IF`").field("iif")));
        };
        tracing::debug!(interface = name, packet = row.packet, "trying a packet");
        let bytes = frame(&question, SENDER, link.mac)?;
        let trial = Trial { ifindex: link.index, frame: &bytes, as_active: false };
        let tried = observe.try_packet(&trial)?;
        row.agrees = match &walk.end {
            End::Goes(verdict) => Some(tried.verdict == *verdict),
            End::Drop(reason) => Some(tried.reason == Some(*reason)),
            End::Open(_) => None,
        };
        // The walk tells whether a neighbor is known, and does not judge by it.
        if tried.reason == Some(DropReason::NeighborUnresolved) {
            row.agrees = None;
        }
        row.live = Some(ExplainLive::of(&tried));
    }
    Ok(Ok(row))
}

/// The device with this number.
fn name(host: &Host, ifindex: u32) -> String {
    let link = host.links.iter().find(|(_, link)| link.index == ifindex);
    link.map_or_else(|| format!("ifindex {ifindex}"), |(name, _)| name.clone())
}

fn number(proto: Proto, v4: bool) -> u8 {
    match proto {
        Proto::Tcp => PROTO_TCP,
        Proto::Udp => PROTO_UDP,
        Proto::Icmp if v4 => PROTO_ICMP,
        Proto::Icmp => PROTO_ICMPV6,
    }
}

impl ExplainRow {
    /// A packet that nothing can be asked about, and what it is.
    pub fn unasked(what: String) -> Self {
        Self {
            packet: what,
            iif: None,
            steps: Vec::new(),
            verdict: None,
            reason: None,
            live: None,
            agrees: None,
        }
    }

    /// A walk as it goes over the socket.
    pub fn of(question: &Question, walk: &Walk) -> Self {
        let (verdict, reason) = match &walk.end {
            End::Goes(verdict) => (Some(verdict.name()), None),
            End::Drop(reason) => (Some("drop"), Some(reason.name())),
            End::Open(_) => (None, None),
        };
        let steps = walk.steps.iter().map(|step| ExplainStep {
            stage: step.stage.to_owned(),
            found: step.found.clone(),
            notes: step.notes.clone(),
        });
        Self {
            packet: question.to_string(),
            iif: walk.iif.clone(),
            steps: steps.collect(),
            verdict: verdict.map(str::to_owned),
            reason: reason.map(str::to_owned),
            live: None,
            agrees: None,
        }
    }
}

impl ExplainLive {
    fn of(tried: &Tried) -> Self {
        let leaves =
            tried.egress.as_ref().and_then(|_| PacketHeaders::from_ethernet_slice(&tried.frame).ok());
        let (mut next_hop, mut ends) = (None, None);
        if let Some(headers) = leaves {
            let mac = tried.frame.first_chunk::<6>();
            next_hop = mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
            ends = ends_of(&headers);
        }
        let (source, destination) = ends.unzip();
        Self {
            verdict: tried.verdict.name().to_owned(),
            reason: tried.reason.map(|reason| reason.name().to_owned()),
            egress: tried.egress.clone(),
            next_hop,
            source,
            destination,
            opens_session: tried.opens,
            routes: tried.routes.iter().map(|(table, key)| format!("{table} {key}")).collect(),
        }
    }
}

/// Both ends of a packet.
fn ends_of(headers: &PacketHeaders<'_>) -> Option<(Endpoint, Endpoint)> {
    let (source, destination): (IpAddr, IpAddr) = match headers.net.as_ref()? {
        NetHeaders::Ipv4(header, _) => (header.source.into(), header.destination.into()),
        NetHeaders::Ipv6(header, _) => (header.source.into(), header.destination.into()),
        NetHeaders::Arp(_) => return None,
    };
    let (source_port, port) = match &headers.transport {
        Some(TransportHeader::Tcp(header)) => (header.source_port, header.destination_port),
        Some(TransportHeader::Udp(header)) => (header.source_port, header.destination_port),
        Some(TransportHeader::Icmpv4(_) | TransportHeader::Icmpv6(_) | TransportHeader::Igmp(_)) | None => {
            (0, 0)
        }
    };
    Some((Endpoint { address: source, port: source_port }, Endpoint { address: destination, port }))
}
