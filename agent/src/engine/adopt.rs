//! Services made of what the kernel steers, for a store that does not know it: names are lost, addresses and shares are not.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde_json::json;
use sluice_common::tables::{Balance, Endpoint, TableWord, UDP};

use super::{client::Options, event_loop::Engine};
use crate::{
    model::{Change, Origin, document::Document, parse},
    plan::{DataPlane, Entries, entry},
    source::files::FileEvent,
    view::events::EventKind,
};

impl<M: DataPlane> Engine<M> {
    /// Makes a service of each table, but for those that have a frontend of a document of the files. What takes no
    /// connections is left out: it stays so.
    pub(super) fn adopt_services(&mut self, looks: &[Vec<FileEvent>]) -> Result<()> {
        let held = self.machine.read().context("reading the tables")?;
        let of_files: BTreeSet<Endpoint> = looks.iter().flatten().flat_map(frontends).collect();
        let mut changes = Vec::new();
        for (id, table, _) in &held.services {
            let frontends: Vec<_> =
                held.frontends.iter().filter(|(_, service)| service == id).map(|(frontend, _)| *frontend).collect();
            if !frontends.is_empty() && !frontends.iter().any(|frontend| of_files.contains(frontend)) {
                changes.push(self.adopted(*id, *table, &frontends, &held)?);
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.change(&changes, Options::now()).context("making services of what the kernel steers")?;
        let message = format!("made {} services of what the kernel steers, as --adopt asks", changes.len());
        tracing::warn!("{message}: give them names of your own");
        self.note(EventKind::Adopted, None, message);
        Ok(())
    }

    fn adopted(&self, id: u32, table: TableWord, frontends: &[Endpoint], held: &Entries) -> Result<Change> {
        let mut slots: BTreeMap<u32, u32> = BTreeMap::new();
        for backend in self.machine.slots(table)? {
            *slots.entry(backend).or_default() += 1;
        }
        let is_closed = |node: u32| held.nodes.iter().any(|(closed, _)| *closed == node);
        let open = held.backends.iter().filter(|(_, backend)| backend.closed == 0 && !is_closed(backend.node));
        let backends = open.filter_map(|(id, backend)| {
            let address = Endpoint::v6(backend.address, backend.port, 0).socket_addr();
            Some(json!({"name": format!("b{id}"), "address": address.to_string(), "weight": slots.get(id)?}))
        });
        let balance = match table.balance() {
            balance if balance == Balance::Random as u32 => "random",
            balance if balance == Balance::Hash as u32 => "hash",
            _ => "spread",
        };
        let document = json!({
            "apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": format!("adopted-{id}")},
            "spec": {
                "frontends": frontends.iter().map(text).collect::<Vec<_>>(), "balance": balance,
                "onNoBackend": if table.pass() { "pass" } else { "refuse" }, "backends": backends.collect::<Vec<_>>(),
            },
        });
        let document = parse::service(document.to_string().as_bytes(), parse::DocumentFormat::Json)?;
        Ok(Change::PutService { document: Box::new(document), origin: Origin::Api, if_match: None })
    }
}

/// As documents write it.
fn text(frontend: &Endpoint) -> String {
    let protocol = if frontend.protocol == UDP { "/udp" } else { "" };
    format!("{}{protocol}", frontend.socket_addr())
}

/// The frontends that a file brings.
fn frontends(event: &FileEvent) -> Vec<Endpoint> {
    let FileEvent::Changed { documents, .. } = event else { return Vec::new() };
    let services = documents.iter().filter_map(|parsed| match &parsed.document {
        Document::Service(service) => Some(service),
        Document::Node(_) => None,
    });
    services.flat_map(|service| service.spec.frontends.iter().map(entry::endpoint)).collect()
}
