//! What is asked and told of whole configurations and revisions.

use serde::{Deserialize, Serialize};

/// `apply`: the query; the body is a configuration file (TOML) that names no other files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApplyRequest {
    /// Changes nothing: says whether it could be applied, and whether it would change anything.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub check: bool,
    /// Within which time it has to be confirmed (`30s`), or it is taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirm: Option<String>,
    /// The revision that has to be in force, or nothing is changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expect_revision: Option<u64>,
}

/// `undo`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UndoRequest {
    /// The revision to bring back; absent: the one before the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
}

/// What had to be confirmed last.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfirmationRow {
    /// Its revision.
    pub revision: u64,
    /// `waiting`, `confirmed` or `taken_back`.
    pub state: String,
    /// Seconds until it is taken back, while it waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left: Option<f64>,
}

/// A revision that can be brought back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionRow {
    /// The revision.
    pub revision: u64,
    /// When it came into force (RFC 3339, UTC).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// The user who made it; absent: the gateway itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// The process that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<i32>,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// Whether it is in force.
    pub in_force: bool,
}

/// A difference between what is in force and a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffRow {
    /// `added`, `removed` or `changed`, if the configuration were applied.
    pub change: String,
    /// Noun: `route`, `pool`, ...
    pub noun: String,
    /// What is in force, in the words of gwctl.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}
