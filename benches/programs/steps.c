/* Counts what the processes of a command do. Unlike times, these counts do not depend on the load of the machine.
 *
 *   steps COMMAND...             the system calls
 *   steps -a FILE COMMAND...     the instructions in user mode; writes the address of each executed one to FILE. Each
 *                                instruction is a stop of its process (ptrace(2), PTRACE_SINGLESTEP), so this is slow.
 *
 * Prints two counts: that of the command's own process, and the sum of those of all other processes. A process that the
 * command starts is counted until it executes a program. x86-64 only. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

/* The addresses of a static program that is not relocated. */
enum { LOWEST = 0x400000, ADDRESSES = 32 << 20, MOST_PROCESSES = 4096 };
static unsigned char executed[ADDRESSES];

struct process {
    pid_t pid;
    int has_started, has_executed, in_call;
    long count;
};
static struct process processes[MOST_PROCESSES];

static void fail(const char *what)
{
    fprintf(stderr, "steps: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct process *find(pid_t pid)
{
    for (int i = 0; i < MOST_PROCESSES; i++) {
        if (processes[i].pid == pid || processes[i].pid == 0) {
            processes[i].pid = pid;
            return &processes[i];
        }
    }
    errno = E2BIG;
    fail("too many processes");
    return NULL;
}

static void record_address(pid_t pid)
{
    struct user_regs_struct registers;
    /* A process that has just been killed has no registers. */
    if (ptrace(PTRACE_GETREGS, pid, NULL, &registers) == 0 && registers.rip - LOWEST < ADDRESSES)
        executed[registers.rip - LOWEST] = 1;
}

/* Handles a stop, and returns the signal that the process receives when it continues. */
static int handle(struct process *process, int status)
{
    int signal = WSTOPSIG(status), event = status >> 16;
    if (event == PTRACE_EVENT_EXEC) {
        process->has_executed = 1;
    } else if (event == 0 && signal == (SIGTRAP | 0x80)) { /* PTRACE_O_TRACESYSGOOD */
        /* A process stops at the beginning and at the end of a system call. */
        process->in_call = !process->in_call;
        process->count += process->in_call;
    } else if (event == 0 && signal == SIGTRAP) {
        process->count++;
        record_address(process->pid);
    } else if (event == 0 && signal == SIGSTOP && !process->has_started) {
        process->has_started = 1; /* Each new process begins with a SIGSTOP from the kernel. */
    } else if (event == 0) {
        return signal;
    }
    return 0;
}

int main(int argc, char **argv)
{
    const char *file = argc > 2 && strcmp(argv[1], "-a") == 0 ? argv[2] : NULL;
    char **command = argv + (file ? 3 : 1);
    if (argc < 2 || !*command) {
        fprintf(stderr, "usage: steps [-a FILE] COMMAND...\n");
        return 2;
    }
    pid_t first = fork();
    if (first == 0) {
        if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0)
            _exit(126);
        execvp(command[0], command);
        _exit(127);
    }
    int status, code = 1;
    if (first < 0 || waitpid(first, &status, 0) < 0)
        fail("fork");
    if (!WIFSTOPPED(status)) {
        errno = ENOEXEC;
        fail(command[0]);
    }
    long options = PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC |
                   PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL;
    int step = file ? PTRACE_SINGLESTEP : PTRACE_SYSCALL;
    find(first)->has_started = 1;
    if (ptrace(PTRACE_SETOPTIONS, first, NULL, options) != 0 || ptrace(step, first, NULL, NULL) != 0)
        fail("ptrace");
    pid_t pid;
    while ((pid = waitpid(-1, &status, __WALL)) > 0) {
        struct process *process = find(pid);
        if (WIFSTOPPED(status)) {
            int signal = handle(process, status);
            ptrace(process->has_executed ? PTRACE_CONT : step, pid, NULL, signal);
        } else if (pid == first) {
            code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
    }
    long others = 0;
    for (int i = 1; i < MOST_PROCESSES; i++)
        others += processes[i].count;
    fprintf(stderr, "%ld %ld\n", processes[0].count, others);
    FILE *addresses = file ? fopen(file, "w") : NULL;
    if (file && !addresses)
        fail(file);
    for (long i = 0; addresses && i < ADDRESSES; i++)
        if (executed[i])
            fprintf(addresses, "%lx\n", i + LOWEST);
    if (addresses && fclose(addresses) != 0)
        fail(file);
    return code;
}
