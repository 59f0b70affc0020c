/*
 * Between a program and the C library: writes down, in order, what the program does to the files of one directory, so that
 * a test can work out what would be left of them if the power failed at any moment. Loaded with LD_PRELOAD; see power.rs.
 *
 *   record = kind, two numbers, two lengths, two texts or bytes
 *   O open, C create, W write, T size, B and E begin and end of a sync, R rename, U unlink, D mkdir, M a line on standard output
 *
 * Nothing is really synced: the test decides what counts as durable, and the machine need not wait.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FDS 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1;
static const char *root;
static size_t root_length;
static int64_t room = -1; /* bytes until the disk is full; negative: for ever */
static struct { char tracked; ino_t file; } fds[FDS];

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POWER_TRACE"), *full = getenv("POWER_ROOM");
    root = getenv("POWER_ROOT");
    if (path == NULL || root == NULL) return;
    root_length = strlen(root);
    if (full != NULL) room = atoll(full);
    trace = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
}

static void give_up(const char *what) {
    dprintf(2, "power_shim: %s is not followed\n", what);
    _exit(99);
}

static int inside(const char *path) {
    return trace >= 0 && path != NULL && strncmp(path, root, root_length) == 0
        && (path[root_length] == '/' || path[root_length] == 0);
}

static int tracked(int fd) { return trace >= 0 && fd >= 0 && fd < FDS && fds[fd].tracked; }

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length > 0) {
        long done = syscall(SYS_write, trace, at, length);
        if (done <= 0) _exit(98);
        at += done;
        length -= (size_t)done;
    }
}

/* The caller holds the lock. */
static void tell(char kind, uint64_t a, uint64_t b, const void *one, uint32_t one_length, const void *two, uint32_t two_length) {
    char head[25];
    head[0] = kind;
    memcpy(head + 1, &a, 8);
    memcpy(head + 9, &b, 8);
    memcpy(head + 17, &one_length, 4);
    memcpy(head + 21, &two_length, 4);
    put(head, sizeof head);
    put(one, one_length);
    put(two, two_length);
}

static void tell_path(char kind, uint64_t a, const char *one, const char *two) {
    tell(kind, a, 0, one, (uint32_t)strlen(one), two, two == NULL ? 0 : (uint32_t)strlen(two));
}

/* Whether so many bytes still fit. The caller holds the lock. */
static int fits(size_t bytes) {
    if (room < 0) return 1;
    if ((int64_t)bytes > room) {
        room = 0;
        errno = ENOSPC;
        return 0;
    }
    room -= (int64_t)bytes;
    return 1;
}

static int opened(const char *path, int flags, mode_t mode) {
    if (!inside(path)) return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before;
    int there = stat(path, &before) == 0;
    int fd = -1;
    if (there || !(flags & O_CREAT) || fits(1)) fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    struct stat now;
    if (fd >= 0 && fstat(fd, &now) == 0) {
        if (fd >= FDS) give_up("so many open files");
        tell_path(there ? 'O' : 'C', now.st_ino, path, NULL);
        if (there && (flags & O_TRUNC) && S_ISREG(now.st_mode)) tell('T', now.st_ino, 0, NULL, 0, NULL, 0);
        fds[fd].tracked = 1;
        fds[fd].file = now.st_ino;
    }
    pthread_mutex_unlock(&lock);
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        return opened(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    if (fd >= 0 && fd < FDS) fds[fd].tracked = 0;
    return (int)syscall(SYS_close, fd);
}

static ssize_t written(int fd, const void *bytes, size_t count, off64_t at) {
    pthread_mutex_lock(&lock);
    ssize_t done = -1;
    if (fits(count)) {
        tell('W', fds[fd].file, (uint64_t)at, bytes, (uint32_t)count, NULL, 0);
        done = syscall(SYS_pwrite64, fd, bytes, count, at);
        if (done != (ssize_t)count) give_up("a short write");
    }
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    if (trace >= 0 && fd == 1) {
        pthread_mutex_lock(&lock);
        tell('M', 0, 0, bytes, (uint32_t)count, NULL, 0);
        pthread_mutex_unlock(&lock);
    }
    if (!tracked(fd)) return syscall(SYS_write, fd, bytes, count);
    off64_t at = syscall(SYS_lseek, fd, 0, SEEK_CUR);
    ssize_t done = written(fd, bytes, count, at);
    if (done > 0) syscall(SYS_lseek, fd, done, SEEK_CUR);
    return done;
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    return tracked(fd) ? written(fd, bytes, count, at) : syscall(SYS_pwrite64, fd, bytes, count, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) { return pwrite64(fd, bytes, count, at); }

ssize_t writev(int fd, const struct iovec *pieces, int count) {
    if (tracked(fd) || (trace >= 0 && fd == 1)) give_up("writev");
    return syscall(SYS_writev, fd, pieces, count);
}

int ftruncate64(int fd, off64_t length) {
    if (!tracked(fd)) return (int)syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&lock);
    tell('T', fds[fd].file, (uint64_t)length, NULL, 0, NULL, 0);
    int done = (int)syscall(SYS_ftruncate, fd, length);
    pthread_mutex_unlock(&lock);
    return done;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int synced(int fd) {
    pthread_mutex_lock(&lock);
    tell('B', fds[fd].file, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    /* Whoever does not wait for the answer gets a moment to do something wrong. */
    usleep(50);
    pthread_mutex_lock(&lock);
    tell('E', fds[fd].file, 0, NULL, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    return 0;
}

int fsync(int fd) { return tracked(fd) ? synced(fd) : (int)syscall(SYS_fsync, fd); }

int fdatasync(int fd) { return tracked(fd) ? synced(fd) : (int)syscall(SYS_fdatasync, fd); }

/* No promise of anything: it says nothing about the disk's own cache or the file's size. */
int sync_file_range(int fd, off64_t at, off64_t count, unsigned flags) {
    return tracked(fd) ? 0 : (int)syscall(SYS_sync_file_range, fd, at, count, flags);
}

int rename(const char *from, const char *to) {
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    if (done == 0 && inside(from)) tell_path('R', 0, from, to);
    pthread_mutex_unlock(&lock);
    return done;
}

int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (done == 0 && inside(path)) tell_path('U', 0, path, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}

int mkdir(const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (done == 0 && inside(path)) tell_path('D', 0, path, NULL);
    pthread_mutex_unlock(&lock);
    return done;
}
