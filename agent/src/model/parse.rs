//! From bytes to checked documents. Every error names the field.

use hyper::header::HeaderName;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Refusal,
    document::{Document, NodeDocument, ServiceDocument},
    json, parallel,
    words::{discreetly, plainly},
    yaml,
};

/// Most documents of one file.
pub const MAX_DOCUMENTS: usize = 10_000;
/// For a thread to be worth its while.
const DOCUMENTS_AT_LEAST: usize = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DocumentFormat {
    Yaml,
    Json,
    /// JSON when it starts like JSON and is, else YAML.
    Auto,
}

/// A document and the hash of its content as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    pub document: Document,
    pub hash: ContentHash,
}

/// Tells whether a document's content changed: the same for the same values, whatever their order, layout or comments.
/// Values are taken as written, so that a default that a later version fills in changes no hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 16]);

impl ContentHash {
    fn of(value: &Value) -> Self {
        // FNV-1a, 128 bits: kept in the store, so it must never change with a library; the input is trusted.
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let step = |hash: u128, byte: u8| (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        Self(value.to_string().bytes().fold(BASIS, step).to_be_bytes())
    }
}

/// All documents of a file, at least one.
///
/// # Errors
/// A refusal whose field says in which document, when there are several.
pub fn documents(bytes: &[u8], format: DocumentFormat) -> Result<Vec<Parsed>, Refusal> {
    let values = unlisted(values(bytes, format)?);
    if values.is_empty() {
        return Err(Refusal::malformed(
            "there is no document here: write at least one, with apiVersion, kind and metadata",
        ));
    }
    if values.len() > MAX_DOCUMENTS {
        let message = format!("{} documents; a file has at most {MAX_DOCUMENTS}", values.len());
        return Err(Refusal::malformed(message));
    }
    let several = values.len() > 1;
    let parsed = parallel::map(values, DOCUMENTS_AT_LEAST, document).into_iter().zip(1..);
    let parsed = parsed
        .map(|(parsed, number)| parsed.map_err(|refusal| if several { refusal.of_document(number) } else { refusal }));
    parsed.collect()
}

/// The one service document of a request.
///
/// # Errors
/// A refusal that names the field at fault.
pub fn service(bytes: &[u8], format: DocumentFormat) -> Result<ServiceDocument, Refusal> {
    match document(value(bytes, format)?)?.document {
        Document::Service(document) => Ok(*document),
        Document::Node(_) => Err(Refusal::invalid("kind", "a SteeredService is wanted here, not a Node")),
    }
}

/// The one node document of a request.
///
/// # Errors
/// A refusal that names the field at fault.
pub fn node(bytes: &[u8], format: DocumentFormat) -> Result<NodeDocument, Refusal> {
    match document(value(bytes, format)?)?.document {
        Document::Node(document) => Ok(*document),
        Document::Service(_) => Err(Refusal::invalid("kind", "a Node is wanted here, not a SteeredService")),
    }
}

/// One value of any shape: a merge patch, or the body of an action for [`typed`].
///
/// # Errors
/// When there is none, or more than one, or it is neither YAML nor JSON.
pub fn value(bytes: &[u8], format: DocumentFormat) -> Result<Value, Refusal> {
    let mut values = values(bytes, format)?;
    match (values.pop(), values.len()) {
        (Some(value), 0) => Ok(value),
        (None, _) => Err(Refusal::malformed("there is nothing here: one document is wanted")),
        (Some(_), more) => Err(Refusal::malformed(format!("{} documents; one is wanted", more + 1))),
    }
}

/// `value` as a `T`.
///
/// # Errors
/// A refusal that names the field at fault by its path.
pub fn typed<T: DeserializeOwned>(value: Value) -> Result<T, Refusal> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        if let Some(refusal) = discreet(&path, &message) {
            return refusal;
        }
        let message = plainly(&message);
        // serde reports a missing field at its parent.
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
        let field = match (path.as_str(), missing) {
            ("." | "", Some(missing)) => missing.to_owned(),
            (_, Some(missing)) => format!("{path}.{missing}"),
            ("." | "", None) => return Refusal::malformed(message),
            (_, None) => path,
        };
        Refusal::invalid(field, message)
    })
}

/// The refusal of what may have a secret in it, without the secret: a header of a probe that stands in a wrong place.
fn discreet(path: &str, message: &str) -> Option<Refusal> {
    if let Some((name, wanted)) = message.strip_prefix("unknown field `").and_then(|rest| rest.rsplit_once("`, ")) {
        let (name, wanted) = match name.rsplit_once("`, expected ") {
            Some((name, first)) => (name, format!("expected {first}`, {wanted}")),
            None => (name, wanted.to_owned()),
        };
        let is_name = !name.contains([':', '=', '`']);
        let place = path.strip_suffix(name).unwrap_or_default().trim_end_matches('.');
        let message = format!("what stands here is no name of a field, {wanted}");
        return (!is_name).then(|| match place {
            "" => Refusal::malformed(message),
            place => Refusal::invalid(place, message),
        });
    }
    let (before, after) = path.split_once("headers").filter(|(before, after)| {
        (before.is_empty() || before.ends_with('.')) && (after.is_empty() || after.starts_with('.'))
    })?;
    let is_name = HeaderName::try_from(after.trim_start_matches('.')).is_ok();
    let field = format!("{before}headers{}", if is_name { after } else { "" });
    Some(Refusal::invalid(field, discreetly(message)))
}

/// One document of any kind, checked.
///
/// # Errors
/// A refusal that names the field at fault.
pub fn document(value: Value) -> Result<Parsed, Refusal> {
    const KINDS: &str = "SteeredService or Node";
    let Value::Object(mut fields) = value else {
        let message = format!("a document is a mapping with apiVersion, kind and metadata, not {}", shape(&value));
        return Err(Refusal::malformed(message));
    };
    // The agent writes it when it is asked for a document. To give it back is no mistake, and means nothing.
    fields.remove("status");
    let kind = match fields.get("kind") {
        Some(Value::String(kind)) => kind.clone(),
        Some(other) => return Err(Refusal::invalid("kind", format!("must be {KINDS}, not {}", shape(other)))),
        None => return Err(Refusal::invalid("kind", format!("is missing: {KINDS}"))),
    };
    let value = Value::Object(fields);
    let hash = ContentHash::of(&value);
    let document = match kind.as_str() {
        "SteeredService" => {
            let document: ServiceDocument = typed(value)?;
            document.check()?;
            Document::Service(Box::new(document))
        }
        "Node" => {
            let document: NodeDocument = typed(value)?;
            document.check()?;
            Document::Node(Box::new(document))
        }
        other => return Err(Refusal::invalid("kind", format!("must be {KINDS}, not {other:?}"))),
    };
    Ok(Parsed { document, hash })
}

/// The same, with the items of each list of documents in its place: what a collection answers, or a `kind: List`.
fn unlisted(values: Vec<Value>) -> Vec<Value> {
    let is_list = |fields: &serde_json::Map<String, Value>| {
        let known = fields.keys().all(|field| matches!(field.as_str(), "apiVersion" | "kind" | "items" | "metadata"));
        known && fields.get("kind").is_none_or(|kind| kind.as_str().is_some_and(|kind| kind.ends_with("List")))
    };
    let mut documents = Vec::with_capacity(values.len());
    for value in values {
        if let Value::Object(mut fields) = value {
            let items = if is_list(&fields) { fields.remove("items") } else { None };
            match items {
                Some(Value::Array(items)) => documents.extend(items),
                Some(other) => documents.push(other),
                None => documents.push(Value::Object(fields)),
            }
        } else {
            documents.push(value);
        }
    }
    documents
}

fn values(bytes: &[u8], format: DocumentFormat) -> Result<Vec<Value>, Refusal> {
    match format {
        DocumentFormat::Json => json::values(bytes),
        DocumentFormat::Yaml => yaml::values(bytes, MAX_DOCUMENTS),
        DocumentFormat::Auto if matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')) => {
            // A YAML mapping in braces starts like JSON too.
            json::values(bytes).or_else(|refusal| yaml::values(bytes, MAX_DOCUMENTS).map_err(|_| refusal))
        }
        DocumentFormat::Auto => yaml::values(bytes, MAX_DOCUMENTS),
    }
}

fn shape(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}
