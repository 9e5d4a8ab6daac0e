//! Routes that change through the API as fast as it answers, while datagrams of old and new flows leave.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::UdpSocket,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gateway_lab::{Node, Rig, wire::Wire};

use super::{source, walk::routes_and_counts};

pub(super) const READY: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10"]
per_destination = { rate = 0, concurrent = 0 }
[[pool]]
name = "other"
addresses = ["198.51.100.11"]
per_destination = { rate = 0, concurrent = 0 }
[[proxy]]
name = "router"
hosts = ["10.0.3.2"]
[[table]]
name = "beyond"
bind = ["10.0.3.2/32"]
routes = [{ to = "0.0.0.0/0", via = "pool other" }]
"#;
const SERVER: &str = "203.0.113.10:53";
const ROUTE: &str = "203.0.113.10/32";
/// Most flows between two targets; each has a port of its own, because sessions stay where they are.
const FLOWS: u16 = 2_000;
/// Changes of the route between two targets.
const FLIPS: u32 = 60;
/// How long to look at the wire before asking whether that is all.
const MEANWHILE: Duration = Duration::from_millis(200);
/// Until what is under way has arrived.
const SETTLED: Duration = Duration::from_millis(500);
/// The client, the pools, as the provider sees them.
pub(super) const OWN: [u8; 4] = [10, 0, 1, 2];
pub(super) const NAT: [u8; 4] = [198, 51, 100, 10];
pub(super) const OTHER: [u8; 4] = [198, 51, 100, 11];

#[test]
fn no_packet_takes_a_route_that_never_was_however_fast_routes_change() -> Result<()> {
    let Some(rig) = Rig::start("active", READY)? else { return Ok(()) };
    routes_and_counts(&rig)?;
    // It listens, and nobody answers.
    let _sink = rig.lab.api.enter(|| UdpSocket::bind(SERVER))??;
    let mut api = Api::connect(&rig)?;
    let cases = [
        (["pool nat", "pool other"], &[NAT, OTHER][..], &[][..]),
        (["proxy router", "pool nat"], &[NAT, OTHER], &[]),
        (["direct", "blackhole"], &[OWN], &["blackhole"]),
        (["pool nat", "prohibit"], &[NAT], &["prohibited", "no_session"]),
    ];
    for ((targets, sources, lost), first_port) in cases.into_iter().zip((10_000..).step_by(FLOWS.into())) {
        flip(&rig, &mut api, (targets, first_port), sources, lost).with_context(|| format!("{targets:?}"))?;
    }
    Ok(())
}

/// Flips the route to the server while the client sends: all that it sends leaves with one of `sources`, or is dropped
/// for one of these reasons; nothing is lost, and everything counted once.
fn flip(
    rig: &Rig,
    api: &mut Api,
    (targets, first_port): ([&str; 2], u16),
    sources: &[[u8; 4]],
    reasons: &[&str],
) -> Result<()> {
    api.replace(targets[0])?;
    rig.lab.c1.run(&["ping", "-c", "1", "-W", "1", "10.0.1.1"])?;
    let wire = Wire::open(&rig.lab.isp, "eth_gw")?;
    let before = Counts::read(rig)?;
    let done = AtomicBool::new(false);
    let begin = Instant::now();
    let (sent, mut frames) = thread::scope(|scope| -> Result<_> {
        let sender = scope.spawn(|| send(&rig.lab.c1, first_port, &done));
        let flipper = scope.spawn(|| {
            let flipped =
                targets.iter().rev().cycle().take(FLIPS as usize).try_for_each(|target| api.replace(target));
            done.store(true, Ordering::Relaxed);
            flipped
        });
        let mut frames = Vec::new();
        while !flipper.is_finished() {
            frames.extend(wire.collect(MEANWHILE)?);
        }
        flipper.join().expect("the thread that flips")?;
        Ok((sender.join().expect("the thread that sends")?, frames))
    })?;
    let rate = f64::from(FLIPS) / begin.elapsed().as_secs_f64();
    frames.extend(wire.collect(SETTLED)?);
    let mut seen: BTreeMap<[u8; 4], u64> = BTreeMap::new();
    for frame in frames.iter().filter(|frame| !frame.sent) {
        // UDP to the port of the server.
        if frame.bytes.get(23) == Some(&17) && frame.bytes.get(36..38) == Some(&[0, 53]) {
            let source = source(&frame.bytes).context("no IPv4")?;
            ensure!(frame.bytes[30..34] == [203, 0, 113, 10], "to somewhere else: {frame:?}");
            *seen.entry(source).or_default() += 1;
        }
    }
    let counted = Counts::read(rig)?.since(&before);
    println!("{targets:?}: {rate:.0} flips a second, {sent} datagrams: {seen:?}, {counted:?}");
    ensure!(seen.keys().all(|source| sources.contains(source)), "a source that no route gives: {seen:?}");
    let dropped: u64 = reasons.iter().filter_map(|reason| counted.drops.get(*reason)).sum();
    ensure!(dropped == counted.drops.values().sum::<u64>(), "dropped for another reason: {counted:?}");
    ensure!(counted.dropped == dropped, "drops are counted by interface and by reason: {counted:?}");
    let arrived: u64 = seen.values().sum();
    ensure!(arrived + dropped == sent, "{sent} sent, {arrived} arrived, {counted:?}");
    ensure!(counted.from_client >= sent, "{sent} sent, {counted:?}");
    Ok(())
}

/// Sends datagrams of new flows, and of those that began a little earlier; how many.
fn send(client: &Node, first_port: u16, done: &AtomicBool) -> Result<u64> {
    client.enter(|| -> Result<u64> {
        let (mut sent, mut sockets) = (0, Vec::new());
        while !done.load(Ordering::Relaxed) {
            if sockets.len() < usize::from(FLOWS) {
                let socket = UdpSocket::bind(("10.0.1.2", first_port + sockets.len() as u16))?;
                // What denies is told, and nobody listens.
                socket.set_nonblocking(true)?;
                sockets.push(socket);
            }
            for socket in sockets.iter().rev().step_by(37).take(8) {
                socket.send_to(b"a datagram", SERVER)?;
                sent += 1;
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(sent)
    })?
}

/// What the gateway has counted.
#[derive(Debug)]
pub(super) struct Counts {
    from_client: u64,
    dropped: u64,
    pub(super) drops: BTreeMap<String, u64>,
}

impl Counts {
    pub(super) fn read(rig: &Rig) -> Result<Self> {
        let page = rig.daemon.metrics()?;
        let series = |name: &str| -> Vec<(String, u64)> {
            let lines = page.lines().filter_map(|line| line.strip_prefix(name)?.rsplit_once(' '));
            lines.filter_map(|(labels, value)| Some((labels.to_owned(), value.parse().ok()?))).collect()
        };
        let packets = series("gateway_packets_total");
        let sum = |what: &[&str]| -> u64 {
            let of = packets.iter().filter(|(labels, _)| what.iter().all(|label| labels.contains(label)));
            of.map(|(_, value)| value).sum()
        };
        let reason = |labels: &str| labels.split('"').nth(1).unwrap_or_default().to_owned();
        Ok(Self {
            from_client: sum(&[r#"direction="in""#, r#"interface="eth_in1""#]),
            dropped: sum(&[r#"direction="in""#, r#"verdict="drop""#]),
            drops: series("gateway_drops_total")
                .into_iter()
                .map(|(labels, value)| (reason(&labels), value))
                .collect(),
        })
    }

    pub(super) fn since(self, before: &Self) -> Self {
        let earlier = |reason: &str| before.drops.get(reason).copied().unwrap_or_default();
        let drops = self.drops.into_iter().map(|(reason, value)| {
            let since = value - earlier(&reason);
            (reason, since)
        });
        Self {
            from_client: self.from_client - before.from_client,
            dropped: self.dropped - before.dropped,
            drops: drops.filter(|(_, value)| *value > 0).collect(),
        }
    }
}

/// A connection to the API that is kept.
pub(super) struct Api(BufReader<UnixStream>);

impl Api {
    pub(super) fn connect(rig: &Rig) -> Result<Self> {
        Ok(Self(BufReader::new(UnixStream::connect(rig.daemon.socket())?)))
    }

    /// `route replace` of [`ROUTE`].
    pub(super) fn replace(&mut self, via: &str) -> Result<()> {
        let body = format!(r#"{{"prefix":"{ROUTE}","via":"{via}"}}"#);
        let head = "PUT /v1/routes HTTP/1.1\r\nHost: gw\r\nContent-Type: application/json\r\n";
        write!(self.0.get_mut(), "{head}Content-Length: {}\r\n\r\n{body}", body.len())?;
        let (mut status, mut length, mut line) = (String::new(), 0, String::new());
        self.0.read_line(&mut status)?;
        while self.0.read_line(&mut line)? > 2 {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            line.clear();
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer)?;
        ensure!(status.contains(" 200 "), "{status}{}", String::from_utf8_lossy(&answer));
        Ok(())
    }
}
