//! What is said to the caller: a line of JSON each.

use std::sync::Arc;

use anyhow::Result;
use pinfold::Report;
use pinfold::output::OutputStream;
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::cli::thread;
use crate::cli::write::write_all;

/// Pieces of output that may wait until the caller reads them.
const WAITING: usize = 256;

/// A longer line comes in pieces.
const MAX_LINE: usize = 64 * 1024;

/// What pinfold writes to the caller. `request` is the number of the line that it answers.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Message<'a> {
    Hello {
        protocol: u32,
        version: &'a str,
    },
    /// One of the job's own events.
    Job {
        id: &'a str,
        attempt: u32,
        what: &'a pinfold::events::Event,
    },
    Output {
        id: &'a str,
        stream: &'a str,
        line: &'a str,
        complete: bool,
    },
    /// A line that is not UTF-8.
    OutputBytes {
        id: &'a str,
        stream: &'a str,
        bytes: &'a [u8],
        complete: bool,
    },
    Processes {
        request: u64,
        id: &'a str,
        processes: &'a [pinfold::report::ProcessInfo],
    },
    /// All of it stands still.
    Frozen {
        request: u64,
        id: &'a str,
    },
    Usage {
        request: u64,
        id: &'a str,
        usage: &'a pinfold::report::Usage,
    },
    Done {
        /// That of the submit.
        request: u64,
        id: &'a str,
        success: bool,
        cancelled: bool,
        attempts: u32,
        report: &'a Report,
    },
    Error {
        request: u64,
        /// As it was sent, null where it could not be read.
        id: &'a serde_json::Value,
        message: &'a str,
    },
}

/// What the writing thread is to do.
enum Piece {
    Line(Vec<u8>, Option<OwnedSemaphorePermit>),
    /// Tell that all before it has been written.
    Mark(oneshot::Sender<()>),
}

/// Says things to the caller. Writing has a thread of its own, and output waits for its place.
#[derive(Clone)]
pub struct Writer {
    pieces: UnboundedSender<Piece>,
    room: Arc<Semaphore>,
}

impl Writer {
    /// The receiver hears why nothing can be written any more.
    pub fn start() -> Result<(Self, oneshot::Receiver<std::io::Error>)> {
        let (pieces, mut receiver): (_, UnboundedReceiver<Piece>) = unbounded_channel();
        let (failed, failure) = oneshot::channel();
        thread::start("to write the answers", move || {
            let stdout = std::io::stdout();
            while let Some(piece) = receiver.blocking_recv() {
                match piece {
                    Piece::Line(line, _room) => {
                        if let Err(error) = write_all(&stdout, &line) {
                            let _ = failed.send(error);
                            return;
                        }
                    }
                    Piece::Mark(reached) => drop(reached.send(())),
                }
            }
        })?;
        Ok((Self { pieces, room: Arc::new(Semaphore::new(WAITING)) }, failure))
    }

    pub fn say(&self, message: &Message<'_>, room: Option<OwnedSemaphorePermit>) {
        let mut line = serde_json::to_vec(message).unwrap_or_default();
        line.push(b'\n');
        // A caller that is gone is told nothing.
        let _ = self.pieces.send(Piece::Line(line, room));
    }

    /// Waits until what was said so far has been written; for ever, where it can't be.
    pub async fn all_written(&self) {
        let (mark, reached) = oneshot::channel();
        let _ = self.pieces.send(Piece::Mark(mark));
        if reached.await.is_err() {
            std::future::pending().await
        }
    }

    /// Says the lines of a stream as they come.
    pub async fn follow(self, id: Arc<str>, stream: OutputStream, name: &'static str) {
        let mut lines = stream.lines().max_line(MAX_LINE);
        while let Ok(Some(line)) = lines.next_line().await {
            let room = self.room.clone().acquire_owned().await.ok();
            let complete = line.complete;
            match std::str::from_utf8(&line.bytes) {
                Ok(text) => self.say(&Message::Output { id: &id, stream: name, line: text, complete }, room),
                Err(_) => self.say(&Message::OutputBytes { id: &id, stream: name, bytes: &line.bytes, complete }, room),
            }
        }
    }
}
