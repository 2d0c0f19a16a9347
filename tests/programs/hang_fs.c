/* A file system (FUSE) that answers only the INIT request, for as long as a command runs. A process that accesses it
 * waits in the kernel, and after SIGKILL in state D (fuse(4)): the kernel waits until a request that was read is
 * answered.
 *
 *   hang_fs DIRECTORY COMMAND [ARG...]     as root, in a mount namespace of its own
 *
 * Writes "held" to standard output when a process waits. Ends as the command did, when all waiting processes have
 * ended too. On SIGUSR1 it answers every request with an error. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int failed(const char *what)
{
    fprintf(stderr, "hang_fs: %s: %s\n", what, strerror(errno));
    return 98;
}

static void release(int signal)
{
    (void)signal;
}

/* Handles a request, and returns whether it makes a process wait. */
static int serve(int fuse)
{
    static char request[1 << 17];
    if (read(fuse, request, sizeof request) < (ssize_t)sizeof(struct fuse_in_header))
        return 0;
    const struct fuse_in_header *in = (const void *)request;
    if (in->opcode != FUSE_INIT)
        return in->opcode != FUSE_FORGET && in->opcode != FUSE_INTERRUPT;
    const struct fuse_init_in *asked = (const void *)(in + 1);
    struct {
        struct fuse_out_header header;
        struct fuse_init_out init;
    } answer = {.header = {.len = sizeof answer, .unique = in->unique},
                .init = {.major = FUSE_KERNEL_VERSION, .minor = asked->minor, .max_write = 4096}};
    return write(fuse, &answer, sizeof answer) != sizeof answer;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 98;
    int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fuse < 0)
        return failed("/dev/fuse");
    char options[128];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fuse);
    if (mount("hang", argv[1], "fuse", MS_NOSUID | MS_NODEV, options))
        return failed("mount");
    sigaction(SIGUSR1, &(struct sigaction){.sa_handler = release}, NULL);
    /* Makes this process the parent of the waiting processes, once they are orphaned. */
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    pid_t child = fork();
    if (child == 0) {
        execvp(argv[2], argv + 2);
        _exit(failed(argv[2]));
    }
    int pidfd = syscall(SYS_pidfd_open, child, 0);
    struct pollfd events[] = {{.fd = fuse, .events = POLLIN}, {.fd = pidfd, .events = POLLIN}};
    while (poll(events, 2, -1) > 0 && !events[1].revents)
        if (events[0].revents && serve(fuse) && write(1, "held\n", 5) != 5)
            break;
    int status;
    /* This ends every request with an error. */
    if (!events[1].revents)
        close(fuse);
    waitpid(child, &status, 0);
    close(fuse);
    while (waitpid(-1, NULL, __WALL) > 0 || errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
