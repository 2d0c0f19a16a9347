//! A job, for programs without tokio.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use super::{Driver, Events, InputStream, OutputStream};
use crate::error::Result;
use crate::job::output::Output;
use crate::job::ready::Readiness;
use crate::kernel::signal::Signal;
use crate::report::{ProcessInfo, Report, Usage};

/// A job, as [`crate::Job`]. If it is dropped before it has ended, it is killed. It dereferences to its [`JobHandle`].
///
/// [`kill`](Self::kill) waits until the job is over, as [`tokio::process::Child::kill`] does, while
/// [`std::process::Child::kill`] does not wait. [`start_kill`](JobHandle::start_kill) does not wait either.
///
/// [`tokio::process::Child::kill`]: https://docs.rs/tokio/latest/tokio/process/struct.Child.html#method.kill
#[derive(Debug)]
pub struct Job {
    /// The piped standard input of the job, or the input of its terminal; see [`crate::Job::stdin`].
    pub stdin: Option<InputStream>,
    /// The piped standard output of the job, or everything that it writes to its terminal; see [`crate::Job::stdout`].
    pub stdout: Option<OutputStream>,
    /// The piped standard error of the job; see [`crate::Job::stderr`].
    pub stderr: Option<OutputStream>,
    inner: crate::job::Job,
    handle: JobHandle,
}

/// A job dereferences to its handle, as [`crate::Job`] does.
impl Deref for Job {
    type Target = JobHandle;

    fn deref(&self) -> &JobHandle {
        &self.handle
    }
}

impl Job {
    pub(super) fn new(mut inner: crate::job::Job, driver: &Driver) -> Self {
        let stdin = inner.stdin.take().map(|stream| InputStream::new(stream, driver));
        let [stdout, stderr] = [inner.stdout.take(), inner.stderr.take()]
            .map(|stream| stream.map(|stream| OutputStream::new(stream, driver)));
        let handle = JobHandle { inner: inner.handle(), driver: driver.clone() };
        Self { stdin, stdout, stderr, inner, handle }
    }

    /// Returns a handle with which, for example, another thread can act on the job.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::report::Reason;
    /// use pinfold::{Command, blocking};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let Ok(supervisor) = blocking::Supervisor::start() else { return Ok(()) }; // No cgroup here.
    ///     let mut command = Command::new("sleep");
    ///     command.arg("999");
    ///     let mut job = supervisor.spawn(&command)?;
    ///     let button = job.handle();
    ///     let pressed = std::thread::spawn(move || button.stop());
    ///     assert_eq!(job.wait()?.reason, Reason::Stopped);
    ///     pressed.join().map_err(|_| "the thread has panicked")??;
    ///     supervisor.close();
    ///     Ok(())
    /// }
    /// ```
    #[must_use]
    pub fn handle(&self) -> JobHandle {
        self.handle.clone()
    }

    /// Closes the piped standard input, unless the caller took it, and waits until nothing of the job is left; see
    /// [`crate::Job::wait`].
    ///
    /// # Errors
    /// The same as for [`crate::Job::wait`].
    pub fn wait(&mut self) -> Result<Arc<Report>> {
        drop(self.stdin.take());
        self.handle.wait()
    }

    /// Waits as [`wait`](Self::wait) does, but at most for this time; returns `None` if the job has not ended by then.
    ///
    /// # Errors
    /// The same as for [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<Option<Arc<Report>>> {
        drop(self.stdin.take());
        self.handle.wait_timeout(timeout)
    }

    /// Waits as [`wait`](Self::wait) does, and reads the piped outputs that the caller has not taken.
    ///
    /// # Errors
    /// The same as for [`crate::Job::wait_with_output`].
    pub fn wait_with_output(&mut self) -> Result<Output> {
        drop(self.stdin.take());
        // The streams stay in the inner job, with what was captured of them, for the next call.
        self.return_streams();
        self.handle.driver.wait(self.inner.wait_with_output())
    }

    fn return_streams(&mut self) {
        for (own, inner) in [(&mut self.stdout, &mut self.inner.stdout), (&mut self.stderr, &mut self.inner.stderr)] {
            if let Some(stream) = own.take() {
                *inner = Some(stream.into_inner());
            }
        }
    }

    /// Stops the job and waits as [`wait`](Self::wait) does; see [`crate::Job::stop`].
    ///
    /// # Errors
    /// The same as for [`crate::Job::wait`].
    pub fn stop(&mut self) -> Result<Arc<Report>> {
        self.start_stop()?;
        self.wait()
    }

    /// Kills the job and waits as [`wait`](Self::wait) does.
    ///
    /// # Errors
    /// The same as for [`crate::Job::wait`].
    pub fn kill(&mut self) -> Result<Arc<Report>> {
        self.start_kill()?;
        self.wait()
    }

    /// Waits until the job is ready.
    ///
    /// # Errors
    /// The same as for [`crate::Job::ready`].
    pub fn ready(&mut self, readiness: &Readiness, timeout: Duration) -> Result<()> {
        self.return_streams();
        let driver = &self.handle.driver;
        let done = driver.wait(self.inner.ready(readiness, timeout));
        for (own, inner) in [(&mut self.stdout, &mut self.inner.stdout), (&mut self.stderr, &mut self.inner.stderr)] {
            *own = inner.take().map(|stream| OutputStream::new(stream, driver));
        }
        done
    }

    /// Changes the size of the job's terminal; see [`crate::Job::resize_pty`].
    ///
    /// # Errors
    /// The same as for [`crate::Job::resize_pty`].
    pub fn resize_pty(&self, rows: u16, columns: u16) -> Result<()> {
        self.inner.resize_pty(rows, columns)
    }
}

/// Acts on a job that another part of the program owns, as [`crate::JobHandle`] does. Cheap to clone.
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
    /// Returns the process id of the main process, or `None` if the main process has ended; see [`crate::JobHandle::id`].
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        self.inner.id()
    }

    /// Returns the process id that the main process has or had; see [`crate::JobHandle::pid`].
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.inner.pid()
    }

    /// Returns the job's number among the jobs of its supervisor.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.inner.number()
    }

    /// Returns the name of the job; see [`crate::JobHandle::name`].
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.name()
    }

    /// Returns the directory of the job's cgroup; see [`crate::JobHandle::cgroup`].
    #[must_use]
    pub fn cgroup(&self) -> Option<&std::path::Path> {
        self.inner.cgroup()
    }

    /// Returns the events of the job, from its start on.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.inner.events(), &self.driver)
    }

    /// Returns whether the main process has ended. Other processes of the job may still run.
    #[must_use]
    pub fn main_has_ended(&self) -> bool {
        self.inner.main_has_ended()
    }

    /// Waits until nothing of the job is left.
    ///
    /// # Errors
    /// The same as for [`crate::Job::wait`].
    pub fn wait(&self) -> Result<Arc<Report>> {
        self.driver.wait(self.inner.wait())
    }

    /// Waits as [`wait`](Self::wait) does, but at most for this time; returns `None` if the job has not ended by then.
    ///
    /// # Errors
    /// The same as for [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Arc<Report>>> {
        self.driver.wait(async { tokio::time::timeout(timeout, self.inner.wait()).await.ok().transpose() })
    }

    /// Returns the report if the job is over, and `None` if it is not. Does not wait.
    ///
    /// # Errors
    /// The same as for [`crate::Job::wait`].
    pub fn try_wait(&self) -> Result<Option<Arc<Report>>> {
        self.inner.try_wait()
    }

    /// Waits until the job is ready; see [`crate::JobHandle::ready`].
    ///
    /// # Errors
    /// The same as for [`crate::JobHandle::ready`].
    pub fn ready(&self, readiness: &Readiness, timeout: Duration) -> Result<()> {
        self.driver.wait(self.inner.ready(readiness, timeout))
    }

    /// Begins to stop the job; see [`crate::JobHandle::start_stop`]. Does not wait.
    ///
    /// # Errors
    /// The same as for [`crate::JobHandle::start_stop`].
    pub fn start_stop(&self) -> Result<()> {
        self.inner.start_stop()
    }

    /// Begins to stop the job, with this signal as the first one; see [`crate::JobHandle::start_stop_with`]. Does not wait.
    ///
    /// # Errors
    /// The same as for [`crate::JobHandle::start_stop`].
    pub fn start_stop_with(&self, signal: Signal) -> Result<()> {
        self.inner.start_stop_with(signal)
    }

    /// Begins to kill the job. Does not wait.
    ///
    /// # Errors
    /// The same as for [`crate::JobHandle::start_stop`].
    pub fn start_kill(&self) -> Result<()> {
        self.inner.start_kill()
    }

    /// Stops the job and waits until it is over; see [`crate::Job::stop`].
    ///
    /// # Errors
    /// The same as for [`crate::Job::wait`].
    pub fn stop(&self) -> Result<Arc<Report>> {
        self.driver.wait(self.inner.stop())
    }

    /// Kills the job and waits until nothing of it is left.
    ///
    /// # Errors
    /// The same as for [`crate::Job::wait`].
    pub fn kill(&self) -> Result<Arc<Report>> {
        self.driver.wait(self.inner.kill())
    }

    /// Sends a signal to the main process.
    ///
    /// # Errors
    /// The same as for [`crate::JobHandle::signal`].
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.inner.signal(signal)
    }

    /// Sends a signal to every process of the job. Does not wait.
    pub fn signal_all(&self, signal: Signal) {
        self.inner.signal_all(signal);
    }

    /// Returns the processes of the job as they are now; empty if the job has ended.
    #[must_use]
    pub fn processes(&self) -> Vec<ProcessInfo> {
        self.driver.wait(self.inner.processes())
    }

    /// Returns what the whole job uses now; after its end, what it has used.
    ///
    /// # Errors
    /// The same as for [`crate::JobHandle::usage`].
    pub fn usage(&self) -> Result<Usage> {
        self.driver.wait(self.inner.usage())
    }

    /// Freezes every process of the job; see [`crate::JobHandle::freeze`].
    ///
    /// # Errors
    /// The same as for [`crate::JobHandle::freeze`].
    pub fn freeze(&self) -> Result<()> {
        self.driver.wait(self.inner.freeze())
    }

    /// Thaws the job, so that its processes continue. Does not wait.
    pub fn thaw(&self) {
        self.inner.thaw();
    }
}
