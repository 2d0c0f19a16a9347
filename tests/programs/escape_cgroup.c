/* Processes that make cgroups of their own inside the job's, and processes that leave it.
 *
 *   escape_cgroup stay|exit MODE OUTSIDE
 *
 * OUTSIDE is the cgroup directory in which pinfold made its base. A process leaves the job by moving there. */
#include "in_place.h"
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>

/* The cgroup directory of the job. */
static char leaf[PATH_MAX];

/* The cgroup v2 path of this process, from the root of the hierarchy. */
static void own_path(char path[PATH_MAX])
{
    FILE *file = fopen("/proc/self/cgroup", "re");
    char line[PATH_MAX];
    must(file);
    *path = 0;
    while (fgets(line, sizeof line, file))
        if (!strncmp(line, "0::", 3))
            strcpy(path, strtok(line + 3, "\n"));
    fclose(file);
    must(*path);
}

static void find(const char *outside)
{
    char own[PATH_MAX];
    own_path(own);
    char *job = strrchr(own, '/');
    must(job);
    must(snprintf(leaf, sizeof leaf, "%s%s", outside, job) < PATH_MAX);
}

static void put(const char *directory, const char *file, const char *value)
{
    char path[PATH_MAX];
    must(snprintf(path, sizeof path, "%s/%s", directory, file) < PATH_MAX);
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    must(fd >= 0);
    must(write(fd, value, strlen(value)) == (ssize_t)strlen(value));
    close(fd);
}

/* Moves this process there, and asserts that its cgroup has changed. The new one may be below its leaf or outside it. */
static void go(const char *directory)
{
    char before[PATH_MAX], after[PATH_MAX];
    own_path(before);
    put(directory, "cgroup.procs", "0");
    own_path(after);
    must(strcmp(before, after));
}

static const char *make(const char *above, const char *name)
{
    static char path[PATH_MAX];
    char fresh[PATH_MAX];
    must(snprintf(fresh, sizeof fresh, "%s/%s", above, name) < PATH_MAX);
    must(mkdir(fresh, 0755) == 0);
    return strcpy(path, fresh);
}

static void freeze(const char *directory)
{
    char path[PATH_MAX], text[256];
    must(snprintf(path, sizeof path, "%s/cgroup.events", directory) < PATH_MAX);
    int events = open(path, O_RDONLY | O_CLOEXEC);
    must(events >= 0);
    put(directory, "cgroup.freeze", "1");
    for (;;) {
        ssize_t length = pread(events, text, sizeof text - 1, 0);
        must(length > 0);
        text[length] = 0;
        if (strstr(text, "frozen 1"))
            break;
        struct pollfd change = {events, POLLPRI, 0};
        poll(&change, 1, -1);
    }
    close(events);
}

/* ---- inside ---- */

static int own_cgroup(char **arguments)
{
    find(*arguments);
    if (child() == 0) {
        go(make(leaf, "mine"));
        in_place();
        remain();
    }
    return 1;
}

static int own_cgroup_of_main(char **arguments)
{
    find(*arguments);
    go(make(leaf, "mine"));
    in_place();
    return 1;
}

static int frozen(char **arguments)
{
    find(*arguments);
    const char *cold = make(leaf, "cold");
    int moved[2];
    must(pipe2(moved, O_CLOEXEC) == 0);
    if (child() == 0) {
        go(cold);
        in_place();
        close(moved[1]);
        remain();
    }
    close(moved[1]);
    char byte;
    must(read(moved[0], &byte, 1) == 0);
    freeze(cold);
    return 1;
}

/* Freezes the whole job, including the main process. The process that observes this has left the job. */
static int frozen_job(char **arguments)
{
    find(*arguments);
    if (child() == 0) {
        go(*arguments);
        freeze(leaf);
        in_place();
        dprintf(OUT, "ready\n");
        remain();
    }
    remain();
    return 1;
}

static int deep(char **arguments)
{
    find(*arguments);
    char below[PATH_MAX];
    strcpy(below, leaf);
    for (int level = 1; level <= 30; level++) {
        strcpy(below, make(below, "down"));
        if (level % 10 == 0 && child() == 0) {
            go(below);
            in_place();
            remain();
        }
    }
    return 3;
}

static void *into_threads(void *argument)
{
    char own[32];
    snprintf(own, sizeof own, "%ld", syscall(SYS_gettid));
    put(argument, "cgroup.threads", own);
    in_place();
    remain();
    return NULL;
}

/* A process in two cgroups: one of its threads is in a cgroup whose processes cannot be listed. */
static int threaded(char **arguments)
{
    find(*arguments);
    if (child() == 0) {
        static char directory[PATH_MAX];
        strcpy(directory, make(leaf, "threads"));
        put(directory, "cgroup.type", "threaded");
        pthread_t thread;
        must(pthread_create(&thread, NULL, into_threads, directory) == 0);
        remain();
    }
    return 1;
}

/* ---- outside ---- */

static int emigrant(char **arguments)
{
    if (child() == 0) {
        go(*arguments);
        in_place();
        remain();
    }
    return 1;
}

static int deaf_emigrant(char **arguments)
{
    if (child() == 0) {
        go(*arguments);
        must(setsid() == getpid());
        ignore_all_signals();
        in_place();
        remain();
    }
    return 1;
}

static int stopped_emigrant(char **arguments)
{
    pid_t pid = child();
    if (pid == 0) {
        go(*arguments);
        in_place();
        raise(SIGSTOP);
        remain();
    }
    must_stop(pid);
    return 1;
}

/* More emigrants than one message of the guard can list. */
static int many_emigrants(char **arguments)
{
    go(*arguments);
    for (int at = 0; at < 700; at++)
        if (child() == 0) {
            in_place();
            remain();
        }
    in_place();
    return 701;
}

/* A subreaper with children, one of which is back in the job. */
static int family_of_emigrants(char **arguments)
{
    find(*arguments);
    if (child() == 0) {
        go(*arguments);
        must(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
        for (int at = 0; at < 3; at++)
            if (child() == 0) {
                if (at == 2)
                    go(leaf);
                in_place();
                remain();
            }
        in_place();
        remain();
    }
    return 4;
}

/* In /proc the process looks like a zombie, but its other thread lives. */
static int headless_emigrant(char **arguments)
{
    if (child() == 0) {
        go(*arguments);
        lose_leader();
    }
    return 1;
}

/* Each process starts a child that continues, and ends. The number is bounded, so that this ends by itself if
 * pinfold cannot end it. */
static int fleeting_emigrant(char **arguments)
{
    if (child() == 0) {
        go(*arguments);
        for (int generation = 0; generation < 100000; generation++) {
            if (generation == 10)
                in_place();
            if (fork() != 0)
                _exit(0);
        }
        _exit(0);
    }
    return 1;
}

static int main_emigrates(char **arguments)
{
    go(*arguments);
    /* This child is born outside the job's cgroup. */
    if (child() == 0) {
        must(setsid() == getpid());
        in_place();
        remain();
    }
    in_place();
    return 2;
}

static int deaf_main_emigrates(char **arguments)
{
    signal(SIGTERM, SIG_IGN);
    return main_emigrates(arguments);
}

static const struct mode modes[] = {
    {"own-cgroup", own_cgroup},
    {"own-cgroup-of-main", own_cgroup_of_main},
    {"frozen", frozen},
    {"frozen-job", frozen_job},
    {"deep", deep},
    {"threaded", threaded},
    {"emigrant", emigrant},
    {"deaf-emigrant", deaf_emigrant},
    {"stopped-emigrant", stopped_emigrant},
    {"many-emigrants", many_emigrants},
    {"family-of-emigrants", family_of_emigrants},
    {"headless-emigrant", headless_emigrant},
    {"fleeting-emigrant", fleeting_emigrant},
    {"main-emigrates", main_emigrates},
    {"deaf-main-emigrates", deaf_main_emigrates},
    {0},
};

int main(int argc, char **argv)
{
    (void)argc;
    return escape(argv, modes);
}
