//! The actor of one job. It waits for the events that the stop machine expects, passes them to the machine, and
//! performs the actions that the machine returns.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::clock::Clock;
use super::command::{Command, ProcessGroup};
use super::completion::Completer;
use super::main_exit::{MainExit, wait_for_exit};
use super::oom;
use super::private_tmp::PrivateTmp;
use super::record::{JobRecord, describe};
use super::report_builder::ReportBuilder;
use super::request::Request;
use super::settle::Remaining;
use super::spawn_request::SpawnRequest;
use super::stop::{Event, Machine, Main, Phase, StopPolicy, Timer};
use super::wait_until_empty::{open_watch, wait_until_empty};
use crate::cgroup::usage::Measured;
use crate::error::{Error, Result, SpawnStage};
use crate::guard::protocol::{FromGuard, JobId, Spent};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::signal::Signal;
use crate::kernel::wake::Wake;
use crate::report::{ContainmentKind, Report, Usage};
use crate::sandbox::denials::DenialListener;
use crate::supervisor::Inner;
use crate::supervisor::backend::NextContainment;
use crate::supervisor::containment::JobContainment;
use crate::supervisor::events::Log;
use crate::supervisor::link::{Answer, Link};
use crate::supervisor::memberships::Registered;
use crate::supervisor::queue::{Receiver, Sender, queue};
use crate::supervisor::watchdog::ExpectedAnswer;

pub(super) type Started = Result<(i32, Arc<Pidfd>)>;

/// Starts the job and sends the result to `spawned`. Then runs the job to its end and completes `finished` with the
/// report.
pub(super) async fn run(mut actor: Box<Actor>, spawned: oneshot::Sender<Started>, finished: Completer<Arc<Report>>) {
    let (link, id) = (actor.link.clone(), actor.id);
    // Futures that are rarely needed are on the heap, and only while they are needed, because there may be thousands of
    // actors.
    match Box::pin(actor.start()).await {
        Err(error) => {
            Box::pin(actor.remove_leaf()).await;
            Box::pin(actor.remove_private_tmp()).await;
            Box::pin(actor.dismiss_guard()).await;
            let error = if actor.report.unkillable.count > 0 { actor.hanging_start(error) } else { error };
            // The caller may have stopped waiting.
            let _ = spawned.send(Err(error));
        }
        Ok(started) => {
            // If the caller no longer waits, the inbox is closed too, which kills the job.
            let _ = spawned.send(Ok(started));
            actor.live().await;
            finished.complete(Box::pin(actor.finish()).await);
        }
    }
    link.forget(id);
}

pub(super) struct Actor {
    /// Keeps the supervisor alive as long as the job lives.
    _supervisor: Arc<Inner>,
    pub(super) id: JobId,
    pub(super) link: Arc<Link>,
    pub(super) containment: JobContainment,
    pub(super) answers: Receiver<Answer>,
    /// The answer that the actor expects from the guard.
    pub(super) expected: Option<ExpectedAnswer>,
    pub(super) spawn_request: SpawnRequest,
    pub(super) private_tmp: Option<Box<PrivateTmp>>,
    // The settings of the command that a running job needs. The actor does not keep the whole command: its arguments
    // and environment take memory.
    pub(super) policy: StopPolicy,
    pub(super) process_group: ProcessGroup,
    pub(super) measure_pressure: bool,
    pub(super) oom_group: bool,
    pub(super) record: JobRecord,
    /// Makes the sandbox available to `pinfold exec`.
    pub(super) membership: Option<Registered>,

    inbox: Receiver<Request>,
    /// Sends each signal that stops the main process (such as SIGTSTP) to the `Job`.
    stops: Sender<Signal>,
    pub(super) events: Log,

    pub(super) machine: Machine,
    pub(super) begun: Instant,
    pub(super) clock: Clock,
    /// Sends SIGCONT to this process at the deadline, because the job may have stopped it.
    pub(super) wake: Wake,
    /// The processes that remained when the short part of the settle time was over, if some of them were finishing.
    pub(super) remaining: Remaining,
    /// The processes that have received a signal of this stop.
    pub(super) signalled: HashSet<Pid>,
    /// The watch on the leaf. It is opened when the machine begins to wait for the leaf to become empty.
    pub(super) watch: Option<AsyncFd<Arc<OwnedFd>>>,
    /// Without a leaf: the CPU time of all processes that were reaped.
    pub(super) spent: Spent,

    pub(super) main: Option<(Pid, Arc<Pidfd>)>,
    pub(super) main_exit: Option<MainExit>,
    /// Why the command was not executed.
    pub(super) failure: Option<Error>,
    /// A start that hangs before its exec: its process, and the step at which it hangs.
    pub(super) hanging: Option<(i32, SpawnStage)>,
    /// The usage of the job, if it is final already.
    pub(super) usage: Option<Box<Usage>>,
    pub(super) seen: Measured,
    pub(super) memory: Arc<oom::Watch>,
    /// Explains what the sandbox refuses.
    pub(super) denial_listener: Option<DenialListener>,
    pub(super) report: ReportBuilder,
}

impl Actor {
    /// Creates the actor of a job, and the ends of its queues that the [`Job`](super::Job) has. From here on the actor
    /// is responsible for the containment, and unregisters the job at the end.
    pub fn new(
        supervisor: Arc<Inner>,
        command: &Command,
        next: NextContainment,
        mut spawn_request: SpawnRequest,
        events: Log,
    ) -> Result<(Box<Self>, Sender<Request>, Receiver<Signal>)> {
        let NextContainment { link, containment, refused } = next;
        let denial_listener = spawn_request.explain(&link, containment.leaf().is_some())?;
        let answers = link.listen(events.job())?;
        let (requests, inbox) = queue();
        let (stop_sender, stops) = queue();
        let begun = events.begun();
        // A time that the clock cannot represent means no deadline.
        let deadline = command.timeout.and_then(|timeout| begun.checked_add(timeout));
        let mut clock = Clock::default();
        clock.set(Timer::Deadline, deadline);
        let leaf = containment.leaf().map(|leaf| leaf.cgroup().path().display().to_string());
        // Kernels before 6.4 do not apply the CPU mask of a cpuset to a process that is cloned into it (fixed by
        // "cgroup/cpuset: Make cpuset_fork() handle CLONE_INTO_CGROUP properly"). They do apply it to a process that
        // joins it.
        let join = command.limits.cpuset.is_some();
        let machine = Machine::new(&command.stop, leaf.is_some(), join, deadline.is_some());
        let mut report = ReportBuilder::of(command);
        report.containment.kind =
            Some(if leaf.is_some() { ContainmentKind::Cgroup } else { ContainmentKind::Subreaper });
        report.containment.cgroup = leaf;
        report.containment.refused = refused;
        report.sandbox = spawn_request.sandbox.take();
        let private_tmp = spawn_request.private_tmp.take();
        let membership = containment.leaf().zip(spawn_request.member.take()).and_then(|(leaf, member)| {
            let id = rustix::fs::fstat(leaf.cgroup()).ok()?.st_ino;
            Some(supervisor.memberships.add(leaf.base_name(), id, member, &supervisor.runtime.handle))
        });
        let record = JobRecord::new(describe(&supervisor, command, &report.command, &link));
        let actor = Self {
            _supervisor: supervisor,
            id: events.job(),
            link,
            containment,
            answers,
            expected: None,
            spawn_request,
            private_tmp,
            policy: command.stop,
            process_group: command.effective_process_group(),
            measure_pressure: command.measure_pressure,
            oom_group: command.limits.oom_group,
            record,
            membership,
            inbox,
            stops: stop_sender,
            events,
            machine,
            begun,
            clock,
            wake: Wake::at(deadline),
            remaining: Remaining::default(),
            signalled: HashSet::new(),
            watch: None,
            spent: Spent::default(),
            main: None,
            main_exit: None,
            failure: None,
            hanging: None,
            usage: None,
            seen: Measured::default(),
            memory: Arc::default(),
            denial_listener,
            report,
        };
        Ok((Box::new(actor), requests, stops))
    }

    pub(super) fn elapsed(&self) -> Option<f64> {
        Some(self.begun.elapsed().as_secs_f64())
    }

    /// Runs the machine until the job is gone.
    async fn live(&mut self) {
        // Let the task that waits for the spawn run first.
        tokio::task::yield_now().await;
        if self.answers.is_empty() {
            self.main_exit = self.main.as_ref().and_then(|(_, pidfd)| MainExit::of(pidfd));
            if let Some(leaf) = self.containment.leaf() {
                leaf.prepare_next();
            }
        }
        while self.machine.phase != Phase::Gone {
            self.step().await;
            self.report.publish(&self.events, self.machine.reason);
        }
    }

    pub(super) async fn step(&mut self) {
        let event = self.next_event().await;
        Box::pin(self.handle(event)).await;
    }

    pub(super) async fn handle(&mut self, event: Event) {
        let mut event = Some(event);
        while let Some(happened) = event.take() {
            for action in self.machine.on(happened) {
                event = self.perform(action).await.or(event);
            }
        }
    }

    /// Waits for the next event, among those that can still happen.
    async fn next_event(&mut self) -> Event {
        let awaits_empty_leaf = self.machine.awaits_empty_leaf();
        if awaits_empty_leaf && self.watch.is_none() {
            self.watch = self.containment.leaf().and_then(open_watch);
        }
        loop {
            tokio::select! {
                biased;
                answer = self.answers.recv(), if !self.machine.guard_lost => match answer {
                    Some((message, pidfd)) => {
                        if !matches!(message, FromGuard::Stopped { .. }) {
                            self.expected = None;
                        }
                        if let Some(event) = self.receive(message, pidfd) {
                            return event;
                        }
                    }
                    None => {
                        self.expected = None;
                        return Event::GuardLost;
                    }
                },
                request = self.inbox.recv(), if !self.machine.owner_gone => match request {
                    Some(request) => if let Some(event) = self.perform_request(request) {
                        return event;
                    },
                    None => return Event::OwnerGone,
                },
                () = wait_for_exit(self.main_exit.as_ref()), if self.main_exit.is_some() => {
                    self.main_exit = None;
                    return Event::MainEnded;
                }
                () = wait_until_empty(self.containment.leaf(), self.watch.as_ref(), self.machine.guard_lost),
                    if awaits_empty_leaf => return Event::Emptied,
                timer = self.clock.expired() => return Event::Expired(timer),
            }
        }
    }

    /// Records what the guard reports, and returns it as an event for the machine.
    fn receive(&mut self, message: FromGuard, pidfd: Option<OwnedFd>) -> Option<Event> {
        match message {
            FromGuard::Spawned { pid, joined, .. } => {
                let Some(pidfd) = pidfd else {
                    // Every guard sends a pidfd. If a message has none, pinfold treats the guard as lost, and the end
                    // of the guard ends the process.
                    self.link.disconnect();
                    return None;
                };
                self.spawned(pid, joined, Pidfd::from(pidfd));
                Some(Event::Spawned { signalled: self.report.stopped.count > 0 })
            }
            FromGuard::NotStarted { .. } => {
                self.failed(SpawnStage::Clone, Errno::INTR);
                Some(Event::NotStarted)
            }
            FromGuard::SpawnFailed { stage, errno, .. } => {
                self.failed(stage, Errno::from_raw_os_error(errno));
                Some(Event::StartFailed)
            }
            FromGuard::Hangs { pid, stage, .. } => {
                self.hanging = Some((pid, stage));
                Some(Event::Hangs)
            }
            FromGuard::Stopped { signal, .. } => {
                // Sending fails if the `Job` was dropped: no caller waits for stops any more.
                let _ = Signal::from_number(signal).map(|signal| self.stops.send(signal));
                None
            }
            FromGuard::Exited { end, childless, max_rss_kib, spent, .. } => {
                self.main_exit = None;
                self.spent = spent;
                self.seen.main_resident_peak = Some(max_rss_kib * 1024);
                self.report.phases.main_exited = self.elapsed();
                self.report.main = Some(end);
                let empty = self.containment.leaf().map_or(childless, |leaf| leaf.populated() == Ok(false));
                Some(Event::MainExited { empty, childless })
            }
            FromGuard::Childless { spent, .. } => {
                self.spent = spent;
                Some(Event::Emptied)
            }
            FromGuard::Swept { emigrants, emigrant_count, survivors, survivor_count, unseen, .. } => {
                self.report.emigrants.add_counted(emigrants, emigrant_count);
                self.report.unkillable.add_counted(survivors, survivor_count);
                self.name_unkillable();
                if unseen != 0 {
                    let why = match Errno::from_raw_os_error(unseen) {
                        Errno::SRCH => {
                            "it shows another PID namespace (unshare --mount-proc mounts a /proc for this one)".into()
                        }
                        errno => errno.to_string(),
                    };
                    self.note(&format!("pinfold could not search /proc for processes that left the cgroup: {why}"));
                }
                Some(Event::Swept { survivors: survivor_count > 0 })
            }
            FromGuard::Ready { .. } | FromGuard::Moved { .. } => None,
        }
    }

    /// Performs a request of a caller, or returns it as an event for the machine.
    fn perform_request(&mut self, request: Request) -> Option<Event> {
        match request {
            Request::Stop(first) => {
                return Some(Event::StopAsked { first: first.filter(|&signal| signal != self.policy.signal) });
            }
            Request::Kill => return Some(Event::KillAsked),
            Request::End(event) => return Some(event),
            Request::SignalAll(signal) => self.signal_all(signal),
            Request::SignalGroup(signal, sent) => {
                self.signal_group(signal);
                // The caller may have stopped waiting.
                let _ = sent.send(());
            }
            Request::Processes(answer) => drop(answer.send(self.list_processes())),
            Request::Usage(answer) => drop(answer.send(self.usage(true))),
            Request::Freeze(answer) => self.freeze_and_answer(answer),
            Request::Thaw => self.thaw(),
            Request::Postpone(by) => {
                if let Some(deadline) = self.clock.postpone(Timer::Deadline, by) {
                    self.wake = Wake::at(Some(deadline));
                }
            }
        }
        None
    }

    /// Returns the main process while it can receive signals.
    pub(super) fn living_main(&self) -> Option<&(Pid, Arc<Pidfd>)> {
        self.main.as_ref().filter(|_| self.machine.main != Main::Exited)
    }
}
