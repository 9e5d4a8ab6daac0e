//! Many routes: they come, change and go while packets flow, and a death in between leaves all of a change or none.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use gateway_lab::{Gatewayd, Lab, Process, Rig, program, runnable, wait_until};
use nix::sys::signal::Signal;

use super::ONE_POOL;

/// Prefixes of a list.
const MANY: u32 = 100_000;

/// The route of [`ONE_POOL`].
const OTHERS: u64 = 1;

/// How long a step may take where others are at work.
const PATIENCE: Duration = Duration::from_mins(2);

/// Descriptors that the daemon has open, those of tables among them.
const DESCRIPTORS: &str = "process_open_fds";

const ROUTES: &str = "gateway_routes{family=\"ipv4\",table=\"main\"}";

#[test]
fn a_hundred_thousand_routes_come_change_and_go_while_packets_flow() -> Result<()> {
    if !runnable() {
        return Ok(());
    }
    let lab = Lab::standard()?;
    let config = Gatewayd::standard_config("active", ONE_POOL).replace("routes = 4096", "routes = 131072");
    let mut rig = Rig { daemon: Gatewayd::start(&lab.sandbox, &lab.gw, &config)?, lab };
    let before = rig.daemon.count(DESCRIPTORS)? + 2;
    let pings = Pings::start(&rig)?;
    // Each a part of the one before.
    let [all, most, many] = [list(&rig, MANY)?, list(&rig, MANY - 10_000)?, list(&rig, MANY - 20_000)?];
    load(&rig, &all)?;
    assert_eq!(rig.daemon.count(ROUTES)?, u64::from(MANY) + OTHERS);
    load(&rig, &most)?;
    assert_eq!(rig.daemon.count(ROUTES)?, u64::from(MANY - 10_000) + OTHERS);

    // A death in the middle of a change.
    let mut client = gwctl(&rig, &import(&many))?;
    thread::sleep(Duration::from_millis(400));
    rig.daemon.kill()?;
    let answered = client.wait(PATIENCE)?.success();
    rig.daemon.start_again(&[])?;
    let count = rig.daemon.count(ROUTES)? - OTHERS;
    let (one, other) = (u64::from(MANY - 10_000), u64::from(MANY - 20_000));
    ensure!(count == one && !answered || count == other, "{count} routes, answered: {answered}");

    // A change beside them, and its death.
    rig.daemon.tell("route add 192.0.2.0/24 via blackhole comment kept")?;
    rig.daemon.kill()?;
    rig.daemon.start_again(&[])?;
    assert!(rig.daemon.tell("route get 192.0.2.1")?.contains("blackhole"));

    // The tables that were replaced are given back, all of them.
    load(&rig, &list(&rig, 1)?)?;
    wait_until("the tables that were replaced to be freed", PATIENCE, || {
        rig.daemon.count(DESCRIPTORS).is_ok_and(|open| open <= before)
    })?;
    pings.expect_nothing_lost()
}

#[test]
fn a_change_that_a_crash_cut_off_was_never_made() -> Result<()> {
    let Some(mut rig) = Rig::start("active", ONE_POOL)? else { return Ok(()) };
    rig.daemon.tell("route add 192.0.2.0/24 via blackhole")?;
    rig.daemon.tell("route add 192.0.3.0/24 via blackhole")?;
    let before = rig.daemon.tell("export")?;
    rig.daemon.kill()?;
    let path = rig.daemon.state_dir().join("state.json");
    let whole = fs::read(&path)?;
    assert_eq!(whole.split_inclusive(|byte| *byte == b'\n').count(), 2, "the state, and the second change");
    fs::OpenOptions::new().append(true).open(&path)?.write_all(b"{\"change\":{\"revision\":4,")?;
    rig.daemon.start_again(&[])?;
    assert_eq!(rig.daemon.tell("export")?, before);
    assert!(rig.daemon.log().contains("of a change that was not saved"), "{}", rig.daemon.log());
    // Damage elsewhere is not passed over.
    rig.daemon.stop()?;
    let mut damaged = whole.clone();
    damaged[20] ^= 1;
    fs::write(&path, &damaged)?;
    let line = rig.daemon.command_line(&[])?;
    let refused = rig.lab.gw.run_for(PATIENCE, &line.iter().map(String::as_str).collect::<Vec<_>>())?;
    assert!(refused.stderr.contains("cannot be used: its first line is damaged"), "{refused:?}");
    assert_eq!(fs::read(&path)?, damaged, "it is left as it is");
    fs::write(&path, whole)?;
    rig.daemon.start_again(&[])?;
    assert_eq!(rig.daemon.tell("export")?, before);
    Ok(())
}

/// Writes a list of so many prefixes that nobody sends to.
fn list(rig: &Rig, count: u32) -> Result<PathBuf> {
    let path = rig.daemon.state_dir().with_extension(format!("{count}.list"));
    let mut text = String::new();
    for number in 0..count {
        // 10.64.0.0 and up, in lengths of 29 to 32.
        let address = Ipv4Addr::from(0x0a40_0000 + 8 * number);
        writeln!(text, "{address}/{}", 29 + number % 4)?;
    }
    fs::write(&path, text)?;
    Ok(path)
}

/// The command that makes the list, and nothing else, go straight out.
fn import(list: &Path) -> String {
    format!("route import {} via direct --prune", list.display())
}

/// Imports a list, which stands back for whatever else wants the processors.
fn load(rig: &Rig, list: &Path) -> Result<()> {
    let line = import(list);
    let words: Vec<&str> = line.split_whitespace().collect();
    rig.daemon.gwctl_for(PATIENCE, &words)?.ok().map(drop)
}

/// Starts a command, for those who do not wait for it.
fn gwctl(rig: &Rig, line: &str) -> Result<Process> {
    let (program, socket) = (program("gwctl")?, rig.daemon.socket());
    let (program, socket) = (program.display().to_string(), socket.display().to_string());
    let words = [&program, "--socket", &socket].into_iter().chain(line.split_whitespace());
    rig.lab.gw.spawn(&words.collect::<Vec<_>>())
}

/// A hundred packets a second there and back.
struct Pings(Process);

impl Pings {
    fn start(rig: &Rig) -> Result<Self> {
        let pings = rig.lab.c1.spawn_piped(&["ping", "-q", "-n", "-i", "0.01", "203.0.113.10"])?;
        Ok(Self(pings))
    }

    fn expect_nothing_lost(self) -> Result<()> {
        self.0.signal(Signal::SIGINT)?;
        let said = self.0.finish(PATIENCE)?.stdout;
        let line = said.lines().find(|line| line.contains("packets transmitted")).context("no summary")?;
        let counts: Vec<u64> = line.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
        let [sent, received, ..] = counts[..] else { bail!("ping said {said}") };
        // The last one may be under way.
        ensure!(sent > 100 && received + 1 >= sent, "{line}");
        Ok(())
    }
}
