//! The process that makes a system call: its memory, its directories, and what it may do without a sandbox.

use std::cell::OnceCell;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, open};
use rustix::io::{Errno, Result};

use super::lookup::Object;
use crate::kernel::memory;

/// The user and the groups of a job. They don't change: a process in a sandbox has no capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub groups: Vec<u32>,
    /// The job has the same user as pinfold, and the kernel can answer what the user may do.
    pub are_own: bool,
}

impl Credentials {
    /// Reads them from the text of `/proc/PID/status`.
    fn parse(status: &str) -> Option<Self> {
        let numbers = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().map(str::parse).collect::<std::result::Result<Vec<u32>, _>>().ok()
        };
        // Real, effective, saved, and for files (proc_pid_status(5)).
        let uid = *numbers("Uid:")?.last()?;
        let mut groups = vec![*numbers("Gid:")?.last()?];
        groups.extend(numbers("Groups:")?);
        Some(Self { uid, groups, are_own: uid == rustix::process::getuid().as_raw() })
    }

    /// Returns whether the mode of a file gives these rights (inode(7)). Access control lists are ignored.
    fn allowed_by_mode(&self, object: &Object, access: Access) -> bool {
        let stat = &object.stat;
        let shift = match () {
            () if stat.st_uid == self.uid => 6,
            () if self.groups.contains(&stat.st_gid) => 3,
            () => 0,
        };
        let wanted = [(Access::READ_OK, 4), (Access::WRITE_OK, 2), (Access::EXEC_OK, 1)];
        let wanted: u32 = wanted.into_iter().filter(|(one, _)| access.contains(*one)).map(|(_, bit)| bit).sum();
        stat.st_mode >> shift & wanted == wanted
    }
}

/// The caller of a system call, which waits for the answer.
#[derive(Debug)]
pub struct Caller {
    pub thread: u32,
    /// See [`Self::process`].
    process: OnceCell<u32>,
    pub credentials: Arc<Credentials>,
    /// Its mounts are those that pinfold made read-only.
    pub is_strict: bool,
    memory: File,
}

impl Caller {
    /// Opens the process of this thread. `credentials` are those of its job, if they are known.
    ///
    /// # Errors
    /// `EACCES` or `EPERM` if pinfold may not read its memory; `ENOENT` or `ESRCH` if it is gone.
    pub fn new(thread: u32, is_strict: bool, credentials: Option<Arc<Credentials>>) -> Result<Self> {
        let credentials = match credentials {
            Some(known) => known,
            None => {
                let status = read(&format!("/proc/{thread}/status"))?;
                Arc::new(Credentials::parse(&status).ok_or(Errno::INVAL)?)
            }
        };
        let memory = memory::open(thread)?;
        Ok(Self { thread, process: OnceCell::new(), credentials, is_strict, memory })
    }

    /// Returns the process to which the thread belongs. Reads this only when it is needed.
    pub fn process(&self) -> u32 {
        *self.process.get_or_init(|| {
            let status = read(&format!("/proc/{}/status", self.thread)).unwrap_or_default();
            let process = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
            process.and_then(|id| id.trim().parse().ok()).unwrap_or(self.thread)
        })
    }

    /// Reads a string of the caller.
    ///
    /// # Errors
    /// See [`memory::string`].
    pub fn string(&self, address: u64) -> Result<Vec<u8>> {
        memory::string(&self.memory, address)
    }

    /// Reads bytes of the caller.
    ///
    /// # Errors
    /// See [`memory::bytes`].
    pub fn bytes<const N: usize>(&self, address: u64) -> Result<[u8; N]> {
        let mut buffer = [0; N];
        memory::bytes(&self.memory, address, &mut buffer)?;
        Ok(buffer)
    }

    /// Reads a socket address (sockaddr(3type)).
    ///
    /// # Errors
    /// See [`memory::bytes`]; `EINVAL` if the length is not valid.
    pub fn address(&self, address: u64, length: u64) -> Result<Vec<u8>> {
        if !(2..=size_of::<libc::sockaddr_storage>() as u64).contains(&length) {
            return Err(Errno::INVAL);
        }
        let mut buffer = vec![0; length as usize];
        memory::bytes(&self.memory, address, &mut buffer)?;
        Ok(buffer)
    }

    /// Opens its root directory.
    pub fn root(&self) -> Result<OwnedFd> {
        self.place("root")
    }

    /// Opens a directory of the caller: the one of this descriptor, or the working directory (`AT_FDCWD`).
    pub fn directory(&self, number: i32) -> Result<OwnedFd> {
        match number {
            libc::AT_FDCWD => self.place("cwd"),
            number => self.place(&format!("fd/{number}")),
        }
    }

    fn place(&self, link: &str) -> Result<OwnedFd> {
        open(format!("/proc/{}/{link}", self.thread), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    /// Returns the process to which a descriptor of the caller refers (pidfd_open(2)).
    pub fn process_of(&self, descriptor: i32) -> Option<i32> {
        let text = read(&format!("/proc/{}/fdinfo/{descriptor}", self.thread)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
    }

    /// Returns whether the caller may look up names in a directory. For a caller of pinfold's own user, the look-up
    /// itself shows this.
    pub fn may_search(&self, directory: &Object) -> bool {
        self.credentials.are_own || self.credentials.allowed_by_mode(directory, Access::EXEC_OK)
    }

    /// Returns whether the caller would have this access without a sandbox.
    pub fn may(&self, object: &Object, access: Access) -> bool {
        if !self.credentials.are_own {
            return self.credentials.allowed_by_mode(object, access);
        }
        let path = format!("/proc/self/fd/{}", object.file.as_raw_fd());
        match accessat(CWD, path, access, AtFlags::empty()) {
            Ok(()) => true,
            // The kernel checks this last, and the sandbox itself has made the mounts read-only.
            Err(Errno::ROFS) => self.is_strict,
            Err(_) => false,
        }
    }

    /// Returns whether the caller may add and remove names in a directory.
    pub fn may_change(&self, directory: &Object) -> bool {
        self.may(directory, Access::WRITE_OK | Access::EXEC_OK)
    }

    /// Returns whether the caller may remove this object from a directory: in a directory with the sticky bit, only the
    /// owners may (inode(7)).
    pub fn may_remove(&self, directory: &Object, object: &Object) -> bool {
        let is_sticky = directory.stat.st_mode & libc::S_ISVTX != 0;
        let is_owner = [directory.stat.st_uid, object.stat.st_uid].contains(&self.credentials.uid);
        self.may_change(directory) && (!is_sticky || is_owner)
    }

    /// Returns whether the caller may execute a file.
    pub fn may_execute(&self, object: &Object) -> bool {
        object.kind() == FileType::RegularFile && self.may(object, Access::EXEC_OK)
    }
}

/// Reads a file of /proc.
pub fn read(path: &str) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read() {
        let status = "Name:\tcat\nTgid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 20 \n";
        let read = Credentials::parse(status).unwrap();
        assert_eq!((read.uid, read.groups), (4, vec![8, 10, 20]));
        assert_eq!(Credentials::parse("Name:\tcat\n"), None);
    }

    #[test]
    fn this_process_is_read() {
        let caller = Caller::new(std::process::id(), false, None).unwrap();
        assert_eq!((caller.process(), caller.credentials.are_own), (std::process::id(), true));
        let text = c"text";
        assert_eq!(caller.string(text.as_ptr() as u64).unwrap(), b"text");
    }
}
