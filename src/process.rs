//! What `/proc` tells about one process, for the report.

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::pidfd::Pidfd;

/// A process as it was seen at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its process id, in the supervisor's PID namespace.
    pub pid: i32,
    /// Its parent's process id; 0 where the parent is outside the supervisor's PID namespace.
    pub parent: i32,
    /// Its command line, arguments separated by spaces, at most 4096 bytes, invalid UTF-8 replaced. The name in
    /// brackets where it has none.
    pub command_line: String,
    /// Its state as in `/proc/PID/stat`: R running, S sleeping, D uninterruptible, T stopped, t traced, Z zombie.
    pub state: char,
    /// Seconds since it was started, to a hundredth: `starttime` of `/proc/PID/stat` (proc_pid_stat(5)) against
    /// CLOCK_BOOTTIME.
    pub age_seconds: f64,
    /// The kernel function that it waits in (`/proc/PID/wchan`), where that is known and asked for: only for
    /// processes that could not be ended.
    // Never skipped: the guard's messages are positional.
    #[serde(default)]
    pub wchan: Option<String>,
}

impl ProcessInfo {
    /// Reads it, or `None` where the process is gone or `/proc` does not show it.
    pub(crate) fn read(pid: Pid) -> Option<Self> {
        Self::read_with(pid, command_line)
    }

    fn read_with(pid: Pid, command_line: impl Fn(i32) -> Option<String>) -> Option<Self> {
        let pid = pid.as_raw_nonzero().get();
        let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
        let (name, fields) = split_stat(&stat)?;
        let state = char::from(*fields.first()?.first()?);
        let parent = parse(fields.get(1)?)?;
        let started: u64 = parse(fields.get(19)?)?;
        let command_line = command_line(pid).unwrap_or_else(|| format!("[{name}]"));
        Some(Self { pid, parent, command_line, state, age_seconds: age(started), wchan: None })
    }

    /// Whether it has not ended: one whose first thread has ended looks like a zombie, and is none.
    pub(crate) fn lives(&self) -> bool {
        !matches!(self.state, 'Z' | 'X')
            || Pid::from_raw(self.pid).is_some_and(|pid| Pidfd::open(pid).is_ok_and(|pidfd| !pidfd.has_ended()))
    }

    /// The same, with at most 256 bytes of its command line.
    pub(crate) fn shortened(mut self) -> Self {
        let end = (0..=256.min(self.command_line.len())).rev().find(|&at| self.command_line.is_char_boundary(at));
        self.command_line.truncate(end.unwrap_or(0));
        self
    }

    /// Reads a process that may hang in the kernel, with the function that it waits in. Its name stands for its command line:
    /// to read that, its memory map is locked, which may never be had.
    pub(crate) fn read_unkillable(pid: Pid) -> Option<Self> {
        let wchan = std::fs::read_to_string(format!("/proc/{}/wchan", pid.as_raw_nonzero())).ok();
        let info = Self::read_with(pid, |_| None)?;
        Some(Self { wchan: wchan.filter(|name| !name.is_empty() && name != "0"), ..info })
    }
}

impl std::fmt::Display for ProcessInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, self.command_line)
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
    fn a_name_with_parentheses() {
        let (name, fields) = split_stat(b"7 (a) b (c)) S 1 2 3").unwrap();
        assert_eq!(name, "a) b (c)");
        assert_eq!(fields[0], b"S");
        assert!(split_stat(b"7 (").is_none());
    }
}
