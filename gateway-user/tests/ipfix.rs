//! What the exporter of the access log sends, read by Wireshark's decoder.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, UdpSocket},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use gateway_common::{DropReason, counter::Counter};
use gateway_user::{
    access_log,
    dataplane::{LogEvent, LogNames, Logged},
    model::{AccessLog, Sink},
};
use jiff::Timestamp;

/// The port that decoders take for IPFIX.
const PORT: u16 = 4739;

/// Fields as the decoder names them.
const FIELDS: [&str; 14] = [
    "cflow.sequence",
    "cflow.nat_event",
    "cflow.firewall_event",
    "cflow.flow_end_reason",
    "cflow.protocol",
    "cflow.srcaddr",
    "cflow.srcport",
    "cflow.dstaddr",
    "cflow.dstport",
    "cflow.post_natsource_ipv4_address",
    "cflow.initiator_octets",
    "cflow.responder_packets",
    "cflow.srcaddrv6",
    "cflow.post_nat_source_ipv6_address",
];

fn logged(event: LogEvent, source: &str, translated: Option<&str>, port: u16) -> Logged {
    let address = |text: &str| text.parse::<IpAddr>().expect("an address");
    let server = if source.contains(':') { "2001:db8::9" } else { "203.0.113.9" };
    Logged {
        event,
        time: Timestamp::from_second(1_700_000_000).expect("a time"),
        start: Timestamp::from_second(1_700_000_000).expect("a time"),
        proto: 6,
        source: (address(source), port),
        translated: translated.map(|text| (address(text), 41_234)),
        destination: (address(server), 443),
        names: Some(Arc::new(LogNames {
            table: "main".to_owned(),
            route: None,
            target: "pool nat".to_owned(),
        })),
    }
}

/// Datagrams as a capture of raw IPv4 packets to [`PORT`].
fn capture(datagrams: &[Vec<u8>]) -> Vec<u8> {
    // LINKTYPE_RAW.
    let mut file: Vec<u8> = [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 101]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    for datagram in datagrams {
        let (udp, ip) = (datagram.len() as u16 + 8, datagram.len() as u16 + 28);
        file.extend([0, 0, u32::from(ip), u32::from(ip)].iter().flat_map(|word| word.to_ne_bytes()));
        file.extend([0x45, 0]);
        file.extend(ip.to_be_bytes());
        file.extend([0, 0, 0, 0, 64, 17, 0, 0]);
        file.extend(Ipv4Addr::new(192, 0, 2, 1).octets());
        file.extend(Ipv4Addr::new(192, 0, 2, 2).octets());
        file.extend(PORT.to_be_bytes());
        file.extend(PORT.to_be_bytes());
        file.extend(udp.to_be_bytes());
        file.extend([0, 0]);
        file.extend(datagram);
    }
    file
}

/// What the decoder says of each datagram, field by field. `None`: it is not installed.
fn decoded(path: &Path) -> Option<Vec<Vec<String>>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(path).args(["-T", "fields", "-E", "separator=;", "-E", "occurrence=a"]);
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => panic!("tshark: {error}"),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    Some(text.lines().map(|line| line.split(';').map(str::to_owned).collect()).collect())
}

#[test]
fn an_independent_decoder_reads_what_is_exported() {
    let collector = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a socket");
    collector.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
    let address = collector.local_addr().expect("an address");
    let mut sink = access_log::open(&AccessLog::new(Sink::Ipfix(address))).expect("a socket");
    let close = LogEvent::Close {
        reason: "fin",
        sent: Counter { packets: 6, bytes: 480 },
        received: Counter { packets: 5, bytes: 4_000 },
    };
    let deny = LogEvent::Deny { reason: DropReason::Prohibited, sent: Counter { packets: 7, bytes: 700 } };
    let mut records = vec![
        logged(LogEvent::Open, "10.0.1.2", Some("198.51.100.10"), 50_000),
        logged(close, "10.0.1.2", Some("198.51.100.10"), 50_000),
        logged(close, "2001:db8:1::2", Some("2001:db8::10"), 50_001),
        logged(deny, "10.0.1.3", None, 0),
    ];
    // More than one message holds.
    records.extend((0..60).map(|port| logged(LogEvent::Open, "10.0.1.2", Some("198.51.100.10"), port)));
    let (taken, result) = sink.write(&records.iter().collect::<Vec<_>>());
    result.expect("sent");
    assert_eq!(taken, records.len());

    let mut datagrams = Vec::new();
    let mut buffer = [0; 2_048];
    collector.set_nonblocking(true).expect("set");
    while let Ok(length) = collector.recv(&mut buffer) {
        assert!(length <= 1_400, "{length} bytes");
        datagrams.push(buffer[..length].to_vec());
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("ipfix.pcap");
    fs::write(&path, capture(&datagrams)).expect("written");
    let Some(messages) = decoded(&path) else {
        println!("skipped: tshark is not installed");
        return;
    };
    let field = |message: usize, name: &str| {
        let index = FIELDS.iter().position(|field| *field == name).expect("a field");
        messages[message][index].as_str()
    };
    assert_eq!(messages.len(), datagrams.len());
    // Two records of NAT44.
    assert_eq!(field(0, "cflow.sequence"), "0");
    assert_eq!(field(0, "cflow.nat_event"), "4,5");
    assert_eq!(field(0, "cflow.flow_end_reason"), "0,3");
    assert_eq!(field(0, "cflow.protocol"), "6,6");
    assert_eq!(field(0, "cflow.srcaddr"), "10.0.1.2,10.0.1.2");
    assert_eq!(field(0, "cflow.srcport"), "50000,50000");
    assert_eq!(field(0, "cflow.dstaddr"), "203.0.113.9,203.0.113.9");
    assert_eq!(field(0, "cflow.dstport"), "443,443");
    assert_eq!(field(0, "cflow.post_natsource_ipv4_address"), "198.51.100.10,198.51.100.10");
    assert_eq!(field(0, "cflow.initiator_octets"), "0,480");
    assert_eq!(field(0, "cflow.responder_packets"), "0,5");
    // One of IPv6, and one that was denied.
    assert_eq!(field(1, "cflow.sequence"), "2");
    assert_eq!(field(1, "cflow.firewall_event"), "2");
    assert_eq!(field(1, "cflow.srcaddrv6"), "2001:db8:1::2");
    assert_eq!(field(1, "cflow.post_nat_source_ipv6_address"), "2001:db8::10");
    assert_eq!((field(2, "cflow.firewall_event"), field(2, "cflow.srcaddr")), ("3", "10.0.1.3"));
    assert_eq!(field(2, "cflow.initiator_octets"), "700");
    // The others, over several messages.
    let ports: Vec<&str> =
        (3..messages.len()).flat_map(|message| field(message, "cflow.srcport").split(',')).collect();
    assert_eq!(ports, (0..60).map(|port: u16| port.to_string()).collect::<Vec<_>>());
    assert_eq!(field(4, "cflow.sequence"), (4 + field(3, "cflow.srcport").split(',').count()).to_string());
}
