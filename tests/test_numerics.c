/*
 * test_numerics.c — the requirements on number formats, one test each; docs/numerics.md lists them by number. Long runs
 * are shortened under sanitizers only.
 */
#include "make_model.h"
#include "weights.h"
#include "xlstm.h"

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

#define SHIPPED "models/xlstm-stories-10m"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SLOW = 20 }; /* divides the lengths of long runs */
#else
enum { SLOW = 1 };
#endif

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

static xlstm_model *open_model(const char *path, const xlstm_model_options *o)
{
    xlstm_model *m;
    xlstm_error err;
    if (xlstm_model_open(&m, path, o, &err) != XLSTM_OK) fail_msg("%s", err.message);
    return m;
}

static xlstm_session *new_session(xlstm_model *m)
{
    xlstm_session *s;
    assert_int_equal(xlstm_session_new(&s, m, NULL), XLSTM_OK);
    return s;
}

static void feed(xlstm_session *s, const int32_t *ids, size_t n)
{
    xlstm_error err;
    if (xlstm_prefill(s, ids, n, &err) != XLSTM_OK) fail_msg("%s", err.message);
}

static char *make(const mk_model *model)
{
    char *folder = mk_folder();
    mk_put_model(folder, model);
    return folder;
}

/* Last-row logits of a prompt; caller frees. */
static float *logits_of(const char *path, const xlstm_model_options *o, const int32_t *ids, size_t n)
{
    xlstm_model *m = open_model(path, o);
    xlstm_session *s = new_session(m);
    feed(s, ids, n);
    size_t bytes = xlstm_model_get_info(m)->vocab_size * sizeof(float);
    float *out = malloc(bytes);
    memcpy(out, xlstm_session_logits(s), bytes);
    xlstm_session_free(s);
    xlstm_model_free(m);
    return out;
}

/* One stage of one block, kept from a trace. */
typedef struct kept {
    int block;
    const char *stage;
    float values[4096];
    size_t n;
} kept;

static void keep(void *user, int block, const char *stage, const float *values, size_t rows, size_t width)
{
    for (kept *k = user; k->stage != NULL; k++) {
        if (k->block != block || strcmp(k->stage, stage) != 0) continue;
        assert_true(rows * width <= XL_COUNT(k->values));
        memcpy(k->values, values, rows * width * sizeof(float));
        k->n = rows * width;
    }
}

static void trace_of(kept *k, const char *path, const xlstm_model_options *o, const int32_t *ids, size_t n)
{
    xlstm_model *m = open_model(path, o);
    xlstm_session *s = new_session(m);
    xlstm_session_set_trace(s, keep, k);
    feed(s, ids, n);
    xlstm_session_free(s);
    xlstm_model_free(m);
}

static bool all_bf16(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (x[i] != xl_round_bf16(x[i])) return false;
    }
    return true;
}

static const int32_t few[] = {3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3};
enum { FEW = 16 };

static const xlstm_model_options all_modes[] = {
    {0},
    {.dtype = XLSTM_BF16},
    {.dtype = XLSTM_F16},
    {.state_dtype = XLSTM_BF16},
    {.state_dtype = XLSTM_I8},
    {.kernel_dtype = XLSTM_BF16},
    {.dtype = XLSTM_BF16, .norm_reduction_float32 = XLSTM_OFF},
    {.dtype = XLSTM_BF16, .kernel_dtype = XLSTM_BF16, .state_dtype = XLSTM_BF16},
};

/* ---- S0 --------------------------------------------------------------------------------------------------------- */

static void real_text_never_yields_nan(void **state)
{
    (void)state;
    static const char text[] =
        "The quick brown fox -- \"jumps\" over 13 lazy dogs!\n\n\tNa\xc3\xafve caf\xc3\xa9, \xe4\xbd\xa0\xe5\xa5\xbd \xf0\x9f\x91\xa9"
        "\xe2\x80\x8d\xf0\x9f\x9a\x80, \xd7\xa9\xd7\x9c\xd7\x95\xd7\x9d \xff\xfe zzzzzzzzzzzzzzzzzzzz        end. User: Who are "
        "you?\nAssistant: I am. {\"a\": [1, 2.5e-3]} #include <math.h> ";
    for (size_t o = 0; o < XL_COUNT(all_modes); o++) {
        xlstm_model *m = open_model(SHIPPED, &all_modes[o]);
        int32_t *ids;
        size_t n;
        assert_int_equal(
            xlstm_tokenizer_encode(&ids, &n, xlstm_model_tokenizer(m), text, sizeof(text) - 1, 0, NULL), XLSTM_OK);
        assert_true(n > 60);
        xlstm_session *s = new_session(m);
        for (size_t length = 1; length <= 300; length += length < 4 ? 1 : 59) {
            assert_int_equal(xlstm_session_reset(s, NULL), XLSTM_OK);
            for (size_t done = 0; done < length; done += n) feed(s, ids, XL_MIN(n, length - done));
            const float *logits = xlstm_session_logits(s);
            for (int i = 0; i < 4096; i++) assert_true(xl_is_finite(logits[i]));
        }
        xlstm_session_free(s);
        xlstm_free(ids);
        xlstm_model_free(m);
    }
}

static void dummy_ids_and_text_take_the_same_path(void **state)
{
    (void)state;
    xlstm_model *m = open_model(SHIPPED, NULL);
    static const int32_t dummy[] = {1, 2, 3, 4};
    static const char text[] = "<|padding|>! \" #"; /* ids 1 and 2 and more by their text */
    int32_t *ids, typed[16];
    size_t n;
    assert_int_equal(xlstm_tokenizer_encode(&ids, &n, xlstm_model_tokenizer(m), text, sizeof(text) - 1, 0, NULL), XLSTM_OK);
    assert_true(n >= 4 && n <= 16 && ids[0] == 1 && ids[1] == 2);
    memcpy(typed, ids, n * sizeof(*ids));
    xlstm_session *a = new_session(m), *b = new_session(m);
    feed(a, typed, n);
    feed(b, ids, n);
    assert_memory_equal(xlstm_session_logits(a), xlstm_session_logits(b), 4096 * sizeof(float));
    assert_int_equal(xlstm_session_reset(a, NULL), XLSTM_OK);
    feed(a, dummy, 4);
    for (int i = 0; i < 4096; i++) assert_true(xl_is_finite(xlstm_session_logits(a)[i]));
    xlstm_session_free(a);
    xlstm_session_free(b);
    xlstm_free(ids);
    xlstm_model_free(m);
}

/* A float32 file whose config says bfloat16 computes what a bfloat16 file of the same values computes; asked for as an
 * option, bfloat16 reaches the activations too. */
static void torch_dtype_decides_weights_and_activations(void **state)
{
    (void)state;
    mk_model wide = {.seed = 3, .config_extra = ", \"torch_dtype\": \"bfloat16\""};
    mk_model narrow = {.seed = 3, .dtype = XLSTM_BF16, .small_float32 = true, .config_extra = ", \"dtype\": \"bfloat16\""};
    mk_model plain = {.seed = 3, .config_extra = ", \"torch_dtype\": \"float32\""};
    char *folders[3] = {make(&wide), make(&narrow), make(&plain)};
    float *l[3];
    for (int i = 0; i < 3; i++) l[i] = logits_of(folders[i], NULL, few, FEW);
    assert_memory_equal(l[0], l[1], 48 * sizeof(float));
    assert_memory_not_equal(l[0], l[2], 48 * sizeof(float));
    kept k[] = {{.block = 1, .stage = "proj_up"}, {.block = 1, .stage = "x_out"}, {.stage = NULL}};
    trace_of(k, folders[1], NULL, few, FEW);
    assert_false(all_bf16(k[0].values, k[0].n)); /* policy: float32 activations */
    trace_of(k, folders[2], &(xlstm_model_options){.dtype = XLSTM_BF16}, few, FEW);
    assert_true(k[0].n > 0 && all_bf16(k[0].values, k[0].n));
    assert_true(k[1].n > 0 && all_bf16(k[1].values, k[1].n));
    for (int i = 0; i < 3; i++) {
        free(l[i]);
        mk_remove_folder(folders[i]);
    }
}

static void autocast_kernel_dtype_never_changes_weights_or_linears(void **state)
{
    (void)state;
    mk_model a = {.seed = 4, .config_extra = ", \"autocast_kernel_dtype\": \"bfloat16\""};
    mk_model b = {.seed = 4, .config_extra = ", \"autocast_kernel_dtype\": \"float32\""};
    char *fa = make(&a), *fb = make(&b);
    float *la = logits_of(fa, NULL, few, FEW), *lb = logits_of(fb, NULL, few, FEW);
    assert_memory_equal(la, lb, 48 * sizeof(float)); /* without the option it does nothing */
    kept off[] = {{.block = 0, .stage = "q"}, {.block = 0, .stage = "v"}, {.block = 0, .stage = "h"}, {.stage = NULL}};
    kept on[] = {{.block = 0, .stage = "q"}, {.block = 0, .stage = "v"}, {.block = 0, .stage = "h"}, {.stage = NULL}};
    trace_of(off, fa, NULL, few, FEW);
    trace_of(on, fa, &(xlstm_model_options){.kernel_dtype = XLSTM_BF16}, few, FEW);
    for (int i = 0; i < 2; i++) { /* linear outputs are the same bits; the cell's are not */
        assert_int_equal(on[i].n, off[i].n);
        assert_memory_equal(on[i].values, off[i].values, on[i].n * sizeof(float));
        assert_false(all_bf16(on[i].values, on[i].n));
    }
    assert_memory_not_equal(on[2].values, off[2].values, on[2].n * sizeof(float));
    free(la);
    free(lb);
    mk_remove_folder(fa);
    mk_remove_folder(fb);
}

static void inference_state_dtype_alone_decides_the_state(void **state)
{
    (void)state;
    static const struct {
        const char *config;
        xlstm_dtype dtype;
        uint64_t c_bytes; /* of an element of C */
    } cases[] = {{"float32", XLSTM_F32, 4}, {"bfloat16", XLSTM_BF16, 2}};
    for (size_t c = 0; c < 2; c++) {
        uint64_t sizes[4];
        for (int other = 0; other < 4; other++) {
            char extra[200];
            snprintf(extra, sizeof(extra),
                     ", \"inference_state_dtype\": \"%s\", \"torch_dtype\": \"%s\", \"autocast_kernel_dtype\": \"%s\"",
                     cases[c].config, other & 1 ? "bfloat16" : "float32", other & 2 ? "bfloat16" : "float32");
            mk_model model = {.seed = 5, .config_extra = extra};
            char *folder = make(&model);
            xlstm_model *m = open_model(folder, NULL);
            const xlstm_model_info *i = xlstm_model_get_info(m);
            assert_int_equal(i->state.dtype, cases[c].dtype);
            sizes[other] = i->state_bytes;
            assert_true(i->state_bytes >= 2 * 4 * 4 * 8 * cases[c].c_bytes);
            xlstm_session *s = new_session(m);
            feed(s, few, FEW);
            xlstm_state *snapshot;
            float C[4 * 8];
            assert_int_equal(xlstm_state_snapshot(&snapshot, s, NULL), XLSTM_OK);
            assert_int_equal(xlstm_state_read_head(snapshot, 1, 2, C, NULL, NULL, NULL), XLSTM_OK);
            assert_int_equal(all_bf16(C, 32), cases[c].dtype == XLSTM_BF16);
            xlstm_state_free(snapshot);
            xlstm_session_free(s);
            xlstm_model_free(m);
            mk_remove_folder(folder);
        }
        for (int other = 1; other < 4; other++) assert_int_equal(sizes[other], sizes[0]);
    }
}

static void float32_when_absent(void **state)
{
    (void)state;
    mk_model model = {.seed = 6};
    char *folder = make(&model);
    xlstm_model *m = open_model(folder, NULL);
    const xlstm_model_info *i = xlstm_model_get_info(m);
    assert_int_equal(i->weights.dtype, XLSTM_F32);
    assert_int_equal(i->activations.dtype, XLSTM_F32);
    assert_int_equal(i->kernel.dtype, XLSTM_DTYPE_DEFAULT);
    assert_int_equal(i->state.dtype, XLSTM_F32);
    assert_true(i->norm_float32.on);
    xlstm_model_free(m);
    mk_remove_folder(folder);
}

/* The multi-head norm of the deepest block, recomputed here with float32 statistics and with bfloat16 ones; says which of
 * the two the engine's gated output is. */
static bool deepest_norm_is_float32(const char *folder, const mk_model *model, const xlstm_model_options *o)
{
    enum { V = 32, NH = 4, DV = 8 };
    kept k[] = {{.block = 1, .stage = "h"}, {.block = 1, .stage = "ogate_preact"}, {.block = 1, .stage = "gated"}, {.stage = NULL}};
    trace_of(k, folder, o, few, FEW);
    float weight[V];
    mk_values(weight, model, "multihead_norm", 1, false, V, 0);
    size_t hits[2] = {0, 0}, rows = k[0].n / V;
    for (size_t r = 0; r < rows * NH; r++) {
        const float *h = k[0].values + r * DV;
        for (int rounded = 0; rounded < 2; rounded++) {
#define ST(x) (rounded ? xl_round_bf16(x) : (x))
            float sum = 0, squares = 0;
            for (int j = 0; j < DV; j++) sum += h[j];
            float mean = ST(sum / DV);
            for (int j = 0; j < DV; j++) squares += ST(ST(h[j] - mean) * ST(h[j] - mean));
            float scale = ST(1 / sqrtf(ST(ST(squares / DV) + 1e-6f)));
            for (int j = 0; j < DV; j++) {
                size_t at = r * DV + (size_t)j;
                float y = ST(ST(h[j] - mean) * scale) * weight[at % V];
                float g = xl_round_bf16(y / (1 + expf(-k[1].values[at])));
                hits[rounded] += g == k[2].values[at];
            }
#undef ST
        }
    }
    size_t all = rows * V;
    assert_true(hits[0] > all * 95 / 100 || hits[1] > all * 95 / 100);
    return hits[0] > hits[1];
}

static void options_beat_the_config_down_to_the_multihead_norm(void **state)
{
    (void)state;
    mk_model model = {.seed = 8, .config_extra = ", \"norm_reduction_force_float32\": false, \"torch_dtype\": \"bfloat16\", "
                                                 "\"inference_state_dtype\": \"bfloat16\""};
    char *folder = make(&model);
    xlstm_model_options o = {.dtype = XLSTM_BF16};
    for (int b = 0; b < 2; b++) {
        o.backend = b == 0 ? "reference" : "cpu";
        o.norm_reduction_float32 = XLSTM_AUTO;
        assert_false(deepest_norm_is_float32(folder, &model, &o));
        o.norm_reduction_float32 = XLSTM_ON;
        assert_true(deepest_norm_is_float32(folder, &model, &o));
    }
    o = (xlstm_model_options){.dtype = XLSTM_F32, .kernel_dtype = XLSTM_F16, .state_dtype = XLSTM_F32,
                              .norm_reduction_float32 = XLSTM_ON};
    xlstm_model *m = open_model(folder, &o);
    const xlstm_model_info *i = xlstm_model_get_info(m);
    assert_int_equal(i->weights.dtype, XLSTM_F32);
    assert_int_equal(i->kernel.dtype, XLSTM_F16);
    assert_int_equal(i->state.dtype, XLSTM_F32);
    assert_true(i->norm_float32.on);
    assert_non_null(strstr(i->norm_float32.source, "option"));
    xlstm_model_free(m);
    mk_remove_folder(folder);
}

/* ---- S1 --------------------------------------------------------------------------------------------------------- */

static void the_error_names_remedies_and_origin(void **state)
{
    (void)state;
    mk_model model = {.seed = 9, .blocks = 3};
    mk_list list = mk_build(&model);
    mk_tensor *t = mk_find(&list, "backbone.blocks.1.ffn.proj_up.weight");
    float nan = NAN;
    memcpy(t->data + 4 * (5 * 32 + 7), &nan, 4);
    char *folder = mk_folder(), *config = mk_config(&model);
    mk_put_text(folder, "config.json", config);
    mk_put_safetensors(folder, "model.safetensors", list.t, list.n);
    xlstm_model *m = open_model(folder, NULL);
    xlstm_session *s = new_session(m);
    xlstm_error err;
    assert_int_equal(xlstm_prefill(s, few, FEW, &err), XLSTM_E_NONFINITE);
    assert_non_null(strstr(err.message, "consider enabling norm_reduction_force_float32"));
    assert_non_null(strstr(err.message, "using float32 compute dtype instead of bfloat16"));
    xlstm_fault f;
    assert_int_equal(xlstm_locate_fault(&f, m, NULL, few, FEW, &err), XLSTM_OK);
    assert_true(f.found);
    assert_int_equal(f.block, 1);
    assert_string_equal(f.stage, "proj_up");
    assert_int_equal(f.channel, 5);
    assert_string_equal(f.culprit, "backbone.blocks.1.ffn.proj_up.weight[5][7]");
    xlstm_session_free(s);
    xlstm_model_free(m);
    mk_free(&list);
    free(config);
    mk_remove_folder(folder);
}

static void embeddings_of_another_dtype_are_reported(void **state)
{
    (void)state;
    for (int mixed = 0; mixed < 2; mixed++) {
        mk_model model = {.seed = 10}, other = {.seed = 10, .dtype = XLSTM_BF16};
        mk_list list = mk_build(&model), half = mk_build(&other);
        if (mixed) { /* exchange the embeddings of the two */
            mk_tensor *a = mk_find(&list, "backbone.embeddings.weight"), *b = mk_find(&half, "backbone.embeddings.weight");
            mk_tensor swap = *a;
            *a = *b;
            *b = swap;
        }
        char *folder = mk_folder(), *config = mk_config(&model);
        mk_put_text(folder, "config.json", config);
        mk_put_safetensors(folder, "model.safetensors", list.t, list.n);
        xlstm_model *m = open_model(folder, &(xlstm_model_options){.headers_only = true});
        bool warned = false;
        for (size_t i = 0; xlstm_model_warning(m, i) != NULL; i++) {
            const char *w = xlstm_model_warning(m, i);
            warned |= strstr(w, "embeddings") != NULL && strstr(w, "bfloat16") != NULL && strstr(w, "float32") != NULL;
        }
        assert_int_equal(warned, mixed);
        xlstm_model_free(m);
        mk_free(&list);
        mk_free(&half);
        free(config);
        mk_remove_folder(folder);
    }
}

static const mk_model deep = {.seed = 11, .vocab = 256, .dim = 64, .blocks = 32, .heads = 4, .ffn = 128};

static void blocks_32_accumulate_no_visible_error_in_float32(void **state)
{
    (void)state;
    enum { N = 200 };
    char *folder = make(&deep);
    int32_t ids[N];
    uint64_t r = 1;
    for (int i = 0; i < N; i++) ids[i] = (int32_t)(mk_next(&r) % 256);
    float *want = logits_of(folder, &(xlstm_model_options){.backend = "reference64"}, ids, N);
    for (int b = 0; b < 2; b++) {
        float *got = logits_of(folder, &(xlstm_model_options){.backend = b == 0 ? "reference" : "cpu"}, ids, N);
        for (int i = 0; i < 256; i++) assert_true(fabsf(got[i] - want[i]) < 1e-3f); /* of logits up to 30 */
        free(got);
    }
    free(want);
    mk_remove_folder(folder);
}

/* bf16 everywhere, float32 reductions, thousands of tokens: finite, and on the shipped model close to float32. */
static void bf16_is_tested_to_be_safe(void **state)
{
    (void)state;
    enum { N = 2000 };
    char *folder = make(&deep);
    const char *const paths[] = {folder, SHIPPED};
    const xlstm_model_options o = {.dtype = XLSTM_BF16, .kernel_dtype = XLSTM_BF16, .state_dtype = XLSTM_BF16};
    int32_t ids[N];
    uint64_t r = 2;
    for (int i = 0; i < N; i++) ids[i] = (int32_t)(2 + mk_next(&r) % 250);
    for (int p = 0; p < 2; p++) {
        xlstm_model *m = open_model(paths[p], &o);
        xlstm_session *s = new_session(m);
        feed(s, ids, N / SLOW);
        for (int i = 0; i < 200 / SLOW; i++) assert_int_equal(xlstm_decode(s, ids[i], NULL), XLSTM_OK);
        xlstm_session_free(s);
        xlstm_model_free(m);
    }
    float *narrow = logits_of(SHIPPED, &o, ids, 300), *wide = logits_of(SHIPPED, NULL, ids, 300);
    double zn = 0, zw = 0, kl = 0;
    for (int i = 0; i < 4096; i++) {
        zn += exp(narrow[i]);
        zw += exp(wide[i]);
    }
    for (int i = 0; i < 4096; i++) kl += exp(wide[i]) / zw * (wide[i] - log(zw) - narrow[i] + log(zn));
    assert_true(kl < 0.05);
    free(narrow);
    free(wide);
    mk_remove_folder(folder);
}

/* Gate biases of +-50, far beyond the cap of 15, in all four combinations, in chunks and then in steps. */
static void gates_at_the_extremes(void **state)
{
    (void)state;
    const int chunked = 4096 / SLOW, steps = 100000 / SLOW;
    for (int signs = 0; signs < 4; signs++) {
        mk_model model = {.seed = 12, .blocks = 1, .dim = 16, .heads = 2, .ffn = 16};
        mk_list list = mk_build(&model);
        for (int gate = 0; gate < 2; gate++) {
            mk_tensor *t = mk_find(&list, gate == 0 ? "backbone.blocks.0.mlstm_layer.igate_preact.bias"
                                                    : "backbone.blocks.0.mlstm_layer.fgate_preact.bias");
            float value = signs >> gate & 1 ? 50.0f : -50.0f;
            for (int h = 0; h < 2; h++) memcpy(t->data + 4 * h, &value, 4);
        }
        char *folder = mk_folder(), *config = mk_config(&model);
        mk_put_text(folder, "config.json", config);
        mk_put_safetensors(folder, "model.safetensors", list.t, list.n);
        xlstm_model *m = open_model(folder, &(xlstm_model_options){.threads = 1});
        xlstm_session *s = new_session(m);
        uint64_t r = 3;
        int32_t ids[64];
        for (int i = 0; i < 64; i++) ids[i] = (int32_t)(mk_next(&r) % 48);
        for (int i = 0; i < chunked; i += 64) feed(s, ids, 64);
        for (int i = 0; i < steps; i++) {
            if (xlstm_decode(s, ids[i % 64], NULL) != XLSTM_OK) fail_msg("step %d of signs %d", i, signs);
        }
        xlstm_session_free(s);
        xlstm_model_free(m);
        mk_free(&list);
        free(config);
        mk_remove_folder(folder);
    }
}

/* Literally and with --escape. */
static void commands_that_gave_nan_elsewhere_succeed(void **state)
{
    (void)state;
    const char *program = getenv("XLSTM");
    if (program == NULL || access(program, X_OK) != 0) {
        print_message("skip: XLSTM does not name the built program\n");
        skip();
    }
    static const char *const arguments[] = {
        "--prompt \"Hello world\" --max-tokens 20",
        "--prompt \"User: Who are you?\\nAssistant: \" --max-tokens 50",
        "--prompt \"User: Who are you?\\nAssistant: \" --max-tokens 50 --escape",
        "--prompt \"Test prompt\" --max-tokens 100",
    };
    for (size_t i = 0; i < XL_COUNT(arguments); i++) {
        char command[512], out[4096];
        snprintf(command, sizeof(command), "%s generate --model %s %s 2>&1", program, SHIPPED, arguments[i]);
        FILE *p = popen(command, "r");
        assert_non_null(p);
        size_t n = fread(out, 1, sizeof(out) - 1, p);
        out[n] = '\0';
        int status = pclose(p);
        if (status != 0 || n < 20 || strstr(out, "NaN") != NULL) fail_msg("%s: status %d: %s", command, status, out);
    }
}

static void generation_is_stable_over_10000_tokens(void **state)
{
    (void)state;
    const int n = 10000 / SLOW;
    xlstm_model *m = open_model(SHIPPED, NULL);
    xlstm_session *s[2];
    xlstm_sampler *sampler[2];
    int32_t ids[2] = {100, 100};
    bool seen[4096] = {0};
    for (int i = 0; i < 2; i++) {
        s[i] = new_session(m);
        xlstm_sampler_options o = {.temperature = i == 0 ? 0 : 1, .seed = 1};
        assert_int_equal(xlstm_sampler_new(&sampler[i], xlstm_model_get_info(m)->n_tokens, &o, NULL), XLSTM_OK);
    }
    for (int t = 0; t < n; t++) { /* greedy and sampled, side by side in one batch */
        xlstm_segment g[2] = {{.session = s[0], .tokens = &ids[0], .count = 1, .want = XLSTM_WANT_LAST},
                              {.session = s[1], .tokens = &ids[1], .count = 1, .want = XLSTM_WANT_LAST}};
        xlstm_error err;
        if (xlstm_evaluate(m, g, 2, &err) != XLSTM_OK) fail_msg("token %d: %s", t, err.message);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(xlstm_sampler_choose(&ids[i], sampler[i], xlstm_session_logits(s[i]), NULL), XLSTM_OK);
        }
        seen[ids[1]] = true;
    }
    int kinds = 0;
    for (int i = 0; i < 4096; i++) kinds += seen[i];
    assert_true(kinds > 150); /* still a language, not one token for ever */
    for (int i = 0; i < 2; i++) {
        xlstm_session_free(s[i]);
        xlstm_sampler_free(sampler[i]);
    }
    xlstm_model_free(m);
}

/* ---- endurance, the short version of bench/endurance.c ---------------------------------------------------------------- */

/* Steps in float32 stay near steps in float64. Each step rounds C once, relative to its own size, and old roundings decay
 * with the state they are part of: with a forget factor f the error settles near eps / sqrt(1 - f^2). The slowest head here
 * forgets with 1 - f of about 1e-4, which allows 6e-8 * 70 = 4e-6, and m and the factors add as much again; 1e-4 leaves room
 * for inputs that themselves differ by float32 rounding. */
static void endurance_float32_steps_follow_float64(void **state)
{
    (void)state;
    const int n = 20000 / SLOW;
    mk_model model = {.seed = 13, .blocks = 1, .dim = 16, .heads = 2, .ffn = 16};
    char *folder = make(&model);
    xlstm_model *m[2] = {open_model(folder, &(xlstm_model_options){.threads = 1}),
                         open_model(folder, &(xlstm_model_options){.backend = "reference64"})};
    xlstm_session *s[2] = {new_session(m[0]), new_session(m[1])};
    uint64_t r = 4;
    for (int t = 0; t < n; t++) {
        int32_t id = (int32_t)(mk_next(&r) % 48);
        for (int i = 0; i < 2; i++) assert_int_equal(xlstm_decode(s[i], id, NULL), XLSTM_OK);
    }
    for (uint32_t h = 0; h < 2; h++) {
        float C[2][4 * 8], mm[2];
        for (int i = 0; i < 2; i++) {
            xlstm_state *snapshot;
            assert_int_equal(xlstm_state_snapshot(&snapshot, s[i], NULL), XLSTM_OK);
            assert_int_equal(xlstm_state_read_head(snapshot, 0, h, C[i], NULL, &mm[i], NULL), XLSTM_OK);
            xlstm_state_free(snapshot);
        }
        float largest = 0, error = 0;
        for (int i = 0; i < 32; i++) {
            largest = fmaxf(largest, fabsf(C[1][i]));
            error = fmaxf(error, fabsf(C[0][i] * expf(mm[0] - mm[1]) - C[1][i]));
        }
        assert_true(error <= 1e-4f * largest);
    }
    for (int i = 0; i < 2; i++) {
        xlstm_session_free(s[i]);
        xlstm_model_free(m[i]);
    }
    mk_remove_folder(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(real_text_never_yields_nan),
        cmocka_unit_test(dummy_ids_and_text_take_the_same_path),
        cmocka_unit_test(torch_dtype_decides_weights_and_activations),
        cmocka_unit_test(autocast_kernel_dtype_never_changes_weights_or_linears),
        cmocka_unit_test(inference_state_dtype_alone_decides_the_state),
        cmocka_unit_test(float32_when_absent),
        cmocka_unit_test(options_beat_the_config_down_to_the_multihead_norm),
        cmocka_unit_test(the_error_names_remedies_and_origin),
        cmocka_unit_test(embeddings_of_another_dtype_are_reported),
        cmocka_unit_test(blocks_32_accumulate_no_visible_error_in_float32),
        cmocka_unit_test(bf16_is_tested_to_be_safe),
        cmocka_unit_test(gates_at_the_extremes),
        cmocka_unit_test(commands_that_gave_nan_elsewhere_succeed),
        cmocka_unit_test(generation_is_stable_over_10000_tokens),
        cmocka_unit_test(endurance_float32_steps_follow_float64),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
