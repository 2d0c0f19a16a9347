//! The control socket of `pinfold up`: its path, and the lock that allows only one `up` at a time for a file of
//! services.
//!
//! The directory is `$XDG_RUNTIME_DIR/pinfold`; without that variable, `/run/user/UID/pinfold` if `/run/user/UID` exists,
//! `/run/pinfold` for root, and otherwise `/tmp/pinfold-UID`. It has mode 0700, and belongs to the user.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{FlockOperation, flock};
use rustix::process::getuid;

use super::canonical;
use crate::report::text::printable_path;

/// The listening socket of this `up`. Dropping it removes its files.
#[derive(Debug)]
pub struct Socket {
    pub listener: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    /// Locked until this `up` ends, even if it is killed. So the socket of a killed `up` does not block the next one.
    _lock: File,
}

impl Socket {
    /// Makes the socket of the `up` for a file of services.
    ///
    /// # Errors
    /// If another `up` runs this file, or if the socket can't be made.
    pub fn bind(file: &Path) -> Result<Self> {
        let path = path_of(file)?;
        let lock_path = path.with_extension("lock");
        let lock = lock(&lock_path)?;
        let Some(lock) = lock else {
            bail!(
                "the services of {} are up already: pinfold down stops them, pinfold restart restarts one",
                printable_path(file)
            );
        };
        // The lock proves that no process listens at this path.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove the old socket {}", printable_path(&path)));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).with_context(|| {
            format!(
                "cannot make the control socket {} (set XDG_RUNTIME_DIR to use another directory)",
                printable_path(&path)
            )
        })?;
        listener.set_nonblocking(true).context("cannot use the control socket")?;
        Ok(Self { listener, path, lock_path, _lock: lock })
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // The lock is still held, so these are our files.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

/// Connects to the `up` of a file of services.
///
/// # Errors
/// If no `up` runs this file.
pub fn connect(file: &Path) -> Result<UnixStream> {
    let path = path_of(file)?;
    match UnixStream::connect(&path) {
        Ok(stream) => Ok(stream),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
            bail!("the services of {} are not up: pinfold up starts them", printable_path(file))
        }
        Err(error) => Err(error).with_context(|| format!("cannot connect to {}", printable_path(&path))),
    }
}

/// Opens and locks the file. Returns `None` if another process holds the lock.
fn lock(path: &Path) -> Result<Option<File>> {
    let failed = || format!("cannot lock {}", printable_path(path));
    loop {
        let file = File::options().write(true).create(true).truncate(false).open(path).with_context(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(errno) => return Err(errno).with_context(failed),
        }
        // The `up` that had the lock may have removed the file after this open and before this lock.
        let own = file.metadata().with_context(failed)?;
        if std::fs::metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == (own.dev(), own.ino())) {
            return Ok(Some(file));
        }
    }
}

/// Returns the path of the socket for a file of services.
fn path_of(file: &Path) -> Result<PathBuf> {
    let file = canonical(file)?;
    // FNV-1a. Two files with the same hash would have the same socket. This is improbable.
    let hash =
        file.as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    Ok(directory()?.join(format!("up-{hash:016x}.sock")))
}

/// Returns the directory of the sockets. Creates it if it does not exist.
fn directory() -> Result<PathBuf> {
    let uid = getuid().as_raw();
    let run = PathBuf::from(format!("/run/user/{uid}"));
    let directory = match std::env::var_os("XDG_RUNTIME_DIR").filter(|value| !value.is_empty()) {
        Some(value) => PathBuf::from(value).join("pinfold"),
        None if run.is_dir() => run.join("pinfold"),
        None if uid == 0 => "/run/pinfold".into(),
        None => format!("/tmp/pinfold-{uid}").into(),
    };
    let shown = printable_path(&directory).into_owned();
    match DirBuilder::new().mode(0o700).create(&directory) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error)
                .with_context(|| format!("cannot make {shown} (set XDG_RUNTIME_DIR to use another directory)"));
        }
        _ => {}
    }
    // Another user may have created it first, if it is in a directory where all users may create files, such as /tmp.
    let metadata = directory.symlink_metadata().with_context(|| format!("cannot read {shown}"))?;
    ensure!(
        metadata.is_dir() && metadata.uid() == uid && metadata.mode() & 0o077 == 0,
        "{shown} must be a directory of this user with mode 0700: remove it, or set XDG_RUNTIME_DIR"
    );
    Ok(directory)
}
