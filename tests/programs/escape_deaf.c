/* Processes that ignore signals, that start new processes when they receive one, or that cannot run.
 *
 *   escape_deaf stay|exit MODE */
#include "in_place.h"
#include <sys/ptrace.h>

/* ---- ignoring signals ---- */

static int deaf_to_term(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        signal(SIGTERM, SIG_IGN);
        in_place();
        remain();
    }
    return 1;
}

static int deaf_to_all(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        ignore_all_signals();
        in_place();
        remain();
    }
    return 1;
}

static int deaf_main(char **arguments)
{
    (void)arguments;
    signal(SIGTERM, SIG_IGN);
    return 0;
}

static volatile int generations;

static void fork_one(int number)
{
    (void)number;
    if (generations++ < 300)
        fork();
}

/* Each process that receives SIGTERM starts one more, which has not received it. */
static int fork_when_told(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        signal(SIGTERM, fork_one);
        in_place();
        remain();
    }
    return 1;
}

static void relay(int number)
{
    (void)number;
    if (generations++ < 5000 && fork() != 0)
        _exit(0);
}

/* Each process that receives SIGTERM starts a successor, which has not received it, and ends. So there is always a
 * new process. The number is bounded, because otherwise a pinfold that keeps sending SIGTERM would keep the machine
 * busy forever. */
static int relays_when_told(char **arguments)
{
    (void)arguments;
    for (int at = 0; at < 100; at++)
        if (child() == 0) {
            signal(SIGTERM, relay);
            in_place();
            remain();
        }
    return 100;
}

/* The process ignores SIGTERM, and its first thread has exited: `cgroup.kill` does not end it. */
static int deaf_headless(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        signal(SIGTERM, SIG_IGN);
        lose_leader();
    }
    return 1;
}

/* Keeps forking while its first thread is dead. The children are ordinary processes. */
static void *fork_without_leader(void *argument)
{
    while (state_of("/proc/self/stat") != 'Z')
        sched_yield();
    for (int at = 0; at < 8; at++)
        if (child() == 0)
            remain();
    in_place();
    remain();
    return argument;
}

static int deaf_headless_parent(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        pthread_t thread;
        signal(SIGTERM, SIG_IGN);
        must(pthread_create(&thread, NULL, fork_without_leader, NULL) == 0);
        pthread_exit(NULL);
    }
    return 1;
}

static void *main_without_leader(void *argument)
{
    while (state_of("/proc/self/stat") != 'Z')
        sched_yield();
    in_place();
    dprintf(OUT, "ready\n");
    remain();
    return argument;
}

/* The first thread of the main process has exited too. Its other thread prints "ready". */
static int headless_main(char **arguments)
{
    pthread_t thread;
    (void)arguments;
    must(pthread_create(&thread, NULL, main_without_leader, NULL) == 0);
    pthread_exit(NULL);
    return 0;
}

static int deaf_headless_main(char **arguments)
{
    signal(SIGTERM, SIG_IGN);
    return headless_main(arguments);
}

/* ---- not running ---- */

static int stopped(char **arguments)
{
    (void)arguments;
    pid_t pid = child();
    if (pid == 0) {
        in_place();
        raise(SIGSTOP);
        remain();
    }
    must_stop(pid);
    return 1;
}

static int traced(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        pid_t pid = child();
        if (pid == 0) {
            must(ptrace(PTRACE_TRACEME, 0, NULL, NULL) == 0);
            raise(SIGSTOP);
            remain();
        }
        int status;
        must(waitpid(pid, &status, 0) == pid && WIFSTOPPED(status));
        in_place();
        remain();
    }
    return 1;
}

/* A tracer that ignores signals holds the main process. While the tracer lives, the parent does not see the end of
 * the main process. */
static int traced_main(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        char stat[64];
        pid_t main_process = getppid();
        signal(SIGTERM, SIG_IGN);
        snprintf(stat, sizeof stat, "/proc/%d/stat", main_process);
        must(ptrace(PTRACE_SEIZE, main_process, NULL, NULL) == 0);
        must(ptrace(PTRACE_INTERRUPT, main_process, NULL, NULL) == 0);
        while (state_of(stat) != 't')
            sched_yield();
        in_place();
        dprintf(OUT, "ready\n");
        remain();
    }
    /* This process is held, so the tracer prints "ready". */
    remain();
    return 0;
}

static const struct mode modes[] = {
    {"deaf-to-term", deaf_to_term},
    {"deaf-to-all", deaf_to_all},
    {"deaf-main", deaf_main},
    {"fork-when-told", fork_when_told},
    {"relays-when-told", relays_when_told},
    {"deaf-headless", deaf_headless},
    {"deaf-headless-parent", deaf_headless_parent},
    {"headless-main", headless_main},
    {"deaf-headless-main", deaf_headless_main},
    {"stopped", stopped},
    {"traced", traced},
    {"traced-main", traced_main},
    {0},
};

int main(int argc, char **argv)
{
    (void)argc;
    return escape(argv, modes);
}
