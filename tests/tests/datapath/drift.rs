//! What is counted is what there is, whatever has happened.

use std::{thread::sleep, time::Duration};

use gateway_tests::{
    packet::{ACK, FIN, Packet, RST, SYN, tcp, udp},
    policy::Policy,
};
use gateway_user::dataplane::Drift;

use crate::{
    limit::recount,
    support::{Lab, POOL, standard},
};

fn policy(policy: Policy) -> Policy {
    let policy = policy.pool("nat", POOL, "1024-1087").routes("0.0.0.0/0 via pool nat");
    policy.limit("nat", 400, 100, 40).limit_sources("each", "10.0.1.0/24", "source", (0, 0, 60))
}

/// What may happen.
#[derive(Debug)]
enum Event {
    /// A client sends UDP to a server.
    Datagram {
        client: u8,
        port: u16,
        server: u8,
    },
    /// A client begins, resets or ends a connection.
    Segment {
        client: u8,
        port: u16,
        server: u8,
        flags: u8,
    },
    /// A server does.
    Answer {
        port: u16,
        server: u8,
        flags: u8,
    },
    /// Idle sessions go.
    Sweep,
    /// All that is idle goes.
    Wait,
    /// A limit of the pool, or one of clients.
    Limit {
        concurrent: u32,
    },
    Sources {
        concurrent: u32,
        per: &'static str,
    },
    /// A route that denies cuts the sessions of a server, whose clients go on.
    Deny {
        server: u8,
    },
    Allow,
    /// Another daemon takes over.
    Restart,
}

/// Random numbers (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    /// A number below `bound`.
    fn below(&mut self, bound: u16) -> u16 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let [.., high, higher] = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        u16::from_le_bytes([high, higher]) % bound
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.below(all.len() as u16))]
    }

    fn event(&mut self) -> Event {
        let client = self.one_of(&[2, 3, 4]);
        let server = self.one_of(&[10, 11, 12]);
        let port = 2_000 + self.below(30);
        match self.below(100) {
            0..28 => Event::Datagram { client, port, server },
            28..68 => {
                let flags = self.one_of(&[SYN, SYN, SYN, SYN, ACK, RST, FIN | ACK]);
                Event::Segment { client, port, server, flags }
            }
            68..86 => {
                let flags = self.one_of(&[SYN | ACK, RST | ACK, FIN | ACK]);
                Event::Answer { port: 1_024 + self.below(64), server, flags }
            }
            86..92 => Event::Sweep,
            92 => Event::Wait,
            93 | 94 => Event::Limit { concurrent: u32::from(self.below(50)) },
            95 | 96 => {
                let concurrent = u32::from(self.below(50));
                Event::Sources { concurrent, per: self.one_of(&["source", "prefix"]) }
            }
            97 => Event::Deny { server },
            98 => Event::Allow,
            _ => Event::Restart,
        }
    }
}

fn happen(lab: &mut Lab, event: &Event) {
    let inside = |client: u8, port: u16| format!("10.0.1.{client}:{port}");
    let outside = |server: u8| format!("203.0.113.{server}:53");
    let send = |lab: &mut Lab, device: &str, packet: &Packet| {
        lab.prepare(device, packet);
    };
    match *event {
        Event::Datagram { client, port, server } => {
            send(lab, "in0", &udp(&inside(client, port), &outside(server)));
        }
        Event::Segment { client, port, server, flags } => {
            send(lab, "in0", &tcp(&inside(client, port), &outside(server), flags));
        }
        Event::Answer { port, server, flags } => {
            send(lab, "out0", &tcp(&outside(server), &format!("{POOL}:{port}"), flags));
        }
        Event::Sweep => {
            lab.sweep();
        }
        Event::Wait => {
            sleep(Duration::from_millis(1_200));
            lab.sweep_all();
        }
        Event::Limit { concurrent } => lab.change(|policy| policy.limit("nat", 400, 100, concurrent)),
        Event::Sources { concurrent, per } => lab.change(|policy| {
            policy.without_limit("each").limit_sources("each", "10.0.1.0/24", per, (0, 0, concurrent))
        }),
        Event::Deny { server } => {
            let line = format!("203.0.113.{server}/32 via blackhole");
            lab.change(|policy| policy.try_route("main", &line).unwrap_or(policy));
        }
        Event::Allow => lab.change(|policy| policy.without_routes().routes("0.0.0.0/0 via pool nat")),
        Event::Restart => lab.restart(),
    }
}

#[test]
fn counts_equal_a_recount_whatever_has_happened() {
    for seed in 1..5 {
        let Some(mut lab) = standard(|all| policy(all).idle(Duration::from_secs(1))) else { return };
        let mut random = Random(seed);
        for number in 0..400 {
            let event = random.event();
            happen(&mut lab, &event);
            if number % 100 == 0 {
                assert_eq!(lab.drift(), Drift::default(), "seed {seed}, event {number}: {event:?}");
            }
        }
        recount(&lab);
        assert_eq!(lab.drift(), Drift::default(), "seed {seed}");
        // Nothing is left when all is over.
        for _ in 0..3 {
            happen(&mut lab, &Event::Wait);
        }
        assert_eq!((lab.sessions().len(), lab.shared(), lab.half_open()), (0, 0, 0), "seed {seed}");
        recount(&lab);
        assert_eq!(lab.drift(), Drift::default(), "seed {seed}");
    }
}

#[test]
fn a_bucket_that_is_wrong_is_told_of() {
    let Some(mut lab) = standard(policy) else { return };
    for number in 0..20 {
        lab.open("in0", &udp(&format!("10.0.1.2:{}", 2_000 + number), "203.0.113.10:53"));
    }
    assert_eq!(lab.drift(), Drift::default());
    lab.miscount();
    assert_eq!(lab.drift(), Drift { destinations: 1, sources: 1, ..Drift::default() });
    // As long as it is.
    assert_eq!(lab.drift(), Drift { destinations: 1, sources: 1, ..Drift::default() });
}
