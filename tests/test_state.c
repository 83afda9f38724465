/*
 * test_state.c — states: snapshot, files and every way they can be wrong, conversion, arithmetic, export, history. Writers
 * are killed, starved of disk space and cut short; readers get every flipped bit, every truncation and forged headers.
 */
#include "state_fixture.h"

#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

enum { HEADER = 4096, TEXT = 37 };

enum { QK = 2, V = 4, HEADS = 2, BLOCKS = 2 };
typedef struct head {
    float C[QK * V], n[QK], m;
} head;

static const mk_model small = {.vocab = VOCAB, .dim = 8, .blocks = 2, .heads = 2, .qk = 4, .v = 8, .ffn = 8, .chunk_size = 8};
static xlstm_model *model;
static char *folder, *path;
static int32_t text[TEXT];

static int set_up(void **unused)
{
    (void)unused;
    model = fx_model(&small, XLSTM_F32, XLSTM_OFF);
    folder = mk_folder();
    path = xl_join(folder, "a.xlstate", NULL);
    fx_tokens(text, TEXT, 1);
    return 0;
}

static int tear_down(void **unused)
{
    (void)unused;
    xlstm_model_free(model);
    xl_release(path);
    fx_remove_tree(folder);
    return 0;
}

static xlstm_state *state_of(size_t n)
{
    xlstm_session *s = fx_read(model, text, n);
    xlstm_state *state = fx_snapshot(s);
    xlstm_session_free(s);
    return state;
}

/* ---- snapshots and forks ---------------------------------------------------------------------------------------- */

static void test_restore_continues_exactly(void **unused)
{
    (void)unused;
    xlstm_session *a = fx_read(model, text, 21), *b = fx_session(model), *c = NULL;
    xlstm_state *state = fx_snapshot(a), *copy = NULL;
    OK(xlstm_state_copy(&copy, state, &err));
    assert_true(fx_same_state(state, copy));
    OK(xlstm_state_restore(b, copy, &err));
    OK(xlstm_session_fork(&c, a, &err));
    assert_true(fx_same(a, b) && fx_same(a, c));
    for (size_t i = 21; i < TEXT; i++) {
        OK(xlstm_decode(a, text[i], &err));
        OK(xlstm_decode(b, text[i], &err));
        OK(xlstm_decode(c, text[i], &err));
        assert_true(fx_same(a, b) && fx_same(a, c));
    }
    /* the snapshot did not move */
    OK(xlstm_state_restore(b, state, &err));
    assert_int_equal(xlstm_session_position(b), 21);
    assert_true(fx_same_state(state, copy));
    assert_memory_equal(xlstm_state_logits(state), xlstm_session_logits(b), VOCAB * sizeof(float));
    xlstm_state_free(state);
    xlstm_state_free(copy);
    xlstm_session_free(a);
    xlstm_session_free(b);
    xlstm_session_free(c);
}

/* A session made from a freed one's memory starts from zero. */
static void test_reused_memory_is_clean(void **unused)
{
    (void)unused;
    xlstm_session *a = fx_read(model, text, TEXT);
    xlstm_session_free(a);
    xlstm_session *b = fx_session(model), *c = fx_session(model);
    assert_true(fx_same(b, c));
    assert_null(xlstm_session_logits(b));
    OK(xlstm_prefill(b, text, 9, &err));
    OK(xlstm_prefill(c, text, 9, &err));
    assert_true(fx_same(b, c));
    xlstm_session_free(b);
    xlstm_session_free(c);
}

typedef struct forker {
    const xlstm_session *source;
    int32_t first;
    float logits[VOCAB];
    bool good;
} forker;

static void *fork_and_decode(void *arg)
{
    forker *f = arg;
    f->good = true;
    for (int round = 0; round < 20 && f->good; round++) {
        xlstm_session *s = NULL;
        f->good = xlstm_session_fork(&s, f->source, NULL) == XLSTM_OK;
        for (int32_t i = 0; f->good && i < 4; i++) f->good = xlstm_decode(s, f->first + i, NULL) == XLSTM_OK;
        if (f->good && round == 0) memcpy(f->logits, xlstm_session_logits(s), sizeof(f->logits));
        const void *now = f->good ? xlstm_session_logits(s) : NULL; /* bit by bit */
        f->good = now != NULL && memcmp((const void *)f->logits, now, sizeof(f->logits)) == 0;
        xlstm_session_free(s);
    }
    return NULL;
}

static void test_concurrent_forks(void **unused)
{
    (void)unused;
    enum { THREADS = 6 };
    xlstm_session *prompt = fx_read(model, text, TEXT);
    forker forkers[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        forkers[i] = (forker){.source = prompt, .first = 2 + i % 3};
        assert_int_equal(pthread_create(&threads[i], NULL, fork_and_decode, &forkers[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < THREADS; i++) {
        assert_true(forkers[i].good);
        assert_memory_equal(forkers[i].logits, forkers[i % 3].logits, sizeof(forkers[i].logits));
    }
    xlstm_session_free(prompt);
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static void test_save_and_load(void **unused)
{
    (void)unused;
    xlstm_state *state = state_of(TEXT), *loaded = NULL, *other = NULL;
    OK(xlstm_state_save(state, path, "a note", &err));
    xlstm_state_info info;
    OK(xlstm_state_describe(&info, path, true, &err));
    assert_int_equal(info.version, 1);
    assert_int_equal(info.num_blocks, 2);
    assert_int_equal(info.num_heads, 2);
    assert_int_equal(info.qk_head_dim, 2);
    assert_int_equal(info.v_head_dim, 4);
    assert_int_equal(info.vocab_size, VOCAB);
    assert_int_equal(info.dtype, XLSTM_F32);
    assert_int_equal(info.position, TEXT);
    assert_true(info.has_logits);
    assert_string_equal(info.note, "a note");
    assert_int_equal(info.file_bytes, fx_file_size(path));
    OK(xlstm_state_load(&loaded, model, path, false, &err));
    assert_true(fx_same_state(state, loaded));
    /* the note stays with the state; without the last logits a state is shorter */
    OK(xlstm_state_save(loaded, path, NULL, &err)); /* over the file it is mapped from */
    assert_true(fx_same_state(state, loaded));
    OK(xlstm_state_load(&other, NULL, path, true, &err));
    assert_true(fx_same_state(state, other));
    xlstm_state_get_info(other, &info);
    assert_string_equal(info.note, "a note");
    void *bytes = NULL;
    size_t size = 0;
    xlstm_state *back = NULL;
    OK(xlstm_state_serialize(&bytes, &size, state, "a note", &err));
    assert_int_equal(size, fx_file_size(path));
    OK(xlstm_state_deserialize(&back, model, bytes, size, &err));
    assert_true(fx_same_state(state, back));
    xlstm_free(bytes);
    char note[1100];
    memset(note, 'x', sizeof(note));
    note[1024] = '\0';
    REFUSED(xlstm_state_save(state, path, note, &err), XLSTM_E_ARGUMENT, "1024 bytes");
    note[1023] = '\0';
    OK(xlstm_state_save(state, path, note, &err));
    xlstm_state_free(state);
    xlstm_state_free(loaded);
    xlstm_state_free(other);
    xlstm_state_free(back);
}

/* Refused by name: another model, another architecture, another number format, another version, another kind of file. */
static void test_what_does_not_fit(void **unused)
{
    (void)unused;
    mk_model twin = small, wide = small;
    twin.seed = 9;
    wide.blocks = 3;
    xlstm_model *others[] = {fx_model(&twin, XLSTM_F32, XLSTM_OFF), fx_model(&wide, XLSTM_F32, XLSTM_OFF),
                             fx_model(&small, XLSTM_BF16, XLSTM_OFF)};
    const char *const says[] = {"another model", "another architecture", "bfloat16"};
    xlstm_state *state = state_of(5), *loaded = NULL;
    OK(xlstm_state_save(state, path, NULL, &err));
    for (int i = 0; i < 3; i++) {
        REFUSED(xlstm_state_load(&loaded, others[i], path, true, &err), XLSTM_E_MISMATCH, says[i]);
        assert_null(loaded);
        xlstm_session *s = fx_session(others[i]);
        REFUSED(xlstm_state_restore(s, state, &err), XLSTM_E_MISMATCH, says[i]);
        assert_int_equal(xlstm_session_position(s), 0);
        xlstm_session_free(s);
    }
    uint8_t *bytes = NULL;
    size_t size = 0;
    OK(xlstm_state_serialize((void **)&bytes, &size, state, NULL, &err));
    bytes[8] = 2;
    REFUSED(xlstm_state_deserialize(&loaded, model, bytes, size, &err), XLSTM_E_MISMATCH, "version 2, expected 1");
    bytes[0] = 'y';
    REFUSED(xlstm_state_deserialize(&loaded, model, bytes, size, &err), XLSTM_E_FORMAT, "not an xLSTM state file");
    REFUSED(xlstm_state_load(&loaded, model, "/dev/null", true, &err), XLSTM_E_IO, "/dev/null");
    REFUSED(xlstm_state_load(&loaded, model, folder, true, &err), XLSTM_E_IO, "regular file");
    REFUSED(xlstm_state_load(&loaded, model, "/nonexistent/x", true, &err), XLSTM_E_IO, "/nonexistent/x");
    REFUSED(xlstm_state_save(state, "/nonexistent/x", NULL, &err), XLSTM_E_IO, "/nonexistent/x");
    xlstm_free(bytes);
    xlstm_state_free(state);
    for (int i = 0; i < 3; i++) xlstm_model_free(others[i]);
}

/* The file as writable memory, so that a change costs no write. */
static uint8_t *map_file(size_t *size)
{
    int fd = open(path, O_RDWR | O_CLOEXEC);
    *size = fx_file_size(path);
    uint8_t *bytes = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(fd >= 0 && bytes != MAP_FAILED);
    close(fd);
    return bytes;
}

static void test_every_flipped_bit(void **unused)
{
    (void)unused;
    xlstm_state *state = state_of(3), *loaded = NULL;
    OK(xlstm_state_save(state, path, "n", &err));
    size_t size;
    uint8_t *bytes = map_file(&size);
    for (size_t bit = 0; bit < size * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        xlstm_error err = {0};
        int result = xlstm_state_load(&loaded, model, path, bit >= (size_t)HEADER * 8, &err);
        if (result == XLSTM_OK || err.code != result || strstr(err.message, "a.xlstate") == NULL) {
            fail_msg("bit %zu: result %d, \"%s\"", bit, result, err.message);
        }
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    OK(xlstm_state_load(&loaded, model, path, true, &err));
    xlstm_state_free(loaded);
    xlstm_state_free(state);
    munmap(bytes, size);
}

static void test_every_truncation(void **unused)
{
    (void)unused;
    xlstm_state *state = state_of(3), *loaded = NULL;
    OK(xlstm_state_save(state, path, NULL, &err));
    size_t size = fx_file_size(path);
    assert_int_equal(truncate(path, (off_t)size + 1), 0);
    REFUSED(xlstm_state_load(&loaded, model, path, false, &err), XLSTM_E_FORMAT, "surplus bytes");
    for (size_t n = size; n-- > 0;) {
        assert_int_equal(truncate(path, (off_t)n), 0);
        xlstm_error why = {0};
        int result = xlstm_state_load(&loaded, model, path, false, &why);
        if (result != XLSTM_E_FORMAT || why.message[0] == '\0') fail_msg("%zu bytes: %d \"%s\"", n, result, why.message);
    }
    xlstm_state_free(state);
}

/* Headers with right checksums and wild numbers: nothing is believed that the file's size does not bear out. */
static void test_forged_headers(void **unused)
{
    (void)unused;
    xlstm_state *state = state_of(3), *loaded = NULL;
    uint8_t *bytes = NULL;
    size_t size = 0;
    OK(xlstm_state_serialize((void **)&bytes, &size, state, "note", &err));
    uint8_t *forged = malloc(size);
    const uint64_t wild[] = {0, 1, 2, 4, 5, 7, 255, 4096, 1u << 16, 0x7fffffff, 0x80000000u, 0xffffffffu, 0x4000000000000000u,
                             0xfffffffffffff000u, 0xffffffffffffffffu};
    uint64_t seed = 77;
    for (int round = 0; round < 200000; round++) {
        memcpy(forged, bytes, size);
        for (uint64_t k = mk_next(&seed) % 5; k < 5; k++) {
            size_t at = 12 + mk_next(&seed) % 23 * 4;
            uint64_t value = wild[mk_next(&seed) % XL_COUNT(wild)];
            if (mk_next(&seed) % 4 == 0) value = mk_next(&seed);
            memcpy(forged + at, &value, at + 8 <= 104 && mk_next(&seed) % 2 == 0 ? 8 : 4);
        }
        memset(forged + 104, 0, 8);
        uint64_t hash = xl_hash(forged, HEADER, 0);
        memcpy(forged + 104, &hash, 8);
        xlstm_error why = {0};
        int result = xlstm_state_deserialize(&loaded, NULL, forged, size, &why);
        if (result == XLSTM_OK) { /* shapes may differ, if they need the very same number of bytes */
            size_t logits = loaded->logits != NULL ? loaded->vocab_size * sizeof(float) : 0;
            assert_int_equal(HEADER + loaded->layout.total_bytes + logits, size);
            head h;
            float *C = malloc(loaded->layout.total_bytes * 4), *n = malloc(loaded->layout.total_bytes * 4);
            for (uint32_t b = 0; b < loaded->layout.num_blocks; b++) {
                OK(xlstm_state_read_head(loaded, b, loaded->layout.num_heads - 1, C, n, &h.m, &err));
            }
            free(C);
            free(n);
            xlstm_state_free(loaded);
        } else {
            assert_true(why.message[0] != '\0' && loaded == NULL);
        }
    }
    /* a note with a NUL inside */
    memcpy(forged, bytes, size);
    forged[113] = 0;
    memset(forged + 104, 0, 8);
    uint64_t hash = xl_hash(forged, HEADER, 0);
    memcpy(forged + 104, &hash, 8);
    REFUSED(xlstm_state_deserialize(&loaded, NULL, forged, size, &err), XLSTM_E_FORMAT, "contradicts itself");
    free(forged);
    xlstm_free(bytes);
    xlstm_state_free(state);
}

static void test_random_bytes(void **unused)
{
    (void)unused;
    xlstm_state *loaded = NULL;
    uint64_t seed = 3;
    for (int round = 0; round < 3000; round++) {
        size_t n = mk_next(&seed) % 9000;
        uint8_t *bytes = malloc(n + 1);
        for (size_t i = 0; i < n; i++) bytes[i] = (uint8_t)mk_next(&seed);
        if (round % 2 == 0 && n >= 12) memcpy(bytes, "xLSTMsta\1\0\0\0", 12);
        assert_int_not_equal(xlstm_state_deserialize(&loaded, NULL, bytes, n, NULL), XLSTM_OK);
        assert_null(loaded);
        free(bytes);
    }
}

/* ---- writers that die ------------------------------------------------------------------------------------------- */

static int count_files(void)
{
    int n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *d; (d = readdir(dir)) != NULL;) n += d->d_name[0] != '.';
    closedir(dir);
    return n;
}

static void test_killed_writer(void **unused)
{
    (void)unused;
    xlstm_state *a = state_of(9), *b = state_of(20), *loaded = NULL;
    OK(xlstm_state_save(a, path, NULL, &err));
    uint64_t seed = 11;
    int seen[2] = {0, 0};
    for (int round = 0; round < 60; round++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            for (int i = 0;; i++) {
                if (xlstm_state_save(i % 2 == 0 ? b : a, path, NULL, NULL) != XLSTM_OK) _exit(1);
            }
        }
        struct timespec wait = {.tv_nsec = (long)(mk_next(&seed) % 12000000)};
        nanosleep(&wait, NULL);
        assert_int_equal(kill(child, SIGKILL), 0);
        int status;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        OK(xlstm_state_load(&loaded, model, path, true, &err));
        bool is_a = fx_same_state(loaded, a);
        assert_true(is_a || fx_same_state(loaded, b));
        seen[is_a ? 0 : 1]++;
        xlstm_state_free(loaded);
    }
    print_message("killed writer left the one file %d times, the other %d times\n", seen[0], seen[1]);
    xlstm_state_free(a);
    xlstm_state_free(b);
}

/* New files have the mode the process asks for, replaced ones their own; links are followed; nothing else is replaced. */
static void test_what_is_replaced(void **unused)
{
    (void)unused;
    xlstm_state *a = state_of(9), *loaded = NULL;
    char *fresh = NULL, *link = NULL, *pipe = NULL, *dangling = NULL;
    MK_CHECK(asprintf(&fresh, "%s/fresh", folder) > 0 && asprintf(&link, "%s/link", folder) > 0 &&
             asprintf(&pipe, "%s/pipe", folder) > 0 && asprintf(&dangling, "%s/dangling", folder) > 0);
    struct stat st;
    const mode_t mask = umask(027);
    OK(xlstm_state_save(a, fresh, NULL, &err));
    assert_int_equal(umask(mask), 027);
    assert_int_equal(stat(fresh, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    assert_int_equal(chmod(fresh, 0604), 0);
    assert_int_equal(symlink("fresh", link), 0);
    OK(xlstm_state_save(a, link, NULL, &err));
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(lstat(fresh, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0604);
    OK(xlstm_state_load(&loaded, model, fresh, true, &err));
    xlstm_state_free(loaded);
    assert_int_equal(mkfifo(pipe, 0600), 0);
    assert_int_equal(symlink("nowhere", dangling), 0);
    int files = count_files();
    const struct {
        const char *path, *says;
    } refused[] = {{pipe, "found a device or pipe"}, {folder, "found a folder"}, {dangling, "cannot follow the link"}, {"", "is empty"}};
    for (size_t i = 0; i < XL_COUNT(refused); i++) {
        REFUSED(xlstm_state_save(a, refused[i].path, NULL, &err), XLSTM_E_IO, refused[i].says);
    }
    assert_int_equal(count_files(), files);
    assert_int_equal(lstat(pipe, &st), 0);
    assert_true(S_ISFIFO(st.st_mode));
    char *all[] = {fresh, link, pipe, dangling};
    for (size_t i = 0; i < XL_COUNT(all); i++) {
        assert_int_equal(unlink(all[i]), 0);
        free(all[i]);
    }
    xlstm_state_free(a);
}

/* In a child: a limit on file sizes cuts every write short, at each length in turn. */
static void test_short_writes(void **unused)
{
    (void)unused;
    xlstm_state *a = state_of(9), *b = state_of(20), *loaded = NULL;
    OK(xlstm_state_save(a, path, NULL, &err));
    int files = count_files();
    rlim_t size = fx_file_size(path);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGXFSZ, SIG_IGN);
        for (rlim_t limit = 0; limit < size; limit += 1 + limit / 16) {
            struct rlimit r = {limit, RLIM_INFINITY};
            if (setrlimit(RLIMIT_FSIZE, &r) != 0) _exit(2);
            xlstm_error err = {0};
            if (xlstm_state_save(b, path, NULL, &err) != XLSTM_E_IO || strstr(err.message, path) == NULL) _exit(3);
            if (xlstm_state_export(b, path, &err) == XLSTM_OK) _exit(4);
        }
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(count_files(), files); /* no temporary files */
    OK(xlstm_state_load(&loaded, model, path, true, &err));
    assert_true(fx_same_state(loaded, a));
    xlstm_state_free(loaded);
    xlstm_state_free(a);
    xlstm_state_free(b);
}

static void test_full_disk(void **unused)
{
    (void)unused;
    char *mount_point = xl_join(folder, "full", NULL), *file = xl_join(mount_point, "a.xlstate", NULL);
    assert_int_equal(mkdir(mount_point, 0700), 0);
    if (mount("tmpfs", mount_point, "tmpfs", 0, "size=16k") != 0) {
        print_message("skip: a small tmpfs cannot be mounted here\n");
        xl_release(mount_point);
        xl_release(file);
        skip();
    }
    xlstm_state *a = state_of(9), *b = state_of(20), *loaded = NULL;
    OK(xlstm_state_save(a, file, NULL, &err));
    char *filler = xl_join(mount_point, "filler", NULL);
    FILE *f = fopen(filler, "wb");
    for (int i = 0; i < 20000; i++) fputc('x', f);
    (void)fclose(f);
    REFUSED(xlstm_state_save(b, file, NULL, &err), XLSTM_E_IO, "No space left");
    OK(xlstm_state_load(&loaded, model, file, true, &err));
    assert_true(fx_same_state(loaded, a));
    xlstm_state_free(loaded);
    assert_int_equal(unlink(filler), 0);
    OK(xlstm_state_save(b, file, NULL, &err));
    xlstm_state_free(a);
    xlstm_state_free(b);
    assert_int_equal(umount(mount_point), 0);
    xl_release(filler);
    xl_release(mount_point);
    xl_release(file);
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static head read_head(const xlstm_state *s, uint32_t block, uint32_t at)
{
    head h;
    OK(xlstm_state_read_head(s, block, at, h.C, h.n, &h.m, &err));
    return h;
}

static void test_conversion(void **unused)
{
    (void)unused;
    xlstm_state *state = state_of(TEXT), *low = NULL, *back = NULL, *again = NULL;
    const xlstm_dtype formats[] = {XLSTM_F64, XLSTM_F32, XLSTM_BF16, XLSTM_I8};
    for (size_t f = 0; f < XL_COUNT(formats); f++) {
        OK(xlstm_state_convert(&low, state, formats[f], &err));
        OK(xlstm_state_convert(&back, low, XLSTM_F32, &err));
        OK(xlstm_state_convert(&again, back, formats[f], &err));
        assert_true(fx_same_state(low, again)); /* going through float32 loses nothing */
        assert_int_equal(low->layout.dtype, formats[f]);
        assert_memory_equal(low->logits, state->logits, VOCAB * sizeof(float));
        if (formats[f] == XLSTM_F64 || formats[f] == XLSTM_F32) assert_true(fx_same_state(state, back));
        for (uint32_t b = 0; b < BLOCKS; b++) {
            for (uint32_t h = 0; h < HEADS; h++) {
                head x = read_head(state, b, h), y = read_head(back, b, h);
                assert_true(x.m == y.m);
                for (int a = 0; a < QK; a++) {
                    float largest = 0;
                    for (int j = 0; j < V; j++) largest = fmaxf(largest, fabsf(x.C[a * V + j]));
                    for (int j = 0; j < V; j++) {
                        float u = x.C[a * V + j], bound = formats[f] == XLSTM_I8 ? largest / 253 : fabsf(u) / 256;
                        assert_true(fabsf(u - y.C[a * V + j]) <= bound);
                    }
                    assert_true(fabsf(x.n[a] - y.n[a]) <= fabsf(x.n[a]) / 256);
                }
            }
        }
        xlstm_state_free(low);
        xlstm_state_free(back);
        xlstm_state_free(again);
    }
    REFUSED(xlstm_state_convert(&low, state, XLSTM_F16, &err), XLSTM_E_UNSUPPORTED, "float16");
    /* what a model opened for that format takes, and what it would have made itself, one rounding apart */
    xlstm_model *other = fx_model(&small, XLSTM_BF16, XLSTM_OFF);
    OK(xlstm_state_convert(&low, state, XLSTM_BF16, &err));
    xlstm_session *s = fx_session(other);
    OK(xlstm_state_restore(s, low, &err));
    OK(xlstm_decode(s, 5, &err));
    xlstm_session_free(s);
    xlstm_state_free(low);
    xlstm_state_free(state);
    xlstm_model_free(other);
}

/* Changes the stabiliser of a head without changing what it means. */
static void shift_head(xlstm_state *s, uint32_t block, uint32_t at, float by)
{
    head h = read_head(s, block, at);
    for (int i = 0; i < QK * V; i++) h.C[i] *= expf(-by);
    for (int i = 0; i < QK; i++) h.n[i] *= expf(-by);
    h.m += by;
    OK(xlstm_state_write_head(s, block, at, h.C, h.n, &h.m, &err));
}

static void test_difference(void **unused)
{
    (void)unused;
    xlstm_state *a = state_of(TEXT), *b = state_of(12), *shifted = NULL;
    xlstm_head_difference d[BLOCKS * HEADS];
    OK(xlstm_state_diff(d, a, a, &err));
    for (int i = 0; i < BLOCKS * HEADS; i++) assert_true(d[i].C_between == 0 && d[i].n_between == 0 && d[i].C_first > 0);
    OK(xlstm_state_diff(d, a, b, &err));
    for (uint32_t i = 0; i < BLOCKS * HEADS; i++) {
        head x = read_head(a, i / HEADS, i % HEADS), y = read_head(b, i / HEADS, i % HEADS);
        double first = 0, second = 0, between = 0, top = fmax((double)x.m, (double)y.m);
        for (int j = 0; j < QK * V; j++) {
            double u = exp((double)x.m - top) * (double)x.C[j], v = exp((double)y.m - top) * (double)y.C[j];
            first += u * u;
            second += v * v;
            between += (u - v) * (u - v);
        }
        assert_true(d[i].log_scale == top);
        assert_true(fabs(d[i].C_first - sqrt(first)) <= 1e-12 * sqrt(first));
        assert_true(fabs(d[i].C_second - sqrt(second)) <= 1e-12 * sqrt(second));
        assert_true(fabs(d[i].C_between - sqrt(between)) <= 1e-12 * sqrt(between));
    }
    /* another stabiliser, the same memory */
    OK(xlstm_state_copy(&shifted, a, &err));
    assert_non_null(xlstm_state_logits(shifted));
    for (uint32_t i = 0; i < BLOCKS * HEADS; i++) shift_head(shifted, i / HEADS, i % HEADS, i % 2 == 0 ? 3 : -2);
    assert_null(xlstm_state_logits(shifted));
    OK(xlstm_state_diff(d, a, shifted, &err));
    for (int i = 0; i < BLOCKS * HEADS; i++) assert_true(d[i].C_between <= 1e-6 * d[i].C_first);
    xlstm_state_free(a);
    xlstm_state_free(b);
    xlstm_state_free(shifted);
}

static void test_weighted_sums(void **unused)
{
    (void)unused;
    xlstm_state *a = state_of(TEXT), *b = state_of(12), *mix = NULL, *shifted = NULL;
    const xlstm_state *pair[] = {a, b}, *twins[] = {a, a};
    const double ends[][2] = {{1, 0}, {0, 1}}, halves[] = {0.5, 0.5}, odd[] = {0.3, -1.7}, none[] = {0, 0};
    /* at its ends an interpolation is exact; so is the average of a state with itself */
    OK(xlstm_state_mix(&mix, pair, ends[0], 2, &err));
    assert_memory_equal(mix->bytes, a->bytes, a->layout.total_bytes);
    assert_true(mix->position == TEXT && mix->token_hash != a->token_hash && mix->logits == NULL);
    xlstm_state_free(mix);
    OK(xlstm_state_mix(&mix, pair, ends[1], 2, &err));
    assert_memory_equal(mix->bytes, b->bytes, a->layout.total_bytes);
    xlstm_state_free(mix);
    OK(xlstm_state_mix(&mix, twins, halves, 2, &err));
    assert_memory_equal(mix->bytes, a->bytes, a->layout.total_bytes);
    xlstm_session *s = fx_session(model);
    OK(xlstm_state_restore(s, mix, &err));
    assert_null(xlstm_session_logits(s));
    OK(xlstm_decode(s, 4, &err));
    xlstm_session_free(s);
    xlstm_state_free(mix);
    /* in general: the sum of the true values, whatever the stabilisers were */
    OK(xlstm_state_copy(&shifted, b, &err));
    for (uint32_t i = 0; i < BLOCKS * HEADS; i++) shift_head(shifted, i / HEADS, i % HEADS, 5);
    const xlstm_state *shifted_pair[] = {a, shifted};
    for (int k = 0; k < 2; k++) {
        OK(xlstm_state_mix(&mix, k == 0 ? pair : shifted_pair, odd, 2, &err));
        for (uint32_t i = 0; i < BLOCKS * HEADS; i++) {
            head x = read_head(a, i / HEADS, i % HEADS), y = read_head(b, i / HEADS, i % HEADS);
            head z = read_head(mix, i / HEADS, i % HEADS);
            for (int j = 0; j < QK * V; j++) {
                double u = odd[0] * exp((double)x.m) * (double)x.C[j], v = odd[1] * exp((double)y.m) * (double)y.C[j];
                double got = exp((double)z.m) * (double)z.C[j];
                assert_true(fabs(got - (u + v)) <= 1e-5 * (fabs(u) + fabs(v)) + 1e-30);
            }
        }
        xlstm_state_free(mix);
    }
    OK(xlstm_state_mix(&mix, pair, none, 2, &err)); /* nothing of anything: a fresh state */
    for (size_t i = 0; i < mix->layout.total_bytes; i++) assert_int_equal(mix->bytes[i], 0);
    xlstm_state_free(mix);
    const double bad[] = {1, INFINITY};
    REFUSED(xlstm_state_mix(&mix, pair, bad, 2, &err), XLSTM_E_ARGUMENT, "weight 2");
    const double vast[2] = {1e300, 1e300};
    REFUSED(xlstm_state_mix(&mix, pair, vast, 2, &err), XLSTM_E_ARGUMENT, "expected smaller weights");
    REFUSED(xlstm_state_mix(&mix, pair, bad, 0, &err), XLSTM_E_ARGUMENT, "no states");
    mk_model twin = small;
    twin.seed = 9;
    xlstm_model *other = fx_model(&twin, XLSTM_F32, XLSTM_OFF);
    s = fx_read(other, text, 3);
    xlstm_state *foreign = fx_snapshot(s);
    const xlstm_state *mixed[] = {a, foreign};
    REFUSED(xlstm_state_mix(&mix, mixed, halves, 2, &err), XLSTM_E_MISMATCH, "state 2 is of another model");
    xlstm_session_free(s);
    xlstm_state_free(foreign);
    xlstm_model_free(other);
    xlstm_state_free(a);
    xlstm_state_free(b);
    xlstm_state_free(shifted);
}

static void test_heads(void **unused)
{
    (void)unused;
    xlstm_state *state = state_of(7), *loaded = NULL;
    float m = 0;
    REFUSED(xlstm_state_read_head(state, 2, 0, NULL, NULL, &m, &err), XLSTM_E_ARGUMENT, "block 2");
    REFUSED(xlstm_state_read_head(state, 0, 2, NULL, NULL, &m, &err), XLSTM_E_ARGUMENT, "head 2");
    OK(xlstm_state_save(state, path, NULL, &err));
    OK(xlstm_state_load(&loaded, model, path, true, &err));
    REFUSED(xlstm_state_write_head(loaded, 0, 0, NULL, NULL, &m, &err), XLSTM_E_ARGUMENT, "read-only");
    assert_true(fx_same_state(state, loaded));
    head h = read_head(state, 1, 1), x = {.C = {1, 2, 3, 4, 5, 6, 7, 8}, .n = {9, 10}, .m = -3};
    OK(xlstm_state_write_head(state, 1, 1, x.C, x.n, &x.m, &err));
    head y = read_head(state, 1, 1);
    assert_memory_equal(&x, &y, sizeof(x));
    OK(xlstm_state_write_head(state, 1, 1, h.C, h.n, &h.m, &err));
    assert_memory_equal(state->bytes, loaded->bytes, state->layout.total_bytes); /* the neighbours were left alone */
    xlstm_state_free(state);
    xlstm_state_free(loaded);
}

/* ---- export and import ------------------------------------------------------------------------------------------ */

static void test_export(void **unused)
{
    (void)unused;
    const char *const names[] = {"s.safetensors", "s.npz"};
    xlstm_state *state = state_of(TEXT), *back = NULL, *bare = state_of(8), *low = NULL;
    bare->logits = NULL;
    OK(xlstm_state_convert(&low, state, XLSTM_I8, &err));
    const xlstm_state *all[] = {state, bare, low};
    for (size_t i = 0; i < XL_COUNT(names); i++) {
        char *file = xl_join(folder, names[i], NULL);
        for (size_t k = 0; k < XL_COUNT(all); k++) {
            OK(xlstm_state_export(all[k], file, &err));
            OK(xlstm_state_import(&back, file, &err));
            assert_true(fx_same_state(all[k], back));
            assert_true(back->fingerprint == state->fingerprint);
            xlstm_state_free(back);
        }
        /* damage: never a crash; with .npz every changed byte of an array is noticed */
        size_t size = 0;
        char *bytes = NULL;
        OK(xl_read_file(&bytes, &size, file, 1 << 20, &err));
        uint64_t seed = 5 + i;
        for (int round = 0; round < 4000; round++) {
            char *bad = malloc(size);
            memcpy(bad, bytes, size);
            size_t n = round % 3 == 0 ? mk_next(&seed) % size : size;
            for (uint64_t k = 0; k < 1 + mk_next(&seed) % 4; k++) {
                size_t at = round % 2 == 0 ? mk_next(&seed) % size : mk_next(&seed) % XL_MIN(size, 700u);
                bad[at] = (char)mk_next(&seed);
            }
            assert_int_equal(unlink(file), 0); /* a new file: overwriting one makes some file systems wait for the disk */
            mk_put_file(folder, names[i], bad, n);
            xlstm_error err = {0};
            int result = xlstm_state_import(&back, file, &err);
            if (result == XLSTM_OK) {
                xlstm_state_free(back);
            } else {
                assert_true(back == NULL && err.message[0] != '\0');
            }
            free(bad);
        }
        xl_release(bytes);
        xl_release(file);
    }
    REFUSED(xlstm_state_export(state, path, &err), XLSTM_E_ARGUMENT, ".safetensors or .npz");
    REFUSED(xlstm_state_import(&back, path, &err), XLSTM_E_ARGUMENT, ".safetensors or .npz");
    xlstm_state_free(state);
    xlstm_state_free(bare);
    xlstm_state_free(low);
}

/* ---- history ---------------------------------------------------------------------------------------------------- */

static size_t allowed; /* allocations of jansson until memory runs out */

static void *json_alloc(size_t n) { return allowed > 0 ? (allowed--, malloc(n)) : NULL; }

static void test_import_without_memory(void **unused)
{
    (void)unused;
    char *file = xl_join(folder, "s.safetensors", NULL);
    xlstm_state *state = state_of(8), *back = NULL;
    OK(xlstm_state_export(state, file, &err));
    json_set_alloc_funcs(json_alloc, free);
    int result = XLSTM_E_MEMORY;
    for (size_t n = 0; result != XLSTM_OK; n++) {
        allowed = n;
        result = xlstm_state_import(&back, file, NULL);
        if (result == XLSTM_OK) break;
        assert_int_equal(result, XLSTM_E_MEMORY);
        allowed = n;
        REFUSED(xlstm_state_import(&back, file, &err), XLSTM_E_MEMORY, "out of memory");
    }
    json_set_alloc_funcs(malloc, free);
    xlstm_state_free(state);
    xlstm_state_free(back);
    xl_release(file);
}

static void test_history(void **unused)
{
    (void)unused;
    xlstm_history *h = NULL;
    xlstm_session *s = fx_session(model);
    xlstm_state *marks[TEXT + 1];
    size_t one = model->info.state_bytes + VOCAB * sizeof(float);
    OK(xlstm_history_new(&h, 5 * one, &err));
    REFUSED(xlstm_history_restore(h, s, 0, &err), XLSTM_E_ARGUMENT, "holds 0 snapshots");
    for (size_t i = 0; i < TEXT; i++) {
        marks[i] = fx_snapshot(s);
        OK(xlstm_history_push(h, s, &err));
        assert_int_equal(xlstm_history_position(h, 0), i);
        OK(xlstm_decode(s, text[i], &err));
    }
    assert_int_equal(xlstm_history_count(h), 5);
    OK(xlstm_history_restore(h, s, 0, &err)); /* regenerate: the same place any number of times */
    OK(xlstm_history_restore(h, s, 0, &err));
    xlstm_state *now = fx_snapshot(s);
    assert_true(fx_same_state(now, marks[TEXT - 1]));
    xlstm_state_free(now);
    OK(xlstm_history_restore(h, s, 3, &err)); /* undo */
    now = fx_snapshot(s);
    assert_true(fx_same_state(now, marks[TEXT - 4]));
    xlstm_state_free(now);
    assert_int_equal(xlstm_history_count(h), 2);
    assert_int_equal(xlstm_history_position(h, 1), TEXT - 5);
    REFUSED(xlstm_history_restore(h, s, 2, &err), XLSTM_E_ARGUMENT, "holds 2 snapshots");
    for (int i = 0; i < 40; i++) OK(xlstm_history_push(h, s, &err));
    assert_int_equal(xlstm_history_count(h), 5);
    xlstm_history_free(h);
    OK(xlstm_history_new(&h, 0, &err)); /* no budget: the newest alone */
    OK(xlstm_history_push(h, s, &err));
    OK(xlstm_history_push(h, s, &err));
    assert_int_equal(xlstm_history_count(h), 1);
    xlstm_history_free(h);
    for (size_t i = 0; i < TEXT; i++) xlstm_state_free(marks[i]);
    xlstm_session_free(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_restore_continues_exactly),
        cmocka_unit_test(test_reused_memory_is_clean),
        cmocka_unit_test(test_concurrent_forks),
        cmocka_unit_test(test_save_and_load),
        cmocka_unit_test(test_what_does_not_fit),
        cmocka_unit_test(test_every_flipped_bit),
        cmocka_unit_test(test_every_truncation),
        cmocka_unit_test(test_forged_headers),
        cmocka_unit_test(test_random_bytes),
        cmocka_unit_test(test_killed_writer),
        cmocka_unit_test(test_what_is_replaced),
        cmocka_unit_test(test_short_writes),
        cmocka_unit_test(test_full_disk),
        cmocka_unit_test(test_conversion),
        cmocka_unit_test(test_difference),
        cmocka_unit_test(test_weighted_sums),
        cmocka_unit_test(test_heads),
        cmocka_unit_test(test_export),
        cmocka_unit_test(test_import_without_memory),
        cmocka_unit_test(test_history),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
