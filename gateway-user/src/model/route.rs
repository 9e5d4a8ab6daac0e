//! Routes: what happens to packets for a destination.

use std::{borrow::Cow, fmt, net::IpAddr, str::FromStr};

use gateway_common::parse::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    PortRange,
    error::{ValueError, suggest},
    prefix::{check_unicast, parse_address, parse_prefix},
};

/// A protocol that routes can select.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP, and `ICMPv6` for IPv6 prefixes.
    Icmp,
}

/// What else than the destination must match. The default matches everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Protocol.
    pub proto: Option<Proto>,
    /// Destination ports; needs TCP or UDP.
    pub dport: Option<PortRange>,
}

/// What identifies a route within its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    /// Destination prefix, host bits zero.
    pub prefix: IpNet,
    /// Further conditions.
    pub selector: Selector,
}

/// What a route does with a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// Forward, source unchanged.
    Direct,
    /// Translate the source to an address of the pool.
    Pool(String),
    /// Translate the source to its own EIP.
    Eip,
    /// Send through a host of the proxy, unchanged.
    Proxy(String),
    /// Forward to that router.
    Gateway {
        /// The router.
        address: IpAddr,
        /// The interface it is reached through, if the host's routing table is not to decide.
        dev: Option<String>,
    },
    /// Drop.
    Blackhole,
    /// Drop and tell the client.
    Prohibit,
    /// Hand to the host's own stack.
    Host,
}

/// What a route does, and what is said about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// What happens.
    pub target: Target,
    /// Whether its sessions are logged, and what it denies.
    pub log: bool,
    /// The operator's words.
    pub comment: Option<String>,
}

/// A route in the operator's words, field by field, whether they came from a file, a line or a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteWords<'a> {
    /// Destination prefix.
    pub prefix: Cow<'a, str>,
    /// Target.
    pub via: Cow<'a, str>,
    /// Protocol.
    pub proto: Option<Cow<'a, str>>,
    /// Destination ports.
    pub dport: Option<Cow<'a, str>>,
    /// Destination names; not supported.
    pub domain: Option<Cow<'a, str>>,
    /// Whether it is logged.
    pub log: bool,
    /// The operator's words.
    pub comment: Option<Cow<'a, str>>,
}

/// Longest comment of a route, in bytes.
const MAX_COMMENT: usize = 256;

impl RouteWords<'_> {
    /// Reads every field.
    pub fn parse(&self) -> Result<(RouteKey, Route), ValueError> {
        if let Some(domain) = &self.domain {
            return Err(ValueError::unsupported(
                "domain",
                format!("routes for a domain (`{domain}`) are not supported by this version"),
            )
            .hint("route the prefixes that the domain resolves to"));
        }
        let key = RouteKey {
            prefix: parse_prefix("prefix", &self.prefix)?,
            selector: Selector::parse(self.proto.as_deref(), self.dport.as_deref())?,
        };
        let target: Target = self.via.parse()?;
        if self.log && !target.is_recordable() {
            let message = format!("route {key} cannot be logged: `{target}` keeps no sessions");
            return Err(ValueError::invalid("log", message)
                .hint("leave out `log`, or send it through a pool or a proxy"));
        }
        if let Some(comment) = &self.comment {
            check_comment(comment)?;
        }
        let comment = self.comment.as_deref().map(str::to_owned);
        Ok((key, Route { target, log: self.log, comment }))
    }
}

impl Proto {
    /// Every protocol.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Icmp];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        }
    }

    /// The protocol with this IP protocol number, if routes can select it.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            PROTO_TCP => Some(Self::Tcp),
            PROTO_UDP => Some(Self::Udp),
            PROTO_ICMP | PROTO_ICMPV6 => Some(Self::Icmp),
            _ => None,
        }
    }
}

impl Selector {
    /// Whether it matches everything.
    pub fn is_any(self) -> bool {
        self == Self::default()
    }

    /// Reads the two fields; each may be absent.
    pub fn parse(proto: Option<&str>, dport: Option<&str>) -> Result<Self, ValueError> {
        let proto = proto.map(str::parse).transpose()?;
        let dport = dport.map(|ports| ports.parse().map_err(|error: ValueError| error.of("dport")));
        let selector = Self { proto, dport: dport.transpose()? };
        selector.check()?;
        Ok(selector)
    }

    /// Refuses ports without a protocol that has them.
    pub fn check(self) -> Result<(), ValueError> {
        match (self.dport, self.proto) {
            (None, _) | (Some(_), Some(Proto::Tcp | Proto::Udp)) => Ok(()),
            (Some(ports), None) => {
                Err(ValueError::invalid("dport", format!("dport {ports} needs a protocol that has ports"))
                    .hint("add `proto tcp` or `proto udp`"))
            }
            (Some(ports), Some(Proto::Icmp)) => {
                Err(ValueError::invalid("dport", format!("dport {ports} makes no sense for icmp"))
                    .hint("use `proto tcp` or `proto udp`, or leave out dport"))
            }
        }
    }

    /// Whether a packet of `proto` to `port` matches; `None`: the packet has none that could be selected.
    pub fn matches(self, proto: Option<Proto>, port: Option<u16>) -> bool {
        self.proto.is_none_or(|wanted| proto == Some(wanted))
            && self.dport.is_none_or(|wanted| port.is_some_and(|port| wanted.contains(port)))
    }

    /// Sort key of the routes of one prefix: the one that comes first is asked first. Fewer ports win over
    /// more, any ports over none, and a protocol over none.
    pub fn precedence(self) -> (bool, u32) {
        (self.proto.is_none(), self.dport.map_or(u32::MAX, PortRange::count))
    }
}

impl Target {
    /// The first words of all targets.
    const WORDS: [&'static str; 8] = Self::KINDS;

    /// What [`Target::kind`] may say.
    pub const KINDS: [&'static str; 8] =
        ["direct", "pool", "eip", "proxy", "gateway", "blackhole", "prohibit", "host"];

    /// The word of the target, without its object: the `target` label of metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Pool(_) => "pool",
            Self::Eip => "eip",
            Self::Proxy(_) => "proxy",
            Self::Gateway { .. } => "gateway",
            Self::Blackhole => "blackhole",
            Self::Prohibit => "prohibit",
            Self::Host => "host",
        }
    }

    /// Reads a target from the front of `words`; also says how many words it took.
    pub fn from_words<W: AsRef<str>>(words: &[W]) -> Result<(Self, usize), ValueError> {
        let word = |at: usize| words.get(at).map(AsRef::as_ref);
        let object = |what: &str, example: &str| {
            word(1).ok_or_else(|| {
                ValueError::invalid("via", format!("target `{what}` needs {example}"))
                    .hint(format!("write `via {what} {}`", example.rsplit(' ').next().unwrap_or_default()))
            })
        };
        match word(0) {
            None => Err(ValueError::invalid("via", "the target is missing")
                .hint(format!("one of {}", Self::WORDS.join(", ")))),
            Some("direct") => Ok((Self::Direct, 1)),
            Some("eip") => Ok((Self::Eip, 1)),
            Some("blackhole") => Ok((Self::Blackhole, 1)),
            Some("prohibit") => Ok((Self::Prohibit, 1)),
            Some("host") => Ok((Self::Host, 1)),
            Some("pool") => Ok((Self::Pool(object("pool", "the name of a pool: NAME")?.to_owned()), 2)),
            Some("proxy") => Ok((Self::Proxy(object("proxy", "the name of a proxy: NAME")?.to_owned()), 2)),
            Some("gateway") => {
                let address = parse_address("via", object("gateway", "the address of a router: ADDR")?)?;
                check_unicast("via", address)?;
                if word(2) != Some("dev") {
                    return Ok((Self::Gateway { address, dev: None }, 2));
                }
                let dev = word(3).ok_or_else(|| {
                    ValueError::invalid("via", "`dev` needs the name of an interface")
                        .hint(format!("write `via gateway {address} dev IF`"))
                })?;
                Ok((Self::Gateway { address, dev: Some(dev.to_owned()) }, 4))
            }
            Some(word) => Err(ValueError::invalid("via", format!("`{word}` is not a target"))
                .hint(suggest(word, Self::WORDS))),
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix)?;
        if let Some(proto) = self.selector.proto {
            write!(f, " proto {proto}")?;
        }
        if let Some(dport) = self.selector.dport {
            write!(f, " dport {dport}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct | Self::Eip | Self::Blackhole | Self::Prohibit | Self::Host => {
                f.write_str(self.kind())
            }
            Self::Pool(name) => write!(f, "pool {name}"),
            Self::Proxy(name) => write!(f, "proxy {name}"),
            Self::Gateway { address, dev: None } => write!(f, "gateway {address}"),
            Self::Gateway { address, dev: Some(dev) } => write!(f, "gateway {address} dev {dev}"),
        }
    }
}

impl FromStr for Proto {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::ALL.into_iter().find(|proto| proto.name() == text).ok_or_else(|| {
            ValueError::invalid("proto", format!("`{text}` is not a protocol that routes can select"))
                .hint(suggest(text, Self::ALL.map(Self::name)))
        })
    }
}

impl FromStr for Target {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let words: Vec<_> = text.split_whitespace().collect();
        let (target, taken) = Self::from_words(&words)?;
        match words.get(taken) {
            None => Ok(target),
            Some(word) => Err(ValueError::invalid("via", format!("`{word}` is too much after `{target}`"))
                .hint("a target is one of `direct`, `pool NAME`, `eip`, `proxy NAME`, `gateway ADDR [dev IF]`, `blackhole`, \
                       `prohibit`, `host`")),
        }
    }
}

fn check_comment(comment: &str) -> Result<(), ValueError> {
    if comment.len() > MAX_COMMENT {
        return Err(ValueError::invalid("comment", format!("comment has {} bytes", comment.len()))
            .hint(format!("at most {MAX_COMMENT}")));
    }
    if comment.chars().any(char::is_control) {
        return Err(ValueError::invalid("comment", "comment has line breaks or control characters")
            .hint("write it in one line"));
    }
    Ok(())
}

/// Routes as a list, the form they have in the state directory.
pub(crate) mod as_list {
    use std::fmt;

    use serde::{
        Deserialize, Deserializer, Serialize, Serializer,
        de::{Error, SeqAccess, Visitor},
    };

    use super::{Cow, RouteWords};
    use crate::model::Routes;

    #[derive(Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Entry<'a> {
        #[serde(borrow)]
        to: Cow<'a, str>,
        #[serde(borrow)]
        via: Cow<'a, str>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proto: Option<Cow<'a, str>>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dport: Option<Cow<'a, str>>,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        log: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        comment: Option<Cow<'a, str>>,
    }

    pub(crate) fn serialize<S: Serializer>(routes: &Routes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(routes.iter().map(|(key, route)| Entry {
            to: key.prefix.to_string().into(),
            via: route.target.to_string().into(),
            proto: key.selector.proto.map(|proto| proto.name().into()),
            dport: key.selector.dport.map(|ports| ports.to_string().into()),
            log: route.log,
            comment: route.comment.as_deref().map(Cow::from),
        }))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Routes, D::Error> {
        deserializer.deserialize_seq(List)
    }

    /// Reads one after the other: a list beside the routes would take as much room again.
    struct List;

    impl<'de> Visitor<'de> for List {
        type Value = Routes;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of routes")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Routes, A::Error> {
            let mut routes = Routes::default();
            while let Some(Entry { to, via, proto, dport, log, comment }) = list.next_element()? {
                let words = RouteWords { prefix: to, via, proto, dport, domain: None, log, comment };
                let (key, route) = words.parse().map_err(A::Error::custom)?;
                if routes.insert(key, route).is_some() {
                    return Err(A::Error::custom(format!("route {key} appears twice")));
                }
            }
            Ok(routes)
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::error::Fault;

    #[rstest]
    #[case("direct")]
    #[case("pool nat")]
    #[case("eip")]
    #[case("proxy squid")]
    #[case("gateway 10.0.1.2")]
    #[case("gateway 2001:db8::2 dev eth1")]
    #[case("blackhole")]
    #[case("prohibit")]
    #[case("host")]
    fn a_target_reads_back_as_it_is_written(#[case] text: &str) {
        assert_eq!(text.parse::<Target>().expect("a target").to_string(), text);
    }

    #[rstest]
    #[case("", "the target is missing")]
    #[case("pool", "target `pool` needs the name of a pool")]
    #[case("proxy", "target `proxy` needs the name of a proxy")]
    #[case("gateway", "target `gateway` needs the address of a router")]
    #[case("gateway nat", "`nat` is not an IP address")]
    #[case("gateway 224.0.0.1", "`224.0.0.1` is a multicast address")]
    #[case("gateway 10.0.1.2 dev", "`dev` needs the name of an interface")]
    #[case("pool nat log", "`log` is too much after `pool nat`")]
    #[case("direkt", "`direkt` is not a target")]
    fn a_bad_target_is_named(#[case] text: &str, #[case] message: &str) {
        let error = text.parse::<Target>().expect_err("refused");
        assert!(error.message.contains(message), "{error:?}");
        assert!(error.hint.is_some());
        assert_eq!(error.fault, Fault::Invalid);
    }

    #[rstest]
    #[case(None, Some("443"), "dport 443 needs a protocol")]
    #[case(Some("icmp"), Some("443"), "dport 443 makes no sense for icmp")]
    #[case(Some("sctp"), None, "`sctp` is not a protocol")]
    #[case(Some("tcp"), Some("70000"), "`70000` is not a port")]
    #[case(Some("tcp"), Some("20-10"), "port range `20-10` ends before it begins")]
    fn a_bad_selector_is_named(
        #[case] proto: Option<&str>,
        #[case] dport: Option<&str>,
        #[case] message: &str,
    ) {
        let error = Selector::parse(proto, dport).expect_err("refused");
        assert!(error.message.contains(message), "{error:?}");
        assert!(matches!(error.field, "dport" | "proto"));
    }
}
