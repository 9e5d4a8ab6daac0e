//! A real Prometheus scrapes a gateway that real traffic goes through: the dashboard shows it, and the rules are evaluated.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use gateway_lab::{Node, Process, Rig, UdpClient, server::Server, skip, wait_until};
use serde_json::Value;
use tempfile::TempDir;

/// What the panels show: a pool, a proxy whose host is up, a limit, a group.
const CONFIG: &str = r#"
[[pool]]
name = "nat"
addresses = ["198.51.100.10"]
[[proxy]]
name = "proxy"
hosts = ["10.0.3.2"]
check = "icmp"
interval = "1s"
[[limit]]
name = "clients"
from = "10.0.1.0/24"
concurrent = 1000
[[group]]
name = "clients"
prefixes = ["10.0.1.0/24"]
[[table]]
name = "main"
routes = [{ to = "203.0.113.0/24", via = "pool nat" }, { to = "192.0.2.20/32", via = "proxy proxy" }]
"#;

/// Address of its web interface, in the namespace of the gateway.
const LISTEN: &str = "127.0.0.1:9090";

/// How long it may take until everything has data. A rate needs two scrapes.
const PATIENCE: Duration = Duration::from_mins(1);

/// A Prometheus beside the gateway, with the rules that are delivered, quicker than in life.
struct Prometheus<'a> {
    node: &'a Node,
    _process: Process,
    _directory: TempDir,
}

impl<'a> Prometheus<'a> {
    fn start(node: &'a Node) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let delivered = fs::read_to_string(deploy().join("prometheus/prometheus.yml"))?;
        let rules = deploy().join("prometheus/gateway.rules.yml");
        let config =
            delivered.replace("15s", "1s").replace("gateway.rules.yml", &rules.display().to_string());
        ensure!(config.contains("scrape_interval: 1s"), "prometheus.yml is another one:\n{delivered}");
        let file = directory.path().join("prometheus.yml");
        fs::write(&file, config)?;
        let process = node.spawn_logged(
            &[
                "prometheus",
                &format!("--config.file={}", file.display()),
                &format!("--storage.tsdb.path={}", directory.path().join("data").display()),
                &format!("--web.listen-address={LISTEN}"),
            ],
            &directory.path().join("log"),
        )?;
        let prometheus = Self { node, _process: process, _directory: directory };
        wait_until("Prometheus", PATIENCE, || prometheus.get("query", Some("1")).is_ok())?;
        Ok(prometheus)
    }

    /// Asks its API.
    fn get(&self, what: &str, query: Option<&str>) -> Result<Value> {
        let mut words = vec!["curl", "-sS", "--get", "--max-time", "10"];
        let url = format!("http://{LISTEN}/api/v1/{what}");
        let query = query.map(|query| format!("query={query}"));
        words.extend(query.iter().flat_map(|query| ["--data-urlencode", query]));
        words.push(&url);
        let mut answer: Value = serde_json::from_str(&self.node.ok(&words)?)?;
        ensure!(answer["status"] == "success", "{what} {query:?}: {answer}");
        Ok(answer["data"].take())
    }

    /// Whether there is anything to see.
    fn has_data(&self, query: &str) -> Result<bool> {
        let data = self.get("query", Some(query))?;
        Ok(data["result"].as_array().is_some_and(|series| !series.is_empty()))
    }
}

#[test]
fn every_query_of_the_dashboard_has_data_and_every_rule_is_evaluated() -> Result<()> {
    if Command::new("prometheus").arg("--version").output().is_err() {
        skip("prometheus is not installed");
        return Ok(());
    }
    let Some(rig) = Rig::start("active", CONFIG)? else { return Ok(()) };
    let _server = Server::http(&rig.lab.api, "203.0.113.10:80".parse()?)?;
    let stray = UdpClient::new(&rig.lab.c1, "10.0.1.2:5000")?;
    let prometheus = Prometheus::start(&rig.lab.gw)?;
    let mut wanted = queries()?;
    ensure!(wanted.len() >= 15, "the dashboard has {wanted:?} only");
    wanted.extend(recorded(&prometheus)?);
    let end = Instant::now() + PATIENCE;
    while !wanted.is_empty() {
        ensure!(Instant::now() < end, "there is nothing to see of {wanted:#?}");
        // As in the demo: what a route allows, and what none does.
        rig.lab.c1.ok(&["curl", "-sS", "--max-time", "5", "-o", "/dev/null", "http://203.0.113.10/1000"])?;
        stray.ask_in_vain("192.0.2.10:53")?;
        let mut missing = Vec::new();
        for query in wanted {
            if !prometheus.has_data(&query)? {
                missing.push(query);
            }
        }
        wanted = missing;
    }
    let mut unhealthy = Vec::new();
    let healthy = wait_until("all rules", PATIENCE, || {
        unhealthy = rules(&prometheus).unwrap_or_default();
        unhealthy.retain(|rule| rule["health"] != "ok");
        unhealthy.is_empty()
    });
    healthy.with_context(|| format!("{unhealthy:#?}"))?;
    // Nothing is wrong with it.
    let firing = prometheus.get("query", Some("ALERTS{severity=\"critical\"}"))?;
    assert_eq!(firing["result"], serde_json::json!([]));
    Ok(())
}

/// What the panels ask, of all gateways and for a short time.
fn queries() -> Result<Vec<String>> {
    let dashboard = fs::read_to_string(deploy().join("grafana/gateway.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().context("a target without a query"));
    queries.map(|query| Ok(query?.replace("$instance", ".*").replace("$__rate_interval", "10s"))).collect()
}

/// All rules, as Prometheus sees them.
fn rules(prometheus: &Prometheus<'_>) -> Result<Vec<Value>> {
    let rules = prometheus.get("rules", None)?;
    let groups = rules["groups"].as_array().context("no groups")?;
    let rules: Vec<Value> =
        groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect();
    ensure!(rules.len() >= 15, "only {} rules", rules.len());
    Ok(rules)
}

/// Names of what is recorded.
fn recorded(prometheus: &Prometheus<'_>) -> Result<Vec<String>> {
    let rules = rules(prometheus)?.into_iter().filter(|rule| rule["type"] == "recording");
    rules.map(|rule| rule["name"].as_str().map(str::to_owned).context("a rule without a name")).collect()
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}
