//! From file events to the state, with the store in between.

use std::{collections::BTreeMap, path::Path};

use serde_json::json;

use super::{node_yaml, yaml};
use crate::{
    model::{
        Change, Origin, State,
        document::DocumentKey,
        parse::{self, ContentHash, DocumentFormat},
        tests::{LIMITS, at, delete, force, name, patch_backend, put, shop},
    },
    source::{
        files::FileEvent,
        reconcile::{Excluded, Reconciled, Reconciler},
    },
};

/// Events that meet a state, over restarts.
struct Scene {
    state: State,
    marks: BTreeMap<String, BTreeMap<DocumentKey, ContentHash>>,
    reconciler: Reconciler,
}

fn changed(file: &str, documents: &[String]) -> FileEvent {
    let documents = parse::documents(documents.join("---\n").as_bytes(), DocumentFormat::Yaml).unwrap();
    FileEvent::Changed { file: file.into(), documents }
}

fn removed(file: &str) -> FileEvent {
    FileEvent::Removed { file: file.into() }
}

impl Scene {
    fn new() -> Self {
        Self { state: State::new(LIMITS), marks: BTreeMap::new(), reconciler: Reconciler::default() }
    }

    /// What the events came to, in problems.
    fn handle(&mut self, events: &[FileEvent]) -> Vec<String> {
        let marks = &self.marks;
        let applied = |file: &Path| Ok(marks.get(file.to_str().unwrap()).cloned().unwrap_or_default());
        let outcome = self.reconciler.handle(events, applied, &self.state, &Excluded::new(), at(0)).unwrap();
        self.keep(outcome)
    }

    fn keep(&mut self, outcome: Reconciled) -> Vec<String> {
        for mark in outcome.marks {
            let marks = self.marks.entry(mark.file.to_str().unwrap().to_owned()).or_default();
            match mark.hash {
                Some(hash) => drop(marks.insert(mark.document, hash)),
                None => drop(marks.remove(&mark.document)),
            }
        }
        self.state = outcome.state;
        let shown = |p: crate::source::reconcile::DocumentProblem| {
            let document = p.document.map(|key| key.to_string()).unwrap_or_default();
            format!("{} {document}: {}", p.file.display(), p.message)
        };
        outcome.problems.into_iter().map(shown).collect()
    }

    fn apply(&mut self, change: &Change) {
        self.state = self.state.apply(change, at(0)).unwrap().state;
    }

    fn restart(&mut self) {
        self.reconciler = Reconciler::default();
    }

    fn weight(&self, service: &str) -> Option<u32> {
        Some(self.state.service(service)?.backends[0].weight)
    }

    fn names(&self) -> Vec<&str> {
        self.state.services().map(|service| service.name.as_str()).collect()
    }

    fn origin(&self, service: &str) -> Origin {
        self.state.service(service).unwrap().origin.clone()
    }
}

#[test]
fn only_documents_that_changed_are_applied_again() {
    let mut scene = Scene::new();
    let both = |shop: u32, cart: u32| changed("/a", &[yaml("shop", 1, shop), yaml("cart", 2, cart)]);
    assert_eq!(scene.handle(&[both(10, 20)]), [""; 0]);
    assert_eq!((scene.weight("shop"), scene.weight("cart")), (Some(10), Some(20)));

    // What the API changed in between stays, over a restart too.
    scene.apply(&patch_backend("shop", "n1", json!({"weight": 5})));
    scene.apply(&force("shop/n1"));
    for _ in 0..2 {
        scene.handle(&[both(10, 20)]);
        assert_eq!(scene.weight("shop"), Some(5));
        scene.restart();
    }
    scene.handle(&[both(10, 21)]);
    assert_eq!((scene.weight("shop"), scene.weight("cart")), (Some(5), Some(21)));
    scene.handle(&[both(11, 21)]);
    assert_eq!(scene.weight("shop"), Some(11));
    assert!(scene.state.service("shop").unwrap().backends[0].zero.is_some(), "a zero survives");

    // What the API deleted comes back with its next content only.
    scene.apply(&delete("cart"));
    scene.handle(&[both(11, 21)]);
    assert_eq!(scene.names(), ["shop"]);
    scene.handle(&[both(11, 22)]);
    assert_eq!(scene.names(), ["cart", "shop"]);
}

#[test]
fn what_a_file_brought_goes_with_it() {
    let mut scene = Scene::new();
    scene.apply(&put("api", shop()));
    scene.handle(&[changed("/a", &[yaml("shop", 1, 1), yaml("cart", 2, 1), node_yaml("node-9")])]);
    scene.handle(&[changed("/b", &[yaml("news", 3, 1)])]);
    assert_eq!(scene.names(), ["api", "cart", "news", "shop"]);
    assert!(scene.state.node("node-9").unwrap().declared);
    // One document less, then the whole file.
    scene.handle(&[changed("/a", &[yaml("shop", 1, 1)])]);
    assert_eq!(scene.names(), ["api", "news", "shop"]);
    assert!(scene.state.node("node-9").is_none());
    scene.handle(&[removed("/a")]);
    assert_eq!(scene.names(), ["api", "news"]);
    assert!(scene.marks["/a"].is_empty());
    scene.handle(&[removed("/a")]);
    assert_eq!(scene.names(), ["api", "news"]);
}

#[test]
fn a_document_that_moves_keeps_its_ids() {
    let mut scene = Scene::new();
    let (shop, news) = (yaml("shop", 1, 1), yaml("news", 3, 1));
    let node = node_yaml("node-9");
    let ids = |scene: &Scene| {
        let service = scene.state.service("shop").unwrap();
        (service.id, service.backends[0].id, scene.state.node("node-9").unwrap().id)
    };
    scene.handle(&[changed("/a", &[shop.clone(), news.clone(), node.clone()])]);
    let before = ids(&scene);
    for (events, owner) in [
        // From one file to the next, and back, in one look whatever the order; with another content too.
        (vec![changed("/a", std::slice::from_ref(&news)), changed("/b", &[shop.clone(), node.clone()])], "/b"),
        (vec![changed("/a", &[shop.clone(), news.clone(), node.clone()]), removed("/b")], "/a"),
        (vec![changed("/a", std::slice::from_ref(&news)), changed("/b", &[yaml("shop", 1, 7), node.clone()])], "/b"),
        // The file is renamed: its new name is seen first, and its old one is missed later.
        (vec![changed("/c", &[yaml("shop", 1, 7), node.clone()])], "/c"),
        (vec![removed("/b")], "/c"),
        // Renamed there and back before it is missed.
        (vec![changed("/d", &[yaml("shop", 1, 7), node.clone()])], "/d"),
        (vec![changed("/c", &[yaml("shop", 1, 7), node.clone()])], "/c"),
        (vec![removed("/d")], "/c"),
    ] {
        assert_eq!(scene.handle(&events), [""; 0], "{events:?}");
        assert_eq!((ids(&scene), scene.origin("shop")), (before, Origin::File(owner.into())), "{events:?}");
        assert!(scene.state.node("node-9").unwrap().declared);
    }
    scene.handle(&[removed("/c")]);
    assert_eq!(scene.names(), ["news"]);
    assert!(scene.state.node("node-9").is_none());
}

#[test]
fn a_refused_document_leaves_the_others_and_is_tried_again() {
    let mut scene = Scene::new();
    scene.apply(&put("api", json!({"frontends": ["10.96.0.2:80"], "backends": []})));
    let problems = scene.handle(&[changed("/a", &[yaml("shop", 1, 1), yaml("cart", 2, 1)])]);
    assert_eq!(problems.len(), 1);
    assert!(
        problems[0].starts_with("/a service/cart: spec.frontends[0]: 10.96.0.2:80 is a frontend of api"),
        "{problems:?}"
    );
    assert_eq!(scene.names(), ["api", "shop"]);
    assert_eq!(scene.marks["/a"].len(), 1, "what was refused is not marked");

    // Refused again, it is not reported again.
    assert_eq!(scene.handle(&[changed("/b", &[node_yaml("node-1")])]), [""; 0]);
    assert!(scene.reconciler.retry(&scene.state, &Excluded::new(), at(0)).is_empty());
    scene.apply(&delete("api"));
    let outcome = scene.reconciler.retry(&scene.state, &Excluded::new(), at(0));
    scene.keep(outcome);
    assert_eq!(scene.names(), ["cart", "shop"]);
    assert_eq!(scene.origin("cart"), Origin::File("/a".into()));
    assert_eq!(scene.marks["/a"].len(), 2);
}

#[test]
fn the_order_of_documents_does_not_matter() {
    let mut scene = Scene::new();
    scene.handle(&[changed("/a", &[yaml("a", 1, 1), yaml("b", 2, 1), yaml("c", 3, 1)])]);
    // Each takes the frontend that the next gives up.
    let moved = [yaml("a", 2, 1), yaml("b", 3, 1), yaml("c", 4, 1)];
    assert_eq!(scene.handle(&[changed("/a", &moved)]), [""; 0]);
    // A service gets another name and keeps the frontend; across files too.
    assert_eq!(scene.handle(&[changed("/a", &[yaml("a", 2, 1), yaml("d", 3, 1), yaml("c", 4, 1)])]), [""; 0]);
    let events = [changed("/b", &[yaml("e", 4, 1)]), changed("/a", &[yaml("a", 2, 1), yaml("d", 3, 1)])];
    assert_eq!(scene.handle(&events), [""; 0]);
    assert_eq!(scene.names(), ["a", "d", "e"]);
    // Two exchange theirs, beside one that cannot be applied.
    let events = [changed("/a", &[yaml("a", 3, 1), yaml("d", 2, 1), yaml("f", 4, 1)])];
    let problems = scene.handle(&events);
    assert!(problems.len() == 1 && problems[0].starts_with("/a service/f: spec.frontends[0]"), "{problems:?}");
    let frontend = |name: &str| scene.state.service(name).unwrap().frontends[0].to_string();
    assert_eq!((frontend("a"), frontend("d")), ("10.96.0.3:80".to_owned(), "10.96.0.2:80".to_owned()));
}

#[test]
fn a_bad_file_is_a_problem_and_changes_nothing() {
    let mut scene = Scene::new();
    scene.handle(&[changed("/a", &[yaml("shop", 1, 1)])]);
    let problems = scene.handle(&[FileEvent::Failed { file: "/a".into(), error: "half of it is missing".into() }]);
    assert_eq!(problems, ["/a : half of it is missing"]);
    assert_eq!(scene.names(), ["shop"]);
}

#[test]
fn two_files_that_declare_a_node_hold_it_together() {
    let mut scene = Scene::new();
    scene.handle(&[changed("/a", &[node_yaml("node-1")])]);
    // Only one of them at a time can be good; the other takes over.
    scene.handle(&[removed("/a"), changed("/b", &[node_yaml("node-1")])]);
    assert!(scene.state.node("node-1").unwrap().declared);
    scene.apply(&Change::UndeclareNode { node: name("node-1") });
    scene.handle(&[removed("/b")]);
    assert!(scene.state.node("node-1").is_none());
}

#[test]
#[ignore = "prints measurements: run with --release -- --ignored --nocapture"]
fn measurements_of_ten_thousand_services_from_files() {
    use crate::source::{
        files::Files,
        store::{Batch, Store},
    };
    use std::{fmt::Write, fs, time::Instant};
    let memory = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let lines = status.lines().filter(|line| line.starts_with("VmHWM") || line.starts_with("VmRSS"));
        lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
    };
    for extension in ["json", "yaml"] {
        let root = tempfile::tempdir_in("/var/tmp").unwrap();
        for file in 0..5 {
            let mut text = String::new();
            for index in file * 2_000..(file + 1) * 2_000 {
                let (high, low) = (index / 250, index % 250 + 1);
                let backends = (0..10).map(|k| {
                    format!(
                        r#"{{"name": "backend-{k}", "address": "10.{}.{high}.{low}:8080", "node": "node-{k}"}}"#,
                        100 + k
                    )
                });
                let backends = backends.collect::<Vec<_>>().join(",\n");
                let separator = if extension == "yaml" { "---" } else { "" };
                writeln!(
                    text,
                    r#"{separator}
{{"apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {{"name": "service-{index}"}}, "spec":
{{"frontends": ["10.96.{high}.{low}:80"], "backends": [{backends}]}}}}"#
                )
                .unwrap();
            }
            fs::write(root.path().join(format!("{file}.{extension}")), text).unwrap();
        }
        let (mut store, state) = Store::open(&root.path().join("state"), LIMITS, false).unwrap();
        println!("{extension}: before {}", memory());
        let start = Instant::now();
        let events = Files::new(root.path(), []).unwrap().scan(start);
        println!("{extension}: read in {:?}, {}", start.elapsed(), memory());
        let start = Instant::now();
        let outcome =
            Reconciler::default().handle(&events, |file| store.applied(file), &state, &Excluded::new(), at(0)).unwrap();
        drop(events);
        println!("{extension}: applied in {:?}, {}", start.elapsed(), memory());
        let start = Instant::now();
        let batch = Batch { touched: &[outcome.touched], marks: &outcome.marks, ..Batch::default() };
        store.commit_batch(&outcome.state, batch).unwrap();
        println!("{extension}: kept in {:?}, {}", start.elapsed(), memory());
        assert_eq!(outcome.state.service_count(), 10_000, "{:?}", outcome.problems.first());
    }
}
