/* Prints the number of each signal that it receives, one in a line, and ends after one of them: signals LAST. The first
 * line is "ready".
 *
 * It makes raw system calls, because glibc's signal sets leave out 32 and 33. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    int last = argc > 1 ? atoi(argv[1]) : 0;
    uint64_t all = ~0ull;
    syscall(SYS_rt_sigprocmask, SIG_SETMASK, &all, NULL, sizeof all);
    dprintf(1, "ready\n");
    for (;;) {
        int signal = syscall(SYS_rt_sigtimedwait, &all, NULL, NULL, sizeof all);
        if (signal > 0)
            dprintf(1, "%d\n", signal);
        if (signal > 0 && signal == last)
            return 0;
    }
}
