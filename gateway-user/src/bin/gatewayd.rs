//! The daemon of the gateway. Everything is in [`gateway_user::daemon`].

use std::process::ExitCode;

use gateway_user::{
    daemon::{self, Backend},
    dataplane::bpf::{BpfDataplane, Options},
};

fn main() -> ExitCode {
    daemon::main(|pin_dir, capacity| {
        daemon::check_bpffs(pin_dir)?;
        let dataplane = BpfDataplane::open(&Options { pin_dir: pin_dir.to_owned(), capacity })?;
        let events = Some(dataplane.events()?);
        let records = Some(dataplane.records()?);
        let watchers = Some(dataplane.watchers()?);
        Ok(Backend { dataplane: Box::new(dataplane), events, records, watchers })
    })
}
