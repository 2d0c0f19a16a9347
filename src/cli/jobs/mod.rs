//! Finds the jobs of other supervisors, and controls them. There is no daemon. A record in a job's cgroup, or in the
//! memory of its supervisor, describes the job ([`Description`](crate::report::Description)). Everything else is read
//! from the cgroup and from `/proc`.
//!
//! The functions here block, and do not need a tokio runtime.

pub(crate) mod act;
pub(crate) mod exec;
pub(crate) mod find;
mod job;
pub(crate) mod listing;
mod sandbox;
pub(crate) mod target;

use crate::kernel::signal::Signal;

/// A request to a supervisor: a signal with a value (`si_value`, sigqueue(3)). The supervisor's rules for the signal
/// itself, such as `--on-signal TERM=pass`, do not apply to it. An earlier version of pinfold ignores the value, and
/// handles the signal.
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
