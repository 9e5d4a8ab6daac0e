//! The body of `route import`: a prefix a line, read while it arrives.

use std::collections::BTreeSet;

use axum::body::{Body, Bytes};
use futures::StreamExt as _;
use ipnet::IpNet;
use tokio::sync::mpsc;

use super::{ApiError, ErrorKind};
use crate::{model::words::parse_prefix_line, priority};

/// Longest line, in bytes.
const MAX_LINE: usize = 4_096;

/// Largest body, in bytes: remarks behind every one of the prefixes that there can be.
const MAX_BODY: usize = 1 << 30;

/// Pieces of the body that may wait to be read. A thread that stands back waits long for each of its turns, and should
/// find much to do then.
const AHEAD: usize = 64;

/// Reads all of `body`, which has at most `most` prefixes, on a thread that stands back for packets.
///
/// # Errors
/// The first line that is wrong, by its number. What follows is not looked at, but read: a client that still writes
/// would not see the answer.
pub(super) async fn prefixes(body: Body, most: usize) -> Result<BTreeSet<IpNet>, ApiError> {
    let (sender, mut pieces) = mpsc::channel::<Bytes>(AHEAD);
    let read = move || {
        let (mut lines, mut refused) = (Lines::new(most), None);
        while let Some(piece) = pieces.blocking_recv() {
            if refused.is_none() {
                refused = lines.add(&piece).err();
            }
        }
        refused.map_or_else(|| lines.end(), Err)
    };
    let (passed, prefixes) = tokio::join!(pass_on(body, sender), priority::stand_back(read));
    passed?;
    let fault =
        |error| ApiError::new("daemon", ErrorKind::Internal, format!("cannot read the body: {error}"));
    prefixes.map_err(fault)?
}

/// Passes the pieces of `body` on as they come.
async fn pass_on(body: Body, to: mpsc::Sender<Bytes>) -> Result<(), ApiError> {
    let mut passed = 0;
    let mut pieces = body.into_data_stream();
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| {
            ApiError::new("request", ErrorKind::Invalid, format!("the body cannot be read: {error}"))
        })?;
        passed += piece.len();
        if passed > MAX_BODY {
            let message = format!("the body has more than {MAX_BODY} bytes");
            return Err(ApiError::new("request", ErrorKind::TooLarge, message).hint("import it in parts"));
        }
        if to.send(piece).await.is_err() {
            // The thread has failed, which is told by whoever waits for it.
            return Ok(());
        }
    }
    Ok(())
}

/// Lines out of pieces that end anywhere.
struct Lines {
    /// As they come: to sort a million once is faster than to enter each of them at its place.
    prefixes: Vec<IpNet>,
    /// The same, each once, where those that come may be more than `most`.
    distinct: Option<BTreeSet<IpNet>>,
    most: usize,
    /// Lines that are read.
    number: usize,
    /// The beginning of the line that the last piece has ended in.
    begun: Vec<u8>,
}

impl Lines {
    fn new(most: usize) -> Self {
        Self { prefixes: Vec::new(), distinct: None, most, number: 0, begun: Vec::new() }
    }

    fn add(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        let mut rest = chunk;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = (&rest[..end], &rest[end + 1..]);
            if self.begun.is_empty() {
                self.line(line)?;
            } else {
                let mut whole = std::mem::take(&mut self.begun);
                whole.extend_from_slice(line);
                self.line(&whole)?;
            }
            rest = behind;
        }
        if self.begun.len() + rest.len() > MAX_LINE {
            return Err(self.refuse(&format!("the line is longer than {MAX_LINE} bytes")));
        }
        self.begun.extend_from_slice(rest);
        Ok(())
    }

    fn end(mut self) -> Result<BTreeSet<IpNet>, ApiError> {
        let last = std::mem::take(&mut self.begun);
        self.line(&last)?;
        Ok(self.distinct.unwrap_or_else(|| self.prefixes.into_iter().collect()))
    }

    fn line(&mut self, line: &[u8]) -> Result<(), ApiError> {
        self.number += 1;
        let Ok(text) = std::str::from_utf8(line) else {
            return Err(self.refuse("the line is not text"));
        };
        let read = parse_prefix_line(text).map_err(|error| {
            let message = format!("line {}: {}", self.number, error.message);
            ApiError { message, ..ApiError::value("route", error) }
        })?;
        if let Some(distinct) = &mut self.distinct {
            distinct.extend(read);
        } else {
            self.prefixes.extend(read);
            if self.prefixes.len() > self.most {
                self.distinct = Some(std::mem::take(&mut self.prefixes).into_iter().collect());
            }
        }
        if self.distinct.as_ref().is_some_and(|distinct| distinct.len() > self.most) {
            let message = format!("line {}: there are more than {} prefixes", self.number, self.most);
            return Err(ApiError::new("route", ErrorKind::Full, message)
                .hint("raise capacity.routes in the configuration file"));
        }
        Ok(())
    }

    fn refuse(&self, what: &str) -> ApiError {
        ApiError::new("route", ErrorKind::Invalid, format!("line {}: {what}", self.number.max(1)))
            .hint("one prefix a line; `#` begins a remark")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Result<Vec<String>, String> {
        let mut lines = Lines::new(3);
        let added = pieces.iter().try_for_each(|piece| lines.add(piece));
        let prefixes = added.and_then(|()| lines.end()).map_err(|error| error.message)?;
        Ok(prefixes.into_iter().map(|prefix| prefix.to_string()).collect())
    }

    #[test]
    fn lines_come_in_pieces() {
        let text = b"# trusted\n203.0.113.0/24\r\n\n2001:db8::/32 # ours\n192.0.2.1";
        let whole = read(&[text]).expect("prefixes");
        assert_eq!(whole, ["192.0.2.1/32", "203.0.113.0/24", "2001:db8::/32"]);
        for size in 1..text.len() {
            assert_eq!(read(&text.chunks(size).collect::<Vec<_>>()), Ok(whole.clone()), "{size}");
        }
    }

    #[test]
    fn a_bad_line_is_named_by_its_number() {
        let refused = |text: &[u8]| read(&[text]).expect_err("refused");
        assert_eq!(refused(b"\n# x\n203.0.113.1/24\n"), "line 3: prefix `203.0.113.1/24` has host bits set");
        assert_eq!(refused(b"192.0.2.1\n\xff\n"), "line 2: the line is not text");
        assert_eq!(refused(b"1.1.1.1\n1.1.1.2\n1.1.1.3\n1.1.1.4"), "line 4: there are more than 3 prefixes");
        assert!(refused(&[b'x'; MAX_LINE + 1]).contains("longer than"));
    }

    #[test]
    fn a_prefix_may_be_there_twice() {
        assert_eq!(read(&[b"192.0.2.1\n192.0.2.1/32"]).expect("prefixes"), ["192.0.2.1/32"]);
        // And more often than there is room for prefixes.
        let often = b"192.0.2.2\n192.0.2.1\n".repeat(5);
        assert_eq!(read(&[&often]).expect("prefixes"), ["192.0.2.1/32", "192.0.2.2/32"]);
        let many = [&often[..], b"192.0.2.3\n192.0.2.4"].concat();
        assert_eq!(read(&[&many]).expect_err("refused"), "line 12: there are more than 3 prefixes");
    }
}
