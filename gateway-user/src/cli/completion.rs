//! `gwctl completion`, and what the scripts it prints ask.
//!
//! Libraries complete flags; the words of ip(8) are completed by the grammar that reads them ([`words`]).

use std::time::Duration;

use clap::{Arg, Args, Command, ValueEnum};

use super::{
    context::{Context, Terminal},
    failure::Failure,
    help,
    words::{self, LeafError, Reader},
};
use crate::{
    api::{
        Client,
        error::exit,
        types::{EipRow, GroupRow, InterfaceRow, LimitRow, List, PoolRow, ProxyRow, TableRow},
    },
    model::Target,
};

/// The first word of a line with which a shell asks what may come next.
pub(super) const HIDDEN: &str = "__complete";

/// Names from the daemon are worth waiting for no longer than this.
const PATIENCE: Duration = Duration::from_millis(500);

#[derive(Args, Debug)]
#[command(after_help = "gwctl completion bash > /etc/bash_completion.d/gwctl\n\
                        gwctl completion zsh > /usr/local/share/zsh/site-functions/_gwctl\n\
                        gwctl completion fish > ~/.config/fish/completions/gwctl.fish")]
pub(super) struct Completion {
    /// The shell
    #[arg(value_name = "bash|zsh|fish")]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl Completion {
    pub(super) fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        context.print_text(match self.shell {
            Shell::Bash => include_str!("completion/gwctl.bash"),
            Shell::Zsh => include_str!("completion/gwctl.zsh"),
            Shell::Fish => include_str!("completion/gwctl.fish"),
        })
    }
}

/// Prints what may stand in the place of the last of `words`, a line each: the word, a tab, its meaning.
pub(super) async fn candidates(root: &Command, words: &[String], terminal: &mut Terminal<'_>) -> u8 {
    let (partial, before) = words.split_last().map_or(("", words), |(last, before)| (last.as_str(), before));
    let socket = socket(root, before);
    let client = Client::new(socket, PATIENCE);
    for (word, meaning) in Wanted::of(root, before, partial).list(&client).await {
        if word.starts_with(partial) && writeln!(terminal.out, "{word}\t{meaning}").is_err() {
            break;
        }
    }
    exit::OK
}

/// What may come next.
enum Wanted<'a> {
    /// A noun or a verb.
    Command(&'a Command),
    /// The next word of the value of an argument; these are there.
    Value { command: &'a Command, argument: &'a Arg, given: Vec<String> },
    /// A subject that is missing, or else a keyword that is not there yet.
    Words { command: &'a Command, subject: Option<&'a Arg>, given: Vec<String> },
    /// A long option.
    Option { root: &'a Command, command: &'a Command },
    /// Nothing that is known here.
    Nothing,
}

type Candidate = (String, String);

impl<'a> Wanted<'a> {
    fn of(root: &'a Command, before: &[String], partial: &str) -> Self {
        let mut reader = Reader { root, command: root, path: Vec::new(), out: Vec::new() };
        let mut rest = before;
        while let Some((word, behind)) = rest.split_first().filter(|_| reader.command.has_subcommands()) {
            rest = behind;
            if word.starts_with('-') {
                rest = reader.option(word, rest);
            } else if word != "help" && reader.descend(word).is_err() {
                return Self::Nothing;
            }
        }
        let command = reader.command;
        if partial.starts_with('-') {
            return Self::Option { root, command };
        }
        if command.has_subcommands() {
            return Self::Command(command);
        }
        reader.out.clear();
        match reader.leaf(rest) {
            Err(LeafError::Missing { argument, given }) => Self::Value { command, argument, given },
            Err(LeafError::Stray(_)) | Ok(false) => Self::Nothing,
            Ok(true) => {
                let given = reader.out;
                let subjects = given.iter().filter(|word| !word.starts_with("--")).count();
                Self::Words { command, subject: command.get_positionals().nth(subjects), given }
            }
        }
    }

    async fn list(self, client: &Client) -> Vec<Candidate> {
        match self {
            Self::Command(command) => words::visible(command).map(named).collect(),
            Self::Value { command, argument, given } => values(command, argument, &given, client).await,
            Self::Words { command, subject, given } => {
                let mut list = match subject {
                    Some(subject) => values(command, subject, &[], client).await,
                    None => Vec::new(),
                };
                // A name has to come first; anything else may come behind the keywords.
                if subject.is_none_or(|subject| !words::is_name(subject) || !subject.is_required_set()) {
                    list.extend(words::keywords(command).filter_map(|keyword| unused(keyword, &given)));
                }
                list
            }
            Self::Option { root, command } => root
                .get_arguments()
                .chain(command.get_arguments().filter(|argument| !argument.is_global_set()))
                .filter_map(|argument| Some((format!("--{}", argument.get_long()?), meaning(argument))))
                .collect(),
            Self::Nothing => Vec::new(),
        }
    }
}

/// What the next word of the value of `argument` may be.
async fn values(command: &Command, argument: &Arg, given: &[String], client: &Client) -> Vec<Candidate> {
    let name = help::value(argument);
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    match (name.as_str(), given.as_slice()) {
        (super::route::TARGET, []) => Target::KINDS.into_iter().map(plain).collect(),
        (super::route::TARGET | super::proxy::FAIL, ["pool"]) | ("POOL", []) => pools(client).await,
        (super::route::TARGET | super::proxy::FAIL, ["proxy"]) => proxies(client).await,
        (super::proxy::FAIL, []) => ["closed", "direct", "pool", "proxy"].into_iter().map(plain).collect(),
        (super::route::TARGET, ["gateway", _, "dev"]) | ("IF", []) => interfaces(client).await,
        ("TABLE", []) => tables(client).await,
        ("NAME", []) => names(command, client).await,
        ("ADDR", []) if command.get_name() == "del" => eips(client).await,
        (choice, []) if choice.contains('|') => choice.split('|').map(plain).collect(),
        _ => Vec::new(),
    }
}

/// Names that the verb `command` may be about.
async fn names(command: &Command, client: &Client) -> Vec<Candidate> {
    // The explanation of the subject says what it names; a name that is to be made cannot be completed.
    let subject = command.get_positionals().next().map(meaning).unwrap_or_default();
    match (subject.rsplit(' ').next(), command.get_name()) {
        (Some("device"), "add") => devices(),
        (_, "add") => Vec::new(),
        (Some("pool"), _) => pools(client).await,
        (Some("proxy"), _) => proxies(client).await,
        (Some("limit"), _) => limits(client).await,
        (Some("group"), _) => groups(client).await,
        (Some("table"), _) => tables(client).await,
        (Some("device"), _) => interfaces(client).await,
        _ => Vec::new(),
    }
}

async fn pools(client: &Client) -> Vec<Candidate> {
    let list: Result<List<PoolRow>, _> = client.get("/v1/pools", &()).await;
    list.map(|list| list.items.into_iter().map(|pool| plain(&pool.name)).collect()).unwrap_or_default()
}

async fn proxies(client: &Client) -> Vec<Candidate> {
    let list: Result<List<ProxyRow>, _> = client.get("/v1/proxies", &()).await;
    list.map(|list| list.items.into_iter().map(|proxy| plain(&proxy.name)).collect()).unwrap_or_default()
}

async fn limits(client: &Client) -> Vec<Candidate> {
    let list: Result<List<LimitRow>, _> = client.get("/v1/limits", &()).await;
    list.map(|list| list.items.into_iter().map(|limit| plain(&limit.name)).collect()).unwrap_or_default()
}

async fn groups(client: &Client) -> Vec<Candidate> {
    let list: Result<List<GroupRow>, _> = client.get("/v1/groups", &()).await;
    list.map(|list| list.items.into_iter().map(|group| plain(&group.name)).collect()).unwrap_or_default()
}

async fn eips(client: &Client) -> Vec<Candidate> {
    let list: Result<List<EipRow>, _> = client.get("/v1/eips", &()).await;
    list.map(|list| list.items.into_iter().map(|eip| plain(&eip.address.to_string())).collect())
        .unwrap_or_default()
}

async fn tables(client: &Client) -> Vec<Candidate> {
    let list: Result<List<TableRow>, _> = client.get("/v1/tables", &()).await;
    list.map(|list| list.items.into_iter().map(|table| plain(&table.name)).collect()).unwrap_or_default()
}

async fn interfaces(client: &Client) -> Vec<Candidate> {
    let list: Result<List<InterfaceRow>, _> = client.get("/v1/interfaces", &()).await;
    list.map(|list| list.items.into_iter().map(|row| plain(&row.name)).collect()).unwrap_or_default()
}

/// Devices of this host.
fn devices() -> Vec<Candidate> {
    let Ok(entries) = std::fs::read_dir("/sys/class/net") else { return Vec::new() };
    let mut names: Vec<Candidate> =
        entries.flatten().map(|entry| plain(&entry.file_name().to_string_lossy())).collect();
    names.sort();
    names
}

/// The socket that the words on the line, the environment or else the default name.
fn socket(root: &Command, words: &[String]) -> String {
    let at = words.iter().position(|word| word == "--socket").map(|at| at + 1);
    let named = at
        .and_then(|at| words.get(at).cloned())
        .or_else(|| words.iter().find_map(|word| word.strip_prefix("--socket=").map(str::to_owned)));
    let argument = || root.get_arguments().find(|argument| argument.get_id() == "socket");
    named
        .or_else(|| std::env::var(argument()?.get_env()?).ok())
        .or_else(|| Some(argument()?.get_default_values().first()?.to_string_lossy().into_owned()))
        .unwrap_or_default()
}

fn unused(keyword: &Arg, given: &[String]) -> Option<Candidate> {
    let long = keyword.get_long()?;
    let flag = format!("--{long}");
    let used = given.iter().any(|word| word.split('=').next() == Some(flag.as_str()));
    (!used).then(|| (long.to_owned(), meaning(keyword)))
}

fn named(command: &Command) -> Candidate {
    (command.get_name().to_owned(), command.get_about().map(ToString::to_string).unwrap_or_default())
}

fn plain(word: &str) -> Candidate {
    (word.to_owned(), String::new())
}

fn meaning(argument: &Arg) -> String {
    argument.get_help().map(ToString::to_string).unwrap_or_default()
}
