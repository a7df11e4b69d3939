//! Keys and values as people and programs write them.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::Failure;

/// Bytes for a person: text as it is, anything else with `\xNN` for what can't be shown.
pub(crate) fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        Ok(_) | Err(_) => bytes.escape_ascii().to_string(),
    }
}

/// Bytes for a program: `"name": "…"` when they are UTF-8, else `"name_hex": "…"`.
pub(crate) fn put_json(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), json!(text)),
        Err(_) => object.insert(format!("{name}_hex"), json!(to_hex(bytes))),
    };
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// An argument as bytes: as it is, or read as hexadecimal digits.
pub(crate) fn argument(text: &str, hex: bool) -> Result<Bytes, Failure> {
    if !hex {
        return Ok(Bytes::copy_from_slice(text.as_bytes()));
    }
    from_hex(text)
        .map(Bytes::from)
        .ok_or_else(|| Failure::usage(format!("--hex: {text:?} is not an even number of hexadecimal digits")))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect::<Option<_>>()?;
    digits.len().is_multiple_of(2).then(|| digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_text_stay_text() {
        assert_eq!(shown("grüße".as_bytes()), "grüße");
        assert_eq!(shown(b"a\nb\xff"), "a\\nb\\xff");
        let mut object = Map::new();
        put_json(&mut object, "key", b"k");
        put_json(&mut object, "value", b"\xff\x00");
        assert_eq!(Value::Object(object), json!({"key": "k", "value_hex": "ff00"}));
    }

    #[test]
    fn hexadecimal_arguments() {
        assert_eq!(&argument("ff00", true).unwrap()[..], b"\xff\0");
        assert_eq!(&argument("ff00", false).unwrap()[..], b"ff00");
        assert!(argument("f", true).is_err());
        assert!(argument("zz", true).is_err());
        assert!(argument("+f", true).is_err());
    }
}
