//! The tables of [`super::attacks`].

/// One attempt of a program in `tests/programs/sandbox/`.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    pub group: &'static str,
    pub what: &'static str,
    pub program: &'static str,
    pub attempt: &'static str,
    pub target: Target,
    /// What the program prints in the sandbox.
    pub answer: &'static str,
    pub works_without: bool,
}

/// The target of an attempt, which determines its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Nothing,
    /// The guard of the job.
    Guard,
    GuardAndSupervisor,
    /// The program that makes the attempt has the set-user-ID bit, and belongs to the user of the tests.
    SetUserId,
    /// A file that is not granted; the second argument is a new path that the job may write.
    Secret,
    /// The same with a file of the job at the second path.
    SecretAndOwn,
    /// The same with the job's directory as the second path.
    SecretFromOwn,
    /// A file that the job may only read.
    Readable,
    /// A path that does not exist, and is not granted.
    Outside,
    /// A path that does not exist, and which the job may write.
    Own,
    /// A file that the job may write.
    OwnFile,
    /// A directory that is not granted.
    Directory,
    /// A port on which a process outside of the job listens.
    Port,
    /// The same with a port that is granted.
    GrantedPort,
    /// A socket of a process outside of the job, as docker.sock is.
    Socket,
    /// The same for datagrams. It is another socket, because the kernel checks the type of a socket before Landlock's
    /// rule.
    DatagramSocket,
    AbstractSocket,
}

impl Attack {
    pub fn expects(&self, answer: &str, as_root: bool) -> bool {
        let other_user = as_root && matches!(self.target, Target::Guard | Target::GuardAndSupervisor);
        // The kernel may check the user before Landlock.
        let denied = ["denied EPERM", "denied EACCES"];
        // If the process group of these tests was made outside of their PID namespace, its number here is 0. The guard
        // then stays in this group, so no group has the guard's pid as its number.
        let no_such_group = self.attempt == "kill_group" && answer == "denied ESRCH" && own_process_group() == "0";
        answer == self.answer
            || no_such_group
            || other_user && denied.contains(&answer) && denied.contains(&self.answer)
    }
}

/// Returns the fifth field of `/proc/self/stat` (proc_pid_stat(5)).
fn own_process_group() -> String {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').nth(2).unwrap().to_owned()
}

/// The sections of the page, with the names of the groups.
pub const GROUPS: &[(&str, &str)] = &[
    ("Guard and supervisor", "processes"),
    ("Calls that open a way around", "kernel"),
    ("Privileges", "privileges"),
    ("Files", "files"),
    ("Metadata, with `--sandbox=strict`", "metadata"),
    ("Sockets", "sockets"),
    ("Sockets with `--connect-tcp PORT`", "ports"),
    ("Sockets with `--unix own`", "unix"),
    ("What the job may do", "controls"),
];

const EPERM: &str = "denied EPERM";
const EACCES: &str = "denied EACCES";
const ENOSYS: &str = "denied ENOSYS";
const EROFS: &str = "denied EROFS";
const ALLOWED: &str = "allowed";

macro_rules! table {
    ($(#[$doc:meta])* $name:ident: $($group:literal $program:literal { $($attempt:ident $target:ident $answer:ident $works:ident $what:literal)* })*) => {
        $(#[$doc])*
        pub const $name: &[Attack] = &[$($(Attack {
            group: $group, what: $what, program: $program, attempt: stringify!($attempt), target: Target::$target,
            answer: $answer, works_without: table!(@ $works),
        }),*),*];
    };
    (@ works) => { true };
    (@ untried) => { false };
}

const INVALID: &str = "denied EINVAL";
const CLOSED: &str = "denied EBADF";
const ANOTHER_FILE_SYSTEM: &str = "denied EXDEV";
const KILLED: &str = "signal 31";

table! {
    /// In the plain sandbox.
    ALWAYS:
    "processes" "processes" {
        kill_kill GuardAndSupervisor EPERM untried "SIGKILL by pid"
        kill_stop GuardAndSupervisor EPERM untried "SIGSTOP by pid"
        kill_group Guard EPERM untried "SIGKILL to the process group"
        tkill_kill GuardAndSupervisor EPERM untried "SIGKILL to the thread (tkill)"
        tgkill_kill GuardAndSupervisor EPERM untried "SIGKILL to the thread (tgkill)"
        queue_kill GuardAndSupervisor EPERM untried "SIGKILL with a value (rt_sigqueueinfo)"
        pidfd_kill GuardAndSupervisor EPERM untried "SIGKILL by pidfd"
        trace_attach GuardAndSupervisor EPERM untried "ptrace: PTRACE_ATTACH"
        trace_seize GuardAndSupervisor EPERM untried "ptrace: PTRACE_SEIZE"
        memory_file GuardAndSupervisor EACCES untried "/proc/PID/mem"
        environ_file GuardAndSupervisor EACCES untried "/proc/PID/environ"
        oom_score GuardAndSupervisor EACCES untried "/proc/PID/oom_score_adj"
        their_root GuardAndSupervisor EACCES untried "files through /proc/PID/root"
        their_directory GuardAndSupervisor EACCES untried "files through /proc/PID/cwd"
        vm_read GuardAndSupervisor EPERM untried "process_vm_readv"
        vm_write GuardAndSupervisor EPERM untried "process_vm_writev"
        descriptor GuardAndSupervisor EPERM untried "pidfd_getfd of each descriptor, the guard's socket too"
        advise GuardAndSupervisor EACCES untried "process_madvise"
        compare GuardAndSupervisor EPERM untried "kcmp"
        limit_cpu GuardAndSupervisor EPERM untried "prlimit of the CPU time"
        limit_files GuardAndSupervisor EPERM untried "prlimit of the number of descriptors"
        limit_read GuardAndSupervisor EPERM untried "prlimit that only reads"
        limit_high_bits GuardAndSupervisor EPERM untried "prlimit with bit 32 of the pid"
        nice_process GuardAndSupervisor EPERM untried "setpriority of the process"
        nice_group GuardAndSupervisor EPERM untried "setpriority of the group"
        nice_user Nothing EPERM untried "setpriority of all processes of the user"
        io_priority GuardAndSupervisor EPERM untried "ioprio_set of the process"
        io_priority_user Nothing EPERM untried "ioprio_set of all processes of the user"
        schedule_idle GuardAndSupervisor EPERM untried "sched_setscheduler: SCHED_IDLE"
        schedule_param GuardAndSupervisor EPERM untried "sched_setparam"
        schedule_attr GuardAndSupervisor EPERM untried "sched_setattr"
        affinity GuardAndSupervisor EPERM untried "sched_setaffinity"
    }
    "kernel" "kernel" {
        clone3 Nothing ENOSYS works "clone3"
        clone_user Nothing EPERM untried "clone into a user namespace"
        clone_mounts Nothing EPERM untried "clone into user and mount namespaces"
        clone_pids Nothing EPERM untried "clone into a PID namespace"
        unshare_user Nothing EPERM untried "unshare: user namespace"
        unshare_network Nothing EPERM untried "unshare: user and network namespaces"
        unshare_cgroup Nothing EPERM untried "unshare: cgroup namespace"
        unshare_time Nothing EPERM untried "unshare: time namespace"
        join_namespace Nothing EPERM untried "setns"
        mount_tmpfs Nothing EPERM untried "mount"
        unmount Nothing EPERM untried "umount2"
        change_root Nothing EPERM untried "chroot"
        pivot Nothing EPERM untried "pivot_root"
        new_mount Nothing EPERM untried "fsopen"
        clone_tree Nothing EPERM untried "open_tree"
        set_mount Nothing EPERM untried "mount_setattr"
        by_handle Nothing EPERM untried "open_by_handle_at"
        bpf Nothing EPERM untried "bpf"
        perf Nothing EPERM untried "perf_event_open"
        user_fault Nothing EPERM untried "userfaultfd"
        ring Nothing EPERM untried "io_uring_setup"
        key_add Nothing EPERM untried "add_key"
        key_request Nothing EPERM untried "request_key"
        key_control Nothing EPERM untried "keyctl"
        shared_memory Nothing EPERM works "System V shared memory"
        semaphores Nothing EPERM works "System V semaphores"
        messages Nothing EPERM works "System V message queues"
        message_queue Nothing EPERM untried "POSIX message queues"
        kernel_log Nothing EPERM untried "syslog"
        module Nothing EPERM untried "init_module"
        kexec Nothing EPERM untried "kexec_load"
        swap Nothing EPERM untried "swapoff"
        host_name Nothing EPERM untried "sethostname"
        set_time Nothing EPERM untried "clock_settime"
        type_input Nothing EPERM works "TIOCSTI"
        type_input_high_bit Nothing EPERM works "TIOCSTI with bit 32"
        console Nothing EPERM works "TIOCLINUX"
        newer_call Nothing ENOSYS untried "a call that is newer than this pinfold"
        x32 Nothing ENOSYS untried "a call by its x32 number"
        old_interrupt Nothing KILLED untried "a call of i386 by int 0x80"
    }
    "privileges" "privileges" {
        become SetUserId EPERM works "a program with the set-user-ID bit of another user"
        become_root Nothing EPERM untried "setresuid"
        change_groups Nothing EPERM untried "setgroups"
        raise_ambient Nothing EPERM untried "ambient capabilities"
        allow_new_privileges Nothing INVALID untried "clearing no_new_privs"
        raise_limit Nothing EPERM untried "raising the limit on core dumps"
        dump_core Nothing EPERM untried "a core dump"
    }
    "files" "files" {
        read_file Secret EACCES works "read"
        write_file Secret EACCES works "write"
        append_file Secret EACCES works "append"
        run_file Secret EACCES untried "execute"
        read_by_symlink Secret EACCES works "read through a symbolic link"
        read_by_hard_link Secret ANOTHER_FILE_SYSTEM works "read through a hard link"
        read_by_rename Secret EACCES untried "rename to a granted directory"
        read_by_exchange SecretAndOwn EACCES works "exchange with a granted file"
        copy_to_outside SecretAndOwn EACCES works "rename onto it"
        read_by_dots SecretFromOwn EACCES works "read through `..`"
        read_by_proc_root Secret EACCES works "read through /proc/self/root"
        read_by_proc_cwd Secret EACCES works "read through /proc/self/cwd"
        read_by_path_descriptor Secret EACCES works "O_PATH, then open of /proc/self/fd/N"
        truncate_on_open Secret EACCES untried "O_TRUNC"
        truncate_by_path Secret EACCES untried "truncate"
        remove_file Secret EACCES untried "unlink"
        list Directory EACCES works "list a directory"
        create Outside EACCES untried "create a file"
        make_directory Outside EACCES untried "create a directory"
        make_fifo Outside EACCES untried "create a FIFO"
        make_null Outside EACCES untried "mknod: a character device"
        make_block Outside EACCES untried "mknod: a block device"
        make_null Own EACCES untried "mknod in a granted directory: a character device"
        make_block Own EACCES untried "mknod in a granted directory: a block device"
        write_file Readable EACCES works "write a read-only file"
        append_file Readable EACCES works "append to a read-only file"
        truncate_on_open Readable EACCES untried "O_TRUNC of a read-only file"
        truncate_by_path Readable EACCES untried "truncate a read-only file"
        remove_file Readable EACCES untried "unlink a read-only file"
        reopen_for_writing Nothing EACCES works "write to a file inherited for reading, through /proc/self/fd/0"
        inherited_truncate Nothing INVALID untried "ftruncate of a file inherited for reading"
        leaked_descriptor Nothing CLOSED untried "a descriptor above 2"
    }
    "sockets" "sockets" {
        tcp Nothing EPERM works "TCP"
        tcp6 Nothing EPERM untried "TCP over IPv6"
        tcp_high_bits Nothing EPERM works "TCP with bit 32 of the family"
        tcp_connect Port EPERM works "a TCP connection"
        udp Nothing EPERM works "UDP"
        udp6 Nothing EPERM untried "UDP over IPv6"
        ping Nothing EPERM untried "ICMP"
        raw Nothing EPERM untried "raw IP"
        mptcp Nothing EPERM untried "MPTCP"
        sctp Nothing EPERM untried "SCTP"
        sctp_packets Nothing EPERM untried "SCTP, one to many"
        smc Nothing EPERM untried "SMC"
        netlink Nothing EPERM works "netlink: routes"
        netlink_events Nothing EPERM untried "netlink: events of devices"
        packets Nothing EPERM untried "packets of a device"
        vsock Nothing EPERM untried "vsock"
        crypto Nothing EPERM untried "AF_ALG"
        unix_connect Socket EPERM works "docker.sock (a stand-in)"
        abstract_connect AbstractSocket EPERM works "an abstract Unix socket"
        pair_datagram Nothing EPERM works "a pair of datagram sockets, then sendto a path"
        pair_raw Nothing EPERM works "a pair of raw Unix sockets, then sendto a path"
    }
    "controls" "processes" {
        self_kill Nothing ALLOWED works "signal a child"
        self_group Nothing ALLOWED works "signal the own group"
        self_trace Nothing ALLOWED works "trace a child"
        self_limit Nothing ALLOWED works "limit itself"
        self_nice Nothing ALLOWED works "setpriority of itself"
        self_io_priority Nothing ALLOWED works "ioprio_set of itself"
        self_schedule Nothing ALLOWED works "sched_setscheduler of itself"
        self_affinity Nothing ALLOWED works "sched_setaffinity of itself"
    }
    "controls" "kernel" {
        self_thread Nothing ALLOWED works "threads"
        self_fork Nothing ALLOWED works "fork"
        self_files Nothing ALLOWED works "memfd, eventfd, mmap"
        self_unshare Nothing ALLOWED works "unshare its own table of descriptors"
    }
    "controls" "files" {
        read_file Readable ALLOWED works "read a granted file"
        self_write Own ALLOWED works "write, truncate, rename and remove in a granted directory"
        self_move Own ALLOWED works "move and link between granted directories"
        self_null Nothing ALLOWED works "/dev/null, /dev/urandom"
        self_library Nothing ALLOWED works "the system's libraries"
        change_mode Secret ALLOWED works "chmod of a file outside: not promised without `strict`"
        change_times Secret ALLOWED works "utimes of a file outside: not promised without `strict`"
    }
    "controls" "sockets" {
        self_pair Nothing ALLOWED works "a connected pair of Unix sockets"
        self_pair_packets Nothing ALLOWED works "the same with packets"
    }
}

table! {
    /// With one granted TCP port.
    PORTS:
    "ports" "sockets" {
        tcp_connect Port EACCES works "another port"
        tcp_connect_later Port EACCES works "another port with TCP_FASTOPEN_CONNECT"
        fast_open_sendto Port EPERM untried "Fast Open through sendto"
        fast_open_sendmsg Port EPERM untried "Fast Open through sendmsg"
        fast_open_sendmmsg Port EPERM untried "Fast Open through sendmmsg"
        other_protocol Port EPERM untried "TCP_ULP"
        listen_without_bind Nothing EPERM works "listen without bind"
        tcp_bind Port EACCES untried "bind"
        udp Nothing EPERM works "UDP"
        udp6 Nothing EPERM untried "UDP over IPv6"
        ping Nothing EPERM untried "ICMP"
        raw Nothing EPERM untried "raw IP"
        mptcp Nothing EPERM untried "MPTCP"
        sctp Nothing EPERM untried "SCTP"
        sctp_packets Nothing EPERM untried "SCTP, one to many"
        smc Nothing EPERM untried "SMC"
        netlink Nothing EPERM works "netlink"
        unix_connect Socket EPERM works "docker.sock (a stand-in)"
    }
    "controls" "sockets" {
        tcp_connect GrantedPort ALLOWED works "connect to the port of `--connect-tcp`"
        tcp_connect_later GrantedPort ALLOWED works "the same with TCP_FASTOPEN_CONNECT"
    }
}

table! {
    /// In a strict sandbox.
    STRICT:
    "metadata" "files" {
        change_mode Secret EROFS works "chmod"
        change_times Secret EROFS works "utimes"
        change_owner Secret EROFS works "chown"
        change_attribute Secret EROFS untried "setxattr"
        read_file Secret EACCES works "read"
        write_file Readable EROFS works "write a read-only file"
    }
    "controls" "files" {
        change_mode OwnFile ALLOWED works "chmod in a granted directory"
        change_times OwnFile ALLOWED works "utimes in a granted directory"
        self_write Own ALLOWED works "write in a granted directory"
    }
}

table! {
    /// With Unix sockets of the job's own.
    UNIX:
    "unix" "sockets" {
        unix_connect Socket EACCES works "docker.sock (a stand-in)"
        abstract_connect AbstractSocket EPERM works "an abstract Unix socket"
        pair_datagram DatagramSocket EACCES untried "a pair of datagram sockets, then sendto a path"
    }
    "controls" "sockets" {
        self_unix Own ALLOWED works "a Unix server and its client"
    }
}
