//! The pool, for programs without tokio.

use std::sync::Arc;
use std::time::Duration;

use super::{Driver, Supervisor};
use crate::error::Result;
use crate::pool::{Outcome, Shutdown, Status, Task};

impl Supervisor {
    /// Starts a pool with these settings.
    ///
    /// # Errors
    /// The same as for [`crate::pool::PoolBuilder::start`].
    pub fn pool(&self, builder: crate::pool::PoolBuilder) -> Result<Pool> {
        Ok(Pool { inner: builder.start(&self.inner)?, driver: self.driver.clone() })
    }
}

/// Runs many jobs, a limited number of them at the same time, as [`crate::Pool`] does. Clones are the same pool. When
/// the last clone is dropped, waiting tasks are cancelled and running ones are killed.
#[derive(Clone, Debug)]
pub struct Pool {
    inner: crate::pool::Pool,
    driver: Driver,
}

impl Pool {
    /// Submits a task; waits while the queue is full.
    ///
    /// # Errors
    /// The same as for [`crate::Pool::submit`].
    pub fn submit(&self, task: impl Into<Task>) -> Result<Handle> {
        let inner = self.driver.wait(self.inner.submit(task))?;
        Ok(Handle { inner, driver: self.driver.clone() })
    }

    /// Submits a task as [`submit`](Self::submit) does, but does not wait: returns `None` if the queue is full.
    ///
    /// # Errors
    /// The same as for [`crate::Pool::submit`].
    pub fn try_submit(&self, task: impl Into<Task>) -> Result<Option<Handle>> {
        let submitted = self.inner.try_submit(task)?;
        Ok(submitted.map(|inner| Handle { inner, driver: self.driver.clone() }))
    }

    /// Returns the outcomes of all tasks of the pool from now on, as a blocking iterator; see
    /// [`crate::Pool::outcomes`].
    ///
    /// ```rust,standalone_crate
    /// use pinfold::pool::Shutdown;
    /// use pinfold::{Command, Pool, blocking};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let Ok(supervisor) = blocking::Supervisor::start() else { return Ok(()) }; // No cgroup here.
    ///     let pool = supervisor.pool(Pool::builder().workers(2))?;
    ///     let outcomes = pool.outcomes();
    ///     for _ in 0..3 {
    ///         pool.submit(Command::new("true"))?;
    ///     }
    ///     pool.start_shutdown(Shutdown::Drain);
    ///     assert_eq!(outcomes.filter(|outcome| outcome.success()).count(), 3);
    ///     supervisor.close();
    ///     Ok(())
    /// }
    /// ```
    #[must_use]
    pub fn outcomes(&self) -> Outcomes {
        Outcomes { inner: self.inner.outcomes(), driver: self.driver.clone() }
    }

    /// Runs all of these tasks, and returns their outcomes in the order of the tasks.
    ///
    /// # Errors
    /// The same as for [`crate::Pool::map`].
    ///
    /// ```rust,standalone_crate
    /// use pinfold::pool::Shutdown;
    /// use pinfold::{Command, Pool, blocking};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let Ok(supervisor) = blocking::Supervisor::start() else { return Ok(()) }; // No cgroup here.
    ///     let pool = supervisor.pool(Pool::builder().workers(2))?;
    ///     let outcomes = pool.map([Command::new("true"), Command::new("false")])?;
    ///     assert!(outcomes[0].success() && !outcomes[1].success());
    ///     supervisor.close();
    ///     Ok(())
    /// }
    /// ```
    pub fn map<I: IntoIterator<Item: Into<Task>>>(&self, tasks: I) -> Result<Vec<Arc<Outcome>>> {
        self.driver.wait(self.inner.map(tasks))
    }

    /// Returns the outcomes of these tasks in the order in which they arrive; see [`crate::Pool::as_completed`].
    #[must_use]
    pub fn as_completed(&self, handles: &[Handle], timeout: Option<Duration>) -> Completed {
        let handles: Vec<_> = handles.iter().map(|handle| handle.inner.clone()).collect();
        let _entered = self.driver.handle.enter();
        Completed { inner: self.inner.as_completed(&handles, timeout), driver: self.driver.clone() }
    }

    /// Shuts the pool down, and waits until every task has its outcome; see [`crate::Pool::shutdown`].
    pub fn shutdown(&self, mode: Shutdown) {
        self.driver.wait(self.inner.shutdown(mode));
    }

    /// Starts the same shutdown, and does not wait for the outcomes.
    pub fn start_shutdown(&self, mode: Shutdown) {
        self.inner.start_shutdown(mode);
    }

    /// Returns how many tasks wait, run and are done.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner.status()
    }
}

/// A task that was submitted, as [`crate::pool::Handle`].
#[derive(Clone, Debug)]
pub struct Handle {
    inner: crate::pool::Handle,
    driver: Driver,
}

impl Handle {
    /// Returns the task's number. Numbers start with 1, in the order of submission.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.id()
    }

    /// Returns its outcome; `None` if the task is not done yet.
    #[must_use]
    pub fn outcome(&self) -> Option<Arc<Outcome>> {
        self.inner.outcome()
    }

    /// Cancels the task; see [`crate::pool::Handle::cancel`]. Does not wait.
    pub fn cancel(&self) {
        self.inner.cancel();
    }

    /// Waits for the outcome of the task.
    #[must_use]
    pub fn wait(&self) -> Arc<Outcome> {
        self.driver.wait(self.inner.wait())
    }
}

/// The outcomes of some tasks, as a blocking iterator.
#[derive(Debug)]
pub struct Completed {
    inner: crate::pool::Completed,
    driver: Driver,
}

impl Iterator for Completed {
    type Item = Arc<Outcome>;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.wait(self.inner.next_outcome())
    }
}

/// The outcomes of all tasks of a pool, as a blocking iterator.
#[derive(Debug)]
pub struct Outcomes {
    inner: crate::pool::Outcomes,
    driver: Driver,
}

impl Iterator for Outcomes {
    type Item = Arc<Outcome>;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.wait(self.inner.next_outcome())
    }
}
