//! `gwctl` and the daemon: what is typed, what is printed, and the exit code.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use gateway_common::{
    DropReason, Verdict,
    counter::{Counter, SessionCounters},
    pool::PoolCounters,
    usage::Usage,
};
use gateway_user::{
    dataplane::{SessionRow, Traffic, UsageStats},
    model::{RouteKey, Selector},
};
use insta::assert_snapshot;
use serde_json::Value;

use crate::support::{Daemon, finish, gwctl};

/// What the examples of the documentation set up.
const SETUP: &str = r#"
    interface add eth1 role inside
    interface add eth0 role outside mode generic
    pool add nat address 198.51.100.10,198.51.100.11
    table add servers
    table bind servers from 10.0.2.0/24
    route add 203.0.113.0/24 via pool nat
    route add 203.0.113.128/25 via blackhole
    route add 2001:db8::/32 via direct
    route add 192.0.2.53 via prohibit proto udp dport 53 comment "not here"
    route add default via gateway 10.0.1.2 dev eth1 table servers
"#;

pub(crate) fn set_up() -> Result<Daemon> {
    let daemon = Daemon::start()?;
    for line in SETUP.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let said = daemon.run(line)?;
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""), "{line} is not silent");
    }
    Ok(daemon)
}

fn json(daemon: &Daemon, line: &str) -> Result<Value> {
    let said = daemon.run(&format!("{line} --json"))?;
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{line}");
    Ok(serde_json::from_str(&said.out)?)
}

/// Lets traffic leave its marks.
pub(crate) fn let_packets_pass(daemon: &Daemon) -> Result<()> {
    let counter = |packets, bytes| Counter { packets, bytes };
    let traffic = |ingress: &str, egress: Option<&str>, verdict, packets| Traffic {
        ingress: ingress.to_owned(),
        egress: egress.map(str::to_owned),
        verdict,
        counter: counter(packets, packets * 100),
    };
    let key = RouteKey { prefix: "203.0.113.0/24".parse()?, selector: Selector::default() };
    let mut state = daemon.memory.state();
    state.traffic = vec![
        traffic("eth1", Some("eth0"), Verdict::Snat, 40),
        traffic("eth0", Some("eth1"), Verdict::Reply, 38),
        traffic("eth1", None, Verdict::Drop, 20),
    ];
    state.drops.insert(DropReason::NoRoute as u8, counter(17, 1700));
    state.drops.insert(DropReason::PoolExhausted as u8, counter(3, 300));
    state.routes.insert(("main".to_owned(), key), counter(40, 4000));
    let pool = PoolCounters {
        attempts: 5,
        established: 4,
        allocation_errors: 3,
        opened: 2,
        ..PoolCounters::default()
    };
    state.pools.insert("198.51.100.10".parse()?, pool);
    state.session_counters[0] = SessionCounters { created: 2, ..SessionCounters::default() };
    for number in 0..2 {
        state.sessions.push(SessionRow {
            proto: 6,
            source: "10.0.1.2".parse()?,
            source_port: 40_000 + number,
            translated: "198.51.100.10".parse()?,
            translated_port: 40_000 + number,
            destination: "203.0.113.7".parse()?,
            destination_port: 443,
            pool: Some("nat".to_owned()),
            proxy: None,
            route: Some(("main".to_owned(), key)),
            state: "established",
            age: Duration::from_secs(7441),
            idle: Duration::from_millis(250),
            sent: counter(20, 2000),
            received: counter(19, 190_000 * (u64::from(number) + 1)),
        });
    }
    Ok(())
}

#[test]
fn what_was_added_is_shown() -> Result<()> {
    assert_snapshot!(set_up()?.transcript(
        "
        interface show
        pool show
        pool show nat
        table show
        table show servers
        route show
        route show table servers
        route show in 203.0.113.0/24
        route show for 203.0.113.200
        route show 203.0.113.0/24
        route get 203.0.113.200
        route get 203.0.113.200 from 10.0.2.9
        route get 192.0.2.53 proto udp dport 53
        --no-header route show table servers
    "
    )?);
    Ok(())
}

#[test]
fn a_list_is_imported_from_a_file_and_from_standard_input() -> Result<()> {
    let daemon = set_up()?;
    let directory = tempfile::tempdir()?;
    let list = directory.path().join("trusted.txt");
    std::fs::write(&list, "# trusted\n198.51.100.0/24\n\n192.0.2.0/25 # ours\n")?;
    let import = format!("route import {} via direct table servers", list.display());
    let said = daemon.run(&import)?;
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""), "it is not silent");
    let mut command = gwctl(&daemon.socket())?;
    command.args(["-v", "route", "import", "-", "via", "direct", "table", "servers", "--prune"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no stdin")?.write_all(b"192.0.2.0/25\n192.0.2.128/25")?;
    let done = child.wait_with_output()?;
    assert!(done.status.success());
    assert_eq!(String::from_utf8(done.stderr)?, "revision 13 is in force\n");
    std::fs::write(&list, "198.51.100.0/24\n198.51.100.0/40\n")?;
    let refused = daemon.run(&import)?;
    assert_eq!(refused.code, 7);
    let missing = daemon.run("route import /nonexistent via direct")?;
    let text = daemon.transcript("route show table servers")?;
    assert_snapshot!(format!("{text}{}{}", refused.err, missing.err));
    Ok(())
}

#[test]
fn an_import_shows_how_far_it_is_on_a_terminal_and_leaves_nothing_there() -> Result<()> {
    let daemon = set_up()?;
    let directory = tempfile::tempdir()?;
    let list = directory.path().join("many.txt");
    let prefixes: Vec<_> =
        (0..60_000u32).map(|n| std::net::Ipv4Addr::from(0x0b00_0000 + n).to_string()).collect();
    let lines = prefixes.join("\n");
    std::fs::write(&list, &lines)?;
    // `script` is a terminal for it.
    let gwctl = gateway_lab::program("gwctl")?.display().to_string();
    let line = format!("{gwctl} route import {} via direct table servers", list.display());
    let said = std::process::Command::new("timeout")
        .args(["60", "script", "-qefc", &line, "/dev/null"])
        .env("GWCTL_SOCKET", daemon.socket())
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8(said.stdout)?;
    assert!(said.status.success(), "{text}");
    assert!(text.contains('█') && text.contains("708.98 KiB/708.98 KiB"), "{text:?}");
    assert!(text.contains("the gateway takes them over"), "{text:?}");
    // Back to the beginning of the line, which is erased.
    assert!(text.trim_end_matches("\u{1b}[?25h").ends_with("\r\u{1b}[2K"), "{text:?}");
    Ok(())
}

#[test]
fn nothing_to_show_is_nothing_and_no_failure() -> Result<()> {
    let daemon = Daemon::start()?;
    for line in [
        "route show",
        "pool show",
        "eip show",
        "interface show",
        "session show",
        "stats drops",
        "stats pools",
    ] {
        let said = daemon.run(line)?;
        assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""), "{line}");
    }
    Ok(())
}

#[test]
fn json_is_an_envelope_with_the_same_rows() -> Result<()> {
    let daemon = set_up()?;
    let_packets_pass(&daemon)?;
    for line in [
        "route show",
        "route get 203.0.113.7",
        "table show",
        "pool show",
        "interface show",
        "session show",
        "session count",
        "stats drops",
        "stats routes",
        "stats pools",
        "stats interfaces",
        "stats maps",
        "stats",
        "status",
        "export",
        "version",
    ] {
        let list = json(&daemon, line)?;
        let schema = list["schema"].as_str().context(line)?;
        assert!(schema.starts_with("gateway.") && schema.ends_with("/v1"), "{line}: {schema}");
        assert_eq!(list["revision"], 11, "{line}");
        assert!(list["items"].as_array().is_some_and(|items| !items.is_empty()), "{line}");
    }
    assert_snapshot!(daemon.run("route show in 192.0.2.0/24 --json")?.out);
    Ok(())
}

#[test]
fn a_change_is_made_once_and_its_opposite_undoes_it() -> Result<()> {
    assert_snapshot!(set_up()?.transcript(
        "
        route add 203.0.113.0/24 via direct
        route replace 203.0.113.0/24 via direct
        route show 203.0.113.0/24
        route del 203.0.113.0/24
        route del 203.0.113.0/24
        route flush table servers
        route show table servers
        pool set nat ports 2000-3000
        pool drain nat address 198.51.100.11
        pool show
        stats pools
        pool undrain nat address 198.51.100.11
        pool drain nat address 198.51.100.99
        pool drain nowhere address 198.51.100.11
        pool del nat
        pool del nat
        table unbind servers from 10.0.2.0/24
        table unbind servers from 10.0.2.0/24
        table del servers
        table del servers
        interface del eth1
        interface del eth1
        activate
        activate -v
        deactivate -v
        route show
    "
    )?);
    Ok(())
}

#[test]
fn an_eip_is_given_shown_and_taken_back() -> Result<()> {
    assert_snapshot!(set_up()?.transcript(
        "
        eip
        eip add 198.51.100.50 host 10.0.1.2
        eip add 2001:db8:100::50 host 2001:db8:1::2
        eip show
        eip show --json
        route add 10.1.0.0/16 via eip
        route get 10.1.0.1
        eip add 198.51.100.50 host 10.0.1.3
        eip add 198.51.100.51 host 10.0.1.2
        eip add 198.51.100.10 host 10.0.1.3
        eip add 198.51.100.51 host 198.51.100.10
        eip add 198.51.100.51 host 2001:db8:1::3
        eip add 198.51.100.51 host 10.0.1.300
        pool add other address 198.51.100.50
        eip del 10.0.1.2
        eip del 198.51.100.51
        eip del 198.51.100.50
        eip del 2001:db8:100::50
        eip show
        status
    "
    )?);
    Ok(())
}

#[test]
fn a_limit_is_added_changed_shown_and_removed() -> Result<()> {
    assert_snapshot!(set_up()?.transcript(
        "
        limit
        limit add tenant-a from 10.0.7.0/24 rate 200 concurrent 1000
        limit add office from 2001:db8:8::/48 per prefix concurrent 100000
        limit add trusted from 10.0.7.9/32
        limit show
        limit show tenant-a --json
        limit set tenant-a burst 50 concurrent 0
        limit set office per source
        limit show
        limit add tenant-a from 10.0.9.0/24
        limit add other from 10.0.7.0/24
        limit add other from 10.0.7.1/24
        limit add other from 10.0.9.0/24 per client
        limit add other from 10.0.9.0/24 rate 5 burst 0
        limit add other from 10.0.9.0/24 rate 20000000
        limit set other rate 1
        limit set trusted from 10.0.7.0/24
        limit del tenant-b
        export
        limit del tenant-a
        limit del office
        limit del trusted
        limit show
    "
    )?);
    Ok(())
}

#[test]
fn groups_are_made_and_what_they_have_used_is_shown() -> Result<()> {
    let daemon = set_up()?;
    let usage = |source: &str, destination: &str, bytes| {
        let counter = |bytes| Counter { packets: bytes / 1_000, bytes };
        let usage = Usage { sent: counter(bytes), received: counter(10 * bytes), connections: 7 };
        UsageStats { source: source.into(), destination: destination.into(), usage }
    };
    daemon.memory.state().usage =
        vec![usage("other", "other", 1_000), usage("payments", "partner", 2_000_000)];
    assert_snapshot!(daemon.transcript(
        "
        group
        group add payments prefix 10.1.0.0/16,2001:db8:1::/48
        group add partner prefix 203.0.113.0/24
        group show
        group show partner --json
        group set partner prefix 203.0.113.0/25
        group add other prefix 192.0.2.0/24
        group add payments prefix 192.0.2.0/24
        group add late prefix 203.0.113.0/25
        group add late prefix 203.0.113.1/25
        group add late prefix 192.0.2.0/24,192.0.2.0/24
        group add late
        group set late prefix 192.0.2.0/24
        group del late
        export
        stats usage
        stats usage --csv
        stats usage --json
        stats usage --csv --json
        stats usage since 1h
        stats usage since yesterday
        stats usage --csv --watch
        group del payments
        group del partner
        group show
    "
    )?);
    Ok(())
}

#[test]
fn a_proxy_is_added_changed_drained_shown_and_removed() -> Result<()> {
    assert_snapshot!(set_up()?.transcript(
        "
        proxy
        proxy add standby host 10.0.1.9 fail direct
        proxy add squid host 10.0.1.2,10.0.1.3 fail proxy standby
        proxy add squid host 10.0.1.4
        proxy add other host 10.0.1.2
        proxy add other host 10.0.1.4 fail pool nta
        proxy add other host 10.0.1.4 mode vxlan
        proxy add other host 10.0.1.4 mode vxlan vni 16777216
        proxy add other host 10.0.1.4 check http:80
        proxy drain squid host 10.0.1.3
        proxy drain squid host 10.0.1.4
        proxy show squid
        proxy show squid --json
        route add 10.1.0.0/16 via proxy squid
        route get 10.1.0.1
        proxy del squid
        proxy del standby
        proxy set squid fail closed interval 1ms
        proxy undrain squid host 10.0.1.3
        proxy drain squid host 10.0.1.2,10.0.1.3
        status
        route del 10.1.0.0/16
        proxy set squid fail closed
        proxy del standby
        export
        proxy del squid
        proxy show
        proxy show squid
    "
    )?);
    Ok(())
}

#[test]
fn what_the_daemon_refuses_is_told_with_a_remedy() -> Result<()> {
    let daemon = set_up()?;
    let before = daemon.run("export")?.out;
    assert_snapshot!(daemon.transcript(
        "
        route add 203.0.113.7/24 via direct
        route add 203.0.113.300 via direct
        route add 10.1.0.0/16 via pool nta
        route add 10.1.0.0/16 via nowhere
        route add 10.1.0.0/16 via proxy squid
        route add 10.1.0.0/16 via gateway 2001:db8::1
        route add 10.1.0.0/16 via direct table mian
        route add 10.1.0.0/16 via direct dport 53
        route add 10.1.0.0/16 via direct proto sctp
        route add 10.1.0.0/16 via direct proto tcp dport 90-80
        route get nowhere
        route show table nowhere
        route flush table nowhere
        pool add nat address 198.51.100.20
        pool add other address 198.51.100.10
        pool add other address 198.51.100.300
        pool add other address 198.51.100.20 ports 0-10
        pool del nat
        pool show nowhere
        table add servers
        table add exits kind boarder
        table del main
        table bind nowhere from 10.0.9.0/24
        interface add eth1 role inside
        interface add eth7 role sideways
        interface add a-name-that-is-too-long role inside
        session show proto sctp
        session show sort name
        session count by name
    "
    )?);
    assert_eq!(daemon.run("export")?.out, before, "a refusal changes nothing");
    Ok(())
}

#[test]
fn a_change_that_could_not_be_put_in_force_is_exit_code_8() -> Result<()> {
    let daemon = set_up()?;
    daemon.memory.state().script.push_back(Some("the map is full".to_owned()));
    let said = daemon.run("route add 198.18.0.0/15 via direct")?;
    assert_eq!(said.code, 8, "{said:?}");
    assert!(said.err.contains("the map is full"), "{said:?}");
    assert_eq!(daemon.run("route show 198.18.0.0/15")?.out, "");
    Ok(())
}

#[test]
fn statistics_and_sessions() -> Result<()> {
    let daemon = set_up()?;
    let_packets_pass(&daemon)?;
    assert_snapshot!(daemon.transcript(
        "
        stats drops
        stats routes table main
        stats pools
        stats interfaces
        stats maps
        stats
        session show sort bytes limit 1
        session show dport 80
        session count
        session count by source
        session count by destination
        session count by route
    "
    )?);
    let all = daemon.run("stats drops -v")?.out;
    assert_eq!(all.lines().count(), DropReason::ALL.len() + 1);
    assert_eq!(daemon.run("stats drops --all")?.out, all);
    Ok(())
}

#[test]
fn status_is_a_screen_and_an_exit_code() -> Result<()> {
    let daemon = set_up()?;
    let_packets_pass(&daemon)?;
    let well = daemon.transcript(
        "
        activate
        status
        status --brief
    ",
    )?;
    assert_eq!(daemon.run("interface add eth9 role inside")?.code, 0);
    let unwell = daemon.transcript("status")?;
    assert_snapshot!(well + &unwell);
    let said = daemon.run("status --json")?;
    assert_eq!(said.code, 9);
    let list: Value = serde_json::from_str(&said.out)?;
    assert_eq!((&list["items"][0]["healthy"], &list["items"][0]["active"]), (&false.into(), &true.into()));
    Ok(())
}

#[test]
fn verbose_says_which_revision_is_in_force() -> Result<()> {
    let daemon = Daemon::start()?;
    let said = daemon.run("-v table add servers")?;
    assert_eq!((said.out.as_str(), said.err.as_str()), ("", "revision 2 is in force\n"));
    let said = daemon.run("-v --json table del servers")?;
    let change: Value = serde_json::from_str(&said.out)?;
    assert_eq!((&change["revision"], &change["changed"]), (&3.into(), &true.into()));
    Ok(())
}

#[test]
fn a_long_list_may_be_cut_by_its_reader() -> Result<()> {
    let daemon = Daemon::start()?;
    for number in 0..8 {
        daemon.run(&format!("route add 10.0.{number}.0/24 via direct comment {}", "x".repeat(200)))?;
    }
    let mut child = gwctl(&daemon.socket())?
        .args(["route", "show", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stdout.take());
    let mut err = String::new();
    child.stderr.take().context("standard error")?.read_to_string(&mut err)?;
    assert_eq!((child.wait()?.code(), err.as_str()), (Some(0), ""));
    Ok(())
}

#[test]
fn watch_shows_rates_until_it_is_stopped() -> Result<()> {
    let daemon = set_up()?;
    let_packets_pass(&daemon)?;
    let mut child = gwctl(&daemon.socket())?
        .args(["stats", "drops", "--watch=0.2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("standard output")?).lines();
    let mut next = || lines.next().context("no more lines")?.map_err(anyhow::Error::from);
    let read = (|| {
        assert_eq!(
            next()?.split_whitespace().collect::<Vec<_>>(),
            ["REASON", "PACKETS", "BYTES", "PACKETS/S", "BYTES/S", "CLASS", "MEANING"]
        );
        assert!(next()?.starts_with("no_route"));
        daemon.memory.state().drops.insert(DropReason::NoRoute as u8, Counter { packets: 100_017, bytes: 0 });
        loop {
            let line = next()?;
            let words: Vec<&str> = line.split_whitespace().collect();
            if let ["no_route", "100017", _, rate, ..] = words.as_slice() {
                return Ok::<_, anyhow::Error>(rate.parse::<u64>()?);
            }
        }
    })();
    child.kill()?;
    child.wait()?;
    // 100,000 packets within the 0.2 s and what a busy machine adds to it.
    assert!((1_000..=500_000).contains(&read?));
    Ok(())
}

#[test]
fn all_statistics_and_the_busiest_sessions_can_be_watched() -> Result<()> {
    let daemon = set_up()?;
    let_packets_pass(&daemon)?;
    for (words, headings) in [
        (["stats", "--watch=0.2"].as_slice(), ["INTERFACE", "IN-PACKETS", "IN-PACKETS/S"]),
        (&["session", "watch", "limit", "1", "--interval", "0.2"], ["PROTO", "RECEIVED", "RECEIVED/S"]),
    ] {
        let mut child = gwctl(&daemon.socket())?.args(words).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("standard output")?).lines();
        let first = lines.take(200).filter_map(Result::ok);
        // The same headings again: it was drawn twice.
        let drawn: Vec<String> = first.filter(|line| line.starts_with(headings[0])).take(2).collect();
        child.kill()?;
        child.wait()?;
        let seen = |heading: &&str| drawn[0].split_whitespace().any(|word| word == *heading);
        assert!(headings.iter().all(seen), "{words:?}: {drawn:?}");
        assert_eq!(drawn.len(), 2, "{words:?}");
    }
    Ok(())
}

#[test]
fn completion_asks_the_daemon_for_names() -> Result<()> {
    let daemon = set_up()?;
    let next = |words: &[&str]| -> Result<String> {
        let said = finish(gwctl(&daemon.socket())?.arg("__complete").args(words))?;
        Ok(said.out.lines().filter_map(|line| line.split('\t').next()).collect::<Vec<_>>().join(" "))
    };
    assert_eq!(next(&["route", "add", "default", "via", "pool", ""])?, "nat");
    assert_eq!(next(&["route", "show", "table", ""])?, "main servers");
    assert_eq!(next(&["table", "bind", "se"])?, "servers");
    assert_eq!(next(&["interface", "del", ""])?, "eth0 eth1");
    Ok(())
}

#[test]
fn explain_walks_the_checklist_and_says_how_it_ends() -> Result<()> {
    let daemon = set_up()?;
    daemon.run("activate")?;
    let said = daemon.run("explain 203.0.113.7:443 from 10.0.1.2 iif eth1")?;
    assert_snapshot!(said.out);
    assert_eq!((said.code, said.err.as_str()), (0, ""));
    for (line, code) in [
        ("explain 203.0.113.7:443 from 10.0.1.2 iif eth1 --exit-verdict", 0),
        ("explain 203.0.113.200:443 from 10.0.1.2 iif eth1 --exit-verdict", 20),
        ("explain 224.0.0.5 from 10.0.1.2 iif eth1 --exit-verdict", 21),
        ("explain 10.0.1.2:80 from 203.0.113.7:443 iif eth0 --exit-verdict", 22),
    ] {
        let said = daemon.run(line)?;
        assert_eq!((said.code, said.err.as_str()), (code, ""), "{line}");
    }
    let answer = json(&daemon, "explain 192.0.2.53:53 from 10.0.1.2 proto udp iif eth1")?;
    assert_eq!(answer["schema"], "gateway.explain/v1");
    assert_eq!(
        (&answer["items"][0]["verdict"], &answer["items"][0]["reason"]),
        (&"drop".into(), &"prohibited".into())
    );
    Ok(())
}

#[test]
fn explain_names_what_makes_no_sense() -> Result<()> {
    let daemon = set_up()?;
    for (line, message) in [
        ("explain 203.0.113.7 from 10.0.1.2 proto tcp", "203.0.113.7 needs a port"),
        ("explain 203.0.113.7:443 from 10.0.1.2 proto icmp", "port 443 makes no sense for icmp"),
        ("explain 203.0.113.7:443 from 2001:db8::1", "are of different families"),
        ("explain 203.0.113.7:443 from nobody", "`nobody` is not an IP address"),
    ] {
        let said = daemon.run(line)?;
        assert_eq!((said.code, said.out.as_str()), (7, ""), "{line}: {said:?}");
        assert!(said.err.contains(message) && said.err.contains("hint: "), "{line}: {said:?}");
    }
    Ok(())
}
