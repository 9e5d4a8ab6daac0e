//! What a control plane starts with: the saved state, or that of the configuration file.

use anyhow::Context as _;
use tracing::{info, warn};

use super::{Base, Current, Made, Store, confirm};
use crate::{model::validate, refused::Refused};

/// What to start with.
pub(super) struct Boot {
    pub(super) current: Current,
    /// Fingerprint of the configuration file that the run-time changes were made on.
    pub(super) base_fingerprint: String,
    /// Who made it.
    pub(super) made: Option<Made>,
}

/// Decides between the saved state and the configuration file.
pub(super) fn boot(base: &Base, store: &mut Store) -> anyhow::Result<Boot> {
    validate(&base.snapshot).context("the configuration is not acceptable")?;
    let from_base = |revision, made| Boot {
        current: Current::new(base.snapshot.clone(), revision),
        base_fingerprint: base.fingerprint.clone(),
        made: Some(made),
    };
    let from_file = || Made::by_gateway("the configuration file");
    let Some(saved) = store.load(&base.snapshot)? else { return Ok(from_base(1, from_file())) };
    let (saved, confirmation) = confirm::after_start(saved, store.directory(), base);
    let file_changed = saved.base != base.fingerprint;
    let made = saved.made.clone();
    let Some(running) = saved.running.filter(|running| **running != *base.snapshot) else {
        let made = made.filter(|_| !file_changed).unwrap_or_else(from_file);
        let mut boot = from_base(saved.revision + u64::from(file_changed), made);
        boot.current.confirmation = confirmation;
        return Ok(boot);
    };
    validate(&running).map_err(|violation| {
        Refused::error(
            format!("what was changed at run time does not fit the configuration file: {violation}"),
            "change the configuration file back, or move the file state.json in the state directory away; \
             the changes made with gwctl are lost then",
        )
    })?;
    if file_changed {
        warn!("the configuration file has changed, and changes made with gwctl win over it");
    } else {
        info!("changes made with gwctl win over the configuration file");
    }
    let current = Current {
        config_differs: true,
        config_changed: file_changed,
        confirmation,
        ..Current::new(running, saved.revision)
    };
    Ok(Boot { current, base_fingerprint: saved.base, made })
}
