//! The access log: what is recorded, and where records go.

use std::{collections::BTreeSet, fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Target, error::ValueError};

/// The access log of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// Where records go.
    pub path: Sink,
    /// Whether all routes are recorded, whatever they say.
    #[serde(default)]
    pub all: bool,
    /// Tables all routes of which are recorded, whatever they say.
    #[serde(default)]
    pub tables: BTreeSet<String>,
    /// Records in a second; 0: any number. Those above are lost, and counted.
    #[serde(default)]
    pub max_rate: u32,
    /// Bytes of a file from which on the next one begins.
    pub max_size: u64,
    /// Age of a file from which on the next one begins.
    pub max_age: Duration,
    /// Files that are kept beside the one that is written.
    pub keep: u32,
    /// When a file is synced to the disk.
    pub fsync: Fsync,
}

/// Where records go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sink {
    /// Into a file, a line each.
    File(PathBuf),
    /// Into the journal of systemd.
    Journal,
    /// To a collector, as IPFIX over UDP.
    Ipfix(SocketAddr),
}

/// When a file is synced to the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fsync {
    /// When the kernel does, and when a file is full.
    Never,
    /// At most so long after a record was written.
    Every(Duration),
    /// After every batch of records, about ten times a second.
    #[default]
    Always,
}

impl AccessLog {
    /// Largest number of files that are kept.
    pub const MAX_KEEP: u32 = 10_000;
    /// Smallest size of a file, bytes.
    pub const MIN_SIZE: u64 = 4_096;

    /// The log of that sink, with everything else as it is where nothing is said.
    pub fn new(path: Sink) -> Self {
        Self {
            path,
            all: false,
            tables: BTreeSet::new(),
            max_rate: 0,
            max_size: 100 << 20,
            max_age: Duration::from_hours(24),
            keep: 30,
            fsync: Fsync::Every(Duration::from_secs(1)),
        }
    }

    /// Whether sessions and drops of a route of `table` are recorded that itself says `log`.
    pub fn records(&self, table: &str, log: bool) -> bool {
        log || self.all || self.tables.contains(table)
    }
}

impl Target {
    /// Whether there is something to record of a route to it: sessions, or packets that it drops.
    pub fn is_recordable(&self) -> bool {
        match self {
            Self::Pool(_) | Self::Proxy(_) | Self::Blackhole | Self::Prohibit => true,
            Self::Direct | Self::Gateway { .. } | Self::Eip | Self::Host => false,
        }
    }
}

impl FromStr for Sink {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let refuse = |message: String| ValueError::invalid("path", message);
        if let Some(collector) = text.strip_prefix("udp://") {
            return collector.parse().map(Self::Ipfix).map_err(|_| {
                refuse(format!("`{collector}` is no address and port of a collector"))
                    .hint("write udp://192.0.2.1:4739 or udp://[2001:db8::1]:4739")
            });
        }
        if text == "journal" {
            return Ok(Self::Journal);
        }
        let path = PathBuf::from(text);
        if !path.is_absolute() || path.file_name().is_none() {
            return Err(refuse(format!("`{text}` is no place for an access log"))
                .hint("give the whole path of a file, such as /var/log/gateway/access.jsonl, `journal` or udp://ADDR:PORT"));
        }
        Ok(Self::File(path))
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Journal => f.write_str("journal"),
            Self::Ipfix(collector) => write!(f, "udp://{collector}"),
        }
    }
}

impl FromStr for Fsync {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "never" => Ok(Self::Never),
            "always" => Ok(Self::Always),
            text => humantime::parse_duration(text).map(Self::Every).map_err(|_| {
                ValueError::invalid("fsync", format!("`{text}` does not say when to sync"))
                    .hint("write `never`, `always` or a time such as `1s`")
            }),
        }
    }
}

impl fmt::Display for Fsync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Never => f.write_str("never"),
            Self::Always => f.write_str("always"),
            Self::Every(time) => write!(f, "{}", humantime::format_duration(*time)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_whole_path_the_journal_or_a_collector() {
        let sink: Sink = "/var/log/gateway/access.jsonl".parse().expect("a path");
        assert_eq!(sink.to_string(), "/var/log/gateway/access.jsonl");
        let sink: Sink = "udp://[2001:db8::1]:4739".parse().expect("a collector");
        assert_eq!(sink.to_string(), "udp://[2001:db8::1]:4739");
        assert_eq!("journal".parse::<Sink>().expect("the journal"), Sink::Journal);
        for wrong in ["access.jsonl", "/", "journald", "udp://192.0.2.1", ""] {
            assert!(wrong.parse::<Sink>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn words_for_syncing_are_read_as_they_are_written() {
        for text in ["never", "always", "1s", "1m 30s"] {
            assert_eq!(text.parse::<Fsync>().expect("a word").to_string(), text);
        }
        assert!("sometimes".parse::<Fsync>().is_err());
    }

    #[test]
    fn a_route_is_recorded_for_its_own_sake_or_for_that_of_its_table() {
        let mut log = AccessLog::new(Sink::File("/tmp/log".into()));
        assert!(log.records("main", true) && !log.records("main", false));
        log.tables.insert("main".to_owned());
        assert!(log.records("main", false) && !log.records("servers", false));
        log.all = true;
        assert!(log.records("servers", false));
    }
}
