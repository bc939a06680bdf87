//! What stands in the path and the query of a request.

use axum::{
    extract::{FromRequestParts, Path, Query},
    http::request::Parts,
};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

use super::problem::Problem;
use crate::model::{Name, Target, words::plainly};

/// Parts of the path.
#[derive(Debug)]
pub struct At<T>(pub T);

/// Parameters of the query. An unknown one is an error: `?dryrun=true` must not do what `?dryRun=true` would not.
#[derive(Debug)]
pub struct Ask<T>(pub T);

/// Parameters of a write.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct WriteQuery {
    /// Validate, show the plan, change nothing.
    #[param(required = false)]
    pub dry_run: bool,
    /// Do it even if a service is left without enough open capacity.
    #[param(required = false)]
    pub force: bool,
}

/// Parameters of a write of many documents.
#[derive(Clone, Copy, Debug, Default, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub struct ApplyQuery {
    /// Validate, show the plan, change nothing.
    #[param(required = false)]
    pub dry_run: bool,
    /// Do it even if a service is left without enough open capacity.
    #[param(required = false)]
    pub force: bool,
    /// Remove the services that the body does not have, but for those of watched files.
    #[param(required = false)]
    pub prune: bool,
    /// With `prune`: however much goes.
    #[param(required = false)]
    pub accept_shrink: bool,
}

/// Parameters of a read that has none.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NoQuery {}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for At<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(found)) => Ok(Self(found)),
            Err(rejection) => Err(Problem::not_found(rejection.body_text())),
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Ask<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Query::try_from_uri(&parts.uri).map(|Query(found)| Self(found)).map_err(|rejection| {
            let text = rejection.body_text();
            let text = text.split_once("query string: ").map_or(text.as_str(), |(_, why)| why);
            // `name: why`, or a sentence with the name of a parameter that is unknown or missing.
            let (name, why) = text.split_once(": ").unwrap_or((text.split('`').nth(1).unwrap_or_default(), text));
            let problem = Problem::bad_request(plainly(why));
            if name.is_empty() { problem } else { problem.at(name) }
        })
    }
}

/// The node or the backend of a path.
impl<S: Send + Sync> FromRequestParts<S> for Target {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct PathNames {
            node: Option<String>,
            service: String,
            backend: String,
        }
        let At(PathNames { node, service, backend }) = At::from_request_parts(parts, state).await?;
        match node {
            Some(node) => Ok(Self::Node(self::node(&node)?)),
            None => self::backend(&service, &backend),
        }
    }
}

/// The group of a path, and its service.
#[derive(Debug)]
pub struct GroupOf {
    pub service: Name,
    pub group: Name,
}

impl<S: Send + Sync> FromRequestParts<S> for GroupOf {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let At((service, group)): At<(String, String)> = At::from_request_parts(parts, state).await?;
        let service = self::service(&service)?;
        let no_group = |error| Problem::not_found(format!("service {service} has no group {group:?}: {error}"));
        Ok(Self { group: Name::new(&group).map_err(no_group)?, service })
    }
}

/// The service of a path. What cannot be a name is not there.
///
/// # Errors
/// 404.
pub fn service(text: &str) -> Result<Name, Problem> {
    Name::new(text).map_err(|error| Problem::not_found(format!("there is no service {text:?}: {error}")))
}

/// The node of a path.
///
/// # Errors
/// 404.
pub fn node(text: &str) -> Result<Name, Problem> {
    Name::new(text).map_err(|error| Problem::not_found(format!("there is no node {text:?}: {error}")))
}

fn backend(service_text: &str, backend: &str) -> Result<Target, Problem> {
    let service = service(service_text)?;
    let backend = Name::new(backend)
        .map_err(|error| Problem::not_found(format!("service {service} has no backend {backend:?}: {error}")))?;
    Ok(Target::Backend { service, backend })
}
