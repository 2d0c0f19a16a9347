//! The start of one main process, which the guard does not wait for longer than [`PATIENCE`].
//!
//! The maker of a main process is suspended until that executes (CLONE_VFORK): no page tables are copied, and the OOM killer
//! leaves such a child alone, whose end would take the guard along (`oom_badness` in mm/oom_kill.c). A child that does not come
//! to its exec would suspend its maker for as long, in state D even after SIGKILL. So the maker is not the guard but a *launcher*:
//! a process that lives for this one call, with the guard's memory and descriptors. With CLONE_PARENT the main process is a child
//! of the guard all the same.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, AtomicIsize, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, getpid, kill_process};

use super::child::{EXEC_BOUND, Outcome, Plan};
use super::clone::{Place, Stack, clone_beside, clone_main};
use super::protocol::JobId;
use super::spawn::{Failure, Ordered, reap};
use crate::error::SpawnStage;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::raw::{call, checked};
use crate::kernel::reap::Reaped;
use crate::kernel::sys;

/// How long the guard waits for an exec before it goes on with its other work.
const PATIENCE: Duration = Duration::from_millis(20);

/// The steps for a start that is not over, and when they are due. A launcher that a process of its user has stopped would not see the exec.
const STEPS: [(Duration, Step); 4] = [
    (Duration::from_secs(1), Step::Continue),
    // After the main process's own timer.
    (EXEC_BOUND.saturating_add(Duration::from_millis(200)), Step::Continue),
    (EXEC_BOUND.saturating_add(Duration::from_millis(400)), Step::Kill),
    (EXEC_BOUND.saturating_add(Duration::from_millis(900)), Step::Inform),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Continue the launcher.
    Continue,
    /// Kill the main process.
    Kill,
    /// Inform the supervisor that SIGKILL did not end it.
    Inform,
}

/// The launcher has not written a result.
const NONE: isize = isize::MIN;

/// What guard, launcher and main process share, in one place until both have ended or the latter has executed.
struct Shared {
    /// 1 while the launcher runs.
    running: AtomicU32,
    guard: usize,
    place: Place,
    pidfd: AtomicI32,
    result: AtomicIsize,
    outcome: Outcome,
    plan: UnsafeCell<Plan>,
    stacks: Stacks,
    /// All that the plan points into.
    ordered: Ordered,
}

impl Shared {
    /// The pidfd that the kernel has made (CLONE_PIDFD). It writes the number before the last checks of the clone: a clone that is
    /// refused leaves one that is not open.
    fn pidfd(&self) -> Option<i32> {
        let made = self.outcome.pid.load(Ordering::Acquire) != 0 || self.result.load(Ordering::Acquire) > 0;
        Some(self.pidfd.load(Ordering::Acquire)).filter(|&pidfd| made && pidfd >= 0)
    }
}

/// Those of the launcher and of the main process.
pub(super) struct Stacks(Stack, Stack);

impl Stacks {
    pub fn new() -> rustix::io::Result<Self> {
        Ok(Self(Stack::new()?, Stack::new()?))
    }
}

/// A start that is under way. It must not be dropped before it is over: both processes run with its memory.
pub(super) struct Launch {
    pub job: JobId,
    shared: Rc<Shared>,
    /// None where the guard itself had to be the maker, or when it has ended.
    launcher: Option<i32>,
    /// The main process, when it was reaped before the launcher.
    pub ended: Option<Reaped>,
    begun: Instant,
    /// How many of [`STEPS`] have been done.
    steps: usize,
}

/// What came of a start.
pub(super) enum Launched {
    Executed {
        pid: i32,
        pidfd: OwnedFd,
    },
    /// It was killed before its first instruction.
    NotStarted,
    /// The call is refused for what it is, and not for where it goes.
    Refused,
    /// There was room for the launcher and for no other process (`ulimit -u`, pids.max).
    NoRoomBesideLauncher,
    Failed(Failure),
}

impl Launch {
    /// Starts it. With a launcher, unless there is no room for one more process, or `without_launcher`.
    pub fn new(job: JobId, mut ordered: Ordered, stacks: Stacks, without_launcher: bool) -> Result<Self, Failure> {
        let place = Place { leaf: ordered.leaf(), join: ordered.join, of_parent: true };
        let mut shared = Rc::new(Shared {
            running: AtomicU32::new(1),
            guard: getpid().as_raw_nonzero().get() as usize,
            place,
            pidfd: AtomicI32::new(-1),
            result: AtomicIsize::new(NONE),
            outcome: Outcome::default(),
            plan: UnsafeCell::new(ordered.plan()?),
            stacks,
            ordered,
        });
        let begun = Instant::now();
        let outcome = &raw const shared.outcome;
        // SAFETY: no process uses it yet.
        unsafe { (*shared.plan.get()).outcome = outcome };
        let made = match without_launcher {
            true => Err(Errno::AGAIN),
            // SAFETY: `launch` makes system calls only; what it uses stays in the Rc, which `Launch` keeps until it has ended.
            false => unsafe {
                clone_beside(&shared.running, &shared.stacks.0, launch, Rc::as_ptr(&shared).cast_mut().cast())
            },
        };
        let launcher = match made {
            Ok(pid) => Some(pid),
            // No room for one more process (ulimit -u, pids.max): as its own maker the guard needs one less.
            Err(_) => {
                if let Some(shared) = Rc::get_mut(&mut shared) {
                    shared.place.of_parent = false;
                }
                make(&shared);
                None
            }
        };
        Ok(Self { job, shared, launcher, ended: None, begun, steps: 0 })
    }

    /// Waits for the end of the launcher, for a moment at most. Whether it has ended; then it is reaped.
    pub fn wait(&mut self) -> bool {
        let until = self.begun + PATIENCE;
        let Some(launcher) = self.launcher else { return true };
        while self.shared.running.load(Ordering::Acquire) != 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let time = libc::timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            // Not a private futex: the kernel wakes a shared one.
            let word = self.shared.running.as_ptr() as usize;
            // SAFETY: the word and the time outlive the call. Its errors are those of a wait that is over.
            unsafe { call(libc::SYS_futex, [word, libc::FUTEX_WAIT as usize, 1, &raw const time as usize]) };
        }
        reap(launcher);
        self.launcher = None;
        true
    }

    /// The launcher, while it lives: a child of the guard that is no job's.
    pub fn launcher(&self) -> Option<i32> {
        self.launcher
    }

    /// The main process; none before it exists.
    pub fn pid(&self) -> Option<i32> {
        Some(self.shared.outcome.pid.load(Ordering::Acquire)).filter(|&pid| pid != 0)
    }

    /// The step that it is at.
    pub fn stage(&self) -> SpawnStage {
        self.shared.outcome.stage()
    }

    pub fn death_signal(&self) -> Option<i32> {
        self.shared.ordered.death_signal
    }

    /// Whether it joins its leaf itself.
    pub fn joins(&self) -> bool {
        self.shared.place.join
    }

    /// A child of the guard has been reaped. Whether it was one of this start.
    pub fn reaped(&mut self, reaped: Reaped) -> bool {
        if self.launcher == Some(reaped.pid) {
            self.launcher = None;
            return true;
        }
        let is_main = self.pid() == Some(reaped.pid) && self.ended.is_none();
        if is_main {
            self.ended = Some(reaped);
        }
        is_main
    }

    /// Whether it is over: the launcher has ended, and where it was killed the main process too.
    pub fn is_over(&self) -> bool {
        let has_result = self.shared.result.load(Ordering::Acquire) != NONE;
        self.launcher.is_none() && (has_result || self.pid().is_none() || self.ended.is_some())
    }

    /// When [`Self::remind`] is due.
    pub fn due(&self) -> Option<Instant> {
        STEPS.get(self.steps).map(|(after, _)| self.begun + *after)
    }

    /// Does what is due. `true` once, when SIGKILL has not ended it.
    pub fn remind(&mut self, now: Instant) -> bool {
        if self.due().is_none_or(|due| now < due) {
            return false;
        }
        let (_, step) = STEPS[self.steps];
        self.steps += 1;
        match (step, self.shared.pidfd()) {
            (Step::Continue, _) => self.resume(),
            (Step::Kill, Some(pidfd)) => {
                // SAFETY: nothing closes it before this is over.
                let main = unsafe { BorrowedFd::borrow_raw(pidfd) };
                // It may just have ended.
                let _ = sys::pidfd_send_signal(main, libc::SIGKILL);
            }
            _ => {}
        }
        step == Step::Inform
    }

    /// Continues a launcher that may have been stopped.
    pub fn resume(&self) {
        if let Some(launcher) = self.launcher.and_then(Pid::from_raw) {
            // A child of ours that is not reaped: the pid is its own.
            let _ = kill_process(launcher, rustix::process::Signal::CONT);
        }
    }

    /// What came of it. It must be over. `reaped`: its main process has ended and was reaped.
    pub fn result(self, reaped: bool) -> (Launched, Ordered, Stacks) {
        let Self { shared, begun, .. } = self;
        let result = shared.result.load(Ordering::Acquire);
        // SAFETY: it is ours, and this is called once.
        let pidfd = shared.pidfd().map(|pidfd| unsafe { OwnedFd::from_raw_fd(pidfd) });
        let outcome = &shared.outcome;
        let stage = outcome.stage();
        let errno = outcome.errno.load(Ordering::Acquire);
        let started = outcome.started.load(Ordering::Acquire);
        let launched = match (result, pidfd) {
            (NONE, _) | (0.., None) => Launched::NotStarted,
            (..0, _) => match Errno::from_raw_os_error(-result as i32) {
                Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::TOOBIG if !shared.place.join => Launched::Refused,
                Errno::AGAIN if shared.place.of_parent => Launched::NoRoomBesideLauncher,
                errno => Launched::Failed(Failure::new(SpawnStage::Clone, errno)),
            },
            (pid, Some(pidfd)) => {
                let pid = pid as i32;
                let pidfd = Pidfd::from(pidfd);
                // It has ended, or is about to.
                let reap = || {
                    if !reaped {
                        reap(pid);
                    }
                };
                if !started {
                    reap();
                    Launched::NotStarted
                } else if errno != 0 {
                    reap();
                    Launched::Failed(Failure::new(stage, Errno::from_raw_os_error(errno)))
                } else if begun.elapsed() >= EXEC_BOUND && (reaped || pidfd.has_ended()) {
                    reap();
                    Launched::Failed(Failure::new(stage, Errno::TIMEDOUT))
                } else {
                    Launched::Executed { pid, pidfd: pidfd.into() }
                }
            }
        };
        // It is the only one left.
        match Rc::try_unwrap(shared) {
            Ok(shared) => (launched, shared.ordered, shared.stacks),
            Err(_) => unreachable!("a launch is held once"),
        }
    }
}

/// The launcher's life.
///
/// # Safety
/// `shared` points to a [`Shared`] that lives until this process has ended.
unsafe extern "C" fn launch(shared: *mut libc::c_void) -> ! {
    // SAFETY: see above; its own attributes, and exit_group(2), which does not return.
    unsafe {
        let shared = &*shared.cast::<Shared>();
        let tied = checked(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0]);
        if tied.is_ok() && call(libc::SYS_getppid, []) as usize == shared.guard {
            make(shared);
        }
        call(libc::SYS_exit_group, [0]);
        std::hint::unreachable_unchecked()
    }
}

fn make(shared: &Shared) {
    // SAFETY: the plan and the stack are the main process's alone until it has executed or ended.
    let result = unsafe { clone_main(shared.place, &shared.pidfd, &shared.stacks.1, shared.plan.get()) };
    shared.result.store(result, Ordering::Release);
}
