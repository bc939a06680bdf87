//! The store: what is found again after a stop, a kill, and damage.

use std::{
    ffi::OsStr,
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::json;

use crate::model::{
    Change, Limits, Origin, State, Touched,
    parse::ContentHash,
    tests::{LIMITS, World, at, delete, force, node, put, service, shop, zero_by},
};
use crate::source::store::{AppliedMark, Batch, FILE, Store};

/// Everything that a store must bring back.
pub(super) fn shown(state: &State) -> impl PartialEq + std::fmt::Debug + use<> {
    let services: Vec<_> = state.services().map(|service| (**service).clone()).collect();
    let nodes: Vec<_> = state.nodes().map(|node| (**node).clone()).collect();
    (state.revision(), services, nodes, state.next_expiry())
}

#[test]
fn what_is_kept_is_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("state/sluice");
    let (mut store, state) = Store::open(&place, LIMITS, false).unwrap();
    let identity = store.identity();
    assert_ne!(identity, [0; 16]);
    let mut world = World::new();
    world.state = state;
    let grouped = json!({
        "frontends": ["10.96.1.1:80", "[fd00::1]:80"], "balance": "hash", "onNoBackend": "pass", "minReadyPercent": 10,
        "groups": [{"name": "stable", "weight": 95}, {"name": "canary", "weight": 5}],
        "backends": [
            {"name": "a", "address": "10.0.1.1:80", "group": "canary", "node": "node-1"},
            {"name": "b", "address": "10.0.1.2:80", "group": "stable", "weight": 7},
        ],
    });
    let from_file =
        Change::PutService { document: service("grouped", grouped), origin: Origin::File("/a".into()), if_match: None };
    for change in [
        put(
            "gone",
            json!({"frontends": ["10.96.0.1:80"], "backends": [{"name": "x", "address": "10.0.0.9:1", "node": "y"}]}),
        ),
        put("shop", shop()),
        from_file,
        Change::PutNode { document: node("node-7") },
        zero_by("shop/n2", "pipeline", Some(at(99)), true),
        force("node/node-1"),
        delete("gone"),
    ] {
        world.apply(&change);
        store.commit(&world.state, &world.touched).unwrap();
    }
    let extra = |store: &mut Store, state: &State, value: Option<&[u8]>| {
        store
            .commit_batch(
                state,
                Batch { extras: &[("cursor".to_owned(), value.map(<[u8]>::to_vec))], ..Batch::default() },
            )
            .unwrap();
    };
    extra(&mut store, &world.state, Some(b"7"));
    drop(store);

    let (mut store, state) = Store::open(&place, LIMITS, false).unwrap();
    assert_eq!(store.identity(), identity);
    assert_eq!(shown(&state), shown(&world.state));
    assert_eq!(store.get_extra("cursor").unwrap().as_deref(), Some(b"7".as_slice()));
    assert_eq!(store.get_extra("other").unwrap(), None);
    extra(&mut store, &state, None);
    assert_eq!(store.get_extra("cursor").unwrap(), None);
    // The indexes are there too, and ids of what was removed are free again.
    world.state = state;
    assert!(world.refusal(&put("x", shop())).contains("is a frontend of shop"));
    world.put("next", json!({"frontends": ["10.96.0.1:80"], "backends": []}));
    assert_eq!(world.service("next").id.0, 0);
}

#[test]
fn several_changes_are_one_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mut world = World::new();
    world.state = state;
    let mut all: Vec<Touched> = Vec::new();
    for change in [put("a", shop()), delete("a"), put("b", shop()), force("node/node-1")] {
        world.apply(&change);
        all.push(world.touched.clone());
    }
    store.commit_many(&world.state, &all).unwrap();
    drop(store);
    let (_store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    assert_eq!(shown(&state), shown(&world.state));
}

#[test]
fn files_and_what_they_brought_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mark = |file: &str, document: &str, hash: Option<u8>| {
        let hash = hash.map(|byte| ContentHash([byte; 16]));
        AppliedMark { file: file.into(), document: document.parse().unwrap(), hash }
    };
    let keep = |store: &mut Store, marks: &[AppliedMark]| {
        store.commit_batch(&state, Batch { marks, ..Batch::default() }).unwrap()
    };
    keep(
        &mut store,
        &[mark("/a", "service/x", Some(1)), mark("/a", "node/y", Some(2)), mark("/a.b", "service/z", Some(3))],
    );
    keep(&mut store, &[mark("/a", "service/x", Some(4)), mark("/a", "node/y", None), mark("/a", "node/never", None)]);
    let applied: Vec<_> = store.applied(Path::new("/a")).unwrap().into_iter().collect();
    assert_eq!(applied, [("service/x".parse().unwrap(), ContentHash([4; 16]))]);
    assert_eq!(store.applied(Path::new("/")).unwrap().len(), 0);
    let files: Vec<_> = store.files().unwrap().into_iter().collect();
    assert_eq!(files, [Path::new("/a"), Path::new("/a.b")]);
    // A name that is no text is one among others.
    let odd = Path::new(OsStr::from_bytes(b"/\xff"));
    let odd_mark = |hash| AppliedMark { file: odd.into(), document: "service/odd".parse().unwrap(), hash };
    assert_eq!(store.applied(odd).unwrap().len(), 0);
    keep(&mut store, &[odd_mark(Some(ContentHash([7; 16])))]);
    assert_eq!((store.applied(odd).unwrap().len(), store.files().unwrap().contains(odd)), (1, true));
    keep(&mut store, &[odd_mark(None)]);
    keep(&mut store, &[mark("/a.b", "service/z", None)]);
    assert_eq!(store.files().unwrap().len(), 1);
}

#[test]
fn after_a_fault_it_is_opened_again_and_what_is_in_doubt_is_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mark = |file: &Path, hash| AppliedMark { file: file.into(), document: "service/shop".parse().unwrap(), hash };
    let good = Path::new("/a");
    let one = [mark(good, Some(ContentHash([1; 16])))];
    store.commit_batch(&state, Batch { marks: &one, ..Batch::default() }).unwrap();
    let mut world = World::new();
    world.state = state.clone();
    world.put("shop", shop());
    // The disk may hold all of a change that failed, or nothing. Here it does.
    store.commit(&world.state, &world.touched).unwrap();
    let marks = [mark(good, Some(ContentHash([2; 16])))];
    let batch = Batch { touched: std::slice::from_ref(&world.touched), marks: &marks, ..Batch::default() };
    store.failing = 1;
    assert!(store.commit_batch(&world.state, batch).is_err());
    assert_eq!(store.applied(good).unwrap().len(), 1);
    let another = Store::open(dir.path(), LIMITS, false).map(drop).unwrap_err();
    assert!(format!("{another:#}").contains("in use"), "it is locked again");
    store.commit_batch(&state, Batch::default()).unwrap();
    assert_eq!(store.applied(good).unwrap().len(), 0);
    drop(store);
    assert_eq!(shown(&Store::open(dir.path(), LIMITS, false).unwrap().1), shown(&state));
}

#[test]
fn another_file_in_its_place_is_not_taken_for_the_store() {
    let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    drop(Store::open(other.path(), LIMITS, false).unwrap());
    let (here, aside) = (dir.path().join(FILE), dir.path().join("aside"));
    fs::rename(&here, &aside).unwrap();
    fs::copy(other.path().join(FILE), &here).unwrap();
    for failing in [0, 1] {
        store.failing = failing;
        let error = format!("{:#}", store.commit_batch(&state, Batch::default()).unwrap_err());
        assert!(error.contains("another file than the one that this agent has open"), "{error}");
    }
    store.failing = 0;
    fs::rename(&aside, &here).unwrap();
    store.commit_batch(&state, Batch::default()).unwrap();
    assert_eq!(store.files().unwrap().len(), 0);
}

pub(super) fn open_error(dir: &Path, limits: Limits) -> String {
    format!("{:#}", Store::open(dir, limits, false).unwrap_err())
}

#[test]
fn a_file_that_somebody_removes_is_put_back_and_another_one_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("state");
    let (mut store, state) = Store::open(&place, LIMITS, false).unwrap();
    let mut world = World::new();
    world.state = state;
    world.apply(&put("shop", shop()));
    store.commit(&world.state, &world.touched).unwrap();
    fs::remove_dir_all(&place).unwrap();
    world.apply(&force("node/node-1"));
    store.commit(&world.state, &world.touched).unwrap();
    // Somebody brings a copy back under the agent: what it writes would go with the agent.
    let file = place.join(FILE);
    fs::copy(&file, place.join("copy")).unwrap();
    fs::rename(place.join("copy"), &file).unwrap();
    world.apply(&put("more", json!({"frontends": ["10.96.0.9:80"], "backends": []})));
    let error = format!("{:#}", store.commit(&world.state, &world.touched).unwrap_err());
    assert!(error.contains("move it away"), "{error}");
    fs::remove_file(&file).unwrap();
    store.commit(&world.state, &world.touched).unwrap();
    drop(store);
    let (_, state) = Store::open(&place, LIMITS, false).unwrap();
    assert_eq!(shown(&state), shown(&world.state));
}

#[test]
fn a_store_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _) = Store::open(dir.path(), LIMITS, false).unwrap();
    let error = open_error(dir.path(), LIMITS);
    assert!(error.contains("in use by another process") && error.contains("--state-dir"), "{error}");
}

#[test]
fn a_damaged_store_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mut world = World::new();
    world.state = state;
    world.put("shop", shop());
    store.commit(&world.state, &world.touched).unwrap();
    drop(store);
    let whole = fs::read(&path).unwrap();
    let half = whole[..whole.len() / 2].to_vec();
    let header = whole[..100].to_vec();
    let mut smashed = whole.clone();
    smashed[4096..].fill(0x5a);
    let mut scratched = whole.clone();
    scratched[16..512].fill(0x5a);
    for (what, bytes) in [
        ("text", b"this is no database, but it is long enough to look like one".repeat(100)),
        ("zeros", vec![0; 8192]),
        ("half", half),
        ("header", header),
        ("smashed", smashed),
        ("scratched", scratched),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = open_error(dir.path(), LIMITS);
        assert!(error.contains("cannot be read: bring it back from a backup"), "{what}: {error}");
    }
    fs::write(&path, whole).unwrap();
    assert_eq!(shown(&Store::open(dir.path(), LIMITS, false).unwrap().1), shown(&world.state));
}

#[test]
fn a_store_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mut world = World::new();
    world.state = state;
    world.put("shop", shop());
    store.commit(&world.state, &world.touched).unwrap();
    drop(store);
    for (limits, why) in [
        (Limits { backends: 1, ..LIMITS }, "saved service/shop: its backend id 1 does not fit"),
        (Limits { nodes: 2, ..LIMITS }, "saved node/node-2: its node id 2 does not fit"),
        (Limits { frontends: 0, ..LIMITS }, "at most 0 frontends"),
        (Limits { services: 0, ..LIMITS }, "saved service/shop: its service id 0 does not fit"),
    ] {
        let error = open_error(dir.path(), limits);
        assert!(error.contains(why), "{error}");
    }
    let path = dir.path().join(FILE);
    let database = redb::Database::open(&path).unwrap();
    let transaction = database.begin_write().unwrap();
    let meta = redb::TableDefinition::<&str, &[u8]>::new("meta");
    transaction.open_table(meta).unwrap().insert("format", 3u32.to_be_bytes().as_slice()).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let error = open_error(dir.path(), LIMITS);
    assert!(error.contains("its format is 3, this version of sluice reads 2"), "{error}");
}

/// The change that the child of the next test makes in its `step`th commit.
fn change(step: u64) -> Change {
    let service = format!("s{}", step % 7);
    let frontend = format!("10.96.0.{}:80", step % 7 + 1);
    let backends: Vec<_> = (0..step % 5)
        .map(|k| json!({"name": format!("b{k}"), "address": format!("10.0.0.{}:{}", k + 1, step % 3 + 1), "weight": step, "node": format!("n{}", (step + k) % 4)}))
        .collect();
    put(&service, json!({"frontends": [frontend], "backends": backends}))
}

const CHILD: &str = "SLUICE_TEST_STORE_CHILD";

#[test]
#[ignore = "the child of kill_9_leaves_the_state_after_some_commit"]
fn child_that_commits_in_a_loop() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let (mut store, mut state) = Store::open(Path::new(&dir), LIMITS, false).unwrap();
    let mut out = std::io::stdout();
    for step in state.revision().. {
        let applied = state.apply(&change(step), at(0)).unwrap();
        state = applied.state;
        let extras = [("step".to_owned(), Some(b"x".to_vec()))];
        let batch = Batch { touched: &[applied.touched], extras: &extras, ..Batch::default() };
        store.commit_batch(&state, batch).unwrap();
        writeln!(out, "committed {}", step + 1).unwrap();
    }
}

#[test]
fn kill_9_leaves_the_state_after_some_commit() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected = State::new(LIMITS);
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "source::tests::store::child_that_commits_in_a_loop", "--ignored", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let count = |line: &String| line.strip_prefix("committed ").map(|count| count.parse::<u64>().unwrap());
        // Past the opening, then at any moment of a commit.
        assert!(lines.any(|line| count(&line).is_some()), "round {round}: the child stopped");
        std::thread::sleep(Duration::from_micros(7_300 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let acknowledged = lines.filter_map(|line| count(&line)).last();

        let (store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
        assert!(state.revision() >= acknowledged.unwrap_or(0), "round {round}: an acknowledged commit is gone");
        assert!(store.get_extra("step").unwrap().is_some());
        // Ids may differ, as those of what is removed are free after a restart; documents may not.
        while expected.revision() < state.revision() {
            expected = expected.apply(&change(expected.revision()), at(0)).unwrap().state;
        }
        let documents = |state: &State| state.services().map(|s| (s.generation, state.document(s))).collect::<Vec<_>>();
        assert_eq!(documents(&state), documents(&expected), "round {round}");
    }
    assert!(expected.revision() > 8);
}

#[test]
#[ignore = "prints measurements: run with --release -- --ignored --nocapture"]
fn measurements_of_the_store() {
    let dir = tempfile::tempdir_in(std::env::var_os("SLUICE_TEST_DIR").unwrap_or("/var/tmp".into())).unwrap();
    let (mut store, mut state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mut all = Vec::new();
    for index in 0..10_000 {
        let (high, low) = (index / 250, index % 250 + 1);
        let backends: Vec<_> = (0..10)
            .map(|k| json!({"name": format!("backend-{k}"), "address": format!("10.{}.{high}.{low}:8080", 100 + k), "node": format!("node-{k}")}))
            .collect();
        let change = put(
            &format!("service-{index}"),
            json!({"frontends": [format!("10.96.{high}.{low}:80")], "backends": backends}),
        );
        let applied = state.apply(&change, at(0)).unwrap();
        state = applied.state;
        all.push(applied.touched);
    }
    let start = Instant::now();
    store.commit_many(&state, &all).unwrap();
    println!("10,000 services in one commit: {:?}", start.elapsed());
    let start = Instant::now();
    for index in 0..100 {
        let applied = state.apply(&force(&format!("service-{index}/backend-0")), at(0)).unwrap();
        state = applied.state;
        store.commit(&state, &applied.touched).unwrap();
    }
    println!("one service: {:?}", start.elapsed() / 100);
    let start = Instant::now();
    let applied = state.apply(&force("node/node-0"), at(0)).unwrap();
    state = applied.state;
    store.commit(&state, &applied.touched).unwrap();
    println!("zero of a node: {:?}", start.elapsed());
    println!("file: {:.1} MB", fs::metadata(dir.path().join(FILE)).unwrap().len() as f64 / 1e6);
    let unclean = tempfile::tempdir_in(dir.path()).unwrap();
    fs::copy(dir.path().join(FILE), unclean.path().join(FILE)).unwrap();
    drop(store);
    for (how, place) in [("stop", dir.path()), ("kill", unclean.path())] {
        let start = Instant::now();
        let (_store, again) = Store::open(place, LIMITS, false).unwrap();
        println!("opening after a {how}: {:?}", start.elapsed());
        assert_eq!(again.revision(), state.revision());
    }
}
