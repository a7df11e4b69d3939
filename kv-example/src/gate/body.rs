//! The bodies of requests and answers, with the limits on them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::census::{Census, What};
use super::{Limit, Ticket};
use crate::service::refused;

/// In front of each message: a flag, and the message's length.
const PREFIX: usize = 5;

/// What comes of a request. The services begin when all of it is there, and make room for a message as soon as its length is known. What is in it is
/// counted where it says what: it is decoded as a whole.
pub(super) fn received(body: Body, ticket: Arc<Ticket>, is_streamed: bool, counts: Option<What>) -> Body {
    let (prefix, census) = ([0; PREFIX], None);
    Body::new(Received { body, ticket, is_streamed, prefix, seen: 0, left: 0, counts, census, deadline: None })
}

/// What goes to the client. Until all of it has been written to the client's connection, the request is in progress.
pub(super) fn answered(body: Body, ticket: Arc<Ticket>) -> Body {
    Body::new(Answered { body, ticket })
}

struct Received {
    body: Body,
    ticket: Arc<Ticket>,
    is_streamed: bool,
    prefix: [u8; PREFIX],
    seen: usize,
    /// What is still to come of the message.
    left: usize,
    counts: Option<What>,
    /// There once the length is known.
    census: Option<Census>,
    /// Set when something has to be waited for.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Received {
    /// Looks for the length of the first message: of requests that are no streams, the only one. Room was made for no other, and a service would gather
    /// it all the same.
    fn look(&mut self, data: &[u8]) -> Result<(), Status> {
        let now = data.len().min(PREFIX - self.seen);
        self.prefix[self.seen..self.seen + now].copy_from_slice(&data[..now]);
        let begun = self.seen == PREFIX;
        self.seen += now;
        if self.seen < PREFIX {
            return Ok(());
        }
        if !begun {
            self.left = self.length()?;
            self.census = self.counts.map(|what| Census::new(what, self.left, self.ticket.gate.max_parts));
        }
        if !self.is_streamed {
            self.left = self.left.checked_sub(data.len() - now).ok_or_else(refused::several_messages)?;
        }
        self.census.as_mut().map_or(Ok(()), |census| census.count(&data[now..]))
    }

    /// The length of the first message, for which there is room now.
    fn length(&self) -> Result<usize, Status> {
        let length = (&self.prefix[1..]).get_u32() as usize;
        if length > self.ticket.gate.max_message_bytes {
            // The answer tells who counts.
            return Err(refused::too_large());
        }
        if !self.is_streamed {
            self.ticket.hold(length)?;
        }
        Ok(length)
    }

    /// Whether it takes too long.
    fn check(&mut self, cx: &mut Context<'_>) -> Result<(), Status> {
        if self.is_streamed {
            return Ok(());
        }
        let limit = self.ticket.gate.limits.receive_timeout;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(limit)));
        if deadline.as_mut().poll(cx).is_pending() {
            return Ok(());
        }
        self.ticket.gate.refuse(Limit::Receive, "a request did not arrive in time");
        Err(refused::too_slow(limit, Limit::Receive.option()))
    }
}

impl HttpBody for Received {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(other) => return Poll::Ready(other),
            Poll::Pending => {
                self.check(cx)?;
                return Poll::Pending;
            }
        };
        if let Some(data) = frame.data_ref() {
            self.look(data)?;
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer. HTTP/2 takes as much of it as the client's windows allow, which the client may make as large as it likes, and keeps that until it has been
/// written; so what holds the ticket is the data, wherever it lies, and not this body, which is gone before.
struct Answered {
    body: Body,
    ticket: Arc<Ticket>,
}

/// Data of an answer.
struct Held {
    data: Bytes,
    _ticket: Arc<Ticket>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl HttpBody for Answered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let hold = |data| Bytes::from_owner(Held { data, _ticket: self.ticket.clone() });
        Poll::Ready(frame.map(|frame| Ok(frame?.map_data(hold))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
