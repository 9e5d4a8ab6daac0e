//! Nanoseconds that the gateway's program takes for a packet of an established session, and for one of an EIP.
//!
//! `BPF_PROG_RUN` runs a program on one packet many times over; the time of a program that only restores the
//! headers and does nothing is taken off. The unit beside nanoseconds is a hit in a hash table
//! with a key of 16 bytes: what the least translation cannot do without, on the same machine in the same
//! minute.

use std::net::Ipv4Addr;

use anyhow::Result;
use serde::Serialize;

use crate::{
    Options,
    frame::{ACK, Flow, LENGTH, Transport, shuffle},
    kernel::{CONTROL, Kernel, LOOK_UP, MEASURE, MEASURE_OTHER, NOTHING},
    network::HOST,
    report::Report,
    single::{Protocol, Seen, Single},
    statistic::Samples,
};

/// Hits in a hash table that a packet of one flow may cost.
const TARGET: f64 = 3.0;

/// What is measured, the programs by name. The last one only where there is another build.
const VARIANTS: [&str; 5] = [NOTHING, CONTROL, MEASURE, LOOK_UP, MEASURE_OTHER];

/// Packets of one kind.
#[derive(Clone, Copy, Debug, Serialize)]
struct Case {
    protocol: &'static str,
    direction: Direction,
    flows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Direction {
    Out,
    Back,
}

const CASES: &[Case] = &[
    Case { protocol: "tcp", direction: Direction::Out, flows: 1 },
    Case { protocol: "tcp", direction: Direction::Out, flows: 1_024 },
    Case { protocol: "tcp", direction: Direction::Out, flows: 8_192 },
    Case { protocol: "tcp", direction: Direction::Out, flows: 65_536 },
    Case { protocol: "tcp", direction: Direction::Back, flows: 1 },
    Case { protocol: "udp", direction: Direction::Out, flows: 1 },
    Case { protocol: EIP, direction: Direction::Out, flows: 1 },
    Case { protocol: EIP, direction: Direction::Back, flows: 1 },
];

/// UDP of a host that leaves with an EIP: without a session, and decided packet by packet.
const EIP: &str = "eip";
/// The EIP of [`HOST`].
const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 50);

/// What was measured of a case, nanoseconds of one packet.
#[derive(Serialize)]
struct Outcome {
    #[serde(flatten)]
    case: Case,
    /// An empty program.
    empty: Samples,
    /// Headers restored.
    control: Samples,
    /// Headers restored, gateway.
    gateway: Samples,
    /// The gateway alone.
    over_empty: Samples,
    /// A hit in a hash table alone.
    hit: Samples,
    /// The gateway in hits.
    hits: Samples,
    /// Another build alone.
    other_over_empty: Option<Samples>,
    /// The gateway over the other build.
    gateway_over_other: Option<Samples>,
}

/// Measures all cases.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let title = format!(
        "Established path: ns per packet, median [least .. greatest] of {} rounds of {} packets",
        options.rounds, options.packets
    );
    let mut headings =
        vec!["PACKETS", "FLOWS", "EMPTY", "CONTROL", "GATEWAY", "OVER EMPTY", "HASH HIT", "IN HITS"];
    if options.against.is_some() {
        headings.extend(["OTHER", "GATEWAY / OTHER"]);
    }
    let mut report = Report::new("path", title, "ns per packet over an empty program", &headings);
    let config = format!(
        r#"
[[eip]]
address = "{ADDRESS}"
host = "{HOST}"
[[table]]
name = "eip"
bind = ["{HOST}"]
routes = [{{ to = "0.0.0.0/0", via = "eip" }}]
"#
    );
    let mut single = Single::new(options, &config)?;
    for case in CASES {
        let outcome = run(&mut single, *case, options)?;
        let Outcome { empty, control, gateway, over_empty, hit, hits, .. } = &outcome;
        let mut cells = vec![
            format!("{} {}", case.protocol, if case.direction == Direction::Out { "out" } else { "back" }),
            case.flows.to_string(),
            format!("{:.1}", empty.median()),
            format!("{:.1}", control.median()),
            format!("{:.1}", gateway.median()),
            over_empty.to_string(),
            hit.to_string(),
            format!("{hits:.2}"),
        ];
        if let (Some(other), Some(ratio)) = (&outcome.other_over_empty, &outcome.gateway_over_other) {
            cells.extend([other.to_string(), format!("{ratio:.2}")]);
        }
        report.line(&cells);
        report.bar(&format!("gateway, {}, {} at a time", cells[0], case.flows), over_empty);
        report.control("a hash hit", hit);
        if case.flows == 1 && case.protocol != EIP {
            let what = format!("{} {:?}, one flow, in hash hits", case.protocol, case.direction);
            report.at_most(&what.to_lowercase(), hits, TARGET);
        }
        report.value(&outcome)?;
    }
    Ok(report)
}

fn run(single: &mut Single, case: Case, options: &Options) -> Result<Outcome> {
    let variants = if single.other.is_some() { &VARIANTS[..] } else { &VARIANTS[..4] };
    single.within(|single| {
        let ingress =
            if case.direction == Direction::Out { single.probe.inside } else { single.probe.outside };
        let frames = open(single, case)?;
        let (kernel, daemon) = (&mut single.probe.kernel, &single.daemon);
        kernel.set_frames(&frames)?;
        kernel.fill_table(ingress, frames.len() as u32)?;
        let before = Seen::read(daemon)?;
        let samples = rounds(kernel, variants, ingress, options)?;
        let measured = variants.iter().filter(|name| [MEASURE, MEASURE_OTHER].contains(name)).count();
        before
            .expect(daemon, measured as u64 * u64::from(options.rounds + 1) * u64::from(options.packets))?;
        let [empty, control, gateway, look_up, other] = samples;
        let (over_empty, hit) = (gateway.minus(&control), look_up.minus(&control));
        let hits = over_empty.over(&hit);
        let other_over_empty = variants.contains(&MEASURE_OTHER).then(|| other.minus(&control));
        let gateway_over_other = other_over_empty.as_ref().map(|other| over_empty.over(other));
        Ok(Outcome {
            case,
            empty,
            control,
            gateway,
            over_empty,
            hit,
            hits,
            other_over_empty,
            gateway_over_other,
        })
    })
}

/// Opens a session for each flow of the case, and returns the frames to measure with.
fn open(single: &mut Single, case: Case) -> Result<Vec<[u8; LENGTH]>> {
    if case.protocol == EIP {
        let server = (Ipv4Addr::new(203, 0, 113, 1), 443);
        let macs = single.probe.macs;
        return Ok(vec![match case.direction {
            Direction::Out => macs.out(&Flow { source: (HOST, 4_000), destination: server }, Transport::Udp),
            Direction::Back => {
                macs.back(&Flow { source: server, destination: (ADDRESS, 4_000) }, Transport::Udp)
            }
        }]);
    }
    let (protocol, later) = match case.protocol {
        "tcp" => (Protocol::Tcp, Transport::Tcp(ACK)),
        _ => (Protocol::Udp, Transport::Udp),
    };
    let mut frames = Vec::with_capacity(case.flows);
    for number in 0..case.flows {
        let flow = Flow::outward(number);
        let first = single.probe.open(&flow, protocol)?;
        frames.push(match case.direction {
            Direction::Out => single.probe.macs.out(&flow, later),
            Direction::Back => single.probe.macs.back(&Flow::answering(&first.frame), later),
        });
    }
    shuffle(&mut frames);
    Ok(frames)
}

/// Runs all variants in turns, beginning with another one each round.
fn rounds(
    kernel: &Kernel,
    variants: &[&str],
    ingress: u32,
    options: &Options,
) -> Result<[Samples; VARIANTS.len()]> {
    let mut samples: [Samples; VARIANTS.len()] = Default::default();
    // What comes first finds cold caches.
    for variant in variants {
        kernel.run(variant, ingress, options.packets)?;
    }
    for round in 0..options.rounds as usize {
        for turn in 0..variants.len() {
            let variant = (round + turn) % variants.len();
            let ran = kernel.run(variants[variant], ingress, options.packets)?;
            samples[variant].push(ran.nanoseconds);
        }
    }
    Ok(samples)
}
