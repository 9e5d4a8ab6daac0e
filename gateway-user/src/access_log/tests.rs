//! The access log over records that a test makes.

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
    os::unix::net::UnixDatagram,
    sync::{Mutex, PoisonError, mpsc},
};

use gateway_common::counter::Counter;
use jiff::Timestamp;

use super::*;
use crate::dataplane::{LogEvent, LogNames};

/// Records that wait to be taken out. Clones share them.
#[derive(Clone, Default)]
struct Waiting(Arc<Mutex<VecDeque<Logged>>>);

impl Waiting {
    fn add(&self, count: u16) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend((0..count).map(opened));
    }

    fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

impl Records for Waiting {
    fn read(&mut self, most: usize, into: &mut Vec<Logged>) -> anyhow::Result<usize> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = most.min(waiting.len());
        into.extend(waiting.drain(..count));
        Ok(count)
    }
}

/// A sink that waits for a word with each write; where nobody says it any more, it fails.
struct Stalled(Receiver<()>);

impl Write for Stalled {
    fn write(&mut self, records: &[&Logged]) -> (usize, anyhow::Result<()>) {
        match self.0.recv() {
            Ok(()) => (records.len(), Ok(())),
            Err(error) => (0, Err(error).context("the disk is full")),
        }
    }

    fn look_after(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

fn opened(port: u16) -> Logged {
    let names = LogNames {
        table: "main".to_owned(),
        route: Some("203.0.113.0/24".to_owned()),
        target: "pool nat".to_owned(),
    };
    Logged {
        event: LogEvent::Open,
        time: Timestamp::from_second(1_700_000_000).expect("a time"),
        start: Timestamp::from_second(1_700_000_000).expect("a time"),
        proto: 6,
        source: (Ipv4Addr::new(10, 0, 1, 2).into(), port),
        translated: Some((Ipv4Addr::new(198, 51, 100, 10).into(), port)),
        destination: (Ipv4Addr::new(203, 0, 113, 9).into(), 443),
        names: Some(Arc::new(names)),
    }
}

fn file_log(path: &Path) -> AccessLog {
    AccessLog::new(Sink::File(path.to_owned()))
}

fn wait_until(what: impl Fn() -> bool) {
    let since = Instant::now();
    while !what() {
        assert!(since.elapsed() < Duration::from_secs(20), "it does not come true");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_record_is_written_as_the_contract_says() {
    let mut lines = Vec::new();
    Entry::of(&opened(41_234)).write(&mut lines);
    let closed = Logged {
        event: LogEvent::Close {
            reason: "fin",
            sent: Counter { packets: 6, bytes: 480 },
            received: Counter { packets: 5, bytes: 4_000 },
        },
        time: Timestamp::from_millisecond(1_700_000_001_500).expect("a time"),
        ..opened(41_234)
    };
    Entry::of(&closed).write(&mut lines);
    let denied = Logged {
        event: LogEvent::Deny {
            reason: gateway_common::DropReason::Prohibited,
            sent: Counter { packets: 1, bytes: 29 },
        },
        translated: None,
        ..opened(41_234)
    };
    Entry::of(&denied).write(&mut lines);
    let text = String::from_utf8(lines).expect("text");
    insta::assert_snapshot!(text);
    for line in text.lines() {
        let entry: Entry<'_> = serde_json::from_str(line).expect("it is read as it was written");
        assert_eq!(entry.source.port, 41_234);
    }
}

#[test]
fn every_record_is_written_or_counted_as_lost_while_the_sink_stands_still() {
    let (waiting, stats) = (Waiting::default(), Arc::new(Stats::default()));
    let (go_on, word) = mpsc::channel();
    let sink: Box<dyn Write> = Box::new(Stalled(word));
    let running = start(Box::new(waiting.clone()), Some((sink, 0)), &stats).expect("it starts");
    // One batch is in the sink's hands and BACKLOG wait for it: the others find no room.
    let batches = BACKLOG as u64 + 1 + 8;
    for _ in 0..batches {
        waiting.add(100);
        wait_until(|| waiting.is_empty());
        thread::sleep(INTERVAL / 10);
    }
    wait_until(|| stats.lost(Lost::Queue) > 0);
    go_on.send(()).expect("the sink waits");
    drop(go_on);
    running.stop();
    assert_eq!(stats.written(), 100);
    let lost = Lost::ALL.map(|cause| stats.lost(cause));
    assert_eq!(stats.written() + lost.iter().sum::<u64>(), batches * 100, "{lost:?}");
    assert_eq!(stats.lost(Lost::Rate), 0);
}

#[test]
fn records_above_the_rate_are_lost_and_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("access.jsonl");
    let (waiting, stats) = (Waiting::default(), Arc::new(Stats::default()));
    waiting.add(1_000);
    let sink = open(&file_log(&path)).expect("a file");
    let running = start(Box::new(waiting.clone()), Some((sink, 300)), &stats).expect("it starts");
    wait_until(|| stats.written() + stats.lost(Lost::Rate) == 1_000);
    running.stop();
    assert_eq!((stats.written(), stats.lost(Lost::Rate)), (300, 700));
    assert_eq!(std::fs::read_to_string(&path).expect("a file").lines().count(), 300);
}

#[test]
fn files_are_kept_by_size_and_the_oldest_goes() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("logs/access.jsonl");
    let log = AccessLog { max_size: 4_096, keep: 2, ..file_log(&path) };
    let mut sink = FileSink::open(&path, &log).expect("a file");
    for port in 0..100 {
        sink.write(&[&opened(port)]).1.expect("written");
        sink.look_after().expect("looked after");
    }
    let ports = |path: &Path| -> Vec<u16> {
        let text = std::fs::read_to_string(path).expect("a file");
        text.lines()
            .map(|line| serde_json::from_str::<Entry<'_>>(line).expect("a record").source.port)
            .collect()
    };
    let files = [file::numbered(&path, 2), file::numbered(&path, 1), path.clone()];
    let kept: Vec<u16> = files.iter().flat_map(|path| ports(path)).collect();
    // No record is in two files or between them.
    assert_eq!(kept, (100 - kept.len() as u16..100).collect::<Vec<_>>());
    assert!(!file::numbered(&path, 3).exists());
    assert!(std::fs::metadata(&files[0]).expect("a file").len() >= 4_096);
}

#[test]
fn a_file_that_is_old_enough_makes_place_for_the_next() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("access.jsonl");
    let log = AccessLog { max_age: Duration::from_millis(50), ..file_log(&path) };
    let mut sink = FileSink::open(&path, &log).expect("a file");
    sink.write(&[&opened(1)]).1.expect("written");
    thread::sleep(Duration::from_millis(60));
    sink.look_after().expect("looked after");
    assert!(!sink_is_empty(&file::numbered(&path, 1)));
    assert!(sink_is_empty(&path));
}

fn sink_is_empty(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0)
}

/// The ports of the clients that had 198.51.100.10:41234 at a time, and whether their end is known.
fn who_had(path: &Path, at: &str) -> Vec<(u16, bool)> {
    let question = whohad::Question {
        address: Ipv4Addr::new(198, 51, 100, 10).into(),
        port: 41_234,
        proto: Some("tcp".to_owned()),
        at: at.parse().expect("a time"),
    };
    let found = whohad::search(path, 5, &question).expect("files");
    found.iter().map(|entry| (entry.source.port, entry.end.is_some())).collect()
}

#[test]
fn whoever_had_a_port_is_found_in_all_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("access.jsonl");
    let session = |port: u16, start: &str, end: Option<&str>| {
        let start = start.parse().expect("a time");
        let event = end.map_or(LogEvent::Open, |_| LogEvent::Close {
            reason: "fin",
            sent: Counter::default(),
            received: Counter::default(),
        });
        let time = end.map_or(start, |end| end.parse().expect("a time"));
        let translated = Some((Ipv4Addr::new(198, 51, 100, 10).into(), 41_234));
        Logged { event, time, start, translated, ..opened(port) }
    };
    let file = |number: Option<u32>, records: &[Logged]| {
        let mut lines = b"{\"torn\n".to_vec();
        for record in records {
            Entry::of(record).write(&mut lines);
        }
        let path = number.map_or_else(|| path.clone(), |number| file::numbered(&path, number));
        std::fs::write(path, lines).expect("written");
    };
    // A session over two files, one after it, one that has no end, and the same port at another time.
    file(
        Some(2),
        &[
            session(1, "2026-03-01T12:00:00Z", None),
            session(9, "2026-03-01T10:00:00Z", Some("2026-03-01T11:00:00Z")),
        ],
    );
    file(
        Some(1),
        &[
            session(1, "2026-03-01T12:00:00.1Z", Some("2026-03-01T12:05:00Z")),
            session(2, "2026-03-01T12:06:00Z", None),
        ],
    );
    file(None, &[session(2, "2026-03-01T12:06:00Z", Some("2026-03-01T12:07:00Z")), opened(5)]);
    assert_eq!(who_had(&path, "2026-03-01T12:03:04Z"), [(1, true)]);
    assert_eq!(who_had(&path, "2026-03-01T13:06:30+01:00"), [(2, true)]);
    assert_eq!(who_had(&path, "2026-03-01T11:30:00Z"), []);
    assert_eq!(who_had(&path, "2026-03-01T10:30:00Z"), [(9, true)]);
    file(None, &[session(3, "2026-03-01T12:08:00Z", None)]);
    assert_eq!(who_had(&path, "2026-03-01T12:09:00Z"), [(2, false), (3, false)]);
}

#[test]
fn a_line_that_a_crash_has_left_unfinished_is_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("access.jsonl");
    std::fs::write(&path, "{\"schema\":\"gateway.acc").expect("written");
    let mut sink = FileSink::open(&path, &file_log(&path)).expect("a file");
    sink.write(&[&opened(1)]).1.expect("written");
    let text = std::fs::read_to_string(&path).expect("a file");
    let [torn, whole] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    assert_eq!(torn, "{\"schema\":\"gateway.acc");
    assert!(serde_json::from_str::<Entry<'_>>(whole).is_ok());
}

#[test]
fn the_journal_gets_a_datagram_for_each_record_and_is_not_waited_for() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("socket");
    let listener = UnixDatagram::bind(&path).expect("a socket");
    let mut journal = Journal::open(&path).expect("somebody listens");
    let (taken, result) = journal.write(&[&opened(41_234)]);
    assert!(taken == 1 && result.is_ok());
    let mut datagram = [0; 4_096];
    let length = listener.recv(&mut datagram).expect("a datagram");
    let text = std::str::from_utf8(&datagram[..length]).expect("text");
    let fields: Vec<(&str, &str)> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let value = |name: &str| fields.iter().find(|field| field.0 == name).map(|field| field.1);
    assert_eq!(value("SYSLOG_IDENTIFIER"), Some("gateway-access"));
    assert_eq!((value("GATEWAY_EVENT"), value("GATEWAY_SOURCE")), (Some("open"), Some("10.0.1.2")));
    assert_eq!(value("GATEWAY_TRANSLATED_PORT"), Some("41234"));
    let entry: Entry<'_> = serde_json::from_str(value("MESSAGE").expect("a message")).expect("a record");
    assert_eq!(entry.destination.port, 443);
    // Nobody reads any more, and the queue of the socket is short.
    let records: Vec<Logged> = (0..10_000).map(opened).collect();
    let (taken, result) = journal.write(&records.iter().collect::<Vec<_>>());
    assert!(taken < records.len() && result.is_err());
}
