//! `gwctl apply`, `diff`, `confirm`, `undo` and `history`: whole configurations, and revisions.

use std::{
    env,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::Args;
use hyper::Method;

use super::{
    context::Context,
    failure::{self, Failure},
    route::read,
    value,
    words::OPTIONS,
};
use crate::{
    api::{
        ClientError,
        error::exit,
        types::{ApplyRequest, Change, ConfirmationRow, DiffRow, List, RevisionRow, UndoRequest, Version},
    },
    config::{self, ConfigError},
    render,
};

/// How long a configuration may take, if no longer time is given: one with a million routes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(10);
/// How often the daemon is asked whether a change was confirmed.
const GLANCE: Duration = Duration::from_millis(200);
/// How long it may take to take a change back, and a daemon to start.
const GRACE: Duration = Duration::from_secs(10);

#[derive(Args, Debug)]
#[command(after_help = "gwctl apply -f /etc/gateway/gateway.toml\n\
                        gwctl apply -f new.toml --check\n\
                        gwctl apply -f new.toml --confirm 30s\n\
                        gwctl apply -f - --expect-revision 42")]
pub(super) struct Apply {
    #[command(flatten)]
    file: File,
    /// Check it and change nothing
    #[arg(long, help_heading = OPTIONS)]
    check: bool,
    /// Take it back, and exit with 8, unless `gwctl confirm` comes within this time
    #[arg(long, value_name = "DUR", help_heading = OPTIONS, conflicts_with = "check", value_parser = value::duration)]
    confirm: Option<Duration>,
    /// Change nothing unless this revision is in force
    #[arg(long, value_name = "N", help_heading = OPTIONS)]
    expect_revision: Option<u64>,
}

#[derive(Args, Debug)]
#[command(after_help = "gwctl diff -f /etc/gateway/gateway.toml")]
pub(super) struct Diff {
    #[command(flatten)]
    file: File,
}

#[derive(Args, Debug)]
struct File {
    /// Configuration file; - is standard input
    #[arg(short = 'f', long = "file", value_name = "FILE", help_heading = OPTIONS, required = true)]
    file: PathBuf,
}

#[derive(Args, Debug)]
#[command(after_help = "gwctl confirm")]
pub(super) struct Confirm {}

#[derive(Args, Debug)]
#[command(after_help = "gwctl undo\ngwctl undo 42")]
pub(super) struct Undo {
    /// Revision to bring back [the one before the present one]
    #[arg(value_name = "REV")]
    revision: Option<u64>,
}

#[derive(Args, Debug)]
#[command(after_help = "gwctl history")]
pub(super) struct History {}

impl Apply {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let Self { file, check, confirm, expect_revision } = self;
        let text = file.read(context).await?;
        let within = confirm.map(|within| humantime::format_duration(within).to_string());
        let query = ApplyRequest { check, confirm: within.clone(), expect_revision };
        let client = context.client.patient(PATIENCE);
        let change: Result<Change, _> = client.upload("/v1/apply", &query, text.into(), |_| {}).await;
        let change = change.map_err(|error| Failure::of_call(error, client.socket()))?;
        if check {
            warn(context, &change);
            if context.verbose {
                context.note(if change.changed { "it can be applied" } else { "it is what is in force" });
            }
            return Ok(());
        }
        context.changed(&change)?;
        match (confirm, within) {
            (Some(time), Some(within)) if change.changed => {
                let revision = change.revision;
                context.note(&format!(
                    "revision {revision} is taken back in {within} unless `gwctl confirm` comes"
                ));
                wait(context, revision, time).await
            }
            _ => Ok(()),
        }
    }
}

impl Diff {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<u8, Failure> {
        let text = self.file.read(context).await?;
        let client = context.client.patient(PATIENCE);
        let list: Result<List<DiffRow>, _> = client.upload("/v1/diff", &(), text.into(), |_| {}).await;
        let list = list.map_err(|error| Failure::of_call(error, client.socket()))?;
        if context.json {
            context.print_json(&list)?;
        } else {
            context.print_text(&render::differences(&list.items, context.paint))?;
        }
        Ok(if list.items.is_empty() { exit::OK } else { exit::DIFFERENCES })
    }
}

impl Confirm {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        context.change(Method::POST, "/v1/confirm", &serde_json::json!({})).await
    }
}

impl Undo {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        context.change(Method::POST, "/v1/undo", &UndoRequest { revision: self.revision }).await
    }
}

impl History {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        context.show::<RevisionRow>("/v1/history", &()).await
    }
}

impl File {
    /// The configuration, with the routes of the files that it names, if it is acceptable.
    async fn read(&self, context: &Context<'_, '_>) -> Result<String, Failure> {
        // Nobody should wait for a large file, or type one, for a daemon that is not there.
        let _: List<Version> = context.get("/v1/version", &()).await?;
        let path = &*self.file;
        let is_input = path.as_os_str() == "-";
        let name = if is_input { "standard input".to_owned() } else { path.display().to_string() };
        let refused = |why: String| {
            Failure::new(exit::UNEXPECTED, format!("cannot read {name}: {why}"))
                .hint("give a configuration file, or `-` for standard input")
        };
        let bytes = read(path).map_err(|error| refused(failure::reason(&error)))?;
        let text = String::from_utf8(bytes).map_err(|error| refused(format!("it is not text: {error}")))?;
        let here = env::current_dir().unwrap_or_default();
        let directory = if is_input { &here } else { path.parent().unwrap_or(Path::new("")) };
        let config = config::read_text_in(&name, &text, directory).map_err(unacceptable)?;
        Ok(config::export(&config.snapshot, config.metrics))
    }
}

fn unacceptable(error: ConfigError) -> Failure {
    let failure = Failure::new(exit::INVALID, error.to_string());
    match error.hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn warn(context: &mut Context<'_, '_>, change: &Change) {
    for warning in &change.warnings {
        context.note(&format!("warning: {warning}"));
    }
}

/// Waits until `revision` is confirmed; fails if it is taken back.
async fn wait(context: &mut Context<'_, '_>, revision: u64, within: Duration) -> Result<(), Failure> {
    let end = Instant::now() + within + GRACE;
    loop {
        let list: Result<List<ConfirmationRow>, _> = context.client.get("/v1/confirm", &()).await;
        let list = match list {
            Ok(list) => list,
            // It may be about to start again.
            Err(ClientError::Unreachable(_) | ClientError::Protocol(_)) if Instant::now() < end => {
                tokio::time::sleep(GLANCE).await;
                continue;
            }
            Err(error) => return Err(Failure::of_call(error, context.client.socket())),
        };
        let own = list.items.iter().find(|row| row.revision == revision);
        match own.map(|row| &*row.state) {
            Some("waiting") => tokio::time::sleep(GLANCE).await,
            Some("confirmed") => break,
            // A daemon that has started since does not know what was confirmed before.
            None if list.revision == revision => break,
            _ => {
                let message = format!("revision {revision} was not confirmed and is taken back");
                return Err(Failure::new(exit::ROLLED_BACK, message).hint(format!(
                    "revision {} is in force; `gwctl confirm` keeps a change",
                    list.revision
                )));
            }
        }
    }
    if context.verbose {
        context.note(&format!("revision {revision} is confirmed"));
    }
    Ok(())
}
