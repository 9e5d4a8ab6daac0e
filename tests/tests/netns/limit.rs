//! Limits of a pool towards one destination, with as many connections as a client can open.

use std::{
    net::UdpSocket,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Result;
use gateway_lab::Rig;

/// What a cloud NAT gateway admits with one address, and at once.
const RATE: f64 = 900.0;

/// A pool of these addresses, without a word about limits.
fn policy(addresses: &str) -> String {
    format!(
        "[[pool]]\nname = \"nat\"\naddresses = [\"{addresses}\"]\n\
         [[table]]\nname = \"main\"\nroutes = [{{ to = \"203.0.113.0/24\", via = \"pool nat\" }}]\n"
    )
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
