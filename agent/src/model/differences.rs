//! Which services differ between two states, at a price that grows with the difference.

use std::sync::Arc;

use super::{ServiceId, State};

impl State {
    /// Services that are new, changed or gone since `before`.
    pub fn differences(&self, before: &Self) -> Vec<ServiceId> {
        let is_same = |one: &Arc<_>, other: &Arc<_>| Arc::ptr_eq(one, other);
        self.services.differences(&before.services, is_same).into_iter().map(ServiceId).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::model::tests::World;

    #[test]
    fn only_what_differs_is_found() {
        let mut world = World::new();
        for n in 0..300 {
            let backends = json!([{"name": "a", "address": "10.1.0.1:80"}]);
            world.put(
                &format!("s{n}"),
                json!({"frontends": [format!("10.0.{}.{}:80", n / 100, n % 100 + 1)], "backends": backends}),
            );
        }
        let before = world.state.clone();
        assert_eq!(world.state.differences(&before), []);
        for n in [299, 7] {
            let backends = json!([{"name": "a", "address": "10.1.0.1:80", "weight": 3}]);
            world.put(
                &format!("s{n}"),
                json!({"frontends": [format!("10.0.{}.{}:80", n / 100, n % 100 + 1)], "backends": backends}),
            );
        }
        let changed = [7, 299].map(|n| world.service(&format!("s{n}")).id);
        assert_eq!(world.state.differences(&before), changed);
        world.put("new", json!({"frontends": ["10.9.0.1:80"], "backends": []}));
        let new = world.service("new").id;
        assert_eq!(world.state.differences(&before), [changed[0], changed[1], new]);
        assert_eq!(before.differences(&world.state), [changed[0], changed[1], new]);
    }
}
