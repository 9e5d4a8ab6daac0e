//! The access log over records that a test makes.

use std::{
    collections::VecDeque,
    net::Ipv4Addr,
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
    fn write(&mut self, _: &[u8]) -> anyhow::Result<()> {
        self.0.recv().context("the disk is full")
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

fn file_log(path: &std::path::Path) -> AccessLog {
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
        let mut line = Vec::new();
        Entry::of(&opened(port)).write(&mut line);
        sink.write(&line).expect("written");
        sink.look_after().expect("looked after");
    }
    let ports = |path: &std::path::Path| -> Vec<u16> {
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
    sink.write(b"{}\n").expect("written");
    thread::sleep(Duration::from_millis(60));
    sink.look_after().expect("looked after");
    assert_eq!(std::fs::read(file::numbered(&path, 1)).expect("a file"), b"{}\n");
    assert!(sink_is_empty(&path));
}

fn sink_is_empty(path: &std::path::Path) -> bool {
    std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0)
}

#[test]
fn a_line_that_a_crash_has_left_unfinished_is_ended() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("access.jsonl");
    std::fs::write(&path, "{\"schema\":\"gateway.acc").expect("written");
    let mut sink = FileSink::open(&path, &file_log(&path)).expect("a file");
    sink.write(b"{}\n").expect("written");
    assert_eq!(std::fs::read(&path).expect("a file"), b"{\"schema\":\"gateway.acc\n{}\n");
}
