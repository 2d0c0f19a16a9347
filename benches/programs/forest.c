/* Starts a fixed number of processes that only wait, and end at once on SIGTERM: forest CHILDREN. Prints "ready"
 * when all of them run. */
#include <stdlib.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    for (int left = argc > 1 ? atoi(argv[1]) : 0; left > 0; left--) {
        pid_t pid = fork();
        if (pid < 0)
            return 1;
        if (pid == 0)
            for (;;)
                pause();
    }
    if (write(1, "ready\n", 6) != 6)
        return 1;
    for (;;)
        pause();
}
