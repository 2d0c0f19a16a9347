//! Finds out whether Landlock refuses connect(2) or bind(2) (security/landlock/net.c, fs.c and task.c in the kernel).

use std::collections::HashSet;
use std::ffi::CStr;

use landlock::{AccessFs, AccessNet, BitFlags, Scope};
use rustix::fs::{Access, FileType};

use super::caller::Caller;
use super::files::{Call, FileRules};
use super::lookup::find_from;
use super::text::{path_option, to_text};
use crate::report::{Denial, DenialKind};

/// The rules of a policy about sockets.
#[derive(Debug)]
pub struct SocketRules {
    /// The rights on TCP ports that the ruleset takes away.
    pub ports: BitFlags<AccessNet>,
    /// The granted ports for connect(2).
    pub connect: Vec<u16>,
    /// The granted ports for bind(2).
    pub listen: Vec<u16>,
    /// Contains [`Scope::AbstractUnixSocket`] if the ruleset restricts connections to abstract sockets.
    pub scopes: BitFlags<Scope>,
}

/// The addresses of the Unix sockets that a job has bound. Landlock lets a job connect to its own sockets.
#[derive(Debug, Default)]
pub struct BoundSockets(HashSet<Vec<u8>>);

impl BoundSockets {
    /// The maximum number of addresses that are remembered. Once it is reached, every socket counts as the job's own.
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

/// The part of a socket address that Landlock checks (ip(7), ipv6(7), unix(7)).
#[derive(Debug, PartialEq, Eq)]
enum Address {
    Port(u16),
    Path(Vec<u8>),
    /// The name in the abstract namespace, with the leading NUL.
    Abstract(Vec<u8>),
    Other,
}

impl Address {
    fn parse(bytes: &[u8]) -> Self {
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

/// Checks connect(2) with this address. Returns `None` if the sandbox allows the call, or if it would also fail without
/// a sandbox.
pub fn connect(
    rules: &SocketRules,
    files: &FileRules,
    bound: &BoundSockets,
    call: Call<'_>,
    address: &[u8],
) -> Option<Denial> {
    match Address::parse(address) {
        Address::Port(port) => {
            let is_refused = rules.ports.contains(AccessNet::ConnectTcp) && !rules.connect.contains(&port);
            is_refused.then(|| port_denial(DenialKind::Connect, port, call.name, "--connect-tcp"))
        }
        Address::Abstract(name) => {
            let is_refused = rules.scopes.contains(Scope::AbstractUnixSocket)
                && !bound.includes(&name)
                && abstract_socket_exists(call.caller, &name).unwrap_or(false);
            let object = format!("the abstract Unix socket {}", to_text(&name[1..]));
            is_refused.then(|| Denial::new(DenialKind::Connect, object, call.name, Vec::new()))
        }
        Address::Path(path) => {
            let found = find_from(call.caller, libc::AT_FDCWD, &path, true).ok()?;
            let object = found.object.as_ref().filter(|object| object.kind() == FileType::Socket)?;
            let path = found.path()?;
            let is_refused = !bound.includes(&path)
                && !files.allow(call.caller, &found, AccessFs::ResolveUnix.into())
                && call.caller.may_access(object, Access::WRITE_OK);
            let grant = path_option("--unix", &path);
            let object = format!("the Unix socket {}", to_text(&path));
            is_refused.then(|| Denial::new(DenialKind::Connect, object, call.name, vec![grant]))
        }
        Address::Other => None,
    }
}

/// Checks bind(2) with this address, as [`connect`] does. Remembers the address in `bound` if the call is allowed.
pub fn bind(
    rules: &SocketRules,
    files: &FileRules,
    bound: &mut BoundSockets,
    call: Call<'_>,
    address: &[u8],
) -> Option<Denial> {
    match Address::parse(address) {
        Address::Port(port) => {
            let is_refused = rules.ports.contains(AccessNet::BindTcp) && !rules.listen.contains(&port);
            is_refused.then(|| port_denial(DenialKind::Listen, port, call.name, "--listen-tcp"))
        }
        Address::Abstract(name) => {
            bound.add(name);
            None
        }
        Address::Path(path) => {
            let found = find_from(call.caller, libc::AT_FDCWD, &path, false).ok()?;
            let denial = files.make_at(call, &found, AccessFs::MakeSock.into());
            if denial.is_none() {
                found.path().into_iter().for_each(|path| bound.add(path));
            }
            denial
        }
        Address::Other => None,
    }
}

fn port_denial(kind: DenialKind, port: u16, call: &str, option: &str) -> Denial {
    let grants = match (kind, port) {
        // No option grants a connection to port 0.
        (DenialKind::Connect, 0) => Vec::new(),
        _ => vec![format!("{option} {port}")],
    };
    Denial::new(kind, format!("TCP port {port}"), call, grants)
}

/// Returns whether the network namespace of the caller has a socket with this abstract address (proc_net(5)).
fn abstract_socket_exists(caller: &Caller, name: &[u8]) -> Option<bool> {
    let table = std::fs::read(format!("/proc/{}/net/unix", caller.tid)).ok()?;
    // The table shows each NUL as `@`.
    let listed: Vec<u8> = name.iter().map(|&byte| if byte == 0 { b'@' } else { byte }).collect();
    Some(table.split(|&byte| byte == b'\n').any(|line| line.ends_with(&[b" ", listed.as_slice()].concat())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_parsed() {
        let family = |family: i32| (family as u16).to_ne_bytes().to_vec();
        let address = |kind, rest: &[u8]| Address::parse(&[family(kind), rest.to_vec()].concat());
        assert_eq!(address(libc::AF_INET, &[1, 187, 0, 0]), Address::Port(443));
        assert_eq!(address(libc::AF_INET6, &[0, 80]), Address::Port(80));
        assert_eq!(address(libc::AF_UNIX, b"/run/x\0\0"), Address::Path(b"/run/x".to_vec()));
        assert_eq!(address(libc::AF_UNIX, b"\0name"), Address::Abstract(b"\0name".to_vec()));
        assert_eq!(address(libc::AF_UNIX, b""), Address::Other);
        assert_eq!(address(libc::AF_UNSPEC, b"abcd"), Address::Other);
        assert_eq!(Address::parse(b"x"), Address::Other);
    }
}
