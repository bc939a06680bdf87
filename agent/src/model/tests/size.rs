//! What a large state costs. Times are printed; the bounds asserted are wide, for slow machines and debug builds.
#![allow(clippy::disallowed_methods)]

use std::time::Instant;

use super::*;

/// Puts `services` services of ten backends; backend k of every service is on node k.
fn puts(services: u32) -> Vec<Change> {
    let one = |index: u32| {
        let [high, low] = [index / 250, index % 250 + 1];
        let backends: Vec<_> = (0..10)
            .map(|k| {
                let address = format!("10.{}.{high}.{low}:8080", 100 + k);
                json!({"name": format!("backend-{k}"), "address": address, "node": format!("node-{k}")})
            })
            .collect();
        let spec = json!({"frontends": [format!("10.96.{high}.{low}:80")], "backends": backends});
        put(&format!("service-{index}"), spec)
    };
    (0..services).map(one).collect()
}

fn large(services: u32) -> World {
    let mut world = World::new();
    for change in puts(services) {
        world.apply(&change);
    }
    world
}

fn median(mut times: Vec<u128>) -> u128 {
    times.sort_unstable();
    times[times.len() / 2]
}

fn measured(count: usize, mut run: impl FnMut()) -> u128 {
    let times = (0..count).map(|_| {
        let start = Instant::now();
        run();
        start.elapsed().as_nanos() / 1_000
    });
    median(times.collect())
}

/// Resident memory of this process, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
#[ignore = "prints measurements: run with --release -- --ignored --nocapture"]
fn measurements_of_ten_thousand_services() {
    let before = resident();
    let mut world = large(10_000);
    println!("resident, with what the parser left: {:.1} MB", (resident() - before) as f64 / 1e6);
    let changes = puts(10_000);
    let start = Instant::now();
    let mut state = State::new(LIMITS);
    for change in &changes {
        state = state.apply(change, at(0)).unwrap().state;
    }
    println!("10,000 puts: {:?}", start.elapsed());
    let document = service(
        "service-5000",
        serde_json::to_value(world.state.document(world.service("service-5000")).spec).unwrap(),
    );
    let put = Change::PutService { document, origin: Origin::Api, if_match: None };
    let state = world.state.clone();
    println!("put, unchanged: {} us", measured(1001, || drop(state.apply(&put, at(0)).unwrap())));
    for (text, change) in [
        ("refused zero of a node", zero("node/node-0")),
        ("zero of a node", force("node/node-0")),
        ("zero of a backend", zero("service-5000/backend-0")),
        ("weight of a backend", patch_backend("service-5000", "backend-0", json!({"weight": 5}))),
        ("patch of a service", patch("service-5000", json!({"spec": {"balance": "hash"}}))),
        ("delete", delete("service-5000")),
    ] {
        if text.starts_with("refused") {
            for k in 1..10 {
                world.apply(&force(&format!("node/node-{k}")));
            }
            let state = world.state.clone();
            println!("{text}: {} us", measured(1001, || drop(state.apply(&change, at(0)).unwrap_err())));
            continue;
        }
        println!("{text}: {} us", measured(1001, || drop(state.apply(&change, at(0)).unwrap())));
    }
    let zeroed = state.apply(&zero("node/node-0"), at(0)).unwrap().state;
    println!(
        "restore of a node: {} us",
        measured(1001, || drop(zeroed.apply(&restore("node/node-0"), at(0)).unwrap()))
    );
    println!("clone: {} us", measured(1001, || drop(state.clone())));
}

#[test]
fn zeroing_a_node_of_many_services_is_quick() {
    let mut world = large(if cfg!(debug_assertions) { 500 } else { 10_000 });
    let state = world.state.clone();
    let time = measured(21, || drop(state.apply(&zero("node/node-0"), at(0)).unwrap()));
    assert!(time < 5_000, "{time} us");
    // The guard sees every one of them.
    for k in 1..10 {
        world.apply(&force(&format!("node/node-{k}")));
    }
    let refusal = world.try_apply(&zero("node/node-0")).unwrap_err();
    assert_eq!(refusal.services.len(), world.state.service_count());
}

#[test]
#[ignore = "prints measurements: run with --release -- --ignored --nocapture"]
fn measurements_of_large_files() {
    use crate::model::parse::{DocumentFormat, documents};
    let mut world = World::new();
    let backend =
        |k: u32| json!({"name": format!("backend-{k}"), "address": format!("10.1.{}.{}:80", k / 250, k % 250 + 1)});
    let backends: Vec<_> = (0..10_000).map(backend).collect();
    world.put("big", json!({"frontends": ["10.96.0.1:80"], "backends": backends}));
    for (text, change) in [
        ("weight of one of 10,000 backends", patch_backend("big", "backend-5000", json!({"weight": 5}))),
        ("zero of one of 10,000 backends", zero("big/backend-5000")),
        ("patch of a service with 10,000 backends", patch("big", json!({"spec": {"balance": "hash"}}))),
    ] {
        println!("{text}: {} us", measured(51, || drop(world.state.apply(&change, at(0)).unwrap())));
    }
    let one = serde_json::to_value(world.state.document(world.service("big"))).unwrap();
    let many: Vec<_> =
        large(3_000).state.services().map(|s| serde_json::to_value(world.state.document(s)).unwrap()).collect();
    for (what, values) in [("a document with 10,000 backends", vec![one]), ("3,000 documents with ten backends", many)]
    {
        let json: String = values.iter().map(|value| value.to_string() + "\n").collect();
        let yaml: String =
            values.iter().map(|value| format!("---\n{}", serde_saphyr::to_string(value).unwrap())).collect();
        for (format, text) in [(DocumentFormat::Json, json), (DocumentFormat::Yaml, yaml)] {
            let time = measured(3, || drop(documents(text.as_bytes(), format).unwrap()));
            println!("reading {what}, {format:?}, {:.1} MB: {} ms", text.len() as f64 / 1e6, time / 1000);
        }
    }
}
