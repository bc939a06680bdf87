//! Keeps what is attached and pinned as it should be: looks, and puts back what is missing.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result};
use sluice_common::registry::{self, Keep};

use super::{
    cgroup::{Links, RunningPrograms},
    ears::{Ears, identity},
    query,
};
use crate::{
    control::attachment::{AttachmentLook, Neighbour},
    kernel::{
        object::Object,
        pins::{Directory, Lock, pin_over},
        sys::Map,
    },
};

/// For one thread.
pub struct Keeper {
    directory: Directory,
    links: Arc<Links>,
    /// The tables that are pinned, with their names and ids.
    tables: Vec<(&'static str, u32, Map)>,
    /// Which directory of pins this agent owns; with the lock of one that was made since it started.
    owned: (Option<(u64, u64)>, Option<Lock>),
    ears: Ears,
    /// Directories to listen in.
    places: Vec<PathBuf>,
    /// Of the programs of others, by id.
    names: HashMap<u32, String>,
}

impl Keeper {
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new(directory: &Directory, object: &Object, links: Arc<Links>, cgroup: &Path) -> Result<Self> {
        let mut tables = Vec::new();
        for table in registry::ALL.iter().filter(|table| table.keep == Keep::Pinned) {
            let map = object.map(table)?;
            let id = map.info().with_context(|| format!("asking which table {} is", table.name))?.id;
            tables.push((table.name, id, map));
        }
        let path = directory.path();
        let above = [path, cgroup].into_iter().filter_map(Path::parent).map(Path::to_owned);
        Ok(Self {
            directory: directory.clone(),
            links,
            tables,
            owned: (identity(path), None),
            ears: Ears::new(vec![path.to_owned(), cgroup.to_owned()]),
            places: above.chain([path.to_owned(), path.join("links"), path.join("maps")]).collect(),
            names: HashMap::new(),
        })
    }

    /// What is missing now, and who else is on the hooks.
    pub fn look(&mut self) -> AttachmentLook {
        // Before the look, so that nothing can happen in between unseen.
        self.ears.follow(&self.places);
        let mut look = AttachmentLook::default();
        let (running, noticed) = self.links.look();
        self.names.retain(|id, _| running.iter().any(|hook| hook.ids.as_ref().is_ok_and(|ids| ids.contains(id))));
        for hook in running {
            if !hook.is_attached() || noticed.contains(&hook.program) {
                look.missing.programs.push(hook.program);
            }
            let neighbours = neighbours(&hook, |id| self.names.entry(id).or_insert_with(|| name(id)).clone());
            if !neighbours.is_empty() {
                look.neighbours.insert(hook.program, neighbours);
            }
        }
        let tables = self.unpinned().map(|(name, _)| self.directory.map(name));
        let pins = self.links.unpinned().into_iter().chain(tables);
        look.missing.pins = pins.map(|pin| pin.display().to_string()).collect();
        look
    }

    /// Attaches and pins what is missing.
    ///
    /// # Errors
    /// When something of it is missing still.
    pub fn put_back(&mut self) -> Result<()> {
        // What steers goes before what keeps it.
        let attached = self.links.put_back();
        let pinned = self.pin_again();
        attached.and(pinned)
    }

    /// See [`Ears::wait`].
    pub fn wait(&self, longest: Duration) {
        self.ears.wait(longest);
    }

    fn pin_again(&mut self) -> Result<()> {
        let directory = Directory::open(self.directory.path())?;
        let found = identity(directory.path());
        if self.owned.0 != found {
            self.owned = (found, Some(directory.lock()?));
        }
        self.links.pin_again()?;
        self.unpinned().try_for_each(|(name, map)| pin_over(map.fd(), &self.directory.map(name)))
    }

    /// Tables that are not found where their pins belong.
    fn unpinned(&self) -> impl Iterator<Item = (&'static str, &Map)> {
        let is_pinned = move |name: &str, id: u32| {
            let found = Map::pinned(&self.directory.map(name)).and_then(|map| map.info());
            found.is_ok_and(|found| found.id == id)
        };
        let unpinned = self.tables.iter().filter(move |(name, id, _)| !is_pinned(name, *id));
        unpinned.map(|(name, _, map)| (*name, map))
    }
}

/// The programs of others on one hook.
fn neighbours(hook: &RunningPrograms, mut name: impl FnMut(u32) -> String) -> Vec<Neighbour> {
    let Ok(ids) = &hook.ids else { return Vec::new() };
    let own = ids.iter().position(|id| *id == hook.own);
    let others = ids.iter().enumerate().filter(|(place, _)| Some(*place) != own);
    others
        .map(|(place, id)| Neighbour { id: *id, name: name(*id), before: own.is_some_and(|own| place < own) })
        .collect()
}

/// The name of a program, if it has one and is still there.
pub fn name(id: u32) -> String {
    query::program_with_id(id).map(|info| info.name()).unwrap_or_default()
}
