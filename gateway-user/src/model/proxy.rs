//! Proxies: hosts that packets are sent through, unchanged.

use std::{collections::BTreeSet, fmt, net::IpAddr, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    error::{ValueError, suggest},
    prefix::parse_address,
};

/// A set of hosts that share the work.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proxy {
    /// Name.
    pub name: String,
    /// Hosts, in the order given; never empty.
    pub hosts: Vec<ProxyHost>,
    /// Those of the hosts, by address, that get no new flows.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub drained: BTreeSet<IpAddr>,
    /// How packets reach a host.
    #[serde(default)]
    pub mode: ProxyMode,
    /// How it is found out whether a host is up.
    #[serde(default)]
    pub check: Check,
    /// Time between two checks of a host.
    pub interval: Duration,
    /// What happens to packets while no host is up.
    #[serde(default)]
    pub fail: Fail,
}

/// A host of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyHost {
    /// Its own address. Packets of both families go to it.
    pub address: IpAddr,
    /// Its share of the flows, relative to the other hosts; at least 1.
    pub weight: u16,
}

/// How packets reach a host of a proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyMode {
    /// In a frame to its MAC address: the host is on a link of the gateway.
    #[default]
    L2,
    /// In VXLAN (RFC 7348) with this network identifier.
    Vxlan {
        /// VXLAN network identifier, 24 bits.
        vni: u32,
    },
    /// In Geneve (RFC 8926) with this network identifier.
    Geneve {
        /// Virtual network identifier, 24 bits.
        vni: u32,
    },
}

/// How it is found out whether a host of a proxy is up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Check {
    /// It accepts TCP connections to this port.
    Tcp(u16),
    /// It answers ICMP echo requests.
    Icmp,
    /// It is taken to be up.
    #[default]
    None,
}

/// What happens to packets of a proxy none of whose hosts is up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Fail {
    /// They are dropped.
    #[default]
    Closed,
    /// They are forwarded, source unchanged.
    Direct,
    /// Their source is translated to an address of the pool.
    Pool(String),
    /// They are sent through another proxy.
    Proxy(String),
}

impl Proxy {
    /// Time between two checks unless told otherwise.
    pub const INTERVAL: Duration = Duration::from_secs(1);

    /// A proxy of these hosts, with the defaults for everything else.
    pub fn new(name: impl Into<String>, hosts: Vec<ProxyHost>) -> Self {
        Self {
            name: name.into(),
            hosts,
            drained: BTreeSet::new(),
            mode: ProxyMode::default(),
            check: Check::default(),
            interval: Self::INTERVAL,
            fail: Fail::default(),
        }
    }

    /// Whether the address is that of one of its hosts.
    pub fn has(&self, address: IpAddr) -> bool {
        self.hosts.iter().any(|host| host.address == address)
    }
}

impl ProxyHost {
    /// A host with the same share as others.
    pub fn new(address: IpAddr) -> Self {
        Self { address, weight: 1 }
    }
}

impl ProxyMode {
    /// The words for all modes.
    const WORDS: [&'static str; 3] = ["l2", "vxlan", "geneve"];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::L2 => "l2",
            Self::Vxlan { .. } => "vxlan",
            Self::Geneve { .. } => "geneve",
        }
    }

    /// The network identifier of a tunnel.
    pub fn vni(self) -> Option<u32> {
        match self {
            Self::L2 => None,
            Self::Vxlan { vni } | Self::Geneve { vni } => Some(vni),
        }
    }

    /// Reads the two fields; each may be absent.
    pub fn parse(mode: Option<&str>, vni: Option<i64>) -> Result<Self, ValueError> {
        let mode = mode.unwrap_or("l2");
        let number = vni.map(|vni| u32::try_from(vni).ok().filter(|vni| *vni < 1 << 24));
        let tunnel = |of: fn(u32) -> Self| match number {
            Some(Some(number)) => Ok(of(number)),
            Some(None) => Err(ValueError::invalid(
                "vni",
                format!("{} is not a network identifier", vni.unwrap_or_default()),
            )
            .hint(format!("from 0 to {}", (1 << 24) - 1))),
            None => Err(ValueError::invalid("vni", format!("mode `{mode}` needs a network identifier"))
                .hint(format!("write `mode {mode} vni N`"))),
        };
        match mode {
            "l2" => match vni {
                None => Ok(Self::L2),
                Some(vni) => {
                    Err(ValueError::invalid("vni", format!("vni {vni} makes no sense without a tunnel"))
                        .hint("leave it out: mode `l2` has no network identifier"))
                }
            },
            "vxlan" => tunnel(|vni| Self::Vxlan { vni }),
            "geneve" => tunnel(|vni| Self::Geneve { vni }),
            _ => Err(ValueError::invalid("mode", format!("`{mode}` is not a mode of a proxy"))
                .hint(suggest(mode, Self::WORDS))),
        }
    }
}

impl fmt::Display for ProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        self.vni().map_or(Ok(()), |vni| write!(f, " vni {vni}"))
    }
}

impl fmt::Display for ProxyHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, weight } = self;
        if *weight == 1 { write!(f, "{address}") } else { write!(f, "{address} weight {weight}") }
    }
}

/// `ADDR [weight N]`
impl FromStr for ProxyHost {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let words: Vec<_> = text.split_whitespace().collect();
        match words[..] {
            [address] => Ok(Self::new(parse_address("hosts", address)?)),
            [address, "weight", weight] => {
                let weight = weight.parse().map_err(|_| {
                    ValueError::invalid("hosts", format!("`{weight}` is not a weight"))
                        .hint("a weight is a whole number: a host with 2 gets twice the flows of one with 1")
                })?;
                Ok(Self { address: parse_address("hosts", address)?, weight })
            }
            _ => Err(ValueError::invalid("hosts", format!("`{text}` is not a host"))
                .hint("write `ADDR` or `ADDR weight N`")),
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "tcp:{port}"),
            Self::Icmp => f.write_str("icmp"),
            Self::None => f.write_str("none"),
        }
    }
}

impl FromStr for Check {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "icmp" => Ok(Self::Icmp),
            "none" => Ok(Self::None),
            _ => text
                .strip_prefix("tcp:")
                .and_then(|port| port.parse().ok())
                .filter(|port| *port != 0)
                .map(Self::Tcp)
                .ok_or_else(|| {
                    ValueError::invalid("check", format!("`{text}` is not a check"))
                        .hint("write `tcp:PORT` with a port from 1 to 65535, `icmp` or `none`")
                }),
        }
    }
}

impl fmt::Display for Fail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("closed"),
            Self::Direct => f.write_str("direct"),
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Proxy(name) => write!(f, "proxy {name}"),
        }
    }
}

impl FromStr for Fail {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let words: Vec<_> = text.split_whitespace().collect();
        match words[..] {
            ["closed"] => Ok(Self::Closed),
            ["direct"] => Ok(Self::Direct),
            ["pool", name] => Ok(Self::Pool(name.to_owned())),
            ["proxy", name] => Ok(Self::Proxy(name.to_owned())),
            _ => {
                Err(ValueError::invalid("fail", format!("`{text}` is not what a proxy can do when it fails"))
                    .hint(suggest(
                        words.first().copied().unwrap_or_default(),
                        ["closed", "direct", "pool NAME", "proxy NAME"],
                    )))
            }
        }
    }
}

impl TryFrom<String> for Check {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<Check> for String {
    fn from(check: Check) -> Self {
        check.to_string()
    }
}

impl TryFrom<String> for Fail {
    type Error = ValueError;

    fn try_from(text: String) -> Result<Self, ValueError> {
        text.parse()
    }
}

impl From<Fail> for String {
    fn from(fail: Fail) -> Self {
        fail.to_string()
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("tcp:3128")]
    #[case("icmp")]
    #[case("none")]
    fn a_check_reads_back_as_it_is_written(#[case] text: &str) {
        assert_eq!(text.parse::<Check>().expect("a check").to_string(), text);
    }

    #[rstest]
    #[case("10.0.1.2")]
    #[case("2001:db8::2 weight 7")]
    fn a_host_reads_back_as_it_is_written(#[case] text: &str) {
        assert_eq!(text.parse::<ProxyHost>().expect("a host").to_string(), text);
    }

    #[rstest]
    #[case("10.0.1")]
    #[case("10.0.1.2 2")]
    #[case("10.0.1.2 weight")]
    #[case("10.0.1.2 weight -1")]
    #[case("10.0.1.2 weight 70000")]
    fn a_bad_host_is_named(#[case] text: &str) {
        let error = text.parse::<ProxyHost>().expect_err("refused");
        assert!(error.message.contains(text.rsplit(' ').next().unwrap_or_default()), "{error:?}");
        assert!(error.field == "hosts" && error.hint.is_some(), "{error:?}");
    }

    #[test]
    fn a_tunnel_has_a_network_identifier_and_a_link_has_none() {
        assert_eq!(ProxyMode::parse(None, None), Ok(ProxyMode::L2));
        assert_eq!(ProxyMode::parse(Some("vxlan"), Some(7)), Ok(ProxyMode::Vxlan { vni: 7 }));
        assert_eq!(ProxyMode::parse(Some("geneve"), Some(7)).expect("a mode").to_string(), "geneve vni 7");
        for (mode, vni) in [(None, Some(7)), (Some("vxlan"), None), (Some("vxlan"), Some(1 << 24))] {
            assert_eq!(ProxyMode::parse(mode, vni).expect_err("refused").field, "vni");
        }
        let error = ProxyMode::parse(Some("vxlna"), Some(7)).expect_err("refused");
        assert_eq!((error.field, error.hint.as_deref()), ("mode", Some("did you mean `vxlan`?")));
    }

    #[rstest]
    #[case("closed")]
    #[case("direct")]
    #[case("pool nat")]
    #[case("proxy other")]
    fn what_happens_on_failure_reads_back_as_it_is_written(#[case] text: &str) {
        assert_eq!(text.parse::<Fail>().expect("a way to fail").to_string(), text);
    }

    #[rstest]
    #[case("tcp")]
    #[case("tcp:0")]
    #[case("tcp:70000")]
    #[case("http:80")]
    fn a_bad_check_is_named(#[case] text: &str) {
        let error = text.parse::<Check>().expect_err("refused");
        assert!(error.message.contains(text) && error.hint.is_some(), "{error:?}");
    }
}
