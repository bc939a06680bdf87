//! The parts of the daemon's life that are neither the engine's nor the API's: its threads, and when it ends.

use anyhow::{Context, Result};
use tokio::{
    runtime::{Builder, Runtime},
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use crate::{
    engine::RunningEngine,
    http::{self, App, Bound},
    settings::Settings,
};

/// The threads that serve the API: two, however many processors there are, for the host is its applications'.
///
/// # Errors
/// When no thread can be started.
pub fn runtime() -> Result<Runtime> {
    let built = Builder::new_multi_thread().worker_threads(2).enable_all().build();
    built.context("starting the threads that serve the API")
}

/// Serves the API until SIGTERM or SIGINT, and what was asked before then to its end. SIGHUP ends nothing.
///
/// # Errors
/// When a listener fails, or signals cannot be heard.
pub async fn serve(settings: &Settings, bound: Bound, running: &RunningEngine) -> Result<()> {
    let address = bound.listens();
    tracing::info!(
        socket = %bound.socket().display(),
        listen = address,
        cgroup = %settings.cgroup.display(),
        bpffs = %settings.bpffs.display(),
        version = env!("CARGO_PKG_VERSION"),
        "steering; the API is served on {} and {address}",
        bound.socket().display(),
    );
    let (stop, stopping) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    let mut hangup = signal(SignalKind::hangup()).context("listening for SIGHUP")?;
    let app = App::new(running.handle.clone(), stopping.clone());
    let serving = http::serve(bound, app, stopping);
    let stopper = async {
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                // Sent by habit, to have files read again.
                _ = hangup.recv() => tracing::info!("SIGHUP: files are read again whenever they change"),
            }
        }
        stop.send_replace(true);
        // The listeners decide when it is over.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        served = serving => served,
        () = stopper => Ok(()),
    }
}
