/* test_layouts.c — the layout of a checkpoint changes no bit of its results: naming schemes, fused tensors, shards and
 * GGUF all give the logits of the plain folder, with weights repacked and with weights used in place; these two agree to
 * rounding. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "make_model.h"

enum { TOKENS = 70, VOCAB = 48 };

/* Logits of every token into out[TOKENS][VOCAB]. */
static void evaluate(float *out, const mk_model *m, const char *backend, bool no_repack)
{
    char *folder = mk_folder(), path[1024];
    mk_put_model(folder, m);
    snprintf(path, sizeof(path), "%s", folder);
    xlstm_error err = {0};
    xlstm_model *model;
    xlstm_session *session;
    xlstm_model_options options = {.backend = backend, .threads = 2, .no_repack = no_repack};
    if (xlstm_model_open(&model, path, &options, &err) != XLSTM_OK) fail_msg("%s", err.message);
    if (xlstm_session_new(&session, model, &err) != XLSTM_OK) fail_msg("%s", err.message);
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++) ids[i] = (i * 31 + i * i) % VOCAB;
    xlstm_segment segment = {.session = session, .tokens = ids, .count = TOKENS, .want = XLSTM_WANT_ALL, .logits = out};
    if (xlstm_evaluate(model, &segment, 1, &err) != XLSTM_OK) fail_msg("%s", err.message);
    xlstm_session_free(session);
    xlstm_model_free(model);
    mk_remove_folder(folder);
}

static void check_all(float *want, const mk_model *base, const char *backend, bool no_repack)
{
    static const char *const schemes[] = {"huggingface", "nx-ai", "bare", "query", "gguf"};
    static float got[TOKENS * VOCAB];
    evaluate(want, base, backend, no_repack);
    double largest = 0;
    for (int i = 0; i < TOKENS * VOCAB; i++) largest = fmax(largest, fabs((double)want[i]));
    assert_true(largest > 0.1);
    for (size_t s = 0; s < XL_COUNT(schemes); s++) {
        for (int variant = 0; variant < 8; variant++) {
            mk_model m = *base;
            m.scheme = schemes[s];
            m.fused = variant & 1;
            m.shards = variant & 2 ? 3 : 1;
            m.head_norm_2d = variant & 4;
            evaluate(got, &m, backend, no_repack);
            if (memcmp(got, want, sizeof(got)) != 0) fail_msg("%s, %s, variant %d", backend, schemes[s], variant);
        }
    }
}

static void test_layouts(void **state)
{
    (void)state;
    static const char *const backends[] = {"reference", "cpu"};
    static const mk_model models[] = {
        {.seed = 3},
        {.seed = 4, .use_bias = true, .tied = true, .dtype = XLSTM_BF16},
        {.seed = 5, .heads = 2, .qk = 10, .v = 26, .dim = 20, .ffn = 33, .dtype = XLSTM_F16},
    };
    static float repacked[TOKENS * VOCAB], in_place[TOKENS * VOCAB];
    for (size_t b = 0; b < XL_COUNT(backends); b++) {
        for (size_t m = 0; m < XL_COUNT(models); m++) {
            check_all(repacked, &models[m], backends[b], false);
            check_all(in_place, &models[m], backends[b], true);
            for (int i = 0; i < TOKENS * VOCAB; i++) assert_true(fabsf(repacked[i] - in_place[i]) < 1e-4f);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_layouts)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
