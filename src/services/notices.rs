//! Handles the messages of a running service on its notification socket, and its watchdog.

use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::error::Result;
use crate::job::JobHandle;
use crate::job::command::Command;
use crate::services::config::Service;
use crate::services::machine::Event;
use crate::services::notify::{Members, Notice, NotifySocket};
use crate::services::state::Shared;

/// The notification socket of one job, and what its messages have said so far.
pub(super) struct Notices {
    socket: NotifySocket,
    watchdog: Option<Duration>,
    /// Notified when the service has sent `READY=1`.
    pub ready: Notify,
    /// Notified when the service is ready, so that its watchdog begins.
    pub begin_watchdog: Notify,
    /// The time until which the service may take to become ready, if it has requested one (`EXTEND_TIMEOUT_USEC`).
    pub extended: watch::Sender<Option<Instant>>,
}

impl Notices {
    /// Makes the socket for a service that has one, and passes it to its command.
    ///
    /// # Errors
    /// The errors of [`NotifySocket::new`].
    pub fn new(service: &Service, command: &mut Command) -> Result<Option<Self>> {
        if !service.has_notify() {
            return Ok(None);
        }
        let socket = NotifySocket::new()?;
        socket.pass_to(command, service.watchdog);
        Ok(Some(Self {
            socket,
            watchdog: service.watchdog,
            ready: Notify::new(),
            begin_watchdog: Notify::new(),
            extended: watch::Sender::new(None),
        }))
    }

    /// Handles messages. Returns when the job is over.
    pub async fn handle(&self, shared: &std::sync::Arc<Shared>, service: usize, job: &JobHandle) {
        let members = Members::of(job);
        let mut watchdog = self.watchdog;
        // The last sign of life. The watchdog begins when the service is ready (WatchdogSec= in systemd.service(5)).
        let mut alive: Option<Instant> = None;
        loop {
            let expires = watchdog.zip(alive).and_then(|(time, alive)| alive.checked_add(time));
            let notices = tokio::select! {
                biased;
                notices = self.socket.next(&members) => notices,
                _ = job.wait() => return,
                () = self.begin_watchdog.notified() => {
                    alive.get_or_insert_with(Instant::now);
                    continue;
                }
                () = sleep_until(expires) => Ok(vec![Notice::WatchdogTrigger]),
            };
            let notices = match notices {
                Ok(notices) => notices,
                Err(error) => {
                    shared.note(service, format!("pinfold cannot read its notifications any more: {error}"));
                    return;
                }
            };
            for notice in notices {
                match notice {
                    Notice::Ready => {
                        alive = Some(Instant::now());
                        self.ready.notify_one();
                    }
                    Notice::Alive => alive = alive.map(|_| Instant::now()),
                    Notice::WatchdogInterval(time) => {
                        (watchdog, alive) = (Some(time), alive.map(|_| Instant::now()));
                    }
                    Notice::WatchdogTrigger => {
                        let why = match watchdog {
                            Some(time) if expires.is_some_and(|at| at <= Instant::now()) => {
                                format!("it sent no WATCHDOG=1 for {time:?}")
                            }
                            _ => "it reported its own failure (WATCHDOG=trigger)".into(),
                        };
                        shared.handle(service, Event::Unresponsive, Some(why));
                        watchdog = None;
                    }
                    Notice::Status(text) => shared.note(service, format!("status: {text}")),
                    Notice::Stopping => shared.note(service, "it is ending by itself".into()),
                    Notice::Reloading => shared.note(service, "it reloads its configuration".into()),
                    Notice::Errno(number) => {
                        let error = std::io::Error::from_raw_os_error(number);
                        shared.note(service, format!("it reports an error: {error}"));
                    }
                    Notice::ExtendTimeout(time) => {
                        let until = Instant::now().checked_add(time);
                        self.extended.send_modify(|extended| *extended = (*extended).max(until));
                    }
                    Notice::Refused(why) => shared.note(service, why),
                }
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
