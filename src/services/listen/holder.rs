//! Finds the process that holds a TCP port or a Unix socket, for the message about an address that is in use.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;

use procfs::net::{TcpNetEntry, TcpState};
use rustix::process::Pid;

use crate::report::ProcessInfo;

/// Returns the process that listens at this address, or at an address that conflicts with it, as text for a message;
/// `None` if no process of this network namespace listens there.
///
/// The sockets are those of `/proc/net/tcp` and `/proc/net/tcp6` (proc_pid_net(5)). Their processes are found through
/// the links in `/proc/PID/fd` (`socket:[inode]`), which are readable for processes of the same user only.
pub(crate) fn port_holder(address: SocketAddr) -> Option<String> {
    let entries = [procfs::net::tcp(), procfs::net::tcp6()].into_iter().flatten().flatten();
    let found: Vec<TcpNetEntry> =
        entries.filter(|entry| entry.state == TcpState::Listen && conflict(entry.local_address, address)).collect();
    let first = found.first()?;
    let inodes = found.iter().map(|entry| entry.inode).collect();
    Some(match holders(&inodes).as_slice() {
        [] if first.uid == rustix::process::geteuid().as_raw() => "a process that /proc does not show".into(),
        [] => format!("a process of user {}", first.uid),
        [one] => format!("process {one}"),
        [one, others @ ..] => format!("process {one} and {} more", others.len()),
    })
}

/// Returns the process with this pid as text for a message.
pub(super) fn described(pid: Pid) -> String {
    match ProcessInfo::read(pid) {
        Some(process) => format!("process {process}"),
        None => format!("process {}", pid.as_raw_nonzero()),
    }
}

/// Returns whether two listening sockets with these addresses exclude each other: they have the same port, and either
/// the same IP address, or one of them has the wildcard address. The wildcard of IPv6 includes IPv4 (IPV6_V6ONLY in
/// ipv6(7) is off for most programs).
fn conflict(one: SocketAddr, other: SocketAddr) -> bool {
    let covers = |this: IpAddr, that: IpAddr| this.is_unspecified() && (this.is_ipv6() || that.is_ipv4());
    let (a, b) = (one.ip().to_canonical(), other.ip().to_canonical());
    one.port() == other.port() && (a == b || covers(a, b) || covers(b, a))
}

/// Returns the processes that have one of these sockets open, without their children that inherited the socket.
fn holders(inodes: &HashSet<u64>) -> Vec<ProcessInfo> {
    let mut holders = Vec::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?)) else {
            continue;
        };
        let descriptors = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        // `metadata` follows the link, so this is the inode number of the socket.
        let has = |path: std::path::PathBuf| std::fs::metadata(path).is_ok_and(|file| inodes.contains(&file.ino()));
        let is_socket = |path: &std::path::Path| {
            std::fs::read_link(path).is_ok_and(|link| link.as_os_str().as_encoded_bytes().starts_with(b"socket:["))
        };
        if descriptors.map(|entry| entry.path()).any(|path| is_socket(&path) && has(path)) {
            holders.extend(ProcessInfo::read(pid));
        }
    }
    let pids: HashSet<i32> = holders.iter().map(|process| process.pid).collect();
    holders.retain(|process| !pids.contains(&process.parent));
    holders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let holder = port_holder(address).unwrap();
        assert!(holder.starts_with(&format!("process {} ", std::process::id())), "{holder}");
        // A socket with a wildcard address conflicts with it.
        assert_eq!(port_holder(([0, 0, 0, 0], address.port()).into()).unwrap(), holder);
        assert_eq!(port_holder((std::net::Ipv6Addr::UNSPECIFIED, address.port()).into()).unwrap(), holder);
        assert_eq!(port_holder((std::net::Ipv6Addr::LOCALHOST, address.port()).into()), None);
    }

    #[test]
    fn which_addresses_exclude_each_other() {
        let conflict = |one: &str, other: &str| conflict(one.parse().unwrap(), other.parse().unwrap());
        assert!(conflict("127.0.0.1:80", "127.0.0.1:80") && conflict("0.0.0.0:80", "127.0.0.1:80"));
        assert!(conflict("[::]:80", "127.0.0.1:80") && conflict("[::ffff:127.0.0.1]:80", "127.0.0.1:80"));
        assert!(!conflict("0.0.0.0:80", "[::1]:80") && !conflict("127.0.0.1:80", "127.0.0.2:80"));
        assert!(!conflict("127.0.0.1:80", "127.0.0.1:81"));
    }
}
