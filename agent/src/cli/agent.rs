//! `sluice agent`: the daemon.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    http::{self, App, Bound},
    observe::events::EventKind,
    run,
    settings::{Layer, Settings},
    telemetry::logs,
};

/// Runs until SIGTERM or SIGINT. Steering goes on in the kernel after that.
///
/// # Errors
/// When the agent cannot start, with what to do about it.
pub fn run(flags: Layer, config: Option<&PathBuf>) -> Result<()> {
    let settings = Settings::load(flags, config)?;
    logs::start(settings.log_format, &settings.log_level)?;
    let running = run::start(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the threads that serve requests")?;
    let served = runtime.block_on(serve(&settings, &running));
    running.stop();
    served
}

async fn serve(settings: &Settings, running: &run::Running) -> Result<()> {
    let bound = Bound::new(settings).await?;
    tracing::info!(socket = %bound.socket().display(), "serving the API");
    if let Some(address) = bound.address() {
        tracing::info!(%address, "serving the API over TCP");
    }
    let (stop, stopping) = watch::channel(false);
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let handle = running.handle.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; steering goes on");
        handle.events().record(EventKind::AgentStopping, None, "the agent stops; steering goes on");
        // Nobody listens when the server has ended by itself.
        let _ = stop.send(true);
    });
    http::serve(bound, App::new(running.handle.clone(), stopping.clone()), stopping).await
}
