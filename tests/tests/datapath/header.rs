//! The checks of RFC 1812 5.2.2 and RFC 8200, and what the link layer says.

use gateway_common::{
    DropReason::{BadChecksum, Malformed, Truncated, TtlExceeded},
    Verdict::{Direct, Snat},
};
use gateway_tests::{
    gateway::Action,
    packet::{BROADCAST_MAC, SYN, bare, checksum_of, patch, tcp, udp},
    policy::Policy,
};

use crate::support::{Lab, POOL, ROUTER, ROUTER6, dropped, passed, refused, sent, snat, standard, too_large};

/// Offset of the IP header.
const IP: usize = 14;

fn direct() -> Option<Lab> {
    standard(|policy| policy.routes("0.0.0.0/0 via direct\n::/0 via direct"))
}

/// A TCP segment whose IPv4 header has other bytes at an offset, and a right checksum.
fn bent(lab: &Lab, at: usize, bytes: &[u8]) -> Vec<u8> {
    let segment = lab.arriving("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN));
    let frame = patch(segment.frame(), IP + at, bytes);
    let frame = patch(frame, IP + 10, &[0, 0]);
    let checksum = checksum_of(&frame[IP..IP + 20]);
    patch(frame, IP + 10, &checksum.to_be_bytes())
}

#[test]
fn a_wrong_header_checksum_is_dropped() {
    let Some(mut lab) = direct() else { return };
    let frame = lab.arriving("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN)).frame();
    for bit in [0, 5, 15] {
        let [high, low] = (u16::from_be_bytes([frame[24], frame[25]]) ^ 1 << bit).to_be_bytes();
        lab.check_frame("in0", &patch(frame.clone(), IP + 10, &[high, low]), dropped(BadChecksum));
    }
    lab.check_frame("out0", &patch(frame, IP + 10, &[0, 0]), dropped(BadChecksum));
}

#[test]
fn an_impossible_ipv4_header_is_dropped() {
    let Some(mut lab) = direct() else { return };
    for (what, at, bytes) in [
        ("version 5", 0, [0x55, 0]),
        ("version 6", 0, [0x65, 0]),
        ("a header of 16 bytes", 0, [0x44, 0]),
        ("no header", 0, [0x40, 0]),
        ("a total length shorter than the header", 2, [0, 19]),
        ("no length", 2, [0, 0]),
    ] {
        println!("{what}");
        lab.check_frame("in0", &bent(&lab, at, &bytes), dropped(Malformed));
    }
    // Options that reach beyond the packet: 60 bytes of header in 50.
    lab.check_frame("in0", &bent(&lab, 0, &[0x4f, 0, 0, 50]), dropped(Malformed));
}

#[test]
fn a_frame_that_ends_before_its_packet_is_dropped() {
    let Some(mut lab) = direct() else { return };
    let length = 20 + 20 + 10;
    lab.check_frame("in0", &bent(&lab, 2, &[0, length + 1]), dropped(Truncated));
    lab.check_frame("in0", &bent(&lab, 2, &[0xff, 0xff]), dropped(Truncated));
    let frame = lab.arriving("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN)).frame();
    for end in [14, 15, 33, 34, 53, 63] {
        lab.check_frame("in0", &frame[..end], dropped(Truncated));
    }
}

#[test]
fn a_packet_that_ends_before_its_transport_header_is_dropped() {
    let Some(mut lab) = direct() else { return };
    for (proto, needed) in [(6, 20), (17, 8), (1, 8)] {
        for length in [0, 1, needed - 1] {
            let short = bare("10.0.1.2", "203.0.113.10", proto).payload(vec![0; length]);
            lab.check("in0", &short, dropped(Truncated));
            // Padding of the frame is not part of the packet.
            let mut padded = short.clone();
            padded.trailer = vec![0; 40];
            lab.check("in0", &padded, dropped(Truncated));
            // A first fragment has to have it too (RFC 1858 calls its absence an attack).
            lab.check("in0", &short.fragment(0, true), dropped(Malformed));
        }
        let later = bare("10.0.1.2", "203.0.113.10", proto).payload([1]).fragment(200, false);
        lab.check("in0", &later, sent("out0", ROUTER, Direct, &later).by("0.0.0.0/0", "direct"));
    }
    let gre = bare("10.0.1.2", "203.0.113.10", 47).payload([]);
    lab.check("in0", &gre, sent("out0", ROUTER, Direct, &gre).by("0.0.0.0/0", "direct"));
}

#[test]
fn the_last_hop_of_a_packet_ends_at_the_gateway() {
    let Some(mut lab) = snat() else { return };
    for ttl in [0, 1] {
        let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).ttl(ttl);
        lab.check("in0", &syn, refused(TtlExceeded).by("0.0.0.0/0", "pool"));
    }
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN).ttl(2);
    let expected = sent("out0", ROUTER, Snat, &syn.clone().from("198.51.100.10:4000"));
    lab.check("in0", &syn, expected.by("0.0.0.0/0", "pool").opening("tcp", POOL));
    // In both directions of a session.
    lab.check("in0", &syn.clone().ttl(1), refused(TtlExceeded).by("0.0.0.0/0", "pool"));
    let answer = syn.from("198.51.100.10:4000").answer().macs([0; 6], [0; 6]).ttl(1);
    lab.check("out0", &answer, refused(TtlExceeded).by("0.0.0.0/0", "pool"));
}

#[test]
fn a_packet_larger_than_the_mtu_of_its_way_out_is_dropped() {
    let Some(mut lab) = standard(|policy| {
        policy
            .pool("nat", POOL, "1024-65535")
            .routes("203.0.113.200/32 via direct\n203.0.113.201/32 via pool nat\n2001:db8:f1::/48 via direct")
    }) else {
        return;
    };
    let datagram = udp("10.0.1.2:4000", "203.0.113.200:53");
    let fits = datagram.clone().length(1280);
    let expected = sent("out1", "10.9.0.254", Direct, &fits).by("203.0.113.200/32", "direct");
    lab.check("in0", &fits, expected);
    let large = datagram.length(1281);
    lab.check("in0", &large, too_large(1280).by("203.0.113.200/32", "direct"));

    let datagram = udp("10.0.1.2:4000", "203.0.113.201:53");
    let large = datagram.clone().length(1281);
    lab.check("in0", &large, too_large(1280).by("203.0.113.201/32", "pool"));
    let fits = datagram.length(1280);
    let expected = sent("out1", "10.9.0.254", Snat, &fits.clone().from("198.51.100.10:4000"));
    lab.check("in0", &fits, expected.by("203.0.113.201/32", "pool").opening("udp", POOL));
    // The session knows the MTU too.
    lab.check("in0", &large, too_large(1280).by("203.0.113.201/32", "pool"));

    let datagram = udp("[2001:db8:1::2]:4000", "[2001:db8:f1::1]:53");
    let fits = datagram.clone().length(1280);
    let expected = sent("out1", "2001:db8:9::254", Direct, &fits);
    lab.check("in0", &fits, expected.by("2001:db8:f1::/48", "direct"));
    lab.check("in0", &datagram.length(1281), too_large(1280).by("2001:db8:f1::/48", "direct"));
}

#[test]
fn martian_addresses_are_dropped() {
    let Some(mut lab) = direct() else { return };
    for source in
        ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "224.0.0.1", "240.0.0.1", "255.255.255.255"]
    {
        lab.check("in0", &bare(source, "203.0.113.10", 47), dropped(Malformed));
        lab.check("out0", &bare(source, "10.0.1.2", 47), dropped(Malformed));
    }
    for destination in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.1.2.3", "240.0.0.1", "255.255.255.254"] {
        lab.check("in0", &bare("10.0.1.2", destination, 47), dropped(Malformed));
    }
    for source in ["::", "::1", "ff02::1", "fe80::1"] {
        lab.check("in0", &bare(source, "2001:db8:f::1", 47), dropped(Malformed));
    }
    for destination in ["::", "::1"] {
        lab.check("in0", &bare("2001:db8:1::2", destination, 47), dropped(Malformed));
    }
}

#[test]
fn multicast_and_broadcast_go_to_the_host() {
    let Some(mut lab) = direct() else { return };
    for destination in ["224.0.0.5", "239.1.2.3", "255.255.255.255", "10.0.1.255", "10.0.1.1", "192.0.2.255"]
    {
        lab.check("in0", &bare("10.0.1.2", destination, 89), passed());
    }
    for destination in ["ff02::5", "ff0e::1", "fe80::1", "2001:db8:1::1"] {
        lab.check("in0", &bare("2001:db8:1::2", destination, 89), passed());
    }
    // DHCP: from nowhere to everybody.
    lab.check("in0", &udp("0.0.0.0:68", "255.255.255.255:67"), passed());
    // A unicast packet in a broadcast frame is not forwarded (RFC 1812 5.3.4).
    let unicast = udp("10.0.1.2:4000", "203.0.113.10:53").macs([2, 4, 10, 0, 1, 2], BROADCAST_MAC);
    lab.check("in0", &unicast, passed());
}

#[test]
fn frames_for_other_stations_are_not_forwarded() {
    let Some(mut lab) = snat() else { return };
    let syn = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    let other = syn.clone().macs([2, 4, 10, 0, 1, 2], [2, 4, 10, 0, 1, 3]);
    lab.check("in0", &other, passed());
    // Not even those of a session.
    lab.open("in0", &syn);
    lab.check("in0", &other, passed());
}

#[test]
fn neighbours_may_speak_to_the_host_from_addresses_that_nobody_forwards() {
    let Some(mut lab) = direct() else { return };
    for source in ["fe80::9", "::"] {
        lab.check("in0", &udp(&format!("[{source}]:4000"), "[2001:db8:1::1]:53"), passed());
    }
    lab.check("in0", &udp("0.0.0.0:68", "10.0.1.1:67"), passed());
}

#[test]
fn a_priority_tag_is_taken_off() {
    let Some(mut lab) = snat() else { return };
    let plain = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    let tagged = plain.clone().tag(0x8100, 0xa000);
    let expected = sent("out0", ROUTER, Snat, &plain.clone().from("198.51.100.10:4000"));
    lab.check("in0", &tagged, expected.by("0.0.0.0/0", "pool").opening("tcp", POOL));
    let twice = plain.clone().tag(0x88a8, 0x2000).tag(0x8100, 0);
    let expected = sent("out0", ROUTER, Snat, &plain.from("198.51.100.10:4000"));
    lab.check("in0", &twice, expected.by("0.0.0.0/0", "pool"));
}

#[test]
fn packets_of_a_vlan_are_the_hosts_business() {
    let Some(mut lab) = snat() else { return };
    let plain = tcp("10.0.1.2:4000", "203.0.113.10:443", SYN);
    for tagged in [
        plain.clone().tag(0x8100, 7),
        plain.clone().tag(0x88a8, 0x6fff),
        plain.clone().tag(0x88a8, 0).tag(0x8100, 1),
        plain.clone().tag(0x88a8, 7).tag(0x8100, 0),
    ] {
        lab.check("in0", &tagged, passed());
    }
    // The host's stack would take all of these off, and forward.
    let wrapped = plain.tag(0x8100, 0).tag(0x8100, 0).tag(0x8100, 0);
    lab.check("in0", &wrapped, dropped(Malformed));
}

#[test]
fn protocols_other_than_ip_are_the_hosts_business() {
    let Some(mut lab) = snat() else { return };
    let frame = lab.arriving("in0", &tcp("10.0.1.2:4000", "203.0.113.10:443", SYN)).frame();
    for ethertype in [0x88ccu16, 0x8809, 0x8864, 0x0027, 0x86de] {
        lab.check_frame("in0", &patch(frame.clone(), 12, &ethertype.to_be_bytes()), passed());
    }
    lab.check_frame("in0", &patch(frame, 12, &[0x88, 0xcc])[..14], passed());
}

#[test]
fn an_impossible_ipv6_header_is_dropped() {
    let Some(mut lab) = direct() else { return };
    let datagram = udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53").payload([0; 8]);
    let frame = lab.arriving("in0", &datagram).frame();
    lab.check_frame("in0", &patch(frame.clone(), IP, &[0x40]), dropped(Malformed));
    lab.check_frame("in0", &patch(frame.clone(), IP + 4, &[0, 17]), dropped(Truncated));
    for end in [14, 53, 54, 61, 69] {
        lab.check_frame("in0", &frame[..end], dropped(Truncated));
    }
    // A payload shorter than the header it begins with.
    for length in [0, 7] {
        lab.check_frame("in0", &patch(frame.clone(), IP + 4, &[0, length]), dropped(Truncated));
    }
    // An extension header that ends behind the packet; one that is not there at all.
    let long = datagram.extension(60, &[1, 4, 0, 0, 0, 0]);
    let frame = lab.arriving("in0", &long).frame();
    lab.check_frame("in0", &patch(frame.clone(), IP + 41, &[3]), dropped(Malformed));
    lab.check_frame("in0", &patch(frame, IP + 4, &[0, 7]), dropped(Malformed));
    let none = bare("2001:db8:1::2", "2001:db8:f::1", 43).payload([]);
    lab.check("in0", &none, dropped(Malformed));
}

#[test]
fn extension_headers_are_looked_through() {
    let Some(mut lab) =
        standard(|policy| policy.routes("::/0 via blackhole\n::/0 via direct proto udp dport 53"))
    else {
        return;
    };
    let mut datagram = udp("[2001:db8:1::2]:4000", "[2001:db8:f::1]:53");
    for (kind, data) in [
        (0, [5, 2, 0, 0, 0, 0].to_vec()),
        (60, [1; 14].to_vec()),
        (43, [4, 0, 0, 0, 0, 0].to_vec()),
        (60, [1; 6].to_vec()),
        (0, [1; 22].to_vec()),
        (60, [1; 6].to_vec()),
    ] {
        datagram = datagram.extension(kind, &data);
        let expected = sent("out0", ROUTER6, Direct, &datagram);
        lab.check("in0", &datagram, expected.by("::/0 proto udp dport 53", "direct"));
    }
    // Beyond the sixth the gateway does not look, and lets nothing pass whose port it cannot see.
    let seventh = datagram.extension(60, &[1; 6]);
    lab.check("in0", &seventh, dropped(Malformed));
}

#[test]
fn packets_of_an_unknown_device_have_their_place_in_the_sum() {
    let Some(mut lab) = snat() else { return };
    let frame = lab.arriving("lan0", &udp("10.8.0.2:4000", "203.0.113.10:53")).frame();
    let bytes = frame.len();
    for (active, action, counted) in [
        (
            true,
            Action::Drop,
            format!("  drops internal: 1 ({bytes} bytes)\n  traffic unknown > - drop: 1 ({bytes} bytes)\n"),
        ),
        (false, Action::Pass, format!("  traffic unknown > - host: 1 ({bytes} bytes)\n")),
    ] {
        lab.change(if active { Policy::active } else { Policy::inactive });
        let before = lab.counters();
        assert_eq!(lab.run("lan0", &frame).action, action);
        assert_eq!(lab.counters().since(&before).to_string(), counted);
    }
}
