//! The shortest scenario that still shows a disagreement, within reason.

use std::time::{Duration, Instant};

use crate::{
    run::{Disagreement, run},
    scenario::Scenario,
};

/// How long to look for a shorter one.
const PATIENCE: Duration = Duration::from_secs(90);

/// Leaves out steps while programs and model still disagree.
pub(crate) fn shrink(scenario: Scenario, disagreement: Box<Disagreement>) -> (Scenario, Box<Disagreement>) {
    let end = Instant::now() + PATIENCE;
    let mut best = (scenario, disagreement);
    best.0.steps.truncate(best.1.at + 1);
    let mut chunk = best.0.steps.len() / 2;
    while chunk > 0 && Instant::now() < end {
        let mut from = 0;
        while from < best.0.steps.len() && Instant::now() < end {
            let mut shorter = best.0.clone();
            shorter.steps.drain(from..(from + chunk).min(best.0.steps.len()));
            match run(&shorter) {
                Some(Err(disagreement)) => {
                    shorter.steps.truncate(disagreement.at + 1);
                    best = (shorter, disagreement);
                }
                _ => from += chunk,
            }
        }
        chunk /= 2;
    }
    best
}
