//! The guard: the small single-threaded process that is parent and subreaper of the jobs. It outlives the supervisor
//! just long enough to clean up. This module starts it; [`event_loop`] has the code that it then runs.

mod child;
mod clean_up;
pub(crate) mod clone;
mod event_loop;
mod exec;
pub(crate) mod identity;
mod job_start;
mod launch;
mod outer;
pub(crate) mod program;
pub(crate) mod protocol;
mod reap_schedule;
mod reaping;
mod scheduling;
mod spawn;
pub(crate) mod startup;
pub(crate) mod sweep;
pub(crate) mod terminal;

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Access, Mode, OFlags, access, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;

use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::creator::Creator;
use crate::kernel::host::HostState;
use crate::kernel::oom_score;
use crate::kernel::{descriptor, fork, inherited, process, reap, rlimit, signal_set, wake};
pub(crate) use program::{Embedded, Program};

pub(crate) use crate::cgroup::base::GUARD_NAME as NAME;

/// How long a guard whose supervisor is gone waits for the end of processes to which it has sent SIGKILL.
pub(crate) const KILL_BOUND: Duration = Duration::from_secs(10);

/// Whether this process has forked a guard. If so, further guards execute this same program, even if the environment
/// variable names another one.
static OWN_PROGRAM_ONLY: AtomicBool = AtomicBool::new(false);

/// You do not need to call this function: if a program that contains this library is executed as a guard, the guard
/// starts before `main`. The function remains for programs that already call it. It also records the signal mask and
/// the ignored signals, so that jobs inherit the ones from the time of this call.
pub fn init() {
    init_with(std::env::args_os());
}

/// Does the same as [`init`], for programs without Rust's runtime, where [`std::env::args_os`] may not know the
/// arguments. Pass all arguments, including the program's own name. Such a program needs the call for one reason: the
/// call opens `/dev/null` on standard descriptors that are closed, as Rust's runtime does before `main`. In jobs these
/// descriptors are still closed.
///
/// If the C library passes no arguments to constructors (musl) and `/proc` is not mounted, the guard starts in this
/// function and not before `main`.
pub(crate) fn init_with(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) {
    inherited::fill_closed_stdio();
    inherited::signals();
    let last = arguments.into_iter().last();
    startup::decide(last.as_ref().map(AsRef::as_ref));
}

/// Becomes the guard, if the last argument requests it.
pub(crate) fn become_guard_if_requested(last: &[u8]) {
    match program::requested(last) {
        None => {}
        Some(program::Request::Guard { nested }) => run_executed(nested),
        Some(program::Request::OtherVersion) => {
            protocol::refuse(std::io::stdin(), &format!("it speaks version {} of the protocol", protocol::VERSION));
            fork::exit_now(125)
        }
    }
}

/// Returns whether the next message on this socket is a supervisor's first message.
pub(crate) fn has_first_message(socket: impl AsFd) -> bool {
    let hello = protocol::encode(&protocol::ToGuard::Hello { version: protocol::VERSION, answer: true });
    let mut start = [0; 16];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut start[..], flags) {
        Ok((length, _)) => hello.is_ok_and(|hello| hello == start[..length]),
        Err(_) => false,
    }
}

/// A guard that has been started and not yet been passed to a [`Supervisor`](crate::Supervisor).
#[derive(Debug)]
pub struct Guard {
    pub(crate) socket: OwnedFd,
    pub(crate) origin: Origin,
    /// The attributes of this process when the guard was started.
    pub(crate) host: HostState,
    pub(crate) creator: Creator,
}

#[derive(Debug)]
pub(crate) enum Origin {
    /// A child of this process, to be reaped when it has ended. If this process `inherits`, it also becomes the parent
    /// of the guard's orphans.
    Forked { pid: Pid, inherits: bool },
    /// A guard program was executed. `starter` is its process: the guard's parent, which ends as soon as the guard
    /// runs. The guard itself is not a child of the host.
    Executed { starter: Option<Child>, program: String },
}

impl Guard {
    /// Forks the guard from this process. This is the fastest way to start a guard. It is for programs that only
    /// supervise, and must be called before the program starts threads. The guard is then a child of this process; it
    /// is reaped when the [`Supervisor`](crate::Supervisor) is closed or dropped. This process becomes a child
    /// subreaper (PR_SET_CHILD_SUBREAPER(2const)), unless it has children already: if the guard is killed, processes
    /// that have left their cgroup, or have none, become children of this process, which ends them.
    ///
    /// Where a supervisor needs further guards (one for each job without a cgroup), it executes this same program for
    /// them. It does not use the environment variable `PINFOLD_GUARD` then.
    ///
    /// The guard lowers its own `oom_score_adj`, and this process does the same when its first job has been started,
    /// where that is permitted (CAP_SYS_RESOURCE). Jobs get the previous value. From the deadline of a job until the
    /// end of the job, the kernel repeatedly sends SIGCONT to this process, because the job may have stopped it.
    ///
    /// # Errors
    /// Returns [`Error::System`] with `EBUSY` if this process has a second thread, or with the errno of socketpair(2)
    /// or fork(2).
    pub fn fork() -> Result<Self> {
        inherited::signals();
        let has_children = can_wait()?;
        OWN_PROGRAM_ONLY.store(true, Ordering::Relaxed);
        let host = HostState::credentials_now();
        let (ours, theirs) = pair()?;
        // If this process has other children, it cannot distinguish their orphans from orphans of the jobs.
        let inherits = !has_children && rustix::process::set_child_subreaper(Some(rustix::process::getpid())).is_ok();
        match fork::fork_single_threaded() {
            Ok(fork::Fork::Child) => {
                drop(ours);
                // A job may have stopped the guard before the supervisor is killed. This SIGCONT continues the guard,
                // which then ends the job. If the supervisor is gone already, the guard sees that on its socket.
                let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::CONT));
                run(theirs, false)
            }
            Ok(fork::Fork::Parent(pid)) => {
                wake::allow();
                // The guard makes the same call. The first of the two calls ensures that a signal to this process's
                // group no longer reaches the guard.
                if process::own_process_group().is_some() {
                    let _ = rustix::process::setpgid(Some(pid), Some(pid));
                }
                Ok(Self {
                    socket: ours,
                    origin: Origin::Forked { pid, inherits },
                    host,
                    creator: Creator::current_process(),
                })
            }
            Err(Errno::BUSY) => Err(Error::system(
                "fork",
                "the guard",
                Errno::BUSY,
                "this process has threads already: let the supervisor start its guard",
            )),
            Err(errno) => Err(Error::system(
                "fork",
                "the guard",
                errno,
                "a limit on processes is reached: see ulimit -u and pids.max",
            )),
        }
    }

    /// Executes a guard program: `program` if given, else the one that the environment variable `PINFOLD_GUARD` names,
    /// else this program, else `pinfold` from `PATH`. The host's memory is not copied, and the host may have threads.
    ///
    /// In a set-user-ID program, or one with file capabilities, neither the variable nor `PATH` is used (AT_SECURE,
    /// getauxval(3)).
    ///
    /// If this process runs as root, it also starts an outer guard around the guard. If the guard is killed, the outer
    /// guard ends the remaining processes. This is needed because processes of root can leave their cgroup; those of
    /// other users cannot (cgroups(7), "Delegation containment").
    ///
    /// # Errors
    /// Returns [`Error::GuardStart`] if none of these programs can be executed.
    pub(crate) fn execute_program(program: Option<&Program>) -> Result<Self> {
        Self::execute_with(program, rustix::process::geteuid().is_root())
    }

    /// Executes a guard program with an outer guard around it: for a job that no cgroup holds.
    pub(crate) fn execute_nested(program: Option<&Program>) -> Result<Self> {
        Self::execute_with(program, true)
    }

    fn execute_with(program: Option<&Program>, nested: bool) -> Result<Self> {
        inherited::signals();
        let program = program::find(program)?;
        can_wait()?;
        let host = HostState::now();
        let (ours, theirs) = pair()?;
        // The first message is sent before the program runs. A program that is not a guard program might start itself
        // again and again; if it contains this library, it finds the message and stops.
        protocol::greet(&ours, true)?;
        let child = program.execute(theirs, nested)?;
        Ok(Self {
            socket: ours,
            origin: Origin::Executed { starter: Some(child), program: program.name },
            host,
            creator: Creator::current_process(),
        })
    }
}

/// Waits for the guard. The socket is already closed, so the guard ends. After this drop, no process of the guard may
/// remain, not even a zombie.
impl Drop for Origin {
    fn drop(&mut self) {
        match self {
            Self::Forked { pid, .. } => {
                // The guard ends the remaining processes, and then itself.
                let _ = rustix::process::waitpid(Some(*pid), rustix::process::WaitOptions::empty());
            }
            Self::Executed { starter, .. } => {
                // The starter still exists here only if it has not answered. It may not be a guard at all, so it is
                // killed.
                if let Some(mut child) = starter.take() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }
}

/// Lowers this process's `oom_score_adj`, as the guard has lowered its own, if this process has forked a guard. The
/// value of a library's host is never changed otherwise.
pub(crate) fn protect_from_oom_killer() {
    if OWN_PROGRAM_ONLY.load(Ordering::Relaxed) {
        oom_score::protect();
    }
}

/// Checks that a guard program can be found. Returns an error otherwise.
pub(crate) fn check_program(program: Option<&Program>) -> Result<()> {
    program::find(program).map(drop)
}

/// Returns whether this process has children, or an error if the kernel refuses to answer. The guard inherits the
/// seccomp filters of this process. If one of them refuses waitid, the guard could never know that a job is empty.
fn can_wait() -> Result<bool> {
    let advice =
        "a seccomp filter refuses the call: allow waitid in it (a unit's SystemCallFilter=, a container's profile)";
    reap::has_children().map_err(|errno| Error::system("waitid", "the children of this process", errno, advice))
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
        .map_err(|errno| Error::system("socketpair", "to the guard", errno, short_of_descriptors(errno)))
}

/// Runs in a guard that was executed, whose socket is its standard input. It forks, and the parent ends. So the host
/// has no long-lived child that the host did not start.
fn run_executed(nested: bool) -> ! {
    let socket = match rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3) {
        Ok(socket) => socket,
        Err(errno) => fail(std::io::stdin(), "duplicate its socket", errno),
    };
    match fork::fork_single_threaded() {
        Ok(fork::Fork::Child) => run(socket, nested),
        Ok(fork::Fork::Parent(_)) => fork::exit_now(0),
        // A constructor of another library has started threads, or the program had threads before it loaded this
        // library.
        Err(Errno::BUSY) => fail(socket, "fork, since the program has started threads before", Errno::BUSY),
        Err(errno) => fail(socket, "fork", errno),
    }
}

/// Becomes the guard, or with `nested` the outer guard.
fn run(socket: OwnedFd, nested: bool) -> ! {
    let copy = rustix::io::fcntl_dupfd_cloexec(&socket, 3);
    let socket = match apply_rules(socket) {
        Ok(socket) => socket,
        Err(errno) => match copy {
            Ok(copy) => fail(copy, "apply the rules of a guard", errno),
            Err(_) => fork::exit_now(125),
        },
    };
    // `apply_rules` has closed it, with all other descriptors.
    std::mem::forget(copy);
    match if nested { outer::run(socket) } else { event_loop::run(socket, None) } {
        Ok(()) => fork::exit_now(0),
        // The supervisor notices the end of the guard because the socket is closed.
        Err(_) => fork::exit_now(125),
    }
}

/// Reports to the supervisor which step of its start failed, and ends this process.
fn fail(socket: impl AsFd, operation: &str, errno: Errno) -> ! {
    protocol::refuse(socket, &format!("it cannot {operation}: {errno}"));
    fork::exit_now(125)
}

/// Applies the rules of the guard: a process group of its own, all signals blocked and none ignored, standard streams
/// on `/dev/null`, no descriptor but its socket, the root directory as working directory, no environment.
fn apply_rules(socket: OwnedFd) -> rustix::io::Result<OwnedFd> {
    use rustix::process::{chdir, set_child_subreaper, setpgid};
    signal_set::set_signal_mask(signal_set::ALL_SIGNALS);
    // If the process group was created outside of this PID namespace, it has no number here, and jobs could not join it
    // again. In this case the guard stays in it.
    if process::own_process_group().is_some() {
        setpgid(None, None)?;
    }
    rlimit::raise_open_files_limit();
    // Jobs would inherit ignored signals. With SIGCHLD ignored, waitid would lose exit statuses.
    let ignored = inherited::signals().ignored | signal_set::bit(libc::SIGPIPE) | signal_set::bit(libc::SIGCHLD);
    for signal in (1..=signal_set::SIGNAL_MAX).filter(|&signal| ignored & signal_set::bit(signal) != 0) {
        signal_set::set_ignored(signal, false);
    }
    let null = open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        // The root directory has no /dev: an empty memfd takes the place of /dev/null.
        .or_else(|_| rustix::fs::memfd_create(c"null", rustix::fs::MemfdFlags::CLOEXEC))?;
    for number in 0..3 {
        descriptor::dup_to_stdio(null.as_fd(), number)?;
    }
    drop(null);
    startup::clear_environment();
    let socket = descriptor::keep_only(socket)?;
    set_child_subreaper(Some(rustix::process::getpid()))?;
    process::set_name(NAME);
    oom_score::protect();
    // If the caller has no permission to enter its own working directory again, the job still has to start there. Then
    // the guard keeps this directory.
    if access(c".", Access::EXEC_OK).is_ok() {
        chdir(c"/")?;
    }
    debug_assert_eq!(socket.as_raw_fd(), 3);
    Ok(socket)
}
