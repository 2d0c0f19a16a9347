//! The process that makes a system call: its memory, its directories, and what it may do without a sandbox.

use std::cell::OnceCell;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, open};
use rustix::io::{Errno, Result};

use super::lookup::Object;
use crate::kernel::memory;

/// The user and the groups of a job. They do not change, because a process in a sandbox has no capabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub groups: Vec<u32>,
    /// Whether the job has the same user as pinfold. If so, pinfold asks the kernel what the user may do.
    pub same_user: bool,
}

impl Credentials {
    /// Parses the text of `/proc/PID/status`.
    fn parse(status: &str) -> Option<Self> {
        let numbers = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.split_whitespace().map(str::parse).collect::<std::result::Result<Vec<u32>, _>>().ok()
        };
        // The order is: real, effective, saved, file system (proc_pid_status(5)). The last one decides about files.
        let uid = *numbers("Uid:")?.last()?;
        let mut groups = vec![*numbers("Gid:")?.last()?];
        groups.extend(numbers("Groups:")?);
        Some(Self { uid, groups, same_user: uid == rustix::process::getuid().as_raw() })
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
    /// The id of the calling thread.
    pub tid: u32,
    /// The pid, once it has been read.
    pid: OnceCell<u32>,
    pub credentials: Arc<Credentials>,
    /// Whether the job has a mount namespace in which pinfold made the mounts read-only.
    pub is_strict: bool,
    memory: File,
}

impl Caller {
    /// Opens the memory of the calling thread `tid`. `credentials` are those of the job, if they were read before.
    ///
    /// # Errors
    /// `EACCES` or `EPERM` if pinfold may not read the memory; `ENOENT` or `ESRCH` if the thread has ended.
    pub fn new(tid: u32, is_strict: bool, credentials: Option<Arc<Credentials>>) -> Result<Self> {
        let credentials = match credentials {
            Some(known) => known,
            None => {
                let status = read_proc(&format!("/proc/{tid}/status"))?;
                Arc::new(Credentials::parse(&status).ok_or(Errno::INVAL)?)
            }
        };
        let memory = memory::open(tid)?;
        Ok(Self { tid, pid: OnceCell::new(), credentials, is_strict, memory })
    }

    /// Returns the pid of the process to which the thread belongs. The first call reads it from `/proc`.
    pub fn pid(&self) -> u32 {
        *self.pid.get_or_init(|| {
            let status = read_proc(&format!("/proc/{}/status", self.tid)).unwrap_or_default();
            let pid = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
            pid.and_then(|pid| pid.trim().parse().ok()).unwrap_or(self.tid)
        })
    }

    /// Reads the string at an address of the caller's memory.
    ///
    /// # Errors
    /// The same as for [`memory::string`].
    pub fn string(&self, address: u64) -> Result<Vec<u8>> {
        memory::string(&self.memory, address)
    }

    /// Reads the bytes at an address of the caller's memory.
    ///
    /// # Errors
    /// The same as for [`memory::bytes`].
    pub fn bytes<const N: usize>(&self, address: u64) -> Result<[u8; N]> {
        let mut buffer = [0; N];
        memory::bytes(&self.memory, address, &mut buffer)?;
        Ok(buffer)
    }

    /// Reads the socket address (sockaddr(3type)) at an address of the caller's memory.
    ///
    /// # Errors
    /// The same as for [`memory::bytes`]; `EINVAL` if the length is not valid.
    pub fn socket_address(&self, address: u64, length: u64) -> Result<Vec<u8>> {
        if !(2..=size_of::<libc::sockaddr_storage>() as u64).contains(&length) {
            return Err(Errno::INVAL);
        }
        let mut buffer = vec![0; length as usize];
        memory::bytes(&self.memory, address, &mut buffer)?;
        Ok(buffer)
    }

    /// Opens the root directory of the caller.
    pub fn root(&self) -> Result<OwnedFd> {
        self.open_directory("root")
    }

    /// Opens the directory to which the caller's descriptor `number` refers; for `AT_FDCWD`, the working directory.
    pub fn directory(&self, number: i32) -> Result<OwnedFd> {
        match number {
            libc::AT_FDCWD => self.open_directory("cwd"),
            number => self.open_directory(&format!("fd/{number}")),
        }
    }

    /// Opens the directory to which a link in the caller's `/proc/PID` leads.
    fn open_directory(&self, link: &str) -> Result<OwnedFd> {
        open(format!("/proc/{}/{link}", self.tid), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
    }

    /// Returns the pid of the process to which a pidfd of the caller refers (pidfd_open(2)).
    pub fn pid_of_pidfd(&self, pidfd: i32) -> Option<i32> {
        let text = read_proc(&format!("/proc/{}/fdinfo/{pidfd}", self.tid)).ok()?;
        text.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()
    }

    /// Returns whether the caller may look up names in a directory. For a caller that has the same user as pinfold,
    /// this is always `true`: pinfold's own look-up fails where the caller's look-up would fail.
    pub fn may_search(&self, directory: &Object) -> bool {
        self.credentials.same_user || self.credentials.allowed_by_mode(directory, Access::EXEC_OK)
    }

    /// Returns whether the caller would have this access without a sandbox.
    pub fn may_access(&self, object: &Object, access: Access) -> bool {
        if !self.credentials.same_user {
            return self.credentials.allowed_by_mode(object, access);
        }
        let path = format!("/proc/self/fd/{}", object.file.as_raw_fd());
        match accessat(CWD, path, access, AtFlags::empty()) {
            Ok(()) => true,
            // The kernel checks for a read-only mount last, and a strict sandbox itself made the mounts read-only. So
            // without the sandbox, the caller would have the access.
            Err(Errno::ROFS) => self.is_strict,
            Err(_) => false,
        }
    }

    /// Returns whether the caller may add and remove names in a directory.
    pub fn may_change_entries(&self, directory: &Object) -> bool {
        self.may_access(directory, Access::WRITE_OK | Access::EXEC_OK)
    }

    /// Returns whether the caller may remove this object from a directory. In a directory with the sticky bit, only the
    /// owner of the directory and the owner of the object may do so (inode(7)).
    pub fn may_remove(&self, directory: &Object, object: &Object) -> bool {
        let is_sticky = directory.stat.st_mode & libc::S_ISVTX != 0;
        let is_owner = [directory.stat.st_uid, object.stat.st_uid].contains(&self.credentials.uid);
        self.may_change_entries(directory) && (!is_sticky || is_owner)
    }

    /// Returns whether the caller may execute a file.
    pub fn may_execute(&self, object: &Object) -> bool {
        object.kind() == FileType::RegularFile && self.may_access(object, Access::EXEC_OK)
    }
}

/// Reads a file of /proc. Invalid UTF-8 is replaced.
pub fn read_proc(path: &str) -> Result<String> {
    let bytes = std::fs::read(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_parsed() {
        let status = "Name:\tcat\nTgid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nGroups:\t10 20 \n";
        let read = Credentials::parse(status).unwrap();
        assert_eq!((read.uid, read.groups), (4, vec![8, 10, 20]));
        assert_eq!(Credentials::parse("Name:\tcat\n"), None);
    }

    #[test]
    fn the_memory_of_this_process_is_read() {
        let caller = Caller::new(std::process::id(), false, None).unwrap();
        assert_eq!((caller.pid(), caller.credentials.same_user), (std::process::id(), true));
        let text = c"text";
        assert_eq!(caller.string(text.as_ptr() as u64).unwrap(), b"text");
    }
}
