//! A record as it is written: `gateway.access/v1`, a line of JSON.

use std::{borrow::Cow, net::IpAddr};

use gateway_common::{
    Verdict,
    parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::dataplane::{LogEvent, Logged};

/// What every record names as its form. Fields are only ever added.
pub(super) const SCHEMA: &str = "gateway.access/v1";

/// One record. Fields that do not apply are absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<'a> {
    /// [`SCHEMA`].
    pub schema: Cow<'a, str>,
    /// `open`, `close` or `deny`.
    pub event: Cow<'a, str>,
    /// When it has happened, RFC 3339, UTC.
    pub time: Timestamp,
    /// When the session began.
    pub start: Timestamp,
    /// When it ended.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end: Option<Timestamp>,
    /// `tcp`, `udp`, `icmp`, or the number of another protocol.
    pub proto: Cow<'a, str>,
    /// The inside host. Of ICMP queries, the port is their identifier.
    pub source: End,
    /// What it is to the outside; absent where nothing is translated.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub translated: Option<End>,
    /// The server.
    pub destination: End,
    /// The table that decided when the session began.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub table: Option<Cow<'a, str>>,
    /// The route.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub route: Option<Cow<'a, str>>,
    /// Where it leads.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<Cow<'a, str>>,
    /// What becomes of the session's packets: `snat` or `proxy`; `drop` where there is none.
    pub verdict: Cow<'a, str>,
    /// Why the session ended, or why packets were dropped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<Cow<'a, str>>,
    /// What the inside host has sent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sent: Option<Flow>,
    /// What it has received.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub received: Option<Flow>,
}

/// One end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
}

/// What went one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// IP packets.
    pub packets: u64,
    /// Their bytes, without Ethernet.
    pub bytes: u64,
}

impl<'a> Entry<'a> {
    /// The record of what has happened to a session.
    pub fn of(logged: &'a Logged) -> Self {
        let end = |(address, port)| End { address, port };
        let names = logged.names.as_deref();
        let flow = |counter: gateway_common::counter::Counter| Flow {
            packets: counter.packets,
            bytes: counter.bytes,
        };
        let (event, reason, sent, received) = match logged.event {
            LogEvent::Open => ("open", None, None, None),
            LogEvent::Close { reason, sent, received } => {
                ("close", Some(reason), Some(flow(sent)), Some(flow(received)))
            }
            LogEvent::Deny { reason, sent } => ("deny", Some(reason.name()), Some(flow(sent)), None),
        };
        Self {
            schema: SCHEMA.into(),
            event: event.into(),
            time: logged.time,
            start: logged.start,
            end: matches!(logged.event, LogEvent::Close { .. }).then_some(logged.time),
            proto: proto_name(logged.proto),
            source: end(logged.source),
            translated: logged.translated.map(end),
            destination: end(logged.destination),
            table: names.map(|names| names.table.as_str()).filter(|name| !name.is_empty()).map(Into::into),
            route: names.and_then(|names| names.route.as_deref()).map(Into::into),
            target: names.map(|names| names.target.as_str()).filter(|name| !name.is_empty()).map(Into::into),
            verdict: verdict(logged).into(),
            reason: reason.map(Into::into),
            sent,
            received,
        }
    }

    /// Adds the record to `lines`.
    pub fn write(&self, lines: &mut Vec<u8>) {
        // Writing to memory does not fail, and the structure has no maps with keys that are no strings.
        if serde_json::to_writer(&mut *lines, self).is_ok() {
            lines.push(b'\n');
        }
    }
}

/// What becomes of the packets.
fn verdict(logged: &Logged) -> &'static str {
    let verdict = match logged.event {
        LogEvent::Deny { .. } => Verdict::Drop,
        LogEvent::Open | LogEvent::Close { .. } if logged.translated.is_some() => Verdict::Snat,
        LogEvent::Open | LogEvent::Close { .. } => Verdict::Proxy,
    };
    verdict.name()
}

/// The word for an IP protocol.
fn proto_name(proto: u8) -> Cow<'static, str> {
    match proto {
        PROTO_TCP => "tcp".into(),
        PROTO_UDP => "udp".into(),
        PROTO_ICMP | PROTO_ICMPV6 => "icmp".into(),
        other => other.to_string().into(),
    }
}
