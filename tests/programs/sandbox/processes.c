/* Attempts against the process whose id is the first argument. With "self" variants against the own process or a child,
 * which must work. */
#include "attack.h"
#include <linux/kcmp.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>

ATTEMPT(kill_kill) { return kill(number(0), SIGKILL); }
ATTEMPT(kill_stop) { return kill(number(0), SIGSTOP); }
ATTEMPT(kill_group) { return kill(-number(0), SIGKILL); }
/* SIGCONT, so that a sandbox with a hole does no harm. The kernel reports success even if it refused every process. */
ATTEMPT(continue_all) { return kill(-1, SIGCONT); }
ATTEMPT(tkill_kill) { return syscall(SYS_tkill, number(0), SIGKILL); }
ATTEMPT(tgkill_kill) { return syscall(SYS_tgkill, number(0), number(0), SIGKILL); }
ATTEMPT(queue_kill) { return sigqueue(number(0), SIGKILL, (union sigval){.sival_int = 1}); }

ATTEMPT(pidfd_kill)
{
    int fd = syscall(SYS_pidfd_open, number(0), 0);
    return fd < 0 ? -1 : syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
}

/* The kernel sends the signal when the pipe becomes readable; the kernel's answer cannot be seen here. */
ATTEMPT(owner_signal)
{
    int fds[2];
    if (pipe(fds) || fcntl(fds[0], F_SETSIG, SIGKILL) || fcntl(fds[0], F_SETOWN, number(0)) ||
        fcntl(fds[0], F_SETFL, O_ASYNC))
        return -1;
    return write(fds[1], "x", 1);
}

ATTEMPT(trace_attach) { return ptrace(PTRACE_ATTACH, number(0), 0, 0); }
ATTEMPT(trace_seize) { return ptrace(PTRACE_SEIZE, number(0), 0, 0); }

static int open_of(const char *file, int flags)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", number(0), file);
    return open(path, flags);
}

ATTEMPT(memory_file) { return open_of("mem", O_RDWR); }
ATTEMPT(environ_file) { return open_of("environ", O_RDONLY); }
ATTEMPT(oom_score) { return open_of("oom_score_adj", O_WRONLY); }
ATTEMPT(their_root) { return open_of("root/etc/shadow-of-nothing/..", O_RDONLY | O_DIRECTORY) < 0 && errno == ENOENT ? 0 : -1; }

ATTEMPT(their_directory) { return open_of("cwd/.", O_RDONLY | O_DIRECTORY); }

static char byte;
static struct iovec local = {&byte, 1}, remote = {&byte, 1};
ATTEMPT(vm_read) { return process_vm_readv(number(0), &local, 1, &remote, 1, 0) < 0 && errno != EFAULT ? -1 : 0; }
ATTEMPT(vm_write) { return process_vm_writev(number(0), &local, 1, &remote, 1, 0) < 0 && errno != EFAULT ? -1 : 0; }

/* Any descriptor: the guard's connection to its supervisor is one of them. */
ATTEMPT(descriptor)
{
    int fd = syscall(SYS_pidfd_open, number(0), 0), denied = errno;
    for (int target = 0; fd >= 0 && target < 64; target++) {
        if (syscall(SYS_pidfd_getfd, fd, target, 0) >= 0)
            return 0;
        if (errno != EBADF)
            denied = errno;
    }
    errno = denied;
    return -1;
}

ATTEMPT(advise)
{
    int fd = syscall(SYS_pidfd_open, number(0), 0);
    struct iovec nothing = {0, 4096};
    long done = fd < 0 ? -1 : syscall(SYS_process_madvise, fd, &nothing, 1, MADV_COLD, 0);
    return done < 0 && (errno == ENOMEM || errno == EINVAL) ? 0 : done;
}

ATTEMPT(compare) { return syscall(SYS_kcmp, getpid(), number(0), KCMP_FILE, 0, 0); }

static long limit(int pid, int resource, rlim_t value)
{
    struct rlimit new = {value, value};
    return syscall(SYS_prlimit64, pid, resource, &new, NULL);
}

ATTEMPT(limit_cpu) { return limit(number(0), RLIMIT_CPU, 1000000); }
ATTEMPT(limit_files) { return limit(number(0), RLIMIT_NOFILE, 64); }
ATTEMPT(limit_read)
{
    struct rlimit old;
    return syscall(SYS_prlimit64, number(0), RLIMIT_CPU, NULL, &old);
}
/* The kernel uses the low 32 bits of the id only. */
ATTEMPT(limit_high_bits) { 
    struct rlimit new = {1000000, 1000000};
    return syscall(SYS_prlimit64, (1UL << 32) | (unsigned)number(0), RLIMIT_CPU, &new, NULL);
}
ATTEMPT(nice_process) { return setpriority(PRIO_PROCESS, number(0), 19); }
ATTEMPT(nice_group) { return setpriority(PRIO_PGRP, number(0), 19); }
ATTEMPT(nice_user) { return setpriority(PRIO_USER, 0, 19); }
/* IOPRIO_WHO_PROCESS is 1, IOPRIO_WHO_USER is 3; class 3 is "idle". */
ATTEMPT(io_priority) { return syscall(SYS_ioprio_set, 1, number(0), 3 << 13); }
ATTEMPT(io_priority_user) { return syscall(SYS_ioprio_set, 3, getuid(), 3 << 13); }
ATTEMPT(schedule_idle) { return sched_setscheduler(number(0), SCHED_IDLE, &(struct sched_param){0}); }
ATTEMPT(schedule_param) { return sched_setparam(number(0), &(struct sched_param){0}); }
ATTEMPT(schedule_attr)
{
    /* With its own niceness: only root may lower that of a process. */
    uint32_t attr[12] = {48, SCHED_BATCH, 0, 0, getpriority(PRIO_PROCESS, 0)};
    return syscall(SYS_sched_setattr, number(0), attr, 0);
}
ATTEMPT(affinity)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? -1 : sched_setaffinity(number(0), sizeof set, &set);
}

/* What a job may do to itself. */
ATTEMPT(self_kill)
{
    int child = fork(), status;
    if (!child) {
        pause();
        _exit(0);
    }
    if (child < 0 || kill(child, SIGKILL) || waitpid(child, &status, 0) < 0)
        return -1;
    return WIFSIGNALED(status) ? 0 : -1;
}
ATTEMPT(self_group)
{
    int child = fork();
    if (!child) {
        setpgid(0, 0);
        kill(0, SIGKILL);
        _exit(1);
    }
    int status;
    return child < 0 || waitpid(child, &status, 0) < 0 || !WIFSIGNALED(status) ? -1 : 0;
}
ATTEMPT(self_trace)
{
    int child = fork(), status;
    if (!child) {
        ptrace(PTRACE_TRACEME, 0, 0, 0);
        raise(SIGSTOP);
        _exit(0);
    }
    if (child < 0 || waitpid(child, &status, 0) < 0 || !WIFSTOPPED(status))
        return -1;
    return ptrace(PTRACE_CONT, child, 0, 0) || waitpid(child, &status, 0) < 0 ? -1 : 0;
}
ATTEMPT(self_limit) { return limit(0, RLIMIT_CPU, 1000000); }
ATTEMPT(self_nice) { return setpriority(PRIO_PROCESS, 0, 19); }
ATTEMPT(self_io_priority) { return syscall(SYS_ioprio_set, 1, 0, 3 << 13); }
ATTEMPT(self_schedule) { return sched_setscheduler(0, SCHED_BATCH, &(struct sched_param){0}); }
ATTEMPT(self_affinity)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? -1 : sched_setaffinity(0, sizeof set, &set);
}

MAIN(NAMED(kill_kill), NAMED(kill_stop), NAMED(kill_group), NAMED(continue_all), NAMED(tkill_kill), NAMED(tgkill_kill),
     NAMED(queue_kill), NAMED(pidfd_kill), NAMED(owner_signal), NAMED(trace_attach), NAMED(trace_seize),
     NAMED(memory_file), NAMED(environ_file), NAMED(oom_score), NAMED(their_root), NAMED(their_directory), NAMED(vm_read), NAMED(vm_write),
     NAMED(descriptor), NAMED(advise), NAMED(compare), NAMED(limit_cpu), NAMED(limit_files), NAMED(limit_read),
     NAMED(limit_high_bits), NAMED(nice_process), NAMED(nice_group), NAMED(nice_user), NAMED(io_priority),
     NAMED(io_priority_user), NAMED(schedule_idle), NAMED(schedule_param), NAMED(schedule_attr), NAMED(affinity),
     NAMED(self_kill), NAMED(self_group), NAMED(self_trace), NAMED(self_limit), NAMED(self_nice),
     NAMED(self_io_priority), NAMED(self_schedule), NAMED(self_affinity))
