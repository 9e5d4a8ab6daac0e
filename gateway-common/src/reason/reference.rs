//! The reference page of drop reasons.

use std::{fmt::Write as _, fs, path::Path};

use super::{DropClass, DropReason};

const HEAD: &str = "\
# Drop reasons

<!-- Generated from gateway-common/src/reason.rs and the source of the packet path; to write it anew:
     UPDATE_REFERENCE=1 cargo test -p gateway-common --lib reference -->

Each packet that the gateway drops is counted under one reason: `gateway_drops_total{reason}` and
`gateway_drop_bytes_total{reason}`, `gwctl stats drops`, `gwctl status`. The sum over all reasons is verdict `drop` of
`gateway_packets_total`. Names and numbers are never changed, and the number of a retired reason is never used again.

A drop is silent, but for three reasons, at a limited rate: the sender of a `prohibited` packet gets a TCP reset or an
ICMP error \"administratively prohibited\", that of a `ttl_exceeded` packet \"time exceeded\", and that of an
`mtu_exceeded` packet \"fragmentation needed\" or \"packet too big\" with the MTU of the way out.

| number | reason | class | meaning |
|---|---|---|---|
";

/// Files that look at reasons and raise none.
const ONLY_MATCH: [&str; 2] = ["refuse.rs", "family.rs"];

/// The page.
fn reference() -> String {
    let sources = sources();
    let (used, reserved): (Vec<DropReason>, Vec<DropReason>) =
        DropReason::ALL.iter().partition(|reason| is_raised(&sources, **reason));
    let mut page = HEAD.to_owned();
    rows(&mut page, &used);
    page.push_str(
        "\n## Reserved\n\n\
         These have their numbers and are exported at 0; nothing in this version raises them.\n\n\
         | number | reason | class | meaning |\n|---|---|---|---|\n",
    );
    rows(&mut page, &reserved);
    page.push_str("\n## Classes\n\n| class | who can do something about it |\n|---|---|\n");
    for (class, who) in [
        (DropClass::Policy, "whoever writes the routes: the configuration asks for it"),
        (DropClass::Resource, "whoever sizes the gateway: a capacity is reached"),
        (DropClass::Limit, "whoever sets the limits: one of them is reached"),
        (DropClass::Packet, "the sender: the packet is not acceptable"),
        (DropClass::Network, "whoever runs the network around the gateway"),
        (DropClass::Internal, "whoever maintains the gateway: report it"),
    ] {
        let _ = writeln!(page, "| `{}` | {who} |", class.name());
    }
    page
}

fn rows(page: &mut String, reasons: &[DropReason]) {
    for reason in reasons {
        let (name, class) = (reason.name(), reason.class().name());
        let _ = writeln!(page, "| {} | `{name}` | {class} | {} |", *reason as u8, reason.help());
    }
}

/// Whether the packet path names `reason`.
fn is_raised(sources: &[String], reason: DropReason) -> bool {
    let words = format!("DropReason::{reason:?}");
    sources.iter().any(|text| {
        let ends = text.match_indices(&words).map(|(at, _)| &text[at + words.len()..]);
        ends.into_iter().any(|rest| !rest.starts_with(|next: char| next.is_ascii_alphanumeric()))
    })
}

/// The files of the packet path that may raise a reason.
fn sources() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directories = [root.join("../gateway-ebpf/src"), root.join("src")];
    let entries = directories.into_iter().flat_map(|path| fs::read_dir(path).expect("the sources are there"));
    entries
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| !ONLY_MATCH.iter().any(|name| path.ends_with(name)))
        .map(|path| fs::read_to_string(path).expect("a text"))
        .collect()
}

#[test]
fn reference_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/drop-reasons.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        fs::write(path, reference()).expect("the page can be written");
    }
    let page = fs::read_to_string(path).unwrap_or_default();
    assert!(
        page == reference(),
        "docs/reference/drop-reasons.md is stale: UPDATE_REFERENCE=1 cargo test -p gateway-common --lib reference"
    );
}
