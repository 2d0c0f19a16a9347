/* Leaves a child in a session of its own that holds a listening socket.
 *
 *   port ADDRESS PORT */
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 3)
        return 98;
    int reuse = 1, away[2], listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    if (inet_aton(argv[1], &address.sin_addr) == 0 || pipe(away) != 0 ||
        setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse) != 0 ||
        bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 1) != 0)
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
