//! The links that hold the program on devices. Each is pinned, and outlives the daemon.

use std::{
    fmt, fs,
    os::fd::{AsFd as _, OwnedFd},
};

use anyhow::{Context as _, Result, anyhow};
use aya::programs::{
    Xdp, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};

use super::{pins::Pins, sys};
use crate::dataplane::Link;

/// Where in the receive path a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Driver {
    /// In the driver.
    Native,
    /// In the kernel's generic path.
    Generic,
}

impl Driver {
    /// As operators write it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The pinned link of a device name.
pub(super) struct Pinned {
    link: FdLink,
    fd: OwnedFd,
    /// The device it is on; 0 if that is gone.
    pub(super) ifindex: u32,
}

/// Opens the pinned link of the device `name`, if there is one.
pub(super) fn open(pins: &Pins, name: &str) -> Result<Option<Pinned>> {
    let pin = pins.link(name);
    if !pin.exists() {
        return Ok(None);
    }
    let link: FdLink = PinnedLink::from_pin(&pin)
        .with_context(|| format!("cannot open the pinned link {}", pin.display()))?
        .into();
    let fd = sys::open_pin(&pin)?;
    let ifindex = sys::link_ifindex(fd.as_fd())
        .with_context(|| format!("cannot ask the pinned link {} for its device", pin.display()))?;
    Ok(Some(Pinned { link, fd, ifindex }))
}

/// Puts `program` in the place of the one that `pinned` holds. No packet is missed.
pub(super) fn update(program: &mut Xdp, pinned: Pinned, name: &str) -> Result<()> {
    let link = XdpLink::try_from(pinned.link)
        .map_err(|_| anyhow!("the pinned link of {name} is not an XDP link"))?;
    let id = program.attach_to_link(link).with_context(|| format!("cannot replace the program on {name}"))?;
    drop(program.take_link(id)?);
    Ok(())
}

/// Takes the program off the device. When this returns it is off, whoever else holds the link.
pub(super) fn break_off(pins: &Pins, pinned: &Pinned, name: &str) -> Result<()> {
    sys::detach_link(pinned.fd.as_fd()).with_context(|| format!("cannot detach from {name}"))?;
    unpin(pins, name)
}

/// Removes the pin of a link.
pub(super) fn unpin(pins: &Pins, name: &str) -> Result<()> {
    let pin = pins.link(name);
    match fs::remove_file(&pin) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove the pinned link {}", pin.display()))
        }
        _ => Ok(()),
    }
}

/// Puts the program on a device, in the first of `ways` that the device takes, and pins the link.
pub(super) fn make(
    program: &mut Xdp,
    pins: &Pins,
    name: &str,
    device: &Link,
    ways: &[Driver],
) -> Result<Driver> {
    let mut refused = None;
    for way in ways {
        let mode = match way {
            Driver::Native => XdpMode::Driver,
            Driver::Generic => XdpMode::Skb,
        };
        let id = match program.attach_to_if_index(device.index, mode) {
            Ok(id) => id,
            Err(error) => {
                let error = anyhow::Error::new(error);
                if ways.len() > 1 {
                    let cause = error.root_cause();
                    tracing::warn!(interface = name, error = %cause, "does not take the program in {way} mode");
                }
                refused = Some(error);
                continue;
            }
        };
        let link: FdLink = program.take_link(id)?.try_into().map_err(|_| {
            anyhow!("the kernel does not offer links for XDP on {name}; Linux 5.9 is the oldest that does")
        })?;
        let pin = pins.link(name);
        link.pin(&pin).with_context(|| format!("cannot pin the link {}", pin.display()))?;
        return Ok(*way);
    }
    let refused = refused.unwrap_or_else(|| anyhow!("no mode is left to try"));
    Err(refused.context(format!("cannot attach to interface {name}")))
}
