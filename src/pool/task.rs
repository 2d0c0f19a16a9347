//! What a pool runs, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use crate::job::Job;
use crate::job::command::Command;
use crate::job::output::Captured;
use crate::report::Report;

/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

type OnSpawn = Arc<dyn Fn(&Job, u32) + Send + Sync>;

/// A command, and how a pool is to run it. Made from a [`Command`].
///
/// ```
/// use std::time::Duration;
/// use pinfold::pool::Task;
/// let task = Task::new(pinfold::Command::new("fetch")).priority(5).retries(3, Duration::from_millis(200));
/// ```
#[derive(Clone)]
#[must_use]
pub struct Task {
    pub(super) command: Command,
    pub(super) priority: i32,
    pub(super) retries: u32,
    backoff: Duration,
    pub(super) on_spawn: Option<OnSpawn>,
}

impl Task {
    /// Priority 0, no retries.
    pub fn new(command: Command) -> Self {
        Self { command, priority: 0, retries: 0, backoff: Duration::ZERO, on_spawn: None }
    }

    /// Higher ones are started first.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Runs it again up to so often when it has failed, its deadline included; not when it could not be started or was
    /// cancelled. It keeps its worker meanwhile. The first pause is `backoff`, each further one twice as long, a minute at
    /// most.
    pub fn retries(mut self, retries: u32, backoff: Duration) -> Self {
        self.retries = retries;
        self.backoff = backoff;
        self
    }

    /// Calls this with the job whenever the command has been executed, and with the number of the attempt, from 1 on: to
    /// take its streams, say, before the pool reads them. It must not block. Where it panics the job is killed, and the task
    /// has failed.
    pub fn on_spawn(mut self, call: impl Fn(&Job, u32) + Send + Sync + 'static) -> Self {
        self.on_spawn = Some(Arc::new(call));
        self
    }

    /// The pause after this attempt.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        self.backoff.saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1))).min(MAX_BACKOFF)
    }
}

impl From<Command> for Task {
    fn from(command: Command) -> Self {
        Self::new(command)
    }
}

impl std::fmt::Debug for Task {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, priority, retries, backoff, on_spawn: _ } = self;
        f.debug_struct("Task")
            .field("command", command)
            .field("priority", priority)
            .field("retries", retries)
            .field("backoff", backoff)
            .finish_non_exhaustive()
    }
}

/// What came of a task.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The task's number, from 1 on in the order of submission.
    pub id: u64,
    /// How its last attempt ended. [`Cancelled`](crate::report::Reason::Cancelled) where it was never started,
    /// [`SpawnFailed`](crate::report::Reason::SpawnFailed) where it could not be;
    /// [`GuardLost`](crate::report::Reason::GuardLost) also where the runtime that the pool belongs to has been shut down.
    pub report: Arc<Report>,
    /// How often it was started.
    pub attempts: u32,
    /// Whether a cancel, a stop of the pool, or a deadline beyond the job's own ended it.
    pub cancelled: bool,
    /// What was kept of the last attempt's piped standard output ([`Command::capture`]).
    pub stdout: Captured,
    /// What was kept of its piped standard error.
    pub stderr: Captured,
}

impl Outcome {
    /// Whether the command ended by itself with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.report.success()
    }

    /// One whose output is not there.
    pub(super) fn not_run(id: u64, report: Report, attempts: u32, cancelled: bool) -> Self {
        let (stdout, stderr) = Default::default();
        Self { id, report: Arc::new(report), attempts, cancelled, stdout, stderr }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_bounded() {
        let task = Task::new(Command::new("x")).retries(9, Duration::from_millis(100));
        assert_eq!([1, 2, 3, 4].map(|attempt| task.pause(attempt).as_millis()), [100, 200, 400, 800]);
        assert_eq!(task.pause(u32::MAX), MAX_BACKOFF);
        assert_eq!(Task::new(Command::new("x")).pause(40), Duration::ZERO);
    }
}
