//! A service as plain data, with a builder.

use std::sync::Arc;
use std::time::Duration;

use crate::cgroup::limits::Controller;
use crate::error::{Error, Result};
use crate::job::command::Command;
use crate::services::listen::Listen;
use crate::services::log::LogFile;
use crate::services::machine::ReadyBy;
use crate::services::ready_by::Ready;

/// How long a service may take to become ready, unless its configuration says otherwise.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// A command that is kept running: when it is ready, what it depends on, and when it is started again.
///
/// ```
/// use pinfold::Command;
/// use pinfold::services::{Condition, Restart, Service};
///
/// let mut command = Command::new("redis-server");
/// command.args(["--port", "6400"]);
/// let cache = Service::new("cache", command).restart(Restart::on_failure());
/// let web = Service::new("web", Command::new("./serve")).depends_on("cache", Condition::Started);
/// # drop((cache, web));
/// ```
///
/// The services set some parts of the command themselves. Standard input is `/dev/null`. Standard output and standard
/// error go to one pipe, whose lines are [`OutputLine`](crate::services::OutputLine). Each service has a process group of its
/// own.
#[derive(Clone, Debug)]
#[must_use]
pub struct Service {
    pub(super) name: Arc<str>,
    pub(super) command: Command,
    pub(super) depends_on: Vec<Dependency>,
    pub(super) restart: Restart,
    pub(super) one_shot: bool,
    pub(super) listen: Vec<Listen>,
    pub(super) notify: bool,
    pub(super) watchdog: Option<Duration>,
    pub(super) log: Option<LogFile>,
    pub(super) ready: Option<Ready>,
    pub(super) ready_timeout: Duration,
    /// The place in the file that describes the service.
    pub(super) place: Option<Place>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub file: Arc<str>,
    /// The number of the line, counted from 1.
    pub line: usize,
}

impl Place {
    pub fn error(&self, message: impl Into<String>) -> Error {
        Error::Config { place: format!("{}:{}", self.file, self.line), message: message.into() }
    }
}

/// A dependency on another service.
#[derive(Clone, Debug)]
pub(super) struct Dependency {
    pub name: Arc<str>,
    pub condition: Condition,
    pub place: Option<Place>,
}

/// What a service waits for before it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Condition {
    /// The command of the other service has been executed.
    Started,
    /// The other service is ready. A service without a readiness condition is ready when its command has been executed.
    Ready,
    /// The other service has exited with 0. Use it for a command that does its work and exits, such as a migration.
    Finished,
}

impl Condition {
    /// Returns the name of the condition, as in a file of services.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Ready => "ready",
            Self::Finished => "finished",
        }
    }
}

/// When pinfold restarts a service that has ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestartPolicy {
    /// It is not started again.
    Never,
    /// It is started again if it failed: it exited with a code other than 0, a signal ended it, it could not be
    /// started, it did not become ready in time, or its watchdog expired.
    OnFailure,
    /// It is started again after every end, also after a success.
    Always,
}

/// How pinfold restarts a service: in which cases, after which pause, and how many times.
///
/// pinfold waits for the backoff before the first restart, and twice as long before each further one, up to the
/// maximum. If a service needs more restarts than the limit within the window, it has failed. Restarts that are older
/// than the window do not count, so a service that fails rarely is always started again.
///
/// ```
/// use std::time::Duration;
/// use pinfold::services::Restart;
/// let restart = Restart::always().backoff(Duration::from_millis(500), Duration::from_secs(30)).limit(3, Duration::from_secs(60));
/// # let _ = restart;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Restart {
    pub(super) policy: RestartPolicy,
    pub(super) backoff: Duration,
    pub(super) max_backoff: Duration,
    pub(super) limit: u32,
    pub(super) within: Duration,
}

impl Default for Restart {
    /// [`RestartPolicy::Never`].
    fn default() -> Self {
        Self::new(RestartPolicy::Never)
    }
}

impl Restart {
    /// A policy with the defaults: a backoff of 100 ms up to 10 s, and at most 5 restarts within 60 s.
    pub fn new(policy: RestartPolicy) -> Self {
        Self {
            policy,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(10),
            limit: 5,
            within: Duration::from_secs(60),
        }
    }

    /// [`RestartPolicy::OnFailure`] with the defaults of [`new`](Self::new).
    pub fn on_failure() -> Self {
        Self::new(RestartPolicy::OnFailure)
    }

    /// [`RestartPolicy::Always`] with the defaults of [`new`](Self::new).
    pub fn always() -> Self {
        Self::new(RestartPolicy::Always)
    }

    /// Sets the time before the first restart, and the longest time before a restart.
    pub fn backoff(mut self, first: Duration, max: Duration) -> Self {
        (self.backoff, self.max_backoff) = (first, max);
        self
    }

    /// Sets the limit: at most `limit` restarts in any period of the length `within`.
    pub fn limit(mut self, limit: u32, within: Duration) -> Self {
        (self.limit, self.within) = (limit, within);
        self
    }

    /// Returns how long to wait before the restart that follows `earlier` restarts within the window.
    pub(super) fn pause(&self, earlier: u32) -> Duration {
        self.backoff.saturating_mul(1_u32.checked_shl(earlier).unwrap_or(u32::MAX)).min(self.max_backoff)
    }
}

impl Service {
    /// Returns a service that runs this command once, and that depends on no other service. A name consists of letters,
    /// digits, `_`, `-` and `.`, and begins with a letter or a digit.
    pub fn new(name: impl AsRef<str>, mut command: Command) -> Self {
        let name = name.as_ref();
        command.name(name);
        Self {
            name: name.into(),
            command,
            depends_on: Vec::new(),
            restart: Restart::default(),
            one_shot: false,
            listen: Vec::new(),
            notify: false,
            watchdog: None,
            log: None,
            ready: None,
            ready_timeout: READY_TIMEOUT,
            place: None,
        }
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a dependency. Each start of this service, including each restart, waits until the other service fulfils the
    /// condition. If this service already runs, it continues to run while the other one is restarted.
    pub fn depends_on(mut self, name: impl AsRef<str>, condition: Condition) -> Self {
        self.depends_on.push(Dependency { name: name.as_ref().into(), condition, place: None });
        self
    }

    /// Sets when the service is started again. [`RestartPolicy::Never`] by default.
    pub fn restart(mut self, restart: Restart) -> Self {
        self.restart = restart;
        self
    }

    /// Sets whether the service is a one-shot: a command that does its work and exits. When its main process has
    /// exited, pinfold ends the remaining processes.
    ///
    /// If a service is not a one-shot, its main process may exit with 0 and leave processes, as a daemon does. The
    /// service then runs as long as one of its processes runs. In both cases, if the main process fails, the service
    /// has failed, and pinfold ends the remaining processes.
    pub fn one_shot(mut self, one_shot: bool) -> Self {
        self.one_shot = one_shot;
        self
    }

    /// Sets when the service is ready. Without this, it is ready when its command has been executed.
    pub fn ready(mut self, ready: impl Into<Ready>) -> Self {
        self.ready = Some(ready.into());
        self
    }

    /// Sets how long the service may take to become ready, from its start. 60 s by default.
    pub fn ready_timeout(mut self, timeout: Duration) -> Self {
        self.ready_timeout = timeout;
        self
    }

    /// Adds an address on which pinfold listens for the service. pinfold opens the socket before any service starts,
    /// and closes it when the [`Services`](crate::services::Services) are dropped. The service receives the socket as
    /// sd_listen_fds(3) describes: `LISTEN_FDS`, `LISTEN_PID`, `LISTEN_FDNAMES`.
    pub fn listen(mut self, listen: Listen) -> Self {
        self.listen.push(listen);
        self
    }

    /// Lets the service send notifications (sd_notify(3)): it gets `NOTIFY_SOCKET`. [`Ready::notify`] does this too.
    pub fn notify(mut self) -> Self {
        self.notify = true;
        self
    }

    /// Sets the interval of the watchdog. Once the service is ready, it must send `WATCHDOG=1` at least once in each
    /// interval. Otherwise pinfold stops it, and it has failed. It gets `NOTIFY_SOCKET`, `WATCHDOG_USEC` and
    /// `WATCHDOG_PID`.
    pub fn watchdog(mut self, interval: Duration) -> Self {
        self.watchdog = Some(interval);
        self
    }

    /// Appends the output of the service to this file. While the file can't be written, for example because the disk is
    /// full, output is lost. A [`Note`](crate::services::ServiceEventKind::Note) and a line in the log report this.
    pub fn log(mut self, log: LogFile) -> Self {
        self.log = Some(log);
        self
    }

    /// Returns the log file.
    #[must_use]
    pub fn log_file(&self) -> Option<&LogFile> {
        self.log.as_ref()
    }

    pub(super) fn has_notify(&self) -> bool {
        self.notify || self.watchdog.is_some() || self.ready.as_ref().is_some_and(Ready::is_notify)
    }

    /// Returns whether the service has a readiness condition. A service without one is ready as soon as its command has
    /// been executed.
    #[must_use]
    pub fn has_readiness(&self) -> bool {
        self.ready.is_some()
    }

    /// Returns the controllers that its limits need, for [`controllers`](crate::SupervisorBuilder::controllers).
    #[must_use]
    pub fn controllers(&self) -> Vec<Controller> {
        self.command.limits.controllers()
    }

    pub(super) fn ready_by(&self) -> ReadyBy {
        match (&self.ready, self.one_shot) {
            (_, true) => ReadyBy::End,
            (Some(_), false) => ReadyBy::Condition,
            (None, false) => ReadyBy::Start,
        }
    }

    /// Returns an error about this service, with its place in the file.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        match &self.place {
            Some(place) => place.error(message),
            None => Error::Config { place: format!("service '{}'", self.name), message: message.into() },
        }
    }

    /// Checks everything that does not depend on other services.
    pub(super) fn check(&self) -> Result<()> {
        if !is_name(&self.name) {
            return Err(self.error(format!(
                "'{}' can't be the name of a service: write letters, digits, '_', '-' and '.', beginning with a letter \
                 or a digit",
                self.name
            )));
        }
        if self.one_shot && self.restart.policy == RestartPolicy::Always {
            return Err(self.error(format!(
                "{} is a one-shot that is always started again: write restart = \"on-failure\" or \"never\"",
                self.name
            )));
        }
        if self.one_shot && self.ready.is_some() {
            return Err(self.error(format!(
                "{} is a one-shot, which is ready when it has exited with 0: remove its condition for readiness",
                self.name
            )));
        }
        if self.has_notify() && self.command.sandbox.is_some() {
            return Err(self.error(format!(
                "{} has a sandbox, and notifications from a sandbox do not reach pinfold: use another condition for \
                 readiness, and no watchdog",
                self.name
            )));
        }
        self.command.check().map_err(|error| self.error(error.to_string()))
    }
}

/// Returns whether a service can have this name.
pub(super) fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_up_to_its_maximum() {
        let restart = Restart::on_failure().backoff(Duration::from_millis(100), Duration::from_secs(1));
        let pauses: Vec<_> = [0, 1, 2, 3, 4, 31, 32, u32::MAX].map(|earlier| restart.pause(earlier).as_millis()).into();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000, 1000, 1000]);
    }

    #[test]
    fn a_name_has_letters_digits_and_three_signs() {
        for name in ["web", "web.1", "a_b-c", "1"] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "a b", "-a", ".", "a/b", "é", "a\n"] {
            assert!(!is_name(name), "{name}");
        }
    }
}
