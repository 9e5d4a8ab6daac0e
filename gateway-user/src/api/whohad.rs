//! `session whohad`: what sessions and the access log say.

use std::borrow::Cow;

use jiff::{SignedDuration, Timestamp};

use super::{
    ApiError,
    request::about,
    sessions::proto as proto_name,
    types::{Endpoint, WhohadQuery, WhohadRow},
};
use crate::{
    access_log::{
        End, Entry,
        whohad::{Question, is_same, search},
    },
    dataplane::{Glance, Observe, SessionRow},
    model::{AccessLog, Proto, Sink, ValueError},
};

impl WhohadQuery {
    pub(super) fn read(&self) -> Result<Question, ApiError> {
        self.read_values().map_err(about("session"))
    }

    fn read_values(&self) -> Result<Question, ValueError> {
        let proto = self.proto.as_deref().map(str::parse::<Proto>).transpose()?;
        let at = self.at.parse().map_err(|_| {
            ValueError::invalid("at", format!("`{}` is not a time with its zone", self.at))
                .hint("write it as in 2026-03-01T12:03:04Z or 2026-03-01T13:03:04+01:00")
        })?;
        let proto = proto.map(|proto| proto.name().to_owned());
        Ok(Question { address: self.address, port: self.port, proto, at })
    }
}

/// Who had the address and the port then: of the sessions that there are and those of the access log.
pub(super) fn answer(
    question: &Question,
    log: Option<&AccessLog>,
    observe: &dyn Observe,
) -> anyhow::Result<Vec<WhohadRow>> {
    let now = Timestamp::now();
    let mut is_meant = |session: &dyn Glance| {
        session.translated() == (question.address, question.port)
            // Nothing of a flow through a proxy is translated.
            && session.proxy().is_none()
            && question.proto.as_ref().is_none_or(|proto| *proto == proto_name(session.proto()))
            && question.covers(began(now, &session.row()), None)
    };
    let sessions = observe.sessions(&mut is_meant, 0)?;
    let mut found: Vec<(Entry<'static>, bool)> =
        sessions.into_iter().map(|session| (entry(now, session), true)).collect();
    if let Some(AccessLog { path: Sink::File(path), keep, .. }) = log {
        for logged in search(path, *keep, question)? {
            match found.iter_mut().find(|(session, _)| is_same(session, &logged)) {
                // The words of when it began; and it may have ended meanwhile.
                Some(known) => *known = (logged.clone(), logged.end.is_none()),
                None => found.push((logged, false)),
            }
        }
    }
    found.sort_by_key(|(entry, _)| entry.start);
    Ok(found.into_iter().filter_map(|(entry, live)| row(entry, live)).collect())
}

/// When a session began.
fn began(now: Timestamp, session: &SessionRow) -> Timestamp {
    now.saturating_sub(SignedDuration::try_from(session.age).unwrap_or_default()).unwrap_or(now)
}

/// A session that there is, as it would be recorded.
fn entry(now: Timestamp, session: SessionRow) -> Entry<'static> {
    let start = began(now, &session);
    let (table, route) = session.route.unzip();
    Entry {
        schema: Cow::Borrowed(""),
        event: Cow::Borrowed("open"),
        time: start,
        start,
        end: None,
        proto: proto_name(session.proto).into(),
        source: End { address: session.source, port: session.source_port },
        translated: Some(End { address: session.translated, port: session.translated_port }),
        destination: End { address: session.destination, port: session.destination_port },
        table: table.map(Into::into),
        route: route.map(|route| route.to_string().into()),
        target: session.pool.map(|pool| format!("pool {pool}").into()),
        verdict: Cow::Borrowed("snat"),
        reason: None,
        sent: None,
        received: None,
    }
}

fn row(entry: Entry<'static>, live: bool) -> Option<WhohadRow> {
    let end = |End { address, port }| Endpoint { address, port };
    Some(WhohadRow {
        proto: entry.proto.into_owned(),
        source: end(entry.source),
        translated: end(entry.translated?),
        destination: end(entry.destination),
        start: seconds(entry.start),
        end: entry.end.map(seconds),
        live,
        table: entry.table.map(Cow::into_owned),
        route: entry.route.map(Cow::into_owned),
        target: entry.target.map(Cow::into_owned),
    })
}

/// RFC 3339, to the millisecond.
pub(super) fn seconds(time: Timestamp) -> String {
    format!("{time:.3}")
}
