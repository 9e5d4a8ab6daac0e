//! The real daemon, in a namespace.

use std::{
    collections::BTreeSet,
    env,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use crate::{
    node::Node,
    process::{Finished, Process, finish, wait_until},
    sandbox::Sandbox,
};

/// The port of the metrics; each namespace has its own.
const METRICS_PORT: u16 = 9464;

/// How long the daemon may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(20);

/// A gateway: the daemon, its configuration, state, socket and pins, all of them gone with the sandbox.
pub struct Gatewayd {
    node: Node,
    directory: PathBuf,
    pins: PathBuf,
    process: Option<Process>,
}

impl Gatewayd {
    /// A configuration for the standard lab: its interfaces, small tables, and `more` after that.
    /// `state` is `active` or `inactive`.
    pub fn standard_config(state: &str, more: &str) -> String {
        let mut config = format!(
            "[gateway]\nname = \"lab\"\nstate = \"{state}\"\n\
             [capacity]\nsessions = 16384\nroutes = 4096\n"
        );
        let interfaces = [
            ("eth_in1", "inside"),
            ("eth_in2", "inside"),
            ("eth_in3", "inside"),
            ("eth_out", "outside"),
            ("eth_line", "outside"),
        ];
        for (name, role) in interfaces {
            let _ = write!(config, "[[interface]]\nname = \"{name}\"\nrole = \"{role}\"\n");
        }
        config + more
    }

    /// Starts the daemon on a node, with this configuration, and waits until it answers.
    pub fn start(sandbox: &Sandbox, node: &Node, config: &str) -> Result<Self> {
        let mut daemon = Self::new(sandbox, node, config)?;
        daemon.start_again(&[])?;
        Ok(daemon)
    }

    /// Prepares a daemon that [`Gatewayd::start_again`] will start.
    pub fn new(sandbox: &Sandbox, node: &Node, config: &str) -> Result<Self> {
        let directory = sandbox.dir().join(node.name());
        fs::create_dir_all(directory.join("state"))?;
        fs::write(directory.join("gateway.toml"), config)?;
        fs::create_dir_all(sandbox.pins())?;
        let pins = sandbox.pins().join(node.name());
        Ok(Self { node: node.clone(), directory, pins, process: None })
    }

    /// Starts the daemon, with more arguments, and waits until it answers.
    ///
    /// # Errors
    /// If it ends, or does not answer in time; with the end of its log.
    pub fn start_again(&mut self, more: &[&str]) -> Result<()> {
        let line = self.command_line(more)?;
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        let mut process = self.node.spawn_logged(&words, &self.log_path())?;
        let mut ended = false;
        let answers = wait_until("gatewayd to answer", LIMIT, || {
            ended = !process.is_running();
            ended || self.gwctl(&["status", "--brief"]).is_ok_and(|said| said.code != Some(3))
        });
        if ended || answers.is_err() {
            let how = if ended { "ended" } else { "does not answer" };
            bail!("gatewayd {how}; its log:\n{}", self.log());
        }
        self.process = Some(process);
        Ok(())
    }

    /// The command line of the daemon.
    pub fn command_line(&self, more: &[&str]) -> Result<Vec<String>> {
        let path = |name: &str| self.directory.join(name).display().to_string();
        let mut line = vec![
            program("gatewayd")?.display().to_string(),
            "--config".to_owned(),
            path("gateway.toml"),
            "--socket".to_owned(),
            path("gateway.sock"),
            "--state-dir".to_owned(),
            path("state"),
            "--pin-dir".to_owned(),
            self.pins.display().to_string(),
            "--metrics".to_owned(),
            format!("127.0.0.1:{METRICS_PORT}"),
        ];
        line.extend(more.iter().map(|word| (*word).to_owned()));
        Ok(line)
    }

    /// Runs gwctl against this daemon.
    pub fn gwctl(&self, words: &[&str]) -> Result<Finished> {
        self.gwctl_for(LIMIT, words)
    }

    /// Runs gwctl against this daemon, to an end that must come within `limit`.
    pub fn gwctl_for(&self, limit: Duration, words: &[&str]) -> Result<Finished> {
        let mut command = Command::new(program("gwctl")?);
        command.env("GWCTL_SOCKET", self.socket()).env("NO_COLOR", "1").args(words);
        finish(&mut command, limit)
    }

    /// Runs gwctl, which must succeed; returns what it printed.
    pub fn ok(&self, words: &[&str]) -> Result<String> {
        self.gwctl(words)?.ok()
    }

    /// Runs a gwctl command given as one line: `route add 203.0.113.0/24 via pool nat`.
    pub fn tell(&self, line: &str) -> Result<String> {
        self.ok(&line.split_whitespace().collect::<Vec<_>>())
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("gatewayd does not run")?;
        process.signal(Signal::SIGKILL)?;
        process.wait(LIMIT).map(|_| ())
    }

    /// SIGTERM; returns how it ended.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        let mut process = self.process.take().context("gatewayd does not run")?;
        process.signal(Signal::SIGTERM)?;
        process.wait(LIMIT).with_context(|| format!("its log:\n{}", self.log()))
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(Process::is_running)
    }

    /// Number of the process.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.process.as_ref().context("gatewayd does not run")?.pid())
    }

    /// The processor time that its threads of this name have used.
    pub fn thread_time(&self, name: &str) -> Result<Duration> {
        let mut time = Duration::ZERO;
        for thread in fs::read_dir(format!("/proc/{}/task", self.pid()?))? {
            let path = thread?.path();
            if fs::read_to_string(path.join("comm"))?.trim_end() == name {
                // Nanoseconds on a processor come first, see Documentation/scheduler/sched-stats.rst.
                let statistics = fs::read_to_string(path.join("schedstat"))?;
                let used = statistics.split_whitespace().next().unwrap_or_default();
                time += Duration::from_nanos(used.parse().with_context(|| format!("`{used}` is no time"))?);
            }
        }
        Ok(time)
    }

    /// The page of metrics.
    pub fn metrics(&self) -> Result<String> {
        let page = self.node.enter(|| -> Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, METRICS_PORT))?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")?;
            let mut page = String::new();
            stream.read_to_string(&mut page)?;
            Ok(page)
        })?;
        let page = page.context("cannot read the metrics")?;
        let (head, body) = page.split_once("\r\n\r\n").context("no HTTP answer from the metrics port")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("the metrics port answered {}", head.lines().next().unwrap_or_default());
        }
        Ok(body.to_owned())
    }

    /// The value of one series that counts: `gateway_drops_total{reason="no_route"}`.
    ///
    /// # Errors
    /// If the page does not have it, or it is no whole number.
    pub fn count(&self, series: &str) -> Result<u64> {
        let page = self.metrics()?;
        let wanted = labels(series);
        let mut values = page.lines().filter_map(|line| line.rsplit_once(' '));
        let found = values.find_map(|(found, value)| (labels(found) == wanted).then_some(value));
        let value = found.with_context(|| format!("no {series} among the metrics"))?;
        value.trim().parse().with_context(|| format!("{series} is {value}"))
    }

    /// How many packets were dropped for this reason.
    pub fn drops(&self, reason: &str) -> Result<u64> {
        self.count(&format!("gateway_drops_total{{reason=\"{reason}\"}}"))
    }

    /// What the daemon wrote so far, over all of its lives.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Path of the control socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("gateway.sock")
    }

    /// Path of the configuration file.
    pub fn config_path(&self) -> PathBuf {
        self.directory.join("gateway.toml")
    }

    /// Directory of the state.
    pub fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Directory of the pins.
    pub fn pin_dir(&self) -> &Path {
        &self.pins
    }

    /// Lets the daemon run on when this is dropped.
    pub fn keep(&mut self) {
        if let Some(process) = &mut self.process {
            process.keep();
        }
    }

    fn log_path(&self) -> PathBuf {
        self.directory.join("gatewayd.log")
    }
}

/// Name and labels of a series, the labels in no order.
fn labels(series: &str) -> (&str, BTreeSet<&str>) {
    let (name, labels) = series.trim_end_matches('}').split_once('{').unwrap_or((series, ""));
    (name, labels.split(',').collect())
}

/// Path of a program of this workspace: in `GATEWAY_BIN_DIR`, or beside the running test or task.
///
/// # Errors
/// If it is not built; says how to build it.
pub fn program(name: &str) -> Result<PathBuf> {
    let beside = env::current_exe().context("cannot tell the path of this program")?;
    let named = env::var_os("GATEWAY_BIN_DIR").map(PathBuf::from);
    let places = named.into_iter().chain(beside.ancestors().skip(1).take(2).map(Path::to_owned));
    let mut found = places.map(|place| place.join(name)).filter(|path| path.is_file());
    found.next().with_context(|| format!("{name} is not built: cargo build --package gateway-user --bins"))
}
