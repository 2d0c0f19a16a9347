//! Runs a command under a supervisor: `spawn`, `status` and `output`, like those of [`std::process::Command`].

use std::pin::Pin;
use std::sync::Arc;

use crate::error::Result;
use crate::job::Job;
use crate::job::command::{Command, Stdio};
use crate::job::output::Output;
use crate::report::Report;
use crate::supervisor::Supervisor;

/// A type that runs a [`Command`]: a [`Supervisor`], which returns futures, or a
/// [`blocking::Supervisor`](crate::blocking::Supervisor), which blocks until it has the result. No other type can
/// implement this trait.
pub trait Spawner: Sealed {
    /// The result of [`Command::spawn`].
    type Spawn;
    /// The result of [`Command::status`].
    type Status;
    /// The result of [`Command::output`].
    type Output;

    #[doc(hidden)]
    fn spawn_command(&self, command: &Command) -> Self::Spawn;

    #[doc(hidden)]
    fn status_of(&self, command: &Command) -> Self::Status;

    #[doc(hidden)]
    fn output_of(&self, command: &Command) -> Self::Output;
}

/// Makes [`Spawner`] a trait that only this library implements.
pub trait Sealed {}

/// A future that borrows nothing and can move between threads.
type BoxFuture<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;

impl Sealed for Supervisor {}

impl Spawner for Supervisor {
    type Spawn = BoxFuture<Job>;
    type Status = BoxFuture<Arc<Report>>;
    type Output = BoxFuture<Output>;

    fn spawn_command(&self, command: &Command) -> Self::Spawn {
        Box::pin(self.spawn(command))
    }

    fn status_of(&self, command: &Command) -> Self::Status {
        let spawning = self.spawn(command);
        Box::pin(async move { spawning.await?.wait().await })
    }

    fn output_of(&self, command: &Command) -> Self::Output {
        let spawning = self.spawn(&command.with_piped_output());
        Box::pin(async move { spawning.await?.wait_with_output().await })
    }
}

impl Command {
    /// Starts the command as a job, as [`Supervisor::spawn`] does. With a
    /// [`blocking::Supervisor`](crate::blocking::Supervisor), it blocks until the command has been executed.
    ///
    /// ```
    /// # async fn example(supervisor: &pinfold::Supervisor) -> Result<(), Box<dyn std::error::Error>> {
    /// let job = pinfold::Command::new("make").arg("check").spawn(supervisor).await?;
    /// println!("process {} runs", job.pid());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The same as for [`Supervisor::spawn`].
    pub fn spawn<S: Spawner>(&self, supervisor: &S) -> S::Spawn {
        supervisor.spawn_command(self)
    }

    /// Runs the command as a job, waits until the job is over, and returns its report. The report has the methods of
    /// [`ExitStatus`](std::process::ExitStatus): [`success`](Report::success), [`code`](Report::code) and
    /// [`signal`](Report::signal). The standard streams are inherited by default.
    ///
    /// Dropping the future kills the job.
    ///
    /// ```rust,standalone_crate
    /// use pinfold::{Command, blocking};
    ///
    /// fn main() -> Result<(), Box<dyn std::error::Error>> {
    ///     let Ok(supervisor) = blocking::Supervisor::start() else { return Ok(()) }; // No cgroup here.
    ///     let status = Command::new("sh").args(["-c", "exit 3"]).status(&supervisor)?;
    ///     assert_eq!((status.success(), status.code()), (false, Some(3)));
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// The same as for [`Supervisor::spawn`] and [`Job::wait`].
    pub fn status<S: Spawner>(&self, supervisor: &S) -> S::Status {
        supervisor.status_of(self)
    }

    /// Runs the command as a job, waits until the job is over, and returns its report and its output. By default,
    /// standard output and standard error are piped, and standard input is `/dev/null`. pinfold keeps the whole output
    /// in memory, however much the job writes, unless [`capture`](Self::capture) sets a limit.
    ///
    /// Dropping the future kills the job.
    ///
    /// ```
    /// # async fn example(supervisor: &pinfold::Supervisor) -> Result<(), Box<dyn std::error::Error>> {
    /// let output = pinfold::Command::new("uname").arg("-r").output(supervisor).await?;
    /// assert!(output.status.success());
    /// println!("{}", String::from_utf8_lossy(&output.stdout));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The same as for [`Supervisor::spawn`] and [`Job::wait_with_output`].
    pub fn output<S: Spawner>(&self, supervisor: &S) -> S::Output {
        supervisor.output_of(self)
    }

    /// Returns the command with the default streams of [`output`](Self::output).
    pub(crate) fn with_piped_output(&self) -> Self {
        let mut command = self.clone();
        if command.pty.is_none() {
            let [stdin, stdout, stderr] = &mut command.stdio;
            stdin.get_or_insert(Stdio::null());
            stdout.get_or_insert(Stdio::piped());
            stderr.get_or_insert(Stdio::piped());
        }
        command
    }
}
