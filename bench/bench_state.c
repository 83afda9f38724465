/*
 * bench_state.c — what copies of a state cost beside moving the same bytes with nothing around them.
 *   bench_state fork [ROUNDS]               forks, snapshots and files of a 7B-sized state against memcpy and copy-on-write
 *   bench_state store FOLDER SMALL LARGE    a session store with SMALL small and LARGE 7B-sized sessions; FOLDER is left
 *                                           behind empty of them
 * Rounds are interleaved, so that a busy machine slows all of them down alike; medians are printed, and ratios count.
 * The models have the geometry of a state and next to no weights.
 */
#include "../tests/make_model.h"
#include "state.h"

#include <fcntl.h>
#include <sys/mman.h>

#define OK(call)                                                                     \
    do {                                                                             \
        xlstm_error err = {0};                                                       \
        if ((call) != XLSTM_OK) fprintf(stderr, "%s\n", err.message), exit(1);       \
    } while (0)

static const mk_model large = {.vocab = 50304, .dim = 8, .blocks = 32, .heads = 8, .qk = 2048, .v = 4096, .ffn = 8};
static const mk_model small = {.vocab = 4096, .dim = 8, .blocks = 10, .heads = 4, .qk = 128, .v = 256, .ffn = 8};

static xlstm_model *open_model(const mk_model *shape)
{
    char *folder = mk_folder();
    xlstm_model *model = NULL;
    mk_put_model(folder, shape);
    OK(xlstm_model_open(&model, folder, NULL, &err));
    mk_remove_folder(folder);
    return model;
}

static xlstm_session *prompted(xlstm_model *model)
{
    xlstm_session *s = NULL;
    const int32_t tokens[] = {1, 2, 3, 4, 5};
    OK(xlstm_session_new(&s, model, &err));
    OK(xlstm_prefill(s, tokens, XL_COUNT(tokens), &err));
    return s;
}

/* ---- samples ---------------------------------------------------------------------------------------------------- */

typedef struct series {
    const char *name;
    double *seconds;
    size_t n;
} series;

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void add(series *s, double since)
{
    double now = xl_now();
    s->seconds = realloc(s->seconds, (s->n + 1) * sizeof(double));
    MK_CHECK(s->seconds != NULL);
    s->seconds[s->n++] = now - since;
}

static double at(series *s, double part)
{
    MK_CHECK(s->seconds != NULL);
    qsort(s->seconds, s->n, sizeof(double), by_value);
    return s->seconds[(size_t)((double)(s->n - 1) * part)];
}

static void print(series *all, size_t n, const char *title)
{
    printf("%s\n%-58s %12s %12s %12s %8s\n", title, "", "median ms", "fastest ms", "p99 ms", "ratio");
    double base = at(&all[0], 0.5);
    for (size_t i = 0; i < n; i++) {
        printf("%-58s %12.3f %12.3f %12.3f %8.2f\n", all[i].name, at(&all[i], 0.5) * 1e3, at(&all[i], 0) * 1e3,
               at(&all[i], 0.99) * 1e3, at(&all[i], 0.5) / base);
        free(all[i].seconds);
    }
    fflush(stdout);
}

/* ---- forks ------------------------------------------------------------------------------------------------------ */

enum { HELD = 3 }; /* fewer than the stores that are kept */

static void bench_fork(size_t rounds)
{
    xlstm_model *model = open_model(&large);
    xlstm_session *source = prompted(model), *fork = NULL, *held[HELD];
    size_t bytes = model->info.state_bytes;
    uint8_t *from = xl_alloc(bytes, NULL), *to = xl_alloc(bytes, NULL);
    MK_CHECK(from != NULL && to != NULL);
    memset(from, 1, bytes);
    memset(to, 2, bytes);
    int fd = memfd_create("state", MFD_CLOEXEC);
    MK_CHECK(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0 && pwrite(fd, from, bytes, 0) == (ssize_t)bytes);
    char *folder = mk_folder(), *path = xl_join(folder, "a.xlstate", NULL);
    enum { WARM, FRESH, REUSED, FIRST, COW, SNAPSHOT, RESTORE, SAVE, RAW, LOAD, LOAD_VERIFIED, N };
    series all[N] = {
        [WARM] = {.name = "memcpy into touched memory"},
        [FRESH] = {.name = "memcpy into new memory"},
        [REUSED] = {.name = "fork (memory of a freed session)"},
        [FIRST] = {.name = "fork (new memory)"},
        [COW] = {.name = "copy-on-write map, then one write to each page"},
        [SNAPSHOT] = {.name = "snapshot"},
        [RESTORE] = {.name = "restore"},
        [SAVE] = {.name = "save (hash, write, sync)"},
        [RAW] = {.name = "read() of the file's bytes, cached"},
        [LOAD] = {.name = "load and restore, cached"},
        [LOAD_VERIFIED] = {.name = "load with verify and restore, cached"},
    };
    for (size_t r = 0; r < rounds; r++) {
        double t = xl_now();
        memcpy(to, from, bytes);
        add(&all[WARM], t);
        OK(xlstm_session_fork(&fork, source, &err));
        xlstm_session_free(fork);
        t = xl_now();
        OK(xlstm_session_fork(&fork, source, &err));
        add(&all[REUSED], t);
        xlstm_session_free(fork);
        for (uint32_t i = 0; i < HELD; i++) held[i] = NULL;
        for (uint32_t i = 0; model->n_idle > 0; i++) OK(xlstm_session_fork(&held[i], source, &err));
        uint8_t *fresh = NULL;
        for (size_t turn = r; turn < r + 2; turn++) { /* in turn the first, since finding new memory gets harder */
            t = xl_now();
            if (turn % 2 == 0) {
                fresh = xl_alloc(bytes, NULL);
                MK_CHECK(fresh != NULL);
                memcpy(fresh, from, bytes);
                add(&all[FRESH], t);
            } else {
                OK(xlstm_session_fork(&fork, source, &err));
                add(&all[FIRST], t);
            }
        }
        if (fresh) from[r % bytes] ^= fresh[(r * 7) % bytes];
        xl_release(fresh);
        t = xl_now();
        uint8_t *lazy = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
        MK_CHECK(lazy != MAP_FAILED);
        for (size_t i = 0; i < bytes; i += 4096) lazy[i]++;
        add(&all[COW], t);
        munmap(lazy, bytes);
        xlstm_session_free(fork);
        for (int i = 0; i < HELD; i++) xlstm_session_free(held[i]);
        while (model->n_idle > 1) model->backend->ops->store_free(model->backend, model->idle[--model->n_idle]);
        xlstm_state *state = NULL;
        t = xl_now();
        OK(xlstm_state_snapshot(&state, source, &err));
        add(&all[SNAPSHOT], t);
        t = xl_now();
        OK(xlstm_state_restore(source, state, &err));
        add(&all[RESTORE], t);
        t = xl_now();
        OK(xlstm_state_save(state, path, NULL, &err));
        add(&all[SAVE], t);
        xlstm_state_free(state);
        t = xl_now();
        int file = open(path, O_RDONLY | O_CLOEXEC);
        MK_CHECK(read(file, to, bytes) == (ssize_t)bytes);
        close(file);
        add(&all[RAW], t);
        for (int verify = 0; verify < 2; verify++) {
            t = xl_now();
            OK(xlstm_state_load(&state, model, path, verify != 0, &err));
            OK(xlstm_state_restore(source, state, &err));
            xlstm_state_free(state);
            add(&all[verify != 0 ? LOAD_VERIFIED : LOAD], t);
        }
    }
    char title[320];
    snprintf(title, sizeof(title), "state of %.1f MB, %zu rounds, %s", (double)bytes / 1e6, rounds, model->info.backend);
    print(all, N, title);
    close(fd);
    xl_release(from);
    xl_release(to);
    xlstm_session_free(source);
    xlstm_model_free(model);
    unlink(path);
    xl_release(path);
    mk_remove_folder(folder);
}

/* ---- store ------------------------------------------------------------------------------------------------------ */

/* The sessions' state files by number, asked of the index the way an administrator would. */
static char **files_of(const char *folder, const uint64_t *ids, size_t n)
{
    char command[600], blob[20];
    char **paths = calloc(n, sizeof(*paths));
    unsigned long long id;
    snprintf(command, sizeof(command), "sqlite3 -separator ' ' '%s/index.db' 'SELECT id, blob FROM session'", folder);
    FILE *f = popen(command, "r");
    MK_CHECK(paths != NULL && f != NULL);
    while (fscanf(f, "%llu %19s", &id, blob) == 2) {
        MK_CHECK(id >= ids[0] && id - ids[0] < n); /* numbers are given out one after the other */
        MK_CHECK(asprintf(&paths[id - ids[0]], "%s/states/%.2s/%s.xlstate", folder, blob, blob) > 0);
    }
    MK_CHECK(pclose(f) == 0);
    return paths;
}

static void bench_store(const char *folder, const mk_model *shape, size_t n, size_t samples)
{
    if (n == 0) return;
    xlstm_model *model = open_model(shape);
    xlstm_session *s = prompted(model);
    xlstm_store *store = NULL;
    xlstm_state *state = NULL;
    OK(xlstm_store_open(&store, folder, &err));
    OK(xlstm_state_snapshot(&state, s, &err));
    xlstm_state_info info;
    xlstm_state_get_info(state, &info);
    uint64_t *ids = malloc(n * sizeof(*ids)), seed = 5;
    uint8_t *buffer = xl_alloc(info.file_bytes, NULL);
    MK_CHECK(ids != NULL && buffer != NULL && info.file_bytes > 0);
    enum { RAW, RESUME, VERIFIED, RAW_COLD, RESUME_COLD, CREATE, FORK, N };
    series all[N] = {[RAW] = {.name = "open() and read() of the state file, cached"},
                     [RESUME] = {.name = "resume, cached"},
                     [VERIFIED] = {.name = "resume with verify, cached"},
                     [RAW_COLD] = {.name = "open() and read() of the state file, from disk"},
                     [RESUME_COLD] = {.name = "resume, from disk"},
                     [CREATE] = {.name = "create (durable)"},
                     [FORK] = {.name = "fork (durable)"}};
    for (size_t i = 0; i < n; i++) {
        double t = xl_now();
        OK(xlstm_store_create(&ids[i], store, state, NULL, &err));
        add(&all[CREATE], t);
    }
    xlstm_state_free(state);
    char **paths = files_of(folder, ids, n);
    for (size_t i = 0; i < samples; i++) {
        size_t which = mk_next(&seed) % n;
        uint64_t id = ids[which];
        const char *path = paths[which];
        MK_CHECK(path != NULL);
        for (int cold = 0; cold < 2; cold++) {
            for (int kind = 0; kind < 3 - cold; kind++) {
                int file = open(path, O_RDONLY | O_CLOEXEC);
                MK_CHECK(file >= 0 && posix_fadvise(file, 0, 0, cold != 0 ? POSIX_FADV_DONTNEED : POSIX_FADV_NORMAL) == 0);
                if (cold == 0) MK_CHECK(read(file, buffer, info.file_bytes) == (ssize_t)info.file_bytes);
                close(file);
                double t = xl_now();
                if (kind == 0) {
                    file = open(path, O_RDONLY | O_CLOEXEC);
                    MK_CHECK(read(file, buffer, info.file_bytes) == (ssize_t)info.file_bytes);
                    close(file);
                    add(&all[cold != 0 ? RAW_COLD : RAW], t);
                } else {
                    OK(xlstm_store_load(&state, store, model, id, kind == 2, &err));
                    OK(xlstm_state_restore(s, state, &err));
                    xlstm_state_free(state);
                    add(&all[cold != 0 ? RESUME_COLD : kind == 2 ? VERIFIED : RESUME], t);
                }
            }
        }
    }
    for (size_t i = 0; i < samples; i++) {
        uint64_t id;
        double t = xl_now();
        OK(xlstm_store_fork(&id, store, ids[mk_next(&seed) % n], NULL, &err));
        add(&all[FORK], t);
    }
    for (size_t i = 0; i < n; i++) free(paths[i]);
    free(paths);
    char title[100];
    snprintf(title, sizeof(title), "%zu sessions of %.3f MB", n, (double)info.file_bytes / 1e6);
    print(all, N, title);
    OK(xlstm_store_expire(NULL, store, 0, &err));
    xlstm_store_close(store);
    free(ids);
    xl_release(buffer);
    xlstm_session_free(s);
    xlstm_model_free(model);
}

int main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "fork") == 0) {
        bench_fork(argc > 2 ? (size_t)strtoul(argv[2], NULL, 10) : 20);
        return 0;
    }
    if (argc == 5 && strcmp(argv[1], "store") == 0) {
        size_t n_small = strtoul(argv[3], NULL, 10), n_large = strtoul(argv[4], NULL, 10);
        bench_store(argv[2], &small, n_small, XL_MIN(n_small, 1000u));
        bench_store(argv[2], &large, n_large, XL_MIN(n_large, 50u));
        return 0;
    }
    fprintf(stderr, "usage: bench_state fork [ROUNDS] | store FOLDER SMALL LARGE\n");
    return 2;
}
