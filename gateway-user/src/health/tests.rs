//! Checks of ports of this host.

use std::net::Ipv4Addr;

use tokio::{net::TcpListener, time::timeout};

use super::*;
use crate::model::{Proxy, ProxyHost};

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(20);

/// Hosts that are checked, without a control plane.
struct Rig {
    hosts: Hosts,
    queue: mpsc::Receiver<Finding>,
}

impl Rig {
    fn new() -> Self {
        let (outcomes, queue) = mpsc::channel(BACKLOG);
        Self { hosts: Hosts { outcomes, checked: BTreeMap::new(), started: 0 }, queue }
    }

    fn follow(&mut self, check: Option<Check>) -> bool {
        let mut state = Snapshot::default();
        if let Some(check) = check {
            let squid = Proxy::new("squid", vec![ProxyHost::new(HOST)]);
            let interval = Duration::from_millis(100);
            state.proxies.insert("squid".to_owned(), Proxy { check, interval, ..squid });
        }
        self.hosts.follow(&state)
    }

    fn health(&self) -> HostHealth {
        self.hosts.health()[&("squid".to_owned(), HOST)].clone()
    }

    /// Hears what checks find until the host is in this state.
    async fn hear_until(&mut self, state: HealthState) {
        while self.health().state != state {
            let finding = timeout(PATIENCE, self.queue.recv()).await.expect("a finding in time");
            self.hosts.judge(finding.expect("a finding"));
        }
    }
}

/// A port of this host that listens, and its number.
async fn listen(port: u16) -> (TcpListener, u16) {
    let listener = TcpListener::bind((HOST, port)).await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    (listener, port)
}

#[tokio::test]
async fn a_host_that_dies_is_down_and_one_that_comes_back_is_up() {
    let (listener, port) = listen(0).await;
    let mut rig = Rig::new();
    assert!(rig.follow(Some(Check::Tcp(port))));
    assert_eq!(rig.health().state, HealthState::Unknown);
    rig.hear_until(HealthState::Up).await;
    drop(listener);
    rig.hear_until(HealthState::Down).await;
    assert_eq!(rig.health().error, Some(format!("tcp port {port}: connection refused")));
    let _listener = listen(port).await;
    rig.hear_until(HealthState::Up).await;
    assert_eq!(rig.health().error, None);
}

#[tokio::test]
async fn a_change_of_something_else_does_not_forget_what_is_known() {
    let (_listener, port) = listen(0).await;
    let mut rig = Rig::new();
    rig.follow(Some(Check::Tcp(port)));
    rig.hear_until(HealthState::Up).await;
    assert!(!rig.follow(Some(Check::Tcp(port))));
    assert_eq!(rig.health().state, HealthState::Up);
}

#[tokio::test]
async fn the_checker_that_was_replaced_is_not_heard() {
    let (listener, port) = listen(0).await;
    drop(listener);
    let mut rig = Rig::new();
    rig.follow(Some(Check::Tcp(port)));
    let late = timeout(PATIENCE, rig.queue.recv()).await.expect("in time").expect("a finding");
    assert!(rig.follow(Some(Check::None)));
    assert!(!rig.hosts.judge(late));
    assert_eq!(rig.health().state, HealthState::Unchecked);
    assert!(rig.follow(None));
    assert_eq!(rig.hosts.health(), Health::new());
}
