//! `capture`: packets with what became of them, as a pcapng file (draft-ietf-opsawg-pcapng).

use std::{borrow::Cow, time::Duration};

use axum::{body::Bytes, extract::State, response::Response};
use gateway_common::{DropReason, Verdict, watch::MAX_SNAPLEN};
use pcap_file::{
    DataLink, PcapResult,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
            interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption},
        },
    },
};
use tokio::sync::mpsc;

use super::{
    ApiError,
    extract::Query,
    monitor::{self, Bounds, Things},
    request::about,
    server::Ctx,
    types::MonitorQuery,
};
use crate::{
    dataplane::watch::Seen,
    model::error::{ValueError, suggest},
    monitor::{Event, Watch},
};

/// Packets that each CPU shows in a second.
const RATE: u32 = 10_000;
/// Blocks between what makes them and the connection.
const BACKLOG: usize = 64;
/// `if_tsresol`: nanoseconds.
const NANOSECONDS: u8 = 9;
/// `epb_flags`: inbound.
const INBOUND: u32 = 1;

/// `GET /v1/capture`.
pub(super) async fn capture(
    State(context): Ctx,
    Query(query): Query<MonitorQuery>,
) -> Result<Response, ApiError> {
    let (verdicts, reasons) = wanted(&query).map_err(about("capture"))?;
    let filter = query.filter(&context, Things::packets(verdicts, reasons), (MAX_SNAPLEN, RATE))?;
    let snaplen = filter.snaplen;
    let packets = monitor::watch(&context, filter).await?;
    let (sender, receiver) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        if let Err(error) = write(query.bounds(), snaplen, packets, &sender).await {
            tracing::warn!(%error, "a capture ends early");
        }
    });
    Ok(monitor::respond(&context, "application/x-pcapng", receiver))
}

/// Verdicts and reasons that are asked for. A reason asks for dropped packets.
fn wanted(query: &MonitorQuery) -> Result<(Vec<Verdict>, Vec<DropReason>), ValueError> {
    if query.events.is_some() {
        return Err(ValueError::invalid("events", "a capture is of packets").hint("leave `events` out"));
    }
    let reason = query.reason.as_deref().map(monitor::reason).transpose()?;
    let verdict = query.verdict.as_deref().map(verdict).transpose()?;
    if let (Some(reason), Some(verdict)) = (reason, verdict)
        && verdict != Verdict::Drop
    {
        let message = format!("no packet with verdict `{}` has reason `{}`", verdict.name(), reason.name());
        return Err(ValueError::invalid("reason", message).hint("leave `verdict` out"));
    }
    let verdicts = match (verdict, reason) {
        (Some(verdict), _) => vec![verdict],
        (None, Some(_)) => vec![Verdict::Drop],
        (None, None) => Verdict::ALL.to_vec(),
    };
    Ok((verdicts, reason.map_or_else(|| DropReason::ALL.to_vec(), |reason| vec![reason])))
}

/// The verdict with this name.
fn verdict(name: &str) -> Result<Verdict, ValueError> {
    let known = Verdict::ALL.iter().copied();
    known.clone().find(|verdict| verdict.name() == name).ok_or_else(|| {
        ValueError::invalid("verdict", format!("`{name}` is not a verdict"))
            .hint(suggest(name, known.map(Verdict::name)))
    })
}

/// Writes the file until one of both sides has enough.
async fn write(
    end: Bounds,
    snaplen: u32,
    mut packets: Watch,
    blocks: &mpsc::Sender<Bytes>,
) -> PcapResult<()> {
    let mut file = File::new(snaplen)?;
    let mut gone = blocks.send(file.take()).await.is_err();
    let mut is_closed = false;
    while !gone {
        if !is_closed && file.shown >= end.count {
            is_closed = true;
            packets.close();
        }
        let event = tokio::select! {
            event = packets.next() => event,
            () = monitor::at(end.until), if !is_closed => {
                is_closed = true;
                packets.close();
                continue;
            }
            () = blocks.closed() => return Ok(()),
        };
        match event {
            Some(Event::Packet(seen)) if file.shown < end.count => file.add(&seen)?,
            // There was enough before it, and nobody has asked for sessions.
            Some(Event::Packet(_) | Event::Session(_)) => {}
            Some(Event::Lost(lost)) => file.lose(lost),
            None => break,
        }
        let block = file.take();
        gone = !block.is_empty() && blocks.send(block).await.is_err();
    }
    if !gone {
        file.finish()?;
        // Whoever has gone does not need it.
        let _ = blocks.send(file.take()).await;
    }
    Ok(())
}

/// The file, as far as it is not sent yet.
struct File {
    writer: PcapNgWriter<Vec<u8>>,
    snaplen: u32,
    /// Names, in the order of their numbers.
    interfaces: Vec<String>,
    shown: u64,
    /// Packets that are missing, and how many of them the file does not tell yet.
    lost: u64,
    untold: u64,
}

impl File {
    fn new(snaplen: u32) -> PcapResult<Self> {
        let writer = PcapNgWriter::new(Vec::new())?;
        Ok(Self { writer, snaplen, interfaces: Vec::new(), shown: 0, lost: 0, untold: 0 })
    }

    /// What was written since the last time.
    fn take(&mut self) -> Bytes {
        std::mem::take(self.writer.get_mut()).into()
    }

    /// The number of an interface, which is described when it is first named.
    fn interface(&mut self, name: &str) -> PcapResult<u32> {
        if let Some(number) = self.interfaces.iter().position(|known| known == name) {
            return Ok(number as u32);
        }
        let options = vec![
            InterfaceDescriptionOption::IfName(Cow::Owned(name.to_owned())),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ];
        self.writer.write_pcapng_block(InterfaceDescriptionBlock {
            linktype: DataLink::ETHERNET,
            snaplen: self.snaplen,
            options,
        })?;
        self.interfaces.push(name.to_owned());
        Ok(self.interfaces.len() as u32 - 1)
    }

    fn add(&mut self, seen: &Seen) -> PcapResult<()> {
        let interface_id = self.interface(&seen.ingress)?;
        let mut options = vec![
            EnhancedPacketOption::Comment(Cow::Owned(comment(seen))),
            EnhancedPacketOption::Flags(INBOUND),
        ];
        if self.untold > 0 {
            options.push(EnhancedPacketOption::DropCount(std::mem::take(&mut self.untold)));
        }
        let since_epoch = u64::try_from(seen.time.as_nanosecond()).unwrap_or(0);
        self.writer.write_pcapng_block(EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(since_epoch),
            original_len: seen.length,
            // Another stream may want more of it.
            data: Cow::Borrowed(&seen.bytes[..seen.bytes.len().min(self.snaplen as usize)]),
            options,
        })?;
        self.shown += 1;
        Ok(())
    }

    fn lose(&mut self, count: u64) {
        self.lost += count;
        self.untold += count;
    }

    /// Ends the file with how much there is and is not.
    fn finish(&mut self) -> PcapResult<()> {
        let interface_id = match self.interfaces.first().cloned() {
            Some(name) => self.interface(&name)?,
            None if self.lost > 0 => self.interface("any")?,
            None => return Ok(()),
        };
        let options = vec![
            InterfaceStatisticsOption::IsbIfRecv(self.shown + self.lost),
            InterfaceStatisticsOption::IsbOsDrop(self.lost),
        ];
        let block = InterfaceStatisticsBlock { interface_id, timestamp: 0, options };
        self.writer.write_pcapng_block(block).map(drop)
    }
}

/// What became of a packet: `drop no_route`, `snat via eth0`.
fn comment(seen: &Seen) -> String {
    let verdict = seen.verdict.name();
    match (seen.reason, &seen.egress) {
        (Some(reason), _) => format!("{verdict} {}", reason.name()),
        (None, Some(egress)) => format!("{verdict} via {egress}"),
        (None, None) => verdict.to_owned(),
    }
}
