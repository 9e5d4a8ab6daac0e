//! Kernel memory that a session takes: that of all maps of a gateway whose session table is full.

use std::{collections::BTreeSet, fs, os::fd::AsRawFd as _};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{MapInfo, MapType};
use serde::Serialize;

use crate::{Options, network::programs_of, report::Report, single::Single, statistic::Samples};

/// Capacities that are measured; the first is the default. Each is filled.
const CAPACITIES: [u32; 2] = [1 << 20, 1 << 19];

/// Bytes that a session may take.
const TARGET: f64 = 256.0;

/// Maps below this part of all memory are put together in the table.
const SMALL: f64 = 0.005;

/// A map.
#[derive(Serialize)]
struct Size {
    map: String,
    elements: u32,
    bytes: u64,
}

/// Fills the tables and asks the kernel for the size of each.
pub(crate) fn measure(options: &Options) -> Result<Report> {
    let [capacity, half] = CAPACITIES;
    let title =
        format!("Kernel memory of all maps with {capacity} IPv4 sessions, which is all there is room for");
    let mut report =
        Report::new("memory", title, "bytes per session", &["MAP", "ELEMENTS", "kB", "PER SESSION"]);
    let sizes = sizes(options, capacity)?;
    let half_sizes = self::sizes(options, half)?;
    let total: u64 = sizes.iter().map(|size| size.bytes).sum();
    let less = total - half_sizes.iter().map(|size| size.bytes).sum::<u64>();
    let per_session = |bytes: u64| ratio(bytes, capacity);
    let (large, small): (Vec<&Size>, Vec<&Size>) =
        sizes.iter().partition(|size| ratio(size.bytes, 1) >= SMALL * ratio(total, 1));
    for Size { map, elements, bytes } in &large {
        let each = Samples::from(per_session(*bytes));
        report.line(&[map.clone(), elements.to_string(), (bytes / 1000).to_string(), format!("{each:.1}")]);
        report.control(map, &each);
    }
    let rest: u64 = small.iter().map(|size| size.bytes).sum();
    let name = format!("{} others", small.len());
    report.line(&[name, String::new(), (rest / 1000).to_string(), format!("{:.1}", per_session(rest))]);
    let all = Samples::from(per_session(total));
    report.line(&["all".to_owned(), String::new(), (total / 1000).to_string(), format!("{all:.1}")]);
    report.bar("gateway, all maps", &all);
    report.draw_limit(TARGET);
    report.at_most("bytes of kernel memory per session, all maps, at capacity", &all, TARGET);
    report.note(format!(
        "twice the capacity takes {:.1} bytes for each session more",
        ratio(less, capacity - half)
    ));
    report.note(format!("a connection of nft takes {}", conntrack()));
    report
        .note("the table of IPv6 sessions is empty: it has its buckets, and takes the rest as sessions come");
    sizes.iter().try_for_each(|size| report.value(size))?;
    Ok(report)
}

/// The sizes of all maps of a gateway full of sessions, the largest first.
fn sizes(options: &Options, capacity: u32) -> Result<Vec<Size>> {
    let mut single = Single::new(options, &format!("[capacity]\nsessions = {capacity}\n"))?;
    single.within(|single| single.probe.open_many(&single.daemon, capacity))?;
    let mut ids = BTreeSet::new();
    for program in programs_of(&single.daemon)? {
        ids.extend(program.map_ids()?.context("the kernel does not tell the maps of a program")?);
    }
    let mut sizes = ids.into_iter().map(size).collect::<Result<Vec<_>>>()?;
    sizes.sort_by_key(|size| std::cmp::Reverse(size.bytes));
    Ok(sizes)
}

fn size(id: u32) -> Result<Size> {
    let info = MapInfo::from_id(id)?;
    let map = info.name_as_str().unwrap_or("?").to_owned();
    let descriptor = info.fd()?;
    let path = format!("/proc/self/fdinfo/{}", std::os::fd::AsFd::as_fd(&descriptor).as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let field = text.lines().find_map(|line| line.strip_prefix("memlock:"));
    let bytes = field.and_then(|word| word.trim().parse().ok());
    let bytes = bytes.with_context(|| format!("the kernel does not tell the size of map {map}"))?;
    // A trie takes memory by element, and may have none.
    let counted = bytes > 0 || info.map_type()? == MapType::LpmTrie;
    ensure!(counted, "the kernel does not count the memory of map {map}: kernels before 6.4 do not");
    Ok(Size { map, elements: info.max_entries(), bytes })
}

/// What the kernel's connection tracking takes for a connection, in words.
fn conntrack() -> String {
    let slabs = fs::read_to_string("/proc/slabinfo").unwrap_or_default();
    let line = slabs.lines().find(|line| line.starts_with("nf_conntrack "));
    let size = line.and_then(|line| line.split_whitespace().nth(3));
    match size {
        Some(size) => format!(
            "an object of {size} bytes, its extensions (NAT, counters) and its part of the hash table"
        ),
        None => "an amount that this kernel does not tell".to_owned(),
    }
}

fn ratio(bytes: u64, sessions: u32) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let bytes = bytes as f64;
    bytes / f64::from(sessions)
}
