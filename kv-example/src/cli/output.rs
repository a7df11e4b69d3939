//! Answers as tables for people and as JSON for programs.

use std::io::Write;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde_json::{Map, Value, json};

use super::Failure;
use super::text::{put_json, shown};
use crate::api::etcdserverpb::response_op::Response;
use crate::api::etcdserverpb::{
    DeleteRangeResponse, PutResponse, RangeResponse, ResponseHeader, ResponseOp, TxnResponse,
};
use crate::api::mvccpb::KeyValue;

/// Prints to stdout. A reader that left early (`| head`) is no failure of ours to tell about.
pub(crate) fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    match writeln!(std::io::stdout().lock(), "{text}") {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::runtime(format!("stdout: {e}"))),
        Ok(()) | Err(_) => Ok(()),
    }
}

pub(crate) fn print_json(value: &Value) -> Result<(), Failure> {
    print(format!("{value:#}"))
}

pub(crate) fn table<'a>(head: impl IntoIterator<Item = &'a str>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(head.into_iter().collect::<Vec<_>>());
    table
}

/// Moves numbers to the right-hand side of these columns.
pub(crate) fn align_right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for n in columns {
        if let Some(column) = table.column_mut(n) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

pub(crate) fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.map_or(0, |header| header.revision)
}

pub(crate) fn kv_json(kv: &KeyValue) -> Value {
    let mut object = Map::new();
    put_json(&mut object, "key", &kv.key);
    put_json(&mut object, "value", &kv.value);
    object.insert("create_revision".into(), json!(kv.create_revision));
    object.insert("mod_revision".into(), json!(kv.mod_revision));
    object.insert("version".into(), json!(kv.version));
    Value::Object(object)
}

pub(crate) fn put_answer_json(answer: &PutResponse) -> Value {
    json!({ "revision": revision(answer.header.as_ref()), "prev": answer.prev_kv.as_ref().map(kv_json) })
}

pub(crate) fn range_answer_json(answer: &RangeResponse) -> Value {
    json!({
        "revision": revision(answer.header.as_ref()),
        "count": answer.count,
        "more": answer.more,
        "kvs": answer.kvs.iter().map(kv_json).collect::<Vec<_>>(),
    })
}

pub(crate) fn delete_answer_json(answer: &DeleteRangeResponse) -> Value {
    json!({
        "revision": revision(answer.header.as_ref()),
        "deleted": answer.deleted,
        "prev": answer.prev_kvs.iter().map(kv_json).collect::<Vec<_>>(),
    })
}

pub(crate) fn txn_answer_json(answer: &TxnResponse) -> Value {
    json!({
        "revision": revision(answer.header.as_ref()),
        "succeeded": answer.succeeded,
        "responses": answer.responses.iter().map(op_json).collect::<Vec<_>>(),
    })
}

fn op_json(op: &ResponseOp) -> Value {
    let (name, mut value) = match &op.response {
        Some(Response::ResponsePut(answer)) => ("put", put_answer_json(answer)),
        Some(Response::ResponseRange(answer)) => ("get", range_answer_json(answer)),
        Some(Response::ResponseDeleteRange(answer)) => ("del", delete_answer_json(answer)),
        Some(Response::ResponseTxn(answer)) => ("txn", txn_answer_json(answer)),
        None => ("nothing", json!({})),
    };
    if let Some(object) = value.as_object_mut() {
        object.insert("op".into(), json!(name));
    }
    value
}

/// Keys, their values and revisions.
pub(crate) fn kv_table(kvs: &[KeyValue], with_values: bool) -> Table {
    let head: &[&str] = if with_values {
        &["key", "value", "version", "created at", "modified at"]
    } else {
        &["key", "version", "created at", "modified at"]
    };
    let mut table = table(head.iter().copied());
    for kv in kvs {
        let mut row = vec![shown(&kv.key)];
        if with_values {
            row.push(shown(&kv.value));
        }
        row.extend([kv.version, kv.create_revision, kv.mod_revision].map(|n| n.to_string()));
        table.add_row(row);
    }
    align_right(&mut table, head.len() - 3..head.len());
    table
}

/// One line for a put.
pub(crate) fn put_text(answer: &PutResponse) -> String {
    let prev =
        answer.prev_kv.as_ref().map_or(String::new(), |kv| format!("\n{}", kv_table(std::slice::from_ref(kv), true)));
    format!("OK, revision {}{prev}", revision(answer.header.as_ref()))
}

/// One line for a deletion, and what was deleted if that was asked.
pub(crate) fn delete_text(answer: &DeleteRangeResponse) -> String {
    let keys = if answer.deleted == 1 { "key" } else { "keys" };
    let prev =
        if answer.prev_kvs.is_empty() { String::new() } else { format!("\n{}", kv_table(&answer.prev_kvs, true)) };
    format!("{} {keys} deleted, revision {}{prev}", answer.deleted, revision(answer.header.as_ref()))
}

/// A range as a table, and a line when there is more to say.
pub(crate) fn range_text(answer: &RangeResponse, with_values: bool) -> String {
    if answer.kvs.is_empty() {
        return format!("no such key ({} counted, revision {})", answer.count, revision(answer.header.as_ref()));
    }
    let more =
        if answer.more { format!("\n{} of {} keys shown", answer.kvs.len(), answer.count) } else { String::new() };
    format!("{}{more}", kv_table(&answer.kvs, with_values))
}

/// What each operation of a transaction gave.
pub(crate) fn txn_text(answer: &TxnResponse) -> String {
    let verdict = if answer.succeeded { "the comparisons hold: then" } else { "the comparisons do not hold: else" };
    let mut lines = vec![format!("{verdict} (revision {})", revision(answer.header.as_ref()))];
    for op in &answer.responses {
        lines.push(match &op.response {
            Some(Response::ResponsePut(answer)) => format!("put: {}", put_text(answer)),
            Some(Response::ResponseRange(answer)) => format!("get:\n{}", range_text(answer, true)),
            Some(Response::ResponseDeleteRange(answer)) => format!("del: {}", delete_text(answer)),
            Some(Response::ResponseTxn(answer)) => txn_text(answer),
            None => "nothing".into(),
        });
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &'static [u8], value: &'static [u8]) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: value.into(),
            create_revision: 2,
            mod_revision: 3,
            version: 4,
            ..KeyValue::default()
        }
    }

    #[test]
    fn the_json_of_a_range() {
        let answer = RangeResponse {
            header: Some(ResponseHeader { revision: 9, ..ResponseHeader::default() }),
            kvs: vec![kv(b"k", b"\xff")],
            more: true,
            count: 7,
        };
        assert_eq!(
            range_answer_json(&answer),
            json!({"revision": 9, "count": 7, "more": true, "kvs": [
                {"key": "k", "value_hex": "ff", "create_revision": 2, "mod_revision": 3, "version": 4}
            ]})
        );
        let text = range_text(&answer, true);
        assert!(text.contains("\\xff") && text.contains("1 of 7 keys shown"), "{text}");
    }

    #[test]
    fn the_json_of_a_transaction_tells_the_operations_apart() {
        let op = |response| ResponseOp { response: Some(response) };
        let answer = TxnResponse {
            header: None,
            succeeded: true,
            responses: vec![
                op(Response::ResponsePut(PutResponse::default())),
                op(Response::ResponseDeleteRange(DeleteRangeResponse { deleted: 1, ..Default::default() })),
            ],
        };
        assert_eq!(
            txn_answer_json(&answer),
            json!({"revision": 0, "succeeded": true, "responses": [
                {"op": "put", "revision": 0, "prev": null},
                {"op": "del", "revision": 0, "deleted": 1, "prev": []},
            ]})
        );
        assert!(txn_text(&answer).contains("del: 1 key deleted"), "{}", txn_text(&answer));
    }
}
