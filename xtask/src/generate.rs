//! The reference pages that are made from the source.

use anyhow::{Context as _, Result};

use crate::{cargo, floors, setup};

/// Writes every generated page anew.
///
/// Each page has a test `reference_page_is_up_to_date` beside its source, which writes instead of comparing when
/// it is told to.
pub(crate) fn pages() -> Result<()> {
    setup::ensure(setup::Scope::Build)?;
    let mut command = floors::workspace("test");
    command.args(["--quiet", "--lib", "reference_page_is_up_to_date"]).env("UPDATE_REFERENCE", "1");
    cargo::run(&mut command).context("a page could not be written")
}
