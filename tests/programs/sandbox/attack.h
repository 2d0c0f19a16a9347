/* One attempt of a process in a sandbox: PROGRAM ATTEMPT [ARG...]. It prints one line, "allowed" or "denied ERRNO", and
 * exits with 0. An unknown attempt prints "unknown". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* The rest of the command line. */
static char **args;

__attribute__((unused)) static int number(int index)
{
    return args[index] ? atoi(args[index]) : -1;
}

/* Returns -1 with errno if the attempt was denied. */
typedef long attempt(void);

struct named {
    const char *name;
    attempt *run;
};

#define ATTEMPT(name) static long name(void)
#define NAMED(name) {#name, name}

static int run_attempt(int argc, char **argv, const struct named *all, int count)
{
    args = argv + 2;
    for (int i = 0; argc > 1 && i < count; i++)
        if (!strcmp(all[i].name, argv[1])) {
            errno = 0;
            if (all[i].run() < 0)
                printf("denied %s\n", strerrorname_np(errno));
            else
                puts("allowed");
            return 0;
        }
    puts("unknown");
    return 2;
}

#define MAIN(...)                                                                                                      \
    int main(int argc, char **argv)                                                                                    \
    {                                                                                                                  \
        static const struct named all[] = {__VA_ARGS__};                                                               \
        return run_attempt(argc, argv, all, sizeof all / sizeof *all);                                                 \
    }
