//! What loads, what does not and what is said then, and what comes back out.

use std::{fmt::Write as _, fs, net::IpAddr};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::model::{
    AccessLog, AttachMode, Check, Fail, Fsync, Group, MAIN_TABLE, Mapping, NoSession, Per, Proxy, ProxyHost,
    Refuse, Role, Sink, Target, words::parse_binding,
};

/// The sample of the reference, as far as this version goes.
const SAMPLE: &str = r#"
[gateway]
name = "gw-1"
state = "active"                      # active | inactive
metrics = "127.0.0.1:9464"
[capacity]
sessions = 4096
[timeouts]
tcp_established = "2h4m"
udp = "30s"
[[interface]]
name = "eth1"
role = "inside"
[[interface]]
name = "eth0"
role = "outside"
mode = "generic"
[[pool]]
name = "nat"
addresses = ["198.51.100.10", "198.51.100.12/31"]
ports = "2000-65535"
[[table]]
name = "main"
routes = [
  { to = "203.0.113.0/24", via = "pool nat", comment = "ours" },
  { to = "default", via = "direct", comment = "the rest" },
  { to = "192.0.2.53", proto = "udp", dport = "53", via = "pool nat" },
]
[[table]]
name = "servers"
bind = ["10.0.2.0/24", "10.0.3.0/24 iif eth1"]
routes_file = "servers.routes"
"#;

const ROUTES: &str = "
# where the servers may go
203.0.113.0/24 via gateway 10.0.1.2 dev eth1
2001:db8::/32  via blackhole  comment \"not yet\"
";

/// Loads `text`, beside a file of routes. Paths in errors are relative.
fn load_text(text: &str, routes: &str) -> Result<Config, ConfigError> {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("gateway.toml");
    fs::write(&path, text).expect("written");
    fs::write(directory.path().join("servers.routes"), routes).expect("written");
    let prefix = format!("{}/", directory.path().display());
    load(&path).map_err(|error| ConfigError {
        file: error.file.replace(&prefix, ""),
        message: error.message.replace(&prefix, ""),
        ..error
    })
}

#[test]
fn the_sample_loads() {
    let config = load_text(SAMPLE, ROUTES).expect("loads");
    assert_eq!(config.metrics.map(|at| at.to_string()).as_deref(), Some("127.0.0.1:9464"));
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].starts_with("timeouts.udp is 30s, below the 2m"), "{:?}", config.warnings);
    let state = config.snapshot;
    assert_eq!((state.name.as_str(), state.active), ("gw-1", true));
    assert_eq!((state.capacity.sessions, state.capacity.routes), (4096, 1_048_576));
    assert_eq!(state.interfaces["eth1"].role, Role::Inside);
    assert_eq!(state.interfaces["eth0"].mode, AttachMode::Generic);
    let addresses: Vec<_> = state.pools["nat"].addresses.iter().map(IpAddr::to_string).collect();
    assert_eq!(addresses, ["198.51.100.10", "198.51.100.12", "198.51.100.13"]);
    assert_eq!(state.tables["main"].routes.len(), 3);
    let servers = &state.tables["servers"];
    assert_eq!(servers.bindings.len(), 2);
    let targets: Vec<_> = servers.routes.iter().map(|(_, route)| route.target.to_string()).collect();
    assert_eq!(targets, ["gateway 10.0.1.2 dev eth1", "blackhole"]);
}

#[test]
fn an_empty_file_is_a_gateway_that_only_observes() {
    assert_eq!(load_text("", "").expect("loads").snapshot, Snapshot::default());
}

#[test]
fn the_fingerprint_sees_both_files() {
    let of = |text: &str, routes: &str| load_text(text, routes).expect("loads").fingerprint;
    assert_eq!(of(SAMPLE, ROUTES), of(SAMPLE, ROUTES));
    assert_ne!(of(SAMPLE, ROUTES), of(SAMPLE, &ROUTES.replace("not yet", "never")));
    assert_ne!(of(SAMPLE, ROUTES), of(&format!("{SAMPLE}\n"), ROUTES));
}

#[test]
fn what_is_wrong_is_said_with_its_place_and_a_remedy() {
    let replaced = |from: &str, to: &str| {
        assert!(SAMPLE.contains(from), "{from}");
        (SAMPLE.replacen(from, to, 1), ROUTES.to_owned())
    };
    let added = |text: &str| (format!("{SAMPLE}{text}"), ROUTES.to_owned());
    let routes = |line: &str| (SAMPLE.to_owned(), format!("{ROUTES}{line}\n"));
    let cases = [
        // The form.
        replaced("[gateway]", "[gateway"),
        replaced("name = \"gw-1\"", "name = gw-1"),
        replaced("[capacity]", "[capasity]"),
        replaced("sessions = 4096", "sesions = 4096"),
        replaced("sessions = 4096", "sessions = \"many\""),
        replaced("addresses = [", "adresses = ["),
        replaced("role = \"inside\"", ""),
        replaced("dport = \"53\"", "dport = 53"),
        replaced("comment = \"ours\"", "coment = \"ours\""),
        replaced("comment = \"the rest\"", "log = true"),
        // The gateway.
        replaced("\"gw-1\"", "\"gw 1\""),
        replaced("state = \"active\"", "state = \"activ\""),
        replaced("127.0.0.1:9464", "localhost"),
        replaced("state = \"active\"", "no_session = \"refuse\""),
        replaced("sessions = 4096", "sessions = 0"),
        replaced("sessions = 4096", "sessions = -1"),
        replaced("\"2h4m\"", "\"2 moons\""),
        replaced("\"30s\"", "\"0s\""),
        // Interfaces.
        replaced("role = \"outside\"", "role = \"outsid\""),
        replaced("mode = \"generic\"", "mode = \"skb\""),
        replaced("name = \"eth1\"", "name = \"a-name-of-16byte\""),
        added("[[interface]]\nname = \"eth0\"\nrole = \"inside\"\n"),
        // Pools.
        replaced("198.51.100.10", "198.51.100.300"),
        replaced("198.51.100.12/31", "198.51.100.13/31"),
        replaced("198.51.100.12/31", "198.51.0.0/16"),
        replaced("198.51.100.12/31", "198.51.100.10"),
        replaced("2000-65535", "2000-66000"),
        replaced("2000-65535", "80-90"),
        replaced("\"198.51.100.10\", \"198.51.100.12/31\"", ""),
        replaced("ports = \"2000-65535\"", "mss = 535"),
        replaced("ports = \"2000-65535\"", "mss = -1"),
        replaced("ports = \"2000-65535\"", "mss = 9177"),
        added("[[pool]]\nname = \"six\"\naddresses = [\"2001:db8::10\"]\nmss = 1219\n"),
        added("[[pool]]\nname = \"two\"\naddresses = [\"198.51.100.12\"]\n"),
        added("[[pool]]\nname = \"nat\"\naddresses = [\"198.51.100.20\"]\n"),
        // Tables.
        replaced("203.0.113.0/24", "203.0.113.7/24"),
        replaced("via = \"pool nat\"", "via = \"pool nta\""),
        replaced("via = \"direct\"", "via = \"dirct\""),
        replaced("proto = \"udp\"", "proto = \"icmp\""),
        replaced("to = \"default\"", "to = \"203.0.113.0/24\""),
        replaced("10.0.3.0/24 iif eth1", "10.0.3.0/24 on eth1"),
        replaced("10.0.3.0/24 iif eth1", "10.0.3.0/24 iif eth2"),
        replaced("name = \"servers\"", "name = \"main\""),
        replaced("servers.routes", "absent.routes"),
        // EIPs.
        added("[[eip]]\naddress = \"198.51.100.300\"\nhost = \"10.0.0.2\"\n"),
        added("[[eip]]\naddress = \"198.51.100.50\"\nhost = \"2001:db8::2\"\n"),
        added("[[eip]]\naddress = \"198.51.100.50\"\n"),
        added("[[eip]]\naddress = \"198.51.100.10\"\nhost = \"10.0.0.2\"\n"),
        added("[[eip]]\naddress = \"198.51.100.50\"\nhost = \"198.51.100.10\"\n"),
        added("[[eip]]\naddress = \"198.51.100.50\"\nhost = \"198.51.100.50\"\n"),
        added("[[eip]]\naddress = \"224.0.0.5\"\nhost = \"10.0.0.2\"\n"),
        added(
            "[[eip]]\naddress = \"198.51.100.50\"\nhost = \"10.0.0.2\"\n\
             [[eip]]\naddress = \"198.51.100.51\"\nhost = \"10.0.0.2\"\n",
        ),
        added(
            "[[eip]]\naddress = \"198.51.100.50\"\nhost = \"10.0.0.2\"\n\
             [[eip]]\naddress = \"198.51.100.50\"\nhost = \"10.0.0.3\"\n",
        ),
        // Limits of sources.
        added("[[limit]]\nname = \"a\"\n"),
        added("[[limit]]\nname = \"a\"\nfrom = \"10.0.7.1/24\"\n"),
        added("[[limit]]\nname = \"a\"\nfrom = \"10.0.7.0/24\"\nper = \"client\"\n"),
        added("[[limit]]\nname = \"a\"\nfrom = \"10.0.7.0/24\"\nrate = 7\nburst = 0\n"),
        added("[[limit]]\nname = \"a\"\nfrom = \"10.0.7.0/24\"\nconcurrent = 4000000000\n"),
        added(
            "[[limit]]\nname = \"a\"\nfrom = \"10.0.7.0/24\"\n\
             [[limit]]\nname = \"b\"\nfrom = \"10.0.7.0/24\"\n",
        ),
        added(
            "[[limit]]\nname = \"a\"\nfrom = \"10.0.7.0/24\"\n\
             [[limit]]\nname = \"a\"\nfrom = \"10.0.8.0/24\"\n",
        ),
        // Files of routes.
        routes("10.0.0.0/8 via pool nta"),
        routes("10.0.0.0/8 vai direct"),
        routes("203.0.113.0/24 via direct"),
        routes("10.0.0.0/8 via gateway 2001:db8::1"),
        added(
            "[[table]]\nname = \"return\"\nkind = \"border\"\nroutes = [{ to = \"10.0.0.0/8\", via = \"pool nat\" }]\n",
        ),
        added("[[table]]\nname = \"return\"\nkind = \"border\"\nbind = [\"10.0.0.0/8\"]\n"),
        replaced("ports = \"2000-65535\"", "per_destination = { rate = -1 }"),
        replaced("ports = \"2000-65535\"", "per_destination = { rate = 9, burst = 0 }"),
        replaced("ports = \"2000-65535\"", "per_destination = { concurrent = 4000000000 }"),
        replaced("ports = \"2000-65535\"", "per_destination = { rates = 9 }"),
        replaced("ports = \"2000-65535\"", "refuse = \"rst\""),
        replaced("ports = \"2000-65535\"", "mapping = \"full-cone\""),
        replaced("comment = \"the rest\"", "domain = \"*.example.com\""),
    ];
    insta::assert_snapshot!("errors", complaints(cases));
}

#[test]
fn what_is_wrong_with_a_group_is_said_with_its_place_and_a_remedy() {
    let added = |text: &str| (format!("{SAMPLE}{text}"), ROUTES.to_owned());
    let cases = [
        added("[[group]]\nname = \"a\"\n"),
        added("[[group]]\nname = \"a\"\nprefixes = []\n"),
        added("[[group]]\nname = \"a\"\nprefixes = [\"10.0.7.0/24\", \"10.0.7.1/24\"]\n"),
        added("[[group]]\nname = \"a\"\nprefixes = [\"10.0.7.0/24\", \"10.0.7.0/24\"]\n"),
        added("[[group]]\nname = \"other\"\nprefixes = [\"10.0.7.0/24\"]\n"),
        added(
            "[[group]]\nname = \"a\"\nprefixes = [\"10.0.7.0/24\"]\n\
             [[group]]\nname = \"b\"\nprefixes = [\"10.0.8.0/24\", \"10.0.7.0/24\"]\n",
        ),
        added(
            "[[group]]\nname = \"a\"\nprefixes = [\"10.0.7.0/24\"]\n\
             [[group]]\nname = \"a\"\nprefixes = [\"10.0.8.0/24\"]\n",
        ),
    ];
    insta::assert_snapshot!("group_errors", complaints(cases));
}

#[test]
fn what_is_wrong_with_an_access_log_is_said_with_its_place_and_a_remedy() {
    let added = |text: &str| (format!("{SAMPLE}{text}"), ROUTES.to_owned());
    let cases = [
        added("[access_log]\npath = \"udp://collector\"\n"),
        added("[access_log]\npath = \"access.jsonl\"\n"),
        added("[access_log]\npath = \"/a\"\ntables = [\"mian\"]\n"),
        added("[access_log]\npath = \"/a\"\nmax_size = \"100MB\"\n"),
        added("[access_log]\npath = \"/a\"\nmax_age = \"1ms\"\n"),
        added("[access_log]\npath = \"/a\"\nkeep = 10001\n"),
        added("[access_log]\npath = \"/a\"\nfsync = \"often\"\n"),
    ];
    insta::assert_snapshot!("access_log_errors", complaints(cases));
}

#[test]
fn what_is_wrong_with_a_proxy_is_said_with_its_place_and_a_remedy() {
    let added = |text: &str| (format!("{SAMPLE}{text}"), ROUTES.to_owned());
    let proxies = |text: &str| {
        let others = "[[proxy]]\nname = \"other\"\nhosts = [\"10.0.1.9\"]\n\
                      [[proxy]]\nname = \"chained\"\nhosts = [\"10.0.1.8\"]\nfail = \"proxy other\"\n";
        added(&format!("{others}[[proxy]]\nname = \"squid\"\n{text}\n"))
    };
    let six = |to: &str, fail: &str| {
        let proxy = format!(
            "[[proxy]]\nname = \"squid\"\nhosts = [\"10.0.1.2\"]\nfail = \"{fail}\"\n\
             [[proxy]]\nname = \"four\"\nhosts = [\"10.0.1.9\"]\nfail = \"pool nat\"\n"
        );
        let table =
            format!("[[table]]\nname = \"six\"\nroutes = [{{ to = \"{to}\", via = \"proxy squid\" }}]\n");
        added(&(proxy + &table))
    };
    let cases = [
        proxies("hosts = []"),
        proxies("hosts = [\"10.0.1\"]"),
        proxies("hosts = [\"10.0.1.2 heavy\"]"),
        proxies("hosts = [\"10.0.1.2\", \"10.0.1.3 weight 0\"]"),
        proxies("hosts = [\"10.0.1.2\", \"10.0.1.3 weight 257\"]"),
        proxies("hosts = [\"10.0.1.2\",\n  \"224.0.0.5\"]"),
        proxies("hosts = [\"10.0.1.2\",\n  \"10.0.1.2\"]"),
        proxies("hosts = [\"10.0.1.9\"]"),
        proxies("hosts = [\"198.51.100.10\"]"),
        proxies("hosts = [\"10.0.1.2\"]\ndrained = [\"10.0.1.3\"]"),
        proxies("hosts = [\"10.0.1.2\"]\ndrained = [\"me\"]"),
        proxies("hosts = [\"10.0.1.2\"]\nmode = \"gre\""),
        proxies("hosts = [\"10.0.1.2\"]\nmode = \"vxlan\""),
        proxies("hosts = [\"10.0.1.2\"]\nmode = \"vxlan\"\nvni = 16777216"),
        proxies("hosts = [\"10.0.1.2\"]\nmode = \"vxlan\"\nvni = -1"),
        proxies("hosts = [\"10.0.1.2\"]\nvni = 7"),
        proxies("hosts = [\"10.0.1.2\"]\ncheck = \"http:80\""),
        proxies("hosts = [\"10.0.1.2\"]\ninterval = \"often\""),
        proxies("hosts = [\"10.0.1.2\"]\ninterval = \"1ms\""),
        proxies("hosts = [\"10.0.1.2\"]\nfail = \"open\""),
        proxies("hosts = [\"10.0.1.2\"]\nfail = \"pool nta\""),
        proxies("hosts = [\"10.0.1.2\"]\nfail = \"proxy othre\""),
        proxies("hosts = [\"10.0.1.2\"]\nfail = \"proxy squid\""),
        proxies("hosts = [\"10.0.1.2\"]\nfail = \"proxy chained\""),
        proxies("hosts = [\"10.0.1.2\"]\nport = 3128"),
        added("[[proxy]]\nname = \"my squid\"\nhosts = [\"10.0.1.2\"]\n"),
        (SAMPLE.replacen("via = \"direct\"", "via = \"proxy squid\"", 1), ROUTES.to_owned()),
        six("2001:db8::/32", "pool nat"),
        six("2001:db8::/32", "proxy four"),
    ];
    insta::assert_snapshot!("proxy_errors", complaints(cases));
}

/// What is said about each of these configurations and files of routes.
fn complaints(cases: impl IntoIterator<Item = (String, String)>) -> String {
    let mut said = String::new();
    for (text, routes) in cases {
        let error = load_text(&text, &routes).expect_err(&text);
        let hint = error.hint.as_deref().unwrap_or("(none)");
        writeln!(said, "error: {error}\nhint: {hint}\n").expect("written");
    }
    said
}

#[test]
fn a_missing_file_is_said_to_be_missing() {
    let error = load(Path::new("/nonexistent/gateway.toml")).expect_err("refused");
    assert_eq!(
        error.to_string(),
        "/nonexistent/gateway.toml: cannot be read: No such file or directory (os error 2)"
    );
    assert!(error.hint.is_some());
}

#[test]
fn the_export_of_the_sample_is_as_an_operator_would_write_it() {
    let config = load_text(SAMPLE, ROUTES).expect("loads");
    insta::assert_snapshot!("export", export(&config.snapshot, config.metrics));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_is_exported_loads_to_the_same_state(state in snapshot()) {
        prop_assert_eq!(validate(&state), Ok(()));
        let text = export(&state, None);
        let config = load_text(&text, "").map_err(|error| TestCaseError::fail(format!("{error}\n{text}")))?;
        prop_assert_eq!(config.snapshot, state);
    }
}

/// Any acceptable state.
fn snapshot() -> impl Strategy<Value = Snapshot> {
    let name = "[a-z][a-z0-9._-]{0,8}";
    let timeouts = vec(1_000u64..10_000_000, 4);
    let interfaces = vec((select(&["eth0", "eth1", "br-lan", "wan.100"][..]), role(), mode()), 0..4);
    let tables = vec((name, vec(binding(), 0..3), vec(route(), 0..12)), 0..4);
    (name, any::<bool>(), timeouts, interfaces, 1..4usize, tables).prop_map(
        |(name, active, timeouts, interfaces, pools, tables)| {
            let mut state = Snapshot { name, active, ..Snapshot::default() };
            state.access_log = (pools == 3).then(|| AccessLog {
                all: true,
                tables: [MAIN_TABLE.to_owned()].into(),
                max_rate: 9,
                max_size: 5_000,
                keep: 0,
                fsync: Fsync::Never,
                ..AccessLog::new(Sink::File("/var/log/a \"log\"".into()))
            });
            state.no_session = if pools == 2 { NoSession::Drop } else { NoSession::Reset };
            let mut timeouts = timeouts.into_iter().map(Duration::from_millis);
            state.timeouts.tcp_established = timeouts.next().unwrap_or_default();
            state.timeouts.udp = timeouts.next().unwrap_or_default();
            for (name, role, mode) in interfaces {
                state.interfaces.insert(name.to_owned(), Interface { name: name.to_owned(), role, mode });
            }
            for number in 0..pools {
                let name = format!("pool-{number}");
                let number = number as u16;
                let addresses = vec![
                    IpAddr::from([198, 51, 100, number as u8]),
                    IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, number]),
                ];
                let ports = PortRange { low: 1024 + number, high: 2048 };
                let drained = addresses[..usize::from(number % 2)].iter().copied().collect();
                let mapping =
                    if number.is_multiple_of(3) { Mapping::EndpointIndependent } else { Mapping::default() };
                let mss = if number.is_multiple_of(2) { 0 } else { 1_360 };
                let refuse = [Refuse::Drop, Refuse::Reset, Refuse::Icmp][usize::from(number) % 3];
                let pool = Pool { drained, mapping, mss, refuse, ..Pool::new(&name, addresses, ports) };
                state.pools.insert(name, pool);
            }
            for number in 0..pools {
                let address = IpAddr::from([198, 51, 100, 100 + number as u8]);
                let host = IpAddr::from([10, 0, 0, number as u8]);
                state.eips.insert(address, Eip { address, host });
            }
            for number in 0..pools {
                let name = format!("limit-{number}");
                let from = if number.is_multiple_of(2) {
                    format!("10.0.{number}.0/24")
                } else {
                    format!("2001:db8:{number}::/48")
                };
                let mut limit = Limit::new(&name, from.parse().expect("a prefix"));
                limit.per = if number.is_multiple_of(3) { Per::Prefix } else { Per::Source };
                (limit.rate, limit.concurrent) = (number as u32, 7 * number as u32);
                limit.burst = number.is_multiple_of(2).then_some(9);
                state.limits.insert(name, limit);
            }
            for number in 0..pools {
                let name = format!("group-{number}");
                let prefixes = [format!("10.1.{number}.0/24"), format!("2001:db8:1:{number}::/64")];
                let prefixes = prefixes.iter().map(|prefix| prefix.parse().expect("a prefix")).collect();
                state.groups.insert(name.clone(), Group { name, prefixes });
            }
            for number in 0..pools {
                let proxy = proxy(number as u16);
                state.proxies.insert(proxy.name.clone(), proxy);
            }
            let mut bound = BTreeSet::new();
            for (name, bindings, routes) in tables {
                let mut table = state
                    .tables
                    .get(&name)
                    .map_or_else(|| Table::new(&name, TableKind::Egress), |table| (**table).clone());
                table.bindings.extend(bindings.into_iter().filter(|binding| bound.insert(binding.clone())));
                for (key, mut route) in routes {
                    match &mut route.target {
                        Target::Pool(pool) => *pool = "pool-0".to_owned(),
                        Target::Proxy(proxy) => *proxy = "proxy-0".to_owned(),
                        Target::Direct
                        | Target::Eip
                        | Target::Gateway { .. }
                        | Target::Blackhole
                        | Target::Prohibit
                        | Target::Host => {}
                    }
                    table.routes.insert(key, route);
                }
                state.tables.insert(name, Arc::new(table));
            }
            state
                .tables
                .entry(MAIN_TABLE.to_owned())
                .or_insert_with(|| Arc::new(Table::new(MAIN_TABLE, TableKind::Egress)));
            state
        },
    )
}

/// A proxy that has everything a proxy may have, differently by number.
fn proxy(number: u16) -> Proxy {
    let number = u8::try_from(number).unwrap_or_default();
    let host = |last, weight| ProxyHost { address: IpAddr::from([10, 9, number, last]), weight };
    let hosts = vec![host(1, 1), host(2, 1 + u16::from(number)), host(3, 256)];
    let fail = match number {
        0 => Fail::Closed,
        1 => Fail::Proxy("proxy-0".to_owned()),
        _ => Fail::Pool("pool-0".to_owned()),
    };
    Proxy {
        drained: hosts[..usize::from(number)].iter().map(|host| host.address).collect(),
        check: [Check::None, Check::Icmp, Check::Tcp(3128)][usize::from(number)],
        interval: Proxy::INTERVAL * (1 + u32::from(number)),
        fail,
        ..Proxy::new(format!("proxy-{number}"), hosts)
    }
}

fn role() -> impl Strategy<Value = Role> {
    select(&Role::ALL[..])
}

fn mode() -> impl Strategy<Value = AttachMode> {
    select(&AttachMode::ALL[..])
}

fn binding() -> impl Strategy<Value = crate::model::Binding> {
    (any::<u8>(), 8u8..=32).prop_map(|(second, length)| {
        let prefix = ipnet::IpNet::new(IpAddr::from([10, second, 0, 0]), length).expect("a prefix").trunc();
        parse_binding(&prefix.to_string()).expect("a binding")
    })
}

fn route() -> impl Strategy<Value = (RouteKey, crate::model::Route)> {
    let destination = prop_oneof![
        (any::<[u8; 4]>(), 0u8..=32).prop_map(|(address, length)| (IpAddr::from(address), length)),
        (any::<[u8; 16]>(), 0u8..=64).prop_map(|(address, length)| (IpAddr::from(address), length)),
    ];
    let target =
        select(&["direct", "pool any", "eip", "proxy any", "blackhole", "prohibit", "host", "gateway"][..]);
    let selector = select(
        &["", "proto tcp", "proto udp", "proto icmp", "proto tcp dport 443", "proto udp dport 1000-2000"][..],
    );
    let comment = option::of("[ -~äß€#\"'\\\\]{0,20}");
    (destination, target, selector, comment).prop_map(|((address, length), target, selector, comment)| {
        let prefix = ipnet::IpNet::new(address, length).expect("a prefix").trunc();
        let router = if address.is_ipv4() { "10.9.9.9" } else { "2001:db8::9" };
        let target = target.replace("gateway", &format!("gateway {router}"));
        let line = format!("{prefix} via {target} {selector}");
        let (key, route) = words::parse_route_line(&line).expect("a route").expect("not empty");
        (key, crate::model::Route { comment, ..route })
    })
}
