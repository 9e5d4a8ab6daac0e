//! `/metrics`, `/healthz` and `/readyz` over HTTP.

use std::{io, sync::Arc};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, sync::Semaphore, task::spawn_blocking};

use super::Metrics;

/// Answers scrapes and health checks on `listener` for as long as the future is polled.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) -> io::Result<()> {
    axum::serve(listener, router(metrics)).await
}

/// The pages.
fn router(metrics: Arc<Metrics>) -> Router {
    let pages = Pages { metrics, turn: Arc::new(Semaphore::new(1)) };
    Router::new()
        .route("/metrics", get(scrape))
        .route("/readyz", get(ready))
        .route("/healthz", get(async || "ok\n"))
        .with_state(pages)
}

/// What the pages share.
#[derive(Clone)]
struct Pages {
    metrics: Arc<Metrics>,
    /// Reading a large data plane takes a while: scrapers that do not wait must not pile up reads.
    turn: Arc<Semaphore>,
}

async fn scrape(State(Pages { metrics, turn }): State<Pages>) -> Response {
    let text = async {
        let turn = turn.acquire_owned().await?;
        spawn_blocking(move || {
            let _turn = turn;
            metrics.render()
        })
        .await?
    };
    match text.await {
        Ok(text) => ([(header::CONTENT_TYPE, Metrics::content_type())], text).into_response(),
        Err(error) => failure(&error),
    }
}

async fn ready(State(Pages { metrics, .. }): State<Pages>) -> Response {
    match spawn_blocking(move || metrics.readiness()).await {
        Ok(Ok(())) => "ready\n".into_response(),
        Ok(Err(reason)) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {reason}\n")).into_response()
        }
        Err(error) => failure(&error.into()),
    }
}

fn failure(error: &anyhow::Error) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("error: {error:#}\n")).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::metrics::tests::gateway;

    async fn get(metrics: &Arc<Metrics>, path: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(serve(listener, metrics.clone()));
        let mut stream = TcpStream::connect(address).await.expect("a connection");
        let request = format!("GET {path} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("written");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("read");
        server.abort();
        answer
    }

    #[tokio::test]
    async fn metrics_are_served_as_prometheus_text() {
        let answer = get(&Arc::new(gateway().await.1), "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
        assert!(answer.contains("\ngateway_active 1\n"), "{answer}");
    }

    #[tokio::test]
    async fn health_needs_nothing_but_a_live_process() {
        let (memory, metrics) = gateway().await;
        memory.state().unreadable = true;
        assert!(get(&Arc::new(metrics), "/healthz").await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn readiness_says_why_not() {
        let (memory, metrics) = gateway().await;
        let metrics = Arc::new(metrics);
        assert!(get(&metrics, "/readyz").await.starts_with("HTTP/1.1 200"));
        memory.state().host.links.remove("eth0");
        let answer = get(&metrics, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nnot ready: not attached to eth0\n"), "{answer}");
    }
}
