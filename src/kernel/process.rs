//! One process: what `/proc` shows of it, its process group, its name.

#![allow(unsafe_code)]

use std::time::Instant;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::kernel::pidfd::Pidfd;
use crate::report::{ProcessInfo, ProcessList};

impl ProcessList {
    /// The highest number of processes that a list describes.
    const MAX_DESCRIBED: usize = 256;

    /// Counts a process that still runs, and describes it as far as possible. A process beyond [`Self::MAX_DESCRIBED`] is
    /// only counted.
    pub(crate) fn add(&mut self, pid: Pid) {
        if self.processes.len() >= Self::MAX_DESCRIBED {
            self.count += 1;
        } else if let Some(process) = ProcessInfo::of_living(pid) {
            self.count += 1;
            self.processes.push(process);
        }
    }

    /// Does the same as [`Self::add`] before the time `bound`. After that time it only counts the process, because a
    /// description takes time.
    pub(crate) fn add_until(&mut self, bound: Instant, pid: Pid) {
        if Instant::now() < bound {
            self.add(pid);
        } else {
            self.count += 1;
        }
    }

    /// Does the same as [`Self::add`] for a process that SIGKILL did not end.
    pub(crate) fn add_unkillable(&mut self, pid: Pid) {
        if self.processes.len() >= Self::MAX_DESCRIBED {
            self.count += 1;
        } else if let Some(process) = ProcessInfo::of_living_unkillable(pid) {
            self.count += 1;
            self.processes.push(process);
        }
    }

    /// Adds `count` processes that another process has counted; `described` describes some of them.
    pub(crate) fn add_counted(&mut self, described: Vec<ProcessInfo>, count: u64) {
        self.count += count;
        self.processes.extend(described);
    }
}

impl ProcessInfo {
    /// Reads the description of a process. Returns `None` if the process is gone or `/proc` does not show it.
    pub(crate) fn read(pid: Pid) -> Option<Self> {
        Self::read_with(pid, command_line)
    }

    fn read_with(pid: Pid, command_line: impl Fn(i32) -> Option<String>) -> Option<Self> {
        proc_is_own().ok()?;
        let pid = pid.as_raw_nonzero().get();
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let (name, fields) = split_stat(&stat)?;
        let state = char::from(*fields.first()?.first()?);
        let parent = parse(fields.get(1)?)?;
        let started: u64 = parse(fields.get(19)?)?;
        let command_line = command_line(pid).unwrap_or_else(|| format!("[{name}]"));
        Some(Self { pid, parent, command_line, state, age_seconds: age(started), wchan: None, user: None })
    }

    /// Returns the description of a process that was running a moment ago, even if `/proc` does not show it. Returns
    /// `None` only if the process has ended.
    pub(crate) fn of_living(pid: Pid) -> Option<Self> {
        Self::living(pid, Self::read(pid))
    }

    /// Does the same as [`Self::of_living`] for a process that may hang in the kernel.
    pub(crate) fn of_living_unkillable(pid: Pid) -> Option<Self> {
        Self::living(pid, Self::read_unkillable(pid))
    }

    fn living(pid: Pid, read: Option<Self>) -> Option<Self> {
        match read {
            // A process whose first thread has ended looks like a zombie, although other threads still run.
            Some(process) if !matches!(process.state, 'Z' | 'X') => Some(process),
            _ if has_ended(pid) => None,
            Some(process) => Some(process),
            None => Some(Self {
                pid: pid.as_raw_nonzero().get(),
                parent: 0,
                command_line: "[unknown]".into(),
                state: '?',
                age_seconds: 0.0,
                wchan: None,
                user: None,
            }),
        }
    }

    /// Shortens the command line to at most 256 bytes.
    pub(crate) fn shortened(mut self) -> Self {
        let end = (0..=256.min(self.command_line.len())).rev().find(|&at| self.command_line.is_char_boundary(at));
        self.command_line.truncate(end.unwrap_or(0));
        self
    }

    /// Reads the description of a process that SIGKILL did not end, with its user and the kernel function that it waits
    /// in. If the process may hang in the kernel, its name replaces its command line: to read the command line, the
    /// kernel locks the memory map of the process, and that lock may never become free.
    pub(crate) fn read_unkillable(pid: Pid) -> Option<Self> {
        let file = |name| format!("/proc/{}/{name}", pid.as_raw_nonzero());
        let wchan = std::fs::read_to_string(file("wchan")).ok();
        let status = std::fs::read_to_string(file("status")).unwrap_or_default();
        let info = Self::read_with(pid, |pid| if may_hang(pid) { None } else { command_line(pid) })?;
        Some(Self {
            wchan: wchan.filter(|name| !name.is_empty() && name != "0"),
            user: effective_user(&status),
            ..info
        })
    }
}

/// Returns whether a thread of the process is in state D, which may never end.
fn may_hang(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().any(|thread| {
        let stat = std::fs::read(thread.path().join("stat")).unwrap_or_default();
        split_stat(&stat).is_some_and(|(_, fields)| fields.first() == Some(&b"D".as_slice()))
    })
}

/// Returns the effective user id from the text of `/proc/PID/status`, whose line `Uid:` has the real, effective, saved
/// and file system user id.
fn effective_user(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Checks that `/proc` belongs to this process's PID namespace: the `/proc` of another namespace shows other processes
/// under the same numbers. Fails with `ESRCH` if it does not, or with the errno of reading `/proc/self`.
pub(crate) fn proc_is_own() -> rustix::io::Result<()> {
    let own = std::fs::read_link("/proc/self").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let same = own.to_str().and_then(|own| own.parse().ok()) == Some(rustix::process::getpid().as_raw_nonzero().get());
    if same { Ok(()) } else { Err(Errno::SRCH) }
}

/// Returns whether no process has `pid`, or the process has ended. Returns `false` if it cannot find out.
fn has_ended(pid: Pid) -> bool {
    match Pidfd::open(pid) {
        Ok(pidfd) => pidfd.has_ended(),
        Err(errno) => errno == Errno::SRCH,
    }
}

/// Returns the name, and the fields after it (from `state`, field 3, on), of `/proc/PID/stat`. The name is in
/// parentheses and may contain any byte, including parentheses (proc_pid_stat(5)).
fn split_stat(stat: &[u8]) -> Option<(String, Vec<&[u8]>)> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let name = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    let fields = stat.get(close + 2..)?.split(|&byte| byte == b' ').collect();
    Some((name, fields))
}

/// PF_EXITING of the kernel (include/linux/sched.h).
const EXITING: u64 = 4;

/// Returns whether a process is about to end, from the flags in its `/proc/PID/stat`. Such a process has left its
/// cgroup, but can still exist for some time: the first process of a PID namespace waits for the end of the others. A
/// zombie's flags describe only its first thread, so the result is `false` for a zombie.
pub(crate) fn is_exiting(stat: &[u8]) -> bool {
    let Some((_, fields)) = split_stat(stat) else { return false };
    let flags = fields.get(6).and_then(|flags| parse::<u64>(flags)).unwrap_or(0);
    fields.first() != Some(&b"Z".as_slice()) && flags & EXITING != 0
}

/// Returns the state of a process, as a letter, from its `/proc/PID/stat`.
pub(crate) fn state(stat: &[u8]) -> Option<u8> {
    split_stat(stat)?.1.first()?.first().copied()
}

/// Returns the parent of a process, from its `/proc/PID/stat`.
pub(crate) fn parent(stat: &[u8]) -> Option<i32> {
    parse(split_stat(stat)?.1.get(1)?)
}

/// Returns the CPU time of a process and of the children that it has waited for, in clock ticks, from its
/// `/proc/PID/stat` (the fields utime, stime, cutime and cstime).
#[cfg(feature = "cli")]
pub(crate) fn cpu_ticks(stat: &[u8]) -> Option<u64> {
    let (_, fields) = split_stat(stat)?;
    fields.get(11..15)?.iter().map(|field| parse::<u64>(field)).sum()
}

/// Returns the start time of a process in clock ticks since boot, from its `/proc/PID/stat`.
pub(crate) fn start_ticks(stat: &[u8]) -> Option<u64> {
    parse(split_stat(stat)?.1.get(19)?)
}

fn parse<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

fn command_line(pid: i32) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/cmdline")).ok()?.take(4096).read_to_end(&mut bytes).ok()?;
    let arguments = bytes.strip_suffix(b"\0").unwrap_or(&bytes);
    if arguments.is_empty() {
        return None;
    }
    let line: Vec<_> = arguments.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
    Some(line.join(" "))
}

/// Returns the age of a process in seconds: the time since boot minus its start time, which is in clock ticks since
/// boot.
fn age(started_ticks: u64) -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let started = started_ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    let age = now.tv_sec as f64 + now.tv_nsec as f64 / 1e9 - started;
    (age.max(0.0) * 100.0).round() / 100.0
}

/// Returns the process group of this process, or `None` if the group is from outside of its PID namespace (getpgrp(2)
/// returns 0).
pub(crate) fn own_process_group() -> Option<i32> {
    // SAFETY: getpgrp(2) has no obligations.
    Some(unsafe { libc::getpgrp() }).filter(|&group| group > 0)
}

/// Returns the process group of a process; 0 if the group is from outside of the caller's PID namespace, -1 if the
/// process does not exist.
pub(crate) fn process_group_of(pid: rustix::process::Pid) -> i32 {
    // SAFETY: getpgid(2) has no obligations.
    unsafe { libc::getpgid(pid.as_raw_nonzero().get()) }
}

/// Returns a set of signals of a process as a bit mask, by its name in `/proc/PID/status`: for example `ShdPnd`, the
/// signals that are pending for the process, or `SigBlk`, those that its first thread blocks (proc_pid_status(5)).
/// Returns `None` if the process does not exist.
pub(crate) fn signals_in_status(pid: i32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mask = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

/// Sets the name that `ps -o comm` shows, of at most 15 bytes (PR_SET_NAME, prctl(2)).
pub(crate) fn set_name(name: &str) {
    let mut bytes = [0_u8; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    // SAFETY: the name has 16 bytes and ends with NUL.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process() {
        let own = ProcessInfo::read(rustix::process::getpid()).unwrap();
        assert_eq!(own.parent, rustix::process::getppid().unwrap().as_raw_nonzero().get());
        assert!(own.command_line.contains("pinfold"), "{own}");
        assert!(own.age_seconds < 3600.0);
    }

    #[test]
    fn a_process_that_proc_does_not_show_counts_as_living() {
        let own = rustix::process::getpid();
        let unknown = ProcessInfo::living(own, None).unwrap();
        assert_eq!((unknown.pid, unknown.parent, unknown.state), (own.as_raw_nonzero().get(), 0, '?'));
        // A process that has ended does not count, whether it has been reaped or not.
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id() as i32).unwrap();
        rustix::process::waitid(
            rustix::process::WaitId::Pid(pid),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(ProcessInfo::living(pid, None), None);
        assert_eq!(ProcessInfo::of_living(pid), None);
        child.wait().unwrap();
        assert_eq!(ProcessInfo::of_living(pid), None);
    }

    #[test]
    fn description_of_an_unkillable_process() {
        let own = ProcessInfo::read_unkillable(rustix::process::getpid()).unwrap();
        assert!(own.command_line.contains("pinfold"), "{own}");
        assert_eq!(own.user, Some(rustix::process::geteuid().as_raw()));
        let others = ProcessInfo { user: own.user.map(|user| user + 1), ..own.clone() };
        assert_eq!(others.to_string(), format!("{own} of user {}", others.user.unwrap()));
        assert_eq!(effective_user("Name:\tx\nUid:\t1000\t0\t1\t2\nGid:\t7\n"), Some(0));
    }

    #[test]
    fn a_name_with_parentheses() {
        let (name, fields) = split_stat(b"7 (a) b (c)) S 1 2 3").unwrap();
        assert_eq!(name, "a) b (c)");
        assert_eq!(fields[0], b"S");
        assert!(split_stat(b"7 (").is_none());
    }
}
