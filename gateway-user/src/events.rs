//! Reads what the packet path tells the daemon: the user side of map `EVENTS`.
//!
//! Messages are requests that the packet path repeats as long as it has a reason to. One that is lost,
//! because the ring buffer is full (counted, see [`crate::dataplane::Observe::events_lost`]) or the receiver
//! is busy, costs a delay and nothing else.

use std::{io, net::Ipv6Addr, time::Duration};

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use gateway_common::event::NEIGHBOR;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    time::sleep,
};

use crate::netlink::Neighbor;

/// Requests that may wait for [`crate::netlink::Netlink::run`].
pub const BACKLOG: usize = 1_024;

/// Under a flood of packets to next hops that do not answer there is a message for each of them. Reading
/// takes little time then: at most so many at once ...
const BATCH: usize = 1_024;
/// ... and then none for so long. A reader that has not caught up is not woken either, which spares the
/// packet path.
const PAUSE: Duration = Duration::from_millis(10);

/// Passes messages on for as long as the future is polled. Needs a tokio runtime.
pub async fn run(ring: RingBuf<MapData>, neighbors: mpsc::Sender<Neighbor>) -> anyhow::Result<()> {
    // SAFETY: the ring buffer owns its descriptor: it stays the same and open until the ring is dropped, and
    // `AsyncFd` drops it after leaving the reactor.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    let mut ring = ring.map_err(io::Error::from).context("cannot wait for map EVENTS")?;
    loop {
        let mut ready = ring.readable_mut().await.context("cannot wait for map EVENTS")?;
        let mut room = BATCH;
        while room > 0
            && let Some(record) = ready.get_inner_mut().next()
        {
            take_in(&record, &neighbors);
            room -= 1;
        }
        if room > 0 {
            ready.clear_ready();
        }
        sleep(PAUSE).await;
    }
}

fn take_in(record: &[u8], neighbors: &mpsc::Sender<Neighbor>) {
    let Some((kind, neighbor)) = parse(record) else {
        tracing::warn!(bytes = record.len(), "map EVENTS holds a record of another size");
        return;
    };
    match kind {
        // Full: the same few neighbors are asked for by every packet.
        NEIGHBOR => drop(neighbors.try_send(neighbor)),
        kind => tracing::debug!(kind, "map EVENTS holds a record of a kind unknown to this daemon"),
    }
}

/// Kind and subject of an [`Event`](gateway_common::event::Event).
fn parse(record: &[u8]) -> Option<(u32, Neighbor)> {
    let (kind, rest) = record.split_first_chunk::<4>()?;
    let (ifindex, rest) = rest.split_first_chunk::<4>()?;
    let address = <[u8; 16]>::try_from(rest).ok()?;
    let neighbor =
        Neighbor { ifindex: u32::from_ne_bytes(*ifindex), address: Ipv6Addr::from(address).to_canonical() };
    Some((u32::from_ne_bytes(*kind), neighbor))
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;

    const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 2);

    fn record(kind: u32, ifindex: u32, address: Ipv6Addr) -> Vec<u8> {
        let record = [&kind.to_ne_bytes()[..], &ifindex.to_ne_bytes(), &address.octets()].concat();
        assert_eq!(record.len(), size_of::<gateway_common::event::Event>());
        record
    }

    #[test]
    fn an_unresolved_next_hop_is_passed_on_in_its_own_family() {
        let (sender, mut receiver) = mpsc::channel(2);
        take_in(&record(NEIGHBOR, 7, CLIENT.to_ipv6_mapped()), &sender);
        let v6: Ipv6Addr = "2001:db8::1".parse().expect("an address");
        take_in(&record(NEIGHBOR, 8, v6), &sender);
        assert_eq!(
            receiver.try_recv().expect("a neighbor"),
            Neighbor { ifindex: 7, address: IpAddr::from(CLIENT) }
        );
        assert_eq!(receiver.try_recv().expect("a neighbor"), Neighbor { ifindex: 8, address: v6.into() });
    }

    #[test]
    fn records_that_make_no_sense_are_passed_over() {
        let (sender, mut receiver) = mpsc::channel(2);
        take_in(&[0; 23], &sender);
        take_in(&[0; 25], &sender);
        take_in(&record(99, 7, Ipv6Addr::UNSPECIFIED), &sender);
        assert!(receiver.try_recv().is_err());
    }

    #[test]
    fn a_busy_receiver_does_not_stop_the_reader() {
        let (sender, mut receiver) = mpsc::channel(1);
        for ifindex in 1..=3 {
            take_in(&record(NEIGHBOR, ifindex, CLIENT.to_ipv6_mapped()), &sender);
        }
        assert_eq!(receiver.try_recv().expect("the first").ifindex, 1);
        assert!(receiver.try_recv().is_err());
    }
}
