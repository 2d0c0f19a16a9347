//! The actor of one job: it waits for events, feeds the stop machine, performs its actions, and tells the report.

use std::future::pending;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot, watch};

use super::Request;
use super::order::Order;
use crate::command::Command;
use crate::containment::leaf::Leaf;
use crate::error::{Error, Result, SpawnError};
use crate::guard::link::Answer;
use crate::guard::protocol::{End, FromGuard, JobId, ToGuard};
use crate::pidfd::Pidfd;
use crate::process::ProcessInfo;
use crate::report::{Born, MainEnd, NotRemoved, Report, Usage};
use crate::signal::Signal;
use crate::stop::{Action, Event, Machine, Phase, SignalTo};
use crate::supervisor::Inner;
use crate::sys;

/// How often a tree is gone through to tell everybody: one that is new each time is not polite either.
const PASSES: u32 = 8;

/// For the guard's answer, beyond the time that it has for its work.
const ANSWER: Duration = Duration::from_secs(1);

/// How often a leaf is looked at that can't be watched, because no descriptor is to be had.
const BLIND: Duration = Duration::from_millis(50);

/// How often a leaf is looked at that the guard may remove at the same time: the kernel spaces notifications by 10 ms, and
/// with the directory it drops the one that is due.
const REMOVED_UNSEEN: Duration = Duration::from_millis(10);

/// All that a job's actor starts with.
pub(super) struct Assignment {
    pub supervisor: Arc<Inner>,
    pub id: JobId,
    pub leaf: Leaf,
    pub answers: mpsc::UnboundedReceiver<Answer>,
    pub order: Order,
    pub command: Command,
    pub inbox: mpsc::UnboundedReceiver<Request>,
    pub stops: mpsc::UnboundedSender<Signal>,
}

type Started = Result<(i32, Arc<Pidfd>)>;

/// Starts the job, tells `spawned`, brings it to its end, tells `finished`.
pub(super) async fn run(
    assignment: Assignment,
    spawned: oneshot::Sender<Started>,
    finished: watch::Sender<Option<Arc<Report>>>,
) {
    let supervisor = assignment.supervisor.clone();
    let id = assignment.id;
    let mut actor = Actor::new(assignment);
    match actor.spawn().await {
        Err(error) => {
            actor.remove_leaf().await;
            // Where nobody waits any more, nobody is to be told.
            let _ = spawned.send(Err(error));
        }
        Ok(started) => {
            // If nobody waits, the inbox is closed too, which kills the job.
            let _ = spawned.send(Ok(started));
            actor.live().await;
            let report = actor.finish().await;
            finished.send_replace(Some(Arc::new(report)));
        }
    }
    supervisor.link.forget(id);
}

struct Actor {
    supervisor: Arc<Inner>,
    id: JobId,
    leaf: Leaf,
    answers: mpsc::UnboundedReceiver<Answer>,
    guard_lost: bool,
    order: Order,
    command: Command,
    inbox: mpsc::UnboundedReceiver<Request>,
    inbox_closed: bool,
    stops: mpsc::UnboundedSender<Signal>,

    machine: Machine,
    begun: Instant,
    deadline: Option<Instant>,
    grace_over: Option<Instant>,
    bound_over: Option<Instant>,
    /// Opened when it matters whether the leaf is empty.
    watch: Option<AsyncFd<OwnedFd>>,
    empty: bool,
    childless: bool,

    main: Option<(Pid, Arc<Pidfd>)>,
    main_resident_peak: Option<u64>,
    report: Report,
}

impl Actor {
    fn new(assignment: Assignment) -> Self {
        let Assignment { supervisor, id, leaf, answers, order, command, inbox, stops } = assignment;
        let begun = Instant::now();
        let report = Report::begin(&command, Some(leaf.cgroup().path()));
        Self {
            supervisor,
            id,
            leaf,
            answers,
            guard_lost: false,
            order,
            inbox,
            inbox_closed: false,
            stops,
            machine: Machine::new(command.stop.leftovers, command.stop.signal_to),
            begun,
            // Beyond what a clock can hold there is no deadline.
            deadline: command.timeout.and_then(|timeout| begun.checked_add(timeout)),
            command,
            grace_over: None,
            bound_over: None,
            watch: None,
            empty: false,
            childless: false,
            main: None,
            main_resident_peak: None,
            report,
        }
    }

    fn elapsed(&self) -> Option<f64> {
        Some(self.begun.elapsed().as_secs_f64())
    }

    /// Orders the spawn. A stop, a kill or the deadline meanwhile kills the leaf: an exec can take long.
    async fn spawn(&mut self) -> Started {
        let mut join = false;
        loop {
            self.order.give(&self.supervisor.link, self.id, leaf_fd(&self.leaf), self.leaf.tail(), join).await?;
            let answer = loop {
                match self.next_event().await {
                    Incoming::Answer(message, pidfd) => break (message, pidfd),
                    Incoming::Event(Event::GuardLost) => return Err(Error::GuardLost),
                    Incoming::Event(event) => self.handle(event).await,
                }
                if self.machine.phase == Phase::Gone {
                    return Err(self.spawn_error(crate::error::SpawnStage::Exec, Errno::TIMEDOUT));
                }
            };
            match answer {
                (FromGuard::Spawned { pid, joined, .. }, Some(pidfd)) => {
                    self.report.phases.spawned = self.elapsed();
                    self.report.containment.born = Some(if joined { Born::Joined } else { Born::Cloned });
                    self.report.pid = Some(pid);
                    let pidfd = Arc::new(Pidfd::from(pidfd));
                    self.main = Pid::from_raw(pid).map(|pid| (pid, pidfd.clone()));
                    // What was asked for meanwhile may have met an empty leaf.
                    match self.machine.phase {
                        Phase::Stopping if self.report.stopped.count == 0 => self.send_stop_signal(),
                        Phase::Killing => self.kill(),
                        _ => {}
                    }
                    return Ok((pid, pidfd));
                }
                // Killed before its first instruction, and not by us: the kernel's kill-sequence bug.
                (FromGuard::NotStarted { .. }, _) if self.machine.phase == Phase::Running && !join => join = true,
                _ if self.machine.phase != Phase::Running => {
                    return Err(Error::EndedEarly {
                        program: self.command.display_program(),
                        reason: self.machine.reason,
                    });
                }
                (FromGuard::SpawnFailed { stage, errno, .. }, _) => {
                    return Err(self.spawn_error(stage, Errno::from_raw_os_error(errno)));
                }
                _ => return Err(self.spawn_error(crate::error::SpawnStage::Clone, Errno::INTR)),
            }
        }
    }

    fn spawn_error(&self, stage: crate::error::SpawnStage, errno: Errno) -> Error {
        Error::Spawn(SpawnError {
            stage,
            errno,
            program: self.command.display_program(),
            cwd: self.command.display_cwd(),
        })
    }

    /// Runs the machine until the job is gone.
    async fn live(&mut self) {
        while self.machine.phase != Phase::Gone {
            match self.next_event().await {
                Incoming::Event(event) => self.handle(event).await,
                Incoming::Answer(message, _) => self.hear(message).await,
            }
        }
    }

    async fn hear(&mut self, message: FromGuard) {
        match message {
            FromGuard::Exited { end, childless, max_rss_kib, .. } => {
                self.main_resident_peak = Some(max_rss_kib * 1024);
                self.childless = childless;
                self.report.phases.main_exited = self.elapsed();
                self.report.main = Some(main_end(end));
                self.empty = !self.leaf.populated();
                self.handle(Event::MainExited { empty: self.empty }).await;
            }
            FromGuard::Stopped { signal, .. } => {
                // A job that nobody holds any more has nobody to tell.
                let _ = Signal::from_number(signal).map(|signal| self.stops.send(signal));
            }
            FromGuard::Swept { emigrants, emigrant_count, survivors, survivor_count, .. } => {
                self.report.emigrants.add_counted(emigrants, emigrant_count);
                self.report.unkillable.add_counted(survivors, survivor_count);
                self.handle(Event::Swept).await;
            }
            _ => {}
        }
    }

    /// Waits for what comes next, and for nothing that can't.
    async fn next_event(&mut self) -> Incoming {
        let watching = matches!(self.machine.phase, Phase::Stopping | Phase::Killing) || self.machine.main_exited;
        if watching && self.watch.is_none() && self.machine.phase != Phase::Draining {
            self.watch = self.open_watch();
        }
        loop {
            let timer = [
                (self.deadline, Event::Deadline),
                (self.grace_over, Event::GraceOver),
                (self.bound_over, Event::BoundOver),
            ]
            .into_iter()
            .filter_map(|(at, event)| Some((at?, event)))
            .min_by_key(|(at, _)| *at);
            tokio::select! {
                biased;
                answer = self.answers.recv(), if !self.guard_lost => match answer {
                    Some((message, pidfd)) => return Incoming::Answer(message, pidfd),
                    None => {
                        self.guard_lost = true;
                        return Incoming::Event(Event::GuardLost);
                    }
                },
                request = self.inbox.recv(), if !self.inbox_closed => match request {
                    Some(Request::Stop) => return Incoming::Event(Event::StopAsked),
                    Some(Request::Kill) => return Incoming::Event(Event::KillAsked),
                    Some(Request::SignalAll(signal)) => {
                        // Whatever has ended meanwhile, or belongs to another user, can't be told.
                        let _ = self.leaf.cgroup().signal_all(signal, PASSES, |_| {});
                    }
                    Some(Request::Postpone(by)) => self.deadline = self.deadline.and_then(|at| at.checked_add(by)),
                    None => {
                        self.inbox_closed = true;
                        return Incoming::Event(Event::KillAsked);
                    }
                },
                () = emptied(&self.leaf, self.watch.as_ref(), self.guard_lost), if watching && !self.empty && self.machine.main_exited => {
                    self.empty = true;
                    return Incoming::Event(Event::Emptied);
                }
                event = sleep_until(timer) => {
                    match event {
                        Event::Deadline => self.deadline = None,
                        Event::GraceOver => self.grace_over = None,
                        _ => self.bound_over = None,
                    }
                    return Incoming::Event(event);
                }
            }
        }
    }

    async fn handle(&mut self, event: Event) {
        let before = self.machine;
        let (after, actions) = before.on(event);
        self.machine = after;
        if event == Event::BoundOver {
            self.give_up(before.phase);
        }
        if before.phase == Phase::Running
            && after.main_exited
            && !self.empty
            && matches!(event, Event::MainExited { .. })
        {
            self.list_leftovers();
        }
        for action in actions {
            self.perform(*action).await;
        }
    }

    async fn perform(&mut self, action: Action) {
        match action {
            Action::Signal => {
                self.report.phases.stopping = self.elapsed();
                self.send_stop_signal();
            }
            Action::StartGrace => self.grace_over = Instant::now().checked_add(self.command.stop.grace),
            Action::Kill => {
                self.report.phases.killing = self.elapsed();
                self.report.killed = true;
                self.kill();
            }
            Action::StartBound => {
                self.grace_over = None;
                let mut bound = self.command.stop.kill_bound;
                if self.machine.phase == Phase::Draining {
                    // The guard has that time, and a moment to tell.
                    bound = bound.saturating_add(ANSWER);
                }
                self.bound_over = Instant::now().checked_add(bound);
            }
            Action::Sweep => {
                self.report.phases.empty = self.elapsed();
                self.sweep().await;
            }
        }
    }

    /// The stop signal, SIGCONT, thaw: a stopped or frozen process does not see SIGTERM.
    fn send_stop_signal(&mut self) {
        let signal = self.command.stop.signal;
        let main = self.main.clone().filter(|_| !self.machine.main_exited);
        let mut main_found = false;
        // Leftovers have no main process to be told.
        if self.command.stop.signal_to == SignalTo::All || main.is_none() {
            let stopped = &mut self.report.stopped;
            // Who was missed is killed when the grace period is over.
            let _ = self.leaf.cgroup().signal_all(signal, PASSES, |pid| {
                main_found |= main.as_ref().is_some_and(|(main, _)| *main == pid);
                stopped.add(|| ProcessInfo::read(pid));
            });
            let _ = self.leaf.cgroup().signal_all(Signal::CONT, PASSES, |_| {});
        }
        if let Some((pid, pidfd)) = main
            && !main_found
        {
            self.report.stopped.add(|| ProcessInfo::read(pid));
            // It may have ended: then its exit is on its way to us.
            let _ = pidfd.send(signal).and_then(|()| pidfd.send(Signal::CONT));
        }
        let _ = self.leaf.cgroup().thaw();
    }

    fn kill(&self) {
        // The bound tells what this did not end.
        let _ = self.leaf.kill();
        if let Some((_, pidfd)) = &self.main
            && !self.machine.main_exited
        {
            // A main process that left its leaf.
            let _ = pidfd.send(Signal::KILL);
        }
    }

    fn list_leftovers(&mut self) {
        for pid in self.leaf.cgroup().processes().unwrap_or_default() {
            self.report.leftovers.add(|| ProcessInfo::read(pid));
        }
    }

    /// SIGKILL has had its time: tells what is left.
    fn give_up(&mut self, phase: Phase) {
        if phase == Phase::Killing {
            let mut left = self.leaf.cgroup().processes().unwrap_or_default();
            if let Some((main, pidfd)) = &self.main
                && !self.machine.main_exited
                && !pidfd.has_ended()
                && !left.contains(main)
            {
                left.push(*main);
            }
            for pid in left {
                self.report.unkillable.add(|| ProcessInfo::read_unkillable(pid));
            }
        } else {
            let unknown = "the guard did not tell in time whether processes are left outside of the cgroup";
            self.report.error = Some(unknown.into());
        }
    }

    async fn sweep(&mut self) {
        if self.guard_lost || self.childless {
            self.machine = self.machine.on(Event::Swept).0;
            return;
        }
        let bound = self.command.stop.kill_bound.as_millis();
        let sweep = ToGuard::Sweep { job: self.id, bound_ms: u64::try_from(bound).unwrap_or(u64::MAX) };
        // A guard that can't be told is lost, which comes as an event.
        let _ = self.supervisor.link.send(&sweep, &[]).await;
    }

    /// A watch on the leaf, or none where no descriptor is to be had: then it is looked at from time to time.
    fn open_watch(&self) -> Option<AsyncFd<OwnedFd>> {
        sys::watched(self.leaf.events().try_clone_to_owned().ok()?, Interest::PRIORITY).ok()
    }

    async fn remove_leaf(&mut self) {
        let bound = Instant::now().checked_add(self.command.stop.kill_bound);
        loop {
            match self.leaf.remove() {
                Ok(()) => return,
                // Something came back into it, or (from 6.19 on) its last process is not yet off it.
                Err((_, Errno::BUSY))
                    if bound.is_some_and(|bound| Instant::now() < bound) && self.report.unkillable.count == 0 =>
                {
                    let _ = self.leaf.kill();
                    if self.watch.is_none() {
                        self.watch = self.open_watch();
                    }
                    tokio::select! {
                        () = emptied(&self.leaf, self.watch.as_ref(), self.guard_lost) => {}
                        () = sleep_until(bound.map(|bound| (bound, ()))) => {}
                    }
                    tokio::task::yield_now().await;
                }
                Err((path, errno)) => {
                    let error = errno.to_string();
                    self.report.not_removed.push(NotRemoved { path: path.display().to_string(), error });
                    return;
                }
            }
        }
    }

    async fn finish(mut self) -> Report {
        self.report.usage = Usage::read(self.leaf.cgroup(), self.leaf.controllers(), self.main_resident_peak);
        self.remove_leaf().await;
        self.report.phases.gone = self.elapsed();
        self.report.reason = self.machine.reason;
        self.report.exit_code = Report::exit_code_of(self.report.reason, self.report.main.as_ref());
        self.report
    }
}

enum Incoming {
    Event(Event),
    Answer(FromGuard, Option<OwnedFd>),
}

fn leaf_fd(leaf: &Leaf) -> std::os::fd::BorrowedFd<'_> {
    use std::os::fd::AsFd;
    leaf.cgroup().as_fd()
}

/// Waits until nothing runs in the leaf. Its file is read first: a notification can be 10 ms late (kernfs spaces
/// them), and what is true already is never told again. A guard that is lost removes the directory too, unless it was
/// killed.
async fn emptied(leaf: &Leaf, watch: Option<&AsyncFd<OwnedFd>>, guard_lost: bool) {
    while leaf.populated() {
        let Some(watch) = watch else {
            // No descriptor was to be had for a watch.
            tokio::time::sleep(BLIND).await;
            continue;
        };
        let ready = async {
            match watch.ready(Interest::PRIORITY).await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            () = ready => {}
            () = tokio::time::sleep(REMOVED_UNSEEN), if guard_lost => {}
        }
    }
}

async fn sleep_until<T>(timer: Option<(Instant, T)>) -> T {
    match timer {
        Some((at, value)) => {
            tokio::time::sleep_until(at.into()).await;
            value
        }
        None => pending().await,
    }
}

fn main_end(end: End) -> MainEnd {
    match end {
        End::Exited { code } => MainEnd::Exited(code),
        End::Signalled { signal, core_dumped } => MainEnd::Signalled {
            signal,
            name: Signal::from_number(signal).map_or_else(|| signal.to_string(), |signal| signal.to_string()),
            core_dumped,
        },
    }
}
