//! Detects that a job is ready: a line of its output says so, it listens on a port, or it has created a file.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{Inotify, WatchMask};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::net::TcpSocket;

use crate::error::{Error, Result};
use crate::report::text::{printable, printable_bytes, printable_path};

/// How often pinfold tries a port. The kernel has no notification for a process that starts to listen. (sock_diag(7)
/// has groups for sockets that are destroyed, include/uapi/linux/sock_diag.h, and none for sockets that start to
/// listen.)
const TRY_EVERY: Duration = Duration::from_millis(20);

/// How often pinfold tries the addresses of a name before it looks up the name again.
const TRIES_OF_A_NAME: u32 = 50;

/// How long pinfold waits for one address. The kernel itself would wait for minutes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The condition under which a job is ready ([`Job::ready`](crate::Job::ready)).
///
/// ```
/// use pinfold::Readiness;
/// let by = Readiness::line("listening on");
/// let by = Readiness::local_port(8080);
/// let by = Readiness::file("/run/server.pid");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness(pub(crate) By);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Line(LineOf, Vec<u8>),
    Port(Endpoint),
    File(PathBuf),
}

/// The outputs whose lines count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineOf {
    Stdout,
    Stderr,
    Both,
}

impl LineOf {
    /// Returns whether lines of standard output (0) or of standard error (1) count.
    pub fn includes(self, number: usize) -> bool {
        match self {
            Self::Stdout => number == 0,
            Self::Stderr => number == 1,
            Self::Both => true,
        }
    }
}

impl std::fmt::Display for LineOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stdout => "standard output",
            Self::Stderr => "standard error",
            Self::Both => "its output",
        })
    }
}

/// An address at which a process accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Address(SocketAddr),
    /// A port of this machine, at 127.0.0.1 or ::1.
    Local(u16),
    /// A host name, which pinfold looks up again at intervals.
    Host(String, u16),
}

fn local(port: u16) -> Vec<SocketAddr> {
    vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
}

impl Endpoint {
    /// Returns all addresses of the endpoint; an empty list if the name has none now.
    async fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            Self::Address(address) => vec![*address],
            // Both addresses always count (RFC 6761, 6.3), even if /etc/hosts gives localhost only one of them.
            Self::Host(name, port) if name.eq_ignore_ascii_case("localhost") => local(*port),
            Self::Local(port) => local(*port),
            Self::Host(name, port) => {
                tokio::net::lookup_host((name.as_str(), *port)).await.map(Iterator::collect).unwrap_or_default()
            }
        }
    }

    /// Returns whether the addresses can change: a name may get an address only after the job has started.
    fn is_name(&self) -> bool {
        matches!(self, Self::Host(..))
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Local(port) => write!(f, "127.0.0.1:{port} or [::1]:{port}"),
            Self::Host(name, port) => write!(f, "{}:{port}", printable(name)),
        }
    }
}

impl Readiness {
    /// The job is ready when a line of its piped output contains `part`: of standard output or of standard error, or of
    /// its terminal. The same as `--ready line:` of the command.
    ///
    /// - A line counts when it is complete: when its newline has been read, or the end of the output. A carriage return
    ///   does not end a line, and belongs to it.
    /// - `part` can be anywhere in the line. Bytes are compared, so upper and lower case differ, and neither needs to
    ///   be UTF-8.
    /// - A line can have any length, and parts of it can come from different processes of the job, also after exec.
    ///
    /// The caller can still read all of the output.
    #[must_use]
    pub fn line(part: impl Into<Vec<u8>>) -> Self {
        Self(By::Line(LineOf::Both, part.into()))
    }

    /// The same as [`line`](Self::line) for standard output only.
    #[must_use]
    pub fn stdout_line(part: impl Into<Vec<u8>>) -> Self {
        Self(By::Line(LineOf::Stdout, part.into()))
    }

    /// The same as [`line`](Self::line) for standard error only.
    #[must_use]
    pub fn stderr_line(part: impl Into<Vec<u8>>) -> Self {
        Self(By::Line(LineOf::Stderr, part.into()))
    }

    /// Returns whether the job's output has to be piped for this.
    #[must_use]
    pub fn needs_output(&self) -> bool {
        matches!(self.0, By::Line(..))
    }

    /// The job is ready when a process accepts connections at this TCP address. pinfold tries to connect every 20 ms.
    /// It can't see which process accepts: [`Readiness::check_before_start`] finds a port that another program holds.
    #[must_use]
    pub fn port(address: impl Into<SocketAddr>) -> Self {
        Self(By::Port(Endpoint::Address(address.into())))
    }

    /// The same as [`port`](Self::port) for a port of this machine, at 127.0.0.1 or at ::1.
    #[must_use]
    pub fn local_port(port: u16) -> Self {
        Self(By::Port(Endpoint::Local(port)))
    }

    /// The same as [`port`](Self::port) for a host name, at any of its addresses. pinfold looks up the name again every
    /// second.
    #[must_use]
    pub fn host_port(host: impl Into<String>, port: u16) -> Self {
        Self(By::Port(Endpoint::Host(host.into(), port)))
    }

    /// Checks whether another program holds the port already. Call it before the job is started: pinfold would take the
    /// other program for the job. Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Invalid`] if a process accepts connections at the port now.
    pub async fn check_before_start(&self) -> Result<()> {
        let By::Port(endpoint) = &self.0 else { return Ok(()) };
        match listener(&endpoint.addresses().await, ephemeral_ports()).await {
            Some(address) => Err(Error::invalid(
                "readiness by the port",
                address.to_string(),
                "another program listens there before the job has started: end that program, or use another port",
            )),
            None => Ok(()),
        }
    }

    /// The job is ready when a file with this path exists. pinfold watches its directory (inotify(7)), or the nearest
    /// parent directory that exists.
    #[must_use]
    pub fn file(path: impl Into<PathBuf>) -> Self {
        Self(By::File(path.into()))
    }
}

impl std::fmt::Display for Readiness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            By::Line(line_of, part) => write!(f, "no line of {line_of} contained '{}'", printable_bytes(part)),
            By::Port(endpoint) => write!(f, "no process listens on {endpoint}"),
            By::File(path) => write!(f, "there is no {}", printable_path(path)),
        }
    }
}

/// Returns when a process accepts connections at the endpoint.
pub(crate) async fn port(endpoint: &Endpoint) {
    let ephemeral = ephemeral_ports();
    loop {
        let addresses = endpoint.addresses().await;
        let tries = if endpoint.is_name() { TRIES_OF_A_NAME } else { u32::MAX };
        for _ in 0..tries {
            if listener(&addresses, ephemeral).await.is_some() {
                return;
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }
}

/// Returns the first address at which a process accepts connections.
async fn listener(addresses: &[SocketAddr], ephemeral: (u16, u16)) -> Option<SocketAddr> {
    for address in addresses {
        // An address that does not answer must not delay the others.
        if let Ok(Ok(true)) = tokio::time::timeout(CONNECT_TIMEOUT, accepts(*address, ephemeral)).await {
            return Some(*address);
        }
    }
    None
}

/// Returns whether a process accepts connections at the address. The local port of our own socket must not be this
/// port, for two reasons. The server could not bind the port meanwhile. And two ends that connect to each other at the
/// same time form a connection, even if both are the same socket (RFC 9293, 3.5, "simultaneous open").
async fn accepts(address: SocketAddr, ephemeral: (u16, u16)) -> std::io::Result<bool> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if crate::kernel::socket::leave_out_local_port(&socket, address.port(), ephemeral).is_err() {
        // Before Linux 6.3, the socket takes any free port, and pinfold checks which one it is.
        socket.bind(SocketAddr::new(if address.is_ipv4() { V4_ANY } else { V6_ANY }, 0))?;
        if socket.local_addr()?.port() == address.port() {
            return Ok(false);
        }
    }
    let stream = socket.connect(address).await?;
    Ok(stream.local_addr()? != stream.peer_addr()?)
}

const V4_ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const V6_ANY: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

/// Returns the first and the last port that the kernel assigns to connections (ip(7), `ip_local_port_range`). If that
/// can't be read, returns the usual range.
fn ephemeral_ports() -> (u16, u16) {
    const USUAL: (u16, u16) = (32768, 60999);
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = range.split_ascii_whitespace().map_while(|port| port.parse().ok());
    ports.next().zip(ports.next()).unwrap_or(USUAL)
}

pub(crate) async fn file(path: &Path) -> Result<()> {
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
