//! Packets of a capture, as questions.

use std::{
    fs::File,
    io::{BufReader, Read as _, Seek as _},
    net::IpAddr,
    path::Path,
};

use anyhow::{Context as _, Result, bail};
use etherparse::{Icmpv4Type, Icmpv6Type, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use pcap_file::{
    DataLink,
    pcap::PcapReader,
    pcapng::{Block, PcapNgReader},
};

use super::Question;
use crate::model::Proto;

/// What a pcapng file begins with; a pcap file begins with one of several numbers, which its reader knows.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Packets of a capture that are read.
pub const MOST: usize = 100_000;
/// Bytes of each that are kept: more than all headers have.
const HEADERS: usize = 1_024;

/// The frames of a capture in the form of pcap or pcapng, in order.
///
/// # Errors
/// The file cannot be read, is in another form, is not of Ethernet, or has more than [`MOST`] packets.
pub fn frames(path: &Path) -> Result<Vec<Vec<u8>>> {
    let mut file = File::open(path).context("cannot open it")?;
    let mut magic = [0; 4];
    file.read_exact(&mut magic).context("it is shorter than a capture")?;
    file.rewind().context("cannot read it from the start")?;
    let mut frames = Vec::new();
    let file = BufReader::new(file);
    if magic == PCAPNG {
        let mut reader = PcapNgReader::new(file).context("it is no capture")?;
        let mut links = Vec::new();
        while let Some(block) = reader.next_block() {
            match block.context("it is damaged")? {
                // Numbers of interfaces begin anew with each section.
                Block::SectionHeader(_) => links.clear(),
                Block::InterfaceDescription(interface) => links.push(interface.linktype),
                Block::EnhancedPacket(packet) => {
                    take(links.get(packet.interface_id as usize), &packet.data, &mut frames)?;
                }
                Block::SimplePacket(packet) => take(links.first(), &packet.data, &mut frames)?,
                Block::Packet(packet) => {
                    take(links.get(usize::from(packet.interface_id)), &packet.data, &mut frames)?;
                }
                Block::NameResolution(_)
                | Block::InterfaceStatistics(_)
                | Block::SystemdJournalExport(_)
                | Block::Unknown(_) => {}
            }
        }
    } else {
        let mut reader = PcapReader::new(file).context("it is neither pcap nor pcapng")?;
        let link = reader.header().datalink;
        // As it stands: the length on the wire may be more than what was kept.
        while let Some(packet) = reader.next_raw_packet() {
            take(Some(&link), &packet.context("it is damaged")?.data, &mut frames)?;
        }
    }
    Ok(frames)
}

fn take(link: Option<&DataLink>, data: &[u8], frames: &mut Vec<Vec<u8>>) -> Result<()> {
    match link {
        Some(DataLink::ETHERNET) => {}
        Some(other) => bail!("it is of link type {other:?}, and packets of a gateway are Ethernet frames"),
        None => bail!("it is damaged: a packet names an interface that is not described"),
    }
    if frames.len() == MOST {
        bail!("it has more than {MOST} packets");
    }
    frames.push(data[..data.len().min(HEADERS)].to_vec());
    Ok(())
}

/// The question about a packet, as the first one of its flow; or what it is that nothing can be asked about.
pub fn question(frame: &[u8], iif: Option<&str>) -> Result<Question, String> {
    let packet = LaxSlicedPacket::from_ethernet(frame).map_err(|_| "no Ethernet frame".to_owned())?;
    let (from, to): (IpAddr, IpAddr) = match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        Some(LaxNetSlice::Arp(_)) => return Err("ARP".to_owned()),
        None => return Err("no IP packet".to_owned()),
    };
    let (proto, source_port, port) = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => (Proto::Tcp, tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (Proto::Udp, udp.source_port(), udp.destination_port()),
        Some(TransportSlice::Icmpv4(icmp)) => {
            let Icmpv4Type::EchoRequest(echo) = icmp.icmp_type() else {
                return Err(format!("ICMP {from} > {to}, no echo request"));
            };
            (Proto::Icmp, echo.id, 0)
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            let Icmpv6Type::EchoRequest(echo) = icmp.icmp_type() else {
                return Err(format!("ICMPv6 {from} > {to}, no echo request"));
            };
            (Proto::Icmp, echo.id, 0)
        }
        Some(TransportSlice::Igmp(_)) => return Err(format!("IGMP {from} > {to}")),
        None => return Err(format!("{from} > {to}, a later fragment, or neither TCP, UDP nor ICMP")),
    };
    Ok(Question { from, source_port, to, port, proto, iif: iif.map(str::to_owned) })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A pcap file of frames of so many bytes on the wire, of which 96 were kept.
    fn capture(lengths: &[u32]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().expect("a file");
        let mut words = vec![0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 96, 1];
        for length in lengths {
            words.extend([1, 0, 96, *length]);
            words.extend([0; 24]);
        }
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        file.write_all(&bytes).expect("written");
        file
    }

    #[test]
    fn packets_that_were_cut_short_are_read() {
        let file = capture(&[96, 1_514]);
        let frames = frames(file.path()).expect("frames");
        assert_eq!(frames, [vec![0; 96], vec![0; 96]]);
    }
}
