/* Measures whole programs against each other: every round runs each command once, in a random order, so that other load
 * on the machine affects all of them alike.
 *
 *   paired ROUNDS COMMAND... [@@ COMMAND...]...
 *
 * The time is measured from posix_spawn until waitpid. The first command is the reference: "ratio" is the median over
 * the rounds of a command's time divided by the time of the reference in the same round. */
#define _GNU_SOURCE
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

enum { MAX_COMMANDS = 32, WARM_UP = 10 };
extern char **environ;

static double now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static double run(char **command)
{
    double begun = now_us();
    pid_t pid;
    int status, error = posix_spawnp(&pid, command[0], NULL, NULL, command, environ);
    if (error) {
        fprintf(stderr, "paired: %s: %s\n", command[0], strerror(error));
        exit(1);
    }
    waitpid(pid, &status, 0);
    double took = now_us() - begun;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
        fprintf(stderr, "paired: %s failed (wait status %#x)\n", command[0], status);
        exit(1);
    }
    return took;
}

static int compare(const void *left, const void *right)
{
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

static double median(double *sorted, int count)
{
    return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

int main(int argc, char **argv)
{
    char **commands[MAX_COMMANDS];
    double *times[MAX_COMMANDS], *ratios[MAX_COMMANDS];
    int count = 0, rounds = argc > 2 ? atoi(argv[1]) : 0;
    if (rounds < 1) {
        fprintf(stderr, "usage: paired ROUNDS COMMAND... [@@ COMMAND...]...\n");
        return 2;
    }
    commands[count++] = argv + 2;
    for (int i = 2; i < argc; i++)
        if (strcmp(argv[i], "@@") == 0 && count < MAX_COMMANDS) {
            argv[i] = NULL;
            commands[count++] = argv + i + 1;
        }
    for (int i = 0; i < count; i++) {
        times[i] = calloc(rounds, sizeof(double));
        ratios[i] = calloc(rounds, sizeof(double));
    }
    srand(1);
    for (int round = -WARM_UP; round < rounds; round++) {
        int order[MAX_COMMANDS];
        for (int i = 0; i < count; i++) {
            int other = rand() % (i + 1);
            order[i] = order[other];
            order[other] = i;
        }
        for (int i = 0; i < count; i++) {
            double took = run(commands[order[i]]);
            if (round >= 0)
                times[order[i]][round] = took;
        }
    }
    for (int i = 0; i < count; i++)
        for (int round = 0; round < rounds; round++)
            ratios[i][round] = times[i][round] / times[0][round];
    printf("  median us    min us   ratio   command\n");
    for (int i = 0; i < count; i++) {
        qsort(times[i], rounds, sizeof(double), compare);
        qsort(ratios[i], rounds, sizeof(double), compare);
        printf("%11.0f %9.0f %7.2f  ", median(times[i], rounds), times[i][0], median(ratios[i], rounds));
        for (char **word = commands[i]; *word; word++) {
            char *name = strrchr(*word, '/');
            printf(" %s", name && name[1] ? name + 1 : *word);
        }
        printf("\n");
    }
}
