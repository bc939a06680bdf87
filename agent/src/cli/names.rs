//! Names as people write them, with or without their kind: `shop`, `service/shop`, `node/node-1`, `shop/n1`,
//! `service/shop/n1`. A kind is never taken for a service's name.

use crate::model::{Name, Target};

const SERVICE: &str = "service/";

/// What is described or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Named {
    Service(String),
    Node(String),
    Backend { service: String, backend: String },
}

impl Named {
    pub fn read(text: &str) -> Self {
        if let Some(node) = text.strip_prefix("node/") {
            return Self::Node(node.to_owned());
        }
        let bare = service_name(text);
        match bare.split_once('/') {
            None => Self::Service(bare.to_owned()),
            Some((service, backend)) => Self::Backend { service: service.to_owned(), backend: backend.to_owned() },
        }
    }
}

/// The name of a service without its kind.
pub fn service_name(text: &str) -> &str {
    text.strip_prefix(SERVICE).unwrap_or(text)
}

/// [`service_name`], for the parsers of arguments.
///
/// # Errors
/// Never: what is no name is not there, and the agent says so.
#[allow(clippy::unnecessary_wraps)]
pub fn service(text: &str) -> Result<String, String> {
    Ok(service_name(text).to_owned())
}

/// The name of a node without its kind.
///
/// # Errors
/// Never, as [`service`].
#[allow(clippy::unnecessary_wraps)]
pub fn node(text: &str) -> Result<String, String> {
    Ok(text.strip_prefix("node/").unwrap_or(text).to_owned())
}

/// A node or a backend.
///
/// # Errors
/// What to write instead.
pub fn target(text: &str) -> Result<Target, String> {
    let Some(bare) = text.strip_prefix(SERVICE) else { return text.parse().map_err(|error| format!("{error}")) };
    let Some((service, backend)) = bare.split_once('/') else {
        return Err(format!("{text} is a whole service: name one of its backends, as in {bare}/n1"));
    };
    let name = |text: &str| Name::new(text).map_err(|error| error.to_string());
    Ok(Target::Backend { service: name(service)?, backend: name(backend)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_may_be_written_and_left_out() {
        let backend =
            |service: &str, backend: &str| Named::Backend { service: service.into(), backend: backend.into() };
        for (text, named) in [
            ("shop", Named::Service("shop".into())),
            ("service/shop", Named::Service("shop".into())),
            ("node/a", Named::Node("a".into())),
            ("shop/n1", backend("shop", "n1")),
            ("service/shop/n1", backend("shop", "n1")),
            ("service/node/n1", backend("node", "n1")),
        ] {
            assert_eq!(Named::read(text), named, "{text}");
        }
        assert_eq!(target("service/shop/n1").unwrap().to_string(), "shop/n1");
        assert_eq!(
            target("service/node/n1").unwrap(),
            Target::Backend { service: Name::new("node").unwrap(), backend: Name::new("n1").unwrap() }
        );
        assert_eq!(target("node/a").unwrap(), Target::Node(Name::new("a").unwrap()));
        assert!(target("service/shop").unwrap_err().contains("shop/n1"));
        assert!(target("shop").unwrap_err().contains("SERVICE/BACKEND"));
    }
}
