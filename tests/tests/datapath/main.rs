//! Single packets through the XDP programs: exact bytes, exact counters.
//!
//! Every case is a packet and all that must come of it: XDP's answer, the bytes of the frame afterwards, the
//! drop reason, and every counter that moves. Counters that are not named must stay as they were. A case
//! that fails leaves `target/test-pcap/<test>.pcap` with the frame as it went in, as it should have come out
//! and as it came out.

mod border;
mod change;
mod drift;
mod eip;
mod expiry;
mod flip;
mod fragment;
mod hairpin;
mod hairpin_eip;
mod header;
mod inbound;
mod limit;
mod mapping;
mod mss;
mod neighbor;
mod one_armed;
mod outbound;
mod pool;
mod ports;
mod promise;
mod proxy;
mod proxy_health;
mod record;
mod refusal;
mod related;
mod reuse;
mod route;
mod share;
mod source;
mod support;
mod table;
mod tcp;
mod trial;
mod tunnel;
mod usage;
mod view;
mod watch;
