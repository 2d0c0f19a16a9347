/* Processes that are hard to catch.
 *
 * race storm                  eight processes, each of which has a child that has a child, again and again
 * race main MICROSECONDS CODE LEFTOVERS
 *                            exits after that time, and leaves this number of processes, which ignore SIGTERM
 *
 * Both print "ready" on standard output, which all their processes keep open. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 8

/* This is not an unbounded storm: the next child is made when both the child and its own child, a session leader,
 * are gone. */
static void fork_for_ever(int started)
{
    for (int first = 1;; first = 0) {
        int alive[2];
        if (pipe(alive))
            _exit(1);
        pid_t child = fork();
        if (child == 0) {
            setsid();
            fork();
            _exit(0);
        }
        close(alive[1]);
        char none;
        while (read(alive[0], &none, 1) > 0)
            ;
        close(alive[0]);
        if (child > 0)
            waitpid(child, NULL, 0);
        if (first)
            write(started, "1", 1);
    }
}

static void wait_for(int started, int count)
{
    char seen;
    while (count > 0 && read(started, &seen, 1) == 1)
        count--;
    write(1, "ready\n", 6);
}

int main(int argc, char **argv)
{
    int started[2];
    if (argc < 2 || pipe(started))
        return 1;
    if (strcmp(argv[1], "storm") == 0) {
        for (int worker = 0; worker < WORKERS; worker++)
            if (fork() == 0)
                fork_for_ever(started[1]);
        wait_for(started[0], WORKERS);
        fork_for_ever(started[1]);
    }
    if (argc != 5)
        return 1;
    int leftovers = atoi(argv[4]);
    for (int leftover = 0; leftover < leftovers; leftover++)
        if (fork() == 0) {
            signal(SIGTERM, SIG_IGN);
            setsid();
            write(started[1], "1", 1);
            for (;;)
                pause();
        }
    wait_for(started[0], leftovers);
    long micros = atol(argv[2]);
    struct timespec time = {micros / 1000000, micros % 1000000 * 1000};
    nanosleep(&time, NULL);
    return atoi(argv[3]);
}
