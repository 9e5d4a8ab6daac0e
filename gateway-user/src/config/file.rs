//! The form of the configuration file, with the place of every value that can be wrong.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::ConfigError;
use crate::model::{RouteWords, ValueError, error::unknown_field};

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    #[serde(default)]
    pub(super) gateway: Gateway,
    #[serde(default)]
    pub(super) capacity: Capacity,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) interface: Vec<Interface>,
    #[serde(default)]
    pub(super) pool: Vec<Pool>,
    #[serde(default)]
    pub(super) eip: Vec<Eip>,
    #[serde(default)]
    pub(super) proxy: Vec<Proxy>,
    #[serde(default)]
    pub(super) table: Vec<Table>,
    pub(super) access_log: Option<AccessLog>,
    #[serde(default)]
    pub(super) limit: Vec<Limit>,
    #[serde(default)]
    pub(super) group: Vec<Group>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Gateway {
    pub(super) name: Option<Spanned<String>>,
    pub(super) state: Option<Spanned<String>>,
    pub(super) metrics: Option<Spanned<String>>,
    pub(super) no_session: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Capacity {
    pub(super) sessions: Option<Spanned<i64>>,
    pub(super) routes: Option<Spanned<i64>>,
    pub(super) half_open: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Timeouts {
    pub(super) tcp_established: Option<Spanned<String>>,
    pub(super) tcp_opening: Option<Spanned<String>>,
    pub(super) tcp_closing: Option<Spanned<String>>,
    pub(super) udp: Option<Spanned<String>>,
    pub(super) udp_dns: Option<Spanned<String>>,
    pub(super) icmp: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AccessLog {
    pub(super) path: Spanned<String>,
    #[serde(default)]
    pub(super) all: bool,
    #[serde(default)]
    pub(super) tables: Vec<Spanned<String>>,
    pub(super) max_rate: Option<u32>,
    pub(super) max_size: Option<Spanned<String>>,
    pub(super) max_age: Option<Spanned<String>>,
    pub(super) keep: Option<Spanned<u32>>,
    pub(super) fsync: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Interface {
    pub(super) name: Spanned<String>,
    pub(super) role: Spanned<String>,
    pub(super) mode: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pool {
    pub(super) name: Spanned<String>,
    pub(super) addresses: Vec<Spanned<String>>,
    pub(super) ports: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) drained: Vec<Spanned<String>>,
    pub(super) mapping: Option<Spanned<String>>,
    pub(super) mss: Option<Spanned<i64>>,
    pub(super) per_destination: Option<Spanned<PerDestination>>,
    pub(super) refuse: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PerDestination {
    pub(super) rate: Option<u32>,
    pub(super) burst: Option<u32>,
    pub(super) concurrent: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Eip {
    pub(super) address: Spanned<String>,
    pub(super) host: Spanned<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Proxy {
    pub(super) name: Spanned<String>,
    pub(super) hosts: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) drained: Vec<Spanned<String>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) vni: Option<Spanned<i64>>,
    pub(super) check: Option<Spanned<String>>,
    pub(super) interval: Option<Spanned<String>>,
    pub(super) fail: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Limit {
    pub(super) name: Spanned<String>,
    pub(super) from: Spanned<String>,
    pub(super) per: Option<Spanned<String>>,
    pub(super) rate: Option<Spanned<u32>>,
    pub(super) burst: Option<Spanned<u32>>,
    pub(super) concurrent: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Group {
    pub(super) name: Spanned<String>,
    pub(super) prefixes: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Table {
    pub(super) name: Spanned<String>,
    pub(super) kind: Option<Spanned<String>>,
    #[serde(default)]
    pub(super) bind: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) routes: Vec<Spanned<Route>>,
    pub(super) routes_file: Option<Spanned<PathBuf>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Route {
    to: String,
    via: String,
    proto: Option<String>,
    dport: Option<String>,
    domain: Option<String>,
    #[serde(default)]
    log: bool,
    comment: Option<String>,
}

/// The text of a file, for places in it.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl File {
    /// Reads the form; the values are not looked at.
    pub(super) fn parse(source: &Source<'_>) -> Result<Self, ConfigError> {
        let syntax = |error: &toml::de::Error| {
            let start = error.span().map_or(0, |span| span.start);
            let mut refused = source.error(start, "", error.message().lines().next().unwrap_or_default());
            refused.key = None;
            refused.hint("the file has to be TOML: see https://toml.io")
        };
        let deserializer = toml::Deserializer::parse(source.text).map_err(|error| syntax(&error))?;
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let start = error.inner().span().map_or(0, |span| span.start);
            source.form(start, &key(error.path()), error.inner().message())
        })
    }
}

impl Route {
    pub(super) fn words(&self) -> RouteWords<'_> {
        RouteWords {
            prefix: self.to.as_str().into(),
            via: self.via.as_str().into(),
            proto: self.proto.as_deref().map(Into::into),
            dport: self.dport.as_deref().map(Into::into),
            domain: self.domain.as_deref().map(Into::into),
            log: self.log,
            comment: self.comment.as_deref().map(Into::into),
        }
    }
}

impl Source<'_> {
    /// The line of a byte, from 1.
    pub(super) fn line(&self, at: usize) -> usize {
        self.text.get(..at).unwrap_or_default().matches('\n').count() + 1
    }

    /// An error at a byte.
    pub(super) fn error(&self, at: usize, key: &str, message: impl Into<String>) -> ConfigError {
        let line = Some(self.line(at));
        ConfigError { line, key: Some(key.to_owned()), ..ConfigError::of_file(self.path, message) }
    }

    /// A refused value at a byte.
    pub(super) fn value(&self, at: usize, key: &str, error: ValueError) -> ConfigError {
        ConfigError { hint: error.hint, ..self.error(at, key, error.message) }
    }

    /// A name that was there before.
    pub(super) fn twice(&self, noun: &str, name: &Spanned<String>) -> ConfigError {
        let message = format!("{noun} `{}` is there twice", name.get_ref());
        self.error(name.span().start, &format!("{noun}.name"), message).hint("choose another name")
    }

    /// What serde says about the form.
    fn form(&self, at: usize, key: &str, message: &str) -> ConfigError {
        if let Some((field, hint)) = unknown_field(message) {
            return self.error(at, key, format!("`{field}` is not a key here")).hint(hint);
        }
        if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
            let key = if key.is_empty() { field.to_owned() } else { format!("{key}.{field}") };
            return self
                .error(at, &key, format!("`{field}` is missing"))
                .hint(format!("add `{field} = ...`"));
        }
        let error = self.error(at, key, message.replace("expected i64", "expected a whole number"));
        if message.ends_with("expected a string") {
            error.hint("write it in quotes")
        } else {
            error.hint("the sample gateway.toml shows every key and its values")
        }
    }
}

/// The keys of a path, without the numbers of array elements and what `Spanned` adds.
fn key(path: &serde_path_to_error::Path) -> String {
    let keys: Vec<_> = path
        .iter()
        .filter_map(|segment| match segment {
            serde_path_to_error::Segment::Map { key } if !key.starts_with("$__") => Some(key.as_str()),
            serde_path_to_error::Segment::Map { .. }
            | serde_path_to_error::Segment::Seq { .. }
            | serde_path_to_error::Segment::Enum { .. }
            | serde_path_to_error::Segment::Unknown => None,
        })
        .collect();
    keys.join(".")
}
