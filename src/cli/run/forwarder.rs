//! Forwards the output of the command, where an option makes pinfold read it.

use std::cell::Cell;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::output::Writer;
use crate::{Job, Signal, Supervisor};
use tokio::task::JoinHandle;

use super::args::Args;
use super::outlet::{Outlet, OutputLoss};
use super::pty_input::{Input, PtyInput};
use super::relay::Relay;
use crate::cli::supervise::{Supervision, sleep_until};
use crate::cli::terminal::Terminal;

/// How long pinfold waits for a reader that reads nothing, after a time limit has ended the job.
const READER_TIMEOUT: Duration = Duration::from_secs(1);

/// Forwards data between the command and pinfold's standard streams.
pub struct Forwarder {
    /// The destinations of the command's streams, until the job exists.
    outlets: Vec<Outlet>,
    /// The reader of pinfold's standard input, for `--pty`, until the job exists.
    input: Option<Input>,
    copies: Vec<JoinHandle<()>>,
    pty_input: Option<PtyInput>,
    writers: Vec<Arc<Writer>>,
    loss: OutputLoss,
}

impl Forwarder {
    /// Allocates everything that can fail, before the job exists.
    pub fn new(args: &Args) -> crate::Result<Self> {
        let mut forwarder = Self {
            outlets: Vec::new(),
            input: None,
            copies: Vec::new(),
            pty_input: None,
            writers: Vec::new(),
            loss: OutputLoss::none(),
        };
        if !args.streams.relays() {
            return Ok(forwarder);
        }
        let (out, err) = (io::stdout(), io::stderr());
        let outer = [(1, out.as_fd()), (2, err.as_fd())];
        for (number, outer) in outer.into_iter().take(if args.streams.has_one_output() { 1 } else { 2 }) {
            let outlet = Outlet::new(number, outer)?;
            forwarder.writers.push(outlet.writer.clone());
            forwarder.outlets.push(outlet);
        }
        if args.streams.pty {
            forwarder.input = Some(Input::new()?);
        }
        Ok(forwarder)
    }

    /// Starts to forward the job's streams and, with `--pty`, the input of the terminal.
    pub async fn start(
        &mut self,
        args: &Args,
        job: &mut Job,
        supervisor: &Supervisor,
        terminal: Option<&Terminal>,
    ) -> crate::Result<()> {
        if let Some(input) = self.input.take() {
            self.pty_input = Some(PtyInput::start(job, supervisor, terminal, input).await?);
        }
        let feeding = self.pty_input.as_ref().and_then(|pty_input| pty_input.feeding.clone());
        let streams = [job.stdout.take(), job.stderr.take()].into_iter().flatten();
        let is_copied = args.streams.tee.is_some();
        for (stream, outlet) in streams.zip(std::mem::take(&mut self.outlets)) {
            let (loss, feeding, limit) = (self.loss.clone(), feeding.clone(), args.streams.max_output);
            let relay = Relay { outlet: Some(outlet), is_copied, limit, loss, feeding };
            self.copies.push(tokio::spawn(relay.run(stream)));
        }
        Ok(())
    }

    /// Reports that output could not be written to one of its destinations.
    pub fn report_loss(&self, what: String) {
        self.loss.report(what);
    }

    /// Handles a signal that concerns pinfold's own terminal, and not the job.
    pub fn terminal_signal(&mut self, job: &Job, signal: Signal) {
        match (&mut self.pty_input, signal) {
            (Some(pty_input), Signal::WINCH) => pty_input.resize(job),
            // pinfold was stopped, and the shell has changed the terminal's settings meanwhile.
            (Some(pty_input), Signal::CONT) => pty_input.resume(job),
            _ => {}
        }
    }

    /// Waits until typed keys request a kill. Without `--pty` it waits forever.
    pub async fn typed_kill(&mut self, job: &Job) -> Signal {
        match &mut self.pty_input {
            Some(pty_input) => pty_input.typed_kill(job).await,
            None => std::future::pending().await,
        }
    }

    /// Waits, after the end of the job, until all output is forwarded. A stop signal ends the wait. If a time limit
    /// ended the job (`timed_out`), the wait also ends when a reader has read nothing for [`READER_TIMEOUT`]. Returns a
    /// description of the output that was lost.
    pub async fn finish(&mut self, timed_out: bool, supervision: &mut Supervision<'_>) -> Option<String> {
        // The job takes no more input. With its earlier settings, the terminal turns keys into signals again.
        if let Some(pty_input) = &mut self.pty_input {
            pty_input.leave_raw_mode();
        }
        let stopped_time = supervision.stopped_time.clone();
        let why = match supervision.finish(self.wait_for_copies(timed_out, &stopped_time)).await {
            Ok(Ok(forwarded)) => forwarded.err(),
            Ok(Err(signal)) => Some(format!("{signal} arrived while pinfold waited for the reader")),
            Err(error) => Some(error.to_string()),
        };
        if let Some(why) = why {
            self.loss.report(format!("the end of the output was not forwarded: {why}"));
        }
        self.loss.first()
    }

    /// Waits until all output is forwarded. The time during which the terminal has stopped pinfold does not count.
    async fn wait_for_copies(&mut self, timed_out: bool, stopped_time: &Cell<Duration>) -> Result<(), String> {
        let (begun, before) = (Instant::now(), stopped_time.get());
        for mut copy in std::mem::take(&mut self.copies) {
            loop {
                // When a reader of pinfold's output last read something.
                let taken = self.writers.iter().map(|writer| writer.last_write()).max().unwrap_or(begun);
                let until = timed_out.then(|| begun.max(taken) + READER_TIMEOUT + (stopped_time.get() - before));
                if until.is_some_and(|until| until <= Instant::now()) {
                    return Err(format!("its reader has read nothing for {READER_TIMEOUT:?}"));
                }
                tokio::select! {
                    biased;
                    _ = &mut copy => break,
                    () = sleep_until(until) => {}
                }
            }
        }
        Ok(())
    }
}

/// Restores the terminal's settings, even after an error.
impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Some(pty_input) = &mut self.pty_input {
            pty_input.leave_raw_mode();
        }
    }
}
