//! What a job writes and reads through pipes or a terminal: streams that end when the job does, lines, and what is kept of an output.

mod capture;
mod channel;
mod lines;
mod stream;
mod tee;

pub(crate) use channel::{Channel, Kept};
pub(crate) use stream::{Activity, Taps};
pub(crate) use tee::Tee;

pub use crate::kernel::same_file::are_one_output;
pub use capture::{CaptureLimit, Captured};
pub use lines::{Line, Lines};
pub use stream::{InputStream, OutputStream};

use std::sync::Arc;

use crate::report::Report;

/// A job that is over, and what was kept of its output.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Output {
    /// How it ended.
    pub report: Arc<Report>,
    /// Its standard output, with standard error in it after
    /// [`Command::stderr_to_stdout`](crate::Command::stderr_to_stdout); empty where that was not piped, or was taken.
    pub stdout: Captured,
    /// Its standard error; empty where that was not piped, or was taken.
    pub stderr: Captured,
}
