//! The gateway between real hosts: real programs through the real daemon, one network a test.

mod access_log;
mod address;
mod border;
mod change;
mod connection;
mod dashboard;
mod eip;
mod explain;
mod flip;
mod flip_streams;
mod fragment;
mod frames;
mod hairpin;
mod inactive;
mod limit;
mod mapping;
mod mode;
mod monitor;
mod outside;
mod proxy;
mod routing_proxy;
mod snat;
mod targets;
mod tunnel;
mod usage;
mod walk;

use std::time::Duration;

use anyhow::Result;
use gateway_lab::Rig;

/// One pool of one address, and a route to the network of the server `api` through it.
const ONE_POOL: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10"]
[[table]]
name = "main"
routes = [{ to = "203.0.113.0/24", via = "pool nat" }]
"#;

/// How long to listen for something that should not come.
const A_WHILE: Duration = Duration::from_millis(300);

/// A gateway with [`ONE_POOL`].
fn with_one_pool() -> Result<Option<Rig>> {
    Rig::start("active", ONE_POOL)
}

/// Source address of an untagged IPv4 frame.
fn source(frame: &[u8]) -> Option<[u8; 4]> {
    if frame.get(12..14)? != [0x08, 0x00] {
        return None;
    }
    frame.get(26..30)?.try_into().ok()
}
