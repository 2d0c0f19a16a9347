//! Opens a file for output, without blocking and without losing its existing content.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchMask};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// How long to wait for the reader of a FIFO. A shell starts the writer and the reader at about the same time.
const READER_TIMEOUT: Duration = Duration::from_secs(1);

/// The maximum number of symbolic links that the kernel follows (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// What a path refers to.
pub enum Target {
    /// A descriptor of this process: `/dev/stdout`, `/dev/fd/3`. Opening such a path again would write from the
    /// beginning of a file in which the descriptor may already be further on.
    Descriptor(i32),
    /// A file, and its path, whose last component is no symbolic link.
    File(PathBuf),
    /// A link in /proc to an open file of another process, or more symbolic links than the kernel follows.
    Other,
}

/// Follows symbolic links and returns what the path refers to. Opens nothing.
pub fn resolve(path: &Path) -> Target {
    let own: Vec<_> = ["/proc/self/fd", "/proc/thread-self/fd"].iter().flat_map(std::fs::canonicalize).collect();
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let parent = match path.parent() {
            Some(parent) if parent == Path::new("") => Path::new("."),
            Some(parent) => parent,
            None => return Target::File(path),
        };
        let Ok(directory) = parent.canonicalize() else { return Target::File(path) };
        if own.contains(&directory) {
            let number = path.file_name().and_then(|name| name.to_str()?.parse().ok());
            return number.map_or(Target::Other, Target::Descriptor);
        }
        let Ok(target) = path.read_link() else { return Target::File(path) };
        if directory.starts_with("/proc") {
            return Target::Other;
        }
        path = directory.join(target);
    }
    Target::Other
}

/// Opens a file for writing, and creates it if it does not exist. Existing content is kept. The file is non-blocking,
/// so that a write to a FIFO or a device may fail with `EAGAIN` ([`write`](super::write) waits until there is space).
///
/// # Errors
/// Those of open(2). A FIFO that still has no reader after a second is an error with its own message.
pub fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => options.create(true).truncate(false).open(path),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_fifo(path) => wait_for_reader(path, &options)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENXIO) => io::Error::other("it is a FIFO that no process reads: start its reader first"),
                _ => error,
            }),
        opened => opened,
    }
}

pub fn is_fifo(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo())
}

/// Opens a FIFO as soon as it has a reader: tries again whenever a process opens it (`IN_OPEN`, inotify(7)).
fn wait_for_reader(path: &Path, options: &OpenOptions) -> io::Result<File> {
    let until = Instant::now() + READER_TIMEOUT;
    let mut inotify = Inotify::init()?;
    inotify.watches().add(path, WatchMask::OPEN)?;
    loop {
        // The watch exists before this attempt, so that a reader that comes between the two is not missed.
        match options.open(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) && Instant::now() < until => {}
            opened => return opened,
        }
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
        match poll(&mut [PollFd::new(&inotify, PollFlags::IN)], left.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        // The queue of events may be empty. `read_events` returns an error then.
        let _ = inotify.read_events(&mut [0; 1024]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_descriptors_and_links() {
        let directory = std::env::temp_dir().join(format!("pinfold-resolve-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let link = |name: &str, target: &str| {
            let link = directory.join(name);
            std::os::unix::fs::symlink(target, &link).unwrap();
            link
        };
        let out = link("out", "/dev/stdout");
        let (near, far, round) = (link("near", "far"), link("far", "file"), link("round", "round"));
        let results = [out, near, far, round].map(|path| resolve(&path));
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(matches!(results[0], Target::Descriptor(1)));
        let in_directory = |result: &Target| matches!(result, Target::File(path) if path.ends_with("file"));
        assert!(in_directory(&results[1]) && in_directory(&results[2]) && matches!(results[3], Target::Other));
        for (name, number) in [("/dev/fd/7", 7), ("/proc/self/fd/0", 0), ("/proc/thread-self/fd/2", 2)] {
            assert!(matches!(resolve(Path::new(name)), Target::Descriptor(found) if found == number), "{name}");
        }
        assert!(matches!(resolve(Path::new("/dev/null")), Target::File(_)));
        assert!(matches!(resolve(Path::new("file")), Target::File(_)));
    }
}
