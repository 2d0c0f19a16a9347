//! The files that hold the output of jobs.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::Stdio;

/// Creates DIR/NUMBER.out and DIR/NUMBER.err for the streams of a job. If the streams are merged, creates only
/// DIR/NUMBER.out.
pub fn create_named(directory: &Path, number: usize, merged: bool) -> Result<(Stdio, Stdio)> {
    let file = |suffix: &str| -> Result<Stdio> {
        let path = directory.join(format!("{number}.{suffix}"));
        let file = File::create(&path)
            .with_context(|| format!("cannot create {}", crate::report::text::printable_path(&path)))?;
        Ok(file.into())
    };
    Ok((file("out")?, if merged { Stdio::null() } else { file("err")? }))
}

/// Creates a file without a name in the directory for temporary files (`TMPDIR`), so that an output may be larger than
/// the memory. Writes append to it.
pub fn create_unnamed() -> Result<File> {
    let directory = std::env::temp_dir();
    let failed = || {
        format!(
            "cannot create a file for output in {} (set TMPDIR to use another directory)",
            crate::report::text::printable_path(&directory)
        )
    };
    let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match openat(CWD, &directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => return Ok(file.into()),
        // Not every file system supports such files (open(2), O_TMPFILE).
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

/// Returns the message for a failed write to a file of [`create_unnamed`].
pub fn store_error(error: &std::io::Error) -> String {
    let directory = std::env::temp_dir();
    format!(
        "cannot store it in {}: {error}; make room there, or set TMPDIR to another directory",
        crate::report::text::printable_path(&directory)
    )
}
