//! Which signals and traces Landlock refuses: those to a process outside of the job (`hook_task_kill` and
//! `hook_ptrace_access_check` in security/landlock/task.c).

use super::caller::{Caller, read};
use super::text::shown;
use crate::report::{Denial, DenialKind};

/// Which processes belong to the job of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Members {
    /// Those in the cgroup of the caller: a job in a sandbox can't leave its cgroup.
    OfCgroup,
    /// The descendants of this process, the guard of this one job.
    DescendantsOf(i32),
}

impl Members {
    /// Returns whether a process or a thread belongs to the job of the caller.
    fn include(self, caller: &Caller, id: i32) -> bool {
        match self {
            Self::OfCgroup => {
                let own = cgroup(&caller.thread.to_string());
                let other = cgroup(&id.to_string());
                own.zip(other).is_some_and(|(own, other)| {
                    other.strip_prefix(own.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                })
            }
            Self::DescendantsOf(guard) => {
                // The parents can change during the walk, so the walk has a bound.
                const LONGEST: u32 = 10_000;
                let mut id = id;
                for _ in 0..LONGEST {
                    match parent(id) {
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

/// Returns the path of the cgroup v2.
fn cgroup(id: &str) -> Option<String> {
    let text = read(&format!("/proc/{id}/cgroup")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

fn field(id: i32, key: &str) -> Option<String> {
    let status = read(&format!("/proc/{id}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix(key)).map(|value| value.trim().to_owned())
}

fn parent(id: i32) -> Option<i32> {
    field(id, "PPid:")?.parse().ok()
}

/// Returns the refusal of a signal to the process with this number (kill(2)).
pub fn signal(caller: &Caller, members: Members, id: i32, call: &str) -> Option<Denial> {
    // 0 is the caller's own process group; -1 is every process that the caller may send signals to.
    let id = if id < -1 { id.checked_neg()? } else { id };
    if id <= 0 || id.cast_unsigned() == caller.process() || id.cast_unsigned() == caller.thread {
        return None;
    }
    // `kill_ok_by_cred` in kernel/signal.c: the real or the saved user of the other process.
    let users = field(id, "Uid:")?;
    let mut users = users.split_whitespace();
    let uid = caller.credentials.uid.to_string();
    let is_allowed = [users.next(), users.nth(1)].contains(&Some(uid.as_str()));
    (is_allowed && !members.include(caller, id)).then(|| denial(DenialKind::Signal, id, call))
}

/// Returns the refusal of a trace of the process with this number (ptrace(2)), or of an access to its memory.
pub fn trace(caller: &Caller, members: Members, id: i32, call: &str) -> Option<Denial> {
    if id <= 0 || id.cast_unsigned() == caller.process() || id.cast_unsigned() == caller.thread {
        return None;
    }
    // `__ptrace_may_access` in kernel/ptrace.c: all users of the other process.
    let users = field(id, "Uid:")?;
    let uid = caller.credentials.uid.to_string();
    let is_allowed = users.split_whitespace().take(3).all(|user| user == uid);
    (is_allowed && !members.include(caller, id)).then(|| denial(DenialKind::Trace, id, call))
}

fn denial(kind: DenialKind, id: i32, call: &str) -> Denial {
    let name = field(id, "Name:").map_or_else(String::new, |name| format!(" ({})", shown(name.as_bytes())));
    Denial::new(kind, format!("process {id}{name}"), call, Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_members_of_a_job_are_known() {
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
