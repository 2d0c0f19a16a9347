//! The events that pinfold sends to the caller. Each is one line of JSON.

use serde::Serialize;
use serde_json::Value;

use super::request::OutputName;
use crate::Report;
use crate::report::{ProcessInfo, Usage};

/// The version of the protocol. It is raised when the meaning of a message changes or a message is removed.
pub const PROTOCOL: u32 = 1;

/// What this version of pinfold can do beyond the first version of the protocol.
#[derive(Clone, Copy, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Capability {
    /// `kill` of `cancel`.
    CancelKill,
    /// The request `close`.
    Close,
    /// `credit` of `submit`, and the request `credit`.
    Credit,
    /// `code` of `error`.
    ErrorCode,
    /// `clear_env`, `grace` and `stop_signal` of a job.
    JobSettings,
    /// `output` of `submit`, and the events `data` and `eof`.
    Output,
    /// `pty` of `submit`, and the request `resize`.
    Pty,
    /// `to` of `signal`.
    SignalTo,
    /// `stdin` of `submit`, and the request and the event `stdin`.
    Stdin,
    /// `data` of `submit`.
    UserData,
}

impl Capability {
    pub const ALL: &[Self] = &[
        Self::CancelKill,
        Self::Close,
        Self::Credit,
        Self::ErrorCode,
        Self::JobSettings,
        Self::Output,
        Self::Pty,
        Self::SignalTo,
        Self::Stdin,
        Self::UserData,
    ];
}

/// The kind of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not valid, or pinfold cannot execute it here.
    Invalid,
    /// No job has this id, or the job is done.
    NoSuchJob,
    /// Another job that is not done has this id.
    DuplicateId,
    /// The job waits for a worker, or is between two attempts.
    NotStarted,
    /// The standard input of the job is closed, or no process reads it any more.
    StdinClosed,
    /// More bytes than `stdin_window` of `hello` wait for the job to read them.
    StdinFull,
    /// pinfold is ending, and starts no more jobs.
    Stopping,
    /// The kernel refused it.
    Failed,
}

/// Why a request failed.
pub struct Failure {
    pub code: ErrorCode,
    pub message: String,
}

impl Failure {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Invalid, message)
    }

    /// Converts an error of the library to the failure of a request.
    pub fn of(error: &crate::Error) -> Self {
        let code = match error {
            crate::Error::Invalid { .. } => ErrorCode::Invalid,
            crate::Error::PoolClosed => ErrorCode::Stopping,
            _ => ErrorCode::Failed,
        };
        Self::new(code, error.to_string())
    }
}

/// An event that pinfold sends to the caller. `request` is the number of the request that it answers.
#[derive(Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "event"))]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Message<'a> {
    /// The first event.
    Hello {
        /// The version of the protocol.
        protocol: u32,
        /// The version of pinfold.
        version: &'a str,
        /// What this version of pinfold can do beyond the first version of the protocol.
        capabilities: &'a [Capability],
        /// How many jobs run at a time.
        workers: usize,
        /// How many bytes of standard input may wait for each job.
        stdin_window: usize,
    },
    /// An event of a job.
    Job { id: &'a str, attempt: u32, what: &'a crate::events::Event },
    /// A line of output.
    Output {
        id: &'a str,
        stream: OutputName,
        line: &'a str,
        /// Whether a newline ended the line.
        complete: bool,
    },
    /// A line that is not UTF-8.
    OutputBytes { id: &'a str, stream: OutputName, bytes: &'a [u8], complete: bool },
    /// A piece of output: either `text` or `base64`.
    Data {
        id: &'a str,
        stream: OutputName,
        #[serde(skip_serializing_if = "Option::is_none")]
        text: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        base64: Option<String>,
    },
    /// No `data` of this output follows in this attempt.
    Eof { id: &'a str, stream: OutputName },
    /// pinfold has written all bytes of a `stdin` request to the job. `bytes` is their number.
    Stdin { request: u64, id: &'a str, bytes: usize },
    /// The answer to `processes`.
    Processes { request: u64, id: &'a str, processes: &'a [ProcessInfo] },
    /// The answer to `freeze`: all processes of the job are frozen.
    Frozen { request: u64, id: &'a str },
    /// The answer to `usage`.
    Usage { request: u64, id: &'a str, usage: &'a Usage },
    /// The last event of a job.
    Done {
        /// The number of the `submit` request.
        request: u64,
        id: &'a str,
        success: bool,
        cancelled: bool,
        attempts: u32,
        report: &'a Report,
        /// The `data` of the `submit` request.
        #[serde(skip_serializing_if = "Option::is_none")]
        data: Option<&'a Value>,
    },
    /// A request failed.
    Error {
        request: u64,
        /// The id as the caller sent it; null where pinfold could not read it.
        id: &'a Value,
        code: ErrorCode,
        message: &'a str,
    },
}
