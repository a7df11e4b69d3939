//! The small language of `txn`: `value(k) = v`, `put k v`.

use bytes::Bytes;

use crate::api::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use crate::api::etcdserverpb::request_op::Request;
use crate::api::etcdserverpb::{Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};
use crate::client::prefix_end;

/// Reads a whole transaction: lines that begin with `if`, `then` or `else`.
pub(super) fn script(text: &str) -> Result<TxnRequest, String> {
    let mut txn = TxnRequest::default();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (keyword, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let read = match keyword {
            "if" => comparison(rest).map(|c| txn.compare.push(c)),
            "then" => operation(rest).map(|op| txn.success.push(op)),
            "else" => operation(rest).map(|op| txn.failure.push(op)),
            other => Err(format!("a line begins with if, then or else, not with {other:?}")),
        };
        read.map_err(|e| format!("line {}: {e}", n + 1))?;
    }
    if txn == TxnRequest::default() {
        return Err("there is nothing to do; write lines such as `then put k v` (see `kv-example txn --help`)".into());
    }
    Ok(txn)
}

/// Reads `value(KEY) = VALUE` and its kin.
pub(super) fn comparison(text: &str) -> Result<Compare, String> {
    const FORMS: &str =
        "write value(KEY) = VALUE, version(KEY) = N, created(KEY) = N, modified(KEY) = N, exists(KEY) or missing(KEY)";
    let Some((name, rest)) = text.trim().split_once('(') else {
        return Err(format!("this is no comparison; {FORMS}"));
    };
    let mut rest = Scanner { rest: rest.trim_start() };
    let key = rest.word(|c| c == ')' || c.is_whitespace())?.ok_or_else(|| format!("the key is missing; {FORMS}"))?;
    if !rest.skip(")") {
        return Err(format!("the `)` after the key is missing (a key with blanks needs double quotes); {FORMS}"));
    }
    let compare = |target: CompareTarget, result: CompareResult, value: TargetUnion| Compare {
        result: result.into(),
        target: target.into(),
        key: key.clone(),
        range_end: Bytes::new(),
        target_union: Some(value),
    };
    let parsed = match name.trim() {
        "exists" => compare(CompareTarget::Version, CompareResult::Greater, TargetUnion::Version(0)),
        "missing" => compare(CompareTarget::Version, CompareResult::Equal, TargetUnion::Version(0)),
        "value" => {
            let result = rest.relation()?;
            let value = rest.word(char::is_whitespace)?.ok_or("the value is missing (\"\" is the empty one)")?;
            compare(CompareTarget::Value, result, TargetUnion::Value(value))
        }
        "version" => {
            let result = rest.relation()?;
            compare(CompareTarget::Version, result, TargetUnion::Version(rest.number()?))
        }
        "created" => {
            let result = rest.relation()?;
            compare(CompareTarget::Create, result, TargetUnion::CreateRevision(rest.number()?))
        }
        "modified" => {
            let result = rest.relation()?;
            compare(CompareTarget::Mod, result, TargetUnion::ModRevision(rest.number()?))
        }
        other => return Err(format!("{other:?} can't be compared; {FORMS}")),
    };
    rest.end()?;
    Ok(parsed)
}

/// Reads `put KEY VALUE`, `get KEY`, `del KEY` and their kin.
pub(super) fn operation(text: &str) -> Result<RequestOp, String> {
    const FORMS: &str = "write put KEY VALUE, get KEY, get FROM TO, get --prefix BEGINNING, or the same with del";
    let mut scanner = Scanner { rest: text.trim() };
    let verb = scanner.word(char::is_whitespace)?.ok_or_else(|| format!("the operation is missing; {FORMS}"))?;
    let prefix = scanner.skip("--prefix ");
    let mut words = Vec::new();
    while let Some(word) = scanner.word(char::is_whitespace)? {
        words.push(word);
    }
    let request = match (&*verb, prefix, &*words) {
        (b"put", false, [key, value]) => {
            Request::RequestPut(PutRequest { key: key.clone(), value: value.clone(), ..PutRequest::default() })
        }
        (b"get", _, [_] | [_, _]) => {
            let (key, range_end) = span(prefix, &words)?;
            Request::RequestRange(RangeRequest { key, range_end, ..RangeRequest::default() })
        }
        (b"del", _, [_] | [_, _]) => {
            let (key, range_end) = span(prefix, &words)?;
            Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, ..DeleteRangeRequest::default() })
        }
        _ => return Err(format!("this is no operation (text with blanks needs double quotes); {FORMS}")),
    };
    Ok(RequestOp { request: Some(request) })
}

fn span(prefix: bool, words: &[Bytes]) -> Result<(Bytes, Bytes), String> {
    match (prefix, words) {
        (true, [beginning]) if beginning.is_empty() => Ok((Bytes::from_static(&[0]), prefix_end(b""))),
        (true, [beginning]) => Ok((beginning.clone(), prefix_end(beginning))),
        (false, [key]) => Ok((key.clone(), Bytes::new())),
        (false, [from, to]) => Ok((from.clone(), to.clone())),
        (_, _) => Err("--prefix takes one BEGINNING".into()),
    }
}

/// What is left of a line.
struct Scanner<'a> {
    rest: &'a str,
}

impl Scanner<'_> {
    fn skip(&mut self, text: &str) -> bool {
        self.rest = self.rest.trim_start();
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A word up to what ends it, or a quoted one; none at the end of the line.
    fn word(&mut self, ends: impl Fn(char) -> bool) -> Result<Option<Bytes>, String> {
        self.rest = self.rest.trim_start();
        if let Some(quoted) = self.rest.strip_prefix('"') {
            let (word, rest) = unquote(quoted)?;
            self.rest = rest;
            return Ok(Some(word));
        }
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        Ok((!word.is_empty()).then(|| Bytes::copy_from_slice(word.as_bytes())))
    }

    fn relation(&mut self) -> Result<CompareResult, String> {
        for (sign, result) in [
            ("==", CompareResult::Equal),
            ("=", CompareResult::Equal),
            ("!=", CompareResult::NotEqual),
            ("<", CompareResult::Less),
            (">", CompareResult::Greater),
        ] {
            if self.skip(sign) {
                return match self.rest.starts_with(['=', '<', '>', '!']) {
                    true => Err("the signs are =  !=  <  >".into()),
                    false => Ok(result),
                };
            }
        }
        Err("a sign is missing after the `)`: =  !=  <  >".into())
    }

    fn number(&mut self) -> Result<i64, String> {
        let word = self.word(char::is_whitespace)?.unwrap_or_default();
        let text = String::from_utf8_lossy(&word);
        text.parse().map_err(|_| format!("{text:?} is not a whole number"))
    }

    fn end(&self) -> Result<(), String> {
        match self.rest.trim() {
            "" => Ok(()),
            rest => Err(format!("{rest:?} is too much (text with blanks needs double quotes)")),
        }
    }
}

/// Reads up to the closing quote, whose opening one is gone already.
fn unquote(text: &str) -> Result<(Bytes, &str), String> {
    let mut bytes = Vec::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Ok((bytes.into(), &text[at + 1..])),
            '\\' => bytes.push(escape(&mut chars)?),
            other => bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Err("a closing double quote is missing".into())
}

fn escape(chars: &mut std::str::CharIndices<'_>) -> Result<u8, String> {
    const KNOWN: &str = "after a backslash come n, t, \", \\ or xNN";
    let mut next = || chars.next().map(|(_, c)| c).ok_or(KNOWN);
    match next()? {
        'n' => Ok(b'\n'),
        't' => Ok(b'\t'),
        '"' => Ok(b'"'),
        '\\' => Ok(b'\\'),
        'x' => {
            let mut digit = || next()?.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(KNOWN);
            Ok(digit()? << 4 | digit()?)
        }
        _ => Err(KNOWN.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comparisons() {
        let c = comparison("value(k) = v").unwrap();
        assert_eq!((c.target(), c.result(), &c.key[..]), (CompareTarget::Value, CompareResult::Equal, &b"k"[..]));
        assert_eq!(c.target_union, Some(TargetUnion::Value("v".into())));
        let c = comparison(r#" value("a b)" )!="\x00\n\"" "#).unwrap();
        assert_eq!((&c.key[..], c.result()), (&b"a b)"[..], CompareResult::NotEqual));
        assert_eq!(c.target_union, Some(TargetUnion::Value(Bytes::from_static(b"\0\n\""))));
        let c = comparison("version(k)>3").unwrap();
        assert_eq!((c.result(), c.target_union), (CompareResult::Greater, Some(TargetUnion::Version(3))));
        let c = comparison("created(k) < 3").unwrap();
        assert_eq!((c.target(), c.target_union), (CompareTarget::Create, Some(TargetUnion::CreateRevision(3))));
        let c = comparison("modified(k) == 3").unwrap();
        assert_eq!((c.target(), c.target_union), (CompareTarget::Mod, Some(TargetUnion::ModRevision(3))));
        let c = comparison("missing(k)").unwrap();
        assert_eq!((c.result(), c.target_union), (CompareResult::Equal, Some(TargetUnion::Version(0))));
        assert_eq!(comparison("exists(k)").unwrap().result(), CompareResult::Greater);
    }

    #[test]
    fn mistakes_in_comparisons() {
        for (text, reason) in [
            ("k = v", "no comparison"),
            ("value() = v", "key is missing"),
            ("value(a b) = v", "`)`"),
            ("value(k) v", "sign is missing"),
            ("value(k) =< v", "signs are"),
            ("value(k) =", "value is missing"),
            ("value(k) = a b", "too much"),
            ("version(k) = x", "not a whole number"),
            ("lease(k) = 1", "can't be compared"),
            ("value(\"k) = v", "closing double quote"),
            (r#"value("\q") = v"#, "after a backslash"),
        ] {
            let error = comparison(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    fn request(text: &str) -> Request {
        operation(text).unwrap().request.unwrap()
    }

    #[test]
    fn operations() {
        let Request::RequestPut(put) = request("put k \"two words\"") else { panic!("a put") };
        assert_eq!((&put.key[..], &put.value[..]), (&b"k"[..], &b"two words"[..]));
        let Request::RequestPut(put) = request("put k \"\"") else { panic!("a put") };
        assert!(put.value.is_empty());
        let Request::RequestRange(get) = request("get k") else { panic!("a get") };
        assert_eq!((&get.key[..], &get.range_end[..]), (&b"k"[..], &b""[..]));
        let Request::RequestRange(get) = request("get --prefix k") else { panic!("a get") };
        assert_eq!((&get.key[..], &get.range_end[..]), (&b"k"[..], &b"l"[..]));
        let Request::RequestDeleteRange(del) = request("del a c") else { panic!("a del") };
        assert_eq!((&del.key[..], &del.range_end[..]), (&b"a"[..], &b"c"[..]));
    }

    #[test]
    fn mistakes_in_operations() {
        for text in ["", "put k", "put k a b", "get", "get a b c", "drop k", "get --prefix a b", "put \"k v"] {
            assert!(operation(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_script() {
        let txn = script("# lock\n\nif missing(lock)\nthen put lock me\nthen get a\n  else get lock\n").unwrap();
        assert_eq!((txn.compare.len(), txn.success.len(), txn.failure.len()), (1, 2, 1));
        assert!(script("when x").unwrap_err().starts_with("line 1: a line begins with"));
        assert!(script("\nthen put k").unwrap_err().starts_with("line 2: "));
        assert!(script("\n# nothing\n").unwrap_err().contains("nothing to do"));
    }
}
