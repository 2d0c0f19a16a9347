//! The stop policy: how pinfold ends a job. It is a pure state machine; [`crate::job`] feeds it events and performs its
//! actions.
//!
//! ```text
//! Running ──▶ Settling ──▶ Stopping ──▶ Killing ──▶ Draining ──▶ Gone
//! ```
//!
//! Each phase can be skipped. A job never returns to an earlier phase.

use std::time::Duration;

use crate::job::settle;
use crate::kernel::signal::Signal;
use crate::report::Reason;

/// The processes that receive the stop signal.
///
/// ```
/// let mut command = pinfold::Command::new("make");
/// command.stop_signal(pinfold::Signal::INT).signal_to(pinfold::SignalTo::Main);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum SignalTo {
    /// Every process of the job.
    #[default]
    All,
    /// The main process only, as a shell's `kill` would.
    Main,
}

/// What happens to processes that are still there when the main process has exited.
///
/// ```
/// let mut command = pinfold::Command::new("make");
/// command.leftovers(pinfold::Leftovers::Wait);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Leftovers {
    /// pinfold waits for the settle time ([`Command::settle`](crate::Command::settle)), in which they can end by
    /// themselves. Then it stops them, and kills them after the grace period.
    #[default]
    Kill,
    /// pinfold waits for them, without a settle time. The deadline applies to them too.
    Wait,
}

/// How a job is stopped: the stop signal, a grace period, then kill.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StopPolicy {
    pub signal: Signal,
    pub signal_to: SignalTo,
    pub grace: Duration,
    pub leftovers: Leftovers,
    /// How long processes may take to end by themselves after the main process has exited.
    pub settle: Duration,
    /// How long to wait for processes after SIGKILL.
    pub kill_bound: Duration,
}

impl Default for StopPolicy {
    fn default() -> Self {
        Self {
            signal: Signal::TERM,
            signal_to: SignalTo::All,
            grace: Duration::from_secs(10),
            leftovers: Leftovers::Kill,
            settle: settle::DEFAULT,
            kill_bound: Duration::from_secs(10),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// The main process runs, or pinfold waits for the processes that remain after it.
    Running,
    /// The main process has exited. The remaining processes have time to end by themselves.
    Settling,
    /// The stop signal was sent.
    Stopping,
    /// SIGKILL was sent.
    Killing,
    /// The leaf is empty. The guard looks for emigrants.
    Draining,
    /// The job is over.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The main process has ended. `empty`: whether the leaf is empty too.
    MainExited {
        empty: bool,
    },
    /// No process is left in the leaf.
    Emptied,
    Deadline,
    Idle,
    StopAsked,
    KillAsked,
    /// The short part of the settle time is over. `finishing`: whether some remaining processes have all of it.
    ShortSettleOver {
        finishing: bool,
    },
    SettleOver,
    GraceOver,
    /// The time that processes have to end after SIGKILL is over.
    BoundOver,
    /// The guard has no descendant of the job left.
    Swept,
    GuardLost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    StartSettle,
    /// Send the stop signal to the processes that are not finishing.
    SignalOthers,
    /// Send the stop signal.
    Signal,
    StartGrace,
    /// Send SIGKILL to every process.
    Kill,
    StartBound,
    /// Ask the guard to end the emigrants.
    Sweep,
}

use Action::{Kill, Signal as SendSignal, SignalOthers, StartBound, StartGrace, StartSettle, Sweep};

const SETTLE: &[Action] = &[StartSettle];
const STOP_OTHERS: &[Action] = &[SignalOthers];
const STOP_REST: &[Action] = &[SendSignal];
const STOP: &[Action] = &[SendSignal, StartGrace];
const KILL: &[Action] = &[Kill, StartBound];
const DRAIN: &[Action] = &[StartBound, Sweep];
/// Requests to a lost guard, which it may not have completed.
const KILL_AGAIN: &[Action] = &[Kill];
const SWEEP_AGAIN: &[Action] = &[Sweep];
const NOTHING: &[Action] = &[];

/// The state of the stop machine of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Machine {
    pub phase: Phase,
    pub main_exited: bool,
    pub reason: Reason,
    /// The signal that the processes receive instead of the stop signal, until the main process has exited.
    pub first_signal: Option<Signal>,
    /// The main process has exited since the stop began, and the other processes have not received the stop signal yet.
    rest_settles: bool,
    leftovers: Leftovers,
    signal_to: SignalTo,
}

impl Machine {
    pub fn new(leftovers: Leftovers, signal_to: SignalTo) -> Self {
        let (phase, reason) = (Phase::Running, Reason::Exited);
        Self { phase, main_exited: false, reason, first_signal: None, rest_settles: false, leftovers, signal_to }
    }

    /// Sets the first signal of the next stop. A stop that has begun keeps its own.
    pub fn begin_with(&mut self, signal: Option<Signal>) {
        if self.phase == Phase::Running && !self.main_exited {
            self.first_signal = signal;
        }
    }

    /// Returns the state after `event`, and the actions to perform.
    #[must_use]
    pub fn on(mut self, event: Event) -> (Self, &'static [Action]) {
        use Phase::{Draining, Gone, Killing, Running, Settling, Stopping};

        if event == Event::GuardLost && self.phase != Gone {
            // Without the guard, the exit status of the main process stays unknown. PDEATHSIG has ended the main
            // process.
            self.main_exited = true;
            if self.phase == Running {
                self.reason = Reason::GuardLost;
            }
        }
        if let Event::MainExited { .. } = event {
            self.main_exited = true;
        }
        let actions = match (self.phase, event) {
            (Running | Settling | Stopping | Killing, Event::MainExited { empty: true }) => self.enter(Draining, DRAIN),
            (Running | Settling | Stopping | Killing, Event::Emptied) if self.main_exited => {
                self.enter(Draining, DRAIN)
            }
            (Running, Event::MainExited { empty: false }) => match self.leftovers {
                Leftovers::Kill => self.enter(Settling, SETTLE),
                Leftovers::Wait => NOTHING,
            },
            (Settling, Event::ShortSettleOver { finishing: true }) => STOP_OTHERS,
            // The command has ended by itself, and that stays the reason.
            (
                Settling,
                Event::ShortSettleOver { finishing: false }
                | Event::SettleOver
                | Event::Deadline
                | Event::Idle
                | Event::StopAsked,
            ) => self.enter(Stopping, STOP),
            // So far the remaining processes have received no signal, or a signal that they may ignore.
            (Stopping, Event::MainExited { empty: false })
                if self.first_signal.take().is_some() || self.signal_to == SignalTo::Main =>
            {
                self.rest_settles = true;
                SETTLE
            }
            (Stopping, Event::ShortSettleOver { finishing: true }) if self.rest_settles => STOP_OTHERS,
            (Stopping, Event::ShortSettleOver { finishing: false } | Event::SettleOver) if self.rest_settles => {
                self.rest_settles = false;
                STOP_REST
            }
            (Running, Event::Deadline) => self.end(Reason::Deadline, Stopping, STOP),
            (Running, Event::Idle) => self.end(Reason::Idle, Stopping, STOP),
            (Running, Event::StopAsked) => self.end(Reason::Stopped, Stopping, STOP),
            (Running, Event::KillAsked) => self.end(Reason::Killed, Killing, KILL),
            (Settling, Event::KillAsked) => self.enter(Killing, KILL),
            (Stopping, Event::StopAsked | Event::KillAsked | Event::GraceOver) => self.enter(Killing, KILL),
            (Running | Settling | Stopping, Event::GuardLost) => self.enter(Killing, KILL),
            // SIGKILL did not end the processes in the leaf. It may still end those outside.
            (Killing, Event::BoundOver) => self.enter(Draining, DRAIN),
            (Killing, Event::GuardLost) => KILL_AGAIN,
            (Draining, Event::GuardLost) => SWEEP_AGAIN,
            (Draining, Event::Swept | Event::BoundOver) => self.enter(Gone, NOTHING),
            // The event comes late or twice, or has no effect in this phase.
            _ => NOTHING,
        };
        (self, actions)
    }

    fn enter(&mut self, phase: Phase, actions: &'static [Action]) -> &'static [Action] {
        self.phase = phase;
        actions
    }

    fn end(&mut self, reason: Reason, phase: Phase, actions: &'static [Action]) -> &'static [Action] {
        self.reason = reason;
        self.enter(phase, actions)
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
