//! What this process was given by its caller, so that the job gets it unchanged: the signal mask, the ignored
//! signals, the open descriptors, the limit on them.
//!
//! Rust's runtime ignores SIGPIPE and opens `/dev/null` on closed standard descriptors before `main`; both are
//! read by a constructor that runs before it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use rustix::fs::OFlags;
use rustix::io::{Errno, FdFlags};

use crate::error::{Error, Result};
use crate::sys;

const SIGPIPE_IGNORED: u8 = 1 << 3;

/// Bits 0 to 2: that standard descriptor was closed. Bit 3: SIGPIPE was ignored.
static BEFORE_MAIN: AtomicU8 = AtomicU8::new(0);

/// Reads both. For the constructor ([`crate::startup`]).
pub(crate) fn read_before_main() {
    let mut state = 0;
    for number in 0..3 {
        if sys::inherited_fd(number).is_none() {
            state |= 1 << number;
        }
    }
    if sys::is_ignored(libc::SIGPIPE) {
        state |= SIGPIPE_IGNORED;
    }
    BEFORE_MAIN.store(state, Ordering::Relaxed);
}

/// Signal dispositions and mask as the caller left them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signals {
    /// Blocked signals, as a bit mask.
    pub blocked: u64,
    /// Ignored signals, as a bit mask.
    pub ignored: u64,
}

/// The signals as they were at the first call; `pinfold::init()` makes that the start of `main`.
pub(crate) fn signals() -> Signals {
    static SIGNALS: OnceLock<Signals> = OnceLock::new();
    *SIGNALS.get_or_init(|| {
        let mut ignored = sys::ignored_signals() & !sys::bit(libc::SIGPIPE);
        if BEFORE_MAIN.load(Ordering::Relaxed) & SIGPIPE_IGNORED != 0 {
            ignored |= sys::bit(libc::SIGPIPE);
        }
        Signals { blocked: sys::signal_mask(), ignored }
    })
}

static OPEN_FILES: OnceLock<Option<(u64, u64)>> = OnceLock::new();

/// Raises this process's own limits on open files and on its stack, so that a caller's tiny ones do not hinder it in its
/// work: the soft limit up to the hard one, and this too where it may be raised (CAP_SYS_RESOURCE, getrlimit(2)). Jobs get
/// the caller's limit on open files all the same.
///
/// For programs that do nothing else than supervise, as the `pinfold` command does. Call it after
/// [`Guard::fork`](crate::Guard::fork): jobs have the guard's stack limit. Tells the soft limit on open files as it is now, or
/// none where a seccomp profile refuses to tell.
pub fn raise_own_limits() -> Option<u64> {
    /// What Linux gives by default.
    const STACK: u64 = 8 << 20;
    OPEN_FILES.get_or_init(|| sys::limit(libc::RLIMIT_NOFILE));
    sys::raise_open_files_limit();
    sys::raise_limit(libc::RLIMIT_STACK, STACK);
    sys::limit(libc::RLIMIT_NOFILE).map(|(soft, _)| soft)
}

/// Soft and hard limit on open files for jobs: the caller's, also where we have raised our own; none where it is not told.
pub(crate) fn open_files_limit() -> Option<(u64, u64)> {
    OPEN_FILES.get().copied().unwrap_or_else(|| sys::limit(libc::RLIMIT_NOFILE))
}

/// Whether the standard descriptor `number` (0 to 2) was closed when this process was started; Rust's runtime has opened
/// `/dev/null` there since.
#[must_use]
pub fn was_closed(number: i32) -> bool {
    (0..3).contains(&number) && BEFORE_MAIN.load(Ordering::Relaxed) & (1 << number) != 0
}

/// Opens `/dev/null` on closed standard descriptors, so that nothing else gets their numbers. For programs without Rust's
/// runtime, which does the same.
pub(crate) fn fill_closed_stdio() {
    for number in (0..3).filter(|&number| was_closed(number)) {
        if sys::inherited_fd(number).is_none()
            && let Ok(null) = rustix::fs::open(c"/dev/null", OFlags::RDWR, rustix::fs::Mode::empty())
        {
            // The lowest free number: this one, since those below it are open.
            std::mem::forget(null);
        }
    }
}

/// The numbers from 3 on of what may be open descriptors of this process, ascending.
pub(crate) fn fd_numbers() -> Vec<i32> {
    /// Where they are numbered lower than this, as is usual, to try them is quicker than to have them listed.
    const USUAL: i32 = 256;
    // How many there are: proc_pid_fd(5), since Linux 6.2; 0 before that.
    if let Ok(directory) = rustix::fs::stat(c"/proc/self/fd")
        && let Ok(open @ 1..) = usize::try_from(directory.st_size)
    {
        let mut numbers: Vec<i32> =
            (0..USUAL).filter(|&number| sys::inherited_fd(number).is_some()).take(open).collect();
        if numbers.len() == open {
            numbers.retain(|&number| number > 2);
            return numbers;
        }
    }
    match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            let mut numbers: Vec<i32> = numbers.filter(|&number| number > 2).collect();
            numbers.sort_unstable();
            numbers
        }
        // No /proc: the numbers that programs use.
        Err(_) => (3..1024).collect(),
    }
}

/// The descriptors from 3 on that exec hands down.
pub(crate) fn handed_down() -> impl Iterator<Item = (i32, BorrowedFd<'static>)> {
    fd_numbers().into_iter().filter_map(|number| Some((number, sys::inherited_fd_kept_at_exec(number)?)))
}

/// Takes the descriptor `number` that this process was handed, and sets close-on-exec: jobs do not get it.
///
/// # Errors
/// [`Error::Invalid`] where it is not open for writing, or is a standard one. [`Error::System`] with `EBUSY` where it was
/// taken before.
pub fn adopt_descriptor(number: i32) -> Result<OwnedFd> {
    static TAKEN: Mutex<Vec<i32>> = Mutex::new(Vec::new());
    let refuse = |advice: &str| Error::invalid("descriptor", number.to_string(), advice);
    let descriptor = match number {
        0..3 => return Err(refuse("the standard ones are the job's")),
        _ => sys::inherited_fd(number).ok_or_else(|| refuse("it is not open"))?,
    };
    let writable =
        rustix::fs::fcntl_getfl(descriptor).is_ok_and(|flags| flags.intersects(OFlags::WRONLY | OFlags::RDWR));
    let ours = rustix::io::fcntl_getfd(descriptor).is_ok_and(|flags| flags.contains(FdFlags::CLOEXEC));
    if !writable || ours {
        return Err(refuse("it is not open for writing"));
    }
    let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
    if taken.contains(&number) {
        return Err(Error::system("take", format!("descriptor {number}"), Errno::BUSY, "it was taken before"));
    }
    taken.push(number);
    let failed = |errno| Error::system("take", format!("descriptor {number}"), errno, "");
    rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC).map_err(failed)?;
    sys::adopt_fd(number).map_err(failed)
}
