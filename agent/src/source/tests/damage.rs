//! What became of the store behind its back: a flipped bit, a field that is unknown, pages that are damaged; and a store of
//! the former format.

use std::{fs, path::Path};

use redb::ReadableTable;
use serde_json::json;

use super::store::{open_error, shown};
use crate::{
    model::{
        parse::ContentHash,
        tests::{LIMITS, World, force, put, shop},
    },
    source::store::{AppliedMark, Batch, FILE, Store},
};

/// Changes the record of a node or service behind the store's back.
fn tamper(dir: &Path, table: &str, id: u32, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let database = redb::Database::open(dir.join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut table = transaction.open_table(redb::TableDefinition::<u32, &[u8]>::new(table)).unwrap();
        let record = table.get(id).unwrap().unwrap().value().to_vec();
        table.insert(id, change(record).as_slice()).unwrap();
    }
    transaction.commit().unwrap();
}

fn replaced(record: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = record.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
    [&record[..at], to.as_bytes(), &record[at + from.len()..]].concat()
}

/// With a checksum that is right.
fn changed(id: u32, record: &[u8], from: &str, to: &str) -> Vec<u8> {
    let changed = replaced(&record[..record.len() - 8], from, to);
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    let sum = id.to_be_bytes().iter().chain(&changed).fold(0xcbf2_9ce4_8422_2325, step).to_be_bytes();
    [&changed[..], &sum].concat()
}

#[test]
fn a_flipped_bit_is_found_and_the_rest_is_kept_when_that_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mut world = World::new();
    world.state = state;
    for change in [put("shop", shop()), force("node/node-1")] {
        world.apply(&change);
        store.commit(&world.state, &world.touched).unwrap();
    }
    drop(store);
    let id = world.state.node("node-1").unwrap().id.0;
    // The zero would be no zero.
    tamper(dir.path(), "nodes", id, |record| replaced(&record, "\"zero\"", "\"zern\""));
    let error = open_error(dir.path(), LIMITS);
    for word in ["checksum", &format!("node of id {id}"), "--accept-damage"] {
        assert!(error.contains(word), "{error}");
    }
    assert!(!error.contains("move it away"), "{error}");
    let (store, state) = Store::open(dir.path(), LIMITS, true).unwrap();
    let zero = state.node("node-1").unwrap().zero.clone().expect("what may have been zeroed is");
    assert!(zero.reason.contains("lost"), "{}", zero.reason);
    assert_eq!(state.service("shop").unwrap().backends.len(), world.state.service("shop").unwrap().backends.len());
    assert!(state.node("node-2").unwrap().zero.is_none());
    drop(store);
    assert_eq!(shown(&Store::open(dir.path(), LIMITS, false).unwrap().1), shown(&state), "once and for all");
}

#[test]
fn a_record_with_an_unknown_field_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mut world = World::new();
    world.state = state;
    world.put("shop", shop());
    store.commit(&world.state, &world.touched).unwrap();
    drop(store);
    let id = world.state.node("node-1").unwrap().id.0;
    tamper(dir.path(), "nodes", id, |record| changed(id, &record, "{\"id\"", "{\"more\":1,\"id\""));
    let error = open_error(dir.path(), LIMITS);
    assert!(error.contains("unknown field") && error.contains("more"), "{error}");
}

#[test]
fn services_that_would_loop_are_left_out_when_that_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mut world = World::new();
    world.state = state;
    for (name, host) in [("a", 1), ("b", 2)] {
        let backends = [json!({"name": "n", "address": format!("10.96.9.{host}:80")})];
        world.apply(&put(name, json!({"frontends": [format!("10.96.0.{host}:80")], "backends": backends})));
        store.commit(&world.state, &world.touched).unwrap();
    }
    drop(store);
    let id = world.state.service("b").unwrap().id.0;
    tamper(dir.path(), "services", id, |record| changed(id, &record, "10.96.9.2:80", "10.96.0.1:80"));
    assert!(open_error(dir.path(), LIMITS).contains("would loop"));
    let left = Store::open(dir.path(), LIMITS, true).unwrap().1.service_count();
    assert_eq!((left, Store::open(dir.path(), LIMITS, false).unwrap().1.service_count()), (1, 1), "once and for all");
}

#[test]
fn a_store_of_the_former_format_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let identity = store.identity();
    let mut world = World::new();
    world.state = state;
    world.apply(&put("shop", shop()));
    let marks = [AppliedMark {
        file: "/a".into(),
        document: "service/shop".parse().unwrap(),
        hash: Some(ContentHash([3; 16])),
    }];
    let extras = [("cursor".to_owned(), Some(b"7".to_vec()))];
    let batch = Batch { touched: std::slice::from_ref(&world.touched), marks: &marks, extras: &extras };
    store.commit_batch(&world.state, batch).unwrap();
    drop(store);
    // As that version had it: no checksums, and files as text.
    let database = redb::Database::open(dir.path().join(FILE)).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let bare = |sealed: &[u8]| sealed[..sealed.len() - 8].to_vec();
        for name in ["services", "nodes"] {
            let mut table = transaction.open_table(redb::TableDefinition::<u32, &[u8]>::new(name)).unwrap();
            for id in 0..LIMITS.nodes {
                let record = table.get(id).unwrap().map(|record| bare(record.value()));
                record.into_iter().for_each(|record| drop(table.insert(id, record.as_slice()).unwrap()));
            }
        }
        for (name, keys) in [("meta", ["identity", "revision"].as_slice()), ("extras", ["cursor"].as_slice())] {
            let mut table = transaction.open_table(redb::TableDefinition::<&str, &[u8]>::new(name)).unwrap();
            for key in keys {
                let record = bare(table.get(key).unwrap().unwrap().value());
                table.insert(key, record.as_slice()).unwrap();
            }
        }
        let mut meta = transaction.open_table(redb::TableDefinition::<&str, &[u8]>::new("meta")).unwrap();
        meta.insert("format", 1u32.to_be_bytes().as_slice()).unwrap();
        let files = redb::TableDefinition::<(&str, &str), [u8; 16]>::new("files");
        transaction.open_table(files).unwrap().insert(("/a", "service/shop"), [3; 16]).unwrap();
    }
    transaction.delete_table(redb::TableDefinition::<(&[u8], &str), &[u8]>::new("marks")).unwrap();
    transaction.commit().unwrap();
    drop(database);
    for _ in 0..2 {
        let (store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
        assert_eq!((store.identity(), shown(&state)), (identity, shown(&world.state)));
        assert_eq!(store.applied(Path::new("/a")).unwrap().len(), 1);
        assert_eq!(store.get_extra("cursor").unwrap().as_deref(), Some(b"7".as_slice()));
    }
}

#[test]
fn damaged_pages_end_in_a_refusal_or_in_the_state_and_never_in_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let (mut store, state) = Store::open(dir.path(), LIMITS, false).unwrap();
    let mut world = World::new();
    world.state = state;
    let mut states = vec![shown(&world.state)];
    for change in [put("shop", shop()), put("other", json!({"frontends": ["10.96.0.9:80"], "backends": []}))] {
        world.apply(&change);
        store.commit(&world.state, &world.touched).unwrap();
        states.push(shown(&world.state));
    }
    drop(store);
    let whole = fs::read(&path).unwrap();
    let used: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    for at in used.iter().step_by(used.len() / 400 + 1) {
        let mut damaged = whole.clone();
        damaged[*at] ^= 0x10;
        fs::write(&path, damaged).unwrap();
        if let Ok((store, state)) = Store::open(dir.path(), LIMITS, false) {
            // That of the commit before, if it is the head of the last one.
            assert!(states.contains(&shown(&state)), "byte {at}: {:?}", shown(&state));
            let _ = (store.files(), store.extras(""));
        }
    }
}
