//! From bytes to checked documents. Every error names the field.

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Refusal,
    document::{Document, NodeDocument, ServiceDocument},
};

/// Most documents of one file.
pub const MAX_DOCUMENTS: usize = 10_000;
/// Most YAML nodes of one file: more than 4 MiB of the densest text hold.
const MAX_YAML_NODES: usize = 2_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
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
pub fn documents(bytes: &[u8], format: Format) -> Result<Vec<Parsed>, Refusal> {
    let values = values(bytes, format)?;
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
    let parsed = values.into_iter().enumerate().map(|(index, value)| {
        document(value)
            .map_err(|refusal| if several { refusal.inside(&format!("document {}", index + 1)) } else { refusal })
    });
    parsed.collect()
}

/// The one service document of a request.
///
/// # Errors
/// A refusal that names the field at fault.
pub fn service(bytes: &[u8], format: Format) -> Result<ServiceDocument, Refusal> {
    match document(value(bytes, format)?)?.document {
        Document::Service(document) => Ok(*document),
        Document::Node(_) => Err(Refusal::invalid("kind", "a SteeredService is wanted here, not a Node")),
    }
}

/// The one node document of a request.
///
/// # Errors
/// A refusal that names the field at fault.
pub fn node(bytes: &[u8], format: Format) -> Result<NodeDocument, Refusal> {
    match document(value(bytes, format)?)?.document {
        Document::Node(document) => Ok(*document),
        Document::Service(_) => Err(Refusal::invalid("kind", "a Node is wanted here, not a SteeredService")),
    }
}

/// One value of any shape: a merge patch, or the body of an action for [`typed`].
///
/// # Errors
/// When there is none, or more than one, or it is neither YAML nor JSON.
pub fn value(bytes: &[u8], format: Format) -> Result<Value, Refusal> {
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

fn values(bytes: &[u8], format: Format) -> Result<Vec<Value>, Refusal> {
    match format {
        Format::Json => json(bytes),
        Format::Yaml => yaml(bytes),
        Format::Auto if matches!(bytes.trim_ascii_start().first(), Some(b'{' | b'[')) => {
            // A YAML mapping in braces starts like JSON too.
            json(bytes).or_else(|refusal| yaml(bytes).map_err(|_| refusal))
        }
        Format::Auto => yaml(bytes),
    }
}

fn json(bytes: &[u8]) -> Result<Vec<Value>, Refusal> {
    let values = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
    values.collect::<Result<_, _>>().map_err(|error| Refusal::malformed(format!("this is not JSON: {error}")))
}

fn yaml(bytes: &[u8]) -> Result<Vec<Value>, Refusal> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| Refusal::malformed(format!("this is not text in UTF-8: {error}")))?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 2 * MAX_YAML_NODES,
            max_nodes: MAX_YAML_NODES,
            max_documents: MAX_DOCUMENTS + 1,
        },
        strict_booleans: true,
    };
    serde_saphyr::from_multiple_with_options(text, options)
        .map_err(|error| Refusal::malformed(format!("this is not YAML: {}", error.without_snippet())))
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

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = r#"
apiVersion: sluice.dev/v1
kind: SteeredService
metadata: {name: shop, labels: {team: web}}
spec:
  frontends: ["10.96.0.10:80", "[fd00:96::10]:80", "10.96.0.10:53/udp"]
  balance: spread
  onNoBackend: refuse
  minReadyPercent: 0
  groups:
  - {name: stable, weight: 95}
  - {name: canary, weight: 5}
  backends:
  - {name: n1, address: "10.0.0.1:8080", node: node-1, group: stable, weight: 100}
  - {name: n2, address: "10.0.0.2:8080", node: node-2, group: canary}
"#;

    fn refused(text: &str) -> String {
        documents(text.as_bytes(), Format::Auto).unwrap_err().to_string()
    }

    #[test]
    fn documents_are_read_from_yaml_and_json_and_hash_the_same() {
        let node = "apiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: node-1}\n";
        let several = format!("# a comment\n---\n{SHOP}---\n{node}---\n");
        let parsed = documents(several.as_bytes(), Format::Auto).unwrap();
        let keys: Vec<_> = parsed.iter().map(|parsed| parsed.document.key()).collect();
        assert_eq!(keys, ["service/shop", "node/node-1"]);

        let value = value(SHOP.as_bytes(), Format::Yaml).unwrap();
        let json = serde_json::to_vec_pretty(&value).unwrap();
        for format in [Format::Json, Format::Auto, Format::Yaml] {
            assert_eq!(documents(&json, format).unwrap(), parsed[..1], "{format:?}");
        }
        let braces = b"{apiVersion: sluice.dev/v1, kind: Node, metadata: {name: node-1}}";
        assert_eq!(documents(braces, Format::Auto).unwrap(), parsed[1..]);

        let status = format!("{SHOP}status: {{generation: 7}}\n");
        assert_eq!(documents(status.as_bytes(), Format::Yaml).unwrap(), parsed[..1]);
        let other = SHOP.replace("weight: 95", "weight: 96");
        assert_ne!(documents(other.as_bytes(), Format::Yaml).unwrap()[0].hash, parsed[0].hash);
    }

    #[test]
    fn what_is_no_document_is_refused() {
        for (text, why) in [
            ("", "there is no document here"),
            ("\n# only a comment\n", "there is no document here"),
            ("---\n---\n", "there is no document here"),
            ("just text", "not a text"),
            ("[1, 2]", "not a list"),
            ("- a\n- b\n", "not a list"),
            ("{}", "kind: is missing"),
            ("kind: [Node]", "kind: must be SteeredService or Node, not a list"),
            (
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: shop}\n",
                "kind: must be SteeredService or Node, not \"Deployment\"",
            ),
            ("{\"kind\": \"Node\"", "this is not JSON: EOF"),
            ("apiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: no", "this is not YAML"),
            ("kind: Node\nkind: Node\n", "this is not YAML: "),
            ("a: b: c\n", "this is not YAML"),
            ("kind: Node\n\tmetadata: 1\n", "this is not YAML"),
        ] {
            let refusal = refused(text);
            assert!(refusal.contains(why) && !refusal.contains('\n'), "{text:?}: {refusal}");
        }
        let refusal = documents(b"\xff\xfe", Format::Auto).unwrap_err().to_string();
        assert!(refusal.contains("UTF-8"), "{refusal}");
    }

    #[test]
    fn a_refusal_names_the_field() {
        for (from, to, why) in [
            ("sluice.dev/v1", "sluice.dev/v2", "apiVersion: unknown variant `sluice.dev/v2`, expected `sluice.dev/v1`"),
            ("balance: spread", "balanse: spread", "spec.balanse: unknown field `balanse`"),
            ("balance: spread", "balance: even", "spec.balance: unknown variant `even`"),
            ("{name: shop, labels", "{name: Shop, labels", "metadata.name: \"Shop\" is no name"),
            (
                "{name: shop, labels",
                "{name: 7, labels",
                "metadata.name: invalid type: integer `7`, expected a name (text; quote it",
            ),
            ("{name: shop, labels", "{name: node, labels", "metadata.name: \"node\" cannot name a service"),
            ("{name: shop, labels", "{labels", "metadata.name: missing field `name`"),
            ("{team: web}", "{\"\": web}", "metadata.labels: a label's key must not be empty"),
            ("{team: web}", "{team: 7}", "metadata.labels.team: invalid type: integer"),
            ("  frontends:", "  fronts:", "spec.fronts: unknown field `fronts`"),
            ("10.96.0.10:80\"", "10.96.0.10:0\"", "spec.frontends[0]: port 0"),
            ("10.96.0.10:80\"", "0.0.0.0:80\"", "spec.frontends[0]: 0.0.0.0 is the unspecified"),
            ("10.96.0.10:80\"", "shop:80\"", "spec.frontends[0]: \"shop:80\" is no frontend"),
            ("[fd00:96::10]:80", "[::ffff:10.96.0.10]:80", "spec.frontends[1]: 10.96.0.10:80 stands here twice"),
            (
                "minReadyPercent: 0",
                "minReadyPercent: 101",
                "spec.minReadyPercent: a percentage is a whole number from 0 to 100, not 101",
            ),
            ("weight: 95", "weight: -1", "spec.groups[0].weight: a weight is a whole number from 0 to 1000000, not -1"),
            ("name: canary, w", "name: stable, w", "spec.groups[1].name: \"stable\" names two groups"),
            (
                "weight: 100",
                "weight: 1000001",
                "spec.backends[0].weight: a weight is a whole number from 0 to 1000000, not 1000001",
            ),
            ("weight: 100", "weight: 99999999999999999999999999", "spec.backends[0].weight: a weight is"),
            (
                "weight: 100",
                "weight: 0.5",
                "spec.backends[0].weight: a weight is a whole number from 0 to 1000000, not 0.5",
            ),
            (
                "weight: 100",
                "weight: heavy",
                "spec.backends[0].weight: invalid type: string \"heavy\", expected a weight",
            ),
            ("weight: 100", "wieght: 100", "spec.backends[0].wieght: unknown field `wieght`"),
            ("10.0.0.2:8080", "10.0.0.2:0", "spec.backends[1].address: port 0"),
            ("10.0.0.2:8080", "224.0.0.2:80", "spec.backends[1].address: 224.0.0.2 is a multicast"),
            ("10.0.0.2:8080", "[fd00::2]:8080", "spec.backends[1].address: frontend 10.96.0.10:80 is IPv4"),
            ("name: n2", "name: n1", "spec.backends[1].name: \"n1\" also names spec.backends[0]"),
            (", group: canary", ", group: blue", "spec.backends[1].group: \"blue\" is none of spec.groups"),
            (", group: canary", "", "spec.backends[1].group: the service has several groups"),
            ("node: node-2", "node: \"node 2\"", "spec.backends[1].node: \"node 2\" is no name"),
            ("name: n2, ", "", "spec.backends[1].name: missing field `name`"),
        ] {
            let text = SHOP.replacen(from, to, 1);
            assert_ne!(text, SHOP, "{from}");
            assert!(refused(&text).starts_with(why), "{to:?}: {}", refused(&text));
        }
    }

    #[test]
    fn a_half_written_document_is_refused() {
        let end = SHOP.find("  - {name: n1").unwrap();
        for (length, why) in [
            (SHOP.find("kind").unwrap(), "kind: is missing"),
            (SHOP.find("spec").unwrap(), "spec: missing field"),
            (SHOP.find("  groups").unwrap(), "spec.backends: missing field"),
            (SHOP.find("  backends").unwrap(), "spec.backends: missing field"),
            (end, "spec.backends: invalid type: null"),
            (end + 20, "this is not YAML"),
        ] {
            let refusal = refused(&SHOP[..length]);
            assert!(refusal.starts_with(why), "{length}: {refusal}");
        }
    }

    #[test]
    fn address_families_must_fit() {
        for (frontend, backend, fits) in [
            ("10.0.0.9:80", "10.0.0.1:80", true),
            ("10.0.0.9:80", "[fd00::1]:80", false),
            ("10.0.0.9:80/udp", "[fd00::1]:80", false),
            ("[fd00::9]:80", "10.0.0.1:80", true),
            ("[fd00::9]:80", "[fd00::1]:80", true),
            ("[fd00::9]:80/udp", "10.0.0.1:80", false),
            ("[fd00::9]:80/udp", "[::ffff:10.0.0.1]:80", false),
            ("[fd00::9]:80/udp", "[fd00::1]:80", true),
            ("[::ffff:10.0.0.9]:80", "10.0.0.1:80", true),
        ] {
            let text = format!(
                "{{apiVersion: sluice.dev/v1, kind: SteeredService, metadata: {{name: shop}}, \
                 spec: {{frontends: [\"{frontend}\"], backends: [{{name: n1, address: \"{backend}\"}}]}}}}"
            );
            let found = documents(text.as_bytes(), Format::Auto);
            assert_eq!(found.is_ok(), fits, "{frontend} -> {backend}: {found:?}");
        }
    }

    #[test]
    fn limits_hold() {
        let backend = |index: usize| {
            format!("  - {{name: b{index}, address: \"10.1.{}.{}:80\"}}\n", index / 250, index % 250 + 1)
        };
        let head = &SHOP[..SHOP.find("  groups").unwrap()];
        let with = |count| format!("{head}  backends:\n{}", (0..count).map(backend).collect::<String>());
        assert!(documents(with(10_000).as_bytes(), Format::Yaml).is_ok());
        assert_eq!(refused(&with(10_001)), "spec.backends: 10001 backends; a service has at most 10000");

        let frontends: Vec<_> = (1..=65).map(|port| format!("\"10.9.0.1:{port}\"")).collect();
        let from = "\"10.96.0.10:80\", \"[fd00:96::10]:80\", \"10.96.0.10:53/udp\"";
        let text = SHOP.replace(from, &frontends.join(","));
        assert_eq!(refused(&text), "spec.frontends: 65 frontends; a service has at most 64");
        assert!(refused(&SHOP.replace(from, "")).starts_with("spec.frontends: a service needs at least one"));

        let node = "---\napiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: node-1}\n";
        assert_eq!(documents(node.repeat(10_000).as_bytes(), Format::Yaml).unwrap().len(), 10_000);
        assert!(documents(node.repeat(10_002).as_bytes(), Format::Yaml).is_err());
        let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
        assert!(documents(deep.as_bytes(), Format::Auto).is_err());
    }

    #[test]
    fn one_document_is_wanted_where_one_is() {
        let node = "apiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: node-1}\n";
        assert!(service(SHOP.as_bytes(), Format::Yaml).is_ok());
        assert_eq!(service(node.as_bytes(), Format::Yaml).unwrap_err().field.as_deref(), Some("kind"));
        assert!(super::node(node.as_bytes(), Format::Yaml).is_ok());
        let two = format!("{node}---\n{SHOP}");
        assert!(service(two.as_bytes(), Format::Yaml).unwrap_err().message.contains("2 documents"));
        let refusal = documents(two.replace(":8080", ":0").as_bytes(), Format::Yaml).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("document 2: spec.backends[0].address"));
    }
}
