/* test_wiring.c — every layout of the same model is discovered as the same model, down to the bytes of each slot, and what
 * does not fit is refused by name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "make_model.h"
#include "wiring.h"

static xlstm_error err;

static xl_weights *open_folder(const char *folder)
{
    xl_weights *w = NULL;
    if (xl_weights_open(&w, folder, NULL, &err) != XLSTM_OK) fail_msg("%s", err.message);
    return w;
}

/* Writes a list of tensors as a checkpoint and discovers it. */
static int discover(const mk_list *list)
{
    char *folder = mk_folder();
    mk_put_safetensors(folder, "model.safetensors", list->t, list->n);
    xl_weights *w = open_folder(folder);
    xl_wiring wiring;
    err.message[0] = '\0';
    int result = xl_wiring_discover(&wiring, w, NULL, &err);
    xl_wiring_free(&wiring);
    xl_weights_close(w);
    mk_remove_folder(folder);
    return result;
}

static void assert_refused(const mk_list *list, const char *part1, const char *part2)
{
    if (discover(list) == XLSTM_OK) fail_msg("not refused: %s", part1);
    if (strstr(err.message, part1) == NULL || strstr(err.message, part2) == NULL) {
        fail_msg("\"%s\" lacks \"%s\" or \"%s\"", err.message, part1, part2);
    }
}

/* The rows of a slot hold the part's values. */
static void assert_slot(xl_weights *w, const mk_model *m, const xl_slice *s, const char *part, uint32_t block, bool bias,
                        uint64_t rows, uint64_t cols)
{
    assert_non_null(s->t);
    assert_int_equal(s->rows, rows);
    assert_int_equal(s->t->rank, cols > 0 ? 2 : 1);
    const void *bytes;
    assert_int_equal(xl_weights_data(&bytes, w, s->t, &err), XLSTM_OK);
    size_t width = cols > 0 ? cols : 1, n = rows * width, size = xl_dtype_get(s->t->dtype)->block_bytes;
    float *want = malloc(n * sizeof(float));
    uint8_t *stored = malloc(n * size);
    mk_values(want, m, part, block, bias, rows, cols);
    xl_encode_row(stored, want, s->t->dtype, n);
    assert_memory_equal(stored, (const uint8_t *)bytes + s->row0 * width * size, n * size);
    free(want);
    free(stored);
    xl_weights_drop(w, s->t);
}

static void check_model(const mk_model *model)
{
    mk_model m = mk_defaults(model);
    char *folder = mk_folder();
    mk_put_model(folder, &m);
    xl_weights *w = open_folder(folder);
    xl_wiring x;
    if (xl_wiring_discover(&x, w, NULL, &err) != XLSTM_OK) fail_msg("%s", err.message);
    const xl_dims want = {m.vocab, m.dim, m.blocks, m.heads, m.qk, m.v, m.qk / m.heads, m.v / m.heads, m.ffn};
    assert_memory_equal(&x.dims, &want, sizeof(want));
    assert_int_equal(x.fused, m.fused);
    assert_int_equal(x.use_bias, m.use_bias);
    assert_int_equal(x.tied, m.tied);
    assert_string_equal(x.scheme, strcmp(m.scheme, "query") == 0 ? "huggingface" : m.scheme);
    const struct {
        xl_role role;
        uint64_t rows, cols;
        bool gate;
    } roles[] = {
        {XL_NORM_MLSTM, m.dim, 0, false}, {XL_Q, m.qk, m.dim, false},       {XL_K, m.qk, m.dim, false},
        {XL_V, m.v, m.dim, false},        {XL_OGATE, m.v, m.dim, false},    {XL_IGATE, m.heads, m.dim, true},
        {XL_FGATE, m.heads, m.dim, true}, {XL_MHNORM, m.v, 0, false},       {XL_OUT_PROJ, m.dim, m.v, false},
        {XL_NORM_FFN, m.dim, 0, false},   {XL_FFN_GATE, m.ffn, m.dim, false}, {XL_FFN_UP, m.ffn, m.dim, false},
        {XL_FFN_DOWN, m.dim, m.ffn, false},
    };
    assert_int_equal(XL_COUNT(roles), XL_ROLES);
    for (uint32_t b = 0; b < m.blocks; b++) {
        for (size_t i = 0; i < XL_COUNT(roles); i++) {
            const char *part = xl_role_name(roles[i].role);
            assert_slot(w, &m, &x.blocks[b].weight[roles[i].role], part, b, false, roles[i].rows, roles[i].cols);
            const xl_slice *bias = &x.blocks[b].bias[roles[i].role];
            if (m.use_bias || roles[i].gate) {
                assert_slot(w, &m, bias, part, b, true, roles[i].rows, 0);
            } else {
                assert_null(bias->t);
            }
        }
    }
    const xl_slice embedding = {x.embedding, 0, m.vocab}, head = {x.head, 0, m.vocab};
    assert_slot(w, &m, &embedding, "embedding", 0, false, m.vocab, m.dim);
    assert_slot(w, &m, &head, m.tied ? "embedding" : "head", 0, false, m.vocab, m.dim);
    if (m.no_out_norm) {
        assert_null(x.out_norm.t);
    } else {
        assert_slot(w, &m, &x.out_norm, "out_norm", 0, false, m.dim, 0);
    }
    xl_wiring_free(&x);
    xl_weights_close(w);
    mk_remove_folder(folder);
}

static void test_layouts(void **state)
{
    (void)state;
    static const char *const schemes[] = {"huggingface", "nx-ai", "bare", "query"};
    static const xlstm_dtype dtypes[] = {XLSTM_F32, XLSTM_BF16, XLSTM_F16};
    for (size_t s = 0; s < XL_COUNT(schemes); s++) {
        for (int fused = 0; fused < 2; fused++) {
            for (int bias = 0; bias < 2; bias++) {
                for (int tied = 0; tied < 2; tied++) {
                    check_model(&(mk_model){.scheme = schemes[s], .fused = fused, .use_bias = bias, .tied = tied,
                                            .dtype = dtypes[(s + (size_t)fused) % 3], .seed = 1 + s});
                }
            }
        }
    }
}

static void test_variants(void **state)
{
    (void)state;
    check_model(&(mk_model){.blocks = 12, .shards = 5});
    check_model(&(mk_model){.blocks = 12, .fused = true, .scheme = "nx-ai", .shards = 3});
    check_model(&(mk_model){.head_norm_2d = true});
    check_model(&(mk_model){.head_norm_2d = true, .use_bias = true, .dtype = XLSTM_BF16});
    check_model(&(mk_model){.no_out_norm = true});
    check_model(&(mk_model){.small_float32 = true, .dtype = XLSTM_BF16});
    check_model(&(mk_model){.blocks = 1, .heads = 1});
    /* odd head sizes: 48/96, 64/128, 96/192, 256/512 */
    check_model(&(mk_model){.dim = 96, .heads = 2, .qk = 96, .v = 192, .ffn = 33});
    check_model(&(mk_model){.dim = 64, .heads = 3, .qk = 192, .v = 384, .ffn = 7, .fused = true});
    check_model(&(mk_model){.dim = 192, .heads = 2, .qk = 192, .v = 384, .blocks = 1});
    check_model(&(mk_model){.dim = 16, .heads = 1, .qk = 256, .v = 512, .blocks = 1});
    check_model(&(mk_model){.dim = 24, .heads = 3, .qk = 9, .v = 21, .ffn = 17, .vocab = 5, .fused = true});
}

static void test_refusals(void **state)
{
    (void)state;
    mk_model m = {.blocks = 3};
    mk_list list = mk_build(&m);
    assert_int_equal(discover(&list), XLSTM_OK);

    /* missing, each by its own name and shape */
    static const char *const missing[][2] = {
        {"backbone.blocks.1.mlstm_layer.q.weight", "[16, 32]"}, {"backbone.blocks.0.mlstm_layer.q.weight", "missing"},
        {"backbone.blocks.0.mlstm_layer.igate_preact.weight", "missing"},
        {"backbone.blocks.0.ffn.proj_down.weight", "missing"}, {"backbone.blocks.0.mlstm_layer.out_proj.weight", "missing"},
        {"backbone.blocks.2.ffn.proj_up_gate.weight", "[64, 32]"}, {"backbone.blocks.2.norm_ffn.weight", "[32]"},
        {"backbone.blocks.1.mlstm_layer.igate_preact.bias", "gates always have a bias"},
        {"backbone.embeddings.weight", "embedding is missing"},
    };
    for (size_t i = 0; i < XL_COUNT(missing); i++) {
        mk_list less = mk_build(&m);
        mk_remove(&less, missing[i][0]);
        assert_refused(&less, missing[i][0], missing[i][1]);
        mk_free(&less);
    }

    /* surplus and foreign */
    static const char *const extra[][2] = {
        {"backbone.blocks.1.mlstm_layer.skip.weight", "surplus"},
        {"backbone.blocks.1.norm_mlstm.bias", "no bias"},
        {"backbone.blocks.1.mlstm_layer.out_proj.bias", "no bias"},
        {"backbone.blocks.1.mlstm_layer.q.bias", "expected shape [16]"},
        {"optimizer.step", "surplus"},
        {"backbone.blocks.1.slstm_layer.igate.weight", "block 1 is an sLSTM block"},
        {"backbone.blocks.2.self_attn.q_proj.weight", "block 2 is an attention block"},
        {"backbone.blocks.2.mamba.in_proj.weight", "block 2 is a Mamba block"},
        {"xlstm_block_stack.blocks.0.xlstm.proj_up.weight", "2024"},
        {"backbone.blocks.01.norm_mlstm.weight", "surplus"},
        {"embedding.weight", "two names"},
        {"blocks.1.norm_mlstm.weight", "two names"},
        {"backbone.blocks.0.mlstm_layer.query.weight", "two names"},
        {"backbone.blocks.0.mlstm_layer.qkv_opreact.weight", "expected"},
        {"backbone.blocks.0.mlstm_layer.qkv_opreact.bias", "surplus"},
        {"backbone.blocks.4.norm_mlstm.weight", "block 3 is missing"},
        {"backbone.blocks.999999.norm_mlstm.weight", "block 3 is missing"},
    };
    for (size_t i = 0; i < XL_COUNT(extra); i++) {
        mk_list more = mk_build(&m);
        mk_add(&more, extra[i][0], XLSTM_F32, 32, 0);
        assert_refused(&more, extra[i][0], extra[i][1]);
        mk_free(&more);
    }

    /* mis-shaped */
    for (size_t i = 0; i < list.n; i++) {
        mk_list bent = mk_build(&m);
        mk_tensor *t = &bent.t[i];
        char name[160], found[64];
        snprintf(name, sizeof(name), "%s", t->name);
        uint64_t rows = t->shape[0] + 1, cols = t->rank == 2 ? t->shape[1] : 0;
        snprintf(found, sizeof(found), cols > 0 ? "[%llu, %llu]" : "[%llu]", (unsigned long long)rows,
                 (unsigned long long)cols);
        xlstm_dtype dtype = t->dtype;
        mk_remove(&bent, name);
        mk_add(&bent, name, dtype, rows, cols);
        if (strcmp(name, "backbone.embeddings.weight") == 0) {
            assert_refused(&bent, "lm_head.weight", "expected shape [49, 32], found [48, 32]");
        } else if (strstr(name, ".0.mlstm_layer.igate_preact.weight") != NULL) {
            assert_refused(&bent, "5 heads", "16");
        } else if (strstr(name, ".0.mlstm_layer.q.weight") != NULL) {
            assert_refused(&bent, "4 heads", "17");
        } else {
            assert_refused(&bent, name, found);
        }
        mk_free(&bent);
    }

    /* dtypes that cannot be computed with */
    mk_list odd = mk_build(&m);
    mk_remove(&odd, "backbone.blocks.1.ffn.proj_up.weight");
    mk_add(&odd, "backbone.blocks.1.ffn.proj_up.weight", XLSTM_F64, 64, 32);
    assert_refused(&odd, "backbone.blocks.1.ffn.proj_up.weight", "F64");
    mk_free(&odd);
    mk_free(&list);

    /* no block at all, and a bias that is missing */
    mk_list other = {0};
    mk_add(&other, "model.layers.0.self_attn.q_proj.weight", XLSTM_F32, 4, 4);
    assert_refused(&other, "no xLSTM block", "model.layers.0.self_attn.q_proj.weight");
    mk_free(&other);
    mk_model biased = {.use_bias = true};
    mk_list b = mk_build(&biased);
    mk_remove(&b, "backbone.blocks.1.norm_ffn.bias");
    assert_refused(&b, "backbone.blocks.1.norm_ffn.bias", "missing");
    mk_free(&b);
}

/* Every line of the drawing ends at the same column or before it, box lines close, and folding follows the blocks. */
static void test_drawing(void **state)
{
    (void)state;
    for (uint32_t blocks = 1; blocks <= 32; blocks += 31) {
        for (int unicode = 0; unicode < 2; unicode++) {
            char *folder = mk_folder();
            mk_put_model(folder, &(mk_model){.blocks = blocks, .tied = blocks == 1, .use_bias = blocks == 32});
            xl_weights *w = open_folder(folder);
            xl_wiring x;
            assert_int_equal(xl_wiring_discover(&x, w, NULL, &err), XLSTM_OK);
            xl_text t = {0};
            xl_wiring_draw(&t, &x, unicode);
            char *drawing = xl_text_end(&t, NULL, &err);
            assert_non_null(drawing);
            assert_non_null(strstr(drawing, blocks == 1 ? " block 0: mLSTM " : " blocks 0-31 (x32): mLSTM "));
            assert_int_equal(strstr(drawing, "(tied: the embedding)") != NULL, blocks == 1);
            for (int role = 0; role < XL_ROLES; role++) assert_non_null(strstr(drawing, xl_role_name(role)));
            assert_non_null(strstr(drawing, "[64, 32]"));
            int lines = 0;
            for (const char *p = drawing; *p != '\0';) {
                const char *end = strchr(p, '\n');
                int width = 0;
                for (const char *c = p; c < end; c++) {
                    width += ((uint8_t)*c & 0xc0) != 0x80;
                    if (!unicode) assert_true((uint8_t)*c >= 0x20 && (uint8_t)*c < 0x7f);
                }
                bool framed = unicode ? strncmp(p, "│", 3) == 0 : *p == '|';
                if (framed) assert_true(unicode ? strncmp(end - 3, "│", 3) == 0 : end[-1] == '|');
                if (framed) assert_int_equal(width, 108);
                assert_true(width <= 108 && (end == p || end[-1] != ' '));
                lines++;
                p = end + 1;
            }
            assert_true(lines < 60);
            free(drawing);
            xl_wiring_free(&x);
            xl_weights_close(w);
            mk_remove_folder(folder);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_variants),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_drawing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
