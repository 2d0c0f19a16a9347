/* Starts children that belong to no job, one after another, so that they get the pids and process groups that jobs
 * had before. None of them may ever receive a signal. It runs until standard input ends, and then prints how many
 * there were. */
#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static int hit(void)
{
    sigset_t pending;
    sigpending(&pending);
    for (int number = 1; number < 65; number++)
        if (sigismember(&pending, number) == 1)
            return number;
    return 0;
}

int main(void)
{
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    struct pollfd input = {.fd = 0, .events = POLLIN};
    long children = 0;
    while (poll(&input, 1, 0) == 0) {
        pid_t child = fork();
        if (child < 0)
            continue;
        if (child == 0) {
            setpgid(0, 0);
            for (int turn = 0; turn < 3; turn++)
                sched_yield();
            _exit(hit());
        }
        int status;
        if (waitpid(child, &status, WUNTRACED) != child)
            return 1;
        if (!WIFEXITED(status) || WEXITSTATUS(status)) {
            printf("child %ld was hit, status %#x\n", children, status);
            return 1;
        }
        children++;
    }
    printf("%ld\n", children);
    return 0;
}
