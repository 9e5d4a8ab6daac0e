//! The controller of the gateway: the library behind `gatewayd` and `gwctl`.
//!
//! ```text
//! config ──┐
//! api ─────┼─> control (one task owns the desired state) ──> dataplane (BPF, or in memory)
//! netlink ─┘                                                    │
//! metrics, session show, stats  <──── dataplane::Observe ───────┘
//! ```

pub mod access_log;
pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod dataplane;
pub mod events;
pub mod explain;
pub mod health;
pub mod metrics;
pub mod model;
pub mod monitor;
pub mod netlink;
mod priority;
pub mod refused;
pub mod render;
pub mod usage;
