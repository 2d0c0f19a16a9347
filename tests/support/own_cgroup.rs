//! Cgroups that tests make for themselves, inside the cgroup in which they run.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{own_cgroup, wait_for};

/// A cgroup directory for one test. It is removed at the end of the test, and must be empty then.
pub struct OwnCgroup {
    pub path: PathBuf,
    litter: bool,
}

impl OwnCgroup {
    pub fn new() -> Self {
        Self::try_new().unwrap()
    }

    /// Returns `None` where this user may not make one.
    pub fn try_new() -> Option<Self> {
        Self::below(&own_cgroup())
    }

    /// The same in another cgroup.
    pub fn below(above: &Path) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = above.join(format!("pinfold_test-{}-{number}", std::process::id()));
        // Where no cgroup file system is mounted, the path is not absolute.
        let made = path.is_absolute() && std::fs::create_dir(&path).is_ok();
        made.then(|| Self { path, litter: false })
    }

    /// The same, delegated to a user (cgroups(7), "Delegation").
    pub fn of(uid: u32) -> Self {
        let delegated = Self::new();
        for path in [delegated.path.clone(), delegated.path.join("cgroup.procs")] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
        delegated
    }

    /// Allows directories to be left in it, where a program other than pinfold makes them, or where the test itself
    /// ends the processes.
    pub fn littered(mut self) -> Self {
        self.litter = true;
        self
    }

    /// Returns a script that enters it.
    pub fn enter(&self) -> String {
        format!("echo $$ >{}/cgroup.procs || exit 98", self.path.display())
    }

    pub fn directories(&self) -> usize {
        directories(&self.path).len()
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let left = directories(&self.path);
        remove(&self.path);
        assert!(self.litter || left.is_empty() || std::thread::panicking(), "{left:#?}");
    }
}

fn directories(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// Removes it, with everything that a failed test has left in it.
fn remove(directory: &Path) {
    let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid: &i32| pid > 0) {
        // SAFETY: kills only processes in a cgroup of the test's own.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(pid, libc::SIGKILL)
        };
    }
    directories(directory).iter().for_each(|path| remove(path));
    // A process that `cgroup.procs` no longer lists can keep the directory busy for a moment.
    wait_for(|| match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => None,
        done => Some(done),
    })
    .unwrap();
}
