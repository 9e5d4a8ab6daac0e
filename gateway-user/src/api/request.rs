//! Requests, read into commands. Every refusal names the field of the request.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{
    ApiError,
    types::{
        BindingRequest, DrainRequest, EipRequest, GroupRequest, InterfaceRequest, LimitRequest, PoolRequest,
        ProxyDrainRequest, ProxyRequest, RouteFlush, RouteGet, RouteImport, RouteQuery, RouteRequest,
        RouteSelector, TableRequest, UsageQuery,
    },
};
use crate::{
    control::{Command, Entry, Import, LimitChanges, ProxyChanges},
    model::{
        Binding, Eip, Group, Interface, Limit, LimitChange, MAIN_TABLE, Mapping, PerDestination, Pool,
        PortRange, Proto, Proxy, ProxyMode, Refuse, RouteKey, RouteWords, Selector, TableKind, ValueError,
        prefix::{parse_address, parse_prefix},
        validate::check_name,
    },
};

/// Which routes `route show` shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// All of them.
    All,
    /// Those of exactly this prefix.
    Of(IpNet),
    /// Those of this prefix and of prefixes inside it.
    Within(IpNet),
    /// Those that cover this address.
    Covering(IpAddr),
}

/// What `route get` asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) address: IpAddr,
    pub(super) from: Option<IpAddr>,
    pub(super) proto: Option<Proto>,
    pub(super) dport: Option<u16>,
}

impl RouteRequest {
    pub(super) fn entry(&self) -> Result<Entry, ApiError> {
        let words = RouteWords {
            prefix: self.prefix.as_str().into(),
            via: self.via.as_str().into(),
            proto: self.proto.as_deref().map(Into::into),
            dport: self.dport.as_deref().map(Into::into),
            domain: self.domain.as_deref().map(Into::into),
            log: self.log,
            comment: self.comment.as_deref().map(Into::into),
        };
        let (key, route) = words.parse().map_err(about("route"))?;
        Ok(Entry { table: table(self.table.as_deref()), key, route })
    }
}

impl RouteSelector {
    pub(super) fn command(&self) -> Result<Command, ApiError> {
        let prefix = parse_prefix("prefix", &self.prefix).map_err(about("route"))?;
        let selector =
            Selector::parse(self.proto.as_deref(), self.dport.as_deref()).map_err(about("route"))?;
        Ok(Command::RouteDel { table: table(self.table.as_deref()), key: RouteKey { prefix, selector } })
    }
}

impl RouteImport {
    pub(super) fn command(&self, prefixes: BTreeSet<IpNet>) -> Result<Command, ApiError> {
        let target = self.via.parse().map_err(about("route"))?;
        let table = table(self.table.as_deref());
        Ok(Command::RouteImport(Arc::new(Import { table, target, prefixes, prune: self.prune })))
    }
}

impl RouteFlush {
    pub(super) fn command(self) -> Command {
        Command::RouteFlush { table: self.table }
    }
}

impl RouteQuery {
    pub(super) fn which(&self) -> Result<Which, ApiError> {
        match (&self.prefix, &self.within, &self.covering) {
            (None, None, None) => Ok(Which::All),
            (Some(of), None, None) => parse_prefix("prefix", of).map(Which::Of).map_err(about("route")),
            (None, Some(of), None) => parse_prefix("in", of).map(Which::Within).map_err(about("route")),
            (None, None, Some(of)) => parse_address("for", of).map(Which::Covering).map_err(about("route")),
            _ => Err(about("route")(
                ValueError::invalid("prefix", "a prefix, `in` and `for` exclude each other")
                    .hint("give one of them"),
            )),
        }
    }
}

impl RouteGet {
    pub(super) fn lookup(&self) -> Result<Lookup, ApiError> {
        let read = || {
            let proto = self.proto.as_deref().map(str::parse).transpose()?;
            let dport = self.dport.map(|port| PortRange { low: port, high: port });
            Selector { proto, dport }.check()?;
            let address = parse_address("address", &self.address)?;
            let from = self.from.as_deref().map(|from| parse_address("from", from)).transpose()?;
            if let Some(from) = from
                && from.is_ipv4() != address.is_ipv4()
            {
                return Err(ValueError::invalid(
                    "from",
                    format!("{from} and {address} are of different families"),
                )
                .hint("give two IPv4 or two IPv6 addresses"));
            }
            Ok(Lookup { address, from, proto, dport: self.dport })
        };
        read().map_err(about("route"))
    }
}

impl TableRequest {
    pub(super) fn command(&self, name: String) -> Result<Command, ApiError> {
        let kind = self.kind.as_deref().map_or(Ok(TableKind::Egress), str::parse).map_err(about("table"))?;
        Ok(Command::TableAdd { name, kind })
    }
}

impl BindingRequest {
    pub(super) fn binding(&self) -> Result<Binding, ApiError> {
        let source = parse_prefix("from", &self.from).map_err(about("binding"))?;
        if let Some(iif) = &self.iif {
            Interface::check_name(iif).map_err(|error| about("binding")(error.of("iif")))?;
        }
        Ok(Binding { source, iif: self.iif.clone() })
    }
}

impl PoolRequest {
    pub(super) fn add(&self, name: String) -> Result<Command, ApiError> {
        check_name("pool", &name).map_err(about("pool"))?;
        let addresses = self.addresses()?.unwrap_or_default();
        let ports = self.ports()?.unwrap_or(PortRange::POOL);
        let mapping = self.mapping()?.unwrap_or_default();
        let mss = self.mss()?.unwrap_or_default();
        let refuse = self.refuse()?.unwrap_or_default();
        let per_destination = self.limits().over(PerDestination::default());
        Ok(Command::PoolAdd(Pool {
            mapping,
            mss,
            refuse,
            per_destination,
            ..Pool::new(name, addresses, ports)
        }))
    }

    pub(super) fn set(&self, name: String) -> Result<Command, ApiError> {
        let (addresses, ports, mapping) = (self.addresses()?, self.ports()?, self.mapping()?);
        let (mss, refuse, limits) = (self.mss()?, self.refuse()?, self.limits());
        Ok(Command::PoolSet { name, addresses, ports, mapping, mss, refuse, limits })
    }

    fn addresses(&self) -> Result<Option<Vec<IpAddr>>, ApiError> {
        let Some(texts) = &self.addresses else { return Ok(None) };
        let parsed: Result<Vec<_>, _> = texts.iter().map(|text| Pool::parse_addresses(text)).collect();
        Ok(Some(parsed.map_err(about("pool"))?.concat()))
    }

    fn ports(&self) -> Result<Option<PortRange>, ApiError> {
        self.ports.as_deref().map(str::parse).transpose().map_err(about("pool"))
    }

    fn mapping(&self) -> Result<Option<Mapping>, ApiError> {
        self.mapping.as_deref().map(str::parse).transpose().map_err(about("pool"))
    }

    fn mss(&self) -> Result<Option<u16>, ApiError> {
        self.mss.map(|mss| Pool::mss(i64::from(mss))).transpose().map_err(about("pool"))
    }

    fn limits(&self) -> LimitChange {
        LimitChange { rate: self.rate, burst: self.burst, concurrent: self.concurrent }
    }

    fn refuse(&self) -> Result<Option<Refuse>, ApiError> {
        self.refuse.as_deref().map(str::parse).transpose().map_err(about("pool"))
    }
}

impl DrainRequest {
    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, ApiError> {
        let parsed: Result<Vec<_>, _> = self.address.split(',').map(Pool::parse_addresses).collect();
        parsed.map(|addresses| addresses.concat()).map_err(about("pool"))
    }
}

impl EipRequest {
    pub(super) fn command(&self, address: &str) -> Result<Command, ApiError> {
        let address = eip_address(address)?;
        let host = parse_address("host", &self.host).map_err(about("eip"))?;
        Ok(Command::EipAdd(Eip { address, host }))
    }
}

/// Reads the address that names an EIP.
pub(super) fn eip_address(text: &str) -> Result<IpAddr, ApiError> {
    parse_address("address", text).map_err(about("eip"))
}

impl ProxyRequest {
    pub(super) fn add(&self, name: String) -> Result<Command, ApiError> {
        check_name("proxy", &name).map_err(about("proxy"))?;
        let ProxyChanges { hosts, mode, check, interval, fail } = self.changes()?;
        Ok(Command::ProxyAdd(Proxy {
            mode: mode.unwrap_or_default(),
            check: check.unwrap_or_default(),
            interval: interval.unwrap_or(Proxy::INTERVAL),
            fail: fail.unwrap_or_default(),
            ..Proxy::new(name, hosts.unwrap_or_default())
        }))
    }

    pub(super) fn set(&self, name: String) -> Result<Command, ApiError> {
        Ok(Command::ProxySet { name, changes: self.changes()? })
    }

    fn changes(&self) -> Result<ProxyChanges, ApiError> {
        let read = || {
            let parse = |hosts: &Vec<String>| hosts.iter().map(|host| host.trim().parse()).collect();
            let hosts: Result<_, ValueError> = self.hosts.as_ref().map(parse).transpose();
            let named = self.mode.is_some() || self.vni.is_some();
            let mode =
                named.then(|| ProxyMode::parse(self.mode.as_deref(), self.vni.map(i64::from))).transpose()?;
            let check = self.check.as_deref().map(str::parse).transpose()?;
            let interval = self.interval.as_deref().map(duration).transpose()?;
            let fail = self.fail.as_deref().map(str::parse).transpose()?;
            Ok(ProxyChanges { hosts: hosts?, mode, check, interval, fail })
        };
        read().map_err(about("proxy"))
    }
}

impl ProxyDrainRequest {
    pub(super) fn hosts(&self) -> Result<Vec<IpAddr>, ApiError> {
        let parsed: Result<_, _> =
            self.host.split(',').map(|host| parse_address("host", host.trim())).collect();
        parsed.map_err(about("proxy"))
    }
}

impl LimitRequest {
    pub(super) fn add(&self, name: String) -> Result<Command, ApiError> {
        check_name("limit", &name).map_err(about("limit"))?;
        let LimitChanges { from, per, bounds } = self.changes()?;
        let Some(from) = from else {
            let error = ValueError::invalid("from", format!("limit `{name}` is for nobody"));
            return Err(about("limit")(error.hint("add `from PREFIX`")));
        };
        let mut limit = Limit { per: per.unwrap_or_default(), ..Limit::new(name, from) };
        limit.change(&bounds);
        Ok(Command::LimitAdd(limit))
    }

    pub(super) fn set(&self, name: String) -> Result<Command, ApiError> {
        Ok(Command::LimitSet { name, changes: self.changes()? })
    }

    fn changes(&self) -> Result<LimitChanges, ApiError> {
        let read = || {
            let from = self.from.as_deref().map(|from| parse_prefix("from", from)).transpose()?;
            let per = self.per.as_deref().map(str::parse).transpose()?;
            let bounds = LimitChange { rate: self.rate, burst: self.burst, concurrent: self.concurrent };
            Ok(LimitChanges { from, per, bounds })
        };
        read().map_err(about("limit"))
    }
}

impl GroupRequest {
    pub(super) fn add(&self, name: String) -> Result<Command, ApiError> {
        check_name("group", &name).map_err(about("group"))?;
        Ok(Command::GroupAdd(Group { name, prefixes: self.prefixes()? }))
    }

    pub(super) fn set(&self, name: String) -> Result<Command, ApiError> {
        Ok(Command::GroupSet { name, prefixes: self.prefixes()? })
    }

    fn prefixes(&self) -> Result<Vec<IpNet>, ApiError> {
        let parse = |text: &String| parse_prefix("prefixes", text.trim());
        self.prefixes.iter().map(parse).collect::<Result<_, _>>().map_err(about("group"))
    }
}

impl UsageQuery {
    pub(super) fn since(&self) -> Result<Option<Duration>, ApiError> {
        let read = |seconds| {
            Duration::try_from_secs_f64(seconds).map_err(|_| {
                let message = format!("`{seconds}` is no number of seconds");
                about("stats")(ValueError::invalid("since", message).hint("write it as in 3600"))
            })
        };
        self.since.map(read).transpose()
    }
}

fn duration(text: &str) -> Result<Duration, ValueError> {
    humantime::parse_duration(text).map_err(|_| {
        ValueError::invalid("interval", format!("`{text}` is not a time")).hint("write it as in 500ms or 5s")
    })
}

impl InterfaceRequest {
    pub(super) fn command(&self, name: String) -> Result<Command, ApiError> {
        let read = || {
            let role = self.role.parse()?;
            let mode = self.mode.as_deref().map(str::parse).transpose()?.unwrap_or_default();
            Ok(Interface { name, role, mode })
        };
        read().map(Command::InterfaceAdd).map_err(about("interface"))
    }
}

/// Turns a refused value into an error about `noun`.
pub(super) fn about(noun: &'static str) -> impl Fn(ValueError) -> ApiError {
    move |error| ApiError::value(noun, error)
}

fn table(name: Option<&str>) -> String {
    name.unwrap_or(MAIN_TABLE).to_owned()
}
