//! The start of the job, and the signals that arrive before the command has been executed.

use std::time::{Duration, Instant};

use crate::kernel::own_signals::Received;
use crate::{Job, Result, Signal};

use super::{Supervision, sleep_until};
use crate::cli::on_signal::is_stop_request;
use crate::cli::signals::{Response, Rules};

/// How long a stop waits until the command has been executed, so that the command receives the stop signal. An exec can
/// take long.
const EXEC_TIMEOUT: Duration = Duration::from_secs(1);

/// A received signal.
pub(super) struct Arrival {
    pub(super) received: Received,
    pub(super) at: Instant,
    /// The job did not exist, so the terminal did not send the signal to it.
    pub(super) before_the_job: bool,
}

impl Supervision<'_> {
    /// Starts the job. Signals that arrive before the command has been executed are handled afterwards. After a stop
    /// request, pinfold waits at most [`EXEC_TIMEOUT`] for the exec; after a second one, it gives up the start at once.
    /// Then no job runs, and this returns the signal that made pinfold give up (at the deadline: SIGKILL).
    ///
    /// # Errors
    /// Those of `spawn`, and the errno of read(2).
    pub async fn start(
        &mut self,
        spawn: impl Future<Output = Result<Job>>,
    ) -> Result<std::result::Result<Job, Signal>> {
        // This copy of the rules only determines how long to wait. The signals are handled later.
        let mut rules = self.requests.rules.clone();
        let mut give_up = None;
        while let Some(received) = self.requests.signals.try_recv()? {
            if self.arrived_early(&mut rules, &mut give_up, received, true) {
                return Ok(Err(received.signal));
            }
        }
        let mut spawn = std::pin::pin!(spawn);
        loop {
            let due = self.due.as_ref().map(|(at, ..)| *at);
            tokio::select! {
                biased;
                spawned = &mut spawn => return spawned.map(Ok),
                received = self.requests.signals.recv() => {
                    let received = received?;
                    if self.arrived_early(&mut rules, &mut give_up, received, false) {
                        // The future is dropped, which ends the part of the job that exists already.
                        return Ok(Err(received.signal));
                    }
                }
                () = sleep_until(due), if give_up.is_none() => {
                    self.timed_out = true;
                    give_up = Some((Instant::now() + EXEC_TIMEOUT, Signal::KILL));
                }
                signal = give_up_time(give_up) => return Ok(Err(signal)),
            }
        }
    }

    /// Keeps a signal until the job exists. Returns whether the start ends now.
    fn arrived_early(
        &mut self,
        rules: &mut Rules,
        give_up: &mut Option<(Instant, Signal)>,
        received: Received,
        before_the_job: bool,
    ) -> bool {
        let (signal, at) = (received.signal, Instant::now());
        self.early.push_back(Arrival { received, at, before_the_job });
        if self.policy.own_signals.contains(&signal) {
            return false;
        }
        let response = rules.respond(received, at);
        self.timed_out |= response == Response::Deadline;
        if match response {
            Response::Stop(_) | Response::Deadline => true,
            Response::PassOn(_) => self.policy.acts_without_main && is_stop_request(signal),
            _ => false,
        } {
            give_up.get_or_insert((at + EXEC_TIMEOUT, signal));
        }
        response == Response::Kill
    }
}

async fn give_up_time(give_up: Option<(Instant, Signal)>) -> Signal {
    match give_up {
        Some((at, signal)) => {
            sleep_until(Some(at)).await;
            signal
        }
        None => std::future::pending().await,
    }
}
