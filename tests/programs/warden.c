/* Runs a command as its subreaper, and reports, when the command has ended, which of its descendants still live.
 *
 *   warden SURVIVORS-FILE COMMAND [ARG...]
 *
 * Everything that escapes from the command becomes a child of this process, so "no child left" is the proof.
 * Survivors are written to the file, one in a line (pid, then the command line), and killed. It ends as the command
 * did: with its exit code, or by the signal that ended it. It forwards SIGTERM, SIGINT, SIGHUP and SIGQUIT to the
 * command. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t command;

static void pass_on(int signal)
{
    kill(command, signal == SIGUSR1 ? SIGKILL : signal);
}

static int parent_of(pid_t pid)
{
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return -1;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return -1;
    text[length] = 0;
    char *end = strrchr(text, ')');
    char state;
    int parent, threads;
    if (!end || sscanf(end + 2, "%c %d %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %d", &state, &parent,
                       &threads) != 3)
        return -1;
    /* With other threads, only the first thread has ended, and the process lives. */
    return (state == 'Z' || state == 'X') && threads <= 1 ? -1 : parent;
}

static void tell(FILE *file, pid_t pid)
{
    char path[64], line[4096];
    snprintf(path, sizeof path, "/proc/%d/cmdline", pid);
    int fd = open(path, O_RDONLY);
    ssize_t length = fd < 0 ? 0 : read(fd, line, sizeof line - 1);
    if (fd >= 0)
        close(fd);
    for (ssize_t at = 0; at < length; at++)
        if (!line[at])
            line[at] = ' ';
    line[length > 0 ? length : 0] = 0;
    fprintf(file, "%d %s\n", pid, line);
}

/* Writes every living child of ours to the file, and kills it. */
static int survivors(FILE *file)
{
    int found = 0;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc && (entry = readdir(proc))) {
        pid_t pid = atoi(entry->d_name);
        if (pid > 0 && parent_of(pid) == getpid()) {
            tell(file, pid);
            kill(pid, SIGKILL);
            found++;
        }
    }
    if (proc)
        closedir(proc);
    return found;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        return 125;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    /* glibc's posix_spawn leaves its own two signals ignored (2.36), and signal() does not accept them. */
    for (int signal = 32; signal < 34; signal++) {
        unsigned long action[4] = {(unsigned long)SIG_DFL, 0, 0, 0};
        syscall(SYS_rt_sigaction, signal, action, NULL, 8);
    }
    int file = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0)
        return 125;
    /* These signals are blocked from before the command exists until its pid is known, and then forwarded. */
    int passed[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1};
    sigset_t early, callers;
    sigemptyset(&early);
    for (unsigned at = 0; at < sizeof passed / sizeof *passed; at++)
        sigaddset(&early, passed[at]);
    sigprocmask(SIG_BLOCK, &early, &callers);
    command = fork();
    if (command == 0) {
        /* The caller of the tests may ignore some of them, as a shell does for its background jobs. */
        for (unsigned at = 0; at < sizeof passed / sizeof *passed; at++)
            signal(passed[at], SIG_DFL);
        sigprocmask(SIG_SETMASK, &callers, NULL);
        execvp(argv[2], argv + 2);
        _exit(127);
    }
    struct sigaction action = {.sa_handler = pass_on, .sa_flags = SA_RESTART};
    for (unsigned at = 0; at < sizeof passed / sizeof *passed; at++)
        sigaction(passed[at], &action, NULL);
    sigprocmask(SIG_UNBLOCK, &early, NULL);
    /* The survivors must not keep the pipes of this process open. */
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    int status;
    while (waitpid(command, &status, 0) < 0)
        if (errno != EINTR)
            return 125;
    FILE *report = fdopen(file, "w");
    /* The guard has left its job by now, so every living process is a survivor. Zombies of ours do not count. */
    for (;;) {
        survivors(report);
        if (waitpid(-1, NULL, __WALL) < 0 && errno == ECHILD)
            break;
    }
    fclose(report);
    if (WIFSIGNALED(status)) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        signal(WTERMSIG(status), SIG_DFL);
        sigset_t all;
        sigemptyset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        raise(WTERMSIG(status));
    }
    return WEXITSTATUS(status);
}
