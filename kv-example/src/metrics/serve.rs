//! The HTTP server for metrics. Whoever can reach it may ask it anything, at any pace, so everything about it is bounded: how many
//! connections there are, how long each lasts, and how much it may say before it is answered ([`Gate`](crate::gate::Gate)).

use std::convert::Infallible;
use std::io;

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
use tokio::sync::watch;
use tracing::debug;

use super::{Sources, text};
use crate::gate::Limit;

const PATH: &str = "/metrics";

/// A question has to be there within the handshake timeout. In so many times that a connection must be over, as each is for one question.
const TIMES: u32 = 2;
/// How many headers a question may have.
const MAX_HEADERS: usize = 64;

/// Serves until `end`.
///
/// # Errors
/// The listener can accept no connection any more.
pub(crate) async fn serve(listener: TcpListener, sources: Sources, mut end: watch::Receiver<bool>) -> io::Result<()> {
    let (connections, hearing) = connections(listener);
    let serving = connections.for_each(move |(stream, remote)| {
        if let Some(place) = sources.gate.scraper(remote.ip()) {
            let sources = sources.clone();
            tokio::spawn(async move {
                let limit = sources.gate.limits().handshake_timeout * TIMES;
                let gate = sources.gate.clone();
                match tokio::time::timeout(limit, answer_on(stream, sources)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) if error.is_timeout() => {
                        gate.refuse(Limit::Handshake, "nobody asked for metrics in time")
                    }
                    Ok(Err(error)) if error.is_parse_too_large() => {
                        gate.refuse(Limit::HeaderSize, "the header of a question for metrics was too large");
                    }
                    Ok(Err(error)) => debug!(%remote, %error, "a connection for metrics failed"),
                    Err(_) => gate.refuse(Limit::Handshake, "a connection for metrics took too long"),
                }
                drop(place);
            });
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
    let (patience, header_bytes) =
        (sources.gate.limits().handshake_timeout, sources.gate.limits().header_bytes as usize);
    let answering = service_fn(move |request: Request<Incoming>| {
        let sources = sources.clone();
        async move { Ok::<_, Infallible>(answer(&request, &sources).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(MAX_HEADERS)
        .max_buf_size(header_bytes)
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
