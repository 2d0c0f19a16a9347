//! The texts in a denial: the object, the options, and the names of constants.

use crate::kernel::seccomp_run::Data;

/// Returns bytes as text. Invalid UTF-8 is replaced.
pub fn to_text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Returns an option with a path as its value, quoted for a shell. In place of a path below /proc/PID, the option
/// grants all of /proc, because the next run of the job has other pids.
pub fn path_option(option: &str, path: &[u8]) -> String {
    let is_of_a_process = path.strip_prefix(b"/proc/").is_some_and(|rest| rest.first().is_some_and(u8::is_ascii_digit));
    let path = if is_of_a_process { "/proc".into() } else { to_text(path) };
    let is_plain = |character: char| character.is_alphanumeric() || "/._-+,:=@%".contains(character);
    if path.chars().all(is_plain) && !path.starts_with('-') {
        format!("{option} {path}")
    } else {
        format!("{option} '{}'", path.replace('\'', r"'\''"))
    }
}

/// Returns the name that `names` gives to a value; the value as a number if it has no name there.
fn name(value: u64, names: &[(i32, &str)]) -> String {
    let named = names.iter().find(|(number, _)| u64::from(number.cast_unsigned()) == value);
    named.map_or_else(|| value.to_string(), |(_, name)| (*name).to_owned())
}

/// Returns the family and the type of a socket (socket(2)), and also its protocol if it is unusual.
pub fn socket(data: &Data) -> String {
    const FAMILIES: [(i32, &str); 14] = [
        (libc::AF_UNIX, "AF_UNIX"),
        (libc::AF_INET, "AF_INET"),
        (libc::AF_INET6, "AF_INET6"),
        (libc::AF_NETLINK, "AF_NETLINK"),
        (libc::AF_PACKET, "AF_PACKET"),
        (libc::AF_VSOCK, "AF_VSOCK"),
        (libc::AF_ALG, "AF_ALG"),
        (libc::AF_BLUETOOTH, "AF_BLUETOOTH"),
        (libc::AF_CAN, "AF_CAN"),
        (libc::AF_KEY, "AF_KEY"),
        (libc::AF_RDS, "AF_RDS"),
        (libc::AF_TIPC, "AF_TIPC"),
        (libc::AF_XDP, "AF_XDP"),
        (libc::AF_UNSPEC, "AF_UNSPEC"),
    ];
    const TYPES: [(i32, &str); 5] = [
        (libc::SOCK_STREAM, "SOCK_STREAM"),
        (libc::SOCK_DGRAM, "SOCK_DGRAM"),
        (libc::SOCK_RAW, "SOCK_RAW"),
        (libc::SOCK_SEQPACKET, "SOCK_SEQPACKET"),
        (libc::SOCK_RDM, "SOCK_RDM"),
    ];
    const PROTOCOLS: [(i32, &str); 5] = [
        (libc::IPPROTO_TCP, ""),
        (libc::IPPROTO_UDP, ""),
        (libc::IPPROTO_ICMP, ", IPPROTO_ICMP"),
        (libc::IPPROTO_SCTP, ", IPPROTO_SCTP"),
        (libc::IPPROTO_MPTCP, ", IPPROTO_MPTCP"),
    ];
    let [family, kind, protocol, ..] = data.arguments.map(|argument| argument & 0xffff_ffff);
    let is_internet = [libc::AF_INET, libc::AF_INET6].iter().any(|one| *one as u64 == family);
    let protocol = match protocol {
        1.. if is_internet => PROTOCOLS.iter().find(|(number, _)| *number as u64 == protocol).map(|(_, name)| *name),
        _ => None,
    };
    format!("{}, {}{}", name(family, &FAMILIES), name(kind & 0xf, &TYPES), protocol.unwrap_or_default())
}

/// Returns the names of the namespace flags among the flags of clone(2) or unshare(2).
pub fn namespaces(flags: u64) -> String {
    const NAMES: [(i32, &str); 8] = [
        (libc::CLONE_NEWCGROUP, "CLONE_NEWCGROUP"),
        (libc::CLONE_NEWIPC, "CLONE_NEWIPC"),
        (libc::CLONE_NEWNET, "CLONE_NEWNET"),
        (libc::CLONE_NEWNS, "CLONE_NEWNS"),
        (libc::CLONE_NEWPID, "CLONE_NEWPID"),
        (libc::CLONE_NEWUSER, "CLONE_NEWUSER"),
        (libc::CLONE_NEWUTS, "CLONE_NEWUTS"),
        (super::super::calls::NEW_TIME as i32, "CLONE_NEWTIME"),
    ];
    let set = NAMES.into_iter().filter(|(flag, _)| flags & *flag as u64 != 0).map(|(_, name)| name);
    set.collect::<Vec<_>>().join("|")
}

/// Returns the name of a request of ioctl(2).
pub fn ioctl_request(request: u64) -> String {
    #[allow(clippy::unnecessary_cast)] // The types differ between C libraries.
    let names = [(libc::TIOCSTI as i32, "TIOCSTI"), (libc::TIOCLINUX as i32, "TIOCLINUX")];
    name(request & 0xffff_ffff, &names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_can_be_typed_in_a_shell() {
        for (path, expected) in [
            ("/home/me/.ssh/config", "--read /home/me/.ssh/config"),
            ("/a b", "--read '/a b'"),
            ("/it's", r"--read '/it'\''s'"),
            ("/$(x)", "--read '/$(x)'"),
            ("/proc/17/status", "--read /proc"),
            ("/proc/version", "--read /proc/version"),
        ] {
            assert_eq!(path_option("--read", path.as_bytes()), expected);
        }
    }

    #[test]
    fn constants_have_names() {
        let data = |arguments: [u64; 6]| Data { arguments, ..Data::default() };
        assert_eq!(socket(&data([10, 1 | 0x80000, 0, 0, 0, 0])), "AF_INET6, SOCK_STREAM");
        assert_eq!(socket(&data([2, 1, 262, 0, 0, 0])), "AF_INET, SOCK_STREAM, IPPROTO_MPTCP");
        assert_eq!(socket(&data([99, 7, 1, 0, 0, 0])), "99, 7");
        assert_eq!(namespaces(0x1002_0000), "CLONE_NEWNS|CLONE_NEWUSER");
        assert_eq!(ioctl_request(0x5412 | 1 << 32), "TIOCSTI");
    }
}
