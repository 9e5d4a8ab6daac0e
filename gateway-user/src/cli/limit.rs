//! `gwctl limit`.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{context::Context, failure::Failure};
use crate::api::{
    segment,
    types::{LimitRequest, LimitRow},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Limit what clients open
    #[command(after_help = "gwctl limit add tenant-a from 10.0.7.0/24 rate 200 concurrent 10000\n\
                            gwctl limit add office from 10.0.8.0/22 per prefix concurrent 100000\n\
                            gwctl limit add trusted from 10.0.7.9/32")]
    Add(Add),
    /// Change what is named of a limit; connections that there are go on
    #[command(after_help = "gwctl limit set tenant-a rate 500\ngwctl limit set tenant-a rate 0 concurrent 0")]
    Set(Set),
    /// Remove a limit
    #[command(alias = "delete", after_help = "gwctl limit del tenant-a")]
    Del(Name),
    /// Show limits, and what they have done
    #[command(aliases = ["list", "ls"], after_help = "gwctl limit show\ngwctl limit show tenant-a")]
    Show(Show),
}

#[derive(Args, Debug)]
pub(super) struct Add {
    /// Name of the limit
    #[arg(value_name = "NAME")]
    name: String,
    /// Clients; of several limits, the longest prefix decides
    #[arg(long, value_name = "PREFIX")]
    from: String,
    #[command(flatten)]
    bounds: Bounds,
}

#[derive(Args, Debug)]
pub(super) struct Set {
    /// Name of the limit
    #[arg(value_name = "NAME")]
    name: String,
    /// Clients; of several limits, the longest prefix decides
    #[arg(long, value_name = "PREFIX")]
    from: Option<String>,
    #[command(flatten)]
    bounds: Bounds,
}

#[derive(Args, Debug)]
pub(super) struct Bounds {
    /// For each client (source, the default), or for all of them together (prefix)
    #[arg(long, value_name = "source|prefix")]
    per: Option<String>,
    /// New connections per second; 0: any number
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// How many of them may come at once
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Connections at a time; 0: any number
    #[arg(long, value_name = "N")]
    concurrent: Option<u32>,
}

#[derive(Args, Debug)]
pub(super) struct Name {
    /// Name of the limit
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Debug)]
pub(super) struct Show {
    /// Name of the limit
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl Verb {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        match self {
            Self::Add(Add { name, from, bounds }) => {
                context.change(Method::POST, &path(&name), &bounds.request(Some(from))).await
            }
            Self::Set(Set { name, from, bounds }) => {
                let limit = bounds.request(from);
                if limit == LimitRequest::default() {
                    return Err(Failure::usage("`gwctl limit set` needs something to set").hint(
                        "usage: gwctl limit set NAME [from PREFIX] [per source|prefix] [rate N] [burst N] \
                         [concurrent N]",
                    ));
                }
                context.change(Method::PATCH, &path(&name), &limit).await
            }
            Self::Del(Name { name }) => context.delete(&path(&name), &()).await,
            Self::Show(Show { name }) => {
                let path = name.map_or_else(|| "/v1/limits".to_owned(), |name| path(&name));
                context.show::<LimitRow>(&path, &()).await
            }
        }
    }
}

impl Bounds {
    fn request(self, from: Option<String>) -> LimitRequest {
        let Self { per, rate, burst, concurrent } = self;
        LimitRequest { from, per, rate, burst, concurrent }
    }
}

fn path(name: &str) -> String {
    format!("/v1/limits/{}", segment(name))
}
