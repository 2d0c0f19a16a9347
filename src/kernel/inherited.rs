//! The state that this process inherited from its caller, so that the job gets it unchanged: the signal mask, the
//! ignored signals, the open descriptors, the limit on open files.
//!
//! Before `main`, Rust's runtime ignores SIGPIPE and opens `/dev/null` on closed standard descriptors. Therefore a
//! constructor that runs before the runtime reads the inherited state of SIGPIPE and of these descriptors.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::kernel::{descriptor, rlimit, signal_set};

const SIGPIPE_IGNORED: u8 = 1 << 3;

/// Bits 0 to 2: the standard descriptor of this number was closed. Bit 3: SIGPIPE was ignored.
static BEFORE_MAIN: AtomicU8 = AtomicU8::new(0);

/// Reads which standard descriptors are closed, and whether SIGPIPE is ignored. For the constructor that runs before
/// `main`.
pub(crate) fn read_before_main() {
    let mut state = 0;
    for number in 0..3 {
        if !descriptor::is_open(number) {
            state |= 1 << number;
        }
    }
    if signal_set::is_ignored(libc::SIGPIPE) {
        state |= SIGPIPE_IGNORED;
    }
    BEFORE_MAIN.store(state, Ordering::Relaxed);
}

/// Signal dispositions and mask as this process inherited them from its caller.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Signals {
    /// Blocked signals, as a bit mask.
    pub blocked: u64,
    /// Ignored signals, as a bit mask.
    pub ignored: u64,
}

/// Returns the signal state as it was at the first call of this function. `pinfold::init()` makes that call at the
/// start of `main`.
pub(crate) fn signals() -> Signals {
    static SIGNALS: OnceLock<Signals> = OnceLock::new();
    *SIGNALS.get_or_init(|| {
        let mut ignored = signal_set::ignored_signals() & !signal_set::bit(libc::SIGPIPE);
        if BEFORE_MAIN.load(Ordering::Relaxed) & SIGPIPE_IGNORED != 0 {
            ignored |= signal_set::bit(libc::SIGPIPE);
        }
        Signals { blocked: signal_set::signal_mask(), ignored }
    })
}

static OPEN_FILES: OnceLock<Option<(u64, u64)>> = OnceLock::new();

/// Raises this process's own limits on open files and on its stack, so that low limits that it inherited from the
/// caller do not hinder its work. The soft limit is raised up to the hard limit, and the hard limit too if this process
/// may raise it (CAP_SYS_RESOURCE, getrlimit(2)). Jobs still get the caller's limit on open files.
///
/// For programs that do nothing except supervise, such as the `pinfold` command, and that keep their inherited
/// descriptors open: jobs then get those descriptors themselves, not copies. Call this function after
/// [`Guard::fork`](crate::Guard::fork), because jobs have the guard's stack limit. Returns the soft limit on open files
/// as it is now, or `None` if a seccomp profile does not let this process read it.
#[cfg(feature = "cli")]
pub(crate) fn raise_own_limits() -> Option<u64> {
    /// The default limit on the stack (`_STK_LIM`, include/uapi/linux/resource.h).
    const STACK: u64 = 8 << 20;
    OPEN_FILES.get_or_init(|| rlimit::limit(libc::RLIMIT_NOFILE));
    rlimit::raise_open_files_limit();
    rlimit::raise_limit(libc::RLIMIT_STACK, STACK);
    rlimit::limit(libc::RLIMIT_NOFILE).map(|(soft, _)| soft)
}

/// Returns whether this program has called [`raise_own_limits`].
pub(crate) fn only_supervises() -> bool {
    OPEN_FILES.get().is_some()
}

/// Returns the soft and the hard limit on open files for jobs: the caller's, even if this process has raised its own.
/// `None` if the limits cannot be read.
pub(crate) fn open_files_limit() -> Option<(u64, u64)> {
    OPEN_FILES.get().copied().unwrap_or_else(|| rlimit::limit(libc::RLIMIT_NOFILE))
}

/// Returns whether the standard descriptor `number` (0 to 2) was closed when this process was started. Rust's runtime
/// has opened `/dev/null` there since.
#[must_use]
pub(crate) fn was_closed(number: i32) -> bool {
    (0..3).contains(&number) && BEFORE_MAIN.load(Ordering::Relaxed) & (1 << number) != 0
}

/// Opens `/dev/null` on closed standard descriptors, so that no other file gets their numbers. Rust's runtime does the
/// same; this function is for programs without Rust's runtime.
pub(crate) fn fill_closed_stdio() {
    for number in (0..3).filter(|&number| was_closed(number)) {
        if !descriptor::is_open(number)
            && let Ok(null) = rustix::fs::open(c"/dev/null", OFlags::RDWR, rustix::fs::Mode::empty())
        {
            // open(2) returns the lowest free number. That is `number`, because all lower ones are open.
            std::mem::forget(null);
        }
    }
}

/// Returns the numbers, 3 and higher, of the open descriptors that exec keeps open, in ascending order.
pub(crate) fn inheritable_numbers() -> Vec<i32> {
    usual_numbers(|flags| flags & libc::FD_CLOEXEC == 0)
        .unwrap_or_else(|| fd_numbers().into_iter().filter(|&number| descriptor::stays_open_at_exec(number)).collect())
}

/// Returns the numbers, 3 and higher, under which this process may have open descriptors, in ascending order.
pub(crate) fn fd_numbers() -> Vec<i32> {
    usual_numbers(|_| true).unwrap_or_else(|| match std::fs::read_dir("/proc/self/fd") {
        Ok(entries) => {
            let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
            let mut numbers: Vec<i32> = numbers.filter(|&number| number > 2).collect();
            numbers.sort_unstable();
            numbers
        }
        // Without /proc: the numbers that programs commonly use.
        Err(_) => (3..1024).collect(),
    })
}

/// Returns the numbers, 3 and higher, of the open descriptors whose flags are `wanted`. Returns `None` if some of the
/// descriptors may have numbers above the usual ones.
fn usual_numbers(wanted: impl Fn(i32) -> bool) -> Option<Vec<i32>> {
    /// Usually all numbers are below this one. Then it is faster to try each number than to list the directory.
    const USUAL: i32 = 256;
    // The size of the directory is the number of open descriptors: proc_pid_fd(5), since Linux 6.2; 0 before that.
    let directory = rustix::fs::stat(c"/proc/self/fd").ok()?;
    let mut left = usize::try_from(directory.st_size).ok().filter(|&open| open > 0)?;
    let mut numbers = Vec::new();
    for number in 0..USUAL {
        let Some(flags) = descriptor::flags(number) else { continue };
        if number > 2 && wanted(flags) {
            numbers.push(number);
        }
        left -= 1;
        if left == 0 {
            return Some(numbers);
        }
    }
    None
}

/// Returns a copy of the descriptor `number` if exec keeps it open; `None` if it is closed or has the close-on-exec
/// flag.
///
/// Another thread may close this descriptor and open another file under its number at any moment. A job never gets a
/// file that has the close-on-exec flag.
pub(crate) fn copy_of_inheritable(number: i32) -> rustix::io::Result<Option<OwnedFd>> {
    /// If the file under this number changes at each try, another thread uses the number, and the job does not get it.
    const MAX_TRIES: usize = 10;
    for _ in 0..MAX_TRIES {
        if !descriptor::stays_open_at_exec(number) {
            return Ok(None);
        }
        let copy = match descriptor::copy(number) {
            Err(Errno::BADF) => return Ok(None),
            copy => copy?,
        };
        if is_still_inheritable(copy.as_fd(), number) {
            return Ok(Some(copy));
        }
    }
    Ok(None)
}

/// Returns whether `number` still refers to the open file description of `copy` and has no close-on-exec flag. If it
/// does not, another thread opened the copied file under this number between the check and the copy.
fn is_still_inheritable(copy: BorrowedFd<'_>, number: i32) -> bool {
    // For files without an inode of their own (eventfd(2), epoll(7)), only kcmp(2) shows the difference. Containers may
    // refuse this call.
    if descriptor::share_open_file_description(copy.as_raw_fd(), number) == Ok(false) {
        return false;
    }
    match (FdInfo::of(number), FdInfo::of(copy.as_raw_fd())) {
        (Some(there), Some(copy)) => !there.is_closed_at_exec && there.file == copy.file,
        _ => descriptor::stays_open_at_exec(number),
    }
}

/// Properties of a descriptor that the kernel shows, all read at the same moment (proc_pid_fdinfo(5)).
struct FdInfo {
    is_closed_at_exec: bool,
    /// The mount (`mnt_id`) and the inode (`ino`, Linux 5.14).
    file: [Option<u64>; 2],
}

impl FdInfo {
    fn of(number: i32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).ok()?;
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let flags = u64::from_str_radix(value("flags:")?, 8).ok()?;
        let number = |key| value(key).and_then(|value| value.parse().ok());
        Some(Self {
            is_closed_at_exec: flags & u64::from(OFlags::CLOEXEC.bits()) != 0,
            file: [number("mnt_id:"), number("ino:")],
        })
    }
}

/// Returns a copy of a standard descriptor; `None` if it is closed. Its close-on-exec flag is ignored, because a job
/// inherits its standard streams by number (`Stdio::Inherit`).
pub(crate) fn copy_of_stream(number: i32) -> rustix::io::Result<Option<OwnedFd>> {
    match descriptor::copy(number) {
        Err(Errno::BADF) => Ok(None),
        copy => copy.map(Some),
    }
}

/// Returns the resources (getrlimit(2)) whose current limits in this process apply to each job that starts later. Two
/// kinds are left out: open files, because that limit is sent with each job, and the resources that
/// [`raise_own_limits`] has changed for this process alone.
pub(crate) fn followed_limits() -> impl Iterator<Item = u32> {
    /// `RLIM_NLIMITS` (include/uapi/asm-generic/resource.h).
    const ALL: u32 = 16;
    let raised = only_supervises();
    (0..ALL).filter(move |&resource| {
        i64::from(resource) != i64::from(libc::RLIMIT_NOFILE)
            && !(raised && i64::from(resource) == i64::from(libc::RLIMIT_STACK))
    })
}
