//! Pool addresses are on no host, and the link finds them all the same.

use std::time::Duration;

use anyhow::Result;
use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, PacketBuilder};
use gateway_lab::{Node, Rig, wire::Wire};

use super::{A_WHILE, with_one_pool};

const SOON: Duration = Duration::from_secs(2);

#[test]
fn arp_for_a_pool_address_is_answered_with_the_gateways_mac() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let isp = mac(&rig.lab.isp, "eth_gw")?;
    let wire = Wire::open(&rig.lab.isp, "eth_gw")?;
    wire.send(&who_has(isp, [198, 51, 100, 10]))?;
    let answer = wire.expect("ARP reply", SOON, |frame| frame[12..14] == [0x08, 0x06] && frame[21] == 2)?;
    let gateway = mac(&rig.lab.gw, "eth_out")?;
    assert_eq!(answer[..6], isp, "the reply goes to who asked");
    assert_eq!(answer[6..12], gateway);
    assert_eq!(answer[22..28], gateway, "sender hardware address");
    assert_eq!(answer[28..32], [198, 51, 100, 10], "sender protocol address");
    Ok(())
}

#[test]
fn arp_for_a_free_address_is_not_answered() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let isp = mac(&rig.lab.isp, "eth_gw")?;
    let wire = Wire::open(&rig.lab.isp, "eth_gw")?;
    wire.send(&who_has(isp, [198, 51, 100, 11]))?;
    let replies = wire.collect(A_WHILE)?;
    assert!(!replies.iter().any(|frame| !frame.sent && frame.bytes[12..14] == [0x08, 0x06]), "{replies:?}");
    // Once it is a pool's, it is; once it is not, it is not.
    rig.daemon.tell("pool set nat address 198.51.100.10,198.51.100.11")?;
    wire.send(&who_has(isp, [198, 51, 100, 11]))?;
    wire.expect("ARP reply", SOON, |frame| frame[12..14] == [0x08, 0x06] && frame[31] == 11)?;
    rig.daemon.tell("pool set nat address 198.51.100.10")?;
    wire.send(&who_has(isp, [198, 51, 100, 11]))?;
    let replies = wire.collect(A_WHILE)?;
    assert!(!replies.iter().any(|frame| !frame.sent && frame.bytes[12..14] == [0x08, 0x06]), "{replies:?}");
    Ok(())
}

#[test]
fn arp_for_the_hosts_own_address_is_left_to_the_host() -> Result<()> {
    let Some(rig) = with_one_pool()? else { return Ok(()) };
    let isp = mac(&rig.lab.isp, "eth_gw")?;
    let wire = Wire::open(&rig.lab.isp, "eth_gw")?;
    wire.send(&who_has(isp, [198, 51, 100, 2]))?;
    let answer = wire.expect("ARP reply", SOON, |frame| frame[12..14] == [0x08, 0x06] && frame[21] == 2)?;
    assert_eq!(answer[22..28], mac(&rig.lab.gw, "eth_out")?);
    Ok(())
}

#[test]
fn neighbour_solicitation_for_a_pool_address_is_answered() -> Result<()> {
    let Some(rig) = Rig::start("active", "")? else { return Ok(()) };
    rig.daemon.tell("pool add six address 2001:db8:ff::10")?;
    // The echo request is for no session; what matters is that the router found out whom to send it to.
    rig.lab.isp.run(&["ping", "-6", "-c", "1", "-W", "1", "2001:db8:ff::10"])?.expect_failure()?;
    let neighbour = rig.lab.isp.ip(&["-6", "neighbour", "show", "2001:db8:ff::10"])?;
    assert!(neighbour.contains(&rig.lab.gw.mac("eth_out")?), "{neighbour}");
    Ok(())
}

/// An ARP request from 198.51.100.1.
fn who_has(sender: [u8; 6], target: [u8; 4]) -> Vec<u8> {
    let question = ArpPacket::new(
        ArpHardwareId::ETHERNET,
        EtherType::IPV4,
        ArpOperation::REQUEST,
        &sender,
        &[198, 51, 100, 1],
        &[0; 6],
        &target,
    );
    let mut frame = Vec::new();
    if let Ok(question) = question {
        let _ = PacketBuilder::ethernet2(sender, [0xff; 6]).arp(question).write(&mut frame);
    }
    frame
}

fn mac(node: &Node, device: &str) -> Result<[u8; 6]> {
    let mut octets = [0; 6];
    for (octet, text) in octets.iter_mut().zip(node.mac(device)?.split(':')) {
        *octet = u8::from_str_radix(text, 16)?;
    }
    Ok(octets)
}
