//! Which connections and addresses Landlock refuses (security/landlock/net.c and fs.c in the kernel).

use std::collections::HashSet;
use std::ffi::CStr;

use landlock::{AccessFs, AccessNet, BitFlags, Scope};
use rustix::fs::{Access, FileType};

use super::caller::Caller;
use super::files::{FileCall, FileRules};
use super::lookup::find_from;
use super::text::{path_option, shown};
use crate::report::{Denial, DenialKind};

/// The rules of a policy about sockets.
#[derive(Debug)]
pub struct SocketRules {
    /// The rights on TCP ports that the ruleset takes away.
    pub ports: BitFlags<AccessNet>,
    pub connect: Vec<u16>,
    pub listen: Vec<u16>,
    /// [`Scope::AbstractUnixSocket`] if it is restricted.
    pub scopes: BitFlags<Scope>,
}

/// The Unix sockets that a job has bound, by their address. The rules allow these.
#[derive(Debug, Default)]
pub struct Bound(HashSet<Vec<u8>>);

impl Bound {
    /// The most addresses that are kept. With more of them, all sockets count as the job's own.
    const MAX: usize = 1000;

    fn add(&mut self, address: Vec<u8>) {
        if self.0.len() < Self::MAX {
            self.0.insert(address);
        }
    }

    fn includes(&self, address: &[u8]) -> bool {
        self.0.len() == Self::MAX || self.0.contains(address)
    }
}

/// An address (ip(7), ipv6(7), unix(7)).
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Port(u16),
    Path(Vec<u8>),
    /// With the leading NUL.
    Abstract(Vec<u8>),
    Other,
}

impl Address {
    fn of(bytes: &[u8]) -> Self {
        let Some((family, rest)) = bytes.split_first_chunk::<2>() else { return Self::Other };
        match i32::from(u16::from_ne_bytes(*family)) {
            libc::AF_INET | libc::AF_INET6 => match rest.first_chunk::<2>() {
                Some(port) => Self::Port(u16::from_be_bytes(*port)),
                None => Self::Other,
            },
            libc::AF_UNIX if rest.first() == Some(&0) => Self::Abstract(rest.to_vec()),
            libc::AF_UNIX if !rest.is_empty() => {
                Self::Path(CStr::from_bytes_until_nul(rest).map_or(rest, CStr::to_bytes).to_vec())
            }
            _ => Self::Other,
        }
    }
}

/// connect(2) with this address.
pub fn connect(
    rules: &SocketRules,
    files: &FileRules,
    bound: &Bound,
    call: FileCall<'_>,
    address: &[u8],
) -> Option<Denial> {
    match Address::of(address) {
        Address::Port(port) => {
            let is_refused = rules.ports.contains(AccessNet::ConnectTcp) && !rules.connect.contains(&port);
            is_refused.then(|| of_port(DenialKind::Connect, port, call.name, "--connect-tcp"))
        }
        Address::Abstract(name) => {
            let is_refused = rules.scopes.contains(Scope::AbstractUnixSocket)
                && !bound.includes(&name)
                && exists(call.caller, &name).unwrap_or(false);
            let object = format!("the abstract Unix socket {}", shown(&name[1..]));
            is_refused.then(|| Denial::new(DenialKind::Connect, object, call.name, Vec::new()))
        }
        Address::Path(path) => {
            let found = find_from(call.caller, libc::AT_FDCWD, &path, true).ok()?;
            let object = found.object.as_ref().filter(|object| object.kind() == FileType::Socket)?;
            let path = found.path()?;
            let is_refused = !bound.includes(&path)
                && !files.allow(call.caller, &found, AccessFs::ResolveUnix.into())
                && call.caller.may(object, Access::WRITE_OK);
            let grant = path_option("--unix", &path);
            let object = format!("the Unix socket {}", shown(&path));
            is_refused.then(|| Denial::new(DenialKind::Connect, object, call.name, vec![grant]))
        }
        Address::Other => None,
    }
}

/// bind(2) with this address.
pub fn bind(
    rules: &SocketRules,
    files: &FileRules,
    bound: &mut Bound,
    call: FileCall<'_>,
    address: &[u8],
) -> Option<Denial> {
    match Address::of(address) {
        Address::Port(port) => {
            let is_refused = rules.ports.contains(AccessNet::BindTcp) && !rules.listen.contains(&port);
            is_refused.then(|| of_port(DenialKind::Listen, port, call.name, "--listen-tcp"))
        }
        Address::Abstract(name) => {
            bound.add(name);
            None
        }
        Address::Path(path) => {
            let found = find_from(call.caller, libc::AT_FDCWD, &path, false).ok()?;
            let denial = files.make_found(call, &found, AccessFs::MakeSock.into());
            if denial.is_none() {
                found.path().into_iter().for_each(|path| bound.add(path));
            }
            denial
        }
        Address::Other => None,
    }
}

fn of_port(kind: DenialKind, port: u16, call: &str, option: &str) -> Denial {
    let grants = match (kind, port) {
        // The policy has no port 0 to connect to.
        (DenialKind::Connect, 0) => Vec::new(),
        _ => vec![format!("{option} {port}")],
    };
    Denial::new(kind, format!("TCP port {port}"), call, grants)
}

/// Returns whether the network namespace of the caller has a socket with this abstract address (proc_net(5)).
fn exists(caller: &Caller, name: &[u8]) -> Option<bool> {
    let table = std::fs::read(format!("/proc/{}/net/unix", caller.thread)).ok()?;
    // The table shows each NUL as `@`.
    let shown: Vec<u8> = name.iter().map(|&byte| if byte == 0 { b'@' } else { byte }).collect();
    Some(table.split(|&byte| byte == b'\n').any(|line| line.ends_with(&[b" ", shown.as_slice()].concat())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        let family = |family: i32| (family as u16).to_ne_bytes().to_vec();
        let address = |kind, rest: &[u8]| Address::of(&[family(kind), rest.to_vec()].concat());
        assert_eq!(address(libc::AF_INET, &[1, 187, 0, 0]), Address::Port(443));
        assert_eq!(address(libc::AF_INET6, &[0, 80]), Address::Port(80));
        assert_eq!(address(libc::AF_UNIX, b"/run/x\0\0"), Address::Path(b"/run/x".to_vec()));
        assert_eq!(address(libc::AF_UNIX, b"\0name"), Address::Abstract(b"\0name".to_vec()));
        assert_eq!(address(libc::AF_UNIX, b""), Address::Other);
        assert_eq!(address(libc::AF_UNSPEC, b"abcd"), Address::Other);
        assert_eq!(Address::of(b"x"), Address::Other);
    }
}
