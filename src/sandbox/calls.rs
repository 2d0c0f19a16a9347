//! The system calls that every sandbox forbids, and their numbers.

use libc::c_long;

/// The highest system call number that this file covers: `file_setattr` of Linux 6.17. Newer calls return ENOSYS, as on
/// an older kernel, until they have been reviewed here. New calls have the same number on all architectures since Linux
/// 5.1.
pub const HIGHEST: u32 = 469;

/// Calls that libc does not name on all targets.
pub mod new {
    #[cfg(target_arch = "x86_64")]
    pub const KEXEC_FILE_LOAD: super::c_long = 320;
    /// The number in the table that new architectures share (include/uapi/asm-generic/unistd.h).
    #[cfg(not(target_arch = "x86_64"))]
    pub const KEXEC_FILE_LOAD: super::c_long = 294;
    pub const MOUNT_SETATTR: super::c_long = 442;
    pub const QUOTACTL_FD: super::c_long = 443;
    pub const LSM_SET_SELF_ATTR: super::c_long = 460;
    pub const OPEN_TREE_ATTR: super::c_long = 467;
}

/// System calls that return EPERM in a sandbox.
pub const FORBIDDEN: &[c_long] = &[
    // Namespaces. `clone` and `unshare` depend on their flags, see `super::filter`.
    libc::SYS_setns,
    // Mounts.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    new::MOUNT_SETATTR,
    new::OPEN_TREE_ATTR,
    // Files by handle, without a path that could be checked.
    libc::SYS_open_by_handle_at,
    // Programs for the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    // io_uring makes other calls without a filter.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    // Keyrings, which outlive the job and are shared by all processes of the user.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    // System V IPC and POSIX message queues: objects of the whole IPC namespace, which outlive the job.
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmdt,
    libc::SYS_shmctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    // The machine.
    libc::SYS_kexec_load,
    new::KEXEC_FILE_LOAD,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_quotactl,
    new::QUOTACTL_FD,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_vhangup,
    // The kernel's log has addresses and names of other users' programs.
    libc::SYS_syslog,
    // Security labels.
    new::LSM_SET_SELF_ATTR,
];

/// Calls that only x86-64 has.
#[cfg(target_arch = "x86_64")]
pub const FORBIDDEN_HERE: &[c_long] = &[libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_uselib];

/// Calls that only aarch64 has.
#[cfg(not(target_arch = "x86_64"))]
pub const FORBIDDEN_HERE: &[c_long] = &[];

/// System calls whose first argument is a process id, where 0 is the caller (an `int`: the kernel reads the low 32
/// bits). With any other value they return EPERM, even for a thread of the caller, because a filter does not know the
/// caller's ids.
pub const OF_A_PROCESS: [c_long; 5] = [
    libc::SYS_prlimit64,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
];

/// The flags of clone(2) and unshare(2) that make namespaces.
pub const NAMESPACES: u32 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u32
    | NEW_TIME;

/// `CLONE_NEWTIME`. In the flags of clone(2), the bit belongs to the signal number.
pub const NEW_TIME: u32 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_is_named_once_and_is_known() {
        let mut all: Vec<_> = FORBIDDEN.iter().chain(FORBIDDEN_HERE).chain(&OF_A_PROCESS).copied().collect();
        assert!(all.iter().all(|number| (0..=c_long::from(HIGHEST)).contains(number)));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn the_namespaces_are_bits() {
        assert_eq!(NAMESPACES.count_ones(), 8);
    }
}
