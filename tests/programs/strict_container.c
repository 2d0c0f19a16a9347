/* Runs a command under a seccomp filter as strict as those of containers: strict_container COMMAND [ARG...]. Calls newer than
 * clone(2) fail as not implemented (clone3, openat2, pidfd_open…), and calls that a container does not need are
 * refused. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DENY(call, error)                                                                                              \
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))

int main(int argc, char **argv)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        DENY(SYS_clone3, ENOSYS),
        DENY(SYS_openat2, ENOSYS),
        DENY(SYS_pidfd_open, ENOSYS),
        DENY(SYS_pidfd_send_signal, ENOSYS),
        DENY(SYS_pidfd_getfd, ENOSYS),
        DENY(SYS_close_range, ENOSYS),
        DENY(SYS_epoll_pwait2, ENOSYS),
        DENY(SYS_faccessat2, ENOSYS),
        DENY(SYS_statx, ENOSYS),
        DENY(SYS_memfd_create, EPERM),
        DENY(SYS_unshare, EPERM),
        DENY(SYS_setns, EPERM),
        DENY(SYS_mount, EPERM),
        DENY(SYS_ptrace, EPERM),
        DENY(SYS_bpf, EPERM),
        DENY(SYS_perf_event_open, EPERM),
        DENY(SYS_io_uring_setup, EPERM),
        DENY(SYS_userfaultfd, EPERM),
        DENY(SYS_timer_create, EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof *filter, filter};
    if (argc < 2 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("seccomp");
        return 125;
    }
    execvp(argv[1], argv + 1);
    perror(argv[1]);
    return 127;
}
