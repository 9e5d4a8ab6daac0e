//! Sysctls of the host that stand in the gateway's way.

use std::{fs, io, path::Path};

use ipnet::IpNet;

use crate::{api::types::Notice, dataplane::Link};

/// What is set so that packets do not get through, for the gateway's interfaces.
///
/// `bpf_fib_lookup` looks up no route for packets from an interface whose `forwarding` is off, in either
/// family (`bpf_ipv4_fib_lookup` in net/core/filter.c). Inside interfaces ask for the client's packets, outside
/// ones for the replies.
pub fn forwarding<'a>(links: impl IntoIterator<Item = (&'a str, &'a Link)>) -> Vec<Notice> {
    notices(Path::new("/proc/sys"), links)
}

fn notices<'a>(root: &Path, links: impl IntoIterator<Item = (&'a str, &'a Link)>) -> Vec<Notice> {
    let read = |key: &str| read(root, key);
    let everywhere = read("net/ipv4/conf/all/rp_filter").unwrap_or(0);
    let mut found = Vec::new();
    for (name, link) in links {
        for (family, word) in [("ipv4", "IPv4"), ("ipv6", "IPv6")] {
            let used = link.addresses.iter().any(|address| match address {
                IpNet::V4(_) => family == "ipv4",
                IpNet::V6(net) => family == "ipv6" && !net.addr().is_unicast_link_local(),
            });
            let key = format!("net/{family}/conf/{name}/forwarding");
            if used && read(&key) == Some(0) {
                found.push(Notice {
                    message: format!("{word} packets from {name} find no way out: forwarding is off there"),
                    hint: Some(format!("sysctl -w {key}=1")),
                });
            }
        }
        // The larger value of both is in force; 1 is strict, 2 is loose.
        let key = format!("net/ipv4/conf/{name}/rp_filter");
        let strict = read(&key).map(|own| own.max(everywhere)) == Some(1);
        if strict {
            found.push(Notice {
                message: format!(
                    "rp_filter is strict on {name}: the host's own stack drops packets whose source it would \
                     answer through another interface"
                ),
                hint: Some(format!("sysctl -w {key}=2, where paths are asymmetric")),
            });
        }
    }
    found
}

/// The value of a sysctl; `None` if there is none, as without IPv6.
fn read(root: &Path, key: &str) -> Option<i64> {
    match fs::read_to_string(root.join(key)) {
        Ok(text) => text.trim().parse().ok(),
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::debug!(key, %error, "cannot read a sysctl");
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(addresses: &[&str]) -> Link {
        let addresses = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        Link { index: 2, mac: [2, 0, 0, 0, 0, 1], mtu: 1500, up: true, addresses }
    }

    /// What is said about `eth1` with these sysctls.
    fn said(link: &Link, sysctls: &[(&str, &str)]) -> Vec<Notice> {
        let root = tempfile::tempdir().expect("a directory");
        for (key, value) in sysctls {
            let path = root.path().join(key);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, format!("{value}\n")).expect("a file");
        }
        notices(root.path(), [("eth1", link)])
    }

    #[test]
    fn forwarding_that_is_off_is_named_with_the_command_that_turns_it_on() {
        let link = link(&["10.0.1.1/24"]);
        let off = said(&link, &[("net/ipv4/conf/eth1/forwarding", "0")]);
        assert_eq!(off.len(), 1);
        assert_eq!(off[0].message, "IPv4 packets from eth1 find no way out: forwarding is off there");
        assert_eq!(off[0].hint.as_deref(), Some("sysctl -w net/ipv4/conf/eth1/forwarding=1"));
        assert_eq!(said(&link, &[("net/ipv4/conf/eth1/forwarding", "1")]), []);
    }

    #[test]
    fn a_family_without_addresses_needs_no_forwarding() {
        let off = [("net/ipv6/conf/eth1/forwarding", "0")];
        assert_eq!(said(&link(&["10.0.1.1/24", "fe80::1/64"]), &off), []);
        assert_eq!(said(&link(&["2001:db8::1/64"]), &off).len(), 1);
    }

    #[test]
    fn the_larger_rp_filter_is_in_force() {
        let link = link(&["10.0.1.1/24"]);
        let of = |all, own| {
            said(&link, &[("net/ipv4/conf/all/rp_filter", all), ("net/ipv4/conf/eth1/rp_filter", own)]).len()
        };
        assert_eq!([of("0", "0"), of("0", "1"), of("1", "0"), of("2", "1"), of("1", "2")], [0, 1, 1, 0, 0]);
    }
}
