//! The pin directory: what keeps the gateway working while no daemon runs, and the checks before it is taken
//! over.
//!
//! ```text
//! PIN-DIR/maps/NAME     every map of the object
//! PIN-DIR/links/DEVICE  one link per attached interface
//! ```

use std::{
    fs,
    os::{fd::AsFd as _, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData};
use aya_obj::Object;
use gateway_common::ABI_VERSION;

use super::sys;
use crate::refused::Refused;

/// The pin directory.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
}

/// What makes a daemon of this version unable to take over what is pinned.
const REMEDY: &str = "stop the gateway that is pinned there (`gatewayd --detach-on-exit` of the version that \
                      made it; sessions are lost) or use another --pin-dir";

impl Pins {
    /// Makes the directories where they are missing.
    pub(super) fn create(root: &Path) -> Result<Self> {
        let pins = Self { root: root.to_owned() };
        for directory in [pins.root.clone(), pins.maps(), pins.links()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory).map_err(|error| {
                Refused::error(
                    format!("cannot create {}: {error}", directory.display()),
                    "--pin-dir must be in a BPF file system: `mount -t bpf bpf /sys/fs/bpf`",
                )
            })?;
        }
        Ok(pins)
    }

    /// The pin of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Opens a pinned map.
    ///
    /// # Errors
    /// It is missing, or not what `M` takes.
    pub(super) fn open<M>(&self, name: &str) -> Result<M>
    where
        M: TryFrom<Map, Error: std::error::Error + Send + Sync + 'static>,
    {
        let path = self.map(name);
        let map = MapData::from_pin(&path).and_then(Map::from_map_data);
        let map = map.with_context(|| format!("cannot open {}", path.display()))?;
        M::try_from(map).with_context(|| format!("{} is not what it should be", path.display()))
    }

    /// The pin of the link on a device. The BPF file system reserves dots in names.
    pub(super) fn link(&self, device: &str) -> PathBuf {
        self.links().join(device.replace('%', "%25").replace('.', "%2e"))
    }

    /// The devices that have a pinned link.
    pub(super) fn linked_devices(&self) -> Result<Vec<String>> {
        let mut devices = Vec::new();
        for entry in fs::read_dir(self.links()).context("cannot read the pinned links")? {
            let name = entry?.file_name();
            devices.push(name.to_string_lossy().replace("%2e", ".").replace("%25", "%"));
        }
        Ok(devices)
    }

    /// Compares what is pinned with what `object` would make.
    ///
    /// # Errors
    /// Names the first difference and what to do about it.
    pub(super) fn check(&self, object: &Object) -> Result<()> {
        self.check_abi()?;
        // The table of IPv6 sessions first: its capacity is what is configured, twice.
        let mut maps: Vec<_> = object.maps.iter().collect();
        maps.sort_by_key(|(name, _)| *name != "SESSIONS_V6");
        for (name, map) in maps {
            let path = self.map(name);
            if !path.exists() {
                continue;
            }
            let pinned = sys::open_pin(&path)?;
            let info =
                sys::map_info(pinned.as_fd()).with_context(|| format!("{} is not a map", path.display()))?;
            // The kernel adds this one to device maps.
            let flags = info.map_flags & !aya_obj::generated::BPF_F_RDONLY_PROG;
            let properties = [
                ("type", info.type_, map.map_type()),
                ("key size", info.key_size, map.key_size()),
                ("value size", info.value_size, map.value_size()),
                ("capacity", info.max_entries, map.max_entries()),
                ("flags", flags, map.map_flags()),
            ];
            for (property, found, wanted) in properties {
                if found == wanted {
                    continue;
                }
                if property == "capacity" && name == "SESSIONS_V6" {
                    // A session is two elements.
                    return Err(Refused::error(
                        format!(
                            "the sessions pinned in {} were made with capacity {} and the configuration says {}",
                            self.root.display(),
                            found / 2,
                            wanted / 2
                        ),
                        format!("restore `capacity.sessions`, or {REMEDY}"),
                    ));
                }
                return Err(Refused::error(
                    format!(
                        "the pinned map {} has {property} {found} where this daemon needs {wanted}",
                        path.display()
                    ),
                    REMEDY,
                ));
            }
        }
        Ok(())
    }

    /// Removes the pins of maps, and the directories in the pin directory. The directory itself belongs to who
    /// holds its lock.
    pub(super) fn remove(&self) -> Result<()> {
        for entry in fs::read_dir(self.maps()).context("cannot read the pinned maps")? {
            let path = entry?.path();
            fs::remove_file(&path).with_context(|| format!("cannot remove the pin {}", path.display()))?;
        }
        for directory in [self.maps(), self.links()] {
            fs::remove_dir(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
        }
        Ok(())
    }

    /// The version of the layouts, which `CONFIG` begins with in every version.
    fn check_abi(&self) -> Result<()> {
        let path = self.map("CONFIG");
        if !path.exists() {
            return Ok(());
        }
        let config = sys::open_pin(&path)?;
        let info =
            sys::map_info(config.as_fd()).with_context(|| format!("{} is not a map", path.display()))?;
        let value = sys::first_element(config.as_fd(), info.value_size as usize)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let abi = value.first_chunk::<4>().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        // 0: a daemon was stopped between making the map and writing it.
        if abi != 0 && abi != ABI_VERSION {
            return Err(Refused::error(
                format!(
                    "the gateway pinned in {} has ABI version {abi} and this daemon has {ABI_VERSION}",
                    self.root.display()
                ),
                REMEDY,
            ));
        }
        Ok(())
    }

    fn maps(&self) -> PathBuf {
        self.root.join("maps")
    }

    fn links(&self) -> PathBuf {
        self.root.join("links")
    }
}
