/* Attempts to use calls that administer the kernel, or that open a way around the sandbox. */
#include "attack.h"
#include <linux/keyctl.h>
#include <mqueue.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>

/* struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size,
 * cgroup. */
static long with_clone3(uint64_t flags, uint64_t cgroup)
{
    uint64_t clone_args[11] = {[0] = flags, [4] = SIGCHLD, [10] = cgroup};
    long pid = syscall(SYS_clone3, clone_args, sizeof clone_args);
    if (!pid)
        _exit(0);
    return pid;
}

static long with_clone(unsigned long flags)
{
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (!pid)
        _exit(0);
    return pid;
}

ATTEMPT(clone3) { return with_clone3(0, 0); }
/* The argument is the directory of a cgroup: Landlock does not check O_PATH. */
ATTEMPT(clone3_into_cgroup)
{
    int fd = open(args[0] ? args[0] : "/", O_PATH);
    return fd < 0 ? -1 : with_clone3(0x200000000ULL, fd);
}
ATTEMPT(clone_user) { return with_clone(CLONE_NEWUSER); }
ATTEMPT(clone_mounts) { return with_clone(CLONE_NEWUSER | CLONE_NEWNS); }
ATTEMPT(clone_pids) { return with_clone(CLONE_NEWPID); }
ATTEMPT(unshare_user) { return unshare(CLONE_NEWUSER); }
ATTEMPT(unshare_network) { return unshare(CLONE_NEWUSER | CLONE_NEWNET); }
ATTEMPT(unshare_cgroup) { return unshare(CLONE_NEWCGROUP); }
ATTEMPT(unshare_time) { return unshare(0x80); }
ATTEMPT(join_namespace)
{
    int fd = open("/proc/self/ns/user", O_RDONLY);
    return setns(fd < 0 ? 0 : fd, CLONE_NEWUSER);
}
ATTEMPT(mount_tmpfs) { return mount("none", "/tmp", "tmpfs", 0, ""); }
ATTEMPT(unmount) { return umount2("/proc", MNT_DETACH); }
ATTEMPT(change_root) { return chroot("/"); }
ATTEMPT(pivot) { return syscall(SYS_pivot_root, "/", "/"); }
ATTEMPT(new_mount) { return syscall(SYS_fsopen, "tmpfs", 0); }
ATTEMPT(clone_tree) { return syscall(SYS_open_tree, AT_FDCWD, "/", 1); }
ATTEMPT(set_mount) { return syscall(442, AT_FDCWD, "/", 0, NULL, 0); }
ATTEMPT(by_handle) { return syscall(SYS_open_by_handle_at, AT_FDCWD, NULL, 0); }
ATTEMPT(bpf) { return syscall(SYS_bpf, 0, NULL, 0); }
ATTEMPT(perf) { return syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0); }
ATTEMPT(user_fault) { return syscall(SYS_userfaultfd, O_CLOEXEC); }
ATTEMPT(ring)
{
    static char parameters[120];
    return syscall(SYS_io_uring_setup, 4, parameters);
}
ATTEMPT(key_add) { return syscall(SYS_add_key, "user", "pinfold", "x", 1, KEY_SPEC_PROCESS_KEYRING); }
ATTEMPT(key_request) { return syscall(SYS_request_key, "user", "pinfold", NULL, 0); }
ATTEMPT(key_control) { return syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_USER_SESSION_KEYRING, 0); }
ATTEMPT(shared_memory) { return shmctl(shmget(IPC_PRIVATE, 4096, 0600), IPC_RMID, NULL); }
ATTEMPT(semaphores) { return semctl(semget(IPC_PRIVATE, 1, 0600), 0, IPC_RMID); }
ATTEMPT(messages) { return msgctl(msgget(IPC_PRIVATE, 0600), IPC_RMID, NULL); }
ATTEMPT(message_queue) { return mq_open("/pinfold-attack", O_RDONLY) < 0 && errno == ENOENT ? 0 : -1; }
ATTEMPT(kernel_log) { return syscall(SYS_syslog, 3, NULL, 0); }
ATTEMPT(module) { return syscall(SYS_init_module, "", 0, ""); }
ATTEMPT(kexec) { return syscall(SYS_kexec_load, 0, 0, NULL, 0); }
ATTEMPT(swap) { return syscall(SYS_swapoff, "/"); }
ATTEMPT(host_name) { return sethostname("x", 1); }
ATTEMPT(set_time) { return syscall(SYS_clock_settime, 0, NULL); }

/* Terminal input of another process. The descriptor is no terminal, so that ENOTTY means "passed the filter". */
static long terminal(unsigned long request)
{
    int fd = open("/dev/null", O_RDWR);
    return fd < 0 || (syscall(SYS_ioctl, fd, request, "x") < 0 && errno == EPERM) ? -1 : 0;
}
ATTEMPT(type_input) { return terminal(TIOCSTI); }
ATTEMPT(type_input_high_bit) { return terminal(TIOCSTI | 1UL << 32); }
/* Input for the controlling terminal, which is standard input. */
ATTEMPT(type_here) { return ioctl(0, TIOCSTI, "x"); }
ATTEMPT(type_here_high_bit) { return syscall(SYS_ioctl, 0, TIOCSTI | 1UL << 32, "x"); }
ATTEMPT(console) { return terminal(TIOCLINUX); }

ATTEMPT(newer_call) { return syscall(900); }
#ifdef __x86_64__
ATTEMPT(x32) { return syscall(0x40000000 | SYS_getpid); }
/* getpid of i386 is 20. */
ATTEMPT(old_interrupt)
{
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(20) : "memory");
    return result;
}
#endif

static void *thread(void *argument) { return argument; }
ATTEMPT(self_thread)
{
    pthread_t id;
    errno = pthread_create(&id, NULL, thread, NULL);
    return errno || pthread_join(id, NULL) ? -1 : 0;
}
ATTEMPT(self_fork)
{
    int child = fork();
    if (!child)
        _exit(0);
    return child < 0 ? -1 : waitpid(child, NULL, 0);
}
ATTEMPT(self_files)
{
    return memfd_create("x", 0) < 0 || eventfd(0, 0) < 0 || mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
}
ATTEMPT(self_unshare) { return unshare(CLONE_FILES | CLONE_FS); }

MAIN(NAMED(clone3), NAMED(clone3_into_cgroup), NAMED(clone_user), NAMED(clone_mounts), NAMED(clone_pids),
     NAMED(unshare_user), NAMED(unshare_network), NAMED(unshare_cgroup), NAMED(unshare_time), NAMED(join_namespace),
     NAMED(mount_tmpfs), NAMED(unmount), NAMED(change_root), NAMED(pivot), NAMED(new_mount), NAMED(clone_tree),
     NAMED(set_mount), NAMED(by_handle), NAMED(bpf), NAMED(perf), NAMED(user_fault), NAMED(ring), NAMED(key_add),
     NAMED(key_request), NAMED(key_control), NAMED(shared_memory), NAMED(semaphores), NAMED(messages),
     NAMED(message_queue), NAMED(kernel_log), NAMED(module), NAMED(kexec), NAMED(swap), NAMED(host_name),
     NAMED(set_time), NAMED(type_input), NAMED(type_input_high_bit), NAMED(type_here), NAMED(type_here_high_bit),
     NAMED(console), NAMED(newer_call),
#ifdef __x86_64__
     NAMED(x32), NAMED(old_interrupt),
#endif
     NAMED(self_thread), NAMED(self_fork), NAMED(self_files), NAMED(self_unshare))
