//! The files of a log: the current one, and the older ones, whose names end with a number. The newest of these has the
//! number 1.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::follow::LogFollower;
use super::tail::tail;

/// The log file of a service: where it is, and how large it may become.
///
/// ```
/// use pinfold::Command;
/// use pinfold::services::{LogFile, Service};
/// let log = LogFile::new("log/web.log").max_size(1024 * 1024).keep(3);
/// let web = Service::new("web", Command::new("./serve")).log(log.clone());
/// let last = log.last_lines(10)?; // Includes lines of earlier runs.
/// # drop((web, last));
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct LogFile {
    pub(crate) path: PathBuf,
    pub(crate) max_size: u64,
    pub(crate) keep: u32,
    pub(crate) with_time: bool,
}

/// The file that pinfold writes to.
#[derive(Debug)]
pub(super) struct Current {
    pub file: File,
    pub size: u64,
}

impl LogFile {
    /// Returns a log at this path, with at most 10 MiB in each file, and at most 5 older files. pinfold appends to a
    /// file that exists. The directory must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), max_size: 10 << 20, keep: 5, with_time: false }
    }

    /// Returns the path of the current file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets the size of a file, in bytes. When the next line would make the file larger, pinfold renames it to `PATH.1`,
    /// `PATH.1` to `PATH.2` and so on, and begins a new one. A longer line is alone in its file.
    pub fn max_size(mut self, bytes: u64) -> Self {
        self.max_size = bytes;
        self
    }

    /// Sets how many older files pinfold keeps. 0 counts as 1.
    pub fn keep(mut self, files: u32) -> Self {
        self.keep = files;
        self
    }

    /// Sets whether each line begins with the time at which pinfold read it, in UTC (RFC 3339).
    pub fn with_time(mut self, with_time: bool) -> Self {
        self.with_time = with_time;
        self
    }

    /// Returns the last `count` lines of the log, in their order, with their newlines. They may begin in an older file.
    /// Without a log, the result is empty.
    ///
    /// # Errors
    /// The errno of open(2) or read(2).
    pub fn last_lines(&self, count: usize) -> io::Result<Vec<u8>> {
        tail(self, count)
    }

    /// Follows the log from its end on, while pinfold writes it and begins new files. The log may not exist yet.
    ///
    /// # Errors
    /// The errno of inotify_add_watch(2), if the directory can't be watched, or of opening the file.
    ///
    /// # Panics
    /// Panics outside of a tokio runtime.
    pub fn follow(&self) -> io::Result<LogFollower> {
        LogFollower::new(self.clone())
    }

    /// Returns how many older files pinfold keeps.
    pub(super) fn kept(&self) -> u32 {
        self.keep.max(1)
    }

    /// Returns the path of an older file. 0 is the current one.
    pub fn older(&self, number: u32) -> PathBuf {
        if number == 0 {
            return self.path.clone();
        }
        let mut name = OsString::from(&self.path);
        name.push(format!(".{number}"));
        name.into()
    }

    /// Opens the current file. Fails with `WouldBlock` if another pinfold has it open.
    pub(super) fn open(&self) -> io::Result<Current> {
        loop {
            let file = OpenOptions::new().read(true).append(true).create(true).open(&self.path)?;
            if !file.metadata()?.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
            }
            flock(&file, FlockOperation::NonBlockingLockExclusive)?;
            // Between the open and the lock, another pinfold may have renamed the file and exited.
            if is_at(&self.path, &file)? {
                let mut size = file.metadata()?.len();
                let mut last = [b'\n'];
                if size > 0 && file.read_exact_at(&mut last, size - 1).is_ok() && last != *b"\n" {
                    // After a loss of power, the file may end in the middle of a line.
                    (&file).write_all(b"\n")?;
                    size += 1;
                }
                return Ok(Current { file, size });
            }
        }
    }

    /// Renames the files and begins a new one. The oldest file is lost. If this fails, `current` does not change.
    pub(super) fn rotate(&self, current: &mut Current) -> io::Result<()> {
        // If another program has removed or renamed the file, there is nothing to rename.
        if is_at(&self.path, &current.file)? {
            // From the oldest to the newest: a reader that follows the log depends on this order.
            for number in (0..self.kept()).rev() {
                match std::fs::rename(self.older(number), self.older(number + 1)) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    done => done?,
                }
            }
        }
        match self.open() {
            Ok(new) => *current = new,
            Err(error) => {
                // pinfold continues to write to the old file, so this file gets its path back.
                if !self.path.exists() {
                    let _ = std::fs::rename(self.older(1), &self.path);
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Returns whether the path leads to this open file.
pub(super) fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(is_same(&metadata, &file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether both describe the same file. The caller must hold one of the two open: the kernel does not give the
/// inode number of an open file to another file.
pub(super) fn is_same(one: &std::fs::Metadata, other: &std::fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
