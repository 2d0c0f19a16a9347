//! Which processes the kernel's OOM killer takes first: those of jobs, not pinfold.
//!
//! `oom_score_adj` (proc_pid_oom_score_adj(5)) goes from -1000 (never) to 1000. Where this process may lower its own
//! (CAP_SYS_RESOURCE), supervisor or guard do so, and jobs have what the caller had. Elsewhere jobs get [`RAISED`] more than the
//! caller had.

use std::fs::File;
use std::io::{Read, Write};
use std::sync::OnceLock;

/// The kernel's file for the process that opens it.
pub(crate) const FILE: &std::ffi::CStr = c"/proc/self/oom_score_adj";

/// A caller that has this is never taken, nor are its jobs.
const NEVER: i32 = -1000;

/// The last to be taken.
const LOWEST: i32 = -999;

const HIGHEST: i32 = 1000;

/// In thousandths of the memory that there is: in a container of 16 MB, where pinfold has 3 MB and a small process some hundred
/// KB, the latter has to count for more.
const RAISED: i32 = 300;

/// What jobs get; none where they have it from the guard.
static JOBS: OnceLock<Option<i32>> = OnceLock::new();

/// Lowers this process's own, where that is allowed. The processes that it forks as guards inherit it.
pub(crate) fn protect() {
    JOBS.get_or_init(|| {
        let mut file = File::options().read(true).write(true).open(FILE.to_str().unwrap_or_default()).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let callers = text.trim().parse().ok()?;
        jobs(callers, || file.write_all(LOWEST.to_string().as_bytes()).is_ok())
    });
}

/// What this process gives to jobs, as text.
pub(crate) fn of_jobs() -> Option<String> {
    JOBS.get().copied().flatten().map(|value| value.to_string())
}

/// What jobs get where the caller has that; `lower` lowers our own.
fn jobs(callers: i32, lower: impl FnOnce() -> bool) -> Option<i32> {
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
    fn what_the_caller_has_set_counts() {
        for (callers, when_lowered, otherwise) in [
            (-1000, None, None),
            (-500, Some(-500), Some(-200)),
            (0, Some(0), Some(300)),
            (200, Some(200), Some(500)),
            (900, Some(900), Some(1000)),
            (1000, Some(1000), None),
        ] {
            assert_eq!((jobs(callers, || true), jobs(callers, || false)), (when_lowered, otherwise), "{callers}");
        }
    }
}
