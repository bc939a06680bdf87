//! When a backend is found ready, and when not.

use serde_json::{Value, json};

use super::*;

fn read(value: Value) -> Result<Readiness, String> {
    let readiness: Readiness = serde_json::from_value(value).map_err(|error| error.to_string())?;
    readiness.check().map_err(|refusal| refusal.to_string())?;
    Ok(readiness)
}

#[test]
fn what_makes_sense_is_taken() {
    for good in [
        json!({}),
        json!({"kind": "none"}),
        json!({"kind": "report"}),
        json!({"kind": "tcp", "port": 1, "period": "100ms", "timeout": "60s"}),
        json!({"kind": "http", "port": 8081, "method": "GET", "path": "/healthz?full=1", "headers": {"Host": "a.b"},
            "status": ["200-399"], "body": "ok", "from": "peers", "delay": "5s", "startupGrace": "1h"}),
        json!({"kind": "exec", "command": ["check.sh", "--deep", ""]}),
    ] {
        assert!(read(good.clone()).is_ok(), "{good}: {:?}", read(good.clone()));
    }
}

#[test]
fn what_makes_none_is_refused_and_named() {
    for (field, bad) in [
        ("path", json!({"path": "/x"})),
        ("period", json!({"kind": "report", "period": "1s"})),
        ("from", json!({"kind": "none", "from": "node"})),
        ("method", json!({"kind": "tcp", "method": "GET"})),
        ("headers", json!({"kind": "exec", "command": ["x"], "headers": {"a": "b"}})),
        ("status", json!({"kind": "tcp", "status": ["200"]})),
        ("body", json!({"kind": "tcp", "body": "x"})),
        ("command", json!({"kind": "http", "command": ["x"]})),
        ("port", json!({"kind": "exec", "command": ["x"], "port": 80})),
        ("port", json!({"kind": "tcp", "port": 0})),
        ("period", json!({"kind": "tcp", "period": "10ms"})),
        ("timeout", json!({"kind": "tcp", "timeout": "61s"})),
        ("successThreshold", json!({"kind": "tcp", "successThreshold": 0})),
        ("failureThreshold", json!({"kind": "tcp", "failureThreshold": 101})),
        ("startupGrace", json!({"kind": "tcp", "startupGrace": "25h"})),
        ("path", json!({"kind": "http", "path": "healthz"})),
        ("path", json!({"kind": "http", "path": "/a b"})),
        ("path", json!({"kind": "http", "path": "/a\r\nX: y"})),
        ("path", json!({"kind": "http", "path": "/a#b"})),
        ("headers", json!({"kind": "http", "headers": {"a b": "c"}})),
        ("headers.a", json!({"kind": "http", "headers": {"a": "b\r\nc: d"}})),
        ("headers.a", json!({"kind": "http", "headers": {"A": "b", "a": "c"}})),
        ("headers.Content-Length", json!({"kind": "http", "headers": {"Content-Length": "5"}})),
        ("status[1]", json!({"kind": "http", "status": ["200", "399-200"]})),
        ("status[0]", json!({"kind": "http", "status": ["2xx"]})),
        ("status[0]", json!({"kind": "http", "status": ["600"]})),
        ("body", json!({"kind": "http", "body": ""})),
        ("body", json!({"kind": "http", "body": "x", "method": "HEAD"})),
        ("command", json!({"kind": "exec"})),
        ("command[0]", json!({"kind": "exec", "command": ["/bin/true"]})),
        ("command[0]", json!({"kind": "exec", "command": [".."]})),
        ("command[1]", json!({"kind": "exec", "command": ["x", "a\u{0}b"]})),
    ] {
        let refusal = read(bad.clone()).unwrap_err();
        assert!(refusal.starts_with(&format!("{field}: ")), "{bad}: {refusal}");
    }
    let unknown = read(json!({"kind": "http", "paht": "/"})).unwrap_err();
    assert!(unknown.contains("paht"), "{unknown}");
}

#[test]
fn statuses_are_judged_as_written() {
    let some = read(json!({"kind": "http", "status": ["200", "404-410"]})).unwrap();
    assert_eq!([200, 201, 404, 410, 411].map(|status| some.accepts(status)), [true, false, true, true, false]);
    let usual = read(json!({"kind": "http"})).unwrap();
    assert_eq!([199, 200, 302, 399, 400].map(|status| usual.accepts(status)), [false, true, true, true, false]);
    assert_eq!((some.wanted(), usual.wanted()), ("200, 404-410".to_owned(), "200-399".to_owned()));
}
