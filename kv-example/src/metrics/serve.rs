//! The HTTP server for metrics. Whoever can reach it may ask it anything, at any pace, so everything about it is bounded: how many
//! connections there are, how long each lasts, and how much it may say before it is answered.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use raftkv::transport_kit::listener::connections;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tracing::debug;

use super::{Sources, text};

const PATH: &str = "/metrics";

/// How many connections there may be; more are closed as they come.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may take from its beginning to its end. Each is for one question.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// How long of that for the question.
const HEADER_TIME_LIMIT: Duration = Duration::from_secs(5);
/// What a question's headers may be.
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 << 10;

/// Serves until `end`.
///
/// # Errors
/// The listener can accept no connection any more.
pub(crate) async fn serve(listener: TcpListener, sources: Sources, mut end: watch::Receiver<bool>) -> io::Result<()> {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let (connections, hearing) = connections(listener);
    let serving = connections.for_each(move |(stream, remote)| {
        match Arc::clone(&room).try_acquire_owned() {
            Ok(permit) => {
                let sources = sources.clone();
                tokio::spawn(async move {
                    let served = tokio::time::timeout(TIME_LIMIT, answer_on(stream, sources)).await;
                    drop(permit);
                    match served {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => debug!(%remote, %error, "a connection for metrics failed"),
                        Err(_) => debug!(%remote, "a connection for metrics took too long"),
                    }
                });
            }
            Err(_) => debug!(%remote, limit = MAX_CONNECTIONS, "a connection for metrics was turned away: too many"),
        }
        std::future::ready(())
    });
    let serving = async {
        tokio::select! {
            biased;
            // Fails when the node is gone: an end as well.
            _ = end.wait_for(|end| *end) => {}
            () = serving => {}
        }
        Ok::<_, Infallible>(())
    };
    hearing.serve(Box::pin(serving)).await
}

async fn answer_on(stream: TcpStream, sources: Sources) -> hyper::Result<()> {
    let answering = service_fn(move |request: Request<Incoming>| {
        let sources = sources.clone();
        async move { Ok::<_, Infallible>(answer(&request, &sources).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_LIMIT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), answering)
        .await
}

/// The answer to a question, whose body nobody reads.
async fn answer(request: &Request<Incoming>, sources: &Sources) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return says(StatusCode::NOT_FOUND, format!("only {PATH} is here\n"));
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut refusal = says(StatusCode::METHOD_NOT_ALLOWED, format!("{PATH} is for GET\n"));
        refusal.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refusal;
    }
    match sources.text().await {
        Ok(numbers) => {
            let mut answer = says(StatusCode::OK, numbers);
            answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(text::CONTENT_TYPE));
            answer
        }
        Err(error) => says(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}

fn says(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(text)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}
