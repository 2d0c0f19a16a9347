//! Makes the kernel's OOM killer choose processes of jobs before pinfold.
//!
//! `oom_score_adj` (proc_pid_oom_score_adj(5)) ranges from -1000 (the process is never killed) to 1000. If this process
//! may lower its own value (CAP_SYS_RESOURCE), the supervisor or the guard does so, and jobs get the caller's value.
//! Otherwise jobs get a value that is [`RAISED`] above the caller's.

use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};

/// The kernel's file for the process that opens it.
pub(crate) const FILE: &std::ffi::CStr = c"/proc/self/oom_score_adj";

/// The OOM killer never kills a caller with this value, nor its jobs.
const NEVER: i32 = -1000;

/// The lowest value at which the OOM killer can still kill the process.
const LOWEST: i32 = -999;

const HIGHEST: i32 = 1000;

/// How far the value of jobs is raised, in thousandths of the available memory. In a container with 16 MB of memory,
/// pinfold uses 3 MB and a small process a few hundred KB; with this value, the OOM killer still chooses the small
/// process before pinfold.
const RAISED: i32 = 300;

/// The value that jobs get; `None` if they inherit the right value from the guard.
static JOBS: OnceLock<Option<i32>> = OnceLock::new();

/// Lowers the value of this process, if that is allowed.
pub(crate) fn protect() {
    JOBS.get_or_init(|| {
        let file = rustix::fs::open(FILE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok()?;
        let mut text = [0; 16];
        let length = rustix::io::read(&file, &mut text).ok()?;
        let callers = std::str::from_utf8(&text[..length]).ok()?.trim().parse().ok()?;
        value_for_jobs(callers, || rustix::io::write(&file, LOWEST.to_string().as_bytes()).is_ok())
    });
}

/// Returns the value that jobs get; `None` if they inherit the right value.
pub(crate) fn of_jobs() -> Option<i32> {
    JOBS.get().copied().flatten()
}

/// Returns the value for jobs, from the caller's value. `lower` lowers the value of this process and returns whether
/// that was allowed.
fn value_for_jobs(callers: i32, lower: impl FnOnce() -> bool) -> Option<i32> {
    match callers {
        ..=NEVER => None,
        _ if lower() => Some(callers),
        _ => Some((callers + RAISED).min(HIGHEST)).filter(|&value| value != callers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_jobs_depends_on_that_of_the_caller() {
        for (callers, when_lowered, otherwise) in [
            (-1000, None, None),
            (-500, Some(-500), Some(-200)),
            (0, Some(0), Some(300)),
            (200, Some(200), Some(500)),
            (900, Some(900), Some(1000)),
            (1000, Some(1000), None),
        ] {
            assert_eq!(
                (value_for_jobs(callers, || true), value_for_jobs(callers, || false)),
                (when_lowered, otherwise),
                "{callers}"
            );
        }
    }
}
