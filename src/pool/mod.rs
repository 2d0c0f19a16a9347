//! Runs many jobs, a limited number of them at the same time. A cancelled task leaves nothing behind: if it waits, it
//! never starts; if it runs, its job is stopped, then killed, and its outcome arrives when the job is proven empty.
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
use crate::kernel::creator::Creator;
use crate::kernel::signal::Signal;
use crate::supervisor::Supervisor;

pub use completed::{Completed, Handle, Outcomes};
pub use state::Status;
pub use task::{Attempt, Outcome, SlowTask, Task};

use state::{Ending, Shared};

/// What happens to the tasks of a pool that is shut down ([`Pool::shutdown`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Shutdown {
    /// Finishes all tasks that were submitted.
    Drain,
    /// Cancels waiting tasks and stops running ones. Running jobs keep their grace period, even if the shutdown is
    /// requested again.
    Stop,
    /// Does the same as `Stop`, but the jobs that run receive this signal first
    /// ([`start_stop_with`](crate::JobHandle::start_stop_with)), so that their handlers for it run: for a program that
    /// forwards the SIGINT or SIGHUP that it has received.
    StopWith(Signal),
    /// Cancels waiting tasks and kills running ones.
    Kill,
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
pub struct PoolBuilder {
    workers: usize,
    queue: usize,
    deadline: Option<Duration>,
    timeout: Option<Duration>,
    fail_fast: bool,
    on_slow: Option<OnSlow>,
}

/// What a pool calls for slow tasks, and after how long.
#[derive(Clone)]
struct OnSlow {
    after: Duration,
    call: Arc<dyn Fn(&SlowTask) + Send + Sync>,
}

impl std::fmt::Debug for OnSlow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnSlow").field("after", &self.after).finish_non_exhaustive()
    }
}

impl Default for PoolBuilder {
    fn default() -> Self {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        Self { workers, queue: 1000, deadline: None, timeout: None, fail_fast: false, on_slow: None }
    }
}

impl PoolBuilder {
    /// Sets how many jobs run at the same time: at least one; by default the number of processors that this process can
    /// use.
    pub fn workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// Sets the length of the queue: when it is full, [`Pool::submit`] waits. At least one; 1000 by default.
    pub fn queue(mut self, tasks: usize) -> Self {
        self.queue = tasks.clamp(1, Semaphore::MAX_PERMITS);
        self
    }

    /// Sets the deadline of the whole pool, counted from its start. At the deadline the pool cancels waiting tasks, and
    /// stops running ones with [`Reason::Deadline`](crate::report::Reason::Deadline). No deadline by default.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets the deadline of each job whose [`Command::timeout`](crate::Command::timeout) is not set. No deadline by
    /// default.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets whether the pool cancels waiting tasks and stops running ones when a task has failed (after its retries).
    pub fn fail_fast(mut self, fail_fast: bool) -> Self {
        self.fail_fast = fail_fast;
        self
    }

    /// Sets a callback for slow tasks. The pool calls it when an attempt has been running for the time `after`, and again
    /// each time that this time has passed. It must not block. If it panics, the job is killed and the task fails.
    ///
    /// ```
    /// use std::time::Duration;
    /// let builder = pinfold::Pool::builder().on_slow(Duration::from_secs(30), |task| {
    ///     eprintln!("slow: {} runs for {} s", task.name, task.running.as_secs());
    /// });
    /// # drop(builder);
    /// ```
    pub fn on_slow(mut self, after: Duration, call: impl Fn(&SlowTask) + Send + Sync + 'static) -> Self {
        // tokio's interval panics if its period is zero.
        self.on_slow = Some(OnSlow { after: after.max(Duration::from_millis(1)), call: Arc::new(call) });
        self
    }

    /// Starts the pool. It runs its jobs in the runtime that the supervisor was started in.
    ///
    /// # Errors
    /// There are none at present.
    pub fn start(self, supervisor: &Supervisor) -> Result<Pool> {
        let runtime = supervisor.inner.runtime.handle.clone();
        let shared = Arc::new(Shared::new(&self, supervisor.uncounted()));
        if let Some(at) = self.deadline.and_then(|deadline| Instant::now().checked_add(deadline)) {
            let pool = Arc::downgrade(&shared);
            let watch = async move {
                tokio::time::sleep_until(at.into()).await;
                if let Some(pool) = pool.upgrade() {
                    pool.end(Ending::Deadline, None);
                }
            };
            let watch = runtime.spawn(watch);
            shared.keep_deadline(watch.abort_handle());
        }
        Ok(Pool { owner: Arc::new(Owner(shared, Creator::current_process())) })
    }
}

/// Runs many jobs, a limited number of them at the same time. Tasks start in the order of their priorities; tasks of
/// the same priority start in the order of their submission. Clones are the same pool. When the last clone is dropped,
/// waiting tasks are cancelled and running ones are killed.
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
struct Owner(Arc<Shared>, Creator);

impl Drop for Owner {
    fn drop(&mut self) {
        if self.1.is_another_process() {
            return self.1.leak_in_forked_copy(&self.0);
        }
        self.0.end(Ending::Kill, None);
    }
}

impl Pool {
    /// Returns a builder with the default settings; [`PoolBuilder::start`] starts the pool.
    pub fn builder() -> PoolBuilder {
        PoolBuilder::default()
    }

    /// Submits a task; waits while the queue is full ([`PoolBuilder::queue`]). The returned handle gives access to the
    /// task's outcome. Dropping the handle has no effect on the task.
    ///
    /// Cancel-safe: if the future is dropped before it is ready, the task is not submitted.
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

    /// Submits a task as [`submit`](Self::submit) does, but does not wait: returns `None` if the queue is full.
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
    /// The same as for [`submit`](Self::submit).
    pub fn try_submit(&self, task: impl Into<Task>) -> Result<Option<Handle>> {
        use tokio::sync::TryAcquireError;
        match self.owner.0.room.clone().try_acquire_owned() {
            Ok(room) => self.owner.0.submit(task.into(), room).map(Some),
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(Error::PoolClosed),
        }
    }

    /// Returns the outcomes of these tasks in the order in which they arrive. After `timeout`, the pool cancels those
    /// of the tasks that wait, and stops those that run, with [`Reason::Deadline`](crate::report::Reason::Deadline). So
    /// all outcomes arrive at most a grace period after the timeout.
    #[must_use]
    pub fn as_completed(&self, handles: &[Handle], timeout: Option<Duration>) -> Completed {
        // The timeout uses the clock of the runtime that the jobs run in, even if the caller is in another runtime or
        // in none.
        let _entered = self.owner.0.supervisor.inner.runtime.handle.enter();
        Completed::new(handles, timeout)
    }

    /// Returns the outcomes of all tasks of the pool from now on, in the order in which they arrive. The stream ends
    /// when the pool is closed and all tasks are done.
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

    /// Runs all of these tasks, and returns their outcomes in the order of the tasks.
    ///
    /// Dropping the future cancels all of these tasks.
    ///
    /// # Errors
    /// The same as for [`submit`](Self::submit); the tasks that were submitted before the error are then cancelled.
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
    ///             command.arg(number.to_string()).stdout(Stdio::piped());
    ///             command
    ///         });
    ///         let outcomes = pool.map(commands).await?;
    ///         let texts: Vec<_> = outcomes.iter().map(|outcome| outcome.stdout.text()).collect();
    ///         assert_eq!(texts, ["1\n", "2\n", "3\n"]);
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

    /// Shuts the pool down: it takes no more tasks, and `mode` says what happens to those that it has. Returns when every
    /// task has its outcome.
    ///
    /// Another call has an effect only if its mode is stronger than the previous one (`Drain` < `Stop` < `Kill`): a
    /// stopped pool is killed only by [`Shutdown::Kill`].
    ///
    /// Cancel-safe: if the future is dropped, the shutdown continues, and another call waits for it. A future that is
    /// never polled does nothing.
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
    pub async fn shutdown(&self, mode: Shutdown) {
        self.start_shutdown(mode);
        self.owner.0.all_done().await;
    }

    /// Starts the same shutdown as [`shutdown`](Self::shutdown), and does not wait for the outcomes.
    pub fn start_shutdown(&self, mode: Shutdown) {
        let pool = &self.owner.0;
        match mode {
            Shutdown::Drain => pool.close(),
            Shutdown::Stop => pool.end(Ending::Stop, None),
            Shutdown::StopWith(signal) => pool.end(Ending::Stop, Some(signal)),
            Shutdown::Kill => pool.end(Ending::Kill, None),
        }
    }

    /// Returns how many tasks wait, run and are done.
    #[must_use]
    pub fn status(&self) -> Status {
        self.owner.0.status()
    }
}
