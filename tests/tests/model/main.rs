//! Random packets: the XDP programs against a plain model.
//!
//! Scenarios come from seeds, and the seed of one that fails is printed. `GATEWAY_MODEL_SEED=N` runs that one
//! alone; `GATEWAY_MODEL_SCENARIOS=N` runs more or fewer than usual.

mod generate;
mod paper;
mod run;
mod scenario;
mod shrink;

use std::{
    env,
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use gateway_common::Verdict;
use gateway_tests::{counters::Counters, pcap::Pcap};
use run::Disagreement;
use scenario::Scenario;

/// Scenarios of a usual run.
const SCENARIOS: u64 = 50;
/// Steps of a scenario. One in four is about a packet that was not sent on, and so does nothing.
const STEPS: usize = 3000;
/// Packets that a usual run has at least.
const PACKETS: u64 = 100_000;

/// What random packets must run into, each of it, for the test to mean something.
const EXPECTED: &[&str] = &[
    "hairpin of a session",
    "verdict direct",
    "verdict drop",
    "verdict eip",
    "verdict gateway",
    "verdict host",
    "verdict reply",
    "verdict snat",
    "drops bad_checksum",
    "drops blackhole",
    "drops fragment_unmatched",
    "drops malformed",
    "drops mtu_exceeded",
    "drops neighbor_unresolved",
    "drops no_eip",
    "drops no_route",
    "drops no_session",
    "drops pool_exhausted",
    "drops prohibited",
    "drops session_table_full",
    "drops spoofed_source",
    "drops truncated",
    "drops ttl_exceeded",
    "drops unsupported_protocol",
];

#[test]
fn programs_and_model_agree_on_random_packets() {
    if let Some(seed) = number("GATEWAY_MODEL_SEED") {
        if let Err(told) = check(seed) {
            panic!("{told}");
        }
        return;
    }
    let scenarios = number("GATEWAY_MODEL_SCENARIOS").unwrap_or(SCENARIOS);
    let next = AtomicU64::new(0);
    let failed = Mutex::new(None);
    let summary = Mutex::new(Counters::default());
    // A gateway takes the thread that asks it into its network namespace.
    let name = thread::current().name().unwrap_or("model").to_owned();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let work = || {
                while failed.lock().is_ok_and(|failed| failed.is_none()) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= scenarios {
                        break;
                    }
                    match check(seed) {
                        Ok(Some(counted)) => {
                            counted.add_to(&mut summary.lock().expect("nobody panics with the lock"));
                        }
                        Ok(None) => break,
                        Err(told) => *failed.lock().expect("nobody panics with the lock") = Some(told),
                    }
                }
            };
            thread::Builder::new().name(name.clone()).spawn_scoped(scope, work).expect("a thread");
        }
    });
    if let Some(told) = failed.into_inner().expect("nobody panics with the lock") {
        panic!("{told}");
    }
    let seen = summary.into_inner().expect("nobody panics with the lock");
    println!("{seen}");
    if scenarios >= SCENARIOS && seen != Counters::default() {
        let packets: u64 =
            Verdict::ALL.iter().map(|verdict| seen.packets(&format!("verdict {}", verdict.name()))).sum();
        assert!(packets >= PACKETS, "no more than {packets} packets");
        let walked = paper::DECIDED.load(Ordering::Relaxed);
        assert!(walked >= PACKETS / 10, "no more than {walked} walks came to an end");
        for name in EXPECTED {
            assert!(seen.packets(name) > 0, "no scenario had {name}: the test has lost its sharpness");
        }
    }
}

/// Runs a scenario, and says what was counted in it; `None`: it cannot run here.
fn check(seed: u64) -> Result<Option<Counters>, String> {
    let scenario = generate::scenario(seed, STEPS);
    match run::run(&scenario) {
        None => Ok(None),
        Some(Ok(counted)) => Ok(Some(counted)),
        Some(Err(disagreement)) => {
            let (scenario, disagreement) = shrink::shrink(scenario, disagreement);
            Err(tell(seed, &scenario, &disagreement))
        }
    }
}

/// The disagreement in words, and where its capture is.
fn tell(seed: u64, scenario: &Scenario, disagreement: &Disagreement) -> String {
    let mut told =
        format!("programs and model disagree (GATEWAY_MODEL_SEED={seed})\npolicy: {}\n", scenario.policy);
    for (number, step) in &scenario.steps {
        let _infallible = writeln!(told, "{number}: {step}");
    }
    let capture = Pcap::create(&format!("model_seed_{seed}")).and_then(|mut pcap| {
        let results = disagreement.results.iter().flat_map(|(wanted, got)| [wanted, got]);
        for (second, frame) in disagreement.frames.iter().chain(results).enumerate() {
            pcap.frame(second as u32, 0, frame)?;
        }
        pcap.finish()
    });
    let capture = capture.map_or_else(|error| format!("{error:#}"), |path| path.display().to_string());
    let what = &disagreement.what;
    let _infallible =
        write!(told, "{what}all frames, then expected and got (if it is about a frame): {capture}");
    told
}

fn number(name: &str) -> Option<u64> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}
