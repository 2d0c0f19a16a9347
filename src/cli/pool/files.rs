//! The files that jobs write their output to.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat, unlinkat};
use rustix::io::Errno;

/// DIR/NUMBER.out and DIR/NUMBER.err.
pub fn named(directory: &Path, number: usize) -> Result<[File; 2]> {
    let file = |suffix: &str| -> Result<File> {
        let path: PathBuf = directory.join(format!("{number}.{suffix}"));
        File::create(&path).with_context(|| format!("cannot make {}", path.display()))
    };
    Ok([file("out")?, file("err")?])
}

/// A file without a name, in the directory for temporary files (`TMPDIR`), so that an output may be larger than the memory.
pub fn nameless() -> Result<File> {
    let directory = std::env::temp_dir();
    let failed = || format!("cannot make a file for output in {}", directory.display());
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match openat(CWD, &directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok(file.into()),
        // Not every file system has such files (open(2), O_TMPFILE).
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
        Err(errno) => return Err(errno).with_context(failed),
    }
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).with_context(failed)?;
    let path = directory.join(format!("pinfold-{:016x}", u64::from_ne_bytes(random)));
    let file: OwnedFd = openat(CWD, &path, flags | OFlags::CREATE | OFlags::EXCL, mode).with_context(failed)?;
    unlinkat(CWD, &path, rustix::fs::AtFlags::empty()).with_context(failed)?;
    Ok(file.into())
}

pub fn is_empty(file: &File) -> bool {
    fstat(file).is_ok_and(|status| status.st_size == 0)
}

/// A job's standard output and standard error, in files without a name.
pub struct Files {
    pub stdout: File,
    pub stderr: File,
    /// The job was given open file descriptions of its own (open(2)), so that it can be told whether any is left.
    apart: bool,
}

impl Files {
    /// Both once more, for the job.
    pub fn for_job(&mut self) -> Result<[File; 2]> {
        let again = |file: &File| {
            // Opened by its link in /proc it is another open file description of the same file (proc_pid_fd(5)).
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            OpenOptions::new().append(true).custom_flags(OFlags::NOCTTY.bits() as i32).open(path)
        };
        if let (Ok(stdout), Ok(stderr)) = (again(&self.stdout), again(&self.stderr)) {
            self.apart = true;
            return Ok([stdout, stderr]);
        }
        self.apart = false;
        let failed = "cannot give a job its files for output";
        Ok([self.stdout.try_clone().context(failed)?, self.stderr.try_clone().context(failed)?])
    }

    /// Nothing was written to either.
    pub fn are_empty(&self) -> bool {
        is_empty(&self.stdout) && is_empty(&self.stderr)
    }
}

/// Files that are used again for the next jobs: on a disk, a new one costs as much as everything else that is done for a short job.
#[derive(Default)]
pub struct Shelf(Mutex<Vec<[File; 2]>>);

impl Shelf {
    pub fn take(&self) -> Result<Files> {
        let there = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let [stdout, stderr] = match there {
            Some(files) => files,
            None => [nameless()?, nameless()?],
        };
        Ok(Files { stdout, stderr, apart: false })
    }

    /// Those that somebody outside of the job still has open are not for others.
    pub fn put_back(&self, files: Files) {
        let Files { stdout, stderr, apart } = files;
        if apart && [&stdout, &stderr].into_iter().all(|file| emptied(file) && is_ours_alone(file)) {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push([stdout, stderr]);
        }
    }
}

fn emptied(file: &File) -> bool {
    is_empty(file) || file.set_len(0).is_ok()
}

/// Whether this is the only open file description of the file that can write: only then is a write lease given (F_SETLEASE(2const); the
/// kernel's check_conflicting_open, fs/locks.c). Some file systems give none.
fn is_ours_alone(file: &File) -> bool {
    // SAFETY: F_SETLEASE takes a number and touches no memory of ours.
    #[allow(unsafe_code)]
    let lease = |kind: libc::c_int| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) } == 0;
    lease(libc::F_WRLCK) && lease(libc::F_UNLCK)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom, Write};

    use super::*;

    #[test]
    fn used_again_when_nobody_else_has_them() {
        let shelf = Shelf::default();
        let on_it = |shelf: &Shelf| shelf.0.lock().unwrap().len();
        let mut files = shelf.take().unwrap();
        let [mut out, err] = files.for_job().unwrap();
        out.write_all(b"one").unwrap();
        assert!(!files.are_empty());
        drop((out, err));
        shelf.put_back(files);
        // Not every file system gives leases; those that tests run on do.
        assert_eq!(on_it(&shelf), 1);
        let mut files = shelf.take().unwrap();
        assert!(files.are_empty() && on_it(&shelf) == 0);
        let [mut out, err] = files.for_job().unwrap();
        out.write_all(b"two").unwrap();
        let mut text = String::new();
        files.stdout.seek(SeekFrom::Start(0)).unwrap();
        files.stdout.read_to_string(&mut text).unwrap();
        assert_eq!(text, "two");
        drop(out);
        // Somebody still has one of them.
        shelf.put_back(files);
        assert_eq!(on_it(&shelf), 0);
        drop(err);
    }

    #[test]
    fn never_used_again_where_that_cannot_be_told() {
        let shelf = Shelf::default();
        let mut files = shelf.take().unwrap();
        drop(files.for_job().unwrap());
        files.apart = false;
        shelf.put_back(files);
        assert!(shelf.0.lock().unwrap().is_empty());
    }
}
