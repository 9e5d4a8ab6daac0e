//! The daemon over a data plane in memory.

use std::os::unix::net::UnixStream;

use super::*;
use crate::{
    dataplane::{Link, memory::Memory},
    model::{AttachMode, Interface, Proxy, ProxyHost},
};

const CONFIG: &str = "
[gateway]
metrics = \"127.0.0.1:0\"
[[interface]]
name = \"absent0\"
role = \"inside\"
";

/// The paths of a daemon, and what its data plane saw.
struct Place {
    directory: tempfile::TempDir,
    memory: Memory,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("gateway.toml"), CONFIG).expect("written");
        Self { directory, memory: Memory::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn args(&self, more: &[&str]) -> Args {
        let mut words = vec!["gatewayd".to_owned()];
        for (option, name) in [
            ("--config", "gateway.toml"),
            ("--socket", "run/gateway.sock"),
            ("--state-dir", "state"),
            ("--pin-dir", "pins"),
        ] {
            words.extend([option.to_owned(), self.path(name).display().to_string()]);
        }
        words.extend(more.iter().map(|word| (*word).to_owned()));
        Args::parse_from(words)
    }

    /// Starts a daemon and waits until it is there.
    async fn start(&self, more: &[&str]) -> (CancellationToken, JoinHandle<anyhow::Result<()>>) {
        let (stop, mut daemon) = self.spawn(more);
        let socket = self.path("run/gateway.sock");
        let ready = async {
            // The state is saved when it is in force.
            let saved = self.path("state/state.json");
            while UnixStream::connect(&socket).is_err() || !saved.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = ready => {}
            ended = &mut daemon => panic!("the daemon ended: {ended:?}"),
            () = tokio::time::sleep(Duration::from_secs(10)) => panic!("the daemon does not answer"),
        }
        (stop, daemon)
    }

    fn spawn(&self, more: &[&str]) -> (CancellationToken, JoinHandle<anyhow::Result<()>>) {
        let args = self.args(more);
        let dataplane = Box::new(self.memory.clone());
        let stop = CancellationToken::new();
        let until = stop.clone();
        let daemon = tokio::spawn(async move {
            let config = config::load(&args.config)?;
            run(
                &args,
                config,
                |_, _| Ok(Backend { dataplane, events: None, records: None, watchers: None }),
                until,
            )
            .await
        });
        (stop, daemon)
    }
}

#[test]
fn the_defaults_are_those_of_the_reference() {
    let args = Args::parse_from(["gatewayd"]);
    let paths =
        [&args.config, &args.socket, &args.state_dir, &args.pin_dir].map(|path| path.display().to_string());
    assert_eq!(
        paths,
        ["/etc/gateway/gateway.toml", "/run/gateway/gateway.sock", "/var/lib/gateway", "/sys/fs/bpf/gateway"]
    );
    assert!(!args.check_config && !args.detach_on_exit && args.metrics.is_none());
}

#[tokio::test]
async fn a_stopped_daemon_leaves_the_data_plane_and_no_socket() {
    let place = Place::new();
    let (stop, daemon) = place.start(&[]).await;
    assert!(place.path("state/state.json").exists());
    stop.cancel();
    daemon.await.expect("ends").expect("ends well");
    assert!(!place.path("run/gateway.sock").exists());
    assert!(place.path("pins").exists());
    let state = place.memory.state();
    assert!(!state.removed && state.applied.is_some());
}

#[tokio::test]
async fn detaching_leaves_no_pins() {
    let place = Place::new();
    let (stop, daemon) = place.start(&["--detach-on-exit"]).await;
    stop.cancel();
    daemon.await.expect("ends").expect("ends well");
    assert!(place.memory.state().removed);
    assert!(!place.path("pins").exists());
}

#[tokio::test]
async fn a_second_daemon_on_the_same_paths_is_refused() {
    let place = Place::new();
    let (stop, first) = place.start(&[]).await;
    let applies = place.memory.state().applies;
    for (other_paths, message) in [
        (&[][..], "another gatewayd works on the state directory "),
        (&["state"][..], "another gatewayd works on the pin directory "),
        (&["state", "pins"][..], "another daemon answers on "),
    ] {
        let mut args = place.args(&[]);
        if other_paths.contains(&"state") {
            args.state_dir = place.path("other-state");
        }
        if other_paths.contains(&"pins") {
            args.pin_dir = place.path("other-pins");
        }
        let config = config::load(&args.config).expect("loads");
        let open = |_: &Path, _| panic!("the data plane must not be touched");
        let error = run(&args, config, open, CancellationToken::new()).await.expect_err("refused");
        assert!(error.to_string().starts_with(message), "{error:#}");
        assert_eq!(remedy(&error).1, exit::UNEXPECTED);
        assert!(remedy(&error).0.is_some());
    }
    assert_eq!(place.memory.state().applies, applies);
    assert!(UnixStream::connect(place.path("run/gateway.sock")).is_ok(), "the first one is not disturbed");
    stop.cancel();
    first.await.expect("ends").expect("ends well");
}

#[tokio::test]
async fn a_metrics_port_in_use_is_refused_before_anything_is_touched() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = taken.local_addr().expect("an address").to_string();
    let (_, daemon) = place.spawn(&["--metrics", &at]);
    let error = daemon.await.expect("ends").expect_err("refused");
    assert!(format!("{error:#}").starts_with(&format!("cannot serve metrics on {at}: ")), "{error:#}");
    assert_eq!(place.memory.state().applies, 0);
}

#[tokio::test]
async fn a_state_that_the_data_plane_refuses_ends_the_start() {
    let place = Place::new();
    place.memory.state().script.push_back(Some("pins of another version".to_owned()));
    let (_, daemon) = place.spawn(&[]);
    let error = daemon.await.expect("ends").expect_err("refused");
    assert_eq!(format!("{error:#}"), "cannot put the state in force: pins of another version");
    assert!(!place.path("run/gateway.sock").exists());
    assert!(!place.path("state/state.json").exists());
}

#[test]
fn a_bad_configuration_is_exit_code_7() {
    let place = Place::new();
    fs::write(place.path("gateway.toml"), "[[pool]]\nname = \"nat\"\nadresses = []\n").expect("written");
    let error = check(&place.path("gateway.toml")).expect_err("refused");
    assert_eq!(remedy(&error), (Some("did you mean `addresses`?".to_owned()), exit::INVALID));
}

#[test]
fn the_shipped_sample_is_a_good_configuration() {
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/gateway.toml");
    let config = config::load(&sample).expect("loads");
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.snapshot.timeouts, crate::model::Timeouts::default());
    assert_eq!(config.snapshot.capacity, Capacity::default());
}

#[test]
fn hosts_of_proxies_that_cannot_be_reached_are_named() {
    let link = |index, address: &str| Link {
        index,
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
        up: true,
        veth: false,
        addresses: vec![address.parse().expect("a subnet")],
    };
    let links = [("eth0", link(2, "198.51.100.2/24")), ("eth1", link(3, "10.0.3.1/24"))];
    let host = Host { links: links.map(|(name, link)| (name.to_owned(), link)).into() };
    let mut state = Snapshot::default();
    for (name, role) in [("eth0", Role::Outside), ("eth1", Role::Inside)] {
        let interface = Interface { name: name.to_owned(), role, mode: AttachMode::Auto };
        state.interfaces.insert(name.to_owned(), interface);
    }
    let hosts = [[10, 0, 3, 2], [10, 0, 3, 1], [10, 0, 4, 2], [198, 51, 100, 7]];
    let squid = Proxy::new("squid", hosts.map(|address| ProxyHost::new(address.into())).into());
    state.proxies.insert("squid".to_owned(), squid);
    let said: Vec<_> = misplaced(&state, &host).into_iter().map(|notice| notice.message).collect();
    assert_eq!(
        said,
        [
            "host 10.0.3.1 of proxy `squid` is the gateway itself",
            "host 10.0.4.2 of proxy `squid` is on no link of an inside interface: packets cannot be sent to it",
            "host 198.51.100.7 of proxy `squid` is on no link of an inside interface: packets cannot be sent to it",
        ]
    );
}
