//! Usage by groups of sources and destinations, of real programs: what is told is what sessions have carried.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result};
use gateway_lab::{Process, Rig, server::Server, wait_until};
use serde_json::Value;

/// One team and one partner; everybody else is `other`.
const CONFIG: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10"]
[[group]]
name = "team"
prefixes = ["10.0.1.0/24"]
[[group]]
name = "partner"
prefixes = ["203.0.113.10/32"]
[[table]]
name = "main"
routes = [{ to = "203.0.113.0/24", via = "pool nat" }]
"#;

/// How long it may take until what was carried is told.
const SOON: Duration = Duration::from_secs(20);

/// What was counted: connections, packets and bytes sent, packets and bytes received.
type Counts = [u64; 5];

/// What `stats usage` says, by source and destination.
fn usage(rig: &Rig, more: &str) -> Result<BTreeMap<(String, String), Counts>> {
    let told: Value = serde_json::from_str(&rig.daemon.tell(&format!("--json stats usage {more}"))?)?;
    let rows = told["items"].as_array().context("no list")?;
    let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let pair = |row: &Value| ((text(row, "source"), text(row, "destination")), counts(row, "connections"));
    Ok(rows.iter().map(pair).collect())
}

/// The numbers of a row; of a session, which has no number of connections, that is 1.
fn counts(row: &Value, connections: &str) -> Counts {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let (sent, received) = (&row["sent"], &row["received"]);
    let connections = row.get(connections).map_or(1, number);
    [
        connections,
        number(&sent["packets"]),
        number(&sent["bytes"]),
        number(&received["packets"]),
        number(&received["bytes"]),
    ]
}

/// What all sessions together have carried. None of them has ended so long ago that it is removed.
fn carried(rig: &Rig) -> Result<Counts> {
    let shown: Value = serde_json::from_str(&rig.daemon.tell("--json session show limit 100000")?)?;
    let rows = shown["items"].as_array().context("no list")?;
    Ok(rows.iter().fold([0; 5], |sum: Counts, row| {
        let row = counts(row, "connections");
        std::array::from_fn(|at| sum[at] + row[at])
    }))
}

fn pair(source: &str, destination: &str) -> (String, String) {
    (source.to_owned(), destination.to_owned())
}

/// Waits until all that sessions have carried is told, of this pair alone.
fn agree(rig: &Rig, (source, destination): (&str, &str)) -> Result<Counts> {
    let (mut told, mut there) = (BTreeMap::new(), Counts::default());
    let agreed = wait_until("what is told to be what was carried", SOON, || {
        let before = carried(rig).unwrap_or_default();
        told = usage(rig, "").unwrap_or_default();
        there = carried(rig).unwrap_or_default();
        there != Counts::default() && before == there && told.values().eq([&there])
    });
    agreed.with_context(|| format!("{told:?} is told, and {there:?} was carried"))?;
    assert!(told.contains_key(&pair(source, destination)), "{told:?}");
    Ok(there)
}

fn iperf3_server(rig: &Rig) -> Result<Process> {
    let server = rig.lab.api.spawn(&["iperf3", "--server"])?;
    wait_until("iperf3 to listen", Duration::from_secs(5), || {
        let sockets = rig.lab.api.ok(&["ss", "--no-header", "--listening", "--tcp", "--numeric"]);
        sockets.is_ok_and(|text| text.contains(":5201 "))
    })?;
    Ok(server)
}

#[test]
fn what_curl_and_iperf3_carry_is_told_by_group_and_survives_the_daemon() -> Result<()> {
    let Some(mut rig) = Rig::start("active", CONFIG)? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let _iperf3 = iperf3_server(&rig)?;
    for _ in 0..5 {
        rig.lab.c1.ok(&[
            "curl",
            "-sS",
            "--max-time",
            "5",
            "-o",
            "/dev/null",
            "http://203.0.113.10/100000",
        ])?;
    }
    let [connections, _, sent, _, received] = agree(&rig, ("team", "partner"))?;
    assert_eq!(connections, 5);
    assert!(received > 500_000 && sent < received, "{sent} sent, {received} received");
    // A stream goes on while the daemon is killed and comes back.
    let stream = rig.lab.c1.spawn_piped(&["iperf3", "--client", "203.0.113.10", "--time=6"])?;
    let series =
        "gateway_usage_bytes_total{source_group=\"team\",destination_group=\"partner\",direction=\"sent\"}";
    wait_until("the stream", SOON, || rig.daemon.count(series).is_ok_and(|bytes| bytes > 10_000_000))?;
    let before = rig.daemon.count(series)?;
    rig.daemon.kill()?;
    rig.daemon.start_again(&[])?;
    assert!(rig.daemon.count(series)? >= before, "the counter goes back");
    stream.finish(SOON)?.ok()?;
    let [connections, _, sent, _, received] = agree(&rig, ("team", "partner"))?;
    assert_eq!(connections, 7, "two of iperf3");
    assert_eq!(rig.daemon.count(series)?, sent);
    assert_eq!(rig.daemon.count(&series.replace("sent", "received"))?, received);
    let csv = rig.daemon.tell("stats usage --csv --no-header")?;
    let first = csv.lines().next().context("no line")?;
    assert!(first.starts_with("team,partner,7,") && first.ends_with(','), "{csv}");
    Ok(())
}

#[test]
fn a_time_is_counted_from_the_look_before_and_not_from_before_the_daemon() -> Result<()> {
    let Some(mut rig) = Rig::start("active", CONFIG)? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let fetch = |rig: &Rig| {
        let curl = ["curl", "-sS", "--max-time", "5", "-o", "/dev/null", "http://203.0.113.10/1000"];
        rig.lab.c1.ok(&curl).map(drop)
    };
    fetch(&rig)?;
    let all = agree(&rig, ("team", "partner"))?;
    // All of it since the daemon has started, which is not an hour ago.
    assert_eq!(usage(&rig, "since 1h")?, BTreeMap::from([(pair("team", "partner"), all)]));
    rig.daemon.stop()?;
    rig.daemon.start_again(&[])?;
    assert_eq!(usage(&rig, "since 1h")?, BTreeMap::new());
    fetch(&rig)?;
    let now = agree(&rig, ("team", "partner"))?;
    let since = std::array::from_fn(|at| now[at] - all[at]);
    assert_eq!(usage(&rig, "since 1h")?, BTreeMap::from([(pair("team", "partner"), since)]));
    let said = rig.daemon.gwctl(&["stats", "usage", "since", "1h"])?;
    assert!(format!("{said:?}").contains("since 20"), "{said:?}");
    Ok(())
}

#[test]
fn groups_come_and_go_while_traffic_goes_on() -> Result<()> {
    let Some(rig) = Rig::start("active", CONFIG)? else { return Ok(()) };
    let _iperf3 = iperf3_server(&rig)?;
    let stream = rig.lab.c1.spawn_piped(&["iperf3", "--client", "203.0.113.10", "--time=5"])?;
    let sent = |rig: &Rig, source: &str| {
        usage(rig, "").map(|told| told.get(&pair(source, "partner")).map_or(0, |counts| counts[2]))
    };
    wait_until("the stream", SOON, || sent(&rig, "team").is_ok_and(|bytes| bytes > 10_000_000))?;
    rig.daemon.tell("group add host prefix 10.0.1.2")?;
    let of_team = sent(&rig, "team")?;
    assert!(of_team > 10_000_000 && sent(&rig, "host")? < of_team);
    wait_until("the new group", SOON, || sent(&rig, "host").is_ok_and(|bytes| bytes > 10_000_000))?;
    assert_eq!(sent(&rig, "team")?, of_team, "what has gone to the new group counts once");
    stream.finish(SOON)?.ok()?;
    rig.daemon.tell("group del host")?;
    assert_eq!((sent(&rig, "host")?, sent(&rig, "team")?), (0, of_team));
    Ok(())
}
