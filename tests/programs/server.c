/* A server for restarts: server PORT LOCK-FILE. It takes the lock and the port (with SO_REUSEADDR), starts two
 * grandchildren in sessions of their own that keep both and ignore SIGTERM, and prints "up". If another run still
 * holds one of them, it prints which. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static int fail(const char *what)
{
    dprintf(1, "%s: %s\n", what, strerror(errno));
    return 1;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 125;
    int lock = open(argv[2], O_RDWR | O_CREAT, 0666);
    if (lock < 0 || flock(lock, LOCK_EX | LOCK_NB))
        return fail("two at once");
    int server = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(server, (struct sockaddr *)&address, sizeof address) || listen(server, 8))
        return fail("port");
    for (int at = 0; at < 2; at++) {
        pid_t child = fork();
        if (child == 0) {
            setsid();
            signal(SIGTERM, SIG_IGN);
            if (fork() == 0)
                for (;;)
                    pause();
            _exit(0);
        }
        if (child < 0 || waitpid(child, NULL, 0) != child)
            return fail("fork");
    }
    dprintf(1, "up\n");
    for (;;)
        pause();
}
