//! Two netlink sockets: one that only listens to events, one for requests, so that a burst of events never
//! comes between a request and its answer.

use anyhow::{Context as _, bail};
use futures::{StreamExt as _, channel::mpsc::UnboundedReceiver};
use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::{
    Handle, MulticastGroup, new_connection, new_multicast_connection,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::{AsyncSocket as _, SocketAddr},
};
use tokio_util::task::AbortOnDropHandle;

/// Changes that may alter where a packet goes.
const GROUPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Room for events that the kernel sends faster than they are read, bytes. When it does not suffice the
/// kernel says so, and everything is read again.
const EVENT_BUFFER: usize = 8 << 20;

/// The dump was made while what it lists changed (`NLM_F_DUMP_INTR`).
const DUMP_INTERRUPTED: u16 = 0x10;
const DUMP_ATTEMPTS: usize = 5;

/// What the event socket says.
pub(super) enum Event {
    /// Something changed.
    Message(RouteNetlinkMessage),
    /// Events were lost: read everything again.
    Overrun,
}

/// Both sockets. They belong to the network namespace of the thread that opened them.
pub(super) struct Sockets {
    requests: Handle,
    events: UnboundedReceiver<(NetlinkMessage<RouteNetlinkMessage>, SocketAddr)>,
    _tasks: [AbortOnDropHandle<()>; 2],
}

impl Sockets {
    /// Opens both and subscribes to events. Needs a tokio runtime.
    pub(super) fn open() -> anyhow::Result<Self> {
        let (mut events_task, _, events) =
            new_multicast_connection(GROUPS).context("cannot subscribe to changes of the network")?;
        let socket = events_task.socket_mut().socket_ref();
        if setsockopt(socket, sockopt::RcvBufForce, &EVENT_BUFFER).is_err() {
            tracing::debug!("the event socket keeps the default buffer: CAP_NET_ADMIN is missing");
        }
        let (mut requests_task, requests, _) =
            new_connection().context("cannot open a socket to ask about the network")?;
        // Without it, a dump that was cut short could not be told from one that is complete.
        requests_task.set_forward_done(true);
        let tasks = [tokio::spawn(events_task), tokio::spawn(requests_task)];
        Ok(Self { requests, events, _tasks: tasks.map(AbortOnDropHandle::new) })
    }

    /// The next event; `None` when the socket broke and has to be opened anew. Cancel safe.
    pub(super) async fn event(&mut self) -> Option<Event> {
        loop {
            let (message, _) = self.events.next().await?;
            match message.payload {
                NetlinkPayload::InnerMessage(message) => return Some(Event::Message(message)),
                NetlinkPayload::Overrun(_) => return Some(Event::Overrun),
                // Acknowledgements and the like: nothing was asked on this socket.
                _ => {}
            }
        }
    }

    /// Asks for a list and feeds its elements to `each`, into what `start` makes. Starts again when the list
    /// changed in the meantime.
    pub(super) async fn dump<C>(
        &self,
        request: RouteNetlinkMessage,
        mut start: impl FnMut() -> C,
        mut each: impl FnMut(&mut C, RouteNetlinkMessage),
    ) -> anyhow::Result<C> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut message = NetlinkMessage::from(request.clone());
            message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
            let mut answers = self.requests.clone().request(message)?;
            let mut collected = start();
            let (mut complete, mut interrupted) = (false, false);
            while let Some(answer) = answers.next().await {
                interrupted |= answer.header.flags & DUMP_INTERRUPTED != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(element) => each(&mut collected, element),
                    NetlinkPayload::Done(_) => complete = true,
                    NetlinkPayload::Error(error) => return Err(error.to_io().into()),
                    other => bail!("unexpected answer to a dump: {other:?}"),
                }
            }
            if !complete {
                bail!("the netlink socket closed in the middle of an answer");
            }
            if !interrupted {
                return Ok(collected);
            }
        }
        bail!("the network changes faster than it can be read")
    }

    /// Asks for a change, and waits until the kernel has made it.
    pub(super) async fn create(&self, request: RouteNetlinkMessage) -> std::io::Result<()> {
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE;
        let mut answers = self
            .requests
            .clone()
            .request(message)
            .map_err(|error| std::io::Error::other(error.to_string()))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload {
                return Err(error.to_io());
            }
        }
        Ok(())
    }
}
