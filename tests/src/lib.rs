//! Shared support of the tests that put single packets through the XDP programs.

pub mod counters;
mod empty;
pub mod gateway;
pub mod model;
pub mod network;
pub mod packet;
pub mod pcap;
pub mod policy;
