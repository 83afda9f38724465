/*
 * base.c — errors, memory, text, files, hashing, clock. See base.h.
 */
#include "base.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

/* ---- errors and log --------------------------------------------------------------------------------------------- */

static void make_one_line(char *s)
{
    for (; *s != '\0'; s++) {
        if ((unsigned char)*s < 0x20 || *s == 0x7f) *s = '?';
    }
}

int(xl_fail)(xlstm_error *err, xlstm_code code, const char *format, ...) /* in brackets: base.h may have a macro */
{
    if (err != NULL) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->message, sizeof(err->message), format, args);
        va_end(args);
        make_one_line(err->message);
        err->code = code;
    }
    return code;
}

void xl_logf(const xl_log *log, xlstm_log_level level, const char *format, ...)
{
    if (log == NULL || log->fn == NULL) return;
    char line[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof(line), format, args);
    va_end(args);
    make_one_line(line);
    log->fn(log->user, level, line);
}

/* ---- memory ----------------------------------------------------------------------------------------------------- */

enum { HUGE_PAGE = 2 << 20 };

void *xl_alloc(size_t bytes, xlstm_error *err)
{
    bool large = bytes >= 4 * (size_t)HUGE_PAGE;
    size_t align = large ? HUGE_PAGE : XL_ALIGN;
    void *p = NULL;
    if (bytes > SIZE_MAX - align || posix_memalign(&p, align, xl_round_up(XL_MAX(bytes, 1u), XL_ALIGN)) != 0) {
        xl_fail(err, XLSTM_E_MEMORY, "out of memory: %zu bytes are not available", bytes);
        return NULL;
    }
    if (large) (void)madvise(p, bytes, MADV_HUGEPAGE);
    return p;
}

void *xl_calloc(size_t n, size_t size, xlstm_error *err)
{
    size_t bytes;
    if (!xl_mul(&bytes, n, size)) {
        xl_fail(err, XLSTM_E_MEMORY, "out of memory: %zu items of %zu bytes are not available", n, size);
        return NULL;
    }
    void *p = xl_alloc(bytes, err);
    if (p != NULL) memset(p, 0, bytes);
    return p;
}

void *xl_grow(void *old, size_t bytes, xlstm_error *err)
{
    void *p = realloc(old, XL_MAX(bytes, 1u));
    if (p == NULL) xl_fail(err, XLSTM_E_MEMORY, "out of memory: %zu bytes are not available", bytes);
    return p;
}

char *xl_strdup(const char *s, xlstm_error *err)
{
    size_t n = strlen(s) + 1;
    char *copy = xl_grow(NULL, n, err);
    if (copy != NULL) memcpy(copy, s, n);
    return copy;
}

char *xl_printf(xlstm_error *err, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *out = NULL;
    int n = vasprintf(&out, format, args);
    va_end(args);
    if (n < 0) {
        xl_fail(err, XLSTM_E_MEMORY, "out of memory while formatting text");
        return NULL;
    }
    return out;
}

void xl_release(void *memory) { free(memory); }

/* ---- text ------------------------------------------------------------------------------------------------------- */

static bool text_reserve(xl_text *t, size_t extra)
{
    size_t need;
    if (t->failed || !xl_add(&need, t->size, extra) || !xl_add(&need, need, 1)) {
        t->failed = true;
        return false;
    }
    if (need <= t->capacity) return true;
    size_t capacity = XL_MAX(need, XL_MAX(t->capacity + t->capacity / 2, (size_t)64));
    char *data = realloc(t->data, capacity);
    if (data == NULL) {
        t->failed = true;
        return false;
    }
    t->data = data;
    t->capacity = capacity;
    return true;
}

void xl_text_add(xl_text *t, const char *bytes, size_t n)
{
    if (!text_reserve(t, n)) return;
    if (n > 0) memcpy(t->data + t->size, bytes, n);
    t->size += n;
    t->data[t->size] = '\0';
}

void xl_text_addf(xl_text *t, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    char *piece = NULL;
    int n = vasprintf(&piece, format, args);
    va_end(args);
    if (n < 0) {
        t->failed = true;
        return;
    }
    xl_text_add(t, piece, (size_t)n);
    free(piece);
}

char *xl_text_end(xl_text *t, size_t *size, xlstm_error *err)
{
    xl_text_add(t, "", 0);
    if (t->failed) {
        free(t->data);
        *t = (xl_text){0};
        xl_fail(err, XLSTM_E_MEMORY, "out of memory while building text");
        return NULL;
    }
    char *data = t->data;
    if (size != NULL) *size = t->size;
    *t = (xl_text){0};
    return data;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static int fail_errno(xlstm_error *err, const char *path, const char *what)
{
    int code = errno;
    return xl_fail(err, code == ENOMEM ? XLSTM_E_MEMORY : XLSTM_E_IO, "%s: cannot %s: %s", path, what, strerror(code));
}

/* Opens a regular file for reading; *size receives its length. */
static int open_regular(int *fd, size_t *size, const char *path, xlstm_error *err)
{
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0) return fail_errno(err, path, "open");
    struct stat st;
    int result = XLSTM_OK;
    if (fstat(*fd, &st) != 0) {
        result = fail_errno(err, path, "stat");
    } else if (!S_ISREG(st.st_mode)) {
        result = xl_fail(err, XLSTM_E_IO, "%s: expected a regular file", path);
    } else {
        *size = (size_t)st.st_size;
    }
    if (result != XLSTM_OK) {
        close(*fd);
        *fd = -1;
    }
    return result;
}

int xl_map_open(xl_map *map, const char *path, xlstm_error *err)
{
    *map = (xl_map){.fd = -1};
    int result = open_regular(&map->fd, &map->size, path, err);
    if (result != XLSTM_OK || map->size == 0) return result;
    void *p = mmap(NULL, map->size, PROT_READ, MAP_SHARED, map->fd, 0);
    if (p == MAP_FAILED) {
        result = fail_errno(err, path, "map");
        xl_map_close(map);
        return result;
    }
    map->bytes = p;
    return XLSTM_OK;
}

/* The pages that touch [offset, offset + bytes), or with `inner` those that lie wholly inside. */
static bool page_range(const xl_map *map, size_t offset, size_t bytes, bool inner, size_t *first, size_t *count)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), end = XL_MIN(offset + bytes, map->size);
    if (map->bytes == NULL || offset >= end) return false;
    size_t low = inner ? xl_round_up(offset, page) : offset / page * page;
    size_t high = inner && end != map->size ? end / page * page : end;
    if (low >= high) return false;
    *first = low;
    *count = high - low;
    return true;
}

/* Of one request the kernel reads no more than the device's read-ahead window, so it is asked piece by piece. */
void xl_map_want(const xl_map *map, size_t offset, size_t bytes)
{
    enum { WINDOW = 128 << 10 }; /* the usual one */
    size_t first, count;
    if (!page_range(map, offset, bytes, false, &first, &count)) return;
    for (size_t at = 0; at < count; at += WINDOW) {
        (void)madvise((void *)(uintptr_t)(map->bytes + first + at), XL_MIN(count - at, (size_t)WINDOW), MADV_WILLNEED);
    }
}

void xl_map_drop(const xl_map *map, size_t offset, size_t bytes)
{
    size_t first, count;
    if (!page_range(map, offset, bytes, true, &first, &count)) return;
    (void)madvise((void *)(uintptr_t)(map->bytes + first), count, MADV_DONTNEED);
    (void)posix_fadvise(map->fd, (off_t)first, (off_t)count, POSIX_FADV_DONTNEED);
}

void xl_map_fetch(const xl_map *map)
{
#ifdef MADV_POPULATE_READ
    if (map->bytes != NULL) (void)madvise((void *)(uintptr_t)map->bytes, map->size, MADV_POPULATE_READ);
#else
    xl_map_want(map, 0, map->size);
#endif
}

void xl_map_close(xl_map *map)
{
    if (map->bytes != NULL) (void)munmap((void *)(uintptr_t)map->bytes, map->size);
    if (map->fd >= 0) (void)close(map->fd);
    *map = (xl_map){.fd = -1};
}

int xl_read_file(char **out, size_t *size, const char *path, size_t limit, xlstm_error *err)
{
    *out = NULL;
    int fd;
    size_t length = 0;
    int result = open_regular(&fd, &length, path, err);
    if (result != XLSTM_OK) return result;
    char *data = NULL;
    if (length > limit) {
        result = xl_fail(err, XLSTM_E_FORMAT, "%s: %zu bytes, expected at most %zu", path, length, limit);
        goto done;
    }
    data = xl_grow(NULL, length + 1, err);
    if (data == NULL) {
        result = XLSTM_E_MEMORY;
        goto done;
    }
    size_t have = 0;
    while (have < length) {
        ssize_t n = read(fd, data + have, length - have);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            result = fail_errno(err, path, "read");
            goto done;
        }
        if (n == 0) break; /* the file shrank while it was read */
        have += (size_t)n;
    }
    data[have] = '\0';
    *size = have;
    *out = data;
    data = NULL;
done:
    free(data);
    close(fd);
    return result;
}

bool xl_is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

bool xl_is_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

char *xl_join(const char *folder, const char *name, xlstm_error *err)
{
    size_t n = strlen(folder);
    return xl_printf(err, "%s%s%s", folder, n > 0 && folder[n - 1] == '/' ? "" : "/", name);
}

/* ---- atomic writing --------------------------------------------------------------------------------------------- */

/* Where to write for `path`: what links lead to. Only a regular file can be replaced as a whole. */
static int find_target(char **out, const char *path, xlstm_error *err)
{
    struct stat link, st;
    *out = NULL;
    if (path[0] == '\0') return xl_fail(err, XLSTM_E_IO, "the name of the file to write is empty");
    if (lstat(path, &link) != 0) {
        if (errno != ENOENT) return fail_errno(err, path, "open");
    } else if (stat(path, &st) != 0) {
        return fail_errno(err, path, "follow the link");
    } else if (!S_ISREG(st.st_mode)) {
        return xl_fail(err, XLSTM_E_IO, "%s: expected the name of a file to write, found a %s", path,
                       S_ISDIR(st.st_mode) ? "folder" : "device or pipe, which cannot be replaced as a whole");
    } else if (S_ISLNK(link.st_mode)) {
        *out = realpath(path, NULL);
        return *out != NULL ? XLSTM_OK : fail_errno(err, path, "follow the link");
    }
    *out = xl_strdup(path, err);
    return *out != NULL ? XLSTM_OK : XLSTM_E_MEMORY;
}

/* A file without a name in the folder of `path`, which vanishes with the process however that ends; -1 where the system
 * has none, or could not give it a name later. */
static int open_nameless(const char *path)
{
    int fd = -1;
#ifdef O_TMPFILE
    const char *slash = strrchr(path, '/');
    char *folder = slash == NULL ? strdup(".") : strndup(path, (size_t)(slash - path + (slash == path))), link[64];
    if (folder != NULL) fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
    free(folder);
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    if (fd >= 0 && access(link, F_OK) != 0) {
        close(fd);
        fd = -1;
    }
#else
    (void)path;
#endif
    return fd;
}

/* Makes a file under w->temporary, a name beside w->path that nobody has: opened where *fd is -1, else the nameless *fd. */
static int make_temporary(xl_writer *w, int *fd, xlstm_error *err)
{
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", *fd);
    const bool open_new = *fd < 0;
    for (unsigned attempt = 0; attempt < 100; attempt++) {
        unsigned long long number = xl_hash(w->path, strlen(w->path), (uint64_t)(xl_now() * 1e9) + attempt);
        w->temporary = xl_printf(err, "%s.%06llx", w->path, number & 0xffffff);
        if (w->temporary == NULL) return XLSTM_E_MEMORY;
        if (open_new) *fd = open(w->temporary, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (open_new ? *fd >= 0 : linkat(AT_FDCWD, link, AT_FDCWD, w->temporary, AT_SYMLINK_FOLLOW) == 0) return XLSTM_OK;
        free(w->temporary);
        w->temporary = NULL;
        if (errno != EEXIST) break;
    }
    return fail_errno(err, w->path, "create a temporary file beside it");
}

/* A file that replaces another has its mode. */
static void keep_mode(int fd, const char *path)
{
    struct stat st;
    if (stat(path, &st) == 0) (void)fchmod(fd, st.st_mode & 07777);
}

int xl_writer_open(xl_writer *w, const char *path, xlstm_error *err)
{
    *w = (xl_writer){0};
    int result = find_target(&w->path, path, err);
    if (result != XLSTM_OK) return result;
    int fd = open_nameless(w->path);
    if (fd < 0) result = make_temporary(w, &fd, err);
    if (result == XLSTM_OK) {
        keep_mode(fd, w->path);
        w->file = fdopen(fd, "wb");
        if (w->file == NULL) {
            result = fail_errno(err, w->path, "open");
            close(fd);
        }
    }
    if (result != XLSTM_OK) xl_writer_abort(w);
    return result;
}

int xl_writer_put(xl_writer *w, const void *bytes, size_t n, xlstm_error *err)
{
    if (n > 0 && fwrite(bytes, 1, n, w->file) != n) return fail_errno(err, w->path, "write");
    w->written += n;
    return XLSTM_OK;
}

/* Makes the new directory entry durable; a failure here cannot damage either file, so it is not reported. */
static void sync_folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    char *folder = slash == NULL ? strdup(".") : strndup(path, (size_t)(slash - path + (slash == path)));
    if (folder == NULL) return;
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)fsync(fd);
        close(fd);
    }
    free(folder);
}

/* Everything that `from` holds, into a new file with a name. For file systems whose nameless files stay nameless. */
static int copy_to_named(xl_writer *w, int from, xlstm_error *err)
{
    enum { BLOCK = 1 << 20 };
    int fd = -1, result = make_temporary(w, &fd, err);
    char *block = result == XLSTM_OK ? xl_grow(NULL, BLOCK, err) : NULL;
    if (result == XLSTM_OK && block == NULL) result = XLSTM_E_MEMORY;
    for (off_t at = 0; result == XLSTM_OK;) {
        ssize_t n = pread(from, block, BLOCK, at), put = 0;
        if (n == 0) break;
        for (ssize_t m; n > 0 && put < n; put += m) {
            if ((m = write(fd, block + put, (size_t)(n - put))) < 0) break;
        }
        if (n < 0 || put < n) result = fail_errno(err, w->path, "write");
        at += put;
    }
    if (result == XLSTM_OK) keep_mode(fd, w->path);
    if (result == XLSTM_OK && fsync(fd) != 0) result = fail_errno(err, w->path, "write");
    if (fd >= 0) close(fd);
    xl_release(block);
    return result;
}

/* Gives a nameless file its name or, where a file has that, a temporary one from which it is renamed over the other. */
static int give_name(xl_writer *w, xlstm_error *err)
{
    int fd = fileno(w->file);
    char link[64];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
    if (linkat(AT_FDCWD, link, AT_FDCWD, w->path, AT_SYMLINK_FOLLOW) == 0) return XLSTM_OK;
    if (errno == EEXIST && make_temporary(w, &fd, NULL) == XLSTM_OK) return XLSTM_OK;
    return copy_to_named(w, fd, err);
}

int xl_writer_commit(xl_writer *w, xlstm_error *err)
{
    int result = XLSTM_OK;
    if (fflush(w->file) != 0 || fsync(fileno(w->file)) != 0) result = fail_errno(err, w->path, "write");
    if (result == XLSTM_OK && w->temporary == NULL) result = give_name(w, err);
    if (fclose(w->file) != 0 && result == XLSTM_OK) result = fail_errno(err, w->path, "write");
    w->file = NULL;
    if (result == XLSTM_OK && w->temporary != NULL) {
        if (rename(w->temporary, w->path) != 0)
            result = fail_errno(err, w->path, "replace");
        else {
            free(w->temporary);
            w->temporary = NULL;
        }
    }
    if (result == XLSTM_OK) sync_folder_of(w->path);
    xl_writer_abort(w);
    return result;
}

void xl_writer_abort(xl_writer *w)
{
    if (w->file != NULL) (void)fclose(w->file);
    if (w->temporary != NULL) (void)unlink(w->temporary);
    free(w->temporary);
    free(w->path);
    *w = (xl_writer){0};
}

/* ---- hash, clock, version --------------------------------------------------------------------------------------- */

uint64_t xl_hash(const void *bytes, size_t n, uint64_t seed) { return XXH3_64bits_withSeed(bytes, n, seed); }

double xl_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void xlstm_free(void *memory) { free(memory); }

#define STRING_(x) #x
#define STRING(x) STRING_(x)
const char *xlstm_version(void)
{
    return STRING(XLSTM_VERSION_MAJOR) "." STRING(XLSTM_VERSION_MINOR) "." STRING(XLSTM_VERSION_PATCH);
}
