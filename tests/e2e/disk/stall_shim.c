/*
 * Between a program and the C library: as long as a control file names a directory, syncs of files in it wait, as they do
 * on a disk that has stopped answering. Loaded with LD_PRELOAD; see stalls.rs.
 *
 * A file named after it in another directory tells that a thread waits. While it waits a thread hears no signal, as one that waits for a disk. One thing is kinder than that: SIGKILL ends it.
 * Not stopped: writes, which the kernel takes into its memory, and msync, which neither PostgreSQL nor the store uses here.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The directory whose syncs wait now; empty for none. */
static void stalled(char *directory, size_t size) {
    directory[0] = 0;
    const char *control = getenv("STALL_CONTROL");
    int fd = control == NULL ? -1 : (int)syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC, 0);
    if (fd < 0) return;
    long length = syscall(SYS_read, fd, directory, size - 1);
    directory[length > 0 ? length : 0] = 0;
    syscall(SYS_close, fd);
}

static int must_wait(int fd) {
    char directory[4096], link[64], path[4096];
    stalled(directory, sizeof directory);
    if (directory[0] == 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    size_t prefix = strlen(directory);
    return strncmp(path, directory, prefix) == 0 && (path[prefix] == '/' || path[prefix] == 0);
}

static void wait_for_the_disk(int fd) {
    int saved = errno;
    if (must_wait(fd)) {
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_BLOCK, &all, &before);
        char mark[4096];
        snprintf(mark, sizeof mark, "%s/%ld", getenv("STALL_WAITING"), syscall(SYS_gettid));
        int told = (int)syscall(SYS_openat, AT_FDCWD, mark, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (told >= 0) syscall(SYS_close, told);
        while (must_wait(fd)) usleep(10000);
        unlink(mark);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    errno = saved;
}

int fsync(int fd) {
    wait_for_the_disk(fd);
    return (int)syscall(SYS_fsync, fd);
}

int fdatasync(int fd) {
    wait_for_the_disk(fd);
    return (int)syscall(SYS_fdatasync, fd);
}

int sync_file_range(int fd, off64_t at, off64_t count, unsigned flags) {
    wait_for_the_disk(fd);
    return (int)syscall(SYS_sync_file_range, fd, at, count, flags);
}
