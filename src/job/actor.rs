//! The actor of one job. It waits for events, feeds them to the stop machine, performs the actions of the machine, and
//! delivers the report.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use super::Request;
use super::config::JobConfig;
use super::main_exit::{MainExit, seen};
use super::report_builder::ReportBuilder;
use super::spawn_request::SpawnRequest;
use super::wait_until_empty::{sleep_until, wait_until_empty};
use crate::cgroup::usage::Seen;
use crate::error::{Result, SpawnStage};
use crate::guard::protocol::{FromGuard, JobId, Spent};
use crate::job::completion::Completer;
use crate::job::oom;
use crate::job::settle::Left;
use crate::job::stop::{Event, Machine, Phase};
use crate::kernel::pidfd::Pidfd;
use crate::kernel::scan::ScanLimits;
use crate::kernel::signal::Signal;
use crate::kernel::wake::Wake;
use crate::report::Refusal;
use crate::report::{ContainmentKind, Report, Usage};
use crate::supervisor::Inner;
use crate::supervisor::containment::JobContainment;
use crate::supervisor::events::Log;
use crate::supervisor::link::{Answer, Link};
use crate::supervisor::queue::{Receiver, Sender};
use crate::supervisor::watchdog::ExpectedAnswer;

/// Limits the scans that send a signal to every process of a job: at most 64 scans, within `time`. One scan is not
/// always enough: in a chain in which each process ends when it receives the signal, each scan may find only the next
/// process. More than 64 are of no use: a tree that has new processes in every scan does not end politely. The actor
/// handles no other event during the scans.
pub(super) fn scans(time: Duration) -> ScanLimits {
    ScanLimits::new(64, time)
}

/// How long the scans may take that send a signal other than the stop signal.
pub(super) const SIGNAL_TIME: Duration = Duration::from_secs(2);

/// Everything that the actor of a job starts with.
pub(super) struct Assignment {
    pub supervisor: Arc<Inner>,
    pub id: JobId,
    pub link: Arc<Link>,
    pub containment: JobContainment,
    pub answers: Receiver<Answer>,
    pub spawn_request: SpawnRequest,
    pub config: JobConfig,
    pub timeout: Option<Duration>,
    /// The report as it is at the start of the job.
    pub report: ReportBuilder,
    pub inbox: Receiver<Request>,
    pub stops: Sender<Signal>,
    /// Why pinfold could not use a stronger containment.
    pub refused: Vec<Refusal>,
    pub events: Log,
    pub memory: Arc<oom::Watch>,
}

pub(super) type Started = Result<(i32, Arc<Pidfd>)>;

/// Starts the job and sends the result to `spawned`. Then runs the job to its end and completes `finished` with the
/// report.
pub(super) async fn run(
    assignment: Box<Assignment>,
    spawned: oneshot::Sender<Started>,
    finished: Completer<Arc<Report>>,
) {
    let link = assignment.link.clone();
    let id = assignment.id;
    // The actor stays in one place from here on. It is small, because there may be thousands of them. Futures that are
    // rarely waited for are on the heap, only while they are needed.
    let mut actor = Box::new(Actor::new(*assignment));
    match Box::pin(actor.spawn()).await {
        Err(error) => {
            Box::pin(actor.remove_leaf()).await;
            Box::pin(actor.dismiss_guard()).await;
            let error = if actor.report.unkillable.count > 0 { actor.hangs(error) } else { error };
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
    pub(super) guard_lost: bool,
    pub(super) spawn_request: SpawnRequest,
    pub(super) config: JobConfig,
    pub(super) inbox: Receiver<Request>,
    pub(super) inbox_closed: bool,
    pub(super) stops: Sender<Signal>,
    pub(super) events: Log,

    pub(super) machine: Machine,
    pub(super) begun: Instant,
    pub(super) deadline: Option<Instant>,
    /// Sends SIGCONT to this process at the deadline, because the job may have stopped it.
    pub(super) wake: Wake,
    pub(super) short_settle_over: Option<Instant>,
    pub(super) settle_over: Option<Instant>,
    /// The processes that remained when the short part of the settle time was over, if some of them were finishing.
    pub(super) left: Left,
    /// The processes that have received a signal of this stop.
    pub(super) signalled: HashSet<Pid>,
    pub(super) grace_over: Option<Instant>,
    pub(super) bound_over: Option<Instant>,
    /// Opened as soon as the actor needs to know whether the leaf is empty.
    pub(super) watch: Option<AsyncFd<Arc<OwnedFd>>>,
    pub(super) empty: bool,
    /// Without a leaf: the guard has ended every process that it could end.
    pub(super) swept: bool,
    pub(super) childless: bool,
    /// The actor has asked the guard to reap the main process.
    pub(super) reap_requested: bool,
    /// The answer that the actor expects from the guard.
    pub(super) expected: Option<ExpectedAnswer>,
    /// Without a leaf: the CPU time of all processes that were reaped.
    pub(super) spent: Spent,

    pub(super) main: Option<(Pid, Arc<Pidfd>)>,
    /// A start that hangs before its exec: its process, and the step at which it hangs.
    pub(super) hanging: Option<(i32, SpawnStage)>,
    pub(super) main_exit: Option<MainExit>,
    /// The usage of the job, if it is final already.
    pub(super) usage: Option<Box<Usage>>,
    pub(super) seen: Seen,
    pub(super) memory: Arc<oom::Watch>,
    pub(super) report: ReportBuilder,
}

impl Actor {
    fn new(assignment: Assignment) -> Self {
        let Assignment {
            supervisor,
            id,
            link,
            containment,
            answers,
            spawn_request,
            config,
            timeout,
            mut report,
            inbox,
            stops,
            refused,
            memory,
            events,
        } = assignment;
        let begun = events.begun();
        // A time that the clock cannot represent means no deadline.
        let deadline = timeout.and_then(|timeout| begun.checked_add(timeout));
        let leaf = containment.leaf().map(|leaf| leaf.cgroup().path().display().to_string());
        report.containment.kind =
            Some(if leaf.is_some() { ContainmentKind::Cgroup } else { ContainmentKind::Subreaper });
        report.containment.cgroup = leaf;
        report.containment.refused = refused;
        Self {
            _supervisor: supervisor,
            id,
            link,
            containment,
            answers,
            guard_lost: false,
            spawn_request,
            inbox,
            inbox_closed: false,
            stops,
            events,
            machine: Machine::new(config.stop.leftovers, config.stop.signal_to),
            begun,
            deadline,
            wake: Wake::at(deadline),
            config,
            short_settle_over: None,
            settle_over: None,
            left: Left::default(),
            signalled: HashSet::new(),
            grace_over: None,
            bound_over: None,
            watch: None,
            empty: false,
            swept: false,
            childless: false,
            reap_requested: false,
            expected: None,
            spent: Spent::default(),
            main: None,
            hanging: None,
            main_exit: None,
            usage: None,
            seen: Seen::default(),
            memory,
            report,
        }
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
                leaf.make_next();
            }
        }
        while self.machine.phase != Phase::Gone {
            match self.next_event().await {
                Incoming::Event(event) => Box::pin(self.handle(event)).await,
                Incoming::Answer(message, _) => Box::pin(self.handle_message(message)).await,
            }
            self.report.publish(&self.events, self.machine.reason);
        }
    }

    pub(super) async fn handle_message(&mut self, message: FromGuard) {
        match message {
            FromGuard::Exited { end, childless, max_rss_kib, spent, .. } => {
                self.main_exit = None;
                self.spent = spent;
                self.seen.main_resident_peak = Some(max_rss_kib * 1024);
                self.childless = childless;
                self.report.phases.main_exited = self.elapsed();
                self.report.main = Some(end);
                self.empty = self.containment.leaf().map_or(childless, |leaf| leaf.populated() == Ok(false));
                if self.containment.leaf().is_none() && !childless {
                    // Only the guard knows when the last process of the job has ended.
                    self.expect_answer();
                }
                self.handle(Event::MainExited { empty: self.empty }).await;
            }
            FromGuard::Stopped { signal, .. } => {
                // Sending fails if the `Job` was dropped; then no caller waits for stops.
                let _ = Signal::from_number(signal).map(|signal| self.stops.send(signal));
            }
            FromGuard::Childless { spent, .. } => {
                self.spent = spent;
                self.childless = true;
                self.handle(Event::Emptied).await;
            }
            FromGuard::Swept { emigrants, emigrant_count, survivors, survivor_count, unseen, .. } => {
                self.report.emigrants.add_counted(emigrants, emigrant_count);
                self.report.unkillable.add_counted(survivors, survivor_count);
                self.name_unkillable();
                if unseen != 0 {
                    let why = match Errno::from_raw_os_error(unseen) {
                        Errno::SRCH => {
                            "it shows another PID namespace (unshare --mount-proc mounts one of this)".into()
                        }
                        errno => errno.to_string(),
                    };
                    self.note(&format!("processes that left the cgroup could not be looked for in /proc: {why}"));
                }
                if self.machine.phase == Phase::Killing {
                    // Without a leaf the sweep was the kill, and the guard has done everything that it could.
                    self.swept = true;
                } else {
                    self.handle(Event::Swept).await;
                }
            }
            _ => {}
        }
    }

    /// Waits for the next event or answer. Waits only for what can still happen.
    pub(super) async fn next_event(&mut self) -> Incoming {
        let watching = matches!(self.machine.phase, Phase::Stopping | Phase::Killing) || self.machine.main_exited;
        if watching && self.watch.is_none() && self.machine.phase != Phase::Draining {
            self.watch = self.open_watch();
        }
        if self.swept && self.machine.phase == Phase::Killing {
            if self.machine.main_exited {
                return Incoming::Event(Event::Emptied);
            }
            if self.main.is_none() && self.report.unkillable.count > 0 {
                // No signal ends it: it hangs in its start.
                return Incoming::Event(Event::BoundOver);
            }
        }
        loop {
            let timer = [
                (self.deadline, Event::Deadline),
                (self.short_settle_over, Event::ShortSettleOver { finishing: false }),
                (self.settle_over, Event::SettleOver),
                (self.grace_over, Event::GraceOver),
                (self.bound_over, Event::BoundOver),
            ]
            .into_iter()
            .filter_map(|(at, event)| Some((at?, event)))
            .min_by_key(|(at, _)| *at);
            tokio::select! {
                biased;
                answer = self.answers.recv(), if !self.guard_lost => match answer {
                    Some((message, pidfd)) => {
                        if !matches!(message, FromGuard::Stopped { .. }) {
                            self.expected = None;
                        }
                        return Incoming::Answer(message, pidfd);
                    }
                    None => {
                        self.expected = None;
                        self.guard_lost = true;
                        return Incoming::Event(Event::GuardLost);
                    }
                },
                request = self.inbox.recv(), if !self.inbox_closed => match request {
                    Some(Request::Stop(first)) => {
                        self.machine.begin_with(first.filter(|signal| *signal != self.config.stop.signal));
                        return Incoming::Event(Event::StopAsked);
                    }
                    Some(Request::Kill) => return Incoming::Event(Event::KillAsked),
                    Some(Request::SignalAll(signal)) => {
                        // Processes that have ended meanwhile, or that belong to another user, can't receive it.
                        let _ = self.containment.with_reserve(|containment| containment.signal_all(&[signal], scans(SIGNAL_TIME), |_| {}));
                    }
                    Some(Request::SignalGroup(signal, sent)) => {
                        self.signal_group(signal);
                        // The caller may have stopped waiting.
                        let _ = sent.send(());
                    }
                    Some(Request::End(event)) => return Incoming::Event(event),
                    Some(Request::Processes(answer)) => {
                        let _ = answer.send(self.list_processes());
                    }
                    Some(Request::Live(request)) => self.perform_live(request),
                    Some(Request::Postpone(by)) => {
                        self.deadline = self.deadline.and_then(|at| at.checked_add(by));
                        if self.deadline.is_some() {
                            self.wake = Wake::at(self.deadline);
                        }
                    }
                    None => {
                        self.inbox_closed = true;
                        return Incoming::Event(Event::KillAsked);
                    }
                },
                () = seen(self.main_exit.as_ref()), if self.main_exit.is_some() => self.look_ahead().await,
                () = wait_until_empty(self.containment.leaf(), self.watch.as_ref(), self.guard_lost), if watching && !self.empty && (self.machine.main_exited || !self.reap_requested) => {
                    if self.machine.main_exited {
                        self.empty = true;
                        return Incoming::Event(Event::Emptied);
                    }
                    self.request_reap().await;
                }
                event = sleep_until(timer) => {
                    match event {
                        Event::Deadline => self.deadline = None,
                        Event::ShortSettleOver { .. } => {
                            self.short_settle_over = None;
                            return Incoming::Event(Event::ShortSettleOver { finishing: self.look_at_left() });
                        }
                        Event::SettleOver => self.settle_over = None,
                        Event::GraceOver => self.grace_over = None,
                        _ => self.bound_over = None,
                    }
                    return Incoming::Event(event);
                }
            }
        }
    }

    pub(super) async fn handle(&mut self, event: Event) {
        let before = self.machine;
        let (after, actions) = before.on(event);
        self.machine = after;
        if event == Event::BoundOver {
            self.give_up(before.phase);
        }
        if after.phase != Phase::Settling && after.phase != before.phase {
            (self.short_settle_over, self.settle_over) = (None, None);
        }
        if !self.empty {
            match (before.phase, after.phase) {
                (Phase::Running, Phase::Running) if matches!(event, Event::MainExited { .. }) => self.list_leftovers(),
                (Phase::Settling, Phase::Stopping | Phase::Killing) => self.list_leftovers(),
                _ => {}
            }
        }
        for action in actions {
            self.perform(*action).await;
        }
    }
}

pub(super) enum Incoming {
    Event(Event),
    Answer(FromGuard, Option<OwnedFd>),
}
