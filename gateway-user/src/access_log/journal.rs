//! Records in the journal of systemd, by its native protocol: a datagram for each, with a field a line.
//!
//! `MESSAGE` is the record as it is in a file; what is asked for most often is a field of its own, so that
//! `journalctl GATEWAY_SOURCE=10.0.1.2` finds it.

use std::{
    fmt::{Display, Write as _},
    os::unix::net::UnixDatagram,
    path::Path,
};

use anyhow::{Context as _, Result};

use super::{Entry, Write};
use crate::dataplane::Logged;

/// Where the journal takes entries, see `systemd-journald.service(8)`.
pub(super) const SOCKET: &str = "/run/systemd/journal/socket";

/// Sends entries to the journal.
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// Sends to the socket at `path` from then on.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let socket = UnixDatagram::unbound().context("cannot open a socket")?;
        socket.connect(path).with_context(|| format!("no journal listens on {}", path.display()))?;
        // A journal that does not read is not waited for: what it does not take is lost, and counted.
        socket.set_nonblocking(true).context("cannot open a socket")?;
        Ok(Self { socket })
    }
}

impl Write for Journal {
    fn write(&mut self, records: &[&Logged]) -> (usize, Result<()>) {
        let mut taken = 0;
        let mut result = Ok(());
        for logged in records {
            match self.socket.send(&fields(&Entry::of(logged))) {
                Ok(_) => taken += 1,
                Err(error) => result = Err(error).context("the journal does not take a record"),
            }
        }
        (taken, result)
    }

    fn look_after(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A record in the form of the protocol. No value has a line break in it.
fn fields(entry: &Entry<'_>) -> Vec<u8> {
    let mut fields = b"SYSLOG_IDENTIFIER=gateway-access\nPRIORITY=6\nMESSAGE=".to_vec();
    entry.write(&mut fields);
    let mut text = String::new();
    let mut add = |name: &str, value: Option<&dyn Display>| {
        if let Some(value) = value {
            // Writing to a string does not fail.
            let _ = writeln!(text, "GATEWAY_{name}={value}");
        }
    };
    let (source, destination) = (entry.source, entry.destination);
    add("EVENT", Some(&entry.event));
    add("PROTO", Some(&entry.proto));
    add("SOURCE", Some(&source.address));
    add("DESTINATION", Some(&destination.address));
    add("DESTINATION_PORT", Some(&destination.port));
    if let Some(translated) = entry.translated {
        add("TRANSLATED", Some(&translated.address));
        add("TRANSLATED_PORT", Some(&translated.port));
    }
    add("TABLE", entry.table.as_ref().map(|name| name as &dyn Display));
    add("ROUTE", entry.route.as_ref().map(|name| name as &dyn Display));
    add("REASON", entry.reason.as_ref().map(|name| name as &dyn Display));
    fields.extend(text.bytes());
    fields
}
