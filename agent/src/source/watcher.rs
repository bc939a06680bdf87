//! Scans [`Files`] when something happens in their directory, once it is quiet, and every few seconds in any case: a
//! swapped link above the directory, a network file system or a full table of watches give no notice.

use std::{
    collections::BTreeSet,
    fs,
    ops::ControlFlow,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};

use super::files::{FileEvent, Files, GRACE};

/// Quiet for so long, the directory is looked at.
const QUIET: Duration = Duration::from_millis(100);
/// A file that is being written is waited for, but not longer than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// Without any word, the directory is looked at so often.
const POLL: Duration = Duration::from_secs(2);

/// Watches until it is dropped.
#[derive(Debug)]
pub struct FileWatcher {
    messages: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Message {
    Notified(notify::Result<notify::Event>),
    Stop,
}

/// What became of the events of one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LookResult {
    TakenIn,
    /// Nothing of it was taken in.
    Failed,
}

/// Sends the events of `files`, those of one look together, to `sink` from a thread of its own, until `sink` breaks or
/// the watch is dropped. A look that failed is made again.
///
/// # Errors
/// When the thread cannot be started.
pub fn watch(
    files: Files,
    sink: impl FnMut(Vec<FileEvent>) -> ControlFlow<(), LookResult> + Send + 'static,
) -> Result<FileWatcher> {
    let (messages, received) = mpsc::channel();
    let sender = messages.clone();
    let run = move || run(files, sink, &sender, &received);
    let thread =
        thread::Builder::new().name("files".into()).spawn(run).context("starting the thread that watches files")?;
    Ok(FileWatcher { messages, thread: Some(thread) })
}

impl Drop for FileWatcher {
    fn drop(&mut self) {
        // Fails when the thread has ended, which is what is wanted.
        let _ = self.messages.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(
    mut files: Files,
    mut sink: impl FnMut(Vec<FileEvent>) -> ControlFlow<(), LookResult>,
    sender: &Sender<Message>,
    received: &Receiver<Message>,
) {
    let mut place = WatchedDirectory { watcher: None, watched: None, said: false };
    loop {
        // Before the look, so that nothing can happen in between unseen.
        place.follow(&files, sender);
        let events = files.scan(Instant::now());
        if !events.is_empty() {
            let seen = events.iter().map(|event| event.file().to_owned()).collect();
            match sink(events) {
                ControlFlow::Continue(LookResult::TakenIn) => {}
                ControlFlow::Continue(LookResult::Failed) => files.look_again(seen),
                ControlFlow::Break(()) => return,
            }
        }
        let longest = if files.is_waiting() { GRACE } else { POLL };
        if settle(received, longest).is_break() {
            return;
        }
    }
}

/// Waits for word of a change and then for quiet, or for `longest` without a word. Breaks when the watch is to end.
fn settle(received: &Receiver<Message>, longest: Duration) -> ControlFlow<()> {
    let start = Instant::now();
    let mut unfinished = BTreeSet::new();
    // The first and the last word.
    let mut heard: Option<(Instant, Instant)> = None;
    loop {
        let until = match heard {
            None => start + longest,
            Some((first, last)) if unfinished.is_empty() => (last + QUIET).min(first + PATIENCE),
            Some((first, _)) => first + PATIENCE,
        };
        let now = Instant::now();
        if now >= until {
            return ControlFlow::Continue(());
        }
        let is_word = match received.recv_timeout(until - now) {
            Ok(Message::Notified(Ok(event))) => note(&event, &mut unfinished),
            // An error is a lost word.
            Ok(Message::Notified(Err(_))) => true,
            Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return ControlFlow::Break(()),
            Err(RecvTimeoutError::Timeout) => return ControlFlow::Continue(()),
        };
        if is_word {
            let now = Instant::now();
            heard = Some((heard.map_or(now, |(first, _)| first), now));
        }
    }
}

/// Whether `event` tells of a change; keeps the files that are being written.
fn note(event: &notify::Event, unfinished: &mut BTreeSet<PathBuf>) -> bool {
    match event.kind {
        EventKind::Modify(ModifyKind::Data(_)) => unfinished.extend(event.paths.iter().cloned()),
        EventKind::Access(AccessKind::Close(AccessMode::Write))
        | EventKind::Modify(ModifyKind::Name(_))
        | EventKind::Remove(_) => unfinished.retain(|path| !event.paths.contains(path)),
        // Our own reading comes back as this.
        EventKind::Access(_) => return false,
        EventKind::Any | EventKind::Create(_) | EventKind::Modify(_) | EventKind::Other => {}
    }
    true
}

/// The directory under watch, which may be replaced by another of the same name.
struct WatchedDirectory {
    watcher: Option<RecommendedWatcher>,
    watched: Option<(u64, u64)>,
    said: bool,
}

impl WatchedDirectory {
    fn follow(&mut self, files: &Files, sender: &Sender<Message>) {
        let directory = files.directory();
        let found = fs::metadata(directory).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if found.is_some() && found == self.watched {
            return;
        }
        (self.watcher, self.watched) = (None, None);
        if found.is_none() {
            return;
        }
        let sender = sender.clone();
        // A message after the thread's end is for nobody.
        let watcher = notify::recommended_watcher(move |event| drop(sender.send(Message::Notified(event))));
        match watcher.and_then(|mut watcher| {
            watcher.watch(directory, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        }) {
            Ok(watcher) => (self.watcher, self.watched) = (Some(watcher), found),
            Err(error) if !self.said => {
                self.said = true;
                let seconds = POLL.as_secs();
                tracing::warn!(%error, "cannot watch {}: looking every {seconds} s instead", directory.display());
            }
            Err(_) => {}
        }
    }
}
