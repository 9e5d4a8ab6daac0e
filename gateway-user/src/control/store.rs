//! The state directory: what was changed at run time, and how it relates to the configuration file.
//!
//! `state.json` holds the revision, a fingerprint of the configuration file that the changes were made on,
//! and, as long as the running state differs from that file, the running state itself. What `gwctl` has no
//! words for (name, capacity, timeouts, `no_session`) always comes from the configuration file.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, BufReader, BufWriter, ErrorKind, Write as _},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::{
    model::{Eip, Interface, Pool, Proxy, Snapshot, Table},
    refused::Refused,
};

/// Format of the file.
const SCHEMA: &str = "gateway.state/v1";
/// Name of the file.
const FILE: &str = "state.json";

/// The state directory.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
}

/// What the state directory says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved<'a> {
    schema: Cow<'a, str>,
    /// Revision of the state that was last in force.
    pub revision: u64,
    /// Fingerprint of the configuration file that the run-time changes were made on.
    pub base: Cow<'a, str>,
    /// The running state, if it differs from the configuration file.
    pub running: Option<Running<'a>>,
}

/// The part of a [`Snapshot`] that can be changed at run time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Running<'a> {
    active: bool,
    interfaces: Cow<'a, BTreeMap<String, Interface>>,
    pools: Cow<'a, BTreeMap<String, Pool>>,
    // Gateways of before there were any did not write these two.
    #[serde(default)]
    eips: Cow<'a, BTreeMap<IpAddr, Eip>>,
    #[serde(default)]
    proxies: Cow<'a, BTreeMap<String, Proxy>>,
    tables: Cow<'a, BTreeMap<String, Arc<Table>>>,
}

impl Store {
    /// The store in `directory`, which is made if it is missing.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .with_context(|| format!("cannot make the state directory {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned() })
    }

    /// Reads what was saved; `None` if nothing ever was.
    ///
    /// # Errors
    /// A file that cannot be read or understood: starting without it would lose routes.
    pub fn load(&self) -> anyhow::Result<Option<Saved<'static>>> {
        let path = self.directory.join(FILE);
        let unreadable = |error: &dyn std::fmt::Display| {
            Refused::error(
                format!("the state file {} cannot be used: {error}", path.display()),
                "restore it from a backup, or move it away to start with what the configuration file says; \
                 the changes made with gwctl are lost then",
            )
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(&error)),
        };
        let saved: Saved<'static> =
            serde_json::from_reader(BufReader::new(file)).map_err(|error| unreadable(&error))?;
        if saved.schema != SCHEMA {
            return Err(unreadable(&format!("its schema is `{}` and not `{SCHEMA}`", saved.schema)));
        }
        Ok(Some(saved))
    }

    /// Replaces what was saved, in one step: after a crash either the old or the new file is there.
    pub fn save(&self, saved: &Saved<'_>) -> anyhow::Result<()> {
        let path = self.directory.join(FILE);
        self.replace(&path, saved).with_context(|| format!("cannot write {}", path.display()))
    }

    fn replace(&self, path: &Path, saved: &Saved<'_>) -> io::Result<()> {
        let temporary = path.with_extension("json.tmp");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut writer = BufWriter::new(file);
        serde_json::to_writer(&mut writer, saved)?;
        writer.write_all(b"\n")?;
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, path)?;
        // The rename itself is on disk only once the directory is.
        File::open(&self.directory)?.sync_all()
    }
}

impl<'a> Saved<'a> {
    /// What to save while `running`, `None` for the configuration file's own state, is in force.
    pub fn new(revision: u64, base: &'a str, running: Option<&'a Snapshot>) -> Self {
        Self {
            schema: SCHEMA.into(),
            revision,
            base: base.into(),
            running: running.map(|state| Running {
                active: state.active,
                interfaces: Cow::Borrowed(&state.interfaces),
                pools: Cow::Borrowed(&state.pools),
                eips: Cow::Borrowed(&state.eips),
                proxies: Cow::Borrowed(&state.proxies),
                tables: Cow::Borrowed(&state.tables),
            }),
        }
    }
}

impl Running<'_> {
    /// The whole state, with the rest of `base`.
    pub fn over(self, base: &Snapshot) -> Snapshot {
        Snapshot {
            name: base.name.clone(),
            active: self.active,
            capacity: base.capacity,
            timeouts: base.timeouts,
            no_session: base.no_session,
            interfaces: self.interfaces.into_owned(),
            pools: self.pools.into_owned(),
            eips: self.eips.into_owned(),
            proxies: self.proxies.into_owned(),
            tables: self.tables.into_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::words::parse_route_line;

    fn state() -> Snapshot {
        let mut state = Snapshot { active: true, ..Snapshot::default() };
        let main = state.tables.get_mut("main").map(Arc::make_mut).expect("table main");
        main.routes.extend(parse_route_line("10.0.0.0/8 via blackhole comment \"a b\"").expect("a route"));
        state
    }

    #[test]
    fn what_is_saved_reads_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("a/b")).expect("a store");
        assert_eq!(store.load().expect("readable"), None);
        let state = state();
        store.save(&Saved::new(7, "abc", Some(&state))).expect("saved");
        let saved = store.load().expect("readable").expect("something");
        assert_eq!((saved.revision, saved.base.as_ref()), (7, "abc"));
        let base = Snapshot { name: "gw-1".to_owned(), ..Snapshot::default() };
        let running = saved.running.expect("a state").over(&base);
        assert_eq!(running, Snapshot { name: "gw-1".to_owned(), ..state });
    }

    #[test]
    fn a_file_from_before_there_were_eips_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let text = serde_json::to_string(&Saved::new(7, "abc", Some(&state()))).expect("json");
        let before = text.replace("\"eips\":{},", "");
        assert_ne!(text, before);
        fs::write(directory.path().join(FILE), before).expect("written");
        let saved = store.load().expect("readable").expect("something");
        assert_eq!(saved.running.expect("a state").over(&Snapshot::default()), state());
    }

    #[test]
    fn a_damaged_file_is_refused_with_a_remedy() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let file = directory.path().join(FILE);
        let good = serde_json::to_string(&Saved::new(7, "abc", Some(&state()))).expect("json");
        let foreign = good.replace("gateway.state/v1", "gateway.state/v9");
        let host_bits = good.replace("10.0.0.0/8", "10.0.0.1/8");
        for damaged in ["", "{", &good[..good.len() - 9], &foreign, &host_bits] {
            fs::write(&file, damaged).expect("written");
            let error = store.load().expect_err("refused");
            let refused = error.downcast_ref::<Refused>().expect("a refusal");
            assert!(refused.message.contains("state.json cannot be used: "), "{refused}");
            assert!(refused.hint.contains("restore it from a backup"));
            assert_eq!(fs::read_to_string(&file).expect("there"), damaged, "the file is left as it is");
        }
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        store.save(&Saved::new(1, "abc", None)).expect("saved");
        fs::create_dir(directory.path().join("state.json.tmp")).expect("in the way");
        let error = store.save(&Saved::new(2, "abc", None)).expect_err("refused");
        assert!(format!("{error:#}").contains("state.json"), "{error:#}");
        assert_eq!(store.load().expect("readable").expect("something").revision, 1);
    }
}
