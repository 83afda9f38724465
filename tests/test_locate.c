/*
 * test_locate.c — the localiser: NaN, Inf and overflowing values planted in every kind of weight and in the state, in
 * several blocks, must be found at their origin.
 */
#include "poison.h"
#include "state.h"

#include <math.h>

#define MODEL "models/xlstm-stories-10m"

enum { NAN16 = 0x7fc0, INF16 = 0x7f80, HUGE16 = 0x7f7f, TOKENS = 150 };

static int32_t tokens[TOKENS];

static xlstm_model *open_model(const char *folder)
{
    xlstm_model *m;
    xlstm_error err;
    if (xlstm_model_open(&m, folder, NULL, &err) != XLSTM_OK) fail_msg("%s", err.message);
    return m;
}

static xlstm_fault locate(xlstm_model *m, const xlstm_state *from)
{
    xlstm_fault f;
    xlstm_error err;
    if (xlstm_locate_fault(&f, m, from, tokens, TOKENS, &err) != XLSTM_OK) fail_msg("%s", err.message);
    return f;
}

static void test_sound_model_has_no_fault(void **state)
{
    (void)state;
    xlstm_model *m = open_model(MODEL);
    assert_false(locate(m, NULL).found);
    xlstm_model_free(m);
}

/* `saturates`: an infinite pre-activation is squashed to a finite gate, so Inf is no fault there. */
static const struct {
    const char *weight, *stage;
    bool saturates;
} kinds[] = {
    {"norm_mlstm.weight", "norm_mlstm", false},
    {"mlstm_layer.q.weight", "q", false},
    {"mlstm_layer.k.weight", "k", false},
    {"mlstm_layer.v.weight", "v", false},
    {"mlstm_layer.ogate_preact.weight", "ogate_preact", true},
    {"mlstm_layer.igate_preact.weight", "igate_preact", true},
    {"mlstm_layer.igate_preact.bias", "igate_preact", true},
    {"mlstm_layer.fgate_preact.weight", "fgate_preact", true},
    {"mlstm_layer.multihead_norm.weight", "gated", false},
    {"mlstm_layer.out_proj.weight", "out_proj", false},
    {"norm_ffn.weight", "norm_ffn", false},
    {"ffn.proj_up_gate.weight", "proj_up_gate", false},
    {"ffn.proj_up.weight", "proj_up", false},
    {"ffn.proj_down.weight", "proj_down", false},
};

static void test_bad_weights_are_named(void **state)
{
    (void)state;
    static const int blocks[] = {0, 4, 9};
    static const uint16_t values[] = {NAN16, INF16, HUGE16};
    char *folder = copy_folder(MODEL);
    for (size_t k = 0; k < XL_COUNT(kinds); k++) {
        int block = blocks[k % 3];
        char name[96];
        snprintf(name, sizeof(name), "backbone.blocks.%d.%s", block, kinds[k].weight);
        for (size_t v = 0; v < XL_COUNT(values); v++) {
            if (kinds[k].saturates && values[v] != NAN16) continue;
            uint16_t before = poison_weight(folder, name, 2, values[v]);
            xlstm_model *m = open_model(folder);
            xlstm_fault f = locate(m, NULL);
            if (!f.found) fail_msg("%s: value %zu was not found", name, v);
            if (values[v] == HUGE16) { /* overflows at the weight or where its product meets the next norm */
                assert_true(f.block == block || f.block == block + 1 || f.block == -1);
            } else {
                assert_int_equal(f.block, block);
                assert_string_equal(f.stage, kinds[k].stage);
                assert_false(xl_is_finite(f.value));
                if (strncmp(f.culprit, name, strlen(name)) != 0) fail_msg("%s: culprit \"%s\"", name, f.culprit);
                if (f.input[0] != '\0') assert_true(f.input_min <= f.input_max && f.input_nonfinite == 0);
            }
            xlstm_model_free(m);
            (void)poison_weight(folder, name, 2, before);
        }
    }
    remove_folder(folder);
}

static void test_bad_weights_outside_the_blocks(void **state)
{
    (void)state;
    static const struct {
        const char *weight, *stage;
        int block;
        size_t element;
    } cases[] = {
        {"backbone.embeddings.weight", "x_in", 0, 140 * 256 + 9}, /* the row of tokens[40] */
        {"backbone.out_norm.weight", "out_norm", -1, 5},
        {"lm_head.weight", "logits", -1, 77 * 256},
    };
    char *folder = copy_folder(MODEL);
    for (size_t c = 0; c < XL_COUNT(cases); c++) {
        uint16_t before = poison_weight(folder, cases[c].weight, cases[c].element, NAN16);
        xlstm_model *m = open_model(folder);
        xlstm_fault f = locate(m, NULL);
        assert_true(f.found);
        assert_int_equal(f.block, cases[c].block);
        assert_string_equal(f.stage, cases[c].stage);
        assert_int_equal(strncmp(f.culprit, cases[c].weight, strlen(cases[c].weight)), 0);
        if (c == 0) {
            assert_int_equal(f.position, 41); /* BOS stands in front */
            assert_int_equal(f.token, tokens[40]);
            assert_int_equal(f.channel, 9);
        }
        xlstm_model_free(m);
        (void)poison_weight(folder, cases[c].weight, cases[c].element, before);
    }
    remove_folder(folder);
}

static void test_bad_state_is_named(void **state)
{
    (void)state;
    xlstm_model *m = open_model(MODEL);
    xlstm_session *s;
    assert_int_equal(xlstm_session_new(&s, m, NULL), XLSTM_OK);
    assert_int_equal(xlstm_prefill(s, tokens, 40, NULL), XLSTM_OK);
    for (int part = 0; part < 3; part++) {
        for (int v = 0; v < (part == 0 ? 3 : 2); v++) { /* the third overflows on its way to the norm */
            xlstm_state *bad;
            assert_int_equal(xlstm_state_snapshot(&bad, s, NULL), XLSTM_OK);
            size_t at = part == 0   ? xl_state_c_offset(&bad->layout, 3, 2) + 5 * bad->layout.c_row_bytes
                        : part == 1 ? xl_state_n_offset(&bad->layout, 3, 2)
                                    : xl_state_m_offset(&bad->layout, 3, 2);
            float value = v == 0 ? NAN : v == 1 ? INFINITY : 3e38f;
            memcpy(bad->memory + at, &value, sizeof(value));
            xlstm_fault f = locate(m, bad);
            assert_true(f.found);
            assert_int_equal(f.block, 3);
            assert_int_equal(f.head, 2);
            assert_int_equal(f.position, 41);
            if (part < 2 && v < 2) assert_string_equal(f.stage, part == 0 ? "C" : "n");
            xlstm_state_free(bad);
        }
    }
    xlstm_session_free(s);
    xlstm_model_free(m);
}

int main(void)
{
    for (int i = 0; i < TOKENS; i++) tokens[i] = 100 + i;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sound_model_has_no_fault),
        cmocka_unit_test(test_bad_weights_are_named),
        cmocka_unit_test(test_bad_weights_outside_the_blocks),
        cmocka_unit_test(test_bad_state_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
