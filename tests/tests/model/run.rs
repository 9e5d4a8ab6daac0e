//! A scenario, put to the programs and to the model.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    net::IpAddr,
};

use gateway_common::{Verdict, counter::Counter};
use gateway_tests::{
    counters::Counters,
    gateway::{Action, Gateway, Outcome},
    model::{Decision, Model},
    network::Network,
    packet::{Packet, differences},
};
use gateway_user::{
    dataplane::Tried,
    explain::Question,
    model::{Role, Snapshot},
};

use crate::paper;
use crate::scenario::{Scenario, Step, answer, error, frame, rest, twisted};

/// Packets between two looks at the counters.
const COUNTED: usize = 50;

/// Where programs and model part.
pub(crate) struct Disagreement {
    /// Index of the step in the scenario.
    pub(crate) at: usize,
    /// What differs.
    pub(crate) what: String,
    /// Frames that arrived, up to the last one.
    pub(crate) frames: Vec<Vec<u8>>,
    /// What the model made of the last one, and what the programs made of it.
    pub(crate) results: Option<(Vec<u8>, Vec<u8>)>,
}

/// What was counted by verdict and by reason, or where they part; `None`: it cannot run here.
pub(crate) fn run(scenario: &Scenario) -> Option<Result<Counters, Box<Disagreement>>> {
    let gateway = Gateway::start(scenario.network.clone(), &scenario.policy)?;
    let model = Model::new(scenario.network.clone(), scenario.policy.snapshot());
    let zero = Counters::default();
    let mut run = Run {
        gateway,
        model,
        baseline: (zero.clone(), zero),
        sent: HashMap::new(),
        arrived: HashMap::new(),
        frames: Vec::new(),
        state: scenario.policy.snapshot(),
        question: None,
    };
    run.baseline = run.counted();
    for (at, (number, step)) in scenario.steps.iter().enumerate() {
        let looked = at % COUNTED == COUNTED - 1 || at == scenario.steps.len() - 1;
        let done = run.step(&scenario.network, *number, step);
        let done = done.and_then(|()| if looked { run.look() } else { Ok(()) });
        if let Err((what, results)) = done {
            let frames = run.frames;
            return Some(Err(Box::new(Disagreement { at, what, frames, results })));
        }
    }
    Some(Ok(summary(run.model.counters())))
}

struct Run {
    gateway: Gateway,
    model: Model,
    /// Counters of the gateway and of the model after the last change of policy.
    baseline: (Counters, Counters),
    /// What packets were sent on, as what and where, by the number of the step.
    sent: HashMap<usize, (Packet, Vec<u8>, &'static str)>,
    /// What packets arrived, and where, by the number of the step.
    arrived: HashMap<usize, (Packet, &'static str)>,
    frames: Vec<Vec<u8>>,
    /// The policy in force.
    state: Snapshot,
    /// What the next packet asks, if the walk on paper knows such packets.
    question: Option<Question>,
}

type Outcomes = Option<(Vec<u8>, Vec<u8>)>;

impl Run {
    fn step(&mut self, network: &Network, number: usize, step: &Step) -> Result<(), (String, Outcomes)> {
        match step {
            Step::Packet { device, packet, twists } => {
                let frame = frame(network, device, packet, twists);
                self.arrived.insert(number, (twisted(network, device, packet, twists), device));
                let plain = if twists.is_empty() { paper::question(network, device, packet) } else { None };
                self.question = plain;
                self.packet(device, &frame, Some((number, packet)))
            }
            Step::Answer { to, device, twists } => {
                // The step may have been left out, or its packet was not sent on.
                let Some((packet, sent, egress)) = self.sent.get(to) else { return Ok(()) };
                let answer = answer(packet, sent);
                let device = device.unwrap_or(egress);
                let frame = frame(network, device, &answer, twists);
                self.arrived.insert(number, (twisted(network, device, &answer, twists), device));
                self.packet(device, &frame, Some((number, &answer)))
            }
            Step::Error { about, device, from, error: what, twists } => {
                let Some((_, sent, egress)) = self.sent.get(about) else { return Ok(()) };
                let device = device.unwrap_or(egress);
                let frame = frame(network, device, &error(*what, *from, sent), twists);
                self.packet(device, &frame, None)
            }
            Step::Rest { of, from, twists } => {
                let Some((packet, device)) = self.arrived.get(of) else { return Ok(()) };
                let frame = frame(network, device, &rest(packet, *from), twists);
                self.packet(device, &frame, None)
            }
            Step::Frame { device, frame } => self.packet(device, frame, None),
            Step::Change(policy) => {
                self.look()?;
                self.gateway.apply(policy);
                self.model.apply(policy.snapshot());
                self.state = policy.snapshot();
                self.baseline = self.counted();
                Ok(())
            }
            Step::Sweep => {
                self.gateway.sweep_all();
                self.model.sweep();
                Ok(())
            }
        }
    }

    fn packet(
        &mut self,
        device: &'static str,
        frame: &[u8],
        remember: Option<(usize, &Packet)>,
    ) -> Result<(), (String, Outcomes)> {
        self.frames.push(frame.to_vec());
        let question = self.question.take();
        let present = question.as_ref().map(|question| paper::present(&self.gateway, question));
        let tried = self.gateway.try_packet(device, frame);
        let outcome = self.gateway.run(device, frame);
        let sent =
            matches!(outcome.action, Action::Tx | Action::Redirect).then_some(outcome.frame.as_slice());
        let (gateway, model) = (&self.gateway, &mut self.model);
        let places = |proto, client, server| {
            let mut rows = gateway.sessions().into_iter();
            let row = rows.find(|row| {
                (row.proto, (row.source, row.source_port), (row.destination, row.destination_port))
                    == (proto, client, server)
            })?;
            Some((row.translated, row.translated_port))
        };
        let decision = match model.packet(device, frame, sent, &places) {
            Ok(decision) => decision,
            Err(illegal) => return Err((format!("  {illegal}\n"), Some((frame.to_vec(), outcome.frame)))),
        };
        let what = compare(device, frame, &decision, &outcome)
            + &self.leak(&decision, &outcome)
            + &compare_trial(frame, &tried, &decision, &outcome)
            + &question.zip(present).map_or_else(String::new, |(question, present)| {
                paper::compare(self.gateway.network(), &self.state, &question, &present, &tried)
            });
        if !what.is_empty() {
            let wanted = decision.answer.unwrap_or(decision.frame);
            return Err((what, Some((wanted, outcome.frame))));
        }
        if let (Some((number, packet)), Some(egress)) = (remember, &decision.egress) {
            let egress = self.gateway.network().find(egress).name;
            self.sent.insert(number, (packet.clone(), outcome.frame, egress));
        }
        Ok(())
    }

    /// Says so if a packet that was to be translated leaves with an address of the inside.
    fn leak(&self, decision: &Decision, outcome: &Outcome) -> String {
        let Some(egress) = &decision.egress else { return String::new() };
        let network = self.gateway.network();
        let outward = network.find(egress).role == Some(Role::Outside);
        let translated = matches!(decision.verdict, Verdict::Snat | Verdict::Eip);
        let inside =
            |address: IpAddr| network.way(address).is_some_and(|way| way.device.role == Some(Role::Inside));
        let Some(source) = source(&outcome.frame) else { return String::new() };
        if outward && translated && inside(source) {
            return format!("  {source} has left through {egress}\n");
        }
        String::new()
    }

    /// Compares counters and sessions.
    fn look(&mut self) -> Result<(), (String, Outcomes)> {
        let (programs, model) = self.counted();
        let moved = (programs.since(&self.baseline.0), model.since(&self.baseline.1));
        let mut what = moved.1.differences(&moved.0);
        let (wanted, got) = (self.sessions_of_model(), self.sessions_of_programs());
        for missing in wanted.difference(&got) {
            let _infallible = writeln!(what, "  session missing: {missing}");
        }
        for extra in got.difference(&wanted) {
            let _infallible = writeln!(what, "  session too many: {extra}");
        }
        if what.is_empty() { Ok(()) } else { Err((what, None)) }
    }

    fn counted(&self) -> (Counters, Counters) {
        let programs = self.gateway.counters();
        // Unresolved neighbours are told to nobody here.
        (comparable(&programs.filter(|name| name != "events lost")), comparable(self.model.counters()))
    }

    fn sessions_of_model(&self) -> BTreeSet<String> {
        let live = self.model.sessions().filter(|session| !session.cut);
        let lines = live.map(|session| {
            let [client, translated, server] = [session.client, session.translated, session.server];
            let [sent, received] = session.traffic();
            format!("{} {client:?} {translated:?} {server:?} {sent:?} {received:?}", session.proto)
        });
        lines.collect()
    }

    fn sessions_of_programs(&self) -> BTreeSet<String> {
        let rows = self.gateway.sessions().into_iter().map(|row| {
            let client = (row.source, row.source_port);
            let translated = (row.translated, row.translated_port);
            let server = (row.destination, row.destination_port);
            let pair = |counter: Counter| (counter.packets, counter.bytes);
            let (sent, received) = (pair(row.sent), pair(row.received));
            format!("{} {client:?} {translated:?} {server:?} {sent:?} {received:?}", row.proto)
        });
        rows.collect()
    }
}

/// Source of an untagged IP packet.
fn source(frame: &[u8]) -> Option<IpAddr> {
    match frame.get(12..14)? {
        [0x08, 0x00] => Some(<[u8; 4]>::try_from(frame.get(26..30)?).ok()?.into()),
        [0x86, 0xdd] => Some(<[u8; 16]>::try_from(frame.get(22..38)?).ok()?.into()),
        _ => None,
    }
}

/// What differs between what must come of a frame and what came.
fn compare(device: &str, frame: &[u8], decision: &Decision, outcome: &Outcome) -> String {
    let action = match (&decision.egress, decision.verdict) {
        (Some(egress), _) if egress == device => Action::Tx,
        (Some(_), _) => Action::Redirect,
        (None, Verdict::Drop) => Action::Drop,
        (None, _) => Action::Pass,
    };
    let mut wanted = Outcome { action, frame: decision.frame.clone() };
    if let Some(answer) = &decision.answer {
        // Answers have a rate limit.
        if outcome.action == Action::Drop && outcome.frame == frame {
            return String::new();
        }
        wanted = Outcome { action: Action::Tx, frame: answer.clone() };
    }
    let mut what = String::new();
    if wanted.action != outcome.action {
        let reason = decision.reason.map_or("", |reason| reason.name());
        let verdict = decision.verdict.name();
        what = format!(
            "  action: expected {:?} ({verdict} {reason}), got {:?}\n",
            wanted.action, outcome.action
        );
    }
    what + &differences(&wanted.frame, &outcome.frame)
}

/// What differs between what a trial has said of a frame and what came.
fn compare_trial(frame: &[u8], tried: &Tried, decision: &Decision, outcome: &Outcome) -> String {
    let said = (tried.verdict, tried.reason, tried.egress.as_ref());
    let came = (decision.verdict, decision.reason, decision.egress.as_ref());
    if said != came {
        return format!("  the trial has said {said:?}, and it was {came:?}\n");
    }
    // Answers have a rate limit.
    let silent = outcome.action == Action::Drop && outcome.frame == frame;
    // Port and identification may be random; where they are not, nothing is.
    let random = tried.opens || decision.answer.is_none() && tried.frame.len() > 21 && is_fragment(frame);
    if silent
        || random && tried.frame.len() == outcome.frame.len() && tried.frame[..14] == outcome.frame[..14]
    {
        return String::new();
    }
    let differ = differences(&outcome.frame, &tried.frame);
    if differ.is_empty() { differ } else { format!("  of the trial:\n{differ}") }
}

/// Whether an IP packet is a fragment, or may be one.
fn is_fragment(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(20..22).is_some_and(|field| field[0] & 0x3f != 0 || field[1] != 0),
        _ => frame.get(20) != Some(&6) && frame.get(20) != Some(&17) && frame.get(20) != Some(&58),
    }
}

/// Packets by verdict and by reason.
fn summary(counters: &Counters) -> Counters {
    let counted = counters.filter(|name| name.starts_with("traffic ") || name.starts_with("drops "));
    counted.rename(|name| match name.rsplit_once(' ') {
        Some(("drops", reason)) => format!("drops {reason}"),
        Some((way, "snat")) if is_within(way) => "hairpin of a session".to_owned(),
        Some((_, verdict)) => format!("verdict {verdict}"),
        None => name.to_owned(),
    })
}

/// Whether both devices of `traffic IN > OUT` are those of the inside.
fn is_within(way: &str) -> bool {
    let mut devices = way.split(' ').filter(|word| !matches!(*word, "traffic" | ">"));
    devices.all(|device| device.starts_with("in"))
}

/// Which address of a pool counts a flow that got no port is the choice of the programs: attempts and errors
/// are those of the pool.
fn comparable(counters: &Counters) -> Counters {
    counters.rename(|name| match name.split(' ').collect::<Vec<_>>().as_slice() {
        ["pool", pool, _, what @ ("attempts" | "allocation_errors")] => format!("pool {pool} {what}"),
        _ => name.to_owned(),
    })
}
