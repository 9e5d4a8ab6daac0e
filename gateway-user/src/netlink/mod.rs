//! The host's network: what the data plane must know of it, and what it must do for the data plane.
//!
//! * [`Netlink`] reads devices and addresses ([`Host`]), and again when the kernel reports a change; changes
//!   of routes, rules and neighbors move the data plane's generation, because a next hop that a session
//!   remembers may be wrong. It also keeps next hops resolved (`resolver`).
//! * [`Sysctls`] says which settings of the host stand in the way.
//!
//! All of it concerns the network namespace of the thread that calls.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the enums of netlink are open: the kernel adds to them with every release"
)]

mod host;
mod neighbor;
mod pace;
mod resolver;
mod route;
mod socket;
mod sysctl;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    link::{LinkAttribute, LinkMessage},
    neighbour::NeighbourMessage,
};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, sleep_until},
};

use self::{
    host::Reading,
    neighbor::Table,
    pace::Pace,
    resolver::Resolver,
    socket::{Event, Sockets},
};
use crate::{control::Handle, dataplane::Host, model::Snapshot};

pub use self::sysctl::Sysctls;

/// A host on a link of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbor {
    /// The interface it is reached through.
    pub ifindex: u32,
    /// Its address on that link.
    pub address: IpAddr,
}

/// How long to wait before the next attempt to read what could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// Routers of routes that are gone are forgotten by reading all routes again, this long after a change.
/// A host with a full table has a million routes: not more often.
const ROUTES_AGAIN: Duration = Duration::from_mins(1);

/// The connection to the host's network stack.
pub struct Netlink {
    sockets: Sockets,
    reading: Reading,
    neighbors: Table,
    resolver: Resolver,
    /// MAC addresses of hosts of proxies that the data plane was told to look at.
    proxy_hosts: HashMap<Neighbor, [u8; 6]>,
    pace: Pace,
    todo: Todo,
    /// When to read the routes again.
    routes_due: Option<Instant>,
    /// For which state the resolver was configured.
    configured: Option<Arc<Snapshot>>,
}

/// What is known to have changed since the data plane was last told.
#[derive(Debug, Default)]
struct Todo {
    /// Devices or addresses: read them.
    read_host: bool,
    /// A next hop: tell the data plane even if the host looks the same.
    moved: bool,
    /// Events were lost: read everything.
    resync: bool,
}

impl Netlink {
    /// Connects and reads the host. Needs a tokio runtime.
    pub async fn open() -> anyhow::Result<Self> {
        // Subscribed first: what changes while it is read comes as an event afterwards.
        let sockets = Sockets::open()?;
        let reading = host::read(&sockets).await?;
        let mut neighbors = Table::default();
        neighbors.resync(&sockets).await?;
        let mut resolver = Resolver::default();
        resolver.set_routers(route::read(&sockets).await?);
        Ok(Self {
            sockets,
            reading,
            neighbors,
            resolver,
            proxy_hosts: HashMap::new(),
            pace: Pace::new(),
            todo: Todo::default(),
            routes_due: None,
            configured: None,
        })
    }

    /// The host as it was last read.
    pub fn host(&self) -> &Host {
        &self.reading.host
    }

    /// Follows the host's network and resolves what the packet path wants (`unresolved`), until dropped.
    pub async fn run(&mut self, control: &Handle, mut unresolved: mpsc::Receiver<Neighbor>) {
        let mut tick = interval(resolver::TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let due = self.pace.due();
            tokio::select! {
                event = self.sockets.event() => match event {
                    Some(Event::Message(message)) => self.take_in(&message, &control.snapshot()),
                    Some(Event::Overrun) => self.lost_events(),
                    None => self.reconnect().await,
                },
                Some(neighbor) = unresolved.recv() => {
                    self.resolver.wanted(neighbor, &self.neighbors, &self.sockets, Instant::now()).await;
                }
                _ = tick.tick() => self.tick(control).await,
                () = sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                    self.tell(control).await;
                }
            }
        }
    }

    /// Leaves the neighbors to the kernel alone, for when the data plane is removed.
    pub async fn release(&mut self) {
        if let Err(error) = self.neighbors.resync(&self.sockets).await {
            tracing::warn!("the kernel goes on resolving the gateway's routers: {error:#}");
            return;
        }
        self.resolver.release_all(&self.neighbors, &self.sockets).await;
    }

    fn take_in(&mut self, event: &RouteNetlinkMessage, state: &Snapshot) {
        match event {
            RouteNetlinkMessage::NewNeighbour(message) => {
                let moved = self.neighbors.observe(message, false);
                self.todo.moved |= moved | self.proxy_host_resolved(message);
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                self.todo.moved |= self.neighbors.observe(message, true) | self.neighbors.crowded();
            }
            RouteNetlinkMessage::NewRoute(message) => {
                route::next_hops(message, |router| self.resolver.add_router(router));
                self.route_changed(route::matters(message));
            }
            RouteNetlinkMessage::DelRoute(message) => self.route_changed(route::matters(message)),
            RouteNetlinkMessage::NewRule(_) | RouteNetlinkMessage::DelRule(_) => self.todo.moved = true,
            RouteNetlinkMessage::NewLink(message) => self.link_changed(message, false, state),
            RouteNetlinkMessage::DelLink(message) => self.link_changed(message, true, state),
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_) => {
                self.todo.read_host = true;
            }
            _ => {}
        }
        if self.todo.moved || self.todo.read_host {
            self.pace.poke(Instant::now());
        }
    }

    /// Whether a host of a proxy has got a MAC address that the data plane has not seen.
    fn proxy_host_resolved(&mut self, message: &NeighbourMessage) -> bool {
        let Some((neighbor, mac)) = neighbor::valid(message) else { return false };
        self.resolver.is_of_proxy(&neighbor) && self.proxy_hosts.insert(neighbor, mac) != Some(mac)
    }

    fn link_changed(&mut self, message: &LinkMessage, gone: bool, state: &Snapshot) {
        self.todo.read_host = true;
        let name = message.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name),
            _ => None,
        });
        let Some(name) = name.filter(|name| state.interfaces.contains_key(*name)) else { return };
        let known = self.reading.host.links.get(name).map(|link| link.index);
        // An interface of the gateway that came or went: what arrives there is not looked at before it is told.
        if (known == Some(message.header.index)) == gone {
            self.pace.rush(Instant::now());
        }
    }

    fn route_changed(&mut self, matters: bool) {
        self.todo.moved |= matters;
        self.routes_due.get_or_insert_with(|| Instant::now() + ROUTES_AGAIN);
    }

    fn lost_events(&mut self) {
        tracing::debug!("the kernel had more network events than fit the buffer: reading everything again");
        self.todo.resync = true;
        self.pace.poke(Instant::now());
    }

    async fn reconnect(&mut self) {
        tracing::warn!("the netlink socket closed: opening it again");
        loop {
            match Sockets::open() {
                Ok(sockets) => {
                    self.sockets = sockets;
                    break self.lost_events();
                }
                Err(error) => tracing::error!("changes of the network go unnoticed: {error:#}"),
            }
            sleep(RETRY).await;
        }
    }

    async fn tick(&mut self, control: &Handle) {
        let now = Instant::now();
        if self.routes_due.is_some_and(|due| due <= now) {
            self.routes_due = None;
            match route::read(&self.sockets).await {
                Ok(routers) => self.resolver.set_routers(routers),
                Err(error) => {
                    tracing::warn!("{error:#}");
                    self.routes_due = Some(now + ROUTES_AGAIN);
                }
            }
        }
        let current = control.current();
        if current.host_error.is_some() {
            // It does not know what it was told last: tell it again.
            self.todo.moved = true;
            self.pace.poke(now);
        }
        let snapshot = current.snapshot.clone();
        if self.configured.as_ref().is_none_or(|known| !Arc::ptr_eq(known, &snapshot)) {
            self.resolver.configure(&snapshot, &self.reading.host);
            self.configured = Some(snapshot);
        }
        self.resolver.tick(&self.neighbors, &self.sockets, now).await;
    }

    /// Tells the data plane what has changed.
    async fn tell(&mut self, control: &Handle) {
        let todo = std::mem::take(&mut self.todo);
        let told = self.refresh(&todo).await;
        self.pace.done(Instant::now());
        match told {
            Ok(false) => {}
            Ok(true) => {
                control.host_changed(self.reading.host.clone()).await;
                self.neighbors.told();
                // Its interfaces may have other indexes.
                self.configured = None;
            }
            Err(error) => {
                tracing::warn!("changes of the network are not in force yet: {error:#}");
                self.todo = Todo { resync: true, ..todo };
                self.pace.poke(Instant::now() + RETRY);
            }
        }
    }

    /// Reads again what has changed. Returns whether the data plane has to be told.
    async fn refresh(&mut self, todo: &Todo) -> anyhow::Result<bool> {
        let mut news = todo.moved || todo.resync;
        if todo.read_host || todo.resync {
            let reading = host::read(&self.sockets).await?;
            news |= reading != self.reading;
            self.reading = reading;
        }
        if todo.resync {
            self.neighbors.resync(&self.sockets).await?;
            self.resolver.set_routers(route::read(&self.sockets).await?);
        }
        Ok(news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn following_the_network_can_be_a_task_of_its_own() {
        fn is_send<T: Send>(_: fn(&'static mut Netlink, &'static Handle, mpsc::Receiver<Neighbor>) -> T) {}
        is_send(Netlink::run);
    }
}
