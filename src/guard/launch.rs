//! The start of one main process. The guard does not wait for it longer than [`EXEC_WAIT`].
//!
//! The kernel suspends the process that makes a main process until the main process executes the command (CLONE_VFORK).
//! This has two benefits: the kernel copies no page tables, and the OOM killer spares the child. (Killing a child that
//! shares the guard's memory would also kill the guard; `oom_badness` in mm/oom_kill.c.) But a child that does not
//! reach its exec would keep the process that made it suspended, in state D even after SIGKILL. So the guard does not
//! make the main process itself. A *launcher* does this: a process that shares the guard's memory and descriptors and
//! lives for this one call. With CLONE_PARENT, the main process is nevertheless a child of the guard.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, AtomicIsize, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, getpid, kill_process};

use super::child::{Outcome, Plan};
use super::clone::{CloneTarget, Stack, clone_beside, clone_main};
use super::exec::EXEC_BOUND;
use super::protocol::JobId;
use super::spawn::{Failure, SpawnRequest, reap};
use crate::error::SpawnStage;
use crate::kernel::pidfd;
use crate::kernel::pidfd::Pidfd;
use crate::kernel::reap::Reaped;
use crate::kernel::syscall::{call, checked};

/// How long the guard waits for an exec before it continues with its other work.
const EXEC_WAIT: Duration = Duration::from_millis(20);

/// The steps that the guard takes if a start is not over, each with its time after the beginning of the start. The
/// first step sends SIGCONT, because another process of the same user may have stopped the launcher, and a stopped
/// launcher does not notice the exec.
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
    /// Inform the supervisor that SIGKILL did not end the main process.
    Inform,
}

/// The value of a result that the launcher has not written yet.
const NO_RESULT: isize = isize::MIN;

/// The memory that guard, launcher and main process share. It is not moved or freed until the launcher has ended and
/// the main process has ended or executed the command.
struct Shared {
    /// 1 while the launcher runs.
    running: AtomicU32,
    guard: usize,
    target: CloneTarget,
    pidfd: AtomicI32,
    result: AtomicIsize,
    outcome: Outcome,
    plan: UnsafeCell<Plan>,
    stacks: Stacks,
    /// Owns everything that the plan points into.
    request: SpawnRequest,
}

impl Shared {
    /// Returns the pidfd that the kernel has made (CLONE_PIDFD). The kernel writes the number before its last checks,
    /// so if it then refuses the clone, no descriptor with this number is open.
    fn pidfd(&self) -> Option<i32> {
        let made = self.outcome.pid.load(Ordering::Acquire) != 0 || self.result.load(Ordering::Acquire) > 0;
        Some(self.pidfd.load(Ordering::Acquire)).filter(|&pidfd| made && pidfd >= 0)
    }
}

/// The stacks of the launcher and of the main process.
pub(super) struct Stacks(Stack, Stack);

impl Stacks {
    pub fn new() -> rustix::io::Result<Self> {
        Ok(Self(Stack::new()?, Stack::new()?))
    }
}

/// A running start. It must not be dropped before it is over, because the launcher and the main process use its memory.
pub(super) struct Launch {
    pub job: JobId,
    shared: Rc<Shared>,
    /// `None` if the guard itself had to make the main process, or after the launcher has ended.
    launcher: Option<i32>,
    /// The end of the main process, if it was reaped before the launcher.
    pub ended: Option<Reaped>,
    begun: Instant,
    /// How many of [`STEPS`] have been done.
    steps: usize,
}

/// The result of a start.
pub(super) enum Launched {
    Executed {
        pid: i32,
        pidfd: OwnedFd,
    },
    /// The process was killed before its first instruction.
    NotStarted,
    /// The kernel refuses the call itself, not only this cgroup as its target.
    Refused,
    /// The limit on processes (`ulimit -u`, pids.max) allowed the launcher, but not the main process.
    ProcessLimitReached,
    Failed(Failure),
}

impl Launch {
    /// Starts the main process through a launcher. The guard itself makes the main process if `without_launcher` is
    /// set, or if a limit on processes does not allow a launcher.
    pub fn new(job: JobId, mut request: SpawnRequest, stacks: Stacks, without_launcher: bool) -> Result<Self, Failure> {
        let target = CloneTarget { leaf: request.leaf(), join: request.join, as_sibling: true };
        let mut shared = Rc::new(Shared {
            running: AtomicU32::new(1),
            guard: getpid().as_raw_nonzero().get() as usize,
            target,
            pidfd: AtomicI32::new(-1),
            result: AtomicIsize::new(NO_RESULT),
            outcome: Outcome::default(),
            plan: UnsafeCell::new(request.plan()?),
            stacks,
            request,
        });
        let begun = Instant::now();
        let outcome = &raw const shared.outcome;
        // SAFETY: no process uses the plan yet.
        unsafe { (*shared.plan.get()).outcome = outcome };
        let made = match without_launcher {
            true => Err(Errno::AGAIN),
            // SAFETY: `launch` only makes system calls. What it uses stays in the Rc, which `Launch` keeps until the
            // launcher has ended.
            false => unsafe {
                clone_beside(&shared.running, &shared.stacks.0, launch, Rc::as_ptr(&shared).cast_mut().cast())
            },
        };
        let launcher = match made {
            Ok(pid) => Some(pid),
            // A limit on processes has been reached (ulimit -u, pids.max). If the guard itself makes the main process,
            // the start needs one process fewer.
            Err(_) => {
                if let Some(shared) = Rc::get_mut(&mut shared) {
                    shared.target.as_sibling = false;
                }
                make_main_process(&shared);
                None
            }
        };
        Ok(Self { job, shared, launcher, ended: None, begun, steps: 0 })
    }

    /// Waits for the end of the launcher, for a short time at most. Returns whether it has ended. If so, it has also
    /// been reaped.
    pub fn wait(&mut self) -> bool {
        let until = self.begun + EXEC_WAIT;
        let Some(launcher) = self.launcher else { return true };
        while self.shared.running.load(Ordering::Acquire) != 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let time = libc::timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            // FUTEX_WAIT without the private flag: the kernel wakes a shared futex.
            let word = self.shared.running.as_ptr() as usize;
            // SAFETY: the word and the time outlive the call. Each error means that the wait is over.
            unsafe { call(libc::SYS_futex, [word, libc::FUTEX_WAIT as usize, 1, &raw const time as usize]) };
        }
        reap(launcher);
        self.launcher = None;
        true
    }

    /// Returns the launcher while it lives: a child of the guard that belongs to no job.
    pub fn launcher(&self) -> Option<i32> {
        self.launcher
    }

    /// Returns the main process; `None` before it exists.
    pub fn pid(&self) -> Option<i32> {
        Some(self.shared.outcome.pid.load(Ordering::Acquire)).filter(|&pid| pid != 0)
    }

    /// Returns the step that the main process is at.
    pub fn stage(&self) -> SpawnStage {
        self.shared.outcome.stage()
    }

    pub fn death_signal(&self) -> Option<i32> {
        self.shared.request.death_signal
    }

    /// Returns whether the main process joins its leaf itself.
    pub fn joins(&self) -> bool {
        self.shared.target.join
    }

    /// Records that the guard has reaped a child. Returns whether the child belongs to this start.
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

    /// Returns whether the start is over: the launcher has ended. If the launcher was killed, the main process must
    /// have ended too.
    pub fn is_over(&self) -> bool {
        let has_result = self.shared.result.load(Ordering::Acquire) != NO_RESULT;
        self.launcher.is_none() && (has_result || self.pid().is_none() || self.ended.is_some())
    }

    /// Returns when the next of [`STEPS`] is due.
    pub fn due(&self) -> Option<Instant> {
        STEPS.get(self.steps).map(|(after, _)| self.begun + *after)
    }

    /// Performs the step that is due. Returns `true` once, when SIGKILL has not ended the main process.
    pub fn perform_due_step(&mut self, now: Instant) -> bool {
        if self.due().is_none_or(|due| now < due) {
            return false;
        }
        let (_, step) = STEPS[self.steps];
        self.steps += 1;
        match (step, self.shared.pidfd()) {
            (Step::Continue, _) => self.resume(),
            (Step::Kill, Some(pidfd)) => {
                // SAFETY: nothing closes the descriptor before this start is over.
                let main = unsafe { BorrowedFd::borrow_raw(pidfd) };
                // The process may just have ended.
                let _ = pidfd::send_signal(main, libc::SIGKILL);
            }
            _ => {}
        }
        step == Step::Inform
    }

    /// Continues the launcher, which another process may have stopped.
    pub fn resume(&self) {
        if let Some(launcher) = self.launcher.and_then(Pid::from_raw) {
            // The launcher is a child of the guard and has not been reaped, so no other process has its pid.
            let _ = kill_process(launcher, rustix::process::Signal::CONT);
        }
    }

    /// Returns the result. The start must be over. `reaped` says that the main process has ended and was reaped.
    pub fn result(self, reaped: bool) -> (Launched, SpawnRequest, Stacks) {
        let Self { shared, begun, .. } = self;
        let result = shared.result.load(Ordering::Acquire);
        // SAFETY: the guard owns the descriptor, and this function is called once.
        let pidfd = shared.pidfd().map(|pidfd| unsafe { OwnedFd::from_raw_fd(pidfd) });
        let outcome = &shared.outcome;
        let stage = outcome.stage();
        let errno = outcome.errno.load(Ordering::Acquire);
        let started = outcome.started.load(Ordering::Acquire);
        let launched = match (result, pidfd) {
            (NO_RESULT, _) | (0.., None) => Launched::NotStarted,
            (..0, _) => match Errno::from_raw_os_error(-result as i32) {
                Errno::NOSYS | Errno::PERM | Errno::INVAL | Errno::TOOBIG if !shared.target.join => Launched::Refused,
                Errno::AGAIN if shared.target.as_sibling => Launched::ProcessLimitReached,
                errno => Launched::Failed(Failure::new(SpawnStage::Clone, errno)),
            },
            (pid, Some(pidfd)) => {
                let pid = pid as i32;
                let pidfd = Pidfd::from(pidfd);
                // The process has ended, or is about to.
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
        // This is the only reference to the shared memory.
        match Rc::try_unwrap(shared) {
            Ok(shared) => (launched, shared.request, shared.stacks),
            Err(_) => unreachable!("another reference to this launch exists"),
        }
    }
}

/// The function that the launcher runs.
///
/// # Safety
/// `shared` points to a [`Shared`] that lives until this process has ended.
unsafe extern "C" fn launch(shared: *mut libc::c_void) -> ! {
    // SAFETY: `shared` is valid until this process has ended (the caller's obligation), and both processes access it
    // only through atomics and the plan, which is not used by the guard meanwhile. The calls take numbers and set
    // attributes of this process; exit_group(2) does not return.
    unsafe {
        let shared = &*shared.cast::<Shared>();
        let tied = checked(libc::SYS_prctl, [libc::PR_SET_PDEATHSIG as usize, libc::SIGKILL as usize, 0, 0, 0]);
        if tied.is_ok() && call(libc::SYS_getppid, []) as usize == shared.guard {
            make_main_process(shared);
        }
        call(libc::SYS_exit_group, [0]);
        std::hint::unreachable_unchecked()
    }
}

fn make_main_process(shared: &Shared) {
    // SAFETY: only the main process uses the plan and the stack until it has executed the command or ended.
    let result = unsafe { clone_main(shared.target, &shared.pidfd, &shared.stacks.1, shared.plan.get()) };
    shared.result.store(result, Ordering::Release);
}
