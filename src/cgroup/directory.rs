//! One cgroup v2 directory, referred to by a descriptor: kill, watch, walk, remove
//! (Documentation/admin-guide/cgroup-v2.rst).

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::fs::{
    Access, AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, accessat, fstat, mkdirat, openat, openat2, unlinkat,
};
use rustix::io::{Errno, Result};
use rustix::path::Arg;
use rustix::process::Pid;

use crate::cgroup::kill::KillSchedule;

pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// A cgroup, referred to by a descriptor of its directory. The path is for messages only.
#[derive(Debug)]
pub(crate) struct Cgroup {
    dir: OwnedFd,
    path: PathBuf,
    /// Whether pinfold made the cgroup. If so, pinfold may restore its modes.
    pub(super) is_ours: bool,
    /// When to kill the cgroup again, and how; set by the first kill.
    pub(super) kill_schedule: Mutex<Option<KillSchedule>>,
}

impl Cgroup {
    pub fn new(dir: OwnedFd, path: PathBuf) -> Self {
        Self { dir, path, is_ours: false, kill_schedule: Mutex::new(None) }
    }

    /// Marks the cgroup as one that pinfold made.
    pub fn into_ours(self) -> Self {
        Self { is_ours: true, ..self }
    }

    /// Opens the cgroup `name` below this one.
    pub fn open(&self, name: impl AsRef<Path>) -> Result<Self> {
        let name = name.as_ref();
        Ok(Self::new(open_in(self.dir.as_fd(), name, DIRECTORY)?, self.path.join(name)))
    }

    /// Opens the same cgroup again, with another descriptor.
    pub fn reopen(&self) -> Result<Self> {
        let again = self.despite_modes(|| open_in(self.dir.as_fd(), c".", DIRECTORY))?;
        Ok(Self { is_ours: self.is_ours, ..Self::new(again, self.path.clone()) })
    }

    /// Makes and opens the cgroup `name` below this one. Other users may list and read it.
    pub fn make(&self, name: &str) -> Result<Self> {
        self.make_with(name, 0o755)
    }

    /// Makes and opens the cgroup `name` below this one, with the given mode.
    pub fn make_with(&self, name: &str, mode: u32) -> Result<Self> {
        mkdirat(&self.dir, name, Mode::from_raw_mode(mode))?;
        self.open(name).map(Self::into_ours)
    }

    /// Returns whether its directory has been removed. An open descriptor then still refers to the directory, but its
    /// files are gone.
    pub fn is_gone(&self) -> bool {
        accessat(&self.dir, c"cgroup.events", Access::EXISTS, AtFlags::empty()) == Err(Errno::NOENT)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the id of the cgroup, which is the inode number of its directory.
    pub fn id(&self) -> Result<u64> {
        fstat(&self.dir).map(|stat| stat.st_ino)
    }

    /// Thaws this cgroup and all below it, so that frozen processes run again (`cgroup.freeze`, Linux 5.2).
    pub fn thaw(&self) -> Result<()> {
        self.walk(&mut |dir| match write(dir, c"cgroup.freeze", b"0") {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::ACCESS) => Ok(()),
            Err(errno) => Err(errno),
        })
    }

    /// Returns the processes that are now in this cgroup and below, and the first error of the search. After an error,
    /// some processes may be missing.
    pub fn processes(&self) -> (Vec<Pid>, Result<()>) {
        let (mut all, mut seen) = (Vec::new(), HashSet::new());
        let walked = self.walk(&mut |dir| {
            all.extend(processes(dir)?.into_iter().filter(|&pid| seen.insert(pid)));
            Ok(())
        });
        (all, walked)
    }

    /// Returns the processes in this cgroup itself; `None` for a process that this PID namespace does not show.
    pub fn list(&self) -> Result<Vec<Option<Pid>>> {
        let text = self.read_whole(c"cgroup.procs")?;
        Ok(text.lines().map(|line| Pid::from_raw(line.parse().ok()?)).collect())
    }

    /// Returns the names of the cgroups directly below, except names that are not UTF-8. The names of pinfold's own
    /// cgroups are always UTF-8.
    pub fn children(&self) -> Result<Vec<String>> {
        Ok(self.names()?.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// Returns the names of all cgroups directly below. The name of a cgroup can have any byte except newline and
    /// slash.
    pub fn names(&self) -> Result<Vec<OsString>> {
        let names = children(self.dir.as_fd())?;
        Ok(names.into_iter().map(|name| OsString::from_vec(name.into_bytes())).collect())
    }

    /// Opens its `cgroup.events`, for [`populated`].
    pub fn events(&self) -> Result<OwnedFd> {
        self.despite_modes(|| open_in(self.dir.as_fd(), c"cgroup.events", OFlags::RDONLY | OFlags::CLOEXEC))
    }

    /// Returns the text of one of its files, of any length.
    pub fn read_whole(&self, file: &CStr) -> Result<String> {
        self.despite_modes(|| read_whole(self.dir.as_fd(), file))
    }

    /// Returns the text of one of its files that is shorter than a page. The kernel returns such a file in one read.
    pub fn read(&self, file: &CStr) -> Result<String> {
        let file = self.despite_modes(|| open_in(self.dir.as_fd(), file, OFlags::RDONLY | OFlags::CLOEXEC))?;
        let mut text = [0; 4096];
        let length = rustix::io::read(&file, &mut text)?;
        Ok(String::from_utf8_lossy(&text[..length]).into_owned())
    }

    /// Writes to one of its files, with one write.
    pub fn write(&self, file: &CStr, value: &[u8]) -> Result<()> {
        self.despite_modes(|| write(self.dir.as_fd(), file, value))
    }

    /// Calls `visit` with this directory and each one below it. A directory that vanishes meanwhile is skipped. A
    /// directory that cannot be read is skipped too, and the first such error is returned after the walk. If the job
    /// has changed modes and this function has restored them, a directory can be visited twice.
    pub(super) fn walk(&self, visit: &mut dyn FnMut(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
        self.despite_modes(|| self.walk_once(visit))
    }

    fn walk_once(&self, visit: &mut dyn FnMut(BorrowedFd<'_>) -> Result<()>) -> Result<()> {
        let mut refused = Ok(());
        let mut look = |dir: BorrowedFd<'_>| match visit(dir).and_then(|()| children(dir)) {
            Ok(names) => names.into_iter(),
            Err(errno) => {
                refused = refused.and(unless_vanished(errno));
                Vec::new().into_iter()
            }
        };
        // Only one descriptor is open at a time, however deep and many the job's cgroups are: `..` leads up again.
        let mut below = None;
        let mut names = look(self.dir.as_fd());
        let mut above = Vec::new();
        let mut unopened = Ok(());
        loop {
            let dir = below.as_ref().map_or(self.dir.as_fd(), OwnedFd::as_fd);
            if let Some(name) = names.next() {
                match open_in(dir, &name, DIRECTORY) {
                    Ok(child) => {
                        above.push(std::mem::replace(&mut names, look(child.as_fd())));
                        below = Some(child);
                    }
                    Err(errno) => unopened = unopened.and(unless_vanished(errno)),
                }
                continue;
            }
            let Some(siblings) = above.pop() else { return refused.and(unopened) };
            below = if above.is_empty() { None } else { Some(open_in(dir, c"..", DIRECTORY)?) };
            names = siblings;
        }
    }

    /// Removes the cgroup `name` below this one, if it is empty.
    pub fn remove_empty(&self, name: &str) -> Result<()> {
        unlinkat(&self.dir, name, AtFlags::REMOVEDIR)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// Returns whether any process runs in a cgroup or below, from its open `cgroup.events`. That file is ready for
/// EPOLLPRI when it has changed since it was read. Returns `false` after the directory has been removed.
pub(crate) fn populated(events: impl AsFd) -> Result<bool> {
    Ok(state(events)?.populated)
}

/// The content of an open `cgroup.events`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub populated: bool,
    pub frozen: bool,
}

/// Reads both values at once. With two reads, a change between them would cause no notification after the second one.
pub(crate) fn state(events: impl AsFd) -> Result<State> {
    let mut buffer = [0; 128];
    match rustix::io::pread(events, &mut buffer, 0) {
        Ok(length) => {
            let has_line = |wanted: &[u8]| buffer[..length].split(|&byte| byte == b'\n').any(|line| line == wanted);
            Ok(State { populated: has_line(b"populated 1"), frozen: has_line(b"frozen 1") })
        }
        Err(Errno::NODEV) => Ok(State { populated: false, frozen: false }),
        Err(errno) => Err(errno),
    }
}

/// Opens an entry of a cgroup's directory, or the directory above it. Fails with `XDEV` if a file system is mounted
/// there. A job that runs as root can mount any directory on one of its cgroups; cgroups below such a mount do not
/// belong to the job, and must not be signalled or removed.
pub(super) fn open_in(dir: BorrowedFd<'_>, name: impl Arg + Copy, flags: OFlags) -> Result<OwnedFd> {
    // RESOLVE_NO_XDEV, openat2(2), Linux 5.6; bind mounts of the same file system count.
    match openat2(dir, name, flags, Mode::empty(), ResolveFlags::NO_XDEV) {
        // A container's seccomp profile may not know the call. Then the check below at least refuses other file
        // systems.
        Err(Errno::NOSYS | Errno::PERM) => {
            let opened = openat(dir, name, flags, Mode::empty())?;
            if fstat(&opened)?.st_dev == fstat(dir)?.st_dev { Ok(opened) } else { Err(Errno::XDEV) }
        }
        done => done,
    }
}

/// Returns the error, except if it says that the directory has vanished.
fn unless_vanished(errno: Errno) -> Result<()> {
    match errno {
        Errno::NODEV | Errno::NOENT => Ok(()),
        errno => Err(errno),
    }
}

fn write(dir: BorrowedFd<'_>, file: &CStr, value: &[u8]) -> Result<()> {
    let file = open_in(dir, file, OFlags::WRONLY | OFlags::CLOEXEC)?;
    rustix::io::write(&file, value).map(drop)
}

fn read_whole(dir: BorrowedFd<'_>, file: &CStr) -> Result<String> {
    let file = open_in(dir, file, OFlags::RDONLY | OFlags::CLOEXEC)?;
    let mut text = Vec::new();
    loop {
        let start = text.len();
        text.resize(start + 4096, 0);
        let read = rustix::io::read(&file, &mut text[start..])?;
        text.truncate(start + read);
        if read == 0 {
            return Ok(String::from_utf8_lossy(&text).into_owned());
        }
    }
}

/// Returns the processes of one directory. The kernel writes 0 for a process that this PID namespace does not show;
/// such entries are left out.
pub(super) fn processes(dir: BorrowedFd<'_>) -> Result<Vec<Pid>> {
    match read_whole(dir, c"cgroup.procs") {
        Ok(text) => Ok(text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)).collect()),
        // This is a threaded cgroup that the job made. The domain cgroup above it lists its processes.
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(errno) => Err(errno),
    }
}

/// Returns the names of the cgroups directly below `dir`. Most cgroups have no children. The link count shows this
/// without a listing, because kernfs counts subdirectories.
pub(super) fn children(dir: BorrowedFd<'_>) -> Result<Vec<CString>> {
    if fstat(dir)?.st_nlink <= 2 {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}
