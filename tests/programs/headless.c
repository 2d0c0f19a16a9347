/* A main process and a descendant whose first threads have exited while another thread lives: in /proc both look
 * like zombies. Both ignore SIGTERM, and the descendant has a session of its own. Prints "ready" when both are in
 * this state. */
#include "in_place.h"

static int up[2];

static void *descendant_lives(void *argument)
{
    while (state_of("/proc/self/stat") != 'Z')
        sched_yield();
    must(write(up[1], "x", 1) == 1);
    remain();
    return argument;
}

static void *main_lives(void *argument)
{
    while (state_of("/proc/self/stat") != 'Z')
        sched_yield();
    must(write(OUT, "ready\n", 6) == 6);
    remain();
    return argument;
}

int main(void)
{
    pthread_t thread;
    char byte;
    must(dup2(1, OUT) == OUT && pipe(up) == 0);
    signal(SIGTERM, SIG_IGN);
    if (child() == 0) {
        must(setsid() == getpid());
        must(pthread_create(&thread, NULL, descendant_lives, NULL) == 0);
        pthread_exit(NULL);
    }
    must(read(up[0], &byte, 1) == 1);
    must(pthread_create(&thread, NULL, main_lives, NULL) == 0);
    pthread_exit(NULL);
}
