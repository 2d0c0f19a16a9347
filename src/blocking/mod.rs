//! The library for programs without tokio: the same names, methods that wait. Behind it, one thread runs a runtime of its own.
//!
//! ```rust,standalone_crate
//! use pinfold::{Command, Stdio, blocking};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let Ok(supervisor) = blocking::Supervisor::start() else { return Ok(()) }; // No cgroup here.
//!     let mut command = Command::new("sh");
//!     command.args(["-c", "echo one; echo two; setsid sleep 999 & exit 3"]).stdout(Stdio::Piped);
//!     let job = supervisor.spawn(&command)?;
//!     for line in job.take_stdout_lines().ok_or("it is piped")? {
//!         println!("{}", line?.text());
//!     }
//!     let report = job.wait()?;
//!     assert_eq!((report.exit_code, report.leftovers.count), (3, 1));
//!     supervisor.close();
//!     Ok(())
//! }
//! ```
//!
//! None of it may be called inside a tokio runtime: that panics, as tokio's own `block_on` does.

mod job;
mod pool;
mod streams;

use std::future::Future;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::io::Errno;
use tokio::runtime::Handle as Runtime;
use tokio::sync::oneshot;

use crate::command::Command;
use crate::error::{Error, Result};

pub use job::{Job, JobHandle};
pub use pool::{Completed, Handle, Outcomes, Pool};
pub use streams::{Events, InputStream, JobEvents, Lines, OutputStream};

/// The thread that runs the runtime; ended with the last who needs it.
#[derive(Clone, Debug)]
struct Driver {
    handle: Runtime,
    _alive: Arc<Alive>,
}

#[derive(Debug)]
struct Alive(Option<oneshot::Sender<()>>, Option<std::thread::JoinHandle<()>>);

impl Drop for Alive {
    fn drop(&mut self) {
        drop(self.0.take());
        // One that is dropped by that very thread, with a closure that the runtime held say, is not to wait for itself.
        if let Some(thread) = self.1.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // It has nothing left to wait for.
            let _ = thread.join();
        }
    }
}

impl Driver {
    fn start() -> Result<Self> {
        let failed = |error: io::Error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::system("start", "the thread that drives pinfold", errno, "see ulimit -u and ulimit -n")
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let handle = runtime.handle().clone();
        let (alive, over) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("pinfold".into())
            .spawn(move || drop(runtime.block_on(over)))
            .map_err(failed)?;
        Ok(Self { handle, _alive: Arc::new(Alive(Some(alive), Some(thread))) })
    }

    fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.handle.block_on(future)
    }
}

/// Starts jobs and answers for them, as [`crate::Supervisor`]. Clones are the same supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor {
    // Before the thread that it lives in.
    inner: crate::Supervisor,
    driver: Driver,
}

impl Supervisor {
    /// Starts with the defaults.
    ///
    /// # Errors
    /// As [`crate::Supervisor::start`]; [`Error::System`] where no thread can be started.
    pub fn start() -> Result<Self> {
        Self::start_with(crate::Supervisor::builder())
    }

    /// Starts with other than the defaults.
    ///
    /// ```no_run
    /// let supervisor = pinfold::blocking::Supervisor::start_with(pinfold::Supervisor::builder().one_job())?;
    /// # Ok::<(), pinfold::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(builder: crate::Builder) -> Result<Self> {
        let driver = Driver::start()?;
        let inner = driver.wait(builder.start())?;
        Ok(Self { inner, driver })
    }

    /// Starts a job; comes back when the command has been executed.
    ///
    /// # Errors
    /// As [`crate::Supervisor::spawn`].
    pub fn spawn(&self, command: &Command) -> Result<Job> {
        let inner = self.driver.wait(self.inner.spawn(command))?;
        Ok(Job::new(inner, &self.driver))
    }

    /// What happens to all of its jobs from now on, as an iterator that waits; see [`crate::Supervisor::events`].
    #[must_use]
    pub fn events(&self) -> JobEvents {
        JobEvents::new(self.inner.events(), &self.driver)
    }

    /// Has the guards give this terminal its present settings back, when this process is gone; see
    /// [`crate::Supervisor::keep_terminal`].
    ///
    /// # Errors
    /// As [`crate::Supervisor::keep_terminal`].
    pub fn keep_terminal(&self, terminal: impl AsFd) -> Result<()> {
        self.driver.wait(self.inner.keep_terminal(terminal))
    }

    /// Ends whatever still runs, waits until the guard is gone, and removes the base.
    pub fn close(self) {
        self.driver.wait(self.inner.close());
    }
}
