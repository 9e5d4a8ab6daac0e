//! Packets per second that arrive behind the gateway, next to what else could be in its place.
//!
//! One network, whose middle is in turn the gateway, nft masquerade, the kernel forwarding without
//! translation, and an XDP program that only writes new MAC addresses. A generator on another processor
//! offers more than any of them takes; what arrives is the result. The kernel thread that polls the inside
//! device has a processor of its own, on which the work of the device under test and the delivery to the
//! other end of the outside link is done.

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{XdpMode, xdp::XdpLinkId};
use gateway_lab::Gatewayd;
use serde::Serialize;

use crate::{
    Options,
    cpu::{self, Poller},
    frame::{Flow, LENGTH, Transport, shuffle},
    generator,
    kernel::{COUNT, Kernel, Plan, RELAY},
    network::{DEVICE, Network, POOL, ifindex, mac, number_in},
    report::Report,
    statistic::Samples,
};

/// How many times the packets of nft masquerade the gateway should deliver.
const TARGET: f64 = 2.5;

/// Flows that take turns in the two measurements of a turn.
const FLOWS: [usize; 2] = [1, 32_768];

/// How long the generator runs before anybody looks at what it does.
const RAMP: Duration = Duration::from_millis(100);

/// How long the sessions of all flows may take to open.
const WARM_UP: Duration = Duration::from_secs(20);

/// What connects clients and world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Subject {
    Gateway,
    Nft,
    Forwarding,
    Relay,
}

impl Subject {
    const ALL: [Self; 4] = [Self::Gateway, Self::Nft, Self::Forwarding, Self::Relay];

    fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Nft => "nft masquerade",
            Self::Forwarding => "kernel forwarding",
            Self::Relay => "bare XDP redirect",
        }
    }

    /// Source address of what it delivers, and the bits that count.
    fn source(self) -> ([u8; 4], [u8; 4]) {
        match self {
            Self::Gateway => (octets(POOL), [255; 4]),
            Self::Nft => (octets("198.51.100.2"), [255; 4]),
            Self::Forwarding | Self::Relay => ([10, 0, 1, 0], [255, 255, 255, 0]),
        }
    }
}

/// What was measured with a number of flows, packets per second.
#[derive(Serialize)]
struct Outcome {
    subject: Subject,
    flows: usize,
    /// What the generator offered.
    offered: Samples,
    /// What arrived.
    delivered: Samples,
    /// How much of its processor the polling thread used, 1 being all of it.
    busy: Samples,
}

/// Measures everything in turns.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let title = format!(
        "Delivered packets per second of {LENGTH} bytes, millions, median [least .. greatest] of {} rounds of {} ms",
        options.rounds, options.milliseconds
    );
    let headings = FLOWS.map(|flows| if flows == 1 { "1 FLOW".to_owned() } else { format!("{flows} FLOWS") });
    let headings = ["DEVICE UNDER TEST", &headings[0], "BUSY", &headings[1], "BUSY"];
    let mut report = Report::new("throughput", title, &headings);
    let outcomes = rounds(options)?;
    let of = |subject: Subject| outcomes.iter().filter(move |outcome| outcome.subject == subject);
    for subject in Subject::ALL {
        let mut cells = vec![subject.name().to_owned()];
        for Outcome { delivered, busy, .. } in of(subject) {
            let millions = |samples: &Samples| samples.with(samples, |value, _| value / 1e6);
            cells.push(format!("{:.3}", millions(delivered)));
            cells.push(format!("{:.0} %", busy.median() * 100.0));
        }
        report.line(&cells);
    }
    for other in [Subject::Nft, Subject::Forwarding, Subject::Relay] {
        let mut cells = vec![format!("gateway / {}", other.name())];
        for (ours, theirs) in of(Subject::Gateway).zip(of(other)) {
            let ratio = ours.delivered.over(&theirs.delivered);
            if other == Subject::Nft {
                let what = format!("gateway / nft masquerade, {} flows", ours.flows);
                report.at_least(&what, ratio.median(), TARGET);
            }
            cells.extend([format!("{ratio:.2}"), String::new()]);
        }
        report.line(&cells);
    }
    outcomes.iter().try_for_each(|outcome| report.value(outcome))?;
    Ok(report)
}

fn rounds(options: &Options) -> Result<Vec<Outcome>> {
    let mut bench = Bench::new(options)?;
    let mut outcomes: Vec<Outcome> = Vec::new();
    for subject in Subject::ALL {
        for flows in FLOWS {
            let [offered, delivered, busy] = Default::default();
            outcomes.push(Outcome { subject, flows, offered, delivered, busy });
        }
    }
    for round in 0..options.rounds as usize {
        for turn in 0..Subject::ALL.len() {
            let number = (round + turn) % Subject::ALL.len();
            let subject = Subject::ALL[number];
            bench.start(subject).with_context(|| format!("cannot start {}", subject.name()))?;
            for (place, flows) in FLOWS.into_iter().enumerate() {
                let rates = bench.turn(subject, flows, options.turn());
                let rates = rates.with_context(|| format!("{}, {flows} flows", subject.name()))?;
                let outcome = &mut outcomes[number * FLOWS.len() + place];
                outcome.offered.push(rates.offered);
                outcome.delivered.push(rates.delivered);
                outcome.busy.push(rates.busy);
            }
            bench.stop(subject).with_context(|| format!("cannot stop {}", subject.name()))?;
        }
    }
    Ok(outcomes)
}

/// What was measured in one turn, see [`Outcome`].
struct Rates {
    offered: f64,
    delivered: f64,
    busy: f64,
}

/// The network, and what is needed to fill it.
struct Bench {
    kernel: Kernel,
    daemon: Gatewayd,
    relay: Option<XdpLinkId>,
    frames: Vec<[u8; LENGTH]>,
    clients: u32,
    /// MAC addresses: next hop and own, of the gateway's device towards the world.
    ethernet: [[u8; 6]; 2],
    network: Network,
}

impl Bench {
    fn new(options: &Options) -> Result<Self> {
        // The generator and whatever is started from now on.
        cpu::pin_to(cpu::COMMON)?;
        let network = Network::new()?;
        let Network { clients, gateway, world, inside, outside, .. } = &network;
        let mut kernel = Kernel::load(&options.object, 1)?;
        world.enter(|| {
            kernel.program_mut(COUNT)?.attach(DEVICE, XdpMode::Driver).map_err(anyhow::Error::from)
        })??;
        let egress = ifindex(gateway, outside)?;
        gateway.enter(|| kernel.set_relay_egress(egress))??;
        let (to, from) = (mac(gateway, inside)?, mac(clients, DEVICE)?);
        let most = FLOWS.into_iter().max().unwrap_or(1);
        let mut frames: Vec<_> =
            (0..most).map(|number| Flow::outward(number).frame(Transport::Udp, to, from)).collect();
        shuffle(&mut frames);
        Ok(Self {
            kernel,
            daemon: network.gatewayd()?,
            relay: None,
            frames,
            clients: ifindex(clients, DEVICE)?,
            ethernet: [mac(world, DEVICE)?, mac(gateway, outside)?],
            network,
        })
    }

    /// Puts the subject between clients and world.
    fn start(&mut self, subject: Subject) -> Result<()> {
        let Self { kernel, daemon, network, .. } = self;
        let Network { gateway, inside, .. } = network;
        match subject {
            Subject::Gateway => daemon.start_again(&["--detach-on-exit"])?,
            Subject::Nft => {
                let rules = "add table ip bench; \
                     add chain ip bench out { type nat hook postrouting priority srcnat; }; \
                     add rule ip bench out masquerade";
                gateway.ok(&["nft", rules])?;
            }
            Subject::Forwarding => {}
            Subject::Relay => {
                let attach = || {
                    kernel.program_mut(RELAY)?.attach(inside, XdpMode::Driver).map_err(anyhow::Error::from)
                };
                self.relay = Some(gateway.enter(attach)??);
            }
        }
        self.poll_by_thread()?;
        Poller::of(&self.network.inside)?.pin_to(cpu::MEASURED)
    }

    /// Takes it away again.
    fn stop(&mut self, subject: Subject) -> Result<()> {
        match subject {
            Subject::Gateway => {
                ensure!(self.daemon.stop()?.success(), "gatewayd failed:\n{}", self.daemon.log());
            }
            Subject::Nft => {
                let gateway = &self.network.gateway;
                gateway.ok(&["nft", "delete table ip bench"])?;
                gateway.ok(&["conntrack", "--flush"])?;
            }
            Subject::Forwarding => {}
            Subject::Relay => {
                if let Some(link) = self.relay.take() {
                    self.kernel.program_mut(RELAY)?.detach(link)?;
                }
            }
        }
        Ok(())
    }

    /// Lets a kernel thread poll the inside device.
    fn poll_by_thread(&self) -> Result<()> {
        let Network { gateway, inside, .. } = &self.network;
        // The devices that /sys shows are those of the namespace it was mounted in; `ip netns exec` mounts it.
        let enable = format!("echo 1 > /sys/class/net/{inside}/threaded");
        let done = std::process::Command::new("ip")
            .args(["netns", "exec", gateway.name(), "sh", "-c", &enable])
            .stdin(Stdio::null())
            .status()
            .context("cannot run ip")?;
        ensure!(done.success(), "the device {inside} cannot be polled by a thread");
        Ok(())
    }

    /// Sends packets of this many flows, first until all sessions are there, then to be counted.
    fn turn(&mut self, subject: Subject, flows: usize, time: Duration) -> Result<Rates> {
        self.kernel.set_frames(&self.frames[..flows])?;
        let (source, mask) = subject.source();
        self.kernel.set_plan(Plan { egress: self.clients, source, mask, ethernet: self.ethernet })?;
        let poller = Poller::of(&self.network.inside)?;
        generator::during(&self.kernel, &self.network.clients, self.clients, || {
            self.warm_up(subject, flows)?;
            count(&self.kernel, &poller, time)
        })
    }

    /// Waits until all sessions are open.
    fn warm_up(&self, subject: Subject, flows: usize) -> Result<()> {
        let end = Instant::now() + WARM_UP;
        loop {
            thread::sleep(RAMP);
            let sessions = self.sessions(subject)?;
            if sessions.is_none_or(|sessions| sessions >= flows as u64) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "only {sessions:?} of {flows} sessions after {WARM_UP:?}");
        }
    }

    /// Sessions that the subject has; `None` if it keeps none.
    fn sessions(&self, subject: Subject) -> Result<Option<u64>> {
        match subject {
            Subject::Gateway => self.daemon.count("gateway_sessions{proto=\"udp\"}").map(Some),
            Subject::Nft => {
                number_in(&self.network.gateway, "/proc/sys/net/netfilter/nf_conntrack_count").map(Some)
            }
            Subject::Forwarding | Subject::Relay => Ok(None),
        }
    }
}

/// Counts what arrives for a while.
fn count(kernel: &Kernel, poller: &Poller, time: Duration) -> Result<Rates> {
    let look =
        || -> Result<_> { Ok((kernel.arrived()?, poller.time()?, kernel.generated()?, Instant::now())) };
    let (arrived, busy, made, begin) = look()?;
    thread::sleep(time);
    let (arrived_after, busy_after, made_after, end) = look()?;
    let others = arrived_after.others - arrived.others;
    ensure!(others == 0, "{others} packets arrived that were not translated as expected");
    let seconds = (end - begin).as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = |packets: u64| packets as f64 / seconds;
    Ok(Rates {
        offered: rate(made_after - made),
        delivered: rate(arrived_after.expected - arrived.expected),
        busy: busy_after.saturating_sub(busy).as_secs_f64() / seconds,
    })
}

fn octets(address: &str) -> [u8; 4] {
    address.parse::<std::net::Ipv4Addr>().map_or([0; 4], |address| address.octets())
}
