//! `gwctl capture`.

use std::{
    fs::{File, Permissions},
    io::{self, BufWriter, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::Instant,
};

use clap::Args;

use super::{
    context::Context,
    failure::Failure,
    monitor::{Bounds, Filter},
    value,
};
use crate::api::{error::exit, types::MonitorQuery};

/// Size of the file, unless another one is given.
const MAX_SIZE: u64 = 100 << 20;

/// Types of pcapng blocks, and the option of an enhanced packet block that says how many are missing before it.
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const OPTION_MISSING: u16 = 4;
const OPTION_OS_DROP: u16 = 7;

#[derive(Args, Debug)]
#[command(after_help = "gwctl capture -w gw.pcapng for 10s\n\
                  gwctl capture from 10.0.1.2 dport 443 -w gw.pcapng count 100\n\
                  gwctl capture reason no_route -w -")]
pub(super) struct Capture {
    #[command(flatten)]
    filter: Filter,
    /// Only packets that became this
    #[arg(long, value_name = "VERDICT")]
    verdict: Option<String>,
    /// Only packets that were dropped for this reason
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    #[command(flatten)]
    bounds: Bounds,
    /// Where to write; - for standard output
    #[arg(short, long, value_name = "FILE", required = true, help_heading = super::words::OPTIONS)]
    write: PathBuf,
    /// Bytes of each packet, up to 4096 [4096]
    #[arg(long, value_name = "BYTES", help_heading = super::words::OPTIONS)]
    snaplen: Option<u32>,
    /// End before the file is larger, in bytes, or with KiB, MiB, GiB [100MiB]
    #[arg(long, value_name = "SIZE", value_parser = value::size, help_heading = super::words::OPTIONS)]
    max_size: Option<u64>,
}

impl Capture {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let Self { filter, verdict, reason, bounds, write, snaplen, max_size } = self;
        let query = MonitorQuery { reason, verdict, snaplen, ..filter.query(&bounds) };
        let to_output = write.as_os_str() == "-";
        if to_output && context.terminal.out_is_terminal {
            return Err(Failure::usage("a capture is not for a terminal")
                .hint("name a file: `-w FILE`, or a pipe: `-w - | tshark -r -`"));
        }
        let begin = Instant::now();
        let mut stream = context.open("/v1/capture", &query).await?;
        let mut file = if to_output { None } else { Some(create(&write)?) };
        let mut tally = Tally::default();
        let mut pending = Vec::new();
        let most = max_size.unwrap_or(MAX_SIZE);
        let mut is_full = false;
        'blocks: while let Some(piece) = stream.next(context).await? {
            pending.extend_from_slice(&piece);
            let mut at = 0;
            while let Some(block) = first_block(&pending[at..]) {
                if tally.bytes + block.len() as u64 > most {
                    context.note(&format!("the capture ends at {most} bytes: `--max-size` allows more"));
                    is_full = true;
                    break 'blocks;
                }
                tally.add(block);
                match &mut file {
                    Some(file) => file.write_all(block).map_err(|error| unwritable(&write, &error))?,
                    None => context.terminal.out.write_all(block)?,
                }
                at += block.len();
            }
            pending.drain(..at);
            if file.is_none() {
                context.terminal.out.flush()?;
            }
        }
        if let Some(file) = &mut file {
            file.flush().map_err(|error| unwritable(&write, &error))?;
        }
        let missing = if tally.lost > 0 { format!(", {} are missing", tally.lost) } else { String::new() };
        let noun = if tally.packets == 1 { "packet" } else { "packets" };
        context.note(&format!("{} {noun}{missing}", tally.packets));
        stream.finish(is_full || bounds.are_reached(tally.packets, begin))
    }
}

/// Makes the file; what packets carry is for nobody else's eyes.
fn create(path: &Path) -> Result<BufWriter<File>, Failure> {
    let make = || {
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        if file.metadata()?.is_file() {
            // One that was there may have been for everybody's.
            file.set_permissions(Permissions::from_mode(0o600))?;
        }
        Ok(BufWriter::new(file))
    };
    make().map_err(|error| unwritable(path, &error))
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::new(exit::UNEXPECTED, format!("cannot write {}: {error}", path.display()))
        .hint("what was written until then can be read")
}

/// The first block of `bytes`, if all of it is there.
fn first_block(bytes: &[u8]) -> Option<&[u8]> {
    let length = u32::from_ne_bytes(*bytes.get(4..)?.first_chunk()?) as usize;
    bytes.get(..length.max(12))
}

/// What a file holds.
#[derive(Default)]
struct Tally {
    bytes: u64,
    packets: u64,
    lost: u64,
}

impl Tally {
    fn add(&mut self, block: &[u8]) {
        let word = |at: usize| {
            let bytes = block.get(at..).and_then(<[u8]>::first_chunk);
            bytes.map_or(0, |bytes| u32::from_ne_bytes(*bytes))
        };
        self.bytes += block.len() as u64;
        match word(0) {
            PACKET => {
                self.packets += 1;
                let options = 28 + (word(20) as usize).next_multiple_of(4);
                self.lost += option(block.get(options..).unwrap_or_default(), OPTION_MISSING).unwrap_or(0);
            }
            STATISTICS => {
                let lost = option(block.get(20..).unwrap_or_default(), OPTION_OS_DROP);
                self.lost = self.lost.max(lost.unwrap_or(0));
            }
            _ => {}
        }
    }
}

/// The 64 bits of an option.
fn option(mut options: &[u8], wanted: u16) -> Option<u64> {
    loop {
        let ([c0, c1, l0, l1], rest) = options.split_first_chunk()?;
        let (code, length) = (u16::from_ne_bytes([*c0, *c1]), usize::from(u16::from_ne_bytes([*l0, *l1])));
        if code == wanted {
            return rest.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes));
        }
        if code == 0 {
            return None;
        }
        options = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_was_for_everybody_is_emptied_and_for_its_owner_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("gw.pcapng");
        fs::write(&path, "what was there").expect("a file");
        fs::set_permissions(&path, Permissions::from_mode(0o666)).expect("its mode");
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&fs::metadata(path).expect("a file"));
        let before = inode(&path);
        for _ in 0..2 {
            drop(create(&path).expect("a file to write to"));
            let metadata = fs::metadata(&path).expect("it is there");
            assert_eq!((metadata.permissions().mode() & 0o7777, metadata.len()), (0o600, 0));
        }
        assert_eq!(inode(&path), before);
        fs::remove_file(&path).expect("removed");
        drop(create(&path).expect("a file to write to"));
        assert_eq!(fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777, 0o600);
    }
}
