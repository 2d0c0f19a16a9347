//! Cgroups that tests make for themselves, in the cgroup that they run in.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::{own_cgroup, wait_for};

/// A directory that was made for a test. It is removed with it, and nothing may be left in it then.
pub struct OwnCgroup {
    pub path: PathBuf,
    litter: bool,
}

impl OwnCgroup {
    pub fn new() -> Self {
        Self::try_new().unwrap()
    }

    /// None where this user may not make one.
    pub fn try_new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = own_cgroup().join(format!("pinfold_test-{}-{number}", std::process::id()));
        // Where no cgroup file system is mounted it is no path.
        let made = path.is_absolute() && std::fs::create_dir(&path).is_ok();
        made.then(|| Self { path, litter: false })
    }

    /// The same, handed over to a user (cgroups(7), "Delegation").
    pub fn of(uid: u32) -> Self {
        let delegated = Self::new();
        for path in [delegated.path.clone(), delegated.path.join("cgroup.procs")] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).unwrap();
        }
        delegated
    }

    /// Directories may be left in it: somebody else than pinfold makes some, or processes that the test itself ends.
    pub fn littered(mut self) -> Self {
        self.litter = true;
        self
    }

    /// A script that enters it.
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

/// With whatever a test that failed has left in it.
fn remove(directory: &Path) {
    let processes = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in processes.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid: &i32| pid > 0) {
        // SAFETY: in a cgroup of the test's own.
        #[allow(unsafe_code)]
        unsafe {
            libc::kill(pid, libc::SIGKILL)
        };
    }
    directories(directory).iter().for_each(|path| remove(path));
    // Off the count and not yet off the directory, for a moment.
    wait_for(|| match std::fs::remove_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => None,
        done => Some(done),
    })
    .unwrap();
}
