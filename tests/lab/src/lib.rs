//! A laboratory of network namespaces: clients, the gateway, a provider and servers, all on this machine.
//!
//! [`Lab::standard`] builds the network that the tests and the demo share; [`Sandbox`] is for networks of
//! another shape. [`Gatewayd`] runs the real daemon in a namespace, and [`Rig`] is both together. [`wire`] puts single frames on a link
//! and reads them back. Whatever happens to the process that made a lab, the lab goes with it.

mod gatewayd;
mod guard;
mod node;
mod process;
mod rig;
mod sandbox;
pub mod server;
mod skip;
mod standard;
pub mod wire;

pub use gatewayd::{Gatewayd, program};
pub use node::Node;
pub use process::{Finished, Process, wait_until};
pub use rig::{Rig, UdpClient, ask_http, ask_udp};
pub use sandbox::{Sandbox, remove};
pub use skip::{runnable, skip};
pub use standard::Lab;
