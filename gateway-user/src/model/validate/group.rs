//! What makes groups of usage acceptable.

use std::collections::BTreeMap;

use gateway_common::usage::{MAX_GROUP_PREFIXES, MAX_GROUPS};
use ipnet::IpNet;

use super::{Subject, Violation, at, check_name};
use crate::model::{
    Group, Snapshot,
    error::ValueError,
    group::{OTHER, PROXY},
};

pub(super) fn groups(state: &Snapshot) -> Result<(), Violation> {
    let mut owners: BTreeMap<IpNet, &str> = BTreeMap::new();
    for (number, group) in state.groups.values().enumerate() {
        one(group, number, &mut owners).map_err(at(&Subject::Group(group.name.clone())))?;
    }
    Ok(())
}

fn one<'a>(group: &'a Group, number: usize, owners: &mut BTreeMap<IpNet, &'a str>) -> Result<(), ValueError> {
    let Group { name, prefixes } = group;
    check_name("group", name)?;
    let meaning = match name.as_str() {
        OTHER => Some("addresses that no group has"),
        PROXY => Some("what hosts of proxies send"),
        _ => None,
    };
    if let Some(meaning) = meaning {
        let message = format!("group `{name}` stands for {meaning}");
        return Err(ValueError::invalid("name", message).hint("choose another name"));
    }
    if number >= MAX_GROUPS as usize {
        let message = format!("group `{name}` is one more than the {MAX_GROUPS} there can be");
        return Err(ValueError::full("name", message).hint("remove one first"));
    }
    if prefixes.is_empty() {
        let message = format!("group `{name}` has no prefix");
        return Err(ValueError::invalid("prefixes", message).hint("give it at least one"));
    }
    for prefix in prefixes {
        let Some(owner) = owners.insert(*prefix, name) else { continue };
        return Err(if owner == name {
            ValueError::invalid("prefixes", format!("prefix {prefix} is there twice")).hint("remove one")
        } else {
            ValueError::invalid("prefixes", format!("prefix {prefix} belongs to group `{owner}` already"))
                .hint("a prefix is in one group only; of several that cover an address, the longest decides")
        });
    }
    if owners.len() > MAX_GROUP_PREFIXES as usize {
        let message = format!("all groups together have more than {MAX_GROUP_PREFIXES} prefixes");
        return Err(ValueError::full("prefixes", message).hint("use shorter prefixes that cover several"));
    }
    Ok(())
}
