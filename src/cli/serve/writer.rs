//! The events that pinfold sends to the caller. Each is one line of JSON.

use std::sync::Arc;

use anyhow::Result;
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::Report;
use crate::cli::thread;
use crate::cli::write::write_all;
use crate::output::OutputStream;

/// The number of pieces of output that may wait until the caller reads them.
const WAITING: usize = 256;

/// The longest piece of a line. A longer line is sent in several pieces.
const MAX_LINE: usize = 64 * 1024;

/// An event that pinfold sends to the caller. `request` is the number of the request that it answers.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Message<'a> {
    Hello {
        protocol: u32,
        version: &'a str,
    },
    /// An event of a job.
    Job {
        id: &'a str,
        attempt: u32,
        what: &'a crate::events::Event,
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
        processes: &'a [crate::report::ProcessInfo],
    },
    /// All processes of the job are frozen.
    Frozen {
        request: u64,
        id: &'a str,
    },
    Usage {
        request: u64,
        id: &'a str,
        usage: &'a crate::report::Usage,
    },
    Done {
        /// The number of the `submit` request.
        request: u64,
        id: &'a str,
        success: bool,
        cancelled: bool,
        attempts: u32,
        report: &'a Report,
    },
    Error {
        request: u64,
        /// The id as the caller sent it; null where pinfold could not read it.
        id: &'a serde_json::Value,
        message: &'a str,
    },
}

/// A task for the writing thread.
enum Piece {
    Line(Vec<u8>, Option<OwnedSemaphorePermit>),
    /// Report that everything before this mark has been written.
    Mark(oneshot::Sender<()>),
}

/// Sends events to the caller. A separate thread writes them. Output of jobs waits until fewer than [`WAITING`] pieces
/// wait.
#[derive(Clone)]
pub struct Writer {
    pieces: UnboundedSender<Piece>,
    room: Arc<Semaphore>,
}

impl Writer {
    /// Starts the writing thread. The receiver gets the error after which nothing more can be written.
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

    /// Sends an event. `room` is dropped when the event has been written.
    pub fn send(&self, message: &Message<'_>, room: Option<OwnedSemaphorePermit>) {
        let mut line = serde_json::to_vec(message).unwrap_or_default();
        line.push(b'\n');
        // A send fails where the writing thread has ended. Its error was reported through the receiver of `start`.
        let _ = self.pieces.send(Piece::Line(line, room));
    }

    /// Waits until all events that were sent before have been written. Waits forever where they cannot be written.
    pub async fn all_written(&self) {
        let (mark, reached) = oneshot::channel();
        let _ = self.pieces.send(Piece::Mark(mark));
        if reached.await.is_err() {
            std::future::pending().await
        }
    }

    /// Sends each line of a stream as soon as it is read.
    pub async fn follow(self, id: Arc<str>, stream: OutputStream, name: &'static str) {
        let mut lines = stream.lines().max_line(MAX_LINE);
        while let Ok(Some(line)) = lines.next_line().await {
            let room = self.room.clone().acquire_owned().await.ok();
            let complete = line.complete;
            match std::str::from_utf8(&line.bytes) {
                Ok(text) => self.send(&Message::Output { id: &id, stream: name, line: text, complete }, room),
                Err(_) => {
                    self.send(&Message::OutputBytes { id: &id, stream: name, bytes: &line.bytes, complete }, room)
                }
            }
        }
    }
}
