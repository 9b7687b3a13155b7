//! JSON without duplicate keys, in bounded memory. Two parsers may interpret a duplicate differently (a proxy that
//! checks the first, a server that uses the last). It is detected during parsing: nothing is read twice.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::map::Entry;
use serde_json::{Map, Number, Value};

/// Why a text was not taken.
#[derive(Debug)]
pub(crate) enum Refused {
    /// It is no JSON.
    Broken(serde_json::Error),
    /// A duplicate key, as the path to it.
    Twice { path: String, line: usize, column: usize },
    /// Its values take more than [`MAX_MEMORY`].
    TooMany,
}

/// The memory that the values of one text may take, without the bytes of its strings: 230,000 numbers of a list.
pub(crate) const MAX_MEMORY: usize = 16 << 20;

/// What a value takes in a list, and in addition: the allocation of a string, the first allocation of a list and of an
/// object, and a field, with serde_json's `preserve_order`.
const VALUE: usize = size_of::<Value>();
const STRING: usize = 32;
const LIST: usize = 4 * VALUE;
const OBJECT: usize = 6 * VALUE;
const FIELD: usize = VALUE;

/// Reads a text.
pub(crate) fn parse(text: &str) -> Result<Value, Refused> {
    let (twice, left) = (RefCell::new(None), Cell::new(Some(MAX_MEMORY)));
    let mut reader = serde_json::Deserializer::from_str(text);
    let once = StrictBuilder { twice: &twice, left: &left };
    let read = once.deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    read.map_err(|error| match twice.take() {
        _ if left.get().is_none() => Refused::TooMany,
        Some(path) => Refused::Twice { path, line: error.line(), column: error.column() },
        None => Refused::Broken(error),
    })
}

/// Builds a value. On a duplicate, the key is stored in the cell and extended to its path on return.
#[derive(Clone, Copy)]
struct StrictBuilder<'a> {
    twice: &'a RefCell<Option<String>>,
    /// Memory that is left; `None` after it was exceeded.
    left: &'a Cell<Option<usize>>,
}

/// Maximum length of a key in messages, and roughly of its path.
const SHOWN: usize = 64;
const MOST_PATH: usize = 256;

impl StrictBuilder<'_> {
    fn take<E: Error>(self, bytes: usize) -> Result<(), E> {
        self.left.set(self.left.get().and_then(|left| left.checked_sub(bytes)));
        self.left.get().map(drop).ok_or_else(|| E::custom("too many values"))
    }

    fn within(self, outer: impl FnOnce() -> String) {
        if let Some(path) = self.twice.borrow_mut().as_mut().filter(|path| path.len() < MOST_PATH) {
            let dot = if path.starts_with('[') { "" } else { "." };
            *path = format!("{}{dot}{path}", outer());
        }
    }
}

fn shown(key: &str) -> String {
    key.chars().take(SHOWN).collect()
}

impl<'de> DeserializeSeed<'de> for StrictBuilder<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictBuilder<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        self.take::<E>(VALUE)?;
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        self.take::<E>(VALUE)?;
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        self.take::<E>(VALUE)?;
        Ok(Value::from(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        self.take::<E>(VALUE)?;
        Ok(Value::from(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        self.take::<E>(VALUE)?;
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        self.take::<E>(VALUE + STRING)?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.take::<A::Error>(VALUE)?;
        let mut list = Vec::new();
        loop {
            if list.len() == 1 {
                self.take::<A::Error>(LIST)?;
            }
            match access.next_element_seed(self) {
                Ok(Some(value)) => list.push(value),
                Ok(None) => return Ok(Value::Array(list)),
                Err(error) => {
                    self.within(|| format!("[{}]", list.len()));
                    return Err(error);
                }
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        self.take::<A::Error>(VALUE)?;
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            self.take::<A::Error>(if map.is_empty() { OBJECT } else { FIELD + STRING })?;
            let entry = match map.entry(key) {
                Entry::Vacant(entry) => entry,
                Entry::Occupied(entry) => {
                    self.twice.replace(Some(shown(entry.key())));
                    return Err(A::Error::custom("a key is duplicated"));
                }
            };
            match access.next_value_seed(self) {
                Ok(value) => {
                    entry.insert(value);
                }
                Err(error) => {
                    self.within(|| shown(entry.key()));
                    return Err(error);
                }
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_without_duplicate_keys_is_parsed_unchanged() {
        for text in [
            r#"{"a":1,"b":[{"a":-1},{"a":1.5}],"c":{"a":null,"b":{"a":true}},"ü\n":"é","big":18446744073709551615,"e":1e10}"#,
            "[]",
            "null",
            r#"  "x" "#,
        ] {
            assert_eq!(parse(text).unwrap(), serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn duplicate_json_key_is_reported_with_its_path() {
        for (text, wanted) in [
            (r#"{"prompt":"a","prompt":"b"}"#, "prompt"),
            (r#"{"prompt":"a","pr\u006fmpt":"a"}"#, "prompt"),
            (r#"{"a":{"b":1,"c":2,"b":3}}"#, "a.b"),
            (r#"{"messages":[{"role":"a"},{"role":"a","role":"b"}]}"#, "messages[1].role"),
            (r#"[[{"x":1,"x":1}]]"#, "[0][0].x"),
        ] {
            match parse(text).unwrap_err() {
                Refused::Twice { path, line: 1, column } => {
                    assert!(path == wanted && column > 5, "{path} {column}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn invalid_json_is_refused_and_nesting_is_bounded() {
        for text in ["", "{", "{} x", "{\"a\":1e999}", &"[".repeat(50_000), &"{\"a\":".repeat(50_000)] {
            assert!(matches!(parse(text), Err(Refused::Broken(_))), "{text:.20}");
        }
    }

    #[test]
    fn values_are_bounded_by_their_memory_and_strings_by_the_body() {
        let list = |item: &str, count: usize| format!("[{}]", vec![item; count].join(","));
        assert!(parse(&list("7", 230_000)).is_ok(), "a prompt of token ids");
        assert!(parse(&format!("\"{}\"", "a".repeat(20 << 20))).is_ok());
        for item in ["7", "[]", "[0]", "{}", "{\"\":0}", "\"a\"", "null", "[[[[]]]]"] {
            assert!(matches!(parse(&list(item, 300_000)), Err(Refused::TooMany)), "{item}");
        }
        let fields: Vec<String> = (0..300_000).map(|n| format!("\"{n}\":0")).collect();
        assert!(matches!(parse(&format!("{{{}}}", fields.join(","))), Err(Refused::TooMany)));
    }
}
