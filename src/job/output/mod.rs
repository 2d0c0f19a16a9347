//! The streams of a job, through pipes or a terminal: streams that end when the job does, lines, and captured output.

mod capture;
mod channel;
mod lines;
#[cfg(feature = "cli")]
mod runs;
mod search;
mod split;
mod stream;
mod writer;

pub(crate) use channel::{Channel, Kept};
#[cfg(feature = "cli")]
pub(crate) use runs::LineRuns;
pub(crate) use search::{Found, Searches};
#[cfg(any(feature = "cli", feature = "services"))]
pub(crate) use split::Splitter;
pub(crate) use stream::{Activity, Taps};
pub(crate) use writer::Writer;
#[cfg(feature = "cli")]
pub(crate) use writer::write_all;

#[cfg(feature = "cli")]
pub(crate) use crate::kernel::same_file::are_one_output;
pub use capture::{CaptureLimit, Captured};
pub use lines::{Line, Lines};
pub use stream::{InputStream, OutputStream};

use std::sync::Arc;

use crate::report::Report;

/// The report of a job that is over, and its output, as [`std::process::Output`]: `status` is the report of the whole
/// job, and has the methods of [`ExitStatus`](std::process::ExitStatus).
///
/// The output is complete, unless the caller has set a limit ([`Command::capture`](crate::Command::capture)): then the
/// middle of a stream may have been dropped, and the output contains the number of dropped bytes.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// How the job ended.
    pub status: Arc<Report>,
    /// The standard output of the job, which includes standard error after
    /// [`Command::stderr_to_stdout`](crate::Command::stderr_to_stdout). Empty if it was not piped, or was taken.
    pub stdout: Vec<u8>,
    /// The standard error of the job. Empty if it was not piped, or was taken.
    pub stderr: Vec<u8>,
    /// How many bytes of standard output were dropped because of the limit. 0 if there is no limit.
    pub stdout_dropped: u64,
    /// How many bytes of standard error were dropped because of the limit.
    pub stderr_dropped: u64,
}
