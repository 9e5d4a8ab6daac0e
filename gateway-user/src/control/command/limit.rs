//! Changes of limits of sources.

use std::fmt;

use ipnet::IpNet;

use super::{exists, not_found};
use crate::{
    api::{ApiError, ErrorKind},
    model::{Limit, LimitChange, Per, Snapshot},
};

/// What changes of a limit; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitChanges {
    /// Clients.
    pub from: Option<IpNet>,
    /// Who shares it.
    pub per: Option<Per>,
    /// What they may open.
    pub bounds: LimitChange,
}

impl fmt::Display for LimitChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.from.map_or(Ok(()), |from| write!(f, " from {from}"))?;
        self.per.map_or(Ok(()), |per| write!(f, " per {per}"))?;
        self.bounds.fmt(f)
    }
}

/// Adds a limit.
pub(super) fn add(state: &mut Snapshot, limit: &Limit) -> Result<(), ApiError> {
    if state.limits.contains_key(&limit.name) {
        return Err(exists("limit", &limit.name).hint("change it with `limit set`"));
    }
    free(state, &limit.name, limit.from)?;
    state.limits.insert(limit.name.clone(), limit.clone());
    Ok(())
}

/// Changes what is named of a limit.
pub(super) fn set(state: &mut Snapshot, name: &str, changes: &LimitChanges) -> Result<(), ApiError> {
    if let Some(from) = changes.from {
        free(state, name, from)?;
    }
    let Some(limit) = state.limits.get_mut(name) else { return Err(missing(state, name)) };
    limit.from = changes.from.unwrap_or(limit.from);
    limit.per = changes.per.unwrap_or(limit.per);
    limit.change(&changes.bounds);
    Ok(())
}

/// Removes a limit.
pub(super) fn del(state: &mut Snapshot, name: &str) -> Result<(), ApiError> {
    if state.limits.remove(name).is_some() { Ok(()) } else { Err(missing(state, name)) }
}

/// A source may not be that of another limit. The whole state is checked for that later, in the order of names: it
/// would blame the wrong one of the two.
fn free(state: &Snapshot, name: &str, from: IpNet) -> Result<(), ApiError> {
    let Some(owner) = state.limits.values().find(|limit| limit.name != name && limit.from == from) else {
        return Ok(());
    };
    let message = format!("source {from} has limit `{}` already", owner.name);
    Err(ApiError::new("limit", ErrorKind::Exists, message)
        .hint(format!("change that one with `limit set {}`, or choose a longer prefix", owner.name))
        .field("from"))
}

fn missing(state: &Snapshot, name: &str) -> ApiError {
    not_found("limit", name, state.limits.keys().map(String::as_str))
}
