//! The server side of the control API.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State, connect_info::Connected},
    http::{Method, Uri},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use jiff::Timestamp;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{
    ApiError, ErrorKind, Row, capture, destinations, explain,
    extract::{Answer, Body, Query},
    import, monitor, request, revisions, routes, rows,
    sessions::Page,
    status::Context,
    types::{
        BindingRequest, Change, DestinationQuery, DestinationRow, DrainRequest, DropRow, EipRequest, EipRow,
        ExplainQuery, ExplainRow, Export, GroupRequest, GroupRow, InterfaceRequest, InterfaceRow,
        InterfaceStats, LimitRequest, LimitRow, List, MapRow, PoolAddressRow, PoolRequest, PoolRow,
        ProxyDrainRequest, ProxyRequest, ProxyRow, RouteFlush, RouteGet, RouteImport, RouteMatch, RouteQuery,
        RouteRequest, RouteRow, RouteSelector, SessionCount, SessionQuery, SessionRow, Status, TableRequest,
        TableRow, UsageQuery, UsageRow, Version, WhohadQuery, WhohadRow,
    },
    whohad,
};
use crate::{
    config,
    control::{Command, Current, Peer},
    dataplane::Observe,
};

/// Largest body of a request, in bytes.
const BODY_LIMIT: usize = 1 << 20;
/// How long the daemon works on a request before it gives up on the answer.
const TIMEOUT: Duration = Duration::from_mins(1);
/// The same for a large set of routes.
const IMPORT_TIMEOUT: Duration = Duration::from_mins(10);

/// Answers requests on `listener` until `stop` is cancelled; requests that run then are finished first.
pub async fn serve(listener: UnixListener, context: Context, stop: CancellationToken) -> anyhow::Result<()> {
    let service = router(context).into_make_service_with_connect_info::<Peer>();
    axum::serve(listener, service).with_graceful_shutdown(stop.cancelled_owned()).await?;
    Ok(())
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        // Without credentials the peer is nobody; the mode of the socket has let it in all the same.
        stream.io().peer_cred().map_or(Self { uid: u32::MAX, pid: 0 }, |credentials| Self {
            uid: credentials.uid(),
            pid: credentials.pid().unwrap_or_default(),
        })
    }
}

fn router(context: Context) -> Router {
    let v1 = Router::new()
        .route("/routes", get(route_show).post(route_add).put(route_replace).delete(route_del))
        .route("/routes/get", get(route_get))
        .route("/routes/flush", post(route_flush))
        .route("/tables", get(table_show))
        .route("/tables/{name}", get(table_show_one).post(table_add).delete(table_del))
        .route("/tables/{name}/bindings", post(table_bind).delete(table_unbind))
        .route("/pools", get(pool_show))
        .route("/pools/{name}", get(pool_show_one).post(pool_add).patch(pool_set).delete(pool_del))
        .route("/pools/{name}/drained", post(pool_drain).delete(pool_undrain))
        .route("/eips", get(eip_show))
        .route("/eips/{address}", post(eip_add).delete(eip_del))
        .route("/proxies", get(proxy_show))
        .route("/proxies/{name}", get(proxy_show_one).post(proxy_add).patch(proxy_set).delete(proxy_del))
        .route("/proxies/{name}/drained", post(proxy_drain).delete(proxy_undrain))
        .route("/limits", get(limit_show))
        .route("/limits/{name}", get(limit_show_one).post(limit_add).patch(limit_set).delete(limit_del))
        .route("/groups", get(group_show))
        .route("/groups/{name}", get(group_show_one).post(group_add).patch(group_set).delete(group_del))
        .route("/interfaces", get(interface_show))
        .route("/interfaces/{name}", post(interface_add).delete(interface_del))
        .route("/activate", post(activate))
        .route("/deactivate", post(deactivate))
        .route("/sessions", get(session_show))
        .route("/sessions/count", get(session_count))
        .route("/explain", get(explain_packet))
        .route("/sessions/whohad", get(session_whohad))
        .route("/status", get(status))
        .route("/stats/drops", get(stats_drops))
        .route("/stats/routes", get(stats_routes))
        .route("/stats/pools", get(stats_pools))
        .route("/stats/destinations", get(stats_destinations))
        .route("/stats/interfaces", get(stats_interfaces))
        .route("/stats/maps", get(stats_maps))
        .route("/stats/usage", get(stats_usage))
        .route("/monitor", get(monitor::monitor))
        .route("/capture", get(capture::capture))
        .route("/export", get(export))
        .route("/confirm", get(revisions::confirmation).post(revisions::confirm))
        .route("/undo", post(revisions::undo))
        .route("/history", get(revisions::history))
        .route("/version", get(version));
    let import = Router::new()
        .route("/v1/routes/import", post(route_import))
        .route("/v1/apply", post(revisions::apply))
        .route("/v1/diff", post(revisions::diff))
        .layer(DefaultBodyLimit::max(revisions::MAX_BODY))
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(IMPORT_TIMEOUT, in_time));
    Router::new()
        .nest("/v1", v1)
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(TIMEOUT, in_time))
        .merge(import)
        .with_state(Arc::new(context))
}

pub(super) type Ctx = State<Arc<Context>>;
pub(super) type From = ConnectInfo<Peer>;
pub(super) type Changed = Result<Answer<Change>, ApiError>;
pub(super) type Rows<T> = Result<Answer<List<T>>, ApiError>;

// ---- routes -------------------------------------------------------------------------------------------

async fn route_show(State(context): Ctx, Query(query): Query<RouteQuery>) -> Rows<RouteRow> {
    list_routes(context, query).await
}

async fn route_add(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Body(request): Body<RouteRequest>,
) -> Changed {
    change(&context, peer, Command::RouteAdd(request.entry()?)).await
}

async fn route_replace(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Body(request): Body<RouteRequest>,
) -> Changed {
    change(&context, peer, Command::RouteReplace(request.entry()?)).await
}

async fn route_del(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Query(selector): Query<RouteSelector>,
) -> Changed {
    let command = selector.command()?;
    let Command::RouteDel { key, .. } = &command else {
        return change(&context, peer, command).await;
    };
    let key = *key;
    let refused = match change(&context, peer, command).await {
        Err(refused) if refused.kind() == ErrorKind::NotFound => refused,
        result => return result,
    };
    Err(routes::system_route(&context.connected(&context.control.snapshot()), &key).unwrap_or(refused))
}

async fn route_get(State(context): Ctx, Query(query): Query<RouteGet>) -> Rows<RouteMatch> {
    let lookup = query.lookup()?;
    let inner = context.clone();
    read(context, move |current, _| {
        let state = &current.snapshot;
        Ok(vec![routes::decide(state, &inner.connected(state), &lookup)?])
    })
    .await
}

async fn route_import(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Query(query): Query<RouteImport>,
    request: Request,
) -> Changed {
    let most = 2 * context.control.snapshot().capacity.routes as usize;
    let prefixes = import::prefixes(request.into_body(), most).await?;
    change(&context, peer, query.command(prefixes)?).await
}

async fn route_flush(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Body(request): Body<RouteFlush>,
) -> Changed {
    change(&context, peer, request.command()).await
}

// ---- tables -------------------------------------------------------------------------------------------

async fn table_show(State(context): Ctx) -> Rows<TableRow> {
    read(context, |current, observe| {
        let counters = observe.tables()?;
        Ok(current.snapshot.tables.values().map(|table| rows::table(table, &counters)).collect())
    })
    .await
}

async fn table_show_one(State(context): Ctx, Path(name): Path<String>) -> Rows<TableRow> {
    read(context, move |current, observe| {
        Ok(vec![rows::table(rows::find_table(&current.snapshot, &name)?, &observe.tables()?)])
    })
    .await
}

async fn table_add(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<TableRequest>,
) -> Changed {
    change(&context, peer, request.command(name)?).await
}

async fn table_del(State(context): Ctx, ConnectInfo(peer): From, Path(name): Path<String>) -> Changed {
    change(&context, peer, Command::TableDel { name }).await
}

async fn table_bind(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<BindingRequest>,
) -> Changed {
    change(&context, peer, Command::TableBind { name, binding: request.binding()? }).await
}

async fn table_unbind(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Query(request): Query<BindingRequest>,
) -> Changed {
    change(&context, peer, Command::TableUnbind { name, binding: request.binding()? }).await
}

// ---- pools --------------------------------------------------------------------------------------------

async fn pool_show(State(context): Ctx) -> Rows<PoolRow> {
    read(context, |current, _| Ok(current.snapshot.pools.values().map(rows::pool).collect())).await
}

async fn pool_show_one(State(context): Ctx, Path(name): Path<String>) -> Rows<PoolRow> {
    read(context, move |current, _| Ok(vec![rows::pool(rows::find_pool(&current.snapshot, &name)?)])).await
}

async fn pool_add(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<PoolRequest>,
) -> Changed {
    change(&context, peer, request.add(name)?).await
}

async fn pool_set(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<PoolRequest>,
) -> Changed {
    change(&context, peer, request.set(name)?).await
}

async fn pool_del(State(context): Ctx, ConnectInfo(peer): From, Path(name): Path<String>) -> Changed {
    change(&context, peer, Command::PoolDel { name }).await
}

async fn pool_drain(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<DrainRequest>,
) -> Changed {
    change(&context, peer, Command::PoolDrain { name, addresses: request.addresses()? }).await
}

async fn pool_undrain(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Query(request): Query<DrainRequest>,
) -> Changed {
    change(&context, peer, Command::PoolUndrain { name, addresses: request.addresses()? }).await
}

// ---- EIPs ---------------------------------------------------------------------------------------------

async fn eip_show(State(context): Ctx) -> Rows<EipRow> {
    read(context, |current, _| Ok(current.snapshot.eips.values().map(rows::eip).collect())).await
}

async fn eip_add(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(address): Path<String>,
    Body(request): Body<EipRequest>,
) -> Changed {
    change(&context, peer, request.command(&address)?).await
}

async fn eip_del(State(context): Ctx, ConnectInfo(peer): From, Path(address): Path<String>) -> Changed {
    change(&context, peer, Command::EipDel { address: request::eip_address(&address)? }).await
}

// ---- proxies ------------------------------------------------------------------------------------------

async fn proxy_show(State(context): Ctx) -> Rows<ProxyRow> {
    let health = context.control.health();
    read(context, move |current, observe| Ok(rows::proxies(&current.snapshot, &health, &observe.proxies()?)))
        .await
}

async fn proxy_show_one(State(context): Ctx, Path(name): Path<String>) -> Rows<ProxyRow> {
    let health = context.control.health();
    read(context, move |current, observe| {
        let proxy = rows::find_proxy(&current.snapshot, &name)?;
        Ok(vec![rows::proxy(proxy, &health, &observe.proxies()?)])
    })
    .await
}

async fn proxy_add(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<ProxyRequest>,
) -> Changed {
    change(&context, peer, request.add(name)?).await
}

async fn proxy_set(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<ProxyRequest>,
) -> Changed {
    change(&context, peer, request.set(name)?).await
}

async fn proxy_del(State(context): Ctx, ConnectInfo(peer): From, Path(name): Path<String>) -> Changed {
    change(&context, peer, Command::ProxyDel { name }).await
}

async fn proxy_drain(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<ProxyDrainRequest>,
) -> Changed {
    change(&context, peer, Command::ProxyDrain { name, hosts: request.hosts()? }).await
}

async fn proxy_undrain(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Query(request): Query<ProxyDrainRequest>,
) -> Changed {
    change(&context, peer, Command::ProxyUndrain { name, hosts: request.hosts()? }).await
}

// ---- limits of sources ---------------------------------------------------------------------------------

async fn limit_show(State(context): Ctx) -> Rows<LimitRow> {
    read(context, |current, observe| {
        let seen = observe.limits()?;
        Ok(current.snapshot.limits.values().map(|limit| rows::limit(limit, &seen)).collect())
    })
    .await
}

async fn limit_show_one(State(context): Ctx, Path(name): Path<String>) -> Rows<LimitRow> {
    read(context, move |current, observe| {
        Ok(vec![rows::limit(rows::find_limit(&current.snapshot, &name)?, &observe.limits()?)])
    })
    .await
}

async fn limit_add(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<LimitRequest>,
) -> Changed {
    change(&context, peer, request.add(name)?).await
}

async fn limit_set(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<LimitRequest>,
) -> Changed {
    change(&context, peer, request.set(name)?).await
}

async fn limit_del(State(context): Ctx, ConnectInfo(peer): From, Path(name): Path<String>) -> Changed {
    change(&context, peer, Command::LimitDel { name }).await
}

// ---- groups -------------------------------------------------------------------------------------------

async fn group_show(State(context): Ctx) -> Rows<GroupRow> {
    read(context, |current, _| Ok(current.snapshot.groups.values().map(rows::group).collect())).await
}

async fn group_show_one(State(context): Ctx, Path(name): Path<String>) -> Rows<GroupRow> {
    read(context, move |current, _| Ok(vec![rows::group(rows::find_group(&current.snapshot, &name)?)])).await
}

async fn group_add(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<GroupRequest>,
) -> Changed {
    change(&context, peer, request.add(name)?).await
}

async fn group_set(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<GroupRequest>,
) -> Changed {
    change(&context, peer, request.set(name)?).await
}

async fn group_del(State(context): Ctx, ConnectInfo(peer): From, Path(name): Path<String>) -> Changed {
    change(&context, peer, Command::GroupDel { name }).await
}

// ---- interfaces ---------------------------------------------------------------------------------------

async fn interface_show(State(context): Ctx) -> Rows<InterfaceRow> {
    read(context, |current, observe| Ok(rows::interfaces(&current.snapshot, &observe.interfaces()?))).await
}

async fn interface_add(
    State(context): Ctx,
    ConnectInfo(peer): From,
    Path(name): Path<String>,
    Body(request): Body<InterfaceRequest>,
) -> Changed {
    change(&context, peer, request.command(name)?).await
}

async fn interface_del(State(context): Ctx, ConnectInfo(peer): From, Path(name): Path<String>) -> Changed {
    change(&context, peer, Command::InterfaceDel { name }).await
}

// ---- the whole gateway --------------------------------------------------------------------------------

async fn activate(State(context): Ctx, ConnectInfo(peer): From) -> Changed {
    let Answer(mut done) = change(&context, peer, Command::Activate).await?;
    let state = context.control.snapshot();
    done.warnings = context.connected(&state).unserved(&state);
    Ok(Answer(done))
}

async fn deactivate(State(context): Ctx, ConnectInfo(peer): From) -> Changed {
    change(&context, peer, Command::Deactivate).await
}

async fn status(State(context): Ctx) -> Rows<Status> {
    let inner = context.clone();
    read(context, move |current, _| Ok(vec![inner.status(current)])).await
}

async fn export(State(context): Ctx) -> Rows<Export> {
    let metrics = context.metrics;
    let export = move |current: &Current| Export { config: config::export(&current.snapshot, metrics) };
    read(context, move |current, _| Ok(vec![export(current)])).await
}

async fn version(State(context): Ctx) -> Rows<Version> {
    let version = Version { version: env!("CARGO_PKG_VERSION").to_owned(), abi: gateway_common::ABI_VERSION };
    read(context, |_, _| Ok(vec![version])).await
}

// ---- sessions and statistics --------------------------------------------------------------------------

async fn session_show(State(context): Ctx, Query(query): Query<SessionQuery>) -> Rows<SessionRow> {
    let request = query.read()?;
    read_page(context, move |observe| request.show(observe)).await
}

async fn session_count(State(context): Ctx, Query(query): Query<SessionQuery>) -> Rows<SessionCount> {
    let request = query.read()?;
    read_page(context, move |observe| request.count(observe)).await
}

async fn session_whohad(State(context): Ctx, Query(query): Query<WhohadQuery>) -> Rows<WhohadRow> {
    let question = query.read()?;
    read(context, move |current, observe| {
        Ok(whohad::answer(&question, current.snapshot.access_log.as_ref(), observe)?)
    })
    .await
}

async fn stats_drops(State(context): Ctx) -> Rows<DropRow> {
    read(context, |_, observe| Ok(rows::drops(observe.drops()?))).await
}

async fn stats_routes(State(context): Ctx, Query(query): Query<RouteQuery>) -> Rows<RouteRow> {
    list_routes(context, RouteQuery { counters: true, ..query }).await
}

async fn stats_pools(State(context): Ctx) -> Rows<PoolAddressRow> {
    read(context, |_, observe| Ok(rows::pool_addresses(observe.pools()?))).await
}

async fn stats_destinations(
    State(context): Ctx,
    Query(query): Query<DestinationQuery>,
) -> Rows<DestinationRow> {
    read_page(context, move |observe| destinations::show(observe, &query)).await
}

async fn explain_packet(State(context): Ctx, Query(query): Query<ExplainQuery>) -> Rows<ExplainRow> {
    let host = context.control.host();
    read(context, move |current, observe| {
        Ok(vec![explain::answer(&current.snapshot, &host, observe, &query)??])
    })
    .await
}

async fn stats_interfaces(State(context): Ctx) -> Rows<InterfaceStats> {
    read(context, |_, observe| Ok(rows::interface_stats(&observe.interfaces()?, &observe.traffic()?))).await
}

async fn stats_maps(State(context): Ctx) -> Rows<MapRow> {
    read(context, |_, observe| Ok(rows::maps(observe.maps()?))).await
}

async fn stats_usage(State(context): Ctx, Query(query): Query<UsageQuery>) -> Rows<UsageRow> {
    let since = query.since()?;
    let history = Arc::clone(&context.usage);
    read(context, move |_, observe| {
        let now = observe.usage()?;
        let Some(since) = since else { return Ok(rows::usage(&now, None)) };
        let (from, carried) = history.since(Instant::now(), Timestamp::now(), since, &now);
        Ok(rows::usage(&carried, Some(&whohad::seconds(from))))
    })
    .await
}

// ---- what they share ----------------------------------------------------------------------------------

async fn change(context: &Context, peer: Peer, command: Command) -> Changed {
    context.control.change(command, peer).await.map(Answer)
}

async fn list_routes(context: Arc<Context>, query: RouteQuery) -> Rows<RouteRow> {
    let which = query.which()?;
    let inner = context.clone();
    read(context, move |current, observe| {
        let counters = if query.counters { Some(observe.routes()?) } else { None };
        let state = &current.snapshot;
        let (connected, table) = (inner.connected(state), query.table.as_deref());
        Ok(routes::list(state, &connected, table, &which, counters.as_ref())?)
    })
    .await
}

/// Why a read failed: a typed error, or whatever the data plane says.
pub(super) enum Failure {
    Api(ApiError),
    Dataplane(anyhow::Error),
}

impl std::convert::From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl std::convert::From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Dataplane(error)
    }
}

/// Runs a read on a thread that may block, and wraps its rows.
pub(super) async fn read<T, F>(context: Arc<Context>, rows: F) -> Rows<T>
where
    T: Row + Send + 'static,
    F: FnOnce(&Current, &dyn Observe) -> Result<Vec<T>, Failure> + Send + 'static,
{
    let job = move || {
        let current = context.control.current();
        let items = rows(&current, &*context.control.observe())?;
        Ok(List::new(current.revision, items))
    };
    blocking(job).await.map(Answer)
}

/// [`read`] of rows that a limit cuts.
async fn read_page<T, F>(context: Arc<Context>, page: F) -> Rows<T>
where
    T: Row + Send + 'static,
    F: FnOnce(&dyn Observe) -> anyhow::Result<Page<T>> + Send + 'static,
{
    let job = move || {
        let revision = context.control.revision();
        let Page { items, total } = page(&*context.control.observe())?;
        let cut = total > items.len() as u64;
        Ok(List { total: cut.then_some(total), ..List::new(revision, items) })
    };
    blocking(job).await.map(Answer)
}

pub(super) async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, ApiError> {
    let fault = |what: String| ApiError::new("", ErrorKind::Internal, what).hint("see the log of gatewayd");
    match tokio::task::spawn_blocking(job).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(Failure::Api(error))) => Err(error),
        Ok(Err(Failure::Dataplane(error))) => Err(fault(format!("the data plane cannot be read: {error:#}"))),
        Err(error) => Err(fault(format!("the answer could not be made: {error}"))),
    }
}

async fn in_time(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    tokio::time::timeout(patience, next.run(request)).await.unwrap_or_else(|_| {
        let message = format!("no answer within {} seconds", patience.as_secs());
        ApiError::new("request", ErrorKind::Timeout, message)
            .hint("a change may still be made: look at the revision before you repeat it")
            .into_response()
    })
}

async fn unknown(uri: Uri) -> ApiError {
    ApiError::new("request", ErrorKind::NotFound, format!("there is no `{}` in this API", uri.path()))
        .hint("gwctl and gatewayd may be of different versions: see `gwctl version`")
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    ApiError::new("request", ErrorKind::Invalid, format!("`{}` does not take {method}", uri.path()))
        .hint("gwctl and gatewayd may be of different versions: see `gwctl version`")
}
