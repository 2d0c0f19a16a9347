//! A process, as it was seen at one moment.

use serde::{Deserialize, Serialize};

/// A process as it was seen at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its process id, in the supervisor's PID namespace.
    pub pid: i32,
    /// Its parent's process id; 0 where the parent is outside the supervisor's PID namespace, or `/proc` does not show
    /// this process.
    pub parent: i32,
    /// Its command line, arguments separated by spaces, at most 4096 bytes, invalid UTF-8 replaced. The name in
    /// brackets where it has none. `[unknown]` where `/proc` does not show this process: it is not mounted, or hides what
    /// may not be traced, another user's for one (`hidepid`, proc(5)).
    pub command_line: String,
    /// Its state as in `/proc/PID/stat`: R running, S sleeping, D uninterruptible, T stopped, t traced, Z zombie; `?` where
    /// `/proc` does not show this process.
    pub state: char,
    /// Seconds since it was started, to a hundredth: `starttime` of `/proc/PID/stat` (proc_pid_stat(5)) against
    /// CLOCK_BOOTTIME. 0 where `/proc` does not show this process.
    pub age_seconds: f64,
    /// The kernel function that it waits in (`/proc/PID/wchan`), where that is known and asked for: only for
    /// processes that could not be ended.
    // Never skipped: the guard's messages are positional.
    #[serde(default)]
    pub wchan: Option<String>,
    /// The user that it runs as: its effective user id, from `/proc/PID/status` (proc_pid_status(5)); only for processes
    /// that could not be ended, null for others. A user who is not root may signal none of another's (kill(2)).
    #[serde(default)]
    pub user: Option<u32>,
}

impl std::fmt::Display for ProcessInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.pid, super::text::printable(&self.command_line))?;
        match self.user {
            Some(user) if user != rustix::process::geteuid().as_raw() => write!(f, " of user {user}"),
            _ => Ok(()),
        }
    }
}
