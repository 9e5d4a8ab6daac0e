//! Changes of groups of usage.

use ipnet::IpNet;

use super::{exists, not_found};
use crate::{
    api::{ApiError, ErrorKind},
    model::{Group, Snapshot},
};

/// Adds a group.
pub(super) fn add(state: &mut Snapshot, group: &Group) -> Result<(), ApiError> {
    if state.groups.contains_key(&group.name) {
        return Err(exists("group", &group.name).hint("change it with `group set`"));
    }
    free(state, &group.name, &group.prefixes)?;
    state.groups.insert(group.name.clone(), group.clone());
    Ok(())
}

/// Gives a group other prefixes.
pub(super) fn set(state: &mut Snapshot, name: &str, prefixes: &[IpNet]) -> Result<(), ApiError> {
    free(state, name, prefixes)?;
    let Some(group) = state.groups.get_mut(name) else { return Err(missing(state, name)) };
    group.prefixes = prefixes.to_vec();
    Ok(())
}

/// Removes a group.
pub(super) fn del(state: &mut Snapshot, name: &str) -> Result<(), ApiError> {
    if state.groups.remove(name).is_some() { Ok(()) } else { Err(missing(state, name)) }
}

/// A prefix may not be another group's. The whole state is checked for that later, in the order of names: it would
/// blame the wrong one of the two.
fn free(state: &Snapshot, name: &str, prefixes: &[IpNet]) -> Result<(), ApiError> {
    let others = state.groups.values().filter(|group| group.name != name);
    let mut taken = others.flat_map(|group| group.prefixes.iter().map(move |prefix| (group, prefix)));
    let Some((owner, prefix)) = taken.find(|(_, prefix)| prefixes.contains(prefix)) else { return Ok(()) };
    let message = format!("prefix {prefix} belongs to group `{}` already", owner.name);
    Err(ApiError::new("group", ErrorKind::Exists, message)
        .hint(format!("take it from there with `group set {}`, or choose a longer prefix", owner.name))
        .field("prefixes"))
}

fn missing(state: &Snapshot, name: &str) -> ApiError {
    not_found("group", name, state.groups.keys().map(String::as_str))
}
