/* Writes everything that a program inherits from its caller to a file: inherited FILE [ARG...].
 *
 * It leaves out what differs between any two processes of the same caller: process ids, groups, the cgroup. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static void copy(FILE *out, const char *path, const char *const *prefixes)
{
    FILE *in = fopen(path, "re");
    char line[4096];
    fprintf(out, "%s\n", path);
    while (in && fgets(line, sizeof line, in)) {
        int wanted = !prefixes;
        for (const char *const *prefix = prefixes; prefix && *prefix; prefix++)
            wanted |= !strncmp(line, *prefix, strlen(*prefix));
        if (wanted)
            fputs(line, out);
    }
    if (in)
        fclose(in);
}

int main(int argc, char **argv)
{
    static const char *const status[] = {
        "Umask:", "Uid:", "Gid:", "Groups:", "SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:", "SigCgt:", "Cap",
        "NoNewPrivs:", "Seccomp", "Cpus_allowed:", "Mems_allowed:", "THP_enabled:", "TracerPid:", "Threads:", NULL,
    };
    char descriptors[65536];
    int length = 0;
    /* This runs before this program opens any file. */
    for (int fd = 0; fd < 1024; fd++) {
        struct stat stat;
        if (fstat(fd, &stat) < 0)
            continue;
        length += snprintf(descriptors + length, sizeof descriptors - length, "fd %d: flags %d, %x; %lx:%lx %o\n", fd,
                           fcntl(fd, F_GETFD), fcntl(fd, F_GETFL), stat.st_dev, stat.st_ino, stat.st_mode);
    }
    FILE *out = argc > 1 ? fopen(argv[1], "we") : NULL;
    if (!out)
        return 1;
    fwrite(descriptors, length, 1, out);
    for (int at = 2; at < argc; at++)
        fprintf(out, "argument %s\n", argv[at]);
    for (char **entry = environ; *entry; entry++)
        /* The shell sets these: the command's own path, and the depth of shells. */
        if (strncmp(*entry, "_=", 2) && strncmp(*entry, "SHLVL=", 6))
            fprintf(out, "environment %s\n", *entry);
    char *cwd = getcwd(NULL, 0);
    fprintf(out, "cwd %s\nsession %d\nnice %d\n", cwd ? cwd : "none", getsid(0), nice(0));
    copy(out, "/proc/self/status", status);
    copy(out, "/proc/self/limits", NULL);
    copy(out, "/proc/self/timers", NULL);
    /* It leaves out oom_score_adj, which differs (docs/differences.md). */
    copy(out, "/proc/self/coredump_filter", NULL);
    copy(out, "/proc/self/timerslack_ns", NULL);
    copy(out, "/proc/self/personality", NULL);
    return fclose(out) ? 1 : 0;
}
