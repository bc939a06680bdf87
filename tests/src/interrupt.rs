//! Ctrl-C, and the end of the terminal, for long programs of this crate: guards must get their turn to clean up, so nothing
//! ends the process at once.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP are only noted.
pub fn note() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build();
    let runtime = runtime.context("starting a runtime for signals")?;
    let (mut interrupt, mut terminate, mut hangup) = runtime.block_on(async {
        let signal = |kind| signal(kind).context("watching for signals");
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        anyhow::Ok((interrupt, terminate, signal(SignalKind::hangup())?))
    })?;
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
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
