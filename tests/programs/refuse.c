/* Executes a command for which the kernel refuses one system call, as under a seccomp profile:
 *
 *   refuse CALL ERRNO COMMAND [ARG...]
 *
 * CALL is `clone3`; `pidfd_open`; `unshare`; `waitid`; or `reaping-waitid`, which is waitid without the calls with WNOWAIT. */
#define _GNU_SOURCE
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __aarch64__
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#else
#define ARCHITECTURE AUDIT_ARCH_X86_64
#endif

int main(int argc, char **argv)
{
    if (argc < 4)
        return 98;
    int call = !strcmp(argv[1], "clone3")       ? SYS_clone3
               : !strcmp(argv[1], "pidfd_open") ? SYS_pidfd_open
               : !strcmp(argv[1], "unshare")    ? SYS_unshare
                                                : SYS_waitid;
    /* The fourth argument of waitid contains the options; for other calls no bit of it is checked. */
    unsigned spared = !strcmp(argv[1], "reaping-waitid") ? WNOWAIT : 0;
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCHITECTURE, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 3),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[3])),
        BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, spared, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (atoi(argv[2]) & SECCOMP_RET_DATA)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof *rules, rules};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("seccomp");
        return 98;
    }
    execvp(argv[3], argv + 3);
    perror(argv[3]);
    return 98;
}
