//! Frontends that somebody on this host listens on: whoever is steered does not reach that program any more.

use crate::{
    kernel::sock_diag::is_listened_to,
    model::{Service, service::Protocol},
};

/// A warning for each TCP frontend that the service has now and had not before, if a program in the agent's network
/// namespace listens there.
pub fn warnings(before: Option<&Service>, after: &Service) -> Vec<String> {
    if before.is_some_and(|before| before.frontends == after.frontends) {
        return Vec::new();
    }
    let had = |frontend| before.is_some_and(|before| before.frontends.contains(frontend));
    let new = after.frontends.iter().filter(|frontend| frontend.protocol == Protocol::Tcp && !had(frontend));
    new.filter(|frontend| is_listened_to(frontend.address))
        .map(|frontend| {
            format!("{frontend}: a program on this host listens there, and callers that are steered go past it")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use serde_json::json;

    use super::*;
    use crate::model::tests::World;

    #[test]
    fn a_new_frontend_that_somebody_listens_on_is_warned_of() {
        let all = TcpListener::bind("0.0.0.0:0").unwrap();
        let one = TcpListener::bind("127.9.1.1:0").unwrap();
        let (port, taken) = (all.local_addr().unwrap().port(), one.local_addr().unwrap());
        let mut world = World::new();
        let mut put = |frontends: &[String]| {
            let backends = json!([{"name": "a", "address": "10.1.0.1:80"}]);
            world.put("s", json!({"frontends": frontends, "backends": backends}));
            world.service("s").clone()
        };
        // Nobody has this address here.
        let foreign = format!("192.0.2.7:{port}");
        let free = format!("127.9.1.2:{}", taken.port());
        let before = put(&[foreign.clone(), free.clone(), format!("{taken}/udp")]);
        assert_eq!(warnings(None, &before), Vec::<String>::new());
        let after = put(&[foreign, free, format!("127.9.1.3:{port}"), taken.to_string()]);
        let found = warnings(Some(&before), &after);
        assert!(found.len() == 2 && found[0].starts_with("127.9.1.3:"), "{found:?}");
        assert_eq!(warnings(Some(&after), &after), Vec::<String>::new(), "told once");
    }
}
