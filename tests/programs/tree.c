/* A small tree of processes that resist their end: a session of their own, a double fork, a child that ignores every
 * signal. Prints "ready" on standard output when all of them run. */
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static void stay(void)
{
    for (;;)
        pause();
}

int main(void)
{
    int pipe_ends[2];
    if (pipe(pipe_ends))
        return 1;
    if (fork() == 0) {
        setsid();
        if (fork() == 0) {
            write(pipe_ends[1], "1", 1);
            stay();
        }
        _exit(0);
    }
    if (fork() == 0) {
        for (int signal_number = 1; signal_number < 65; signal_number++)
            signal(signal_number, SIG_IGN);
        setpgid(0, 0);
        write(pipe_ends[1], "2", 1);
        stay();
    }
    char seen[2];
    for (int left = 2; left > 0;) {
        ssize_t got = read(pipe_ends[0], seen, left);
        if (got <= 0)
            return 1;
        left -= got;
    }
    write(1, "ready\n", 6);
    stay();
}
