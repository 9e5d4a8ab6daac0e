//! Limits of a pool towards one destination, with as many connections as a client can open.

use std::{
    net::UdpSocket,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use gateway_lab::Rig;
use serde_json::Value;

/// What a cloud NAT gateway admits with one address, and at once.
const RATE: f64 = 900.0;

/// A pool of these addresses, without a word about limits.
fn policy(addresses: &str) -> String {
    format!(
        "[[pool]]\nname = \"nat\"\naddresses = [\"{addresses}\"]\n\
         [[table]]\nname = \"main\"\nroutes = [{{ to = \"203.0.113.0/24\", via = \"pool nat\" }}]\n"
    )
}

/// As [`policy`], with limits.
fn limited(limits: &str) -> String {
    policy("198.51.100.10").replacen("[[table]]", &format!("per_destination = {{ {limits} }}\n[[table]]"), 1)
}

/// Begins flows to one destination, some thousand a second, for so long. Returns their number, and how long it took.
fn begin_flows(rig: &Rig, time: Duration) -> Result<(u64, Duration)> {
    rig.lab.c1.enter(|| -> Result<(u64, Duration)> {
        let begin = Instant::now();
        let mut flows = 0;
        while begin.elapsed() < time {
            for _ in 0..4 {
                let port = 1_024 + u16::try_from(flows)?;
                UdpSocket::bind(("10.0.1.2", port))?.send_to(b"hello", "203.0.113.10:9")?;
                flows += 1;
            }
            sleep(Duration::from_millis(1));
        }
        Ok((flows, begin.elapsed()))
    })?
}

#[test]
fn one_address_opens_nine_hundred_connections_a_second() -> Result<()> {
    let Some(rig) = Rig::start("active", &policy("198.51.100.10"))? else { return Ok(()) };
    let (flows, time) = begin_flows(&rig, Duration::from_secs(3))?;
    sleep(Duration::from_millis(100));
    let opened = rig.daemon.count("gateway_session_events_total{event=\"created\"}")?;
    let refused = rig.daemon.drops("destination_rate")?;
    assert_eq!(opened + refused, flows);
    let limited = rig.daemon.count("gateway_limit_drops_total{kind=\"destination_rate\",name=\"nat\"}")?;
    assert_eq!(limited, refused);
    let wanted = RATE + RATE * time.as_secs_f64();
    let opened = u32::try_from(opened).map(f64::from)?;
    assert!(
        (0.97..=1.01).contains(&(opened / wanted)),
        "{opened} of {wanted} in {time:?}, {flows} were asked for"
    );
    Ok(())
}

#[test]
fn eight_addresses_open_as_many_each() -> Result<()> {
    let Some(rig) = Rig::start("active", &policy("198.51.100.16/29"))? else { return Ok(()) };
    // What one address opens in this time, and no more than all eight do.
    let (flows, time) = begin_flows(&rig, Duration::from_secs(3))?;
    sleep(Duration::from_millis(100));
    assert!(u32::try_from(flows).map(f64::from)? > RATE + RATE * time.as_secs_f64(), "{flows} in {time:?}");
    assert_eq!(rig.daemon.count("gateway_session_events_total{event=\"created\"}")?, flows);
    assert_eq!(rig.daemon.drops("destination_rate")?, 0);
    Ok(())
}

/// Addresses of the client's that ask for little; 10.0.1.2 asks for as much as it can.
const MODEST: std::ops::Range<u8> = 100..110;

/// Asks for a connection from `address`, the `number`th.
fn ask(address: &str, number: u16) -> Result<()> {
    UdpSocket::bind((address, 1_024 + number))?.send_to(b"hello", "203.0.113.10:9")?;
    Ok(())
}

/// Has ten addresses ask ten times a second each beside one that asks thousands of times. Returns how often each of the
/// ten has asked, and how often the one.
fn compete(rig: &Rig, time: Duration) -> Result<(u16, u16)> {
    for host in MODEST {
        rig.lab.c1.ip(&["address", "add", &format!("10.0.1.{host}/24"), "dev", "eth0"])?;
    }
    rig.lab.c1.enter(|| -> Result<(u16, u16)> {
        let begin = Instant::now();
        let (mut asked, mut greedy) = (0, 0);
        while begin.elapsed() < time {
            for _ in 0..4 {
                ask("10.0.1.2", greedy)?;
                greedy += 1;
            }
            // One of them every 10 ms.
            if begin.elapsed() >= Duration::from_millis(10) * u32::from(asked) {
                ask(&format!("10.0.1.{}", MODEST.start + (asked % 10) as u8), asked / 10)?;
                asked += 1;
            }
            sleep(Duration::from_millis(1));
        }
        Ok((asked / 10, greedy))
    })?
}

#[test]
fn clients_that_want_little_get_it_beside_one_that_wants_all() -> Result<()> {
    let Some(rig) = Rig::start("active", &limited("rate = 300, burst = 100"))? else { return Ok(()) };
    let begin = Instant::now();
    let (asked, greedy) = compete(&rig, Duration::from_secs(6))?;
    let time = begin.elapsed().as_secs_f64();
    sleep(Duration::from_millis(100));
    let counted: Value =
        serde_json::from_str(&rig.daemon.ok(&["--json", "session", "count", "by", "source"])?)?;
    let items = counted["items"].as_array().cloned().unwrap_or_default();
    let got = |address: &str| -> f64 {
        let item = items.iter().find(|item| item["source"] == address);
        item.and_then(|item| item["count"].as_f64()).unwrap_or_default()
    };
    let modest: Vec<f64> = MODEST.map(|host| got(&format!("10.0.1.{host}"))).collect();
    let (sum, squares) = (modest.iter().sum::<f64>(), modest.iter().map(|got| got * got).sum::<f64>());
    let index = sum * sum / (10.0 * squares);
    let all = sum + got("10.0.1.2");
    println!("Jain's index of ten that ask alike: {index:.4}; they got {sum} of {}", asked * 10);
    println!("beside one that asked {greedy} times and got {}; together {all} in {time:.3} s", all - sum);
    assert!(index >= 0.95, "{modest:?}");
    assert!(sum >= 0.97 * f64::from(asked) * 10.0, "{modest:?} of {asked}");
    // Of the burst, there may be anything between nothing and all of it left.
    assert!((300.0 * time * 0.99..=(300.0 * time + 100.0) * 1.01).contains(&all), "{all} in {time}");
    Ok(())
}

/// Opens connections from the address that wants thousands at a time, each for one to eleven seconds, and then from ten
/// that want five each and keep them. Whoever gets none in a second and a half asks again. Tells how many the ten have in
/// the end, and of both, how often they have asked and got one since the ten began.
const CONNECT: &str = r"
import asyncio, json, random, resource, time
resource.setrlimit(resource.RLIMIT_NOFILE, (16384, 16384))
end, both = time.monotonic() + 14, False
has = {f'10.0.1.{host}': 0 for host in range(100, 110)}
asked, got = {'one': 0, 'ten': 0}, {'one': 0, 'ten': 0}
async def connect(who, source):
    asked[who] += both
    try:
        opening = asyncio.open_connection('203.0.113.10', 80, local_addr=(source, 0))
        writer = (await asyncio.wait_for(opening, 1.5))[1]
    except (OSError, asyncio.TimeoutError):
        return None
    got[who] += both
    return writer
async def greedy():
    while time.monotonic() < end - 1:
        writer = await connect('one', '10.0.1.2')
        if writer:
            await asyncio.sleep(random.uniform(1, 11))
            writer.close()
async def modest(source):
    writer = None
    while writer is None and time.monotonic() < end - 1:
        writer = await connect('ten', source)
    if writer:
        has[source] += 1
        await asyncio.sleep(end - time.monotonic())
async def main():
    global both
    wanting = [asyncio.create_task(greedy()) for _ in range(2000)]
    await asyncio.sleep(3)
    both = True
    wanting += [asyncio.create_task(modest(source)) for source in has for _ in range(5)]
    await asyncio.sleep(end - time.monotonic())
    print(json.dumps({'has': has, 'asked': asked, 'got': got}), flush=True)
    for task in wanting: task.cancel()
asyncio.run(main())
";

/// Takes every connection and keeps it for as long as its client does.
const ACCEPT: &str = r"
import asyncio, resource
resource.setrlimit(resource.RLIMIT_NOFILE, (16384, 16384))
async def keep(reader, writer):
    await reader.read()
    writer.close()
async def main():
    server = await asyncio.start_server(keep, '203.0.113.10', 80, backlog=4096)
    await server.serve_forever()
asyncio.run(main())
";

#[test]
fn connections_that_are_held_open_leave_room_for_clients_that_want_few() -> Result<()> {
    const ROOM: u64 = 1_000;
    let config = format!("[timeouts]\ntcp_closing = \"1s\"\n{}", limited("rate = 0, concurrent = 1000"));
    let Some(rig) = Rig::start("active", &config)? else { return Ok(()) };
    for host in MODEST {
        rig.lab.c1.ip(&["address", "add", &format!("10.0.1.{host}/24"), "dev", "eth0"])?;
    }
    rig.lab.api.sysctl("net.core.somaxconn", "4096")?;
    let _server = rig.lab.api.spawn(&["python3", "-c", ACCEPT])?;
    let said = rig.lab.c1.run_for(Duration::from_mins(1), &["python3", "-c", CONNECT])?.ok()?;
    let said: Value = serde_json::from_str(&said)?;
    let has: Vec<f64> =
        MODEST.map(|host| said["has"][format!("10.0.1.{host}")].as_f64().unwrap_or_default()).collect();
    let (sum, squares) = (has.iter().sum::<f64>(), has.iter().map(|has| has * has).sum::<f64>());
    let index = sum * sum / (10.0 * squares);
    let opened = rig.daemon.count("gateway_session_events_total{event=\"created\"}")?;
    let refused = rig.daemon.drops("destination_concurrent")?;
    let part = |who: &str| -> f64 {
        let count = |what: &str| said[what][who].as_f64().unwrap_or_default();
        count("got") / count("asked")
    };
    let (one, ten) = (part("one"), part("ten"));
    println!("Jain's index of ten that want five each: {index:.4}; they have {sum} of 50");
    println!("who wants thousands gets {one:.3} of what it asks for, who wants few {ten:.3}: {said}");
    println!("{opened} were opened and {refused} refused");
    assert!(index >= 0.95 && sum >= 48.0, "{has:?}");
    // Of a queue without fairness, all get the same part.
    assert!(ten > 1.5 * one, "{one} and {ten}: {said}");
    // What the few leave is the one's, and turned over as fast as it lets go: nothing much is kept back.
    assert!(refused > ROOM && opened > ROOM + 500, "{opened} opened, {refused} refused");
    Ok(())
}

/// Begins flows of 10.0.1.2 to one destination, by their numbers.
fn begin(rig: &Rig, numbers: std::ops::Range<u16>) -> Result<()> {
    rig.lab.c1.enter(|| numbers.into_iter().try_for_each(|number| ask("10.0.1.2", number)))?
}

/// What is counted under the limit `tenant`.
fn counted(rig: &Rig) -> Result<Value> {
    let shown: Value = serde_json::from_str(&rig.daemon.ok(&["--json", "limit", "show"])?)?;
    Ok(shown["items"][0]["sessions"].clone())
}

#[test]
fn limits_of_clients_outlive_the_daemon() -> Result<()> {
    let limit = "[[limit]]\nname = \"tenant\"\nfrom = \"10.0.1.0/24\"\nconcurrent = 50\n";
    let policy = format!("{}{limit}", policy("198.51.100.10"));
    let Some(mut rig) = Rig::start("active", &policy)? else { return Ok(()) };
    begin(&rig, 0..30)?;
    assert_eq!(counted(&rig)?, 30);
    rig.daemon.kill()?;
    // Nobody is there, and the limit is in force.
    begin(&rig, 30..60)?;
    rig.daemon.start_again(&[])?;
    assert_eq!(counted(&rig)?, 50);
    let refused = "gateway_limit_drops_total{kind=\"source_concurrent\",name=\"tenant\"}";
    assert_eq!(rig.daemon.count(refused)?, 10);
    // Those that there are go on, and those that come are refused.
    begin(&rig, 0..55)?;
    assert_eq!(rig.daemon.count(refused)?, 15);
    assert_eq!(counted(&rig)?, 50);
    for of in ["destinations", "sources", "ports"] {
        assert_eq!(rig.daemon.count(&format!("gateway_accounting_drift{{of=\"{of}\"}}"))?, 0);
    }
    // A higher limit counts them, too.
    rig.daemon.tell("limit set tenant concurrent 52")?;
    begin(&rig, 60..70)?;
    assert_eq!(counted(&rig)?, 52);
    Ok(())
}
