/* Processes that belong to another user, or that live in namespaces of their own.
 *
 *   escape_user stay|exit MODE */
#include "in_place.h"

#define STRANGER 65534

static int another_user(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        must(setgid(STRANGER) == 0 && setuid(STRANGER) == 0 && getuid() == STRANGER);
        in_place();
        remain();
    }
    return 1;
}

static int pid_namespace(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        must(unshare(CLONE_NEWPID) == 0);
        if (child() == 0) {
            /* PID 1 of the namespace ignores signals for which it has no handler. */
            must(getpid() == 1);
            if (child() == 0) {
                must(getpid() == 2 && setsid() == 2);
                in_place();
                remain();
            }
            in_place();
            remain();
        }
        remain();
    }
    return 2;
}

static int user_namespace(char **arguments)
{
    (void)arguments;
    if (child() == 0) {
        must(unshare(CLONE_NEWUSER) == 0);
        /* No user is mapped yet. */
        must(getuid() == 65534 && setuid(0) != 0);
        in_place();
        remain();
    }
    return 1;
}

static const struct mode modes[] = {
    {"another-user", another_user},
    {"pid-namespace", pid_namespace},
    {"user-namespace", user_namespace},
    {0},
};

int main(int argc, char **argv)
{
    (void)argc;
    return escape(argv, modes);
}
