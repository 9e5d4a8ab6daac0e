//! Metrics and health for monitoring systems.
//!
//! Nothing is polled: [`serve`] answers a scrape by reading the data plane at that moment, through
//! [`Observe`]. [`descriptor`] is the one table of names and help texts.

mod collector;
pub mod descriptor;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::Context as _;
use prometheus::{Encoder as _, Registry, TextEncoder, process_collector::ProcessCollector};

use crate::{dataplane::Observe, model::Snapshot};

pub use server::serve;

/// What metrics need to know of the control plane.
pub trait Control: Send + Sync {
    /// The state in force; `None` until the data plane has taken the first one.
    fn snapshot(&self) -> Option<Arc<Snapshot>>;
    /// Its revision.
    fn revision(&self) -> u64;
    /// Whether the last change could be put in force.
    fn last_apply_success(&self) -> bool;
}

/// Where the values come from.
#[derive(Clone)]
pub struct Sources {
    /// The data plane.
    pub observe: Arc<dyn Observe>,
    /// The control plane.
    pub control: Arc<dyn Control>,
}

/// The metrics of a gateway and of this process.
pub struct Metrics {
    registry: Registry,
    sources: Sources,
}

impl Metrics {
    /// Metrics that read `sources` whenever they are asked for.
    pub fn new(sources: Sources) -> anyhow::Result<Self> {
        let registry = Registry::new();
        registry
            .register(Box::new(collector::GatewayCollector::new(sources.clone())?))
            .context("cannot register the metrics of the gateway")?;
        // Only the library's default registry has it of itself.
        registry
            .register(Box::new(ProcessCollector::for_self()))
            .context("cannot register the metrics of the process")?;
        Ok(Self { registry, sources })
    }

    /// The Prometheus text format. Reads the data plane: blocks for as long as that takes.
    pub fn render(&self) -> anyhow::Result<String> {
        TextEncoder::new().encode_to_string(&self.registry.gather()).context("cannot encode the metrics")
    }

    /// Whether the gateway does what it is configured to do.
    ///
    /// # Errors
    /// One sentence that says what is not as it should be.
    pub fn readiness(&self) -> Result<(), String> {
        let Some(snapshot) = self.sources.control.snapshot() else {
            return Err("the data plane has no state yet".to_owned());
        };
        if snapshot.interfaces.is_empty() {
            return Err("no interface is configured".to_owned());
        }
        let attached = self
            .sources
            .observe
            .interfaces()
            .map_err(|error| format!("the data plane cannot be read: {error:#}"))?;
        let missing: Vec<&str> = snapshot
            .interfaces
            .keys()
            .map(String::as_str)
            .filter(|&name| !attached.iter().any(|at| at.name == name && at.mode.is_some()))
            .collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("not attached to {}", missing.join(", "))) }
    }

    /// The content type of [`Metrics::render`].
    pub fn content_type() -> String {
        TextEncoder::new().format_type().to_owned()
    }
}
