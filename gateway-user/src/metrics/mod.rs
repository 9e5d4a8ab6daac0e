//! Metrics and health for monitoring systems.
//!
//! Nothing is polled: [`serve`] answers a scrape by reading the data plane at that moment, through
//! [`Observe`](crate::dataplane::Observe). [`descriptor`] is the one table of names and help texts.

mod collector;
pub mod descriptor;
mod server;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::Context as _;
use prometheus::{Encoder as _, Registry, TextEncoder, process_collector::ProcessCollector};

use crate::{access_log, control::Handle};

pub use server::serve;

/// The metrics of a gateway and of this process.
pub struct Metrics {
    registry: Registry,
    control: Handle,
}

impl Metrics {
    /// Metrics that read the control plane and its data plane whenever they are asked for.
    pub fn new(control: Handle, recorded: Arc<access_log::Stats>) -> anyhow::Result<Self> {
        let registry = Registry::new();
        registry
            .register(Box::new(collector::GatewayCollector::new(control.clone(), recorded)?))
            .context("cannot register the metrics of the gateway")?;
        // Only the library's default registry has it of itself.
        registry
            .register(Box::new(ProcessCollector::for_self()))
            .context("cannot register the metrics of the process")?;
        Ok(Self { registry, control })
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
        let current = self.control.current();
        if let Some(error) = &current.host_error {
            return Err(format!("the data plane cannot follow the host's links: {error}"));
        }
        if current.snapshot.interfaces.is_empty() {
            return Err("no interface is configured".to_owned());
        }
        let attached = self
            .control
            .observe()
            .interfaces()
            .map_err(|error| format!("the data plane cannot be read: {error:#}"))?;
        let missing: Vec<&str> = current
            .snapshot
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
