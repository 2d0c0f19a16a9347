/* Uses resources as requested.
 *
 *   use hog BYTES        touches this much memory, then waits for a signal
 *   use burn SECONDS     keeps a CPU busy for this time of the clock
 *   use grandchild BYTES SECONDS  a grandchild touches the memory and uses this CPU time; then all exit 0, and
 *                        the CPU time of all is printed
 *   use storm            forks children that wait, forever
 *   use orphan-oom BYTES a child hogs and is killed; then this process sends SIGKILL to itself
 *   use count FILE       writes a growing number to the file, over and over
 *   use death-signal     prints the signal that it receives when its parent dies, and its user and groups
 *   use become-root      with the set-user-ID bit: becomes root permanently, as sudo does, reports it, and waits in a
 *                        session of its own, where the signals of an ordinary user cannot end it
 *   use write FILE BYTES writes this number of bytes and waits until they are on the disk */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(clockid_t clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static void burn(clockid_t clock, double for_seconds)
{
    double until = seconds(clock) + for_seconds;
    while (seconds(clock) < until)
        for (volatile int i = 0; i < 10000; i++)
            ;
}

static void hog(size_t bytes)
{
    char *memory = malloc(bytes);
    if (!memory)
        _exit(3);
    for (size_t at = 0; at < bytes; at += 4096)
        ((volatile char *)memory)[at] = 1;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    const char *first = argc > 2 ? argv[2] : "0", *second = argc > 3 ? argv[3] : "0";
    if (!strcmp(mode, "hog")) {
        hog(strtoull(first, NULL, 0));
        puts("holds");
        fflush(stdout);
        pause();
    } else if (!strcmp(mode, "burn")) {
        burn(CLOCK_MONOTONIC, atof(first));
    } else if (!strcmp(mode, "grandchild")) {
        if (!fork()) {
            if (!fork()) {
                hog(strtoull(first, NULL, 0));
                burn(CLOCK_PROCESS_CPUTIME_ID, atof(second));
                _exit(0);
            }
            wait(NULL);
            _exit(0);
        }
        wait(NULL);
        /* Measured by getrusage for the grandchild, as the value to compare with. */
        struct rusage of[2];
        getrusage(RUSAGE_SELF, &of[0]);
        getrusage(RUSAGE_CHILDREN, &of[1]);
        double total = 0;
        for (int at = 0; at < 2; at++)
            total += of[at].ru_utime.tv_sec + of[at].ru_stime.tv_sec +
                     (of[at].ru_utime.tv_usec + of[at].ru_stime.tv_usec) / 1e6;
        printf("%f\n", total);
    } else if (!strcmp(mode, "storm")) {
        for (;;) {
            pid_t child = fork();
            if (!child)
                for (;;)
                    pause();
            if (child < 0)
                usleep(1000);
        }
    } else if (!strcmp(mode, "orphan-oom")) {
        int status;
        if (!fork()) {
            hog(strtoull(first, NULL, 0));
            pause();
        }
        wait(&status);
        if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
            return 4;
        kill(getpid(), SIGKILL);
    } else if (!strcmp(mode, "count")) {
        int fd = open(first, O_WRONLY | O_CREAT, 0644);
        for (unsigned long count = 1;; count++) {
            char text[32];
            int length = snprintf(text, sizeof text, "%lu\n", count);
            if (pwrite(fd, text, length, 0) != length)
                return 5;
        }
    } else if (!strcmp(mode, "death-signal")) {
        int death = 0;
        gid_t groups[64];
        prctl(PR_GET_PDEATHSIG, &death);
        printf("%d %d:%d", death, getuid(), getgid());
        for (int at = 0, count = getgroups(64, groups); at < count; at++)
            printf(" %d", groups[at]);
        puts("");
    } else if (!strcmp(mode, "become-root")) {
        if (setresuid(0, 0, 0))
            return 8;
        setsid();
        puts("is root");
        fflush(stdout);
        for (;;)
            pause();
    } else if (!strcmp(mode, "write")) {
        int fd = open(first, O_WRONLY | O_CREAT | O_TRUNC, 0644);
        static char block[1 << 20];
        for (long left = atol(second); left > 0; left -= sizeof block)
            if (write(fd, block, sizeof block) != sizeof block)
                return 6;
        return fsync(fd) ? 7 : 0;
    } else {
        return 2;
    }
    return 0;
}
