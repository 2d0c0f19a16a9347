//! Writes the events to the caller.

use std::os::fd::AsFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::Value;

use super::event::{Failure, Message};
use crate::output::Writer;

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
        let mut line = Vec::new();
        Self::add(&mut line, message);
        self.send_all(&line);
    }

    /// Appends the line of an event to others, for [`send_all`](Self::send_all).
    pub fn add(events: &mut Vec<u8>, message: &Message<'_>) {
        let before = events.len();
        if serde_json::to_writer(&mut *events, message).is_err() {
            events.truncate(before);
        }
        events.push(b'\n');
    }

    /// Sends the lines of events. After a failed write, the events are dropped.
    pub fn send_all(&self, events: &[u8]) {
        self.0.push(events);
    }

    /// Answers a request with an error.
    pub fn send_failure(&self, request: u64, id: &Value, failure: &Failure) {
        self.send(&Message::Error { request, id, code: failure.code, message: &failure.message });
    }

    /// Waits until there is space for output. Cancel-safe.
    pub async fn ready(&self) {
        // A write error ends pinfold. Until then, the jobs must not block, so the error is ignored here.
        let _ = self.0.ready().await;
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
}
