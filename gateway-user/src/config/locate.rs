//! Where in the files a fault of the whole state comes from.

use toml::Spanned;

use super::{
    ConfigError, RouteLine,
    file::{File, Source},
};
use crate::model::{Subject, ValueError, Violation, words};

/// The violation as an error at its place.
pub(super) fn locate(
    source: &Source<'_>,
    file: &File,
    lines: &[RouteLine],
    violation: Violation,
) -> ConfigError {
    let Violation { subject, error } = violation;
    let field = error.field;
    let (at, key) = match &*subject {
        Subject::Gateway => gateway(file, field),
        Subject::Interface(name) => {
            let interface = file.interface.iter().find(|interface| interface.name.get_ref() == name);
            (interface.map(|interface| start(&interface.name)), format!("interface.{field}"))
        }
        Subject::Pool(name) => {
            let pool = file.pool.iter().find(|pool| pool.name.get_ref() == name);
            let at = pool.map(|pool| match field {
                // The message names the address; its line is that of the first text that contains it.
                "addresses" => pool
                    .addresses
                    .iter()
                    .find(|text| error.message.contains(text.get_ref().as_str()))
                    .or(pool.addresses.first())
                    .map_or(start(&pool.name), start),
                "drained" => pool.drained.first().map_or(start(&pool.name), start),
                "ports" => pool.ports.as_ref().map_or(start(&pool.name), start),
                "mss" => pool.mss.as_ref().map_or(start(&pool.name), start),
                _ => start(&pool.name),
            });
            (at, format!("pool.{field}"))
        }
        Subject::Eip(address) => {
            let eip = file.eip.iter().find(|eip| eip.address.get_ref().parse() == Ok(*address));
            let at = eip.map(|eip| start(if field == "host" { &eip.host } else { &eip.address }));
            (at, format!("eip.{field}"))
        }
        Subject::Proxy(name) => {
            let proxy = file.proxy.iter().find(|proxy| proxy.name.get_ref() == name);
            let at = proxy.map(|proxy| {
                let one = match field {
                    "drained" => proxy.drained.first(),
                    "mode" => proxy.mode.as_ref(),
                    "check" => proxy.check.as_ref(),
                    "interval" => proxy.interval.as_ref(),
                    "fail" => proxy.fail.as_ref(),
                    // The message names the host.
                    "hosts" => proxy.hosts.iter().rfind(|text| {
                        let address = text.get_ref().split(' ').next().unwrap_or_default();
                        error.message.split([' ', '`']).any(|word| word == address)
                    }),
                    _ => None,
                };
                one.map_or(start(&proxy.name), start)
            });
            (at, format!("proxy.{field}"))
        }
        Subject::Limit(name) => {
            let limit = file.limit.iter().find(|limit| limit.name.get_ref() == name);
            let at = limit.map(|limit| {
                let number = match field {
                    "rate" => limit.rate.as_ref(),
                    "burst" => limit.burst.as_ref(),
                    "concurrent" => limit.concurrent.as_ref(),
                    _ => None,
                };
                let text = if field == "from" { &limit.from } else { &limit.name };
                number.map_or(start(text), start)
            });
            (at, format!("limit.{field}"))
        }
        Subject::Group(name) => group(file, name, &error),
        Subject::Table(name) => {
            let table = file.table.iter().find(|table| table.name.get_ref() == name);
            let at = table.map(|table| match &table.kind {
                Some(kind) if field == "kind" => start(kind),
                _ => start(&table.name),
            });
            (at, format!("table.{field}"))
        }
        Subject::Binding(name, binding) => {
            let table = file.table.iter().find(|table| table.name.get_ref() == name);
            let at = table.and_then(|table| {
                table.bind.iter().find(|text| words::parse_binding(text.get_ref()).as_ref() == Ok(binding))
            });
            (at.map(start), "table.bind".to_owned())
        }
        Subject::Route(name, key) => {
            if let Some(line) = lines.iter().find(|line| line.table == *name && line.key == *key) {
                return ConfigError::in_line(&line.path, line.line, error);
            }
            let table = file.table.iter().find(|table| table.name.get_ref() == name);
            let at = table.and_then(|table| {
                let is_it = |entry: &Spanned<super::file::Route>| {
                    entry.get_ref().words().parse().is_ok_and(|(entry_key, _)| entry_key == *key)
                };
                table.routes.iter().find(|entry| is_it(entry))
            });
            let field = if field == "prefix" { "to" } else { field };
            (at.map(start), format!("table.routes.{field}"))
        }
    };
    match at {
        Some(at) => source.value(at, &key, error),
        None => ConfigError { line: None, ..source.value(0, &key, error) },
    }
}

fn gateway(file: &File, field: &'static str) -> (Option<usize>, String) {
    let text = |section: &str, value: &Option<Spanned<String>>| {
        (value.as_ref().map(start), format!("{section}.{field}"))
    };
    let number = |value: &Option<Spanned<i64>>| (value.as_ref().map(start), format!("capacity.{field}"));
    match field {
        "sessions" => number(&file.capacity.sessions),
        "routes" => number(&file.capacity.routes),
        "half_open" => number(&file.capacity.half_open),
        "tcp_established" => text("timeouts", &file.timeouts.tcp_established),
        "tcp_opening" => text("timeouts", &file.timeouts.tcp_opening),
        "tcp_closing" => text("timeouts", &file.timeouts.tcp_closing),
        "udp" => text("timeouts", &file.timeouts.udp),
        "udp_dns" => text("timeouts", &file.timeouts.udp_dns),
        "icmp" => text("timeouts", &file.timeouts.icmp),
        _ => text("gateway", &file.gateway.name),
    }
}

fn group(file: &File, name: &str, error: &ValueError) -> (Option<usize>, String) {
    let group = file.group.iter().find(|group| group.name.get_ref() == name);
    let at = group.map(|group| {
        // The message names the prefix.
        let named = |text: &&Spanned<String>| error.message.split(' ').any(|word| word == text.get_ref());
        let text = group.prefixes.iter().rfind(named).filter(|_| error.field == "prefixes");
        start(text.unwrap_or(&group.name))
    });
    (at, format!("group.{}", error.field))
}

fn start<T>(value: &Spanned<T>) -> usize {
    value.span().start
}
