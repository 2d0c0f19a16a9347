//! The guard's event loop. One thread waits with one epoll instance for messages, for children that end, and for the
//! end of the supervisor.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::io::{Errno, Result};
use rustix::process::{PidfdFlags, getpid, getppid, pidfd_open};

use super::KILL_BOUND;
use super::clean_up::{PlannedBase, PlannedTmpBase};
use super::launch::{Launch, Stacks};
use super::protocol::{self, FromGuard, JobId, Spent, ToGuard};
use super::reap_schedule::ReapSchedule;
use super::spawn::Job;
use super::sweep;
use super::terminal::SavedTerminal;
use crate::cgroup::delegation::Undo;
use crate::cgroup::directory::Cgroup;
use crate::kernel::{poll, signal_set};

/// The longest single wait. A kill bound may be longer: then the guard waits again. A timeout that does not fit into an
/// `int` of milliseconds requires `epoll_pwait2`, which came with Linux 5.11.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

const SOCKET: u64 = 0;
const SUPERVISOR: u64 = 1;
pub(super) const CHILDREN: u64 = 2;
pub(super) const BASE: u64 = 3;

/// Serves the supervisor until it is gone, then ends the remaining processes and removes the cgroups.
///
/// `outer` is the pidfd of the outer guard, if there is one. The guard then also stops serving when the outer guard is
/// gone.
pub fn run(socket: OwnedFd, outer: Option<OwnedFd>) -> Result<()> {
    let mut guard = Guard::new(socket, outer)?;
    let served = guard.serve();
    guard.clean_up();
    // This process ends now. No destructor runs, because the kernel closes and unmaps everything at once, which is
    // faster than one call for each object.
    std::mem::forget(guard);
    served
}

pub(super) struct Guard {
    pub(super) socket: OwnedFd,
    pub(super) epoll: OwnedFd,
    pub(super) children: OwnedFd,
    pub(super) supervisor: Option<OwnedFd>,
    pub(super) outer: Option<OwnedFd>,
    pub(super) base: Option<PlannedBase>,
    /// The directory for the private tmps of the jobs.
    pub(super) tmp_base: Option<PlannedTmpBase>,
    /// The cgroup whose controllers the supervisor has enabled for the cgroups below, and how to undo that.
    pub(super) delegation: Option<(Cgroup, Undo)>,
    pub(super) terminal: Option<SavedTerminal>,
    /// Descriptors that arrived before the `Spawn` message that they belong to.
    pub(super) descriptors: HashMap<JobId, Vec<OwnedFd>>,
    pub(super) jobs: HashMap<JobId, Job>,
    pub(super) sweeps: Vec<sweep::Sweep>,
    pub(super) outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    pub(super) waiting_for_room: bool,
    /// The stacks for the next start; `None` while a running start uses them.
    pub(super) stacks: Option<Stacks>,
    /// Starts whose command has not been executed yet. The guard no longer waits for them, but does other work.
    pub(super) launches: Vec<Launch>,
    pub(super) buffer: Vec<u8>,
    /// Whether all processes join their leaf by themselves: set if the kernel refuses to clone into a cgroup, or if
    /// such a clone has shown the kill-sequence bug ([`FromGuard::NotStarted`]).
    pub(super) always_join: bool,
    /// The job whose process was killed most recently before its first instruction. The cause was this bug, or a kill
    /// of the leaf.
    pub(super) not_started: Option<JobId>,
    pub(super) reap_schedule: ReapSchedule,
    /// Whether the guard had no children at all at its last check.
    pub(super) childless: bool,
    /// Whether SIGKILL does not end the remaining processes. If so, the guard does not wait for them.
    pub(super) given_up: bool,
    /// CPU time of the children that have been reaped.
    pub(super) spent: Spent,
}

impl Guard {
    fn new(socket: OwnedFd, outer: Option<OwnedFd>) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let children = signal_set::signalfd(signal_set::bit(libc::SIGCHLD))?;
        epoll::add(&epoll, &socket, epoll::EventData::new_u64(SOCKET), epoll::EventFlags::IN)?;
        epoll::add(&epoll, &children, epoll::EventData::new_u64(CHILDREN), epoll::EventFlags::IN)?;
        if let Some(outer) = &outer {
            epoll::add(&epoll, outer, epoll::EventData::new_u64(SUPERVISOR), epoll::EventFlags::IN)?;
        }
        Ok(Self {
            outer,
            socket,
            epoll,
            children,
            supervisor: None,
            base: None,
            tmp_base: None,
            delegation: None,
            terminal: None,
            descriptors: HashMap::new(),
            jobs: HashMap::new(),
            sweeps: Vec::new(),
            outbox: VecDeque::new(),
            waiting_for_room: false,
            stacks: Some(Stacks::new()?),
            launches: Vec::new(),
            buffer: Vec::new(),
            always_join: false,
            not_started: None,
            reap_schedule: ReapSchedule::new(),
            childless: false,
            given_up: false,
            spent: Spent::default(),
        })
    }

    fn serve(&mut self) -> Result<()> {
        loop {
            let again = self.sweeps.iter().filter_map(|sweep| sweep.all.as_ref()?.next_step_at());
            let starts = self.launches.iter().filter_map(Launch::due);
            let bounds = self.sweeps.iter().map(|sweep| sweep.bound).chain(again).chain(starts);
            let bound = bounds.chain(self.reap_schedule.due()).min();
            for token in self.wait(bound)? {
                match token {
                    SOCKET => {
                        self.flush()?;
                        if !self.receive()? {
                            return Ok(());
                        }
                    }
                    CHILDREN => self.child_ended()?,
                    SUPERVISOR => return Ok(()),
                    _ => {}
                }
            }
            if self.reap_schedule.due().is_some_and(|due| due <= Instant::now()) {
                self.reap()?;
            }
            self.perform_due_steps()?;
            self.sweep()?;
        }
    }

    /// Waits for events, until `bound` at most.
    pub(super) fn wait(&self, bound: Option<Instant>) -> Result<Vec<u64>> {
        let timeout =
            bound.map(|bound| poll::timespec(bound.saturating_duration_since(Instant::now()).min(LONGEST_WAIT)));
        let mut events = Vec::with_capacity(8);
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(events.iter().map(|event| event.data.u64()).collect()),
            Err(errno) => Err(errno),
        }
    }

    /// Handles messages, up to and including one spawn. A spawn takes long, so the guard reports processes that have
    /// ended meanwhile before it handles the next one. Returns `false` when the supervisor is gone.
    fn receive(&mut self) -> Result<bool> {
        let mut spawned = false;
        while !spawned {
            match protocol::receive::<ToGuard>(&self.socket, &mut self.buffer) {
                Ok(Some((message, descriptors))) => {
                    spawned = matches!(message, ToGuard::Spawn { .. });
                    self.handle(message, descriptors)?;
                }
                Ok(None) => return Ok(false),
                Err(Errno::AGAIN) => return Ok(true),
                Err(errno) => return Err(errno),
            }
        }
        Ok(true)
    }

    pub(super) fn handle(&mut self, message: ToGuard, mut descriptors: Vec<OwnedFd>) -> Result<()> {
        match message {
            ToGuard::Hello { version, answer } => {
                if version == protocol::VERSION && descriptors.len() == 1 {
                    let supervisor = descriptors.remove(0);
                    epoll::add(&self.epoll, &supervisor, epoll::EventData::new_u64(SUPERVISOR), epoll::EventFlags::IN)?;
                    self.supervisor = Some(supervisor);
                }
                if !answer {
                    return Ok(());
                }
                let mut pidfds = vec![pidfd_open(getpid(), PidfdFlags::empty())?];
                if let Some(outer) = &self.outer {
                    pidfds.push(rustix::io::fcntl_dupfd_cloexec(outer, 0)?);
                }
                let pid = getpid().as_raw_nonzero().get();
                // As long as the outer guard lives, it is the guard's parent.
                let outer = self.outer.as_ref().and_then(|_| getppid()).map(|outer| outer.as_raw_nonzero().get());
                self.send(&FromGuard::Ready { version: protocol::VERSION, pid, outer }, pidfds)
            }
            ToGuard::Base { name } => {
                let parent = Cgroup::new(descriptors.pop().ok_or(Errno::BADF)?, "the base's parent".into());
                self.base = Some(PlannedBase { parent, name, _directory: None });
                Ok(())
            }
            ToGuard::Delegating { own, delegated } => {
                let parent = Cgroup::new(descriptors.pop().ok_or(Errno::BADF)?, "the base's parent".into());
                self.delegation = Some((parent, Undo { own, delegated }));
                Ok(())
            }
            ToGuard::Terminal { settings } => {
                self.terminal = descriptors.pop().map(|terminal| SavedTerminal::new(terminal, settings));
                Ok(())
            }
            ToGuard::Move => self.move_to(descriptors.pop().ok_or(Errno::BADF)?),
            ToGuard::BaseMade => {
                if let Some(base) = &mut self.base {
                    base._directory = descriptors.pop();
                }
                Ok(())
            }
            ToGuard::TmpBase { name } => {
                let parent = descriptors.pop().ok_or(Errno::BADF)?;
                self.tmp_base = Some(PlannedTmpBase { parent, name, _directory: None });
                Ok(())
            }
            ToGuard::TmpBaseMade => {
                if let Some(base) = &mut self.tmp_base {
                    base._directory = descriptors.pop();
                }
                Ok(())
            }
            ToGuard::Descriptors { job } => {
                self.descriptors.entry(job).or_default().append(&mut descriptors);
                Ok(())
            }
            ToGuard::Spawn { job, leaf, join, spec, oom_score } => {
                let mut all = self.descriptors.remove(&job).unwrap_or_default();
                all.append(&mut descriptors);
                self.handle_spawn(job, leaf, join, spec.map(serde_bytes::ByteBuf::into_vec), oom_score, all)
            }
            ToGuard::Reap => self.reap_on_demand(),
            ToGuard::Sweep { job, bound_ms, given_up } => {
                self.given_up |= given_up;
                self.report_hanging_start(job)?;
                let now = Instant::now();
                let bound = now.checked_add(Duration::from_millis(bound_ms)).unwrap_or(now + KILL_BOUND);
                let has_no_leaf = self.jobs.get(&job).is_some_and(|job| job.has_no_leaf);
                self.sweeps.push(sweep::Sweep::new(job, bound, has_no_leaf, given_up));
                self.reap_on_demand()
            }
        }
    }

    /// Performs the next step of each requested sweep.
    fn sweep(&mut self) -> Result<()> {
        for mut sweep in std::mem::take(&mut self.sweeps) {
            let base = self.base.as_ref().map(|base| base.name.as_str());
            let launchers: Vec<_> = self.launches.iter().filter_map(Launch::launcher).collect();
            match sweep.step(&self.jobs, base, self.childless, &launchers) {
                Some(sweep::Found { emigrants, emigrant_count, survivors, survivor_count, unseen }) => {
                    let job = sweep.job;
                    let unseen = unseen.map_or(0, Errno::raw_os_error);
                    self.jobs.remove(&job);
                    self.given_up |= survivor_count > 0;
                    let swept = FromGuard::Swept { job, emigrants, emigrant_count, survivors, survivor_count, unseen };
                    self.send(&swept, Vec::new())?;
                }
                None => self.sweeps.push(sweep),
            }
        }
        Ok(())
    }

    pub(super) fn send(&mut self, message: &FromGuard, descriptors: Vec<OwnedFd>) -> Result<()> {
        self.outbox.push_back((protocol::encode(message)?, descriptors));
        self.flush()
    }

    /// Sends as many messages as the socket accepts now. The others follow when the socket has room.
    fn flush(&mut self) -> Result<()> {
        let waiting = loop {
            let Some((bytes, descriptors)) = self.outbox.front() else { break false };
            let descriptors: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            match protocol::send(&self.socket, bytes, &descriptors) {
                Ok(()) => drop(self.outbox.pop_front()),
                Err(Errno::AGAIN) => break true,
                // The supervisor is gone. The guard notices this when it reads the end of the socket.
                Err(Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN) => drop(self.outbox.pop_front()),
                Err(errno) => return Err(errno),
            }
        };
        if waiting == self.waiting_for_room {
            return Ok(());
        }
        self.waiting_for_room = waiting;
        let mut interest = epoll::EventFlags::IN;
        interest.set(epoll::EventFlags::OUT, waiting);
        epoll::modify(&self.epoll, &self.socket, epoll::EventData::new_u64(SOCKET), interest)
    }
}
