//! Capture files of failing tests, for tcpdump and Wireshark.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const VERSION: [u16; 2] = [2, 4];
const LINKTYPE_ETHERNET: u32 = 1;

/// A capture file (libpcap format, <https://ietf.org/archive/id/draft-ietf-opsawg-pcap-05.html>).
pub struct Pcap {
    file: BufWriter<File>,
    path: PathBuf,
}

impl Pcap {
    /// Makes `target/test-pcap/NAME.pcap`, without characters in the name that paths do not like.
    pub fn create(name: &str) -> Result<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("test-pcap");
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        let path = directory.join(name).with_extension("pcap");
        let file = std::fs::create_dir_all(&directory).and_then(|()| File::create(&path));
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        let mut pcap = Self { file: BufWriter::new(file), path };
        pcap.file.write_all(&MAGIC_MICROSECONDS.to_ne_bytes())?;
        pcap.file.write_all(&VERSION.map(u16::to_ne_bytes).concat())?;
        // Two reserved words and the longest frame; the reader learns the byte order from the magic number.
        for word in [0, 0, u32::from(u16::MAX), LINKTYPE_ETHERNET] {
            pcap.file.write_all(&word.to_ne_bytes())?;
        }
        Ok(pcap)
    }

    /// Appends a frame. Tests are not about time: it is what tells the frames of a file apart.
    pub fn frame(&mut self, second: u32, microsecond: u32, frame: &[u8]) -> Result<()> {
        let length = u32::try_from(frame.len()).context("a frame of 4 GiB")?;
        for word in [second, microsecond, length, length] {
            self.file.write_all(&word.to_ne_bytes())?;
        }
        Ok(self.file.write_all(frame)?)
    }

    /// Completes the file, and says where it is.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.file.flush()?;
        Ok(self.path)
    }
}
