/*
 * ingest.c — `xlstm ingest`: read any amount of text into a state, at constant memory, with checkpoints that a killed run
 * goes on from.
 *
 * Ids are those of the whole text. The text passes through a window that is cut where tokenizing the parts gives the
 * same ids as tokenizing the window, well before its end; after such a place the tokenizer begins anew, so its byte
 * offset is a place to resume from. The model is fed up to chunk borders only, so that the state is bit-identical to
 * that of one prefill however the text came in.
 */
#include "generation.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    WINDOW = 256 << 10,      /* bytes tokenized at a time */
    WINDOW_LIMIT = 64 << 20, /* of a text without a place to cut */
    MARGIN = 4 << 10,        /* bytes seen behind a cut: more than any token looks ahead */
    TRIES = 24,              /* places tried before the window grows */
    TAIL = 4096,             /* bytes before a checkpoint that are compared on resuming */
};

typedef struct ingest_options {
    const char *file, *state_in, *state_out;
    uint64_t checkpoint_every;
    bool resume, json;
    model_options model;
} ingest_options;

#define FIELD(member) offsetof(ingest_options, member)
static const option_row rows[] = {
    {"file", 'f', OPTION_TEXT, FIELD(file), "FILE", "the text; - is standard input", NULL, NULL, 0, 0},
    {"state-out", 0, OPTION_TEXT, FIELD(state_out), "FILE", "where the state goes", NULL, NULL, 0, 0},
    {"state-in", 0, OPTION_TEXT, FIELD(state_in), "FILE", "begin where a saved state stands", NULL, NULL, 0, 0},
    {"checkpoint-every", 0, OPTION_COUNT, FIELD(checkpoint_every), "N", "save the state every N tokens; 0: at the end",
     "0", NULL, 0, 0},
    {"resume", 0, OPTION_FLAG, FIELD(resume), NULL,
     "go on from the checkpoint in --state-out, or begin if there is none", NULL, NULL, 0, 0},
    {"json", 'j', OPTION_FLAG, FIELD(json), NULL, "print what was done as JSON", NULL, NULL, 0, 0},
};

/* A place to resume from: nothing before it matters to the tokenizer. */
typedef struct place {
    uint64_t offset; /* in the text */
    uint64_t tail;   /* hash of the bytes before it */
    size_t n;        /* ids from here to the next place */
} place;

typedef struct ingestion {
    const ingest_options *o;
    xlstm_model *model;
    xlstm_session *session;
    const xlstm_tokenizer *tokenizer;
    const char *name;
    int fd;
    uint64_t total; /* bytes of the file; 0: not known */
    bool ended;     /* the end of the text is in the window */

    buffer window;
    uint64_t offset;             /* of the window in the text */
    unsigned char tail[TAIL];    /* the bytes before it, as a ring over offsets */
    id_list pending;             /* ids waiting to be read */
    size_t n_fed;                /* of them, read already */
    place *places;               /* [n_places]: the last one before the ids still waiting, then those among them */
    size_t n_places;
    uint64_t skip;               /* ids behind places[0] that the session has read */
    uint64_t to_drop;            /* ids still to be passed over after resuming */
    uint64_t tokens, saved_at;   /* read in this run; at the last checkpoint */
    uint64_t first_offset;       /* where this run began */
    double started, shown;
    bool line_open;
} ingestion;

/* ---- the text --------------------------------------------------------------------------------------------------- */

/* Reads until the window holds `size` bytes or the text ends. */
static int fill_window(ingestion *in, size_t size)
{
    char block[64 << 10];
    while (in->window.size < size && !in->ended) {
        size_t want = size - in->window.size;
        ssize_t n = read(in->fd, block, want < sizeof block ? want : sizeof block);
        if (n < 0 && errno == EINTR) {
            if (interrupted())
                return EXIT_OK;
            continue;
        }
        if (n < 0)
            return fail("%s: cannot read: %s", in->name, strerror(errno));
        if (n == 0)
            in->ended = true;
        else
            buffer_add(&in->window, block, (size_t)n);
    }
    return EXIT_OK;
}

static void drop_from_window(ingestion *in, size_t n)
{
    for (size_t i = n > TAIL ? n - TAIL : 0; i < n; i++)
        in->tail[(in->offset + i) % TAIL] = (unsigned char)in->window.data[i];
    if (n > 0)
        memmove(in->window.data, in->window.data + n, in->window.size - n);
    in->window.size -= n;
    in->offset += n;
}

/* FNV-1a over the last bytes before the window. */
static uint64_t tail_hash(const ingestion *in)
{
    uint64_t hash = 0xcbf29ce484222325u;
    uint64_t n = in->offset < TAIL ? in->offset : TAIL;
    for (uint64_t at = in->offset - n; at < in->offset; at++)
        hash = (hash ^ in->tail[at % TAIL]) * 0x100000001b3u;
    return hash;
}

/* ---- cutting it where the tokenizer does not notice ---------------------------------------------------------------- */

static int tokenize(const ingestion *in, size_t from, size_t to, int32_t **ids, size_t *n)
{
    xlstm_error err = {0};
    if (xlstm_tokenizer_encode(ids, n, in->tokenizer, to > from ? in->window.data + from : "", to - from, 0, &err))
        return fail_error(&err);
    return EXIT_OK;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* How good a place to cut in front of byte `at` looks: 0 not at all, 3 best. */
static int promise(const char *text, size_t at)
{
    if (((unsigned char)text[at] & 0xc0) == 0x80)
        return 0;
    if (text[at - 1] == '\n' && !is_space(text[at]))
        return 3;
    if (text[at] == ' ' && !is_space(text[at - 1]) && !is_space(text[at + 1]))
        return 2;
    return !is_space(text[at]) && !is_space(text[at - 1]) ? 1 : 0;
}

/* Tries one cut: *good if both sides by themselves give the ids of the whole, all [n]; *n_left: ids of the left one. */
static int try_cut(const ingestion *in, size_t at, const int32_t *all, size_t n, size_t *n_left, bool *good)
{
    int32_t *left = NULL, *right = NULL;
    size_t n_right = 0;
    *good = false;
    int status = tokenize(in, 0, at, &left, n_left);
    if (status == EXIT_OK && *n_left <= n && !memcmp(left, all, *n_left * sizeof *all)) {
        status = tokenize(in, at, in->window.size, &right, &n_right);
        *good = status == EXIT_OK && *n_left + n_right == n && !memcmp(right, all + *n_left, n_right * sizeof *all);
    }
    xlstm_free(left);
    xlstm_free(right);
    return status;
}

/* The last good place to cut the window, MARGIN before its end; 0 if there is none. *n: ids of the whole window, then of
 * what lies before the cut. */
static int find_cut(const ingestion *in, const int32_t *all, size_t *n, size_t *cut)
{
    const size_t whole = *n;
    size_t end = in->window.size - MARGIN, lowest = end > WINDOW / 2 ? end - WINDOW / 2 : 0;
    *cut = 0;
    for (int level = 3; level > 0; level--) {
        int tries = 0;
        for (size_t at = end; at > lowest && tries < TRIES; at--) {
            if (promise(in->window.data, at) != level)
                continue;
            bool good;
            int status = try_cut(in, at, all, whole, n, &good);
            if (status || good) {
                *cut = good ? at : 0;
                return status;
            }
            tries++;
            at -= at - lowest > 64 ? 63 : 0; /* not all tries in one odd spot */
        }
    }
    return EXIT_OK;
}

/* Moves places[0] up to the last one that the session has read past. */
static void settle_place(ingestion *in)
{
    size_t passed = 0;
    while (passed + 1 < in->n_places && in->skip >= in->places[passed].n)
        in->skip -= in->places[passed++].n;
    memmove(in->places, in->places + passed, (in->n_places - passed) * sizeof *in->places);
    in->n_places -= passed;
}

/* The window up to `cut` became these ids. */
static void take(ingestion *in, size_t cut, const int32_t *ids, size_t n)
{
    in->places = must(realloc(in->places, (in->n_places + 1) * sizeof *in->places));
    in->places[in->n_places++] = (place){in->offset, tail_hash(in), n};
    if (in->n_fed > 0)
        memmove(in->pending.ids, in->pending.ids + in->n_fed, (in->pending.n - in->n_fed) * sizeof *ids);
    in->pending.n -= in->n_fed;
    in->n_fed = n < in->to_drop ? n : (size_t)in->to_drop; /* nothing else is pending while to_drop is above 0 */
    in->to_drop -= in->n_fed;
    for (size_t i = 0; i < n; i++)
        ids_add(&in->pending, ids[i]);
    drop_from_window(in, cut);
    settle_place(in);
}

/* Appends the ids of the next stretch of text to the pending ones. */
static int next_ids(ingestion *in)
{
    for (size_t size = WINDOW;; size *= 2) {
        int32_t *ids = NULL;
        size_t n = 0, cut = 0;
        int status = fill_window(in, size);
        if (status || interrupted())
            return status;
        status = tokenize(in, 0, in->window.size, &ids, &n);
        if (status == EXIT_OK && in->ended)
            cut = in->window.size;
        else if (status == EXIT_OK)
            status = find_cut(in, ids, &n, &cut);
        if (status == EXIT_OK && (cut > 0 || in->ended))
            take(in, cut, ids, n);
        xlstm_free(ids);
        if (status || cut > 0 || in->ended)
            return status;
        if (size >= WINDOW_LIMIT)
            return fail("%s: no place to cut the text within %d MiB after byte %" PRIu64
                        ": it has no spaces or line breaks, or this tokenizer looks at a text as a whole",
                        in->name, WINDOW_LIMIT >> 20, in->offset);
    }
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------ */

/* The state with what it takes to go on; `done`: the whole text is in it. */
static int save(ingestion *in, bool done)
{
    const place end = {in->offset, tail_hash(in), 0}, *at = done ? &end : in->places;
    char note[400], path[200] = "";
    const char *base = strrchr(in->name, '/');
    json_t *name = json_string(base ? base + 1 : in->name); /* NULL if that is no UTF-8 */
    char *quoted = name ? json_dumps(name, JSON_ENCODE_ANY | JSON_ENSURE_ASCII) : NULL;
    if (quoted && strlen(quoted) < sizeof path)
        memcpy(path, quoted, strlen(quoted) + 1);
    free(quoted);
    json_decref(name);
    snprintf(note, sizeof note,
             "{\"ingest\": {\"file\": %s, \"offset\": %" PRIu64 ", \"skip\": %" PRIu64
             ", \"tail\": \"%016" PRIx64 "\", \"done\": %s}}",
             path[0] ? path : "\"\"", at->offset, done ? 0 : in->skip, at->tail, done ? "true" : "false");
    xlstm_state *state = NULL;
    xlstm_error err = {0};
    int status = EXIT_OK;
    if (xlstm_state_snapshot(&state, in->session, &err) || xlstm_state_save(state, in->o->state_out, note, &err))
        status = fail_error(&err);
    xlstm_state_free(state);
    in->saved_at = in->tokens;
    return status;
}

static int open_text(ingestion *in)
{
    bool standard = !strcmp(in->o->file, "-");
    in->name = standard ? "standard input" : in->o->file;
    in->fd = standard ? STDIN_FILENO : open(in->o->file, O_RDONLY | O_CLOEXEC);
    if (in->fd < 0)
        return fail("%s: cannot open: %s", in->name, strerror(errno));
    struct stat st;
    if (!fstat(in->fd, &st) && S_ISREG(st.st_mode))
        in->total = (uint64_t)st.st_size;
    if (!fstat(in->fd, &st) && S_ISDIR(st.st_mode))
        return fail("%s: is a folder, expected a text", in->name);
    return EXIT_OK;
}

/* Passes over the text before a checkpoint: by seeking if possible. */
static int skip_text(ingestion *in, uint64_t offset)
{
    uint64_t jump = offset > TAIL ? offset - TAIL : 0;
    if (in->total > 0 && lseek(in->fd, (off_t)jump, SEEK_SET) >= 0)
        in->offset = jump;
    while (in->offset < offset) {
        uint64_t want = offset - in->offset;
        int status = fill_window(in, want < WINDOW ? (size_t)want : WINDOW);
        if (status)
            return status;
        if (in->window.size == 0 || interrupted())
            break;
        drop_from_window(in, in->window.size);
    }
    return EXIT_OK;
}

/* Goes to the checkpoint in --state-out. *complete: the text was read to its end before. */
static int resume(ingestion *in, bool *complete)
{
    const char *path = in->o->state_out;
    struct stat st;
    *complete = false;
    if (stat(path, &st) && errno == ENOENT)
        return EXIT_OK;
    xlstm_state *state;
    xlstm_state_info info;
    xlstm_error err = {0};
    if (xlstm_state_load(&state, in->model, path, true, &err))
        return fail_error(&err);
    xlstm_state_get_info(state, &info);
    json_t *note = json_loads(info.note, 0, NULL);
    const char *tail = NULL;
    json_int_t offset = -1, skip = -1;
    int done = 0;
    int status = EXIT_OK;
    if (json_unpack(note, "{s:{s:I, s:I, s:s, s:b}}", "ingest", "offset", &offset, "skip", &skip, "tail", &tail, "done",
                    &done) ||
        offset < 0 || skip < 0)
        status = fail("%s: not a checkpoint of `xlstm ingest`; move it away, or leave --resume out", path);
    if (status == EXIT_OK && xlstm_state_restore(in->session, state, &err))
        status = fail_error(&err);
    if (status == EXIT_OK)
        status = skip_text(in, (uint64_t)offset);
    if (status == EXIT_OK && (in->offset != (uint64_t)offset || strtoull(tail, NULL, 16) != tail_hash(in)))
        status = fail("%s: it differs from the text that %s was made of, before byte %" PRIu64, in->name, path,
                      (uint64_t)offset);
    in->first_offset = (uint64_t)offset;
    in->skip = in->to_drop = (uint64_t)skip;
    *complete = done;
    json_decref(note);
    xlstm_state_free(state);
    return status;
}

/* ---- reading ---------------------------------------------------------------------------------------------------- */

static void show(ingestion *in, bool last)
{
    double t = now(), seconds = t - in->started;
    bool terminal = isatty(STDERR_FILENO);
    if (in->o->model.quiet || (!last && (!terminal || t - in->shown < 0.2 || seconds < 0.5)))
        return;
    in->shown = t;
    uint64_t bytes = in->offset - in->first_offset;
    char count[32], size[32], rate[32], rest[40] = "";
    double speed = seconds > 0 ? (double)bytes / seconds : 0;
    if (!last && in->total > in->offset && speed > 0) {
        uint64_t left = (uint64_t)((double)(in->total - in->offset) / speed + 0.5);
        snprintf(rest, sizeof rest, ", %" PRIu64 ":%02" PRIu64 ":%02" PRIu64 " left", left / 3600, left / 60 % 60,
                 left % 60);
    }
    human_count(count, in->tokens);
    human_bytes(size, bytes);
    human_bytes(rate, (uint64_t)speed);
    fprintf(stderr, "%s%s tokens, %s, %.3f MB/s (%s/s), %.1f tok/s%s%s", terminal ? "\r" : "", count, size, speed / 1e6,
            rate, seconds > 0 ? (double)in->tokens / seconds : 0, rest, terminal ? "\033[K" : "");
    in->line_open = terminal && !last;
    if (!in->line_open)
        fputc('\n', stderr);
}

static void end_line(ingestion *in)
{
    if (in->line_open)
        fputc('\n', stderr);
    in->line_open = false;
}

/* Reads what is pending: all of it at the end of the text, else up to the last chunk border. */
static int feed(ingestion *in)
{
    const uint64_t chunk = xlstm_model_get_info(in->model)->chunk_size, slab = chunk > 512 ? chunk : 512 / chunk * chunk;
    int status = EXIT_OK;
    while (in->n_fed < in->pending.n && status == EXIT_OK && !interrupted()) {
        const int32_t *ids = in->pending.ids + in->n_fed;
        size_t left = in->pending.n - in->n_fed, count = tokens_to_border(in->session, ids[0], left, slab);
        size_t to_border = tokens_to_border(in->session, ids[0], SIZE_MAX, chunk);
        bool last = in->ended && count == left;
        if (!last && left < to_border)
            break;
        if (!last)
            count = to_border + (count - to_border) / chunk * chunk;
        xlstm_segment segment = {
            .session = in->session, .tokens = ids, .count = count, .want = last ? XLSTM_WANT_LAST : XLSTM_WANT_NONE};
        xlstm_error err = {0};
        if (xlstm_evaluate(in->model, &segment, 1, &err)) {
            end_line(in);
            return fail_error(&err);
        }
        in->n_fed += count;
        in->skip += count;
        in->tokens += count;
        settle_place(in);
        show(in, false);
        if (!last && in->o->checkpoint_every > 0 && in->tokens - in->saved_at >= in->o->checkpoint_every)
            status = save(in, false);
    }
    return status;
}

static int read_all(ingestion *in)
{
    int status = EXIT_OK;
    bool done = false;
    in->places = must(malloc(sizeof *in->places));
    in->places[in->n_places++] = (place){in->offset, tail_hash(in), 0};
    while (status == EXIT_OK && !done && !interrupted()) {
        status = next_ids(in);
        if (status == EXIT_OK && !interrupted())
            status = feed(in);
        done = in->ended && in->window.size == 0 && in->n_fed == in->pending.n;
    }
    if (status == EXIT_OK && done && in->to_drop > 0)
        return fail("%s: it is shorter than the text that %s was made of", in->name, in->o->state_out);
    if (status == EXIT_OK && !done) {
        end_line(in);
        status = save(in, false);
        if (status == EXIT_OK)
            complain("stopped after %" PRIu64 " tokens; the same command with --resume goes on", in->tokens);
        return status ? status : EXIT_INTERRUPTED;
    }
    return status;
}

static int ingest(ingestion *in)
{
    const ingest_options *o = in->o;
    bool complete = false;
    int status = new_session(&in->session, in->model, o->state_in);
    if (status == EXIT_OK)
        status = open_text(in);
    if (status == EXIT_OK && o->resume)
        status = resume(in, &complete);
    in->started = now();
    if (status == EXIT_OK && !complete) {
        interrupt_watch();
        status = read_all(in);
        if (status == EXIT_OK && in->tokens == 0 && in->offset == 0)
            status = fail("%s: it is empty: there is nothing to read", in->name);
        if (status == EXIT_OK)
            status = save(in, true);
    }
    if (status)
        return status;
    if (complete && !o->model.quiet)
        complain("%s: read to its end before", in->name);
    show(in, true);
    if (o->json)
        outputf("{\"tokens\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"position\": %" PRIu64 ", \"seconds\": %.3f}\n",
                in->tokens, in->offset - in->first_offset, xlstm_session_position(in->session), now() - in->started);
    return EXIT_OK;
}

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const ingest_options *o = options;
    if (!o->file || !o->state_out)
        return fail_usage("give a text with --file and a place for the state with --state-out");
    if (o->state_in && o->resume)
        return fail_usage("--resume begins at the checkpoint in --state-out: leave --state-in out");
    int status = check_output("--state-out", o->state_out);
    if (status)
        return status;
    ingestion in = {.o = o, .fd = -1};
    status = open_model(&in.model, &o->model, false);
    if (status == EXIT_OK && !(in.tokenizer = need_tokenizer(in.model, "ingest")))
        status = EXIT_RUNTIME;
    if (status == EXIT_OK)
        status = ingest(&in);
    end_line(&in);
    if (in.fd > STDIN_FILENO)
        close(in.fd);
    buffer_free(&in.window);
    free(in.pending.ids);
    free(in.places);
    xlstm_session_free(in.session);
    xlstm_model_free(in.model);
    return output_finish(status);
}

static const option_group groups[] = {
    {"Text and state", rows, COUNT_OF(rows), 0},
    MODEL_GROUP(ingest_options, model),
};

const command command_ingest = {
    .name = "ingest",
    .summary = "read a text of any length into a state file",
    .usage = "[-m MODEL] -f FILE --state-out FILE [--checkpoint-every N] [--resume]",
    .details = "Memory stays the same however long the text is. Token ids are those of the whole text, and the state is "
               "the one that a single prompt would give, bit for bit; `xlstm generate --state-in` then goes on from it.\n"
               "\n"
               "Ctrl-C saves a checkpoint; after a kill the last one of --checkpoint-every counts. The same command with "
               "--resume goes on from there. Standard input has to be given again from its beginning.",
    .size = sizeof(ingest_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
