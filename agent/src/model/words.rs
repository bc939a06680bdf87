//! Numbers in words, and what libraries say in the words of this product.

use std::str::FromStr;

/// `1 connection`, `2 connections`.
pub fn plural(count: u64, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A whole number of an argument or a setting.
///
/// # Errors
/// What to write instead.
pub fn whole_number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| match text.parse::<u128>() {
        Ok(_) => format!("{text} is too large"),
        Err(_) => "write a whole number, as in 5".to_owned(),
    })
}

/// What serde or the standard library says of a value that is none of its type, without the names of types. Other
/// messages stay as they are.
pub fn plainly(message: &str) -> String {
    match message {
        "invalid digit found in string" | "cannot parse integer from empty string" => {
            return "write a whole number, as in 5".to_owned();
        }
        "number too large to fit in target type" | "number too small to fit in target type" => {
            return "the number is out of range".to_owned();
        }
        "provided string was not `true` or `false`" => return "write true or false".to_owned(),
        _ => {}
    }
    match mismatch(message) {
        Some((found, wanted)) => format!("{} is wanted here, not {}", wanted_value(wanted), found_value(found)),
        None => message.to_owned(),
    }
}

/// As [`plainly`], of a value that may be a secret: what it is, and not how it reads.
pub fn discreetly(message: &str) -> String {
    match mismatch(message) {
        Some((found, wanted)) => format!("{} is wanted here, not {}", wanted_value(wanted), found_kind(found)),
        None => plainly(message),
    }
}

/// What serde has found, and what it wanted.
fn mismatch(message: &str) -> Option<(&str, &str)> {
    let told = ["invalid type: ", "invalid value: "].iter().find_map(|begin| message.strip_prefix(begin))?;
    // What was found may have these words in it.
    told.rsplit_once(", expected ")
}

fn wanted_value(wanted: &str) -> String {
    let plain = match wanted {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0 on",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" | "string" | "a borrowed string" => "a text",
        "a sequence" => "a list",
        "a map" => "a mapping",
        wanted if wanted.starts_with("struct ") || wanted.starts_with("internally tagged enum ") => "a mapping",
        "string or map" => "one of its names",
        wanted if wanted.starts_with("enum ") => "one of its names",
        other => other,
    };
    plain.to_owned()
}

fn found_value(found: &str) -> String {
    match found {
        "null" | "unit value" | "Option value" => "nothing".to_owned(),
        "map" => "a mapping".to_owned(),
        "sequence" => "a list".to_owned(),
        other => match other.split_once(' ') {
            Some(("string", text)) => format!("the text {text}"),
            Some(("integer" | "boolean", value)) => value.trim_matches('`').to_owned(),
            Some(("floating", point)) => point.trim_start_matches("point ").trim_matches('`').to_owned(),
            _ => other.to_owned(),
        },
    }
}

fn found_kind(found: &str) -> String {
    match found.split(' ').next() {
        Some("string") => "a text".to_owned(),
        Some("integer" | "floating") => "a number".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        _ => found_value(found),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code)]
    enum Choice {
        One,
    }

    #[test]
    fn what_libraries_say_has_no_types_of_theirs() {
        fn of<T: for<'a> Deserialize<'a>>(value: Value) -> String {
            plainly(&serde_json::from_value::<T>(value).err().map(|error| error.to_string()).unwrap_or_default())
        }
        for (said, wanted) in [
            (of::<u16>(json!("x")), "a whole number from 0 to 65535 is wanted here, not the text \"x\""),
            (of::<u16>(json!(70_000)), "a whole number from 0 to 65535 is wanted here, not 70000"),
            (of::<u32>(json!(1.5)), "a whole number from 0 to 4294967295 is wanted here, not 1.5"),
            (of::<bool>(json!(5)), "true or false is wanted here, not 5"),
            (of::<String>(json!(null)), "a text is wanted here, not nothing"),
            (of::<Vec<u8>>(json!({})), "a list is wanted here, not a mapping"),
            (of::<BTreeMap<String, u8>>(json!([])), "a mapping is wanted here, not a list"),
            (of::<Choice>(json!("Two")), "unknown variant `Two`, expected `One`"),
            (plainly("5 is no weight"), "5 is no weight"),
        ] {
            assert_eq!(said, wanted);
        }
        for wrong in ["", "x", "-1", "1.5"] {
            let std = wrong.parse::<u16>().unwrap_err().to_string();
            assert_eq!(plainly(&std), whole_number::<u16>(wrong).unwrap_err(), "{wrong}");
        }
        assert_eq!(whole_number::<u16>("70000").unwrap_err(), "70000 is too large");
        assert_eq!(whole_number::<u16>("7"), Ok(7));
    }
}
