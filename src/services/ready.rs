//! Readiness of a service by an HTTP status or by a command, in addition to that of a job ([`crate::Readiness`]).

mod http;

use std::time::Duration;

use crate::error::Result;
use crate::job::command::{Command, Stdio};
use crate::job::output::CaptureLimit;
use crate::report::text::{printable, printable_bytes};
use crate::report::{MainEnd, Reason};
use crate::supervisor::Supervisor;
pub(crate) use http::HttpCheck;

/// How long pinfold waits between two attempts, at first and at most. A server may log each attempt.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// How long one attempt may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of a command's output pinfold keeps for the message, in bytes.
const KEPT_OUTPUT: usize = 2048;

/// The pauses between attempts: each is twice as long as the one before it, up to one second.
#[derive(Debug)]
pub(crate) struct Pauses(Duration);

impl Pauses {
    pub fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    /// Waits for the next attempt.
    ///
    /// Cancel-safe.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_PAUSE);
    }
}

/// A command that exits with 0 when the service is ready.
///
/// Each attempt is a job of its own. pinfold ends an attempt that takes too long, and no process of it is left.
#[derive(Clone, Debug)]
pub(crate) struct CommandCheck {
    command: Command,
}

impl CommandCheck {
    /// Returns the check. The command should have the environment, the directory, the user and the sandbox of the
    /// service.
    pub fn new(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr_to_stdout(true);
        command.capture(CaptureLimit::ends(0, KEPT_OUTPUT)).timeout(ATTEMPT_TIMEOUT);
        Self { command }
    }

    /// Waits until an attempt succeeds. `failed` receives the reason for each attempt that fails.
    ///
    /// Dropping the future ends the attempt that is running.
    ///
    /// # Errors
    /// If the command can't be started.
    pub async fn wait(&self, supervisor: &Supervisor, mut failed: impl FnMut(String)) -> Result<()> {
        let mut pauses = Pauses::new();
        loop {
            let output = supervisor.spawn(&self.command).await?.wait_with_output().await?;
            if output.status.success() {
                return Ok(());
            }
            let words = &output.status.command;
            // The text that a shell runs is more useful than the name of the shell.
            let name = match words.as_slice() {
                [shell, option, text] if shell == "sh" && option == "-c" => text.clone(),
                words => words.join(" "),
            };
            let how = match (&output.status.reason, &output.status.main) {
                (Reason::Deadline, _) => format!("did not end within {ATTEMPT_TIMEOUT:?}"),
                (_, Some(MainEnd::Exited(code))) => format!("exited with {code}"),
                (_, Some(MainEnd::Signalled { name, .. })) => format!("was ended by {name}"),
                _ => "did not run".to_owned(),
            };
            let last = output.stdout.rsplit(|&byte| byte == b'\n').find(|line| !line.is_empty());
            let last = last.map(|line| format!(": {}", printable_bytes(line))).unwrap_or_default();
            failed(format!("'{}' {how}{last}", printable(&name)));
            pauses.pause().await;
        }
    }
}
