//! JSON text to values. An object that has a name twice is refused: readers differ in which of the two they take.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

use super::Refusal;

/// All values of a text, in its order.
///
/// # Errors
/// When it is not JSON; with the line.
pub fn values(bytes: &[u8]) -> Result<Vec<Value>, Refusal> {
    let values = serde_json::Deserializer::from_slice(bytes).into_iter::<Unambiguous>();
    let values = values.map(|value| value.map(|Unambiguous(value)| value));
    values.collect::<Result<_, _>>().map_err(|error| Refusal::malformed(format!("this is not JSON: {error}")))
}

struct Unambiguous(Value);

impl<'de> Deserialize<'de> for Unambiguous {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UnambiguousVisitor).map(Self)
    }
}

struct UnambiguousVisitor;

impl<'de> Visitor<'de> for UnambiguousVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Unambiguous(value)) = items.next_element()? {
            values.push(value);
        }
        Ok(values.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut values = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if values.contains_key(&name) {
                return Err(A::Error::custom(format!("{name:?} stands twice in one object")));
            }
            let Unambiguous(value) = fields.next_value()?;
            values.insert(name, value);
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_that_stand_there() {
        let text = r#"{"a": [null, true, -1, 18446744073709551615, 1.5, "x\u00e4", {"a": {"a": []}}]} {} 7"#;
        let all: Vec<Value> = serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().unwrap();
        assert_eq!(values(text.as_bytes()).unwrap(), all);
        let deep = "[".repeat(200) + &"]".repeat(200);
        assert!(values(deep.as_bytes()).unwrap_err().message.contains("recursion"), "as deep as serde_json lets it be");
    }

    #[test]
    fn a_name_that_stands_twice_is_refused_wherever_it_does() {
        for text in [r#"{"weight": 5, "weight": 50}"#, r#"[1, {"x": {"weight": 1, "a": 2, "weight": 1}}]"#] {
            let refusal = values(text.as_bytes()).unwrap_err();
            assert!(refusal.message.contains("\"weight\" stands twice in one object at line 1"), "{refusal}");
        }
    }
}
