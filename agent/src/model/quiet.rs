//! Times of quiet, written as `2s` and held in milliseconds.

use std::fmt::Write;

use jiff::SignedDuration;
use serde::{Deserialize, Deserializer, Serializer, de};
use serde_json::Value;

use super::IdleClose;

const ADVICE: &str = "write a time from 100ms to 1h, such as 2s";

/// # Errors
/// A sentence that says what to write.
pub fn parse(text: &str) -> Result<u32, String> {
    let range = IdleClose::LEAST..=IdleClose::MOST;
    let quiet: Option<u32> = text.parse().ok().and_then(|time: SignedDuration| u32::try_from(time.as_millis()).ok());
    quiet.filter(|quiet| range.contains(quiet)).ok_or_else(|| format!("{text:?}: {ADVICE}"))
}

pub fn text(milliseconds: u32) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = match milliseconds % 1000 {
        0 => write!(text, "{}s", milliseconds / 1000),
        _ => write!(text, "{milliseconds}ms"),
    };
    text
}

pub fn serialize<S: Serializer>(quiet: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
    match quiet {
        Some(quiet) => serializer.serialize_str(&text(*quiet)),
        None => serializer.serialize_none(),
    }
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    let read = match Value::deserialize(deserializer)? {
        Value::Null => return Ok(None),
        Value::String(text) => parse(&text),
        other @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => {
            Err(format!("{other}: {ADVICE}"))
        }
    };
    read.map(Some).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_quiet_are_read_and_written() {
        for (written, milliseconds) in [("2s", 2000), ("100ms", 100), ("1500ms", 1500), ("3600s", 3_600_000)] {
            assert_eq!(parse(written), Ok(milliseconds));
            assert_eq!(text(milliseconds), written);
        }
        assert_eq!(parse("1m"), Ok(60_000));
        for wrong in ["", "0s", "99ms", "-2s", "2h", "2", "soon"] {
            assert!(parse(wrong).unwrap_err().contains("from 100ms to 1h"), "{wrong}");
        }
    }
}
