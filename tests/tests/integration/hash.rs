//! Affinity: a client stays with its backend while the weights of others move, and a zero ends it at once.

use std::collections::BTreeMap;

use anyhow::Result;
use sluice_tests::{Cgroup, Client};

use crate::stage::{FRONTEND, Stage};

pub fn stage(label: &str, weights: &[u32]) -> Result<Stage> {
    let mut stage = Stage::new(label)?;
    stage.world.namespace.ip("route add local 10.9.0.0/16 dev lo")?;
    let service = stage.service(weights)?;
    stage.put(&service.set("balance", "hash"))?;
    Ok(stage)
}

#[test]
fn callers_are_told_apart_by_their_cgroup() -> Result<()> {
    let stage = stage("cgroups", &[1, 1])?;
    let cgroups: Vec<Cgroup> =
        (0..24).map(|number| stage.world.cgroup.child(&format!("c{number}"))).collect::<Result<_>>()?;
    let mut counts = BTreeMap::new();
    for cgroup in &cgroups {
        let client = Client::start(Some(cgroup), Some(&stage.world.namespace))?;
        let servers = client.spread(FRONTEND, 10).by_server();
        assert_eq!(servers.len(), 1, "{servers:?}");
        *counts.entry(servers.into_keys().next().unwrap()).or_insert(0) += 1;
    }
    // All 24 on one side: once in eight million runs.
    assert_eq!(counts.len(), 2, "{counts:?}");
    Ok(())
}
