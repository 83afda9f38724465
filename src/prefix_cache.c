/*
 * prefix_cache.c — states of texts read before, found again by a chain of token hashes and compared token by token.
 *
 * Bit-identity. The cell rounds at chunk borders, which lie at multiples of the chunk size since the start of the
 * sequence. A state at a border does not depend on how the text was cut on the way there; a state inside a chunk
 * does, and reading on from it rounds differently than reading the whole. So a snapshot at a border serves every text
 * that begins with its tokens, and one inside a chunk, the end of some prompt, serves that prompt alone. A prompt leaves
 * three kinds behind: one at every multiple of the spacing, one at its last border, and one at its very end with logits.
 *
 * Memory and disk. An entry's state is in memory, in a file, or both. What memory has no room for is written to a file, if
 * there is a folder; the least recently used goes first in both places. Entries of one text share its tokens.
 * Files: FOLDER/SETTINGS/POSITION-HASH-TEXT.xlstate and TEXT.tokens; SETTINGS hashes all that a state's bits depend on.
 *
 * The lock guards everything but the copying and reading of states: an entry is pinned while that goes on.
 */
#include "state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { SPACING = 2048, STALE_SECONDS = 3600, NAME_MAX_BYTES = 96 };
#define RAM_DEFAULT ((size_t)1 << 30)
#define DISK_DEFAULT ((uint64_t)8 << 30)

/* The tokens of a text, BOS included. Lives while an entry points to it. */
typedef struct text {
    struct text *next;
    uint64_t id; /* hash of the tokens */
    size_t n;
    int32_t *ids;  /* [n]; NULL: still in its file */
    size_t uses;   /* entries */
    size_t files;  /* entries with a file */
    bool on_disk;
} text;

typedef struct entry {
    struct entry *next; /* in its bucket */
    uint64_t key;       /* token hash of the first `position` tokens */
    uint64_t position;
    text *text;
    xlstm_state *state; /* NULL: only on disk */
    uint64_t ram_bytes, file_bytes; /* 0: not there */
    bool has_logits;
    uint64_t used; /* clock of the last use */
    uint32_t pins; /* threads that use it outside the lock */
} entry;

struct xlstm_prefix_cache {
    xlstm_model *model;
    size_t ram_limit;
    uint64_t disk_limit;
    char *folder; /* of this model and settings; NULL: none */
    uint32_t spacing, chunk;
    pthread_mutex_t lock;
    uint64_t clock;
    entry **buckets; /* [n_buckets], a power of two */
    size_t n_buckets, n_entries;
    text *texts;
    xlstm_prefix_cache_stats stats;
};

/* ---- tokens as the model sees them ------------------------------------------------------------------------------ */

/* 1 if a BOS goes in front of these tokens. */
static size_t bos_of(const xlstm_prefix_cache *c, const int32_t *tokens)
{
    const xlstm_model_info *i = &c->model->info;
    return i->bos_auto && tokens[0] != i->bos_id;
}

/* BOS, if there is one, and the tokens; freed with xl_release. */
static int32_t *with_bos(const xlstm_prefix_cache *c, const int32_t *tokens, size_t n, xlstm_error *err)
{
    size_t bos = bos_of(c, tokens), bytes;
    if (!xl_mul(&bytes, n + bos, sizeof(int32_t))) bytes = SIZE_MAX;
    int32_t *ids = xl_alloc(bytes, err);
    if (ids == NULL) return NULL;
    if (bos != 0) ids[0] = c->model->info.bos_id;
    memcpy(ids + bos, tokens, n * sizeof(int32_t));
    return ids;
}

static uint64_t hash_on(uint64_t hash, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) hash = xl_token_hash(hash, ids[i]);
    return hash;
}

/* ---- entries and texts (under the lock) ------------------------------------------------------------------------- */

static entry **bucket_of(const xlstm_prefix_cache *c, uint64_t key) { return &c->buckets[key & (c->n_buckets - 1)]; }

static int grow_buckets(xlstm_prefix_cache *c, xlstm_error *err)
{
    if (c->n_entries < c->n_buckets) return XLSTM_OK;
    size_t old_n = c->n_buckets;
    entry **old = c->buckets, **buckets = xl_calloc(old_n * 2, sizeof(entry *), err);
    if (buckets == NULL) return XLSTM_E_MEMORY;
    c->buckets = buckets;
    c->n_buckets = old_n * 2;
    for (size_t i = 0; i < old_n; i++) {
        for (entry *e = old[i], *next; e != NULL; e = next) {
            next = e->next;
            e->next = *bucket_of(c, e->key);
            *bucket_of(c, e->key) = e;
        }
    }
    xl_release(old);
    return XLSTM_OK;
}

static char *path_of(const xlstm_prefix_cache *c, const entry *e, const text *t)
{
    char name[NAME_MAX_BYTES];
    if (e != NULL) {
        snprintf(name, sizeof(name), "%" PRIu64 "-%016" PRIx64 "-%016" PRIx64 ".xlstate", e->position, e->key, t->id);
    } else {
        snprintf(name, sizeof(name), "%016" PRIx64 ".tokens", t->id);
    }
    return xl_join(c->folder, name, NULL);
}

static void remove_file(const xlstm_prefix_cache *c, const entry *e, const text *t)
{
    char *path = path_of(c, e, t);
    if (path != NULL) (void)unlink(path);
    xl_release(path);
}

static void charge_text(xlstm_prefix_cache *c, const text *t, bool add)
{
    uint64_t bytes = t->n * sizeof(int32_t);
    c->stats.ram_bytes = add ? c->stats.ram_bytes + bytes : c->stats.ram_bytes - bytes;
}

/* Fetches a text's tokens from its file; false if that is missing or is not the text its name says. */
static bool have_ids(xlstm_prefix_cache *c, text *t)
{
    if (t->ids != NULL) return true;
    char *path = path_of(c, NULL, t), *bytes = NULL;
    size_t size = 0;
    bool good = path != NULL && xl_read_file(&bytes, &size, path, t->n * sizeof(int32_t), NULL) == XLSTM_OK &&
                size == t->n * sizeof(int32_t) && xl_hash(bytes, size, 0) == t->id;
    if (good) {
        t->ids = (int32_t *)(void *)bytes;
        charge_text(c, t, true);
    } else {
        xl_release(bytes);
    }
    xl_release(path);
    return good;
}

/* The text with these tokens, made if there is none; takes over `ids` (NULL: they are in a file). One use is added. */
static text *text_get(xlstm_prefix_cache *c, uint64_t id, int32_t *ids, size_t n)
{
    for (text *t = c->texts; t != NULL; t = t->next) {
        if (t->id != id || t->n != n) continue;
        if (ids != NULL && (!have_ids(c, t) || memcmp(t->ids, ids, n * sizeof(*ids)) != 0)) continue;
        xl_release(ids);
        t->uses++;
        return t;
    }
    text *t = xl_calloc(1, sizeof(*t), NULL);
    if (t == NULL) {
        xl_release(ids);
        return NULL;
    }
    *t = (text){.next = c->texts, .id = id, .n = n, .ids = ids, .uses = 1, .on_disk = ids == NULL};
    c->texts = t;
    if (ids != NULL) charge_text(c, t, true);
    return t;
}

static void text_put(xlstm_prefix_cache *c, text *t)
{
    if (--t->uses > 0) return;
    for (text **at = &c->texts; *at != NULL; at = &(*at)->next) {
        if (*at != t) continue;
        *at = t->next;
        break;
    }
    if (t->ids != NULL) charge_text(c, t, false);
    xl_release(t->ids);
    xl_release(t);
}

static void drop_memory(xlstm_prefix_cache *c, entry *e)
{
    if (e->state == NULL) return;
    xlstm_state_free(e->state);
    e->state = NULL;
    c->stats.ram_bytes -= e->ram_bytes;
    c->stats.ram_entries--;
    e->ram_bytes = 0;
}

/* One file less needs the text's; it goes with the last. */
static void release_text_file(xlstm_prefix_cache *c, text *t)
{
    if (--t->files > 0 || !t->on_disk) return;
    remove_file(c, NULL, t);
    c->stats.disk_bytes -= t->n * sizeof(int32_t);
    t->on_disk = false;
}

static void drop_file(xlstm_prefix_cache *c, entry *e)
{
    if (e->file_bytes == 0) return;
    remove_file(c, e, e->text);
    c->stats.disk_bytes -= e->file_bytes;
    c->stats.disk_entries--;
    e->file_bytes = 0;
    release_text_file(c, e->text);
}

/* Takes an entry that is neither in memory nor on disk out of the cache. */
static void forget(xlstm_prefix_cache *c, entry *e)
{
    for (entry **at = bucket_of(c, e->key); *at != NULL; at = &(*at)->next) {
        if (*at != e) continue;
        *at = e->next;
        break;
    }
    c->n_entries--;
    c->stats.evicted++;
    text_put(c, e->text);
    xl_release(e);
}

static entry *add_entry(xlstm_prefix_cache *c, uint64_t key, uint64_t position, text *t)
{
    entry *e = grow_buckets(c, NULL) == XLSTM_OK ? xl_calloc(1, sizeof(*e), NULL) : NULL;
    if (e == NULL) return NULL;
    *e = (entry){.next = *bucket_of(c, key), .key = key, .position = position, .text = t};
    *bucket_of(c, key) = e;
    c->n_entries++;
    return e;
}

/* The entry of the first `position` of `ids`, compared; NULL if there is none. */
static entry *find_entry(xlstm_prefix_cache *c, uint64_t key, uint64_t position, const int32_t *ids)
{
    for (entry *e = *bucket_of(c, key), *next; e != NULL; e = next) {
        next = e->next;
        if (e->key != key || e->position != position) continue;
        if (!have_ids(c, e->text)) {
            if (e->pins > 0) continue;
            c->stats.failures++;
            drop_memory(c, e);
            drop_file(c, e);
            forget(c, e);
            continue;
        }
        if (memcmp(e->text->ids, ids, position * sizeof(*ids)) == 0) return e;
    }
    return NULL;
}

/* ---- room ------------------------------------------------------------------------------------------------------- */

/* The least recently used entry that is in memory (or, with `disk`, in a file) and not pinned. */
static entry *oldest(const xlstm_prefix_cache *c, bool disk)
{
    entry *found = NULL;
    for (size_t i = 0; i < c->n_buckets; i++) {
        for (entry *e = c->buckets[i]; e != NULL; e = e->next) {
            bool there = disk ? e->file_bytes != 0 : e->state != NULL;
            if (there && e->pins == 0 && (found == NULL || e->used < found->used)) found = e;
        }
    }
    return found;
}

static void make_disk_room(xlstm_prefix_cache *c)
{
    entry *e;
    while (c->stats.disk_bytes > c->disk_limit && (e = oldest(c, true)) != NULL) {
        drop_file(c, e);
        if (e->state == NULL) forget(c, e);
    }
}

static int write_text(const text *t, const char *path)
{
    xl_writer w;
    int result = xl_writer_open(&w, path, NULL);
    if (result != XLSTM_OK) return result;
    result = xl_writer_put(&w, t->ids, t->n * sizeof(int32_t), NULL);
    if (result == XLSTM_OK) return xl_writer_commit(&w, NULL);
    xl_writer_abort(&w);
    return result;
}

/* Writes a pinned entry's state and tokens, with the lock released meanwhile. */
static void write_entry(xlstm_prefix_cache *c, entry *e)
{
    text *t = e->text;
    const xlstm_state *state = e->state;
    char *state_path = path_of(c, e, t), *text_path = path_of(c, NULL, t);
    bool text_missing = !t->on_disk;
    t->files++; /* now, so that nobody removes the text's file meanwhile */
    pthread_mutex_unlock(&c->lock);
    xlstm_state_info info;
    int result = state_path == NULL || text_path == NULL ? XLSTM_E_MEMORY : XLSTM_OK;
    if (result == XLSTM_OK && text_missing) result = write_text(t, text_path);
    if (result == XLSTM_OK) result = xlstm_state_save(state, state_path, NULL, NULL);
    xlstm_state_get_info(state, &info);
    pthread_mutex_lock(&c->lock);
    if (result == XLSTM_OK && !t->on_disk) {
        t->on_disk = true;
        c->stats.disk_bytes += t->n * sizeof(int32_t);
    }
    if (result == XLSTM_OK && e->file_bytes == 0) {
        e->file_bytes = info.file_bytes;
        c->stats.disk_bytes += info.file_bytes;
        c->stats.disk_entries++;
    } else {
        release_text_file(c, t);
    }
    if (result != XLSTM_OK) c->stats.failures++;
    xl_release(state_path);
    xl_release(text_path);
}

/* Moves the oldest entries out of memory until `limit` is kept. */
static void make_room(xlstm_prefix_cache *c, size_t limit)
{
    entry *e;
    while (c->stats.ram_bytes > limit && (e = oldest(c, false)) != NULL) {
        if (c->folder != NULL && e->file_bytes == 0) {
            e->pins++;
            write_entry(c, e);
            e->pins--;
            if (e->pins > 0) continue; /* someone found it meanwhile: it is young again */
        }
        drop_memory(c, e);
        if (e->file_bytes == 0) forget(c, e);
    }
    if (c->folder != NULL) make_disk_room(c);
}

/* ---- life ------------------------------------------------------------------------------------------------------- */

/* All that a state's bits depend on beside the tokens, in no locale's form. Of the backend's description, what comes before
 * the number of threads. */
static uint64_t settings_hash(const xlstm_model *m)
{
    const xlstm_model_info *i = &m->info;
    char line[512];
    const char *comma = strrchr(i->backend, ',');
    int name = (int)(comma != NULL ? (size_t)(comma - i->backend) : strlen(i->backend));
    snprintf(line, sizeof(line), "%s %016" PRIx64 " %.*s %d %d %d %d %d %u %d %08x %08x %08x %08x", xlstm_version(),
             i->fingerprint, name, i->backend, i->weights.dtype, i->activations.dtype, i->kernel.dtype, i->state.dtype,
             i->norm_float32.on, i->chunk_size, i->tied, xl_bits_of(i->norm_eps), xl_bits_of(i->cell_eps),
             xl_bits_of(i->gate_soft_cap), xl_bits_of(i->logit_soft_cap));
    return xl_hash(line, strlen(line), 0);
}

typedef struct found_file {
    uint64_t position, key, text_id;
    int64_t seconds, nanoseconds;
} found_file;

static int by_age(const void *a, const void *b)
{
    const found_file *x = a, *y = b;
    if (x->seconds != y->seconds) return x->seconds < y->seconds ? -1 : 1;
    return x->nanoseconds < y->nanoseconds ? -1 : x->nanoseconds > y->nanoseconds;
}

/* Takes one file of an earlier process into the index; files that are no good are removed. */
static void adopt(xlstm_prefix_cache *c, const found_file *f)
{
    struct stat st;
    xlstm_state_info info;
    text probe = {.id = f->text_id};
    entry shape = {.key = f->key, .position = f->position};
    char *path = path_of(c, &shape, &probe), *text_path = path_of(c, NULL, &probe);
    bool good = path != NULL && text_path != NULL && xlstm_state_describe(&info, path, false, NULL) == XLSTM_OK &&
                info.position == f->position && info.token_hash == f->key && stat(text_path, &st) == 0 &&
                st.st_size % (off_t)sizeof(int32_t) == 0 && (uint64_t)st.st_size / sizeof(int32_t) >= f->position;
    text *t = good ? text_get(c, f->text_id, NULL, (size_t)st.st_size / sizeof(int32_t)) : NULL;
    entry *e = t != NULL ? add_entry(c, f->key, f->position, t) : NULL;
    if (e == NULL) {
        if (t != NULL) text_put(c, t);
        if (path != NULL) (void)unlink(path);
    } else {
        e->has_logits = info.has_logits;
        e->file_bytes = info.file_bytes;
        e->used = ++c->clock;
        c->stats.disk_entries++;
        c->stats.disk_bytes += info.file_bytes + (t->files == 0 ? t->n * sizeof(int32_t) : 0);
        t->files++;
    }
    xl_release(path);
    xl_release(text_path);
}

/* Leftovers of a writer that was killed, and tokens that no state needs. */
static void remove_stale(xlstm_prefix_cache *c, const char *name)
{
    struct stat st;
    const char *suffix = strstr(name, ".tokens");
    bool whole = suffix != NULL && strcmp(suffix, ".tokens") == 0;
    if (suffix == NULL && strstr(name, ".xlstate.") == NULL) return;
    for (text *t = c->texts; whole && t != NULL; t = t->next) {
        if (t->id == strtoull(name, NULL, 16)) return;
    }
    char *path = xl_join(c->folder, name, NULL);
    if (path != NULL && stat(path, &st) == 0 && time(NULL) - st.st_mtime > STALE_SECONDS) (void)unlink(path);
    xl_release(path);
}

static int scan_folder(xlstm_prefix_cache *c, xlstm_error *err)
{
    DIR *dir = opendir(c->folder);
    if (dir == NULL) return xl_fail(err, XLSTM_E_IO, "%s: cannot read the folder: %s", c->folder, strerror(errno));
    found_file *found = NULL;
    size_t n = 0, capacity = 0;
    int result = XLSTM_OK;
    for (struct dirent *d; result == XLSTM_OK && (d = readdir(dir)) != NULL;) {
        found_file f = {0};
        int end = 0;
        struct stat st;
        int fields = sscanf(d->d_name, "%" SCNu64 "-%16" SCNx64 "-%16" SCNx64 ".xlstate%n", &f.position, &f.key, &f.text_id,
                            &end);
        if (fields != 3 || end == 0 || d->d_name[end] != '\0' || fstatat(dirfd(dir), d->d_name, &st, 0) != 0) continue;
        f.seconds = st.st_mtim.tv_sec;
        f.nanoseconds = st.st_mtim.tv_nsec;
        if (n == capacity) {
            capacity = capacity != 0 ? 2 * capacity : 64;
            found_file *more = xl_grow(found, capacity * sizeof(*found), err);
            if (more == NULL) {
                result = XLSTM_E_MEMORY;
                break;
            }
            found = more;
        }
        found[n++] = f;
    }
    if (n > 0) qsort(found, n, sizeof(*found), by_age);
    for (size_t i = 0; result == XLSTM_OK && i < n; i++) adopt(c, &found[i]);
    rewinddir(dir);
    for (struct dirent *d; result == XLSTM_OK && (d = readdir(dir)) != NULL;) remove_stale(c, d->d_name);
    closedir(dir);
    xl_release(found);
    if (result == XLSTM_OK) make_disk_room(c);
    return result;
}

static int open_folder(xlstm_prefix_cache *c, const char *folder, xlstm_error *err)
{
    char name[24];
    snprintf(name, sizeof(name), "%016" PRIx64, settings_hash(c->model));
    c->folder = xl_join(folder, name, err);
    if (c->folder == NULL) return XLSTM_E_MEMORY;
    /* The files tell what was read: for the owner's eyes. */
    if ((mkdir(folder, 0700) != 0 && errno != EEXIST) || (mkdir(c->folder, 0700) != 0 && errno != EEXIST)) {
        return xl_fail(err, XLSTM_E_IO, "%s: cannot make the folder: %s", c->folder, strerror(errno));
    }
    return scan_folder(c, err);
}

int xlstm_prefix_cache_new(xlstm_prefix_cache **out, xlstm_model *model, const xlstm_prefix_cache_options *options,
                           xlstm_error *err)
{
    static const xlstm_prefix_cache_options defaults = {0};
    const xlstm_prefix_cache_options *o = options != NULL ? options : &defaults;
    *out = NULL;
    if (model->backend == NULL) return xl_fail(err, XLSTM_E_ARGUMENT, "the model was opened with headers_only");
    xlstm_prefix_cache *c = xl_calloc(1, sizeof(*c), err);
    if (c == NULL) return XLSTM_E_MEMORY;
    pthread_mutex_init(&c->lock, NULL);
    c->model = model;
    c->ram_limit = o->ram_bytes != 0 ? o->ram_bytes : RAM_DEFAULT;
    c->disk_limit = o->disk_bytes != 0 ? o->disk_bytes : DISK_DEFAULT;
    c->chunk = model->info.chunk_size;
    uint32_t spacing = o->spacing != 0 ? o->spacing : SPACING;
    c->spacing = (uint32_t)XL_MIN(xl_round_up(spacing, c->chunk), UINT32_MAX / c->chunk * c->chunk);
    c->n_buckets = 256;
    c->buckets = xl_calloc(c->n_buckets, sizeof(entry *), err);
    int result = c->buckets != NULL ? XLSTM_OK : XLSTM_E_MEMORY;
    if (result == XLSTM_OK && o->folder != NULL) result = open_folder(c, o->folder, err);
    if (result != XLSTM_OK) {
        xl_release(c->folder);
        c->folder = NULL;
        xlstm_prefix_cache_free(c);
        return result;
    }
    *out = c;
    return XLSTM_OK;
}

void xlstm_prefix_cache_free(xlstm_prefix_cache *c)
{
    if (c == NULL) return;
    pthread_mutex_lock(&c->lock);
    if (c->folder != NULL) make_room(c, 0);
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; c->buckets != NULL && i < c->n_buckets; i++) {
        for (entry *e = c->buckets[i], *next; e != NULL; e = next) {
            next = e->next;
            xlstm_state_free(e->state);
            xl_release(e);
        }
    }
    for (text *t = c->texts, *next; t != NULL; t = next) {
        next = t->next;
        xl_release(t->ids);
        xl_release(t);
    }
    xl_release(c->buckets);
    xl_release(c->folder);
    pthread_mutex_destroy(&c->lock);
    xl_release(c);
}

void xlstm_prefix_cache_get_stats(xlstm_prefix_cache *c, xlstm_prefix_cache_stats *out)
{
    pthread_mutex_lock(&c->lock);
    *out = c->stats;
    pthread_mutex_unlock(&c->lock);
}

/* ---- finding ---------------------------------------------------------------------------------------------------- */

/* The longest entry that serves `ids` [n], pinned; NULL if there is none. keys [n / chunk]: hashes at the borders. */
static entry *find_longest(xlstm_prefix_cache *c, const int32_t *ids, size_t n, const uint64_t *keys, uint64_t end_key)
{
    entry *e = find_entry(c, end_key, n, ids);
    if (e != NULL && !e->has_logits) e = NULL; /* the caller wants logits: at least one token has to be read */
    for (size_t border = (n - 1) / c->chunk; e == NULL && border > 0; border--) {
        e = find_entry(c, keys[border - 1], border * c->chunk, ids);
    }
    if (e == NULL) return NULL;
    e->pins++;
    e->used = ++c->clock;
    return e;
}

/* Restores a pinned entry and unpins it; false if that failed. One that is only on disk comes into memory; one whose file
 * is no good is dropped, and *try_again set. */
static bool restore_entry(xlstm_prefix_cache *c, entry *e, xlstm_session *session, bool *try_again)
{
    xlstm_state *loaded = NULL, *copy = NULL;
    const xlstm_state *held = e->state;
    if (held != NULL) {
        pthread_mutex_unlock(&c->lock);
        int done = xlstm_state_restore(session, held, NULL);
        pthread_mutex_lock(&c->lock);
        e->pins--;
        return done == XLSTM_OK;
    }
    char *path = path_of(c, e, e->text);
    pthread_mutex_unlock(&c->lock);
    int result = path != NULL ? xlstm_state_load(&loaded, c->model, path, true, NULL) : XLSTM_E_MEMORY;
    if (result == XLSTM_OK) result = xlstm_state_restore(session, loaded, NULL);
    if (result == XLSTM_OK) {
        const struct timespec now[2] = {{.tv_nsec = UTIME_NOW}, {.tv_nsec = UTIME_NOW}};
        (void)utimensat(AT_FDCWD, path, now, 0);
        (void)xlstm_state_copy(&copy, loaded, NULL);
    }
    xlstm_state_free(loaded);
    xl_release(path);
    pthread_mutex_lock(&c->lock);
    e->pins--;
    if (result == XLSTM_OK) c->stats.disk_hits++;
    if (copy != NULL && e->state == NULL) {
        e->state = copy;
        copy = NULL;
        e->ram_bytes = e->file_bytes;
        c->stats.ram_bytes += e->ram_bytes;
        c->stats.ram_entries++;
    } else if (result != XLSTM_OK && e->pins == 0 && e->state == NULL) {
        c->stats.failures++;
        drop_file(c, e);
        forget(c, e);
        *try_again = true;
    }
    xlstm_state_free(copy);
    return result == XLSTM_OK;
}

static int check_call(const xlstm_prefix_cache *c, const xlstm_session *session, const int32_t *tokens, size_t n,
                      xlstm_error *err)
{
    if (session->model != c->model) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "the session belongs to another model than the prefix cache");
    }
    if (tokens == NULL || n == 0) return xl_fail(err, XLSTM_E_ARGUMENT, "no tokens: expected at least one");
    return XLSTM_OK;
}

/* Puts the session behind the first *done of ids [n], BOS counted. */
static int restore_longest(xlstm_prefix_cache *c, xlstm_session *session, const int32_t *ids, size_t n, size_t *done,
                           xlstm_error *err)
{
    *done = 0;
    size_t borders = n / c->chunk;
    uint64_t *keys = xl_calloc(borders + 1, sizeof(*keys), err), key = 0;
    if (keys == NULL) return XLSTM_E_MEMORY;
    for (size_t i = 0; i < borders; i++) keys[i] = key = hash_on(key, ids + i * c->chunk, c->chunk);
    uint64_t end_key = hash_on(key, ids + borders * c->chunk, n - borders * c->chunk);
    pthread_mutex_lock(&c->lock);
    for (bool again = true; again;) {
        again = false;
        entry *e = find_longest(c, ids, n, keys, end_key);
        size_t position = e != NULL ? (size_t)e->position : 0;
        if (e != NULL && restore_entry(c, e, session, &again)) *done = position;
    }
    c->stats.lookups++;
    c->stats.hits += *done > 0;
    c->stats.tokens_asked += n;
    c->stats.tokens_reused += *done;
    make_room(c, c->ram_limit);
    pthread_mutex_unlock(&c->lock);
    xl_release(keys);
    return *done > 0 ? XLSTM_OK : xlstm_session_reset(session, err);
}

/* ---- keeping ---------------------------------------------------------------------------------------------------- */

/* Where to stop next when `done` of n tokens are read, BOS counted: a multiple of the spacing, the last border, the end. */
static size_t next_stop(const xlstm_prefix_cache *c, size_t n, size_t done)
{
    size_t last = n / c->chunk * c->chunk, next = (done / c->spacing + 1) * c->spacing;
    if (next <= last) return next;
    return done < last ? last : n;
}

/* Puts a new state into the cache, as that of the first `position` of a text; takes over `s` and `copy`, the text [n]. */
static void insert(xlstm_prefix_cache *c, xlstm_state *s, int32_t *copy, size_t n, uint64_t id)
{
    entry *e = find_entry(c, s->token_hash, s->position, copy);
    /* Another thread may have been faster, or be busy with the one that lacks logits. */
    bool replace = e != NULL && e->pins == 0 && !e->has_logits && s->logits != NULL;
    if (e == NULL) {
        text *t = text_get(c, id, copy, n);
        e = t != NULL ? add_entry(c, s->token_hash, s->position, t) : NULL;
        if (e == NULL && t != NULL) text_put(c, t);
    } else {
        xl_release(copy);
        if (replace) {
            drop_memory(c, e);
            drop_file(c, e);
        } else {
            e = NULL;
        }
    }
    if (e == NULL) {
        xlstm_state_free(s);
        return;
    }
    e->state = s;
    e->has_logits = s->logits != NULL;
    e->ram_bytes = s->layout.total_bytes + (e->has_logits ? s->vocab_size * sizeof(float) : 0);
    e->used = ++c->clock;
    c->stats.ram_bytes += e->ram_bytes;
    c->stats.ram_entries++;
    make_room(c, c->ram_limit);
}

/* Keeps the session's state as that of the first tokens of ids [n], unless it is there already. Whether that works is no
 * matter to the caller. */
static void keep(xlstm_prefix_cache *c, const xlstm_session *session, const int32_t *ids, size_t n)
{
    pthread_mutex_lock(&c->lock);
    entry *e = find_entry(c, session->token_hash, session->position, ids);
    if (e != NULL) e->used = ++c->clock;
    bool wanted = e == NULL || (session->has_logits && !e->has_logits);
    pthread_mutex_unlock(&c->lock);
    if (!wanted) return;
    xlstm_state *s = NULL;
    int32_t *copy = xl_alloc(n * sizeof(*ids), NULL);
    bool made = copy != NULL && xlstm_state_snapshot(&s, session, NULL) == XLSTM_OK;
    uint64_t id = 0;
    if (made) {
        memcpy(copy, ids, n * sizeof(*ids));
        id = xl_hash(ids, n * sizeof(*ids), 0);
    }
    pthread_mutex_lock(&c->lock);
    if (made) {
        insert(c, s, copy, n, id);
    } else {
        xl_release(copy);
        c->stats.failures++;
    }
    pthread_mutex_unlock(&c->lock);
}

/* ---- the calls -------------------------------------------------------------------------------------------------- */

int xlstm_prefix_cache_restore(xlstm_prefix_cache *c, xlstm_session *session, const int32_t *tokens, size_t n,
                               size_t *reused, xlstm_error *err)
{
    int result = check_call(c, session, tokens, n, err);
    if (result != XLSTM_OK) return result;
    int32_t *ids = with_bos(c, tokens, n, err);
    if (ids == NULL) return XLSTM_E_MEMORY;
    size_t bos = bos_of(c, tokens), done;
    result = restore_longest(c, session, ids, n + bos, &done, err);
    if (reused != NULL) *reused = done > bos ? done - bos : 0;
    xl_release(ids);
    return result;
}

size_t xlstm_prefix_cache_piece(const xlstm_prefix_cache *c, const int32_t *tokens, size_t n, size_t done)
{
    if (done >= n) return 0;
    size_t bos = bos_of(c, tokens);
    return next_stop(c, n + bos, done + bos) - bos - done;
}

int xlstm_prefix_cache_put(xlstm_prefix_cache *c, const xlstm_session *session, const int32_t *tokens, size_t n,
                           xlstm_error *err)
{
    int result = check_call(c, session, tokens, n, err);
    if (result != XLSTM_OK) return result;
    size_t bos = bos_of(c, tokens), position = (size_t)session->position;
    bool border = position % c->chunk == 0, end = position == n + bos && session->has_logits;
    if (position == 0 || position > n + bos || !(border || end)) return XLSTM_OK;
    int32_t *ids = with_bos(c, tokens, n, err);
    if (ids == NULL) return XLSTM_E_MEMORY;
    if (hash_on(0, ids, position) == session->token_hash) {
        keep(c, session, ids, n + bos);
    } else {
        result = xl_fail(err, XLSTM_E_ARGUMENT, "the session has read other tokens than the ones given");
    }
    xl_release(ids);
    return result;
}

int xlstm_prefix_cache_read(xlstm_prefix_cache *c, xlstm_session *session, const int32_t *tokens, size_t n,
                            size_t *reused, xlstm_error *err)
{
    int result = check_call(c, session, tokens, n, err);
    if (result != XLSTM_OK) return result;
    int32_t *ids = with_bos(c, tokens, n, err);
    if (ids == NULL) return XLSTM_E_MEMORY;
    size_t bos = bos_of(c, tokens), at, total = n + bos;
    result = restore_longest(c, session, ids, total, &at, err);
    size_t done = at > bos ? at - bos : 0;
    if (reused != NULL) *reused = done;
    while (result == XLSTM_OK && done < n) {
        size_t count = next_stop(c, total, done + bos) - bos - done;
        xlstm_segment g = {.session = session,
                           .tokens = tokens + done,
                           .count = count,
                           .want = done + count == n ? XLSTM_WANT_LAST : XLSTM_WANT_NONE};
        result = xlstm_evaluate(c->model, &g, 1, err);
        if (result == XLSTM_OK) keep(c, session, ids, total);
        done += count;
    }
    xl_release(ids);
    return result;
}
