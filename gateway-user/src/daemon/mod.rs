//! The life of `gatewayd`: what it takes hold of at the start, in which order, and what it leaves behind.
//!
//! Everything that can be refused is refused before the data plane is touched. Stopping leaves the data
//! plane forwarding; only `--detach-on-exit` takes it away.

mod directory;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::IsTerminal as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf, absolute},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use aya::maps::{MapData, RingBuf};
use clap::Parser;
use sd_notify::NotifyState;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    access_log,
    api::{self, error::exit, types::Notice},
    config::{self, Config, ConfigError},
    control::{self, Base, Control, Handle, Store},
    dataplane::{Dataplane, Host, Records, watch::Watchers},
    events, health,
    metrics::{self, Metrics},
    model::{Capacity, Proxy, ProxyMode, Role, Snapshot},
    monitor::Hub,
    netlink::{Neighbor, Netlink, Sysctls},
    refused::Refused,
    usage,
};

use directory::Lock;
pub use directory::check_bpffs;

/// How long requests and helpers may take to finish when the daemon stops.
const PATIENCE: Duration = Duration::from_secs(5);

/// Egress gateway: loads routes into XDP programs, keeps them in force, exports metrics.
#[derive(Clone, Debug, Parser)]
#[command(name = "gatewayd", version)]
pub struct Args {
    /// Configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/gateway/gateway.toml")]
    pub config: PathBuf,
    /// Control socket for gwctl
    #[arg(long, value_name = "PATH", default_value = "/run/gateway/gateway.sock")]
    pub socket: PathBuf,
    /// Directory of what is changed at run time
    #[arg(long, value_name = "DIR", default_value = "/var/lib/gateway")]
    pub state_dir: PathBuf,
    /// Directory of the pinned programs and maps, in a BPF file system
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/gateway")]
    pub pin_dir: PathBuf,
    /// Where to serve metrics; beats `gateway.metrics` of the configuration file, 127.0.0.1:9464 if neither is given
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics: Option<SocketAddr>,
    /// Check the configuration file and exit: 0 if it is good, 7 if not
    #[arg(long)]
    pub check_config: bool,
    /// When stopped, remove programs, maps and sessions: the gateway stops forwarding
    #[arg(long)]
    pub detach_on_exit: bool,
}

/// A data plane and what it tells.
pub struct Backend {
    /// The data plane.
    pub dataplane: Box<dyn Dataplane>,
    /// Messages of the packet path, if there is one.
    pub events: Option<RingBuf<MapData>>,
    /// What it records of sessions.
    pub records: Option<Box<dyn Records>>,
    /// What it shows of packets.
    pub watchers: Option<Box<dyn Watchers>>,
}

/// Runs the daemon with the data plane that `open` opens, from the command line to the exit code.
pub fn main(open: impl FnOnce(&Path, Capacity) -> anyhow::Result<Backend>) -> ExitCode {
    let args = Args::parse();
    let result = if args.check_config { check(&args.config) } else { start(&args, open) };
    match result {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            let (hint, code) = remedy(&error);
            eprintln!("error: {error:#}");
            if let Some(hint) = hint {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(code)
        }
    }
}

fn check(path: &Path) -> anyhow::Result<()> {
    let config = config::load(path)?;
    for warning in config.warnings {
        eprintln!("warning: {warning}");
    }
    println!("ok");
    Ok(())
}

fn start(args: &Args, open: impl FnOnce(&Path, Capacity) -> anyhow::Result<Backend>) -> anyhow::Result<()> {
    log_to_stderr();
    let config = config::load(&args.config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        stop_on_signals(&stop)?;
        run(args, config, open, stop).await
    })
}

/// What the operator can do about `error`, and the exit code for it.
fn remedy(error: &anyhow::Error) -> (Option<String>, u8) {
    if let Some(config) = error.downcast_ref::<ConfigError>() {
        (config.hint.clone(), exit::INVALID)
    } else if let Some(refused) = error.downcast_ref::<Refused>() {
        (Some(refused.hint.clone()), exit::UNEXPECTED)
    } else {
        (None, exit::UNEXPECTED)
    }
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let format = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    // The journal has its own clock.
    let set = if std::env::var_os("JOURNAL_STREAM").is_some() {
        format.without_time().try_init()
    } else {
        format.try_init()
    };
    if let Err(error) = set {
        eprintln!("warning: there is no log: {error}");
    }
}

fn stop_on_signals(stop: &CancellationToken) -> anyhow::Result<()> {
    for (kind, name) in [(SignalKind::terminate(), "SIGTERM"), (SignalKind::interrupt(), "SIGINT")] {
        let mut signals = signal(kind).with_context(|| format!("cannot handle {name}"))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            info!("{name}: stopping");
            stop.cancel();
        });
    }
    // A closed terminal is no reason to stop.
    let mut hangups = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    tokio::spawn(async move {
        while hangups.recv().await.is_some() {
            info!("SIGHUP: nothing to do; the configuration file is read at the start only");
        }
    });
    Ok(())
}

/// The daemon between configuration and exit. Returns when `stop` is cancelled, or when a part of it fails.
async fn run(
    args: &Args,
    config: Config,
    open: impl FnOnce(&Path, Capacity) -> anyhow::Result<Backend>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let started = Instant::now();
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let _state_lock = Lock::take_state(&args.state_dir)?;
    let pin_lock = Lock::take_pins(&args.pin_dir)?;
    let store = Store::open(&args.state_dir)?;
    let metrics_at = args.metrics.or(config.metrics).unwrap_or((Ipv4Addr::LOCALHOST, 9464).into());
    let metrics_listener = TcpListener::bind(metrics_at)
        .await
        .with_context(|| format!("cannot serve metrics on {metrics_at}"))?;
    let socket = api::listen(&args.socket)?;
    let _socket_file = Removed(args.socket.clone());

    let access_log = config.snapshot.access_log.clone();
    let sink = access_log.as_ref().map(access_log::open).transpose()?;
    let sink = sink.zip(access_log.map(|log| log.max_rate));
    let netlink = Netlink::open().await.context("cannot read the host's network")?;
    let backend = open(&args.pin_dir, config.snapshot.capacity)?;
    let base = Base { snapshot: Arc::new(config.snapshot), fingerprint: config.fingerprint };
    let (handle, mut control) =
        control::start(backend.dataplane, netlink.host().clone(), base, store).await?;

    let recorded = Arc::new(access_log::Stats::default());
    let records = backend.records.map(|records| access_log::start(records, sink, &recorded)).transpose()?;
    let hub = backend.watchers.map(Hub::start).transpose()?.unwrap_or_default();
    let metrics = Metrics::new(handle.clone(), recorded)?;
    let usage = Arc::<usage::History>::default();
    let context = api::Context {
        control: handle.clone(),
        config_file: absolute(&args.config).unwrap_or_else(|_| args.config.clone()),
        metrics: config.metrics,
        started,
        inspect: inspector(&handle),
        monitor: hub.clone(),
        usage: Arc::clone(&usage),
    };
    let (unresolved, resolve) = mpsc::channel(events::BACKLOG);
    let mut api = tokio::spawn(api::serve(socket, context, stop.clone()));
    let mut scrapes = tokio::spawn(metrics::serve(metrics_listener, Arc::new(metrics)));
    let mut messages = tokio::spawn(pass_on(backend.events, unresolved));
    let follower = follow(netlink, handle.clone(), resolve, stop.clone(), args.detach_on_exit);
    let follower = tokio::spawn(follower);
    let checks = tokio::spawn(health::run(handle.clone(), stop.clone()));
    let looks = tokio::spawn(usage::run(usage, handle.clone(), stop.clone()));
    info!(socket = %args.socket.display(), metrics = %metrics_at, active = handle.snapshot().active, "ready");
    notify(&[NotifyState::Ready]);

    let failure = tokio::select! {
        // First: the parts end by themselves once this is cancelled.
        biased;
        () = stop.cancelled() => None,
        error = control.failed() => Some(error),
        ended = &mut api => Some(unexpected("the control socket", ended.map(Result::err))),
        ended = &mut scrapes => Some(unexpected("the metrics port", ended.map(|result| result.err().map(Into::into)))),
        ended = &mut messages => Some(unexpected("the reader of the packet path's messages", ended.map(Result::err))),
    };
    notify(&[NotifyState::Stopping]);
    stop.cancel();
    // Streams would keep the control socket from closing.
    hub.stop();
    scrapes.abort();
    messages.abort();
    if let Some(failure) = failure {
        return Err(failure);
    }
    finish("requests on the control socket", api).await;
    finish("the checks of proxies", checks).await;
    finish("the history of usage", looks).await;
    finish("the connection to the host's network", follower).await;
    if let Some(records) = records {
        records.stop();
    }
    leave(control, pin_lock, args).await
}

/// Stops the control plane, and takes the data plane away if that is asked for.
async fn leave(control: Control, pins: Lock, args: &Args) -> anyhow::Result<()> {
    control.stop(args.detach_on_exit).await.context("cannot remove the data plane")?;
    if args.detach_on_exit {
        pins.remove()?;
        info!("stopped; programs, maps and sessions are removed");
    } else {
        info!("stopped; the data plane keeps forwarding");
    }
    Ok(())
}

/// Looks at the host's settings for the gateway's interfaces.
fn inspector(handle: &Handle) -> api::Inspect {
    let handle = handle.clone();
    Arc::new(move |state: &Snapshot| {
        let host = handle.host();
        let links = state.interfaces.keys().filter_map(|name| host.links.get_key_value(name));
        let mut found = Sysctls::read(links.map(|(name, link)| (name.as_str(), link)));
        found.warnings.extend(own_eips(state, &host));
        found.problems.extend(misplaced(state, &host));
        found
    })
}

/// EIPs that are addresses of the host, too: it keeps their packets to itself.
fn own_eips(state: &Snapshot, host: &Host) -> Vec<Notice> {
    let addresses =
        host.links.iter().flat_map(|(device, link)| link.addresses.iter().map(move |net| (device, net)));
    let own = addresses.filter(|(_, net)| state.eips.contains_key(&net.addr()));
    own.map(|(device, net)| Notice {
        message: format!(
            "EIP {} is an address of the host on {device}: packets for it stay with the host",
            net.addr()
        ),
        hint: Some(format!("ip address del {net} dev {device}; the gateway answers ARP for it")),
    })
    .collect()
}

/// Hosts of proxies that no packet can be sent to: those that are the gateway itself, and those that are not on a link
/// of an inside interface.
fn misplaced(state: &Snapshot, host: &Host) -> Vec<Notice> {
    let is_own = |address| host.addresses().any(|net| net.addr() == address);
    let is_inside = |address| {
        let interface = host.link_of(address).and_then(|(name, _)| state.interfaces.get(name));
        interface.is_some_and(|interface| interface.role != Role::Outside)
    };
    let notice = |proxy: &Proxy, address: IpAddr| {
        let name = &proxy.name;
        let (what, hint) = if is_own(address) {
            ("is the gateway itself", "a proxy runs on another host")
        } else if proxy.mode != ProxyMode::L2 || is_inside(address) {
            return None;
        } else {
            ("is on no link of an inside interface: packets cannot be sent to it", "see `ip address`")
        };
        Some(Notice {
            message: format!("host {address} of proxy `{name}` {what}"),
            hint: Some(format!("{hint}; to change it: gwctl proxy set {name} host ADDR[,ADDR...]")),
        })
    };
    let hosts = state.proxies.values().flat_map(|proxy| proxy.hosts.iter().map(move |host| (proxy, host)));
    hosts.filter_map(|(proxy, host)| notice(proxy, host.address)).collect()
}

async fn pass_on(ring: Option<RingBuf<MapData>>, unresolved: mpsc::Sender<Neighbor>) -> anyhow::Result<()> {
    let Some(ring) = ring else {
        unresolved.closed().await;
        return Ok(());
    };
    events::run(ring, unresolved).await
}

/// Follows the host's network until `stop`.
async fn follow(
    mut netlink: Netlink,
    handle: Handle,
    resolve: mpsc::Receiver<Neighbor>,
    stop: CancellationToken,
    detach: bool,
) {
    tokio::select! {
        () = netlink.run(&handle, resolve) => {}
        () = stop.cancelled() => {}
    }
    if detach {
        netlink.release().await;
    }
}

fn unexpected<E>(what: &str, ended: Result<Option<anyhow::Error>, E>) -> anyhow::Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    match ended {
        Ok(Some(error)) => error.context(format!("{what} failed")),
        Ok(None) => anyhow!("{what} ended by itself"),
        Err(error) => anyhow::Error::new(error).context(format!("{what} failed")),
    }
}

/// Waits for a part that was told to stop.
async fn finish<T>(what: &str, task: JoinHandle<T>) {
    let abort = task.abort_handle();
    if timeout(PATIENCE, task).await.is_err() {
        warn!("{what}: not finished within {} seconds", PATIENCE.as_secs());
        abort.abort();
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("cannot tell the service manager: {error}");
    }
}

/// A file that is removed at the end.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.0);
    }
}
