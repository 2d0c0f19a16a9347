//! Many jobs, so many at a time. What is cancelled is gone: a job that waits never starts, one that runs is stopped, then
//! killed, and its outcome comes when it is proven empty.
//!
//! ```rust,standalone_crate
//! use std::time::Duration;
//! use pinfold::pool::{Pool, Shutdown};
//! use pinfold::report::Reason;
//! use pinfold::{Command, Supervisor};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
//!     runtime.block_on(async {
//!         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
//!         let pool = Pool::builder().workers(2).start(&supervisor)?;
//!         let mut handles = Vec::new();
//!         for _ in 0..3 {
//!             let mut command = Command::new("sleep");
//!             command.arg("100");
//!             handles.push(pool.submit(command).await?);
//!         }
//!         let mut completed = pool.as_completed(&handles, Some(Duration::from_secs(1)));
//!         while let Some(outcome) = completed.next_outcome().await {
//!             println!("{} {:?} after {} attempts", outcome.id, outcome.report.reason, outcome.attempts);
//!             assert!(matches!(outcome.report.reason, Reason::Deadline | Reason::Cancelled));
//!         }
//!         pool.shutdown(Shutdown::Drain).await;
//!         supervisor.close().await;
//!         Ok(())
//!     })
//! }
//! ```

mod completed;
mod run;
mod state;
mod task;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::error::{Error, Result};
use crate::kernel::maker::Maker;
use crate::kernel::signal::Signal;
use crate::supervisor::Supervisor;

pub use completed::{Completed, Handle, Outcomes};
pub use state::Status;
pub use task::{Outcome, Task};

use state::Shared;

/// How a pool is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shutdown {
    /// What was submitted is done first.
    Drain,
    /// What waits is cancelled, what runs is stopped: it has its grace period, however often this is asked for.
    Now,
}

/// How to start a [`Pool`].
///
/// ```
/// use std::time::Duration;
/// let builder = pinfold::Pool::builder().workers(8).queue(100).timeout(Duration::from_secs(60)).fail_fast(true);
/// # drop(builder);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    workers: usize,
    queue: usize,
    deadline: Option<Duration>,
    timeout: Option<Duration>,
    fail_fast: bool,
}

impl Default for Builder {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Self { workers, queue: 1000, deadline: None, timeout: None, fail_fast: false }
    }
}

impl Builder {
    /// How many jobs run at a time: by default as many as there are processors for this process. At least one.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// How many tasks wait at most before [`Pool::submit`] does: 1000 by default. At least one.
    pub fn queue(mut self, tasks: usize) -> Self {
        self.queue = tasks.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// The deadline of the whole pool, from its start: then what waits is cancelled, and what runs is stopped with
    /// [`Reason::Deadline`](crate::report::Reason::Deadline). None by default.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The deadline of each job whose [`Command::timeout`](crate::Command::timeout) is not set. None by default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// When a task has failed (after its retries), cancels what waits and stops what runs.
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.fail_fast = fail_fast;
        self
    }

    /// Starts the pool. It runs its jobs in the runtime that the supervisor was started in.
    ///
    /// # Errors
    /// None now.
    pub fn start(self, supervisor: &Supervisor) -> Result<Pool> {
        let runtime = supervisor.inner.runtime.handle.clone();
        let shared = Arc::new(Shared::new(&self, supervisor.clone()));
        if let Some(at) = self.deadline.and_then(|deadline| Instant::now().checked_add(deadline)) {
            let pool = Arc::downgrade(&shared);
            let watch = async move {
                tokio::time::sleep_until(at.into()).await;
                if let Some(pool) = pool.upgrade() {
                    pool.end(state::Ending::Deadline);
                }
            };
            let watch = runtime.spawn(watch);
            shared.keep(watch.abort_handle());
        }
        Ok(Pool { owner: Arc::new(Owner(shared, Maker::here())) })
    }
}

/// Runs jobs, so many at a time, in the order of their priorities, and in that of their submission within one. Clones are the
/// same pool; when the last is dropped, what waits is cancelled and what runs is killed.
///
/// ```
/// fn is_for_any_thread<T: Clone + Send + Sync + 'static>() {}
/// is_for_any_thread::<pinfold::Pool>();
/// ```
#[derive(Clone, Debug)]
pub struct Pool {
    owner: Arc<Owner>,
}

#[derive(Debug)]
struct Owner(Arc<Shared>, Maker);

impl Drop for Owner {
    fn drop(&mut self) {
        if self.1.is_elsewhere() {
            return self.1.keep_elsewhere(&self.0);
        }
        self.0.end(state::Ending::Kill);
    }
}

impl Pool {
    /// A pool with other than the default settings; [`Builder::start`] starts it.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Hands a task in, and waits while too many wait already ([`Builder::queue`]). The handle tells its outcome; dropped,
    /// it changes nothing.
    ///
    /// Cancel-safe: a dropped future has submitted nothing.
    ///
    /// ```
    /// # async fn example(pool: &pinfold::Pool) -> Result<(), Box<dyn std::error::Error>> {
    /// use pinfold::Command;
    /// use pinfold::pool::Task;
    ///
    /// let urgent = Task::new(Command::new("deploy")).priority(10);
    /// let handle = pool.submit(urgent).await?;
    /// assert!(handle.wait().await.success());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::PoolClosed`] after a shutdown, a stop, a failure with fail-fast, or the pool's deadline.
    pub async fn submit(&self, task: impl Into<Task>) -> Result<Handle> {
        let shared = &self.owner.0;
        let room = shared.room.clone().acquire_owned().await.map_err(|_| Error::PoolClosed)?;
        shared.submit(task.into(), room)
    }

    /// The same without waiting; `None` where too many wait.
    ///
    /// ```
    /// # async fn example(pool: &pinfold::Pool) -> Result<(), Box<dyn std::error::Error>> {
    /// match pool.try_submit(pinfold::Command::new("true"))? {
    ///     Some(handle) => println!("task {}", handle.id()),
    ///     None => println!("busy"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn try_submit(&self, task: impl Into<Task>) -> Result<Option<Handle>> {
        use tokio::sync::TryAcquireError;
        match self.owner.0.room.clone().try_acquire_owned() {
            Ok(room) => self.owner.0.submit(task.into(), room).map(Some),
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(Error::PoolClosed),
        }
    }

    /// The outcomes of these tasks as they come. After `timeout` those that wait are cancelled and those that run are stopped,
    /// with [`Reason::Deadline`](crate::report::Reason::Deadline): all have their outcomes a grace period later.
    #[must_use]
    pub fn as_completed(&self, handles: &[Handle], timeout: Option<Duration>) -> Completed {
        // Its clock is that of the runtime that the jobs run in, whoever calls.
        let _entered = self.owner.0.supervisor.inner.runtime.handle.enter();
        Completed::new(handles, timeout)
    }

    /// The outcome of every task of the pool from now on, as they come; it ends when the pool is closed and all is done.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::pool::{Pool, Shutdown};
    /// use pinfold::{Command, Supervisor};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ///     runtime.block_on(async {
    ///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
    ///         let pool = Pool::builder().workers(2).start(&supervisor)?;
    ///         let mut outcomes = pool.outcomes();
    ///         for _ in 0..3 {
    ///             pool.submit(Command::new("true")).await?;
    ///         }
    ///         pool.shutdown(Shutdown::Drain).await;
    ///         while let Some(outcome) = outcomes.next_outcome().await {
    ///             assert!(outcome.success());
    ///         }
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    #[must_use]
    pub fn outcomes(&self) -> Outcomes {
        Outcomes(self.owner.0.listen())
    }

    /// Runs them all and tells their outcomes, in the order of the tasks.
    ///
    /// A dropped future cancels all of them.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); the tasks that were submitted before that are cancelled.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::{Command, Pool, Stdio, Supervisor};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    ///     runtime.block_on(async {
    ///         let Ok(supervisor) = Supervisor::start().await else { return Ok(()) }; // No cgroup here.
    ///         let pool = Pool::builder().workers(2).start(&supervisor)?;
    ///         let commands = (1..=3).map(|number| {
    ///             let mut command = Command::new("echo");
    ///             command.arg(number.to_string()).stdout(Stdio::Piped);
    ///             command
    ///         });
    ///         let outcomes = pool.map(commands).await?;
    ///         let said: Vec<_> = outcomes.iter().map(|outcome| outcome.stdout.text()).collect();
    ///         assert_eq!(said, ["1\n", "2\n", "3\n"]);
    ///         supervisor.close().await;
    ///         Ok(())
    ///     })
    /// }
    /// ```
    pub async fn map<I: IntoIterator<Item: Into<Task>>>(&self, tasks: I) -> Result<Vec<Arc<Outcome>>> {
        struct CancelAll(Vec<Handle>);
        impl Drop for CancelAll {
            fn drop(&mut self) {
                self.0.iter().for_each(Handle::cancel);
            }
        }
        let mut submitted = CancelAll(Vec::new());
        for task in tasks {
            submitted.0.push(self.submit(task).await?);
        }
        let mut outcomes = Vec::with_capacity(submitted.0.len());
        for handle in &submitted.0 {
            outcomes.push(handle.wait().await);
        }
        submitted.0.clear();
        Ok(outcomes)
    }

    /// Takes no more tasks; those there are go on. Comes back at once.
    pub fn close(&self) {
        self.owner.0.close();
    }

    /// Takes no more tasks, cancels what waits, stops what runs. Comes back at once; once more changes nothing, and
    /// [`kill`](Self::kill) does not wait for the grace period.
    pub fn stop(&self) {
        self.owner.0.end(state::Ending::Stop);
    }

    /// Stops the pool as [`stop`](Self::stop) does, but the jobs that run receive `signal` first
    /// ([`Job::stop_with`](crate::Job::stop_with)): for a program that passes the kind of a request on, so that the jobs' handlers
    /// for SIGINT or SIGHUP run. Returns at once.
    pub fn stop_with(&self, signal: Signal) {
        self.owner.0.end_with(state::Ending::Stop, Some(signal));
    }

    /// The same, but kills what runs.
    pub fn kill(&self) {
        self.owner.0.end(state::Ending::Kill);
    }

    /// Takes no more tasks, and waits until every one has its outcome.
    ///
    /// Cancel-safe: the shutdown goes on, and can be waited for again.
    ///
    /// ```
    /// # async fn example(pool: &pinfold::Pool) -> Result<(), Box<dyn std::error::Error>> {
    /// use pinfold::pool::Shutdown;
    ///
    /// pool.shutdown(Shutdown::Drain).await;
    /// let status = pool.status();
    /// assert_eq!((status.waiting, status.running), (0, 0));
    /// # Ok(())
    /// # }
    /// ```
    pub async fn shutdown(&self, how: Shutdown) {
        match how {
            Shutdown::Drain => self.owner.0.close(),
            Shutdown::Now => self.stop(),
        }
        self.owner.0.all_done().await;
    }

    /// How many tasks wait, run and are done.
    #[must_use]
    pub fn status(&self) -> Status {
        self.owner.0.status()
    }
}
