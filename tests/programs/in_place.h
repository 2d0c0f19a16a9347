/* How the escape programs prove that an escape has really happened: each process that has escaped reports it with
 * in_place(), and the main process prints "ready" when it has received all these reports. */
#ifndef IN_PLACE_H
#define IN_PLACE_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

/* Fixed numbers, which stay open across exec, so that a program that is executed later can make the report. */
#define OUT 10
#define PLACED 11

/* A condition that does not hold fails the test: the program prints it once, on standard output, and no "ready"
 * follows. */
#define must(condition) ((condition) ? (void)0 : failed(#condition, __LINE__))

static inline void failed(const char *condition, int line)
{
    dprintf(OUT, "line %d: %s: %s\n", line, condition, strerror(errno));
    _exit(99);
}

static inline void in_place(void)
{
    dprintf(OUT, "in place\n");
    must(write(PLACED, "x", 1) == 1);
    close(PLACED);
}

/* Keeps running until it is ended. */
static inline void remain(void)
{
    for (;;)
        pause();
}

static inline pid_t child(void)
{
    pid_t pid = fork();
    must(pid >= 0);
    return pid;
}

static inline void ignore_all_signals(void)
{
    for (int number = 1; number <= 64; number++)
        signal(number, SIG_IGN);
    sigset_t all;
    sigfillset(&all);
    must(sigprocmask(SIG_BLOCK, &all, NULL) == 0);
}

/* Returns the state as in /proc/PID/stat. */
static inline char state_of(const char *stat)
{
    char text[512];
    int fd = open(stat, O_RDONLY | O_CLOEXEC);
    must(fd >= 0);
    ssize_t length = read(fd, text, sizeof text - 1);
    must(length > 0);
    close(fd);
    text[length] = 0;
    return strrchr(text, ')')[2];
}

struct mode {
    const char *name;
    /* Makes the escape, and returns how many in_place() calls will follow. */
    int (*escape)(char **arguments);
};

/* The main() of each program: PROGRAM stay|exit MODE [ARGUMENT...] or PROGRAM here. */
static inline int escape(char **argv, const struct mode *modes)
{
    if (argv[1] && !strcmp(argv[1], "here")) {
        in_place();
        remain();
    }
    int pipes[2];
    if (!argv[1] || !argv[2] || dup2(1, OUT) < 0)
        return 98;
    must(pipe2(pipes, O_CLOEXEC) == 0);
    int told = fcntl(pipes[0], F_DUPFD_CLOEXEC, 20);
    must(told >= 0 && dup2(pipes[1], PLACED) == PLACED);
    for (int at = 0; at < 2; at++)
        if (pipes[at] != PLACED)
            close(pipes[at]);
    while (modes->name && strcmp(modes->name, argv[2]))
        modes++;
    must(modes->name);
    int expected = modes->escape(argv + 3);
    close(PLACED);
    for (char byte; expected > 0; expected--)
        must(read(told, &byte, 1) == 1);
    close(told);
    dprintf(OUT, "ready\n");
    if (!strcmp(argv[1], "stay"))
        remain();
    return 0;
}

static inline void *outlive_leader(void *argument)
{
    while (state_of("/proc/self/stat") != 'Z')
        sched_yield();
    in_place();
    remain();
    return argument;
}

/* From here on this process looks like a zombie in /proc, but its other thread lives. */
static inline void lose_leader(void)
{
    pthread_t thread;
    must(pthread_create(&thread, NULL, outlive_leader, NULL) == 0);
    pthread_exit(NULL);
}

/* Waits until a child has been stopped. */
static inline void must_stop(pid_t pid)
{
    int status;
    must(waitpid(pid, &status, WUNTRACED) == pid && WIFSTOPPED(status));
}

#endif
