//! What a terminal shows: tables, the status screen and JSON, all of them from the rows of [`crate::api::types`].

pub mod explain;
pub mod grid;
pub mod human;
pub mod monitor;
pub mod paint;
pub mod proxy;
pub mod status;

mod eip;
mod interface;
mod limit;
mod pool;
mod revision;
mod route;
mod session;
mod stats;
mod table;
mod usage;
mod version;

pub use grid::{Cell, Column, Columns, Grid, Rated};
pub use paint::{Paint, Tone};
pub use revision::differences;
pub use route::ruling;
pub use usage::comma_separated;
pub use version::ProgramVersion;

#[cfg(test)]
mod tests;
