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
