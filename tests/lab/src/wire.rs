//! Single frames, put on a device and read from it.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    errno::Errno,
    net::if_::if_nametoindex,
    sys::{
        socket::{
            AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind,
            recvfrom, send, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::node::Node;

/// A packet socket on a device. It hears what the device receives and what its own host sends.
pub struct Wire {
    socket: OwnedFd,
    place: String,
}

/// A frame that was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// From the Ethernet header on. The kernel has taken an outer VLAN tag off.
    pub bytes: Vec<u8>,
    /// Whether this host sent it.
    pub sent: bool,
}

impl Wire {
    /// Starts listening. Frames are kept from this moment on.
    pub fn open(node: &Node, device: &str) -> Result<Self> {
        let place = format!("{device} of {}", node.name());
        let socket = node.enter(|| listen(device))?.with_context(|| format!("cannot listen on {place}"))?;
        Ok(Self { socket, place })
    }

    /// Sends a frame, from the Ethernet header on.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = send(self.socket.as_raw_fd(), frame, MsgFlags::empty());
        sent.with_context(|| format!("cannot send on {}", self.place)).map(|_| ())
    }

    /// The next frame that this device receives and `wanted` accepts; others are passed over.
    ///
    /// # Errors
    /// If there is none within `limit`; `what` names the frame in the message.
    pub fn expect(
        &self,
        what: &str,
        limit: Duration,
        mut wanted: impl FnMut(&[u8]) -> bool,
    ) -> Result<Vec<u8>> {
        let end = Instant::now() + limit;
        let mut others = 0;
        while let Some(frame) = self.next(end)? {
            if !frame.sent && wanted(&frame.bytes) {
                return Ok(frame.bytes);
            }
            others += 1;
        }
        bail!("no {what} on {} within {limit:?}, but {others} other frames", self.place);
    }

    /// Everything heard so far and during the next `time`, in order.
    pub fn collect(&self, time: Duration) -> Result<Vec<Frame>> {
        let end = Instant::now() + time;
        let mut frames = Vec::new();
        while let Some(frame) = self.next(end)? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn next(&self, end: Instant) -> Result<Option<Frame>> {
        let mut bytes = vec![0; 65536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            // Zero would mean for ever.
            let left = TimeVal::microseconds(i64::try_from(left.as_micros())?.max(1));
            setsockopt(&self.socket, sockopt::ReceiveTimeout, &left)?;
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut bytes) {
                Ok((length, from)) => {
                    bytes.truncate(length);
                    let sent = from.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING);
                    return Ok(Some(Frame { bytes, sent }));
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => {
                    return Err(io::Error::from(errno))
                        .with_context(|| format!("cannot read {}", self.place));
                }
            }
        }
    }
}

/// A packet socket bound to a device of the calling thread's namespace.
fn listen(device: &str) -> Result<OwnedFd> {
    let index = if_nametoindex(device)?;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let raw = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: i32::try_from(index)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: `raw` is a valid sockaddr_ll, and the length is its own.
    let address = unsafe { LinkAddr::from_raw((&raw const raw).cast(), Some(size_of_val(&raw) as u32)) };
    bind(socket.as_raw_fd(), &address.context("no link address")?)?;
    setsockopt(&socket, sockopt::RcvBuf, &(4 << 20))?;
    Ok(socket)
}
