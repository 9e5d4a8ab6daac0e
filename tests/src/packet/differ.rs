//! Frames in words, and what differs between two of them.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{Ipv4Addr, Ipv6Addr},
};

use gateway_common::parse::{
    ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, PROTO_ICMP, PROTO_ICMPV6,
    PROTO_TCP, PROTO_UDP,
};

use super::checksum_of;

/// How a field is written.
#[derive(Clone, Copy)]
enum Form {
    Number,
    Hex,
    Mac,
    Address,
}
use Form::{Address, Hex, Mac, Number};

/// A header: name, length in bytes and form of every field.
type Layout = &'static [(&'static str, usize, Form)];

const ETHERNET: Layout = &[("destination", 6, Mac), ("source", 6, Mac), ("type", 2, Hex)];
const TAG: Layout = &[("control", 2, Hex), ("type", 2, Hex)];
const ARP: Layout = &[
    ("hardware", 2, Number),
    ("protocol", 2, Hex),
    ("sizes", 2, Hex),
    ("operation", 2, Number),
    ("sender mac", 6, Mac),
    ("sender", 4, Address),
    ("target mac", 6, Mac),
    ("target", 4, Address),
];
const IPV4: Layout = &[
    ("version and ihl", 1, Hex),
    ("tos", 1, Hex),
    ("total length", 2, Number),
    ("identification", 2, Hex),
    ("flags and offset", 2, Hex),
    ("ttl", 1, Number),
    ("protocol", 1, Number),
    ("checksum", 2, Hex),
    ("source", 4, Address),
    ("destination", 4, Address),
];
const IPV6: Layout = &[
    ("version, class, label", 4, Hex),
    ("payload length", 2, Number),
    ("next header", 1, Number),
    ("hop limit", 1, Number),
    ("source", 16, Address),
    ("destination", 16, Address),
];
const EXTENSION: Layout = &[("next header", 1, Number), ("length", 1, Number)];
const TCP: Layout = &[
    ("source port", 2, Number),
    ("destination port", 2, Number),
    ("sequence", 4, Hex),
    ("acknowledgement", 4, Hex),
    ("offset and flags", 2, Hex),
    ("window", 2, Number),
    ("checksum", 2, Hex),
    ("urgent", 2, Number),
];
const UDP: Layout = &[
    ("source port", 2, Number),
    ("destination port", 2, Number),
    ("length", 2, Number),
    ("checksum", 2, Hex),
];
const ICMP: Layout = &[
    ("type", 1, Number),
    ("code", 1, Number),
    ("checksum", 2, Hex),
    ("identifier", 2, Number),
    ("sequence", 2, Number),
];

/// The fields of a frame, in order: name and value. What is not understood ends up in `data`.
pub fn fields(frame: &[u8]) -> Vec<(String, String)> {
    let mut reader = Reader { frame, at: 0, fields: Vec::new() };
    // Where the frame ends early, the rest is data.
    let _complete = reader.ethernet();
    let rest = &frame[reader.at.min(frame.len())..];
    if !rest.is_empty() {
        reader.fields.push((format!("data ({} bytes)", rest.len()), hex(rest)));
    }
    reader.fields
}

/// What differs between two frames, field by field, a line each; empty for equal frames.
pub fn differences(expected: &[u8], actual: &[u8]) -> String {
    if expected == actual {
        return String::new();
    }
    let mut lines = String::new();
    if expected.len() != actual.len() {
        let _infallible = writeln!(lines, "  length: expected {}, got {}", expected.len(), actual.len());
    }
    let (expected, actual) = (fields(expected), fields(actual));
    let values: BTreeMap<_, _> = actual.iter().map(|(name, value)| (name, value)).collect();
    for (name, value) in &expected {
        let got = values.get(name).map_or("nothing", |got| got.as_str());
        if got != value {
            let _infallible = writeln!(lines, "  {name}: expected {value}, got {got}");
        }
    }
    let known: BTreeMap<_, _> = expected.iter().map(|(name, value)| (name, value)).collect();
    for (name, value) in actual.iter().filter(|(name, _)| !known.contains_key(name)) {
        let _infallible = writeln!(lines, "  {name}: expected nothing, got {value}");
    }
    lines
}

struct Reader<'a> {
    frame: &'a [u8],
    at: usize,
    fields: Vec<(String, String)>,
}

impl Reader<'_> {
    fn ethernet(&mut self) -> Option<()> {
        self.layout("ethernet", ETHERNET)?;
        let mut tags = 0;
        while matches!(self.u16_before(2)?, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            tags += 1;
            self.layout(&format!("tag {tags}"), TAG)?;
        }
        match self.u16_before(2)? {
            ETHERTYPE_ARP => self.layout("arp", ARP),
            ETHERTYPE_IPV4 => self.ipv4(),
            ETHERTYPE_IPV6 => self.ipv6(),
            _ => None,
        }
    }

    fn ipv4(&mut self) -> Option<()> {
        let start = self.at;
        self.layout("ipv4", IPV4)?;
        let header = usize::from(self.frame[start] & 0x0f) * 4;
        if header > 20 {
            self.bytes("ipv4 options", header - 20)?;
        }
        if header >= 20 {
            let good = checksum_of(&self.frame[start..start + header]) == 0;
            self.fields.push(("ipv4 checksum is".to_owned(), if good { "good" } else { "bad" }.to_owned()));
        }
        let later = u16::from_be_bytes([self.frame[start + 6], self.frame[start + 7]]) & 0x1fff != 0;
        self.transport(self.frame[start + 9], later)
    }

    fn ipv6(&mut self) -> Option<()> {
        let start = self.at;
        self.layout("ipv6", IPV6)?;
        let mut next = self.frame[start + 6];
        let (mut later, mut extensions) = (false, 0);
        while matches!(next, 0 | 43 | 44 | 60) && !later {
            extensions += 1;
            let (kind, at) = (next, self.at);
            let name = format!("extension {extensions} ({kind})");
            self.layout(&name, EXTENSION)?;
            let length = if kind == 44 { 8 } else { 8 + 8 * usize::from(self.frame[at + 1]) };
            next = self.frame[at];
            self.bytes(&name, length - 2)?;
            later = kind == 44 && u16::from_be_bytes([self.frame[at + 2], self.frame[at + 3]]) >> 3 != 0;
        }
        self.transport(next, later)
    }

    fn transport(&mut self, proto: u8, later: bool) -> Option<()> {
        match proto {
            _ if later => None,
            PROTO_TCP => self.layout("tcp", TCP),
            PROTO_UDP => self.layout("udp", UDP),
            PROTO_ICMP | PROTO_ICMPV6 => self.layout("icmp", ICMP),
            _ => None,
        }
    }

    /// Reads a header, or nothing of it if the frame ends before.
    fn layout(&mut self, header: &str, layout: Layout) -> Option<()> {
        let total = layout.iter().map(|(_, length, _)| length).sum::<usize>();
        self.frame.get(self.at..self.at + total)?;
        for (name, length, form) in layout {
            let bytes = &self.frame[self.at..self.at + length];
            let number = || bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
            let value = match form {
                Number => number().to_string(),
                Hex => format!("{:#0width$x}", number(), width = 2 + 2 * length),
                Mac => bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":"),
                Address => match bytes {
                    [a, b, c, d] => Ipv4Addr::new(*a, *b, *c, *d).to_string(),
                    _ => bytes
                        .try_into()
                        .map_or_else(|_| hex(bytes), |octets: [u8; 16]| Ipv6Addr::from(octets).to_string()),
                },
            };
            self.fields.push((format!("{header} {name}"), value));
            self.at += length;
        }
        Some(())
    }

    fn bytes(&mut self, name: &str, length: usize) -> Option<()> {
        let bytes = self.frame.get(self.at..self.at + length)?;
        self.fields.push((name.to_owned(), hex(bytes)));
        self.at += length;
        Some(())
    }

    fn u16_before(&self, distance: usize) -> Option<u16> {
        let at = self.at.checked_sub(distance)?;
        Some(u16::from_be_bytes([*self.frame.get(at)?, *self.frame.get(at + 1)?]))
    }
}

/// Hexadecimal digits; the capture file has the rest of what is long.
fn hex(bytes: &[u8]) -> String {
    const SHOWN: usize = 48;
    if bytes.len() > SHOWN {
        return hex(&bytes[..SHOWN]) + "...";
    }
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{SYN, patch, tcp};

    #[test]
    fn differing_fields_are_named() {
        let packet = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
        let frame = packet.frame();
        assert_eq!(differences(&frame, &frame), "");
        let changed = patch(packet.clone().from("198.51.100.10:4001").frame(), 24, &[0xbe, 0xef]);
        let told = differences(&frame, &changed);
        for line in [
            "ipv4 source: expected 10.0.1.2, got 198.51.100.10",
            "tcp source port: expected 4000, got 4001",
            "ipv4 checksum is: expected good, got bad",
        ] {
            assert!(told.contains(line), "{line}\nis not in\n{told}");
        }
        assert!(!told.contains("destination"), "{told}");
    }

    #[test]
    fn a_frame_that_ends_early_is_data() {
        let frame = tcp("[2001:db8::2]:4000", "[2001:db8::3]:443", SYN).extension(60, &[0; 14]).frame();
        for end in 14..frame.len() {
            let length = |(_, value): &(String, String)| value.len();
            assert!(fields(&frame[..end]).iter().map(length).sum::<usize>() > 0);
        }
        assert!(differences(&frame, &frame[..60]).contains("data"));
    }
}
