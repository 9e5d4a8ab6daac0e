//! What the demo reads: JSON of gwctl, the metrics page, the logs of the servers.

use std::{collections::BTreeMap, fs};

use anyhow::{Context as _, Result};
use gateway_lab::Node;
use serde_json::Value;

use super::{Demo, stage::human};

/// A route and its counters.
#[derive(Clone, Debug)]
pub(crate) struct Route {
    pub(crate) prefix: String,
    pub(crate) via: String,
    pub(crate) packets: f64,
    pub(crate) bytes: f64,
}

impl Demo {
    /// Routes with their counters.
    pub(crate) fn routes(&self) -> Result<Vec<Route>> {
        let text = self.daemon.ok(&["--json", "route", "show", "--counters"])?;
        let list: Value = serde_json::from_str(&text).context("route show --json")?;
        let items = list["items"].as_array().context("no items in route show --json")?;
        let word = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
        let number = |item: &Value, key: &str| item[key].as_f64().unwrap_or_default();
        let route = |item: &Value| Route {
            prefix: word(item, "prefix"),
            via: word(item, "via"),
            packets: number(item, "packets"),
            bytes: number(item, "bytes"),
        };
        Ok(items.iter().map(route).collect())
    }

    /// The counters of one route.
    pub(crate) fn route(&self, prefix: &str) -> Result<Route> {
        let routes = self.routes()?;
        routes.into_iter().find(|route| route.prefix == prefix).with_context(|| format!("no route {prefix}"))
    }

    /// How many sessions there are.
    pub(crate) fn sessions(&self) -> Result<u64> {
        let list: Value = serde_json::from_str(&self.daemon.tell("--json session count")?)?;
        list["items"][0]["count"].as_u64().context("no count in session count --json")
    }

    /// Rows of a table of the sessions that carried most.
    pub(crate) fn session_rows(&self) -> Result<Vec<Vec<String>>> {
        let line = "--json session show sort bytes limit 3";
        let list: Value = serde_json::from_str(&self.daemon.tell(line)?).context("session show --json")?;
        let items = list["items"].as_array().context("no items in session show --json")?;
        let end = |item: &Value, key: &str| {
            format!("{}:{}", item[key]["address"].as_str().unwrap_or_default(), item[key]["port"])
        };
        let bytes = |item: &Value, key: &str| human(item[key]["bytes"].as_f64().unwrap_or_default());
        let row = |item: &Value| {
            vec![
                end(item, "source"),
                end(item, "translated"),
                end(item, "destination"),
                item["state"].as_str().unwrap_or_default().to_owned(),
                bytes(item, "sent"),
                bytes(item, "received"),
            ]
        };
        let head =
            ["SOURCE", "TRANSLATED", "DESTINATION", "STATE", "SENT", "RECEIVED"].map(str::to_owned).to_vec();
        Ok(std::iter::once(head).chain(items.iter().map(row)).collect())
    }

    /// Addresses from which a server was asked, in order, without their ports.
    pub(crate) fn seen_by(&self, server: &str) -> Result<Vec<String>> {
        let text = fs::read_to_string(self.server_log(server)).context("no log of the server")?;
        let clients =
            text.lines().filter_map(|line| Some(line.split(' ').next()?.rsplit_once(':')?.0.to_owned()));
        Ok(clients.collect())
    }

    /// UDP packets that arrived at a host and found the buffer of their socket full.
    pub(crate) fn unread(host: &Node) -> Result<f64> {
        let text = host.ok(&["cat", "/proc/net/snmp"])?;
        let mut lines = text.lines().filter(|line| line.starts_with("Udp:")).map(str::split_whitespace);
        let (names, values) = lines.next().zip(lines.next()).context("no UDP in /proc/net/snmp")?;
        let found = names.zip(values).find(|(name, _)| *name == "RcvbufErrors");
        found.and_then(|(_, value)| value.parse().ok()).context("no RcvbufErrors in /proc/net/snmp")
    }

    /// Every series of the gateway by name and labels.
    pub(crate) fn series(&self) -> Result<BTreeMap<String, f64>> {
        let page = self.daemon.metrics()?;
        let lines = page.lines().filter(|line| line.starts_with("gateway_"));
        Ok(lines
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect())
    }
}

/// Rows of a table of the routes that have been used: counters, and bits a second since `before`.
pub(crate) fn route_rows(before: &[Route], now: &[Route], seconds: f64) -> Vec<Vec<String>> {
    let head = ["ROUTE", "TARGET", "PACKETS", "BYTES", "BIT/S"].map(str::to_owned).to_vec();
    let rows = now.iter().filter(|route| route.packets > 0.0).map(|route| {
        let earlier = before.iter().find(|earlier| earlier.prefix == route.prefix);
        let rate = earlier.map_or(0.0, |earlier| (route.bytes - earlier.bytes) * 8.0 / seconds);
        vec![route.prefix.clone(), route.via.clone(), human(route.packets), human(route.bytes), human(rate)]
    });
    std::iter::once(head).chain(rows).collect()
}
