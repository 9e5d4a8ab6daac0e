//! Live streams: what `gwctl monitor` says of what real programs do.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result};
use aya::maps::{Array, Map, MapData};
use gateway_common::config::Config;
use gateway_lab::{Process, Rig, program, server::Server, wait_until};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Within that time an event is shown.
const SOON: Duration = Duration::from_secs(10);

/// A gateway that routes one prefix and no other. Closed connections go soon.
fn rig() -> Result<Option<Rig>> {
    let config = "[timeouts]\ntcp_closing = \"1s\"\n[[pool]]\nname = \"nat\"\naddresses = [\"198.51.100.10\"]\n\
                  [[table]]\nname = \"main\"\nroutes = [{ to = \"203.0.113.0/24\", via = \"pool nat\" }]\n";
    Rig::start("active", config)
}

/// A `gwctl` that shows events, and what it has shown.
struct Stream {
    process: Process,
    directory: TempDir,
}

impl Stream {
    /// Starts `gwctl --json` with these words, and waits until it watches.
    fn start(rig: &Rig, words: &str) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (socket, gwctl) = (rig.daemon.socket().display().to_string(), program("gwctl")?);
        let gwctl = gwctl.display().to_string();
        let mut line = vec![gwctl.as_str(), "--json", "--socket", &socket];
        line.extend(words.split_whitespace());
        let process = rig.lab.gw.spawn_logged(&line, &directory.path().join("log"))?;
        let stream = Self { process, directory };
        // A packet that nobody routes, until it is seen.
        wait_until("the stream to begin", SOON, || {
            send(rig, "10.0.1.2", "198.18.0.1", 1, 1).is_ok() && stream.log().is_ok_and(|log| !log.is_empty())
        })?;
        Ok(stream)
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    fn log(&self) -> Result<String> {
        Ok(fs::read_to_string(self.path())?)
    }

    /// The events so far.
    fn events(&self) -> Result<Vec<Value>> {
        self.log()?.lines().map(|line| serde_json::from_str(line).context("a line is no event")).collect()
    }

    /// Waits for events that `is_one`, and returns them.
    fn wait_for(&self, count: usize, is_one: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let found = || -> Result<Vec<Value>> { Ok(self.events()?.into_iter().filter(&is_one).collect()) };
        wait_until("the events", SOON, || found().is_ok_and(|all| all.len() >= count))?;
        found()
    }

    /// Ctrl-C; it ends well.
    fn interrupt(mut self) -> Result<()> {
        self.process.signal(Signal::SIGINT)?;
        let ended = self.process.wait(SOON)?;
        assert_eq!(ended.code(), Some(0), "{}", self.log()?);
        Ok(())
    }
}

/// Sends UDP packets from a client.
fn send(rig: &Rig, source: &str, destination: &str, port: u16, count: usize) -> Result<()> {
    let script = format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.bind(('{source}', 5000))\n\
         for _ in range({count}): s.sendto(b'x', ('{destination}', {port}))\n"
    );
    rig.lab.c1.ok(&["python3", "-c", &script]).map(drop)
}

/// Opens a session to each of these ports, which a route cuts then.
fn cut(rig: &Rig, ports: &[u16]) -> Result<()> {
    let send = || ports.iter().try_for_each(|port| send(rig, "10.0.1.2", "203.0.113.20", *port, 1));
    send()?;
    rig.daemon.tell("route add 203.0.113.20/32 via blackhole")?;
    send()?;
    rig.daemon.tell("route del 203.0.113.20/32").map(drop)
}

#[test]
fn dropped_packets_are_shown_as_they_are_dropped_until_ctrl_c() -> Result<()> {
    let Some(rig) = rig()? else { return Ok(()) };
    let stream = Stream::start(&rig, "monitor drop proto udp")?;
    send(&rig, "10.0.1.2", "198.18.0.9", 53, 3)?;
    // This one is routed.
    send(&rig, "10.0.1.2", "203.0.113.10", 53, 1)?;
    let seen = stream.wait_for(3, |event| event["destination"]["port"] == 53)?;
    assert_eq!(seen.len(), 3, "{seen:#?}");
    for event in seen {
        assert_eq!((&event["schema"], &event["event"]), (&"gateway.monitor/v1".into(), &"drop".into()));
        assert_eq!((&event["reason"], &event["interface"]), (&"no_route".into(), &"eth_in1".into()));
        assert_eq!((&event["proto"], &event["length"]), (&"udp".into(), &43.into()));
        assert_eq!(event["source"], json!({ "address": "10.0.1.2", "port": 5000 }));
        assert_eq!(event["destination"], json!({ "address": "198.18.0.9", "port": 53 }));
    }
    stream.interrupt()
}

#[test]
fn a_stream_ends_with_its_reader_and_after_as_many_events_as_were_asked_for() -> Result<()> {
    let Some(rig) = rig()? else { return Ok(()) };
    let gwctl = program("gwctl")?.display().to_string();
    let socket = rig.daemon.socket().display().to_string();
    let script = format!("{gwctl} --socket {socket} monitor drop count 2; echo $?");
    let mut process = rig.lab.gw.spawn_piped(&["sh", "-c", &script])?;
    wait_until("the end", SOON, || {
        send(&rig, "10.0.1.2", "198.18.0.9", 53, 1).is_ok() && !process.is_running()
    })?;
    let said = process.finish(SOON)?.ok()?;
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!((lines.len(), lines[2]), (3, "0"), "{said}");
    assert!(
        lines[0].ends_with("drop no_route iif eth_in1 udp 10.0.1.2:5000 > 198.18.0.9:53 length 43"),
        "{said}"
    );
    // The reader has seen enough after one line; the writer notices with the next.
    let script = format!("{{ {gwctl} --socket {socket} monitor drop; echo $? >&2; }} | head -n 1");
    let mut process = rig.lab.gw.spawn_piped(&["sh", "-c", &script])?;
    wait_until("the end", SOON, || {
        send(&rig, "10.0.1.2", "198.18.0.9", 53, 1).is_ok() && !process.is_running()
    })?;
    let finished = process.finish(SOON)?;
    assert_eq!(finished.stderr.trim(), "0", "{finished:?}");
    Ok(())
}

#[test]
fn sessions_are_shown_as_they_open_and_end_and_why_though_no_route_logs() -> Result<()> {
    let Some(rig) = rig()? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let stream = Stream::start(&rig, "monitor session drop")?;
    let one = ["curl", "-sS", "--max-time", "20", "-o", "/dev/null", "--local-port", "40123"];
    rig.lab.c1.ok(&[&one[..], &["http://203.0.113.10/100000"]].concat())?;
    // Nobody listens there; and one that a route cuts.
    rig.lab.c1.run(&["curl", "-sS", "--local-port", "40124", "http://203.0.113.10:81/"])?.expect_failure()?;
    cut(&rig, &[53])?;
    let of = |port: u16| {
        stream.wait_for(2, |event| event["event"] == "session" && event["source"]["port"] == port)
    };
    for (port, server, reason) in [(40_123, 80, "fin"), (40_124, 81, "refused"), (5_000, 53, "killed")] {
        let seen = of(port)?;
        let [open, close] = &seen[..] else { panic!("{seen:#?}") };
        for event in [open, close] {
            assert_eq!(event["interface"], "eth_in1");
            assert_eq!(event["source"], json!({ "address": "10.0.1.2", "port": port }));
            assert_eq!(event["translated"], json!({ "address": "198.51.100.10", "port": port }));
            let address = if server == 53 { "203.0.113.20" } else { "203.0.113.10" };
            assert_eq!(event["destination"], json!({ "address": address, "port": server }));
            assert_eq!(
                (&event["table"], &event["route"], &event["target"]),
                (&"main".into(), &"203.0.113.0/24".into(), &"pool nat".into())
            );
        }
        assert_eq!((&open["change"], &close["change"]), (&"open".into(), &"close".into()));
        assert_eq!((&open["reason"], &close["reason"]), (&Value::Null, &reason.into()));
        assert!(close["sent"]["packets"].as_u64() > Some(0) && close["age"].as_f64().is_some(), "{close}");
    }
    assert!(of(40_123)?[1]["received"]["bytes"].as_u64() > Some(100_000));
    stream.interrupt()
}

#[test]
fn a_stream_of_sessions_shows_those_that_were_asked_for() -> Result<()> {
    let Some(rig) = rig()? else { return Ok(()) };
    let (gwctl, socket) =
        (program("gwctl")?.display().to_string(), rig.daemon.socket().display().to_string());
    let words = "monitor session reason killed iif eth_in1 dport 53 count 1";
    let line: Vec<&str> = [gwctl.as_str(), "--socket", &socket].into_iter().chain(words.split(' ')).collect();
    let mut process = rig.lab.gw.spawn_piped(&line)?;
    wait_until("the end", SOON, || cut(&rig, &[53, 54]).is_ok() && !process.is_running())?;
    let said = process.finish(SOON)?.ok()?;
    let [line] = said.lines().collect::<Vec<_>>()[..] else { panic!("{said}") };
    let ends = "session close killed iif eth_in1 udp 10.0.1.2:5000 > 203.0.113.20:53 as 198.51.100.10:5000 \
                route 203.0.113.0/24 via pool nat table main after ";
    assert!(line.contains(ends), "{line}");
    // What makes no sense together is refused.
    let refused = rig.daemon.gwctl(&["monitor", "drop", "reason", "fin"])?;
    assert_eq!(refused.code, Some(7), "{refused:?}");
    assert!(refused.stderr.contains("only sessions end with `fin`"), "{refused:?}");
    Ok(())
}

#[test]
fn routes_are_shown_as_they_change_beside_what_is_dropped() -> Result<()> {
    let Some(rig) = rig()? else { return Ok(()) };
    let stream = Stream::start(&rig, "monitor route drop")?;
    rig.daemon.tell("route add 192.0.2.0/24 via pool nat")?;
    rig.daemon.tell("route replace 192.0.2.0/24 via blackhole")?;
    rig.daemon.tell("route del 192.0.2.0/24")?;
    let seen = stream.wait_for(3, |event| event["event"] == "route")?;
    for (event, (change, target)) in
        seen.iter().zip([("add", "pool nat"), ("replace", "blackhole"), ("del", "blackhole")])
    {
        assert_eq!((&event["change"], &event["target"]), (&change.into(), &target.into()), "{event}");
        assert_eq!((&event["route"], &event["table"]), (&"192.0.2.0/24".into(), &"main".into()));
    }
    stream.interrupt()
}

#[test]
fn a_daemon_that_stops_ends_its_streams_which_say_so() -> Result<()> {
    let Some(mut rig) = rig()? else { return Ok(()) };
    let mut stream = Stream::start(&rig, "monitor drop session")?;
    assert!(rig.daemon.stop()?.success());
    assert_eq!(stream.process.wait(SOON)?.code(), Some(3), "{}", stream.log()?);
    assert!(stream.log()?.contains("error: gatewayd has stopped, and the stream"), "{}", stream.log()?);
    Ok(())
}

#[test]
fn nobody_looks_for_a_daemon_that_was_killed_when_the_next_one_has_started() -> Result<()> {
    let Some(mut rig) = rig()? else { return Ok(()) };
    let mut stream = Stream::start(&rig, "monitor drop session")?;
    let path = rig.daemon.pin_dir().join("maps/CONFIG");
    let config = || -> Result<Config> {
        let map = Array::<_, Config>::try_from(Map::Array(MapData::from_pin(&path)?))?;
        Ok(map.get(&0, 0)?)
    };
    let watched = |config: Config| (config.policy.is_watched(), config.policy.are_sessions_watched());
    rig.daemon.kill()?;
    assert_eq!(stream.process.wait(SOON)?.code(), Some(3), "{}", stream.log()?);
    assert!(stream.log()?.contains("has died, and the stream has ended"), "{}", stream.log()?);
    // Until the lease ends, packets look at the filters.
    let left = config()?;
    assert_eq!(watched(left), (true, true));
    assert!(left.watched_until > 0);
    rig.daemon.start_again(&[])?;
    let after = config()?;
    assert_eq!((watched(after), after.watched_until), ((false, false), 0));
    // And it shows what it is asked for.
    let stream = Stream::start(&rig, "monitor drop")?;
    assert_eq!(watched(config()?), (true, false));
    stream.interrupt()
}

#[test]
fn a_capture_is_read_by_tshark_with_what_became_of_each_packet() -> Result<()> {
    let Some(rig) = rig()? else { return Ok(()) };
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("gw.pcapng").display().to_string();
    let (gwctl, socket) =
        (program("gwctl")?.display().to_string(), rig.daemon.socket().display().to_string());
    let line =
        [&gwctl, "--socket", &socket, "capture", "proto", "udp", "dport", "53", "count", "4", "-w", &file];
    let mut process = rig.lab.gw.spawn_piped(&line)?;
    // The first frames make the gateway look for its next hop.
    wait_until("the end", SOON, || {
        let sent = ["203.0.113.10", "198.18.0.9"].map(|to| send(&rig, "10.0.1.2", to, 53, 1));
        sent.iter().all(Result::is_ok) && !process.is_running()
    })?;
    let finished = process.finish(SOON)?;
    assert_eq!((finished.code, finished.stderr.trim()), (Some(0), "4 packets"), "{finished:?}");
    let fields = ["ip.src", "ip.dst", "frame.interface_name", "frame.comment"];
    let mut line = vec!["tshark", "-r", &file, "-T", "fields"];
    line.extend(fields.iter().flat_map(|field| ["-e", field]));
    let said = rig.lab.gw.ok(&line)?;
    let packets: Vec<Vec<&str>> = said.lines().map(|line| line.split('\t').collect()).collect();
    assert_eq!(packets.len(), 4, "{said}");
    for packet in &packets {
        assert_eq!((packet[0], packet[2]), ("10.0.1.2", "eth_in1"), "as they have arrived: {said}");
    }
    let of = |to: &str| -> Vec<&str> {
        packets.iter().filter(|packet| packet[1] == to).map(|packet| packet[3]).collect()
    };
    assert!(of("198.18.0.9").iter().all(|comment| *comment == "drop no_route"), "{said}");
    assert!(of("203.0.113.10").contains(&"snat via eth_out"), "{said}");
    // And it is explained, packet by packet.
    let config = rig.daemon.config_path().display().to_string();
    for more in [&["--config", &config][..], &["--live"]] {
        let said = rig.daemon.ok(&[&["explain", "iif", "eth_in1", "--pcap", &file][..], more].concat())?;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), 4, "{said}");
        assert!(
            lines.iter().any(|line| line.ends_with("UDP 10.0.1.2:5000 > 203.0.113.10:53: snat")),
            "{said}"
        );
        assert!(lines.iter().any(|line| line.ends_with("198.18.0.9:53: drop, no_route")), "{said}");
    }
    Ok(())
}
