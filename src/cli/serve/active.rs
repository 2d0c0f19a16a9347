//! The jobs that are not done.

use std::sync::{Arc, Mutex, PoisonError};

use super::event::{ErrorCode, Failure};
use super::output::Gate;
use super::request::{OutputName, StreamName};
use super::stdin::Input;
use crate::JobHandle;
use crate::job::terminal::WeakTerminal;
use crate::pool::Handle;

/// A job that is not done.
pub struct ActiveJob {
    pub handle: Handle,
    pub attempt: Arc<Mutex<Option<Attempt>>>,
    pub streams: Streams,
}

/// The attempt that runs.
pub struct Attempt {
    pub job: JobHandle,
    pub terminal: Option<WeakTerminal>,
}

/// The streams of a job, for all its attempts.
#[derive(Clone)]
pub struct Streams {
    /// `None` if the caller does not stream the input.
    pub stdin: Option<Input>,
    pub stdout: Gate,
    pub stderr: Gate,
}

impl ActiveJob {
    /// Returns a handle to the running job.
    ///
    /// # Errors
    /// If the job is not running.
    pub fn running(&self) -> Result<JobHandle, Failure> {
        self.attempt(|attempt| attempt.job.clone())
    }

    fn attempt<T>(&self, get: impl FnOnce(&Attempt) -> T) -> Result<T, Failure> {
        let attempt = self.attempt.lock().unwrap_or_else(PoisonError::into_inner);
        let message = "the job has not been started: it waits for a worker";
        attempt.as_ref().map(get).ok_or_else(|| Failure::new(ErrorCode::NotStarted, message))
    }

    /// Changes the size of the job's terminal.
    ///
    /// # Errors
    /// If the job is not running, or has no terminal any more.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), Failure> {
        let terminal = self.attempt(|attempt| attempt.terminal.clone())?;
        let terminal =
            terminal.ok_or_else(|| Failure::invalid("the job has no terminal: write \"pty\" in its submit request"))?;
        let failed = |errno| Failure::new(ErrorCode::Failed, format!("cannot resize the job's terminal: {errno}"));
        terminal.resize(rows, columns).map_err(failed)
    }

    /// Returns the job's standard input.
    ///
    /// # Errors
    /// If the caller does not stream it.
    pub fn stdin(&self) -> Result<&Input, Failure> {
        let advice = "the job's standard input is not a stream: write \"stdin\": \"stream\" in its submit request";
        self.streams.stdin.as_ref().ok_or_else(|| Failure::invalid(advice))
    }

    /// Closes one of the job's streams.
    ///
    /// # Errors
    /// If the stream is the standard input, and the caller does not stream it.
    pub fn close(&self, stream: StreamName) -> Result<(), Failure> {
        match stream {
            StreamName::Stdin => self.stdin()?.close(),
            StreamName::Stdout => self.streams.stdout.close(),
            StreamName::Stderr => self.streams.stderr.close(),
        }
        Ok(())
    }

    /// Allows pinfold to send this many more bytes of an output.
    ///
    /// # Errors
    /// If the job's output is not limited.
    pub fn add_credit(&self, stream: OutputName, bytes: u64) -> Result<(), Failure> {
        let gate = self.streams.gate(stream);
        if !gate.is_limited() {
            return Err(Failure::invalid("the job's output is not limited: write \"credit\" in its submit request"));
        }
        gate.add(bytes);
        Ok(())
    }
}

impl Streams {
    pub fn gate(&self, stream: OutputName) -> &Gate {
        match stream {
            OutputName::Stdout => &self.stdout,
            OutputName::Stderr => &self.stderr,
        }
    }
}
