//! `sluice agent`: the daemon.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use super::{Connection, failure::Failure};
use crate::{
    allocator, engine,
    http::{self, App, Bound},
    settings::{Layer, Settings},
    telemetry::logs,
};

/// Run the agent of this host
#[derive(Debug, Args)]
#[command(
    long_about = "Run the agent of this host: load the eBPF programs, or take over those of an earlier agent, bring them \
        to what the store and the files ask for, and serve the API until SIGTERM or SIGINT. Steering goes on when the \
        agent ends; `sluice uninstall` ends it.\n\n\
        Every setting is a flag, an environment variable and a key of the --config file; a flag beats the environment, \
        which beats the file.",
    after_help = "Example:\n  sluice agent --apply /etc/sluice/services\n  \
        sluice agent --cgroup /sys/fs/cgroup/test --socket /tmp/s.sock --listen off --state-dir /tmp/s --bpffs /sys/fs/bpf/test"
)]
pub struct Agent {
    /// TOML file with settings; its keys are the names of the flags
    #[arg(long, env = "SLUICE_CONFIG", hide_env_values = true, value_name = "PATH")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Layer,
}

impl Agent {
    pub fn run(self, connection: Connection) -> Result<(), Failure> {
        let Connection { socket, token_file, server: _ } = connection;
        let flags = Layer { socket, token_file, ..self.settings };
        allocator::keep_little();
        let settings = Settings::load(flags, self.config.as_ref())?;
        logs::start(settings.log_format, &settings.log_level).map_err(|error| Failure::Usage(format!("{error:#}")))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("starting the threads that serve the API")?;
        // Bound before anything is attached: an address that is taken leaves nothing behind.
        let bound = runtime.block_on(Bound::new(&settings))?;
        let running = engine::start(&settings)?;
        let served = runtime.block_on(serve(&settings, bound, &running));
        tracing::info!("the agent stops; steering goes on");
        runtime.shutdown_background();
        running.stop();
        Ok(served?)
    }
}

async fn serve(settings: &Settings, bound: Bound, running: &engine::Running) -> Result<()> {
    let address = bound.address().map_or("off".to_owned(), |address| address.to_string());
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
    let app = App::new(running.handle.clone(), stopping.clone());
    let serving = http::serve(bound, app, stopping);
    let stopper = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
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
