//! `gwctl status`.

use clap::Args;

use super::{context::Context, failure::Failure};
use crate::{
    api::{
        error::exit,
        types::{self, List},
    },
    render,
};

#[derive(Args, Debug)]
#[command(after_help = "gwctl status\ngwctl status --brief\ngwctl status --json")]
pub(super) struct Status {
    /// One line
    #[arg(long, help_heading = super::words::OPTIONS)]
    brief: bool,
}

impl Status {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<u8, Failure> {
        let list: List<types::Status> = context.get("/v1/status", &()).await?;
        let Some(status) = list.items.first() else {
            return Err(Failure::new(exit::UNEXPECTED, "gatewayd did not say how it is"));
        };
        if context.json {
            context.print_json(&list)?;
        } else {
            let show = if self.brief { render::status::brief } else { render::status::screen };
            let text = show(&list, status, context.paint);
            context.print_text(&text)?;
        }
        Ok(if status.healthy { exit::OK } else { exit::UNHEALTHY })
    }
}
