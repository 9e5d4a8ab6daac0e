//! `gwctl eip`.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{context::Context, failure::Failure};
use crate::api::{
    segment,
    types::{EipRequest, EipRow},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Map an outside address to an inside host
    #[command(after_help = "gwctl eip add 198.51.100.50 host 10.0.0.2\n\
                            gwctl route add default via eip")]
    Add(Add),
    /// Take an outside address from its host, and cut its traffic
    #[command(alias = "delete", after_help = "gwctl eip del 198.51.100.50")]
    Del(Address),
    /// Show outside addresses and their hosts
    #[command(aliases = ["list", "ls"], after_help = "gwctl eip show")]
    Show(Show),
}

#[derive(Args, Debug)]
pub(super) struct Add {
    /// Outside address
    #[arg(value_name = "ADDR")]
    address: String,
    /// The inside host that gets it
    #[arg(long, value_name = "ADDR")]
    host: String,
}

#[derive(Args, Debug)]
pub(super) struct Address {
    /// Outside address
    #[arg(value_name = "ADDR")]
    address: String,
}

#[derive(Args, Debug)]
pub(super) struct Show {}

impl Verb {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        const PATH: &str = "/v1/eips";
        match self {
            Self::Add(Add { address, host }) => {
                let path = format!("{PATH}/{}", segment(&address));
                context.change(Method::POST, &path, &EipRequest { host }).await
            }
            Self::Del(Address { address }) => {
                context.delete(&format!("{PATH}/{}", segment(&address)), &()).await
            }
            Self::Show(Show {}) => context.show::<EipRow>(PATH, &()).await,
        }
    }
}
