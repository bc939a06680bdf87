//! Documents of services, written the way a person would.

use serde_json::{Map, Value, json};

/// A `SteeredService` that grows field by field.
#[derive(Clone, Debug)]
pub struct Service {
    name: String,
    spec: Map<String, Value>,
}

impl Service {
    /// A service with one frontend and no backends.
    pub fn new(name: &str, frontend: &str) -> Self {
        let spec = Map::from_iter([("frontends".to_owned(), json!([])), ("backends".to_owned(), json!([]))]);
        Self { name: name.to_owned(), spec }.frontend(frontend)
    }

    /// One more frontend.
    pub fn frontend(self, frontend: &str) -> Self {
        self.push("frontends", json!(frontend))
    }

    /// One more backend, on no node.
    pub fn backend(self, name: &str, address: &str, weight: u32) -> Self {
        self.push("backends", json!({"name": name, "address": address, "weight": weight}))
    }

    /// One more backend, on a node.
    pub fn backend_on(self, node: &str, name: &str, address: &str, weight: u32) -> Self {
        self.push("backends", json!({"name": name, "address": address, "weight": weight, "node": node}))
    }

    /// One more backend, in a group.
    pub fn backend_in(self, group: &str, name: &str, address: &str, weight: u32) -> Self {
        self.push("backends", json!({"name": name, "address": address, "weight": weight, "group": group}))
    }

    /// One more group.
    pub fn group(self, name: &str, weight: u32) -> Self {
        self.push("groups", json!({"name": name, "weight": weight}))
    }

    /// Any other field of `spec`, for example `set("balance", "hash")`.
    pub fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.spec.insert(field.to_owned(), value.into());
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole document. JSON is YAML too.
    pub fn json(&self) -> Value {
        json!({
            "apiVersion": "sluice.dev/v1",
            "kind": "SteeredService",
            "metadata": {"name": self.name},
            "spec": self.spec,
        })
    }

    fn push(mut self, list: &str, item: Value) -> Self {
        if let Value::Array(items) = self.spec.entry(list).or_insert_with(|| json!([])) {
            items.push(item);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_has_what_was_said() {
        let service = Service::new("s", "10.96.0.10:80").backend_on("n", "b", "10.0.0.1:80", 5).set("balance", "hash");
        let backend = json!({"name": "b", "address": "10.0.0.1:80", "weight": 5, "node": "n"});
        assert_eq!(service.json()["metadata"]["name"], "s");
        let spec = json!({"frontends": ["10.96.0.10:80"], "backends": [backend], "balance": "hash"});
        assert_eq!(service.json()["spec"], spec);
    }
}
