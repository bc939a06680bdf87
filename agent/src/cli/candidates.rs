//! Names that could complete a word of the command line, asked of the agent. Whatever goes wrong, there are none.

use std::{collections::BTreeSet, env, ffi::OsString, future::Future, path::PathBuf, time::Duration};

use clap_complete::{ArgValueCandidates, CompletionCandidate};
use serde::Deserialize;
use tokio::time::timeout;

use super::{client::Client, tls::TlsOptions};
use crate::http::views::List;

/// Who types waits for this long at most.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
struct NamedItem {
    metadata: ItemMetadata,
    #[serde(default)]
    spec: ServiceParts,
}

#[derive(Deserialize)]
struct ItemMetadata {
    name: String,
}

/// What has names in a service.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ServiceParts {
    backends: Vec<NamedPart>,
    groups: Vec<NamedPart>,
}

#[derive(Deserialize)]
struct NamedPart {
    name: String,
}

/// `shop`.
pub fn services() -> ArgValueCandidates {
    ArgValueCandidates::new(|| asked(async |client| Ok(names(all(&client, "services").await?))))
}

/// `node-1`.
pub fn nodes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| asked(async |client| Ok(names(all(&client, "nodes").await?))))
}

/// `n1`.
pub fn backends() -> ArgValueCandidates {
    ArgValueCandidates::new(|| parts(|service| service.backends))
}

/// `canary`.
pub fn groups() -> ArgValueCandidates {
    ArgValueCandidates::new(|| parts(|service| service.groups))
}

/// `node/node-1` and `shop/n1`.
pub fn targets() -> ArgValueCandidates {
    ArgValueCandidates::new(|| asked(async |client| found(&client, false).await))
}

/// As [`targets`], and `shop`.
pub fn named() -> ArgValueCandidates {
    ArgValueCandidates::new(|| asked(async |client| found(&client, true).await))
}

/// `services`, `service/shop`, `node/node-1`.
pub fn selections() -> ArgValueCandidates {
    let kinds = ["services", "nodes", "operations"].map(ToOwned::to_owned);
    let named = async |client: Client| {
        let services = names(all(&client, "services").await?).into_iter().map(|name| format!("service/{name}"));
        let nodes = names(all(&client, "nodes").await?).into_iter().map(|name| format!("node/{name}"));
        Ok(services.chain(nodes).collect())
    };
    ArgValueCandidates::new(move || kinds.iter().map(CompletionCandidate::new).chain(asked(named)).collect::<Vec<_>>())
}

async fn found(client: &Client, whole: bool) -> Result<Vec<String>, super::Failure> {
    let mut found: Vec<_> = names(all(client, "nodes").await?).into_iter().map(|node| format!("node/{node}")).collect();
    for NamedItem { metadata: ItemMetadata { name }, spec } in all(client, "services").await? {
        found.extend(spec.backends.iter().map(|backend| format!("{name}/{}", backend.name)));
        found.extend(whole.then_some(name));
    }
    Ok(found)
}

fn parts(of: fn(ServiceParts) -> Vec<NamedPart>) -> Vec<CompletionCandidate> {
    asked(async |client| {
        let services = all(&client, "services").await?;
        let parts: BTreeSet<_> =
            services.into_iter().flat_map(|service| of(service.spec)).map(|part| part.name).collect();
        Ok(parts.into_iter().collect())
    })
}

async fn all(client: &Client, kind: &str) -> Result<Vec<NamedItem>, super::Failure> {
    Ok(client.get::<List<NamedItem>>(&format!("/v1/{kind}")).await?.items)
}

fn names(items: Vec<NamedItem>) -> Vec<String> {
    items.into_iter().map(|item| item.metadata.name).collect()
}

fn asked<F: Future<Output = Result<Vec<String>, super::Failure>>>(
    ask: impl FnOnce(Client) -> F,
) -> Vec<CompletionCandidate> {
    let names = client().and_then(|client| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
        runtime.block_on(async { timeout(PATIENCE, ask(client)).await.ok()?.ok() })
    });
    names.unwrap_or_default().into_iter().map(CompletionCandidate::new).collect()
}

/// Of the agent that the words before say, or the environment.
fn client() -> Option<Client> {
    let words: Vec<_> = env::args_os().collect();
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    let (socket, server) = (said(&words, "--socket"), said(&words, "--server"));
    let server = server.or_else(|| variable("SLUICE_SERVER").filter(|_| socket.is_none()));
    let server = server.map(|url| url.to_string_lossy().into_owned());
    let socket = socket.or_else(|| variable("SLUICE_SOCKET"));
    let file = |flag: &str, name| said(&words, flag).or_else(|| variable(name)).map(PathBuf::from);
    let tls = TlsOptions {
        ca: file("--ca", "SLUICE_CA"),
        cert: file("--cert", "SLUICE_CERT"),
        key: file("--key", "SLUICE_KEY"),
    };
    let token = file("--token-file", "SLUICE_TOKEN_FILE");
    Client::new(socket.map(Into::into), server, token.as_deref(), &tls).ok()
}

/// What follows a flag, as a word of its own or behind `=`.
fn said(words: &[OsString], flag: &str) -> Option<OsString> {
    let inside = |word: &OsString| Some(word.to_str()?.strip_prefix(flag)?.strip_prefix('=')?.into());
    let after = || words.iter().position(|word| word == flag).and_then(|place| words.get(place + 1)).cloned();
    words.iter().find_map(inside).or_else(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_found_however_it_is_written() {
        let words = |line: &str| line.split_whitespace().map(OsString::from).collect::<Vec<_>>();
        for (line, found) in [
            ("sluice --socket /s zero", Some("/s")),
            ("sluice zero --socket=/s x", Some("/s")),
            ("sluice zero x --socket", None),
            ("sluice zero", None),
        ] {
            assert_eq!(said(&words(line), "--socket"), found.map(OsString::from), "{line}");
        }
    }
}
