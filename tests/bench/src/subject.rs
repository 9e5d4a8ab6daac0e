//! What can stand between clients and world, and what comes through it.
//!
//! A generator on another processor offers more than any of them takes; what arrives is the result. The kernel
//! thread that polls the inside device has a processor of its own, on which the work of the device under test
//! and the delivery to the other end of the outside link is done.

use std::{
    net::Ipv4Addr,
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
    cpu::{self, Thread},
    frame::{Flow, LENGTH, Transport},
    kernel::{COUNT, Kernel, Plan, RELAY},
    network::{DEVICE, GATEWAY, Network, POOL, ifindex, mac, number_in},
};

/// How long the generator runs before anybody looks at what it does.
pub(crate) const RAMP: Duration = Duration::from_millis(100);

/// How long the sessions of all flows may take to open.
const WARM_UP: Duration = Duration::from_secs(20);

/// What connects clients and world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Subject {
    Gateway,
    Nft,
    Forwarding,
    Relay,
}

impl Subject {
    pub(crate) fn name(self) -> &'static str {
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
            Self::Nft => (GATEWAY.octets(), [255; 4]),
            Self::Forwarding | Self::Relay => ([10, 0, 1, 0], [255, 255, 255, 0]),
        }
    }
}

/// What was measured for a while.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// Packets per second that the generator made.
    pub(crate) offered: f64,
    /// Packets per second that arrived.
    pub(crate) delivered: f64,
    /// How much of its processor the polling thread used, 1 being all of it.
    pub(crate) busy: f64,
}

/// The network, and what is needed to fill it.
pub(crate) struct Bench {
    pub(crate) kernel: Kernel,
    pub(crate) daemon: Gatewayd,
    relay: Option<XdpLinkId>,
    /// Ifindex of the clients' device.
    pub(crate) clients: u32,
    /// MAC addresses: next hop and own, of the gateway's device towards the world.
    ethernet: [[u8; 6]; 2],
    /// MAC addresses: next hop and own, of the clients.
    towards_gateway: [[u8; 6]; 2],
    pub(crate) network: Network,
}

impl Bench {
    /// The network, with no subject. `config` is added to the daemon's configuration.
    pub(crate) fn new(options: &Options, config: &str) -> Result<Self> {
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
        Ok(Self {
            kernel,
            daemon: network.gatewayd(config)?,
            relay: None,
            clients: ifindex(clients, DEVICE)?,
            ethernet: [mac(world, DEVICE)?, mac(gateway, outside)?],
            towards_gateway: [mac(gateway, inside)?, mac(clients, DEVICE)?],
            network,
        })
    }

    /// A frame as the clients send it.
    pub(crate) fn frame(&self, flow: &Flow, transport: Transport) -> [u8; LENGTH] {
        let [to, from] = self.towards_gateway;
        flow.frame(transport, to, from)
    }

    /// Puts the subject between clients and world, without any session.
    pub(crate) fn start(&mut self, subject: Subject) -> Result<()> {
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
        self.poll()
    }

    /// Lets a kernel thread poll the inside device, on a processor of its own.
    pub(crate) fn poll(&self) -> Result<()> {
        self.poll_by_thread()?;
        self.poller()?.pin_to(cpu::MEASURED)
    }

    /// Takes it away again, with its sessions.
    pub(crate) fn stop(&mut self, subject: Subject) -> Result<()> {
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

    /// Says what the generator sends from now on, and what is expected of the subject.
    pub(crate) fn expect(&mut self, subject: Subject) -> Result<()> {
        let (source, mask) = subject.source();
        self.kernel.set_plan(Plan { egress: self.clients, source, mask, ethernet: self.ethernet })
    }

    /// The thread that polls the inside device.
    pub(crate) fn poller(&self) -> Result<Thread> {
        Thread::polling(&self.network.inside)
    }

    /// Waits until the subject has that many sessions, while the generator runs.
    pub(crate) fn warm_up(&self, subject: Subject, flows: u64) -> Result<()> {
        let end = Instant::now() + WARM_UP;
        loop {
            thread::sleep(RAMP);
            let sessions = self.sessions(subject)?;
            if sessions.is_none_or(|sessions| sessions >= flows) {
                return Ok(());
            }
            ensure!(Instant::now() < end, "only {sessions:?} of {flows} sessions after {WARM_UP:?}");
        }
    }

    /// Sessions that the subject has; `None` if it keeps none.
    pub(crate) fn sessions(&self, subject: Subject) -> Result<Option<u64>> {
        match subject {
            Subject::Gateway => {
                let of = |proto| self.daemon.count(&format!("gateway_sessions{{proto=\"{proto}\"}}"));
                Ok(Some(of("udp")? + of("tcp")?))
            }
            Subject::Nft => {
                number_in(&self.network.gateway, "/proc/sys/net/netfilter/nf_conntrack_count").map(Some)
            }
            Subject::Forwarding | Subject::Relay => Ok(None),
        }
    }

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
}

/// Counts what arrives for a while.
pub(crate) fn count(kernel: &Kernel, poller: &Thread, time: Duration) -> Result<Rates> {
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

/// Packets that arrive, per second that the generator has run.
///
/// It offers about twice what any subject takes, and what it offers while it runs is dropped where that is too much. While
/// something else has its processor, nothing is offered, and nothing is waiting: what then does not arrive is not lost.
pub(crate) fn delivered(kernel: &Kernel, poller: &Thread, generator: &Thread, time: Duration) -> Result<f64> {
    let (ran, begin) = (generator.time()?, Instant::now());
    let rates = count(kernel, poller, time)?;
    let running = generator.time()?.saturating_sub(ran).as_secs_f64() / begin.elapsed().as_secs_f64();
    Ok(rates.delivered / running)
}

fn octets(address: &str) -> [u8; 4] {
    address.parse::<Ipv4Addr>().map_or([0; 4], |address| address.octets())
}
