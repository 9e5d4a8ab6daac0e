//! `gwctl activate`, `deactivate`, `export` and `version`: the gateway as a whole.

use clap::Args;
use gateway_common::ABI_VERSION;
use hyper::Method;

use super::{context::Context, failure::Failure};
use crate::{
    api::{
        Client,
        types::{self, List, Row},
    },
    render::ProgramVersion,
};

#[derive(Args, Debug)]
#[command(after_help = "gwctl activate")]
pub(super) struct Activate {}

impl Activate {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        context.change(Method::POST, "/v1/activate", &serde_json::json!({})).await
    }
}

#[derive(Args, Debug)]
#[command(after_help = "gwctl deactivate")]
pub(super) struct Deactivate {}

impl Deactivate {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        context.change(Method::POST, "/v1/deactivate", &serde_json::json!({})).await
    }
}

#[derive(Args, Debug)]
#[command(after_help = "gwctl export > gateway.toml\ngatewayd --config gateway.toml --check-config")]
pub(super) struct Export {}

impl Export {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let list: List<types::Export> = context.get("/v1/export", &()).await?;
        if context.json {
            return context.print_json(&list);
        }
        list.items.iter().try_for_each(|item| context.print_text(&item.config))
    }
}

#[derive(Args, Debug)]
#[command(after_help = "gwctl version\ngwctl version --json")]
pub(super) struct Version {}

impl Version {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        let own = env!("CARGO_PKG_VERSION").to_owned();
        let mut programs = vec![ProgramVersion { program: "gwctl", version: own, abi: ABI_VERSION }];
        let daemon = daemon(&context.client).await;
        let revision = daemon.as_ref().map_or(0, |list| list.revision);
        match daemon {
            Ok(list) => programs.extend(list.items.into_iter().map(daemon_version)),
            // A version is asked for when things do not work: that of this program is an answer.
            Err(Failure::Told { message, .. }) => context.note(&format!("note: {message}")),
            Err(Failure::ReaderGone) => {}
        }
        let schema = types::Version::SCHEMA.to_owned();
        context.print(&List { schema, revision, total: None, items: programs })
    }
}

async fn daemon(client: &Client) -> Result<List<types::Version>, Failure> {
    client.get("/v1/version", &()).await.map_err(|error| Failure::of_call(error, client.socket()))
}

fn daemon_version(types::Version { version, abi }: types::Version) -> ProgramVersion {
    ProgramVersion { program: "gatewayd", version, abi }
}
