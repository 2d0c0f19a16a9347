//! The tasks that a pool runs, and their outcomes.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use crate::job::Job;
use crate::job::command::Command;
use crate::job::output::Captured;
use crate::report::Report;

/// The longest pause between two attempts.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// The value of the caller that a task carries.
pub(super) type Data = Arc<dyn Any + Send + Sync>;

type OnSpawn = Arc<dyn Fn(&mut Job, u32) + Send + Sync>;

/// A command, and the settings with which a pool runs it. It can be made from a [`Command`].
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
    pub(super) data: Option<Data>,
}

impl Task {
    /// Makes a task with priority 0 and without retries.
    pub fn new(command: Command) -> Self {
        Self { command, priority: 0, retries: 0, backoff: Duration::ZERO, on_spawn: None, data: None }
    }

    /// Sets the priority. The pool starts tasks of a higher priority first.
    pub fn priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// Sets how many times, at most, the pool runs the task again after a failure. A deadline of the job counts as a
    /// failure. A task that could not be started, or that was cancelled, is not run again. The task keeps its worker
    /// between the attempts. The first pause is `backoff`; each further one is twice as long, but at most a minute.
    pub fn retries(mut self, retries: u32, backoff: Duration) -> Self {
        self.retries = retries;
        self.backoff = backoff;
        self
    }

    /// Sets a callback. In each attempt, the pool calls it when the command has been executed. Its arguments are the
    /// job and the number of the attempt, which starts with 1. The callback can, for example, take the job's streams
    /// before the pool reads them. It must not block. If it panics, the job is killed and the task fails.
    pub fn on_spawn(mut self, call: impl Fn(&mut Job, u32) + Send + Sync + 'static) -> Self {
        self.on_spawn = Some(Arc::new(call));
        self
    }

    /// Sets a value that comes back with the outcome ([`Outcome::data`]) and with the notice of a slow task
    /// ([`SlowTask::data`]): for example the test that the command runs.
    ///
    /// ```
    /// # async fn example(pool: &pinfold::Pool) -> pinfold::Result<()> {
    /// use pinfold::pool::Task;
    /// let handle = pool.submit(Task::new(pinfold::Command::new("true")).data("the first")).await?;
    /// assert_eq!(handle.wait().await.data::<&str>(), Some(&"the first"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn data<T: Any + Send + Sync>(mut self, data: T) -> Self {
        self.data = Some(Arc::new(data));
        self
    }

    /// Returns the pause after this attempt.
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
        let Self { command, priority, retries, backoff, on_spawn: _, data: _ } = self;
        f.debug_struct("Task")
            .field("command", command)
            .field("priority", priority)
            .field("retries", retries)
            .field("backoff", backoff)
            .finish_non_exhaustive()
    }
}

/// The outcome of a task.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// The task's number. Numbers start with 1, in the order of submission.
    pub id: u64,
    /// How its last attempt ended. The reason is [`Cancelled`](crate::report::Reason::Cancelled) if the task was never
    /// started, and [`SpawnFailed`](crate::report::Reason::SpawnFailed) if it could not be started. It is
    /// [`GuardLost`](crate::report::Reason::GuardLost) also if the runtime of the pool has been shut down.
    pub report: Arc<Report>,
    /// How often the task was started.
    pub attempts: u32,
    /// Whether a cancellation, a stop of the pool, or a deadline other than that of the job ended it.
    pub cancelled: bool,
    /// The captured part of the last attempt's piped standard output ([`Command::capture`]).
    pub stdout: Captured,
    /// The captured part of its piped standard error.
    pub stderr: Captured,
    /// The attempts before the last one, in their order: each has failed.
    pub earlier: Vec<Attempt>,
    pub(super) data: Option<Data>,
}

/// One run of a task's command ([`Outcome::earlier`]).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Attempt {
    /// How it ended.
    pub report: Arc<Report>,
    /// The captured part of its piped standard output.
    pub stdout: Captured,
    /// The captured part of its piped standard error.
    pub stderr: Captured,
}

/// A task that runs for a long time ([`PoolBuilder::on_slow`](super::PoolBuilder::on_slow)).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SlowTask {
    /// The task's number ([`Handle::id`](super::Handle::id)).
    pub id: u64,
    /// The name of its command.
    pub name: String,
    /// The number of the attempt that runs; the first is 1.
    pub attempt: u32,
    /// How long this attempt has been running.
    pub running: Duration,
    pub(super) data: Option<Data>,
}

impl SlowTask {
    /// Returns the value that [`Task::data`] has set, if it has this type.
    #[must_use]
    pub fn data<T: Any>(&self) -> Option<&T> {
        self.data.as_ref()?.downcast_ref()
    }
}

impl Outcome {
    /// Returns the value that [`Task::data`] has set, if it has this type.
    #[must_use]
    pub fn data<T: Any>(&self) -> Option<&T> {
        self.data.as_ref()?.downcast_ref()
    }

    /// Returns whether the command ended by itself with exit code 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.report.success()
    }

    /// Makes an outcome without output.
    pub(super) fn not_run(id: u64, report: Report, attempts: u32, cancelled: bool) -> Self {
        let (stdout, stderr) = Default::default();
        Self { id, report: Arc::new(report), attempts, cancelled, stdout, stderr, earlier: Vec::new(), data: None }
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
