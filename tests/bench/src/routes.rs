//! What a million routes cost: to load, to change, and for packets.
//!
//! A table of ten prefixes and one of a million take turns in one running gateway. Both lead the same packets to the same
//! place. Packets of new flows look their route up each time, because a `direct` route keeps no session; those of
//! established flows do not. Loading is `gwctl route import` as an operator types it: parse, check, write into the kernel,
//! save to disk, answer, on all processors and on one. Beside it, as many elements are entered into a plain trie with one
//! system call each.
//!
//! What packets feel of a load is measured with the daemon on the processor of the generator, and on that of the packets,
//! where nothing is left for it but what it takes from them. It is the mean of all the time from the command to its
//! answer, and of the time after it, in which the old table is freed.

use std::{
    collections::HashSet,
    fs,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{LpmTrie, MapData, lpm_trie::Key};
use gateway_lab::Gatewayd;
use serde::Serialize;

use crate::{
    Options, cpu,
    frame::{Flow, TEMPLATES, Transport, shuffle},
    generator,
    kernel::{CONTROL, MEASURE, Order, XDP_DROP, XDP_REDIRECT, XDP_TX},
    report::Report,
    single::{Probe, Single, is_translated},
    statistic::Samples,
    subject::{Bench, RAMP, Subject, delivered},
};

/// Prefixes of the large table.
const MANY: usize = 1_000_000;
/// Room for them, and for the few beside them.
const CONFIG: &str = "[capacity]\nsessions = 65536\nroutes = 1048576\n";
/// Prefixes of the small one. They cover all that those of the large one do.
const FEW: [&str; 10] = [
    "0.0.0.0/3",
    "32.0.0.0/3",
    "64.0.0.0/3",
    "96.0.0.0/3",
    "128.0.0.0/3",
    "160.0.0.0/3",
    "192.0.0.0/3",
    "11.0.0.0/8",
    "12.0.0.0/8",
    "13.0.0.0/8",
];
/// Where established flows go, by a session of the pool.
const SERVERS: &str = "203.0.113.0/24";
/// The route that is changed again and again, and where packets to it go.
const CHANGED: &str = "198.18.7.0/24";
const TO_CHANGED: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 18, 7, 7), 443);
/// What it is changed between, and between what else.
const TARGETS: [&[&str]; 2] = [&["blackhole", "direct"], &["pool nat", "direct", "proxy squid", "blackhole"]];

/// The proxy's host, which is among the clients: its addresses.
const PROXY: (&str, &str) = ("10.0.1.251", "02:00:00:00:00:51");
/// [`PROXY`], as frames have it.
const PROXY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0x51];

/// Rounds at most: in each, the table is replaced four times.
const ROUNDS: u32 = 5;
/// How often a route is changed at a time. Each is met by a flow of its own.
const CHANGES: u16 = 500;
/// Flows of the stream that goes on while the table is replaced.
const FLOWS: usize = 1_024;
/// How long packets of it are counted at a time.
const WINDOW: Duration = Duration::from_millis(100);
/// How many times before the table is replaced, and after it.
const QUIET: usize = 20;
/// Where the daemon runs while it replaces the table.
const PLACES: [(&str, usize); 2] =
    [("beside the generator", cpu::COMMON), ("beside the packets", cpu::MEASURED)];

/// How long a load may take where packets leave it little time.
const PATIENCE: Duration = Duration::from_mins(2);

/// Seconds that a million prefixes may take.
const LOAD: f64 = 2.0;
/// How many times the cost of an established packet with few routes it may be with many.
const ESTABLISHED: f64 = 1.05;
/// Percent of the packets that may be lost while the table is replaced.
const DIP: f64 = 10.0;
/// Changes that there should be in a second.
const RATE: f64 = 1_000.0;

/// What was measured; one value a round.
#[derive(Default, Serialize)]
struct Outcome {
    /// Seconds of `route import`, on all processors.
    load: Samples,
    /// The same on one.
    load_on_one: Samples,
    /// Seconds for as many elements, one system call each.
    one_by_one: Samples,
    /// Nanoseconds of a packet without a session over an empty program, with few routes and with many.
    lookup: [Samples; 2],
    /// The same of a packet with a session.
    established: [Samples; 2],
    /// Changes of one route a second, one after the other on one connection, beside a million, for each of [`TARGETS`].
    changes: [Samples; 2],
    /// Packets that did not follow a change which was answered.
    disobedient: Samples,
    /// Percent of a stream that was lost while the table was replaced, for each of [`PLACES`].
    dip: [Samples; 2],
    /// The same after the answer, while the old table was freed.
    freeing: [Samples; 2],
    /// Seconds that replacing it took meanwhile.
    replacing: [Samples; 2],
}

/// Measures all of it.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let rounds = if options.fast { 1 } else { options.rounds.min(ROUNDS) };
    let title = format!("A million routes, beside ten: median [least .. greatest] of {rounds} rounds");
    let mut report = Report::new("routes", title, "ns per packet over an empty program", &["", "MEASURED"]);
    let prefixes = prefixes(MANY);
    let mut outcome = Outcome::default();
    still(options, rounds, &prefixes, &mut outcome)?;
    streaming(options, rounds, &prefixes, &mut outcome)?;
    let Outcome { load, load_on_one, one_by_one, lookup, established, changes, disobedient, .. } = &outcome;
    let (lookups, packets) = (lookup[1].over(&lookup[0]), established[1].over(&established[0]));
    for (what, samples) in [
        ("load of a million, s", load),
        ("the same on one processor, s", load_on_one),
        ("one system call an element, s", one_by_one),
        ("new flow with ten routes, ns", &lookup[0]),
        ("new flow with a million, ns", &lookup[1]),
        ("established with ten, ns", &established[0]),
        ("established with a million, ns", &established[1]),
        ("changes of one route, a second", &changes[0]),
        ("with a pool and a proxy among the targets", &changes[1]),
    ] {
        report.line(&[what.to_owned(), samples.to_string()]);
    }
    for (case, (place, _)) in PLACES.into_iter().enumerate() {
        for (what, samples) in [
            ("lost while a million are replaced, %", &outcome.dip[case]),
            ("lost while the old ones are freed, %", &outcome.freeing[case]),
            ("replacing them meanwhile, s", &outcome.replacing[case]),
        ] {
            report.line(&[format!("{what}, daemon {place}"), samples.to_string()]);
        }
    }
    report.control("new flow, ten routes", &lookup[0]);
    report.bar("new flow, a million", &lookup[1]);
    report.control("established, ten routes", &established[0]);
    report.bar("established, a million", &established[1]);
    report.note(format!("loading takes {:.2} of one system call an element", load.over(one_by_one)));
    report.note(format!("a new flow costs {lookups:.2} times as much among a million"));
    report.at_most("seconds to load a million prefixes", load, LOAD);
    report.at_most("established ns, a million routes / ten", &packets, ESTABLISHED);
    for ((place, _), (dip, freeing)) in PLACES.into_iter().zip(outcome.dip.iter().zip(&outcome.freeing)) {
        report.at_most(
            &format!("percent of packets lost while a million are replaced, daemon {place}"),
            dip,
            DIP,
        );
        report.at_most(
            &format!("percent of packets lost while the old ones are freed, daemon {place}"),
            freeing,
            DIP,
        );
    }
    report.at_least("changes of one route a second, beside a million", &changes[0], RATE);
    report.at_least("changes of one route a second, a pool and a proxy among the targets", &changes[1], RATE);
    report.at_most("packets that disobey a change that was answered", disobedient, 0.0);
    report.value(&outcome)?;
    Ok(report)
}

/// All that single packets show.
fn still(options: &Options, rounds: u32, prefixes: &[Prefix], outcome: &mut Outcome) -> Result<()> {
    let mut single = Single::new(options, CONFIG)?;
    single.daemon.tell(&format!("route add {SERVERS} via pool nat"))?;
    let neighbor = ["neighbour", "replace", PROXY.0, "lladdr", PROXY.1, "dev", &single.network.inside];
    single.network.gateway.ip(&neighbor)?;
    single.daemon.tell(&format!("proxy add squid host {} check none", PROXY.0))?;
    let directory = single.daemon.state_dir();
    let lists = [directory.join("few.routes"), directory.join("many.routes")];
    fs::write(&lists[0], FEW.join("\n"))?;
    fs::write(&lists[1], lines(prefixes))?;
    single.within(|single| {
        import(&single.daemon, &lists[0])?;
        single.probe.open_many(&single.daemon, TEMPLATES as u32)?;
        for _ in 0..rounds {
            outcome.one_by_one.push(one_by_one(prefixes)?);
            for (case, list) in lists.iter().enumerate() {
                let process = single.daemon.pid()?;
                cpu::pin_process(process, &[cpu::COMMON, cpu::MEASURED])?;
                let seconds = import(&single.daemon, list)?;
                cpu::pin_process(process, &[cpu::COMMON])?;
                let Probe { kernel, inside, macs, .. } = &mut single.probe;
                let frame = |flow: &Flow| macs.out(flow, Transport::Udp);
                let sessions: Vec<_> = (0..TEMPLATES).map(|number| frame(&Flow::template(number))).collect();
                let strangers: Vec<_> =
                    prefixes.iter().step_by(MANY / TEMPLATES).map(|to| frame(&to.flow())).collect();
                for (frames, samples) in
                    [(&sessions, &mut outcome.established), (&strangers, &mut outcome.lookup)]
                {
                    kernel.set_templates(&frames[..TEMPLATES])?;
                    kernel.set_turns(TEMPLATES, TEMPLATES as u32, Order::Scattered)?;
                    // Sessions are looked at again after a change, and caches are cold.
                    let ran = kernel.run(MEASURE, *inside, options.packets)?;
                    ensure!(
                        ran.action == XDP_REDIRECT,
                        "the gateway does not forward: action {}",
                        ran.action
                    );
                    let control = kernel.run(CONTROL, *inside, options.packets)?;
                    let ran = kernel.run(MEASURE, *inside, options.packets)?;
                    samples[case].push(ran.nanoseconds - control.nanoseconds);
                }
                if case == 1 {
                    outcome.load.push(seconds);
                    for (targets, changes) in TARGETS.iter().zip(&mut outcome.changes) {
                        outcome.disobedient.push(f64::from(change(
                            &mut single.probe,
                            &single.daemon,
                            targets,
                        )?));
                        changes.push(f64::from(CHANGES) / flip(&single.daemon, targets, |_, _| Ok(()))?);
                    }
                    import(&single.daemon, &lists[0])?;
                    outcome.load_on_one.push(import(&single.daemon, list)?);
                }
            }
        }
        Ok(())
    })
}

/// Loses what is lost of a stream while the large table is replaced by another one.
fn streaming(options: &Options, rounds: u32, prefixes: &[Prefix], outcome: &mut Outcome) -> Result<()> {
    let mut bench = Bench::new(options, CONFIG)?;
    bench.start(Subject::Gateway)?;
    bench.daemon.tell(&format!("route add {SERVERS} via pool nat"))?;
    let directory = bench.daemon.state_dir();
    // Two tables that have nine tenths in common.
    let (part, lists) = (MANY / 10, [directory.join("one.routes"), directory.join("other.routes")]);
    fs::write(&lists[0], lines(&prefixes[part..]))?;
    fs::write(&lists[1], lines(&prefixes[..MANY - part]))?;
    import(&bench.daemon, &lists[0])?;
    let mut frames: Vec<_> =
        (0..FLOWS).map(|number| bench.frame(&Flow::outward(number), Transport::Udp)).collect();
    shuffle(&mut frames);
    bench.kernel.set_frames(&frames)?;
    bench.expect(Subject::Gateway)?;
    let poller = bench.poller()?;
    let Bench { kernel, daemon, network, clients, .. } = &bench;
    let process = daemon.pid()?;
    let mut lists = lists.iter().rev().cycle();
    generator::during(kernel, &network.clients, *clients, |generator| {
        thread::sleep(RAMP);
        let rate = || delivered(kernel, &poller, generator, WINDOW);
        let rates =
            || (0..QUIET).try_fold(Samples::default(), |rates, _| Ok::<_, anyhow::Error>(rates.and(rate()?)));
        for turn in 0..rounds as usize * PLACES.len() {
            let place = turn % PLACES.len();
            cpu::pin_process(process, &[PLACES[place].1])?;
            let list = lists.next().context("no list")?;
            let quiet = rates()?.mean();
            let mut meanwhile = Samples::default();
            let seconds = thread::scope(|scope| {
                let replacing = scope.spawn(|| import(daemon, list));
                while !replacing.is_finished() {
                    meanwhile.push(rate()?);
                }
                replacing.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?
            })?;
            let loss = |rates: &Samples| (1.0 - rates.mean() / quiet) * 100.0;
            outcome.dip[place].push(loss(&meanwhile));
            outcome.freeing[place].push(loss(&rates()?));
            outcome.replacing[place].push(seconds);
        }
        Ok(())
    })?;
    bench.stop(Subject::Gateway)
}

/// Gives these prefixes, and no others, the target `direct`; returns how long that took.
fn import(daemon: &Gatewayd, list: &Path) -> Result<f64> {
    let list = list.to_str().context("a path that is no text")?;
    let begin = Instant::now();
    daemon.gwctl_for(PATIENCE, &["route", "import", list, "via", "direct", "--prune"])?.ok()?;
    Ok(begin.elapsed().as_secs_f64())
}

/// Enters the prefixes into a trie one by one; returns how long that took.
fn one_by_one(prefixes: &[Prefix]) -> Result<f64> {
    const NO_PREALLOC: u32 = 1;
    let mut trie: LpmTrie<MapData, u32, [u8; 16]> =
        LpmTrie::create(MANY as u32, NO_PREALLOC).context("cannot make a trie")?;
    let begin = Instant::now();
    for Prefix { address, length } in prefixes {
        trie.insert(&Key::new(u32::from(*length), address.to_be()), [0; 16], 0)?;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Changes a route again and again, and counts packets of new flows that do not do what was just answered.
fn change(probe: &mut Probe, daemon: &Gatewayd, targets: &[&str]) -> Result<u32> {
    let mut disobedient = 0;
    flip(daemon, targets, |number, target| {
        let flow = Flow { source: (Ipv4Addr::new(10, 0, 1, 2), 4_000 + number), destination: TO_CHANGED };
        let ran = probe.out(&flow, Transport::Udp)?;
        let to_proxy = ran.frame[..6] == PROXY_MAC;
        let obeys = match target {
            "blackhole" => ran.action == XDP_DROP,
            "direct" => ran.action == XDP_REDIRECT && !to_proxy && !is_translated(&ran),
            "proxy squid" => [XDP_REDIRECT, XDP_TX].contains(&ran.action) && to_proxy,
            _ => is_translated(&ran),
        };
        disobedient += u32::from(!obeys);
        Ok(())
    })?;
    Ok(disobedient)
}

/// Changes a route [`CHANGES`] times between these targets on one connection, with something to do after each answer;
/// returns the seconds.
fn flip(daemon: &Gatewayd, targets: &[&str], mut then: impl FnMut(u16, &str) -> Result<()>) -> Result<f64> {
    let mut stream = UnixStream::connect(daemon.socket()).context("cannot connect to gatewayd")?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let begin = Instant::now();
    for (number, via) in (0..CHANGES).zip(targets.iter().cycle()) {
        let body = serde_json::json!({ "prefix": CHANGED, "via": via, "table": "main" }).to_string();
        write!(
            stream,
            "PUT /v1/routes HTTP/1.1\r\nhost: gw\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        answer(&mut answers)?;
        then(number, via)?;
    }
    Ok(begin.elapsed().as_secs_f64())
}

/// Reads an answer, which has to be a good one.
fn answer(from: &mut impl BufRead) -> Result<()> {
    let (mut line, mut length) = (String::new(), 0);
    from.read_line(&mut line)?;
    ensure!(line.contains(" 200 "), "gatewayd answered {line}");
    while !line.trim().is_empty() {
        line.clear();
        from.read_line(&mut line)?;
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
    from.take(length).read_to_end(&mut Vec::new())?;
    Ok(())
}

/// A prefix of the large table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Prefix {
    address: u32,
    length: u8,
}

impl Prefix {
    /// A flow to its first address.
    fn flow(self) -> Flow {
        Flow { source: (Ipv4Addr::new(10, 0, 1, 2), 5_000), destination: (self.address.into(), 443) }
    }
}

/// As many different prefixes, in lengths as in the table of the internet: most are a /24. None is special.
fn prefixes(count: usize) -> Vec<Prefix> {
    const LENGTHS: [u8; 16] = [24, 24, 24, 24, 24, 24, 24, 24, 24, 23, 22, 22, 21, 20, 19, 32];
    let mut random = fastrand::Rng::with_seed(1);
    let (mut seen, mut prefixes) = (HashSet::with_capacity(count), Vec::with_capacity(count));
    while prefixes.len() < count {
        let length = LENGTHS[random.usize(..LENGTHS.len())];
        let address = random.u32(14 << 24..192 << 24) & (u32::MAX << (32 - length));
        let prefix = Prefix { address, length };
        if ![100, 127, 169, 172].contains(&(address >> 24)) && seen.insert(prefix) {
            prefixes.push(prefix);
        }
    }
    prefixes
}

fn lines(prefixes: &[Prefix]) -> String {
    let lines =
        prefixes.iter().map(|Prefix { address, length }| format!("{}/{length}\n", Ipv4Addr::from(*address)));
    lines.collect()
}
