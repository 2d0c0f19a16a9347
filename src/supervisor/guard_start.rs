//! Waits until a guard that was executed is ready.

use std::os::fd::OwnedFd;
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::socket::receive;
use crate::error::{Error, Result};
use crate::guard::protocol::FromGuard;
use crate::guard::{program, protocol};

/// pinfold waits this long for the process that starts a guard. Then it sends SIGCONT, because another job may have
/// stopped that process.
const RESUME_AFTER: Duration = Duration::from_secs(1);

/// How long a guard may take to report that it is ready.
const START_BOUND: Duration = Duration::from_secs(10);

/// Continues the process that starts a guard: another job may have stopped it.
fn resume(starter: Option<&Child>) {
    if let Some(starter) = starter {
        // It is a child of this process and has not been reaped, so no other process has its pid.
        let _ = rustix::process::kill_process(Pid::from_child(starter), rustix::process::Signal::CONT);
    }
}

/// Waits until an executed guard reports that it is ready. Returns the pid and the pidfd of the guard, and those of its
/// outer guard.
pub(super) async fn wait_until_ready(
    socket: &AsyncFd<OwnedFd>,
    buffer: &mut Vec<u8>,
    starter: &mut Option<Child>,
    program: &str,
) -> Result<(Pid, OwnedFd, Option<Pid>, Option<OwnedFd>)> {
    let failed = |what: &str| Error::GuardStart(format!("{program}: {what}"));
    let received = {
        let bound = Instant::now() + START_BOUND;
        let mut receiving = std::pin::pin!(receive(socket, buffer));
        loop {
            match tokio::time::timeout(RESUME_AFTER, &mut receiving).await {
                Ok(received) => break received,
                Err(_) if Instant::now() >= bound => return Err(failed("it did not answer within 10 s")),
                Err(_) => resume(starter.as_ref()),
            }
        }
    };
    let (message, descriptors) = match received {
        Ok(Some(received)) => received,
        Ok(None) => {
            let status = match starter {
                Some(starter) => status(starter).await,
                None => None,
            };
            return Err(program::ended(program, status));
        }
        Err(errno) => {
            let why = match protocol::refusal(buffer) {
                Some(why) => {
                    format!("{why}; this library speaks version {} ({})", protocol::VERSION, program::ways_to_provide())
                }
                None => format!("cannot read its answer: {errno}"),
            };
            return Err(failed(&why));
        }
    };
    if let Some(mut starter) = starter.take() {
        // The guard is no longer a child of the starter, and the starter ends at once. wait fails with ECHILD if the
        // host ignores SIGCHLD.
        resume(Some(&starter));
        let _ = starter.wait();
    }
    let mut descriptors = descriptors.into_iter();
    match (message, descriptors.next()) {
        (FromGuard::Ready { version: protocol::VERSION, pid, outer }, Some(pidfd)) => {
            let pid = Pid::from_raw(pid).ok_or_else(|| failed("it has no pid"))?;
            Ok((pid, pidfd, outer.and_then(Pid::from_raw), descriptors.next()))
        }
        _ => Err(failed("its answer is not that of a guard of this version")),
    }
}

/// Returns the exit status of the process that should have started the guard; `None` if it does not end, or if the host
/// has reaped it.
async fn status(starter: &mut Child) -> Option<std::process::ExitStatus> {
    let pidfd = pidfd_open(Pid::from_child(starter), PidfdFlags::empty()).ok()?;
    let pidfd = crate::supervisor::watch::watched(pidfd, Interest::READABLE).ok()?;
    // A process that ends closes its descriptors a moment before it can be reaped.
    let _ = tokio::time::timeout(RESUME_AFTER, pidfd.readable()).await;
    starter.try_wait().ok()?
}
