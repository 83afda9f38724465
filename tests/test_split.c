/*
 * test_split.c — models whose first blocks run on one backend and the rest on another: the same bits as on one, for every
 * cut, in any company; states that move between split and whole; faults, traces and failures of either side; a first
 * side that records and replays its part, as cuda does. Golden numbers: test_golden.c.
 */
#include "count_allocations.h"
#include "make_model.h"
#include "model.h"
#include "poison.h"
#include "split_backend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define SHIPPED "models/xlstm-stories-10m"
enum { SHIPPED_BLOCKS = 10, SHIPPED_VOCAB = 4096 };

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

#define OK(call)                                                                                                       \
    do {                                                                                                               \
        xlstm_error err = {0};                                                                                         \
        if ((call) != XLSTM_OK) fail_msg("%s: %s", #call, err.message);                                                \
    } while (0)

static xlstm_model *open_with(const char *path, const char *backend, uint32_t blocks, xlstm_model_options o)
{
    xlstm_model *m = NULL;
    o.backend = backend;
    o.offload_blocks = blocks;
    OK(xlstm_model_open(&m, path, &o, &err));
    assert_int_equal(m->offloaded, blocks);
    return m;
}

static xlstm_session *new_session(xlstm_model *m)
{
    xlstm_session *s = NULL;
    OK(xlstm_session_new(&s, m, &err));
    return s;
}

static void random_ids(int32_t *ids, size_t n, uint32_t vocab, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(2 + mk_next(&seed) % (vocab - 2));
}

static xlstm_state *snapshot(const xlstm_session *s)
{
    xlstm_state *state = NULL;
    OK(xlstm_state_snapshot(&state, s, &err));
    return state;
}

/* Logits, position and state equal to the last bit. */
static void assert_same(const xlstm_session *a, const xlstm_session *b)
{
    xlstm_state *x = snapshot(a), *y = snapshot(b);
    void *p, *q;
    size_t n, k;
    OK(xlstm_state_serialize(&p, &n, x, NULL, &err));
    OK(xlstm_state_serialize(&q, &k, y, NULL, &err));
    assert_int_equal(n, k);
    assert_memory_equal(p, q, n);
    xlstm_free(p);
    xlstm_free(q);
    xlstm_state_free(x);
    xlstm_state_free(y);
}

static double largest_difference(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

/* ---- the same bits ------------------------------------------------------------------------------------------------ */

enum { SEQUENCES = 4, LONGEST = 90, TOKENS = 1 + 17 + 40 + LONGEST, VOCAB = 48, BLOCKS = 5 };
static const size_t lengths[SEQUENCES] = {1, 17, 40, LONGEST};

typedef struct outcome {
    xlstm_session *s[SEQUENCES];
    float *logits; /* [TOKENS + SEQUENCES + 7][VOCAB] */
} outcome;
enum { OUTCOME_ROWS = TOKENS + SEQUENCES + 7 };

/* A ragged batch of prompts, a step of them all in another order, and a piece of prompt beside two steps. */
static outcome evaluate_all(xlstm_model *m)
{
    outcome out = {.logits = malloc(OUTCOME_ROWS * VOCAB * sizeof(float))};
    int32_t ids[SEQUENCES][LONGEST], more[7];
    xlstm_segment g[SEQUENCES];
    float *to = out.logits;
    for (size_t i = 0; i < SEQUENCES; i++) {
        random_ids(ids[i], lengths[i], VOCAB, i);
        out.s[i] = new_session(m);
        g[i] = (xlstm_segment){
            .session = out.s[i], .tokens = ids[i], .count = lengths[i], .want = XLSTM_WANT_ALL, .logits = to};
        to += lengths[i] * VOCAB;
    }
    OK(xlstm_evaluate(m, g, SEQUENCES, &err));
    random_ids(more, 7, VOCAB, 99);
    for (size_t i = 0; i < SEQUENCES; i++) {
        g[i] = (xlstm_segment){
            .session = out.s[SEQUENCES - 1 - i], .tokens = &more[i], .count = 1, .want = XLSTM_WANT_ALL, .logits = to};
        to += VOCAB;
    }
    OK(xlstm_evaluate(m, g, SEQUENCES, &err));
    for (size_t i = 0; i < 3; i++) {
        g[i] = (xlstm_segment){
            .session = out.s[i], .tokens = more, .count = i == 1 ? 5 : 1, .want = XLSTM_WANT_ALL, .logits = to};
        to += g[i].count * VOCAB;
    }
    OK(xlstm_evaluate(m, g, 3, &err));
    assert_ptr_equal(to, out.logits + OUTCOME_ROWS * VOCAB);
    return out;
}

static void free_outcome(outcome *o)
{
    for (size_t i = 0; i < SEQUENCES; i++) xlstm_session_free(o->s[i]);
    free(o->logits);
}

static const struct {
    mk_model model;
    xlstm_model_options options;
} variants[] = {
    {{.blocks = BLOCKS, .seed = 1}, {.max_rows = 64}},
    {{.blocks = BLOCKS, .seed = 2, .fused = true, .use_bias = true, .chunk_size = 16}, {.max_rows = 24}},
    {{.blocks = BLOCKS, .seed = 3, .tied = true, .dtype = XLSTM_BF16}, {.dtype = XLSTM_BF16}},
    {{.blocks = BLOCKS, .seed = 4, .tied = true, .chunk_size = 16}, {.dtype = XLSTM_F16, .max_rows = 50}},
    {{.blocks = BLOCKS, .seed = 5, .no_out_norm = true}, {.state_dtype = XLSTM_I8}},
    {{.blocks = BLOCKS, .seed = 6, .scheme = "gguf", .dtype = XLSTM_Q8_0}, {.state_dtype = XLSTM_BF16}},
    {{.blocks = BLOCKS, .seed = 7, .scheme = "gguf", .dtype = XLSTM_Q4_0, .tied = true}, {.max_rows = 64}},
    {{.blocks = BLOCKS, .seed = 8, .dtype = XLSTM_BF16, .tied = true}, {.no_repack = true, .max_rows = 64}},
    {{.blocks = BLOCKS, .seed = 9, .use_bias = true},
     {.dtype = XLSTM_BF16, .kernel_dtype = XLSTM_BF16, .norm_reduction_float32 = XLSTM_OFF}},
};

/* Both sides on one backend give what that backend gives alone, whatever the cut and the number of threads. */
static void same_bits(const char *backend)
{
    for (size_t v = 0; v < XL_COUNT(variants); v++) {
        char *folder = mk_folder();
        mk_put_model(folder, &variants[v].model);
        xlstm_model_options o = variants[v].options;
        o.threads = 1;
        xlstm_model *whole = open_with(folder, backend, 0, o);
        outcome want = evaluate_all(whole);
        for (uint32_t k = 1; k < BLOCKS; k++) {
            o.threads = 1 + (k + (uint32_t)v) % 3;
            xlstm_model *m = open_with(folder, backend, k, o);
            assert_int_equal(m->info.state_bytes, whole->info.state_bytes);
            if (!variants[v].model.tied) assert_int_equal(m->info.weight_bytes, whole->info.weight_bytes);
            outcome got = evaluate_all(m);
            assert_memory_equal(got.logits, want.logits, OUTCOME_ROWS * VOCAB * sizeof(float));
            for (size_t i = 0; i < SEQUENCES; i++) assert_same(got.s[i], want.s[i]);
            free_outcome(&got);
            xlstm_model_free(m);
        }
        free_outcome(&want);
        xlstm_model_free(whole);
        mk_remove_folder(folder);
    }
}

static void test_cpu_and_cpu_is_cpu(void **state)
{
    (void)state;
    same_bits("cpu");
}

static void test_reference_and_cpu_agree_with_the_oracle(void **state)
{
    (void)state;
    mk_model model = {.blocks = BLOCKS, .seed = 11, .use_bias = true, .chunk_size = 16};
    char *folder = mk_folder();
    mk_put_model(folder, &model);
    xlstm_model *oracle = open_with(folder, "reference64", 0, (xlstm_model_options){0});
    outcome want = evaluate_all(oracle);
    for (uint32_t k = 1; k < BLOCKS; k++) {
        xlstm_model *m = open_with(folder, "reference", k, (xlstm_model_options){.threads = 2, .max_rows = 40});
        outcome got = evaluate_all(m);
        assert_true(largest_difference(got.logits, want.logits, OUTCOME_ROWS * VOCAB) < 1e-4);
        free_outcome(&got);
        xlstm_model_free(m);
    }
    free_outcome(&want);
    xlstm_model_free(oracle);
    mk_remove_folder(folder);
}

/* ---- states ------------------------------------------------------------------------------------------------------- */

/* A text begun on one model and gone on with on another, through a file, must end as on one alone. */
static void test_states_move_between_split_and_whole(void **state)
{
    (void)state;
    enum { N = 100, HALF = 55 };
    static const xlstm_dtype formats[] = {XLSTM_F32, XLSTM_BF16, XLSTM_I8};
    static const uint32_t cuts[] = {0, 1, 3, 4};
    mk_model model = {.blocks = BLOCKS, .seed = 10, .use_bias = true, .chunk_size = 16};
    int32_t ids[N];
    random_ids(ids, N, VOCAB, 3);
    char *folder = mk_folder(), path[300];
    mk_put_model(folder, &model);
    snprintf(path, sizeof(path), "%s/a.state", folder);
    for (size_t f = 0; f < XL_COUNT(formats); f++) {
        xlstm_model *m[XL_COUNT(cuts)];
        xlstm_model_options o = {.state_dtype = formats[f], .threads = 2};
        for (size_t c = 0; c < XL_COUNT(cuts); c++) m[c] = open_with(folder, "cpu", cuts[c], o);
        xlstm_session *want = new_session(m[0]);
        OK(xlstm_prefill(want, ids, HALF, &err));
        OK(xlstm_prefill(want, ids + HALF, N - HALF, &err));
        for (size_t i = 0; i < XL_COUNT(cuts) * XL_COUNT(cuts); i++) {
            xlstm_model *from = m[i / XL_COUNT(cuts)], *to = m[i % XL_COUNT(cuts)];
            xlstm_session *a = new_session(from), *b = new_session(to), *fork;
            OK(xlstm_prefill(a, ids, HALF, &err));
            xlstm_state *saved = snapshot(a), *loaded;
            OK(xlstm_state_save(saved, path, "a note", &err));
            OK(xlstm_state_load(&loaded, to, path, true, &err));
            OK(xlstm_state_restore(b, loaded, &err));
            assert_same(a, b);
            OK(xlstm_session_fork(&fork, b, &err));
            OK(xlstm_prefill(b, ids + HALF, N - HALF, &err));
            OK(xlstm_prefill(fork, ids + HALF, N - HALF, &err));
            assert_same(b, want);
            assert_same(fork, want);
            OK(xlstm_session_reset(b, &err)); /* both parts are zero again */
            OK(xlstm_prefill(b, ids, HALF, &err));
            assert_same(a, b);
            xlstm_state_free(saved);
            xlstm_state_free(loaded);
            xlstm_session_free(a);
            xlstm_session_free(b);
            xlstm_session_free(fork);
        }
        xlstm_session_free(want);
        for (size_t c = 0; c < XL_COUNT(cuts); c++) xlstm_model_free(m[c]);
    }
    mk_remove_folder(folder);
}

/* ---- traces and faults ---------------------------------------------------------------------------------------------- */

static void keep_stage(void *user, int block, const char *stage, const float *values, size_t rows, size_t width)
{
    xl_text *text = user;
    xl_text_addf(text, "%d %s %zu %zu ", block, stage, rows, width);
    xl_text_add(text, (const char *)values, rows * width * sizeof(float));
}

/* Every stage, in order and with its values, whichever side it was computed on; and the pass goes on undisturbed. */
static void test_traces_are_those_of_the_whole(void **state)
{
    (void)state;
    mk_model model = {.blocks = BLOCKS, .seed = 12, .use_bias = true, .chunk_size = 16};
    char *folder = mk_folder();
    mk_put_model(folder, &model);
    int32_t ids[40];
    random_ids(ids, 40, VOCAB, 4);
    xl_text want = {0};
    for (uint32_t k = 0; k < BLOCKS; k++) {
        xlstm_model *m = open_with(folder, "cpu", k, (xlstm_model_options){.threads = 2, .max_rows = 32});
        xlstm_session *traced = new_session(m), *plain = new_session(m);
        xl_text got = {0};
        xlstm_session_set_trace(traced, keep_stage, &got);
        OK(xlstm_prefill(traced, ids, 39, &err));
        OK(xlstm_decode(traced, ids[39], &err));
        OK(xlstm_prefill(plain, ids, 39, &err));
        OK(xlstm_decode(plain, ids[39], &err));
        assert_same(traced, plain);
        assert_false(got.failed);
        if (k > 0) {
            assert_int_equal(got.size, want.size);
            assert_memory_equal(got.data, want.data, want.size);
            free(got.data);
        } else {
            want = got;
        }
        xlstm_session_free(traced);
        xlstm_session_free(plain);
        xlstm_model_free(m);
    }
    free(want.data);
    mk_remove_folder(folder);
}

static void test_faults_of_either_side_are_named(void **state)
{
    (void)state;
    enum { NAN16 = 0x7fc0, K = 5 };
    static const struct {
        const char *tensor, *second, *where, *stage; /* `second`: poisoned as well, noticed later */
        size_t element;
    } cases[] = {
        {"backbone.blocks.2.mlstm_layer.v.weight", NULL, "block 2", "multihead_norm", 3},
        {"backbone.blocks.7.mlstm_layer.igate_preact.weight", NULL, "block 7", "mlstm cell", 3},
        {"backbone.blocks.4.ffn.proj_down.weight", NULL, "block 5", "norm_mlstm", 3}, /* seen after the crossing */
        {"backbone.blocks.2.mlstm_layer.out_proj.weight", "backbone.blocks.7.mlstm_layer.v.weight", "block 2",
         "norm_ffn", 3},
        {"lm_head.weight", NULL, "after the last block", "logits", 3},
        {"backbone.embeddings.weight", NULL, "block 0", "norm_mlstm", 77 * 256},
    };
    int32_t ids[20], clean[20];
    random_ids(ids, 20, SHIPPED_VOCAB, 5);
    for (int i = 0; i < 20; i++) {
        if (ids[i] == 77) ids[i] = 78;
        clean[i] = ids[i];
    }
    ids[12] = 77;
    for (size_t c = 0; c < XL_COUNT(cases); c++) {
        char *folder = poisoned_copy(SHIPPED, cases[c].tensor, cases[c].element);
        if (cases[c].second != NULL) (void)poison_weight(folder, cases[c].second, 3, NAN16);
        for (int b = 0; b < 2; b++) {
            xlstm_model *m = open_with(folder, b == 0 ? "reference" : "cpu", K, (xlstm_model_options){.threads = 2});
            xlstm_session *s = new_session(m), *other = new_session(m);
            xlstm_segment g[2] = {{.session = other, .tokens = clean, .count = 20, .want = XLSTM_WANT_LAST},
                                  {.session = s, .tokens = ids, .count = 20, .want = XLSTM_WANT_LAST}};
            xlstm_error why = {0};
            assert_int_equal(xlstm_evaluate(m, g, 2, &why), XLSTM_E_NONFINITE);
            if (strstr(why.message, cases[c].where) == NULL || strstr(why.message, cases[c].stage) == NULL) {
                fail_msg("%s: %s", cases[c].tensor, why.message);
            }
            bool row = cases[c].element != 3; /* an embedding row poisons only the one who reads it */
            assert_int_equal(g[0].status, row ? XLSTM_OK : XLSTM_E_NONFINITE);
            assert_int_equal(g[1].status, XLSTM_E_NONFINITE);
            if (row) assert_non_null(strstr(why.message, "position 13"));
            assert_int_equal(xlstm_decode(s, 5, &why), XLSTM_E_NONFINITE);
            assert_int_equal(xlstm_session_reset(s, NULL), XLSTM_OK);
            if (row) {
                OK(xlstm_prefill(s, clean, 20, &err));
                assert_same(s, other);
            }
            xlstm_session_free(s);
            xlstm_session_free(other);
            if (b == 0) { /* looking for the origin takes its time with the reference */
                xlstm_model_free(m);
                continue;
            }
            xlstm_fault f;
            OK(xlstm_locate_fault(&f, m, NULL, ids, 20, &err));
            assert_true(f.found);
            assert_int_equal(strncmp(f.culprit, cases[c].tensor, strlen(cases[c].tensor)), 0);
            xlstm_model_free(m);
        }
        remove_folder(folder);
    }
}

/* ---- a first side that records, replays and fails ----------------------------------------------------------------- */

/* What cuda does with a pass, on top of the reference backend: operations are kept until submit or until a buffer is
 * read; a pass of single tokens whose number of rows was seen before is replayed, and its operations are not wanted. */
typedef struct call {
    enum { EMBED, RMSNORM, LINEAR, MLSTM, MHNORM, SWIGLU, ADD } kind;
    xl_buffer *y;
    const xl_buffer *x, *x2;
    const xl_matrix *matrix;
    xl_norm norm;
    xl_mlstm cell;
    xl_linear group[8];
    uint32_t n;
} call;

static struct {
    const xl_backend_ops *real;
    xl_backend_ops ops;
    call calls[200], recorded[200];
    size_t n, n_recorded;
    uint32_t rows;
    bool single, replaying, traced;
    int replays, fail_begin, fail_submit, fail_read; /* the n-th from now fails */
} device;

static call *next_call(int kind)
{
    assert_false(device.replaying);
    assert_true(device.n < XL_COUNT(device.calls));
    call *c = &device.calls[device.n++];
    memset(c, 0, sizeof(*c));
    c->kind = kind;
    return c;
}

static void run_calls(xl_backend *be, const call *c, size_t n)
{
    for (; n > 0; n--, c++) {
        switch (c->kind) {
        case EMBED:
            device.real->embed(be, c->y, c->matrix);
            break;
        case RMSNORM:
            device.real->rmsnorm(be, c->y, c->x, &c->norm, false);
            break;
        case LINEAR:
            device.real->linear(be, c->group, c->n, c->x, false);
            break;
        case MLSTM:
            device.real->mlstm(be, &c->cell);
            break;
        case MHNORM:
            device.real->mhnorm_gate(be, c->y, c->x, c->x2, &c->norm);
            break;
        case SWIGLU:
            device.real->swiglu(be, c->y, c->x, c->x2);
            break;
        case ADD:
            device.real->add(be, c->y, c->x, c->n);
            break;
        }
    }
}

static bool due(int *countdown) { return *countdown > 0 && --*countdown == 0; }
static int lost(xlstm_error *err) { return xl_fail(err, XLSTM_E_DEVICE, "the device is lost"); }

static int device_begin(xl_backend *be, const xl_batch *batch, bool *replay, xlstm_error *err)
{
    assert_int_equal(batch->n_out, 0); /* logits are the other side's */
    if (due(&device.fail_begin)) return lost(err);
    int result = device.real->begin(be, batch, replay, err);
    device.n = 0;
    device.single = batch->n_runs == batch->rows;
    device.traced = batch->traced;
    *replay = device.replaying = device.single && !batch->traced && device.rows == batch->rows;
    device.rows = device.single && !batch->traced ? batch->rows : 0;
    return result;
}

static int device_submit(xl_backend *be, uint32_t *faults, xlstm_error *err)
{
    if (due(&device.fail_submit)) {
        (void)device.real->submit(be, faults, err);
        device.rows = 0;
        return lost(err);
    }
    if (device.replaying) {
        assert_int_equal(device.n, 0);
        run_calls(be, device.recorded, device.n_recorded);
        device.replays++;
    } else {
        run_calls(be, device.calls, device.n);
        memcpy(device.recorded, device.calls, sizeof(device.calls));
        device.n_recorded = device.n;
    }
    device.n = 0;
    device.replaying = false;
    return device.real->submit(be, faults, err);
}

static int device_read(xl_backend *be, const xl_buffer *b, size_t first, float *out, size_t n, xlstm_error *err)
{
    if (due(&device.fail_read)) return lost(err);
    assert_false(device.replaying);
    assert_true(device.n == 0 || device.traced); /* nothing else reads in the middle */
    run_calls(be, device.calls, device.n);
    device.n = 0;
    return device.real->buffer_read(be, b, first, out, n, err);
}

static void device_embed(xl_backend *be, xl_buffer *x, const xl_matrix *embedding)
{
    (void)be;
    call *c = next_call(EMBED);
    c->y = x;
    c->matrix = embedding;
}

static void device_rmsnorm(xl_backend *be, xl_buffer *y, const xl_buffer *x, const xl_norm *norm, bool out_rows)
{
    (void)be;
    assert_false(out_rows);
    call *c = next_call(RMSNORM);
    c->y = y;
    c->x = x;
    c->norm = *norm;
}

static void device_linear(xl_backend *be, const xl_linear *group, uint32_t n, const xl_buffer *x, bool out_rows)
{
    (void)be;
    assert_false(out_rows);
    call *c = next_call(LINEAR);
    c->x = x;
    c->n = n;
    memcpy(c->group, group, n * sizeof(*group));
}

static void device_mlstm(xl_backend *be, const xl_mlstm *op)
{
    (void)be;
    next_call(MLSTM)->cell = *op;
}

static void device_mhnorm(xl_backend *be, xl_buffer *g, const xl_buffer *h, const xl_buffer *o, const xl_norm *norm)
{
    (void)be;
    call *c = next_call(MHNORM);
    c->y = g;
    c->x = h;
    c->x2 = o;
    c->norm = *norm;
}

static void device_swiglu(xl_backend *be, xl_buffer *a, const xl_buffer *gate, const xl_buffer *up)
{
    (void)be;
    call *c = next_call(SWIGLU);
    c->y = a;
    c->x = gate;
    c->x2 = up;
}

static void device_add(xl_backend *be, xl_buffer *x, const xl_buffer *y, uint32_t width)
{
    (void)be;
    call *c = next_call(ADD);
    c->y = x;
    c->x = y;
    c->n = width;
}

/* Opens a model whose first side behaves like that; gather and softcap are not for it. */
static xlstm_model *open_device(const char *path, uint32_t blocks)
{
    xlstm_model *m = open_with(path, "reference", blocks, (xlstm_model_options){.threads = 2});
    xl_backend *first = xl_split_side(m->backend, 0);
    memset(&device, 0, sizeof(device));
    device.real = first->ops;
    device.ops = *first->ops;
    device.ops.begin = device_begin;
    device.ops.submit = device_submit;
    device.ops.buffer_read = device_read;
    device.ops.embed = device_embed;
    device.ops.rmsnorm = device_rmsnorm;
    device.ops.linear = device_linear;
    device.ops.mlstm = device_mlstm;
    device.ops.mhnorm_gate = device_mhnorm;
    device.ops.swiglu = device_swiglu;
    device.ops.add = device_add;
    device.ops.gather = NULL;
    device.ops.softcap = NULL;
    first->ops = &device.ops;
    return m;
}

static void test_a_first_side_may_replay_its_part(void **state)
{
    (void)state;
    enum { K = 3, STEPS = 6 };
    int32_t ids[STEPS + 40];
    random_ids(ids, STEPS + 40, VOCAB, 6);
    mk_model model = {.blocks = BLOCKS, .seed = 14, .use_bias = true};
    char *folder = mk_folder();
    mk_put_model(folder, &model);
    xlstm_model *plain = open_with(folder, "reference", K, (xlstm_model_options){.threads = 2}),
                *m = open_device(folder, K);
    xlstm_session *want[2], *got[2];
    for (int i = 0; i < 2; i++) {
        want[i] = new_session(plain);
        got[i] = new_session(m);
        OK(xlstm_prefill(want[i], ids + i, 40, &err));
        OK(xlstm_prefill(got[i], ids + i, 40, &err));
    }
    for (int t = 0; t < STEPS; t++) {
        int a = t % 2, b = 1 - a; /* the sessions change places: a replay must not remember them */
        xlstm_segment w[2] = {{.session = want[a], .tokens = &ids[t], .count = 1, .want = XLSTM_WANT_LAST},
                              {.session = want[b], .tokens = &ids[t + 1], .count = 1, .want = XLSTM_WANT_LAST}};
        xlstm_segment g[2] = {w[0], w[1]};
        g[0].session = got[a];
        g[1].session = got[b];
        OK(xlstm_evaluate(plain, w, 2, &err));
        OK(xlstm_evaluate(m, g, 2, &err));
        for (int i = 0; i < 2; i++) assert_same(got[i], want[i]);
    }
    assert_int_equal(device.replays, STEPS - 1);
    xl_text stages = {0};
    xlstm_session_set_trace(got[0], keep_stage, &stages); /* a traced pass is never replayed */
    OK(xlstm_decode(got[0], 9, &err));
    OK(xlstm_decode(want[0], 9, &err));
    assert_same(got[0], want[0]);
    assert_int_equal(device.replays, STEPS - 1);
    free(stages.data);
    for (int i = 0; i < 2; i++) {
        xlstm_session_free(want[i]);
        xlstm_session_free(got[i]);
    }
    xlstm_model_free(plain);
    xlstm_model_free(m);
    mk_remove_folder(folder);
}

static void test_a_lost_device_fails_the_pass_and_no_more(void **state)
{
    (void)state;
    int32_t ids[30];
    random_ids(ids, 30, VOCAB, 7);
    mk_model model = {.blocks = BLOCKS, .seed = 15};
    char *folder = mk_folder();
    mk_put_model(folder, &model);
    xlstm_model *m = open_device(folder, 4);
    xlstm_session *good = new_session(m), *s = new_session(m);
    OK(xlstm_prefill(good, ids, 30, &err));
    int *const ways[] = {&device.fail_begin, &device.fail_submit, &device.fail_read};
    for (size_t i = 0; i < XL_COUNT(ways); i++) {
        xlstm_error why = {0};
        *ways[i] = 1;
        assert_int_equal(xlstm_prefill(s, ids, 30, &why), XLSTM_E_DEVICE);
        assert_string_equal(why.message, "the device is lost");
        assert_int_equal(*ways[i], 0);
        assert_null(xlstm_session_logits(s));
        assert_int_equal(xlstm_decode(s, 5, &why), XLSTM_E_NONFINITE);
        *ways[i] = 1;
        OK(xlstm_session_reset(s, &err));
        assert_int_equal(xlstm_prefill(s, ids, 30, NULL), XLSTM_E_DEVICE);
        OK(xlstm_session_reset(s, &err));
        OK(xlstm_prefill(s, ids, 30, &err));
        assert_same(s, good);
        OK(xlstm_session_reset(s, &err));
    }
    xlstm_session_free(good);
    xlstm_session_free(s);
    xlstm_model_free(m);
    mk_remove_folder(folder);
}

/* ---- memory ------------------------------------------------------------------------------------------------------- */

static void test_evaluation_allocates_nothing(void **state)
{
    (void)state;
#if COUNTS_ALLOCATIONS
    int32_t ids[700];
    random_ids(ids, 700, SHIPPED_VOCAB, 8);
    xlstm_model *m = open_with(SHIPPED, "cpu", 4, (xlstm_model_options){.threads = 2});
    xlstm_session *s = new_session(m);
    long before = allocations;
    OK(xlstm_prefill(s, ids, 700, &err));
    for (int i = 0; i < 5; i++) OK(xlstm_decode(s, ids[i], &err));
    assert_int_equal(allocations, before);
    xlstm_session_free(s);
    xlstm_model_free(m);
#else
    skip();
#endif
}

static size_t room_left;
static size_t little_room(const xl_backend *be)
{
    (void)be;
    return room_left;
}

/* The advice when device memory runs out after all weights are loaded. 64 rows of buffers are 494 KB, a block's part of a
 * state 8.5 KB; of the weights' bytes 97 % are the blocks'. */
static void test_advice_says_how_many_blocks_fit(void **state)
{
    (void)state;
    enum { MB = 1 << 20 };
    mk_model model = {.blocks = BLOCKS, .seed = 13, .dim = 128, .ffn = 256};
    char *folder = mk_folder();
    mk_put_model(folder, &model);
    xlstm_model *m = open_with(folder, "reference", 0, (xlstm_model_options){.max_rows = 64});
    const xl_backend_ops *real = m->backend->ops;
    xl_backend_ops ops = *real;
    ops.room = little_room;
    static const struct {
        size_t before, after; /* bytes free */
        const char *text;
    } cases[] = {
        {100 * MB, 75 * MB, "failed; about 4 of the 5 blocks fit: --offload-blocks 4"},
        {3 * MB, 0, "failed; about 3 of the 5 blocks fit: --offload-blocks 3"},
        {MB, 0, "failed; about 2 of the 5 blocks fit: --offload-blocks 2"},
        {MB / 2, 0, "failed"},
    };
    xlstm_error err;
    (void)xl_fail(&err, XLSTM_E_MEMORY, "failed");
    xl_advise_offload(m, 100 * (size_t)MB, &err); /* this backend lives in the host's memory */
    assert_string_equal(err.message, "failed");
    m->backend->ops = &ops;
    for (size_t c = 0; c < XL_COUNT(cases); c++) {
        room_left = cases[c].after;
        (void)xl_fail(&err, XLSTM_E_MEMORY, "failed");
        xl_advise_offload(m, cases[c].before, &err);
        if (strcmp(err.message, cases[c].text) != 0) fail_msg("%s, not %s", err.message, cases[c].text);
    }
    xl_advise_offload(m, SIZE_MAX, &err);
    xl_advise_offload(m, MB, NULL);
    m->backend->ops = real;
    xlstm_model_free(m);
    mk_remove_folder(folder);
}

/* ---- asking for it -------------------------------------------------------------------------------------------------- */

static void refused(const xlstm_model_options *o, int code, const char *part)
{
    xlstm_model *m;
    xlstm_error err = {0};
    assert_int_equal(xlstm_model_open(&m, SHIPPED, o, &err), code);
    assert_null(m);
    if (strstr(err.message, part) == NULL) fail_msg("%s", err.message);
}

static void test_asking_for_it(void **state)
{
    (void)state;
    refused(&(xlstm_model_options){.offload_blocks = 3}, XLSTM_E_ARGUMENT, "--backend cuda --offload-blocks 3");
    refused(&(xlstm_model_options){.offload_blocks = 3, .backend = "reference64"}, XLSTM_E_UNSUPPORTED, "float64");
    refused(&(xlstm_model_options){.offload_blocks = 3, .backend = "abacus"}, XLSTM_E_UNSUPPORTED, "abacus");
    xlstm_model *m = open_with(SHIPPED, "reference", 4, (xlstm_model_options){.threads = 2});
    const char *text = m->info.backend;
    assert_non_null(strstr(text, "reference (scalar, 1 thread) for blocks 0..3, cpu ("));
    assert_non_null(strstr(text, ", 2 threads) for the rest"));
    xlstm_model_free(m);
    for (uint32_t k = SHIPPED_BLOCKS; k < SHIPPED_BLOCKS + 2; k++) { /* all of them: not split */
        OK(xlstm_model_open(&m, SHIPPED, &(xlstm_model_options){.backend = "reference", .offload_blocks = k}, &err));
        assert_int_equal(m->offloaded, 0);
        assert_null(strstr(m->info.backend, "blocks"));
        xlstm_model_free(m);
    }
    OK(xlstm_model_open(&m, SHIPPED, &(xlstm_model_options){.headers_only = true, .offload_blocks = 3}, &err));
    xlstm_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cpu_and_cpu_is_cpu),
        cmocka_unit_test(test_reference_and_cpu_agree_with_the_oracle),
        cmocka_unit_test(test_states_move_between_split_and_whole),
        cmocka_unit_test(test_traces_are_those_of_the_whole),
        cmocka_unit_test(test_faults_of_either_side_are_named),
        cmocka_unit_test(test_a_first_side_may_replay_its_part),
        cmocka_unit_test(test_a_lost_device_fails_the_pass_and_no_more),
        cmocka_unit_test(test_evaluation_allocates_nothing),
        cmocka_unit_test(test_advice_says_how_many_blocks_fit),
        cmocka_unit_test(test_asking_for_it),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
