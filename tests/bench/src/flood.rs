//! Established sessions that are lost while more new flows come than there is room for.
//!
//! A gateway with a small table has some thousand established sessions. Then first packets of ever new flows
//! come, UDP and TCP by turns, as fast as the generator makes them. All the while, and once more at the end, a
//! packet of each established session and its answer must be translated as before. The same is done to nft
//! masquerade, whose connection tracking is asked how many of the connections it has assured are left.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use crate::{
    Options,
    frame::{ACK, Flow, MANY, SYN, TEMPLATES, Transport},
    generator,
    kernel::{Order, Plan, XDP_REDIRECT},
    network::{DEVICE, GATEWAY, ifindex, number_in},
    report::Report,
    single::{Probe, Protocol, Seen, is_translated},
    statistic::Samples,
    subject::{Bench, Subject},
};

/// Room in the table.
const CAPACITY: u32 = 1 << 16;

/// The same, in the daemon's words.
const CONFIG: &str = "[capacity]\nsessions = 65536\n";

/// Established sessions of each protocol.
const ESTABLISHED: usize = 8_192;

/// How long new flows come, and how long with `--fast`.
const TIME: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(5)];

/// Between two looks at the established sessions.
const PAUSE: Duration = Duration::from_secs(1);

/// Rounds at most: each takes half a minute.
const ROUNDS: u32 = 3;

/// New flows that must come for each session that there is room for.
const OFFERED: f64 = 2.0;

/// How long packets of the connections of nft come at a time.
const BURST: Duration = Duration::from_millis(300);

/// How many times, until all are there.
const BURSTS: u32 = 10;

/// UDP flows are assured when they go on for two seconds after the first answer, see `nf_conntrack_udp_packet`.
const STREAM: Duration = Duration::from_millis(2_200);

/// A session that must not be lost.
struct Established {
    flow: Flow,
    protocol: Protocol,
    /// Port that its packets leave with.
    port: u16,
}

/// What was measured; one value a round.
#[derive(Default, Serialize)]
struct Outcome {
    seconds: Samples,
    /// First packets that came to the gateway, for each session that there is room for.
    offered: Samples,
    /// Part of them that was refused, because the table was full.
    refused: Samples,
    /// How often each established session was looked at.
    looks: Samples,
    /// Sessions lost before the flood.
    lost_before: Samples,
    /// UDP sessions lost in it.
    lost_udp: Samples,
    /// TCP sessions lost in it.
    lost_tcp: Samples,
    /// UDP connections of nft lost in a flood.
    nft_lost_udp: Samples,
    /// TCP connections of nft lost in a flood.
    nft_lost_tcp: Samples,
}

/// Floods a gateway in each round.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let time = if options.fast { TIME[1] } else { TIME[0] };
    let rounds = if options.fast { 1 } else { options.rounds.min(ROUNDS) };
    let title = format!(
        "Established sessions lost while new flows come for {} s to a table for {CAPACITY}, {rounds} rounds",
        time.as_secs()
    );
    let headings = ["OF 2 x 8192 SESSIONS", "NEW FLOWS / ROOM", "REFUSED", "LOOKS", "LOST UDP", "LOST TCP"];
    let mut report = Report::new("flood", title, "sessions lost", &headings);
    let outcome = outcome(options, time, rounds)?;
    let Outcome { offered, refused, looks, lost_before, lost_udp, lost_tcp, .. } = &outcome;
    let Outcome { nft_lost_udp, nft_lost_tcp, .. } = &outcome;
    let none = String::new;
    let before = format!("{lost_before:.0}");
    report.line(&["gateway, before".to_owned(), none(), none(), "1".to_owned(), before, none()]);
    report.line(&[
        "gateway, in the flood".to_owned(),
        format!("{offered:.1}"),
        format!("{:.0} %", refused.scaled(100.0)),
        format!("{looks:.0}"),
        format!("{lost_udp:.0}"),
        format!("{lost_tcp:.0}"),
    ]);
    report.line(&[
        "nft masquerade, in the flood".to_owned(),
        none(),
        none(),
        "1".to_owned(),
        format!("{nft_lost_udp:.0}"),
        format!("{nft_lost_tcp:.0}"),
    ]);
    report.control("gateway, before the flood", lost_before);
    report.bar("gateway, udp", lost_udp);
    report.bar("gateway, tcp", lost_tcp);
    report.control("nft masquerade, udp", nft_lost_udp);
    report.control("nft masquerade, tcp", nft_lost_tcp);
    let lost = lost_udp.with(lost_tcp, |udp, tcp| udp + tcp);
    report.at_most("established sessions lost, the worst round", &Samples::from(lost.max()), 0.0);
    report.at_least("new flows for each session that there is room for", offered, OFFERED);
    if options.fast {
        report.note(format!("the flood takes {} s, {} without --fast", TIME[1].as_secs(), TIME[0].as_secs()));
    }
    report.value(&outcome)?;
    Ok(report)
}

fn outcome(options: &Options, time: Duration, rounds: u32) -> Result<Outcome> {
    let mut bench = Bench::new(options, CONFIG)?;
    let mut probe = Probe::new(options, &bench.network, 1)?;
    let mut outcome = Outcome::default();
    for _ in 0..rounds {
        bench.start(Subject::Gateway)?;
        flood(&mut bench, &mut probe, time, &mut outcome)?;
        bench.stop(Subject::Gateway)?;
        bench.start(Subject::Nft)?;
        flood_nft(&mut bench, &mut probe, time, &mut outcome)?;
        bench.stop(Subject::Nft)?;
    }
    Ok(outcome)
}

/// Has the generator make first packets of ever new flows.
fn set_flood(bench: &mut Bench) -> Result<()> {
    let frames = (0..TEMPLATES).map(|number| {
        let transport = if number % 2 == 0 { Transport::Udp } else { Transport::Tcp(SYN) };
        bench.frame(&Flow::template(number), transport)
    });
    let frames: Vec<_> = frames.collect();
    bench.kernel.set_templates(&frames)?;
    bench.kernel.set_turns(TEMPLATES, MANY, Order::Ascending)
}

/// One round of the gateway.
fn flood(bench: &mut Bench, probe: &mut Probe, time: Duration, outcome: &mut Outcome) -> Result<()> {
    probe.attach(&bench.daemon)?;
    let gateway = bench.network.gateway.clone();
    let established = gateway.enter(|| establish(probe))??;
    let mut lost = BTreeSet::new();
    gateway.enter(|| look(probe, &established, &mut lost))??;
    outcome.lost_before.push(number(lost.len() as u64));

    set_flood(bench)?;
    bench.expect(Subject::Gateway)?;
    let before = Seen::read(&bench.daemon)?;
    let full = bench.daemon.drops("session_table_full")?;
    let begin = Instant::now();
    let looks = generator::during(&bench.kernel, &bench.network.clients, bench.clients, |_| {
        let mut looks = 0;
        while begin.elapsed() < time {
            gateway.enter(|| look(probe, &established, &mut lost))??;
            looks += 1;
            // The processor is the generator's.
            thread::sleep(PAUSE);
        }
        Ok(looks)
    })?;
    outcome.seconds.push(begin.elapsed().as_secs_f64());
    let after = Seen::read(&bench.daemon)?;
    let full = bench.daemon.drops("session_table_full")? - full;
    // A look is a packet and its answer.
    let looked = 2 * looks * established.len() as u64;
    let came = (after.forwarded + after.dropped).saturating_sub(before.forwarded + before.dropped + looked);
    ensure!(full > 0, "{came} first packets have not filled the table");
    gateway.enter(|| look(probe, &established, &mut lost))??;
    outcome.offered.push(number(came.min(MANY.into())) / f64::from(CAPACITY));
    outcome.refused.push(number(full) / number(came));
    outcome.looks.push(number(looks + 1));
    let (tcp, udp): (Vec<usize>, Vec<usize>) =
        lost.iter().partition(|number| established[**number].protocol == Protocol::Tcp);
    outcome.lost_tcp.push(number(tcp.len() as u64));
    outcome.lost_udp.push(number(udp.len() as u64));
    Ok(())
}

/// Opens the sessions that must not be lost.
fn establish(probe: &mut Probe) -> Result<Vec<Established>> {
    let mut established = Vec::new();
    for number in 0..ESTABLISHED {
        for protocol in [Protocol::Udp, Protocol::Tcp] {
            let flow = Flow::outward(number);
            let first = probe.open(&flow, protocol)?;
            let (_, port) = Flow::source_of(&first.frame);
            established.push(Established { flow, protocol, port });
        }
    }
    Ok(established)
}

/// Sends a packet of each session and its answer, and notes those that are not translated as before.
fn look(probe: &mut Probe, established: &[Established], lost: &mut BTreeSet<usize>) -> Result<()> {
    for (number, Established { flow, protocol, port }) in established.iter().enumerate() {
        let transport = match protocol {
            Protocol::Tcp => Transport::Tcp(ACK),
            Protocol::Udp => Transport::Udp,
        };
        let out = probe.out(flow, transport)?;
        let leaves = is_translated(&out) && Flow::source_of(&out.frame).1 == *port;
        let back = leaves.then(|| probe.back(&Flow::answering(&out.frame), transport)).transpose()?;
        let returns = back.is_some_and(|back| {
            back.action == XDP_REDIRECT && Flow::answering(&back.frame).source == flow.source
        });
        if !returns {
            lost.insert(number);
        }
    }
    Ok(())
}

/// One round of nft masquerade.
fn flood_nft(bench: &mut Bench, probe: &mut Probe, time: Duration, outcome: &mut Outcome) -> Result<()> {
    let before = establish_with_nft(bench, probe)?;
    set_flood(bench)?;
    let room = number_in(&bench.network.gateway, "/proc/sys/net/netfilter/nf_conntrack_max")?;
    generator::during(&bench.kernel, &bench.network.clients, bench.clients, |_| {
        thread::sleep(time);
        // Rarely there are so few that they must be waited for.
        bench.warm_up(Subject::Nft, room / 10 * 9)
    })?;
    let after = assured(bench)?;
    outcome.nft_lost_udp.push(number(before[0].saturating_sub(after[0])));
    outcome.nft_lost_tcp.push(number(before[1].saturating_sub(after[1])));
    Ok(())
}

/// Opens connections through nft masquerade until all of them are assured. Returns how many that are, see
/// [`assured`].
fn establish_with_nft(bench: &mut Bench, probe: &mut Probe) -> Result<[u64; 2]> {
    bench.expect(Subject::Nft)?;
    let (udp, all) = (ESTABLISHED, 2 * ESTABLISHED);
    for _ in 0..BURSTS {
        exchange(bench, probe, udp, Transport::Udp, Some(Transport::Udp))?;
        exchange(bench, probe, all, Transport::Tcp(SYN), Some(Transport::Tcp(SYN | ACK)))?;
        thread::sleep(STREAM);
        exchange(bench, probe, all, Transport::Udp, Some(Transport::Udp))?;
        exchange(bench, probe, all, Transport::Tcp(ACK), None)?;
        let assured = assured(bench)?;
        if assured == [ESTABLISHED as u64; 2] {
            return Ok(assured);
        }
    }
    bail!("nft has assured only {:?} connections of UDP and TCP", assured(bench)?)
}

/// Sends a packet of each connection, and its answer, many times. The answers wait until there are `connections`:
/// one that comes too early would be a connection of its own, and have the port.
fn exchange(
    bench: &mut Bench,
    probe: &mut Probe,
    connections: usize,
    out: Transport,
    back: Option<Transport>,
) -> Result<()> {
    let flows = || (0..ESTABLISHED).map(Flow::outward);
    let frames: Vec<_> = flows().map(|flow| bench.frame(&flow, out)).collect();
    bench.kernel.set_frames(&frames)?;
    let pause = || {
        thread::sleep(BURST);
        Ok(())
    };
    generator::during(&bench.kernel, &bench.network.clients, bench.clients, |_| {
        bench.warm_up(Subject::Nft, connections as u64)?;
        pause()
    })?;
    let Some(back) = back else { return Ok(()) };
    // No two of them have the same port to the same server, so that each keeps its own.
    let answers = flows().map(|Flow { source, destination }| {
        let answer = Flow { source: destination, destination: (GATEWAY, source.1) };
        probe.macs.back(&answer, back)
    });
    let frames: Vec<_> = answers.collect();
    probe.kernel.set_frames(&frames)?;
    let world = ifindex(&bench.network.world, DEVICE)?;
    probe.kernel.set_plan(Plan { egress: world, ..Plan::default() })?;
    generator::during(&probe.kernel, &bench.network.world, world, |_| pause())
}

/// Connections of UDP and of TCP that connection tracking has assured: it has seen both sides.
fn assured(bench: &Bench) -> Result<[u64; 2]> {
    let count = |protocol: &str| -> Result<u64> {
        let list = ["conntrack", "--dump", "--proto", protocol, "--status", "ASSURED"];
        Ok(bench.network.gateway.ok(&list)?.lines().count() as u64)
    };
    Ok([count("udp")?, count("tcp")?])
}

fn number(count: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let count = count as f64;
    count
}
