/* Processes that leave their parent, group and session, and that multiply.
 *
 *   escape_kin stay|exit MODE [COMMAND...]
 *
 * The main process waits until the escape has happened. Then it keeps running, or exits with 0 and leaves it behind. */
#include "in_place.h"
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#define STRANGER 65534

extern char **environ;

static int own_group(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        must(setpgid(0, 0) == 0 && getpgrp() == getpid());
        in_place();
        remain();
    }
    return 1;
}

static int own_session(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        must(setsid() == getpid());
        in_place();
        remain();
    }
    return 1;
}

static int double_fork(char **arguments)
{
    (void)arguments;
    pid_t middle = child();
    if (middle == 0) {
        must(setsid() == getpid());
        if (child() == 0) {
            in_place();
            remain();
        }
        _exit(0);
    }
    must(waitpid(middle, NULL, 0) == middle);
    return 1;
}

static int by_daemon(char **arguments)
{
    (void)arguments;
    pid_t caller = child();
    if (caller == 0) {
        must(daemon(0, 0) == 0);
        in_place();
        remain();
    }
    must(waitpid(caller, NULL, 0) == caller);
    return 1;
}

/* Another program makes the escape: nohup, unshare, a nested pinfold… */
static int by_command(char **arguments)
{
    if (child() == 0) {
        execvp(*arguments, arguments);
        must(!"executed");
    }
    return 1;
}

/* This runs under nohup(1), or under env(1) -i, and their effect applies to all processes. */
static int hangup_ignored(char **arguments)
{
    must(signal(SIGHUP, SIG_IGN) == SIG_IGN);
    return by_command(arguments);
}

static int no_environment(char **arguments)
{
    must(*environ == NULL);
    return by_command(arguments);
}

static int all_closed(char **arguments)
{
    (void)arguments;
    int held[2];
    must(pipe2(held, O_CLOEXEC) == 0);
    if (child() == 0) {
        in_place();
        must(syscall(SYS_close_range, 0, ~0U, 0) == 0);
        remain();
    }
    close(held[1]);
    /* End of file is the proof: the child held the other end. */
    char byte;
    must(read(held[0], &byte, 1) == 0);
    return 1;
}

/* A child of the guard, and so a sibling of the main process. */
static int sibling(char **arguments)
{
    (void)arguments;
    pid_t parent = getppid();
    long pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, NULL, NULL, NULL, 0);
    must(pid >= 0);
    if (pid == 0) {
        must(getppid() == parent);
        in_place();
        remain();
    }
    return 1;
}

static int own_subreaper(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        must(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
        pid_t reaper = getpid(), middle = child();
        if (middle == 0) {
            if (child() == 0) {
                while (getppid() != reaper)
                    sched_yield();
                in_place();
                remain();
            }
            _exit(0);
        }
        must(waitpid(middle, NULL, 0) == middle);
        in_place();
        remain();
    }
    return 2;
}

/* When a reaper ends, the one below it gets another parent. When they receive a signal, all of them end at once. */
static int own_subreapers(char **arguments)
{
    for (int at = 0; at < 40; at++)
        own_subreaper(arguments);
    return 80;
}

/* Each of eight processes is suspended until the next one ends. */
static int vfork_chain(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        for (int more = 8; more > 0; more--) {
            pid_t pid = vfork();
            must(pid >= 0);
            if (pid != 0)
                _exit(0);
        }
        in_place();
        remain();
    }
    return 1;
}

static void *fork_in_thread(void *argument)
{
    if (child() == 0) {
        must(setsid() == getpid());
        in_place();
        remain();
    }
    remain();
    return argument;
}

static int forking_threads(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        pthread_t thread;
        for (int at = 0; at < 4; at++)
            must(pthread_create(&thread, NULL, fork_in_thread, NULL) == 0);
        remain();
    }
    return 4;
}

/* In /proc the process looks like a zombie, but its other thread lives. */
static int dead_leader(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        lose_leader();
    }
    return 1;
}

/* As many processes as the limit allows, which end and are replaced all the time. Not as root, to whom the limit
 * does not apply. */
static int storm(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        struct rlimit few = {200, 200};
        must(setrlimit(RLIMIT_NPROC, &few) == 0);
        must(setgid(STRANGER) == 0 && setuid(STRANGER) == 0 && getuid() == STRANGER && setuid(0) != 0);
        signal(SIGTERM, SIG_IGN);
        signal(SIGCHLD, SIG_IGN);
        signal(SIGPIPE, SIG_IGN);
        for (int reported = 0;;) {
            if (fork() >= 0)
                continue;
            /* The limit is reached, so the storm has its full size. */
            must(errno == EAGAIN);
            if (!reported++ && write(PLACED, "x", 1) == 1)
                dprintf(OUT, "in place\n");
            if (getpid() % 2)
                _exit(0);
            sched_yield();
        }
    }
    return 1;
}

/* Each process starts a child that continues, and ends. The number is bounded, so that this ends by itself if
 * pinfold cannot end it. */
#define GENERATIONS 200000

static void relay(int in_sessions)
{
    signal(SIGTERM, SIG_IGN);
    for (int generation = 0; generation < GENERATIONS; generation++) {
        if (generation == 10)
            in_place();
        if (in_sessions)
            setsid();
        if (fork() != 0)
            _exit(0);
    }
    _exit(0);
}

static int one_relay(char **arguments)
{
    (void)arguments;
    if (child() == 0)
        relay(0);
    return 1;
}

/* No process, group or session lasts. */
static int relays_in_sessions(char **arguments)
{
    (void)arguments;
    for (int at = 0; at < 3; at++)
        if (child() == 0)
            relay(1);
    return 3;
}

/* Faster, because no memory is copied. It uses many stacks in turn: a parent that waits for a CPU may still be on
 * its own stack. */
#define STACKS 2048
static char stacks[STACKS][8192] __attribute__((aligned(64)));

static int share_and_end(void *argument)
{
    int generation = (int)(long)argument;
    if (generation == 10)
        in_place();
    if (generation < GENERATIONS)
        clone(share_and_end, stacks[generation % STACKS] + sizeof *stacks, CLONE_VM | SIGCHLD, (void *)(long)(generation + 1));
    syscall(SYS_exit_group, 0);
    return 0;
}

static int relay_in_shared_memory(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        signal(SIGTERM, SIG_IGN);
        share_and_end(NULL);
    }
    return 1;
}

static const struct mode modes[] = {
    {"own-group", own_group},
    {"own-session", own_session},
    {"double-fork", double_fork},
    {"daemon", by_daemon},
    {"command", by_command},
    {"hangup-ignored", hangup_ignored},
    {"no-environment", no_environment},
    {"all-closed", all_closed},
    {"sibling", sibling},
    {"own-subreaper", own_subreaper},
    {"own-subreapers", own_subreapers},
    {"vfork-chain", vfork_chain},
    {"forking-threads", forking_threads},
    {"dead-leader", dead_leader},
    {"storm", storm},
    {"relay", one_relay},
    {"relays-in-sessions", relays_in_sessions},
    {"relay-in-shared-memory", relay_in_shared_memory},
    {0},
};

int main(int argc, char **argv)
{
    (void)argc;
    return escape(argv, modes);
}
