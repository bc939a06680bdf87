//! From the documents of files to changes of the state. Pure: the same files, state and hashes give the same changes. A
//! document is applied when its content changed since it was last applied from that file, so that changes made over the
//! API in between stay, also across restarts.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::Result;
use imbl::OrdMap;
use jiff::Timestamp;

use super::{files::FileEvent, store::AppliedMark};
use crate::model::{
    Change, Name, Origin, Refusal, State, Touched,
    document::{Document, DocumentKey},
    parse::{ContentHash, Parsed},
};

/// What is refused may become possible by what was not. So many rounds are made as long as each gets something done.
const ROUNDS: u32 = 16;

/// The result of events. `touched` and `marks` belong into one transaction of the store.
#[derive(Clone, Debug)]
pub struct Reconciled {
    pub state: State,
    pub touched: Touched,
    pub marks: Vec<AppliedMark>,
    pub problems: Vec<DocumentProblem>,
}

/// A file or one of its documents that could not be applied; what was there before stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentProblem {
    pub file: PathBuf,
    /// `None`: the file as a whole.
    pub document: Option<DocumentKey>,
    pub message: String,
}

/// Documents that must wait because their tables find no room, by their keys.
pub type Excluded = BTreeMap<DocumentKey, Refusal>;

/// Applies the events of each scan, and tries refused documents again when something else has changed. Cloning is cheap;
/// a clone is restored when a commit fails.
#[derive(Clone, Debug, Default)]
pub struct Reconciler {
    refused: OrdMap<PathBuf, Vec<Parsed>>,
    /// The file that declares each node, by document key. (A service knows its origin.)
    nodes: OrdMap<Name, PathBuf>,
}

/// A change, and what is saved once it is made.
type Made = (AppliedMark, Change);

/// What one document leads to.
#[derive(Debug)]
struct DocumentStep {
    /// Saved once the change is made.
    mark: AppliedMark,
    /// `None`: only the mark is to be saved.
    change: Option<Change>,
}

impl Reconciler {
    /// Applies the events of one scan. All at once, because a document may move from one file to another. `applied`
    /// gives the saved hashes of a file.
    ///
    /// # Errors
    /// That of `applied`.
    pub fn handle(
        &mut self,
        events: &[FileEvent],
        applied: impl Fn(&Path) -> Result<BTreeMap<DocumentKey, ContentHash>>,
        state: &State,
        excluded: &Excluded,
        now: Timestamp,
    ) -> Result<Reconciled> {
        let mut outcome = Reconciled::new(state);
        let mut contents = Vec::new();
        for event in events {
            match event {
                FileEvent::Changed { file, documents } => contents.push((file, documents.as_slice())),
                FileEvent::Removed { file } => contents.push((file, [].as_slice())),
                FileEvent::Failed { file, error } => {
                    outcome.problems.push(DocumentProblem {
                        file: file.clone(),
                        document: None,
                        message: error.clone(),
                    });
                }
            }
        }
        let mut coming = BTreeSet::new();
        for (file, documents) in &contents {
            self.refused.remove(*file);
            for parsed in *documents {
                let key = parsed.document.key();
                if let DocumentKey::Node(name) = &key {
                    self.nodes.insert(name.clone(), (*file).clone());
                }
                coming.insert(key);
            }
        }
        let (mut going, mut puts) = (Vec::new(), Vec::new());
        for (file, documents) in &contents {
            let applied = applied(file)?;
            let listed: BTreeSet<_> = documents.iter().map(|parsed| parsed.document.key()).collect();
            for key in applied.keys().filter(|key| !listed.contains(*key)) {
                let change = if coming.contains(key) { None } else { self.removal(state, file, key) };
                going.push(DocumentStep { mark: mark(file, key.clone(), None), change });
            }
            puts.extend(documents.iter().filter_map(|parsed| step(state, &applied, file, parsed)));
        }
        // Removals first: they may be in the way of what comes.
        going.append(&mut puts);
        let refused = outcome.run(going, excluded, now);
        self.remember(&contents, &refused);
        outcome.problems.extend(refused.into_iter().map(|(mark, refusal)| DocumentProblem {
            file: mark.file,
            document: Some(mark.document),
            message: refusal.to_string(),
        }));
        if !outcome.is_empty() {
            self.retry_into(&mut outcome, excluded, now);
        }
        Ok(outcome)
    }

    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Tries refused documents again. Free when there are none.
    pub fn retry(&mut self, state: &State, excluded: &Excluded, now: Timestamp) -> Reconciled {
        let mut outcome = Reconciled::new(state);
        self.retry_into(&mut outcome, excluded, now);
        outcome
    }

    fn retry_into(&mut self, outcome: &mut Reconciled, excluded: &Excluded, now: Timestamp) {
        for (file, mut documents) in std::mem::take(&mut self.refused) {
            // Their problems were reported when they came.
            let refused = outcome.run(documents.iter().map(|parsed| put(&file, parsed)).collect(), excluded, now);
            documents.retain(|parsed| refused.iter().any(|(mark, _)| mark.document == parsed.document.key()));
            if !documents.is_empty() {
                self.refused.insert(file, documents);
            }
        }
        let solved = |problem: &DocumentProblem| match (&problem.document, self.refused.get(&problem.file)) {
            (Some(key), Some(refused)) => refused.iter().all(|parsed| parsed.document.key() != *key),
            (Some(_), None) => true,
            (None, _) => false,
        };
        outcome.problems.retain(|problem| !solved(problem));
    }

    fn remember(&mut self, contents: &[(&PathBuf, &[Parsed])], refused: &[(AppliedMark, Refusal)]) {
        let refused: BTreeSet<_> = refused.iter().map(|(mark, _)| (&mark.file, &mark.document)).collect();
        for (file, documents) in contents {
            let is_refused = |parsed: &&Parsed| refused.contains(&(*file, &parsed.document.key()));
            let again: Vec<_> = documents.iter().filter(is_refused).cloned().collect();
            if !again.is_empty() {
                self.refused.insert((*file).clone(), again);
            }
        }
    }

    /// The change that removes a document of `file`, unless another file has taken it over.
    fn removal(&mut self, state: &State, file: &Path, key: &DocumentKey) -> Option<Change> {
        match key {
            DocumentKey::Node(name) => {
                if self.nodes.get(name).is_some_and(|other| other != file) {
                    return None;
                }
                self.nodes.remove(name);
                let is_declared = state.node(name.as_str())?.declared;
                is_declared.then(|| Change::UndeclareNode { node: name.clone() })
            }
            DocumentKey::Service(name) => {
                let is_own = matches!(&state.service(name.as_str())?.origin, Origin::File(owner) if owner == file);
                is_own.then(|| Change::DeleteService { service: name.clone(), if_match: None })
            }
        }
    }
}

impl Reconciled {
    fn new(state: &State) -> Self {
        Self { state: state.clone(), touched: Touched::default(), marks: Vec::new(), problems: Vec::new() }
    }

    /// Whether there is nothing to save.
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty() && self.marks.is_empty()
    }

    /// Makes the changes that can be made, as many together as can; returns the others with the reasons.
    fn run(&mut self, steps: Vec<DocumentStep>, excluded: &Excluded, now: Timestamp) -> Vec<(AppliedMark, Refusal)> {
        let (mut open, mut waiting) = (Vec::new(), Vec::new());
        for DocumentStep { mark, change } in steps {
            match (change, excluded.get(&mark.document)) {
                (Some(_), Some(refusal)) => waiting.push((mark, refusal.clone())),
                (Some(change), None) => open.push((mark, change)),
                (None, _) => self.marks.push(mark),
            }
        }
        let mut refused = Vec::new();
        for _ in 0..ROUNDS {
            let before = open.len();
            refused = self.make(open, now);
            if refused.len() == before || refused.is_empty() {
                break;
            }
            open = refused.iter().map(|(step, _): &(_, Refusal)| Clone::clone(step)).collect();
        }
        waiting.extend(refused.into_iter().map(|((mark, _), refusal)| (mark, refusal)));
        waiting
    }

    /// Makes together what is left when those that cannot be made are set aside; returns these.
    fn make(&mut self, mut open: Vec<Made>, now: Timestamp) -> Vec<(Made, Refusal)> {
        let mut refused = Vec::new();
        loop {
            let changes: Vec<_> = open.iter().map(|(_, change)| change).collect();
            match self.state.apply_together(&changes, now) {
                Ok(applied) => {
                    self.state = applied.state;
                    self.touched.extend(applied.touched);
                    self.marks.extend(open.into_iter().map(|(mark, _)| mark));
                    return refused;
                }
                Err(refusals) => {
                    let mut refusals: BTreeMap<_, _> = refusals.into_iter().rev().collect();
                    let mut rest = Vec::new();
                    for (place, step) in open.into_iter().enumerate() {
                        match refusals.remove(&place) {
                            Some(refusal) => refused.push((step, refusal)),
                            None => rest.push(step),
                        }
                    }
                    open = rest;
                }
            }
        }
    }
}

fn mark(file: &Path, document: DocumentKey, hash: Option<ContentHash>) -> AppliedMark {
    AppliedMark { file: file.to_owned(), document, hash }
}

/// What a document of the file asks for; `None`: it is applied already.
fn step(
    state: &State,
    applied: &BTreeMap<DocumentKey, ContentHash>,
    file: &Path,
    parsed: &Parsed,
) -> Option<DocumentStep> {
    let key = parsed.document.key();
    if applied.get(&key) != Some(&parsed.hash) {
        return Some(put(file, parsed));
    }
    let change = claim(state, file, &parsed.document)?;
    Some(DocumentStep { mark: mark(file, key, Some(parsed.hash)), change: Some(change) })
}

fn put(file: &Path, parsed: &Parsed) -> DocumentStep {
    let change = match &parsed.document {
        Document::Service(document) => {
            let (document, origin) = (document.clone(), Origin::File(file.to_owned()));
            Change::PutService { document, origin, if_match: None }
        }
        Document::Node(document) => Change::PutNode { document: document.clone() },
    };
    DocumentStep { mark: mark(file, parsed.document.key(), Some(parsed.hash)), change: Some(change) }
}

/// Gives an unchanged document its service back, if the service went to another file meanwhile.
fn claim(state: &State, file: &Path, document: &Document) -> Option<Change> {
    let Document::Service(document) = document else { return None };
    let service = state.service(document.metadata.name.as_str())?;
    match &service.origin {
        Origin::File(owner) if owner != file => Some(Change::PutService {
            document: Box::new(state.document(service)),
            origin: Origin::File(file.to_owned()),
            if_match: None,
        }),
        Origin::File(_) | Origin::Api => None,
    }
}
