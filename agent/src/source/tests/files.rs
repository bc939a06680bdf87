//! What a look at files finds. Time is moved by hand.

use std::{
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{node_yaml, yaml};
use crate::source::files::{FileEvent, Files, GRACE, MAX_FILE};

/// A directory, what was seen of it, and the time.
struct Scene {
    root: tempfile::TempDir,
    files: Files,
    now: Instant,
}

impl Scene {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let files = Files::new(root.path(), []).unwrap();
        Self { root, files, now: Instant::now() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        // The stamp of a file may be as coarse as the kernel's tick.
        std::thread::sleep(Duration::from_millis(11));
        fs::write(self.path(name), text).unwrap();
    }

    /// Events, each as `FILE: KEYS`, `FILE! ERROR` or `-FILE`.
    fn scan(&mut self) -> Vec<String> {
        let root = self.root.path().to_owned();
        let name = |file: &Path| file.strip_prefix(&root).unwrap().display().to_string();
        let shown = |event: FileEvent| match event {
            FileEvent::Changed { file, documents } => {
                let keys: Vec<_> = documents.iter().map(|parsed| parsed.document.key().to_string()).collect();
                format!("{}: {}", name(&file), keys.join(" "))
            }
            FileEvent::Failed { file, error } => format!("{}! {error}", name(&file)),
            FileEvent::Removed { file } => format!("-{}", name(&file)),
        };
        self.files.scan(self.now).into_iter().map(shown).collect()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }
}

#[test]
fn a_look_finds_what_changed() {
    let mut scene = Scene::new();
    assert_eq!(scene.scan(), [""; 0]);
    scene.write("b.yaml", &format!("{}---\n{}", yaml("shop", 1, 1), node_yaml("node-1")));
    scene.write("a.json", r#"{"apiVersion": "sluice.dev/v1", "kind": "Node", "metadata": {"name": "node-2"}}"#);
    scene.write("c.yml", &node_yaml("node-3"));
    for other in [".hidden.yaml", "notes.txt", "d.yaml~", "yaml", ".yaml"] {
        scene.write(other, "no document");
    }
    fs::create_dir(scene.path("sub.yaml")).unwrap();
    fs::write(scene.path("sub.yaml/e.yaml"), "no document").unwrap();
    assert_eq!(scene.scan(), ["a.json: node/node-2", "b.yaml: service/shop node/node-1", "c.yml: node/node-3"]);
    assert_eq!(scene.scan(), [""; 0]);

    scene.write("b.yaml", &yaml("shop", 1, 2));
    assert_eq!(scene.scan(), ["b.yaml: service/shop"]);
    // Written next to it and renamed over it.
    scene.write(".b.tmp", &yaml("shop", 1, 3));
    fs::rename(scene.path(".b.tmp"), scene.path("b.yaml")).unwrap();
    assert_eq!(scene.scan(), ["b.yaml: service/shop"]);
    assert_eq!(scene.scan(), [""; 0]);
}

#[test]
fn a_bad_file_is_reported_once_and_keeps_what_it_brought() {
    let mut scene = Scene::new();
    let good = yaml("shop", 1, 1);
    scene.write("a.yaml", &good);
    scene.scan();
    for (text, error) in [
        ("", "a.yaml! there is no document here: write at least one, with apiVersion, kind and metadata"),
        (&good[..good.len() - 8], "a.yaml! this is not YAML"),
        (&good.replace("weight: 1", "weight: -1"), "a.yaml! spec.backends[0].weight: a weight is a whole number"),
        (&format!("{good}---\n{good}"), "a.yaml! document 2: service/shop is in this file already"),
    ] {
        scene.write("a.yaml", text);
        let events = scene.scan();
        assert!(events.len() == 1 && events[0].starts_with(error), "{events:?}");
        assert_eq!(scene.scan(), [""; 0]);
        // The same fault again, in other words.
        scene.write("a.yaml", &format!("{text}# a comment\n"));
        assert!(scene.scan().len() <= 1);
    }
    // What the bad file brought is still its own.
    scene.write("b.yaml", &good);
    let events = scene.scan();
    assert!(events.len() == 1 && events[0].starts_with("b.yaml! service/shop is also in "), "{events:?}");
    fs::remove_file(scene.path("b.yaml")).unwrap();
    scene.write("a.yaml", &good);
    assert_eq!(scene.scan(), ["a.yaml: service/shop"]);
}

#[test]
fn a_file_that_cannot_be_read_is_reported() {
    let mut scene = Scene::new();
    scene.write("large.yaml", &"# padding\n".repeat(MAX_FILE as usize / 10 + 1));
    scene.write("invalid.yaml", "");
    fs::write(scene.path("invalid.yaml"), b"\xff\xfe\x00").unwrap();
    let odd = scene.root.path().join(std::ffi::OsStr::from_bytes(b"odd\xff.yaml"));
    fs::write(&odd, node_yaml("node-1")).unwrap();
    let events = scene.scan();
    assert_eq!(events.len(), 3, "{events:?}");
    assert!(events[0].starts_with("invalid.yaml! this is not text in UTF-8"), "{events:?}");
    assert_eq!(events[1], "large.yaml! the file is larger than 4 MiB: split it");
    assert!(events[2].ends_with("the file's name is not UTF-8: rename it"), "{events:?}");
    assert_eq!(scene.scan(), [""; 0]);
}

#[test]
fn a_file_must_be_away_for_a_while() {
    let mut scene = Scene::new();
    scene.write("a.yaml", &yaml("shop", 1, 1));
    scene.scan();
    fs::remove_file(scene.path("a.yaml")).unwrap();
    assert_eq!(scene.scan(), [""; 0]);
    assert!(scene.files.is_waiting());
    scene.pass(GRACE / 2);
    assert_eq!(scene.scan(), [""; 0]);
    // Back in time: it was only written anew.
    scene.write("a.yaml", &yaml("shop", 1, 1));
    assert_eq!(scene.scan(), ["a.yaml: service/shop"]);
    assert!(!scene.files.is_waiting());
    fs::remove_file(scene.path("a.yaml")).unwrap();
    scene.pass(GRACE);
    assert_eq!(scene.scan(), [""; 0], "its time starts when it is missed");
    scene.pass(GRACE);
    assert_eq!(scene.scan(), ["-a.yaml"]);
    assert_eq!(scene.scan(), [""; 0]);
    assert!(!scene.files.is_waiting());
}

#[test]
fn a_file_that_was_removed_while_nobody_looked_is_missed() {
    let root = tempfile::tempdir().unwrap();
    let here = root.path().join("a.yaml");
    let elsewhere = PathBuf::from("/elsewhere/b.yaml");
    let mut files = Files::new(root.path(), [here.clone(), elsewhere]).unwrap();
    let now = Instant::now();
    assert_eq!(files.scan(now), []);
    assert_eq!(files.scan(now + GRACE), [FileEvent::Removed { file: here }]);
}

#[test]
fn a_renamed_file_hands_its_documents_over() {
    let mut scene = Scene::new();
    scene.write("a.yaml", &yaml("shop", 1, 1));
    scene.scan();
    fs::rename(scene.path("a.yaml"), scene.path("b.yaml")).unwrap();
    assert_eq!(scene.scan(), ["b.yaml: service/shop"]);
    scene.pass(GRACE);
    assert_eq!(scene.scan(), ["-a.yaml"]);
}

#[test]
fn a_document_belongs_to_one_file() {
    let mut scene = Scene::new();
    scene.write("b.yaml", &yaml("shop", 1, 1));
    scene.scan();
    // The one that has it keeps it, whatever the order of names.
    scene.write("a.yaml", &format!("{}---\n{}", yaml("cart", 2, 1), yaml("shop", 1, 9)));
    let events = scene.scan();
    assert!(events.len() == 1 && events[0].starts_with("a.yaml! service/shop is also in "), "{events:?}");
    assert_eq!(scene.scan(), [""; 0]);
    // When it lets go, the other takes it, without being touched.
    scene.write("b.yaml", &yaml("news", 3, 1));
    let mut events = scene.scan();
    events.extend(scene.scan());
    assert_eq!(events, ["b.yaml: service/news", "a.yaml: service/cart service/shop"]);
    // Two that exchange documents at once.
    scene.write("a.yaml", &yaml("news", 3, 2));
    scene.write("b.yaml", &format!("{}---\n{}", yaml("cart", 2, 2), yaml("shop", 1, 2)));
    assert_eq!(scene.scan(), ["a.yaml: service/news", "b.yaml: service/cart service/shop"]);
}

#[test]
fn a_directory_that_is_swapped_by_a_link_is_read_as_a_whole() {
    let mut scene = Scene::new();
    let version = |scene: &Scene, name: &str, weight: u32| {
        fs::create_dir(scene.path(name)).unwrap();
        fs::write(scene.path(name).join("shop.yaml"), yaml("shop", 1, weight)).unwrap();
        fs::write(scene.path(name).join("cart.yaml"), yaml("cart", 2, weight)).unwrap();
    };
    version(&scene, "..2026_1", 1);
    symlink("..2026_1", scene.path("..data")).unwrap();
    symlink("..data/shop.yaml", scene.path("shop.yaml")).unwrap();
    symlink("..data/cart.yaml", scene.path("cart.yaml")).unwrap();
    assert_eq!(scene.scan(), ["cart.yaml: service/cart", "shop.yaml: service/shop"]);
    version(&scene, "..2026_2", 2);
    symlink("..2026_2", scene.path("..data_tmp")).unwrap();
    fs::rename(scene.path("..data_tmp"), scene.path("..data")).unwrap();
    fs::remove_dir_all(scene.path("..2026_1")).unwrap();
    assert_eq!(scene.scan(), ["cart.yaml: service/cart", "shop.yaml: service/shop"]);
    assert_eq!(scene.scan(), [""; 0]);
    // A link to nothing is a file that is away.
    fs::remove_file(scene.path("..data/cart.yaml")).unwrap();
    scene.scan();
    scene.pass(GRACE);
    assert_eq!(scene.scan(), ["-cart.yaml"]);
}

#[test]
fn a_directory_that_cannot_be_listed_takes_nothing_away() {
    let root = tempfile::tempdir().unwrap();
    let place = root.path().join("conf");
    fs::create_dir(&place).unwrap();
    fs::write(place.join("a.yaml"), yaml("shop", 1, 1)).unwrap();
    let mut files = Files::new(&place, []).unwrap();
    let now = Instant::now();
    assert_eq!(files.scan(now).len(), 1);
    fs::rename(&place, root.path().join("away")).unwrap();
    let events = files.scan(now + GRACE);
    assert!(
        matches!(&events[..], [FileEvent::Failed { file, error }] if *file == place && error.contains("listing")),
        "{events:?}"
    );
    assert_eq!(files.scan(now + 3 * GRACE), []);
    fs::rename(root.path().join("away"), &place).unwrap();
    assert_eq!(files.scan(now + 5 * GRACE), []);
}

#[test]
fn one_file_may_be_given() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("documents");
    let missing = format!("{:#}", Files::new(&path, []).unwrap_err());
    assert!(missing.contains("make the file or directory"), "{missing}");
    fs::write(&path, yaml("shop", 1, 1)).unwrap();
    fs::write(root.path().join("other.yaml"), yaml("cart", 2, 1)).unwrap();
    let mut files = Files::new(&path, []).unwrap();
    assert_eq!(files.directory(), root.path());
    let now = Instant::now();
    assert!(matches!(&files.scan(now)[..], [FileEvent::Changed { file, .. }] if *file == path));
    fs::remove_file(&path).unwrap();
    assert_eq!(files.scan(now), []);
    assert_eq!(files.scan(now + GRACE), [FileEvent::Removed { file: path }]);
}
