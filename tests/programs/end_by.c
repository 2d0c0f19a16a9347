/* Ends itself by the given signal: end_by NUMBER. It writes no core file. */
#define _GNU_SOURCE
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    kill(getpid(), argc > 1 ? atoi(argv[1]) : 0);
    return 99;
}
