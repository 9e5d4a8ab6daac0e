//! What a compiler and a reader would object to.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use crate::{cargo, setup, term};

type Check = fn() -> Result<()>;

/// Formatting, clippy on every crate, and the tree itself.
pub(crate) fn lint() -> Result<()> {
    setup::ensure(setup::Scope::Build)?;
    let checks: [(&str, Check); 4] =
        [("format", format), ("clippy, host", host), ("clippy, kernel", kernel), ("tree", tree)];
    let mut failed = Vec::new();
    for (name, check) in checks {
        eprintln!("\n{}", term::strong(&format!("== {name} ==")));
        if let Err(error) = check() {
            eprintln!("{} {error:#}", term::error("error:"));
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join("; "));
    }
    println!("{}", term::good("lint: no objections"));
    Ok(())
}

fn format() -> Result<()> {
    cargo::run(cargo::cargo().args(["fmt", "--all", "--check"]))
}

fn host() -> Result<()> {
    let packages = ["clippy", "--workspace", "--exclude", "gateway-ebpf", "--all-targets"];
    cargo::run(cargo::cargo().args(packages).args(["--", "--deny", "warnings"]))
}

fn kernel() -> Result<()> {
    cargo::run(cargo::kernel("clippy", &[]).args(["--", "--deny", "warnings"]))
}

/// What must not be in the tree, and why. Split, so that this file does not object to itself.
const OBJECTIONS: &[(&str, &str)] = &[
    (concat!("/wo", "rk/"), "a path of one machine"),
    (concat!("/ho", "me/"), "a path of one machine"),
    (concat!("/ro", "ot/"), "a path of one machine"),
    (concat!("/tmp/", "wt"), "a path of one machine"),
    (concat!("to", "do!("), "unfinished: refuse with an error instead"),
    (concat!("unimplemented", "!("), "unfinished: refuse with an error instead"),
    (concat!("FIX", "ME"), "unfinished"),
    (concat!("XX", "X"), "unfinished"),
    (concat!("<<<<", "<<<"), "a conflict"),
];

/// The registry that every dependency comes from.
const REGISTRY: &str = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";

fn tree() -> Result<()> {
    let mut found = Vec::new();
    walk(cargo::root(), &mut |path, text| {
        let name = path.strip_prefix(cargo::root()).unwrap_or(path).display();
        for (number, line) in text.lines().enumerate() {
            for (words, why) in OBJECTIONS {
                if line.contains(words) {
                    found.push(format!("{name}:{}: {why}: {}", number + 1, line.trim()));
                }
            }
            if path.ends_with("Cargo.lock") && line.starts_with("source = ") && line != REGISTRY {
                found.push(format!("{name}:{}: not from crates.io: {line}", number + 1));
            }
        }
    })?;
    if found.is_empty() {
        return Ok(());
    }
    bail!("{} objections\n{}", found.len(), found.join("\n"));
}

/// Shows every text file of the tree to `look`.
fn walk(directory: &Path, look: &mut impl FnMut(&Path, &str)) -> Result<()> {
    let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if name == ".git" || name == "target" {
            continue;
        }
        if path.is_dir() {
            walk(&path, look)?;
        } else if let Ok(text) = fs::read_to_string(&path) {
            look(&path, &text);
        }
    }
    Ok(())
}
