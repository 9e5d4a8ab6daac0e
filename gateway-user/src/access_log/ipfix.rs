//! Records as IPFIX over UDP (RFC 7011), with the information elements for NAT of RFC 8158.
//!
//! A message has at most 1,400 bytes, so that it is not fragmented, and records of one template. Templates are sent
//! again with the first message of each minute, because a collector may have missed them (RFC 7011 8.1).

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use gateway_common::{DropReason, counter::Counter, record::Ending};

use super::Write;
use crate::dataplane::{LogEvent, Logged};

/// Bytes of a message.
const MOST: usize = 1_400;
/// Bytes of its header.
const HEADER: usize = 16;
/// Version of the protocol.
const VERSION: u16 = 10;
/// Number of the set that templates are in.
const TEMPLATE_SET: u16 = 2;
/// How often templates are sent.
const TEMPLATE_INTERVAL: Duration = Duration::from_mins(1);

/// An information element (IANA, IPFIX Entities): its number and its bytes.
type Field = (u16, u16);

const OBSERVATION_TIME_MILLISECONDS: Field = (323, 8);
const PROTOCOL_IDENTIFIER: Field = (4, 1);
const NAT_EVENT: Field = (230, 1);
const FIREWALL_EVENT: Field = (233, 1);
const FLOW_END_REASON: Field = (136, 1);
const SOURCE_TRANSPORT_PORT: Field = (7, 2);
const DESTINATION_TRANSPORT_PORT: Field = (11, 2);
const POST_NAPT_SOURCE_TRANSPORT_PORT: Field = (227, 2);
const POST_NAPT_DESTINATION_TRANSPORT_PORT: Field = (228, 2);
const INITIATOR_OCTETS: Field = (231, 8);
const RESPONDER_OCTETS: Field = (232, 8);
const INITIATOR_PACKETS: Field = (298, 8);
const RESPONDER_PACKETS: Field = (299, 8);
const SOURCE_IPV4_ADDRESS: Field = (8, 4);
const DESTINATION_IPV4_ADDRESS: Field = (12, 4);
const POST_NAT_SOURCE_IPV4_ADDRESS: Field = (225, 4);
const POST_NAT_DESTINATION_IPV4_ADDRESS: Field = (226, 4);
const SOURCE_IPV6_ADDRESS: Field = (27, 16);
const DESTINATION_IPV6_ADDRESS: Field = (28, 16);
const POST_NAT_SOURCE_IPV6_ADDRESS: Field = (281, 16);
const POST_NAT_DESTINATION_IPV6_ADDRESS: Field = (282, 16);

/// What a template begins and ends with; the addresses are between.
const HEAD: [Field; 5] = [
    OBSERVATION_TIME_MILLISECONDS,
    PROTOCOL_IDENTIFIER,
    FLOW_END_REASON,
    SOURCE_TRANSPORT_PORT,
    DESTINATION_TRANSPORT_PORT,
];
const COUNTS: [Field; 4] = [INITIATOR_OCTETS, INITIATOR_PACKETS, RESPONDER_OCTETS, RESPONDER_PACKETS];
const PORTS: [Field; 2] = [POST_NAPT_SOURCE_TRANSPORT_PORT, POST_NAPT_DESTINATION_TRANSPORT_PORT];

/// A template.
struct Template {
    number: u16,
    /// [`NAT_EVENT`] or [`FIREWALL_EVENT`]: there is no event of RFC 8158 for what is not NAT44.
    event: Field,
    /// Source and destination, and what they are to the outside.
    addresses: &'static [Field],
}

static TEMPLATES: [Template; 4] = [
    Template {
        number: 256,
        event: NAT_EVENT,
        addresses: &[
            SOURCE_IPV4_ADDRESS,
            DESTINATION_IPV4_ADDRESS,
            POST_NAT_SOURCE_IPV4_ADDRESS,
            POST_NAT_DESTINATION_IPV4_ADDRESS,
        ],
    },
    Template {
        number: 257,
        event: FIREWALL_EVENT,
        addresses: &[
            SOURCE_IPV6_ADDRESS,
            DESTINATION_IPV6_ADDRESS,
            POST_NAT_SOURCE_IPV6_ADDRESS,
            POST_NAT_DESTINATION_IPV6_ADDRESS,
        ],
    },
    Template {
        number: 258,
        event: FIREWALL_EVENT,
        addresses: &[SOURCE_IPV4_ADDRESS, DESTINATION_IPV4_ADDRESS],
    },
    Template {
        number: 259,
        event: FIREWALL_EVENT,
        addresses: &[SOURCE_IPV6_ADDRESS, DESTINATION_IPV6_ADDRESS],
    },
];

impl Template {
    fn of(logged: &Logged) -> &'static Self {
        let index = match (logged.source.0, logged.translated) {
            (IpAddr::V4(_), Some(_)) => 0,
            (IpAddr::V6(_), Some(_)) => 1,
            (IpAddr::V4(_), None) => 2,
            (IpAddr::V6(_), None) => 3,
        };
        &TEMPLATES[index]
    }

    fn is_translated(&self) -> bool {
        self.addresses.len() == 4
    }

    fn fields(&self) -> impl Iterator<Item = Field> {
        let ports = if self.is_translated() { &PORTS[..] } else { &[] };
        let addresses = self.addresses.iter().chain(ports);
        [self.event].into_iter().chain(HEAD).chain(addresses.copied()).chain(COUNTS)
    }

    /// Bytes of a record.
    fn len(&self) -> usize {
        self.fields().map(|(_, bytes)| usize::from(bytes)).sum()
    }

    /// Adds a record, in the order of [`Template::fields`].
    fn write(&self, logged: &Logged, to: &mut Vec<u8>) {
        to.push(event(self.event, logged.event));
        to.extend(logged.time.as_millisecond().max(0).to_be_bytes());
        to.extend([logged.proto, end_reason(logged.event)]);
        to.extend(logged.source.1.to_be_bytes());
        to.extend(logged.destination.1.to_be_bytes());
        address(logged.source.0, to);
        address(logged.destination.0, to);
        if let Some((translated, port)) = logged.translated {
            address(translated, to);
            address(logged.destination.0, to);
            to.extend(port.to_be_bytes());
            to.extend(logged.destination.1.to_be_bytes());
        }
        let (sent, received) = match logged.event {
            LogEvent::Open => (Counter::default(), Counter::default()),
            LogEvent::Close { sent, received, .. } => (sent, received),
            LogEvent::Deny { sent, .. } => (sent, Counter::default()),
        };
        for count in [sent.bytes, sent.packets, received.bytes, received.packets] {
            to.extend(count.to_be_bytes());
        }
    }
}

/// Sends messages to a collector.
pub(super) struct Exporter {
    socket: UdpSocket,
    /// Data records that were sent, RFC 7011 3.1.
    sequence: u32,
    templates: Option<Instant>,
}

impl Exporter {
    /// Sends to `collector` from then on.
    ///
    /// # Errors
    /// There is no way to it.
    pub(super) fn open(collector: SocketAddr) -> Result<Self> {
        let own: SocketAddr = if collector.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(own).context("cannot open a socket")?;
        socket.connect(collector).with_context(|| format!("cannot send to {collector}"))?;
        // A full queue of a device is no reason to wait: what it does not take is lost, and counted.
        socket.set_nonblocking(true).context("cannot open a socket")?;
        Ok(Self { socket, sequence: 0, templates: None })
    }

    fn owes_templates(&self) -> bool {
        self.templates.is_none_or(|sent| sent.elapsed() >= TEMPLATE_INTERVAL)
    }

    fn send(&mut self, template: &Template, records: &[&Logged]) -> Result<()> {
        let mut message = vec![0; HEADER];
        let due = self.owes_templates();
        if due {
            templates(&mut message);
        }
        let start = message.len();
        message.extend(template.number.to_be_bytes());
        message.extend([0; 2]);
        for record in records {
            template.write(record, &mut message);
        }
        set_length(&mut message, start);
        let seconds = u32::try_from(jiff::Timestamp::now().as_second()).unwrap_or_default();
        let length = message.len() as u16;
        let header = [&VERSION.to_be_bytes()[..], &length.to_be_bytes(), &seconds.to_be_bytes()].concat();
        message[..8].copy_from_slice(&header);
        message[8..12].copy_from_slice(&self.sequence.to_be_bytes());
        self.socket.send(&message).context("cannot send to the collector")?;
        if due {
            self.templates = Some(Instant::now());
        }
        self.sequence = self.sequence.wrapping_add(records.len() as u32);
        Ok(())
    }
}

impl Write for Exporter {
    fn write(&mut self, records: &[&Logged]) -> (usize, Result<()>) {
        let (mut taken, mut result) = (0, Ok(()));
        let same = |a: &&Logged, b: &&Logged| Template::of(a).number == Template::of(b).number;
        for run in records.chunk_by(same) {
            let template = Template::of(run[0]);
            let room = MOST - HEADER - 4 - if self.owes_templates() { template_bytes() } else { 0 };
            for records in run.chunks((room / template.len()).max(1)) {
                match self.send(template, records) {
                    Ok(()) => taken += records.len(),
                    Err(error) => result = Err(error),
                }
            }
        }
        (taken, result)
    }

    fn look_after(&mut self) -> Result<()> {
        Ok(())
    }
}

/// Adds the set of templates.
fn templates(message: &mut Vec<u8>) {
    let start = message.len();
    message.extend(TEMPLATE_SET.to_be_bytes());
    message.extend([0; 2]);
    for template in &TEMPLATES {
        message.extend(template.number.to_be_bytes());
        message.extend((template.fields().count() as u16).to_be_bytes());
        for (number, bytes) in template.fields() {
            message.extend(number.to_be_bytes());
            message.extend(bytes.to_be_bytes());
        }
    }
    set_length(message, start);
}

fn template_bytes() -> usize {
    let mut set = Vec::new();
    templates(&mut set);
    set.len()
}

/// Writes the length of the set that begins at `start` and ends here.
fn set_length(message: &mut [u8], start: usize) {
    let length = (message.len() - start) as u16;
    message[start + 2..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn address(address: IpAddr, to: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => to.extend(address.octets()),
        IpAddr::V6(address) => to.extend(address.octets()),
    }
}

/// The value of [`NAT_EVENT`] (RFC 8158 4.3: NAT44 session creation 4, deletion 5) or [`FIREWALL_EVENT`] (flow created
/// 1, deleted 2, denied 3).
fn event(field: Field, event: LogEvent) -> u8 {
    let nat = field == NAT_EVENT;
    match event {
        LogEvent::Open if nat => 4,
        LogEvent::Close { .. } if nat => 5,
        LogEvent::Open => 1,
        LogEvent::Close { .. } => 2,
        LogEvent::Deny { .. } => 3,
    }
}

/// The value of [`FLOW_END_REASON`]: idle timeout 1, end of flow detected 3, forced end 4, lack of resources 5; 0 where
/// nothing has ended.
fn end_reason(event: LogEvent) -> u8 {
    match event {
        LogEvent::Open => 0,
        LogEvent::Close { reason, .. } if reason == Ending::Idle.name() => 1,
        LogEvent::Close { reason, .. } if reason == Ending::Killed.name() => 4,
        LogEvent::Close { .. } => 3,
        LogEvent::Deny { reason: DropReason::PoolExhausted | DropReason::SessionTableFull, .. } => 5,
        LogEvent::Deny { .. } => 4,
    }
}
