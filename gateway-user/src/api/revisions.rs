//! `apply`, `diff`, `confirm`, `undo` and `history`: whole configurations, and revisions.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use axum::{
    body::Bytes,
    extract::{ConnectInfo, State, rejection::BytesRejection},
};

use super::{
    ApiError, ErrorKind, difference,
    extract::{Answer, Body, Query},
    server::{Changed, Ctx, From, Rows, blocking, read},
    types::{ApplyRequest, ConfirmationRow, DiffRow, RevisionRow, UndoRequest},
};
use crate::{
    config::{self, Config, ConfigError},
    control::{self, ApplyOptions, Kept},
};

/// Largest configuration, in bytes: more routes than a table takes.
pub(super) const MAX_BODY: usize = 1 << 30;

/// What errors call a configuration that came over the socket.
const NAME: &str = "configuration";

/// Times within which a change may have to be confirmed.
const CONFIRM: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);

pub(super) async fn apply(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Query(request): Query<ApplyRequest>,
    body: Result<Bytes, BytesRejection>,
) -> Changed {
    let options = request.options()?;
    let Config { snapshot, metrics, warnings, .. } = configuration(body).await?;
    let mut done = context.control.apply(snapshot, options, peer).await?;
    if done.changed {
        let state = context.control.snapshot();
        if state.active && !options.check {
            done.warnings = context.connected(&state).unserved(&state);
        }
        done.warnings.extend(warnings);
    }
    if metrics != context.metrics {
        let warning = "gateway.metrics differs: where metrics are served is settled when gatewayd starts";
        done.warnings.push(warning.to_owned());
    }
    Ok(Answer(done))
}

pub(super) async fn diff(State(context): Ctx, body: Result<Bytes, BytesRejection>) -> Rows<DiffRow> {
    let Config { snapshot, .. } = configuration(body).await?;
    read(context, move |current, _| Ok(difference::between(&current.snapshot, &snapshot))).await
}

pub(super) async fn confirmation(State(context): Ctx) -> Rows<ConfirmationRow> {
    read(context, |current, _| Ok(current.confirmation.iter().map(confirmation_row).collect())).await
}

pub(super) async fn confirm(State(context): Ctx, ConnectInfo(peer): From) -> Changed {
    context.control.confirm(peer).await.map(Answer)
}

pub(super) async fn undo(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Body(request): Body<UndoRequest>,
) -> Changed {
    context.control.undo(request.revision, peer).await.map(Answer)
}

pub(super) async fn history(State(context): Ctx) -> Rows<RevisionRow> {
    let inner = Arc::clone(&context);
    read(context, move |current, _| {
        let kept = inner.control.history().map_err(|error| {
            ApiError::new(
                "history",
                ErrorKind::Internal,
                format!("the state directory cannot be read: {error:#}"),
            )
        })?;
        // What was taken back because it could not be saved may have left a line for a moment.
        let known = kept.into_iter().filter(|kept| kept.revision <= current.revision);
        Ok(known.map(|kept| revision_row(kept, current.revision)).collect())
    })
    .await
}

/// The configuration in a body.
async fn configuration(body: Result<Bytes, BytesRejection>) -> Result<Config, ApiError> {
    let refused = |message: String| ApiError::new("config", ErrorKind::Invalid, message);
    let bytes = body.map_err(|error| refused(format!("the configuration cannot be read: {error}")))?;
    let parse = move || {
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| refused(format!("the configuration is not text: {error}")))?;
        Ok(config::read_text(NAME, text).map_err(unacceptable)?)
    };
    blocking(parse).await
}

fn unacceptable(error: ConfigError) -> ApiError {
    let refused = ApiError::new("config", ErrorKind::Invalid, error.to_string());
    let refused = match error.hint {
        Some(hint) => refused.hint(hint),
        None => refused,
    };
    match error.key {
        Some(key) => refused.field(key),
        None => refused,
    }
}

fn confirmation_row(confirmation: &control::Confirmation) -> ConfirmationRow {
    let state = match confirmation.answer {
        None => "waiting",
        Some(control::Answer::Confirmed) => "confirmed",
        Some(control::Answer::TakenBack) => "taken_back",
    };
    let left = confirmation.answer.is_none().then(|| confirmation.left().as_secs_f64());
    ConfirmationRow { revision: confirmation.revision, state: state.to_owned(), left }
}

fn revision_row(Kept { revision, made }: Kept, in_force: u64) -> RevisionRow {
    let time = made.as_ref().map(|made| {
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(made.time)).to_string()
    });
    RevisionRow {
        revision,
        time,
        uid: made.as_ref().and_then(|made| made.uid),
        pid: made.as_ref().and_then(|made| made.pid),
        command: made.map(|made| made.command),
        in_force: revision == in_force,
    }
}

impl ApplyRequest {
    fn options(&self) -> Result<ApplyOptions, ApiError> {
        let Self { check, confirm, expect_revision } = self;
        let within = confirm.as_deref().map(|text| {
            let parsed = humantime::parse_duration(text).ok().filter(|within| CONFIRM.contains(within));
            parsed.ok_or_else(|| {
                ApiError::new("apply", ErrorKind::Invalid, format!("nobody can confirm within `{text}`"))
                    .hint("a time from 1s to 24h, as in 30s or 5m")
                    .field("confirm")
            })
        });
        Ok(ApplyOptions { check: *check, confirm: within.transpose()?, expect: *expect_revision })
    }
}
