//! Tests of the sources with real files and processes.

mod damage;
mod files;
mod reconcile;
mod store;
mod watcher;

/// A service document in YAML, with one backend of this weight.
pub fn yaml(name: &str, host: u8, weight: u32) -> String {
    format!(
        "apiVersion: sluice.dev/v1\nkind: SteeredService\nmetadata: {{name: {name}}}\nspec:\n  \
         frontends: [\"10.96.0.{host}:80\"]\n  backends:\n  \
         - {{name: n1, address: \"10.0.0.{host}:8080\", weight: {weight}}}\n"
    )
}

/// A node document in YAML.
pub fn node_yaml(name: &str) -> String {
    format!("apiVersion: sluice.dev/v1\nkind: Node\nmetadata: {{name: {name}}}\n")
}
