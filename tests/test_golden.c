/*
 * test_golden.c — the engine against Hugging Face transformers and the float64 oracle, through the public interface:
 * logits of prompts of 1 to 1000 tokens, greedy ids, single stages, perplexity, for every layout and head size of
 * tests/golden, on every backend; then what must hold within the engine: fused == single, stepping == chunks.
 *
 * Bounds. transformers: 2e-4 absolute and 5e-5 of the largest |logit|; its own float32 error is up to 3e-5 on these files.
 * Oracle: 6e-5 for float32 backends (the same error once more); for reference64 what rounding the logits to float32 leaves.
 */
#include "golden.h"
#include "xlstm.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define HF_ABSOLUTE 2e-4
#define HF_RELATIVE 5e-5
#define ORACLE_FLOAT32 6e-5
#define ORACLE_FLOAT64 2e-6
#define SPLIT_FLOAT32 6e-5
#define STAGE_RELATIVE 3e-5 /* of the stage's largest value */

/* Sanitizers look for other mistakes than wrong numbers, and the arm64 build usually runs under emulation: a selection. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || defined(__aarch64__)
enum { LONGEST = 130, MOST_GREEDY = 4, SPLIT_STRIDE = 13, SELECTION = 1 };
#else
enum { LONGEST = 1000, MOST_GREEDY = 1000, SPLIT_STRIDE = 1, SELECTION = 0 };
#endif

static const char *const models[] = {"single",  "fused",  "tied",    "biased",  "biased-fused", "chunk16",
                                     "chunk48", "odd",    "bf16",    "deep",    "one-head",     "head48",
                                     "head64",  "head96", "head256", "wide384", "caps",         "faint"};

typedef struct engine {
    const char *backend;
    uint32_t cpu_mask, threads;
    const char *label;
    uint32_t offload_blocks;
} engine;

static const engine engines[] = {
    {"reference", 0, 0, "reference", 0},
    {"reference64", 0, 0, "reference64", 0},
    {"cpu", 0, 2, "cpu", 0},
    {"cpu", XLSTM_CPU_SCALAR, 1, "cpu-scalar", 0},
#if defined(__x86_64__)
    {"cpu", XLSTM_CPU_SCALAR | XLSTM_CPU_AVX2, 1, "cpu-avx2", 0},
    {"cpu", XLSTM_CPU_SCALAR | XLSTM_CPU_AVX2 | XLSTM_CPU_AVX512, 1, "cpu-avx512", 0},
#endif
    {"reference", 0, 2, "reference-then-cpu", 1},
    {"cuda", 0, 0, "cuda", 0},
    {"cuda", 0, 2, "cuda-then-cpu", 1},
};
#define N_ENGINES (sizeof engines / sizeof *engines)
#define N_MODELS (sizeof models / sizeof *models)

/* Backends that promise the same bits whatever the layout and the cut. */
static bool bitwise(const engine *e) { return strcmp(e->backend, "cuda") != 0; }
static bool exact(const engine *e) { return strcmp(e->backend, "reference64") == 0; }

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

static void require(int code, const xlstm_error *err)
{
    if (code != XLSTM_OK) fail_msg("%d: %s", code, err->message);
}

static xlstm_model *open_model(const char *path, const engine *e)
{
    xlstm_model_options options = {
        .backend = e->backend, .offload_blocks = e->offload_blocks, .cpu_mask = e->cpu_mask, .threads = e->threads,
        .dtype = XLSTM_F32, .bos = XLSTM_OFF};
    xlstm_model *model = NULL;
    xlstm_error err = {0};
    require(xlstm_model_open(&model, path, &options, &err), &err);
    return model;
}

static xlstm_model *open_golden(const char *name, const engine *e)
{
    char path[256];
    snprintf(path, sizeof path, "tests/golden/%s", name);
    return open_model(path, e);
}

static xlstm_session *open_session(xlstm_model *model)
{
    xlstm_session *session = NULL;
    xlstm_error err = {0};
    require(xlstm_session_new(&session, model, &err), &err);
    return session;
}

/* Reads ids into the session; all their logits go to `rows` when it is not NULL. */
static void feed(xlstm_session *session, const int32_t *ids, size_t n, float *rows)
{
    xlstm_error err = {0};
    xlstm_segment segment = {.session = session,
                             .tokens = ids,
                             .count = n,
                             .want = rows != NULL ? XLSTM_WANT_ALL : XLSTM_WANT_LAST,
                             .logits = rows};
    require(xlstm_evaluate(xlstm_session_model(session), &segment, 1, &err), &err);
}

static int32_t greedy(const float *logits, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    return (int32_t)best;
}

static double difference(const float *a, const float *b, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= worst)) worst = d; /* NaN stays */
    }
    return worst;
}

static double oracle_difference(const float *a, const double *b, size_t n)
{
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!(d <= worst)) worst = d;
    }
    return worst;
}

static void require_within(double found, double bound, const char *what, size_t length)
{
    if (!(found <= bound)) fail_msg("%s, prompt of %zu tokens: off by %.3g, allowed %.3g", what, length, found, bound);
}

/* ---- against transformers and the oracle ------------------------------------------------------------------------- */

typedef struct subject {
    const char *model; /* name below tests/golden */
    const engine *engine;
    char title[80], reason[200];
} subject;

/* Stands in for the tests of an engine that this build or machine lacks. */
static void test_absent(void **state)
{
    const subject *s = *state;
    printf("skip: %s\n", s->reason);
    skip();
}

/* Whether the engine opens; `reason` says why not. Any other failure counts as present and shows in the tests. */
static bool present(const engine *e, char *reason, size_t size)
{
    xlstm_model_options options = {.backend = e->backend, .cpu_mask = e->cpu_mask, .dtype = XLSTM_F32};
    xlstm_model *model = NULL;
    xlstm_error err = {0};
    int code = xlstm_model_open(&model, "tests/golden/single", &options, &err);
    xlstm_model_free(model);
    if (code != XLSTM_E_UNSUPPORTED && code != XLSTM_E_DEVICE) return true;
    snprintf(reason, size, "%.*s", (int)size - 1, err.message);
    return false;
}

static void check_prompts(xlstm_model *model, const golden *g, const engine *e)
{
    size_t V = g->vocab_size, most = 1;
    for (size_t i = 0; i < g->n_prompts; i++) {
        size_t rows = g->prompts[i].n - g->prompts[i].first_row;
        if (rows > most) most = rows;
    }
    float *rows = malloc(most * V * sizeof *rows);
    assert_non_null(rows);
    assert_int_equal(xlstm_model_get_info(model)->vocab_size, V);
    for (size_t i = 0; i < g->n_prompts; i++) {
        const golden_prompt *p = &g->prompts[i];
        if (p->n > LONGEST) continue;
        xlstm_session *session = open_session(model);
        size_t recorded = p->n - p->first_row;
        feed(session, p->ids, p->n, p->first_row == 0 ? rows : NULL);
        const float *last = xlstm_session_logits(session);
        if (p->first_row != 0) memcpy(rows, last, V * sizeof *rows);
        assert_memory_equal(last, rows + (recorded - 1) * V, V * sizeof *rows);
        double off = difference(rows, p->logits, recorded * V);
        require_within(off, HF_ABSOLUTE, "logits against transformers, absolute", p->n);
        require_within(off / p->scale, HF_RELATIVE, "logits against transformers, relative to the largest", p->n);
        require_within(oracle_difference(last, p->oracle, V), exact(e) ? ORACLE_FLOAT64 : ORACLE_FLOAT32,
                       "logits against the float64 oracle", p->n);
        for (size_t t = 0; t < p->n_greedy && t < MOST_GREEDY; t++) {
            int32_t id = greedy(xlstm_session_logits(session), V);
            if (id != p->greedy[t]) fail_msg("prompt of %zu: greedy id %zu is %d, not %d", p->n, t, id, p->greedy[t]);
            if (t + 1 < p->n_greedy) feed(session, &id, 1, NULL);
        }
        xlstm_session_free(session);
    }
    free(rows);
}

static void test_prompts(void **state)
{
    const subject *s = *state;
    golden g;
    golden_load(&g, s->model);
    xlstm_model *model = open_golden(s->model, s->engine);
    check_prompts(model, &g, s->engine);
    xlstm_model_free(model);
    golden_unload(&g);
}

static xlstm_model *open_shipped(const engine *e) { return open_model("models/xlstm-stories-10m", e); }

static void test_shipped_prompts(void **state)
{
    const subject *s = *state;
    golden g;
    golden_load(&g, "shipped");
    xlstm_model *model = open_shipped(s->engine);
    check_prompts(model, &g, s->engine);
    xlstm_model_free(model);
    golden_unload(&g);
}

/* ---- stages ------------------------------------------------------------------------------------------------------ */

typedef struct stage_check {
    const golden *g;
    size_t compared;
    char worst[160];
} stage_check;

static void compare_stage(void *user, int block, const char *stage, const float *values, size_t rows, size_t width)
{
    stage_check *check = user;
    for (size_t i = 0; i < check->g->n_stages; i++) {
        const golden_stage *s = &check->g->stages[i];
        if (s->block != block || strcmp(s->name, stage) != 0) continue;
        double scale = 0;
        for (size_t j = 0; j < rows * width && width == s->width; j++) scale = fmax(scale, fabs(s->values[j]));
        double off =
            width == s->width && rows == check->g->n_stage_ids ? difference(values, s->values, rows * width) : NAN;
        if (!(off <= STAGE_RELATIVE * scale)) {
            snprintf(check->worst, sizeof check->worst, "block %d, %s [%zu][%zu]: off by %.3g, largest value %.3g",
                     block, stage, rows, width, off, scale);
        }
        check->compared++;
    }
}

static void check_stages(xlstm_model *model, const golden *g)
{
    stage_check check = {.g = g};
    xlstm_session *session = open_session(model);
    float *rows = malloc(g->n_stage_ids * g->vocab_size * sizeof *rows);
    xlstm_session_set_trace(session, compare_stage, &check);
    feed(session, g->stage_ids, g->n_stage_ids, rows);
    free(rows);
    xlstm_session_free(session);
    if (check.worst[0] != '\0') fail_msg("%s", check.worst);
    /* every recorded stage but the norm in front of the gate, which the engine does in one operation with it */
    size_t hidden = 0;
    for (size_t i = 0; i < g->n_stages; i++) hidden += strcmp(g->stages[i].name, "mhnorm") == 0;
    assert_int_equal(check.compared, g->n_stages - hidden);
    assert_true(check.compared >= 2 * 18);
}

static void test_stages(void **state)
{
    const subject *s = *state;
    const char *const names[] = {"biased", "shipped"};
    for (size_t i = 0; i < 2; i++) {
        golden g;
        golden_load(&g, names[i]);
        xlstm_model *model = i == 1 ? open_shipped(s->engine) : open_golden(names[i], s->engine);
        check_stages(model, &g);
        xlstm_model_free(model);
        golden_unload(&g);
    }
}

/* ---- perplexity -------------------------------------------------------------------------------------------------- */

static char *read_head(const char *path, size_t bytes)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) return NULL;
    char *text = malloc(bytes);
    assert_non_null(text);
    assert_int_equal(fread(text, 1, bytes, file), bytes);
    fclose(file);
    return text;
}

static double log_sum(const float *row, size_t n)
{
    double top = row[0], sum = 0;
    for (size_t i = 1; i < n; i++) top = fmax(top, row[i]);
    for (size_t i = 0; i < n; i++) sum += exp(row[i] - top);
    return top + log(sum); /* cppcheck-suppress invalidFunctionArg; at least e^0 */
}

/* Mean nll of the head of a text, one endless stream with BOS in front, to four significant digits and beyond. */
static void test_perplexity(void **state)
{
    const subject *s = *state;
    golden g;
    golden_load(&g, "shipped");
    xlstm_model *model = open_shipped(s->engine);
    const xlstm_tokenizer *tokenizer = xlstm_model_tokenizer(model);
    assert_non_null(tokenizer);
    const json_t *texts = json_object_get(g.json, "perplexity");
    const char *const folders[] = {"tests/golden/shipped", "../shared/data/corpus", "../shared/data/wikitext2"};
    size_t compared = 0;
    for (size_t i = 0; i < json_array_size(texts); i++) {
        const json_t *entry = json_array_get(texts, i);
        size_t bytes = (size_t)json_integer_value(json_object_get(entry, "bytes"));
        char *text = NULL;
        for (size_t f = 0; f < 3 && text == NULL; f++) {
            char path[256];
            snprintf(path, sizeof path, "%s/%s", folders[f], json_string_value(json_object_get(entry, "file")));
            text = read_head(path, bytes);
        }
        if (text == NULL) {
            printf("skip: %s is not here\n", json_string_value(json_object_get(entry, "file")));
            continue;
        }
        xlstm_error err = {0};
        int32_t *encoded = NULL;
        size_t n = 0;
        require(xlstm_tokenizer_encode(&encoded, &n, tokenizer, text, bytes, 0, &err), &err);
        assert_int_equal(n, json_integer_value(json_object_get(entry, "tokens")));
        int32_t *ids = malloc((n + 1) * sizeof *ids);
        assert_non_null(ids);
        memcpy(ids + 1, encoded, n * sizeof *ids);
        ids[0] = xlstm_model_get_info(model)->bos_id;
        xlstm_free(encoded);
        n++;
        xlstm_session *session = open_session(model);
        size_t V = g.vocab_size, slab = 256;
        float *rows = malloc(slab * V * sizeof *rows);
        double sum = 0;
        for (size_t at = 0; at + 1 < n; at += slab) {
            size_t count = n - 1 - at < slab ? n - 1 - at : slab;
            feed(session, ids + at, count, rows);
            for (size_t t = 0; t < count; t++) sum += log_sum(rows + t * V, V) - rows[t * V + (size_t)ids[at + t + 1]];
        }
        double expected = json_real_value(json_object_get(entry, "nll"));
        printf("%s: nll %.7f, transformers %.7f\n", json_string_value(json_object_get(entry, "file")),
               sum / (double)(n - 1), expected);
        assert_true(fabs(sum / (double)(n - 1) - expected) < 2e-5 * expected);
        free(rows);
        free(text);
        free(ids);
        xlstm_session_free(session);
        compared++;
    }
    assert_true(compared > 0);
    xlstm_model_free(model);
    golden_unload(&g);
}

/* ---- within the engine ------------------------------------------------------------------------------------------- */

/* The fused layout of the same weights computes the same bits (on the CPU). */
static void test_fused_equals_single(void **state)
{
    const subject *s = *state;
    const char *const pairs[][2] = {{"single", "fused"}, {"biased", "biased-fused"}};
    for (size_t i = 0; i < 2; i++) {
        golden g;
        golden_load(&g, pairs[i][0]);
        const golden_prompt *p = &g.prompts[6]; /* 130 tokens */
        assert_int_equal(p->n, 130);
        float *rows[2];
        for (size_t j = 0; j < 2; j++) {
            xlstm_model *model = open_golden(pairs[i][j], s->engine);
            assert_int_equal(xlstm_model_get_info(model)->fused, j == 1);
            xlstm_session *session = open_session(model);
            rows[j] = malloc(p->n * g.vocab_size * sizeof(float));
            feed(session, p->ids, p->n, rows[j]);
            xlstm_session_free(session);
            xlstm_model_free(model);
        }
        require_within(difference(rows[0], rows[1], p->n * g.vocab_size), bitwise(s->engine) ? 0 : SPLIT_FLOAT32,
                       "fused layout against single", p->n);
        free(rows[0]);
        free(rows[1]);
        golden_unload(&g);
    }
}

/* Every head's C, then n, then m of a session, one after the other; freed by the caller. */
static float *read_state(const xlstm_session *session, size_t *n)
{
    const xlstm_model_info *info = xlstm_model_get_info(xlstm_session_model(session));
    size_t dq = info->qk_dim / info->num_heads, dv = info->v_dim / info->num_heads, one = dq * dv + dq + 1;
    xlstm_error err = {0};
    xlstm_state *state = NULL;
    *n = info->num_blocks * info->num_heads * one;
    float *values = malloc(*n * sizeof *values), *at = values;
    assert_non_null(values);
    require(xlstm_state_snapshot(&state, session, &err), &err);
    for (uint32_t b = 0; b < info->num_blocks; b++) {
        for (uint32_t h = 0; h < info->num_heads; h++, at += one) {
            require(xlstm_state_read_head(state, b, h, at, at + dq * dv, at + dq * dv + dq, &err), &err);
        }
    }
    xlstm_state_free(state);
    return values;
}

static void compare_states(const xlstm_session *session, const float *expected, double bound, size_t cut)
{
    size_t n;
    double scale = 1;
    float *values = read_state(session, &n);
    for (size_t i = 0; i < n; i++) scale = fmax(scale, fabs(expected[i]));
    require_within(difference(values, expected, n), bound * scale, "state of a cut prompt", cut);
    free(values);
}

/* A prompt cut at every place, the second part read at once or token by token: logits and final state within SPLIT_FLOAT32 of
 * the uncut prompt's (the rounding of one form of the cell against the other), and the same bits for a cut on a chunk border (on the CPU). */
static void test_every_split(void **state)
{
    const subject *s = *state;
    double bound = exact(s->engine) ? ORACLE_FLOAT64 : SPLIT_FLOAT32, worst = 0;
    const char *const names[] = {"single", "chunk16"};
    for (size_t i = 0; i < 2; i++) {
        golden g;
        golden_load(&g, names[i]);
        const golden_prompt *p = &g.prompts[6];
        size_t V = g.vocab_size, last = (p->n - 1) * V;
        xlstm_model *model = open_golden(names[i], s->engine);
        uint32_t chunk = xlstm_model_get_info(model)->chunk_size;
        float *whole = malloc(p->n * V * sizeof *whole), *parts = malloc(p->n * V * sizeof *parts);
        xlstm_session *session = open_session(model);
        feed(session, p->ids, p->n, whole);
        size_t n_state;
        float *final = read_state(session, &n_state);
        for (size_t cut = 1; cut <= p->n; cut += SPLIT_STRIDE) {
            xlstm_error err = {0};
            xlstm_session *head = NULL;
            require(xlstm_session_reset(session, &err), &err);
            feed(session, p->ids, cut, parts);
            require_within(difference(parts, whole, cut * V), bound, "head of a cut prompt", cut);
            if (cut == p->n) break;
            require(xlstm_session_fork(&head, session, &err), &err);
            feed(session, p->ids + cut, p->n - cut, parts + cut * V);
            worst = fmax(worst, difference(parts, whole, p->n * V));
            require_within(worst, bound, "cut prompt, tail at once", cut);
            if (cut % chunk == 0 && bitwise(s->engine)) assert_memory_equal(parts, whole, p->n * V * sizeof *whole);
            for (size_t t = cut; t < p->n; t++) feed(head, p->ids + t, 1, NULL);
            double off = difference(xlstm_session_logits(head), whole + last, V);
            worst = fmax(worst, off);
            require_within(off, bound, "cut prompt, tail token by token", cut);
            compare_states(session, final, bound, cut);
            compare_states(head, final, bound, cut);
            xlstm_session_free(head);
        }
        free(final);
        xlstm_session_free(session);
        free(whole);
        free(parts);
        xlstm_model_free(model);
        golden_unload(&g);
    }
    printf("largest difference over all splits: %.3g\n", worst);
}

/* ---- the list ---------------------------------------------------------------------------------------------------- */

static struct CMUnitTest tests[N_ENGINES * (N_MODELS + 5)];
static subject subjects[N_ENGINES * (N_MODELS + 5)];
static size_t n_tests;

static void add(CMUnitTestFunction function, const char *what, const char *model, const engine *e)
{
    subject *s = &subjects[n_tests];
    s->model = model;
    s->engine = e;
    snprintf(s->title, sizeof s->title, "%s_%s_%s", what, model, e->label);
    tests[n_tests++] = (struct CMUnitTest){.name = s->title, .test_func = function, .initial_state = s};
}

int main(void)
{
    for (size_t i = 0; i < N_ENGINES; i++) {
        const engine *e = &engines[i];
        if (!present(e, subjects[n_tests].reason, sizeof subjects[n_tests].reason)) {
            add(test_absent, "golden", "all", e);
            continue;
        }
        for (size_t j = 0; j < N_MODELS; j++) {
            bool few = SELECTION && (e->cpu_mask != 0 || exact(e));
            if (few && strcmp(models[j], "odd") != 0 && strcmp(models[j], "biased") != 0) continue;
            add(test_prompts, "golden", models[j], e);
        }
        add(test_fused_equals_single, "fused_equals", "single", e);
        add(test_every_split, "step_equals_chunk_every_split", "single", e);
        if (e->cpu_mask != 0) continue;
        add(test_stages, "stages", "shipped", e);
        bool fast = strcmp(e->backend, "cpu") == 0 || strcmp(e->backend, "cuda") == 0;
        if (fast) add(test_shipped_prompts, "golden", "shipped", e);
        if (fast && !SELECTION) add(test_perplexity, "perplexity", "shipped", e);
    }
    return _cmocka_run_group_tests("golden", tests, n_tests, NULL, NULL);
}
