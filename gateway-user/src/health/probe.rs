//! One check of one host.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdSocket},
    os::fd::{AsFd, AsRawFd as _},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use gateway_common::checksum;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use tokio::{
    net::{TcpSocket, TcpStream, UdpSocket},
    time::timeout,
};

use crate::{dataplane::tunnel::MARK, model::Check};

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The host answered as it should.
    Alive,
    /// The host, or a router, said no.
    Refused(String),
    /// Nobody said anything in time.
    Silent(String),
    /// The check could not be made.
    Inconclusive(String),
}

/// Checks a host, through its tunnel or not, for no longer than `patience`.
pub(super) async fn probe(check: Check, host: IpAddr, tunnel: bool, patience: Duration) -> Outcome {
    let result = match check {
        Check::None => return Outcome::Alive,
        // The connection is closed as soon as it is there.
        Check::Tcp(port) => timeout(patience, connect(host, port, tunnel)).await,
        Check::Icmp => timeout(patience, echo(host, tunnel)).await,
    };
    match result {
        Ok(Ok(())) => Outcome::Alive,
        Ok(Err(error)) => failure(check, &error),
        Err(_) => {
            let patience = humantime::format_duration(patience);
            Outcome::Silent(format!("no answer to {} within {patience}", asked(check)))
        }
    }
}

/// What an error says of the host.
fn failure(check: Check, error: &io::Error) -> Outcome {
    let why = |what: &str| format!("{}: {what}", asked(check));
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => Outcome::Refused(why("connection refused")),
        Some(libc::ECONNRESET) => Outcome::Refused(why("connection reset")),
        Some(libc::EHOSTUNREACH) => Outcome::Refused(why("host unreachable")),
        Some(libc::ENETUNREACH) => Outcome::Refused(why("network unreachable")),
        Some(libc::ETIMEDOUT) => Outcome::Silent(why("timed out")),
        // No descriptor, no port, no permission: the gateway's own trouble.
        _ => Outcome::Inconclusive(why(&error.to_string())),
    }
}

fn asked(check: Check) -> String {
    match check {
        Check::Tcp(port) => format!("tcp port {port}"),
        Check::Icmp => "icmp echo".to_owned(),
        Check::None => "nothing".to_owned(),
    }
}

async fn connect(host: IpAddr, port: u16, tunnel: bool) -> io::Result<()> {
    if !tunnel {
        return TcpStream::connect((host, port)).await.map(drop);
    }
    let socket = if host.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    lead_into_tunnel(&socket)?;
    // From the address that the tunnel has, and not any that the host has elsewhere.
    socket.bind(SocketAddr::new(source_towards(host)?, 0))?;
    socket.connect(SocketAddr::new(host, port)).await.map(drop)
}

/// Has the routing rules of tunnels lead what a socket sends. Answers may come by any way.
fn lead_into_tunnel(socket: &impl AsFd) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::Mark, &MARK)?)
}

/// The address that the gateway host has towards a host. Nothing is sent.
fn source_towards(host: IpAddr) -> io::Result<IpAddr> {
    let any: IpAddr =
        if host.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = StdSocket::bind((any, 0))?;
    socket.connect((host, DISCARD))?;
    Ok(socket.local_addr()?.ip())
}

/// A port, because a connected socket has one (RFC 863).
const DISCARD: u16 = 9;

/// Sends an echo request and waits for its answer (RFC 792, RFC 4443 section 4).
async fn echo(host: IpAddr, tunnel: bool) -> io::Result<()> {
    let socket = raw(host)?;
    if tunnel {
        lead_into_tunnel(&socket)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source_towards(host)?, 0)))?;
    }
    // The kernel passes on what comes from this host alone.
    socket.connect(SocketAddr::new(host, 0)).await?;
    let request = request(host, number());
    socket.send(&request).await?;
    let mut buffer = [0; 128];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if is_answer(host, request, buffer.get(..length).unwrap_or_default()) {
            return Ok(());
        }
    }
}

/// A raw socket for ICMP of the family of `host`. Unlike ping sockets, it does not depend on a sysctl.
fn raw(host: IpAddr) -> io::Result<UdpSocket> {
    let (family, protocol) = match host {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    // Sending and receiving on a connected socket are the same calls for both kinds.
    UdpSocket::from_std(StdSocket::from(socket(family, SockType::Raw, flags, protocol)?))
}

/// Length of an echo message: header, and nothing else.
const ECHO: usize = 8;

/// The request with this number in the place of identifier and sequence number.
fn request(host: IpAddr, number: u32) -> [u8; ECHO] {
    let [a, b, c, d] = number.to_be_bytes();
    match host {
        // The kernel computes the checksum of ICMPv6, which covers addresses.
        IpAddr::V6(_) => [128, 0, 0, 0, a, b, c, d],
        IpAddr::V4(_) => {
            let mut message = [8, 0, 0, 0, a, b, c, d];
            let sum = !checksum::fold(checksum::sum(&message));
            message[2..4].copy_from_slice(&sum.to_be_bytes());
            message
        }
    }
}

/// Whether `packet` answers `request`. With IPv4, raw sockets deliver the IP header, too.
fn is_answer(host: IpAddr, request: [u8; ECHO], packet: &[u8]) -> bool {
    let (kind, header) = match host {
        IpAddr::V4(_) => (0, packet.first().map_or(0, |first| usize::from(first & 0xf) * 4)),
        IpAddr::V6(_) => (129, 0),
    };
    let message = packet.get(header..).unwrap_or_default();
    message.len() >= ECHO && message[..2] == [kind, 0] && message[4..ECHO] == request[4..]
}

/// A number that no other request of this process has.
fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Other processes ping, too; their numbers are of another kind.
    NEXT.fetch_add(1, Ordering::Relaxed) ^ std::process::id().rotate_left(16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_port_that_listens_is_alive_and_one_that_does_not_refuses() {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let host = Ipv4Addr::LOCALHOST.into();
        assert_eq!(probe(Check::Tcp(port), host, false, PATIENCE).await, Outcome::Alive);
        drop(listener);
        let refused = Outcome::Refused(format!("tcp port {port}: connection refused"));
        assert_eq!(probe(Check::Tcp(port), host, false, PATIENCE).await, refused);
    }

    #[test]
    fn an_echo_request_has_a_good_checksum() {
        let message = request(Ipv4Addr::LOCALHOST.into(), 0x1234_5678);
        assert_eq!(checksum::fold(checksum::sum(&message)), 0xffff);
    }

    #[test]
    fn the_answer_is_told_from_other_messages() {
        let v4 = IpAddr::from(Ipv4Addr::LOCALHOST);
        let asked = request(v4, 0x1234_5678);
        let mut packet = [0; 20 + ECHO];
        packet[0] = 0x45;
        packet[24..].copy_from_slice(&asked[4..]);
        assert!(is_answer(v4, asked, &packet));
        assert!(!is_answer(v4, request(v4, 7), &packet));
        assert!(!is_answer(v4, asked, &packet[..27]));
        packet[20] = 8;
        assert!(!is_answer(v4, asked, &packet), "a request is no answer");
        let v6 = IpAddr::from(Ipv6Addr::LOCALHOST);
        let asked = request(v6, 0x1234_5678);
        let mut message = asked;
        message[0] = 129;
        assert!(is_answer(v6, asked, &message));
        assert!(!is_answer(v6, asked, &asked));
    }

    #[tokio::test]
    async fn this_host_answers_echo_requests() {
        for host in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
            let outcome = probe(Check::Icmp, host, false, PATIENCE).await;
            if let Outcome::Inconclusive(why) = &outcome {
                gateway_lab::skip(&format!("{host}: {why}"));
            } else {
                assert_eq!(outcome, Outcome::Alive, "{host}");
            }
        }
    }
}
