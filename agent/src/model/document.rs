//! The documents: one shape in files and over HTTP.
//! The comments on the fields are the text of the OpenAPI document.

use std::{collections::BTreeMap, fmt, net::SocketAddr, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, de};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{
        RefOr, Schema,
        schema::{ObjectBuilder, Type},
    },
};

use super::{
    Frontend, Name, Outlier, Readiness, Span, Warmup, address,
    name::{self, NameError},
    quiet,
    service::{Balance, CloseAs, OnNoBackend, ServiceProtocol},
};

/// Most backends of one service.
pub const MAX_BACKENDS: usize = 10_000;
/// Most frontends of one service.
pub const MAX_FRONTENDS: usize = 64;
/// Most groups of one service.
pub const MAX_GROUPS: usize = 64;
/// Largest weight of a backend or a group.
pub const MAX_WEIGHT: u32 = 1_000_000;
/// Most labels of one document.
pub const MAX_LABELS: usize = 64;
/// Percent of healthy backends below which all serve, when a document does not say.
pub const DEFAULT_PANIC: u8 = 10;
/// Longest key or value of a label, in bytes.
pub const MAX_LABEL: usize = 253;

/// The version of the documents' shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ApiVersion {
    #[default]
    #[serde(rename = "sluice.dev/v1")]
    V1,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum ServiceKind {
    #[default]
    SteeredService,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum NodeKind {
    #[default]
    Node,
}

/// Addresses that applications connect to, and the backends that their connections go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceDocument {
    pub api_version: ApiVersion,
    pub kind: ServiceKind,
    pub metadata: Metadata,
    pub spec: ServiceSpec,
}

/// A host that backends run on. It exists as soon as a backend names it; a document gives it labels and keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeDocument {
    pub api_version: ApiVersion,
    pub kind: NodeKind,
    pub metadata: Metadata,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metadata {
    /// Unique among documents of this kind.
    pub name: Name,
    /// Free text for people and programs, such as `team: web`. At most 64, each key and value at most 253 bytes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceSpec {
    /// Addresses that applications connect to. Each belongs to one service only, and is no backend's address.
    #[schema(min_items = 1, max_items = 64)]
    pub frontends: Vec<Frontend>,
    /// How a backend is chosen.
    #[serde(default)]
    pub balance: Balance,
    /// What happens to a connection when no backend is open.
    #[serde(default)]
    pub on_no_backend: OnNoBackend,
    /// Percent of the service's capacity (by the shares of its groups and backends) that a zero, drain, weight or apply
    /// must leave open. One that would leave less is refused unless it is forced, and so is a zero, drain or weight that
    /// would leave no open backend at all.
    #[serde(default, deserialize_with = "percent")]
    #[schema(minimum = 0, maximum = 100)]
    pub min_ready_percent: u8,
    /// What the connections carry. A drain closes those of `request` when they are idle, and never a `stream`. Without it,
    /// a drain closes idle connections but for sessions, as far as they can be recognised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<ServiceProtocol>,
    /// Quiet after which a drain may close an idle connection, from `100ms` to `1h`. Longer than the longest pause
    /// within an answer. 2s when neither the service nor the drain says.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "quiet")]
    #[schema(value_type = Option<String>, example = "5s")]
    pub idle_close: Option<u32>,
    /// How a drain closes an idle connection. `eof`: both ends read the end of the stream, as if the other had closed;
    /// where that cannot be done, as with `abort`. `abort`: the caller gets ECONNABORTED, the server a reset.
    #[serde(default, skip_serializing_if = "is_default")]
    pub close_as: CloseAs,
    /// How long an answered flow of an unconnected datagram socket may be quiet before it is another flow, from `1s` to
    /// `24h`. 2m when not said; only for services with a UDP frontend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_timeout: Option<Span>,
    /// How a backend's share grows when it begins to take connections. Without it, it has its whole share at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// How it is found out whether a backend serves. Without it, every backend is taken for ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
    /// When a backend that misbehaves is taken out. Without it, none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier: Option<Outlier>,
    /// When fewer percent of the backends are healthy, all of them serve: then what finds them unhealthy is more
    /// likely at fault. It counts backends that have been ready before, and overrules no zero. 10 when not said; 0: never.
    #[serde(default = "default_panic", skip_serializing_if = "is_default_panic", deserialize_with = "percent")]
    #[schema(minimum = 0, maximum = 100, default = 10)]
    pub panic_threshold: u8,
    /// Measure the time from the end of each request to the begin of its answer, in the kernel.
    #[serde(default, skip_serializing_if = "is_default")]
    pub turn_time: bool,
    /// Groups share the connections by their weights, and each shares its part among its backends.
    /// Without groups all backends form one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 64)]
    pub groups: Vec<GroupDocument>,
    /// May be empty; must be written.
    #[schema(max_items = 10_000)]
    pub backends: Vec<BackendDocument>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GroupDocument {
    /// Unique in the service.
    pub name: Name,
    /// Share of the service's connections, relative to the other groups. 0: none.
    #[serde(default = "default_weight", deserialize_with = "weight")]
    #[schema(minimum = 0, maximum = 1_000_000, default = 100)]
    pub weight: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BackendDocument {
    /// Unique in the service.
    pub name: Name,
    /// Where connections go: `IP:port`. IPv4 when any frontend is IPv4; IPv6 when any frontend is IPv6 with UDP.
    #[serde(with = "address::text")]
    #[schema(value_type = String, example = "10.0.0.1:8080")]
    pub address: SocketAddr,
    /// The node that the backend runs on. Zeroing the node zeroes the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Name>,
    /// One of the service's groups. Must be written when there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Name>,
    /// Share of the group's connections, relative to its other backends. 0: none.
    #[serde(default = "default_weight", deserialize_with = "weight")]
    #[schema(minimum = 0, maximum = 1_000_000, default = 100)]
    pub weight: u32,
    /// Instead of the service's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Warmup>,
    /// Instead of the service's; `kind: none` for a backend that nobody probes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Readiness>,
}

/// What a document describes: unique among documents. As text `node/NAME` or `service/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DocumentKey {
    Node(Name),
    Service(Name),
}

/// Any document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Service(Box<ServiceDocument>),
    Node(Box<NodeDocument>),
}

impl Document {
    pub fn key(&self) -> DocumentKey {
        match self {
            Self::Service(document) => DocumentKey::Service(document.metadata.name.clone()),
            Self::Node(document) => DocumentKey::Node(document.metadata.name.clone()),
        }
    }
}

impl fmt::Display for DocumentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node/{name}"),
            Self::Service(name) => write!(f, "service/{name}"),
        }
    }
}

impl FromStr for DocumentKey {
    type Err = NameError;

    /// A name alone is that of a service.
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.strip_prefix("node/") {
            Some(name) => Ok(Self::Node(Name::new(name)?)),
            None => Ok(Self::Service(Name::new(text.strip_prefix("service/").unwrap_or(text))?)),
        }
    }
}

impl ServiceDocument {
    pub fn new(metadata: Metadata, spec: ServiceSpec) -> Self {
        Self { api_version: ApiVersion::V1, kind: ServiceKind::SteeredService, metadata, spec }
    }
}

impl NodeDocument {
    pub fn new(metadata: Metadata) -> Self {
        Self { api_version: ApiVersion::V1, kind: NodeKind::Node, metadata }
    }
}

impl PartialSchema for Name {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("Lower-case letters, digits, `-`, `_` and `.`, as Kubernetes writes names."))
            .pattern(Some(r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9_-]*[a-z0-9])?)*$"))
            .min_length(Some(1))
            .max_length(Some(name::MAX_NAME))
            .into()
    }
}

impl ToSchema for Name {}

impl PartialSchema for Frontend {
    fn schema() -> RefOr<Schema> {
        ObjectBuilder::new()
            .schema_type(Type::String)
            .description(Some("`IP:port` or `[IPv6]:port`, followed by `/udp` for UDP; TCP when not said."))
            .examples(["10.96.0.10:80", "[fd00:96::10]:80", "10.96.0.10:53/udp"])
            .into()
    }
}

impl ToSchema for Frontend {}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn default_weight() -> u32 {
    100
}

fn default_panic() -> u8 {
    DEFAULT_PANIC
}

fn is_default_panic(percent: &u8) -> bool {
    *percent == DEFAULT_PANIC
}

fn weight<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    deserializer.deserialize_any(WholeNumber { what: "a weight", most: MAX_WEIGHT })
}

fn percent<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let percent = deserializer.deserialize_any(WholeNumber { what: "a percentage", most: 100 })?;
    u8::try_from(percent).map_err(de::Error::custom)
}

/// A whole number from 0 to `most`. Its errors give the range, whatever stands there instead.
struct WholeNumber {
    what: &'static str,
    most: u32,
}

impl WholeNumber {
    fn refuse<E: de::Error>(&self, found: impl fmt::Display) -> E {
        E::custom(format!("{} is a whole number from 0 to {}, not {found}", self.what, self.most))
    }
}

impl de::Visitor<'_> for WholeNumber {
    type Value = u32;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (a whole number from 0 to {})", self.what, self.most)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<u32, E> {
        match u32::try_from(number) {
            Ok(number) if number <= self.most => Ok(number),
            _ => Err(self.refuse(number)),
        }
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<u32, E> {
        match u64::try_from(number) {
            Ok(number) => self.visit_u64(number),
            Err(_) => Err(self.refuse(number)),
        }
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<u32, E> {
        Err(self.refuse(number))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<u32, E> {
        Err(self.refuse(format_args!("{text:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_carries_text_ranges_and_defaults() {
        let text = |schema: RefOr<Schema>| serde_json::to_string(&schema).unwrap();
        let backend = text(BackendDocument::schema());
        for part in [
            "\"maximum\":1000000",
            "\"default\":100",
            "The node that the backend runs on",
            "\"required\":[\"name\",\"address\"]",
        ] {
            assert!(backend.contains(part), "{part} in {backend}");
        }
        let spec = text(ServiceSpec::schema());
        for part in ["onNoBackend", "\"maxItems\":64", "minReadyPercent", "\"required\":[\"frontends\",\"backends\"]"] {
            assert!(spec.contains(part), "{part} in {spec}");
        }
        let version = text(ApiVersion::schema());
        assert!(version.contains("sluice.dev/v1"), "{version}");
    }
}
