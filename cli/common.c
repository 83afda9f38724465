/*
 * common.c — messages, output, input texts and Ctrl-C for every command; common.h says how they behave. Opening models
 * is in model.c.
 */
#include "common.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- messages and memory ---------------------------------------------------------------------------------------- */

static void vcomplain(const char *format, va_list list)
{
    output_flush(); /* keeps the order on a terminal */
    fputs("xlstm: ", stderr);
    vfprintf(stderr, format, list);
    fputc('\n', stderr);
}

void complain(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vcomplain(format, list);
    va_end(list);
}

int fail(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vcomplain(format, list);
    va_end(list);
    return EXIT_RUNTIME;
}

int fail_usage(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vcomplain(format, list);
    va_end(list);
    return EXIT_USAGE;
}

static xlstm_error last;

int fail_error(const xlstm_error *err)
{
    last = *err;
    return fail("%s", err->message);
}

const char *last_error(void)
{
    return last.message;
}

void *must(void *memory)
{
    if (memory)
        return memory;
    complain("out of memory");
    exit(EXIT_RUNTIME);
}

void buffer_add(buffer *b, const char *bytes, size_t n)
{
    if (b->size + n + 1 > b->capacity) {
        b->capacity = (b->size + n + 1) * 2;
        b->data = must(realloc(b->data, b->capacity));
    }
    if (n)
        memcpy(b->data + b->size, bytes, n);
    b->size += n;
    b->data[b->size] = 0;
}

void buffer_addf(buffer *b, const char *format, ...)
{
    char *text = NULL;
    va_list list;
    va_start(list, format);
    int n = vasprintf(&text, format, list);
    va_end(list);
    if (n < 0)
        must(NULL);
    buffer_add(b, text, (size_t)n);
    free(text);
}

/* Length of the valid UTF-8 character at `at`, 0 if there is none. */
static size_t utf8_length(const unsigned char *at, size_t left)
{
    static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t n = at[0] < 0x80 ? 1 : at[0] >> 5 == 6 ? 2 : at[0] >> 4 == 14 ? 3 : at[0] >> 3 == 30 ? 4 : 0;
    if (n == 0 || n > left)
        return 0;
    if (n == 1)
        return 1;
    unsigned code = at[0] & (0x7fu >> n);
    for (size_t i = 1; i < n; i++) {
        if (at[i] >> 6 != 2)
            return 0;
        code = code << 6 | (at[i] & 0x3fu);
    }
    return code < least[n] || code > 0x10ffff || (code >= 0xd800 && code < 0xe000) ? 0 : n;
}

void buffer_add_utf8(buffer *b, const char *text, size_t size)
{
    for (size_t i = 0; i < size;) {
        size_t n = utf8_length((const unsigned char *)text + i, size - i);
        buffer_add(b, n ? text + i : "\xef\xbf\xbd", n ? n : 3);
        i += n ? n : 1;
    }
}

void buffer_free(buffer *b)
{
    free(b->data);
    *b = (buffer){0};
}

const char *fault_text(char out[FAULT_TEXT], const xlstm_fault *f)
{
    buffer b = {0};
    buffer_addf(&b, "origin: token position %llu (id %d), ", (unsigned long long)f->position, f->token);
    if (f->block >= 0)
        buffer_addf(&b, "block %d, ", f->block);
    buffer_addf(&b, "stage %s, ", f->stage);
    if (f->head >= 0)
        buffer_addf(&b, "head %d, ", f->head);
    buffer_addf(&b, "channel %u: value %g", f->channel, (double)f->value);
    if (f->input[0])
        buffer_addf(&b, "; its input %s lies in %g .. %g with %llu non-finite values", f->input, (double)f->input_min,
                    (double)f->input_max, (unsigned long long)f->input_nonfinite);
    if (f->culprit[0])
        buffer_addf(&b, "; the stored weight %s is not finite", f->culprit);
    snprintf(out, FAULT_TEXT, "%s", b.data);
    buffer_free(&b);
    return out;
}

double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

const char *human_bytes(char out[32], uint64_t bytes)
{
    static const char *const units[] = {"B", "KB", "MB", "GB", "TB"};
    double x = (double)bytes;
    size_t unit = 0;
    while (x >= 1000.0 && unit + 1 < COUNT_OF(units)) {
        x /= 1000.0;
        unit++;
    }
    snprintf(out, 32, unit ? "%.1f %s" : "%.0f %s", x, units[unit]);
    return out;
}

const char *human_count(char out[32], uint64_t count)
{
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%llu", (unsigned long long)count);
    char *to = out;
    for (int i = 0; i < n; i++) {
        if (i && (n - i) % 3 == 0)
            *to++ = ',';
        *to++ = digits[i];
    }
    *to = 0;
    return out;
}

/* ---- results ---------------------------------------------------------------------------------------------------- */

static int output_errno; /* of the first failure */
static void interrupt_restarts(bool on);

/* Ctrl-C makes reads return, but a write that it cut short would be lost in stdio's buffer. */
static void output_check(bool ok)
{
    if (!ok && !output_errno)
        output_errno = errno ? errno : EIO;
    interrupt_restarts(false);
}

void output(const char *bytes, size_t n)
{
    if (!n || output_errno)
        return;
    interrupt_restarts(true);
    output_check(fwrite(bytes, 1, n, stdout) == n);
}

void outputf(const char *format, ...)
{
    if (output_errno)
        return;
    va_list list;
    va_start(list, format);
    interrupt_restarts(true);
    output_check(vprintf(format, list) >= 0);
    va_end(list);
}

void output_flush(void)
{
    if (output_errno)
        return;
    interrupt_restarts(true);
    output_check(!fflush(stdout));
}

bool output_broken(void)
{
    return output_errno != 0;
}

int output_finish(int status)
{
    output_flush();
    if (!output_errno || output_errno == EPIPE)
        return status;
    return fail("cannot write to standard output: %s", strerror(output_errno));
}

void output_json_string(const char *text, size_t size)
{
    buffer clean = {0};
    buffer_add(&clean, "", 0);
    buffer_add_utf8(&clean, text, size);
    json_t *value = must(json_stringn(clean.data, clean.size));
    char *quoted = must(json_dumps(value, JSON_ENCODE_ANY));
    output(quoted, strlen(quoted));
    free(quoted);
    json_decref(value);
    buffer_free(&clean);
}

void output_json_ids(const int32_t *ids, size_t n)
{
    output("[", 1);
    for (size_t i = 0; i < n; i++)
        outputf("%s%d", i ? "," : "", ids[i]);
    output("]", 1);
}

int check_output(const char *option, const char *path)
{
    struct stat st;
    if (!path)
        return EXIT_OK;
    if (!*path)
        return fail_usage("%s: the name of the file is empty", option);
    if (stat(path, &st) == 0)
        return S_ISREG(st.st_mode) ? EXIT_OK
                                   : fail("%s: expected the name of a file to write, found a %s", path,
                                          S_ISDIR(st.st_mode) ? "folder" : "device or pipe, which cannot be replaced");
    if (errno != ENOENT)
        return fail("%s: cannot write: %s", path, strerror(errno));
    if (lstat(path, &st) == 0)
        return fail("%s: cannot write: the link leads nowhere", path);
    const char *slash = strrchr(path, '/');
    char *folder = slash ? must(strndup(path, (size_t)(slash - path + (slash == path)))) : must(strdup("."));
    int status = EXIT_OK;
    if (access(folder, W_OK | X_OK))
        status = fail("%s: cannot write in the folder %s: %s", path, folder, strerror(errno));
    free(folder);
    return status;
}

/* ---- input texts ------------------------------------------------------------------------------------------------ */

int read_whole(buffer *out, const char *path)
{
    FILE *file = strcmp(path, "-") ? fopen(path, "rb") : stdin;
    if (!file)
        return fail("cannot open %s: %s", path, strerror(errno));
    char block[1 << 16];
    size_t n;
    buffer_add(out, "", 0);
    while ((n = fread(block, 1, sizeof block, file)) > 0)
        buffer_add(out, block, n);
    bool bad = ferror(file);
    int error = errno;
    if (file != stdin)
        fclose(file);
    return bad ? fail("cannot read %s: %s", strcmp(path, "-") ? path : "standard input", strerror(error)) : EXIT_OK;
}

/* Writes the code point as UTF-8; returns the number of bytes. */
static size_t utf8_put(char *to, unsigned code)
{
    if (code < 0x80) {
        to[0] = (char)code;
        return 1;
    }
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--) {
        to[i] = (char)(0x80 | (code & 0x3f));
        code >>= 6;
    }
    to[0] = (char)(0xf00u >> n | code);
    return n;
}

void unescape(char *text, size_t *size)
{
    static const char plain[][2] = {{'n', '\n'}, {'t', '\t'}, {'r', '\r'}, {'0', '\0'}, {'\\', '\\'},
                                    {'"', '"'},  {'\'', '\''}, {'e', '\033'}};
    static const struct {
        char letter;
        int digits;
    } hex[] = {{'x', 2}, {'u', 4}, {'U', 8}};
    char *to = text;
    const char *end = text + *size;
    for (const char *at = text; at < end;) {
        if (*at != '\\' || at + 1 == end) {
            *to++ = *at++;
            continue;
        }
        size_t i = 0;
        while (i < COUNT_OF(plain) && plain[i][0] != at[1])
            i++;
        if (i < COUNT_OF(plain)) {
            *to++ = plain[i][1];
            at += 2;
            continue;
        }
        for (i = 0; i < COUNT_OF(hex); i++) {
            if (hex[i].letter != at[1])
                continue;
            unsigned code = 0;
            int n = 0;
            while (n < hex[i].digits && at + 2 + n < end && isxdigit((unsigned char)at[2 + n])) {
                char c = (char)tolower((unsigned char)at[2 + n++]);
                code = code << 4 | (unsigned)(c <= '9' ? c - '0' : c - 'a' + 10);
            }
            if (n < hex[i].digits || code > 0x10ffff)
                continue;
            if (hex[i].letter == 'x')
                *to++ = (char)code;
            else
                to += utf8_put(to, code);
            at += 2 + n;
            break;
        }
        if (i == COUNT_OF(hex))
            *to++ = *at++;
    }
    *size = (size_t)(to - text);
    *to = 0;
}

/* ---- interruption ----------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t interrupt_flag;

static void on_interrupt(int number)
{
    if (interrupt_flag) {
        signal(number, SIG_DFL);
        raise(number);
    }
    interrupt_flag = 1;
}

static bool interrupt_watched;

static void interrupt_handle(int flags)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = flags};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

void interrupt_watch(void)
{
    interrupt_watched = true;
    interrupt_handle(0);
}

static void interrupt_restarts(bool on)
{
    if (interrupt_watched)
        interrupt_handle(on ? SA_RESTART : 0);
}

bool interrupted(void)
{
    return interrupt_flag;
}

void interrupt_clear(void)
{
    interrupt_flag = 0;
}

/* ---- progress --------------------------------------------------------------------------------------------------- */

progress progress_start(const model_options *options)
{
    return (progress){.started = now(), .on = !options->quiet && isatty(STDERR_FILENO)};
}

void progress_show(progress *p, const char *what, uint64_t done, uint64_t total)
{
    enum { WIDTH = 30 };
    double t = now();
    if (!p->on || total == 0 || t - p->started < 0.5 || t - p->drawn < 0.05)
        return;
    p->drawn = t;
    p->visible = true;
    double part = (double)done / (double)total;
    char bar[WIDTH + 1];
    for (int i = 0; i < WIDTH; i++)
        bar[i] = i < part * WIDTH ? '#' : '.';
    bar[WIDTH] = 0;
    fprintf(stderr, "\r%s [%s] %3.0f %%", what, bar, part * 100.0);
    const double passed = t - p->started;
    if (passed > 3 && part > 0.01) { /* before, it would be a guess */
        const double left = passed / part * (1.0 - part) + 0.5;
        fprintf(stderr, ", %.0f:%02.0f left", floor(left / 60), floor(fmod(left, 60)));
    }
    fputs("\033[K", stderr);
    fflush(stderr);
}

void progress_end(progress *p)
{
    if (p->visible)
        fputs("\r\033[K", stderr);
    p->visible = false;
}
