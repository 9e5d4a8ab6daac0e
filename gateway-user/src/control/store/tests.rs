//! What is read back, from files that are whole and from all kinds of others.

use proptest::prelude::*;

use super::*;
use crate::model::{Group, Pool, PortRange, RouteKey, Table, TableKind, words::parse_route_line};

fn with(state: &Snapshot, lines: &[&str]) -> Arc<Snapshot> {
    let mut state = state.clone();
    let main = state.tables.get_mut("main").map(Arc::make_mut).expect("table main");
    for line in lines {
        main.routes.extend(parse_route_line(line).expect("a route"));
    }
    Arc::new(state)
}

fn without(state: &Snapshot, line: &str) -> Arc<Snapshot> {
    let mut state = state.clone();
    let main = state.tables.get_mut("main").map(Arc::make_mut).expect("table main");
    let (key, _): (RouteKey, _) = parse_route_line(line).expect("a route").expect("a route");
    main.routes.remove(&key).expect("there");
    Arc::new(state)
}

fn state() -> Arc<Snapshot> {
    let state = Snapshot { active: true, ..Snapshot::default() };
    with(&state, &["10.0.0.0/8 via blackhole comment \"a b\"", "192.0.2.0/24 via direct"])
}

/// States of which each is a change of the one before it.
fn history() -> Vec<Arc<Snapshot>> {
    let first = state();
    let second =
        with(&first, &["203.0.113.0/24 via pool nat", "192.0.2.0/24 via prohibit comment \"x,\\\"y\""]);
    let third = without(&second, "203.0.113.0/24 via pool nat");
    let mut fourth = (*third).clone();
    let nat = Pool::new("nat", vec!["198.51.100.10".parse().expect("an address")], PortRange::POOL);
    fourth.pools.insert("nat".to_owned(), nat);
    fourth.tables.insert("t".to_owned(), Arc::new(Table::new("t", TableKind::Border)));
    let prefixes = vec!["10.1.0.0/16".parse().expect("a prefix")];
    fourth.groups.insert("team".to_owned(), Group { name: "team".to_owned(), prefixes });
    fourth.active = false;
    let mut fifth = fourth.clone();
    fifth.tables.remove("t");
    vec![first, second, third, Arc::new(fourth), Arc::new(fifth)]
}

fn saved(revision: usize, state: &Arc<Snapshot>) -> Saved {
    let made = Some(made(revision));
    Saved {
        revision: revision as u64,
        base: "abc".to_owned(),
        running: Some(state.clone()),
        made,
        confirm_by: None,
    }
}

fn made(revision: usize) -> Made {
    Made { time: 1_800_000_000, uid: Some(1000), pid: Some(7), command: format!("change {revision}") }
}

fn load(directory: &Path) -> anyhow::Result<Option<Saved>> {
    Store::open(directory).expect("a store").load(&Snapshot::default())
}

/// Saves all of [`history`], and returns the file and where its lines end.
fn written(directory: &Path) -> (Vec<u8>, Vec<usize>) {
    let mut store = Store::open(directory).expect("a store");
    for (number, state) in history().iter().enumerate() {
        store.save(saved(number + 1, state)).expect("saved");
    }
    let file = fs::read(directory.join(FILE)).expect("a file");
    let ends = file.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    (file, ends)
}

#[test]
fn what_is_saved_reads_back() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("a/b");
    let mut store = Store::open(&path).expect("a store");
    let base = Snapshot { name: "gw-1".to_owned(), ..Snapshot::default() };
    assert_eq!(store.load(&base).expect("readable"), None);
    store.save(saved(7, &state())).expect("saved");
    let read = store.load(&base).expect("readable").expect("something");
    assert_eq!((read.revision, &*read.base), (7, "abc"));
    assert_eq!(read.running, Some(state()), "a name that the file does not say");
    let same = Arc::new(Snapshot { name: "gw-1".to_owned(), ..(*state()).clone() });
    store.save(saved(8, &same)).expect("saved");
    let other = Snapshot { name: "gw-2".to_owned(), ..Snapshot::default() };
    let read = Store::open(&path).expect("a store").load(&other).expect("readable").expect("something");
    assert_eq!(read.running.expect("a state").name, "gw-1", "what was given up comes from the line");
    store.save(Saved { running: None, ..saved(9, &state()) }).expect("saved");
    assert_eq!(load(&path).expect("readable").expect("something").running, None);
}

#[test]
fn changes_are_lines_behind_the_state() {
    let directory = tempfile::tempdir().expect("a directory");
    let (file, ends) = written(directory.path());
    let history = history();
    assert_eq!(ends.len(), history.len());
    let last = saved(history.len(), &history[history.len() - 1]);
    assert_eq!(load(directory.path()).expect("readable"), Some(last.clone()));
    // A store that has read the file goes on where it ends.
    let mut store = Store::open(directory.path()).expect("a store");
    store.load(&Snapshot::default()).expect("readable");
    store.save(last).expect("saved");
    assert_eq!(fs::read(directory.path().join(FILE)).expect("a file"), file, "nothing has changed");
    store.save(saved(9, &history[0])).expect("saved");
    assert!(fs::read(directory.path().join(FILE)).expect("a file").starts_with(&file));
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(9, &history[0])));
}

#[test]
fn a_file_that_ends_anywhere_is_the_state_of_its_last_whole_line() {
    let directory = tempfile::tempdir().expect("a directory");
    let (file, ends) = written(directory.path());
    let history = history();
    for length in 0..file.len() {
        fs::write(directory.path().join(FILE), &file[..length]).expect("written");
        let whole = ends.iter().filter(|end| **end <= length).count();
        let read = load(directory.path());
        if whole == 0 {
            // The first line is there as a whole, or not at all: it comes with a rename.
            read.expect_err("refused");
            continue;
        }
        let expected = saved(whole, &history[whole - 1]);
        assert_eq!(read.expect("readable"), Some(expected), "{length}");
        let left = fs::read(directory.path().join(FILE)).expect("a file");
        assert_eq!(left, file[..ends[whole - 1]], "the next line follows one that is whole");
    }
}

#[test]
fn a_flipped_bit_is_never_taken_for_a_state() {
    let directory = tempfile::tempdir().expect("a directory");
    let (file, ends) = written(directory.path());
    let history = history();
    // A bad last line may be one that was being written.
    let last = ends[ends.len() - 2];
    let before = saved(history.len() - 1, &history[history.len() - 2]);
    for at in 0..file.len() {
        for bit in [0, 3, 7] {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << bit;
            fs::write(directory.path().join(FILE), &damaged).expect("written");
            match load(directory.path()) {
                Err(_) => {}
                Ok(read) => {
                    assert!(at >= last, "bit {bit} of byte {at} was not noticed");
                    assert_eq!(read, Some(before.clone()));
                }
            }
        }
    }
}

#[test]
fn a_damaged_file_is_refused_with_a_remedy() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join(FILE);
    let (bytes, ends) = written(directory.path());
    let first = String::from_utf8_lossy(&bytes[..ends[0]]).into_owned();
    let without_change = [&bytes[..ends[0]], &bytes[ends[1]..]].concat();
    let twice = [&bytes[..ends[1]], &bytes[ends[0]..]].concat();
    let old = first.replace("10.0.0.0/8", "10.0.0.1/8");
    let old = old.strip_prefix("{\"state\":").expect("a state").replace("state/v3", "state/v1");
    let old = old.split(",\"crc32\"").next().expect("a state");
    for damaged in [
        b"".as_slice(),
        b"{",
        &bytes[..ends[0] - 9],
        first.replace("gateway.state/v3", "gateway.state/v9").as_bytes(),
        old.as_bytes(),
        &without_change,
        &twice,
    ] {
        fs::write(&file, damaged).expect("written");
        let error = load(directory.path()).expect_err("refused");
        let refused = error.downcast_ref::<Refused>().expect("a refusal");
        assert!(refused.message.contains("state.json cannot be used: "), "{refused}");
        assert!(refused.hint.contains("restore it from a backup"));
        assert_eq!(fs::read(&file).expect("there"), damaged, "the file is left as it is");
    }
}

#[test]
fn a_file_of_a_gateway_before_there_were_changes_is_read_and_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join(FILE);
    let history = history();
    let first = State {
        schema: FIRST_SCHEMA.into(),
        revision: 1,
        base: "abc".into(),
        made: None,
        confirm_by: None,
        running: Some(Running::of(&history[0], None)),
    };
    let text = serde_json::to_string(&first).expect("json").replace("\"eips\":{},", "");
    fs::write(&file, text + "\n").expect("written");
    let mut store = Store::open(directory.path()).expect("a store");
    assert_eq!(
        store.load(&Snapshot::default()).expect("readable"),
        Some(Saved { made: None, ..saved(1, &history[0]) })
    );
    store.save(saved(2, &history[1])).expect("saved");
    assert!(fs::read(&file).expect("a file").starts_with(STATE));
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(2, &history[1])));
}

#[test]
fn a_file_in_which_changes_outweigh_the_state_is_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(directory.path()).expect("a store");
    store.most = 2_000;
    let (one, other) = (state(), with(&state(), &["203.0.113.0/24 via direct"]));
    let mut lengths = Vec::new();
    for revision in 1..100 {
        let state = if revision % 2 == 0 { &one } else { &other };
        store.save(saved(revision, state)).expect("saved");
        lengths.push(fs::metadata(directory.path().join(FILE)).expect("a file").len());
        assert_eq!(load(directory.path()).expect("readable"), Some(saved(revision, state)));
    }
    assert!(lengths.iter().all(|length| *length < 3_000), "{lengths:?}");
    let replaced = lengths.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!((2..30).contains(&replaced), "{lengths:?}");
}

#[test]
fn a_large_change_is_a_state() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(directory.path()).expect("a store");
    store.save(saved(1, &state())).expect("saved");
    let mut large = (*state()).clone();
    let table = Arc::make_mut(large.tables.get_mut("main").expect("table main"));
    let (_, route) = parse_route_line("192.0.2.1 via direct").expect("a route").expect("a route");
    for number in 0..=MAX_ROUTES as u32 {
        let prefix = ipnet::IpNet::from(std::net::IpAddr::from((0x0b00_0000 + number).to_be_bytes()));
        table.routes.insert(RouteKey { prefix, selector: crate::model::Selector::default() }, route.clone());
    }
    let large = Arc::new(large);
    store.save(saved(2, &large)).expect("saved");
    let file = fs::read_to_string(directory.path().join(FILE)).expect("a file");
    assert_eq!(file.lines().count(), 1);
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(2, &large)));
}

#[test]
fn a_failed_write_leaves_the_old_file() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join(FILE);
    let history = history();
    let mut store = Store::open(directory.path()).expect("a store");
    store.save(saved(1, &history[0])).expect("saved");
    // A line cannot be added.
    store.tail.as_mut().expect("a tail").file = File::open(&file).expect("a file");
    let error = store.save(saved(2, &history[1])).expect_err("refused");
    assert!(format!("{error:#}").contains("state.json"), "{error:#}");
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(1, &history[0])));
    // Nor can the file be replaced.
    let obstacle = directory.path().join("state.json.tmp");
    fs::create_dir(&obstacle).expect("in the way");
    store.save(saved(2, &history[1])).expect_err("refused");
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(1, &history[0])));
    fs::remove_dir(&obstacle).expect("removed");
    store.save(saved(2, &history[1])).expect("saved");
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(2, &history[1])));
}

#[test]
fn a_file_that_somebody_took_away_is_written_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(directory.path()).expect("a store");
    let history = history();
    store.save(saved(1, &history[0])).expect("saved");
    fs::remove_file(directory.path().join(FILE)).expect("removed");
    store.save(saved(2, &history[1])).expect("saved");
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(2, &history[1])));
}

#[test]
fn a_file_that_does_not_tell_who_made_its_revisions_is_read_and_replaced() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join(FILE);
    let history = history();
    let mut lines = Vec::new();
    let (state, delta) = (Running::of(&history[0], None), Delta::between(&history[0], &history[1], 9));
    let first = State {
        schema: SECOND_SCHEMA.into(),
        revision: 1,
        base: "abc".into(),
        made: None,
        confirm_by: None,
        running: Some(state),
    };
    write_line(&mut lines, STATE, &first).expect("written");
    let second = Change { revision: 2, made: None, confirm_by: None, delta: delta.expect("a change") };
    write_line(&mut lines, CHANGE, &second).expect("written");
    fs::write(&file, lines).expect("written");
    let mut store = Store::open(directory.path()).expect("a store");
    let read = store.load(&Snapshot::default()).expect("readable").expect("something");
    assert_eq!(read, Saved { made: None, ..saved(2, &history[1]) });
    store.save(read.clone()).expect("saved");
    let text = fs::read_to_string(&file).expect("a file");
    assert!(text.contains(SCHEMA) && text.lines().count() == 1, "{text}");
    assert_eq!(load(directory.path()).expect("readable"), Some(read));
}

#[test]
fn every_revision_is_kept_across_files_and_can_be_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(directory.path()).expect("a store");
    store.most = 1_500;
    let history = history();
    let state = |revision: usize| &history[revision % history.len()];
    for revision in 1..=40 {
        store.save(saved(revision, state(revision))).expect("saved");
    }
    let files = fs::read_dir(directory.path()).expect("a directory").count();
    assert!((3..=17).contains(&files), "{files} files");
    let kept = history::list(directory.path()).expect("a list");
    let oldest = kept.last().expect("a revision").revision;
    let expected: Vec<u64> = (oldest..=40).rev().collect();
    assert_eq!(kept.iter().map(|kept| kept.revision).collect::<Vec<_>>(), expected, "without a gap");
    assert!(oldest <= 30, "{oldest}");
    for kept in kept {
        let revision = kept.revision as usize;
        assert_eq!(kept.made, Some(made(revision)));
        let found = history::find(directory.path(), kept.revision, &Snapshot::default());
        assert_eq!(found.expect("readable"), Some(saved(revision, state(revision))));
    }
    for missing in [0, 41] {
        let found = history::find(directory.path(), missing, &Snapshot::default()).expect("readable");
        assert_eq!(found, None, "{missing}");
    }
}

#[test]
fn files_of_old_revisions_have_a_bound_and_the_newest_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut store = Store::open(directory.path()).expect("a store");
    let history = history();
    for revision in 1..=60 {
        // Each of them is written as a state: the file before belongs to another configuration file.
        let base = format!("file {revision}");
        store.save(Saved { base, ..saved(revision, &history[0]) }).expect("saved");
    }
    let files = fs::read_dir(directory.path()).expect("a directory").count();
    assert_eq!(files, 17);
    assert!(directory.path().join("history-59.json").exists());
}

#[test]
fn revisions_that_come_together_are_lines_of_their_own_or_none_of_them_stays() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join(FILE);
    let history = history();
    let mut store = Store::open(directory.path()).expect("a store");
    let all =
        |from: usize, to: usize| (from..=to).map(|it| saved(it, &history[it % history.len()])).collect();
    store.save_all(all(1, 4)).expect("saved");
    assert_eq!(fs::read_to_string(&file).expect("a file").lines().count(), 4);
    let before = fs::read(&file).expect("a file");
    // The last of them needs a file of its own, which cannot be made.
    fs::create_dir(directory.path().join("state.json.tmp")).expect("in the way");
    let mut more: Vec<Saved> = all(5, 7);
    more[2].base = "another".to_owned();
    store.save_all(more).expect_err("refused");
    assert_eq!(fs::read(&file).expect("a file"), before);
    store.save_all(all(5, 6)).expect("saved");
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(6, &history[1])));
}

#[test]
fn what_was_written_beside_the_file_takes_its_place_if_it_comes_into_force() {
    let directory = tempfile::tempdir().expect("a directory");
    let history = history();
    let mut store = Store::open(directory.path()).expect("a store");
    store.save(Saved { running: None, ..saved(1, &history[0]) }).expect("saved");
    // It did not come into force.
    store.stage(saved(2, &history[1])).expect("written");
    assert_eq!(load(directory.path()).expect("readable").expect("something").revision, 1);
    store.save(saved(2, &history[2])).expect("saved");
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(2, &history[2])));
    // It did, and nothing is left to be written.
    store.stage(Saved { base: "other".to_owned(), ..saved(3, &history[3]) }).expect("written");
    let written = fs::metadata(directory.path().join("state.json.tmp")).expect("a file").ino();
    store.save(Saved { base: "other".to_owned(), ..saved(3, &history[3]) }).expect("saved");
    assert_eq!(fs::metadata(directory.path().join(FILE)).expect("a file").ino(), written);
    store.save(Saved { base: "other".to_owned(), ..saved(4, &history[4]) }).expect("saved");
    let read = load(directory.path()).expect("readable").expect("something");
    assert_eq!((read.revision, read.running), (4, Some(history[4].clone())));
}

#[test]
fn what_waits_to_be_confirmed_is_told_until_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let history = history();
    let mut store = Store::open(directory.path()).expect("a store");
    store.save(saved(1, &history[0])).expect("saved");
    let waiting = Saved { confirm_by: Some(5), ..saved(2, &history[1]) };
    store.save(waiting.clone()).expect("saved");
    assert_eq!(load(directory.path()).expect("readable"), Some(waiting));
    store.save(saved(2, &history[1])).expect("saved");
    assert_eq!(load(directory.path()).expect("readable"), Some(saved(2, &history[1])));
    assert_eq!(history::list(directory.path()).expect("a list").len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn changes_of_any_kind_read_back(steps in proptest::collection::vec((0usize..5, 0usize..5), 1..20)) {
        let directory = tempfile::tempdir()?;
        let mut store = Store::open(directory.path()).expect("a store");
        store.most = 4_000;
        let history = history();
        for (revision, (state, again)) in steps.iter().enumerate() {
            let last = saved(revision + 1, &history[*state]);
            store.save(last.clone()).expect("saved");
            prop_assert_eq!(load(directory.path()).expect("readable"), Some(last.clone()));
            if *again == 0 {
                store = Store::open(directory.path()).expect("a store");
                prop_assert_eq!(store.load(&Snapshot::default()).expect("readable"), Some(last));
            }
        }
    }
}
