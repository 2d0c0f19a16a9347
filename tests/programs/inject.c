/* Runs a command and lets one system call of one program fail, and all others succeed (seccomp_unotify(2)).
 *
 *   inject PROGRAM CALL ERRNO COUNT-FILE COMMAND [ARG...]
 *
 * It counts the calls below that processes executing PROGRAM make (reads and writes count only on files in /proc and
 * /sys/fs/cgroup). The call with the number CALL, counted from 1, fails with ERRNO. The number of calls is written
 * to COUNT-FILE. It ends as the command did: with its exit code, or with 128 plus the number of its signal. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static const int calls[] = {
    /* Calls for processes. */
    SYS_clone, SYS_clone3, SYS_pidfd_open, SYS_pidfd_send_signal, SYS_timer_create,
    /* Calls for cgroups and /proc. */
    SYS_mkdirat, SYS_openat, SYS_read, SYS_pread64, SYS_write, SYS_getdents64, SYS_unlinkat, SYS_flock, SYS_fstat, SYS_newfstatat,
    SYS_statx, SYS_fstatfs, SYS_faccessat2, SYS_readlinkat,
#ifdef __x86_64__
    SYS_fork, SYS_vfork, SYS_open, SYS_mkdir, SYS_rmdir, SYS_readlink, SYS_stat, SYS_access,
#endif
    /* Calls for descriptors. */
    SYS_memfd_create, SYS_socketpair, SYS_sendmsg, SYS_epoll_create1, SYS_epoll_ctl, SYS_signalfd4, SYS_fcntl, SYS_dup3,
    SYS_eventfd2, SYS_prlimit64};

#define CALLS (sizeof calls / sizeof *calls)

/* The child and its parent communicate through this memory, without a system call that the filter would stop. */
struct shared {
    volatile int listener, taken;
};

static int refuse(void)
{
    struct sock_filter program[CALLS + 3] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
    for (unsigned at = 0; at < CALLS; at++)
        program[1 + at] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, calls[at], CALLS - at, 0);
    program[CALLS + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    program[CALLS + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    struct sock_fprog filter = {.len = CALLS + 3, .filter = program};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -1;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter);
}

static int executes(pid_t pid, const struct stat *program)
{
    char path[64];
    struct stat exe;
    snprintf(path, sizeof path, "/proc/%d/exe", pid);
    return stat(path, &exe) == 0 && exe.st_ino == program->st_ino && exe.st_dev == program->st_dev;
}

/* Counts reads and writes only on files of the kernel: others, for example on an eventfd, cannot fail in this way. */
static int counts(const struct seccomp_notif *call)
{
    /* tokio in the test build opens a socket pair for itself, and does not work without it. */
    if (call->data.nr == SYS_socketpair)
        return (call->data.args[1] & 0xf) == SOCK_SEQPACKET;
    if (call->data.nr != SYS_read && call->data.nr != SYS_pread64 && call->data.nr != SYS_write)
        return 1;
    char path[64], target[256];
    snprintf(path, sizeof path, "/proc/%d/fd/%d", call->pid, (int)call->data.args[0]);
    ssize_t length = readlink(path, target, sizeof target - 1);
    target[length > 0 ? length : 0] = 0;
    return !strncmp(target, "/proc/", 6) || !strncmp(target, "/sys/fs/cgroup/", 15);
}

/* Prints which call fails, and of which process. */
static void print(const struct seccomp_notif *call)
{
    char path[64], name[64] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", call->pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd >= 0 && read(fd, name, sizeof name - 1) > 0)
        name[strcspn(name, "\n")] = 0;
    close(fd);
    fprintf(stderr, "inject: system call %d of %s\n", call->data.nr, name);
}

int main(int argc, char **argv)
{
    struct stat program;
    if (argc < 6 || stat(argv[1], &program))
        return 125;
    long chosen = atol(argv[2]), count = 0;
    int error = atoi(argv[3]);
    struct shared *shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED)
        return 125;
    pid_t child = fork();
    if (child == 0) {
        int listener = refuse();
        shared->listener = listener < 0 ? -errno : listener;
        while (listener >= 0 && !shared->taken)
            sched_yield();
        execvp(argv[5], argv + 5);
        _exit(127);
    }
    int pidfd = syscall(SYS_pidfd_open, child, 0);
    while (!shared->listener)
        sched_yield();
    if (shared->listener < 0) {
        fprintf(stderr, "inject: seccomp: %s\n", strerror(-shared->listener));
        return 125;
    }
    int listener = syscall(SYS_pidfd_getfd, pidfd, shared->listener, 0);
    shared->taken = 1;
    if (listener < 0)
        return 125;
    struct pollfd events[] = {{.fd = listener, .events = POLLIN}, {.fd = pidfd, .events = POLLIN}};
    while (poll(events, 2, -1) > 0) {
        if (events[0].revents & POLLIN) {
            struct seccomp_notif call = {0};
            if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call))
                continue;
            struct seccomp_notif_resp answer = {.id = call.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
            if (executes(call.pid, &program) && counts(&call) && ++count == chosen)
                answer = (struct seccomp_notif_resp){.id = call.id, .error = -error};
            if (answer.error && getenv("INJECT_TELL"))
                print(&call);
            ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
            continue;
        }
        if (events[1].revents)
            break;
    }
    int status;
    waitpid(child, &status, 0);
    FILE *file = fopen(argv[4], "w");
    if (!file)
        return 125;
    fprintf(file, "%ld\n", count);
    fclose(file);
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
