//! Keeps the programs attached and the pins in place, and tells the engine what was lost and what is back.

use std::{sync::mpsc::Sender, thread};

use anyhow::{Context, Result};

use crate::{
    control::{
        StateMachine,
        attachment::{AttachmentAction, AttachmentEvent, AttachmentWatch},
    },
    engine::client::Command,
    host::clock,
    kernel::Keeper,
};

/// Starts the thread, which ends with the process.
///
/// # Errors
/// When there is none to be had.
pub fn spawn(keeper: Keeper, commands: Sender<Command>) -> Result<()> {
    let run = move || run(keeper, &commands);
    let thread = thread::Builder::new().name("attachment".into()).spawn(run);
    thread.map(drop).context("starting the thread that looks after what is attached")
}

fn run(mut keeper: Keeper, commands: &Sender<Command>) {
    let mut watch = AttachmentWatch::new(clock::stamp());
    loop {
        let look = keeper.look();
        watch.handle(AttachmentEvent::Looked(&look), clock::stamp());
        while let Some(action) = watch.next_action() {
            match action {
                AttachmentAction::PutBack => {
                    if let Err(error) = keeper.put_back() {
                        watch.handle(AttachmentEvent::NotPutBack(&format!("{error:#}")), clock::stamp());
                    }
                }
                AttachmentAction::Tell(news) => {
                    // The agent stops: what is attached stays so.
                    if commands.send(Command::Attachment(news)).is_err() {
                        return;
                    }
                }
            }
        }
        keeper.wait(watch.time_left(clock::stamp()).unwrap_or_default());
    }
}
