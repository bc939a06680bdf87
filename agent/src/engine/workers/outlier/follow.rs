//! Follows what is published, and wakes the thread that judges when a service with rules has changed.

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc::Sender},
    thread,
};

use tokio::sync::watch;

use super::News;
use crate::{
    kernel::Waker,
    model::{Service, ServiceId, State},
    view::published::Published,
};

pub fn spawn(mut published: watch::Receiver<Arc<Published>>, news: Sender<News>, waker: Waker) {
    thread::spawn(move || {
        let Ok(waiter) = tokio::runtime::Builder::new_current_thread().build() else {
            tracing::error!("no thread can follow the configuration: no backend is ejected");
            return;
        };
        let mut changes = Changes::default();
        loop {
            let state = published.borrow_and_update().state.clone();
            let changed = changes.take(state);
            if !changed.is_empty() {
                if news.send(News::Published(changed)).is_err() {
                    return;
                }
                waker.wake();
            }
            if waiter.block_on(published.changed()).is_err() {
                let _ = news.send(News::Over);
                return waker.wake();
            }
        }
    });
}

/// What was seen last, and the services among it that have rules.
#[derive(Default)]
pub struct Changes {
    before: Option<State>,
    watched: BTreeSet<ServiceId>,
}

impl Changes {
    /// Services with rules that have changed, and those that have none any more.
    pub fn take(&mut self, state: State) -> Vec<(ServiceId, Option<Arc<Service>>)> {
        let before = self.before.take().unwrap_or_else(|| State::new(state.limits()));
        let mut changed = Vec::new();
        for id in state.differences(&before) {
            let service = state.service_by_id(id).filter(|service| service.health_policy.outlier.is_some());
            let was_watched = if service.is_some() { !self.watched.insert(id) } else { self.watched.remove(&id) };
            if service.is_some() || was_watched {
                changed.push((id, service.cloned()));
            }
        }
        self.before = Some(state);
        changed
    }
}
