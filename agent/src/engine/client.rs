//! The door to the engine: commands go in by a channel and are answered, what the engine has done is published.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use anyhow::Context;
use jiff::Timestamp;
use tokio::sync::{oneshot, watch};

use super::guards::Guards;
use crate::{
    control::attachment::AttachmentNews,
    kernel::{readings::Readings, sockets::Census},
    model::{BackendId, Change, Drain, DrainEnd, HealthUpdate, Name, Outcome, Refusal, State, Target},
    plan::Retired,
    source::files::FileEvent,
    telemetry::Instruments,
    view::{
        decisions::{MonitorFilter, Told},
        events::EventLog,
        history::UndoItem,
        operations::{Operation, Operations},
        published::Published,
    },
};

/// Cheap to clone; one for every part of the agent that asks something of the engine.
#[derive(Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
    published: watch::Receiver<Arc<Published>>,
    readings: Arc<dyn Readings>,
    events: Arc<EventLog>,
    operations: Arc<Operations>,
    instruments: Arc<Instruments>,
    monitor: MonitorHandle,
}

/// The door to the thread that shows decisions.
#[derive(Clone)]
pub struct MonitorHandle(pub(super) mpsc::Sender<MonitorRequest>);

/// What that thread is asked to do.
pub enum MonitorRequest {
    /// Until nobody takes what is sent any more.
    Begin {
        filter: MonitorFilter,
        sender: tokio::sync::mpsc::Sender<Arc<Told>>,
        reply: oneshot::Sender<anyhow::Result<()>>,
    },
    /// Ends the thread.
    Stop,
}

/// What the engine is asked to do.
// A few at a time: what the small ones waste is nothing.
#[allow(clippy::large_enum_variant)]
pub enum Command {
    /// All of them or none, as one change of the store.
    Change { changes: Vec<Change>, options: Options, reply: oneshot::Sender<Result<Done, ChangeError>> },
    /// Takes a change of the history back, all of it or nothing.
    Undo { change: u64, options: Options, reply: oneshot::Sender<Result<(Done, Vec<UndoItem>), ChangeError>> },
    /// What one look at the watched files found. An error: nothing of it was taken in, and the look has to be made again.
    Files { events: Vec<FileEvent>, reply: oneshot::Sender<anyhow::Result<()>> },
    /// No program can see these any more.
    GracePeriodElapsed(Retired),
    /// Connections that are counted as open and that are not there.
    Lost(Vec<Lost>),
    /// A drain is over. What the kernel refuses is tried again here, until it is answered.
    EndDrain { ended: Box<DrainEnded>, reply: oneshot::Sender<DrainEndAck> },
    /// What probes and rules say of backends.
    UpdateHealth(Vec<HealthUpdate>),
    /// What is attached and pinned has changed.
    Attachment(Box<AttachmentNews>),
    /// Lets what the brake holds happen. Returns the files; empty when nothing is held.
    AcceptShrink { reply: oneshot::Sender<Vec<PathBuf>> },
    /// To be found again after a restart.
    KeepOperation(Box<Operation>),
    /// Ends the thread; steering goes on.
    Stop,
}

/// What became of the end of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainEndAck {
    /// It is told, and saved as soon as the disk lets it.
    Ended,
    /// It has not ended: the drain was restored, put off or begun anew meanwhile, or what it says is not proven.
    Superseded,
}

/// How a drain has ended.
#[derive(Clone, Debug)]
pub struct DrainEnded {
    pub target: Target,
    /// On these terms: on others it has not ended.
    pub drain: Drain,
    /// As it is then, but for the time.
    pub operation: Operation,
    pub end: DrainEnd,
}

/// Connections of one backend that are counted as open and are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    pub backend: BackendId,
    pub established: u64,
    pub connecting: u64,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Validate, say what would be written, change nothing.
    pub dry_run: bool,
    /// When the request was read: the start of [`Done::programmed_in`].
    pub received: Instant,
    pub guards: Guards,
    /// Who asks for it, in words; `None`: the agent itself.
    pub by: Option<Arc<str>>,
}

/// A change that the kernel acknowledged, and that the store holds unless it says otherwise.
#[derive(Clone, Debug)]
pub struct Done {
    pub outcome: Outcome,
    /// What was desired when the change had its turn.
    pub before: State,
    /// From [`Options::received`] to the kernel's acknowledgement.
    pub programmed_in: Duration,
    pub acknowledged_at: Timestamp,
    /// Everything as it is after the change; with `dry_run`, as it would be.
    pub published: Arc<Published>,
    /// Map operations, one line each, in order (`dry_run` only).
    pub plan: Vec<String>,
    /// Why the store does not hold it yet, as on a full disk: it will as soon as the disk lets it.
    pub unsaved: Option<String>,
}

impl Options {
    /// Of what the agent itself asks for.
    pub fn now() -> Self {
        Self { dry_run: false, received: Instant::now(), guards: Guards::default(), by: None }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Tables that find no room in SLOTS, by the names of their services. Nothing was written.
    #[error("{}", .0.values().next().map(ToString::to_string).unwrap_or_default())]
    WithoutRoom(BTreeMap<Name, Refusal>),
    /// The kernel or the store failed: the state is as it was, and the kernel is brought back to it.
    #[error("{0:#}")]
    Failed(anyhow::Error),
    #[error("the agent is stopping")]
    Stopping,
}

impl MonitorHandle {
    /// Nobody shows decisions.
    #[cfg(test)]
    pub fn absent() -> Self {
        Self(mpsc::channel().0)
    }
}

impl Handle {
    pub fn new(
        commands: mpsc::Sender<Command>,
        published: watch::Receiver<Arc<Published>>,
        readings: Arc<dyn Readings>,
        events: Arc<EventLog>,
        operations: Arc<Operations>,
        instruments: Arc<Instruments>,
        monitor: MonitorHandle,
    ) -> Self {
        Self { commands, published, readings, events, operations, instruments, monitor }
    }

    pub fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    pub fn events(&self) -> &Arc<EventLog> {
        &self.events
    }

    /// What was asked of nodes and backends, and how far it has come.
    pub fn operations(&self) -> &Arc<Operations> {
        &self.operations
    }

    /// Read-only view of the kernel's counters and tables.
    pub fn readings(&self) -> &Arc<dyn Readings> {
        &self.readings
    }

    /// What the agent counts about its own work.
    pub fn instruments(&self) -> &Arc<Instruments> {
        &self.instruments
    }

    /// Carries out a change; returns when the kernel has it and the store holds it.
    ///
    /// # Errors
    /// Refused: nothing changed. Failed: the kernel or the disk said no.
    pub async fn change(&self, change: Change, options: Options) -> Result<Done, ChangeError> {
        self.batch(vec![change], options).await
    }

    /// Carries out several changes as one: all or none.
    ///
    /// # Errors
    /// As [`Handle::change`]; the refusal is of the first change that cannot be done.
    pub async fn batch(&self, changes: Vec<Change>, options: Options) -> Result<Done, ChangeError> {
        self.ask(|reply| Command::Change { changes, options, reply }).await.ok_or(ChangeError::Stopping)?
    }

    /// Takes a change of the history back. Says what becomes of which object.
    ///
    /// # Errors
    /// As [`Handle::change`]; and when what it replaced is not kept, or has been changed since.
    pub async fn undo(&self, change: u64, options: Options) -> Result<(Done, Vec<UndoItem>), ChangeError> {
        self.ask(|reply| Command::Undo { change, options, reply }).await.ok_or(ChangeError::Stopping)?
    }

    /// Lets what the brake holds happen. Returns the files whose documents wait no longer.
    ///
    /// # Errors
    /// When the agent is stopping.
    pub async fn accept_shrink(&self) -> Result<Vec<PathBuf>, ChangeError> {
        self.ask(|reply| Command::AcceptShrink { reply }).await.ok_or(ChangeError::Stopping)
    }

    /// Every steered socket of this host, in all network namespaces, as the kernel holds it now.
    ///
    /// # Errors
    /// When the kernel cannot iterate over socket storage.
    pub async fn census(&self) -> anyhow::Result<Census> {
        let readings = self.readings.clone();
        tokio::task::spawn_blocking(move || readings.census()).await.context("the census was interrupted")?
    }

    /// How many flows of unconnected datagram sockets stay with each backend.
    ///
    /// # Errors
    /// When the kernel does not show them.
    pub async fn flows(&self) -> anyhow::Result<BTreeMap<BackendId, u64>> {
        let readings = self.readings.clone();
        tokio::task::spawn_blocking(move || readings.flows()).await.context("the count of flows was interrupted")?
    }

    /// The decisions of the programs from now on. Who takes them too slowly misses some, and is told how many.
    ///
    /// # Errors
    /// When the kernel refuses the programs that tell them.
    pub async fn watch(&self, filter: MonitorFilter) -> anyhow::Result<tokio::sync::mpsc::Receiver<Arc<Told>>> {
        const AHEAD: usize = 1024;
        let (sender, receiver) = tokio::sync::mpsc::channel(AHEAD);
        let (reply, answer) = oneshot::channel();
        let asked = self.monitor.0.send(MonitorRequest::Begin { filter, sender, reply });
        asked.ok().context("this agent shows no decisions")?;
        answer.await.context("the agent is stopping")??;
        Ok(receiver)
    }

    async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).ok()?;
        answer.await.ok()
    }
}
