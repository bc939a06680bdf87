//! The watcher on a real directory, in real time.

use std::{
    fs,
    io::Write,
    ops::ControlFlow,
    os::unix::fs::symlink,
    path::Path,
    sync::mpsc::{self, Receiver},
    time::Duration,
};

use super::yaml;
use crate::source::{
    files::{FileEvent, Files},
    watcher::{FileWatcher, LookResult, watch},
};

const SOON: Duration = Duration::from_secs(10);

fn start(path: &Path) -> (FileWatcher, Receiver<FileEvent>) {
    let (sender, events) = mpsc::channel();
    let sink = move |batch: Vec<FileEvent>| match batch.into_iter().try_for_each(|event| sender.send(event)) {
        Ok(()) => ControlFlow::Continue(LookResult::TakenIn),
        Err(_) => ControlFlow::Break(()),
    };
    (watch(Files::new(path, []).unwrap(), sink).unwrap(), events)
}

/// The weight in the next event's first document.
fn weight(events: &Receiver<FileEvent>) -> u32 {
    match events.recv_timeout(SOON).unwrap() {
        FileEvent::Changed { documents, .. } => match &documents[0].document {
            crate::model::document::Document::Service(service) => service.spec.backends[0].weight,
            crate::model::document::Document::Node(_) => panic!("a node"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn changes_are_seen_whole() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a.yaml");
    fs::write(&path, yaml("shop", 1, 1)).unwrap();
    let (watch, events) = start(root.path());
    assert_eq!(weight(&events), 1);

    fs::write(root.path().join(".tmp"), yaml("shop", 1, 2)).unwrap();
    fs::rename(root.path().join(".tmp"), &path).unwrap();
    assert_eq!(weight(&events), 2);

    // Written slowly: while the writer has it open, it is not read.
    let text = yaml("shop", 1, 3);
    let mut file = fs::File::create(&path).unwrap();
    for part in text.as_bytes().chunks(text.len() / 3) {
        file.write_all(part).unwrap();
        file.flush().unwrap();
        std::thread::sleep(Duration::from_millis(150));
    }
    drop(file);
    assert_eq!(weight(&events), 3);

    fs::remove_file(&path).unwrap();
    assert_eq!(events.recv_timeout(SOON).unwrap(), FileEvent::Removed { file: path });
    drop(watch);
    assert!(events.recv_timeout(SOON).is_err(), "the thread ended");
}

#[test]
fn swapped_links_are_seen() {
    let root = tempfile::tempdir().unwrap();
    for version in 1..4 {
        let directory = root.path().join(format!("v{version}"));
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a.yaml"), yaml("shop", 1, version)).unwrap();
    }
    let swap = |target: &str, link: &Path| {
        let temporary = link.parent().unwrap().join(".swap");
        symlink(target, &temporary).unwrap();
        fs::rename(temporary, link).unwrap();
    };
    // A link inside of the directory, as Kubernetes mounts a ConfigMap ...
    let mounted = root.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    swap("../v1", &mounted.join("..data"));
    symlink("..data/a.yaml", mounted.join("a.yaml")).unwrap();
    // ... and a link that is the directory.
    let current = root.path().join("current");
    swap("v1", &current);
    let (_first, inside) = start(&mounted);
    let (_second, above) = start(&current);
    assert_eq!((weight(&inside), weight(&above)), (1, 1));
    for version in [2, 3] {
        swap(&format!("../v{version}"), &mounted.join("..data"));
        swap(&format!("v{version}"), &current);
        assert_eq!((weight(&inside), weight(&above)), (version, version));
    }
}

#[test]
fn an_unchanged_directory_says_nothing() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("a.yaml"), yaml("shop", 1, 1)).unwrap();
    let (_watch, events) = start(root.path());
    assert_eq!(weight(&events), 1);
    assert!(events.recv_timeout(Duration::from_millis(2_500)).is_err());
}

#[test]
fn a_look_that_came_to_nothing_is_made_again() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("shop.yaml");
    fs::write(&path, yaml("shop", 1, 7)).unwrap();
    let (sender, events) = mpsc::channel();
    let mut failures = 2;
    let sink = move |batch: Vec<FileEvent>| {
        sender.send(batch).unwrap();
        let look = if failures > 0 { LookResult::Failed } else { LookResult::TakenIn };
        failures -= i32::from(failures > 0);
        ControlFlow::Continue(look)
    };
    let _watcher = watch(Files::new(dir.path(), []).unwrap(), sink).unwrap();
    // The file is not touched meanwhile.
    let looks: Vec<_> = (0..3).map(|_| events.recv_timeout(SOON).unwrap()).collect();
    assert!(looks.windows(2).all(|pair| pair[0] == pair[1]), "{looks:?}");
    assert!(events.recv_timeout(Duration::from_secs(3)).is_err(), "it was taken in");
}
