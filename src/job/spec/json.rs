//! Strict JSON: a key given twice is an error, not a silent choice of the last one.

use crate::job::Problems;
use serde::Deserialize;
use serde::de::{self, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// Reads a JSON document. Errors: syntax, a duplicate key, nesting deeper than the reader's 128 levels.
pub fn parse_json(bytes: &[u8]) -> Result<Value, Problems> {
    serde_json::from_slice::<Strict>(bytes).map(|strict| strict.0).map_err(|error| {
        Problems::one(
            "",
            format!("is not valid JSON: {}", crate::job::fields::shown(&error.to_string())),
            "correct the syntax",
        )
    })
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(Build).map(Strict)
    }
}

struct Build;

impl<'de> Visitor<'de> for Build {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::from(value))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }
    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::from(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if map.insert(key.clone(), value).is_some() {
                return Err(de::Error::custom(format_args!(
                    "the key `{}` is given twice",
                    crate::job::fields::shown(&key)
                )));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicate_keys_depth_and_overflow_are_refused() {
        assert_eq!(parse_json(br#"{"a":[1,"x",null,true,-1]}"#).expect("valid")["a"][1], "x");
        let twice = parse_json(br#"{"a":{"b":1,"b":2}}"#).expect_err("a key twice").to_string();
        assert!(twice.contains("`b` is given twice"), "{twice}");
        assert!(parse_json("[".repeat(10_000).as_bytes()).is_err());
        assert!(parse_json(br#"{"a":1e999}"#).is_err());
    }
}
