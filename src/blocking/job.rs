//! A job, for programs without tokio.

use std::sync::Arc;
use std::time::Duration;

use super::{Driver, Events, InputStream, Lines, OutputStream};
use crate::error::Result;
use crate::job::output::Output;
use crate::job::ready::Readiness;
use crate::kernel::signal::Signal;
use crate::report::{ProcessInfo, Report, Usage};

/// A job, as [`crate::Job`]. Dropped before it has ended, it is killed.
#[derive(Debug)]
pub struct Job {
    inner: crate::job::Job,
    driver: Driver,
}

impl Job {
    pub(super) fn new(inner: crate::job::Job, driver: &Driver) -> Self {
        Self { inner, driver: driver.clone() }
    }

    /// Its number among the jobs of its supervisor, from 1 on in the order of their spawns.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.id()
    }

    /// The name that was given, else the program's file name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name()
    }

    /// A second hand on it, for another thread, say.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::report::Reason;
    /// use pinfold::{Command, blocking};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let Ok(supervisor) = blocking::Supervisor::start() else { return Ok(()) }; // No cgroup here.
    ///     let mut command = Command::new("sleep");
    ///     command.arg("999");
    ///     let job = supervisor.spawn(&command)?;
    ///     let button = job.handle();
    ///     let pressed = std::thread::spawn(move || button.stop());
    ///     assert_eq!(job.wait()?.reason, Reason::Stopped);
    ///     pressed.join().map_err(|_| "it has panicked")?;
    ///     supervisor.close();
    ///     Ok(())
    /// }
    /// ```
    #[must_use]
    pub fn handle(&self) -> JobHandle {
        JobHandle { inner: self.inner.handle(), driver: self.driver.clone() }
    }

    /// Whether the main process has ended; what it left may live still.
    #[must_use]
    pub fn main_has_ended(&self) -> bool {
        self.inner.main_has_ended()
    }

    /// Sends a signal to every process of the job. Does not wait.
    pub fn signal_all(&self, signal: Signal) {
        self.inner.signal_all(signal);
    }

    /// Sends a signal to the processes that `kill -- -PGID` means; see [`crate::Job::signal_group`].
    pub fn signal_group(&self, signal: Signal) {
        self.driver.wait(self.inner.signal_group(signal));
    }

    /// Waits until a signal stops the main process, for this time at most, and tells which; see [`crate::Job::next_stop`].
    #[must_use]
    pub fn next_stop(&self, timeout: Duration) -> Option<Signal> {
        self.driver.wait(async { tokio::time::timeout(timeout, self.inner.next_stop()).await.ok() })
    }

    /// Puts the deadline off, for a time in which the job could not run. Does not wait.
    pub fn postpone_deadline(&self, by: Duration) {
        self.inner.postpone_deadline(by);
    }

    /// The characters that are SIGINT and SIGQUIT when they are typed on its terminal; see [`crate::Job::pty_signal_keys`].
    ///
    /// # Errors
    /// As [`crate::Job::pty_signal_keys`].
    pub fn pty_signal_keys(&self) -> Result<[Option<u8>; 2]> {
        self.inner.pty_signal_keys()
    }

    /// Sends a signal to the foreground process group of its terminal; see [`crate::Job::signal_pty`].
    ///
    /// # Errors
    /// As [`crate::Job::signal_pty`].
    pub fn signal_pty(&self, signal: Signal) -> Result<()> {
        self.inner.signal_pty(signal)
    }

    /// The main process's id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.inner.pid()
    }

    /// Stops it; see [`crate::Job::stop`]. Does not wait.
    pub fn stop(&self) {
        self.inner.stop();
    }

    /// Stops it with this signal first; see [`crate::Job::stop_with`]. Does not wait.
    pub fn stop_with(&self, signal: Signal) {
        self.inner.stop_with(signal);
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
        Events::new(self.inner.events(), &self.driver)
    }

    /// Its piped standard input, once.
    #[must_use]
    pub fn take_stdin(&self) -> Option<InputStream> {
        Some(InputStream::new(self.inner.take_stdin()?, &self.driver))
    }

    /// Its piped standard output, once; with standard error in it after
    /// [`Command::stderr_to_stdout`](crate::Command::stderr_to_stdout).
    #[must_use]
    pub fn take_stdout(&self) -> Option<OutputStream> {
        Some(OutputStream::new(self.inner.take_stdout()?, &self.driver))
    }

    /// Its piped standard error, once.
    #[must_use]
    pub fn take_stderr(&self) -> Option<OutputStream> {
        Some(OutputStream::new(self.inner.take_stderr()?, &self.driver))
    }

    /// The lines of its piped standard output, once.
    #[must_use]
    pub fn take_stdout_lines(&self) -> Option<Lines> {
        self.take_stdout().map(OutputStream::lines)
    }

    /// The lines of its piped standard error, once.
    #[must_use]
    pub fn take_stderr_lines(&self) -> Option<Lines> {
        self.take_stderr().map(OutputStream::lines)
    }
}

/// Acts on a job that somebody else holds, as [`crate::JobHandle`]. Cheap to clone.
///
/// ```
/// fn is_for_any_thread<T: Clone + Send + Sync + 'static>() {}
/// is_for_any_thread::<pinfold::blocking::JobHandle>();
/// ```
#[derive(Clone, Debug)]
pub struct JobHandle {
    inner: crate::job::JobHandle,
    driver: Driver,
}

impl JobHandle {
    /// Stops it. Does not wait.
    pub fn stop(&self) {
        self.inner.stop();
    }

    /// Stops it with this signal first; see [`crate::Job::stop_with`]. Does not wait.
    pub fn stop_with(&self, signal: Signal) {
        self.inner.stop_with(signal);
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

    /// Sends a signal to every process of the job. Does not wait.
    pub fn signal_all(&self, signal: Signal) {
        self.inner.signal_all(signal);
    }

    /// The processes of the job as they are now; none where it is over.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessInfo> {
        self.driver.wait(self.inner.processes())
    }

    /// What the whole job uses now; `None` where it is over.
    #[must_use]
    pub fn usage(&self) -> Option<Usage> {
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
}
