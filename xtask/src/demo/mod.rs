//! The gateway shown at work: real programs, real traffic, in a network that exists for a minute.
//!
//! Every act says what it promises and stops the demo when the promise is not kept, so the demo is a test.

mod acts;
mod bounds;
mod reading;
mod stage;
mod walk;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail};
use gateway_lab::{Gatewayd, Lab, Process, Sandbox, wait_until};
use nix::unistd::geteuid;

use crate::{cargo, leftovers, setup, term};

/// Name of a lab that is kept.
const KEPT: &str = "gwdemo";

/// How the demo is run.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Options {
    /// Leave the lab up at the end, and say how to play with it
    #[arg(long)]
    keep: bool,
    /// Shorter traffic runs
    #[arg(long)]
    fast: bool,
    /// Take down a lab that was kept, and do nothing else
    #[arg(long, conflicts_with_all = ["keep", "fast"])]
    clean: bool,
}

/// Builds everything, makes the lab, plays every act, and takes the lab down.
pub(crate) fn run(options: Options) -> Result<()> {
    if !geteuid().is_root() {
        bail!("the demo makes network namespaces and loads XDP programs: run it as root");
    }
    if options.clean {
        return clean();
    }
    setup::ensure(setup::Scope::Everything)?;
    cargo::build_release()?;
    let name = if options.keep { KEPT.to_owned() } else { format!("{KEPT}{}", std::process::id()) };
    let sandbox = Sandbox::named(&name).with_context(|| {
        if options.keep {
            "was a lab kept before? `cargo xtask demo --clean` takes it down"
        } else {
            "cannot make the lab"
        }
    })?;
    let mut demo = Demo::new(sandbox, options.fast)?;
    if let Err(error) = acts::play(&mut demo) {
        let log = demo.daemon.log();
        let last: Vec<_> = log.lines().rev().take(12).collect();
        eprintln!("\n{} the log of gatewayd ends with", term::error("the demo stops here;"));
        for line in last.into_iter().rev() {
            eprintln!("    {line}");
        }
        return Err(error);
    }
    if options.keep {
        return demo.keep();
    }
    drop(demo);
    if let Some(left) = leftovers::of(&name) {
        bail!("{left}");
    }
    stage::proof("The lab is gone: no namespace, process, pin or file is left.");
    Ok(())
}

/// Serves HTTP in the namespace it is started in; a part of the demo that is a process of its own, so that
/// it outlives a demo that is kept.
pub(crate) fn serve(address: std::net::SocketAddr, log: &PathBuf) -> Result<()> {
    let listener =
        std::net::TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    let file = std::fs::File::options().create(true).append(true).open(log);
    gateway_lab::server::serve_http(
        &listener,
        file.with_context(|| format!("cannot write {}", log.display()))?,
    )
}

/// The lab, the daemon and the servers.
struct Demo {
    daemon: Gatewayd,
    servers: Vec<Process>,
    fast: bool,
    lab: Lab,
}

impl Demo {
    fn new(sandbox: Sandbox, fast: bool) -> Result<Self> {
        let lab = Lab::standard_in(sandbox)?;
        let daemon = Gatewayd::new(&lab.sandbox, &lab.gw, &Gatewayd::standard_config("inactive", ""))?;
        let mut demo = Self { daemon, servers: Vec::new(), fast, lab };
        for (name, node) in [("api", demo.lab.api.clone()), ("web", demo.lab.web.clone())] {
            let this = std::env::current_exe()?.display().to_string();
            let log = demo.server_log(name).display().to_string();
            demo.servers.push(node.spawn(&[&this, "serve", "0.0.0.0:80", &log])?);
            demo.servers.push(node.spawn(&["iperf3", "--server"])?);
            wait_until("the servers to listen", Duration::from_secs(5), || {
                let listening = node.ok(&["ss", "--no-header", "--listening", "--tcp", "--numeric"]);
                listening.is_ok_and(|text| text.contains(":80 ") && text.contains(":5201 "))
            })?;
        }
        Ok(demo)
    }

    /// Runs gwctl and shows command and output.
    fn gwctl(&self, line: &str) -> Result<String> {
        stage::command("gw", &format!("gwctl {line}"));
        let said = self.daemon.tell(line)?;
        stage::output(&said);
        Ok(said)
    }

    /// How long a traffic run takes.
    fn seconds(&self) -> u64 {
        if self.fast { 4 } else { 10 }
    }

    /// Where a server writes which address asked for what.
    fn server_log(&self, name: &str) -> PathBuf {
        self.lab.sandbox.dir().join(format!("{name}.log"))
    }

    fn keep(mut self) -> Result<()> {
        self.daemon.keep();
        self.servers.iter_mut().for_each(Process::keep);
        let socket = self.daemon.socket().display().to_string();
        let programs = gateway_lab::program("gwctl")?;
        println!("\n{}", term::title("── The lab stays up "));
        let try_these = [
            format!(
                "export GWCTL_SOCKET={socket} PATH={}:$PATH",
                programs.parent().unwrap_or(&programs).display()
            ),
            "gwctl status".to_owned(),
            "gwctl stats drops --watch".to_owned(),
            format!("ip netns exec {KEPT}-c1 curl http://203.0.113.10/"),
            format!("ip netns exec {KEPT}-c2 iperf3 -c 192.0.2.10"),
            format!("tail -f {}", self.server_log("api").display()),
            format!("nsenter --net=/run/netns/{KEPT}-gw curl -s http://127.0.0.1:9464/metrics"),
        ];
        for line in try_these {
            println!("  {}", term::strong(&line));
        }
        println!("Take it down: {}", term::strong("cargo xtask demo --clean"));
        self.lab.sandbox.keep()
    }
}

fn clean() -> Result<()> {
    gateway_lab::remove(KEPT)?;
    if let Some(left) = leftovers::of(&format!("{KEPT}-")) {
        bail!("{left}");
    }
    println!("{} no lab named {KEPT} is left", term::good("✓"));
    Ok(())
}
