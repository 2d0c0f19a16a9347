//! Finds out whether Landlock refuses a signal or a trace. Landlock refuses these if the other process is outside of
//! the job (`hook_task_kill` and `hook_ptrace_access_check` in security/landlock/task.c).

use super::caller::{Caller, read_proc};
use super::text::to_text;
use crate::report::{Denial, DenialKind};

/// How to find the processes that belong to the job of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// They are in the cgroup of the caller or below it, because a job in a sandbox can't leave its cgroup.
    OfCgroup,
    /// They are the descendants of the process with this pid: the guard, which has only this job.
    DescendantsOf(i32),
}

impl Members {
    /// Returns whether a process or a thread belongs to the job of the caller.
    fn include(self, caller: &Caller, id: i32) -> bool {
        match self {
            Self::OfCgroup => {
                let own = cgroup_of(&caller.tid.to_string());
                let other = cgroup_of(&id.to_string());
                own.zip(other).is_some_and(|(own, other)| {
                    other.strip_prefix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                })
            }
            Self::DescendantsOf(guard) => {
                // The parents can change during the walk, so the walk has a bound.
                const MAX_STEPS: u32 = 10_000;
                let mut id = id;
                for _ in 0..MAX_STEPS {
                    match parent_of(id) {
                        Some(parent) if parent == guard => return true,
                        Some(parent @ 1..) => id = parent,
                        _ => return false,
                    }
                }
                false
            }
        }
    }
}

/// Returns the path of the cgroup v2 in which a process or a thread is (proc_pid_cgroup(5)).
fn cgroup_of(id: &str) -> Option<String> {
    let text = read_proc(&format!("/proc/{id}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Returns the value of a line of `/proc/PID/status`.
fn status_field(id: i32, key: &str) -> Option<String> {
    let status = read_proc(&format!("/proc/{id}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

fn parent_of(id: i32) -> Option<i32> {
    status_field(id, "PPid:")?.parse().ok()
}

/// Returns the denial if Landlock refuses a signal from the caller to `id`, which is a pid or a thread id. If `id` is
/// negative, it is a process group (kill(2)). The result is then the one for a signal to the leader of the group.
pub fn signal(caller: &Caller, members: Members, id: i32, call: &str) -> Option<Denial> {
    // 0 is the caller's own process group; -1 is every process that the caller may send signals to.
    let id = if id < -1 { id.checked_neg()? } else { id };
    if id <= 0 || id.cast_unsigned() == caller.pid() || id.cast_unsigned() == caller.tid {
        return None;
    }
    // The kernel requires that the caller's user is the real or the saved user of the other process
    // (`kill_ok_by_cred` in kernel/signal.c).
    let users = status_field(id, "Uid:")?;
    let mut users = users.split_whitespace();
    let uid = caller.credentials.uid.to_string();
    let is_allowed_without_sandbox = [users.next(), users.nth(1)].contains(&Some(uid.as_str()));
    (is_allowed_without_sandbox && !members.include(caller, id)).then(|| denial(DenialKind::Signal, id, call))
}

/// Returns the denial if Landlock does not let the caller trace the process `id` (ptrace(2)), or use its memory or
/// descriptors.
pub fn trace(caller: &Caller, members: Members, id: i32, call: &str) -> Option<Denial> {
    if id <= 0 || id.cast_unsigned() == caller.pid() || id.cast_unsigned() == caller.tid {
        return None;
    }
    // The kernel requires that the caller's user is the real, the effective and the saved user of the other process
    // (`__ptrace_may_access` in kernel/ptrace.c).
    let users = status_field(id, "Uid:")?;
    let uid = caller.credentials.uid.to_string();
    let is_allowed_without_sandbox = users.split_whitespace().take(3).all(|user| user == uid);
    (is_allowed_without_sandbox && !members.include(caller, id)).then(|| denial(DenialKind::Trace, id, call))
}

fn denial(kind: DenialKind, id: i32, call: &str) -> Denial {
    let name = status_field(id, "Name:").map_or_else(String::new, |name| format!(" ({})", to_text(name.as_bytes())));
    Denial::new(kind, format!("process {id}{name}"), call, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_outside_of_the_job_is_denied() {
        let own = std::process::id();
        let caller = Caller::new(own, false, None).unwrap();
        let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let id = child.id().cast_signed();
        assert!(Members::OfCgroup.include(&caller, id));
        assert!(Members::DescendantsOf(own.cast_signed()).include(&caller, id));
        assert!(!Members::DescendantsOf(id).include(&caller, own.cast_signed()));
        assert!(!Members::DescendantsOf(i32::MAX).include(&caller, id));
        let stranger = Members::DescendantsOf(i32::MAX);
        let denied = signal(&caller, stranger, id, "kill").unwrap();
        assert_eq!(denied.kind, DenialKind::Signal);
        assert!(denied.object.starts_with(&format!("process {id} (")), "{denied}");
        assert_eq!(signal(&caller, Members::OfCgroup, id, "kill"), None);
        assert_eq!(signal(&caller, stranger, 0, "kill"), None);
        assert_eq!(signal(&caller, stranger, -1, "kill"), None);
        assert!(signal(&caller, stranger, -id, "kill").is_some());
        assert!(trace(&caller, stranger, id, "ptrace").is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(signal(&caller, stranger, id, "kill"), None);
    }
}
