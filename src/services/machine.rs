//! The life of one service, as a pure state machine. [`Shared`](crate::services::state::Shared) passes events to it,
//! and performs the actions that it returns. The whole policy is one table, in [`Machine::on`].
//!
//! ```text
//!             ┌────────────── BackingOff ◀──────────────┐
//!             ▼                                         │ restart
//! Waiting ─▶ Starting ─▶ Ready ─▶ (Stopping) ─▶ no process is left ─▶ Finished, Failed
//! ```
//!
//! A service has at most one job at a time: after the first [`Action::Spawn`], another one follows only after
//! [`Event::Ended`], when no process of the last job is left.

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
    /// Its command is being started, or the service is not ready yet.
    Starting,
    /// It is ready.
    Ready,
    /// It is being stopped.
    Stopping,
    /// It has failed, or it has exited with 0 and its restart policy is `Always`. pinfold starts it again after a
    /// pause.
    BackingOff,
    /// It has failed, and will not be started again unless this is requested.
    Failed,
    /// It has ended without a failure, or on request.
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
    /// It exited with a code other than 0, or a signal ended it.
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
    /// It did not send `WATCHDOG=1` in time.
    Unresponsive,
    /// The job has ended. No process of it is left, except after [`Failure::NotEnded`] and [`Failure::SupervisorGone`].
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
    /// Pass [`Event::BackoffOver`] to the machine after this time.
    StartBackoff(Duration),
    CancelBackoff,
}

/// How the machine continues when a job that is being stopped has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum AfterStop {
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
    /// The exit of its command with 0: the service is a one-shot, which is never in the state `Ready`.
    End,
}

/// The state of one service.
#[derive(Clone, Debug)]
pub(super) struct Machine {
    pub state: State,
    pub failure: Option<Failure>,
    /// The service has ended because a stop was requested.
    pub stopped: bool,
    /// The number of restarts by the policy.
    pub restarts: u64,
    /// The command of the current job has been executed.
    pub spawned: bool,
    after_stop: AfterStop,
    restart: Restart,
    ready_by: ReadyBy,
    /// The times of the restarts by the policy that are within the window.
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
            after_stop: AfterStop::Finish,
            restart,
            ready_by,
            recent: Vec::new(),
        }
    }

    /// Returns the number of restarts that count for the limit.
    pub fn recent_restarts(&self) -> usize {
        self.recent.len()
    }

    /// Returns whether the job is being stopped because it has failed: it was not ready in time, or is unresponsive.
    pub fn is_stopped_after_failure(&self) -> bool {
        self.state == State::Stopping && matches!(self.after_stop, AfterStop::Fail(_))
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
            (Starting, NotReady) => self.stop(AfterStop::Fail(Failure::NotReady), Stop),
            (Starting | Ready, Unresponsive) => self.stop(AfterStop::Fail(Failure::Unresponsive), Stop),
            (Starting | Ready, StopAsked) => self.stop(AfterStop::Finish, Stop),
            (Starting | Ready, KillAsked) => self.stop(AfterStop::Finish, Kill),
            (Starting | Ready, RestartAsked) => {
                self.recent.clear();
                self.stop(AfterStop::Start, Stop)
            }
            // A service that ends before it is ready has failed, even with the exit code 0.
            (Starting, Ended(Ok(()))) if self.ready_by == ReadyBy::Condition => self.ended(Err(Failure::NotReady), now),
            (Starting | Ready, Ended(end)) => self.ended(end, now),

            (Stopping, Ended(Err(Failure::NotEnded))) => self.fail(Failure::NotEnded),
            (Stopping, Ended(Err(Failure::SupervisorGone))) => self.fail(Failure::SupervisorGone),
            (Stopping, Ended(_)) => match self.after_stop {
                AfterStop::Finish => self.finish(true),
                AfterStop::Start => self.enter(Waiting, &[]),
                AfterStop::Fail(failure) => self.ended(Err(failure), now),
            },
            // A second `Stop` would kill the job, so a second request to stop returns no action.
            (Stopping, StopAsked) => self.set_after_stop(AfterStop::Finish),
            (Stopping, RestartAsked | StartAsked) => {
                self.recent.clear();
                self.set_after_stop(AfterStop::Start)
            }
            (Stopping, KillAsked) => {
                self.after_stop = AfterStop::Finish;
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

    fn stop(&mut self, after_stop: AfterStop, action: Action) -> Vec<Action> {
        self.after_stop = after_stop;
        self.enter(State::Stopping, &[action])
    }

    fn set_after_stop(&mut self, after_stop: AfterStop) -> Vec<Action> {
        self.after_stop = after_stop;
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

    /// The job has ended by itself, or because it was stopped after a failure: the policy decides what follows.
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
