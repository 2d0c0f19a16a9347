//! Readiness by a file: the job is ready when the file exists.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;

use inotify::{Inotify, WatchMask};
use rustix::io::Errno;
use tokio::io::Interest;

use crate::error::{Error, Result};

/// Waits until the file exists.
///
/// # Errors
/// [`Error::Invalid`] if a parent of the file is not a directory, [`Error::System`] if the directory of the file can't
/// be watched.
pub(super) async fn wait_for_file(path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| match error.kind() {
        ErrorKind::NotADirectory => {
            let above = path.ancestors().skip(1).find(|above| above.exists()).unwrap_or(path);
            let advice = format!("{} is not a directory", above.display());
            Error::invalid("readiness by the file", path.display().to_string(), advice)
        }
        _ => {
            let advice = "the directory must be readable; see also fs.inotify.max_user_instances and ulimit -n";
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::system("watch for", path.display().to_string(), errno, advice)
        }
    };
    loop {
        let inotify = Inotify::init().map_err(failed)?;
        let made = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
        let mask = made | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        watch_nearest(path, |directory| inotify.watches().add(directory, mask).map(drop)).map_err(failed)?;
        // The watch comes first and the check second, so that no file is missed in between.
        if path.symlink_metadata().is_ok() {
            return Ok(());
        }
        let watched = crate::supervisor::watch::watched(OwnedFd::from(inotify), Interest::READABLE).map_err(failed)?;
        // The kind of event does not matter: the loop checks again.
        let _ = watched.readable().await.map_err(failed)?;
    }
}

/// Watches the directory of the file, or the nearest parent directory that exists.
fn watch_nearest(path: &Path, mut watch: impl FnMut(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut missing: Option<&Path> = None;
    let mut above = path.ancestors().skip(1);
    while let Some(directory) = above.next() {
        let directory = if directory.as_os_str() == OsStr::new("") { Path::new(".") } else { directory };
        match watch(directory) {
            // The missing directory was created just before this watch began, so no event reports it.
            Ok(()) if missing.is_some_and(Path::exists) => {
                above = {
                    missing = None;
                    path.ancestors().skip(1)
                }
            }
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::NotFound => missing = Some(directory),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directory is created between the attempt to watch it and the watch on its parent.
    #[test]
    fn a_directory_made_in_between_is_watched() {
        let top = std::env::temp_dir().join(format!("pinfold-nearest-{}", std::process::id()));
        std::fs::create_dir(&top).unwrap();
        let path = top.join("a/b/file");
        let mut watched = Vec::new();
        let done = watch_nearest(&path, |directory| {
            if directory == top && watched.is_empty() {
                std::fs::create_dir_all(top.join("a/b")).unwrap();
            }
            let there = directory.metadata().map(drop);
            if there.is_ok() {
                watched.push(directory.to_owned());
            }
            there
        });
        std::fs::remove_dir_all(&top).unwrap();
        done.unwrap();
        assert_eq!(watched, [top.clone(), top.join("a/b")]);
    }
}
