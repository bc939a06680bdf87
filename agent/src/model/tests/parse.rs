//! Documents that are read, and those that are refused with the field at fault.

use proptest::prelude::*;

use super::{Change, Document, Origin, Outcome, World};
use crate::model::parse::{self, DocumentFormat, documents, service, value};

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
    documents(text.as_bytes(), DocumentFormat::Auto).unwrap_err().to_string()
}

#[test]
fn a_field_that_stands_twice_is_refused_in_every_format() {
    let json = r#"{"apiVersion": "sluice.dev/v1", "kind": "Node", "metadata": {"name": "a", "name": "b"}}"#;
    for format in [DocumentFormat::Auto, DocumentFormat::Json] {
        let refusal = documents(json.as_bytes(), format).unwrap_err().to_string();
        assert!(refusal.contains("\"name\" stands twice in one object"), "{refusal}");
    }
    for text in [json, "apiVersion: sluice.dev/v1\nkind: Node\nmetadata:\n  name: a\n  name: b\n"] {
        let refusal = documents(text.as_bytes(), DocumentFormat::Yaml).unwrap_err().to_string();
        assert!(refusal.contains("name"), "{refusal}");
    }
}

#[test]
fn documents_are_read_from_yaml_and_json_and_hash_the_same() {
    let node = "apiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: node-1}\n";
    let several = format!("# a comment\n---\n{SHOP}---\n{node}---\n");
    let parsed = documents(several.as_bytes(), DocumentFormat::Auto).unwrap();
    let keys: Vec<_> = parsed.iter().map(|parsed| parsed.document.key().to_string()).collect();
    assert_eq!(keys, ["service/shop", "node/node-1"]);

    let value = value(SHOP.as_bytes(), DocumentFormat::Yaml).unwrap();
    let json = serde_json::to_vec_pretty(&value).unwrap();
    for format in [DocumentFormat::Json, DocumentFormat::Auto, DocumentFormat::Yaml] {
        assert_eq!(documents(&json, format).unwrap(), parsed[..1], "{format:?}");
    }
    let braces = b"{apiVersion: sluice.dev/v1, kind: Node, metadata: {name: node-1}}";
    assert_eq!(documents(braces, DocumentFormat::Auto).unwrap(), parsed[1..]);

    let status = format!("{SHOP}status: {{generation: 7}}\n");
    assert_eq!(documents(status.as_bytes(), DocumentFormat::Yaml).unwrap(), parsed[..1]);
    let other = SHOP.replace("weight: 95", "weight: 96");
    assert_ne!(documents(other.as_bytes(), DocumentFormat::Yaml).unwrap()[0].hash, parsed[0].hash);
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
    let refusal = documents(b"\xff\xfe", DocumentFormat::Auto).unwrap_err().to_string();
    assert!(refusal.contains("UTF-8"), "{refusal}");
}

#[test]
fn a_refusal_names_the_field() {
    for (from, to, why) in [
        ("sluice.dev/v1", "sluice.dev/v2", "apiVersion: unknown variant `sluice.dev/v2`, expected `sluice.dev/v1`"),
        ("balance: spread", "balanse: spread", "spec.balanse: unknown field `balanse`"),
        ("balance: spread", "balance: even", "spec.balance: unknown variant `even`"),
        ("{name: shop, labels", "{name: Shop, labels", "metadata.name: \"Shop\" is no name"),
        ("{name: shop, labels", "{name: 7, labels", "metadata.name: a name (text; quote it"),
        ("{name: shop, labels", "{name: node, labels", "metadata.name: \"node\" cannot name a service"),
        ("{name: shop, labels", "{labels", "metadata.name: missing field `name`"),
        ("{team: web}", "{\"\": web}", "metadata.labels: a label's key must not be empty"),
        ("{team: web}", "{team: 7}", "metadata.labels.team: a text is wanted here, not 7"),
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
            "spec.backends[0].weight: a weight is a whole number from 0 to 1000000, not \"heavy\"",
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
fn a_header_in_a_wrong_place_is_refused_without_what_it_says() {
    for (wrong, why) in [
        (r#"headers: "Authorization: Bearer s3cret""#, "spec.readiness.headers: a mapping is wanted here, not a text"),
        (
            r#"headers: "Bearer s3cret, expected s3cret""#,
            "spec.readiness.headers: a mapping is wanted here, not a text",
        ),
        (
            r#"headers: ["Authorization: Bearer s3cret"]"#,
            "spec.readiness.headers: a mapping is wanted here, not a list",
        ),
        ("headers: {X-Key: 5318008}", "spec.readiness.headers.X-Key: a text is wanted here, not a number"),
        (r#"headers: {"X-Key: s3cret": 1}"#, "spec.readiness.headers: a text is wanted here, not a number"),
        (r#"headers: {"X-Key: s3cret": x}"#, "spec.readiness.headers: one of them has no name of a header"),
        (r#"headers: {X: x}, "X-Key: s3cret": x"#, "spec.readiness: what stands here is no name of a field, expected"),
        (
            r#"headers: {X: x}, "X `, expected `s3cret`, `": x"#,
            "spec.readiness: what stands here is no name of a field",
        ),
        ("X-Key: s3cret", "spec.readiness.X-Key: unknown field `X-Key`"),
    ] {
        let readiness = format!("  readiness: {{kind: http, path: /, {wrong}}}\n  balance: spread");
        let said = refused(&SHOP.replacen("  balance: spread", &readiness, 1));
        assert!(said.starts_with(why) && !said.contains("s3cret") && !said.contains("5318008"), "{wrong}: {said}");
    }
    let said = refused("\"X-Key: s3cret\": x\nkind: Node\napiVersion: sluice.dev/v1\nmetadata: {name: a}\n");
    assert!(said.starts_with("what stands here is no name of a field") && !said.contains("s3cret"), "{said}");
}

#[test]
fn a_half_written_document_is_refused() {
    let end = SHOP.find("  - {name: n1").unwrap();
    for (length, why) in [
        (SHOP.find("kind").unwrap(), "kind: is missing"),
        (SHOP.find("spec").unwrap(), "spec: missing field"),
        (SHOP.find("  groups").unwrap(), "spec.backends: missing field"),
        (SHOP.find("  backends").unwrap(), "spec.backends: missing field"),
        (end, "spec.backends: a list is wanted here, not nothing"),
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
        let found = documents(text.as_bytes(), DocumentFormat::Auto);
        assert_eq!(found.is_ok(), fits, "{frontend} -> {backend}: {found:?}");
    }
}

#[test]
fn limits_hold() {
    let backend =
        |index: usize| format!("  - {{name: b{index}, address: \"10.1.{}.{}:80\"}}\n", index / 250, index % 250 + 1);
    let head = &SHOP[..SHOP.find("  groups").unwrap()];
    let with = |count| format!("{head}  backends:\n{}", (0..count).map(backend).collect::<String>());
    assert!(documents(with(10_000).as_bytes(), DocumentFormat::Yaml).is_ok());
    assert_eq!(refused(&with(10_001)), "spec.backends: 10001 backends; a service has at most 10000");

    let frontends: Vec<_> = (1..=65).map(|port| format!("\"10.9.0.1:{port}\"")).collect();
    let from = "\"10.96.0.10:80\", \"[fd00:96::10]:80\", \"10.96.0.10:53/udp\"";
    let text = SHOP.replace(from, &frontends.join(","));
    assert_eq!(refused(&text), "spec.frontends: 65 frontends; a service has at most 64");
    assert!(refused(&SHOP.replace(from, "")).starts_with("spec.frontends: a service needs at least one"));

    let node = "---\napiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: node-1}\n";
    assert_eq!(documents(node.repeat(10_000).as_bytes(), DocumentFormat::Yaml).unwrap().len(), 10_000);
    assert!(documents(node.repeat(10_002).as_bytes(), DocumentFormat::Yaml).is_err());
    let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
    assert!(documents(deep.as_bytes(), DocumentFormat::Auto).is_err());
}

#[test]
fn one_document_is_wanted_where_one_is() {
    let node = "apiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: node-1}\n";
    assert!(service(SHOP.as_bytes(), DocumentFormat::Yaml).is_ok());
    assert_eq!(service(node.as_bytes(), DocumentFormat::Yaml).unwrap_err().field.as_deref(), Some("kind"));
    assert!(parse::node(node.as_bytes(), DocumentFormat::Yaml).is_ok());
    let two = format!("{node}---\n{SHOP}");
    assert!(service(two.as_bytes(), DocumentFormat::Yaml).unwrap_err().message.contains("2 documents"));
    let refusal = documents(two.replace(":8080", ":0").as_bytes(), DocumentFormat::Yaml).unwrap_err();
    assert_eq!((refusal.document, refusal.field.as_deref()), (Some(2), Some("spec.backends[0].address")));
    assert!(refusal.to_string().starts_with("document 2: spec.backends[0].address: "), "{refusal}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 256 } else { 10_000 }))]

    /// Damage anywhere gives documents or a refusal in one line; what is accepted comes back as it was written.
    #[test]
    fn damaged_text_is_read_or_refused(
        damage in prop::collection::vec((0..SHOP.len(), prop::option::of("[-a-z0-9:{}\\[\\]\",\n \t&*!#%.]")), 1..4),
    ) {
        let mut text = SHOP.to_owned();
        for (at, what) in damage {
            let at = at.min(text.len().saturating_sub(1));
            text.replace_range(at..at + 1, what.as_deref().unwrap_or(""));
        }
        match documents(text.as_bytes(), DocumentFormat::Auto) {
            Err(refusal) => prop_assert!(!refusal.to_string().contains('\n'), "{}", refusal),
            Ok(parsed) => for parsed in parsed {
                let Document::Service(document) = parsed.document else { continue };
                let put = |document| Change::PutService { document, origin: Origin::Api, if_match: None };
                let mut world = World::new();
                let Ok(outcome) = world.try_apply(&put(document.clone())) else { continue };
                prop_assert_eq!(outcome, Outcome::Created);
                let rendered = world.state.document(world.service(document.metadata.name.as_str()));
                prop_assert_eq!(world.apply(&put(Box::new(rendered))), Outcome::Unchanged);
            }
        }
    }
}

#[test]
fn a_list_stands_for_its_documents() {
    let read = |text: &str| parse::documents(text.as_bytes(), parse::DocumentFormat::Auto);
    let keys =
        |text: &str| -> Vec<_> { read(text).unwrap().iter().map(|parsed| parsed.document.key().to_string()).collect() };
    let node =
        |name: &str| format!("{{apiVersion: sluice.dev/v1, kind: Node, metadata: {{name: {name}}}, status: {{x: 1}}}}");
    assert_eq!(keys(&format!("items:\n- {}\n- {}\n", node("a"), node("b"))), ["node/a", "node/b"]);
    let kube = format!("apiVersion: v1\nkind: List\nmetadata: {{}}\nitems: [{}]\n---\n{}\n", node("a"), node("b"));
    assert_eq!(keys(&kube), ["node/a", "node/b"]);
    for (text, why) in [
        ("items: []", "there is no document here"),
        ("items: 5", "a document is a mapping with apiVersion, kind and metadata, not a number"),
        ("{items: [{kind: drain}]}", "kind: must be SteeredService or Node, not \"drain\""),
        ("{items: [], other: 1}", "kind: is missing"),
    ] {
        let refusal = read(text).unwrap_err().to_string();
        assert!(refusal.contains(why), "{text}: {refusal}");
    }
    let second = format!("items: [{}, {{kind: Node}}]", node("a"));
    assert!(read(&second).unwrap_err().to_string().starts_with("document 2: "), "{:?}", read(&second));
}
