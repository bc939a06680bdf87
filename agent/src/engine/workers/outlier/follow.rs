//! Follows the published state, and wakes the thread that ejects when a service with rules has changed.

use std::{
    sync::{Arc, mpsc::Sender},
    thread,
};

use tokio::sync::watch;

use super::OutlierMessage;
use crate::{
    engine::workers::changes::{ServiceChange, ServiceChanges},
    kernel::Waker,
    model::{Service, State},
    view::published::Published,
};

pub fn spawn(mut published: watch::Receiver<Arc<Published>>, messages: Sender<OutlierMessage>, waker: Waker) {
    thread::spawn(move || {
        let Ok(waiter) = tokio::runtime::Builder::new_current_thread().build() else {
            tracing::error!("no thread can follow the configuration: no backend is ejected");
            return;
        };
        let mut changes = ServiceChanges::default();
        loop {
            let state = published.borrow_and_update().state.clone();
            let changed = take(&mut changes, &state);
            if !changed.is_empty() {
                if messages.send(OutlierMessage::Published(changed)).is_err() {
                    return;
                }
                waker.wake();
            }
            if waiter.block_on(published.changed()).is_err() {
                let _ = messages.send(OutlierMessage::Over);
                return waker.wake();
            }
        }
    });
}

/// Changes of services that have rules, or had.
pub(super) fn take(changes: &mut ServiceChanges, state: &State) -> Vec<ServiceChange> {
    let has_rules =
        |service: &Option<Arc<Service>>| service.as_ref().is_some_and(|one| one.health_policy.outlier.is_some());
    let mut changed = changes.take(state);
    changed.retain(|change| has_rules(&change.before) || has_rules(&change.after));
    changed
}
