//! The destination of `--report`. pinfold opens it before the command starts, so that an invalid destination is an
//! error at that time. While the command runs, the destination contains no report of an earlier run.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::fs::{OFlags, fcntl_getfl};

use crate::Report;
use crate::kernel::adopt::adopt;
use crate::kernel::inherited;

use super::open_output::{self, Target};
use super::write::{WriteTimeout, write_within};

/// `FILE`, `-` for standard output, or `fd:N` for a descriptor that pinfold has inherited.
#[derive(Clone, Debug)]
pub enum Destination {
    File(PathBuf),
    Stdout,
    /// Standard error, which can only be written as `/dev/stderr`.
    Stderr,
    Descriptor(i32),
}

/// Parses the value of `--report`.
pub fn parse(text: &std::ffi::OsStr) -> Result<Destination, String> {
    match text.to_str() {
        Some("") => Err("write a file name, '-' or fd:N".into()),
        Some("-") => Ok(Destination::Stdout),
        Some(text) if text.starts_with("fd:") => match text[3..].parse() {
            Ok(number) if number >= 0 => Ok(Destination::Descriptor(number)),
            _ => Err("write the number of a descriptor after fd:, as in fd:3".into()),
        },
        _ => Ok(match open_output::resolve(Path::new(text)) {
            Target::Descriptor(1) => Destination::Stdout,
            Target::Descriptor(2) => Destination::Stderr,
            Target::Descriptor(number) => Destination::Descriptor(number),
            Target::File(_) | Target::Other => Destination::File(text.into()),
        }),
    }
}

/// An open destination.
pub struct Sink {
    place: Place,
    /// For messages.
    name: String,
}

enum Place {
    /// A destination that cannot be replaced: a descriptor of the caller, a pipe, or a device.
    Stream(File),
    /// A regular file, and its path, whose last component is no symbolic link.
    File(File, PathBuf),
    /// The path of a regular file that pinfold has removed. The metadata is that of the removed file; it is `None` if
    /// pinfold itself had created the file.
    Removed(PathBuf, Option<Metadata>),
    /// A regular file that pinfold could not remove. It is empty, and pinfold will write to it.
    Emptied(File),
}

impl Sink {
    /// Opens the destination. A file that exists already keeps its content until [`remove_old`](Self::remove_old).
    ///
    /// # Errors
    /// Those of open(2). If the destination is a FIFO without a reader, this waits for a reader for at most a second.
    pub fn open(destination: Destination) -> Result<Self> {
        let (place, name) = match destination {
            Destination::Stdout => (Place::Stream(standard(1, io::stdout())?), "standard output".into()),
            Destination::Stderr => (Place::Stream(standard(2, io::stderr())?), "standard error".into()),
            Destination::Descriptor(number) => {
                let file = adopt(number)
                    .with_context(|| format!("cannot write the report to descriptor {number}; open it for writing, as in {number}>report.json"))?;
                (Place::Stream(file.into()), format!("descriptor {number}"))
            }
            Destination::File(path) => {
                let name = crate::report::text::printable_path(&path).into_owned();
                let is_new = path.symlink_metadata().is_err();
                let file = open_output::open(&path).with_context(|| format!("cannot write the report to {name}"))?;
                let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
                let place = match open_output::resolve(&path) {
                    Target::File(path) if regular && is_new => {
                        // While the command runs there is no file. A file that appears is a whole report.
                        match std::fs::remove_file(&path) {
                            Ok(()) => Place::Removed(path, None),
                            Err(_) => Place::Emptied(file),
                        }
                    }
                    Target::File(path) if regular => Place::File(file, path),
                    _ if regular => Place::File(file, PathBuf::new()),
                    _ => Place::Stream(file),
                };
                (place, name)
            }
        };
        Ok(Self { place, name })
    }

    /// Returns whether the destination and `other` are the same file. Two writers that both begin at the start of one
    /// file overwrite each other's text.
    pub fn is_same_file(&self, other: &File) -> bool {
        match &self.place {
            Place::Stream(file) | Place::File(file, _) | Place::Emptied(file) => {
                are_same(file.metadata(), other.metadata())
            }
            Place::Removed(path, _) => are_same(path.metadata(), other.metadata()),
        }
    }

    /// Removes the report of an earlier run, so that no such report remains if pinfold is killed. Truncates the file
    /// instead, if a new file could not replace it with the same properties: the directory is not writable, another
    /// user owns the file, or the file has several hard links.
    ///
    /// # Errors
    /// Those of ftruncate(2).
    pub fn remove_old(&mut self) -> Result<()> {
        let Place::File(file, path) = &self.place else { return Ok(()) };
        let failed = |error| anyhow!("cannot empty the old report {}: {error}", self.name);
        let before = file.metadata().map_err(failed)?;
        let own = rustix::process::geteuid();
        let replaceable = before.nlink() == 1
            && (own.is_root() || own.as_raw() == before.uid())
            && are_same(path.symlink_metadata(), Ok(before.clone()));
        if replaceable && std::fs::remove_file(path).is_ok() {
            self.place = Place::Removed(path.clone(), Some(before));
            return Ok(());
        }
        file.set_len(0).map_err(failed)?;
        // The descriptor is moved and not duplicated, because there may be no free descriptor.
        if let Place::File(file, _) = std::mem::replace(&mut self.place, Place::Removed(PathBuf::new(), None)) {
            self.place = Place::Emptied(file);
        }
        Ok(())
    }

    /// Writes the report, which is a line of JSON. A regular file is replaced in one step, so that a reader sees the
    /// whole report or none.
    ///
    /// # Errors
    /// A message with the destination that could not be written, and the reason.
    pub fn write(self, report: &Report, timeout: WriteTimeout) -> Result<()> {
        let line = format!("{}\n", report.to_json());
        let bytes = line.as_bytes();
        let done = match self.place {
            Place::Stream(file) => write_within(file, bytes, timeout),
            Place::File(file, _) | Place::Emptied(file) => write_in_place(&file, bytes),
            Place::Removed(path, before) => match replace(&path, bytes, before.as_ref()) {
                // pinfold cannot create another file in this directory, or the directory was renamed.
                Err(ReplaceError::NotCreated) => open_output::open(&path).and_then(|file| write_in_place(&file, bytes)),
                Err(ReplaceError::NotWritten(error)) => Err(error),
                Ok(()) => Ok(()),
            },
        };
        done.map_err(|error| anyhow!("the job is over, but its report could not be written to {}: {error}", self.name))
    }
}

/// Returns a copy of one of pinfold's standard streams. Fails if it is not open for writing. This check is necessary
/// because Rust's runtime opens /dev/null in place of a closed stream, and because Rust's `Stdout` ignores EBADF.
fn standard(number: i32, stream: impl AsFd) -> Result<File> {
    let name = if number == 1 { "standard output" } else { "standard error" };
    let writable = !inherited::was_closed(number)
        && fcntl_getfl(&stream).is_ok_and(|flags| flags.intersects(OFlags::WRONLY | OFlags::RDWR));
    ensure!(writable, "cannot write the report to {name}: it is not open for writing");
    let copy = stream.as_fd().try_clone_to_owned();
    Ok(copy.with_context(|| format!("cannot copy {name} for the report"))?.into())
}

fn write_in_place(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(bytes)
}

enum ReplaceError {
    NotCreated,
    NotWritten(io::Error),
}

/// Writes a new file in the directory of `path`, with the mode and the owner of the old file (`before`), and renames it
/// to `path`.
fn replace(path: &Path, bytes: &[u8], before: Option<&Metadata>) -> Result<(), ReplaceError> {
    let beside = path.with_file_name(format!(".pinfold-report-{}", std::process::id()));
    let mode = before.map_or(0o666, |before| before.mode() & 0o7777);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)
        .map_err(|_| ReplaceError::NotCreated)?;
    let written = file.write_all(bytes).and_then(|()| match before {
        Some(before) => {
            // The new file cannot have the old group if this user is not a member of that group. chown(2) clears some
            // bits of the mode, so the mode is set after it.
            let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
            file.set_permissions(before.permissions())
        }
        None => Ok(()),
    });
    written
        .map_err(ReplaceError::NotWritten)
        .and_then(|()| std::fs::rename(&beside, path).map_err(|_| ReplaceError::NotCreated))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&beside);
        })
}

/// Returns whether both are the same regular file.
pub fn are_same(one: io::Result<Metadata>, other: io::Result<Metadata>) -> bool {
    let (Ok(one), Ok(other)) = (one, other) else { return false };
    one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino())
}
