/* Makes the bare kernel calls of a job: mkdir, clone3 straight into the cgroup, exec, wait, read "populated 0", rmdir.
 *
 *   bare CGROUP PROGRAM
 *
 * For each number N on standard input, it runs N jobs one after another in cgroups below CGROUP, and prints the time
 * that they took, in microseconds. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static char *arguments[2];

static void check(int succeeded, const char *what)
{
    if (succeeded)
        return;
    fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* The child runs on the parent's stack, as with vfork, so it must not return from this function. */
static __attribute__((noinline)) long spawn(struct clone_args *args)
{
#ifdef __x86_64__
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(SYS_clone3), "D"(args), "S"(sizeof *args)
                     : "rcx", "r11", "memory");
#else
    register long number __asm__("x8") = SYS_clone3, result __asm__("x0") = (long)args, size __asm__("x1") = sizeof *args;
    __asm__ volatile("svc #0" : "+r"(result) : "r"(number), "r"(size) : "memory");
#endif
    if (result == 0) {
        execve(arguments[0], arguments, environ);
        _exit(127);
    }
    return result;
}

static void job(int base)
{
    static int count;
    char name[32], text[128];
    snprintf(name, sizeof name, "bare-%d", ++count);
    check(mkdirat(base, name, 0755) == 0, "mkdir");
    int leaf = openat(base, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC), pidfd = -1;
    check(leaf >= 0, "open the cgroup");
    struct clone_args args = {.flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | CLONE_INTO_CGROUP,
                              .pidfd = (unsigned long)&pidfd,
                              .exit_signal = SIGCHLD,
                              .cgroup = (unsigned long)leaf};
    long pid = spawn(&args);
    if (pid < 0)
        errno = (int)-pid;
    check(pid > 0, "clone3");
    siginfo_t end;
    check(waitid(P_PIDFD, pidfd, &end, WEXITED) == 0, "waitid");
    check(end.si_code == CLD_EXITED && end.si_status == 0, "the program failed");
    int events = openat(leaf, "cgroup.events", O_RDONLY | O_CLOEXEC);
    check(events >= 0, "open cgroup.events");
    for (;;) {
        ssize_t length = pread(events, text, sizeof text - 1, 0);
        check(length > 0, "read cgroup.events");
        text[length] = 0;
        if (strstr(text, "populated 0"))
            break;
        struct pollfd change = {.fd = events, .events = POLLPRI};
        poll(&change, 1, -1);
    }
    close(events);
    close(leaf);
    close(pidfd);
    check(unlinkat(base, name, AT_REMOVEDIR) == 0, "rmdir");
}

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
    char line[32];
    if (argc != 3)
        return 2;
    int base = open(argv[1], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    check(base >= 0, argv[1]);
    arguments[0] = argv[2];
    while (fgets(line, sizeof line, stdin)) {
        double begun = now_us();
        for (int left = atoi(line); left > 0; left--)
            job(base);
        printf("%f\n", now_us() - begun);
        fflush(stdout);
    }
}
