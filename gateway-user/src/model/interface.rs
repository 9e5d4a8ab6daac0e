//! Interfaces the gateway attaches to.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use super::error::{ValueError, suggest};

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
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// Device name.
    pub name: String,
    /// What it faces.
    pub role: Role,
    /// How to attach.
    #[serde(default)]
    pub mode: AttachMode,
}

/// Longest name of a device, in bytes (`IFNAMSIZ` without the terminating zero).
pub const MAX_NAME: usize = 15;

impl Interface {
    /// Checks a device name by the rules of the kernel (`dev_valid_name` in net/core/dev.c).
    pub fn check_name(name: &str) -> Result<(), ValueError> {
        let refuse = |why: &str| {
            Err(ValueError::invalid("name", format!("interface name `{name}` {why}"))
                .hint("use a name that `ip link` shows"))
        };
        if name.is_empty() {
            refuse("is empty")
        } else if name.len() > MAX_NAME {
            refuse(&format!("is longer than {MAX_NAME} bytes"))
        } else if matches!(name, "." | "..")
            || name.contains(|c: char| matches!(c, '/' | ':') || c.is_whitespace() || c.is_control())
        {
            refuse("is not a name that a device can have")
        } else {
            Ok(())
        }
    }
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 3] = [Self::Inside, Self::Outside, Self::Both];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Inside => "inside",
            Self::Outside => "outside",
            Self::Both => "both",
        }
    }
}

impl AttachMode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::Auto, Self::Native, Self::Generic];

    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Role {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| {
            ValueError::invalid("role", format!("`{text}` is not a role of an interface"))
                .hint(suggest(text, Self::ALL.map(Self::name)))
        })
    }
}

impl FromStr for AttachMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        Self::ALL.into_iter().find(|mode| mode.name() == text).ok_or_else(|| {
            ValueError::invalid("mode", format!("`{text}` is not a way to attach"))
                .hint(suggest(text, Self::ALL.map(Self::name)))
        })
    }
}
