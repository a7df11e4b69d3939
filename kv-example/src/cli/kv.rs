//! `put`, `get`, `del`, `range`, `compact`.

use std::io::{Read, Write};

use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::{Connection, Failure, output, text};
use crate::api::etcdserverpb::range_request::{SortOrder, SortTarget};
use crate::api::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};
use crate::client::prefix_end;
use crate::service::Freshness;

#[derive(Args, Debug)]
pub(super) struct Put {
    /// The key
    key: String,
    /// The value; `-` reads it from stdin, as it is
    #[arg(required_unless_present = "ignore_value")]
    value: Option<String>,
    /// Show what was there before
    #[arg(long)]
    prev: bool,
    /// Touch the key and keep its value; fails when there is no such key
    #[arg(long, conflicts_with = "value")]
    ignore_value: bool,
    /// Read key and value as hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct Get {
    /// The key
    key: String,
    /// Print the bare value and nothing else; exit code 1 when there is no such key
    #[arg(long, conflicts_with = "json")]
    value_only: bool,
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct Del {
    /// The key; with --prefix, the beginning of all keys to delete
    key: String,
    /// Delete from KEY up to this key, which stays
    #[arg(conflicts_with = "prefix")]
    end: Option<String>,
    /// Delete all keys that begin with KEY
    #[arg(long)]
    prefix: bool,
    /// Show what was deleted
    #[arg(long)]
    prev: bool,
    /// Read keys as hexadecimal digits
    #[arg(long)]
    hex: bool,
    #[command(flatten)]
    connection: Connection,
}

#[derive(Args, Debug)]
pub(super) struct Range {
    /// The first key [default: the first of all]
    from: Option<String>,
    /// List up to this key, which is left out [default: to the last of all]
    to: Option<String>,
    /// List all keys with this beginning
    #[arg(long, value_name = "BEGINNING", conflicts_with_all = ["from", "to"])]
    prefix: Option<String>,
    /// How many keys to show at most; 0 for all
    #[arg(long, value_name = "COUNT", default_value = "0", value_parser = clap::value_parser!(i64).range(0..))]
    limit: i64,
    /// Sort by this
    #[arg(long, value_name = "BY", value_enum, default_value = "key")]
    sort: Sort,
    /// Largest first
    #[arg(long)]
    descending: bool,
    /// Leave the values out
    #[arg(long)]
    keys_only: bool,
    /// Only count the keys
    #[arg(long)]
    count_only: bool,
    #[command(flatten)]
    view: View,
    #[command(flatten)]
    connection: Connection,
}

/// Which state of the store to look at.
#[derive(Args, Debug)]
struct View {
    /// Read the store as it was at this revision; 0 for now
    #[arg(long, value_name = "REVISION", default_value = "0", value_parser = clap::value_parser!(i64).range(0..))]
    revision: i64,
    /// How fresh the answer must be [default: linearizable, by the lease of a server with --lease-drift-ms]
    #[arg(long, value_enum, value_name = "LEVEL")]
    consistency: Option<Freshness>,
    /// The same as --consistency stale, by its name in etcd
    #[arg(long, conflicts_with = "consistency")]
    serializable: bool,
    /// Read keys as hexadecimal digits
    #[arg(long)]
    hex: bool,
}

impl View {
    fn freshness(&self) -> Option<Freshness> {
        if self.serializable { Some(Freshness::Stale) } else { self.consistency }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Sort {
    Key,
    Version,
    Created,
    Modified,
    Value,
}

#[derive(Args, Debug)]
pub(super) struct Compact {
    /// Versions that were superseded before this revision are forgotten
    #[arg(value_parser = clap::value_parser!(i64).range(1..))]
    revision: i64,
    #[command(flatten)]
    connection: Connection,
}

pub(super) async fn put(args: Put) -> Result<(), Failure> {
    let request = PutRequest {
        key: text::argument(&args.key, args.hex)?,
        value: match args.value.as_deref() {
            Some("-") => stdin()?,
            Some(value) => text::argument(value, args.hex)?,
            None => Bytes::new(),
        },
        prev_kv: args.prev,
        ignore_value: args.ignore_value,
        ..PutRequest::default()
    };
    let answer = args.connection.write(async |client| client.put_request(request).await).await?;
    if args.connection.json {
        output::print_json(&output::put_answer_json(&answer))
    } else {
        output::print(output::put_text(&answer))
    }
}

pub(super) async fn get(args: Get) -> Result<(), Failure> {
    let request = RangeRequest {
        key: text::argument(&args.key, args.view.hex)?,
        revision: args.view.revision,
        ..RangeRequest::default()
    };
    let answer = args.connection.client()?.range_as(request, args.view.freshness()).await?;
    if args.connection.json {
        return output::print_json(&output::range_answer_json(&answer));
    }
    match answer.kvs.first() {
        Some(kv) if args.value_only => raw(&kv.value),
        None if args.value_only => Err(Failure::runtime(format!("no such key: {}", args.key))),
        Some(_) => output::print(output::range_text(&answer, true)),
        None => {
            output::print(format!("no such key: {} (revision {})", args.key, output::revision(answer.header.as_ref())))
        }
    }
}

pub(super) async fn del(args: Del) -> Result<(), Failure> {
    let key = text::argument(&args.key, args.hex)?;
    let range_end = match &args.end {
        Some(end) => text::argument(end, args.hex)?,
        None if args.prefix => prefix_end(&key),
        None => Bytes::new(),
    };
    // An empty prefix means all keys, which begin with a zero byte in the protocol.
    let key = if args.prefix { first_key(key) } else { key };
    let request = DeleteRangeRequest { key, range_end, prev_kv: args.prev };
    let answer = args.connection.write(async |client| client.delete_range(request).await).await?;
    if args.connection.json {
        output::print_json(&output::delete_answer_json(&answer))
    } else {
        output::print(output::delete_text(&answer))
    }
}

pub(super) async fn range(args: Range) -> Result<(), Failure> {
    let argument = |text: &Option<String>| text.as_deref().map(|t| text::argument(t, args.view.hex)).transpose();
    let (key, range_end) = match argument(&args.prefix)? {
        Some(prefix) => (first_key(prefix.clone()), prefix_end(&prefix)),
        None => {
            let end = argument(&args.to)?.unwrap_or_else(|| Bytes::from_static(&[0]));
            (first_key(argument(&args.from)?.unwrap_or_default()), end)
        }
    };
    let target = match args.sort {
        Sort::Key => SortTarget::Key,
        Sort::Version => SortTarget::Version,
        Sort::Created => SortTarget::Create,
        Sort::Modified => SortTarget::Mod,
        Sort::Value => SortTarget::Value,
    };
    let order = if args.descending { SortOrder::Descend } else { SortOrder::Ascend };
    let request = RangeRequest {
        key,
        range_end,
        limit: args.limit,
        revision: args.view.revision,
        sort_order: order.into(),
        sort_target: target.into(),
        keys_only: args.keys_only,
        count_only: args.count_only,
        ..RangeRequest::default()
    };
    let answer = args.connection.client()?.range_as(request, args.view.freshness()).await?;
    if args.connection.json {
        output::print_json(&output::range_answer_json(&answer))
    } else if args.count_only {
        output::print(format!("{} keys (revision {})", answer.count, output::revision(answer.header.as_ref())))
    } else {
        output::print(output::range_text(&answer, !args.keys_only))
    }
}

pub(super) async fn compact(args: Compact) -> Result<(), Failure> {
    let answer = args.connection.write(async |client| client.compact(args.revision).await).await?;
    let now = output::revision(answer.header.as_ref());
    if args.connection.json {
        output::print_json(&json!({ "compacted": args.revision, "revision": now }))
    } else {
        output::print(format!("OK, compacted to revision {}; the newest is {now}", args.revision))
    }
}

/// The protocol has no empty key: one zero byte comes before all others.
pub(super) fn first_key(key: Bytes) -> Bytes {
    if key.is_empty() { Bytes::from_static(&[0]) } else { key }
}

fn raw(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.write_all(b"\n")).map_err(|e| Failure::runtime(format!("stdout: {e}")))
}

fn stdin() -> Result<Bytes, Failure> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| Failure::runtime(format!("stdin: {e}")))?;
    Ok(bytes.into())
}
