//! What the best server could do that answers etcd's requests over this HTTP/2 library on this machine: one that keeps nothing, and answers at once.
//!
//! `cargo run --release -p kv-example --example echo -- 127.0.0.1:17500 256`, and then `kv-example bench get --endpoints 127.0.0.1:17500`. The
//! measure of `benches/versus-echo.sh`.

use bytes::Bytes;
use kv_example::api::etcdserverpb::kv_server::{Kv, KvServer};
use kv_example::api::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
    RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse,
};
use kv_example::api::mvccpb::KeyValue;
use tonic::{Request, Response, Status, async_trait};

/// The server's own allocator, so that the two differ in nothing else.
#[cfg(all(feature = "jemalloc", unix))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

struct Echo {
    value: Bytes,
}

fn header() -> Option<ResponseHeader> {
    Some(ResponseHeader { cluster_id: 1 << 60, member_id: 1, revision: 10_000, raft_term: 2 })
}

#[async_trait]
impl Kv for Echo {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let kv = KeyValue {
            key: request.into_inner().key,
            value: self.value.clone(),
            create_revision: 5000,
            mod_revision: 5000,
            version: 1,
            lease: 0,
        };
        Ok(Response::new(RangeResponse { header: header(), kvs: vec![kv], more: false, count: 1 }))
    }

    async fn put(&self, _: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        Ok(Response::new(PutResponse { header: header(), prev_kv: None }))
    }

    async fn delete_range(&self, _: Request<DeleteRangeRequest>) -> Result<Response<DeleteRangeResponse>, Status> {
        Err(Status::unimplemented("an echo deletes nothing"))
    }

    async fn txn(&self, _: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        Err(Status::unimplemented("an echo decides nothing"))
    }

    async fn compact(&self, _: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        Err(Status::unimplemented("an echo compacts nothing"))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(size)) = (args.next(), args.next()) else {
        return Err("usage: echo HOST:PORT BYTES".into());
    };
    let echo = Echo { value: vec![b'v'; size.parse()?].into() };
    tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .add_service(KvServer::new(echo))
        .serve(address.parse()?)
        .await?;
    Ok(())
}
