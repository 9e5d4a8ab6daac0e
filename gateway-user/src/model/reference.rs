//! The reference page of limits.

use std::fmt::Write as _;

use gateway_common::{
    V4, V6,
    eip::MAX_EIPS,
    interface::{MAX_IFINDEX, MAX_INTERFACES},
    limit::{self, Bucket},
    pool::{FIRST_PORT, LAST_PORT, MAX_ADDRESSES_PER_POOL, MAX_POOL_ADDRESSES, MAX_POOLS},
    ports::{self, Destination, Ports},
    proxy::{MAX_HOSTS_PER_PROXY, MAX_PROXIES, MAX_PROXY_HOSTS},
    route::{MAX_ROUTE_COUNTERS, MAX_ROUTERS, MAX_RULES, MAX_RULES_PER_PREFIX, Route},
    session::{Session, Tuple},
    table,
    usage::{MAX_GROUP_PREFIXES, MAX_GROUPS},
};

use super::{
    Snapshot,
    interface::MAX_NAME as MAX_DEVICE_NAME,
    validate::{MAX_CAPACITY, MAX_LIMITS, MAX_NAME, MAX_SOURCES, MAX_TABLES, MAX_TIMEOUT, MAX_WEIGHT},
};

const HEAD: &str = "\
# Limits

<!-- Generated from the constants of gateway-common and gateway-user/src/model; to write it anew:
     UPDATE_REFERENCE=1 cargo test -p gateway-user --lib model::reference -->

What goes beyond a limit is refused with an error that names it. Those marked *configured* are set in the section `[capacity]` of the
configuration file and fixed when the kernel's tables are made. To change them, take the gateway out and start it again.

| what | at most |
|---|---|
";

/// What the kernel puts before key and value of an element of a hash map.
const ELEMENT_HEADER: usize = 48;

/// The page.
fn reference() -> String {
    let capacity = Snapshot::default().capacity;
    let port_count = u32::from(LAST_PORT) - u32::from(FIRST_PORT) + 1;
    let configured = |default: u32| format!("*configured*: {default}; up to {MAX_CAPACITY}");
    let mut page = HEAD.to_owned();
    for (what, limit) in [
        ("sessions of each family (`capacity.sessions`)", configured(capacity.sessions)),
        (
            "TCP sessions of both families that are not established (`capacity.half_open`)",
            format!("*configured*: a quarter of `capacity.sessions`; up to {MAX_CAPACITY}"),
        ),
        ("prefixes of each table and family (`capacity.routes`)", configured(capacity.routes)),
        ("interfaces", MAX_INTERFACES.to_string()),
        ("number of a device (ifindex)", (MAX_IFINDEX - 1).to_string()),
        ("tables", MAX_TABLES.to_string()),
        ("bindings of all tables", MAX_SOURCES.to_string()),
        ("routes with `proto` or `dport`, all tables", MAX_RULES.to_string()),
        (
            "the same for one prefix, counting those of the prefixes it falls back to",
            MAX_RULES_PER_PREFIX.to_string(),
        ),
        ("routers that `gateway` targets name", MAX_ROUTERS.to_string()),
        (
            "route counters; routes beyond them share one by table and kind of target",
            MAX_ROUTE_COUNTERS.to_string(),
        ),
        ("pools", MAX_POOLS.to_string()),
        ("addresses of one pool", MAX_ADDRESSES_PER_POOL.to_string()),
        ("addresses of all pools", MAX_POOL_ADDRESSES.to_string()),
        ("ports of a pool address, for each destination and protocol", port_count.to_string()),
        ("proxies", MAX_PROXIES.to_string()),
        ("hosts of one proxy", MAX_HOSTS_PER_PROXY.to_string()),
        ("hosts of all proxies", MAX_PROXY_HOSTS.to_string()),
        ("weight of a host of a proxy", MAX_WEIGHT.to_string()),
        ("EIPs", MAX_EIPS.to_string()),
        ("limits of sources", MAX_LIMITS.to_string()),
        ("groups of usage", MAX_GROUPS.to_string()),
        ("prefixes of all groups of usage", MAX_GROUP_PREFIXES.to_string()),
        ("idle time", format!("{} days", MAX_TIMEOUT.as_secs() / 86_400)),
        ("bytes in the name of a gateway, group, limit, pool, proxy or table", MAX_NAME.to_string()),
        ("bytes in the name of a device", MAX_DEVICE_NAME.to_string()),
    ] {
        let _ = writeln!(page, "| {what} | {limit} |");
    }
    let v4 = table::buckets(2 * capacity.sessions) as usize * size_of::<table::Bucket<V4>>();
    let v6 = 2 * (ELEMENT_HEADER + size_of::<Tuple<V6>>() + size_of::<Session<V6>>());
    let destination = ELEMENT_HEADER + size_of::<Destination>().next_multiple_of(8) + size_of::<Ports>();
    let destinations = ports::capacity(capacity.sessions);
    // `struct lpm_trie_node`: 40 bytes and the data of the key and the value, in caches of powers of two; a node that
    // only joins two others is as large, and there are up to as many of these.
    let nodes = |key: usize| 2 * (40 + key + size_of::<Route>()).next_power_of_two();
    let _ = write!(
        page,
        "\n## Memory\n\n\
         A session takes two elements. For IPv4 that is {} bytes, all of it taken when the gateway starts, and for IPv6 {}, of\n\
         which 32 are taken at the start and the rest as sessions come. The default capacity takes {} MiB for IPv4 and {} MiB for\n\
         IPv6.\n\n\
         Towards a destination that uses many ports of an address, these are kept in {} bytes; there is room for {} such\n\
         destinations at the default capacity, {} MiB.\n\n\
         Each destination with sessions takes {} bytes more for each address of a pool, as they come, and room for them 16 bytes\n\
         a session, {} MiB.\n",
        v4 / capacity.sessions as usize,
        v6 + 32,
        v4 >> 20,
        (32 * capacity.sessions as usize) >> 20,
        destination,
        destinations,
        (destination * destinations as usize) >> 20,
        (ELEMENT_HEADER + size_of::<Destination>().next_multiple_of(8) + size_of::<Bucket>())
            .next_power_of_two(),
        (16 * limit::capacity(capacity.sessions) as usize) >> 20,
    );
    let _ = write!(
        page,
        "\nA route takes up to {} bytes of kernel memory for IPv4 and {} for IPv6 while it exists, and as much again while its\n\
         table is replaced: a million prefixes {} and {} MiB.\n",
        nodes(4),
        nodes(16),
        (nodes(4) * 1_000_000) >> 20,
        (nodes(16) * 1_000_000) >> 20,
    );
    page
}

#[test]
fn reference_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/limits.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path, reference()).expect("the page can be written");
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        page == reference(),
        "docs/reference/limits.md is stale: UPDATE_REFERENCE=1 cargo test -p gateway-user --lib model::reference"
    );
}
