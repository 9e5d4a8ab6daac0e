//! Whole configurations and revisions: `apply`, `diff`, `confirm`, `undo`, `history`.

use std::{fs, io::Write as _, process::Stdio, thread, time::Duration};

use anyhow::{Context as _, Result};
use insta::assert_snapshot;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Daemon, Said, gwctl};

/// A daemon, and a file with what is in force.
struct Rig {
    daemon: Daemon,
    directory: TempDir,
}

impl Rig {
    fn start() -> Result<Self> {
        let daemon = Daemon::start()?;
        for line in [
            "interface add eth1 role inside",
            "interface add eth0 role outside",
            "pool add nat address 198.51.100.10",
            "route add 203.0.113.0/24 via pool nat",
        ] {
            assert_eq!(daemon.run(line)?.code, 0, "{line}");
        }
        Ok(Self { daemon, directory: tempfile::tempdir()? })
    }

    /// Writes what is in force, with `changes`, to a file.
    fn write(&self, name: &str, changes: &[(&str, &str)]) -> Result<()> {
        let mut text = self.daemon.run("export")?.out;
        for (from, to) in changes {
            assert!(text.contains(from), "{from}: {text}");
            text = text.replace(from, to);
        }
        Ok(fs::write(self.directory.path().join(name), text)?)
    }

    /// Runs `gwctl`; `DIR` stands for the directory of the files.
    fn run(&self, line: &str) -> Result<Said> {
        self.daemon.run(&line.replace("DIR", &self.directory.path().display().to_string()))
    }

    /// A transcript as a user would see it.
    fn transcript(&self, lines: &[&str]) -> Result<String> {
        let place = self.directory.path().display().to_string();
        let mut text = String::new();
        for line in lines {
            let Said { out, err, code } = self.run(line)?;
            text += &format!("$ gwctl {line}\n{out}{err}[{code}]\n\n").replace(&place, "DIR");
        }
        Ok(text)
    }
}

/// Changes of each kind.
const CHANGES: &[(&str, &str)] = &[
    ("state = \"inactive\"", "state = \"active\""),
    ("udp = \"5m\"", "udp = \"6m\""),
    ("\"198.51.100.10\"", "\"198.51.100.10\", \"198.51.100.11\""),
    ("{ to = \"203.0.113.0/24\", via = \"pool nat\" },", "{ to = \"203.0.113.0/24\", via = \"direct\" },"),
    ("routes = [\n", "bind = [\"10.0.1.0/24\"]\nroutes = [{ to = \"192.0.2.0/24\", via = \"blackhole\" },\n"),
];

#[test]
fn what_is_exported_is_applied_without_a_change() -> Result<()> {
    let rig = Rig::start()?;
    rig.write("same.toml", &[])?;
    assert_snapshot!(rig.transcript(&["diff -f DIR/same.toml", "apply -v -f DIR/same.toml"])?);
    let mut child = gwctl(&rig.daemon.socket())?
        .args(["-v", "apply", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("no stdin")?.write_all(&fs::read(rig.directory.path().join("same.toml"))?)?;
    let done = child.wait_with_output()?;
    assert_eq!(String::from_utf8(done.stderr)?, "nothing to change, revision 5 is in force\n");
    Ok(())
}

#[test]
fn a_file_is_compared_checked_applied_and_taken_back() -> Result<()> {
    let rig = Rig::start()?;
    rig.write("next.toml", CHANGES)?;
    let before = rig.run("export")?.out;
    let text = rig.transcript(&[
        "diff -f DIR/next.toml",
        "apply -f DIR/next.toml --check -v",
        "apply -f DIR/next.toml --expect-revision 4",
        "apply -f DIR/next.toml --expect-revision 5 -v",
        "diff -f DIR/next.toml",
        "route show",
        "undo -v",
        "undo 99",
        "confirm",
    ])?;
    assert_snapshot!(text);
    assert_eq!(rig.run("export")?.out, before);
    let history: Value = serde_json::from_str(&rig.run("history --json")?.out)?;
    let items = history["items"].as_array().context("a list")?;
    let commands: Vec<_> = items.iter().filter_map(|item| item["command"].as_str()).collect();
    let first = ["undo 5", "apply", "route add 203.0.113.0/24 via pool nat table main"];
    assert_eq!(commands[..3], first, "{history}");
    assert_eq!((&items[0]["in_force"], &items[1]["in_force"]), (&true.into(), &false.into()));
    let table = rig.run("history")?.out;
    assert!(table.contains("undo 5  (in force)"), "{table}");
    Ok(())
}

#[test]
fn a_bad_file_changes_nothing_and_is_named_with_its_line() -> Result<()> {
    let rig = Rig::start()?;
    rig.write("bad.toml", &[("via = \"pool nat\"", "via = \"pool other\"")])?;
    rig.write("size.toml", &[("routes = 1048576", "routes = 2000000")])?;
    fs::write(
        rig.directory.path().join("servers.routes"),
        "192.0.2.0/24 via pool nat\n192.0.2.1/24 via direct\n",
    )?;
    rig.write("named.toml", &[("routes = [\n", "routes_file = \"servers.routes\"\nroutes = [\n")])?;
    let text = rig.transcript(&[
        "apply -f DIR/bad.toml",
        "diff -f DIR/bad.toml",
        "apply -f DIR/size.toml",
        "apply -f DIR/named.toml",
        "apply -f DIR/missing.toml",
        "apply",
        "apply -f DIR/size.toml --confirm 30",
        "apply -f DIR/size.toml --confirm 10ms",
    ])?;
    assert_snapshot!(text);
    assert_eq!(
        rig.daemon.memory.state().applied.as_ref().map(|state| state.tables["main"].routes.len()),
        Some(1)
    );
    Ok(())
}

#[test]
fn route_files_are_read_where_gwctl_runs() -> Result<()> {
    let rig = Rig::start()?;
    fs::write(rig.directory.path().join("servers.routes"), "192.0.2.0/24 via pool nat\n")?;
    rig.write("named.toml", &[("routes = [\n", "routes_file = \"servers.routes\"\nroutes = [\n")])?;
    assert_eq!(rig.run("apply -f DIR/named.toml")?.code, 0);
    assert_eq!(rig.run("--no-header route show 192.0.2.0/24")?.out.lines().count(), 1);
    Ok(())
}

#[test]
fn what_nobody_confirms_is_taken_back_with_exit_code_8() -> Result<()> {
    let rig = Rig::start()?;
    rig.write("next.toml", CHANGES)?;
    assert_snapshot!(rig.transcript(&[
        "apply -f DIR/next.toml --confirm 1s",
        "diff -f DIR/next.toml",
        "confirm",
    ])?);
    Ok(())
}

#[test]
fn what_somebody_confirms_stays() -> Result<()> {
    let rig = Rig::start()?;
    rig.write("next.toml", CHANGES)?;
    let file = rig.directory.path().join("next.toml");
    let mut waiting = gwctl(&rig.daemon.socket())?
        .args(["-v", "apply", "--confirm", "20s", "-f"])
        .arg(&file)
        .stderr(Stdio::piped())
        .spawn()?;
    while !rig.run("status")?.out.contains("unless it is confirmed") {
        thread::sleep(Duration::from_millis(50));
        assert!(waiting.try_wait()?.is_none(), "it waits");
    }
    let refused = rig.run("deactivate")?;
    assert_eq!(refused.code, 5);
    assert_eq!(
        refused.err,
        "error: revision 6 waits to be confirmed\nhint: `gwctl confirm` keeps it, `gwctl undo` takes it back\n"
    );
    assert_eq!(rig.run("confirm")?.code, 0);
    let done = waiting.wait_with_output()?;
    assert!(done.status.success());
    let said = String::from_utf8(done.stderr)?;
    assert!(said.ends_with("revision 6 is confirmed\n"), "{said}");
    assert_eq!(rig.run("diff -f DIR/next.toml")?.code, 0);
    Ok(())
}
