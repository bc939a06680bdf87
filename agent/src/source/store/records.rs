//! Records as they lie on the disk: the tables, and a checksum at the end of every record, over its key too. A bit that
//! flips is found, whatever it would have said.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use redb::{AccessGuard, ReadTransaction, ReadableTable, StorageError, TableDefinition, WriteTransaction};
use serde::{Serialize, de::DeserializeOwned};

use super::AppliedMark;
use crate::model::{NodeId, ServiceId, State, document::DocumentKey, parse::ContentHash};

pub const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
pub const SERVICES: TableDefinition<u32, &[u8]> = TableDefinition::new("services");
pub const NODES: TableDefinition<u32, &[u8]> = TableDefinition::new("nodes");
/// By file, whose name may be any bytes, and document.
pub const MARKS: TableDefinition<(&[u8], &str), &[u8]> = TableDefinition::new("marks");
pub const EXTRAS: TableDefinition<&str, &[u8]> = TableDefinition::new("extras");

/// Bytes of a checksum.
const SUM: usize = 8;

/// `record` with its checksum.
pub fn sealed(key: &[u8], record: &[u8]) -> Vec<u8> {
    [record, &sum(key, record)].concat()
}

/// The record without its checksum.
///
/// # Errors
/// When the checksum is another one.
pub fn unsealed<'a>(key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8]> {
    let (record, held) = sealed.split_last_chunk::<SUM>().context("it is too short")?;
    ensure!(*held == sum(key, record), "its checksum is wrong: the record is damaged");
    Ok(record)
}

/// FNV-1a, 64 bits: each step is a bijection, so that no change of a single byte goes unseen. No library's, because it must
/// never change.
fn sum(key: &[u8], record: &[u8]) -> [u8; SUM] {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
    key.iter().chain(record).fold(0xcbf2_9ce4_8422_2325, step).to_be_bytes()
}

/// One at a time: with all of them in memory, a start would take twice the memory that the agent needs later.
///
/// # Errors
/// When the table cannot be read, or has lost records: each of those that are damaged is an error of its own.
pub fn decoded<T: DeserializeOwned>(
    what: &'static str,
    table: &impl ReadableTable<u32, &'static [u8]>,
) -> Result<impl Iterator<Item = Result<T>>> {
    let (held, found) = (table.len()?, table.iter()?.count() as u64);
    ensure!(held == found, "of {held} saved {what}s, {found} can be found: its pages are damaged");
    let decoded = move |entry: Result<_, StorageError>| {
        let (id, value): (AccessGuard<u32>, AccessGuard<&[u8]>) = entry?;
        let record = unsealed(&id.value().to_be_bytes(), value.value());
        let record = record.and_then(|record| Ok(serde_json::from_slice(record)?));
        record.with_context(|| format!("the saved {what} of id {}", id.value()))
    };
    Ok(table.iter()?.map(decoded))
}

/// Hashes of the documents that were last applied from `file`. One whose mark is damaged is applied once more.
pub fn marks_of(read: &ReadTransaction, file: &Path) -> Result<BTreeMap<DocumentKey, ContentHash>> {
    let (table, file) = (read.open_table(MARKS)?, bytes(file));
    let mut applied = BTreeMap::new();
    for entry in table.range((file, "")..)? {
        let (key, value) = entry?;
        let (of, document) = key.value();
        if of != file {
            break;
        }
        match hash(file, document, value.value()) {
            Ok((document, hash)) => drop(applied.insert(document, hash)),
            Err(error) => tracing::error!("what {document:?} was applied from is not known any more: {error:#}"),
        }
    }
    Ok(applied)
}

pub fn files(read: &ReadTransaction) -> Result<BTreeSet<PathBuf>> {
    let table = read.open_table(MARKS)?;
    table.iter()?.map(|entry| Ok(PathBuf::from(OsStr::from_bytes(entry?.0.value().0)))).collect()
}

/// What is kept under names that begin with `prefix`. A record that is damaged is told, and left out.
pub fn extras(read: &ReadTransaction, prefix: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let table = read.open_table(EXTRAS)?;
    let mut found = Vec::new();
    for entry in table.range(prefix..)? {
        let (key, value) = entry?;
        if !key.value().starts_with(prefix) {
            break;
        }
        match unsealed(key.value().as_bytes(), value.value()) {
            Ok(record) => found.push((key.value().to_owned(), record.to_vec())),
            Err(error) => tracing::error!("the saved {:?} is left out: {error:#}", key.value()),
        }
    }
    Ok(found)
}

pub fn write_meta(transaction: &WriteTransaction, key: &str, value: &[u8]) -> Result<()> {
    transaction.open_table(META)?.insert(key, sealed(key.as_bytes(), value).as_slice())?;
    Ok(())
}

/// Writes what `state` has under each id, and removes the ids that it has not.
pub fn write_services(transaction: &WriteTransaction, state: &State, ids: &BTreeSet<ServiceId>) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(SERVICES)?;
    for id in ids {
        match state.service_by_id(*id) {
            Some(service) => drop(table.insert(id.0, record(id.0, &state.saved(service))?.as_slice())?),
            None => drop(table.remove(id.0)?),
        }
    }
    Ok(())
}

/// As [`write_services`].
pub fn write_nodes(transaction: &WriteTransaction, state: &State, ids: &BTreeSet<NodeId>) -> Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(NODES)?;
    for id in ids {
        match state.node_by_id(*id) {
            Some(node) => drop(table.insert(id.0, record(id.0, &node.saved())?.as_slice())?),
            None => drop(table.remove(id.0)?),
        }
    }
    Ok(())
}

/// Removes the marks that are in doubt, and writes the new ones.
pub fn write_marks(
    transaction: &WriteTransaction,
    marks: &[AppliedMark],
    doubtful: &BTreeSet<(PathBuf, DocumentKey)>,
) -> Result<()> {
    if marks.is_empty() && doubtful.is_empty() {
        return Ok(());
    }
    let mut table = transaction.open_table(MARKS)?;
    for (file, document) in doubtful {
        table.remove((bytes(file), &*document.to_string()))?;
    }
    for AppliedMark { file, document, hash } in marks {
        let (file, document) = (bytes(file), document.to_string());
        match hash {
            Some(hash) => {
                drop(table.insert((file, &*document), sealed(&mark_key(file, &document), &hash.0).as_slice())?)
            }
            None => drop(table.remove((file, &*document))?),
        }
    }
    Ok(())
}

pub fn write_extra(transaction: &WriteTransaction, key: &str, value: Option<&[u8]>) -> Result<()> {
    let mut table = transaction.open_table(EXTRAS)?;
    match value {
        Some(value) => drop(table.insert(key, sealed(key.as_bytes(), value).as_slice())?),
        None => drop(table.remove(key)?),
    }
    Ok(())
}

/// Makes the store what `state` is: records that are no part of it go, and what files brought of those comes again.
pub fn write_everything(transaction: &WriteTransaction, state: &State) -> Result<()> {
    let services = ids(&transaction.open_table(SERVICES)?)?.into_iter().map(ServiceId);
    let nodes = ids(&transaction.open_table(NODES)?)?.into_iter().map(NodeId);
    write_services(transaction, state, &services.chain(state.services().map(|service| service.id)).collect())?;
    write_nodes(transaction, state, &nodes.chain(state.nodes().map(|node| node.id)).collect())?;
    transaction.open_table(MARKS)?.retain(|(file, document), value| {
        let held = hash(file, document, value).ok();
        held.is_some_and(|(document, _)| match document {
            DocumentKey::Service(name) => state.service(name.as_str()).is_some(),
            DocumentKey::Node(name) => state.node(name.as_str()).is_some_and(|node| node.declared),
        })
    })?;
    Ok(())
}

fn ids(table: &impl ReadableTable<u32, &'static [u8]>) -> Result<Vec<u32>> {
    table.iter()?.map(|entry| Ok(entry?.0.value())).collect()
}

fn record(id: u32, saved: &impl Serialize) -> Result<Vec<u8>> {
    let record = serde_json::to_vec(saved).context("encoding a record")?;
    Ok(sealed(&id.to_be_bytes(), &record))
}

fn hash(file: &[u8], document: &str, value: &[u8]) -> Result<(DocumentKey, ContentHash)> {
    let hash = unsealed(&mark_key(file, document), value)?.try_into().context("it has another length")?;
    Ok((document.parse()?, ContentHash(hash)))
}

fn mark_key(file: &[u8], document: &str) -> Vec<u8> {
    [file, document.as_bytes()].join(&0u8)
}

fn bytes(file: &Path) -> &[u8] {
    file.as_os_str().as_bytes()
}
