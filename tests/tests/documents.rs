//! What the documents say can be done: links lead somewhere, commands are read, configurations are accepted.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use gateway_user::{
    api::error::exit,
    cli::{self, Terminal},
    config,
};

/// A socket that no daemon listens on: a command that is read fails there, and not before.
const NOWHERE: &str = "/nonexistent/gateway.sock";

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut lost = Vec::new();
    for document in documents()? {
        let text = fs::read_to_string(&document)?;
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (path, section) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => document.clone(),
                path => document.parent().context("a document is in a directory")?.join(path),
            };
            let found = path.exists() && (section.is_empty() || has_section(&path, section)?);
            if !found {
                lost.push(format!("{}: {target}", document.display()));
            }
        }
    }
    assert!(lost.is_empty(), "links that lead nowhere:\n{}", lost.join("\n"));
    Ok(())
}

#[tokio::test]
async fn commands_of_the_documents_are_read() -> Result<()> {
    let mut read = 0;
    for document in documents()? {
        for line in fenced(&fs::read_to_string(&document)?, "sh") {
            let Some(command) = line.strip_prefix("gwctl ") else { continue };
            let (code, said) = gwctl(command).await?;
            assert_eq!(code, exit::UNREACHABLE, "{}: {line}: {said}", document.display());
            read += 1;
        }
    }
    assert!(read > 20, "{read} commands were found in the documents");
    Ok(())
}

#[test]
fn configurations_of_the_documents_are_accepted() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("gateway.toml");
    let readme = fs::read_to_string(root().join("README.md"))?;
    let (_, rest) = readme.split_once("/gateway.toml <<'END'\n").context("no configuration in README.md")?;
    let (text, _) = rest.split_once("END\n").context("the configuration in README.md does not end")?;
    fs::write(&file, text)?;
    let config = config::load(&file)?;
    assert_eq!(config.snapshot.interfaces.len(), 2);
    Ok(())
}

#[test]
fn every_map_has_its_place_in_the_architecture() -> Result<()> {
    let architecture = fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    let mut lost = Vec::new();
    for entry in fs::read_dir(root().join("gateway-ebpf/src"))? {
        let path = entry?.path();
        if path.is_dir() {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        // `#[btf_map]`, then `static NAME: ...`.
        for map in text.split("#[btf_map]\n").skip(1).filter_map(|rest| rest.split_once("static ")) {
            let name = map.1.split(':').next().unwrap_or_default();
            let both = name.strip_suffix("_V4").or(name.strip_suffix("_V6")).unwrap_or(name);
            if !architecture.contains(&format!("`{name}`")) && !architecture.contains(&format!("`{both}_*`"))
            {
                lost.push(format!("{name} of {}", path.display()));
            }
        }
    }
    assert!(lost.is_empty(), "maps that ARCHITECTURE.md does not name:\n{}", lost.join("\n"));
    Ok(())
}

#[test]
fn tests_that_the_rfc_page_names_exist() -> Result<()> {
    let text = fs::read_to_string(root().join("docs/reference/rfc-compliance.md"))?;
    let (mut lost, mut named) = (Vec::new(), 0);
    // Every second piece is a span of code, such as `datapath/ports.rs::random_ports_are_evenly_spread`.
    for span in text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)) {
        let Some((path, name)) = span.split_once(".rs::") else { continue };
        let of_tests = root().join("tests/tests").join(format!("{path}.rs"));
        let file = if of_tests.exists() { of_tests } else { root().join(format!("{path}.rs")) };
        let source = fs::read_to_string(&file).unwrap_or_default();
        // The attribute is in the same paragraph as the function.
        let head =
            source.split_once(&format!("fn {name}(")).and_then(|(before, _)| before.rsplit("\n\n").next());
        if !head.is_some_and(|head| head.contains("test]")) {
            lost.push(span.to_owned());
        }
        named += 1;
    }
    assert!(lost.is_empty(), "tests that do not exist:\n{}", lost.join("\n"));
    assert!(named > 50, "{named} tests are named");
    Ok(())
}

#[test]
fn every_requirement_of_the_rfcs_has_its_row() -> Result<()> {
    let text = fs::read_to_string(root().join("docs/reference/rfc-compliance.md"))?;
    for (rfc, kind, count) in [
        (4787, "REQ-", 14),
        (5382, "REQ-", 10),
        (5508, "REQ-", 11),
        (6888, "REQ-", 15),
        (7857, "section ", 12),
    ] {
        let (_, section) = text.split_once(&format!("\n## RFC {rfc}:")).context("an RFC is missing")?;
        let section = section.split("\n## ").next().unwrap_or_default();
        for number in (if rfc == 7857 { 2 } else { 1 })..=count {
            let row = section.lines().find(|line| line.starts_with(&format!("| {kind}{number} |")));
            let row = row.with_context(|| format!("RFC {rfc}, {kind}{number} has no row"))?;
            let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
            let [_, asks, met, how, ..] = cells[..] else { panic!("not a row of the table: {row}") };
            assert!(!asks.is_empty() && ["met", "partly", "no"].contains(&met), "{row}");
            // What is met is shown by a test, or there is nothing that a test could show.
            assert!(met != "met" || row.contains(".rs::") || !how.is_empty(), "{row}");
        }
    }
    Ok(())
}

/// Runs gwctl without a daemon; exit code and messages.
async fn gwctl(command: &str) -> Result<(u8, String)> {
    let words = ["--socket".to_owned(), NOWHERE.to_owned()].into_iter().chain(words(command));
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut terminal = Terminal {
        out: &mut out,
        err: &mut err,
        out_is_terminal: false,
        err_is_terminal: false,
        in_is_terminal: false,
    };
    let code = cli::run(&words.collect::<Vec<_>>(), &mut terminal).await;
    Ok((code, String::from_utf8(err)?))
}

/// The words of a command as a shell has them, up to a remark.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (number, part) in command.split('"').enumerate() {
        if number % 2 == 1 {
            words.push(part.to_owned());
        } else {
            let (part, remark) = part.split_once(" #").map_or((part, false), |(part, _)| (part, true));
            words.extend(part.split_whitespace().map(str::to_owned));
            if remark {
                break;
            }
        }
    }
    words
}

/// The lines of the blocks of code in a language.
fn fenced<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let mut lines = Vec::new();
    let mut inside = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), inside) {
            (Some(named), None) => inside = Some(named),
            (Some(_), Some(_)) => inside = None,
            (None, Some(named)) if named == language => lines.push(line),
            (None, _) => {}
        }
    }
    lines
}

/// Whether a document has a heading whose anchor is `section`.
fn has_section(document: &Path, section: &str) -> Result<bool> {
    let text = fs::read_to_string(document)?;
    let anchor = |heading: &str| -> String {
        let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let headings = text.lines().filter_map(|line| line.strip_prefix('#'));
    Ok(headings.map(|heading| heading.trim_start_matches('#')).any(|heading| anchor(heading) == section))
}

/// Every document of the repository.
fn documents() -> Result<Vec<PathBuf>> {
    let mut documents = Vec::new();
    let mut directories = vec![root().join("docs")];
    for entry in fs::read_dir(root())? {
        documents.push(entry?.path());
    }
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() { directories.push(path) } else { documents.push(path) }
        }
    }
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents.sort();
    Ok(documents)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
