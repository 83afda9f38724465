/*
 * line.c — line input, see line.h. libedit does the editing; the keys come through read_key, which understands what
 * terminals send around pasted text (ESC [ 200 ~ ... ESC [ 201 ~): a line break in between becomes a visible mark
 * that stands for it in the line, instead of sending half of what was pasted.
 */
#include "line.h"

#include <errno.h>
#include <histedit.h>
#include <limits.h>
#include <locale.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <wchar.h>

#define BREAK_MARK L'\x21b5' /* a return arrow; typed by hand it is a line break too */
#define BREAK_MARK_UTF8 "\xe2\x86\xb5"

struct line_reader {
    EditLine *edit; /* NULL: no terminal, plain lines */
    History *history;
    char *path;
    const char *prompt;
    bool pasting;
    bool was_interrupted;
    wchar_t queue[8]; /* keys read ahead while looking for a paste mark */
    int queued, taken;
    char *plain; /* getline's */
    size_t plain_size;
};

/* ---- keys ------------------------------------------------------------------------------------------------------- */

/* One byte from the terminal: 1, 0 at the end, -1 on error or Ctrl-C. Ctrl-C is let in only while waiting, so that one
 * that comes just before is not slept through. */
static int read_byte(line_reader *r, unsigned char *byte)
{
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    struct pollfd wait = {.fd = STDIN_FILENO, .events = POLLIN};
    int ready = 0;
    while (!interrupted() && ready <= 0) {
        ready = ppoll(&wait, 1, NULL, &before);
        if (ready < 0 && errno != EINTR)
            break;
    }
    r->was_interrupted = interrupted();
    ssize_t n = ready > 0 && !r->was_interrupted ? read(STDIN_FILENO, byte, 1) : -1;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return (int)n;
}

/* One character; invalid UTF-8 is taken byte by byte. */
static int read_character(line_reader *r, wchar_t *out)
{
    mbstate_t state = {0};
    for (int i = 0; i < MB_LEN_MAX; i++) {
        unsigned char byte;
        int n = read_byte(r, &byte);
        if (n <= 0)
            return n;
        size_t used = mbrtowc(out, (const char *)&byte, 1, &state);
        if (used == (size_t)-1) {
            *out = L'?';
            return 1;
        }
        if (used != (size_t)-2)
            return 1;
    }
    *out = L'?';
    return 1;
}

static int read_key(EditLine *edit, wchar_t *out)
{
    static const wchar_t begin[] = L"\033[200~", end[] = L"\033[201~";
    enum { MARK = 6 };
    line_reader *r;
    el_get(edit, EL_CLIENTDATA, &r);
    for (;;) {
        if (r->taken < r->queued) {
            *out = r->queue[r->taken++];
            return 1;
        }
        r->queued = r->taken = 0;
        wchar_t key;
        int n = read_character(r, &key);
        if (n <= 0)
            return n;
        if (key == L'\0') /* a Ctrl-D from before the line editor listened arrives as this, and would fill the line */
            continue;
        if (key == L'\033') { /* read on only while it may be a paste mark */
            const wchar_t *mark = r->pasting ? end : begin;
            int length = 1;
            r->queue[0] = key;
            while (length < MARK && r->queue[length - 1] == mark[length - 1]) {
                n = read_character(r, &r->queue[length]);
                if (n <= 0)
                    return n;
                length++;
            }
            if (length == MARK && r->queue[MARK - 1] == mark[MARK - 1]) {
                r->pasting = !r->pasting;
                continue;
            }
            r->queued = length;
            continue;
        }
        if (r->pasting && (key == L'\r' || key == L'\n'))
            key = BREAK_MARK;
        else if (r->pasting && key < L' ')
            key = L' '; /* a tab or another control character would be a command */
        *out = key;
        return 1;
    }
}

static char *show_prompt(EditLine *edit)
{
    line_reader *r;
    el_get(edit, EL_CLIENTDATA, &r);
    return (char *)(uintptr_t)r->prompt;
}

/* ---- reader ----------------------------------------------------------------------------------------------------- */

line_reader *line_new(const char *history_file)
{
    line_reader *r = must(calloc(1, sizeof *r));
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return r;
    setlocale(LC_CTYPE, "");
    if (MB_CUR_MAX == 1)
        setlocale(LC_CTYPE, "C.UTF-8");
    r->edit = el_init("xlstm", stdin, stdout, stderr);
    r->history = history_init();
    if (!r->edit || !r->history) {
        line_free(r);
        return must(calloc(1, sizeof *r));
    }
    HistEvent event;
    history(r->history, &event, H_SETSIZE, 1000);
    history(r->history, &event, H_SETUNIQUE, 1);
    el_set(r->edit, EL_CLIENTDATA, r);
    el_set(r->edit, EL_PROMPT, show_prompt);
    el_set(r->edit, EL_EDITOR, "emacs");
    el_set(r->edit, EL_HIST, history, r->history);
    el_set(r->edit, EL_GETCFN, read_key);
    el_set(r->edit, EL_BIND, "^R", "em-inc-search-prev", NULL);
    el_set(r->edit, EL_BIND, "\033[3~", "ed-delete-next-char", NULL);
    el_set(r->edit, EL_BIND, "\033[1;5C", "em-next-word", NULL);
    el_set(r->edit, EL_BIND, "\033[1;5D", "ed-prev-word", NULL);
    if (history_file) {
        r->path = must(strdup(history_file));
        history(r->history, &event, H_LOAD, r->path);
    }
    return r;
}

void line_free(line_reader *r)
{
    if (!r)
        return;
    if (r->history && r->path) {
        HistEvent event;
        history(r->history, &event, H_SAVE, r->path);
        chmod(r->path, 0600);
    }
    if (r->edit)
        el_end(r->edit);
    if (r->history)
        history_end(r->history);
    free(r->path);
    free(r->plain);
    free(r);
}

bool line_is_terminal(const line_reader *r)
{
    return r->edit != NULL;
}

static line_result read_terminal(buffer *out, line_reader *r, const char *prompt)
{
    r->prompt = prompt;
    r->was_interrupted = r->pasting = false;
    fputs("\033[?2004h", stdout); /* mark pasted text, please */
    fflush(stdout);
    int n = 0;
    const char *line = el_gets(r->edit, &n);
    fputs("\033[?2004l", stdout);
    if (r->was_interrupted) {
        interrupt_clear();
        el_reset(r->edit);
        fputs("^C\n", stdout);
        fflush(stdout);
        return LINE_INTERRUPTED;
    }
    fflush(stdout);
    if (!line || n <= 0) {
        fputc('\n', stdout);
        return LINE_END;
    }
    if (strspn(line, " \n") < (size_t)n) {
        HistEvent event;
        history(r->history, &event, H_ENTER, line);
    }
    size_t size = (size_t)n;
    if (line[size - 1] == '\n')
        size--;
    for (size_t i = 0; i < size;) {
        bool mark = size - i >= 3 && !memcmp(line + i, BREAK_MARK_UTF8, 3);
        buffer_add(out, mark ? "\n" : line + i, 1);
        i += mark ? 3 : 1;
    }
    return LINE_READ;
}

static line_result read_plain(buffer *out, line_reader *r)
{
    ssize_t n = getline(&r->plain, &r->plain_size, stdin);
    if (n < 0) {
        if (!interrupted()) {
            if (ferror(stdin))
                complain("cannot read standard input: %s", strerror(errno));
            return LINE_END;
        }
        clearerr(stdin);
        return LINE_INTERRUPTED;
    }
    if (n > 0 && r->plain[n - 1] == '\n')
        n--;
    if (n > 0 && r->plain[n - 1] == '\r')
        n--;
    buffer_add(out, r->plain, (size_t)n);
    return LINE_READ;
}

line_result line_read(buffer *out, line_reader *r, const char *prompt)
{
    out->size = 0;
    buffer_add(out, "", 0);
    for (;;) {
        line_result result = r->edit ? read_terminal(out, r, prompt) : read_plain(out, r);
        if (result != LINE_READ)
            return result == LINE_END && out->size ? LINE_READ : result;
        if (out->size == 0 || out->data[out->size - 1] != '\\')
            return LINE_READ;
        out->data[out->size - 1] = '\n';
        prompt = ". ";
    }
}

/* ---- history file ----------------------------------------------------------------------------------------------- */

char *history_path(void)
{
    const char *base = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char *folder = NULL, *path = NULL;
    if (base && *base == '/') {
        if (asprintf(&folder, "%s/xlstm", base) < 0)
            return NULL;
    } else if (!home || !*home || asprintf(&folder, "%s/.local/state/xlstm", home) < 0) {
        return NULL;
    }
    for (char *at = folder + 1; *at; at++) { /* every folder on the way */
        if (*at != '/')
            continue;
        *at = 0;
        mkdir(folder, 0700);
        *at = '/';
    }
    if ((mkdir(folder, 0700) && errno != EEXIST) || asprintf(&path, "%s/history", folder) < 0)
        path = NULL;
    free(folder);
    return path;
}
