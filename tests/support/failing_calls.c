/* Makes one system call fail, be cut short, or be the last thing its process does: loaded before the C library.
 *
 * Only calls that change something are counted, and only those on files below FAILING_FOLDER. The process under test
 * says by its environment when counting begins, and at which call what happens:
 *   FAILING_AT     the number of the call, from 1; 0 or unset: none
 *   FAILING_HOW    error (FAILING_ERRNO), short (half of a write is written, the rest fails), kill (before it), killed
 *                  (after it)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int count, is_ours[4096];
static char counted_for[64];

static int below(const char *path) {
    const char *folder = getenv("FAILING_FOLDER");
    return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

/* What is to happen at this call: 'e', 's', 'k', 'K' or 0. */
static int due(void) {
    const char *at = getenv("FAILING_AT"), *how = getenv("FAILING_HOW");
    if (!at || !how || atoi(at) == 0) return 0;
    if (strcmp(counted_for, at)) {
        snprintf(counted_for, sizeof counted_for, "%s", at);
        count = 0;
    }
    if (++count != atoi(at)) return 0;
    return strcmp(how, "error") == 0 ? 'e' : strcmp(how, "short") == 0 ? 's' : strcmp(how, "kill") == 0 ? 'k' : 'K';
}

static int failed(void) {
    const char *number = getenv("FAILING_ERRNO");
    errno = number ? atoi(number) : EIO;
    return -1;
}

/* How many calls were counted since FAILING_AT was set last. */
int failing_calls_counted(void) {
    return count;
}

#define REAL(name) __typeof__(name) *real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define AROUND(ours, call)                         \
    int what = (ours) ? due() : 0;                 \
    if (what == 'k') raise(SIGKILL);               \
    if (what == 'e' || what == 's') return failed(); \
    int result = call;                             \
    if (what == 'K') raise(SIGKILL);               \
    return result;

static int opened(int descriptor, int ours) {
    if (descriptor >= 0 && descriptor < 4096) is_ours[descriptor] = ours;
    return descriptor;
}

#define OPEN(name)                                                     \
    int name(const char *path, int flags, ...) {                       \
        REAL(name);                                                    \
        va_list rest;                                                  \
        va_start(rest, flags);                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                  \
        int ours = below(path);                                        \
        AROUND(ours, opened(real(path, flags, mode), ours))            \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    int what = descriptor >= 0 && descriptor < 4096 && is_ours[descriptor] ? due() : 0;
    if (what == 'k') raise(SIGKILL);
    if (what == 'e') return failed();
    if (what == 's' || what == 'K') {
        ssize_t half = real(descriptor, data, what == 's' ? size / 2 : size);
        if (what == 'K') raise(SIGKILL);
        return half > 0 ? half : failed();
    }
    return real(descriptor, data, size);
}

int fsync(int descriptor) {
    REAL(fsync);
    AROUND(descriptor >= 0 && descriptor < 4096 && is_ours[descriptor], real(descriptor))
}

int rename(const char *from, const char *to) {
    REAL(rename);
    AROUND(below(from) || below(to), real(from, to))
}

int link(const char *from, const char *to) {
    REAL(link);
    AROUND(below(from) || below(to), real(from, to))
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    REAL(linkat);
    AROUND(below(from) || below(to), real(a, from, b, to, flags))
}

int unlink(const char *path) {
    REAL(unlink);
    AROUND(below(path), real(path))
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    AROUND(below(path), real(path, mode))
}
