/* Attempts to gain privileges. With the set-user-ID bit, or with file capabilities, `become` shows whether they work. */
#include "attack.h"
#include <linux/capability.h>
#include <grp.h>
#include <sys/resource.h>

static uint64_t capabilities(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    if (syscall(SYS_capget, &header, data))
        return ~0ULL;
    return data[0].permitted | (uint64_t)data[1].permitted << 32;
}

/* Denied if this process has neither the privileges of root nor a capability. */
ATTEMPT(become)
{
    errno = EPERM;
    return geteuid() == 0 || capabilities() ? 0 : -1;
}
ATTEMPT(become_root) { return setresuid(0, 0, 0); }
ATTEMPT(change_groups) { return setgroups(0, NULL); }
ATTEMPT(raise_ambient) { return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_SYS_ADMIN, 0, 0); }
ATTEMPT(allow_new_privileges) { return prctl(PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0); }
ATTEMPT(has_new_privileges)
{
    errno = EPERM;
    return prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1 ? -1 : 0;
}
ATTEMPT(raise_limit)
{
    struct rlimit core;
    errno = EPERM;
    return getrlimit(RLIMIT_CORE, &core) || core.rlim_max > 1 ? 0 : -1;
}
/* A dump of the memory, which another program could get. */
ATTEMPT(dump_core)
{
    int child = fork(), status;
    if (!child)
        abort();
    errno = EPERM;
    return child < 0 || waitpid(child, &status, 0) < 0 || WCOREDUMP(status) ? 0 : -1;
}

MAIN(NAMED(become), NAMED(become_root), NAMED(change_groups), NAMED(raise_ambient), NAMED(allow_new_privileges),
     NAMED(has_new_privileges), NAMED(raise_limit), NAMED(dump_core))
