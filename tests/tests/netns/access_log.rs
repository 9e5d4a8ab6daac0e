//! The access log: what is written of what real programs do.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use gateway_lab::{Rig, ask_udp, server::Server, wait_until};
use serde_json::Value;
use tempfile::TempDir;

/// Within that time a record is in the file.
const SOON: Duration = Duration::from_secs(10);

/// Where a gateway writes its access log.
struct Log(TempDir);

impl Log {
    fn path(&self) -> PathBuf {
        self.0.path().join("access.jsonl")
    }

    /// The records so far.
    fn records(&self) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.path())?;
        text.lines().map(|line| serde_json::from_str(line).context("a line is no record")).collect()
    }

    /// Waits for that many records, and returns them.
    fn wait_for(&self, count: usize) -> Result<Vec<Value>> {
        wait_until("the records", SOON, || self.records().is_ok_and(|all| all.len() >= count))?;
        let records = self.records()?;
        assert_eq!(records.len(), count, "{records:#?}");
        Ok(records)
    }
}

/// A gateway that logs one of two routes, and more in its section `access_log`. Closed sessions go soon.
fn with_log(more: &str) -> Result<Option<(Rig, Log)>> {
    let log = Log(tempfile::tempdir()?);
    let config = format!(
        "[timeouts]\ntcp_closing = \"1s\"\nudp = \"2s\"\nudp_dns = \"2s\"\n\
         [access_log]\npath = \"{}\"\n{more}\
         [[pool]]\nname = \"nat\"\naddresses = [\"198.51.100.10\"]\n\
         [[table]]\nname = \"main\"\nroutes = [\n\
         {{ to = \"203.0.113.0/24\", via = \"pool nat\", log = true }},\n\
         {{ to = \"192.0.2.0/24\", via = \"pool nat\" }}]\n",
        log.path().display()
    );
    Ok(Rig::start("active", &config)?.map(|rig| (rig, log)))
}

#[test]
fn a_connection_is_recorded_when_it_opens_and_when_it_has_ended() -> Result<()> {
    let Some((rig, log)) = with_log("")? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let file = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "--local-port", "40123"];
    rig.lab.c1.ok(&[&file[..], &["http://203.0.113.10/100000"]].concat())?;
    let records = log.wait_for(2)?;
    let (open, close) = (&records[0], &records[1]);
    for record in [open, close] {
        assert_eq!(record["schema"], "gateway.access/v1");
        assert_eq!(record["proto"], "tcp");
        assert_eq!(record["source"], serde_json::json!({ "address": "10.0.1.2", "port": 40123 }));
        assert_eq!(record["translated"], serde_json::json!({ "address": "198.51.100.10", "port": 40123 }));
        assert_eq!(record["destination"], serde_json::json!({ "address": "203.0.113.10", "port": 80 }));
        assert_eq!(
            (&record["table"], &record["route"], &record["target"], &record["verdict"]),
            (&"main".into(), &"203.0.113.0/24".into(), &"pool nat".into(), &"snat".into())
        );
    }
    assert_eq!((&open["event"], &close["event"]), (&"open".into(), &"close".into()));
    assert_eq!(close["reason"], "fin");
    let bytes = |way: &str| close[way]["bytes"].as_u64().unwrap_or_default();
    assert!(bytes("received") > 100_000 && bytes("sent") > 200, "{close}");
    assert!(close["received"]["packets"].as_u64() > Some(3), "{close}");
    assert_eq!(rig.daemon.count("gateway_access_log_records_total")?, 2);
    for cause in ["kernel", "queue", "rate", "sink"] {
        assert_eq!(rig.daemon.count(&format!("gateway_access_log_lost_total{{cause=\"{cause}\"}}"))?, 0);
    }
    Ok(())
}

#[test]
fn only_what_the_route_says_is_recorded_and_a_change_of_it_is_for_what_comes() -> Result<()> {
    let Some((rig, log)) = with_log("")? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    // Not logged.
    rig.daemon.tell("route replace 203.0.113.0/24 via pool nat")?;
    ask_udp(&rig.lab.c1, "10.0.1.2:5000", "203.0.113.10:53")?;
    // Logged from here on, under another route, which is gone when the session ends.
    rig.daemon.tell("route add 203.0.113.10/32 via pool nat log")?;
    ask_udp(&rig.lab.c1, "10.0.1.2:5001", "203.0.113.10:53")?;
    rig.daemon.tell("route del 203.0.113.10/32")?;
    let records = log.wait_for(2)?;
    for (record, event) in records.iter().zip(["open", "close"]) {
        assert_eq!((&record["event"], &record["source"]["port"]), (&event.into(), &5001.into()));
        assert_eq!(record["route"], "203.0.113.10/32", "the words of when it began: {record}");
    }
    assert_eq!(records[1]["reason"], "idle");
    Ok(())
}

#[test]
fn records_wait_for_the_next_daemon_and_keep_their_words() -> Result<()> {
    let Some((mut rig, log)) = with_log("")? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    ask_udp(&rig.lab.c1, "10.0.1.2:5000", "203.0.113.10:53")?;
    log.wait_for(1)?;
    rig.daemon.kill()?;
    ask_udp(&rig.lab.c1, "10.0.1.2:5001", "203.0.113.10:53")?;
    rig.daemon.start_again(&[])?;
    let records = log.wait_for(4)?;
    let mut seen: Vec<(String, String)> = records
        .iter()
        .map(|record| (record["source"]["port"].to_string(), record["event"].to_string()))
        .collect();
    seen.sort();
    let expected = [("5000", "close"), ("5000", "open"), ("5001", "close"), ("5001", "open")];
    assert_eq!(seen, expected.map(|(port, event)| (port.to_owned(), format!("\"{event}\""))));
    assert!(records.iter().all(|record| record["route"] == "203.0.113.0/24"), "{records:#?}");
    Ok(())
}

#[test]
fn a_table_can_be_recorded_whatever_its_routes_say() -> Result<()> {
    let Some((rig, log)) = with_log("tables = [\"main\"]\n")? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    rig.daemon.tell("route replace 203.0.113.0/24 via pool nat")?;
    ask_udp(&rig.lab.c1, "10.0.1.2:5000", "203.0.113.10:53")?;
    assert_eq!(log.wait_for(2)?[0]["event"], "open");
    Ok(())
}

#[test]
fn whoever_had_an_address_and_a_port_is_found_while_it_has_them_and_afterwards() -> Result<()> {
    let Some((rig, log)) = with_log("max_size = \"4KiB\"\n")? else { return Ok(()) };
    let _server = Server::udp(&rig.lab.api, "203.0.113.10:53".parse()?)?;
    let who_had = || -> Result<Value> {
        let now = rig.lab.gw.ok(&["date", "--utc", "+%FT%TZ"])?;
        let words = ["--json", "session", "whohad", "198.51.100.10:5000", "proto", "udp", "at", now.trim()];
        Ok(serde_json::from_str(&rig.daemon.ok(&words)?)?)
    };
    assert_eq!(who_had()?["items"], serde_json::json!([]));
    ask_udp(&rig.lab.c1, "10.0.1.2:5000", "203.0.113.10:53")?;
    let live = who_had()?["items"][0].clone();
    assert_eq!(live["source"], serde_json::json!({ "address": "10.0.1.2", "port": 5000 }));
    assert_eq!((&live["live"], &live["route"]), (&true.into(), &"203.0.113.0/24".into()));
    log.wait_for(2)?;
    // Enough for several files.
    for port in 6000..6020 {
        ask_udp(&rig.lab.c1, &format!("10.0.1.2:{port}"), "203.0.113.10:53")?;
    }
    wait_until("another file", SOON, || log.0.path().join("access.jsonl.1").exists())?;
    let start = live["start"].as_str().context("no time")?;
    let said = rig.daemon.ok(&["--json", "session", "whohad", "198.51.100.10:5000", "at", start])?;
    let said: Value = serde_json::from_str(&said)?;
    assert_eq!(said["items"].as_array().map(Vec::len), Some(1), "{said}");
    let past = &said["items"][0];
    assert_eq!((&past["live"], &past["source"]), (&false.into(), &live["source"]));
    assert!(past["end"].is_string(), "{past}");
    Ok(())
}

#[test]
fn what_is_dropped_is_recorded_once_and_counted_to_the_last_packet() -> Result<()> {
    const MORE: usize = 24;
    // Two periods of what is counted together, and a bit.
    const LATER: Duration = Duration::from_secs(25);
    let Some((rig, log)) = with_log("all = true\n")? else { return Ok(()) };
    rig.daemon.tell("route add 203.0.113.77/32 via prohibit")?;
    let send = |destination: &str, count: usize| -> Result<()> {
        let script = format!(
            "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.bind(('10.0.1.2', 5000))\n\
             for _ in range({count}): s.sendto(b'x', ('{destination}', 9))\n"
        );
        rig.lab.c1.ok(&["python3", "-c", &script]).map(drop)
    };
    send("203.0.113.77", MORE)?;
    // No route says anything of it.
    send("198.18.0.9", 1)?;
    let denied = |reason: &str| -> Result<Vec<Value>> {
        let records = log.records()?.into_iter();
        Ok(records.filter(|record| record["event"] == "deny" && record["reason"] == reason).collect())
    };
    wait_until("the first packet", SOON, || denied("prohibited").is_ok_and(|all| !all.is_empty()))?;
    let first = denied("prohibited")?.remove(0);
    assert_eq!(
        (&first["verdict"], &first["target"], &first["route"], &first["table"]),
        (&"drop".into(), &"prohibit".into(), &"203.0.113.77/32".into(), &"main".into())
    );
    assert_eq!(first["source"], serde_json::json!({ "address": "10.0.1.2", "port": 5000 }));
    assert_eq!(first["sent"]["packets"], 1);
    assert!(first.get("translated").is_none() && first.get("end").is_none(), "{first}");
    let packets = |records: Vec<Value>| -> u64 {
        records.iter().filter_map(|record| record["sent"]["packets"].as_u64()).sum()
    };
    wait_until("the others", LATER, || denied("prohibited").is_ok_and(|all| packets(all) == MORE as u64))?;
    assert!(denied("prohibited")?.len() <= 4, "they are written together");
    let unrouted = denied("no_route")?;
    assert_eq!(packets(unrouted.clone()), 1);
    assert!(unrouted[0].get("route").is_none() && unrouted[0].get("table").is_none(), "{unrouted:?}");
    Ok(())
}
