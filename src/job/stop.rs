//! The stop policy: how pinfold ends a job. It is a pure state machine, which owns all state of the policy. The actor
//! of the job waits for events, passes each to the machine, and performs the actions that the machine returns.
//!
//! ```text
//! Running ──▶ Settling ──▶ Stopping ──▶ Killing ──▶ Draining ──▶ Gone
//! ```
//!
//! Each phase can be skipped. A job never returns to an earlier phase. The whole policy is one table, `Machine::row`.
//! `stop/model.rs` explores it together with a model of the processes and of the guard.

mod policy;

use crate::kernel::signal::Signal;
use crate::report::Reason;
pub(crate) use policy::StopPolicy;
pub use policy::{Leftovers, SignalTo};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Phase {
    /// The main process runs or is being started, or pinfold waits for the processes that remain after it.
    Running,
    /// The main process has exited. The remaining processes have time to end by themselves.
    Settling,
    /// The stop signal was sent.
    Stopping,
    /// SIGKILL was sent.
    Killing,
    /// SIGKILL has ended every process that it can end. The guard, or the supervisor in its place, searches for
    /// emigrants.
    Draining,
    /// The job is over.
    Gone,
}

/// What pinfold knows about the main process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Main {
    /// The guard was asked to start it.
    Starting,
    /// It has not executed the command yet, and SIGKILL does not end it.
    Hanging,
    Running,
    /// The supervisor has noticed its end, and the guard has not reported it yet.
    Ended,
    /// The guard has reported its end, or there is no guard that could report it.
    Exited,
}

/// The timers of a job. The actor knows their times (`Actor::time`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Timer {
    /// The deadline of the command. It runs from the beginning.
    Deadline,
    /// The short part of the settle time.
    ShortSettle,
    Settle,
    /// How long a stop waits for an exec in progress, so that the command itself receives the stop signal.
    Exec,
    Grace,
    /// How long processes may take to end after SIGKILL.
    Kill,
    /// How long the search for emigrants may take.
    Sweep,
}

impl Timer {
    pub const ALL: [Self; 7] =
        [Self::Deadline, Self::ShortSettle, Self::Settle, Self::Exec, Self::Grace, Self::Kill, Self::Sweep];
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Event {
    /// The command has been executed. `signalled`: a process of the job has received the stop signal already.
    Spawned {
        signalled: bool,
    },
    /// The started process was killed before its first instruction.
    NotStarted,
    /// The start has failed, and no process is left of it.
    StartFailed,
    /// SIGKILL has not ended the process that is to execute the command.
    Hangs,
    /// The supervisor sees that the main process has ended.
    MainEnded,
    /// The guard has reaped the main process. `empty`: no process is left in the leaf. `childless`: the guard has no
    /// descendant of the job left.
    MainExited {
        empty: bool,
        childless: bool,
    },
    /// No process is left in the leaf; without a leaf, the guard has no descendant left.
    Emptied,
    /// Every descendant that SIGKILL can end has ended. `survivors`: other descendants are left.
    Swept {
        survivors: bool,
    },
    GuardLost,
    Deadline,
    Idle,
    /// A request to stop. `first`: the signal that replaces the stop signal until the main process has exited.
    StopAsked {
        first: Option<Signal>,
    },
    KillAsked,
    /// The owner of the job has dropped it.
    OwnerGone,
    /// The answer to [`Action::Inspect`]. `finishing`: whether some remaining processes have the whole settle time.
    Inspected {
        finishing: bool,
    },
    /// A timer has expired.
    Expired(Timer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Ask the guard to start the command.
    Spawn,
    /// Start a timer, or start it again.
    Start(Timer),
    Cancel(Timer),
    /// Read the final figures while the guard reaps the main process, if no process is left in the leaf.
    CleanUpEarly,
    /// Expect an answer of the guard: only the guard sees the end of the last process.
    ExpectAnswer,
    /// Ask the guard to reap the main process now.
    AskReap,
    /// Find out which of the remaining processes are finishing, and return [`Event::Inspected`].
    Inspect,
    /// List the remaining processes as leftovers.
    ListLeftovers,
    /// List the remaining processes that are not finishing as leftovers.
    ListOthers,
    /// Send the stop signal, or the signal that replaces it.
    Signal,
    /// Send the stop signal to the processes that are not finishing.
    SignalOthers,
    /// Send the stop signal to all processes that remain after the main process.
    SignalRest,
    /// Send SIGKILL to every process in the leaf, and to the main process.
    Kill,
    /// List the remaining processes as unkillable.
    ListUnkillable,
    /// Record that SIGKILL has ended every process in the leaf that it can end.
    NoteEmpty,
    /// Ask the guard to end the descendants that are left outside of the leaf.
    AskSweep,
    /// End these descendants in the supervisor, because the guard is lost, and return [`Event::Swept`].
    EndOrphans,
    /// Record that the guard did not answer in time.
    NoteNoAnswer,
}

/// The state of the stop machine of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Machine {
    pub phase: Phase,
    pub main: Main,
    pub reason: Reason,
    /// The signal that the processes receive instead of the stop signal, until the main process has exited.
    pub first_signal: Option<Signal>,
    /// The started process joins its leaf itself, instead of being cloned into it.
    pub join: bool,
    pub guard_lost: bool,
    pub owner_gone: bool,
    /// The main process has exited since the stop began, and the other processes have not received the stop signal yet.
    rest_settles: bool,
    reap_asked: bool,
    /// The guard has no descendant of the job left.
    childless: bool,
    /// Every descendant that SIGKILL can end has ended, also outside of the leaf.
    swept: bool,
    /// The timers that run, one bit for each.
    timers: u8,
    has_leaf: bool,
    leftovers: Leftovers,
    signal_to: SignalTo,
}

impl Machine {
    /// Returns the state at the beginning. `join`: the started process joins its leaf itself. `deadline`: the timer of
    /// the deadline runs.
    pub fn new(policy: &StopPolicy, has_leaf: bool, join: bool, deadline: bool) -> Self {
        Self {
            phase: Phase::Running,
            main: Main::Starting,
            reason: Reason::Exited,
            first_signal: None,
            join,
            guard_lost: false,
            owner_gone: false,
            rest_settles: false,
            reap_asked: false,
            childless: false,
            swept: false,
            timers: u8::from(deadline) << Timer::Deadline as u8,
            has_leaf,
            leftovers: policy.leftovers,
            signal_to: policy.signal_to,
        }
    }

    /// Returns whether the machine waits for the leaf to become empty.
    pub fn awaits_empty_leaf(&self) -> bool {
        self.has_leaf
            && self.phase < Phase::Draining
            && match self.main {
                Main::Starting | Main::Hanging => false,
                Main::Running | Main::Ended => self.phase >= Phase::Stopping && !self.reap_asked,
                Main::Exited => true,
            }
    }

    pub fn runs(&self, timer: Timer) -> bool {
        self.timers & 1 << timer as u8 != 0
    }

    /// Changes the state, and returns the actions to perform, in this order. An event that comes late or twice has no
    /// effect.
    #[must_use]
    pub fn on(&mut self, event: Event) -> Vec<Action> {
        if self.phase == Phase::Gone || matches!(event, Event::Expired(timer) if !self.runs(timer)) {
            return Vec::new();
        }
        let learned = self.learn(event);
        let (next, transition) = self.row(event);
        let mut actions = [learned, transition].concat();
        if next != self.phase {
            actions.extend(self.enter(next));
        }
        // The timers follow the actions. A timer that does not run needs no cancellation.
        actions.retain(|action| match *action {
            Action::Start(timer) => {
                self.timers |= 1 << timer as u8;
                true
            }
            Action::Cancel(timer) => {
                let runs = self.runs(timer);
                self.timers &= !(1 << timer as u8);
                runs
            }
            _ => true,
        });
        actions
    }

    /// Records the facts that an event shows, whatever the phase is.
    fn learn(&mut self, event: Event) -> &'static [Action] {
        match event {
            Event::Spawned { .. } => (self.main, self.swept) = (Main::Running, false),
            Event::Hangs if self.main == Main::Starting => self.main = Main::Hanging,
            Event::MainEnded if self.main == Main::Running => {
                self.main = Main::Ended;
                return &[Action::CleanUpEarly];
            }
            Event::MainExited { childless, .. } => {
                (self.main, self.childless) = (Main::Exited, childless);
                if !self.has_leaf && !childless {
                    return &[Action::ExpectAnswer];
                }
            }
            Event::Emptied => self.childless |= !self.has_leaf,
            Event::Swept { .. } => self.swept = true,
            // Without the guard, the exit status of the main process stays unknown. PDEATHSIG has ended the process.
            Event::GuardLost => (self.main, self.guard_lost) = (Main::Exited, true),
            Event::OwnerGone => self.owner_gone = true,
            Event::Expired(timer) => self.timers &= !(1 << timer as u8),
            _ => {}
        }
        &[]
    }

    /// The table: the next phase, and the actions before those of [`Self::enter`].
    fn row(&mut self, event: Event) -> (Phase, &'static [Action]) {
        use Action::*;
        use Event::*;
        use Main::{Exited, Hanging, Starting};
        use Phase::{Draining, Gone, Killing, Running, Settling, Stopping};

        match (self.phase, event) {
            // The start.
            (Running, NotStarted) if !self.join => {
                self.join = true;
                (Running, &[Spawn])
            }
            (_, NotStarted | StartFailed) => (Gone, &[]),
            (Running, Hangs) => self.end(Reason::SpawnFailed, Killing),
            (Stopping, Spawned { signalled: false }) => (Stopping, &[Signal, Cancel(Timer::Exec), Start(Timer::Grace)]),
            (Stopping, Spawned { signalled: true }) => (Stopping, &[Cancel(Timer::Exec), Start(Timer::Grace)]),
            // The earlier kill may have come before the process was in the leaf.
            (Killing | Draining, Spawned { .. }) => (self.phase, self.kill()),

            // Processes end.
            (Running | Settling | Stopping | Killing, MainExited { empty: true, .. }) => (Draining, &[]),
            (Running | Settling | Stopping | Killing, Emptied) if self.main == Exited => (Draining, &[]),
            (Stopping | Killing, Emptied) if self.has_leaf => {
                self.reap_asked = true;
                (self.phase, &[AskReap])
            }
            // Without a leaf, the sweep is the kill.
            (Killing, MainExited { .. } | Swept { .. }) if self.swept && self.main == Exited => (Draining, &[]),
            (Killing, Swept { survivors: true }) if matches!(self.main, Starting | Hanging) => (Draining, &[]),

            // Processes remain after the main process. The reason stays `Exited`: the command ended by itself.
            (Running, MainExited { .. }) if self.leftovers == Leftovers::Kill => (Settling, &[]),
            (Running, MainExited { .. }) => (Running, &[ListLeftovers]),
            (Settling, Expired(Timer::ShortSettle)) => (Settling, &[Inspect]),
            (Settling, Inspected { finishing: true }) => (Settling, &[ListOthers, SignalOthers]),
            (Settling, Inspected { finishing: false } | Expired(Timer::Settle | Timer::Deadline)) => {
                (Stopping, &[ListLeftovers])
            }
            (Settling, Deadline | Idle | StopAsked { .. }) => (Stopping, &[ListLeftovers]),
            (Settling, KillAsked | OwnerGone | GuardLost) => (Killing, &[ListLeftovers]),
            // So far the remaining processes have received no signal, or a signal that they may ignore.
            (Stopping, MainExited { .. }) if self.first_signal.take().is_some() || self.signal_to == SignalTo::Main => {
                self.rest_settles = true;
                (Stopping, &[Start(Timer::ShortSettle), Start(Timer::Settle)])
            }
            (Stopping, Expired(Timer::ShortSettle)) => (Stopping, &[Inspect]),
            (Stopping, Inspected { finishing: true }) if self.rest_settles => (Stopping, &[SignalOthers]),
            (Stopping, Inspected { finishing: false } | Expired(Timer::Settle)) if self.rest_settles => {
                self.rest_settles = false;
                (Stopping, &[Cancel(Timer::ShortSettle), Cancel(Timer::Settle), SignalRest])
            }

            // Something ends the job.
            (Running, Deadline | Expired(Timer::Deadline)) => self.end(Reason::Deadline, Stopping),
            (Running, Idle) => self.end(Reason::Idle, Stopping),
            (Running, StopAsked { first }) => {
                self.first_signal = first.filter(|_| self.main != Exited);
                self.end(Reason::Stopped, Stopping)
            }
            (Running, KillAsked | OwnerGone) => self.end(Reason::Killed, Killing),
            (Running, GuardLost) => self.end(Reason::GuardLost, Killing),
            (Stopping, StopAsked { .. } | KillAsked | OwnerGone | GuardLost) => (Killing, &[]),
            (Stopping, Expired(Timer::Exec | Timer::Grace)) => (Killing, &[]),

            // SIGKILL was sent.
            (Killing, GuardLost) => (Killing, self.kill()),
            (Killing, Expired(Timer::Kill)) if self.swept => (Draining, &[]),
            (Killing, Expired(Timer::Kill)) => {
                // Without a leaf, the list contains every process that is left.
                self.swept = !self.has_leaf;
                (Draining, &[ListUnkillable])
            }
            (Draining, GuardLost) => (Draining, &[EndOrphans]),
            (Draining, Expired(Timer::Sweep)) => (Gone, &[NoteNoAnswer]),
            (Draining, Swept { .. }) => (Gone, &[]),

            // The event has no effect in this phase.
            _ => (self.phase, &[]),
        }
    }

    fn end(&mut self, reason: Reason, next: Phase) -> (Phase, &'static [Action]) {
        self.reason = reason;
        (next, &[])
    }

    /// Enters a phase: cancels the timers of the phases before it, and returns the actions with which it begins.
    fn enter(&mut self, phase: Phase) -> Vec<Action> {
        use Action::{AskSweep, Cancel, EndOrphans, NoteEmpty, Signal, Start};
        let kept = if phase == Phase::Settling { Some(Timer::Deadline) } else { None };
        let mut actions: Vec<_> = Timer::ALL.into_iter().filter(|&timer| Some(timer) != kept).map(Cancel).collect();
        let starts = matches!(self.main, Main::Starting | Main::Hanging);
        self.phase = phase;
        actions.extend((phase == Phase::Killing).then_some(Start(Timer::Kill)));
        actions.extend(match phase {
            Phase::Running | Phase::Gone => &[],
            Phase::Settling => &[Start(Timer::ShortSettle), Start(Timer::Settle)][..],
            Phase::Stopping if starts => &[Signal, Start(Timer::Exec)],
            Phase::Stopping => &[Signal, Start(Timer::Grace)],
            Phase::Killing => self.kill(),
            Phase::Draining if self.guard_lost && !self.swept => &[NoteEmpty, EndOrphans],
            Phase::Draining if self.swept || self.childless => {
                self.phase = Phase::Gone;
                &[NoteEmpty]
            }
            Phase::Draining => &[NoteEmpty, Start(Timer::Sweep), AskSweep],
        });
        actions
    }

    /// Returns the actions that kill every process of the job. Without a leaf, a sweep by the guard kills, or by the
    /// supervisor if the guard is lost.
    fn kill(&self) -> &'static [Action] {
        match (self.has_leaf, self.guard_lost) {
            (true, _) => &[Action::Kill],
            (false, false) => &[Action::Kill, Action::AskSweep],
            (false, true) => &[Action::Kill, Action::EndOrphans],
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
