//! Where `--report` goes. It is opened before the command starts, so that a mistake is found before that.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use pinfold::Report;
use rustix::fs::{OFlags, fcntl_getfl};

use super::write_out::write_all;

/// `FILE`, `-` for standard output, `fd:N` for a descriptor that was handed down.
#[derive(Clone, Debug)]
pub enum Destination {
    File(PathBuf),
    Stdout,
    Descriptor(i32),
}

/// Reads the value of `--report`.
pub fn parse(text: &std::ffi::OsStr) -> Result<Destination, String> {
    match text.to_str() {
        Some("") => Err("a file name, '-' or fd:N is needed".into()),
        Some("-") => Ok(Destination::Stdout),
        Some(text) if text.starts_with("fd:") => match text[3..].parse() {
            Ok(number) if number >= 0 => Ok(Destination::Descriptor(number)),
            _ => Err("after fd: a descriptor's number is needed, as in fd:3".into()),
        },
        _ => Ok(Destination::File(text.into())),
    }
}

/// An open destination.
pub enum Sink {
    File(File, PathBuf),
    Stdout(File),
    Descriptor(File, i32),
}

impl Sink {
    /// Opens it. A file that is there already keeps its content until the report is written.
    pub fn open(destination: Destination) -> Result<Self> {
        match destination {
            Destination::Stdout => {
                let stdout = std::io::stdout();
                // Rust's runtime opens /dev/null there, and its Stdout takes EBADF for success.
                let writable = !pinfold::was_closed(1)
                    && fcntl_getfl(&stdout).is_ok_and(|flags| flags.intersects(OFlags::WRONLY | OFlags::RDWR));
                ensure!(writable, "cannot write the report to standard output: it is not open for writing");
                let copy = stdout.as_fd().try_clone_to_owned().context("cannot copy standard output for the report")?;
                Ok(Self::Stdout(copy.into()))
            }
            Destination::File(path) => {
                let file =
                    OpenOptions::new().write(true).create(true).truncate(false).open(&path).with_context(|| {
                        format!("cannot write the report to {}", pinfold::text::printable_path(&path))
                    })?;
                Ok(Self::File(file, path))
            }
            Destination::Descriptor(number) => {
                let file = pinfold::adopt_descriptor(number)
                    .with_context(|| format!("cannot write the report to descriptor {number}; open it for writing, as in {number}>report.json"))?;
                Ok(Self::Descriptor(file.into(), number))
            }
        }
    }

    /// Whether it is this very file: what writes both from the beginning keeps one of them at most.
    pub fn is(&self, other: &File) -> bool {
        let (Self::File(file, _) | Self::Stdout(file) | Self::Descriptor(file, _)) = self;
        are_same(file.metadata(), other.metadata())
    }

    /// Writes the report, a line of JSON.
    pub fn write(self, report: &Report) -> Result<()> {
        let line = format!("{}\n", report.to_json());
        let (done, place) = match self {
            Self::Stdout(file) => (write_all(file, line.as_bytes()), "standard output".into()),
            Self::File(file, path) => {
                let regular = file.metadata().is_ok_and(|metadata| metadata.is_file());
                let truncated = if regular { file.set_len(0) } else { Ok(()) };
                (truncated.and_then(|()| write_all(file, line.as_bytes())), path.display().to_string())
            }
            Self::Descriptor(file, number) => (write_all(file, line.as_bytes()), format!("descriptor {number}")),
        };
        done.map_err(|error| anyhow!("the job is over, but its report could not be written to {place}: {error}"))
    }
}

/// Whether both are the same regular file.
pub fn are_same(one: io::Result<Metadata>, other: io::Result<Metadata>) -> bool {
    let (Ok(one), Ok(other)) = (one, other) else { return false };
    one.is_file() && (one.dev(), one.ino()) == (other.dev(), other.ino())
}
