//! Frames that are not plain IP over Ethernet.

use std::time::Duration;

use anyhow::{Context as _, Result};
use etherparse::{
    EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, SingleVlanHeader,
    SlicedPacket, TransportSlice, UdpHeader, VlanId, VlanPcp,
};
use gateway_lab::{Rig, wire::Wire};

use super::{A_WHILE, source, with_one_pool};

const SOON: Duration = Duration::from_secs(2);
const CLIENT: [u8; 4] = [10, 0, 1, 2];
const SERVER: [u8; 4] = [203, 0, 113, 10];

#[test]
fn ping_with_record_route_passes_translation() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let said = rig.lab.c1.ok(&["ping", "-c", "1", "-W", "2", "-R", "203.0.113.10"])?;
    assert!(said.contains("RR:"), "the option came back: {said}");
    Ok(())
}

#[test]
fn ip_options_survive_translation_and_checksums_are_right() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    // Router alert (RFC 2113) would be for routers; no-operation and end of list are for nobody.
    let options = Ipv4Options::try_from(&[1, 1, 1, 1, 1, 1, 1, 0][..])?;
    let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, CLIENT, SERVER)?;
    header.options = options.clone();
    let sent = udp_frame(&rig, &mut header, None)?;
    let heard = outside(&rig, &sent)?;
    let packet = SlicedPacket::from_ethernet(&heard)?;
    let ip = packet.net.as_ref().and_then(|net| net.ipv4_ref()).context("not IPv4")?;
    let ip_header = ip.header().to_header();
    assert_eq!(ip_header.options, options);
    assert_eq!(ip_header.source, [198, 51, 100, 10]);
    assert_eq!(ip_header.header_checksum, ip_header.calc_header_checksum());
    assert_eq!(ip_header.time_to_live, 63);
    let Some(TransportSlice::Udp(udp)) = &packet.transport else { panic!("not UDP") };
    let right = udp.to_header().calc_checksum_ipv4(&ip_header, udp.payload())?;
    assert_eq!(udp.checksum(), right);
    Ok(())
}

#[test]
fn a_priority_tag_is_looked_through() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, CLIENT, SERVER)?;
    let sent = udp_frame(&rig, &mut header, Some(VlanId::ZERO))?;
    let heard = outside(&rig, &sent)?;
    assert_eq!(source(&heard), Some([198, 51, 100, 10]));
    Ok(())
}

#[test]
fn a_tagged_frame_belongs_to_the_vlan_and_is_left_to_the_host() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, CLIENT, SERVER)?;
    let sent = udp_frame(&rig, &mut header, Some(VlanId::try_new(7)?))?;
    let listener = Wire::open(&rig.lab.isp, "eth_gw")?;
    let host = r#"gateway_packets_total{direction="in",interface="eth_in1",verdict="host"}"#;
    let before = rig.daemon.count(host)?;
    Wire::open(&rig.lab.c1, "eth0")?.send(&sent)?;
    let leaked = listener.collect(A_WHILE)?;
    assert!(!leaked.iter().any(|frame| frame.bytes.get(23) == Some(&17)), "{leaked:?}");
    assert!(rig.daemon.count(host)? > before);
    Ok(())
}

#[test]
fn a_source_that_does_not_belong_there_is_dropped() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    // An address of another inside interface, and one of the outside.
    for spoofed in [[10, 0, 2, 2], [203, 0, 113, 99]] {
        let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, spoofed, SERVER)?;
        let frame = udp_frame(&rig, &mut header, None)?;
        Wire::open(&rig.lab.c1, "eth0")?.send(&frame)?;
    }
    let counted = || rig.daemon.drops("spoofed_source").is_ok_and(|drops| drops == 2);
    gateway_lab::wait_until("two spoofed_source drops", SOON, counted)
}

#[test]
fn a_wrong_header_checksum_is_dropped() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, CLIENT, SERVER)?;
    let mut frame = udp_frame(&rig, &mut header, None)?;
    frame[24] ^= 0x55;
    Wire::open(&rig.lab.c1, "eth0")?.send(&frame)?;
    let counted = || rig.daemon.drops("bad_checksum").is_ok_and(|drops| drops == 1);
    gateway_lab::wait_until("a bad_checksum drop", SOON, counted)
}

#[test]
fn a_fragment_whose_first_one_is_missing_does_not_leak() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let listener = Wire::open(&rig.lab.isp, "eth_gw")?;
    let mut header = Ipv4Header::new(0, 64, IpNumber::UDP, CLIENT, SERVER)?;
    header.dont_fragment = false;
    header.fragment_offset = IpFragOffset::try_new(200)?;
    let frame = udp_frame(&rig, &mut header, None)?;
    Wire::open(&rig.lab.c1, "eth0")?.send(&frame)?;
    let leaked = listener.collect(A_WHILE)?;
    assert!(!leaked.iter().any(|frame| source(&frame.bytes).is_some_and(|address| address[0] == 10)));
    assert_eq!(rig.daemon.drops("fragment_unmatched")?, 1);
    Ok(())
}

/// A datagram from the client `c1` to the gateway, with this IP header and perhaps a tag.
fn udp_frame(rig: &Rig, header: &mut Ipv4Header, tag: Option<VlanId>) -> Result<Vec<u8>> {
    let payload = b"in a strange frame";
    header.set_payload_len(UdpHeader::LEN + payload.len())?;
    header.header_checksum = header.calc_header_checksum();
    let udp = UdpHeader::with_ipv4_checksum(5000, 53, header, payload)?;
    let mut frame = Vec::new();
    Ethernet2Header {
        source: octets(&rig.lab.c1.mac("eth0")?)?,
        destination: octets(&rig.lab.gw.mac("eth_in1")?)?,
        ether_type: if tag.is_some() { EtherType::VLAN_TAGGED_FRAME } else { EtherType::IPV4 },
    }
    .write(&mut frame)?;
    if let Some(vlan_id) = tag {
        let pcp = VlanPcp::ZERO;
        SingleVlanHeader { pcp, drop_eligible_indicator: false, vlan_id, ether_type: EtherType::IPV4 }
            .write(&mut frame)?;
    }
    header.write(&mut frame)?;
    udp.write(&mut frame)?;
    frame.extend_from_slice(payload);
    Ok(frame)
}

/// Sends a frame from `c1` and returns the datagram that arrives outside.
fn outside(rig: &Rig, frame: &[u8]) -> Result<Vec<u8>> {
    let listener = Wire::open(&rig.lab.isp, "eth_gw")?;
    Wire::open(&rig.lab.c1, "eth0")?.send(frame)?;
    listener.expect("UDP datagram", SOON, |heard| source(heard).is_some() && heard[23] == 17)
}

/// A MAC address as it is on the wire.
pub(super) fn octets(mac: &str) -> Result<[u8; 6]> {
    let mut octets = [0; 6];
    for (octet, text) in octets.iter_mut().zip(mac.split(':')) {
        *octet = u8::from_str_radix(text, 16)?;
    }
    Ok(octets)
}
