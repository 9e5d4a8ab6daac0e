//! A running gateway and single packets to run its program on, by `BPF_PROG_RUN`.
//!
//! The very program that the daemon has attached is run, behind one that restores the headers (see
//! `gateway-ebpf/src/bench`).

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, bail, ensure};
use aya::{Ebpf, programs::Xdp};
use gateway_lab::Gatewayd;

use crate::{
    Options, cpu,
    frame::{ACK, Flow, LENGTH, MANY, SYN, TEMPLATES, Transport},
    kernel::{Kernel, MEASURE, Order, Ran, XDP_REDIRECT},
    network::{DEVICE, Network, POOL, ifindex, load_on_maps_of, mac, programs_of},
};

/// Elements of the hash table that is compared with: as many as two for each session of a gateway of the default
/// capacity.
const TABLE_CAPACITY: u32 = 2 * 1_048_576;

/// The gateway's program, as its object calls it.
const ENTRY: &str = "gateway";

/// Single packets, and a gateway to run on them.
pub(crate) struct Probe {
    pub(crate) kernel: Kernel,
    /// Ifindex of the gateway's devices.
    pub(crate) inside: u32,
    pub(crate) outside: u32,
    pub(crate) macs: Macs,
}

/// A running gateway that only single packets come to.
pub(crate) struct Single {
    pub(crate) probe: Probe,
    /// Another build of the gateway.
    pub(crate) other: Option<Ebpf>,
    // Ends before its namespaces do.
    pub(crate) daemon: Gatewayd,
    pub(crate) network: Network,
}

/// MAC addresses of the gateway's devices, and of whoever is at their other ends.
#[derive(Clone, Copy)]
pub(crate) struct Macs {
    inside: [u8; 6],
    outside: [u8; 6],
    clients: [u8; 6],
    world: [u8; 6],
}

impl Macs {
    /// A frame as the clients send it.
    pub(crate) fn out(&self, flow: &Flow, transport: Transport) -> [u8; LENGTH] {
        flow.frame(transport, self.inside, self.clients)
    }

    /// A frame as the world sends it.
    pub(crate) fn back(&self, flow: &Flow, transport: Transport) -> [u8; LENGTH] {
        flow.frame(transport, self.outside, self.world)
    }
}

impl Probe {
    /// Packets for a gateway in this network. The table that is compared with has room for `capacity` keys.
    pub(crate) fn new(options: &Options, network: &Network, capacity: u32) -> Result<Self> {
        let Network { clients, gateway, world, inside, outside, .. } = network;
        Ok(Self {
            kernel: Kernel::load(&options.object, capacity)?,
            inside: ifindex(gateway, inside)?,
            outside: ifindex(gateway, outside)?,
            macs: Macs {
                inside: mac(gateway, inside)?,
                outside: mac(gateway, outside)?,
                clients: mac(clients, DEVICE)?,
                world: mac(world, DEVICE)?,
            },
        })
    }

    /// Takes the program of a daemon that has just been started.
    pub(crate) fn attach(&mut self, daemon: &Gatewayd) -> Result<()> {
        let programs = programs_of(daemon)?;
        let mut entries = programs.iter().filter(|program| program.name() == ENTRY.as_bytes());
        let entry = entries.next().with_context(|| format!("the daemon has no program `{ENTRY}`"))?;
        self.kernel.set_gateway(&entry.fd()?)
    }

    // `BPF_PROG_RUN` looks for the device of a packet in the namespace of its caller: all that follows is for
    // threads in that of the gateway.

    /// Opens a session and returns the client's first packet as it leaves.
    ///
    /// # Errors
    /// If the gateway does not translate it.
    pub(crate) fn open(&mut self, flow: &Flow, protocol: Protocol) -> Result<Ran> {
        let first = match protocol {
            Protocol::Tcp => Transport::Tcp(SYN),
            Protocol::Udp => Transport::Udp,
        };
        let ran = self.out(flow, first)?;
        if !is_translated(&ran) {
            bail!("the gateway does not translate {flow:?}: action {}", ran.action);
        }
        if protocol == Protocol::Tcp {
            self.back(&Flow::answering(&ran.frame), Transport::Tcp(SYN | ACK))?;
            self.out(flow, Transport::Tcp(ACK))?;
        }
        Ok(ran)
    }

    /// Runs the gateway on one packet of a client.
    pub(crate) fn out(&mut self, flow: &Flow, transport: Transport) -> Result<Ran> {
        self.kernel.set_frames(&[self.macs.out(flow, transport)])?;
        self.kernel.run(MEASURE, self.inside, 1)
    }

    /// Runs the gateway on one packet of the world.
    pub(crate) fn back(&mut self, flow: &Flow, transport: Transport) -> Result<Ran> {
        self.kernel.set_frames(&[self.macs.back(flow, transport)])?;
        self.kernel.run(MEASURE, self.outside, 1)
    }

    /// Opens so many UDP sessions, those of the first flows of [`Flow::template`]. A power of two, not below
    /// [`TEMPLATES`].
    pub(crate) fn open_many(&mut self, daemon: &Gatewayd, flows: u32) -> Result<()> {
        ensure!(flows <= MANY, "there are no {flows} flows");
        let frames: Vec<_> =
            (0..TEMPLATES).map(|number| self.macs.out(&Flow::template(number), Transport::Udp)).collect();
        self.kernel.set_templates(&frames)?;
        self.kernel.set_turns(TEMPLATES, flows, Order::Ascending)?;
        let sessions = || daemon.count("gateway_sessions{proto=\"udp\"}");
        let before = sessions()?;
        self.kernel.run(MEASURE, self.inside, flows)?;
        let opened = sessions()? - before;
        ensure!(opened == u64::from(flows), "the gateway opened {opened} sessions of {flows}");
        Ok(())
    }
}

impl Single {
    /// Starts a gateway. `config` is added to its configuration.
    pub(crate) fn new(options: &Options, config: &str) -> Result<Self> {
        cpu::pin_to(cpu::COMMON)?;
        let network = Network::new()?;
        let daemon = network.gatewayd(config)?;
        let probe = Probe::new(options, &network, TABLE_CAPACITY)?;
        let mut single = Self { probe, other: None, daemon, network };
        single.start()?;
        if let Some(object) = &options.against {
            let mut loaded = load_on_maps_of(&single.daemon, object)?;
            let program = loaded.program_mut(ENTRY).with_context(|| format!("no program `{ENTRY}`"))?;
            let program: &mut Xdp = program.try_into()?;
            program.load().context("the kernel refuses the other program")?;
            single.probe.kernel.set_other(program.fd()?)?;
            single.other = Some(loaded);
        }
        Ok(single)
    }

    /// Starts the gateway anew, without any session.
    pub(crate) fn restart(&mut self) -> Result<()> {
        ensure!(self.daemon.stop()?.success(), "gatewayd failed:\n{}", self.daemon.log());
        self.start()
    }

    /// Runs `work` where the gateway is, on the processor for what is measured.
    pub(crate) fn within<T: Send>(&mut self, work: impl FnOnce(&mut Self) -> Result<T> + Send) -> Result<T> {
        let gateway = self.network.gateway.clone();
        gateway.enter(|| {
            cpu::pin_to(cpu::MEASURED)?;
            work(self)
        })?
    }

    fn start(&mut self) -> Result<()> {
        self.daemon.start_again(&["--detach-on-exit"])?;
        self.probe.attach(&self.daemon)
    }
}

/// Transport protocol of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

/// Whether a packet left with the pool's address.
pub(crate) fn is_translated(ran: &Ran) -> bool {
    let (source, _): (Ipv4Addr, u16) = Flow::source_of(&ran.frame);
    ran.action == XDP_REDIRECT && source.to_string() == POOL
}

/// Packets that the gateway has counted.
#[derive(Clone, Copy)]
pub(crate) struct Seen {
    /// Those it has sent on.
    pub(crate) forwarded: u64,
    pub(crate) dropped: u64,
}

impl Seen {
    /// Asks the daemon.
    pub(crate) fn read(daemon: &Gatewayd) -> Result<Self> {
        let page = daemon.metrics()?;
        let sum = |verdicts: &[&str]| -> u64 {
            let lines = page.lines().filter(|line| {
                line.starts_with("gateway_packets_total{")
                    && line.contains("direction=\"in\"")
                    && verdicts.iter().any(|verdict| line.contains(&format!("verdict=\"{verdict}\"")))
            });
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
        };
        Ok(Self { forwarded: sum(&["snat", "reply", "eip"]), dropped: sum(&["drop"]) })
    }

    /// Fails unless the gateway has sent on exactly so many packets since then, and dropped none.
    pub(crate) fn expect(self, daemon: &Gatewayd, wanted: u64) -> Result<()> {
        let after = Self::read(daemon)?;
        let (forwarded, dropped) = (after.forwarded - self.forwarded, after.dropped - self.dropped);
        ensure!(
            forwarded == wanted && dropped == 0,
            "the gateway forwarded {forwarded} packets of {wanted}, and dropped {dropped}"
        );
        Ok(())
    }
}
