//! The control API: HTTP/1.1 and JSON on a Unix socket. The same types serve daemon, client and tests.
//!
//! | method and path | command | body or query | answer |
//! |---|---|---|---|
//! | `GET /v1/routes` | `route show` | [`types::RouteQuery`] | [`types::RouteRow`]s |
//! | `POST /v1/routes` | `route add` | [`types::RouteRequest`] | [`types::Change`] |
//! | `PUT /v1/routes` | `route replace` | [`types::RouteRequest`] | [`types::Change`] |
//! | `DELETE /v1/routes?prefix=...` | `route del` | [`types::RouteSelector`] | [`types::Change`] |
//! | `GET /v1/routes/get?address=...` | `route get` | [`types::RouteGet`] | one [`types::RouteMatch`] |
//! | `POST /v1/routes/import?via=...` | `route import` | [`types::RouteImport`], and a prefix a line | [`types::Change`] |
//! | `POST /v1/routes/flush` | `route flush` | [`types::RouteFlush`] | [`types::Change`] |
//! | `GET /v1/tables` | `table show` | | [`types::TableRow`]s |
//! | `GET /v1/tables/NAME` | `table show NAME` | | one [`types::TableRow`] |
//! | `POST /v1/tables/NAME` | `table add NAME` | [`types::TableRequest`] | [`types::Change`] |
//! | `DELETE /v1/tables/NAME` | `table del NAME` | | [`types::Change`] |
//! | `POST /v1/tables/NAME/bindings` | `table bind NAME` | [`types::BindingRequest`] | [`types::Change`] |
//! | `DELETE /v1/tables/NAME/bindings?from=...` | `table unbind NAME` | [`types::BindingRequest`] | [`types::Change`] |
//! | `GET /v1/pools` | `pool show` | | [`types::PoolRow`]s |
//! | `GET /v1/pools/NAME` | `pool show NAME` | | one [`types::PoolRow`] |
//! | `POST /v1/pools/NAME` | `pool add NAME` | [`types::PoolRequest`] | [`types::Change`] |
//! | `PATCH /v1/pools/NAME` | `pool set NAME` | [`types::PoolRequest`] | [`types::Change`] |
//! | `DELETE /v1/pools/NAME` | `pool del NAME` | | [`types::Change`] |
//! | `POST /v1/pools/NAME/drained` | `pool drain NAME` | [`types::DrainRequest`] | [`types::Change`] |
//! | `DELETE /v1/pools/NAME/drained?address=...` | `pool undrain NAME` | [`types::DrainRequest`] | [`types::Change`] |
//! | `GET /v1/eips` | `eip show` | | [`types::EipRow`]s |
//! | `POST /v1/eips/ADDR` | `eip add ADDR` | [`types::EipRequest`] | [`types::Change`] |
//! | `DELETE /v1/eips/ADDR` | `eip del ADDR` | | [`types::Change`] |
//! | `GET /v1/proxies` | `proxy show` | | [`types::ProxyRow`]s |
//! | `GET /v1/proxies/NAME` | `proxy show NAME` | | one [`types::ProxyRow`] |
//! | `POST /v1/proxies/NAME` | `proxy add NAME` | [`types::ProxyRequest`] | [`types::Change`] |
//! | `PATCH /v1/proxies/NAME` | `proxy set NAME` | [`types::ProxyRequest`] | [`types::Change`] |
//! | `DELETE /v1/proxies/NAME` | `proxy del NAME` | | [`types::Change`] |
//! | `POST /v1/proxies/NAME/drained` | `proxy drain NAME` | [`types::ProxyDrainRequest`] | [`types::Change`] |
//! | `DELETE /v1/proxies/NAME/drained?host=...` | `proxy undrain NAME` | [`types::ProxyDrainRequest`] | [`types::Change`] |
//! | `GET /v1/limits` | `limit show` | | [`types::LimitRow`]s |
//! | `GET /v1/limits/NAME` | `limit show NAME` | | one [`types::LimitRow`] |
//! | `POST /v1/limits/NAME` | `limit add NAME` | [`types::LimitRequest`] | [`types::Change`] |
//! | `PATCH /v1/limits/NAME` | `limit set NAME` | [`types::LimitRequest`] | [`types::Change`] |
//! | `DELETE /v1/limits/NAME` | `limit del NAME` | | [`types::Change`] |
//! | `GET /v1/groups` | `group show` | | [`types::GroupRow`]s |
//! | `GET /v1/groups/NAME` | `group show NAME` | | one [`types::GroupRow`] |
//! | `POST /v1/groups/NAME` | `group add NAME` | [`types::GroupRequest`] | [`types::Change`] |
//! | `PATCH /v1/groups/NAME` | `group set NAME` | [`types::GroupRequest`] | [`types::Change`] |
//! | `DELETE /v1/groups/NAME` | `group del NAME` | | [`types::Change`] |
//! | `GET /v1/interfaces` | `interface show` | | [`types::InterfaceRow`]s |
//! | `POST /v1/interfaces/NAME` | `interface add NAME` | [`types::InterfaceRequest`] | [`types::Change`] |
//! | `DELETE /v1/interfaces/NAME` | `interface del NAME` | | [`types::Change`] |
//! | `POST /v1/activate` | `activate` | | [`types::Change`] |
//! | `POST /v1/deactivate` | `deactivate` | | [`types::Change`] |
//! | `GET /v1/sessions` | `session show` | [`types::SessionQuery`] | [`types::SessionRow`]s |
//! | `GET /v1/sessions/count` | `session count` | [`types::SessionQuery`] with `by` | [`types::SessionCount`]s |
//! | `GET /v1/sessions/whohad?address=...` | `session whohad` | [`types::WhohadQuery`] | [`types::WhohadRow`]s, the earliest first |
//! | `GET /v1/status` | `status` | | one [`types::Status`] |
//! | `GET /v1/stats/drops` | `stats drops` | | [`types::DropRow`]s, every reason |
//! | `GET /v1/stats/routes` | `stats routes` | [`types::RouteQuery`] | [`types::RouteRow`]s with counters |
//! | `GET /v1/stats/pools` | `stats pools` | | [`types::PoolAddressRow`]s |
//! | `GET /v1/stats/destinations` | `stats destinations` | [`types::DestinationQuery`] | [`types::DestinationRow`]s, the fullest first |
//! | `GET /v1/stats/interfaces` | `stats interfaces` | | [`types::InterfaceStats`] |
//! | `GET /v1/stats/maps` | `stats maps` | | [`types::MapRow`]s |
//! | `GET /v1/stats/usage` | `stats usage` | [`types::UsageQuery`] | [`types::UsageRow`]s, the most first |
//! | `GET /v1/explain?to=...&from=...` | `explain` | [`types::ExplainQuery`] | one [`types::ExplainRow`] |
//! | `GET /v1/monitor` | `monitor` | [`types::MonitorQuery`] | [`types::MonitorLine`]s, a line of JSON each, for as long as there is a reader |
//! | `GET /v1/capture` | `capture` | [`types::MonitorQuery`] | a pcapng file, for as long as there is a reader |
//! | `GET /v1/export` | `export` | | one [`types::Export`] |
//! | `POST /v1/apply?confirm=...` | `apply` | [`types::ApplyRequest`], and a configuration | [`types::Change`] |
//! | `POST /v1/diff` | `diff` | a configuration | [`types::DiffRow`]s |
//! | `GET /v1/confirm` | | | the last [`types::ConfirmationRow`], if there is one |
//! | `POST /v1/confirm` | `confirm` | | [`types::Change`] |
//! | `POST /v1/undo` | `undo` | [`types::UndoRequest`] | [`types::Change`] |
//! | `GET /v1/history` | `history` | | [`types::RevisionRow`]s, the newest first |
//! | `GET /v1/version` | `version` | | one [`types::Version`] |
//!
//! `GET` and `DELETE` take their arguments as a query, the others as a JSON body; `route import` takes a query and a
//! body of plain text, which is read as it arrives; `apply` and `diff` a configuration file (TOML). Names in paths are
//! percent-encoded ([`segment`]).
//! Reads answer a [`types::List`], changes a [`types::Change`], failures an [`ApiError`].

pub mod capture;
mod client;
mod destinations;
mod difference;
pub mod error;
mod explain;
mod extract;
mod import;
mod listen;
mod monitor;
#[cfg(test)]
mod reference;
mod request;
mod revisions;
mod routes;
mod rows;
mod server;
mod sessions;
mod status;
#[cfg(test)]
mod tests;
pub mod types;
mod whohad;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

pub use client::{Client, ClientError, Stream};
pub use error::{ApiError, ErrorKind};
pub use listen::listen;
pub use server::serve;
pub use status::{Context, Inspect};
pub use types::Row;

/// `name` as one segment of a path: `/v1/pools/` + `segment(name)`.
pub fn segment(name: &str) -> String {
    /// What RFC 3986 section 2.3 leaves as it is.
    const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    utf8_percent_encode(name, ENCODED).to_string()
}
