//! `gwctl group`.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{context::Context, failure::Failure};
use crate::api::{
    segment,
    types::{GroupRequest, GroupRow},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Count usage of a group of addresses, as sources and as destinations
    #[command(after_help = "gwctl group add payments prefix 10.1.0.0/16,2001:db8:1::/48\n\
                            gwctl group add partner prefix 203.0.113.0/24\n\
                            gwctl stats usage")]
    Add(Prefixes),
    /// Give a group other prefixes; what was counted stays counted
    #[command(after_help = "gwctl group set payments prefix 10.1.0.0/16,10.2.0.0/16")]
    Set(Prefixes),
    /// Remove a group, and what was counted for it
    #[command(alias = "delete", after_help = "gwctl group del payments")]
    Del(Name),
    /// Show groups and their prefixes
    #[command(aliases = ["list", "ls"], after_help = "gwctl group show\ngwctl group show payments")]
    Show(Show),
}

#[derive(Args, Debug)]
pub(super) struct Prefixes {
    /// Name of the group
    #[arg(value_name = "NAME")]
    name: String,
    /// Its addresses; of several groups, the longest prefix decides
    #[arg(long, value_name = "PREFIX[,PREFIX...]", value_delimiter = ',', required = true)]
    prefix: Vec<String>,
}

#[derive(Args, Debug)]
pub(super) struct Name {
    /// Name of the group
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Debug)]
pub(super) struct Show {
    /// Name of the group
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl Verb {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        match self {
            Self::Add(Prefixes { name, prefix: prefixes }) => {
                context.change(Method::POST, &path(&name), &GroupRequest { prefixes }).await
            }
            Self::Set(Prefixes { name, prefix: prefixes }) => {
                context.change(Method::PATCH, &path(&name), &GroupRequest { prefixes }).await
            }
            Self::Del(Name { name }) => context.delete(&path(&name), &()).await,
            Self::Show(Show { name }) => {
                let path = name.map_or_else(|| "/v1/groups".to_owned(), |name| path(&name));
                context.show::<GroupRow>(&path, &()).await
            }
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/groups/{}", segment(name))
}
