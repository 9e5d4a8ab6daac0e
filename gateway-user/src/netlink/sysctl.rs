//! Settings of the host that stand in the gateway's way.

use std::{fs, io, path::Path};

use ipnet::IpNet;

use crate::{api::types::Notice, dataplane::Link};

/// What is wrong with the settings of the gateway's interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sysctls {
    /// The gateway cannot do its work.
    pub problems: Vec<Notice>,
    /// Some packets may not get where they should.
    pub warnings: Vec<Notice>,
}

impl Sysctls {
    /// Reads what is set for `links`, the interfaces of the gateway by name.
    ///
    /// `bpf_fib_lookup` finds no route for packets from an interface whose `forwarding` is off, in either
    /// family (`bpf_ipv4_fib_lookup` in net/core/filter.c). Inside interfaces ask for the clients' packets,
    /// outside ones for the replies. An interface may have IPv6 addresses though nobody wants the gateway to
    /// forward IPv6, so there it is a warning.
    pub fn read<'a>(links: impl IntoIterator<Item = (&'a str, &'a Link)>) -> Self {
        Self::below(Path::new("/proc/sys"), links)
    }

    fn below<'a>(root: &Path, links: impl IntoIterator<Item = (&'a str, &'a Link)>) -> Self {
        let everywhere = value(root, "net/ipv4/conf/all/rp_filter").unwrap_or(0);
        let mut found = Self::default();
        for (name, link) in links {
            let no_way_out = |family: &str, key: String| Notice {
                message: format!("{family} packets from {name} find no way out: forwarding is off there"),
                hint: Some(format!("sysctl -w {key}=1")),
            };
            let has_v4 = link.addresses.iter().any(|net| matches!(net, IpNet::V4(_)));
            let key = format!("net/ipv4/conf/{name}/forwarding");
            if has_v4 && value(root, &key) == Some(0) {
                found.problems.push(no_way_out("IPv4", key));
            }
            let has_v6 = link
                .addresses
                .iter()
                .any(|net| matches!(net, IpNet::V6(net) if !net.addr().is_unicast_link_local()));
            let key = format!("net/ipv6/conf/{name}/forwarding");
            if has_v6 && value(root, &key) == Some(0) {
                found.warnings.push(no_way_out("IPv6", key));
            }
            // The larger value of both is in force; 1 is strict, 2 is loose.
            let key = format!("net/ipv4/conf/{name}/rp_filter");
            if value(root, &key).map(|own| own.max(everywhere)) == Some(1) {
                found.warnings.push(Notice {
                    message: format!(
                        "rp_filter is strict on {name}: the host's own stack drops packets whose source it \
                         would answer through another interface"
                    ),
                    hint: Some(format!("sysctl -w {key}=2, where paths are asymmetric")),
                });
            }
        }
        found
    }
}

/// The value of a sysctl; `None` if there is none, as without IPv6.
fn value(root: &Path, key: &str) -> Option<i64> {
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
        Link { index: 2, mac: [2, 0, 0, 0, 0, 1], mtu: 1500, up: true, veth: false, addresses }
    }

    /// What is said about `eth1` with these sysctls.
    fn said(link: &Link, sysctls: &[(&str, &str)]) -> Sysctls {
        let root = tempfile::tempdir().expect("a directory");
        for (key, value) in sysctls {
            let path = root.path().join(key);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, format!("{value}\n")).expect("a file");
        }
        Sysctls::below(root.path(), [("eth1", link)])
    }

    #[test]
    fn forwarding_that_is_off_is_named_with_the_command_that_turns_it_on() {
        let link = link(&["10.0.1.1/24"]);
        let off = said(&link, &[("net/ipv4/conf/eth1/forwarding", "0")]);
        let notice = Notice {
            message: "IPv4 packets from eth1 find no way out: forwarding is off there".to_owned(),
            hint: Some("sysctl -w net/ipv4/conf/eth1/forwarding=1".to_owned()),
        };
        assert_eq!(off, Sysctls { problems: vec![notice], warnings: Vec::new() });
        assert_eq!(said(&link, &[("net/ipv4/conf/eth1/forwarding", "1")]), Sysctls::default());
    }

    #[test]
    fn a_family_without_addresses_needs_no_forwarding() {
        let off = [("net/ipv4/conf/eth1/forwarding", "0"), ("net/ipv6/conf/eth1/forwarding", "0")];
        assert_eq!(said(&link(&["fe80::1/64"]), &off), Sysctls::default());
        assert_eq!(said(&link(&["2001:db8::1/64"]), &off).warnings.len(), 1);
    }

    #[test]
    fn the_larger_rp_filter_is_in_force() {
        let link = link(&["10.0.1.1/24"]);
        let of = |all, own| {
            let sysctls = [("net/ipv4/conf/all/rp_filter", all), ("net/ipv4/conf/eth1/rp_filter", own)];
            said(&link, &sysctls).warnings.len()
        };
        assert_eq!([of("0", "0"), of("0", "1"), of("1", "0"), of("2", "1"), of("1", "2")], [0, 1, 1, 0, 0]);
    }
}
