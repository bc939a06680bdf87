//! Ports by which sessions are known whose callers speak first, so that nothing else tells them from requests.

use super::{Backend, Protocol, Service};

/// A port, and what usually speaks there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UsualPort {
    pub port: u16,
    pub of: &'static str,
}

/// Ports registered with IANA and those that everybody uses instead. What carries requests and answers in turn is not here
/// (Kafka, Memcached), nor whose server speaks first (SMTP, FTP, IMAP), but for SSH, where both do at once, and MySQL,
/// which does not always.
const USUAL: [(&str, &[u16]); 13] = [
    ("SSH", &[22, 2222]),
    ("LDAP", &[389, 636]),
    ("SQL Server", &[1433]),
    ("Oracle", &[1521]),
    ("MQTT", &[1883, 8883]),
    ("ZooKeeper", &[2181]),
    ("MySQL", &[3306, 33060]),
    ("XMPP", &[5222]),
    ("PostgreSQL", &[5432, 6432]),
    ("AMQP", &[5671, 5672]),
    ("Redis", &[6379, 6380]),
    ("Cassandra", &[9042]),
    ("MongoDB", &[27017]),
];

impl UsualPort {
    fn find(port: u16) -> Option<Self> {
        USUAL.iter().find(|(_, ports)| ports.contains(&port)).map(|(of, _)| Self { port, of })
    }
}

impl Service {
    /// The port by which connections to this backend are taken for sessions, if the service does not say what they are:
    /// that of a frontend, or the backend's own.
    pub fn usual_port(&self, backend: &Backend) -> Option<UsualPort> {
        if self.protocol.is_some() {
            return None;
        }
        let mut tcp = self.frontends.iter().filter(|frontend| frontend.protocol == Protocol::Tcp).peekable();
        tcp.peek()?;
        tcp.find_map(|frontend| UsualPort::find(frontend.address.port()))
            .or_else(|| UsualPort::find(backend.address.port()))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::USUAL;
    use crate::model::tests::World;

    #[test]
    fn the_documentation_has_the_same_ports() {
        let text = include_str!("../../docs/draining.md");
        let section = text.split("### Sessions").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
        let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" |").next());
        let ports: BTreeSet<u16> =
            cells.flat_map(|cell| cell.split(", ")).filter_map(|port| port.parse().ok()).collect();
        assert_eq!(ports, USUAL.iter().flat_map(|(_, ports)| *ports).copied().collect());
    }

    #[test]
    fn a_port_stands_for_what_usually_speaks_there() {
        let mut world = World::new();
        for (frontends, address, spec, expected) in [
            (json!(["10.0.0.1:80"]), "10.1.0.1:8080", json!(null), None),
            (json!(["10.0.0.1:5432"]), "10.1.0.1:15432", json!(null), Some((5432, "PostgreSQL"))),
            (json!(["10.0.0.1:80", "10.0.0.1:22"]), "10.1.0.1:6379", json!(null), Some((22, "SSH"))),
            (json!(["10.0.0.1:80"]), "10.1.0.1:6379", json!(null), Some((6379, "Redis"))),
            // What the service says of itself counts.
            (json!(["10.0.0.1:5432"]), "10.1.0.1:5432", json!("request"), None),
            (json!(["10.0.0.1:5432"]), "10.1.0.1:5432", json!("stream"), None),
            (json!(["10.0.0.1:389/udp"]), "10.1.0.1:389", json!(null), None),
        ] {
            let backends = json!([{"name": "a", "address": address}]);
            world.put("shop", json!({"frontends": frontends, "backends": backends, "protocol": spec}));
            let service = world.state.service("shop").unwrap();
            let found = service.usual_port(&service.backends[0]).map(|usual| (usual.port, usual.of));
            assert_eq!(found, expected, "{frontends} {address} {spec}");
        }
    }
}
