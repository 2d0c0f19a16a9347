//! What `/proc` tells about one process, for the report.

use std::time::Instant;

use rustix::io::Errno;
use rustix::process::Pid;

use crate::kernel::pidfd::Pidfd;
use crate::report::{ProcessInfo, ProcessList};

impl ProcessList {
    const DESCRIBED: usize = 256;

    /// Counts one that still runs, and describes it as well as it can be; beyond what is described, only counts.
    pub(crate) fn add(&mut self, pid: Pid) {
        if self.processes.len() >= Self::DESCRIBED {
            self.count += 1;
        } else if let Some(process) = ProcessInfo::of_living(pid) {
            self.count += 1;
            self.processes.push(process);
        }
    }

    /// The same while there is time to look at it; then it is counted.
    pub(crate) fn add_until(&mut self, bound: Instant, pid: Pid) {
        if Instant::now() < bound {
            self.add(pid);
        } else {
            self.count += 1;
        }
    }

    /// The same for one that SIGKILL did not end.
    pub(crate) fn add_unkillable(&mut self, pid: Pid) {
        if self.processes.len() >= Self::DESCRIBED {
            self.count += 1;
        } else if let Some(process) = ProcessInfo::of_living_unkillable(pid) {
            self.count += 1;
            self.processes.push(process);
        }
    }

    /// Adds those that were counted elsewhere, some of them described.
    pub(crate) fn add_counted(&mut self, described: Vec<ProcessInfo>, count: u64) {
        self.count += count;
        self.processes.extend(described);
    }
}

impl ProcessInfo {
    /// Reads it, or `None` where the process is gone or `/proc` does not show it.
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

    /// The same for one that was just seen to run: described without `/proc` too, `None` only where it has ended.
    pub(crate) fn of_living(pid: Pid) -> Option<Self> {
        Self::living(pid, Self::read(pid))
    }

    /// The same for one that may hang in the kernel.
    pub(crate) fn of_living_unkillable(pid: Pid) -> Option<Self> {
        Self::living(pid, Self::read_unkillable(pid))
    }

    fn living(pid: Pid, read: Option<Self>) -> Option<Self> {
        match read {
            // One whose first thread has ended looks like a zombie, and is none.
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

    /// The same, with at most 256 bytes of its command line.
    pub(crate) fn shortened(mut self) -> Self {
        let end = (0..=256.min(self.command_line.len())).rev().find(|&at| self.command_line.is_char_boundary(at));
        self.command_line.truncate(end.unwrap_or(0));
        self
    }

    /// Reads a process that SIGKILL did not end, with its user and the function that it waits in. Where it may hang in the
    /// kernel, its name stands for its command line: to read that, its memory map is locked, which may never be had.
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

/// Whether a thread of it is in state D, which may be for good.
fn may_hang(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return true };
    threads.flatten().any(|thread| {
        let stat = std::fs::read(thread.path().join("stat")).unwrap_or_default();
        split_stat(&stat).is_some_and(|(_, fields)| fields.first() == Some(&b"D".as_slice()))
    })
}

/// From `/proc/PID/status`: the real, effective, saved and file system user id.
fn effective_user(status: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// Whether the process ids in `/proc` are those of this process's PID namespace: `ESRCH` where they are not, or the errno with which
/// it can't be read. A `/proc` of another namespace shows other processes under the same numbers.
pub(crate) fn proc_is_own() -> rustix::io::Result<()> {
    let own = std::fs::read_link("/proc/self").map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let same = own.to_str().and_then(|own| own.parse().ok()) == Some(rustix::process::getpid().as_raw_nonzero().get());
    if same { Ok(()) } else { Err(Errno::SRCH) }
}

/// Whether `pid` is nobody's, or that of a process that has ended. What can't be asked is not taken for an end.
fn has_ended(pid: Pid) -> bool {
    match Pidfd::open(pid) {
        Ok(pidfd) => pidfd.has_ended(),
        Err(errno) => errno == Errno::SRCH,
    }
}

/// The name and the fields after it (from `state`, field 3, on) of `/proc/PID/stat`. The name stands in parentheses
/// and may hold any byte, parentheses too (proc_pid_stat(5)).
fn split_stat(stat: &[u8]) -> Option<(String, Vec<&[u8]>)> {
    let open = stat.iter().position(|&byte| byte == b'(')?;
    let close = stat.iter().rposition(|&byte| byte == b')')?;
    let name = String::from_utf8_lossy(stat.get(open + 1..close)?).into_owned();
    let fields = stat.get(close + 2..)?.split(|&byte| byte == b' ').collect();
    Some((name, fields))
}

/// PF_EXITING of the kernel (include/linux/sched.h).
const EXITING: u64 = 4;

/// Whether a process is about to end, from the flags in its `/proc/PID/stat`: it has left its cgroup then, and may still
/// wait, as the first process of a PID namespace does for the others. A zombie's flags tell only of its first thread.
pub(crate) fn is_exiting(stat: &[u8]) -> bool {
    let Some((_, fields)) = split_stat(stat) else { return false };
    let flags = fields.get(6).and_then(|flags| parse::<u64>(flags)).unwrap_or(0);
    fields.first() != Some(&b"Z".as_slice()) && flags & EXITING != 0
}

/// The state of a process, as a letter, from its `/proc/PID/stat`.
pub(crate) fn state(stat: &[u8]) -> Option<u8> {
    split_stat(stat)?.1.first()?.first().copied()
}

/// The parent of a process, from its `/proc/PID/stat`.
pub(crate) fn parent(stat: &[u8]) -> Option<i32> {
    parse(split_stat(stat)?.1.get(1)?)
}

/// The start time of a process in clock ticks since boot, from its `/proc/PID/stat`.
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

/// Seconds since boot, less the start time in clock ticks since boot.
fn age(started_ticks: u64) -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let started = started_ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    let age = now.tv_sec as f64 + now.tv_nsec as f64 / 1e9 - started;
    (age.max(0.0) * 100.0).round() / 100.0
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
    fn one_that_proc_does_not_show_lives_all_the_same() {
        let own = rustix::process::getpid();
        let unknown = ProcessInfo::living(own, None).unwrap();
        assert_eq!((unknown.pid, unknown.parent, unknown.state), (own.as_raw_nonzero().get(), 0, '?'));
        // One that has ended is nobody, whether it has been reaped or not.
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
    fn of_one_that_does_not_end() {
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
