//! `gwctl`: one file a noun, each of which is its words, its request and its output.
//!
//! A command line goes through `words` (words to flags), clap (flags to the structs of the noun files), the
//! [`crate::api::Client`], and [`crate::render`].

mod capture;
mod completion;
mod context;
mod eip;
mod explain;
mod failure;
mod gateway;
mod group;
mod help;
mod interface;
mod limit;
mod monitor;
mod pool;
mod proxy;
#[cfg(test)]
mod reference;
mod revision;
mod route;
mod session;
mod stats;
mod status;
mod table;
mod top;
mod value;
mod watch;
mod words;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

pub use context::Terminal;
use context::{Context, color};
pub use failure::Failure;

use crate::{
    api::{Client, error::exit},
    render::{Paint, Tone},
};

/// Control the egress gateway of this host
#[derive(Debug, Parser)]
#[command(
    name = "gwctl",
    version,
    disable_help_subcommand = true,
    after_help = "gwctl interface add eth1 role inside\n\
                  gwctl interface add eth0 role outside\n\
                  gwctl pool add nat address 198.51.100.10,198.51.100.11\n\
                  gwctl route add 203.0.113.0/24 via pool nat\n\
                  gwctl activate\n\
                  gwctl status"
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

/// Options that every command takes.
#[expect(clippy::struct_excessive_bools, reason = "each of them is a flag of the command line")]
#[expect(clippy::doc_markdown, reason = "help is not Markdown")]
#[derive(Args, Debug)]
struct Global {
    /// Socket of gatewayd [env: GWCTL_SOCKET]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "GWCTL_SOCKET",
        hide_env = true,
        default_value = "/run/gateway/gateway.sock"
    )]
    socket: PathBuf,
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    json: bool,
    /// When to use colour: auto, always or never [auto honours NO_COLOR]
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    color: color::When,
    /// Print no messages; the exit code tells
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say what was done; show what is at zero
    #[arg(short, long, global = true)]
    verbose: bool,
    /// How long to wait for gatewayd: 500ms, 5s, 1m
    #[arg(long, global = true, value_name = "DUR", default_value = "30s", value_parser = value::duration)]
    timeout: Duration,
    /// Print tables without headings
    #[arg(long, global = true)]
    no_header: bool,
    /// Do not ask before a change that removes much
    #[arg(long, global = true)]
    yes: bool,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Destinations, and where packets to them go
    #[command(subcommand)]
    Route(route::Verb),
    /// Sets of routes, and the sources they serve
    #[command(subcommand)]
    Table(table::Verb),
    /// Outside addresses for source NAT
    #[command(subcommand)]
    Pool(pool::Verb),
    /// Outside addresses of single inside hosts (1:1 NAT)
    #[command(subcommand)]
    Eip(eip::Verb),
    /// Hosts that packets are sent through, unchanged
    #[command(subcommand)]
    Proxy(proxy::Verb),
    /// What clients may open
    #[command(subcommand)]
    Limit(limit::Verb),
    /// Addresses whose usage is counted together
    #[command(subcommand)]
    Group(group::Verb),
    /// Devices that packets come in through
    #[command(subcommand)]
    Interface(interface::Verb),
    /// Translated and tracked flows
    #[command(subcommand)]
    Session(session::Verb),
    /// Enforce the routes: what no route allows is dropped
    Activate(gateway::Activate),
    /// Let everything pass again, untouched
    Deactivate(gateway::Deactivate),
    /// Show the state of the gateway; exit code 9 if it is not healthy
    Status(status::Status),
    /// Show counters
    Stats(stats::Stats),
    /// Put a configuration file in force, in the place of what is
    Apply(revision::Apply),
    /// Show what a configuration file would change; exit code 10 if anything
    Diff(revision::Diff),
    /// Watch what is going on, on the whole screen
    Top(top::Top),
    /// Say what becomes of a packet, and why
    Explain(explain::Explain),
    /// Show packets that are dropped and routes that change, as it happens
    Monitor(monitor::Monitor),
    /// Write packets into a file, each with what became of it
    Capture(capture::Capture),
    /// Print the running state as a configuration file
    Export(gateway::Export),
    /// Keep what was applied with --confirm
    Confirm(revision::Confirm),
    /// Bring a revision back
    Undo(revision::Undo),
    /// Show the revisions that can be brought back, and who made them
    History(revision::History),
    /// Print a completion script for a shell
    Completion(completion::Completion),
    /// Show the versions of gwctl and gatewayd
    Version(gateway::Version),
}

/// The tree of commands: nouns, verbs and keywords.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs `gwctl` with the arguments, environment and streams of this process. Returns the exit code.
pub async fn main() -> u8 {
    let arguments = std::env::args_os().skip(1);
    let words: Vec<String> = arguments.map(|word| word.to_string_lossy().into_owned()).collect();
    // A line of JSON at a time would be a system call each.
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut err = io::stderr().lock();
    let mut terminal = Terminal {
        out_is_terminal: io::stdout().is_terminal(),
        err_is_terminal: io::stderr().is_terminal(),
        in_is_terminal: io::stdin().is_terminal(),
        out: &mut out,
        err: &mut err,
    };
    run(&words, &mut terminal).await
}

/// Runs `gwctl` with `words`, which do not begin with the name of the program. Returns the exit code.
pub async fn run(words: &[String], terminal: &mut Terminal<'_>) -> u8 {
    if let Some((completion::HIDDEN, rest)) = words.split_first().map(|(word, rest)| (word.as_str(), rest)) {
        return completion::candidates(&command(), rest, terminal).await;
    }
    // Words that cannot be read may still say how to talk about it.
    let quiet = words.iter().any(|word| word == "-q" || word == "--quiet");
    let mut paint = Paint::new(color::When::of_words(words).resolve(terminal.err_is_terminal));
    let outcome = match parse(words, terminal) {
        Ok(Some(cli)) => {
            paint = Paint::new(cli.global.color.resolve(terminal.err_is_terminal));
            let global = &cli.global;
            let mut context = Context {
                client: Client::new(&global.socket, global.timeout),
                paint: Paint::new(global.color.resolve(terminal.out_is_terminal)),
                json: global.json,
                header: !global.no_header,
                quiet: global.quiet,
                verbose: global.verbose,
                yes: global.yes,
                terminal,
            };
            execute(cli.noun, &mut context).await
        }
        Ok(None) => Ok(exit::OK),
        Err(failure) => Err(failure),
    };
    let flushed = terminal.out.flush().map_err(Failure::from);
    match outcome.and_then(|code| flushed.map(|()| code)) {
        Ok(code) => code,
        Err(Failure::ReaderGone) => exit::OK,
        Err(Failure::Told { exit, message, hint }) => {
            if !quiet {
                // Nothing is left to be done about a standard error that cannot be written.
                let _ = writeln!(terminal.err, "{} {message}", paint.text(Tone::Bad, "error:"));
                if let Some(hint) = hint {
                    let _ = writeln!(terminal.err, "{} {hint}", paint.text(Tone::Notice, "hint:"));
                }
            }
            exit
        }
    }
}

/// Reads the command line; `None`: it asked for help, and has it.
fn parse(words: &[String], terminal: &mut Terminal<'_>) -> Result<Option<Cli>, Failure> {
    let root = command();
    if words.is_empty() {
        terminal.err.write_all(help::help(&root, &[], Paint::new(false)).as_bytes())?;
        return Err(Failure::usage("a command is missing").hint("`gwctl status` shows the gateway"));
    }
    let (line, path) = match words::read(&root, words)? {
        words::Line::Help(path) => {
            let paint = Paint::new(color::When::of_words(words).resolve(terminal.out_is_terminal));
            terminal.out.write_all(help::help(&root, &path, paint).as_bytes())?;
            return Ok(None);
        }
        words::Line::Run { words, path } => (words, path),
    };
    let program = std::iter::once("gwctl".to_owned());
    let parsed = root.clone().try_get_matches_from(program.chain(line));
    match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => Ok(Some(cli)),
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayVersion => {
            write!(terminal.out, "{error}")?;
            Ok(None)
        }
        Err(error) => Err(Failure::of_clap(&error, &root, &path)),
    }
}

async fn execute(noun: Noun, context: &mut Context<'_, '_>) -> Result<u8, Failure> {
    match noun {
        Noun::Route(verb) => verb.run(context).await?,
        Noun::Table(verb) => verb.run(context).await?,
        Noun::Pool(verb) => verb.run(context).await?,
        Noun::Eip(verb) => verb.run(context).await?,
        Noun::Proxy(verb) => verb.run(context).await?,
        Noun::Limit(verb) => verb.run(context).await?,
        Noun::Group(verb) => verb.run(context).await?,
        Noun::Interface(verb) => verb.run(context).await?,
        Noun::Session(verb) => verb.run(context).await?,
        Noun::Activate(verb) => verb.run(context).await?,
        Noun::Deactivate(verb) => verb.run(context).await?,
        Noun::Status(verb) => return verb.run(context).await,
        Noun::Stats(stats) => stats.run(context).await?,
        Noun::Apply(verb) => verb.run(context).await?,
        Noun::Diff(verb) => return verb.run(context).await,
        Noun::Top(top) => top.run(context).await?,
        Noun::Explain(explain) => return explain.run(context).await,
        Noun::Monitor(monitor) => monitor.run(context).await?,
        Noun::Capture(capture) => capture.run(context).await?,
        Noun::Export(verb) => verb.run(context).await?,
        Noun::Confirm(verb) => verb.run(context).await?,
        Noun::Undo(verb) => verb.run(context).await?,
        Noun::History(verb) => verb.run(context).await?,
        Noun::Completion(verb) => verb.run(context)?,
        Noun::Version(verb) => verb.run(context).await?,
    }
    Ok(exit::OK)
}

#[cfg(test)]
mod tests;
