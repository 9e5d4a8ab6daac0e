//! `gwctl proxy`.

use clap::{Args, Subcommand};
use hyper::Method;

use super::{context::Context, failure::Failure};
use crate::{
    api::{
        segment,
        types::{List, ProxyDrainRequest, ProxyRequest, ProxyRow},
    },
    render,
};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Add a proxy
    #[command(after_help = "gwctl proxy add squid host 10.0.1.2,10.0.1.3 check tcp:3129\n\
                            gwctl proxy add inspect host \"10.0.1.4 weight 2,10.0.1.5\" check icmp fail \"pool nat\"")]
    Add(Add),
    /// Change what is named of a proxy; flows stay on their hosts
    #[command(after_help = "gwctl proxy set squid host 10.0.1.2,10.0.1.3,10.0.1.4\n\
                            gwctl proxy set squid fail direct")]
    Set(Set),
    /// Give hosts of a proxy no new flows; those that they have go on
    #[command(after_help = "gwctl proxy drain squid host 10.0.1.2")]
    Drain(Drain),
    /// Give drained hosts new flows again
    #[command(after_help = "gwctl proxy undrain squid host 10.0.1.2")]
    Undrain(Drain),
    /// Remove a proxy that no route and no other proxy uses
    #[command(alias = "delete", after_help = "gwctl proxy del squid")]
    Del(Name),
    /// Show proxies, and how their hosts are
    #[command(aliases = ["list", "ls"], after_help = "gwctl proxy show\ngwctl proxy show squid")]
    Show(Show),
}

#[derive(Args, Debug)]
pub(super) struct Add {
    /// Name of the proxy
    #[arg(value_name = "NAME")]
    name: String,
    /// Its hosts; "ADDR weight N" gives one a larger share
    #[arg(long, value_name = "ADDR[,ADDR...]", value_delimiter = ',', required = true)]
    host: Vec<String>,
    #[command(flatten)]
    rest: Rest,
}

#[derive(Args, Debug)]
pub(super) struct Set {
    /// Name of the proxy
    #[arg(value_name = "NAME")]
    name: String,
    /// All its hosts; "ADDR weight N" gives one a larger share
    #[arg(long, value_name = "ADDR[,ADDR...]", value_delimiter = ',')]
    host: Option<Vec<String>>,
    #[command(flatten)]
    rest: Rest,
}

#[derive(Args, Debug)]
struct Rest {
    /// How packets reach a host
    #[arg(long, value_name = "l2|vxlan|geneve")]
    mode: Option<String>,
    /// Network identifier of a tunnel
    #[arg(long, value_name = "N", value_parser = super::value::vni)]
    vni: Option<u32>,
    /// How it is found out whether a host is up
    #[arg(long, value_name = "tcp:PORT|icmp|none")]
    check: Option<String>,
    /// Time between two checks of a host: 500ms, 5s
    #[arg(long, value_name = "DUR")]
    interval: Option<String>,
    /// What happens while no host is up
    #[arg(long, value_name = FAIL)]
    fail: Option<String>,
}

/// The name of a value that is a way to fail: one word or two.
pub(super) const FAIL: &str = "closed|direct|pool NAME|proxy NAME";

#[derive(Args, Debug)]
pub(super) struct Drain {
    /// Name of the proxy
    #[arg(value_name = "NAME")]
    name: String,
    /// Hosts of the proxy
    #[arg(long, value_name = "ADDR[,ADDR...]", required = true)]
    host: String,
}

#[derive(Args, Debug)]
pub(super) struct Name {
    /// Name of the proxy
    #[arg(value_name = "NAME")]
    name: String,
}

#[derive(Args, Debug)]
pub(super) struct Show {
    /// Name of the proxy
    #[arg(value_name = "NAME")]
    name: Option<String>,
}

impl Verb {
    pub(super) async fn run(self, context: &mut Context<'_, '_>) -> Result<(), Failure> {
        match self {
            Self::Add(Add { name, host, rest }) => {
                context.change(Method::POST, &path(&name), &rest.request(Some(host))).await
            }
            Self::Set(Set { name, host, rest }) => {
                let request = rest.request(host);
                if request == ProxyRequest::default() {
                    return Err(Failure::usage("`gwctl proxy set` needs something to set").hint(
                        "usage: gwctl proxy set NAME [host ADDR[,ADDR...]] [check CHECK] [interval DUR] [fail WAY]",
                    ));
                }
                context.change(Method::PATCH, &path(&name), &request).await
            }
            Self::Drain(Drain { name, host }) => {
                context.change(Method::POST, &drained(&name), &ProxyDrainRequest { host }).await
            }
            Self::Undrain(Drain { name, host }) => {
                context.delete(&drained(&name), &ProxyDrainRequest { host }).await
            }
            Self::Del(Name { name }) => context.delete(&path(&name), &()).await,
            Self::Show(Show { name }) => {
                let path = name.map_or_else(|| "/v1/proxies".to_owned(), |name| path(&name));
                let list: List<ProxyRow> = context.get(&path, &()).await?;
                if context.json {
                    return context.print_json(&list);
                }
                context.print_grid(&render::proxy::grid(&list.items))
            }
        }
    }
}

impl Rest {
    fn request(self, hosts: Option<Vec<String>>) -> ProxyRequest {
        let Self { mode, vni, check, interval, fail } = self;
        ProxyRequest { hosts, mode, vni, check, interval, fail }
    }
}

fn path(name: &str) -> String {
    format!("/v1/proxies/{}", segment(name))
}

fn drained(name: &str) -> String {
    format!("{}/drained", path(name))
}
