//! The requests that callers send to a running job.

use std::time::Duration;

use tokio::sync::oneshot;

use super::stop::Event;
use crate::error::Result;
use crate::kernel::signal::Signal;
use crate::report::{ProcessInfo, Usage};

/// A request to the actor of a job.
#[derive(Debug)]
pub(super) enum Request {
    /// A stop, with its first signal if that is not the stop signal of the command.
    Stop(Option<Signal>),
    Kill,
    SignalAll(Signal),
    /// The actor answers when it has sent the signal.
    SignalGroup(Signal, oneshot::Sender<()>),
    /// The job has to end for a reason other than a stop or a kill by the caller, such as the idle timeout.
    End(Event),
    Processes(oneshot::Sender<Vec<ProcessInfo>>),
    Usage(oneshot::Sender<Usage>),
    /// The actor answers when all processes are frozen.
    Freeze(oneshot::Sender<Result<()>>),
    Thaw,
    /// Postpones the deadline by this time, in which the job could not run.
    Postpone(Duration),
}
