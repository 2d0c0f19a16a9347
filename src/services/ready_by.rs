//! When a service is ready.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::job::JobHandle;
use crate::job::command::Command;
use crate::job::ready::port::Endpoint;
use crate::job::ready::{Condition, Readiness};
use crate::services::listen::port_holder;
use crate::services::notices::Notices;
use crate::services::ready::{CommandCheck, HttpCheck};
use crate::supervisor::Supervisor;

/// The condition under which a service is ready.
///
/// ```
/// use pinfold::services::Ready;
/// use pinfold::{Command, Readiness};
///
/// let ready = Ready::from(Readiness::line("listening on"));
/// let ready = Ready::http("http://127.0.0.1:8080/health", None)?;
/// let ready = Ready::command(Command::new("pg_isready"));
/// let ready = Ready::notify();
/// # Ok::<(), pinfold::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Ready(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Job(Readiness),
    Http(HttpCheck),
    Command(Box<CommandCheck>),
    Notify,
}

impl From<Readiness> for Ready {
    /// The service is ready under the condition of a job: a line of the output, a port or a file.
    fn from(readiness: Readiness) -> Self {
        Self(Kind::Job(readiness))
    }
}

/// What a check of a service needs.
pub(super) struct Checked<'a> {
    pub job: &'a JobHandle,
    pub supervisor: &'a Supervisor,
    /// The messages of the service. `None` if it has no socket for them.
    pub notices: Option<&'a Notices>,
    pub timeout: Duration,
}

impl Ready {
    /// The service is ready when it answers a GET request for this URL with `status`, or, if that is `None`, with a
    /// status from 200 to 299. After a failed request, pinfold waits 0.05 s at first, later up to 1 s, and sends the
    /// next one. It does not support TLS.
    ///
    /// # Errors
    /// [`Error::Invalid`] if this is no URL such as `http://127.0.0.1:8080/health`.
    pub fn http(url: &str, status: Option<u16>) -> Result<Self> {
        HttpCheck::new(url, status).map(|check| Self(Kind::Http(check)))
    }

    /// The service is ready when this command exits with 0. After a failed run, pinfold waits 0.05 s at first, later up
    /// to 1 s, and runs it again. Each run is a job of its own. pinfold ends a run that takes longer than 5 s.
    #[must_use]
    pub fn command(command: Command) -> Self {
        Self(Kind::Command(Box::new(CommandCheck::new(command))))
    }

    /// The service is ready when one of its processes sends `READY=1` (sd_notify(3)). The service gets `NOTIFY_SOCKET`.
    #[must_use]
    pub fn notify() -> Self {
        Self(Kind::Notify)
    }

    /// Returns whether the service needs `NOTIFY_SOCKET`.
    pub(super) fn is_notify(&self) -> bool {
        matches!(self.0, Kind::Notify)
    }

    /// Checks whether another process holds the port that the service will use. Call this before any service starts.
    ///
    /// # Errors
    /// [`Error::Invalid`], which names the process if it can be found.
    pub(super) fn check_port(&self) -> Result<()> {
        let addresses = self.endpoint().map(Endpoint::fixed_addresses).unwrap_or_default();
        match addresses.into_iter().find_map(|address| Some((address, port_holder(address)?))) {
            Some((address, holder)) => Err(taken(address, &holder)),
            None => Ok(()),
        }
    }

    /// Returns the address that makes the service ready when the service listens there. `None` for another condition.
    fn endpoint(&self) -> Option<&Endpoint> {
        match &self.0 {
            Kind::Job(Readiness(Condition::Port(endpoint))) => Some(endpoint),
            Kind::Http(check) => Some(check.endpoint()),
            Kind::Job(_) | Kind::Command(_) | Kind::Notify => None,
        }
    }

    /// Checks whether another program would be mistaken for the service.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a program already accepts connections at the port.
    pub(super) async fn check_before_start(&self) -> Result<()> {
        let Some(endpoint) = self.endpoint() else { return Ok(()) };
        let Some(address) = endpoint.listener().await else { return Ok(()) };
        let holder = port_holder(address).unwrap_or_else(|| "another program".into());
        Err(taken(address, &holder))
    }

    /// Waits until the service is ready. A search for a line begins with this call.
    ///
    /// # Errors
    /// [`Error::NotReady`] if the job ends or the timeout expires.
    pub(super) fn wait<'a>(
        &'a self,
        checked: Checked<'a>,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<()>> + Send + 'a>> {
        let Checked { job, supervisor, notices, timeout } = checked;
        if let Kind::Job(readiness) = &self.0 {
            return Box::pin(job.ready(readiness, timeout));
        }
        Box::pin(async move {
            let last = Mutex::new(String::new());
            let keep = |why| *last.lock().unwrap_or_else(PoisonError::into_inner) = why;
            let check = async {
                match &self.0 {
                    Kind::Http(check) => check.wait(keep).await,
                    Kind::Command(check) => check.wait(supervisor, keep).await?,
                    Kind::Notify | Kind::Job(_) => {
                        keep("it has not sent READY=1".into());
                        match notices {
                            Some(notices) => notices.ready.notified().await,
                            None => std::future::pending().await,
                        }
                    }
                }
                Ok(())
            };
            bounded(job, over(timeout, notices), timeout, &last, check).await
        })
    }
}

fn taken(address: std::net::SocketAddr, holder: &str) -> Error {
    let advice = format!("{holder} already listens there: end it, or use another port");
    Error::invalid("readiness by the port", address.to_string(), advice)
}

/// Waits until the check succeeds, the job ends, or `over` completes.
async fn bounded(
    job: &JobHandle,
    over: impl Future<Output = ()>,
    timeout: Duration,
    last: &Mutex<String>,
    check: impl Future<Output = Result<()>>,
) -> Result<()> {
    let not_ready = |how: &str| {
        let last = last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = if last.is_empty() { "no attempt has finished" } else { &last };
        Error::NotReady { program: job.name().to_owned(), why: format!("{last}{how}") }
    };
    tokio::select! {
        biased;
        done = check => done,
        _ = job.wait() => Err(not_ready(", and the job is over")),
        () = over => Err(not_ready(&format!(" (waited for {timeout:?})"))),
    }
}

/// Waits until the time for readiness is over, or until the later time that the service requested
/// (`EXTEND_TIMEOUT_USEC`).
async fn over(timeout: Duration, notices: Option<&Notices>) {
    tokio::time::sleep(timeout).await;
    // During each wait, the service may request a later time.
    while let Some(until) =
        notices.and_then(|notices| *notices.extended.borrow()).filter(|until| *until > Instant::now())
    {
        tokio::time::sleep_until(until).await;
    }
}
