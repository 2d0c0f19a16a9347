//! The state of a process at one moment.

use serde::{Deserialize, Serialize};

/// The state of a process at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its process id, in the supervisor's PID namespace.
    pub pid: i32,
    /// The process id of its parent; 0 if the parent is outside the supervisor's PID namespace, or if `/proc` does not
    /// show this process.
    pub parent: i32,
    /// Its command line, with the arguments separated by spaces: at most 4096 bytes, invalid UTF-8 replaced. If the
    /// process has no command line: its name in brackets. If `/proc` does not show the process: `[unknown]`. This is
    /// the case where `/proc` is not mounted, or hides processes that the supervisor may not trace, for example those
    /// of another user (`hidepid`, proc(5)).
    pub command_line: String,
    /// Its state, as in `/proc/PID/stat`: R running, S sleeping, D uninterruptible, T stopped, t traced, Z zombie; `?`
    /// if `/proc` does not show this process.
    pub state: char,
    /// Seconds since its start, with a resolution of a hundredth of a second: `starttime` of `/proc/PID/stat`
    /// (proc_pid_stat(5)), compared with CLOCK_BOOTTIME. 0 if `/proc` does not show this process.
    pub age_seconds: f64,
    /// The kernel function in which the process waits (`/proc/PID/wchan`). Null for processes that pinfold could end,
    /// and if the kernel does not report it.
    // Serialized even if it is None: the guard's messages are positional.
    #[serde(default)]
    pub wchan: Option<String>,
    /// The effective user id of the process, from `/proc/PID/status` (proc_pid_status(5)). Null for processes that
    /// pinfold could end. If pinfold does not run as root, it can't send signals to the processes of another user
    /// (kill(2)).
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
