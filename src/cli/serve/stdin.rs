//! The standard input of a job that the caller streams to it.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::event::{ErrorCode, Failure, Message};
use super::writer::EventWriter;
use crate::output::InputStream;

/// How many bytes may wait for a job to read them. pinfold accepts a piece while fewer bytes wait, so the piece itself may
/// exceed this limit.
pub const WINDOW: usize = 1024 * 1024;

/// A `stdin` request: its number, and the bytes to write.
struct Piece {
    request: u64,
    bytes: Vec<u8>,
}

/// The standard input of a job. Each piece is answered once: with `stdin` when it is written, or with an error.
#[derive(Clone)]
pub struct Input(Arc<Mutex<State>>);

struct State {
    /// `None` after the input was closed.
    sender: Option<UnboundedSender<Piece>>,
    /// `None` after the job was started.
    receiver: Option<UnboundedReceiver<Piece>>,
    /// How many bytes wait for the job to read them.
    waiting: usize,
}

impl Input {
    pub fn new() -> Self {
        let (sender, receiver) = unbounded_channel();
        Self(Arc::new(Mutex::new(State { sender: Some(sender), receiver: Some(receiver), waiting: 0 })))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece.
    ///
    /// # Errors
    /// If the input is closed, or too many bytes wait.
    pub fn push(&self, request: u64, bytes: Vec<u8>) -> Result<(), Failure> {
        let mut state = self.lock();
        if state.waiting >= WINDOW {
            let message = format!(
                "{} bytes wait for the job to read them: wait for the answers to earlier requests",
                state.waiting
            );
            return Err(Failure::new(ErrorCode::StdinFull, message));
        }
        let length = bytes.len();
        let sent = state.sender.as_ref().map(|sender| sender.send(Piece { request, bytes }));
        match sent {
            Some(Ok(())) => state.waiting += length,
            _ => return Err(closed()),
        }
        Ok(())
    }

    /// Ends the input after the pieces that were added before.
    pub fn close(&self) {
        self.lock().sender = None;
    }

    /// Writes the pieces to the job, until the input is closed. Answers a piece with an error if the job has ended or no
    /// process reads the input any more.
    pub async fn feed(self, id: Arc<str>, mut stream: InputStream, writer: EventWriter) {
        let Some(mut pieces) = self.lock().receiver.take() else { return };
        while let Some(Piece { request, bytes }) = pieces.recv().await {
            let written = stream.write_all(&bytes).await;
            self.lock().waiting -= bytes.len();
            if written.is_err() {
                writer.send_failure(request, &Value::from(&*id), &closed());
                self.close();
                break;
            }
            writer.send(&Message::Stdin { request, id: &id, bytes: bytes.len() });
        }
        // On a terminal, this sends the end-of-file character.
        let _ = stream.shutdown().await;
        drop(stream);
        self.refuse(&id, pieces, &writer).await;
    }

    /// Ends the input of a job that is over. If the job was never started, answers the waiting pieces with errors.
    pub async fn end(&self, id: &str, writer: &EventWriter) {
        self.close();
        let pieces = self.lock().receiver.take();
        if let Some(pieces) = pieces {
            self.refuse(id, pieces, writer).await;
        }
    }

    async fn refuse(&self, id: &str, mut pieces: UnboundedReceiver<Piece>, writer: &EventWriter) {
        while let Some(Piece { request, bytes }) = pieces.recv().await {
            self.lock().waiting -= bytes.len();
            writer.send_failure(request, &Value::from(id), &closed());
        }
    }
}

fn closed() -> Failure {
    Failure::new(ErrorCode::StdinClosed, "the job's standard input is closed, or no process reads it any more")
}
