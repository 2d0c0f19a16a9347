//! The seccomp filters of a policy.
//!
//! The first filter is pinfold's own. It looks only at the architecture and the number of a system call. The second one
//! looks at the arguments; the crate `seccompiler` compiles it. This crate is not suitable for the first filter: it
//! ignores the x32 numbers of x86-64, has only one action for each filter, and compares the numbers one after the
//! other.

use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq, Ne};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

use super::calls;
use super::policy::{Network, Sandbox, Unix};
use crate::error::{Error, Result};
use crate::kernel::seccomp::{ALLOW, ERRNO, Instruction, KILL_PROCESS, Program};

/// `AUDIT_ARCH_X86_64` (include/uapi/linux/audit.h).
#[cfg(target_arch = "x86_64")]
pub const ARCHITECTURE: (u32, TargetArch) = (0xc000_003e, TargetArch::x86_64);
/// `AUDIT_ARCH_AARCH64`.
#[cfg(target_arch = "aarch64")]
pub const ARCHITECTURE: (u32, TargetArch) = (0xc000_00b7, TargetArch::aarch64);

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;

/// The low bits of a socket's type; the others are flags (`SOCK_TYPE_MASK` in include/linux/net.h).
const TYPE_MASK: u64 = 0xf;
/// The obsolete type for packets of a device (packet(7)).
const SOCK_PACKET: i32 = 10;
/// The types of sockets that are neither SOCK_STREAM nor SOCK_SEQPACKET.
const WITHOUT_CONNECTION: [i32; 5] = [libc::SOCK_DGRAM, libc::SOCK_RAW, libc::SOCK_RDM, libc::SOCK_DCCP, SOCK_PACKET];
const MSG_FASTOPEN: u64 = libc::MSG_FASTOPEN as u64;
/// The socket option that replaces the protocol of a TCP socket (`TCP_ULP` in include/uapi/linux/tcp.h). Landlock does
/// not check every such protocol.
const TCP_ULP: u64 = 31;

/// Returns pinfold's own filters for the policy, in the order in which they are installed.
///
/// # Errors
/// [`Error::Invalid`] if the filter can't be compiled. This should never happen: pinfold's tests compile the filter of
/// every policy.
pub fn programs(sandbox: &Sandbox) -> Result<Vec<Program>> {
    let (always, sometimes): (Rules, Rules) = rules(sandbox).into_iter().partition(|(_, rules)| rules.is_empty());
    let second = compile(sometimes).map_err(|error| Error::invalid("seccomp filter", "default", error.to_string()))?;
    Ok(vec![first(always.into_keys()), second])
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
const EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const GREATER: u32 = libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K;
const AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;

/// Kills a process that makes a call of another architecture (`int 0x80` on x86-64). x32 calls, calls that are newer
/// than this file, and clone3 return ENOSYS: callers use an older call instead. Forbidden calls return EPERM.
///
/// clone3 could make a process in another cgroup (CLONE_INTO_CGROUP). A filter can't check this, because the arguments
/// of clone3 are in memory.
fn first(forbidden: impl Iterator<Item = i64>) -> Program {
    let refuse = |errno: i32| ERRNO | errno as u32;
    let mut calls: Vec<(u32, u32)> = forbidden.map(|call| (call as u32, refuse(libc::EPERM))).collect();
    calls.push((libc::SYS_clone3 as u32, refuse(libc::ENOSYS)));
    calls.sort_unstable();
    let mut program = vec![
        Instruction::plain(LOAD, ARCH),
        Instruction::jump(EQUAL, ARCHITECTURE.0, 1, 0),
        Instruction::plain(RETURN, KILL_PROCESS),
        Instruction::plain(LOAD, NUMBER),
        // x32 numbers have bit 30 set.
        Instruction::jump(GREATER, calls::HIGHEST, 0, 1),
        Instruction::plain(RETURN, refuse(libc::ENOSYS)),
    ];
    search(&calls, &mut program);
    program.into_iter().collect()
}

/// Appends a binary search for a system call's number in `calls`, a sorted list of numbers and actions. Reason: when a
/// filter is installed, the kernel runs it for every number (`seccomp_cache_prepare` in kernel/seccomp.c). With a chain
/// of comparisons for sixty calls, this would take ten times as long.
fn search(calls: &[(u32, u32)], program: &mut Vec<Instruction>) {
    const CHAIN: usize = 3;
    if calls.len() <= CHAIN {
        for (call, action) in calls {
            program.push(Instruction::jump(EQUAL, *call, 0, 1));
            program.push(Instruction::plain(RETURN, *action));
        }
        program.push(Instruction::plain(RETURN, ALLOW));
        return;
    }
    let (lower, upper) = calls.split_at(calls.len() / 2);
    let jump = program.len();
    program.push(Instruction::jump(AT_LEAST, upper[0].0, 0, 0));
    search(lower, program);
    let distance = program.len() - jump - 1;
    program[jump].if_true = u8::try_from(distance).unwrap_or_default();
    search(upper, program);
}

/// For each system call, the conditions under which it is forbidden. One of them is enough. A call with an empty list
/// is always forbidden.
type Rules = BTreeMap<i64, Vec<Vec<(u8, SeccompCmpOp, u64)>>>;

fn compile(rules: Rules) -> std::result::Result<Program, seccompiler::BackendError> {
    let mut compiled = BTreeMap::new();
    for (call, alternatives) in rules {
        let rule = |conditions: Vec<(u8, SeccompCmpOp, u64)>| {
            let conditions: std::result::Result<Vec<_>, _> = conditions
                .into_iter()
                .map(|(argument, operation, value)| SeccompCondition::new(argument, Dword, operation, value))
                .collect();
            SeccompRule::new(conditions?)
        };
        let alternatives: std::result::Result<Vec<_>, _> = alternatives.into_iter().map(rule).collect();
        compiled.insert(call, alternatives?);
    }
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter: BpfProgram = SeccompFilter::new(compiled, SeccompAction::Allow, refuse, ARCHITECTURE.1)?.try_into()?;
    let instructions = filter.into_iter().map(|instruction| Instruction {
        code: instruction.code,
        if_true: instruction.jt,
        if_false: instruction.jf,
        constant: instruction.k,
    });
    Ok(instructions.collect())
}

fn rules(sandbox: &Sandbox) -> Rules {
    let mut rules = Rules::new();
    for call in calls::FORBIDDEN.iter().chain(calls::FORBIDDEN_HERE) {
        rules.insert(*call, Vec::new());
    }
    for call in calls::OF_A_PROCESS {
        rules.insert(call, vec![vec![(0, Ne, 0)]]);
    }
    // The first argument says what the second one is: a process, a process group (0 is the caller's own group, to which
    // only processes of the job belong) or a user.
    rules.insert(libc::SYS_setpriority, vec![vec![(1, Ne, 0)], vec![(0, Eq, libc::PRIO_USER as u64)]]);
    /// `IOPRIO_WHO_USER` (ioprio_set(2)).
    const IOPRIO_WHO_USER: u64 = 3;
    rules.insert(libc::SYS_ioprio_set, vec![vec![(1, Ne, 0)], vec![(0, Eq, IOPRIO_WHO_USER)]]);
    let namespace = |bit: u64| vec![(0, MaskedEq(bit), bit)];
    rules.insert(libc::SYS_unshare, calls::NAMESPACES.map(namespace).to_vec());
    let of_clone = calls::NAMESPACES.into_iter().filter(|bit| *bit != calls::NEW_TIME);
    rules.insert(libc::SYS_clone, of_clone.map(namespace).collect());
    // The kernel reads the low 32 bits of the request, and so does this filter.
    #[allow(clippy::unnecessary_cast)] // The types differ between C libraries.
    let requests = [libc::TIOCSTI, libc::TIOCLINUX].map(|request| vec![(1, Eq, request as u64)]);
    rules.insert(libc::SYS_ioctl, requests.to_vec());
    sockets(sandbox, &mut rules);
    rules
}

fn sockets(sandbox: &Sandbox, rules: &mut Rules) {
    const UNIX: u64 = libc::AF_UNIX as u64;
    const INTERNET: [u64; 2] = [libc::AF_INET as u64, libc::AF_INET6 as u64];
    const NETLINK: u64 = libc::AF_NETLINK as u64;
    let of_type = |kind: i32| (1, MaskedEq(TYPE_MASK), kind as u64);

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
                alternatives.extend(kinds.map(|kind| vec![(0, Eq, family), of_type(kind)]));
                alternatives.push(vec![(0, Eq, family), (2, Ne, 0), (2, Ne, libc::IPPROTO_TCP as u64)]);
            }
            only_through_connect(sandbox, rules);
        }
        Network::Own | Network::Host => {
            allowed.extend(INTERNET);
            // getaddrinfo(3) uses netlink to get the addresses of this machine.
            allowed.push(NETLINK);
            alternatives.push(vec![(0, Eq, NETLINK), (2, Ne, libc::NETLINK_ROUTE as u64)]);
        }
    }
    if allowed.is_empty() {
        rules.insert(libc::SYS_socket, Vec::new());
    } else {
        alternatives.push(allowed.into_iter().map(|family| (0, Ne, family)).collect());
        rules.insert(libc::SYS_socket, alternatives);
    }

    let mut pairs = vec![vec![(0, Ne, UNIX)]];
    if sandbox.unix == Unix::None {
        // A socket without a connection can send to any path.
        pairs.extend(WITHOUT_CONNECTION.map(|kind| vec![of_type(kind)]));
    }
    rules.insert(libc::SYS_socketpair, pairs);
}

/// Forbids the system calls that open a TCP connection or a port without a check by Landlock.
fn only_through_connect(sandbox: &Sandbox, rules: &mut Rules) {
    let fast_open = |flags: u8| vec![vec![(flags, MaskedEq(MSG_FASTOPEN), MSG_FASTOPEN)]];
    rules.insert(libc::SYS_sendto, fast_open(3));
    rules.insert(libc::SYS_sendmsg, fast_open(2));
    rules.insert(libc::SYS_sendmmsg, fast_open(3));
    rules.insert(libc::SYS_setsockopt, vec![vec![(1, Eq, libc::IPPROTO_TCP as u64), (2, Eq, TCP_ULP)]]);
    if sandbox.listen_tcp.is_empty() {
        // listen(2) on a socket without an address takes a free port.
        rules.insert(libc::SYS_listen, Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program of jumps and returns on a number.
    fn action(program: &[Instruction], number: u32) -> u32 {
        let mut at = 0;
        loop {
            let Instruction { code, if_true, if_false, constant } = program[at];
            let is_true = match u32::from(code) {
                RETURN => return constant,
                EQUAL => number == constant,
                AT_LEAST => number >= constant,
                code => panic!("{code:#x}"),
            };
            at += 1 + usize::from(if is_true { if_true } else { if_false });
        }
    }

    #[test]
    fn the_search_finds_each_number_and_no_other() {
        for count in 0..90 {
            let calls: Vec<(u32, u32)> = (0..count).map(|index| (index * 5 + 3, index + 1)).collect();
            let mut program = Vec::new();
            search(&calls, &mut program);
            for number in 0..500 {
                let expected = calls.iter().find(|(call, _)| *call == number).map_or(ALLOW, |(_, action)| *action);
                assert_eq!(action(&program, number), expected, "{number} among {count}");
            }
        }
    }

    #[test]
    fn every_policy_compiles_to_programs_that_the_kernel_accepts() {
        let mut ports = Sandbox::new();
        ports.connect_tcp(443).listen_tcp(8080).unix(Unix::Own);
        let mut host = Sandbox::new();
        host.network(Network::Host);
        for sandbox in [Sandbox::new(), ports, host] {
            for program in programs(&sandbox).unwrap() {
                assert_eq!(Program::from_bytes(program.bytes()).unwrap(), program);
                println!("{} instructions", program.instructions());
            }
        }
    }
}
