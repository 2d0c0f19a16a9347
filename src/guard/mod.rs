//! The guard: the small single-threaded process that is parent and subreaper of the jobs, and outlives the supervisor
//! just long enough to clean up. Here it is started; [`event_loop`] is its life.

mod child;
mod clean_up;
mod clone;
mod event_loop;
pub(crate) mod identity;
mod launch;
mod outer;
pub(crate) mod program;
pub(crate) mod protocol;
mod reap_schedule;
mod reaping;
mod scheduling;
mod spawn;
mod starts;
pub(crate) mod startup;
pub(crate) mod sweep;
pub(crate) mod terminal;

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Access, Mode, OFlags, access, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;

use crate::error::{Error, Result, short_of_descriptors};
use crate::kernel::host::Host;
use crate::kernel::maker::Maker;
use crate::kernel::oom_score;
use crate::kernel::{inherited, reap, sys, wake};
pub(crate) use program::{Embedded, Program};

pub(crate) use crate::cgroup::base::GUARD_NAME as NAME;

/// How long the guard waits for what SIGKILL has been sent to, when its supervisor is gone.
pub(crate) const KILL_BOUND: Duration = Duration::from_secs(10);

/// This process has forked a guard: further ones are of the same program, whatever the environment names.
static OWN_PROGRAM_ONLY: AtomicBool = AtomicBool::new(false);

/// Not needed: each program that has this library in it is a guard program, since the guard starts before `main`. It stays for
/// programs that call it, and remembers the signal mask and the ignored signals, for the jobs, at the start of `main`.
pub fn init() {
    init_with(std::env::args_os());
}

/// [`init`] for programs without Rust's runtime, where [`std::env::args_os`] need not know the arguments: with these, the
/// program's own name included. Such a program needs the call for one thing: it opens `/dev/null` on standard descriptors that
/// are closed, as Rust's runtime does before `main`; jobs still see them closed.
///
/// Where the C library passes no arguments to constructors (musl) and `/proc` is not mounted, the guard starts here.
pub fn init_with(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) {
    inherited::fill_closed_stdio();
    inherited::signals();
    let last = arguments.into_iter().last();
    startup::decide(last.as_ref().map(AsRef::as_ref));
}

/// Becomes the guard, where this is what the process was started for.
pub(crate) fn become_asked(last: &[u8]) {
    match program::asked(last) {
        None => {}
        Some(program::Asked::Guard { nested }) => run_executed(nested),
        Some(program::Asked::OtherVersion) => {
            protocol::refuse(std::io::stdin(), &format!("it speaks version {} of the protocol", protocol::VERSION));
            sys::exit_now(125)
        }
    }
}

/// Whether a supervisor's first message is the next one on this socket.
pub(crate) fn is_greeted(socket: impl AsFd) -> bool {
    let hello = protocol::encode(&protocol::ToGuard::Hello { version: protocol::VERSION, answer: true });
    let mut start = [0; 16];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    match rustix::net::recv(socket, &mut start[..], flags) {
        Ok((length, _)) => hello.is_ok_and(|hello| hello == start[..length]),
        Err(_) => false,
    }
}

/// A guard that has been started and not yet been given to a [`Supervisor`](crate::Supervisor).
#[derive(Debug)]
pub struct Guard {
    pub(crate) socket: OwnedFd,
    pub(crate) origin: Origin,
    /// This process as it was when the guard was started.
    pub(crate) host: Host,
    pub(crate) maker: Maker,
}

#[derive(Debug)]
pub(crate) enum Origin {
    /// Our child, to be reaped when it has ended. Its orphans come to us where this process `inherits`.
    Forked { pid: Pid, inherits: bool },
    /// The guard's parent, which ends as soon as the guard runs: the guard itself is not a child of the host.
    Executed { starter: Option<Child>, program: String },
}

impl Guard {
    /// Forks the guard from this process: the quickest way, for a program that does nothing else, at its very start. The
    /// guard is then a child of this process; it is reaped when the [`Supervisor`](crate::Supervisor) is closed or
    /// dropped. This process becomes a child subreaper (PR_SET_CHILD_SUBREAPER(2const)), unless it has children already:
    /// should the guard be killed, what has left its cgroup, or has none, comes to this process and is ended.
    ///
    /// Where a supervisor needs further guards, one for each job without a cgroup, they are executed from this same program:
    /// the environment variable `PINFOLD_GUARD` is not used then.
    ///
    /// It also lowers its `oom_score_adj`, and so the guard's, where it may (CAP_SYS_RESOURCE); jobs get what it was. And from the
    /// deadline of a job on the kernel sends it SIGCONT until the job has ended, in case the job has stopped it: a
    /// [`SignalQueue`](crate::kernel::signal::SignalQueue) leaves those out.
    ///
    /// # Errors
    /// [`Error::System`] with `EBUSY` where this process has a second thread; with the errno of socketpair(2) or fork(2).
    pub fn fork() -> Result<Self> {
        inherited::signals();
        let has_children = can_wait()?;
        OWN_PROGRAM_ONLY.store(true, Ordering::Relaxed);
        let host = Host::rights_now();
        let (ours, theirs) = pair()?;
        // With children of another origin, theirs could not be told from the job's.
        let inherits = !has_children && rustix::process::set_child_subreaper(Some(rustix::process::getpid())).is_ok();
        oom_score::protect();
        match sys::fork_single_threaded() {
            Ok(sys::Fork::Child) => {
                drop(ours);
                // A job may have stopped it when the supervisor is killed: then it continues and ends the job. Where the supervisor
                // is gone already, its socket says so.
                let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::CONT));
                run(theirs, false)
            }
            Ok(sys::Fork::Parent(pid)) => {
                wake::allow();
                // The guard does so too; by whichever is first, no signal to our group reaches it from here on.
                if sys::own_process_group().is_some() {
                    let _ = rustix::process::setpgid(Some(pid), Some(pid));
                }
                Ok(Self { socket: ours, origin: Origin::Forked { pid, inherits }, host, maker: Maker::here() })
            }
            Err(Errno::BUSY) => Err(Error::system(
                "fork",
                "the guard",
                Errno::BUSY,
                "this process has threads already: use Guard::execute",
            )),
            Err(errno) => Err(Error::system(
                "fork",
                "the guard",
                errno,
                "a limit on processes is reached: see ulimit -u and pids.max",
            )),
        }
    }

    /// Executes a guard program: `program` if given, else the one that the environment variable `PINFOLD_GUARD` names, else
    /// this program, else `pinfold` from `PATH`. The host's memory is not copied, and its threads do not matter.
    ///
    /// In a set-user-ID program, or one with file capabilities, neither the variable nor `PATH` is used (AT_SECURE,
    /// getauxval(3)).
    ///
    /// For root there is an outer guard around it, which ends what the guard leaves when it is killed: root's processes can
    /// leave their cgroup, others' can't (cgroups(7), "Delegation containment").
    ///
    /// # Errors
    /// [`Error::GuardStart`] where none of these can be executed.
    pub fn execute(program: Option<&Path>) -> Result<Self> {
        Self::execute_program(program.map(|path| Program::Path(path.into())).as_ref())
    }

    pub(crate) fn execute_program(program: Option<&Program>) -> Result<Self> {
        Self::execute_with(program, rustix::process::geteuid().is_root())
    }

    /// The same, with an outer guard around it: for a job that no cgroup holds.
    pub(crate) fn execute_nested(program: Option<&Program>) -> Result<Self> {
        Self::execute_with(program, true)
    }

    fn execute_with(program: Option<&Program>, nested: bool) -> Result<Self> {
        inherited::signals();
        let program = program::find(program)?;
        can_wait()?;
        let host = Host::now();
        let (ours, theirs) = pair()?;
        // Before it runs: a program that is no guard, and would start itself again and again, finds it there.
        protocol::greet(&ours, true)?;
        let child = program.execute(theirs, nested)?;
        Ok(Self {
            socket: ours,
            origin: Origin::Executed { starter: Some(child), program: program.name },
            host,
            maker: Maker::here(),
        })
    }
}

/// After its socket has been closed: nothing of the guard may stay, not even a zombie.
impl Drop for Origin {
    fn drop(&mut self) {
        match self {
            Self::Forked { pid, .. } => {
                // It has nothing to do any more, or ends what there is first.
                let _ = rustix::process::waitpid(Some(*pid), rustix::process::WaitOptions::empty());
            }
            Self::Executed { starter, .. } => {
                // Only one that has not answered is still here: it may be no guard at all.
                if let Some(mut child) = starter.take() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }
}

/// Whether a guard program can be found; the error where none can.
pub(crate) fn assure_program(program: Option<&Program>) -> Result<()> {
    program::find(program).map(drop)
}

/// Whether this process has children. An error where the kernel refuses to say: the guard, which inherits a seccomp filter,
/// could never know that a job is empty.
fn can_wait() -> Result<bool> {
    let advice =
        "a seccomp filter refuses the call: allow waitid in it (a unit's SystemCallFilter=, a container's profile)";
    reap::has_children().map_err(|errno| Error::system("waitid", "the children of this process", errno, advice))
}

fn pair() -> Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
        .map_err(|errno| Error::system("socketpair", "to the guard", errno, short_of_descriptors(errno)))
}

/// A guard that was executed: its socket is its standard input. It leaves its parent, so that the host has no child
/// that it did not start.
fn run_executed(nested: bool) -> ! {
    let socket = match rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3) {
        Ok(socket) => socket,
        Err(errno) => fail(std::io::stdin(), "duplicate its socket", errno),
    };
    match sys::fork_single_threaded() {
        Ok(sys::Fork::Child) => run(socket, nested),
        Ok(sys::Fork::Parent(_)) => sys::exit_now(0),
        // A constructor of another library, or a program that loads this library late, has started threads.
        Err(Errno::BUSY) => fail(socket, "fork, since the program has started threads before", Errno::BUSY),
        Err(errno) => fail(socket, "fork", errno),
    }
}

/// Becomes the guard, or with `nested` the outer one.
fn run(socket: OwnedFd, nested: bool) -> ! {
    let copy = rustix::io::fcntl_dupfd_cloexec(&socket, 3);
    let socket = match settle(socket) {
        Ok(socket) => socket,
        Err(errno) => match copy {
            Ok(copy) => fail(copy, "take the rules of a guard", errno),
            Err(_) => sys::exit_now(125),
        },
    };
    // Closed by now, with everything else.
    std::mem::forget(copy);
    match if nested { outer::run(socket) } else { event_loop::run(socket, None) } {
        Ok(()) => sys::exit_now(0),
        // The end of the socket shows it to the supervisor.
        Err(_) => sys::exit_now(125),
    }
}

/// Reports to the supervisor what a guard could not do at its start, and ends.
fn fail(socket: impl AsFd, operation: &str, errno: Errno) -> ! {
    protocol::refuse(socket, &format!("it cannot {operation}: {errno}"));
    sys::exit_now(125)
}

/// The rules of the guard: a process group of its own, all signals blocked and none ignored, standard streams on
/// `/dev/null`, no descriptor but its socket, no directory held, no environment.
fn settle(socket: OwnedFd) -> rustix::io::Result<OwnedFd> {
    use rustix::process::{chdir, set_child_subreaper, setpgid};
    sys::set_signal_mask(sys::ALL_SIGNALS);
    // A group from outside of this PID namespace can't be named, so that jobs could not come back to it: the guard stays.
    if sys::own_process_group().is_some() {
        setpgid(None, None)?;
    }
    sys::raise_open_files_limit();
    // Ignored signals would stay ignored in jobs; with an ignored SIGCHLD waitid would lose statuses.
    let ignored = inherited::signals().ignored | sys::bit(libc::SIGPIPE) | sys::bit(libc::SIGCHLD);
    for signal in (1..=sys::SIGNAL_MAX).filter(|&signal| ignored & sys::bit(signal) != 0) {
        sys::set_ignored(signal, false);
    }
    let null = open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        // A root directory without /dev: something as empty.
        .or_else(|_| rustix::fs::memfd_create(c"null", rustix::fs::MemfdFlags::CLOEXEC))?;
    for number in 0..3 {
        sys::dup_to_stdio(null.as_fd(), number)?;
    }
    drop(null);
    startup::clear_environment();
    let socket = sys::keep_only(socket)?;
    set_child_subreaper(Some(rustix::process::getpid()))?;
    sys::set_name(NAME);
    oom_score::protect();
    // Where the caller may not enter its own directory again, the job still has to start there: it is kept.
    if access(c".", Access::EXEC_OK).is_ok() {
        chdir(c"/")?;
    }
    debug_assert_eq!(socket.as_raw_fd(), 3);
    Ok(socket)
}
