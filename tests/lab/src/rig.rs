//! The standard lab with a gateway at work in it, and how its clients speak.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{gatewayd::Gatewayd, node::Node, skip::runnable, standard::Lab};

/// How long a client waits for an answer that should come.
const PATIENCE: Duration = Duration::from_secs(3);

/// The standard lab, with the daemon running on its gateway.
pub struct Rig {
    /// The daemon.
    pub daemon: Gatewayd,
    /// The network.
    pub lab: Lab,
}

impl Rig {
    /// A lab whose gateway is `active` or `inactive` and has `more` in its configuration.
    ///
    /// `None` where no lab can be made; the calling test is then reported as skipped, and should return.
    pub fn start(state: &str, more: &str) -> Result<Option<Self>> {
        if !runnable() {
            return Ok(None);
        }
        let lab = Lab::standard()?;
        let daemon = Gatewayd::start(&lab.sandbox, &lab.gw, &Gatewayd::standard_config(state, more))?;
        Ok(Some(Self { daemon, lab }))
    }
}

/// Asks a UDP server which address it sees.
///
/// # Errors
/// If no answer comes.
pub fn ask_udp(client: &Node, source: &str, server: &str) -> Result<SocketAddr> {
    UdpClient::new(client, source)?.ask(server)
}

/// A UDP socket of a client.
pub struct UdpClient {
    socket: UdpSocket,
}

impl UdpClient {
    /// Binds a socket to `source` on a node.
    pub fn new(client: &Node, source: &str) -> Result<Self> {
        let socket = client.enter(|| UdpSocket::bind(source))?;
        let socket = socket.with_context(|| format!("cannot bind to {source} in {}", client.name()))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket })
    }

    /// Asks a server of [`crate::server::Server::udp`] which address it sees.
    pub fn ask(&self, server: &str) -> Result<SocketAddr> {
        let mut answer = [0; 64];
        self.socket.send_to(b"who am I", server)?;
        let (length, from) = self.socket.recv_from(&mut answer).context("no answer")?;
        if from.to_string() != server {
            bail!("asked {server} and {from} answered");
        }
        let text = String::from_utf8_lossy(&answer[..length]);
        text.parse().with_context(|| format!("the server answered {text}"))
    }

    /// Asks a server that must not answer.
    pub fn ask_in_vain(&self, server: &str) -> Result<()> {
        self.socket.set_read_timeout(Some(Duration::from_millis(300)))?;
        let said = self.ask(server);
        self.socket.set_read_timeout(Some(PATIENCE))?;
        match said {
            Ok(address) => bail!("{server} answered, and saw {address}"),
            Err(_) => Ok(()),
        }
    }
}

/// Asks an HTTP server which address it sees, with curl.
pub fn ask_http(client: &Node, server: &str) -> Result<SocketAddr> {
    let said =
        client.ok(&["curl", "--silent", "--show-error", "--max-time", "5", &format!("http://{server}/")])?;
    said.trim().parse().with_context(|| format!("{server} answered {said}"))
}
