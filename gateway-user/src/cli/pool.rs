//! `gwctl pool`.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{context::Context, failure::Failure};
use crate::api::{
    segment,
    types::{DrainRequest, PoolRequest, PoolRow},
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add a pool
    #[command(after_help = "gwctl pool add nat address 198.51.100.10\n\
                            gwctl pool add nat address 198.51.100.10,198.51.100.11 ports 10000-65535\n\
                            gwctl pool add nat address 198.51.100.0/29 rate 900 concurrent 55000\n\
                            gwctl pool add calls address 198.51.100.20 mapping endpoint-independent")]
    Add(Add),
    /// Change what is named of a pool; sessions keep their addresses and ports
    #[command(after_help = "gwctl pool set nat address 198.51.100.10,198.51.100.12\n\
                            gwctl pool set nat mss 1360\n\
                            gwctl pool set nat refuse reset\n\
                            gwctl pool set nat rate 0 concurrent 0")]
    Set(Set),
    /// Have addresses of a pool take no new sessions; those that they have go on
    #[command(after_help = "gwctl pool drain nat address 198.51.100.10")]
    Drain(Drain),
    /// Have drained addresses take new sessions again
    #[command(after_help = "gwctl pool undrain nat address 198.51.100.10")]
    Undrain(Drain),
    /// Remove a pool that no route uses
    #[command(alias = "delete", after_help = "gwctl pool del nat")]
    Del(Name),
    /// Show pools
    #[command(aliases = ["list", "ls"], after_help = "gwctl pool show\ngwctl pool show nat")]
    Show(Show),
}

#[derive(Args, Debug)]
pub(super) struct Add {
    /// Name of the pool
    #[arg(value_name = "NAME")]
    name: String,
    /// Outside addresses, or prefixes of them
    #[arg(long, value_name = "ADDR[,ADDR...]", value_delimiter = ',', required = true)]
    address: Vec<String>,
    /// Ports used on each address
    #[arg(long, value_name = "A-B")]
    ports: Option<String>,
    /// endpoint-dependent, or endpoint-independent: one port of a client for all, who all can reach it there
    #[arg(long, value_name = "endpoint-dependent|endpoint-independent")]
    mapping: Option<String>,
    /// Largest TCP segment that its connections announce, bytes; 0: what fits the links of both sides
    #[arg(long, value_name = "N")]
    mss: Option<u32>,
    /// What a client is told whose connection it cannot take: nothing (drop), a reset, or an ICMP error
    #[arg(long, value_name = "drop|reset|icmp")]
    refuse: Option<String>,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Args, Debug)]
pub(super) struct Set {
    /// Name of the pool
    #[arg(value_name = "NAME")]
    name: String,
    /// All outside addresses, or prefixes of them
    #[arg(long, value_name = "ADDR[,ADDR...]", value_delimiter = ',')]
    address: Option<Vec<String>>,
    /// Ports used on each address
    #[arg(long, value_name = "A-B")]
    ports: Option<String>,
    /// endpoint-dependent, or endpoint-independent: one port of a client for all, who all can reach it there
    #[arg(long, value_name = "endpoint-dependent|endpoint-independent")]
    mapping: Option<String>,
    /// Largest TCP segment that its connections announce, bytes; 0: what fits the links of both sides
    #[arg(long, value_name = "N")]
    mss: Option<u32>,
    /// What a client is told whose connection it cannot take: nothing (drop), a reset, or an ICMP error
    #[arg(long, value_name = "drop|reset|icmp")]
    refuse: Option<String>,
    #[command(flatten)]
    limits: Limits,
}

#[derive(Args, Debug)]
pub(super) struct Limits {
    /// New connections per second of each address to each destination; 0: any number
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// How many of them may come at once
    #[arg(long, value_name = "N")]
    burst: Option<u32>,
    /// Connections at a time of each address to each destination; 0: any number
    #[arg(long, value_name = "N")]
    concurrent: Option<u32>,
}

#[derive(Args, Debug)]
pub(super) struct Drain {
    /// Name of the pool
    #[arg(value_name = "NAME")]
    name: String,
    /// Addresses of the pool, or prefixes of them
    #[arg(long, value_name = "ADDR[,ADDR...]", required = true)]
    address: String,
}

#[derive(Args, Debug)]
pub(super) struct Name {
    /// Name of the pool
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Debug)]
pub(super) struct Show {
    /// Name of the pool
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl Verb {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        match self {
            Self::Add(Add { name, address, ports, mapping, mss, refuse, limits }) => {
                let addresses = Some(address);
                let pool = PoolRequest { addresses, ports, mapping, mss, refuse, ..limits.request() };
                context.change(Method::POST, &path(&name), &pool).await
            }
            Self::Set(Set { name, address, ports, mapping, mss, refuse, limits }) => {
                let pool =
                    PoolRequest { addresses: address, ports, mapping, mss, refuse, ..limits.request() };
                if pool == PoolRequest::default() {
                    return Err(Failure::usage("`gwctl pool set` needs something to set").hint(
                        "usage: gwctl pool set NAME [address ADDR[,ADDR...]] [ports A-B] [mapping MAPPING] [mss N] \
                         [refuse drop|reset|icmp] [rate N] [burst N] [concurrent N]",
                    ));
                }
                context.change(Method::PATCH, &path(&name), &pool).await
            }
            Self::Drain(Drain { name, address }) => {
                context.change(Method::POST, &drained(&name), &DrainRequest { address }).await
            }
            Self::Undrain(Drain { name, address }) => {
                context.delete(&drained(&name), &DrainRequest { address }).await
            }
            Self::Del(Name { name }) => context.delete(&path(&name), &()).await,
            Self::Show(Show { name }) => {
                let path = name.map_or_else(|| "/v1/pools".to_owned(), |name| path(&name));
                context.show::<PoolRow>(&path, &()).await
            }
        }
    }
}

impl Limits {
    fn request(self) -> PoolRequest {
        let Self { rate, burst, concurrent } = self;
        PoolRequest { rate, burst, concurrent, ..PoolRequest::default() }
    }
}

fn path(name: &str) -> String {
    format!("/v1/pools/{}", segment(name))
}

fn drained(name: &str) -> String {
    format!("{}/drained", path(name))
}
