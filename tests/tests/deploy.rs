//! What is installed on a host is right: the sample configuration, and the unit as far as it can be checked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use gateway_lab::{program, skip};

#[test]
fn the_sample_configuration_is_accepted() -> Result<()> {
    check(&deploy().join("gateway.toml"))
}

#[test]
fn the_sample_configuration_is_accepted_with_its_optional_settings() -> Result<()> {
    let text = fs::read_to_string(deploy().join("gateway.toml"))?;
    let directory = std::env::temp_dir().join(format!("gw-deploy-{}", std::process::id()));
    fs::create_dir_all(&directory)?;
    let routes = directory.join("servers.routes");
    fs::write(
        &routes,
        "# comment\n198.51.100.128/25 via blackhole\n192.0.2.1/32 via pool nat proto tcp dport 443\n",
    )?;
    // Settings that are off have no space after the #.
    let enabled: Vec<String> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') && !setting.is_empty() => setting.to_owned(),
            _ => line.to_owned(),
        })
        .collect();
    let enabled = enabled.join("\n").replace("/etc/gateway/servers.routes", &routes.display().to_string());
    assert_ne!(enabled, text);
    let file = directory.join("gateway.toml");
    fs::write(&file, enabled)?;
    let checked = check(&file);
    fs::remove_dir_all(&directory)?;
    checked
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    let Ok(output) = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=30"])
        .arg(deploy().join("systemd/gatewayd.service"))
        .output()
    else {
        skip("systemd-analyze is not installed");
        return;
    };
    // The threshold is the exposure level times ten: 3.0 and less is what systemd calls OK.
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("Unknown"), "{output:?}");
}

#[test]
fn rules_of_prometheus_do_what_their_tests_say() {
    let directory = deploy().join("prometheus");
    for arguments in [
        ["check", "config", "prometheus.yml"],
        ["check", "rules", "gateway.rules.yml"],
        ["test", "rules", "gateway.rules.test.yml"],
    ] {
        let Ok(output) = Command::new("promtool").args(arguments).current_dir(&directory).output() else {
            skip("promtool is not installed");
            return;
        };
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
    }
}

#[test]
fn every_alert_is_tested_and_has_a_section_that_says_what_to_do() -> Result<()> {
    let rules = fs::read_to_string(deploy().join("prometheus/gateway.rules.yml"))?;
    let tests = fs::read_to_string(deploy().join("prometheus/gateway.rules.test.yml"))?;
    let page = fs::read_to_string(deploy().join("../docs/guide/alerts.md"))?;
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() >= 10);
    for alert in alerts {
        assert!(page.lines().any(|line| line == format!("## {alert}")), "{alert} has no section");
        assert!(
            rules.contains(&format!("runbook: docs/guide/alerts.md#{}", alert.to_lowercase())),
            "{alert}"
        );
        let fires = format!("alertname: {alert}\n        exp_alerts");
        assert!(tests.contains(&fires), "no test has {alert} raised");
    }
    Ok(())
}

#[test]
fn rules_and_dashboard_ask_for_metrics_that_there_are() -> Result<()> {
    let reference = fs::read_to_string(deploy().join("../docs/reference/metrics.md"))?;
    let rules = fs::read_to_string(deploy().join("prometheus/gateway.rules.yml"))?;
    let dashboard = fs::read_to_string(deploy().join("grafana/gateway.json"))?;
    let parsed: serde_json::Value = serde_json::from_str(&dashboard)?;
    let panels = parsed["panels"].as_array().context("no panels")?;
    assert!(panels.iter().all(|panel| panel["title"].is_string() && panel["description"].is_string()));
    for text in [&rules, &dashboard] {
        let words = text.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
        for metric in words.filter(|word| word.starts_with("gateway_") || word.starts_with("process_")) {
            assert!(reference.contains(&format!("| `{metric}` |")), "there is no metric {metric}");
        }
    }
    Ok(())
}

fn said(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn check(file: &Path) -> Result<()> {
    let output =
        Command::new(program("gatewayd")?).arg("--config").arg(file).arg("--check-config").output()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn deploy() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    root.context("no workspace").unwrap_or(Path::new(".")).join("deploy")
}
