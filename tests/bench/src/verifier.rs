//! Instructions that the verifier looks at for each program of the gateway.

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::{
    Options, cpu,
    network::{Network, programs_of},
    report::Report,
    statistic::Samples,
};

/// The most that the kernel's verifier looks at, `BPF_COMPLEXITY_LIMIT_INSNS`.
const LIMIT: u32 = 1_000_000;

/// The most that a program of the gateway should take.
const TARGET: u32 = LIMIT / 4;

/// What a program costs.
#[derive(Serialize)]
struct Cost {
    program: String,
    /// Instructions that the verifier looked at.
    verified_instructions: u32,
    /// Bytes of the program as the kernel has it.
    translated_bytes: u32,
    /// Bytes of machine code.
    machine_bytes: u32,
}

/// Loads the gateway and asks the kernel.
pub(crate) fn measure(_: &Options) -> Result<Report> {
    let title = "Verifier: instructions looked at for each program".to_owned();
    let headings = ["PROGRAM", "VERIFIED", "OF THE LIMIT", "BPF BYTES", "MACHINE BYTES"];
    let mut report = Report::new("verifier", title, "instructions", &headings);
    cpu::pin_to(cpu::COMMON)?;
    let network = Network::new()?;
    let mut daemon = network.gatewayd("")?;
    daemon.start_again(&["--detach-on-exit"])?;
    let programs = programs_of(&daemon)?;
    ensure!(!programs.is_empty(), "the daemon has no programs");
    let mut costs: Vec<Cost> = programs
        .iter()
        .map(|program| Cost {
            program: String::from_utf8_lossy(program.name()).into_owned(),
            verified_instructions: program.verified_instruction_count().unwrap_or(0),
            translated_bytes: program.size_translated().unwrap_or(0),
            machine_bytes: program.size_jitted(),
        })
        .collect();
    costs.sort_by_key(|cost| std::cmp::Reverse(cost.verified_instructions));
    for cost in &costs {
        let Cost { program, verified_instructions, translated_bytes, machine_bytes } = cost;
        report.line(&[
            program.clone(),
            verified_instructions.to_string(),
            format!("{:.1} %", f64::from(*verified_instructions) * 100.0 / f64::from(LIMIT)),
            translated_bytes.to_string(),
            machine_bytes.to_string(),
        ]);
        let what = format!("instructions that the verifier looks at for {program}");
        let measured = Samples::from(f64::from(*verified_instructions));
        report.bar(program, &measured);
        report.at_most(&what, &measured, f64::from(TARGET));
        report.value(cost)?;
    }
    report.draw_limit(f64::from(TARGET));
    Ok(report)
}
