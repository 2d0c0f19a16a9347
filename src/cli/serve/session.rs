//! Answers the requests of the caller.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use super::Args;
use super::active::ActiveJob;
use super::event::{ErrorCode, Failure, Message};
use super::lines::{InvalidRequest, NumberedLine};
use super::request::{Request, SignalTo};
use super::writer::EventWriter;
use crate::{Pool, Signal};

/// The state that is needed to answer requests.
pub struct Session<'a> {
    pub args: &'a Args,
    pub pool: &'a Pool,
    pub writer: EventWriter,
    pub active: HashMap<Arc<str>, ActiveJob>,
    /// Receives the id of each job whose `done` has been sent to the writer.
    pub done_sender: UnboundedSender<Arc<str>>,
    /// The other end of `done_sender`.
    pub done_receiver: UnboundedReceiver<Arc<str>>,
}

impl Session<'_> {
    pub async fn handle_line(&mut self, line: &NumberedLine) {
        let answered = match line.parse() {
            None => return,
            Some(Ok(request)) => {
                let id = Value::from(request.id());
                self.act(line.number, request).await.map_err(|failure| (id, failure))
            }
            Some(Err(InvalidRequest { id, message })) => Err((id, Failure::invalid(message))),
        };
        if let Err((id, failure)) = answered {
            self.writer.send_failure(line.number, &id, &failure);
        }
    }

    /// Removes the limits, because the caller can send no more credit. pinfold then sends all remaining output.
    pub fn remove_limits(&self) {
        for job in self.active.values() {
            job.streams.stdout.remove_limit();
            job.streams.stderr.remove_limit();
        }
    }

    fn job(&self, id: &str) -> Result<&ActiveJob, Failure> {
        let missing = || Failure::new(ErrorCode::NoSuchJob, "no such job exists, or the job is done");
        self.active.get(id).ok_or_else(missing)
    }

    /// Executes the request with this number.
    async fn act(&mut self, number: u64, request: Request) -> Result<(), Failure> {
        match request {
            Request::Submit(submit) => return self.submit(number, *submit).await,
            Request::Cancel { id, kill: false } => self.job(&id)?.handle.cancel(),
            Request::Cancel { id, kill: true } => self.job(&id)?.handle.kill(),
            Request::Signal { id, signal, to } => {
                let signal: Signal = signal.parse().map_err(|error| Failure::of(&error))?;
                let job = self.job(&id)?.running()?;
                match to {
                    SignalTo::Main => job.signal(signal).map_err(|error| Failure::of(&error))?,
                    SignalTo::All => job.signal_all(signal),
                }
            }
            Request::Processes { id } => {
                let processes = &self.job(&id)?.running()?.processes().await;
                self.writer.send(&Message::Processes { request: number, id: &id, processes });
            }
            Request::Freeze { id } => {
                let (job, writer) = (self.job(&id)?.running()?, self.writer.clone());
                // A freeze can take a while, and must not delay other requests.
                tokio::spawn(async move {
                    match job.freeze().await {
                        Ok(()) => writer.send(&Message::Frozen { request: number, id: &id }),
                        Err(error) => writer.send_failure(number, &Value::from(id), &Failure::of(&error)),
                    }
                });
            }
            Request::Thaw { id } => self.job(&id)?.running()?.thaw(),
            Request::Usage { id } => {
                let usage = &self.job(&id)?.running()?.usage().await.map_err(|error| Failure::of(&error))?;
                self.writer.send(&Message::Usage { request: number, id: &id, usage });
            }
            Request::Stdin(mut chunk) => {
                let bytes = chunk.bytes().map_err(Failure::invalid)?;
                self.job(&chunk.id)?.stdin()?.push(number, bytes)?;
            }
            Request::Close { id, stream } => self.job(&id)?.close(stream)?,
            Request::Credit { id, stream, bytes } => self.job(&id)?.add_credit(stream, bytes)?,
            Request::Resize { id, rows, columns } => self.job(&id)?.resize(rows, columns)?,
        }
        Ok(())
    }
}
