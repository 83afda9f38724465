/*
 * test_prefix_cache.c — whatever the cache restores is bit-identical to reading the text anew: random texts that share
 * beginnings, every chunk size and spacing, with and without BOS, squeezed budgets, a folder that outlives the process, files
 * damaged behind its back, and many threads. Editing the end of a long text reads at most one spacing again.
 */
#include "state_fixture.h"

#include <pthread.h>
#include <sys/stat.h>

static mk_model shape(uint32_t chunk)
{
    return (mk_model){.vocab = VOCAB, .dim = 8, .blocks = 2, .heads = 2, .qk = 4, .v = 8, .ffn = 8, .chunk_size = chunk,
                      .config_extra = ", \"bos_token_id\": 0"};
}

static xlstm_model *model_of(uint32_t chunk, xlstm_switch bos)
{
    mk_model m = shape(chunk);
    return fx_model(&m, XLSTM_F32, bos);
}

static xlstm_prefix_cache *cache_of(xlstm_model *model, const xlstm_prefix_cache_options *options)
{
    xlstm_prefix_cache *c = NULL;
    OK(xlstm_prefix_cache_new(&c, model, options, &err));
    return c;
}

static xlstm_prefix_cache_stats stats_of(xlstm_prefix_cache *c)
{
    xlstm_prefix_cache_stats s;
    xlstm_prefix_cache_get_stats(c, &s);
    return s;
}

/* Reads through the cache and anew; fails unless all is the same bit by bit. */
static size_t read_both(xlstm_prefix_cache *c, xlstm_model *model, const int32_t *tokens, size_t n)
{
    xlstm_session *cached = fx_session(model), *plain = fx_read(model, tokens, n);
    size_t reused = 0;
    OK(xlstm_prefix_cache_read(c, cached, tokens, n, &reused, &err));
    assert_true(reused <= n);
    assert_true(fx_same(cached, plain));
    assert_non_null(xlstm_session_logits(cached));
    OK(xlstm_decode(cached, 7, &err));
    OK(xlstm_decode(plain, 7, &err));
    assert_true(fx_same(cached, plain));
    xlstm_session_free(cached);
    xlstm_session_free(plain);
    return reused;
}

/* Texts that begin alike: each takes a random beginning of an earlier one. */
static void random_reads(xlstm_prefix_cache *c, xlstm_model *model, int rounds, uint64_t seed)
{
    enum { POOL = 6, MOST = 90 };
    int32_t pool[POOL][MOST];
    size_t length[POOL];
    for (int i = 0; i < POOL; i++) {
        length[i] = 1 + mk_next(&seed) % MOST;
        fx_tokens(pool[i], MOST, seed);
        if (mk_next(&seed) % 4 == 0) pool[i][0] = 0; /* brings its own BOS */
    }
    for (int round = 0; round < rounds; round++) {
        size_t to = mk_next(&seed) % POOL, from = mk_next(&seed) % POOL, same = mk_next(&seed) % (length[from] + 1);
        if (to != from) memcpy(pool[to], pool[from], same * sizeof(int32_t));
        length[to] = XL_MAX(same, 1 + mk_next(&seed) % MOST);
        read_both(c, model, pool[to], length[to]);
    }
}

static void test_bit_identical(void **unused)
{
    (void)unused;
    const uint32_t chunks[] = {1, 4, 8, 16}, spacings[] = {1, 8, 24, 64};
    for (size_t k = 0; k < XL_COUNT(chunks); k++) {
        for (int bos = 0; bos < 2; bos++) {
            xlstm_model *model = model_of(chunks[k], bos != 0 ? XLSTM_ON : XLSTM_OFF);
            assert_int_equal(model->info.bos_auto, bos);
            for (size_t s = 0; s < XL_COUNT(spacings); s++) {
                const xlstm_prefix_cache_options options = {.spacing = spacings[s]};
                xlstm_prefix_cache *c = cache_of(model, &options);
                random_reads(c, model, 60, 1000 * k + 10 * s + (uint64_t)bos);
                xlstm_prefix_cache_stats st = stats_of(c);
                assert_int_equal(st.lookups, 60);
                assert_true(st.hits > 5 && st.tokens_reused > 0 && st.failures == 0);
                xlstm_prefix_cache_free(c);
            }
            xlstm_model_free(model);
        }
    }
}

static void test_what_is_read_again(void **unused)
{
    (void)unused;
    enum { CHUNK = 8, SPACING = 64, LONG = 5000 };
    xlstm_model *model = model_of(CHUNK, XLSTM_ON);
    const xlstm_prefix_cache_options options = {.spacing = SPACING};
    xlstm_prefix_cache *c = cache_of(model, &options);
    int32_t *text = malloc(LONG * sizeof(*text));
    fx_tokens(text, LONG, 5);
    assert_int_equal(read_both(c, model, text, LONG), 0);
    assert_int_equal(read_both(c, model, text, LONG), LONG); /* the very same: nothing is read */
    /* longer by a turn: from the last chunk border on */
    int32_t longer[LONG + 20];
    memcpy(longer, text, LONG * sizeof(*text));
    fx_tokens(longer + LONG, 20, 6);
    assert_true(read_both(c, model, longer, LONG + 20) > LONG - CHUNK);
    /* an edit anywhere costs less than a spacing */
    for (size_t at = 1; at < LONG; at = at * 2 + 37) {
        int32_t old = text[at];
        text[at] = old == 3 ? 4 : 3;
        xlstm_session *s = fx_session(model);
        size_t reused;
        OK(xlstm_prefix_cache_read(c, s, text, LONG, &reused, &err));
        assert_true(reused <= at && reused + SPACING > at);
        xlstm_session_free(s);
        text[at] = old;
    }
    /* a beginning of it, at any length */
    for (size_t n = 1; n < 300; n += 13) assert_true(read_both(c, model, text, n) + SPACING > n - 1);
    free(text);
    xlstm_prefix_cache_free(c);
    xlstm_model_free(model);
}

/* The steps by themselves, as a scheduler takes them: several sessions in one batch. */
static void test_scheduler_steps(void **unused)
{
    (void)unused;
    enum { N = 3, MOST = 70 };
    xlstm_model *model = model_of(8, XLSTM_ON);
    const xlstm_prefix_cache_options options = {.spacing = 16};
    xlstm_prefix_cache *c = cache_of(model, &options);
    uint64_t seed = 8;
    int32_t text[N][MOST];
    for (int i = 0; i < N; i++) fx_tokens(text[i], MOST, 20);
    for (int round = 0; round < 30; round++) {
        xlstm_session *s[N];
        size_t n[N], done[N];
        for (int i = 0; i < N; i++) {
            n[i] = 1 + mk_next(&seed) % MOST;
            text[i][mk_next(&seed) % n[i]] = (int32_t)(2 + mk_next(&seed) % 20);
            s[i] = fx_session(model);
            OK(xlstm_prefix_cache_restore(c, s[i], text[i], n[i], &done[i], &err));
        }
        for (;;) {
            xlstm_segment batch[N];
            int who[N], count = 0;
            for (int i = 0; i < N; i++) {
                size_t piece = xlstm_prefix_cache_piece(c, text[i], n[i], done[i]);
                if (piece == 0) continue;
                who[count] = i;
                batch[count] = (xlstm_segment){.session = s[i], .tokens = text[i] + done[i], .count = piece,
                                               .want = done[i] + piece == n[i] ? XLSTM_WANT_LAST : XLSTM_WANT_NONE};
                count++;
                done[i] += piece;
                assert_true(done[i] <= n[i]);
            }
            if (count == 0) break;
            OK(xlstm_evaluate(model, batch, (size_t)count, &err));
            for (int k = 0; k < count; k++) OK(xlstm_prefix_cache_put(c, s[who[k]], text[who[k]], n[who[k]], &err));
        }
        for (int i = 0; i < N; i++) {
            xlstm_session *plain = fx_read(model, text[i], n[i]);
            assert_true(fx_same(s[i], plain));
            xlstm_session_free(plain);
            xlstm_session_free(s[i]);
        }
    }
    assert_true(stats_of(c).hits > 20);
    /* what the cache must not keep: a state inside a chunk that is no end, and one of other tokens */
    xlstm_session *s = fx_read(model, text[0], 5);
    uint64_t before = stats_of(c).ram_entries;
    OK(xlstm_prefix_cache_put(c, s, text[0], 9, &err));
    assert_int_equal(stats_of(c).ram_entries, before);
    int32_t wrong[5];
    fx_tokens(wrong, 5, 99);
    REFUSED(xlstm_prefix_cache_put(c, s, wrong, 5, &err), XLSTM_E_ARGUMENT, "other tokens");
    REFUSED(xlstm_prefix_cache_read(c, s, wrong, 0, NULL, &err), XLSTM_E_ARGUMENT, "no tokens");
    xlstm_model *stranger = model_of(8, XLSTM_ON);
    xlstm_session *theirs = fx_session(stranger);
    REFUSED(xlstm_prefix_cache_read(c, theirs, wrong, 5, NULL, &err), XLSTM_E_ARGUMENT, "another model");
    xlstm_session_free(theirs);
    xlstm_model_free(stranger);
    xlstm_session_free(s);
    xlstm_prefix_cache_free(c);
    xlstm_model_free(model);
}

static void test_budgets(void **unused)
{
    (void)unused;
    xlstm_model *model = model_of(4, XLSTM_OFF);
    size_t one = model->info.state_bytes + VOCAB * sizeof(float);
    char *folder = mk_folder();
    for (int disk = 0; disk < 2; disk++) {
        xlstm_prefix_cache_options options = {.ram_bytes = 6 * one, .spacing = 8};
        if (disk != 0) options.folder = folder;
        if (disk != 0) options.disk_bytes = 20 * (one + 4096);
        xlstm_prefix_cache *c = cache_of(model, &options);
        for (uint64_t seed = 0; seed < 10; seed++) {
            random_reads(c, model, 8, seed);
            xlstm_prefix_cache_stats s = stats_of(c);
            assert_true(s.ram_bytes <= options.ram_bytes);
            assert_true(disk != 0 ? s.disk_bytes <= options.disk_bytes && s.disk_entries > 0 : s.disk_bytes == 0);
        }
        xlstm_prefix_cache_stats s = stats_of(c);
        assert_true(s.evicted > 20 && s.failures == 0);
        assert_true(disk == 0 || s.disk_hits > 0);
        xlstm_prefix_cache_free(c);
    }
    /* the least recently used goes: a text that is read again and again stays, others pass through */
    const xlstm_prefix_cache_options options = {.ram_bytes = 8 * one, .spacing = 64};
    xlstm_prefix_cache *c = cache_of(model, &options);
    int32_t keeper[30], other[30];
    fx_tokens(keeper, 30, 1);
    read_both(c, model, keeper, 30);
    for (uint64_t i = 0; i < 20; i++) {
        fx_tokens(other, 30, 100 + i);
        assert_int_equal(read_both(c, model, other, 30), 0);
        assert_int_equal(read_both(c, model, keeper, 30), 30);
    }
    fx_tokens(other, 30, 100);
    assert_int_equal(read_both(c, model, other, 30), 0);
    xlstm_prefix_cache_free(c);
    /* a budget too small for anything still reads right */
    const xlstm_prefix_cache_options tiny = {.ram_bytes = 1};
    c = cache_of(model, &tiny);
    random_reads(c, model, 10, 3);
    assert_int_equal(stats_of(c).ram_entries, 0);
    xlstm_prefix_cache_free(c);
    fx_remove_tree(folder);
    xlstm_model_free(model);
}

/* Every file below a folder, one after the other. */
static char **files_below(const char *folder, size_t *n)
{
    char **list = NULL, *inner = NULL;
    *n = 0;
    DIR *dir = opendir(folder);
    for (struct dirent *d; (d = readdir(dir)) != NULL;) {
        if (d->d_name[0] != '.') inner = xl_join(folder, d->d_name, NULL);
    }
    closedir(dir);
    MK_CHECK(inner != NULL);
    dir = opendir(inner);
    for (struct dirent *d; (d = readdir(dir)) != NULL;) {
        if (d->d_name[0] == '.') continue;
        char **longer = realloc(list, (*n + 1) * sizeof(*list));
        assert_non_null(longer);
        list = longer;
        list[(*n)++] = xl_join(inner, d->d_name, NULL);
    }
    closedir(dir);
    free(inner);
    return list;
}

static void test_folder_outlives_the_process(void **unused)
{
    (void)unused;
    mk_model m = shape(8);
    char *weights = mk_folder(), *folder = mk_folder();
    mk_put_model(weights, &m);
    xlstm_model *model = fx_open(weights, XLSTM_F32, XLSTM_ON);
    const xlstm_prefix_cache_options options = {.folder = folder, .spacing = 32};
    int32_t text[200];
    fx_tokens(text, 200, 12);
    xlstm_prefix_cache *c = cache_of(model, &options);
    assert_int_equal(read_both(c, model, text, 200), 0);
    uint64_t entries = stats_of(c).ram_entries;
    xlstm_prefix_cache_free(c);
    xlstm_model_free(model);

    model = fx_open(weights, XLSTM_F32, XLSTM_ON);
    c = cache_of(model, &options);
    assert_int_equal(stats_of(c).disk_entries, entries);
    assert_int_equal(read_both(c, model, text, 200), 200);
    assert_int_equal(read_both(c, model, text, 199), 192 - 1); /* BOS counts: 192 tokens are 191 of these */
    assert_int_equal(stats_of(c).disk_hits, 2);
    assert_int_equal(read_both(c, model, text, 200), 200); /* from memory now */
    assert_int_equal(stats_of(c).disk_hits, 2);
    xlstm_prefix_cache_free(c);
    xlstm_model_free(model);

    /* other settings, other states */
    model = fx_open(weights, XLSTM_BF16, XLSTM_ON);
    c = cache_of(model, &options);
    assert_int_equal(stats_of(c).disk_entries, 0);
    assert_int_equal(read_both(c, model, text, 200), 0);
    xlstm_prefix_cache_free(c);
    xlstm_model_free(model);
    const char *const eps[] = {"norm_eps=1e-3"};
    const xlstm_model_options changed = {.backend = "reference", .bos = XLSTM_ON, .set = eps, .n_set = 1};
    OK(xlstm_model_open(&model, weights, &changed, &err));
    c = cache_of(model, &options);
    assert_int_equal(stats_of(c).disk_entries, 0);
    xlstm_prefix_cache_free(c);
    xlstm_model_free(model);
    /* weights in place are multiplied in another order */
    for (int in_place = 0; in_place < 2; in_place++) {
        OK(xlstm_model_open(&model, weights, &(xlstm_model_options){.backend = "cpu", .no_repack = in_place}, &err));
        c = cache_of(model, &options);
        assert_int_equal(stats_of(c).disk_entries, 0);
        assert_int_equal(read_both(c, model, text, 200), 0);
        xlstm_prefix_cache_free(c);
        xlstm_model_free(model);
    }
    fx_remove_tree(folder);
    fx_remove_tree(weights);
}

/* Whatever happens to its files, the cache reads right; it only reads more. */
static void test_damaged_files(void **unused)
{
    (void)unused;
    mk_model m = shape(8);
    char *weights = mk_folder();
    mk_put_model(weights, &m);
    xlstm_model *model = fx_open(weights, XLSTM_F32, XLSTM_OFF);
    int32_t text[100];
    fx_tokens(text, 100, 12);
    uint64_t seed = 4, failures = 0;
    for (int round = 0; round < 60; round++) {
        char *folder = mk_folder();
        const xlstm_prefix_cache_options options = {.folder = folder, .spacing = 16};
        xlstm_prefix_cache *c = cache_of(model, &options);
        read_both(c, model, text, 100);
        xlstm_prefix_cache_free(c);
        size_t n;
        char **files = files_below(folder, &n);
        assert_true(n >= 7);
        if (round % 2 == 0) c = cache_of(model, &options); /* damaged before or after they are found */
        for (size_t i = 0; i < n; i++) {
            uint64_t kind = mk_next(&seed) % 4;
            size_t size = fx_file_size(files[i]);
            if (kind == 0) assert_int_equal(unlink(files[i]), 0);
            if (kind == 1) assert_int_equal(truncate(files[i], (off_t)(mk_next(&seed) % size)), 0);
            if (kind == 2) {
                FILE *f = fopen(files[i], "r+b");
                fseek(f, (long)(mk_next(&seed) % size), SEEK_SET);
                int byte = fgetc(f);
                fseek(f, -1, SEEK_CUR);
                fputc(byte ^ 0x40, f);
                fclose(f);
            }
            free(files[i]);
        }
        free(files);
        if (round % 2 != 0) c = cache_of(model, &options);
        for (int i = 0; i < 3; i++) read_both(c, model, text, 100 - (size_t)i);
        failures += stats_of(c).failures;
        xlstm_prefix_cache_free(c);
        fx_remove_tree(folder);
    }
    assert_true(failures > 10);
    /* a folder that cannot be written costs the entries, not the reading */
    char *folder = mk_folder();
    const xlstm_prefix_cache_options options = {.folder = folder, .ram_bytes = 1000, .spacing = 16};
    xlstm_prefix_cache *c = cache_of(model, &options);
    fx_remove_tree(folder);
    read_both(c, model, text, 100);
    assert_true(stats_of(c).failures > 0);
    xlstm_prefix_cache_free(c);
    const xlstm_prefix_cache_options nowhere = {.folder = "/dev/null/x"};
    REFUSED(xlstm_prefix_cache_new(&c, model, &nowhere, &err), XLSTM_E_IO, "/dev/null/x");
    fx_remove_tree(weights);
    xlstm_model_free(model);
}

typedef struct reader {
    xlstm_prefix_cache *cache;
    xlstm_model *model;
    uint64_t seed;
    bool good;
} reader;

enum { THREADS = 4, SHARED = 5, MOST = 60 };
static int32_t shared[SHARED][MOST];
static xlstm_state *expected[SHARED][MOST + 1];

static void *read_in_thread(void *arg)
{
    reader *r = arg;
    xlstm_session *s = NULL;
    r->good = xlstm_session_new(&s, r->model, NULL) == XLSTM_OK;
    for (int round = 0; r->good && round < 60; round++) {
        size_t which = mk_next(&r->seed) % SHARED, n = 1 + mk_next(&r->seed) % MOST;
        xlstm_state *now = NULL;
        r->good = xlstm_prefix_cache_read(r->cache, s, shared[which], n, NULL, NULL) == XLSTM_OK &&
                  xlstm_state_snapshot(&now, s, NULL) == XLSTM_OK && fx_same_state(now, expected[which][n]);
        xlstm_state_free(now);
    }
    xlstm_session_free(s);
    return NULL;
}

static void test_threads(void **unused)
{
    (void)unused;
    xlstm_model *model = model_of(8, XLSTM_ON);
    char *folder = mk_folder();
    for (int i = 0; i < SHARED; i++) {
        fx_tokens(shared[i], MOST, 1);
        fx_tokens(shared[i] + 10 * i, MOST - 10 * (size_t)i, 2 + (uint64_t)i);
        for (size_t n = 1; n <= MOST; n++) {
            xlstm_session *s = fx_read(model, shared[i], n);
            expected[i][n] = fx_snapshot(s);
            xlstm_session_free(s);
        }
    }
    size_t one = model->info.state_bytes + VOCAB * sizeof(float);
    for (int disk = 0; disk < 2; disk++) {
        xlstm_prefix_cache_options options = {.ram_bytes = 9 * one, .spacing = 16, .disk_bytes = 12 * (one + 4096)};
        if (disk != 0) options.folder = folder;
        xlstm_prefix_cache *c = cache_of(model, &options);
        reader readers[THREADS];
        pthread_t threads[THREADS];
        for (int i = 0; i < THREADS; i++) {
            readers[i] = (reader){c, model, 50 + (uint64_t)i, false};
            assert_int_equal(pthread_create(&threads[i], NULL, read_in_thread, &readers[i]), 0);
        }
        for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(threads[i], NULL), 0);
        for (int i = 0; i < THREADS; i++) assert_true(readers[i].good);
        xlstm_prefix_cache_stats s = stats_of(c);
        assert_int_equal(s.failures, 0);
        assert_true(s.hits > 0 && s.ram_bytes <= options.ram_bytes && s.disk_bytes <= options.disk_bytes);
        xlstm_prefix_cache_free(c);
    }
    for (int i = 0; i < SHARED; i++) {
        for (size_t n = 1; n <= MOST; n++) xlstm_state_free(expected[i][n]);
    }
    fx_remove_tree(folder);
    xlstm_model_free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bit_identical),
        cmocka_unit_test(test_what_is_read_again),
        cmocka_unit_test(test_scheduler_steps),
        cmocka_unit_test(test_budgets),
        cmocka_unit_test(test_folder_outlives_the_process),
        cmocka_unit_test(test_damaged_files),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
