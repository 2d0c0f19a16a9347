//! Describes the system calls that pinfold's own filters refuse, and the options that would allow them.

use libc::c_long;

use super::super::filter;
use super::super::policy::{Network, Sandbox, Unix};
use super::text::{ioctl_request, namespaces, socket};
use crate::kernel::seccomp::{ALLOW, Program};
use crate::kernel::seccomp_run::{Data, strictest};
use crate::report::{Denial, DenialKind};

/// Options that grant more than the policy, each with the filters of the policy with this option.
#[derive(Debug)]
pub struct Alternatives(Vec<(&'static str, Vec<Program>)>);

impl Alternatives {
    /// Compiles the filters of the policy with each of these options.
    pub fn new(sandbox: &Sandbox) -> Self {
        let with_option = |option, change: fn(&mut Sandbox)| {
            let mut sandbox = sandbox.clone();
            change(&mut sandbox);
            Some((option, vec![filter::program(&sandbox)]))
        };
        // Ports can only be granted if the job has no other network.
        let with_port = |option, change: fn(&mut Sandbox)| match sandbox.network {
            Network::None => with_option(option, change),
            _ => None,
        };
        let all = [
            with_port("--connect-tcp PORT", |sandbox| {
                sandbox.connect_tcp(1);
            }),
            with_port("--listen-tcp PORT", |sandbox| {
                sandbox.listen_tcp(1);
            }),
            with_option("--network host", |sandbox| {
                sandbox.network(Network::Host);
                sandbox.connect_tcp.clear();
                sandbox.listen_tcp.clear();
            }),
            with_option("--unix own", |sandbox| {
                sandbox.unix(Unix::Own);
            }),
        ];
        Self(all.into_iter().flatten().collect())
    }

    /// Returns the options that would allow a call.
    fn options_that_allow(&self, data: &Data) -> Vec<String> {
        let allows = |(_, filters): &&(&str, Vec<Program>)| strictest(filters, data) == ALLOW;
        self.0.iter().filter(allows).map(|(option, _)| (*option).to_owned()).collect()
    }

    /// Returns the denial for a call that the filters refuse.
    pub fn denial(&self, data: &Data) -> Denial {
        let number = c_long::from(data.number);
        let [first, second, ..] = data.arguments;
        let process = |number: u64| format!("process {}", number as i32);
        let (kind, object) = match number {
            libc::SYS_socket | libc::SYS_socketpair => (DenialKind::Socket, socket(data)),
            libc::SYS_listen => (DenialKind::Listen, "a TCP port".into()),
            libc::SYS_sendto | libc::SYS_sendmsg | libc::SYS_sendmmsg => {
                (DenialKind::Connect, "a TCP port with MSG_FASTOPEN".into())
            }
            libc::SYS_unshare | libc::SYS_clone => (DenialKind::Call, namespaces(first)),
            libc::SYS_ioctl => (DenialKind::Call, ioctl_request(second)),
            libc::SYS_setsockopt => (DenialKind::Call, "TCP_ULP".into()),
            libc::SYS_setpriority | libc::SYS_ioprio_set => (DenialKind::Call, process(second)),
            number if super::super::calls::OF_A_PROCESS.contains(&number) => (DenialKind::Call, process(first)),
            _ => (DenialKind::Call, String::new()),
        };
        Denial::new(kind, object, &name_of(number), self.options_that_allow(data))
    }
}

/// Makes a list of system calls with their names.
macro_rules! named {
    ($($name:ident => $number:expr),* $(,)?) => { [$((stringify!($name), $number)),*] };
}

/// Returns the name of a call that the filter can refuse; its number if the name is not known.
fn name_of(number: c_long) -> String {
    let known = named![
        setns => libc::SYS_setns, mount => libc::SYS_mount, umount2 => libc::SYS_umount2,
        pivot_root => libc::SYS_pivot_root, chroot => libc::SYS_chroot, open_tree => libc::SYS_open_tree,
        move_mount => libc::SYS_move_mount, fsopen => libc::SYS_fsopen, fsconfig => libc::SYS_fsconfig,
        fsmount => libc::SYS_fsmount, fspick => libc::SYS_fspick, mount_setattr => 442, open_tree_attr => 467,
        open_by_handle_at => libc::SYS_open_by_handle_at, bpf => libc::SYS_bpf,
        perf_event_open => libc::SYS_perf_event_open, userfaultfd => libc::SYS_userfaultfd,
        io_uring_setup => libc::SYS_io_uring_setup, io_uring_enter => libc::SYS_io_uring_enter,
        io_uring_register => libc::SYS_io_uring_register, add_key => libc::SYS_add_key,
        request_key => libc::SYS_request_key, keyctl => libc::SYS_keyctl, msgget => libc::SYS_msgget,
        msgsnd => libc::SYS_msgsnd, msgrcv => libc::SYS_msgrcv, msgctl => libc::SYS_msgctl,
        semget => libc::SYS_semget, semop => libc::SYS_semop, semtimedop => libc::SYS_semtimedop,
        semctl => libc::SYS_semctl, shmget => libc::SYS_shmget, shmat => libc::SYS_shmat,
        shmdt => libc::SYS_shmdt, shmctl => libc::SYS_shmctl, mq_open => libc::SYS_mq_open,
        mq_unlink => libc::SYS_mq_unlink, kexec_load => libc::SYS_kexec_load,
        kexec_file_load => super::super::calls::new::KEXEC_FILE_LOAD, init_module => libc::SYS_init_module,
        finit_module => libc::SYS_finit_module, delete_module => libc::SYS_delete_module,
        reboot => libc::SYS_reboot, swapon => libc::SYS_swapon, swapoff => libc::SYS_swapoff,
        sethostname => libc::SYS_sethostname, setdomainname => libc::SYS_setdomainname, acct => libc::SYS_acct,
        quotactl => libc::SYS_quotactl, quotactl_fd => 443, settimeofday => libc::SYS_settimeofday,
        clock_settime => libc::SYS_clock_settime, clock_adjtime => libc::SYS_clock_adjtime,
        adjtimex => libc::SYS_adjtimex, vhangup => libc::SYS_vhangup, syslog => libc::SYS_syslog,
        lsm_set_self_attr => 460, prlimit64 => libc::SYS_prlimit64,
        sched_setaffinity => libc::SYS_sched_setaffinity, sched_setattr => libc::SYS_sched_setattr,
        sched_setparam => libc::SYS_sched_setparam, sched_setscheduler => libc::SYS_sched_setscheduler,
        setpriority => libc::SYS_setpriority, ioprio_set => libc::SYS_ioprio_set, unshare => libc::SYS_unshare,
        clone => libc::SYS_clone, ioctl => libc::SYS_ioctl, socket => libc::SYS_socket,
        socketpair => libc::SYS_socketpair, listen => libc::SYS_listen, sendto => libc::SYS_sendto,
        sendmsg => libc::SYS_sendmsg, sendmmsg => libc::SYS_sendmmsg, setsockopt => libc::SYS_setsockopt,
    ];
    #[cfg(target_arch = "x86_64")]
    let of_x86_64 = named![iopl => libc::SYS_iopl, ioperm => libc::SYS_ioperm, uselib => libc::SYS_uselib];
    #[cfg(not(target_arch = "x86_64"))]
    let of_x86_64: [(&str, c_long); 0] = [];
    let found = known.iter().chain(&of_x86_64).find(|(_, known)| *known == number);
    found.map_or_else(|| format!("system call {number}"), |(name, _)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::super::{calls, filter};
    use super::*;

    fn denied(sandbox: &Sandbox, number: c_long, arguments: [u64; 6]) -> Denial {
        let architecture = filter::ARCHITECTURE;
        let data = Data { number: number as i32, architecture, arguments, ..Data::default() };
        assert_ne!(strictest(&[filter::program(sandbox)], &data), ALLOW);
        Alternatives::new(sandbox).denial(&data)
    }

    #[test]
    fn each_call_that_the_filter_refuses_has_a_name() {
        let all = calls::FORBIDDEN.iter().chain(calls::FORBIDDEN_HERE).chain(&calls::OF_A_PROCESS);
        assert_eq!(all.filter(|call| name_of(**call).starts_with("system call")).count(), 0);
    }

    #[test]
    fn the_options_are_those_that_would_allow_the_call() {
        let plain = Sandbox::new();
        let tcp = denied(&plain, libc::SYS_socket, [2, 1, 0, 0, 0, 0]);
        assert_eq!(tcp.granted_by, ["--connect-tcp PORT", "--listen-tcp PORT", "--network host"]);
        assert_eq!((tcp.kind, tcp.object.as_str()), (DenialKind::Socket, "AF_INET, SOCK_STREAM"));
        assert_eq!(denied(&plain, libc::SYS_socket, [10, 2, 0, 0, 0, 0]).granted_by, ["--network host"]);
        assert_eq!(denied(&plain, libc::SYS_socket, [1, 1, 0, 0, 0, 0]).granted_by, ["--unix own"]);
        assert_eq!(denied(&plain, libc::SYS_socket, [17, 3, 0, 0, 0, 0]).granted_by, [""; 0]);
        let mut ports = Sandbox::new();
        ports.connect_tcp(443);
        assert_eq!(
            denied(&ports, libc::SYS_listen, [3, 1, 0, 0, 0, 0]).granted_by,
            ["--listen-tcp PORT", "--network host"]
        );
        let fast = denied(&ports, libc::SYS_sendto, [3, 0, 0, libc::MSG_FASTOPEN as u64, 0, 0]);
        assert_eq!((fast.kind, fast.granted_by), (DenialKind::Connect, vec!["--network host".to_owned()]));
        let namespace = denied(&plain, libc::SYS_unshare, [0x1000_0000, 0, 0, 0, 0, 0]);
        assert_eq!((namespace.object.as_str(), namespace.call.as_str()), ("CLONE_NEWUSER", "unshare"));
        assert_eq!(denied(&plain, libc::SYS_prlimit64, [7, 0, 0, 0, 0, 0]).object, "process 7");
    }
}
