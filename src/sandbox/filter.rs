//! The seccomp filter of a policy: which system calls are forbidden, and under which conditions.

use super::calls;
use super::policy::{Network, Sandbox, Unix};
pub use super::program::ARCHITECTURE;
use super::program::{Rules, Test, compile};
use crate::kernel::seccomp::Program;

/// The low bits of a socket's type; the others are flags (`SOCK_TYPE_MASK` in include/linux/net.h).
const TYPE_MASK: u32 = 0xf;
/// The obsolete type for packets of a device (packet(7)).
const SOCK_PACKET: i32 = 10;
/// The types of sockets that are neither SOCK_STREAM nor SOCK_SEQPACKET.
const WITHOUT_CONNECTION: [i32; 5] = [libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_DCCP, SOCK_PACKET];
const MSG_FASTOPEN: u32 = libc::MSG_FASTOPEN as u32;
/// The socket option that replaces the protocol of a TCP socket (`TCP_ULP` in include/uapi/linux/tcp.h). Landlock does
/// not check every such protocol.
const TCP_ULP: u32 = 31;

/// Returns pinfold's own filter for the policy.
///
/// clone3 does not exist in a sandbox: it could make a process in another cgroup (CLONE_INTO_CGROUP). A filter can't
/// check this, because the arguments of clone3 are in memory.
pub fn program(sandbox: &Sandbox) -> Program {
    compile(&rules(sandbox), libc::SYS_clone3, calls::HIGHEST)
}

#[allow(clippy::unnecessary_cast)] // The types differ between C libraries.
fn rules(sandbox: &Sandbox) -> Rules {
    let mut rules = Rules::new();
    for call in calls::FORBIDDEN.iter().chain(calls::FORBIDDEN_HERE) {
        rules.insert(*call, Vec::new());
    }
    for call in calls::OF_A_PROCESS {
        rules.insert(call, vec![vec![(0, Test::IsNot(0))]]);
    }
    // The first argument says what the second one is: a process, a process group (0 is the caller's own group, to which
    // only processes of the job belong) or a user.
    rules.insert(libc::SYS_setpriority, vec![vec![(1, Test::IsNot(0))], vec![(0, Test::Is(libc::PRIO_USER as u32))]]);
    /// `IOPRIO_WHO_USER` (ioprio_set(2)).
    const IOPRIO_WHO_USER: u32 = 3;
    rules.insert(libc::SYS_ioprio_set, vec![vec![(1, Test::IsNot(0))], vec![(0, Test::Is(IOPRIO_WHO_USER))]]);
    rules.insert(libc::SYS_unshare, vec![vec![(0, Test::AnyBit(calls::NAMESPACES))]]);
    rules.insert(libc::SYS_clone, vec![vec![(0, Test::AnyBit(calls::NAMESPACES & !calls::NEW_TIME))]]);
    // The kernel reads the low 32 bits of the request, and so does this filter.
    let requests = [libc::TIOCSTI, libc::TIOCLINUX].map(|request| vec![(1, Test::Is(request as u32))]);
    rules.insert(libc::SYS_ioctl, requests.to_vec());
    sockets(sandbox, &mut rules);
    rules
}

fn sockets(sandbox: &Sandbox, rules: &mut Rules) {
    const UNIX: u32 = libc::AF_UNIX as u32;
    const INTERNET: [u32; 2] = [libc::AF_INET as u32, libc::AF_INET6 as u32];
    const NETLINK: u32 = libc::AF_NETLINK as u32;
    let of_type = |kind: i32| (1, Test::Masked { mask: TYPE_MASK, value: kind as u32 });

    let mut allowed = Vec::new();
    let mut alternatives = Vec::new();
    if sandbox.unix != Unix::None {
        allowed.push(UNIX);
    }
    match sandbox.network {
        Network::None if !sandbox.has_ports() => {}
        Network::None => {
            allowed.extend(INTERNET);
            // Of the stream protocols, only TCP is allowed: Landlock's rules for ports do not check the others (MPTCP,
            // SCTP).
            for family in INTERNET {
                let kinds = WITHOUT_CONNECTION.into_iter().chain([libc::SOCK_SEQPACKET]);
                alternatives.extend(kinds.map(|kind| vec![(0, Test::Is(family)), of_type(kind)]));
                alternatives.push(vec![
                    (0, Test::Is(family)),
                    (2, Test::IsNot(0)),
                    (2, Test::IsNot(libc::IPPROTO_TCP as u32)),
                ]);
            }
            only_through_connect(sandbox, rules);
        }
        Network::Own | Network::Host => {
            allowed.extend(INTERNET);
            // getaddrinfo(3) uses netlink to get the addresses of this machine.
            allowed.push(NETLINK);
            alternatives.push(vec![(0, Test::Is(NETLINK)), (2, Test::IsNot(libc::NETLINK_ROUTE as u32))]);
        }
    }
    if allowed.is_empty() {
        rules.insert(libc::SYS_socket, Vec::new());
    } else {
        alternatives.push(allowed.into_iter().map(|family| (0, Test::IsNot(family))).collect());
        rules.insert(libc::SYS_socket, alternatives);
    }

    let mut pairs = vec![vec![(0, Test::IsNot(UNIX))]];
    if sandbox.unix == Unix::None {
        // A socket without a connection can send to any path.
        pairs.extend(WITHOUT_CONNECTION.map(|kind| vec![of_type(kind)]));
    }
    rules.insert(libc::SYS_socketpair, pairs);
}

/// Forbids the system calls that open a TCP connection or a port without a check by Landlock.
fn only_through_connect(sandbox: &Sandbox, rules: &mut Rules) {
    let fast_open = |flags: u8| vec![vec![(flags, Test::AnyBit(MSG_FASTOPEN))]];
    rules.insert(libc::SYS_sendto, fast_open(3));
    rules.insert(libc::SYS_sendmsg, fast_open(2));
    rules.insert(libc::SYS_sendmmsg, fast_open(3));
    rules.insert(libc::SYS_setsockopt, vec![vec![(1, Test::Is(libc::IPPROTO_TCP as u32)), (2, Test::Is(TCP_ULP))]]);
    if sandbox.listen_tcp.is_empty() {
        // listen(2) on a socket without an address takes a free port.
        rules.insert(libc::SYS_listen, Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_compiles_to_programs_that_the_kernel_accepts() {
        let mut ports = Sandbox::new();
        ports.connect_tcp(443).listen_tcp(8080).unix(Unix::Own);
        let mut host = Sandbox::new();
        host.network(Network::Host);
        for sandbox in [Sandbox::new(), ports, host] {
            let program = program(&sandbox);
            assert_eq!(Program::from_bytes(program.bytes()).unwrap(), program);
            println!("{} instructions", program.instructions());
        }
    }
}
