/* Attempts on files: PROGRAM ATTEMPT PATH [OTHER PATH]. PATH is the file that the job may not use; the other path is in
 * a directory that it may write. */
#include "attack.h"
#include <sys/inotify.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/xattr.h>
#include <dirent.h>

static char text[4352];
static const char *joined(const char *first, const char *second)
{
    snprintf(text, sizeof text, "%s%s", first, second);
    return text;
}

ATTEMPT(read_file) { return open(args[0], O_RDONLY); }
ATTEMPT(write_file) { return open(args[0], O_WRONLY); }
ATTEMPT(append_file) { return open(args[0], O_WRONLY | O_APPEND); }
ATTEMPT(run_file)
{
    execl(args[0], args[0], NULL);
    return -1;
}
ATTEMPT(list) { return opendir(args[0]) ? 0 : -1; }
ATTEMPT(read_by_symlink)
{
    unlink(args[1]);
    return symlink(args[0], args[1]) ? -1 : open(args[1], O_RDONLY);
}
ATTEMPT(read_by_hard_link) { return link(args[0], args[1]) ? -1 : open(args[1], O_RDONLY); }
ATTEMPT(read_by_rename) { return rename(args[0], args[1]) ? -1 : open(args[1], O_RDONLY); }
ATTEMPT(read_by_exchange) { return renameat2(AT_FDCWD, args[0], AT_FDCWD, args[1], RENAME_EXCHANGE); }
ATTEMPT(read_by_dots)
{
    return chdir(args[1]) ? -1 : open(joined("../../../../../../../../..", args[0]), O_RDONLY);
}
ATTEMPT(read_by_proc_root) { return open(joined("/proc/self/root", args[0]), O_RDONLY); }
ATTEMPT(read_by_proc_cwd) { return chdir("/") ? -1 : open(joined("/proc/self/cwd", args[0]), O_RDONLY); }
ATTEMPT(read_by_path_descriptor)
{
    int fd = open(args[0], O_PATH);
    snprintf(text, sizeof text, "/proc/self/fd/%d", fd);
    return fd < 0 ? -1 : open(text, O_RDONLY);
}
ATTEMPT(truncate_on_open) { return open(args[0], O_RDONLY | O_TRUNC); }
ATTEMPT(truncate_by_path) { return truncate(args[0], 0); }
ATTEMPT(create) { return open(args[0], O_CREAT | O_EXCL | O_WRONLY, 0600); }
ATTEMPT(create_temporary) { return open(args[0], O_TMPFILE | O_RDWR, 0600); }
ATTEMPT(make_directory) { return mkdir(args[0], 0700); }
ATTEMPT(remove_file) { return unlink(args[0]); }
ATTEMPT(remove_directory) { return rmdir(args[0]); }
ATTEMPT(make_fifo) { return mkfifo(args[0], 0600); }
ATTEMPT(make_null) { return mknod(args[0], S_IFCHR | 0600, makedev(1, 3)); }
ATTEMPT(make_block) { return mknod(args[0], S_IFBLK | 0600, makedev(7, 0)); }
/* Standard input is an inherited descriptor that is read-only. */
ATTEMPT(reopen_for_writing) { return open("/proc/self/fd/0", O_WRONLY); }
ATTEMPT(inherited_truncate) { return ftruncate(0, 0); }
/* No other descriptor may have been passed on. */
ATTEMPT(leaked_descriptor)
{
    for (int fd = 3; fd < 4096; fd++)
        if (fcntl(fd, F_GETFD) >= 0)
            return fd;
    errno = EBADF;
    return -1;
}

ATTEMPT(change_mode) { return chmod(args[0], 0640); }
ATTEMPT(change_times) { return utimes(args[0], NULL); }
ATTEMPT(change_owner) { return chown(args[0], -1, getgid()); }
ATTEMPT(change_attribute) { return setxattr(args[0], "user.pinfold", "x", 1, 0); }
ATTEMPT(copy_to_outside) { return rename(args[1], args[0]); }
/* Makes so many files in the working directory. */
ATTEMPT(make_files)
{
    for (int count = number(0); count > 0; count--) {
        snprintf(text, sizeof text, "%d", count);
        int fd = open(text, O_CREAT | O_EXCL | O_WRONLY, 0600);
        if (fd < 0 || close(fd))
            return -1;
    }
    return 0;
}
/* Exchanges two names again and again, until the directory in the third argument is gone. */
ATTEMPT(exchange_for_ever)
{
    puts("ready");
    fflush(stdout);
    for (long count = 0; count % 64 || !access(args[2], F_OK); count++)
        renameat2(AT_FDCWD, args[0], AT_FDCWD, args[1], RENAME_EXCHANGE);
    return 0;
}

ATTEMPT(self_write)
{
    int fd = open(args[0], O_CREAT | O_RDWR | O_TRUNC, 0600);
    if (fd < 0 || write(fd, "x", 1) != 1 || ftruncate(fd, 0) || fchmod(fd, 0644))
        return -1;
    return rename(args[0], joined(args[0], ".new")) || unlink(text) ? -1 : 0;
}
/* A file that moves to another directory, both writable. */
ATTEMPT(self_move)
{
    char directory[4352], moved[4400];
    snprintf(directory, sizeof directory, "%s.d", args[0]);
    snprintf(moved, sizeof moved, "%s/moved", directory);
    int fd = open(args[0], O_CREAT | O_WRONLY, 0600);
    if (fd < 0 || mkdir(directory, 0700) || rename(args[0], moved) || link(moved, args[0]))
        return -1;
    return unlink(moved) || unlink(args[0]) || rmdir(directory) || symlink("x", args[0]) || unlink(args[0]) ? -1 : 0;
}
ATTEMPT(self_null)
{
    int fd = open("/dev/null", O_WRONLY | O_CREAT | O_TRUNC, 0600);
    return fd < 0 || write(fd, "x", 1) != 1 || open("/dev/urandom", O_RDONLY) < 0 ? -1 : 0;
}
ATTEMPT(self_library) { return open("/etc/passwd", O_RDONLY) < 0 || !opendir("/usr/lib") ? -1 : 0; }

MAIN(NAMED(read_file), NAMED(write_file), NAMED(append_file), NAMED(run_file), NAMED(list), NAMED(read_by_symlink),
     NAMED(read_by_hard_link), NAMED(read_by_rename), NAMED(read_by_exchange), NAMED(read_by_dots),
     NAMED(read_by_proc_root), NAMED(read_by_proc_cwd), NAMED(read_by_path_descriptor), NAMED(truncate_on_open),
     NAMED(truncate_by_path), NAMED(create), NAMED(create_temporary), NAMED(make_directory), NAMED(remove_file),
     NAMED(remove_directory), NAMED(make_fifo), NAMED(make_null), NAMED(make_block), NAMED(reopen_for_writing),
     NAMED(inherited_truncate), NAMED(leaked_descriptor), NAMED(change_mode), NAMED(change_times),
     NAMED(change_owner), NAMED(change_attribute), NAMED(copy_to_outside), NAMED(make_files), NAMED(exchange_for_ever), NAMED(self_write), NAMED(self_move),
     NAMED(self_null), NAMED(self_library))
