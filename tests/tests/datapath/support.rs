//! Cases: a packet, and all that must come of it.

use std::{
    net::IpAddr,
    ops::{Deref, DerefMut},
    panic::Location,
    thread,
};

use gateway_common::{DropReason, Verdict, counter::Counter};
use gateway_tests::{
    counters::{self, Counters},
    gateway::{Action, Gateway, Outcome},
    network::{Network, mac},
    packet::{self, Packet, Tunnel, differences, icmp_error, ip},
    pcap::Pcap,
    policy::Policy,
};

/// The default router of [`Network::standard`].
pub(crate) const ROUTER: &str = "192.0.2.254";
/// The default router for IPv6.
pub(crate) const ROUTER6: &str = "2001:db8:2::254";
/// Address of pool `nat` in [`snat`].
pub(crate) const POOL: &str = "198.51.100.10";
/// IPv6 address of pool `nat` in [`snat`].
pub(crate) const POOL6: &str = "2001:db8:100::10";

/// A gateway under test.
pub(crate) struct Lab {
    gateway: Gateway,
    policy: Policy,
}

/// What must come of a packet. Counters that are not named must not move.
pub(crate) struct Expected {
    outcome: Kind,
    counters: Counters,
    /// What the frame is put into before it leaves.
    around: Option<Tunnel>,
    /// Bytes that are counted, where they are not those of the frame.
    bytes: Option<usize>,
    /// What is left of a frame that is dropped, where that is not the frame.
    left: Option<Vec<u8>>,
}

enum Kind {
    Passed,
    Dropped(DropReason),
    Answered(Vec<u8>),
    Refused { reason: DropReason, mtu: u16 },
    Reset(DropReason),
    Sent { egress: &'static str, to: IpAddr, verdict: Verdict, packet: Box<Packet> },
}

/// A gateway in the standard network. `None`: skipped.
pub(crate) fn standard(policy: impl FnOnce(Policy) -> Policy) -> Option<Lab> {
    lab(Network::standard(), policy)
}

/// As [`standard`], and everything goes out through pool `nat`, [`POOL`] and [`POOL6`].
pub(crate) fn snat() -> Option<Lab> {
    standard(nat)
}

/// Adds pool `nat` and routes that lead everything to it.
pub(crate) fn nat(policy: Policy) -> Policy {
    policy
        .pool("nat", &format!("{POOL} {POOL6}"), "1024-65535")
        .routes("0.0.0.0/0 via pool nat\n::/0 via pool nat")
}

/// A gateway in another network.
pub(crate) fn lab(network: Network, policy: impl FnOnce(Policy) -> Policy) -> Option<Lab> {
    let policy = policy(Policy::of(&network));
    let gateway = Gateway::start(network, &policy)?;
    Some(Lab { gateway, policy })
}

/// Handed to the host, or not the gateway's business: untouched.
pub(crate) fn passed() -> Expected {
    Expected::new(Kind::Passed)
}

/// Dropped, untouched.
pub(crate) fn dropped(reason: DropReason) -> Expected {
    Expected::new(Kind::Dropped(reason))
}

/// Dropped, and its sender is told by an ICMP error.
pub(crate) fn refused(reason: DropReason) -> Expected {
    Expected::new(Kind::Refused { reason, mtu: 0 })
}

/// Dropped, and its sender is told the MTU that it is too large for.
pub(crate) fn too_large(mtu: u16) -> Expected {
    Expected::new(Kind::Refused { reason: DropReason::MtuExceeded, mtu })
}

/// Dropped, and its sender is told by a TCP reset.
pub(crate) fn reset(reason: DropReason) -> Expected {
    Expected::new(Kind::Reset(reason))
}

/// Answered with exactly this frame, where it came from.
pub(crate) fn answered(frame: Vec<u8>) -> Expected {
    Expected::new(Kind::Answered(frame))
}

/// Sent out of `egress` to the neighbour `to`. It leaves as `packet` with one hop less, between the MAC
/// addresses of the device and the neighbour.
pub(crate) fn sent(egress: &'static str, to: &str, verdict: Verdict, packet: &Packet) -> Expected {
    Expected::new(Kind::Sent { egress, to: ip(to), verdict, packet: Box::new(packet.clone()) })
}

impl Expected {
    fn new(outcome: Kind) -> Self {
        Self { outcome, counters: Counters::default(), around: None, bytes: None, left: None }
    }

    /// In this tunnel.
    pub(crate) fn within(self, tunnel: &Tunnel) -> Self {
        Self { around: Some(*tunnel), ..self }
    }

    /// Counted with as many bytes as this frame has, which was in a tunnel.
    pub(crate) fn counted_as(self, inner: &Packet) -> Self {
        self.counted_with(inner.frame().len())
    }

    /// Dropped as this frame, which was in a tunnel, and counted as such.
    pub(crate) fn taken_out(self, inner: Vec<u8>) -> Self {
        Self { bytes: Some(inner.len()), left: Some(inner), ..self }
    }

    /// Counted with this many bytes.
    pub(crate) fn counted_with(self, bytes: usize) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    /// By this route (`203.0.113.0/24 proto tcp`) of table `main`, with a target of this kind.
    pub(crate) fn by(self, route: &'static str, target: &'static str) -> Self {
        self.by_table("main", route, target)
    }

    /// By this route of this table.
    pub(crate) fn by_table(mut self, table: &str, route: &str, target: &str) -> Self {
        // A marker: bytes are those of the frame, which is not known yet.
        self.counters.count(format!("route {table} {route}"), 1);
        self.counters.count(format!("table {table} {target}"), 1);
        self
    }

    /// By a route without a counter of its own: its table counts this kind of target.
    pub(crate) fn by_shared(self, table: &str, target: &str) -> Self {
        self.counting(&format!("table {table} {target}"))
    }

    /// By a new session on this address of pool `nat`.
    pub(crate) fn opening(self, proto: &str, address: &str) -> Self {
        self.opening_in("nat", proto, address)
    }

    /// By a new session on this address of this pool.
    pub(crate) fn opening_in(self, pool: &str, proto: &str, address: &str) -> Self {
        self.counting(&format!("sessions {proto} created"))
            .counting(&format!("pool {pool} {address} attempts"))
            .counting(&format!("pool {pool} {address} opened"))
    }

    /// The first answer to a session on this address of pool `nat`.
    pub(crate) fn establishing(self, address: &str) -> Self {
        self.counting(&format!("pool nat {address} established"))
    }

    /// And this counter, which has no bytes, goes up by one.
    pub(crate) fn counting(mut self, name: &str) -> Self {
        self.counters.count(name.to_owned(), 1);
        self
    }
}

impl Lab {
    /// The gateway, to ask it.
    pub(crate) fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// Changes the policy.
    pub(crate) fn change(&mut self, change: impl FnOnce(Policy) -> Policy) {
        self.policy = change(self.policy.clone());
        self.gateway.apply(&self.policy);
    }

    /// The policy in force.
    pub(crate) fn policy(&self) -> Policy {
        self.policy.clone()
    }

    /// See [`Gateway::end`].
    pub(crate) fn end(self) -> [Vec<String>; 2] {
        self.gateway.end()
    }

    /// The packet as it arrives on a device: from the MAC address of its source to that of the device, unless
    /// it says otherwise.
    pub(crate) fn arriving(&self, device: &str, packet: &Packet) -> Packet {
        if packet.destination_mac == [0; 6] {
            packet.clone().macs(mac(packet.source), self.gateway.network().find(device).mac())
        } else {
            packet.clone()
        }
    }

    /// Lets a packet arrive and checks all that comes of it.
    #[track_caller]
    pub(crate) fn check(&mut self, device: &str, packet: &Packet, expected: Expected) {
        let frame = self.arriving(device, packet).frame();
        self.check_frame(device, &frame, expected);
    }

    /// As [`Lab::check`], for a frame that may be broken.
    #[track_caller]
    pub(crate) fn check_frame(&mut self, device: &str, frame: &[u8], expected: Expected) {
        let before = self.gateway.counters();
        let actual = self.gateway.run(device, frame);
        let moved = self.gateway.counters().since(&before);
        let (wanted, counted) = expected.resolve(self.gateway.network(), device, frame);
        let mut complaint = String::new();
        if actual.action != wanted.action {
            complaint = format!("  action: expected {:?}, got {:?}\n", wanted.action, actual.action);
        }
        complaint += &differences(&wanted.frame, &actual.frame);
        complaint += &counted.differences(&moved);
        if !complaint.is_empty() {
            let capture = capture(&[frame, &wanted.frame, &actual.frame]);
            panic!("not what must come of it:\n{complaint}  in, expected and got are in {capture}");
        }
    }

    /// Lets a packet arrive that only prepares the case.
    pub(crate) fn prepare(&mut self, device: &str, packet: &Packet) -> Outcome {
        let frame = self.arriving(device, packet).frame();
        self.gateway.run(device, &frame)
    }

    /// As [`Lab::prepare`], for a packet that must open a session; returns the port it got.
    #[track_caller]
    pub(crate) fn open(&mut self, device: &str, packet: &Packet) -> (IpAddr, u16) {
        let outcome = self.prepare(device, packet);
        assert!(matches!(outcome.action, Action::Redirect | Action::Tx), "no session: {outcome:?}");
        translated(&outcome.frame)
    }
}

impl Deref for Lab {
    type Target = Gateway;

    fn deref(&self) -> &Gateway {
        &self.gateway
    }
}

impl DerefMut for Lab {
    fn deref_mut(&mut self) -> &mut Gateway {
        &mut self.gateway
    }
}

/// Source address and source port (or echo identifier) of a frame without tags, options and extensions.
pub(crate) fn translated(frame: &[u8]) -> (IpAddr, u16) {
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let bytes = |from: usize, length| frame[from..from + length].to_vec();
    if frame[12..14] == [0x08, 0x00] {
        let address: [u8; 4] = bytes(26, 4).try_into().expect("4 bytes");
        (address.into(), port(if frame[23] == 1 { 38 } else { 34 }))
    } else {
        let address: [u8; 16] = bytes(22, 16).try_into().expect("16 bytes");
        (address.into(), port(if frame[20] == 58 { 58 } else { 54 }))
    }
}

impl Expected {
    fn resolve(self, network: &Network, ingress: &str, frame: &[u8]) -> (Outcome, Counters) {
        let left = self.left.unwrap_or_else(|| frame.to_vec());
        let unchanged = |action| Outcome { action, frame: left.clone() };
        let told = |packet: Packet| Outcome { action: Action::Tx, frame: packet.frame() };
        let device = network.find(ingress);
        let (outcome, egress, verdict) = match self.outcome {
            Kind::Passed => (unchanged(Action::Pass), None, Verdict::Host),
            Kind::Dropped(_) => (unchanged(Action::Drop), None, Verdict::Drop),
            Kind::Refused { reason, mtu } => {
                let own = device.address(frame[14] >> 4 == 4);
                let told = match &self.around {
                    Some(tunnel) => {
                        let error = icmp_error(inside(frame), 14, (device.mac(), own), reason, mtu);
                        let macs = (device.mac(), mac(tunnel.host.0));
                        Outcome { action: Action::Tx, frame: tunnel.to_host(macs, &error) }
                    }
                    None => told(icmp_error(frame, 14, (device.mac(), own), reason, mtu)),
                };
                (told, None, Verdict::Drop)
            }
            Kind::Reset(_) => (told(packet::reset(frame, 14, device.mac())), None, Verdict::Drop),
            Kind::Answered(ref answer) => {
                (Outcome { action: Action::Tx, frame: answer.clone() }, Some(ingress), Verdict::Host)
            }
            Kind::Sent { egress, to, verdict, ref packet } => {
                let packet = packet.clone().ttl(packet.ttl - 1);
                let macs = (network.find(egress).mac(), mac(to));
                let frame = match &self.around {
                    Some(tunnel) => tunnel.to_host(macs, &packet),
                    None => packet.macs(macs.0, macs.1).frame(),
                };
                let action = if egress == ingress { Action::Tx } else { Action::Redirect };
                (Outcome { action, frame }, Some(egress), verdict)
            }
        };
        let length = self.bytes.unwrap_or(frame.len());
        let bytes = length as u64;
        let mut counters = self.counters.map(|name, counter| {
            let has_bytes = name.starts_with("route ") || name.starts_with("table ");
            Counter { bytes: if has_bytes { counter.packets * bytes } else { 0 }, ..counter }
        });
        counters.packet(counters::traffic(ingress, egress, verdict), length);
        if let Kind::Dropped(reason) | Kind::Refused { reason, .. } | Kind::Reset(reason) = self.outcome {
            counters.packet(counters::drops(reason), length);
        }
        (outcome, counters)
    }
}

/// The frame inside of one with IPv4 around it.
fn inside(frame: &[u8]) -> &[u8] {
    &frame[14 + 20 + 8 + 8..]
}

#[track_caller]
fn capture(frames: &[&[u8]]) -> String {
    let test = thread::current().name().unwrap_or("datapath").to_owned();
    let name = format!("{test}_line_{}", Location::caller().line());
    let written = Pcap::create(&name).and_then(|mut pcap| {
        for (number, frame) in frames.iter().enumerate() {
            pcap.frame(0, number as u32, frame)?;
        }
        pcap.finish()
    });
    written.map_or_else(|error| format!("no file: {error:#}"), |path| path.display().to_string())
}
