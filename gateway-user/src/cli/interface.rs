//! `gwctl interface`.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{context::Context, failure::Failure};
use crate::api::{
    segment,
    types::{InterfaceRequest, InterfaceRow},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Attach the gateway to a device
    #[command(after_help = "gwctl interface add eth1 role inside\n\
                            gwctl interface add eth0 role outside mode native")]
    Add(Add),
    /// Detach the gateway from a device
    #[command(alias = "delete", after_help = "gwctl interface del eth1")]
    Del(Name),
    /// Show the devices the gateway is attached to
    #[command(aliases = ["list", "ls"], after_help = "gwctl interface show")]
    Show(Show),
}

#[derive(Args, Debug)]
pub(super) struct Add {
    /// Name of the device
    #[arg(value_name = "NAME")]
    name: String,
    /// What it faces: the clients, the internet, or both (one-armed)
    #[arg(long, value_name = "inside|outside|both")]
    role: String,
    /// native: in the driver; generic: on every device, slower; auto: native if it can [auto]
    #[arg(long, value_name = "auto|native|generic")]
    mode: Option<String>,
}

#[derive(Args, Debug)]
pub(super) struct Name {
    /// Name of the device
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Debug)]
pub(super) struct Show {}

impl Verb {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        const PATH: &str = "/v1/interfaces";
        match self {
            Self::Add(Add { name, role, mode }) => {
                let path = format!("{PATH}/{}", segment(&name));
                context.change(Method::POST, &path, &InterfaceRequest { role, mode }).await
            }
            Self::Del(Name { name }) => context.delete(&format!("{PATH}/{}", segment(&name)), &()).await,
            Self::Show(Show {}) => context.show::<InterfaceRow>(PATH, &()).await,
        }
    }
}
