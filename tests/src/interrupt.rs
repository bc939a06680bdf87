//! Ctrl-C for long programs of this crate: guards must get their turn to clean up, so nothing ends the process at once.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT and SIGTERM are only noted.
pub fn note() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.context("starting a runtime for signals")?;
    let (mut interrupt, mut terminate) = runtime.block_on(async {
        let signal = |kind| signal(kind).context("watching for signals");
        anyhow::Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
    })?;
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        INTERRUPTED.store(true, Ordering::SeqCst);
    };
    thread::Builder::new().name("signals".into()).spawn(wait).context("starting a thread for signals")?;
    Ok(())
}

/// Whether somebody wants this to end.
pub fn noted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// An error once somebody wants this to end.
pub fn check() -> Result<()> {
    if noted() {
        bail!("interrupted");
    }
    Ok(())
}
