//! Shares that the agent shows, compared with what callers get.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;
use sluice_tests::{Load, Service};

use crate::{
    agree::explain,
    stage::{FRONTEND, Stage, assert_all_answered},
};

/// A small generator of numbers that look random and are the same in every run (Knuth's MMIX).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Six backends in up to three groups, with all kinds of weights.
fn arbitrary(numbers: &mut Numbers) -> Service {
    let mut service = Service::new("shop", FRONTEND);
    let groups = numbers.below(3) + 1;
    for group in 1..=groups {
        service = service.group(&format!("g{group}"), numbers.below(5) as u32);
    }
    for number in 1..=6 {
        let weight = [0, 1, 1, 2, 3, 10][numbers.below(6) as usize];
        let group = format!("g{}", numbers.below(groups) + 1);
        service = service.backend_in(&group, &format!("b{number}"), &format!("10.0.0.{number}:8080"), weight);
    }
    service
}

#[test]
fn shares_that_the_agent_shows_are_those_that_callers_get() -> Result<()> {
    let mut stage = Stage::new("shares")?;
    stage.service(&[1; 6])?;
    let client = stage.client()?;
    let mut numbers = Numbers(20_261_121);
    for round in 0..12 {
        let service = arbitrary(&mut numbers);
        stage.put(&service)?;
        let zeroed = format!("shop/b{}", numbers.below(6) + 1);
        let force = serde_json::json!({"force": true});
        stage.agent.post(&crate::stage::path(&zeroed, "zero"), &force)?.expect_status(200);
        let status = stage.status("shop")?;
        let slots = status["slots"].as_u64().unwrap();
        let shown: BTreeMap<String, f64> =
            status["backends"].as_array().unwrap().iter().map(share("programmedShare", "name")).collect();
        let explained = explain(&stage, FRONTEND, "")?;
        let candidates: BTreeMap<String, f64> =
            explained["candidates"].as_array().unwrap().iter().map(share("share", "backend")).collect();
        let open: BTreeMap<String, f64> = shown.clone().into_iter().filter(|(_, share)| *share > 0.0).collect();
        assert_eq!(candidates, open, "round {round}: {explained}");
        assert!(!open.contains_key(&zeroed["shop/".len()..]), "round {round}: {zeroed} in {open:?}");
        if slots == 0 {
            assert_eq!(explained["verdict"], "refused", "round {round}");
            assert_eq!(client.spread(FRONTEND, 5).errors(), [("ECONNREFUSED".to_owned(), 5)].into());
        } else {
            // Twice the whole table, wherever it begins.
            assert!(slots <= 1000, "{status}");
            let report = client.run(&Load::connects(FRONTEND).count(2 * slots).threads(2));
            assert_all_answered(&report);
            let dialled: BTreeMap<String, u64> = report.by_server();
            let expected: BTreeMap<String, u64> =
                open.iter().map(|(name, share)| (name.clone(), (share * 2.0 * slots as f64).round() as u64)).collect();
            assert_eq!(dialled, expected, "round {round}: {}", service.json());
            assert_eq!(explained["verdict"], "steered", "round {round}");
        }
        stage.restore(&zeroed)?;
    }
    Ok(())
}

/// Name and share of an item, to twelve digits.
fn share(field: &'static str, name: &'static str) -> impl Fn(&Value) -> (String, f64) {
    move |item| (item[name].as_str().unwrap().to_owned(), (item[field].as_f64().unwrap() * 1e12).round() / 1e12)
}
