//! Performs the actions of the stop machine on the job, and records them in the report.

use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::actor::Actor;
use super::command::ProcessGroup;
use super::settle;
use super::stop::{Action, Event, SignalTo, Timer};
use crate::guard::protocol::ToGuard;
use crate::kernel::process;
use crate::kernel::scan::ScanLimits;
use crate::kernel::signal::Signal;
use crate::kernel::wake::Wake;
use crate::subreaper::descendants::Descendants;
use crate::supervisor::containment::JobContainment;

/// How long the scans of a stop may take, which send the stop signal and SIGCONT: as long as the grace period, but at
/// least and at most these times.
const MIN_STOP_SIGNAL_TIME: Duration = Duration::from_millis(250);
const MAX_STOP_SIGNAL_TIME: Duration = Duration::from_secs(10);

/// How long the scans of other signals may take, and those of a stop that leaves finishing processes alone.
const SIGNAL_TIME: Duration = Duration::from_secs(2);

/// How long pinfold may read the details of processes, which continue to run meanwhile. It only counts the processes
/// that it did not reach in this time.
pub(super) const DESCRIBE_TIME: Duration = Duration::from_millis(500);

/// How long the answer of the guard may take, in addition to the time that the guard has for its work.
const ANSWER_TIME: Duration = Duration::from_secs(1);

/// How long a stop waits for an exec in progress. The command can handle the stop signal only after its exec, so the
/// whole grace period would be too long.
const EXEC_GRACE: Duration = Duration::from_secs(1);

/// Limits the scans that send a signal to every process of a job: at most 64 scans, within `time`. One scan is not
/// always enough: in a chain in which each process ends when it receives the signal, each scan may find only the next
/// process. More than 64 scans would not help: a tree that has new processes in every scan does not end by a signal.
/// The actor handles no other event during the scans.
fn scans(time: Duration) -> ScanLimits {
    ScanLimits::new(64, time)
}

impl Actor {
    /// Performs one action. Returns the event that results from it, if the result is known immediately.
    pub(super) async fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Spawn => return self.request_spawn().await,
            Action::Start(timer) => self.clock.start(timer, self.time(timer)),
            Action::Cancel(timer) => self.clock.cancel(timer),
            Action::CleanUpEarly => self.clean_up_early().await,
            Action::ExpectAnswer => self.expect_answer(),
            Action::AskReap => {
                // If the message can't be sent, the guard is lost, and an event reports that.
                let _ = self.link.send(&ToGuard::Reap, &[]).await;
            }
            Action::Inspect => return Some(self.inspect_remaining()),
            Action::ListLeftovers => self.list_leftovers(),
            Action::ListOthers => self.list_others(),
            Action::Signal | Action::SignalRest => {
                self.link.resume();
                self.wake = Wake::soon();
                self.report.phases.stopping = self.report.phases.stopping.or(self.elapsed());
                self.record.record_stop(&self.containment);
                self.send_stop_signal();
            }
            Action::SignalOthers => self.stop_others(),
            Action::Kill => {
                self.link.resume();
                self.wake = Wake::soon();
                self.report.phases.killing = self.report.phases.killing.or(self.elapsed());
                self.record.record_stop(&self.containment);
                self.report.killed = true;
                self.kill();
            }
            Action::ListUnkillable => self.list_unkillable(),
            Action::NoteEmpty => self.report.phases.empty = self.report.phases.empty.or(self.elapsed()),
            Action::AskSweep => self.request_sweep().await,
            Action::EndOrphans => {
                self.end_orphans().await;
                return Some(Event::Swept { survivors: self.report.unkillable.count > 0 });
            }
            Action::NoteNoAnswer => {
                self.note("the guard did not report in time whether processes are left outside of the cgroup");
            }
        }
        None
    }

    fn time(&self, timer: Timer) -> Duration {
        let policy = &self.policy;
        match timer {
            // No action starts this timer: it runs from the beginning.
            Timer::Deadline => Duration::MAX,
            Timer::ShortSettle => settle::short_part(policy.settle),
            Timer::Settle => policy.settle,
            Timer::Exec => policy.grace.min(EXEC_GRACE),
            Timer::Grace => policy.grace,
            Timer::Kill if self.containment.leaf().is_some() => policy.kill_bound,
            // The guard has the kill bound for its work, and a moment more for its answer.
            Timer::Kill | Timer::Sweep => policy.kill_bound.saturating_add(ANSWER_TIME),
        }
    }

    /// Sends the stop signal and SIGCONT, and thaws the job: a stopped or frozen process does not act on SIGTERM.
    fn send_stop_signal(&mut self) {
        let signal = self.machine.first_signal.unwrap_or(self.policy.signal);
        let main = self.living_main().cloned();
        let mut main_found = false;
        // If the main process has ended, only leftovers remain, and all of them receive the signal.
        let all = self.policy.signal_to == SignalTo::All || main.is_none();
        // Processes that the scans miss in this time are killed when the grace period is over.
        let time = self.policy.grace.clamp(MIN_STOP_SIGNAL_TIME, MAX_STOP_SIGNAL_TIME);
        let scans = if all { scans(time) } else { ScanLimits::new(0, Duration::ZERO) };
        let (stopped, described) = (&mut self.report.stopped, Instant::now() + DESCRIBE_TIME.min(time / 2));
        // Some processes are already in the report: they have received the first signal of this stop, or the stop
        // signal because they were not finishing.
        let signalled = &mut self.signalled;
        let sent = self.containment.with_reserve(|containment| {
            let sent = containment.signal_all(&[signal, Signal::CONT], scans, |pid| {
                main_found |= main.as_ref().is_some_and(|(main, _)| *main == pid);
                if signalled.insert(pid) {
                    stopped.add_until(described, pid);
                }
            });
            if let Some((pid, pidfd)) = main
                && !main_found
            {
                signalled.insert(pid);
                stopped.add(pid);
                // It may have ended; then the guard reports its exit soon.
                let _ = pidfd.send(signal).and_then(|()| pidfd.send(Signal::CONT));
            }
            sent.map(drop).and(containment.thaw())
        });
        if let Err(errno) = sent {
            self.note(&format!("the stop signal did not reach every process: {errno}"));
        }
    }

    /// Sends the stop signal to the processes that are not finishing. A process that was started after the list of
    /// these processes was made either descends from a finishing process, or pinfold finds it when the settle time is
    /// over.
    fn stop_others(&mut self) {
        if self.remaining.others.is_empty() {
            return;
        }
        let bound = Instant::now() + DESCRIBE_TIME;
        self.report.phases.stopping = self.report.phases.stopping.or(self.elapsed());
        let (signals, others) = ([self.policy.signal, Signal::CONT], &self.remaining.others);
        let (stopped, signalled) = (&mut self.report.stopped, &mut self.signalled);
        let sent = self.containment.with_reserve(|containment| {
            containment.signal_those(
                &signals,
                scans(SIGNAL_TIME),
                |pid| others.contains(&pid),
                |pid| {
                    if signalled.insert(pid) {
                        stopped.add_until(bound, pid);
                    }
                },
            )
        });
        if let Err(errno) = sent {
            self.note(&format!("the stop signal did not reach every leftover: {errno}"));
        }
    }

    pub(super) fn signal_all(&self, signal: Signal) {
        // The signal can't reach processes that have ended meanwhile, or that belong to another user.
        let _ =
            self.containment.with_reserve(|containment| containment.signal_all(&[signal], scans(SIGNAL_TIME), |_| {}));
    }

    /// Sends `signal` to the main process, then to every other process of the job in the process group that the main
    /// process was started in.
    pub(super) fn signal_group(&self, signal: Signal) {
        let Some((main, _)) = &self.main else { return };
        if let Some((_, pidfd)) = self.living_main() {
            // It may have ended; then the guard reports its exit soon.
            let _ = pidfd.send(signal);
        }
        let group = match self.process_group {
            ProcessGroup::New | ProcessGroup::NewSession | ProcessGroup::NewSessionOnTerminal => {
                main.as_raw_nonzero().get()
            }
            ProcessGroup::Supervisors => process::own_process_group().unwrap_or(0),
        };
        let wanted = |pid: Pid| pid != *main && process::process_group_of(pid) == group;
        let _ = self.containment.signal_those(&[signal], scans(SIGNAL_TIME), wanted, |_| {});
    }

    /// Sends SIGKILL. When the kill bound is over, the actor lists the processes that SIGKILL did not end.
    fn kill(&self) {
        match &self.containment {
            JobContainment::Leaf(leaf) => drop(leaf.kill()),
            // If the guard could not create a launcher for this job, the guard itself waits for the exec and can't
            // perform a sweep. So the supervisor kills the guard's descendants.
            JobContainment::Guard(link) if self.main.is_none() && !self.machine.guard_lost => {
                let _ = Descendants::of(link.pid).kill_all(|_| {});
            }
            // The sweep is the kill here: the guard performs it, or this process if the guard is lost.
            JobContainment::Guard(_) => {}
        }
        if let Some((_, pidfd)) = self.living_main() {
            // The main process may have left its leaf.
            let _ = pidfd.send(Signal::KILL);
        }
    }

    /// Starts to expect an answer from the guard.
    pub(super) fn expect_answer(&mut self) {
        self.expected.get_or_insert_with(|| self.link.expect_answer());
    }

    /// Notes in the report what pinfold could not do or find out.
    pub(super) fn note(&mut self, what: &str) {
        match &mut self.report.error {
            Some(error) => *error = format!("{error}; {what}"),
            none => *none = Some(what.to_owned()),
        }
    }

    async fn request_sweep(&mut self) {
        self.expect_answer();
        let bound = self.policy.kill_bound.as_millis();
        let given_up = self.report.unkillable.count > 0;
        let sweep = ToGuard::Sweep { job: self.id, bound_ms: u64::try_from(bound).unwrap_or(u64::MAX), given_up };
        if self.link.send(&sweep, &[]).await.is_err() {
            // If the message can't be sent, the guard is lost, and an event reports that. A guard that still runs ends
            // the processes when the connection closes.
            self.link.disconnect();
        }
    }
}
