//! The requests of the caller. Each is one line of JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::pool::JobLine;

/// A request of the caller.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "request"))]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Runs a job, or queues it until a worker is free.
    Submit(Box<Submit>),
    /// Cancels a job. A waiting job is never started; a running job is stopped, and killed after its grace period.
    Cancel {
        id: String,
        /// Kill it at once. A second cancel does this too.
        #[serde(default)]
        kill: bool,
    },
    /// Sends a signal to a running job.
    Signal {
        id: String,
        /// A name or a number, such as `INT` or `10`.
        signal: String,
        #[serde(default)]
        to: SignalTo,
    },
    /// Requests the list of the processes of a running job.
    Processes { id: String },
    /// Freezes every process of a running job.
    Freeze { id: String },
    /// Lets the processes of a frozen job continue.
    Thaw { id: String },
    /// Requests the resources that a running job has used.
    Usage { id: String },
    /// Writes to the standard input of a job that was submitted with `"stdin": "stream"`.
    Stdin(Chunk),
    /// Closes a stream of a job. pinfold closes the standard input after it has written the earlier `stdin` requests. It
    /// stops reading a closed output.
    Close { id: String, stream: StreamName },
    /// Allows pinfold to send this many more bytes of an output.
    Credit {
        id: String,
        stream: OutputName,
        #[cfg_attr(feature = "schema", schemars(range(min = 1)))]
        bytes: u64,
    },
    /// Changes the size of a job's terminal.
    Resize { id: String, rows: u16, columns: u16 },
}

/// A job, and how its streams and events reach the caller.
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "submit"))]
#[serde(deny_unknown_fields)]
pub struct Submit {
    /// The caller chooses the id. Each job needs a different one.
    pub id: String,
    pub job: JobLine,
    /// `stream`: the job's standard input comes in `stdin` requests.
    #[serde(default)]
    pub stdin: Option<StdinMode>,
    #[serde(default)]
    pub output: Output,
    /// How many bytes of each output pinfold may send before the first `credit`. Without it there is no limit.
    #[serde(default)]
    pub credit: Option<u64>,
    /// Gives the job a terminal of this size.
    #[serde(default)]
    pub pty: Option<PtySize>,
    /// Anything; `done` contains it.
    #[serde(default)]
    pub data: Option<Value>,
}

/// Where the standard input of a job comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StdinMode {
    Stream,
}

/// How the output of a job arrives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OutputMode {
    /// Line by line, in the events `output` and `output_bytes`.
    #[default]
    Lines,
    /// Piece by piece as the job writes it, in the event `data`. `eof` follows at its end.
    Data,
    /// Not at all: the job writes to `/dev/null`.
    None,
}

/// How the outputs of a job arrive: one mode for both, or one for each.
#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "output"))]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "\"output\" is \"lines\", \"data\", \"none\", or an object with \"stdout\" and \"stderr\""
)]
pub enum Output {
    Both(OutputMode),
    Each {
        #[serde(default)]
        stdout: OutputMode,
        #[serde(default)]
        stderr: OutputMode,
    },
}

impl Default for Output {
    fn default() -> Self {
        Self::Both(OutputMode::Lines)
    }
}

impl Output {
    pub fn of(self, stream: OutputName) -> OutputMode {
        match (self, stream) {
            (Self::Both(mode), _) => mode,
            (Self::Each { stdout, .. }, OutputName::Stdout) => stdout,
            (Self::Each { stderr, .. }, OutputName::Stderr) => stderr,
        }
    }
}

/// The size and settings of a terminal.
#[derive(Clone, Copy, Debug, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "pty"))]
#[serde(deny_unknown_fields)]
pub struct PtySize {
    pub rows: u16,
    pub columns: u16,
    /// Whether the terminal echoes its input. The default is `true`.
    #[serde(default)]
    pub echo: Option<bool>,
}

/// The processes that a signal is sent to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SignalTo {
    /// The main process.
    #[default]
    Main,
    /// Every process of the job.
    All,
}

/// A standard stream of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StreamName {
    Stdin,
    Stdout,
    Stderr,
}

/// An output of a job. For a job with a terminal, `stdout` is everything that the job writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, serde::Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "stream"))]
#[serde(rename_all = "snake_case")]
pub enum OutputName {
    Stdout,
    Stderr,
}

/// A piece of a job's standard input: `text`, or bytes in base64 (RFC 4648, section 4).
#[derive(Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema), schemars(rename = "chunk"))]
#[serde(deny_unknown_fields)]
pub struct Chunk {
    pub id: String,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    base64: Option<String>,
}

impl Chunk {
    /// Returns the bytes.
    ///
    /// # Errors
    /// Neither or both fields are given, or the base64 is not valid.
    pub fn bytes(&mut self) -> Result<Vec<u8>, String> {
        match (self.text.take(), self.base64.take()) {
            (Some(text), None) => Ok(text.into_bytes()),
            (None, Some(text)) => STANDARD.decode(text).map_err(|error| format!("base64 is not valid: {error}")),
            _ => Err("write one of \"text\" and \"base64\"".into()),
        }
    }
}

impl Request {
    pub fn id(&self) -> &str {
        match self {
            Self::Submit(submit) => &submit.id,
            Self::Stdin(chunk) => &chunk.id,
            Self::Cancel { id, .. }
            | Self::Signal { id, .. }
            | Self::Processes { id }
            | Self::Freeze { id }
            | Self::Thaw { id }
            | Self::Usage { id }
            | Self::Close { id, .. }
            | Self::Credit { id, .. }
            | Self::Resize { id, .. } => id,
        }
    }
}
