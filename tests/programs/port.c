/* Leaves a child in a session of its own that holds a listening socket.
 *
 *   port ADDRESS PORT   (127.0.0.1 or ::1, and the like) */
#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 3)
        return 98;
    int six = strchr(argv[1], ':') != NULL;
    int reuse = 1, away[2], listener = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(atoi(argv[2]))};
    struct sockaddr *address = six ? (struct sockaddr *)&v6 : (struct sockaddr *)&v4;
    void *bytes = six ? (void *)&v6.sin6_addr : (void *)&v4.sin_addr;
    if (inet_pton(six ? AF_INET6 : AF_INET, argv[1], bytes) != 1 || pipe(away) != 0 ||
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse) != 0 ||
        bind(listener, address, six ? sizeof v6 : sizeof v4) != 0 || listen(listener, 1) != 0)
        return 97;
    if (fork() == 0) {
        char gone = setsid() == getpid();
        if (write(away[1], &gone, 1) == 1)
            for (;;)
                pause();
    }
    char gone = 0;
    return read(away[0], &gone, 1) == 1 && gone ? 0 : 96;
}
