//! A value of a type with every field, by its deserialization: for checks that a table has all of them. Pure.

use serde::de::value::{Error, StrDeserializer};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess, Visitor};

/// The value of every text, and the key of every map.
const TEXT: &str = "text";
/// The value of every number.
const NUMBER: u8 = 7;

/// A value with every optional field, one item in each list, and the first variant of each enum; `None` where a type refuses these.
pub(crate) fn example<S: DeserializeOwned>() -> Option<S> {
    S::deserialize(Example).ok()
}

struct Example;

macro_rules! numbers {
    ($($name:ident)*) => {
        $(fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            visitor.visit_u8(NUMBER)
        })*
    };
}

impl<'de> Deserializer<'de> for Example {
    type Error = Error;

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
        deserialize_f32 deserialize_f64
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(TEXT)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_bool(true)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items(1))
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, count: usize, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_seq(Items(count))
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_map(Members(&[TEXT]))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_map(Members(fields))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        text(variants.first().copied().unwrap_or_default()).deserialize_enum(name, variants, visitor)
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

fn text(text: &'static str) -> StrDeserializer<'static, Error> {
    text.into_deserializer()
}

/// This many items.
struct Items(usize);

impl<'de> SeqAccess<'de> for Items {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some(rest) = self.0.checked_sub(1) else { return Ok(None) };
        self.0 = rest;
        seed.deserialize(Example).map(Some)
    }
}

/// The members with these names.
struct Members(&'static [&'static str]);

impl<'de> MapAccess<'de> for Members {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((name, rest)) = self.0.split_first() else { return Ok(None) };
        self.0 = rest;
        seed.deserialize(text(name)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        seed.deserialize(Example)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Serialize};
    use serde_json::{Value, json};

    use super::*;

    #[derive(Serialize, Deserialize)]
    enum Routing {
        Canary,
        Linear,
    }

    #[derive(Serialize, Deserialize)]
    struct Inner {
        #[serde(rename = "type")]
        kind: String,
        weight: Option<f64>,
        routing: Vec<Routing>,
    }

    #[derive(Serialize, Deserialize)]
    struct Outer {
        on: bool,
        size: i32,
        pair: (u32, String),
        inner: Option<Inner>,
        document: Value,
        #[serde(default)]
        named: BTreeMap<String, Inner>,
    }

    #[test]
    fn an_example_has_every_field() {
        let inner = json!({ "type": TEXT, "weight": 7.0, "routing": ["Canary"] });
        let outer = json!({
            "on": true, "size": 7, "pair": [7, TEXT], "inner": inner, "document": TEXT, "named": { TEXT: inner },
        });
        let found: Outer = example().expect("it takes the example");
        assert_eq!(serde_json::to_value(found).expect("a document"), outer);
    }
}
