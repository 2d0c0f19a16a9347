//! Socket activation: the addresses on which pinfold listens for a service (systemd.socket(5)). The service gets the
//! sockets as sd_listen_fds(3) describes.

mod holder;
mod sockets;

use std::ffi::OsStr;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::report::text::printable_bytes;
pub(crate) use holder::port_holder;
pub(crate) use sockets::Sockets;

/// The longest name of a socket (`FileDescriptorName=` in systemd.socket(5)).
const MAX_NAME: usize = 255;

/// The longest path or abstract name of a Unix socket (unix(7): `sun_path` has 108 bytes, one of which is the final
/// NUL, or the NUL at the beginning of an abstract name).
const MAX_UNIX: usize = 107;

/// One address on which pinfold listens, and the name of its socket.
///
/// As text: `127.0.0.1:8080`, `[::1]:8080`, `:8080` or `*:8080` (every address of this machine), `unix:/run/app.sock`,
/// or `unix:@name` for a name in the abstract namespace (unix(7)). A name of the socket may come first:
/// `http=127.0.0.1:8080`.
///
/// ```
/// # use pinfold::services::Listen;
/// let listen: Listen = "http=127.0.0.1:8080".parse()?;
/// assert_eq!((listen.name(), listen.to_string().as_str()), (Some("http"), "127.0.0.1:8080"));
/// # Ok::<(), pinfold::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Listen {
    name: Option<String>,
    pub(crate) address: Address,
}

/// Where pinfold listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    /// A port at every IPv4 and IPv6 address of this machine, with one socket.
    Everywhere(u16),
    Path(PathBuf),
    Abstract(Vec<u8>),
}

impl Listen {
    /// Returns the name of the socket, if the text has one. The service finds it in `LISTEN_FDNAMES`.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the same address. If it is a relative path, the path is now relative to `directory`.
    #[must_use]
    pub fn relative_to(mut self, directory: &Path) -> Self {
        if let Address::Path(path) = &mut self.address {
            *path = directory.join(&*path);
        }
        self
    }
}

impl FromStr for Listen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = |advice: &str| Err(Error::invalid("address to listen on", text, advice));
        // An `=` that belongs to a path comes after the colon of `unix:`.
        let (name, address) = match text.split_once('=') {
            Some((name, address)) if !name.contains([':', '/']) => (Some(name), address),
            _ => (None, text),
        };
        if let Some(name) = name
            && (name.is_empty() || name.len() > MAX_NAME || !name.chars().all(|c| c.is_ascii_graphic()))
        {
            return bad("the name of a socket has 1 to 255 ASCII characters, and no space or colon");
        }
        let address = if let Some(path) = address.strip_prefix("unix:") {
            match path.strip_prefix('@') {
                Some("") => return bad("write a name after the @"),
                Some(name) if name.len() <= MAX_UNIX => Address::Abstract(name.as_bytes().into()),
                None if path.is_empty() => return bad("write a path after 'unix:'"),
                None if path.len() <= MAX_UNIX && !path.contains('\0') => Address::Path(path.into()),
                _ => return bad("the kernel accepts at most 107 bytes as the address of a Unix socket (unix(7))"),
            }
        } else if let Some(port) = address.strip_prefix(':').or_else(|| address.strip_prefix("*:")) {
            match port.parse() {
                Ok(port) => Address::Everywhere(port),
                Err(_) => return bad("a port is a number from 0 to 65535"),
            }
        } else {
            match address.parse() {
                Ok(address) => Address::Tcp(address),
                Err(_) => {
                    return bad(
                        "write 127.0.0.1:8080, [::1]:8080, :8080 for every address, or unix:/path; pinfold does not \
                         look up host names",
                    );
                }
            }
        };
        Ok(Self { name: name.map(str::to_owned), address })
    }
}

impl Address {
    /// Returns the address of a TCP socket.
    fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Everywhere(port) => Some((Ipv6Addr::UNSPECIFIED, *port).into()),
            Self::Path(_) | Self::Abstract(_) => None,
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unix = |f: &mut std::fmt::Formatter<'_>, at: &str, text: &OsStr| {
            write!(f, "unix:{at}{}", printable_bytes(text.as_bytes()))
        };
        match self {
            Self::Tcp(address) => write!(f, "{address}"),
            Self::Everywhere(port) => write!(f, ":{port}"),
            Self::Path(path) => unix(f, "", path.as_os_str()),
            Self::Abstract(name) => unix(f, "@", OsStr::from_bytes(name)),
        }
    }
}

impl std::fmt::Display for Listen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.address.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        let parsed = |text: &str| text.parse::<Listen>().map(|listen| (listen.name.clone(), listen.to_string()));
        for (text, name, shown) in [
            ("127.0.0.1:8080", None, "127.0.0.1:8080"),
            ("[::1]:80", None, "[::1]:80"),
            (":80", None, ":80"),
            ("*:80", None, ":80"),
            ("http=:80", Some("http"), ":80"),
            ("unix:/run/a.sock", None, "unix:/run/a.sock"),
            ("unix:/run/a=b", None, "unix:/run/a=b"),
            ("db=unix:/run/a=b", Some("db"), "unix:/run/a=b"),
            ("unix:@name", None, "unix:@name"),
        ] {
            let (found_name, found) = parsed(text).unwrap();
            assert_eq!((found_name.as_deref(), found.as_str()), (name, shown), "{text}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        for text in ["", "80", "localhost:80", ":", ":65536", "unix:", "unix:@", "=:80", "a b=:80", &long, "1.2.3.4"] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(error.starts_with("address to listen on '"), "{error}");
        }
    }

    #[test]
    fn a_relative_path_belongs_to_the_directory_of_the_file() {
        let listen: Listen = "unix:a.sock".parse().unwrap();
        assert_eq!(listen.relative_to(Path::new("/srv")).to_string(), "unix:/srv/a.sock");
    }
}
