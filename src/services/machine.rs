//! The life of one service, as a pure state machine. The services give it what happens, and perform the actions that it
//! returns. The whole policy is one table, `Machine::row`.
//!
//! ```text
//!             ┌────────────── BackingOff ◀──────────────┐
//!             ▼                                         │ restart
//! Waiting ─▶ Starting ─▶ Ready ─▶ (Stopping) ─▶ the job is proven gone ─▶ Finished, Failed
//! ```
//!
//! A service has one job at a time: `Spawn` follows only after `Ended`, which says that no process of the last job is
//! left.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::services::config::{Restart, RestartPolicy};

/// The state of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum State {
    /// It waits for services that it depends on.
    Waiting,
    /// Its command is being executed, or is not ready yet.
    Starting,
    /// It is ready.
    Ready,
    /// It is being stopped.
    Stopping,
    /// It has failed, and will be started again after a pause.
    BackingOff,
    /// It has failed, and will not be started again unless this is requested.
    Failed,
    /// It has ended as it should, or on request.
    Finished,
}

impl State {
    /// Returns whether the service has a job, which may have processes.
    #[cfg(test)]
    pub(super) fn has_job(self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Stopping)
    }

    /// Returns whether nothing more happens without a request.
    #[must_use]
    pub fn is_over(self) -> bool {
        matches!(self, Self::Failed | Self::Finished)
    }

    /// Returns the name, for a person.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::BackingOff => "backing off",
            Self::Failed => "failed",
            Self::Finished => "finished",
        }
    }
}

/// Why a service has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Failure {
    /// Its command failed: with another exit code than 0, or by a signal.
    Exited,
    /// Its command could not be started.
    NotStarted,
    /// It did not become ready in time, or ended before that.
    NotReady,
    /// It sent no `WATCHDOG=1` in time.
    Unresponsive,
    /// A service that it depends on has failed, or has ended.
    Dependency,
    /// Some of its processes could not be ended, so no new instance was started.
    NotEnded,
    /// The guard or the supervisor is gone.
    SupervisorGone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// Every service that it depends on fulfils its condition.
    DependenciesMet,
    /// A service that it depends on will not fulfil its condition any more.
    DependencyFailed,
    /// The command has been executed.
    Spawned,
    BecameReady,
    /// It did not become ready in time.
    NotReady,
    /// It did not say in time that it is alive.
    Unresponsive,
    /// No process of the job is left, or the failure says otherwise.
    Ended(Result<(), Failure>),
    BackoffOver,
    StartAsked,
    RestartAsked,
    StopAsked,
    KillAsked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Action {
    /// Start the job.
    Spawn,
    /// Stop the job.
    Stop,
    Kill,
    /// Return [`Event::BackoffOver`] after this time.
    StartBackoff(Duration),
    CancelBackoff,
}

/// What follows when a job that is being stopped has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Then {
    Finish,
    Start,
    /// The policy decides, as after a failure.
    Fail(Failure),
}

/// What makes a service ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ReadyBy {
    /// The start of its command.
    Start,
    /// A condition, which [`Event::BecameReady`] reports.
    Condition,
    /// Its end: the service is a one-shot, which is never in the state `Ready`.
    End,
}

/// The state of one service.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub state: State,
    pub failure: Option<Failure>,
    /// The service has ended because a stop was requested.
    pub stopped: bool,
    /// How many times the policy has started it again.
    pub restarts: u64,
    /// The command of the current job has been executed.
    pub spawned: bool,
    then: Then,
    restart: Restart,
    ready_by: ReadyBy,
    /// When the policy has started it again, within the window.
    recent: Vec<Instant>,
}

impl Machine {
    pub fn new(restart: Restart, ready_by: ReadyBy) -> Self {
        Self {
            state: State::Waiting,
            failure: None,
            stopped: false,
            restarts: 0,
            spawned: false,
            then: Then::Finish,
            restart,
            ready_by,
            recent: Vec::new(),
        }
    }

    /// Returns how many restarts count for the budget.
    pub fn recent_restarts(&self) -> usize {
        self.recent.len()
    }

    /// Returns whether the job is being stopped because it has failed: it was not ready in time, or is unresponsive.
    pub fn is_stopped_after_failure(&self) -> bool {
        self.state == State::Stopping && matches!(self.then, Then::Fail(_))
    }

    /// Changes the state, and returns the actions to perform, in this order. An event that comes late or twice has no
    /// effect.
    #[must_use]
    pub fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        use Action::{CancelBackoff, Kill, Spawn, Stop};
        use Event::*;
        use State::{BackingOff, Failed, Finished, Ready, Starting, Stopping, Waiting};

        match (self.state, event) {
            (Waiting, DependenciesMet) => self.enter(Starting, &[Spawn]),
            (Waiting, DependencyFailed) => self.fail(Failure::Dependency),
            (Waiting, StopAsked | KillAsked) => self.finish(true),

            (Starting, Spawned) => {
                self.spawned = true;
                self.enter(if self.ready_by == ReadyBy::Start { Ready } else { Starting }, &[])
            }
            (Starting, BecameReady) => self.enter(Ready, &[]),
            (Starting, NotReady) => self.stop(Then::Fail(Failure::NotReady), Stop),
            (Starting | Ready, Unresponsive) => self.stop(Then::Fail(Failure::Unresponsive), Stop),
            (Starting | Ready, StopAsked) => self.stop(Then::Finish, Stop),
            (Starting | Ready, KillAsked) => self.stop(Then::Finish, Kill),
            (Starting | Ready, RestartAsked) => {
                self.recent.clear();
                self.stop(Then::Start, Stop)
            }
            // A service that has ended before it was ready has failed, also with the exit code 0.
            (Starting, Ended(Ok(()))) if self.ready_by == ReadyBy::Condition => self.ended(Err(Failure::NotReady), now),
            (Starting | Ready, Ended(end)) => self.ended(end, now),

            (Stopping, Ended(Err(Failure::NotEnded))) => self.fail(Failure::NotEnded),
            (Stopping, Ended(Err(Failure::SupervisorGone))) => self.fail(Failure::SupervisorGone),
            (Stopping, Ended(_)) => match self.then {
                Then::Finish => self.finish(true),
                Then::Start => self.enter(Waiting, &[]),
                Then::Fail(failure) => self.ended(Err(failure), now),
            },
            // A second stop of a job kills it, so a request to stop that comes twice changes nothing.
            (Stopping, StopAsked) => self.stop_then(Then::Finish),
            (Stopping, RestartAsked | StartAsked) => {
                self.recent.clear();
                self.stop_then(Then::Start)
            }
            (Stopping, KillAsked) => {
                self.then = Then::Finish;
                vec![Kill]
            }

            (BackingOff, BackoffOver) => self.enter(Waiting, &[]),
            (BackingOff, StopAsked | KillAsked) => {
                self.finish(true);
                vec![CancelBackoff]
            }
            (BackingOff, RestartAsked | StartAsked) => {
                self.recent.clear();
                self.enter(Waiting, &[CancelBackoff])
            }

            (Failed | Finished, StartAsked | RestartAsked) => {
                self.recent.clear();
                self.enter(Waiting, &[])
            }
            _ => Vec::new(),
        }
    }

    fn enter(&mut self, state: State, actions: &[Action]) -> Vec<Action> {
        self.state = state;
        (self.failure, self.stopped) = (None, false);
        if state == State::Waiting {
            self.spawned = false;
        }
        actions.to_vec()
    }

    fn stop(&mut self, then: Then, action: Action) -> Vec<Action> {
        self.then = then;
        self.enter(State::Stopping, &[action])
    }

    fn stop_then(&mut self, then: Then) -> Vec<Action> {
        self.then = then;
        Vec::new()
    }

    fn finish(&mut self, stopped: bool) -> Vec<Action> {
        self.enter(State::Finished, &[]);
        self.stopped = stopped;
        Vec::new()
    }

    fn fail(&mut self, failure: Failure) -> Vec<Action> {
        self.enter(State::Failed, &[]);
        self.failure = Some(failure);
        Vec::new()
    }

    /// The job has ended by itself, or because it was not ready in time: the policy decides what follows.
    fn ended(&mut self, end: Result<(), Failure>, now: Instant) -> Vec<Action> {
        let again = match (end, self.restart.policy) {
            (Err(Failure::NotEnded | Failure::SupervisorGone), _) => false,
            (_, RestartPolicy::Never) => false,
            (Ok(()), RestartPolicy::OnFailure) => false,
            (Err(_), RestartPolicy::OnFailure) | (_, RestartPolicy::Always) => true,
        };
        match end {
            Ok(()) if !again => return self.finish(false),
            Err(failure) if !again => return self.fail(failure),
            _ => {}
        }
        let within = self.restart.within;
        self.recent.retain(|&at| now.saturating_duration_since(at) < within);
        let earlier = u32::try_from(self.recent.len()).unwrap_or(u32::MAX);
        if earlier >= self.restart.limit {
            return self.fail(end.err().unwrap_or(Failure::Exited));
        }
        self.recent.push(now);
        self.restarts += 1;
        let pause = self.restart.pause(earlier);
        self.enter(State::BackingOff, &[Action::StartBackoff(pause)])
    }
}

#[cfg(test)]
mod tests;
