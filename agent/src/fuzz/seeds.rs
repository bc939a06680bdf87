//! Where each target begins: what a well-behaved peer says.

/// The beginnings of a target.
pub fn seeds(target: &str) -> Vec<Vec<u8>> {
    match target {
        "yaml" => [SHOP, CANARY, NODE].iter().map(|text| text.as_bytes().to_vec()).collect(),
        "json" => JSON.iter().map(|text| text.as_bytes().to_vec()).collect(),
        "btf" => vec![btf()],
        "netlink" => vec![answer(), refusal()],
        "flight" => {
            vec![[0; 80].to_vec(), (0..80).collect(), ANSWERED.iter().flat_map(|word| word.to_le_bytes()).collect()]
        }
        _ => Vec::new(),
    }
}

pub const SHOP: &str = r#"apiVersion: sluice.dev/v1
kind: SteeredService
metadata: {name: shop, labels: {team: "web"}}
spec:
  frontends: ["10.96.0.10:80", "[fd00::10]:80", "10.96.0.10:80/udp"]
  minReadyPercent: 40
  backends:
  - {name: n1, address: "10.0.0.1:8080", node: node-1, weight: 75}
  - {name: n2, address: "10.0.0.2:8080", node: node-2, weight: 25, warmup: {delay: 1s}}
"#;

const CANARY: &str = r#"---
apiVersion: sluice.dev/v1
kind: SteeredService
metadata:
  name: canary
spec:
  frontends:
    - 192.0.2.1:443
  protocol: stream
  balance: hash
  idleClose: 2s
  panicThreshold: 10
  readiness: {kind: http, path: /healthz, period: 5s, timeout: 1s, failureThreshold: 3, status: ["200-299"]}
  warmup: {duration: 120s, curve: power, exponent: 2, minimumPercent: 1}
  outlier: {consecutiveFailures: 5, interval: 10s}
  groups: [{name: stable, weight: 95}, {name: next, weight: 5}]
  backends:
    - {name: a, address: "10.0.1.1:8443", group: stable}
    - {name: b, address: "10.0.1.2:8443", group: next, warmup: {duration: 5m}}
---
{apiVersion: sluice.dev/v1, kind: Node, metadata: {name: node-1, labels: {zone: a}}}
"#;

const NODE: &str = "apiVersion: sluice.dev/v1\nkind: Node\nmetadata: {name: node-2}\n";

const JSON: [&str; 5] = [
    r#"{"apiVersion": "sluice.dev/v1", "kind": "SteeredService", "metadata": {"name": "shop"}, "spec": {"frontends":
["10.96.0.10:80"], "backends": [{"name": "n1", "address": "10.0.0.1:8080", "node": "node-1", "weight": 75}]}}"#,
    r#"{"kind": "Node", "apiVersion": "sluice.dev/v1", "metadata": {"name": "node-1"}} {"kind": "Node", "apiVersion":
"sluice.dev/v1", "metadata": {"name": "node-2", "labels": {"a": "b"}}}"#,
    r#"{"spec": {"minReadyPercent": 60, "onNoBackend": "refuse", "readiness": {"kind": "tcp", "period": "2s"}}}"#,
    r#"{"metadata": {"labels": null}, "spec": {"backends": [{"name": "n1", "address": "10.0.0.9:1"}]}}"#,
    r#"{"spec": {"idleClose": "100ms", "flowTimeout": "5m", "warmup": {"duration": "1m"}, "outlier": null}}"#,
];

/// A connection that was answered: words in the order in which the target takes them.
const ANSWERED: [u32; 17] = [1, 100, 250, 0, 1000, 500, 510, 80, 4096, 0, 0, 4096, 0, 5, 60_000, 0, 0];

/// `struct tcp_sock { struct { u32 write_seq; }; const u32 snd_una; }` and the like.
fn btf() -> Vec<u8> {
    let strings = b"\0tcp_sock\0write_seq\0snd_una\0u32\0";
    let [integer, array, structure, constant] = [1, 3, 4, 10].map(|kind: u32| kind << 24);
    let types: [&[u32]; 5] = [
        // 1: u32
        &[28, integer, 4, 32],
        // 2: const u32
        &[0, constant, 1],
        // 3: the anonymous structure
        &[0, structure | 1, 4, 10, 1, 0],
        // 4: tcp_sock
        &[1, structure | 2, 8, 0, 3, 0, 20, 2, 32],
        // 5: an array
        &[0, array, 0, 1, 1, 4],
    ];
    let types: Vec<u8> = types.concat().iter().flat_map(|word| word.to_ne_bytes()).collect();
    let length = |part: &[u8]| u32::try_from(part.len()).unwrap_or_default();
    let header = [24, 0, length(&types), length(&types), length(strings)];
    let mut data = [0xeb9f_u16.to_ne_bytes(), [1, 0]].concat();
    data.extend(header.iter().flat_map(|word: &u32| word.to_ne_bytes()));
    data.extend(types);
    data.extend(strings);
    data
}

/// `struct nlmsghdr` with what follows it.
fn message(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = 16 + u32::try_from(body.len()).unwrap_or_default();
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend([0; 10]);
    message.extend(body);
    message
}

/// A TCP connection: `struct inet_diag_msg`, and `struct tcp_info` behind it.
fn answer() -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const INET_DIAG_INFO: u16 = 2;
    const TCP_INFO: u16 = 232;
    // AF_INET, ESTABLISHED, no timer; port 8080 on both sides.
    let mut body = vec![2, 1, 0, 0, 0x1f, 0x90, 0x1f, 0x90];
    body.resize(72, 0);
    body.extend((TCP_INFO + 4).to_ne_bytes());
    body.extend(INET_DIAG_INFO.to_ne_bytes());
    body.resize(body.len() + usize::from(TCP_INFO), 7);
    message(SOCK_DIAG_BY_FAMILY, &body)
}

/// ENOENT, and the header of the question.
fn refusal() -> Vec<u8> {
    const NLMSG_ERROR: u16 = 2;
    let mut body = (-2_i32).to_ne_bytes().to_vec();
    body.resize(20, 0);
    message(NLMSG_ERROR, &body)
}
