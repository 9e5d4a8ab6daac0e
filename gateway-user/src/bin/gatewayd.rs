//! The daemon of the gateway. Everything is in [`gateway_user::daemon`].

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway_user::daemon::main(|_pin_dir, _capacity| {
        anyhow::bail!("this build has no data plane: the programs for the kernel are not part of it")
    })
}
