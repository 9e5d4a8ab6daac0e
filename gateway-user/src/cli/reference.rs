//! The reference page of `gwctl`, made of its help.

use std::fmt::Write as _;

use clap::Command;

use super::{command, help, words};
use crate::{api::error::exit, render::Paint};

const HEAD: &str = "\
# gwctl

<!-- Generated from gateway-user/src/cli; to write it anew:
     UPDATE_REFERENCE=1 cargo test -p gateway-user --lib cli::reference -->

Success is silent unless `-v`. Data goes to stdout, messages to stderr: `error: ...`, then `hint: ...`. A change is in
force in the kernel and saved when the command returns, or nothing has changed.

";

const EXIT_CODES: [(u8, &str); 11] = [
    (exit::OK, "done"),
    (exit::UNEXPECTED, "unexpected failure"),
    (exit::USAGE, "the command line makes no sense"),
    (exit::UNREACHABLE, "no daemon answers on the socket"),
    (exit::NOT_FOUND, "the subject does not exist"),
    (exit::EXISTS, "the subject exists already, or the revision has moved on"),
    (exit::NOT_PERMITTED, "not permitted"),
    (exit::INVALID, "invalid configuration or value"),
    (exit::ROLLED_BACK, "the change failed and was rolled back"),
    (exit::UNHEALTHY, "unhealthy (`status`)"),
    (exit::DIFFERENCES, "differences"),
];

/// The page.
fn reference() -> String {
    let root = command();
    let mut page = HEAD.to_owned();
    text(&mut page, &help::help(&root, &[], Paint::new(false)));
    for noun in words::visible(&root) {
        section(&mut page, &root, noun, &[]);
    }
    page.push_str("\n## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for (code, meaning) in EXIT_CODES {
        let _ = writeln!(page, "| {code} | {meaning} |");
    }
    page
}

/// The command behind the names `path`, and those below it.
fn section(page: &mut String, root: &Command, command: &Command, path: &[String]) {
    let path: Vec<String> = path.iter().cloned().chain([command.get_name().to_owned()]).collect();
    let _ = write!(page, "\n{} {}\n\n", "#".repeat(path.len() + 1), help::full_path(&path));
    text(page, &help::help(root, &path, Paint::new(false)));
    for verb in words::visible(command) {
        section(page, root, verb, &path);
    }
}

fn text(page: &mut String, help: &str) {
    let _ = writeln!(page, "```text\n{}\n```", help.trim_end());
}

#[test]
fn reference_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/gwctl.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path, reference()).expect("the page can be written");
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        page == reference(),
        "docs/reference/gwctl.md is stale: UPDATE_REFERENCE=1 cargo test -p gateway-user --lib cli::reference"
    );
}
