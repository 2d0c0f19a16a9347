//! The flock(2) locks of all processes, as `/proc/locks` lists them (proc_locks(5)).

use std::collections::HashMap;

use rustix::process::Pid;

/// The processes that have locked files, grouped by the inode number of the file. Only locks that were made in this PID
/// namespace or in one below it are listed.
///
/// A lock belongs to an open file description, which other processes may share (flock(2)). The list names the process
/// that has made the lock, even if that process has ended.
#[derive(Debug, Default)]
pub(crate) struct Flocks(HashMap<u64, Vec<Pid>>);

impl Flocks {
    /// Reads the list as it is now.
    ///
    /// # Errors
    /// The error of reading `/proc/locks`.
    pub fn now() -> std::io::Result<Self> {
        std::fs::read_to_string("/proc/locks").map(|text| Self::parse(&text))
    }

    /// Parses lines like `1: FLOCK  ADVISORY  READ 2033 00:1c:4711 0 EOF`.
    fn parse(text: &str) -> Self {
        let mut all = HashMap::<_, Vec<_>>::new();
        for line in text.lines() {
            let mut fields = line.split_ascii_whitespace().skip(1);
            // A line with `->` stands for a process that waits for a lock.
            if fields.next() != Some("FLOCK") {
                continue;
            }
            let pid = fields.nth(2).and_then(|pid| Pid::from_raw(pid.parse().ok()?));
            let inode = fields.next().and_then(|file| file.rsplit(':').next()?.parse().ok());
            if let (Some(pid), Some(inode)) = (pid, inode) {
                all.entry(inode).or_default().push(pid);
            }
        }
        Self(all)
    }

    /// Returns the processes that have locked the file with this inode number. Files of other file systems can have the
    /// same number.
    pub fn of(&self, inode: u64) -> &[Pid] {
        self.0.get(&inode).map(Vec::as_slice).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_lock_is_listed() {
        let file = rustix::fs::memfd_create("lock", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared).unwrap();
        let inode = rustix::fs::fstat(&file).unwrap().st_ino;
        assert!(Flocks::now().unwrap().of(inode).contains(&rustix::process::getpid()));
    }

    #[test]
    fn waiting_processes_and_other_locks_are_left_out() {
        let text = "1: POSIX  ADVISORY  WRITE 1 00:1c:9 0 EOF\n2: FLOCK  ADVISORY  READ 2 00:1c:9 0 EOF\n\
                    2: -> FLOCK  ADVISORY  WRITE 3 00:1c:9 0 EOF\n3: FLOCK  ADVISORY  WRITE <none>:0 0 EOF\n";
        assert_eq!(Flocks::parse(text).of(9), [Pid::from_raw(2).unwrap()]);
    }
}
