//! Reads what the packet path tells the daemon: the user side of map `EVENTS`.
//!
//! Messages are requests that the packet path repeats as long as it has a reason to. One that is lost,
//! because the ring buffer is full (counted, see [`crate::dataplane::Observe::events_lost`]) or the receiver
//! is busy, costs a delay and nothing else.

use std::{io, net::Ipv6Addr};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use gateway_common::event::{Event, NEIGHBOR};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};

use crate::netlink::Neighbor;

/// Requests that may wait for [`crate::netlink::Netlink::run`].
pub const BACKLOG: usize = 1_024;

/// Passes messages on for as long as the future is polled. Needs a tokio runtime.
pub async fn run(ring: RingBuf<MapData>, neighbors: mpsc::Sender<Neighbor>) -> anyhow::Result<()> {
    // SAFETY: the ring buffer owns its descriptor: it stays the same and open until the ring is dropped, and
    // `AsyncFd` drops it after leaving the reactor.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    let mut ring = ring.map_err(io::Error::from).context("cannot wait for map EVENTS")?;
    loop {
        let mut ready = ring.readable_mut().await.context("cannot wait for map EVENTS")?;
        while let Some(record) = ready.get_inner_mut().next() {
            take_in(&record, &neighbors);
        }
        ready.clear_ready();
    }
}

fn take_in(record: &[u8], neighbors: &mpsc::Sender<Neighbor>) {
    let Some(event) = parse(record) else {
        tracing::warn!(bytes = record.len(), "map EVENTS holds a record of another size");
        return;
    };
    match event.kind {
        NEIGHBOR => {
            let address = Ipv6Addr::from(event.address).to_canonical();
            // Full: the same few neighbors are asked for by every packet.
            let _ = neighbors.try_send(Neighbor { ifindex: event.ifindex, address });
        }
        kind => tracing::debug!(kind, "map EVENTS holds a record of a kind unknown to this daemon"),
    }
}

fn parse(record: &[u8]) -> Option<Event> {
    let (head, address) = record.split_first_chunk::<8>()?;
    let [k0, k1, k2, k3, i0, i1, i2, i3] = *head;
    Some(Event {
        kind: u32::from_ne_bytes([k0, k1, k2, k3]),
        ifindex: u32::from_ne_bytes([i0, i1, i2, i3]),
        address: address.try_into().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use gateway_common::{Family as _, V4};

    use super::*;

    fn record(kind: u32, ifindex: u32, address: [u8; 16]) -> Vec<u8> {
        [&kind.to_ne_bytes()[..], &ifindex.to_ne_bytes(), &address].concat()
    }

    #[test]
    fn an_unresolved_next_hop_is_passed_on_in_its_own_family() {
        let (sender, mut receiver) = mpsc::channel(2);
        take_in(&record(NEIGHBOR, 7, V4::mapped(&[10, 0, 1, 2])), &sender);
        let v6: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        take_in(&record(NEIGHBOR, 8, v6.octets()), &sender);
        assert_eq!(
            receiver.try_recv().expect("a neighbor"),
            Neighbor { ifindex: 7, address: IpAddr::from([10, 0, 1, 2]) }
        );
        assert_eq!(receiver.try_recv().expect("a neighbor"), Neighbor { ifindex: 8, address: v6.into() });
    }

    #[test]
    fn records_that_make_no_sense_are_passed_over() {
        let (sender, mut receiver) = mpsc::channel(2);
        take_in(&[0; 23], &sender);
        take_in(&[0; 25], &sender);
        take_in(&record(99, 7, [0; 16]), &sender);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_busy_receiver_does_not_stop_the_reader() {
        let (sender, mut receiver) = mpsc::channel(1);
        for ifindex in 1..=3 {
            take_in(&record(NEIGHBOR, ifindex, V4::mapped(&[10, 0, 1, 2])), &sender);
        }
        assert_eq!(receiver.try_recv().expect("the first").ifindex, 1);
        assert!(receiver.try_recv().is_err());
    }
}
