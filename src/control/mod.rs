//! Finds the jobs that other pinfolds supervise, and controls them. There is no daemon: a job's cgroup, or the memory of
//! its supervisor, says what the job is ([`Description`](crate::report::Description)), and the rest comes from the
//! cgroup and from `/proc`.
//!
//! Everything here blocks, and nothing needs a runtime.

pub(crate) mod act;
pub(crate) mod exec;
pub(crate) mod find;
mod job;
pub(crate) mod listing;
pub(crate) mod target;

use crate::kernel::signal::Signal;

/// A request to a supervisor, as the value of a signal. It is not subject to the rules that the supervisor has for the
/// signal itself, such as `--on-signal TERM=pass`. A pinfold of an earlier version takes it for the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    Stop,
    Kill,
}

impl Request {
    /// The signal that carries the value.
    pub const SIGNAL: Signal = Signal::TERM;

    /// Returns the value of the signal.
    pub fn value(self) -> i32 {
        match self {
            Self::Stop => 0x7069_6e01,
            Self::Kill => 0x7069_6e02,
        }
    }

    /// Returns the request that this value stands for, if any.
    pub fn of_value(value: i32) -> Option<Self> {
        [Self::Stop, Self::Kill].into_iter().find(|request| request.value() == value)
    }
}
