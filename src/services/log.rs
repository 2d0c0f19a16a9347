//! The log file of a service. pinfold writes it, and begins a new file when the current one would become too large,
//! always between two lines.

mod files;
mod follow;
mod tail;

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use memchr::{memchr, memchr_iter, memrchr};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::report::text::printable_path;
use files::Current;
pub use files::LogFile;
pub use follow::{FollowedLog, LogFollower};

/// When the beginning of a line has more bytes than this, pinfold writes it as a line of its own, and does not wait for
/// the rest.
const MAX_LINE: usize = 1024 * 1024;

/// What the user should know about a log file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum LogEvent {
    /// A write failed, so that output is lost from now on, or a new file could not be made. The text says which.
    Failed(String),
    /// Writing succeeds again. This many bytes of output are lost.
    Recovered(u64),
}

/// The log file of a service. Its clones write to the same file.
#[derive(Clone, Debug)]
pub(crate) struct Log(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    files: LogFile,
    current: Current,
    /// How many bytes were not written since a write failed. `None` while writes succeed.
    lost: Option<u64>,
    /// The size at which pinfold begins a new file. If that fails, pinfold raises this number, so that it does not try
    /// again for each line.
    next_rotation: u64,
    /// A buffer for lines with their time.
    stamped: Vec<u8>,
}

/// One output of the service, whose lines go to the log.
#[derive(Debug)]
pub(crate) struct LogSource {
    log: Log,
    /// The beginning of a line whose end has not arrived yet.
    held: Vec<u8>,
}

impl Log {
    /// Opens the file to append to it. Creates it if it does not exist.
    ///
    /// # Errors
    /// [`Error::Invalid`] if another pinfold writes to the file, [`Error::System`] if it can't be opened.
    pub fn open(files: LogFile) -> Result<Self> {
        let current = files.open().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                let path = printable_path(&files.path).into_owned();
                Error::invalid("log file", path, "another pinfold writes to it: give each service a file of its own")
            }
            _ => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                let advice = "the directory must exist and be writable";
                Error::system("open the log file", printable_path(&files.path), errno, advice)
            }
        })?;
        let next_rotation = files.max_size;
        let state = State { files, current, lost: None, next_rotation, stamped: Vec::new() };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// Returns a new source of lines: one for each output of each start of the service.
    pub fn source(&self) -> LogSource {
        LogSource { log: self.clone(), held: Vec::new() }
    }
}

impl LogSource {
    /// Adds a piece of the output. Lines are written when they are complete.
    ///
    /// After a failed write, pinfold tries again with each piece. The bytes that it could not write are lost. When a
    /// write succeeds again, pinfold first writes a line with the number of lost bytes. It writes each line completely
    /// or not at all.
    pub fn push(&mut self, piece: &[u8]) -> Option<LogEvent> {
        let Some(end) = memrchr(b'\n', piece) else {
            self.held.extend_from_slice(piece);
            return if self.held.len() > MAX_LINE { self.end() } else { None };
        };
        let (lines, rest) = piece.split_at(end + 1);
        let mut log = self.log.0.lock().unwrap_or_else(PoisonError::into_inner);
        let event = if self.held.is_empty() {
            log.write(lines)
        } else {
            // Only the first line has its beginning in `held`, so only this line is copied.
            let first = memchr(b'\n', lines).map_or(lines.len(), |at| at + 1);
            self.held.extend_from_slice(&lines[..first]);
            let event = log.write(&self.held);
            event.or(log.write(&lines[first..]))
        };
        drop(log);
        self.held.clear();
        self.held.extend_from_slice(rest);
        event
    }

    /// Writes the beginning of a line that has not ended, as a line. Call this at the end of the output.
    pub fn end(&mut self) -> Option<LogEvent> {
        if self.held.is_empty() {
            return None;
        }
        let mut line = std::mem::take(&mut self.held);
        line.push(b'\n');
        self.log.0.lock().unwrap_or_else(PoisonError::into_inner).write(&line)
    }
}

impl State {
    /// Writes complete lines.
    fn write(&mut self, lines: &[u8]) -> Option<LogEvent> {
        if lines.is_empty() {
            return None;
        }
        if !self.files.with_time {
            return self.write_stamped(lines);
        }
        let time = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
        let mut stamped = std::mem::take(&mut self.stamped);
        stamped.clear();
        let mut begin = 0;
        for end in memchr_iter(b'\n', lines) {
            stamped.extend_from_slice(time.as_bytes());
            stamped.push(b' ');
            stamped.extend_from_slice(&lines[begin..=end]);
            begin = end + 1;
        }
        let event = self.write_stamped(&stamped);
        self.stamped = stamped;
        event
    }

    fn write_stamped(&mut self, mut lines: &[u8]) -> Option<LogEvent> {
        let mut event = self.recover();
        if let Some(lost) = &mut self.lost {
            *lost += lines.len() as u64;
            return None;
        }
        while !lines.is_empty() {
            let space = self.next_rotation.saturating_sub(self.current.size);
            // The lines that fit; at least one in a new file.
            let fitting = &lines[..lines.len().min(usize::try_from(space).unwrap_or(usize::MAX))];
            let length = match memrchr(b'\n', fitting) {
                Some(at) => at + 1,
                None if self.current.size == 0 => memchr(b'\n', lines).map_or(lines.len(), |at| at + 1),
                None => {
                    match self.files.rotate(&mut self.current) {
                        Ok(()) => self.next_rotation = self.files.max_size,
                        Err(error) => {
                            event = event.or_else(|| Some(self.failure("start a new file for", &error)));
                            self.next_rotation = self.current.size.saturating_add(self.files.max_size);
                        }
                    }
                    continue;
                }
            };
            let (now, later) = lines.split_at(length);
            if let Err(error) = self.current.write(now) {
                event = event.or_else(|| Some(self.failure("write to", &error)));
                self.lost = Some(lines.len() as u64);
                return event;
            }
            lines = later;
        }
        event
    }

    /// After a failed write, writes a line about the lost bytes. If this succeeds, there is space again.
    fn recover(&mut self) -> Option<LogEvent> {
        let lost = self.lost?;
        let note = format!("pinfold: {lost} bytes of output are missing here, because they could not be written\n");
        self.current.write(note.as_bytes()).ok()?;
        self.lost = None;
        Some(LogEvent::Recovered(lost))
    }

    fn failure(&self, what: &str, error: &io::Error) -> LogEvent {
        let path = printable_path(&self.files.path);
        LogEvent::Failed(format!("cannot {what} the log file {path}: {error}"))
    }
}

impl Current {
    /// Writes complete lines. If the kernel writes only a part of them, removes that part again.
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if let Err(error) = (&self.file).write_all(lines) {
            // Without this, the file would end in the middle of a line.
            self.file.set_len(self.size)?;
            return Err(error);
        }
        self.size += lines.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
