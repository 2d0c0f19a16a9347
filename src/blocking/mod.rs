//! The library for programs without tokio: the same names, methods that wait. Behind it, one thread runs a runtime of its own.
//!
//! ```rust,standalone_crate
//! use pinfold::{Command, Stdio, blocking};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     pinfold::init();
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

mod pool;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Handle as Runtime;
use tokio::sync::oneshot;

use crate::command::Command;
use crate::error::{Error, Result};
use crate::output::{self, Line, Output};
use crate::ready::Readiness;
use crate::report::{ProcessInfo, Report, Usage};
use crate::signal::Signal;

pub use pool::{Completed, Handle, Pool};

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
        Ok(Job { inner, driver: self.driver.clone() })
    }

    /// What happens to all of its jobs from now on, as an iterator that waits; see [`crate::Supervisor::events`].
    #[must_use]
    pub fn events(&self) -> JobEvents {
        JobEvents { inner: self.inner.events(), driver: self.driver.clone() }
    }

    /// Ends whatever still runs, waits until the guard is gone, and removes the base.
    pub fn close(self) {
        self.driver.wait(self.inner.close());
    }
}

/// A job, as [`crate::Job`]. Dropped before it has ended, it is killed.
#[derive(Debug)]
pub struct Job {
    inner: crate::Job,
    driver: Driver,
}

impl Job {
    /// The main process's id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.inner.pid()
    }

    /// Stops it; see [`crate::Job::stop`]. Does not wait.
    pub fn stop(&self) {
        self.inner.stop();
    }

    /// Kills it. Does not wait.
    pub fn kill(&self) {
        self.inner.kill();
    }

    /// Sends a signal to the main process.
    ///
    /// # Errors
    /// As [`crate::Job::signal`].
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.inner.signal(signal)
    }

    /// Waits until nothing of it is left.
    ///
    /// # Errors
    /// As [`crate::Job::wait`].
    pub fn wait(&self) -> Result<Arc<Report>> {
        self.driver.wait(self.inner.wait())
    }

    /// The same for this time at most; `None` where it goes on.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Arc<Report>>> {
        self.driver.wait(async { tokio::time::timeout(timeout, self.inner.wait()).await.ok().transpose() })
    }

    /// Waits, and reads the piped outputs that nobody took.
    ///
    /// # Errors
    /// As [`crate::Job::wait_with_output`].
    pub fn wait_with_output(&self) -> Result<Output> {
        self.driver.wait(self.inner.wait_with_output())
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// As [`crate::Job::ready`].
    pub fn ready(&self, readiness: &Readiness, timeout: Duration) -> Result<()> {
        self.driver.wait(self.inner.ready(readiness, timeout))
    }

    /// The processes of the job as they are now.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessInfo> {
        self.driver.wait(self.inner.processes())
    }

    /// What the whole job uses now; when it has ended, what it used.
    ///
    /// # Errors
    /// As [`crate::Job::usage`].
    pub fn usage(&self) -> Result<Usage> {
        self.driver.wait(self.inner.usage())
    }

    /// Lets every process of it stand still; see [`crate::Job::freeze`].
    ///
    /// # Errors
    /// As [`crate::Job::freeze`].
    pub fn freeze(&self) -> Result<()> {
        self.driver.wait(self.inner.freeze())
    }

    /// Lets it go on. Does not wait.
    pub fn thaw(&self) {
        self.inner.thaw();
    }

    /// Changes the size of its terminal; see [`crate::Job::resize_pty`].
    ///
    /// # Errors
    /// As [`crate::Job::resize_pty`].
    pub fn resize_pty(&self, rows: u16, columns: u16) -> Result<()> {
        self.inner.resize_pty(rows, columns)
    }

    /// What happens to it, from its start on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events { inner: self.inner.events(), driver: self.driver.clone() }
    }

    /// Its piped standard input, once.
    #[must_use]
    pub fn take_stdin(&self) -> Option<InputStream> {
        Some(InputStream { inner: self.inner.take_stdin()?, driver: self.driver.clone() })
    }

    /// Its piped standard output, once.
    #[must_use]
    pub fn take_stdout(&self) -> Option<OutputStream> {
        Some(OutputStream { inner: self.inner.take_stdout()?, driver: self.driver.clone() })
    }

    /// Its piped standard error, once.
    #[must_use]
    pub fn take_stderr(&self) -> Option<OutputStream> {
        Some(OutputStream { inner: self.inner.take_stderr()?, driver: self.driver.clone() })
    }

    /// The lines of its piped standard output, once.
    #[must_use]
    pub fn take_stdout_lines(&self) -> Option<Lines> {
        self.take_stdout().map(OutputStream::lines)
    }
}

/// The events of a job, as an iterator that waits.
#[derive(Debug)]
pub struct Events {
    inner: crate::events::Events,
    driver: Driver,
}

impl Iterator for Events {
    type Item = crate::events::Event;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.wait(self.inner.next_event())
    }
}

/// The events of all jobs of a supervisor, as an iterator that waits.
#[derive(Debug)]
pub struct JobEvents {
    inner: crate::events::JobEvents,
    driver: Driver,
}

impl Iterator for JobEvents {
    type Item = crate::events::JobEvent;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.wait(self.inner.next_event())
    }
}

/// What a job writes, as a reader: [`output::OutputStream`].
#[derive(Debug)]
pub struct OutputStream {
    inner: output::OutputStream,
    driver: Driver,
}

impl OutputStream {
    /// Line by line.
    #[must_use]
    pub fn lines(self) -> Lines {
        Lines { inner: self.inner.lines(), driver: self.driver }
    }
}

impl io::Read for OutputStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.driver.wait(self.inner.read(buffer))
    }
}

/// The lines of an output, as an iterator that waits: [`output::Lines`].
#[derive(Debug)]
pub struct Lines {
    inner: output::Lines,
    driver: Driver,
}

impl Iterator for Lines {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.wait(self.inner.next_line()).transpose()
    }
}

/// What a job reads, as a writer: [`output::InputStream`]. Dropped, it is the end of that.
#[derive(Debug)]
pub struct InputStream {
    inner: output::InputStream,
    driver: Driver,
}

impl io::Write for InputStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.driver.wait(self.inner.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
