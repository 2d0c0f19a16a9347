//! The files of a log: the current one, and the older ones with a number behind their name, 1 for the newest of them.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Where a log is, and how large it may become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LogFiles {
    pub path: PathBuf,
    /// A new file begins when the next line would make the current one larger than this, in bytes. A longer line is
    /// alone in its file.
    pub max_size: u64,
    /// How many older files are kept, `NAME.1` to `NAME.N`: at least one.
    pub keep: u32,
    /// Whether each line begins with the time at which pinfold read it, in UTC (RFC 3339).
    pub with_time: bool,
}

/// The file that pinfold writes to.
#[derive(Debug)]
pub(super) struct Current {
    pub file: File,
    pub size: u64,
}

impl LogFiles {
    /// Returns how many older files are kept.
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
            // Between the open and the lock, another pinfold may have renamed the file and ended.
            if is_at(&self.path, &file)? {
                let mut size = file.metadata()?.len();
                let mut last = [b'\n'];
                if size > 0 && file.read_exact_at(&mut last, size - 1).is_ok() && last != *b"\n" {
                    // A computer that was switched off may have left a part of a line.
                    (&file).write_all(b"\n")?;
                    size += 1;
                }
                return Ok(Current { file, size });
            }
        }
    }

    /// Renames the files and begins a new one. The oldest file is removed. If this fails, `current` stays as it is.
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
                // The lines go on in the file that they were in.
                if !self.path.exists() {
                    let _ = std::fs::rename(self.older(1), &self.path);
                }
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Returns whether this open file is the one that has the path.
pub(super) fn is_at(path: &Path, file: &File) -> io::Result<bool> {
    match std::fs::metadata(path) {
        Ok(metadata) => Ok(is_same(&metadata, &file.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns whether both are the same file. The one of an open file can't belong to another file, because the kernel does
/// not use the inode of an open file again.
pub(super) fn is_same(one: &std::fs::Metadata, other: &std::fs::Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}
