//! etcd's `KV` service.

use prost::Message;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status};

use super::once::Named;
use super::refused::{Intent, answer_too_large, decided, to_status, with_decided};
use super::{Context, Replica, once};
use crate::api::command::{self as api, Author, Outcome, command, outcome};
use crate::api::etcdserverpb::kv_server::Kv;
use crate::api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, TxnRequest, TxnResponse,
};
use crate::gate::{self, Holding};
use crate::machine::{ReadError, encode_command_within};
use crate::store::{
    Reads, Refusal, Room, check_delete, check_put, check_range, check_txn, is_read_only, is_serializable,
    read_of_delete, read_of_put, reads_of,
};

impl<R: Replica> Context<R> {
    /// Proposes a checked request, if that is permitted to its author and there is room for what it gives back, and once if it has a name; gives the
    /// machine's answer to it.
    pub(super) async fn propose_as(
        &self,
        (metadata, extensions): (&MetadataMap, &Extensions),
        body: command::Body,
        named: Option<Named>,
    ) -> Result<outcome::Body, Status> {
        self.ensure_member().await?;
        self.catch_up().await?;
        let author = self.author_of(metadata, &body).await?;
        let once = self.own_once(author.as_ref(), named)?;
        self.expect(&body, extensions).await?;
        self.propose(author, body, once, extensions).await
    }

    /// Proposes what the node itself wants to be noted.
    pub(super) async fn propose_own(&self, body: command::Body) -> Result<outcome::Body, Status> {
        self.ensure_member().await?;
        self.catch_up().await?;
        self.propose(None, body, None, &Extensions::default()).await
    }

    async fn propose(
        &self,
        author: Option<Author>,
        body: command::Body,
        once: Option<raftkv::Once>,
        extensions: &Extensions,
    ) -> Result<outcome::Body, Status> {
        let unsigned = author.is_none();
        let most = gives_back(&body).then_some(self.options.limits.response_bytes as u64);
        let command = encode_command_within(author, body, most);
        if command.len() > self.options.limits.request_bytes {
            return Err(Refusal::TooLarge.into());
        }
        let (asked, unsigned) = (Instant::now(), once.is_some() && unsigned);
        let answer = match once {
            Some(once) => self.replica.write_once(once, command).await,
            None => self.replica.write(command).await,
        };
        let answer = answer.map_err(|error| {
            let in_time = asked.elapsed() < self.options.write_timeout;
            to_status(&error, Intent::Write { in_time })
        })?;
        // What a session's write came to is not judged anew, and this node has just learned whether that takes a user.
        if unsigned && self.view.auth().is_enabled() {
            return Err(super::refused::written_by_nobody());
        }
        match Outcome::decode(answer) {
            Ok(Outcome { body: Some(outcome::Body::Refusal(refusal)) })
                if refusal == api::Refusal::from(Refusal::AnswerTooLarge) =>
            {
                gate::too_large(extensions);
                Err(with_decided(answer_too_large(self.options.limits.response_bytes)))
            }
            Ok(Outcome { body: Some(outcome::Body::Refusal(refusal)) }) => Err(decided(refusal)),
            Ok(Outcome { body: Some(body) }) => Ok(body),
            Ok(Outcome { body: None }) | Err(_) => Err(unexpected()),
        }
    }

    async fn read_txn(
        &self,
        request: TxnRequest,
        (metadata, extensions): (&MetadataMap, &Extensions),
    ) -> Result<TxnResponse, Status> {
        self.prepare_read(is_serializable(&request), metadata).await?;
        let author = self.author(metadata).await?;
        let holding = Holding::of(extensions);
        let answer = self.view.read_txn_within(author, request, self.room(&holding)).await;
        let answer = answer.map_err(|error| holding.refused().unwrap_or_else(|| self.no_answer(error, extensions)))?;
        holding.settle(answer.encoded_len())?;
        Ok(answer)
    }

    /// Makes room for what a write will give back, as far as that can be told before it is proposed. What it will really be is judged where it is
    /// applied, by all nodes alike.
    async fn expect(&self, body: &command::Body, extensions: &Extensions) -> Result<(), Status> {
        // The reads of one way that it can go, and of the other.
        let ways = match body {
            command::Body::Put(put) => [Reads::all(read_of_put(put)), Reads::default()],
            command::Body::DeleteRange(delete) => [Reads::all(read_of_delete(delete)), Reads::default()],
            command::Body::Txn(txn) => reads_of(txn),
            command::Body::Compact(_) | command::Body::Member(_) | command::Body::Auth(_) => return Ok(()),
        };
        let most = self.options.limits.response_bytes;
        let mut largest = 0;
        for Reads { reads, own_bytes } in ways.into_iter().filter(|way| !way.reads.is_empty()) {
            let bytes = self.view.answer_bytes(reads, most).await;
            let bytes = bytes.map_err(|error| self.no_answer(error, extensions))?;
            largest = largest.max(bytes.saturating_add(own_bytes).min(most));
        }
        gate::hold(extensions, largest)
    }

    /// Room for an answer, which is asked for before the answer is made.
    fn room(&self, holding: &Holding) -> Room {
        let holding = holding.clone();
        Room::held(self.options.limits.response_bytes, move |bytes| holding.take(bytes))
    }

    fn no_answer(&self, error: ReadError, extensions: &Extensions) -> Status {
        if error != ReadError::Refused(Refusal::AnswerTooLarge) {
            return error.into();
        }
        gate::too_large(extensions);
        answer_too_large(self.options.limits.response_bytes)
    }
}

/// Whether the answer to a command may hold keys.
fn gives_back(body: &command::Body) -> bool {
    match body {
        command::Body::Put(put) => put.prev_kv,
        command::Body::DeleteRange(delete) => delete.prev_kv,
        command::Body::Txn(_) => true,
        command::Body::Compact(_) | command::Body::Member(_) | command::Body::Auth(_) => false,
    }
}

/// The state machine answers each kind of command in kind.
pub(super) fn unexpected() -> Status {
    Status::internal("etcdserver: the state machine gave an answer of another kind (please report this)")
}

#[tonic::async_trait]
impl<R: Replica> Kv for Context<R> {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let (metadata, extensions, request) = request.into_parts();
        check_range(&request)?;
        self.prepare_read(request.serializable, &metadata).await?;
        let author = self.author(&metadata).await?;
        let holding = Holding::of(&extensions);
        let answer = self.view.range_within(author, request, self.room(&holding)).await;
        let answer = answer.map_err(|error| holding.refused().unwrap_or_else(|| self.no_answer(error, &extensions)));
        let mut response = answer?;
        holding.settle(response.encoded_len())?;
        response.header = self.complete(response.header);
        Ok(Response::new(response))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let once = once::of(request.metadata())?;
        let (metadata, extensions, request) = request.into_parts();
        check_put(&request)?;
        let outcome::Body::Put(mut response) =
            self.propose_as((&metadata, &extensions), command::Body::Put(request), once).await?
        else {
            return Err(unexpected());
        };
        response.header = self.complete(response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let once = once::of(request.metadata())?;
        let (metadata, extensions, request) = request.into_parts();
        check_delete(&request)?;
        let outcome::Body::DeleteRange(mut response) =
            self.propose_as((&metadata, &extensions), command::Body::DeleteRange(request), once).await?
        else {
            return Err(unexpected());
        };
        response.header = self.complete(response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let once = once::of(request.metadata())?;
        let (metadata, extensions, request) = request.into_parts();
        check_txn(&request, self.options.limits)?;
        let mut response = if is_read_only(&request) {
            self.read_txn(request, (&metadata, &extensions)).await?
        } else if let outcome::Body::Txn(response) =
            self.propose_as((&metadata, &extensions), command::Body::Txn(request), once).await?
        {
            response
        } else {
            return Err(unexpected());
        };
        response.header = self.complete(response.header);
        Ok(Response::new(response))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        let once = once::of(request.metadata())?;
        let (metadata, extensions, request) = request.into_parts();
        let outcome::Body::Compact(mut response) =
            self.propose_as((&metadata, &extensions), command::Body::Compact(request), once).await?
        else {
            return Err(unexpected());
        };
        if request.physical {
            self.view.swept(request.revision).await?;
        }
        response.header = self.complete(response.header);
        Ok(Response::new(response))
    }
}
