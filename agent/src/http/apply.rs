//! /v1/apply: many documents as one change, all or none.

use std::collections::{BTreeMap, BTreeSet};

use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::Value;

use super::{
    App,
    access::RequestAuthor,
    body::BulkInput,
    parameters::{ApplyQuery, Ask},
    problem::{Problem, WriteProblems},
    views::{ApplyItem, ApplyView, Effect},
    write,
};
use crate::{
    engine::{client::Options, guards::Guards},
    model::{
        Change, Name, Origin, State as Desired,
        document::{Document, DocumentKey},
        parse,
    },
    view::listeners::warnings,
};

/// Makes or replaces everything in the body, as one change: all of it or nothing, judged by what comes of it. Several
/// YAML documents are separated by `---`, several JSON documents follow one another, and a list of documents
/// (`items`), as a GET of a collection answers, stands for its items. Up to 64 MiB over the Unix socket, 4 MiB over TCP.
/// With `prune`, when more than a share of the backends that are there would go (the agent's `--shrink-limit`), all of it
/// is refused (409) unless `acceptShrink` is true.
#[utoipa::path(post, path = "/v1/apply", tag = "services", params(ApplyQuery),
    request_body(content((String = "application/yaml"), (Object = "application/json"))),
    responses((status = 200, description = "All of them, or with dryRun what would be", body = ApplyView), WriteProblems))]
pub async fn apply(
    State(app): State<App>,
    Ask(query): Ask<ApplyQuery>,
    author: Option<Extension<RequestAuthor>>,
    BulkInput(input): BulkInput,
) -> Result<Response, Problem> {
    let (bytes, format) = input.documents()?;
    // Thousands of documents take a while, and other requests go on meanwhile.
    let text = bytes.clone();
    let parsed = tokio::task::spawn_blocking(move || parse::documents(&text, format));
    let parsed = parsed.await.map_err(anyhow::Error::new)??;
    let documents: Vec<Document> = parsed.into_iter().map(|parsed| parsed.document).collect();
    let mut keys = unique(&documents)?;
    let mut changes: Vec<_> = documents.into_iter().map(change).collect();
    if query.prune {
        let kept: BTreeSet<_> = keys.iter().cloned().collect();
        for name in made_by_requests(&app.handle.published().state) {
            let key = DocumentKey::Service(name.clone());
            if !kept.contains(&key) {
                changes.push(Change::DeleteService { service: name, if_match: None });
                keys.push(key);
            }
        }
    }
    let guards = Guards { capacity: !query.force, shrink: query.prune && !query.accept_shrink };
    let by = author.map(|Extension(RequestAuthor(who))| who);
    let options = Options { dry_run: query.dry_run, received: input.received, guards, by };
    let done = app.handle.batch(changes, options).await?;
    let items = keys.iter().map(|key| item(key, &done.before, &done.published.state, query.dry_run));
    let overruled = keys.iter().filter(|_| !query.dry_run).filter_map(|key| match key {
        DocumentKey::Service(name) => write::overruled(&done.before, name, write::CHANGED),
        DocumentKey::Node(_) => None,
    });
    let warnings: Vec<_> = write::unsaved(&done).into_iter().chain(overruled).collect();
    let view = ApplyView {
        dry_run: query.dry_run,
        items: items.collect::<Result<_, _>>()?,
        programmed_in_microseconds: u64::try_from(done.programmed_in.as_micros()).unwrap_or(u64::MAX),
        plan: done.plan,
    };
    Ok(write::warned(Json(view).into_response(), warnings.into_iter()))
}

/// Services that no file brings.
fn made_by_requests(state: &Desired) -> impl Iterator<Item = Name> {
    let services = state.services().filter(|service| matches!(service.origin, Origin::Api));
    services.map(|service| service.name.clone())
}

fn change(document: Document) -> Change {
    match document {
        Document::Service(document) => Change::PutService { document, origin: Origin::Api, if_match: None },
        Document::Node(document) => Change::PutNode { document },
    }
}

/// Keys of the documents. That one thing is described twice is a mistake: only one of them could hold.
fn unique(documents: &[Document]) -> Result<Vec<DocumentKey>, Problem> {
    let mut places = BTreeMap::new();
    let mut keys = Vec::with_capacity(documents.len());
    for (index, document) in documents.iter().enumerate() {
        let key = document.key();
        if let Some(first) = places.insert(key.clone(), index + 1) {
            let detail = format!("documents {first} and {} both describe {key}: keep one", index + 1);
            return Err(Problem::invalid("metadata.name", detail));
        }
        keys.push(key);
    }
    Ok(keys)
}

fn item(key: &DocumentKey, before: &Desired, after: &Desired, show: bool) -> Result<ApplyItem, Problem> {
    let effect = match (generation(key, before), generation(key, after)) {
        (None, _) => Effect::Created,
        (Some(_), None) => Effect::Deleted,
        (Some(old), Some(new)) if old == new => Effect::Unchanged,
        (Some(_), Some(_)) => Effect::Replaced,
    };
    let show = show && effect != Effect::Unchanged;
    let shown = |state| if show { document(key, state) } else { Ok(None) };
    let warnings = match key {
        DocumentKey::Service(name) if effect != Effect::Unchanged => {
            let former = before.service(name.as_str()).map(AsRef::as_ref);
            after.service(name.as_str()).map(|service| warnings(former, service))
        }
        DocumentKey::Service(_) | DocumentKey::Node(_) => None,
    };
    let (object, warnings) = (key.to_string(), warnings.unwrap_or_default());
    Ok(ApplyItem { object, effect, warnings, before: shown(before)?, after: shown(after)? })
}

fn generation(key: &DocumentKey, state: &Desired) -> Option<u64> {
    match key {
        DocumentKey::Node(name) => state.node(name.as_str()).map(|node| node.generation),
        DocumentKey::Service(name) => state.service(name.as_str()).map(|service| service.generation),
    }
}

fn document(key: &DocumentKey, state: &Desired) -> Result<Option<Value>, Problem> {
    let document = match key {
        DocumentKey::Node(name) => state.node(name.as_str()).map(|node| serde_json::to_value(node.document())),
        DocumentKey::Service(name) => {
            state.service(name.as_str()).map(|service| serde_json::to_value(state.document(service).redacted()))
        }
    };
    Ok(document.transpose().map_err(anyhow::Error::new)?)
}
