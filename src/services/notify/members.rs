//! Finds out whether the sender of a message belongs to a job.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use rustix::process::Pid;

use crate::job::JobHandle;
use crate::kernel::process;
use crate::kernel::sender::Sender;

/// The largest number of ancestors to follow. Ancestors can change during the walk, so the walk needs a bound.
const MAX_ANCESTORS: u32 = 10_000;

/// The processes of one job: those in its cgroup, and the descendants of its main process or of its guard.
#[derive(Clone, Debug)]
pub(crate) struct Members {
    /// The leaf, and the id of this cgroup.
    leaf: Option<(PathBuf, Option<u64>)>,
    main: i32,
    /// Without a cgroup: the guard of this one job.
    guard: Option<i32>,
}

/// Whether a process belongs to the job.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Member,
    Stranger,
    /// The process is gone, and the kernel does not say in which cgroup it was.
    Unknown,
}

impl Members {
    /// Returns the members of a job.
    pub fn of(job: &JobHandle) -> Self {
        let leaf = job.cgroup().map(|leaf| (leaf.to_owned(), leaf.metadata().ok().map(|leaf| leaf.ino())));
        let guard = leaf.is_none().then(|| job.guard());
        Self { leaf, main: job.pid(), guard }
    }

    pub(super) fn verdict(&self, sender: &Sender) -> Verdict {
        // The kernel reports this cgroup for the process itself, also after the process has ended (Linux 6.15,
        // PIDFD_GET_INFO).
        let id = sender.pidfd.as_ref().and_then(|pidfd| pidfd.last_cgroup_id());
        let leaf = self.leaf.as_ref();
        if id.is_some() && leaf.is_some_and(|(_, leaf)| *leaf == id) {
            return Verdict::Member;
        }
        let Some(cgroup) = cgroup(sender.pid) else {
            return if id.is_some() && leaf.is_some() { Verdict::Stranger } else { Verdict::Unknown };
        };
        // A process of the job may make cgroups below the leaf.
        if leaf.is_some_and(|(leaf, _)| is_below(&cgroup, leaf)) || self.is_descendant(sender.pid) {
            return Verdict::Member;
        }
        // While pinfold read `/proc`, the process may have ended, and its pid may now belong to another process.
        match &sender.pidfd {
            Some(pidfd) if pidfd.has_ended() && Pid::from_raw(sender.pid).is_none_or(is_gone) => Verdict::Unknown,
            _ => Verdict::Stranger,
        }
    }

    fn is_descendant(&self, mut pid: i32) -> bool {
        for _ in 0..MAX_ANCESTORS {
            if pid == self.main {
                return true;
            }
            let Ok(stat) = std::fs::read(format!("/proc/{pid}/stat")) else { return false };
            match process::parent(&stat) {
                Some(parent) if Some(parent) == self.guard => return true,
                Some(parent @ 2..) => pid = parent,
                _ => return false,
            }
        }
        false
    }
}

fn is_gone(pid: Pid) -> bool {
    std::fs::metadata(format!("/proc/{}", pid.as_raw_nonzero())).is_err()
}

/// Returns the path of the cgroup v2 of a process, which may be a zombie.
fn cgroup(pid: i32) -> Option<PathBuf> {
    if pid <= 0 {
        return None;
    }
    let text = std::fs::read(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    Some(PathBuf::from(String::from_utf8_lossy(path).into_owned()))
}

/// Returns whether the cgroup is the leaf or below it. `/proc` shows a path from the root of the cgroup namespace, and
/// the leaf has a path in the file system. So only the last parts of both paths can be equal. If these parts begin with
/// the base, they are unique, because the name of a base has a random part.
fn is_below(cgroup: &Path, leaf: &Path) -> bool {
    let names_base = |path: &Path| {
        path.components()
            .any(|part| matches!(part, Component::Normal(name) if name.to_string_lossy().starts_with("pinfold-")))
    };
    cgroup
        .ancestors()
        .filter_map(|path| path.strip_prefix("/").ok())
        .any(|path| names_base(path) && leaf.ends_with(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::pidfd::Pidfd;

    #[test]
    fn cgroups_below_a_leaf() {
        let leaf = Path::new("/sys/fs/cgroup/user.slice/pinfold-7-ab/job-1");
        let is_below = |cgroup: &str| is_below(Path::new(cgroup), leaf);
        assert!(is_below("/user.slice/pinfold-7-ab/job-1") && is_below("/pinfold-7-ab/job-1/made/by/it"));
        for other in
            ["/", "/user.slice", "/user.slice/pinfold-7-ab", "/pinfold-7-ab/job-2", "/job-1", "/x/pinfold-7-ab/job-1"]
        {
            // The base contains other jobs too.
            assert!(!is_below(other), "{other}");
        }
    }

    #[test]
    fn descendants_and_strangers() {
        let own = std::process::id() as i32;
        let mut child = std::process::Command::new("sleep").arg("999").spawn().unwrap();
        let pid = child.id() as i32;
        let sender = |pid| Sender { pid, uid: 0, pidfd: Pid::from_raw(pid).and_then(|pid| Pidfd::open(pid).ok()) };
        let members = |main, guard| Members { leaf: None, main, guard };
        assert_eq!(members(own, None).verdict(&sender(pid)), Verdict::Member);
        assert_eq!(members(pid, Some(own)).verdict(&sender(pid)), Verdict::Member);
        assert_eq!(members(-1, Some(own)).verdict(&sender(pid)), Verdict::Member);
        assert_eq!(members(pid, None).verdict(&sender(own)), Verdict::Stranger);
        let ended = sender(pid);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(members(own, None).verdict(&ended), Verdict::Unknown);
    }
}
