//! Shared support of the tests that put single packets through the XDP programs.

pub mod packet;
pub mod pcap;
