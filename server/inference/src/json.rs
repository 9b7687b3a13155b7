//! How many values a JSON text has, before it is read: each takes dozens of bytes, so that a short file of a model can need
//! more memory than the machine has.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The values of a tokenizer's file: 262,000 tokens with 514,000 merges, the most of known models, have 1.8 million.
pub(crate) const MAX_VALUES_OF_TOKENIZER: usize = 1 << 22;
/// The values of another file of a model: 100,000 tensors with their files.
pub(crate) const MAX_VALUES: usize = 1 << 18;

/// The values of the header of a file of tensors: eight for each of 131,000 tensors.
pub(crate) const MAX_VALUES_OF_HEADER: usize = 1 << 20;

/// Refuses a text with more values. Takes no memory.
pub(crate) fn check(text: &[u8], most: usize) -> Result<(), serde_json::Error> {
    count(text, most, false)
}

/// Refuses a text with more values, or an object with two values of one key. Takes the memory of the keys.
pub(crate) fn check_keys(text: &[u8], most: usize) -> Result<(), serde_json::Error> {
    count(text, most, true)
}

fn count(text: &[u8], most: usize, has_unique_keys: bool) -> Result<(), serde_json::Error> {
    let left = Cell::new(most);
    let mut reader = serde_json::Deserializer::from_slice(text);
    Count { left: &left, most, has_unique_keys }.deserialize(&mut reader)
}

#[derive(Clone, Copy)]
struct Count<'a> {
    left: &'a Cell<usize>,
    most: usize,
    has_unique_keys: bool,
}

impl Count<'_> {
    fn one<E: Error>(self) -> Result<(), E> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| E::custom(format!("it has more than {} values", self.most)))?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Count<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Count<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.one()
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.one()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.one()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.one()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.one()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.one()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        self.one()?;
        while list.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.one()?;
        let mut keys = HashSet::new();
        while self.has_unique_keys
            && let Some(key) = map.next_key::<String>()?
        {
            if keys.contains(&key) {
                return Err(A::Error::custom(format!("the key `{}` is duplicated", key.escape_debug())));
            }
            keys.insert(key);
            map.next_value_seed(self)?;
        }
        while !self.has_unique_keys && map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_at_every_depth_are_counted() {
        let text = br#"{"a": [1, -2, 0.5, "x", true, null, []], "b": {"c": {}}}"#;
        assert!(check(text, 11).is_ok());
        assert!(check(text, 10).unwrap_err().to_string().starts_with("it has more than 10 values"));
        let twice = br#"{"a": {"b": 1, "b": 2}}"#;
        assert!(check(twice, 10).is_ok() && check_keys(text, 11).is_ok() && check_keys(text, 10).is_err());
        assert!(check_keys(twice, 10).unwrap_err().to_string().starts_with("the key `b` is duplicated"));
        assert!(check(b"[1,", 10).is_err() && check(&b"[".repeat(100_000), 1 << 20).is_err());
    }
}
