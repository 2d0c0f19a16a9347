/* Makes COUNT orphans that end at once, one after another: orphans COUNT. Their new parent reaps them. This program
 * prints a line and ends when its own parent has no other child left; it exits with 1 if that takes more than 20 s. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Counts the children of our parent, including zombies, except this process. */
static int siblings(void)
{
    int found = 0;
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    while (proc && (entry = readdir(proc))) {
        char path[300], text[512];
        int parent;
        snprintf(path, sizeof path, "/proc/%s/stat", entry->d_name);
        FILE *file = atoi(entry->d_name) > 0 ? fopen(path, "r") : NULL;
        if (!file)
            continue;
        size_t length = fread(text, 1, sizeof text - 1, file);
        fclose(file);
        text[length] = 0;
        char *end = strrchr(text, ')');
        if (end && sscanf(end + 2, "%*c %d", &parent) == 1 && parent == getppid() && atoi(entry->d_name) != getpid())
            found++;
    }
    if (proc)
        closedir(proc);
    return found;
}

int main(int argc, char **argv)
{
    int count = argc > 1 ? atoi(argv[1]) : 0;
    for (int at = 0; at < count; at++) {
        pid_t child = fork();
        if (child == 0) {
            pid_t orphan = fork();
            _exit(orphan < 0);
        }
        int status;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0)
            return 2;
    }
    time_t begun = time(NULL);
    while (siblings() > 0)
        if (time(NULL) - begun > 20) {
            printf("%d left\n", siblings());
            return 1;
        }
    printf("none of %d left\n", count);
    return 0;
}
