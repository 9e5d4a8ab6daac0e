//! Interfaces the gateway attaches to.

use serde::{Deserialize, Serialize};

/// What an interface faces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The clients.
    Inside,
    /// The internet.
    Outside,
    /// Both (one-armed).
    Both,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// Native if the driver can, generic otherwise.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the generic receive path: works on every device, slower.
    Generic,
}

/// One interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Device name.
    pub name: String,
    /// What it faces.
    pub role: Role,
    /// How to attach.
    #[serde(default)]
    pub mode: AttachMode,
}
