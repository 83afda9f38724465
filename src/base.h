/*
 * base.h — what every other file stands on: errors, overflow-checked sizes, aligned memory, whole-file and atomic file
 * access, hashing, the clock. Knows nothing of models. Layer 0.
 */
#ifndef XL_BASE_H
#define XL_BASE_H

#include "xlstm.h"

#include <stdarg.h>
#include <stdio.h>

#define XL_ALIGN 64u /* bytes: one cache line, one zmm register */
#define XL_COUNT(a) (sizeof(a) / sizeof((a)[0]))
#define XL_MIN(a, b) ((a) < (b) ? (a) : (b))
#define XL_MAX(a, b) ((a) > (b) ? (a) : (b))

/* Writes code and message into err (NULL allowed) and returns the code, so that callers can `return xl_fail(...)`.
 * The message is one line; control characters in it (hostile names) are replaced by '?'. */
int xl_fail(xlstm_error *err, xlstm_code code, const char *format, ...) __attribute__((format(printf, 3, 4)));
#ifdef __clang_analyzer__ /* tells it that a failure is never 0 */
#define xl_fail(err, code, ...) ((void)xl_fail(err, code, __VA_ARGS__), (code))
#endif

/* Where warnings go; either function pointer may be NULL. */
typedef struct xl_log {
    xlstm_log_fn fn;
    void *user;
} xl_log;
void xl_logf(const xl_log *log, xlstm_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* out = a * b or a + b; false on overflow. */
static inline bool xl_mul(size_t *out, size_t a, size_t b) { return !__builtin_mul_overflow(a, b, out); }
static inline bool xl_add(size_t *out, size_t a, size_t b) { return !__builtin_add_overflow(a, b, out); }
static inline size_t xl_round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

/* XL_ALIGN-aligned, zeroed only by xl_calloc; NULL on failure with err set. Free with xl_release (== free). Large
 * blocks ask for huge pages. */
void *xl_alloc(size_t bytes, xlstm_error *err);
void *xl_calloc(size_t n, size_t size, xlstm_error *err);
void *xl_grow(void *old, size_t bytes, xlstm_error *err); /* realloc; old stays valid on failure */
char *xl_strdup(const char *s, xlstm_error *err);
char *xl_printf(xlstm_error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));
void xl_release(void *memory);

/* A growing byte string; `failed` is set once and then sticks, so that only the end needs checking. */
typedef struct xl_text {
    char *data; /* NUL-terminated whenever size > 0 or after xl_text_end */
    size_t size, capacity;
    bool failed;
} xl_text;
void xl_text_add(xl_text *t, const char *bytes, size_t n);
void xl_text_addf(xl_text *t, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Hands the buffer over (NUL-terminated), or NULL with err set. */
char *xl_text_end(xl_text *t, size_t *size, xlstm_error *err);

/* A whole file mapped read-only; bytes is NULL for an empty file. */
typedef struct xl_map {
    const uint8_t *bytes;
    size_t size;
    int fd; /* kept open for posix_fadvise; -1 when closed */
} xl_map;
int xl_map_open(xl_map *map, const char *path, xlstm_error *err);
/* Tells the kernel that [offset, offset + bytes) will be read soon / is done with (drops it from memory and cache). */
void xl_map_want(const xl_map *map, size_t offset, size_t bytes);
void xl_map_drop(const xl_map *map, size_t offset, size_t bytes);
/* Brings the whole file into memory as fast as read() would; touching a mapping page by page takes several times as long. */
void xl_map_fetch(const xl_map *map);
void xl_map_close(xl_map *map);

/* Reads a file of at most `limit` bytes into memory, NUL-terminated (size without it). Free with xl_release. */
int xl_read_file(char **out, size_t *size, const char *path, size_t limit, xlstm_error *err);
bool xl_is_folder(const char *path);
bool xl_is_file(const char *path);
char *xl_join(const char *folder, const char *name, xlstm_error *err); /* "folder/name" */

/* Atomic write: bytes go to a file without a name in the folder of `path`, or of what that links to, which replaces it on
 * commit after fsync. A process killed at any moment leaves the old file or the new one, never a mixture and no half file.
 * A kill leaves a temporary file, `path`.XXXXXX, in two cases: between the two system calls that replace an older file, and
 * where the system has no nameless files. Anything but a regular file is refused. */
typedef struct xl_writer {
    FILE *file;
    char *path, *temporary; /* temporary: NULL while the file has no name */
    uint64_t written;
} xl_writer;
int xl_writer_open(xl_writer *w, const char *path, xlstm_error *err);
int xl_writer_put(xl_writer *w, const void *bytes, size_t n, xlstm_error *err);
int xl_writer_commit(xl_writer *w, xlstm_error *err); /* closes, whatever happens */
void xl_writer_abort(xl_writer *w);                   /* safe on a zeroed or committed writer */

uint64_t xl_hash(const void *bytes, size_t n, uint64_t seed); /* XXH3, 64 bit */

double xl_now(void); /* seconds, monotonic */

#endif
