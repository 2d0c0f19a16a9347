/* Detects whether this kernel has the kill-sequence bug (6.14 until fixed in 7.3 and in stable series): a child that is
 * cloned into a cgroup is killed at once if its parent's own cgroup was ever killed.
 *
 *   kill_sequence KILLED-CGROUP
 *
 * It moves there, clones a child into a new cgroup below it, and prints "killed" or "lived". */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char procs[PATH_MAX], below[PATH_MAX];
    if (argc < 2)
        return 98;
    snprintf(procs, sizeof procs, "%s/cgroup.procs", argv[1]);
    snprintf(below, sizeof below, "%s/below", argv[1]);
    int join = open(procs, O_WRONLY), status;
    if (join < 0 || write(join, "0", 1) != 1 || mkdir(below, 0755) != 0)
        return 97;
    int directory = open(below, O_RDONLY | O_DIRECTORY);
    struct clone_args args = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = (uint64_t)directory};
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid == 0)
        _exit(0);
    if (pid < 0 || waitpid(pid, &status, 0) != pid || rmdir(below) != 0)
        return 96;
    puts(WIFSIGNALED(status) ? "killed" : "lived");
    return 0;
}
