//! The library for programs without tokio: the same names, but the methods block until they are done. A thread of the
//! library runs a tokio runtime.
//!
//! ```rust,standalone_crate
//! use pinfold::{Command, Stdio, blocking};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let Ok(supervisor) = blocking::Supervisor::start() else { return Ok(()) }; // No cgroup here.
//!     let mut command = Command::new("sh");
//!     command.args(["-c", "echo one; echo two; setsid sleep 999 & exit 3"]).stdout(Stdio::piped());
//!     let mut job = command.spawn(&supervisor)?;
//!     for line in job.stdout.take().ok_or("it is piped")?.lines() {
//!         println!("{}", line?.text());
//!     }
//!     let report = job.wait()?;
//!     assert_eq!((report.exit_code, report.leftovers.len()), (3, 1));
//!     supervisor.close();
//!     Ok(())
//! }
//! ```
//!
//! Do not call these methods inside a tokio runtime: they panic there, as tokio's own `block_on` does.

mod job;
mod pool;
mod streams;

use std::sync::Arc;

use crate::cgroup::limits::Controller;
use crate::error::Result;
use crate::job::command::{Command, Sealed, Spawner};
use crate::job::output::Output;
use crate::report::{ContainmentKind, Report};
use crate::supervisor::driver::Driver;

pub use job::{Job, JobHandle};
pub use pool::{Completed, Handle, Outcomes, Pool};
pub use streams::{Events, InputStream, JobEvents, Lines, OutputStream};

/// Starts jobs and supervises them, as [`crate::Supervisor`] does. Clones are the same supervisor.
#[derive(Clone, Debug)]
pub struct Supervisor {
    // Declared before `driver`, because it must be dropped before the thread that runs its tasks.
    inner: crate::supervisor::Supervisor,
    driver: Driver,
}

impl Supervisor {
    /// Starts a supervisor with the default settings.
    ///
    /// # Errors
    /// The same as for [`crate::Supervisor::start`]; [`Error::System`](crate::Error::System) if no thread can be started.
    pub fn start() -> Result<Self> {
        Self::start_with(crate::supervisor::Supervisor::builder())
    }

    /// Starts a supervisor with these settings.
    ///
    /// ```no_run
    /// let supervisor = pinfold::blocking::Supervisor::start_with(pinfold::Supervisor::builder().cgroup("/sys/fs/cgroup/ci"))?;
    /// # Ok::<(), pinfold::Error>(())
    /// ```
    ///
    /// # Errors
    /// The same as for [`start`](Self::start).
    pub fn start_with(builder: crate::supervisor::SupervisorBuilder) -> Result<Self> {
        let driver = Driver::start()?;
        let inner = driver.wait(builder.start())?;
        Ok(Self { inner, driver })
    }

    /// Starts a job; returns when the command has been executed.
    ///
    /// # Errors
    /// The same as for [`crate::Supervisor::spawn`].
    pub fn spawn(&self, command: &Command) -> Result<Job> {
        let inner = self.driver.wait(self.inner.spawn(command))?;
        Ok(Job::new(inner, &self.driver))
    }

    /// Returns the events of all jobs from now on, as a blocking iterator; see [`crate::Supervisor::events`].
    #[must_use]
    pub fn events(&self) -> JobEvents {
        JobEvents::new(self.inner.events(), &self.driver)
    }

    /// Returns what holds the jobs; see [`crate::Supervisor::containment`].
    #[must_use]
    pub fn containment(&self) -> ContainmentKind {
        self.inner.containment()
    }

    /// Returns the controllers of the jobs' cgroups; see [`crate::Supervisor::controllers`].
    #[must_use]
    pub fn controllers(&self) -> Vec<Controller> {
        self.inner.controllers()
    }

    /// Gives up this clone. The close of the last clone ends all jobs; see [`crate::Supervisor::close`].
    pub fn close(self) {
        self.driver.wait(self.inner.close());
    }
}

impl Sealed for Supervisor {}

impl Spawner for Supervisor {
    type Spawn = Result<Job>;
    type Status = Result<Arc<Report>>;
    type Output = Result<Output>;

    fn spawn_command(&self, command: &Command) -> Self::Spawn {
        self.spawn(command)
    }

    fn status_of(&self, command: &Command) -> Self::Status {
        self.driver.wait(self.inner.status_of(command))
    }

    fn output_of(&self, command: &Command) -> Self::Output {
        self.driver.wait(self.inner.output_of(command))
    }
}
