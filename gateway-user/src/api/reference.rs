//! The reference page of the API, made of the doc comments of this module and of `types`.

use std::fmt::Write as _;

use super::ErrorKind;

const HEAD: &str = "\
# Control API

<!-- Generated from gateway-user/src/api; to write it anew:
     UPDATE_REFERENCE=1 cargo test -p gateway-user --lib api -->

`gatewayd` answers HTTP/1.1 with JSON on a Unix socket, /run/gateway/gateway.sock unless told otherwise:

    curl --unix-socket /run/gateway/gateway.sock http://gw/v1/routes
    curl --unix-socket /run/gateway/gateway.sock http://gw/v1/routes \\
         -d '{\"prefix\": \"203.0.113.0/24\", \"via\": \"pool nat\"}'

Who may write to the socket (root, and the members of group `gateway`) may do everything. Each change is logged
with the user and process that asked for it. It is in force and saved when the answer comes, or nothing has
changed.

";

/// The page.
fn reference() -> String {
    let mut page = HEAD.to_owned();
    let _ = writeln!(page, "## Requests\n");
    for line in table_of_requests() {
        let _ = writeln!(page, "{line}");
    }
    let _ = writeln!(
        page,
        "\n`GET` and `DELETE` take their arguments as a query, the others as a JSON body of at most 1 MiB.\n\
         `route import` takes a query and a body of plain text of at most 1 GiB, which is read as it arrives:\n\n    \
         curl --unix-socket /run/gateway/gateway.sock --data-binary @trusted.txt \\\n         \
         'http://gw/v1/routes/import?via=direct&table=servers'\n\n\
         `apply` and `diff` take a configuration file as their body, likewise.\n"
    );
    let _ = writeln!(
        page,
        "Unknown fields are refused in requests, and to be ignored in answers: fields are only ever added."
    );
    let _ = writeln!(
        page,
        "\n## Errors\n\nA `code` is what was asked for and what kind of failure it was: `route.exists`, `unsupported`.\n"
    );
    let _ = writeln!(page, "| kind | status | exit code of gwctl |\n|---|---|---|");
    for (kind, name, ..) in ErrorKind::TABLE {
        let _ = writeln!(page, "| `{name}` | {} | {} |", kind.status(), kind.exit_code());
    }
    let _ = writeln!(page, "\n## Types");
    for source in [
        include_str!("types/mod.rs"),
        include_str!("types/limit.rs"),
        include_str!("types/proxy.rs"),
        include_str!("types/explain.rs"),
        include_str!("types/monitor.rs"),
        include_str!("types/observed.rs"),
        include_str!("types/revision.rs"),
        include_str!("types/usage.rs"),
        include_str!("error.rs"),
    ] {
        types(&mut page, source);
    }
    page
}

/// The table in the doc comment of the module, with links to the sections of this page.
fn table_of_requests() -> impl Iterator<Item = String> {
    let lines = include_str!("mod.rs").lines().filter_map(|line| line.strip_prefix("//! |"));
    lines.map(|line| {
        let mut text = format!("|{line}");
        while let Some((before, rest)) = text.split_once("[`types::")
            && let Some((name, after)) = rest.split_once("`]")
        {
            text = format!("{before}[{name}](#{}){after}", name.to_lowercase());
        }
        text
    })
}

/// The structures of a source file, in their order, with their fields.
fn types(page: &mut String, source: &str) {
    let mut docs: Vec<&str> = Vec::new();
    let mut renamed = None;
    let mut inside = false;
    for line in source.lines().map(str::trim) {
        if let Some(doc) = line.strip_prefix("///") {
            docs.push(doc.trim());
        } else if line.starts_with("#[") {
            renamed = line.split_once("rename = \"").and_then(|(_, rest)| rest.split('"').next()).or(renamed);
        } else if let Some(rest) = line.strip_prefix("pub struct ") {
            let name = rest.split(['<', ' ']).next().unwrap_or_default();
            let _ = writeln!(page, "\n### {name}\n\n{}\n\n| field | type | |\n|---|---|---|", prose(&docs));
            (inside, docs) = (true, Vec::new());
        } else if let Some((name, kind)) = line.strip_prefix("pub ").and_then(|field| field.split_once(": "))
            && inside
        {
            let name = renamed.take().unwrap_or(name);
            let kind = json(kind.trim_end_matches(','));
            let _ = writeln!(page, "| `{name}` | {kind} | {} |", prose(&docs));
            docs.clear();
        } else {
            inside &= line != "}";
            docs.clear();
            renamed = None;
        }
    }
}

fn prose(docs: &[&str]) -> String {
    docs.join(" ").replace("[`", "`").replace("`]", "`").replace("::", ".").replace('|', "\\|")
}

/// What a field of a Rust type looks like in JSON.
fn json(kind: &str) -> String {
    let within = |outer: &str| kind.strip_prefix(outer).and_then(|rest| rest.strip_suffix('>'));
    if let Some(inner) = within("Option<") {
        return format!("{}, may be absent", json(inner));
    }
    if let Some(inner) = within("Vec<") {
        return format!("list of {}", json(inner));
    }
    match kind {
        "String" | "Timestamp" | "IpAddr" | "IpNet" | "PortRange" | "Proto" | "Role" | "AttachMode"
        | "TableKind" | "Mapping" | "Per" | "Refuse" => "string".to_owned(),
        "i32" | "u16" | "u32" | "u64" | "f64" => "number".to_owned(),
        "bool" => "boolean".to_owned(),
        "T" => "row".to_owned(),
        "Count" => "[Count](#count), or its fields".to_owned(),
        name => format!("[{name}](#{})", name.to_lowercase()),
    }
}

#[test]
fn reference_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/api.md");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path, reference()).expect("the page can be written");
    }
    let page = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        page == reference(),
        "docs/reference/api.md is stale: UPDATE_REFERENCE=1 cargo test -p gateway-user --lib api"
    );
}
