//! The standard lab with a gateway at work in it, and how its clients speak.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use crate::{gatewayd::Gatewayd, node::Node, skip::runnable, standard::Lab};

/// How long a client waits for an answer before it asks again.
const PATIENCE: Duration = Duration::from_millis(700);

/// How often a client asks: the first question may be lost while a router asks for a MAC address.
const ATTEMPTS: usize = 4;

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
        Ok(Self { socket })
    }

    /// Asks a server of [`crate::server::Server::udp`] which address it sees; again if no answer comes.
    pub fn ask(&self, server: &str) -> Result<SocketAddr> {
        for _ in 1..ATTEMPTS {
            if let Some(seen) = self.ask_once(server, PATIENCE)? {
                return Ok(seen);
            }
        }
        self.ask_once(server, PATIENCE)?.with_context(|| format!("{server} did not answer {ATTEMPTS} times"))
    }

    /// Asks a server that must not answer.
    pub fn ask_in_vain(&self, server: &str) -> Result<()> {
        match self.ask_once(server, Duration::from_millis(300))? {
            Some(address) => bail!("{server} answered, and saw {address}"),
            None => Ok(()),
        }
    }

    /// The socket itself. To close it and bind another would fail now and then: a process that another thread starts at
    /// this moment has it too, for a moment.
    pub fn into_socket(self) -> UdpSocket {
        self.socket
    }

    fn ask_once(&self, server: &str, patience: Duration) -> Result<Option<SocketAddr>> {
        let mut answer = [0; 64];
        self.socket.set_read_timeout(Some(patience))?;
        self.socket.send_to(b"who am I", server)?;
        let (length, from) = match self.socket.recv_from(&mut answer) {
            Ok(answered) => answered,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("cannot receive"),
        };
        if from.to_string() != server {
            bail!("asked {server} and {from} answered");
        }
        let text = String::from_utf8_lossy(&answer[..length]);
        text.parse().map(Some).with_context(|| format!("the server answered {text}"))
    }
}

/// Asks an HTTP server which address it sees, with curl.
pub fn ask_http(client: &Node, server: &str) -> Result<SocketAddr> {
    let said =
        client.ok(&["curl", "--silent", "--show-error", "--max-time", "5", &format!("http://{server}/")])?;
    said.trim().parse().with_context(|| format!("{server} answered {said}"))
}
