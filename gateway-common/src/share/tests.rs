#![expect(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "times and counts of a simulation are small"
)]

use std::{cmp::Reverse, collections::BinaryHeap};

use super::*;

const SECOND: u64 = 1_000_000_000;
/// Any time will do.
const START: u64 = 1_000 * SECOND;

/// A client, and what has become of what it asked for.
struct Client {
    /// Connections it asks for in a second.
    asks: f64,
    share: Share,
    asked: u32,
    admitted: u32,
}

/// A destination with clients that ask at random times, as the packet path sees it.
struct Destination {
    limit: Limit,
    /// How long a connection lasts on average, seconds.
    lasts: f64,
    clients: Vec<Client>,
    full: u64,
    sessions: u32,
    until: u32,
    random: u64,
    /// Sessions in the second half, times the nanoseconds that they were there.
    occupied: f64,
}

impl Destination {
    /// With so many clients that ask for so many connections a second each.
    fn new(limit: Limit, lasts: f64, clients: &[(usize, f64)]) -> Self {
        let clients = clients.iter().flat_map(|(count, asks)| {
            (0..*count).map(|_| Client { asks: *asks, share: Share::default(), asked: 0, admitted: 0 })
        });
        Self {
            limit,
            lasts,
            clients: clients.collect(),
            full: 0,
            sessions: 0,
            until: 0,
            random: 7,
            occupied: 0.0,
        }
    }

    /// A number from 0 to 1 (xorshift64*, Vigna 2016).
    fn random(&mut self) -> f64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// `None`: it is refused. Else whether it is noted.
    fn admit(&mut self, client: usize, now: u64) -> Option<bool> {
        let round = round(now);
        let share = self.clients[client].share;
        let is_noted = self.limit.is_shared(self.sessions, self.full, now);
        let stands_back = is_noted
            && is_contended(self.until, round)
            && (self.limit.is_crowded_by(share.sessions, self.sessions)
                || self.limit.is_drained_by(share.opened(round), self.full, now));
        if !stands_back
            && self.limit.has_room(self.sessions)
            && let Some(full) = self.limit.take(self.full, now)
        {
            self.full = full;
            self.sessions += 1;
            if is_noted {
                let recent = share.after(round, &self.limit);
                self.clients[client].share = Share { sessions: share.sessions + 1, recent };
            }
            return Some(is_noted);
        }
        // It stands back, or there are too many, or it is too soon.
        let is_soon = if stands_back {
            !self.limit.is_crowded_by(share.sessions, self.sessions)
        } else {
            self.limit.has_room(self.sessions)
        };
        let has_little = if is_soon {
            self.limit.has_opened_few(&share, round, self.sessions)
        } else {
            Limit::has_few(share.sessions, self.sessions)
        };
        if has_little {
            self.until = round + CONTENTION;
        }
        None
    }

    /// Lets clients ask for so many seconds, and counts what they got in the second half.
    fn run(&mut self, seconds: u64) {
        let mut asking = BinaryHeap::new();
        let mut ending = BinaryHeap::<Reverse<(u64, usize, bool)>>::new();
        let (middle, mut before) = (START + seconds * SECOND / 2, START + seconds * SECOND / 2);
        for client in 0..self.clients.len() {
            let pause = self.random() / self.clients[client].asks;
            asking.push(Reverse((START + (pause * SECOND as f64) as u64, client)));
        }
        while let Some(Reverse((now, client))) = asking.pop()
            && now < START + seconds * SECOND
        {
            while let Some(Reverse((end, client, is_noted))) = ending.peek().copied()
                && end <= now
            {
                ending.pop();
                self.occupy(&mut before, end);
                self.sessions -= 1;
                self.clients[client].share.sessions -= u32::from(is_noted);
            }
            self.occupy(&mut before, now);
            let admitted = self.admit(client, now);
            if let Some(is_noted) = admitted {
                let lasts = -self.random().max(1e-9).ln() * self.lasts;
                ending.push(Reverse((now + (lasts * SECOND as f64) as u64, client, is_noted)));
            }
            if now >= middle {
                self.clients[client].asked += 1;
                self.clients[client].admitted += u32::from(admitted.is_some());
            }
            let pause = -self.random().max(1e-9).ln() / self.clients[client].asks;
            asking.push(Reverse((now + (pause * SECOND as f64) as u64, client)));
        }
    }

    /// Notes the sessions that there were from `before` to `now`.
    fn occupy(&mut self, before: &mut u64, now: u64) {
        if now > *before {
            self.occupied += f64::from(self.sessions) * (now - *before) as f64;
            *before = now;
        }
    }

    /// Sessions at a time in the second half of `seconds`, on average.
    fn at_a_time(&self, seconds: u64) -> f64 {
        self.occupied / (seconds * SECOND / 2) as f64
    }

    /// Connections that were admitted in the second half of `seconds`, for each of a second.
    fn rate(&self, seconds: u64) -> f64 {
        f64::from(self.clients.iter().map(|client| client.admitted).sum::<u32>()) / (seconds as f64 / 2.0)
    }
}

/// Jain's index: 1 where all numbers are the same.
fn jain(numbers: impl Iterator<Item = f64> + Clone) -> f64 {
    let (sum, squares) =
        (numbers.clone().sum::<f64>(), numbers.clone().map(|number| number * number).sum::<f64>());
    sum * sum / (numbers.count() as f64 * squares)
}

/// Jain's index of what some clients were given.
fn evenness(clients: &[Client]) -> f64 {
    jain(clients.iter().map(|client| f64::from(client.admitted)))
}

/// Jain's index of what part of what they asked for some clients were given.
fn evenness_of_parts(clients: &[Client]) -> f64 {
    jain(clients.iter().map(|client| f64::from(client.admitted) / f64::from(client.asked.max(1))))
}

/// What part of what they asked for some clients got.
fn part(clients: &[Client]) -> f64 {
    let (admitted, asked) = clients
        .iter()
        .fold((0, 0), |(admitted, asked), client| (admitted + client.admitted, asked + client.asked));
    f64::from(admitted) / f64::from(asked)
}

#[test]
fn who_asks_for_little_gets_it_where_others_ask_for_all_at_a_rate() {
    for (rate, burst) in [(900, 900), (900, 90), (200, 20), (50_000, 50_000)] {
        let (greedy, modest) = (f64::from(rate) * 4.0, f64::from(rate) / 100.0);
        let mut there = Destination::new(Limit::new(rate, burst, 0), 1.0, &[(1, greedy), (20, modest)]);
        there.run(10);
        let (all, index) = (there.rate(10) / f64::from(rate), evenness_of_parts(&there.clients[1..]));
        let got = part(&there.clients[1..]);
        assert!((0.99..=1.01).contains(&all), "{all} of {rate}/s, burst {burst}");
        assert!(got >= 0.97 && index >= 0.95, "{got}, {index} at {rate}/s, burst {burst}");
    }
}

#[test]
fn who_asks_for_little_gets_it_where_others_ask_for_all_at_a_time() {
    for concurrent in [200, 1_000, 55_000] {
        let (most, lasts) = (f64::from(concurrent), 2.0);
        let (greedy, modest) = (most * 4.0 / lasts, most / 100.0 / lasts);
        let mut there = Destination::new(Limit::new(0, 0, concurrent), lasts, &[(1, greedy), (20, modest)]);
        there.run(20);
        let (all, index) = (there.at_a_time(20) / most, evenness_of_parts(&there.clients[1..]));
        let got = part(&there.clients[1..]);
        assert!((0.985..=1.01).contains(&all), "{all} of {concurrent}");
        assert!(got >= 0.9 && index >= 0.95, "{got}, {index} of {concurrent}");
    }
}

#[test]
fn who_asks_for_the_same_gets_the_same() {
    for clients in [2, 10, 100, 1_000] {
        for (limit, lasts) in [(Limit::new(900, 900, 0), 1.0), (Limit::new(0, 0, 5_000), 2.0)] {
            let most = if limit.concurrent == 0 { 900.0 } else { 5_000.0 / lasts };
            let mut there = Destination::new(limit, lasts, &[(clients, most * 3.0 / clients as f64)]);
            there.run(20);
            let index = evenness(&there.clients);
            let all =
                if limit.concurrent == 0 { there.rate(20) / most } else { there.at_a_time(20) / 5_000.0 };
            assert!((0.985..=1.01).contains(&all), "{all} of {limit:?}");
            assert!(index >= 0.95, "{index} of {clients} clients, {limit:?}");
        }
    }
}

#[test]
fn who_asks_for_more_than_a_part_gets_no_more_than_others_who_do() {
    let limits = [(Limit::new(900, 900, 0), 1.0, 900.0), (Limit::new(0, 0, 10_000), 2.0, 5_000.0)];
    for (limit, lasts, most) in limits {
        // A fifth for each of those that want more than that.
        let clients = [(1, most * 8.0), (2, most * 2.0), (1, most * 0.5), (1, most * 0.3)];
        let mut there = Destination::new(limit, lasts, &clients);
        there.run(60);
        let index = evenness(&there.clients);
        let given: Vec<_> = there.clients.iter().map(|client| client.admitted).collect();
        assert!(index >= 0.95, "{index}: {given:?}");
    }
}

#[test]
fn a_client_alone_gets_all_there_is() {
    for (limit, lasts, most) in [
        (Limit::new(900, 900, 0), 1.0, 900.0),
        (Limit::new(100, 10, 0), 0.001, 100.0),
        (Limit::new(0, 0, 200), 2.0, 200.0),
    ] {
        let mut there = Destination::new(limit, lasts, &[(1, most * 10.0)]);
        there.run(20);
        let all = if limit.concurrent == 0 { there.rate(20) } else { there.at_a_time(20) } / most;
        assert!((0.99..=1.01).contains(&all), "{all} of {limit:?}");
    }
}

#[test]
fn what_a_client_has_opened_counts_half_with_each_round() {
    let limit = Limit::new(900, 900, 0);
    let mut share = Share::default();
    for _ in 0..100 {
        share.recent = share.after(7, &limit);
    }
    let all = share.opened(7);
    assert_eq!(all, 100 * (limit.interval >> UNIT_SHIFT));
    assert_eq!((share.opened(8), share.opened(10), share.opened(7 + 40)), (all / 2, all / 8, 0));
    // The lowest bits of the number of a round come again.
    share.recent = share.after(63, &limit);
    assert_eq!(share.opened(64), share.opened(63) / 2);
    // An amount does not run into the number of the round.
    for _ in 0..100_000 {
        share.recent = share.after(64, &limit);
    }
    assert_eq!((share.opened(64), share.recent >> AMOUNT_BITS), (AMOUNT, 0));
}

#[test]
fn the_last_connections_are_for_those_with_few() {
    let limit = Limit::new(0, 0, 1_000);
    assert!(!limit.is_crowded_by(989, 989), "there is enough");
    assert!(limit.is_crowded_by(990, 995) && !limit.is_crowded_by(10, 995));
    assert!(limit.is_crowded_by(20, 998) && !limit.is_crowded_by(1, 998) && !limit.is_crowded_by(0, 999));
    assert!(!Limit::new(0, 0, 0).is_crowded_by(10_000, 10_000), "there is no limit");
    assert!(!Limit::new(0, 0, 3).is_crowded_by(2, 2), "nothing is kept of so little");
    // One in a hundred is all that is withheld, or one.
    for concurrent in [4, 100, 200, 900, 1_000, 55_000, crate::limit::MAX_CONCURRENT] {
        let limit = Limit::new(0, 0, concurrent);
        let mut left = 0;
        while limit.is_crowded_by(concurrent - left, concurrent - left) {
            left += 1;
        }
        assert!(left - 1 <= (concurrent / 100).max(1), "{left} of {concurrent}");
    }
}

#[test]
fn the_last_tokens_are_for_those_who_opened_few() {
    let limit = Limit::new(900, 900, 0);
    let with = |tokens: u64| START + (900 - tokens) * u64::from(limit.interval);
    let after = |connections: u32| connections * (limit.interval >> UNIT_SHIFT);
    assert!(!limit.is_drained_by(after(5_000), with(451), START), "half of the bucket is there");
    assert!(limit.is_drained_by(after(1_600), with(400), START));
    assert!(
        !limit.is_drained_by(after(10), with(100), START) && limit.is_drained_by(after(30), with(100), START)
    );
    assert!(!limit.is_drained_by(0, with(1), START), "who has opened none may have the last token");
    assert!(!Limit::new(900, 1, 0).is_drained_by(after(5_000), START, START), "there is nothing to keep");
    assert!(!Limit::new(0, 0, 0).is_drained_by(AMOUNT, START, START), "there is no rate");
}

#[test]
fn nobody_who_is_alone_has_little() {
    assert!(Limit::has_few(0, 0) && Limit::has_few(0, 1) && Limit::has_few(5, 10));
    assert!(!Limit::has_few(1, 1) && !Limit::has_few(6, 10) && !Limit::has_few(u32::MAX, u32::MAX));
    assert!(is_contended(40, 8) && is_contended(40, 40) && !is_contended(40, 41) && !is_contended(0, 12));
}
