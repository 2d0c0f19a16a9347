//! Looks up a path as the kernel does it for the caller of a system call: from the caller's root or working directory,
//! in the caller's mounts, and through all symbolic links.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, fstatfs, openat, readlinkat};
use rustix::io::{Errno, Result};

use super::caller::Caller;
use super::calls::PathArguments;

/// The device and the inode number of a file.
pub type Identity = (u64, u64);

/// The maximum depth of a directory. The limit bounds the time of a look-up, because a job can nest directories to any
/// depth.
const MAX_DEPTH: usize = 2048;
/// The maximum number of symbolic links in one look-up (`MAXSYMLINKS` in include/linux/namei.h).
const MAX_LINKS: u32 = 40;
/// The inode number of the root directory of a proc file system (`PROC_ROOT_INO` in include/linux/proc_fs.h).
const PROC_ROOT_INO: u64 = 1;
/// The type of a proc file system (include/uapi/linux/magic.h).
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// A file that was opened with O_PATH (open(2)).
#[derive(Debug)]
pub struct Object {
    pub file: OwnedFd,
    pub stat: Stat,
}

impl Object {
    fn new(file: OwnedFd) -> Result<Self> {
        let stat = fstat(&file)?;
        Ok(Self { file, stat })
    }

    #[allow(clippy::unnecessary_cast)] // The types differ between architectures.
    pub fn identity(&self) -> Identity {
        (self.stat.st_dev as u64, self.stat.st_ino as u64)
    }

    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    fn is_on_proc(&self) -> bool {
        fstatfs(&self.file).is_ok_and(|statfs| i128::from(statfs.f_type) == i128::from(PROC_SUPER_MAGIC))
    }

    /// Returns the absolute path; `None` if the file has no path (a pipe, a socket).
    pub fn path(&self) -> Option<Vec<u8>> {
        proc_path(self.file.as_fd()).filter(|path| path.starts_with(b"/"))
    }
}

/// The result of a look-up.
#[derive(Debug)]
pub struct Found {
    /// The directories from the root to the one that contains the last name of the path.
    pub directories: Vec<Identity>,
    /// The directory that contains the last name of the path.
    pub parent: Object,
    /// The last name of the path. It is empty for a path such as `/` or `..`; in this case, `parent` is the object
    /// itself.
    pub name: Vec<u8>,
    /// The object with this name; `None` if the directory has no such name.
    pub object: Option<Object>,
}

impl Found {
    /// Returns the absolute path.
    pub fn path(&self) -> Option<Vec<u8>> {
        let mut path = self.parent.path()?;
        if self.name.is_empty() {
            return Some(path);
        }
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend(&self.name);
        Some(path)
    }
}

/// Looks up the path in the arguments of a call. `follow` is whether the call follows a symbolic link at the end of the
/// path.
///
/// # Errors
/// The errno with which the call also fails without a sandbox, or the errno if pinfold can't look up the path.
pub fn find(caller: &Caller, at: PathArguments, arguments: &[u64; 6], follow: bool) -> Result<Found> {
    let path = caller.string(arguments[usize::from(at.path)])?;
    let directory = at.directory.map_or(libc::AT_FDCWD, |index| arguments[usize::from(index)] as i32);
    find_from(caller, directory, &path, follow)
}

/// Looks up a path. A relative path begins at the caller's descriptor `directory`.
///
/// # Errors
/// The same as for [`find`].
pub fn find_from(caller: &Caller, directory: i32, path: &[u8], follow: bool) -> Result<Found> {
    if path.is_empty() {
        return Err(Errno::NOENT);
    }
    let is_absolute = path.starts_with(b"/");
    let current = Object::new(if is_absolute { caller.root()? } else { caller.directory(directory)? })?;
    let directories = if is_absolute { vec![current.identity()] } else { ancestors(&current)? };
    Walk { caller, directories, current, rest: components(path), links: 0 }.run(follow, path.ends_with(b"/"))
}

/// Returns the names in a path, without empty ones and `.`.
fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    let names = path.split(|&byte| byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.map(<[u8]>::to_vec).collect()
}

/// Returns the directories from the root to this one, including this one.
fn ancestors(directory: &Object) -> Result<Vec<Identity>> {
    let mut directories = vec![directory.identity()];
    let mut last: Option<Object> = None;
    while directories.len() < MAX_DEPTH {
        let child = last.as_ref().unwrap_or(directory);
        let parent = Object::new(open_path(child.file.as_fd(), b"..")?)?;
        if parent.identity() == child.identity() {
            directories.reverse();
            return Ok(directories);
        }
        directories.push(parent.identity());
        last = Some(parent);
    }
    Err(Errno::NAMETOOLONG)
}

/// Opens the file `name` in a directory with O_PATH. Does not follow a symbolic link.
fn open_path(directory: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd> {
    openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Returns the path that `/proc` shows for a descriptor of this process.
fn proc_path(file: BorrowedFd<'_>) -> Option<Vec<u8>> {
    use std::os::fd::AsRawFd;
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    readlinkat(rustix::fs::CWD, link, Vec::new()).ok().map(std::ffi::CString::into_bytes)
}

/// A look-up in progress.
struct Walk<'a> {
    caller: &'a Caller,
    /// The directories from the root to the current one.
    directories: Vec<Identity>,
    current: Object,
    /// The names that are still to be looked up.
    rest: VecDeque<Vec<u8>>,
    /// The number of symbolic links that were followed.
    links: u32,
}

impl Walk<'_> {
    fn run(mut self, follow: bool, ends_with_slash: bool) -> Result<Found> {
        while let Some(name) = self.rest.pop_front() {
            if !self.caller.may_search(&self.current) {
                return Err(Errno::ACCESS);
            }
            if name == b".." {
                if self.directories.len() > 1 {
                    self.directories.pop();
                    self.current = Object::new(open_path(self.current.file.as_fd(), b"..")?)?;
                }
                continue;
            }
            let is_last = self.rest.is_empty();
            let object = match open_path(self.current.file.as_fd(), &name) {
                Ok(file) => Object::new(file)?,
                Err(Errno::NOENT) if is_last => return Ok(self.found(name, None)),
                Err(errno) => return Err(errno),
            };
            match object.kind() {
                FileType::Symlink if !is_last || follow || ends_with_slash => {
                    self.links += 1;
                    if self.links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    if let Some(found) = self.follow(&object, &name, is_last)? {
                        return Ok(found);
                    }
                }
                FileType::Directory if !is_last => {
                    if self.directories.len() >= MAX_DEPTH {
                        return Err(Errno::NAMETOOLONG);
                    }
                    self.directories.push(object.identity());
                    self.current = object;
                }
                _ if is_last => return Ok(self.found(name, Some(object))),
                _ => return Err(Errno::NOTDIR),
            }
        }
        // The path has no last name: it is `/`, ends with `..`, or ends with a symbolic link to a directory.
        let itself = Object::new(self.current.file.try_clone().map_err(|_| Errno::MFILE)?)?;
        Ok(self.found(Vec::new(), Some(itself)))
    }

    fn found(self, name: Vec<u8>, object: Option<Object>) -> Found {
        Found { directories: self.directories, parent: self.current, name, object }
    }

    /// Continues the look-up at the target of a symbolic link. Returns the result if the link ends the look-up.
    fn follow(&mut self, link: &Object, name: &[u8], is_last: bool) -> Result<Option<Found>> {
        if link.is_on_proc() {
            let is_root = self.current.identity().1 == PROC_ROOT_INO;
            match name {
                // The target of these links depends on the process that follows them: here it is the caller.
                b"self" if is_root => {
                    self.rest.push_front(self.caller.pid().to_string().into_bytes());
                    return Ok(None);
                }
                b"thread-self" if is_root => {
                    let path = format!("{}/task/{}", self.caller.pid(), self.caller.tid);
                    path.rsplit('/').for_each(|name| self.rest.push_front(name.as_bytes().to_vec()));
                    return Ok(None);
                }
                // These are ordinary links.
                b"mounts" | b"net" => {}
                // The others are magic links (symlink(7)): the kernel goes to the file itself, and not to the path in
                // the text of the link.
                _ => return self.follow_magic_link(name, is_last),
            }
        }
        let target = readlinkat(&link.file, c"", Vec::new())?.into_bytes();
        if target.starts_with(b"/") {
            self.current = Object::new(self.caller.root()?)?;
            self.directories.truncate(1);
        }
        components(&target).into_iter().rev().for_each(|name| self.rest.push_front(name));
        Ok(None)
    }

    /// Continues the look-up at the file of a magic link. Returns the result if the link ends the look-up.
    fn follow_magic_link(&mut self, name: &[u8], is_last: bool) -> Result<Option<Found>> {
        let file = openat(&self.current.file, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let object = Object::new(file)?;
        if object.kind() == FileType::Directory {
            self.directories = ancestors(&object)?;
            self.current = object;
            return Ok(None);
        }
        if !is_last {
            return Err(Errno::NOTDIR);
        }
        // The path shows the directory that contains the file. A pipe or a socket has no path.
        let path = object.path().ok_or(Errno::XDEV)?;
        let mut found = find_from(self.caller, libc::AT_FDCWD, &path, false)?;
        if found.object.as_ref().is_none_or(|found| found.identity() != object.identity()) {
            return Err(Errno::XDEV);
        }
        found.object = Some(object);
        Ok(Some(found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str) -> Result<Found> {
        let caller = Caller::new(std::process::id(), false, None).unwrap();
        find_from(&caller, libc::AT_FDCWD, path.as_bytes(), true)
    }

    fn path(path: &str) -> Result<String> {
        found(path).map(|found| String::from_utf8(found.path().unwrap()).unwrap())
    }

    #[test]
    fn paths_are_looked_up_as_in_the_kernel() {
        let directory = std::env::temp_dir().join(format!("pinfold-lookup-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("a/b")).unwrap();
        std::fs::write(directory.join("a/file"), "").unwrap();
        std::os::unix::fs::symlink("a/b", directory.join("relative")).unwrap();
        std::os::unix::fs::symlink(directory.join("a"), directory.join("absolute")).unwrap();
        std::os::unix::fs::symlink("loop", directory.join("loop")).unwrap();
        let directory = directory.canonicalize().unwrap();
        let place = directory.to_str().unwrap();
        for (given, expected) in [
            ("a/file", Ok("a/file")),
            ("a/./b/..//file", Ok("a/file")),
            ("relative/../file", Ok("a/file")),
            ("absolute/file", Ok("a/file")),
            ("absolute/b/", Ok("a/b")),
            ("absolute/missing", Ok("a/missing")),
            ("missing/file", Err(Errno::NOENT)),
            ("a/file/x", Err(Errno::NOTDIR)),
            ("loop", Err(Errno::LOOP)),
        ] {
            let expected = expected.map(|path| format!("{place}/{path}"));
            assert_eq!(path(&format!("{place}/{given}")), expected, "{given}");
        }
        assert!(found(&format!("{place}/a/missing")).unwrap().object.is_none());
        assert_eq!(path("/").unwrap(), "/");
        assert_eq!(path("/..").unwrap(), "/");
        assert_eq!(path(&format!("{place}/a/..")).unwrap(), place);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn the_links_of_proc_lead_to_the_files_of_the_caller() {
        let own = std::process::id();
        assert_eq!(path("/proc/self/status").unwrap(), format!("/proc/{own}/status"));
        assert_eq!(path("/proc/self/root/etc").unwrap(), "/etc");
        let executable = std::env::current_exe().unwrap().canonicalize().unwrap();
        assert_eq!(path("/proc/self/exe").unwrap(), executable.to_str().unwrap());
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
        assert_eq!(path(&pipe), Err(Errno::XDEV));
        let identities = found("/proc/self/cwd/").unwrap().directories;
        assert_eq!(identities.first(), found("/").unwrap().directories.first());
    }
}
