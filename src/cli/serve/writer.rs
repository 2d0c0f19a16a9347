//! The events that pinfold sends to the caller. Each is one line of JSON.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::Report;
use crate::output::{OutputStream, Writer};
use anyhow::{Context, Result};
use serde::Serialize;

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

/// Sends events to the caller. Output of jobs waits for a caller that reads slowly; other events do not wait.
#[derive(Clone)]
pub struct EventWriter(Arc<Writer>);

impl EventWriter {
    pub fn start() -> Result<Self> {
        let stdout = std::io::stdout().as_fd().try_clone_to_owned().context("cannot copy standard output")?;
        Ok(Self(Arc::new(Writer::start(stdout, "to write the events")?)))
    }

    /// Sends an event. After a failed write, the event is dropped.
    pub fn send(&self, message: &Message<'_>) {
        let mut line = serde_json::to_vec(message).unwrap_or_default();
        line.push(b'\n');
        self.0.push(&line);
    }

    /// Waits until nothing more can be written, and returns the reason. Cancel-safe.
    pub async fn failed(&self) -> std::io::Error {
        self.0.failed().await
    }

    /// Waits until all events that were sent before have been written. Waits forever where they cannot be written.
    pub async fn all_written(&self) {
        if self.0.flush().await.is_err() {
            std::future::pending().await
        }
    }

    /// Sends each line of a stream as soon as it is read.
    pub async fn follow(self, id: Arc<str>, stream: OutputStream, name: &'static str) {
        let mut lines = stream.lines().max_line(MAX_LINE);
        while let Ok(Some(line)) = lines.next_line().await {
            // A write error ends pinfold. Until then, the job must not block, so the error is ignored here.
            let _ = self.0.ready().await;
            let complete = line.complete;
            self.send(&match std::str::from_utf8(&line.bytes) {
                Ok(text) => Message::Output { id: &id, stream: name, line: text, complete },
                Err(_) => Message::OutputBytes { id: &id, stream: name, bytes: &line.bytes, complete },
            });
        }
    }
}
