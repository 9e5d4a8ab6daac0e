//! The life of a TCP connection as its NAT sees it (RFC 7857 2, RFC 5382 5): states, what moves them, and when
//! a closed connection's port may serve another one.
//!
//! ```text
//!             inside SYN             outside SYN              inside ACK
//!   (none) ─────────────> Opening ────────────────> Answered ────────────> Established
//!                            │                                              │        │
//!                            │ outside RST that acknowledges        inside FIN    outside FIN
//!                            │ the SYN                                      v        v
//!                            v                                       InsideFin    OutsideFin
//!                         Refused            a RST, from anywhere           │        │
//!                            │               but Opening ──> Reset          └─> BothFins <─┘
//!                            │                                 │ │                 │
//!                            └── inside SYN ──> Opening <──────┘ └─ inside ACK ──> Established
//! ```
//!
//! `Opening` and `Answered` are RFC 7857's INIT, told apart so that a connection counts as established only
//! when both sides have agreed; `Reset` is its TRANS.
//!
//! # Resets
//!
//! Whoever can guess a connection's addresses and ports can forge a reset. One from outside counts, and is let
//! in, only where its sequence number is one that the client expects: at the client's last acknowledgement or
//! at most [`WINDOW`] ahead of it (RFC 5961 3.2; the NAT does not know how much is under way). A client that
//! conforms to RFC 5961 answers any but the exact one by an acknowledgement, and that takes the session back to
//! `Established`: a forged reset ends neither the connection nor the session, and a true one is never held
//! against the client by a session that lives on for hours.

use crate::{
    family::Family,
    pool::{respread, spread},
    session::{SIDE_INSIDE, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, Tuple},
};

/// How far a reset from outside may be ahead of the client's last acknowledgement, bytes: more than the receive
/// buffers that systems come with, and one in 256 of all sequence numbers.
pub const WINDOW: u32 = 1 << 24;

/// The part of its idle time that a closed connection rests at least before its port may serve another one: what
/// was under way has arrived, and a client that does not believe in a reset has said so.
pub const REST: u32 = 16;

/// The part of its idle time after which servers have forgotten a closed connection: a minute of four, as long as
/// their TIME-WAIT is in practice. Sequence numbers tell nothing any more then: a client's go round in some minutes.
pub const FORGOTTEN: u32 = 4;

/// Elements of `STAMPS`.
pub const STAMPS_LEN: u32 = 65_536;

/// The element of `STAMPS` that a connection has, by its inside tuple, and what tells it from others there.
#[inline(always)]
pub fn stamp<F: Family>(inside: &Tuple<F>, secret: u32) -> (u32, u32) {
    let ([s0, s1], [d0, d1]) = (inside.source_port, inside.destination_port);
    let client = spread(&F::mapped(&inside.source), secret ^ u32::from_ne_bytes([s0, s1, d0, d1]));
    let both = spread(&F::mapped(&inside.destination), client);
    (both % STAMPS_LEN, respread(both))
}

/// Where a session stands, [`crate::session::Session::state`].
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Both sides have spoken and none has hung up. Also: every session that is not TCP. The packets of such a
    /// session go straight on, but for those that open and close.
    Established = 0,
    /// The inside has sent a SYN.
    Opening = 1,
    /// The outside has sent one too, and the inside has not acknowledged it.
    Answered = 2,
    /// The inside has hung up.
    InsideFin = 3,
    /// The outside has hung up.
    OutsideFin = 4,
    /// Both have.
    BothFins = 5,
    /// The connection was reset, perhaps.
    Reset = 6,
    /// The outside has refused the connection.
    Refused = 7,
    /// The session is being deleted: no packet moves it any more.
    Gone = 8,
}

/// What a segment tells about its connection. Numbers are in host byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Flags as on the wire.
    pub flags: u8,
    /// Sequence number of its first byte, or of its SYN.
    pub sequence: u32,
    /// What it acknowledges, where it has [`TCP_ACK`].
    pub acknowledgement: u32,
    /// Bytes of payload.
    pub payload: u32,
    /// Its timestamp (RFC 7323), of a client's segment; 0: it has none, or it is not looked at.
    pub stamp: u32,
}

/// Where a segment leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The next state.
    pub state: State,
    /// The next [`crate::session::Session::mark`], host byte order. By state:
    ///
    /// * `Opening`, `InsideFin`, `BothFins`: the sequence number that follows the client's SYN or FIN;
    /// * `Answered`, `Established`, `OutsideFin`: the one that the client expects from the server;
    /// * else as it was.
    pub mark: u32,
}

impl State {
    /// Every state in the order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::Established,
        Self::Opening,
        Self::Answered,
        Self::InsideFin,
        Self::OutsideFin,
        Self::BothFins,
        Self::Reset,
        Self::Refused,
        Self::Gone,
    ];

    /// The state with this number; [`State::Gone`] for numbers that none has.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            0 => Self::Established,
            1 => Self::Opening,
            2 => Self::Answered,
            3 => Self::InsideFin,
            4 => Self::OutsideFin,
            5 => Self::BothFins,
            6 => Self::Reset,
            7 => Self::Refused,
            _ => Self::Gone,
        }
    }

    /// The word for it in `gwctl session show`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opening | Self::Answered => "opening",
            Self::Established => "established",
            Self::InsideFin | Self::OutsideFin => "closing",
            Self::BothFins | Self::Reset | Self::Refused | Self::Gone => "closed",
        }
    }

    /// Whether the connection has not come about yet.
    #[inline(always)]
    pub const fn is_half_open(self) -> bool {
        matches!(self, Self::Opening | Self::Answered)
    }

    /// Whether the connection is over.
    #[inline(always)]
    pub const fn is_closed(self) -> bool {
        matches!(self, Self::BothFins | Self::Reset | Self::Refused | Self::Gone)
    }

    /// Whether a connection in this state, without a packet for `idle` ticks, may give its port to another one
    /// where no port is free. `closing` is the idle time of closed connections, ticks.
    ///
    /// After a reset the server remembers nothing. After two FINs it may for a while ([`FORGOTTEN`]), and takes a SYN for
    /// that of a new connection where it is `ahead` of the old one (RFC 6191, RFC 7857 2.1).
    #[inline(always)]
    pub const fn is_reusable(self, idle: u32, closing: u32, ahead: bool) -> bool {
        match self {
            Self::Reset | Self::Refused => idle >= closing / REST,
            Self::BothFins => idle >= closing / REST && (ahead || idle >= closing / FORGOTTEN),
            Self::Established
            | Self::Opening
            | Self::Answered
            | Self::InsideFin
            | Self::OutsideFin
            | Self::Gone => false,
        }
    }
}

impl Segment {
    /// The sequence number that follows it.
    #[inline(always)]
    const fn end(&self) -> u32 {
        // FIN and SYN count as a byte each.
        let controls = self.has(TCP_FIN) as u32 + self.has(TCP_SYN) as u32;
        self.sequence.wrapping_add(self.payload).wrapping_add(controls)
    }

    #[inline(always)]
    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// Whether the number `later` is ahead of `earlier`, both modulo 2^32.
#[inline(always)]
pub const fn is_ahead(later: u32, earlier: u32) -> bool {
    later != earlier && later.wrapping_sub(earlier) < 1 << 31
}

/// Whether a client's `segment` may go on, or begin another connection, on a session in `state` with `mark`: a SYN
/// after two FINs has to be ahead of the connection before, by its timestamp or its sequence number (RFC 6191). One
/// that is not is an old one that comes late, and nobody may take it for a new connection. `stamp` is the
/// client's last timestamp, 0 where it is not known; `forgotten` says that nobody remembers the old connection.
#[inline(always)]
pub const fn may_pass(state: State, mark: u32, stamp: u32, forgotten: bool, segment: &Segment) -> bool {
    !matches!(state, State::BothFins)
        || segment.flags & (TCP_SYN | TCP_ACK | TCP_RST) != TCP_SYN
        || forgotten
        || is_ahead(segment.sequence, mark)
        || (stamp != 0 && segment.stamp != 0 && is_ahead(segment.stamp, stamp))
}

/// What `segment` from `side` does to a connection in `state` with `mark`. `None`: it is a reset that nobody
/// would believe, and is dropped.
#[inline(always)]
pub const fn step(state: State, mark: u32, side: u8, segment: &Segment) -> Option<Step> {
    if side == SIDE_INSIDE { Some(inside(state, mark, segment)) } else { outside(state, mark, segment) }
}

#[inline(always)]
const fn inside(state: State, mark: u32, segment: &Segment) -> Step {
    let stay = Step { state, mark };
    let acknowledges = segment.has(TCP_ACK);
    if segment.has(TCP_RST) {
        return match state {
            State::Opening | State::Answered | State::Established | State::InsideFin | State::OutsideFin => {
                Step { state: State::Reset, mark }
            }
            State::BothFins | State::Reset | State::Refused | State::Gone => stay,
        };
    }
    if segment.has(TCP_SYN) && !acknowledges {
        return match state {
            State::Opening | State::BothFins | State::Reset | State::Refused => {
                Step { state: State::Opening, mark: segment.end() }
            }
            // A client that has forgotten its connection: the server will tell it.
            State::Answered | State::Established | State::InsideFin | State::OutsideFin | State::Gone => stay,
        };
    }
    let fin = segment.has(TCP_FIN);
    match state {
        State::Established if fin => Step { state: State::InsideFin, mark: segment.end() },
        // Where the segment is one of many that go straight on, nobody looks for its ACK.
        State::Established => Step { state, mark: segment.acknowledgement },
        State::Answered | State::Reset if fin && acknowledges => {
            Step { state: State::InsideFin, mark: segment.end() }
        }
        State::Answered | State::Reset if acknowledges => {
            Step { state: State::Established, mark: segment.acknowledgement }
        }
        State::InsideFin if fin => Step { state, mark: segment.end() },
        State::OutsideFin if fin => Step { state: State::BothFins, mark: segment.end() },
        State::OutsideFin if acknowledges => Step { state, mark: segment.acknowledgement },
        State::Opening
        | State::Answered
        | State::InsideFin
        | State::OutsideFin
        | State::BothFins
        | State::Reset
        | State::Refused
        | State::Gone => stay,
    }
}

#[inline(always)]
const fn outside(state: State, mark: u32, segment: &Segment) -> Option<Step> {
    let stay = Step { state, mark };
    if segment.has(TCP_RST) {
        let (believable, state) = match state {
            State::Opening => (segment.has(TCP_ACK) && segment.acknowledgement == mark, State::Refused),
            State::Answered | State::Established | State::OutsideFin => {
                (segment.sequence.wrapping_sub(mark) < WINDOW, State::Reset)
            }
            // What the client expects is not known any more; what the server may have acknowledged is.
            State::InsideFin => {
                let acknowledged = mark.wrapping_sub(segment.acknowledgement) < WINDOW;
                (!segment.has(TCP_ACK) || acknowledged, State::Reset)
            }
            State::BothFins | State::Reset | State::Refused | State::Gone => (true, state),
        };
        return if believable { Some(Step { state, mark }) } else { None };
    }
    Some(match state {
        State::Opening if segment.has(TCP_SYN) => Step { state: State::Answered, mark: segment.end() },
        State::Established if segment.has(TCP_FIN) => Step { state: State::OutsideFin, mark },
        State::InsideFin if segment.has(TCP_FIN) => Step { state: State::BothFins, mark },
        State::Opening
        | State::Answered
        | State::Established
        | State::InsideFin
        | State::OutsideFin
        | State::BothFins
        | State::Reset
        | State::Refused
        | State::Gone => stay,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SIDE_OUTSIDE;

    const MARK: u32 = 1_000;

    const fn segment(flags: u8, sequence: u32, acknowledgement: u32) -> Segment {
        Segment { flags, sequence, acknowledgement, payload: 0, stamp: 0 }
    }

    /// From inside: SYN, SYN and ACK, ACK, FIN, RST.
    const INSIDE: [Segment; 5] = [
        segment(TCP_SYN, 5_000, 0),
        segment(TCP_SYN | TCP_ACK, 5_000, 7_000),
        segment(TCP_ACK, 5_000, 7_000),
        segment(TCP_FIN | TCP_ACK, 5_000, 7_000),
        segment(TCP_RST, 5_000, 7_000),
    ];

    /// From outside: SYN and ACK, SYN, ACK, FIN; resets: exact, ahead, behind, and behind but acknowledging.
    const OUTSIDE: [Segment; 8] = [
        segment(TCP_SYN | TCP_ACK, 6_000, MARK),
        segment(TCP_SYN, 6_000, 0),
        segment(TCP_ACK, MARK, 5_000),
        segment(TCP_FIN | TCP_ACK, MARK, 5_000),
        segment(TCP_RST, MARK, 0),
        segment(TCP_RST, MARK + WINDOW - 1, 0),
        segment(TCP_RST, MARK.wrapping_sub(1), 0),
        segment(TCP_RST | TCP_ACK, MARK.wrapping_sub(1), MARK),
    ];

    fn letter(state: State) -> char {
        match state {
            State::Established => 'E',
            State::Opening => 'O',
            State::Answered => 'A',
            State::InsideFin => 'I',
            State::OutsideFin => 'U',
            State::BothFins => 'B',
            State::Reset => 'R',
            State::Refused => 'N',
            State::Gone => 'G',
        }
    }

    #[test]
    fn every_segment_leads_from_every_state_to_the_one_it_should() {
        // A row a state, a column a segment of `INSIDE`, then of `OUTSIDE`; `-`: dropped.
        let table = [
            "E EEEIR EEEURR--",
            "O OOOOR AAOO---N",
            "A AEEIR AAAARR--",
            "I IIIIR IIIBRRRR",
            "U UUUBR UUUURR--",
            "B OBBBB BBBBBBBB",
            "R OEEIR RRRRRRRR",
            "N ONNNN NNNNNNNN",
            "G GGGGG GGGGGGGG",
        ];
        for row in table {
            let mut words = row.split(' ').map(|word| word.chars());
            let mut from = words.next().expect("a state");
            let from = from.next().expect("a letter");
            let state = State::ALL.iter().copied().find(|state| letter(*state) == from).expect("a state");
            for (side, segments) in [(SIDE_INSIDE, &INSIDE[..]), (SIDE_OUTSIDE, &OUTSIDE[..])] {
                let actual = segments
                    .iter()
                    .map(|segment| step(state, MARK, side, segment).map_or('-', |step| letter(step.state)));
                let expected: String = words.next().expect("a word a side").collect();
                assert_eq!(actual.collect::<String>(), expected, "{state:?}, side {side}");
            }
        }
    }

    #[test]
    fn the_mark_is_what_its_state_says() {
        let mark = |state, side, segment: &Segment| step(state, MARK, side, segment).expect("a step").mark;
        let [syn, _, ack, fin, _] = INSIDE;
        // What follows the SYN, its data included.
        assert_eq!(mark(State::Refused, SIDE_INSIDE, &syn), 5_001);
        assert_eq!(mark(State::BothFins, SIDE_INSIDE, &Segment { payload: 10, ..syn }), 5_011);
        // What the client will expect, and what it expects.
        assert_eq!(mark(State::Opening, SIDE_OUTSIDE, &OUTSIDE[0]), 6_001);
        assert_eq!(mark(State::Answered, SIDE_INSIDE, &ack), 7_000);
        assert_eq!(mark(State::Established, SIDE_INSIDE, &ack), 7_000);
        assert_eq!(mark(State::OutsideFin, SIDE_INSIDE, &ack), 7_000);
        // What follows the FIN, and nothing later.
        assert_eq!(mark(State::Established, SIDE_INSIDE, &Segment { payload: 10, ..fin }), 5_011);
        assert_eq!(mark(State::OutsideFin, SIDE_INSIDE, &fin), 5_001);
        assert_eq!(mark(State::InsideFin, SIDE_INSIDE, &ack), MARK);
        assert_eq!(mark(State::BothFins, SIDE_INSIDE, &ack), MARK);
        // The outside never moves it but by its SYN.
        for state in State::ALL {
            for segment in &OUTSIDE[2..] {
                assert!(step(*state, MARK, SIDE_OUTSIDE, segment).is_none_or(|step| step.mark == MARK));
            }
        }
    }

    #[test]
    fn where_the_numbers_of_a_connection_begin_makes_no_difference() {
        for offset in [1, 500, 4_999, 5_000, 6_000, 1 << 31, WINDOW, WINDOW + 1].map(u32::wrapping_neg) {
            for state in State::ALL {
                for (side, segments) in [(SIDE_INSIDE, &INSIDE[..]), (SIDE_OUTSIDE, &OUTSIDE[..])] {
                    for segment in segments {
                        let moved = Segment {
                            sequence: segment.sequence.wrapping_add(offset),
                            acknowledgement: segment.acknowledgement.wrapping_add(offset),
                            ..*segment
                        };
                        let expected = step(*state, MARK, side, segment)
                            .map(|step| Step { mark: step.mark.wrapping_add(offset), ..step });
                        let actual = step(*state, MARK.wrapping_add(offset), side, &moved);
                        assert_eq!(actual, expected, "{state:?}, side {side}, {segment:?}, {offset}");
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_wrap() {
        let low = 5;
        let reset = segment(TCP_RST, low, 0);
        let near = step(State::Established, u32::MAX - 5, SIDE_OUTSIDE, &reset);
        assert_eq!(near.map(|step| step.state), Some(State::Reset));
    }

    #[test]
    fn only_ports_of_connections_that_have_been_over_for_a_while_are_used_again() {
        for state in State::ALL {
            let reusable = |idle, ahead| state.is_reusable(idle, 100 * REST, ahead);
            let after_rest = matches!(state, State::BothFins | State::Reset | State::Refused);
            assert_eq!(reusable(100, true), after_rest, "{state:?}");
            assert!(!reusable(99, true), "{state:?} has not rested");
            // What a server may remember is not for a SYN that is behind it.
            assert_eq!(reusable(100, false), matches!(state, State::Reset | State::Refused), "{state:?}");
            assert_eq!(reusable(100 * REST / FORGOTTEN, false), after_rest, "{state:?}");
        }
    }

    #[test]
    fn a_syn_after_two_fins_has_to_be_ahead_of_the_connection_before() {
        let syn = |sequence, stamp| Segment { stamp, ..segment(TCP_SYN, sequence, 0) };
        let may = |segment: Segment| may_pass(State::BothFins, MARK, 50, false, &segment);
        assert!(may(syn(MARK + 1, 0)) && may(syn(MARK.wrapping_add((1 << 31) - 1), 0)));
        assert!(!may(syn(MARK, 0)) && !may(syn(MARK - 1, 0)) && !may(syn(MARK.wrapping_add(1 << 31), 0)));
        // A newer timestamp will do, an older one does not, and one where none is known tells nothing.
        assert!(may(syn(MARK - 1, 51)) && !may(syn(MARK - 1, 50)) && !may(syn(MARK - 1, 49)));
        assert!(!may_pass(State::BothFins, MARK, 0, false, &syn(MARK - 1, 51)));
        assert!(may_pass(State::BothFins, MARK, u32::MAX, false, &syn(MARK - 1, 1)), "timestamps go round");
        assert!(may_pass(State::BothFins, MARK, 50, true, &syn(MARK - 1, 0)), "nobody remembers");
        // What is no SYN goes on, and other states remember nothing, or are not over.
        assert!(may(segment(TCP_ACK, 0, 0)) && may(segment(TCP_RST, 0, 0)) && may(segment(TCP_FIN, 0, 0)));
        for state in State::ALL.iter().filter(|state| **state != State::BothFins) {
            assert!(may_pass(*state, MARK, 50, false, &syn(0, 0)), "{state:?}");
        }
    }

    #[test]
    fn numbers_of_states_round_trip() {
        for (number, state) in State::ALL.iter().enumerate() {
            assert_eq!(*state as usize, number);
            assert_eq!(State::from_number(*state as u8), *state);
        }
    }
}
