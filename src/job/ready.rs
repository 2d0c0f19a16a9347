//! Whether a job is ready: it said so in a line, listens on a port, or has made a file.

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
use crate::job::output::OutputStream;
use crate::report::text::{printable, printable_bytes, printable_path};

/// How often a port is tried: nothing tells when somebody listens there. (sock_diag(7) has groups for sockets that are destroyed,
/// include/uapi/linux/sock_diag.h, and none for those that begin to listen.)
const TRY_EVERY: Duration = Duration::from_millis(20);

/// How often a name's addresses are tried before the name is looked up again.
const TRIES_OF_A_NAME: u32 = 50;

/// How long one address has to answer, where the kernel itself would wait for minutes.
const PATIENCE: Duration = Duration::from_secs(1);

/// How much is read of an output in search of a line.
const MAX_SEARCHED: usize = 4 * 1024 * 1024;

/// What a job is ready by ([`Job::ready`](crate::Job::ready)).
///
/// ```
/// use pinfold::Readiness;
/// let by = Readiness::stdout_line("listening on");
/// let by = Readiness::local_port(8080);
/// let by = Readiness::file("/run/server.pid");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness(pub(crate) By);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// 0 for standard output, 1 for standard error.
    Line(usize, Vec<u8>),
    Port(Endpoint),
    File(PathBuf),
}

/// Where connections are accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Address(SocketAddr),
    /// Of this machine, at 127.0.0.1 or ::1.
    Local(u16),
    /// A name, looked up each time.
    Host(String, u16),
}

fn local(port: u16) -> Vec<SocketAddr> {
    vec![(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()]
}

impl Endpoint {
    /// All its addresses; none where the name has none now.
    async fn addresses(&self) -> Vec<SocketAddr> {
        match self {
            Self::Address(address) => vec![*address],
            // Always (RFC 6761, 6.3), also where /etc/hosts gives localhost only one of them.
            Self::Host(name, port) if name.eq_ignore_ascii_case("localhost") => local(*port),
            Self::Local(port) => local(*port),
            Self::Host(name, port) => {
                tokio::net::lookup_host((name.as_str(), *port)).await.map(Iterator::collect).unwrap_or_default()
            }
        }
    }

    /// How long its addresses hold: a name may get one when the job is there.
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
    /// A line of its piped standard output contains this: a whole line, with its newline or at the end of the output. The caller
    /// can still read all of the output, of which at most 4 MiB are searched.
    #[must_use]
    pub fn stdout_line(part: impl Into<Vec<u8>>) -> Self {
        Self(By::Line(0, part.into()))
    }

    /// The same for standard error.
    #[must_use]
    pub fn stderr_line(part: impl Into<Vec<u8>>) -> Self {
        Self(By::Line(1, part.into()))
    }

    /// A process accepts connections at this TCP address. pinfold tries to connect every 20 ms. It can't see which process
    /// accepts: [`Readiness::check_before_start`] finds a port that another program holds.
    #[must_use]
    pub fn port(address: impl Into<SocketAddr>) -> Self {
        Self(By::Port(Endpoint::Address(address.into())))
    }

    /// The same for a port of this machine, at 127.0.0.1 or at ::1.
    #[must_use]
    pub fn local_port(port: u16) -> Self {
        Self(By::Port(Endpoint::Local(port)))
    }

    /// The same for a host by its name, at any of its addresses. The name is looked up again every second.
    #[must_use]
    pub fn host_port(host: impl Into<String>, port: u16) -> Self {
        Self(By::Port(Endpoint::Host(host.into(), port)))
    }

    /// Call it before the job is started: whether another program holds the port already, for which the job would be taken.
    /// Dropping the future leaves nothing behind.
    ///
    /// # Errors
    /// [`Error::Invalid`] where a process accepts connections at the port now.
    pub async fn check_before_start(&self) -> Result<()> {
        let By::Port(endpoint) = &self.0 else { return Ok(()) };
        match listener(&endpoint.addresses().await, ephemeral_ports()).await {
            Some(address) => Err(Error::invalid(
                "readiness by the port",
                address.to_string(),
                "another program listens there already, before the job has started: end that program, or take another port",
            )),
            None => Ok(()),
        }
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
                write!(f, "no line of {name} has had '{}' in it", printable_bytes(part))
            }
            By::Port(endpoint) => write!(f, "no process listens on {endpoint}"),
            By::File(path) => write!(f, "there is no {}", printable_path(path)),
        }
    }
}

/// Comes back when a line has it; tells why that can't be any more.
pub(crate) async fn line(stream: &mut OutputStream, part: &[u8]) -> std::result::Result<(), String> {
    let mut search = Search { part, lines: 0, read: 0 };
    loop {
        let (held, ended) = stream.look_ahead().await.map_err(|error| format!("cannot read its output: {error}"))?;
        if search.finds(held, ended) {
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

/// Looks at each line once, however it comes in.
struct Search<'a> {
    part: &'a [u8],
    /// Up to here all lines have been looked at.
    lines: usize,
    /// Up to here there is no other end of a line.
    read: usize,
}

impl Search<'_> {
    /// `held` is all that there is of the output.
    fn finds(&mut self, held: &[u8], ended: bool) -> bool {
        let fresh = &held[self.read..];
        // Only whole lines count, and at the end what there is.
        let end = if ended { Some(fresh.len()) } else { fresh.iter().rposition(|&byte| byte == b'\n') };
        let end = end.map(|end| self.read + end);
        self.read = held.len();
        let Some(end) = end else { return false };
        let lines = &held[self.lines..end];
        self.lines = (end + 1).min(held.len());
        lines.split(|&byte| byte == b'\n').any(|line| contains(line, self.part))
    }
}

fn contains(line: &[u8], part: &[u8]) -> bool {
    part.is_empty() || line.windows(part.len()).any(|window| window == part)
}

/// Returns when a process accepts connections there.
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

/// The first address at which a process accepts connections.
async fn listener(addresses: &[SocketAddr], ephemeral: (u16, u16)) -> Option<SocketAddr> {
    for address in addresses {
        // An address that does not answer must not keep the others waiting.
        if let Ok(Ok(true)) = tokio::time::timeout(PATIENCE, accepts(*address, ephemeral)).await {
            return Some(*address);
        }
    }
    None
}

/// Whether a process accepts connections there. The port that we have ourselves meanwhile must not be this one: the server could
/// not have it, and two ends that connect to each other at once are a connection, where both are the same one too (RFC 9293, 3.5,
/// "simultaneous open").
async fn accepts(address: SocketAddr, ephemeral: (u16, u16)) -> std::io::Result<bool> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if crate::kernel::sys::leave_out_local_port(&socket, address.port(), ephemeral).is_err() {
        // Before Linux 6.3 one is taken and looked at.
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

/// The first and the last port that connections are given (ip(7), `ip_local_port_range`), as far as that is told.
fn ephemeral_ports() -> (u16, u16) {
    const USUAL: (u16, u16) = (32768, 60999);
    let completion = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ports = completion.split_ascii_whitespace().map_while(|port| port.parse().ok());
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
            let advice = "the directory has to be readable; see also fs.inotify.max_user_instances and ulimit -n";
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            Error::system("watch for", path.display().to_string(), errno, advice)
        }
    };
    loop {
        let inotify = Inotify::init().map_err(failed)?;
        let made = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::ONLYDIR;
        let mask = made | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        watch_nearest(path, |directory| inotify.watches().add(directory, mask).map(drop)).map_err(failed)?;
        // Watched first, then looked at: nothing is missed in between.
        if path.symlink_metadata().is_ok() {
            return Ok(());
        }
        let watched = crate::supervisor::watch::watched(OwnedFd::from(inotify), Interest::READABLE).map_err(failed)?;
        // Whatever happened there: it is looked at anew.
        let _ = watched.readable().await.map_err(failed)?;
    }
}

/// Watches the directory that it is to be in, or the nearest one above that is there.
fn watch_nearest(path: &Path, mut watch: impl FnMut(&Path) -> std::io::Result<()>) -> std::io::Result<()> {
    let mut missing: Option<&Path> = None;
    let mut above = path.ancestors().skip(1);
    while let Some(directory) = above.next() {
        let directory = if directory.as_os_str() == OsStr::new("") { Path::new(".") } else { directory };
        match watch(directory) {
            // Made in the moment before this one was watched: nobody tells of that.
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

    #[test]
    fn each_line_is_looked_at_once() {
        let text = b"starting\nlis\n\nlistening\nrest";
        for cut in 0..text.len() {
            let mut search = Search { part: b"listening", lines: 0, read: 0 };
            let at = (0..=text.len()).find(|&length| length % (cut + 1) == 0 && search.finds(&text[..length], false));
            // With its newline, at the byte 24, and not before.
            assert_eq!(at, (24..=text.len()).find(|length| length % (cut + 1) == 0), "{cut}");
        }
        let mut search = Search { part: b"rest", lines: 0, read: 0 };
        assert!(!search.finds(text, false) && search.lines == 24 && search.read == text.len());
        assert!(search.finds(text, true));
        let mut search = Search { part: b"lis\n", lines: 0, read: 0 };
        assert!(!search.finds(text, true));
    }

    /// Between the attempt to watch it and the watch on the one above.
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
