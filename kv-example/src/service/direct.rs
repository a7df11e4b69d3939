//! Requests of the `KV` service go to it directly, past the router of all services.
//!
//! A router for any path and any service puts what it is given into boxes of its own, several for each request and answer: that was a twentieth of
//! what a read takes of the processor.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::{Request, Response};
use tonic::body::Body;
use tonic::server::NamedService;
use tower_layer::Layer;
use tower_service::Service;

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// Puts a service in front of the others, for what is its own.
#[derive(Clone)]
pub(crate) struct DirectLayer(Arc<dyn Fn(Request<Body>) -> Answer + Send + Sync>, &'static str);

impl DirectLayer {
    pub(super) fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future = Answer>
            + NamedService
            + Clone
            + Send
            + Sync
            + 'static,
    {
        // Services of tonic are always ready.
        Self(Arc::new(move |request| service.clone().call(request)), S::NAME)
    }
}

impl fmt::Debug for DirectLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DirectLayer").field(&self.1).finish()
    }
}

impl<S> Layer<S> for DirectLayer {
    type Service = Direct<S>;

    fn layer(&self, others: S) -> Direct<S> {
        Direct { first: self.clone(), others }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Direct<S> {
    first: DirectLayer,
    others: S,
}

impl<S> Service<Request<Body>> for Direct<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Answer, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.others.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let DirectLayer(first, name) = &self.first;
        let rest = request.uri().path().strip_prefix('/').and_then(|path| path.strip_prefix(name));
        // A method without a name is none of the service's, as for the router.
        if rest.is_some_and(|rest| rest.starts_with('/') && rest != "/") {
            Either::Left(first(request))
        } else {
            Either::Right(self.others.call(request))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Ready, ready};

    use super::*;

    /// Answers with its name.
    #[derive(Clone)]
    struct Named<const N: u8>;

    impl NamedService for Named<1> {
        const NAME: &'static str = "a.First";
    }

    fn answer(n: u16) -> Result<Response<Body>, Infallible> {
        Ok(Response::builder().header("n", n).body(Body::empty()).unwrap())
    }

    impl Service<Request<Body>> for Named<1> {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Answer;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Answer {
            Box::pin(ready(answer(1)))
        }
    }

    impl Service<Request<Body>> for Named<2> {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Ready<Result<Response<Body>, Infallible>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: Request<Body>) -> Self::Future {
            ready(answer(2))
        }
    }

    #[tokio::test]
    async fn each_service_gets_what_is_its_own() {
        let mut services = DirectLayer::new(Named::<1>).layer(Named::<2>);
        for (path, expected) in [
            ("/a.First/Get", "1"),
            ("/a.First/Get/", "1"),
            ("/a.First/", "2"),
            ("/a.First", "2"),
            ("/a.FirstOfAll/Get", "2"),
            ("/a.Second/a.First/Get", "2"),
            ("/a.first/Get", "2"),
            ("/", "2"),
            ("*", "2"),
        ] {
            let request = Request::builder().uri(path).body(Body::empty()).unwrap();
            assert_eq!(services.call(request).await.unwrap().headers()["n"], expected, "{path}");
        }
    }
}
