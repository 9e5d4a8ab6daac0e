//! `gwctl table`.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{context::Context, failure::Failure};
use crate::api::{
    segment,
    types::{BindingRequest, TableRequest, TableRow},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add a table
    #[command(after_help = "gwctl table add servers\ngwctl table add return kind border")]
    Add(Add),
    /// Remove a table
    #[command(alias = "delete", after_help = "gwctl table del servers")]
    Del(Name),
    /// Show tables
    #[command(aliases = ["list", "ls"], after_help = "gwctl table show\ngwctl table show servers --counters")]
    Show(Show),
    /// Let a table decide packets from a source
    #[command(after_help = "gwctl table bind servers from 10.0.2.0/24\n\
                            gwctl table bind servers from 10.0.2.0/24 iif eth1")]
    Bind(Binding),
    /// Take a source away from a table
    #[command(after_help = "gwctl table unbind servers from 10.0.2.0/24")]
    Unbind(Binding),
}

#[derive(Args, Debug)]
pub(super) struct Add {
    /// Name of the table
    #[arg(value_name = "NAME")]
    name: String,
    /// egress: packets from inside; border: replies to clients [egress]
    #[arg(long, value_name = "egress|border")]
    kind: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Name {
    /// Name of the table
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Debug)]
pub(super) struct Show {
    /// Name of the table
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// With packets and bytes, as always
    #[arg(long, help_heading = super::words::OPTIONS)]
    counters: bool,
}

#[derive(Args, Debug)]
pub(super) struct Binding {
    /// Name of the table
    #[arg(value_name = "NAME")]
    name: String,
    /// Source prefix
    #[arg(long, value_name = "PREFIX")]
    from: String,
    /// Only packets that come in through this interface
    #[arg(long, value_name = "IF")]
    iif: Option<String>,
}

impl Verb {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        match self {
            Self::Add(Add { name, kind }) => {
                context.change(Method::POST, &path(&name), &TableRequest { kind }).await
            }
            Self::Del(Name { name }) => context.delete(&path(&name), &()).await,
            // Tables are few, and always shown with what they have counted.
            Self::Show(Show { name, counters: _ }) => {
                let path = name.map_or_else(|| "/v1/tables".to_owned(), |name| path(&name));
                context.show::<TableRow>(&path, &()).await
            }
            Self::Bind(Binding { name, from, iif }) => {
                context.change(Method::POST, &bindings(&name), &BindingRequest { from, iif }).await
            }
            Self::Unbind(Binding { name, from, iif }) => {
                context.delete(&bindings(&name), &BindingRequest { from, iif }).await
            }
        }
    }
}

fn path(name: &str) -> String {
    format!("/v1/tables/{}", segment(name))
}

fn bindings(name: &str) -> String {
    format!("{}/bindings", path(name))
}
