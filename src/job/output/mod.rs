//! The streams of a job, through pipes or a terminal: streams that end when the job does, lines, and captured output.

mod capture;
mod channel;
mod lines;
mod search;
mod split;
mod stream;
mod writer;

pub(crate) use channel::{Channel, Kept};
pub(crate) use search::{Found, Searches};
pub(crate) use stream::{Activity, Taps};
pub(crate) use writer::Writer;
#[cfg(feature = "cli")]
pub(crate) use writer::write_all;

pub use crate::kernel::same_file::are_one_output;
pub use capture::{CaptureLimit, Captured};
pub use lines::{Line, Lines};
pub use stream::{InputStream, OutputStream};

use std::sync::Arc;

use crate::report::Report;

/// The report of a job that is over, and its captured output, as [`std::process::Output`]: `status` is the report of
/// the whole job, and has the methods of [`ExitStatus`](std::process::ExitStatus). The outputs are not `Vec<u8>`,
/// because their middle may have been dropped: [`Captured::to_bytes`] and [`Captured::text`] return the bytes that were
/// kept.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// How the job ended.
    pub status: Arc<Report>,
    /// The standard output of the job, which includes standard error after
    /// [`Command::stderr_to_stdout`](crate::Command::stderr_to_stdout). Empty if it was not piped, or was taken.
    pub stdout: Captured,
    /// The standard error of the job. Empty if it was not piped, or was taken.
    pub stderr: Captured,
}
