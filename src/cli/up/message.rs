//! The messages of the control socket: JSON lines, like those of `pinfold serve`. Each answer contains the number of
//! its request: the first line that the client sends is number 1.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::services::{OutputLine, ServiceStatus};

/// The version of the protocol. It increases when a message changes its meaning or is removed.
pub const PROTOCOL: u32 = 1;

/// A request. `Logs` without names applies to all services.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The state of each service.
    Status,
    /// Stop everything, and end `up`.
    Down,
    Kill,
    /// Stop the services, and start them again.
    Restart {
        names: Vec<String>,
    },
    /// The last lines of output, and with `follow` also each new line.
    Logs {
        #[serde(default)]
        names: Vec<String>,
        #[serde(default)]
        lines: usize,
        #[serde(default)]
        follow: bool,
    },
}

/// An answer. Except `hello`, it belongs to the request with the number `request`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Answer<'a> {
    Hello {
        protocol: u32,
        version: Cow<'a, str>,
        pid: u32,
        /// The names of the services.
        services: Vec<String>,
    },
    #[serde(skip_deserializing)]
    Status {
        request: u64,
        services: &'a [ServiceStatus],
    },
    Output {
        request: u64,
        service: Cow<'a, str>,
        line: Cow<'a, str>,
    },
    /// A line that is not UTF-8.
    OutputBytes {
        request: u64,
        service: Cow<'a, str>,
        bytes: Cow<'a, [u8]>,
    },
    /// The client has missed this number of lines, because it read too slowly.
    Missed {
        request: u64,
        lines: u64,
    },
    Done {
        request: u64,
    },
    Error {
        request: u64,
        message: Cow<'a, str>,
    },
    /// An answer that a newer pinfold has added.
    #[serde(other)]
    Unknown,
}

impl<'a> Answer<'a> {
    pub fn output(request: u64, line: &'a OutputLine) -> Self {
        let service = Cow::Borrowed(&*line.service);
        match std::str::from_utf8(&line.line.bytes) {
            Ok(text) => Self::Output { request, service, line: text.into() },
            Err(_) => Self::OutputBytes { request, service, bytes: Cow::Borrowed(&line.line.bytes) },
        }
    }

    /// Returns the same without borrowed parts.
    pub fn into_owned(self) -> Answer<'static> {
        let own = |text: Cow<'a, str>| Cow::Owned(text.into_owned());
        match self {
            Self::Hello { protocol, version, pid, services } => {
                Answer::Hello { protocol, version: own(version), pid, services }
            }
            Self::Output { request, service, line } => {
                Answer::Output { request, service: own(service), line: own(line) }
            }
            Self::OutputBytes { request, service, bytes } => {
                Answer::OutputBytes { request, service: own(service), bytes: Cow::Owned(bytes.into_owned()) }
            }
            Self::Missed { request, lines } => Answer::Missed { request, lines },
            Self::Done { request } => Answer::Done { request },
            Self::Error { request, message } => Answer::Error { request, message: own(message) },
            Self::Status { .. } | Self::Unknown => Answer::Unknown,
        }
    }

    /// Returns one line of JSON.
    pub fn to_line(&self) -> Vec<u8> {
        // This does not fail: every field has a JSON form.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}
