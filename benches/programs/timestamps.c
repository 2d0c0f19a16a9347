/* Records when it starts and when it receives SIGTERM: timestamps FILE. Writes one line each, "up NS" and "term NS", on
 * CLOCK_MONOTONIC. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

static int out;

static void record(const char *what)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    dprintf(out, "%s %lld\n", what, now.tv_sec * 1000000000LL + now.tv_nsec);
}

int main(int argc, char **argv)
{
    sigset_t set;
    int signal;
    out = open(argc > 1 ? argv[1] : "/dev/stdout", O_WRONLY | O_APPEND);
    if (out < 0)
        return 125;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    record("up");
    sigwait(&set, &signal);
    record("term");
    return 0;
}
