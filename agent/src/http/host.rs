//! The name that a request asks for. Over TCP it must be this agent's: a page of a stranger whose name leads to this
//! address (DNS rebinding) is refused.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    problem::Problem,
    requester::{Remote, RequestPeer},
};

/// Names besides the address itself and those of the loopback.
pub type Names = Arc<[String]>;

/// Lets a request pass, or answers why not.
pub async fn check(State(names): State<Names>, request: Request, next: Next) -> Response {
    let remote = match request.extensions().get() {
        Some(RequestPeer::Remote(remote)) => Some(remote),
        Some(RequestPeer::Local { .. }) | None => None,
    };
    match allow(&request, remote, &names) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn allow(request: &Request, remote: Option<&Remote>, names: &[String]) -> Result<(), Problem> {
    let mut hosts = request.headers().get_all(header::HOST).into_iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Problem::bad_request("a request has one header Host"));
    };
    let host = host.to_str().ok().and_then(|host| host.parse().ok());
    // The target of a request may name an authority too; it counts more.
    let asked = request.uri().authority().cloned().into_iter().map(Some).chain([host]);
    for authority in asked {
        if !authority.as_ref().is_some_and(|authority| is_ours(authority, remote, names)) {
            let said = authority.map_or("nothing of use".into(), |authority| authority.to_string());
            let detail = format!(
                "the request asks for {said}, which is no name of this agent: ask for its address, or start it with --allow-host"
            );
            return Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, detail));
        }
    }
    Ok(())
}

/// Whatever the port: a forwarded one differs. Names of the certificate count: a page under another name is told by its
/// browser that this is not whom it meant.
fn is_ours(authority: &Authority, remote: Option<&Remote>, names: &[String]) -> bool {
    if authority.as_str().contains('@') {
        return false;
    }
    let name = authority.host().trim_start_matches('[').trim_end_matches(']');
    let name = name.strip_suffix('.').unwrap_or(name);
    let is_here = match name.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(address) => address.is_loopback() || remote.is_some_and(|remote| address == remote.here.to_canonical()),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    };
    let is_shown = || remote.and_then(|remote| remote.shown.as_ref()).is_some_and(|shown| shown.ours.is_for(name));
    is_here || is_shown() || names.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_strangers_are_refused_whatever_the_port() {
        let names = ["node-1.example".to_owned(), "192.0.2.9".to_owned()];
        let at = |address: &str| Remote { here: address.parse().unwrap(), there: [127, 0, 0, 1].into(), shown: None };
        let ours = |host: &str, at: Remote| is_ours(&host.parse().unwrap(), Some(&at), &names);
        for host in [
            "127.0.0.1:9180",
            "127.0.0.1",
            "localhost:1",
            "LOCALHOST.",
            "[::1]:9180",
            "10.0.0.1:9180",
            "[::ffff:10.0.0.1]:80",
            "Node-1.example:9180",
            "192.0.2.9",
        ] {
            assert!(ours(host, at("10.0.0.1")), "{host}");
        }
        for host in ["evil.example", "10.0.0.2", "localhost.evil.example", "a@127.0.0.1", "127.0.0.1.evil.example"] {
            assert!(!ours(host, at("10.0.0.1")), "{host}");
        }
        assert!(ours("[fd00::1]:9180", at("fd00::1")) && !ours("[fd00::1]:9180", at("fd00::2")));
    }
}
