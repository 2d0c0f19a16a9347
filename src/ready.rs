//! Whether a job is ready: it said so in a line, listens on a port, or has made a file.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::output::OutputStream;

/// How often a port is tried: nothing tells when somebody listens there. (sock_diag(7) has groups for sockets that are destroyed,
/// include/uapi/linux/sock_diag.h, and none for those that begin to listen.)
const TRY_EVERY: Duration = Duration::from_millis(20);

/// How much is read of an output in search of a line.
const MAX_SEARCHED: usize = 4 * 1024 * 1024;

/// What a job is ready by ([`Job::ready`](crate::Job::ready)).
///
/// ```
/// use pinfold::Readiness;
/// let by = Readiness::stdout_line("listening on");
/// let by = Readiness::port(([127, 0, 0, 1], 8080));
/// let by = Readiness::file("/run/server.pid");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness(pub(crate) By);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// 0 for standard output, 1 for standard error.
    Line(usize, Vec<u8>),
    Port(SocketAddr),
    File(PathBuf),
}

impl Readiness {
    /// A line of its piped standard output has this in it. What is read for that (4 MiB at most) is still there for who
    /// reads the stream.
    #[must_use]
    pub fn stdout_line(part: impl Into<Vec<u8>>) -> Self {
        Self(By::Line(0, part.into()))
    }

    /// The same for standard error.
    #[must_use]
    pub fn stderr_line(part: impl Into<Vec<u8>>) -> Self {
        Self(By::Line(1, part.into()))
    }

    /// Somebody accepts connections at this TCP address. It is tried every 20 ms. Whether it is this job that listens is not
    /// known: choose a port that nobody else has.
    #[must_use]
    pub fn port(address: impl Into<SocketAddr>) -> Self {
        Self(By::Port(address.into()))
    }

    /// There is a file of this name. Its directory is watched (inotify(7)), or the nearest one above that is there.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(By::File(path.into()))
    }
}

impl std::fmt::Display for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            By::Line(stream, part) => {
                let name = ["standard output", "standard error"][*stream];
                write!(f, "no line of {name} has had '{}' in it", String::from_utf8_lossy(part))
            }
            By::Port(address) => write!(f, "nobody listens on {address}"),
            By::File(path) => write!(f, "there is no {}", path.display()),
        }
    }
}

/// Comes back when a line has it; tells why that can't be any more.
pub(crate) async fn line(stream: &mut OutputStream, part: &[u8]) -> Result<(), String> {
    loop {
        let (held, ended) = stream.look_ahead().await.map_err(|error| format!("cannot read its output: {error}"))?;
        // Only whole lines count, and at the end what there is.
        let lines = match held.iter().rposition(|&byte| byte == b'\n') {
            _ if ended => held,
            Some(end) => &held[..end],
            None => &[],
        };
        if lines.split(|&byte| byte == b'\n').any(|line| contains(line, part)) {
            return Ok(());
        }
        if ended {
            return Err("it has closed the stream".into());
        }
        if held.len() >= MAX_SEARCHED {
            return Err(format!("it has written {MAX_SEARCHED} bytes"));
        }
    }
}

fn contains(line: &[u8], part: &[u8]) -> bool {
    part.is_empty() || line.windows(part.len()).any(|window| window == part)
}

pub(crate) async fn port(address: SocketAddr) {
    while TcpStream::connect(address).await.is_err() {
        tokio::time::sleep(TRY_EVERY).await;
    }
}

pub(crate) async fn file(path: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("cannot watch for it: {error}");
    loop {
        let inotify = Inotify::init().map_err(failed)?;
        let directories = path
            .ancestors()
            .skip(1)
            .map(|above| if above.as_os_str() == OsStr::new("") { Path::new(".") } else { above });
        let made = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
        for directory in directories {
            match inotify.watches().add(directory, made | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF) {
                Ok(_) => break,
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
        // Watched first, then looked at: nothing is missed in between.
        if path.symlink_metadata().is_ok() {
            return Ok(());
        }
        let watched = crate::sys::watched(OwnedFd::from(inotify), Interest::READABLE).map_err(failed)?;
        // Whatever happened there: it is looked at anew.
        let _ = watched.readable().await.map_err(failed)?;
    }
}
