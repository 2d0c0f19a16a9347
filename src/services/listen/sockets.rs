//! The listening sockets of a service. pinfold makes them before the service starts and keeps them during a restart, so
//! that the kernel refuses no connection meanwhile.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, ipproto, sockopt};

use super::holder::{described, port_holder};
use super::{Address, Listen};
use crate::error::{Error, Result};
use crate::job::command::Command;
use crate::kernel::creator::Creator;

/// The listening sockets of one service. Dropping them closes them and removes the files of Unix sockets.
#[derive(Debug)]
pub(crate) struct Sockets {
    sockets: Vec<(String, Arc<OwnedFd>)>,
    files: Vec<File>,
    /// What pinfold did besides listening, for the user: for example, it replaced the file of a socket.
    pub notes: Vec<String>,
    creator: Creator,
}

/// The file of a Unix socket: its path, its device and its inode.
#[derive(Debug)]
struct File {
    path: PathBuf,
    id: (u64, u64),
}

impl Sockets {
    /// Listens on all addresses. A socket without a name gets `default_name`, which is the name of the service.
    ///
    /// pinfold replaces the file of a Unix socket on which no process listens, and adds a note.
    ///
    /// # Errors
    /// [`Error::Invalid`] if another process listens at an address (the error names the process if pinfold can find
    /// it), or if another kind of file has the path of a Unix socket; [`Error::System`] for another errno of bind(2).
    /// After an error, no socket is open.
    pub fn listen(addresses: &[Listen], default_name: &str) -> Result<Self> {
        let mut all =
            Self { sockets: Vec::new(), files: Vec::new(), notes: Vec::new(), creator: Creator::current_process() };
        for listen in addresses {
            let socket = match &listen.address {
                Address::Tcp(_) | Address::Everywhere(_) => tcp(&listen.address)?,
                Address::Path(path) => {
                    all.notes.extend(remove_stale(path)?);
                    let address = SocketAddrUnix::new(path).map_err(|errno| refused(&listen.address, errno))?;
                    let socket = bound(AddressFamily::UNIX, &address, &listen.address)?;
                    all.files.extend(File::of(path));
                    socket
                }
                Address::Abstract(name) => {
                    let address =
                        SocketAddrUnix::new_abstract_name(name).map_err(|errno| refused(&listen.address, errno))?;
                    bound(AddressFamily::UNIX, &address, &listen.address)?
                }
            };
            // The kernel lowers this backlog to net.core.somaxconn (listen(2)).
            rustix::net::listen(&socket, i32::MAX).map_err(|errno| refused(&listen.address, errno))?;
            let name = listen.name().unwrap_or(default_name);
            all.sockets.push((name.to_owned(), Arc::new(socket)));
        }
        Ok(all)
    }

    /// Returns whether there is no socket.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// Passes the sockets to the jobs of this command, with the variables of sd_listen_fds(3).
    pub fn pass_to(&self, command: &mut Command) {
        if !self.is_empty() {
            command.listen_on(self.sockets.iter().cloned());
        }
    }

    /// Returns the address of a TCP socket, whose port the kernel may have chosen.
    #[cfg(test)]
    fn local_address(&self, number: usize) -> std::net::SocketAddr {
        rustix::net::getsockname(&self.sockets[number].1).unwrap().try_into().unwrap()
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if !self.creator.is_another_process() {
            self.files.iter().filter(|file| File::of(&file.path).is_some_and(|now| now.id == file.id)).for_each(
                |file| {
                    // If the file is gone, or can't be removed, there is nothing to do.
                    let _ = std::fs::remove_file(&file.path);
                },
            );
        }
    }
}

impl File {
    fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::symlink_metadata(path).ok()?;
        Some(Self { path: path.to_owned(), id: (metadata.dev(), metadata.ino()) })
    }
}

/// Makes a socket and binds it.
fn bound(family: AddressFamily, address: &impl rustix::net::addr::SocketAddrArg, shown: &Address) -> Result<OwnedFd> {
    let made = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let socket = made.map_err(|errno| refused(shown, errno))?;
    rustix::net::bind(&socket, address).map_err(|errno| refused(shown, errno))?;
    Ok(socket)
}

/// Makes a TCP socket and binds it. A connection of an earlier socket that is not completely closed does not block the
/// port (SO_REUSEADDR in socket(7)).
fn tcp(address: &Address) -> Result<OwnedFd> {
    let Some(wanted) = address.tcp() else { return Err(refused(address, Errno::AFNOSUPPORT)) };
    let everywhere = matches!(address, Address::Everywhere(_));
    let make = |wanted: std::net::SocketAddr| {
        let family = if wanted.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
        let socket = rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC, Some(ipproto::TCP))?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if wanted.is_ipv6() {
            // For `:PORT` this option is off, so that one socket accepts IPv4 connections too (ipv6(7)).
            sockopt::set_ipv6_v6only(&socket, !everywhere)?;
        }
        rustix::net::bind(&socket, &wanted).map(|()| socket)
    };
    match make(wanted) {
        // This machine has no IPv6.
        Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL) if everywhere => {
            make((std::net::Ipv4Addr::UNSPECIFIED, wanted.port()).into()).map_err(|errno| refused(address, errno))
        }
        made => made.map_err(|errno| refused(address, errno)),
    }
}

/// Removes the file of a Unix socket on which no process listens, and returns a note about it.
fn remove_stale(path: &Path) -> Result<Option<String>> {
    let shown = Address::Path(path.to_owned());
    let in_use = |advice: String| Err(Error::invalid("address to listen on", shown.to_string(), advice));
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(refused(&shown, Errno::from_io_error(&error).unwrap_or(Errno::IO))),
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return in_use("a file that is not a socket has this path: remove it, or use another path".into()),
    }
    let probe = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        // The process that listened: its pid at the time of listen(2) (SO_PEERCRED in unix(7)).
        Ok(sockopt::socket_peercred(&socket).ok().map(|peer| described(peer.pid)))
    };
    let holder = match probe() {
        Ok(holder) => holder,
        // The errors of connect(2) for a file without a listener, and for one that was removed meanwhile.
        Err(Errno::CONNREFUSED) => {
            std::fs::remove_file(path)
                .map_err(|error| refused(&shown, Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
            let path = crate::report::text::printable_path(path);
            return Ok(Some(format!("replaced {path}, a socket on which no process listened")));
        }
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::ACCESS | Errno::PERM) => return Err(refused(&shown, Errno::ACCESS)),
        // The queue of the listener is full, or it is a socket of another type.
        Err(_) => None,
    };
    in_use(format!("{} listens there: end it, or use another path", holder.as_deref().unwrap_or("another process")))
}

/// Returns the error for an address that pinfold cannot use.
fn refused(address: &Address, errno: Errno) -> Error {
    if errno == Errno::ADDRINUSE {
        let holder = address.tcp().and_then(port_holder);
        let holder = holder.as_deref().unwrap_or("another process");
        let advice = format!("{holder} listens there: end it, or use another address");
        return Error::invalid("address to listen on", address.to_string(), advice);
    }
    let advice = match errno {
        Errno::ACCESS if address.tcp().is_some() => {
            "ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE (ip(7))"
        }
        Errno::ACCESS => "the directory must be writable for this user",
        Errno::NOENT => "the directory must exist",
        Errno::ADDRNOTAVAIL => "this machine does not have the address: see 'ip address'",
        Errno::AFNOSUPPORT => "this machine does not have this address family",
        Errno::MFILE | Errno::NFILE => "see ulimit -n",
        _ => "",
    };
    Error::system("listen on", address.to_string(), errno, advice)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn listen(text: &str) -> Result<Sockets> {
        Sockets::listen(&[text.parse()?], "web")
    }

    fn directory(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("pinfold-listen-{name}-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        directory
    }

    #[test]
    fn sockets_accept_connections_and_are_closed_at_exec() {
        for text in ["127.0.0.1:0", "[::1]:0", ":0"] {
            let sockets = match listen(text) {
                // A machine without IPv6.
                Err(error) if text.starts_with('[') => {
                    assert!(error.to_string().contains("address"), "{error}");
                    continue;
                }
                sockets => sockets.unwrap(),
            };
            let port = sockets.local_address(0).port();
            let host = if text.starts_with('[') { "[::1]" } else { "127.0.0.1" };
            let mut client = TcpStream::connect(format!("{host}:{port}")).unwrap();
            client.write_all(b"hello").unwrap();
            let server = TcpListener::from(sockets.sockets[0].1.try_clone().unwrap());
            let mut read = [0; 5];
            server.accept().unwrap().0.read_exact(&mut read).unwrap();
            assert_eq!(&read, b"hello");
            assert!(!crate::kernel::descriptor::stays_open_at_exec(sockets.sockets[0].1.as_raw_fd()));
        }
    }

    #[test]
    fn a_port_in_use_names_its_process() {
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = stranger.local_addr().unwrap();
        for text in [address.to_string(), format!(":{}", address.port())] {
            let error = listen(&text).unwrap_err().to_string();
            assert!(error.contains(&format!("process {} ", std::process::id())), "{error}");
        }
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_live_one_is_an_error() {
        let directory = directory("stale");
        let path = directory.join("a.sock");
        let text = format!("unix:{}", path.display());
        let live = UnixListener::bind(&path).unwrap();
        let error = listen(&text).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} ", std::process::id())), "{error}");
        // The probe of pinfold is a connection that has already ended.
        assert_eq!(live.accept().unwrap().0.read(&mut [0]).unwrap(), 0);
        drop(live);
        let sockets = listen(&text).unwrap();
        assert_eq!(sockets.notes, [format!("replaced {}, a socket on which no process listened", path.display())]);
        drop(UnixStream::connect(&path).unwrap());
        drop(sockets);
        assert!(!path.exists(), "the file of the socket is left");
        std::fs::write(&path, "text").unwrap();
        let error = listen(&text).unwrap_err().to_string();
        assert!(error.contains("not a socket"), "{error}");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn an_error_leaves_no_socket() {
        let directory = directory("error");
        let path = directory.join("a.sock");
        let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
        let texts = [format!("unix:{}", path.display()), stranger.local_addr().unwrap().to_string()];
        let addresses: Vec<Listen> = texts.iter().map(|text| text.parse().unwrap()).collect();
        assert!(Sockets::listen(&addresses, "web").is_err());
        assert!(!path.exists());
        let error = listen(&format!("unix:{}/none/a.sock", directory.display())).unwrap_err().to_string();
        assert!(error.contains("the directory must exist"), "{error}");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_that_has_replaced_the_socket_is_kept() {
        let directory = directory("replaced");
        let path = directory.join("a.sock");
        let sockets = listen(&format!("unix:{}", path.display())).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "of another program").unwrap();
        drop(sockets);
        assert!(path.exists());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn names_of_sockets() {
        let addresses: Vec<Listen> = ["127.0.0.1:0", "admin=127.0.0.1:0"].map(|text| text.parse().unwrap()).into();
        let sockets = Sockets::listen(&addresses, "web").unwrap();
        let mut command = Command::new("true");
        sockets.pass_to(&mut command);
        let names = command.get_envs().find(|(key, _)| *key == "LISTEN_FDNAMES").unwrap().1.unwrap();
        assert_eq!(names, "web:admin");
        assert_eq!(command.passed.keys().copied().collect::<Vec<_>>(), [3, 4]);
    }
}
