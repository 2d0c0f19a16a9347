/* Set-user-ID root: becomes root permanently, prints "in place", and keeps running, as a program under sudo does.
 *
 * become_root [CGROUP.PROCS]     moves to that cgroup first, as pam_systemd allows */
#include <fcntl.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (setuid(0))
        return 1;
    if (argc > 1) {
        int procs = open(argv[1], O_WRONLY | O_CLOEXEC);
        if (procs < 0 || write(procs, "0", 1) != 1)
            return 1;
    }
    if (write(1, "in place\n", 9) != 9)
        return 1;
    for (;;)
        pause();
}
