//! Counters by name, so that those of the programs and those of the model can be compared.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use gateway_common::{DropReason, Verdict, counter::Counter};
use gateway_user::{
    dataplane::Observe,
    model::{RouteKey, Target},
};

/// What has been counted; zeros are absent.
///
/// Names are `traffic in0 > out0 snat`, `drops no_route`, `route main 0.0.0.0/0`, `table main pool`,
/// `pool nat 198.51.100.10 attempts`, `sessions tcp created`, `limit a admitted`, `events lost`. The last four kinds do not
/// count bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, Counter>);

impl Counters {
    /// Reads those of the data plane.
    pub fn read(observe: &dyn Observe) -> anyhow::Result<Self> {
        let mut counters = Self::default();
        for cell in observe.traffic()? {
            counters.add(traffic(&cell.ingress, cell.egress.as_deref(), cell.verdict), cell.counter);
        }
        for (reason, counter) in observe.drops()? {
            counters.add(drops(reason), counter);
        }
        for ((table, key), counter) in observe.routes()? {
            counters.add(route(&table, &key), counter);
        }
        for ((table, target), counter) in observe.tables()? {
            counters.add(format!("table {table} {target}"), counter);
        }
        for address in observe.pools()? {
            let counted = address.counters;
            for (what, number) in [
                ("attempts", counted.attempts),
                ("established", counted.established),
                ("allocation_errors", counted.allocation_errors),
                ("over_rate", counted.over_rate),
                ("over_concurrent", counted.over_concurrent),
                ("idle_timeouts", counted.idle_timeouts),
                ("opened", counted.opened),
                ("closed", counted.closed),
            ] {
                counters.count(format!("pool {} {} {what}", address.pool, address.address), number);
            }
        }
        for (class, counted) in observe.session_counters()? {
            for (what, number) in [
                ("created", counted.created),
                ("closed", counted.closed),
                ("expired", counted.expired),
                ("killed", counted.killed),
            ] {
                counters.count(format!("sessions {} {what}", class.name()), number);
            }
        }
        for limit in observe.limits()? {
            for (what, number) in [
                ("admitted", limit.counters.admitted),
                ("over_rate", limit.counters.over_rate),
                ("over_concurrent", limit.counters.over_concurrent),
            ] {
                counters.count(format!("limit {} {what}", limit.name), number);
            }
        }
        counters.count("events lost".to_owned(), observe.events_lost()?);
        Ok(counters)
    }

    /// Adds packets and bytes to a counter.
    pub fn add(&mut self, name: String, counter: Counter) {
        if counter != Counter::default() {
            self.0.entry(name).or_default().add(counter);
        }
    }

    /// Adds to a counter that has no bytes.
    pub fn count(&mut self, name: String, number: u64) {
        self.add(name, Counter { packets: number, bytes: 0 });
    }

    /// Adds a packet of this many bytes to a counter.
    pub fn packet(&mut self, name: String, bytes: usize) {
        self.add(name, Counter { packets: 1, bytes: bytes as u64 });
    }

    /// What was added since `earlier`. A counter that went down shows up as a huge number.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = Self::default();
        for (name, counter) in &self.0 {
            let before = earlier.0.get(name).copied().unwrap_or_default();
            let packets = counter.packets.wrapping_sub(before.packets);
            let bytes = counter.bytes.wrapping_sub(before.bytes);
            since.add(name.clone(), Counter { packets, bytes });
        }
        for (name, counter) in earlier.0.iter().filter(|(name, _)| !self.0.contains_key(*name)) {
            let (packets, bytes) = (counter.packets.wrapping_neg(), counter.bytes.wrapping_neg());
            since.add(name.clone(), Counter { packets, bytes });
        }
        since
    }

    /// Adds all of them to `sum`.
    pub fn add_to(&self, sum: &mut Self) {
        self.0.iter().for_each(|(name, counter)| sum.add(name.clone(), *counter));
    }

    /// How many packets the counter of this name has.
    pub fn packets(&self, name: &str) -> u64 {
        self.0.get(name).map_or(0, |counter| counter.packets)
    }

    /// Those whose names `keep` accepts.
    pub fn filter(&self, keep: impl Fn(&str) -> bool) -> Self {
        let kept = self.0.iter().filter(|(name, _)| keep(name));
        Self(kept.map(|(name, counter)| (name.clone(), *counter)).collect())
    }

    /// Under other names. Those that get the same one are added up.
    pub fn rename(&self, name: impl Fn(&str) -> String) -> Self {
        let mut renamed = Self::default();
        self.0.iter().for_each(|(old, counter)| renamed.add(name(old), *counter));
        renamed
    }

    /// With every value changed by `change`.
    pub fn map(&self, change: impl Fn(&str, Counter) -> Counter) -> Self {
        Self(self.0.iter().map(|(name, counter)| (name.clone(), change(name, *counter))).collect())
    }

    /// Where `actual` differs, a line each; empty if nowhere.
    pub fn differences(&self, actual: &Self) -> String {
        let names: BTreeSet<&str> = self.0.keys().chain(actual.0.keys()).map(String::as_str).collect();
        let value = |counters: &Self, name: &str| counters.0.get(name).copied().unwrap_or_default();
        let differing = names.into_iter().filter(|name| value(self, name) != value(actual, name));
        let lines = differing.map(|name| {
            let (expected, got) = (Shown(value(self, name)), Shown(value(actual, name)));
            format!("  {name}: expected {expected}, got {got}\n")
        });
        lines.collect::<Vec<_>>().concat()
    }
}

/// The name of a cell of the traffic matrix.
pub fn traffic(ingress: &str, egress: Option<&str>, verdict: Verdict) -> String {
    format!("traffic {ingress} > {} {}", egress.unwrap_or("-"), verdict.name())
}

/// The name of a drop counter.
pub fn drops(reason: DropReason) -> String {
    format!("drops {}", reason.name())
}

/// The name of a route's counter.
pub fn route(table: &str, key: &RouteKey) -> String {
    format!("route {table} {key}")
}

/// The name of the counter of a table's routes with this kind of target.
pub fn table(table: &str, target: &Target) -> String {
    format!("table {table} {}", target.kind())
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(name, counter)| writeln!(f, "  {name}: {}", Shown(*counter)))
    }
}

struct Shown(Counter);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counter { packets, bytes } = self.0;
        if bytes == 0 { write!(f, "{packets}") } else { write!(f, "{packets} ({bytes} bytes)") }
    }
}
