//! The guard: the small single-threaded process that is parent and subreaper of the jobs, and outlives the supervisor
//! just long enough to clean up. Here it is started; [`event_loop`] is its life.

mod child;
mod clean_up;
mod clone;
mod ended;
mod event_loop;
pub(crate) mod link;
mod orphans;
mod outer;
mod pace;
pub(crate) mod protocol;
mod slice;
mod spawn;
mod sweep;
pub(crate) mod terminal;
pub(crate) mod watchdog;

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Access, Mode, OFlags, access, open};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::Pid;

use crate::error::{Error, Result, short_of_descriptors};
use crate::{inherited, reap, sys};

/// The name that a guard is started under, and shows in `ps`.
const NAME: &str = "pinfold-guard";

/// Asks an executed guard for an outer one around it.
const NESTED: &str = "nested";

/// Names the guard program of a library host.
const PROGRAM_VARIABLE: &str = "PINFOLD_GUARD";

/// How long the guard waits for what SIGKILL has been sent to, when its supervisor is gone.
pub(crate) const KILL_BOUND: Duration = Duration::from_secs(10);

static INITIALISED: AtomicBool = AtomicBool::new(false);

/// Makes this executable usable as a guard program. Call it first in `main`, while there is one thread; the
/// [example](crate#example) does.
///
/// Standard descriptors that are closed are opened on `/dev/null`, as Rust's runtime does before `main`; jobs still see them
/// closed. Where the process was started as a guard, this never returns. Otherwise it only remembers the signal mask and the
/// ignored signals, for the jobs. A host that can't call it needs the `pinfold` command installed.
pub fn init() {
    init_with(std::env::args_os());
}

/// [`init`] for programs without Rust's runtime, where [`std::env::args_os`] need not know the arguments: with these, the
/// program's own name included.
pub fn init_with(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) {
    inherited::fill_closed_stdio();
    inherited::signals();
    INITIALISED.store(true, Ordering::Relaxed);
    let mut arguments = arguments.into_iter();
    let mut next_is = |word: &str| arguments.next().is_some_and(|argument| argument.as_ref() == word);
    if next_is(NAME) && next_is(&protocol::VERSION.to_string()) {
        run_executed(next_is(NESTED))
    }
}

/// A guard that has been started and not yet been given to a [`Supervisor`](crate::Supervisor).
#[derive(Debug)]
pub struct Guard {
    pub(crate) socket: OwnedFd,
    pub(crate) origin: Origin,
}

#[derive(Debug)]
pub(crate) enum Origin {
    /// Our child, to be reaped when it has ended. Its orphans come to us where this process `inherits`.
    Forked { pid: Pid, inherits: bool },
    /// The guard's parent, which ends as soon as the guard runs: the guard itself is not a child of the host.
    Executed(Option<Child>),
}

impl Guard {
    /// Forks the guard from this process: the quickest way, for a program that does nothing else, at its very start. The
    /// guard is then a child of this process; it is reaped when the [`Supervisor`](crate::Supervisor) is closed or
    /// dropped. This process becomes a child subreaper (PR_SET_CHILD_SUBREAPER(2const)), unless it has children already:
    /// should the guard be killed, what has left its cgroup, or has none, comes to this process and is ended.
    ///
    /// # Errors
    /// [`Error::System`] with `EBUSY` where this process has a second thread; with the errno of socketpair(2) or fork(2).
    pub fn fork() -> Result<Self> {
        inherited::signals();
        let has_children = can_wait()?;
        let (ours, theirs) = pair()?;
        // With children of another origin, theirs could not be told from the job's.
        let inherits = !has_children && rustix::process::set_child_subreaper(Some(rustix::process::getpid())).is_ok();
        match sys::fork_single_threaded() {
            Ok(sys::Fork::Child) => {
                drop(ours);
                run(theirs, false)
            }
            Ok(sys::Fork::Parent(pid)) => {
                // The guard does so too; by whichever is first, no signal to our group reaches it from here on.
                if sys::own_process_group().is_some() {
                    let _ = rustix::process::setpgid(Some(pid), Some(pid));
                }
                Ok(Self { socket: ours, origin: Origin::Forked { pid, inherits } })
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

    /// Executes a guard program: `program` if given, else the one that the environment variable `PINFOLD_GUARD` names,
    /// else this executable if its `main` called [`init`], else `pinfold` from `PATH`. The host's memory is not copied,
    /// and its threads do not matter.
    ///
    /// For root there is an outer guard around it, which ends what the guard leaves when it is killed: root's processes can
    /// leave their cgroup, others' can't (cgroups(7), "Delegation containment").
    ///
    /// # Errors
    /// [`Error::GuardStart`] where none of these can be executed.
    pub fn execute(program: Option<&Path>) -> Result<Self> {
        Self::execute_with(program, rustix::process::geteuid().is_root())
    }

    /// The same, with an outer guard around it: for a job that no cgroup holds.
    pub(crate) fn execute_nested(program: Option<&Path>) -> Result<Self> {
        Self::execute_with(program, true)
    }

    fn execute_with(program: Option<&Path>, nested: bool) -> Result<Self> {
        inherited::signals();
        let program = find_program(program)?;
        can_wait()?;
        let (ours, theirs) = pair()?;
        let child = std::process::Command::new(&program)
            .arg0(NAME)
            .arg(protocol::VERSION.to_string())
            .args(nested.then_some(NESTED))
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| {
                Error::GuardStart(format!("cannot execute {}: {error} ({})", program.display(), ways()))
            })?;
        Ok(Self { socket: ours, origin: Origin::Executed(Some(child)) })
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
            Self::Executed(child) => {
                // Only one that has not answered is still here: it may be no guard at all.
                if let Some(mut child) = child.take() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
            }
        }
    }
}

/// How to provide a guard program, for messages.
pub(crate) fn ways() -> String {
    format!(
        "call pinfold::init() first in main, or install the pinfold command in PATH, or name it in {PROGRAM_VARIABLE} or in the builder"
    )
}

pub(crate) fn find_program(program: Option<&Path>) -> Result<PathBuf> {
    if let Some(program) = program {
        return Ok(program.to_owned());
    }
    if let Some(program) = std::env::var_os(PROGRAM_VARIABLE) {
        return Ok(program.into());
    }
    if INITIALISED.load(Ordering::Relaxed) {
        // The link, not its target: it also works when the file was replaced by a new version.
        return Ok("/proc/self/exe".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join("pinfold"))
        .find(|candidate| access(candidate, Access::EXEC_OK).is_ok())
        .ok_or_else(|| Error::GuardStart(format!("no guard program was found: {}", ways())))
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
    let Ok(socket) = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3) else { sys::exit_now(125) };
    match sys::fork_single_threaded() {
        Ok(sys::Fork::Child) => run(socket, nested),
        Ok(sys::Fork::Parent(_)) => sys::exit_now(0),
        Err(_) => sys::exit_now(125),
    }
}

/// Becomes the guard, or with `nested` the outer one.
fn run(socket: OwnedFd, nested: bool) -> ! {
    let live = |socket| if nested { outer::run(socket) } else { event_loop::run(socket, None) };
    match settle(socket).and_then(live) {
        Ok(()) => sys::exit_now(0),
        // Nobody listens any more; the socket's end tells the supervisor.
        Err(_) => sys::exit_now(125),
    }
}

/// The rules of the guard: a process group of its own, all signals blocked and none ignored, standard streams on
/// `/dev/null`, no descriptor but its socket, no directory held.
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
    let socket = sys::keep_only(socket)?;
    set_child_subreaper(Some(rustix::process::getpid()))?;
    sys::set_name(NAME);
    // Where the caller may not enter its own directory again, the job still has to start there: it is kept.
    if access(c".", Access::EXEC_OK).is_ok() {
        chdir(c"/")?;
    }
    debug_assert_eq!(socket.as_raw_fd(), 3);
    Ok(socket)
}
