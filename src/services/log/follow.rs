//! Follows a log while pinfold writes it and begins new files.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use inotify::{Inotify, WatchMask};
use memchr::memrchr;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::files::{LogFile, is_at, is_same};
use crate::supervisor::watch;

/// How much the follower reads at a time, in bytes. It returns more only for a longer line.
const PIECE: usize = 64 * 1024;

/// Reads the lines that pinfold adds to a log, and continues in each new file ([`LogFile::follow`]).
#[derive(Debug)]
pub struct LogFollower {
    log: LogFile,
    /// The file that is being read. `None` until the log exists.
    file: Option<File>,
    /// The beginning of a line whose end has not been read yet.
    held: Vec<u8>,
    changes: AsyncFd<OwnedFd>,
}

/// What a follower returns.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FollowedLog {
    /// Complete lines.
    Lines(Vec<u8>),
    /// pinfold removed a file of the log before the follower had read it, so lines are missing here.
    Gap,
}

impl LogFollower {
    pub(super) fn new(log: LogFile) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let directory = match log.path.parent() {
            Some(directory) if directory.as_os_str().is_empty() => Path::new("."),
            Some(directory) => directory,
            None => Path::new("/"),
        };
        // The watch of a directory also reports changes of the files in it (inotify(7)).
        let mask = WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
        inotify.watches().add(directory, mask)?;
        // The watch was added before this open, so that the follower misses no change.
        let file = match File::open(&log.path) {
            Ok(mut file) => {
                io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
                Some(file)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let changes = watch::watched(OwnedFd::from(inotify), Interest::READABLE)?;
        Ok(Self { log, file, held: Vec::new(), changes })
    }

    /// Waits for lines.
    ///
    /// Cancel-safe.
    ///
    /// # Errors
    /// The errno of read(2) or open(2).
    pub async fn next(&mut self) -> io::Result<FollowedLog> {
        loop {
            if let Some(followed) = self.read()? {
                return Ok(followed);
            }
            let mut ready = self.changes.readable().await?;
            // The follower does not look at the events: it discards them, and reads the log.
            let mut events = [0; 4096];
            let read = ready.try_io(|changes| rustix::io::read(changes.get_ref(), &mut events).map_err(Into::into));
            if let Ok(read) = read {
                read?;
            }
        }
    }

    /// Returns what can be read now.
    fn read(&mut self) -> io::Result<Option<FollowedLog>> {
        loop {
            let Some(file) = &mut self.file else {
                match File::open(&self.log.path) {
                    Ok(file) => self.file = Some(file),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(error),
                }
                continue;
            };
            // This check comes before the read. After a rename, pinfold adds nothing to a file, so the read finds the
            // end of a renamed file.
            let is_current = is_at(&self.log.path, file)?;
            let before = self.held.len();
            file.take(PIECE as u64).read_to_end(&mut self.held)?;
            if self.held.len() > before {
                if let Some(end) = memrchr(b'\n', &self.held) {
                    let rest = self.held.split_off(end + 1);
                    return Ok(Some(FollowedLog::Lines(std::mem::replace(&mut self.held, rest))));
                }
                continue;
            }
            if is_current {
                return Ok(None);
            }
            match self.open_next_file()? {
                Next::Found => {}
                Next::NotMadeYet => return Ok(None),
                Next::Missing => return Ok(Some(FollowedLog::Gap)),
            }
        }
    }

    /// Opens the file after this one, or the oldest one if that file can't be found.
    fn open_next_file(&mut self) -> io::Result<Next> {
        let Some(file) = &self.file else { return Ok(Next::NotMadeYet) };
        let own = file.metadata()?;
        let is_own = |number: u32| std::fs::metadata(self.log.older(number)).is_ok_and(|at| is_same(&at, &own));
        // The loop repeats only if pinfold began another file meanwhile.
        for _ in 0..1000 {
            let Some(number) = (1..=self.log.kept()).find(|number| is_own(*number)) else { break };
            match File::open(self.log.older(number - 1)) {
                // pinfold renames the oldest file first. So if this file still has its number, the other one had its
                // number too when it was opened.
                Ok(next) if is_own(number) => {
                    self.file = Some(next);
                    return Ok(Next::Found);
                }
                // pinfold is about to create the new file, and inotify will report this.
                Err(error) if error.kind() == io::ErrorKind::NotFound && number == 1 => return Ok(Next::NotMadeYet),
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.file = (0..=self.log.kept()).rev().find_map(|number| File::open(self.log.older(number)).ok());
        self.held.clear();
        Ok(Next::Missing)
    }
}

/// Whether the follower found the file after the one that it has read to its end.
enum Next {
    Found,
    NotMadeYet,
    Missing,
}
