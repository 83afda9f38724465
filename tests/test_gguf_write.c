/* test_gguf_write.c — the container written and read back; conversion of every layout to GGUF keeps every bit of the
 * logits; formats by tensor, fallbacks and what is refused; importance matrices; no traces of failures. */
#include "gguf_write.h"
#include "state_fixture.h"

static const char *file_in(const char *folder, const char *name)
{
    static char paths[4][1100];
    static int turn;
    char *path = paths[turn++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", folder, name);
    return path;
}

static size_t files_in(const char *folder)
{
    size_t n = 0;
    DIR *dir = opendir(folder);
    assert_non_null(dir);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) n += e->d_name[0] != '.';
    closedir(dir);
    return n;
}

/* ---- the container ---------------------------------------------------------------------------------------------- */

static void test_container(void **state)
{
    (void)state;
    char *folder = mk_folder();
    const char *path = file_in(folder, "a.gguf");
    xl_gguf_writer g;
    const uint64_t odd[2] = {3, 5}, none[2] = {0, 7}, blocks[2] = {2, 64};
    float values[15];
    uint8_t bytes[136];
    for (int i = 0; i < 15; i++) values[i] = (float)i;
    for (int i = 0; i < 136; i++) bytes[i] = (uint8_t)i;
    OK(xl_gguf_create(&g, path, &err));
    xl_gguf_put_text(&g, "general.type", "test", 4);
    xl_gguf_put_u32(&g, "n", 7);
    xl_gguf_put_f32(&g, "f", 0.1f);
    xl_gguf_put_bool(&g, "b", true);
    OK(xl_gguf_declare(&g, "odd", XLSTM_F32, 2, odd, &err));
    OK(xl_gguf_declare(&g, "none", XLSTM_F32, 2, none, &err));
    OK(xl_gguf_declare(&g, "blocks", XLSTM_Q8_0, 2, blocks, &err));
    REFUSED(xl_gguf_declare(&g, "bad", XLSTM_Q4_K, 2, blocks, &err), XLSTM_E_UNSUPPORTED, "a row of 64 values");
    OK(xl_gguf_begin(&g, &err));
    OK(xl_gguf_data(&g, values, 8, &err));
    REFUSED(xl_gguf_data(&g, values, 56, &err), XLSTM_E_ARGUMENT, "more bytes");
    OK(xl_gguf_data(&g, values + 2, 52, &err));
    OK(xl_gguf_data(&g, bytes, 136, &err));
    REFUSED(xl_gguf_data(&g, bytes, 1, &err), XLSTM_E_ARGUMENT, "more bytes");
    assert_false(xl_is_file(path)); /* not before it is complete */
    OK(xl_gguf_commit(&g, &err));
    xl_gguf_abort(&g);
    xl_weights *w;
    OK(xl_weights_open_typed(&w, path, "test", &err));
    assert_int_equal(xl_weights_count(w), 3);
    const xl_tensor *t = xl_weights_find(w, "odd");
    const void *data;
    assert_true(t != NULL && t->rank == 2 && t->shape[0] == 3 && t->shape[1] == 5 && t->dtype == XLSTM_F32);
    OK(xl_weights_data(&data, w, t, &err));
    assert_memory_equal(data, values, sizeof(values));
    t = xl_weights_find(w, "blocks");
    assert_true(t != NULL && t->dtype == XLSTM_Q8_0 && t->bytes == 136 && t->offset % 32 == 0);
    OK(xl_weights_data(&data, w, t, &err));
    assert_memory_equal(data, bytes, 136);
    xl_weights_close(w);
    REFUSED(xl_weights_open_typed(&w, path, "other", &err), XLSTM_E_UNSUPPORTED, "general.type: expected 'other'");

    OK(xl_gguf_create(&g, path, &err)); /* incomplete: the old file stays, nothing else does */
    OK(xl_gguf_declare(&g, "odd", XLSTM_F32, 2, odd, &err));
    OK(xl_gguf_begin(&g, &err));
    REFUSED(xl_gguf_commit(&g, &err), XLSTM_E_ARGUMENT, "fewer bytes");
    OK(xl_weights_open_typed(&w, path, "test", &err));
    xl_weights_close(w);
    assert_int_equal(files_in(folder), 1);
    mk_remove_folder(folder);
}

/* ---- conversion keeps every bit --------------------------------------------------------------------------------- */

enum { TEXT = 40 };

/* [TEXT][VOCAB] logits of a fixed text, and the model's facts. */
static float *logits_of(const char *path, const char *backend, xlstm_model_info *info)
{
    xlstm_model *m = NULL;
    xlstm_session *s = NULL;
    int32_t ids[TEXT];
    float *out = calloc(TEXT * VOCAB, sizeof(float));
    OK(xlstm_model_open(&m, path, &(xlstm_model_options){.backend = backend, .threads = 2}, &err));
    OK(xlstm_session_new(&s, m, &err));
    fx_tokens(ids, TEXT, 5);
    xlstm_segment g = {.session = s, .tokens = ids, .count = TEXT, .want = XLSTM_WANT_ALL, .logits = out};
    OK(xlstm_evaluate(m, &g, 1, &err));
    if (info != NULL) *info = *xlstm_model_get_info(m);
    xlstm_session_free(s);
    xlstm_model_free(m);
    return out;
}

static void same_logits(const char *a, const char *b)
{
    static const char *const backends[] = {"reference", "cpu"};
    for (size_t i = 0; i < XL_COUNT(backends); i++) {
        xlstm_model_info first, second;
        float *x = logits_of(a, backends[i], &first), *y = logits_of(b, backends[i], &second);
        if (memcmp(x, y, TEXT * VOCAB * sizeof(float)) != 0) fail_msg("%s and %s differ on %s", a, b, backends[i]);
        assert_memory_equal(first.stop_ids, second.stop_ids, sizeof(first.stop_ids));
        assert_true(first.bos_id == second.bos_id && first.eos_id == second.eos_id && first.pad_id == second.pad_id);
        assert_true(first.bos_auto == second.bos_auto && first.parameters == second.parameters);
        assert_true(first.tied == second.tied && first.use_bias == second.use_bias && first.out_norm == second.out_norm);
        assert_true(first.weights.dtype == second.weights.dtype && first.state.dtype == second.state.dtype);
        assert_true(first.norm_float32.on == second.norm_float32.on && first.chunk_size == second.chunk_size);
        assert_true(first.norm_eps == second.norm_eps && first.cell_eps == second.cell_eps);
        assert_true(first.gate_soft_cap == second.gate_soft_cap && first.logit_soft_cap == second.logit_soft_cap);
        free(x);
        free(y);
    }
}

static void test_every_layout(void **state)
{
    (void)state;
    static const mk_model models[] = {
        {.seed = 1},
        {.seed = 2, .fused = true, .use_bias = true, .scheme = "nx-ai"},
        {.seed = 3, .tied = true, .scheme = "bare", .no_out_norm = true, .chunk_size = 16},
        {.seed = 4, .dtype = XLSTM_BF16, .shards = 3, .head_norm_2d = true},
        {.seed = 5, .dtype = XLSTM_F16, .fused = true, .use_bias = true, .small_float32 = true},
        {.seed = 6, .scheme = "gguf", .dtype = XLSTM_Q8_0},
        {.seed = 7, .config_extra = ", \"bos_token_id\": 3, \"eos_token_id\": 4, \"pad_token_id\": 5, "
                                    "\"force_bos_token_insert\": true, \"dtype\": \"bfloat16\", "
                                    "\"autocast_kernel_dtype\": \"bfloat16\", \"inference_state_dtype\": \"bfloat16\", "
                                    "\"norm_reduction_force_float32\": false"},
    };
    for (size_t i = 0; i < XL_COUNT(models); i++) {
        char *folder = mk_folder(), *other = mk_folder();
        mk_put_model(folder, &models[i]);
        if (i == 6) mk_put_text(folder, "generation_config.json", "{\"eos_token_id\": [4, 9]}");
        const char *source = models[i].scheme != NULL && strcmp(models[i].scheme, "gguf") == 0
                                 ? file_in(folder, "model.gguf") : folder;
        const char *once = file_in(other, "once.gguf"), *twice = file_in(other, "twice.gguf");
        OK(xlstm_convert(source, once, NULL, &err));
        same_logits(source, once);
        OK(xlstm_convert(once, twice, &(xlstm_convert_options){.threads = 3}, &err)); /* all of it travels on */
        same_logits(once, twice);
        assert_int_equal(files_in(other), 2);
        mk_remove_folder(folder);
        mk_remove_folder(other);
    }
}

/* ---- formats ---------------------------------------------------------------------------------------------------- */

static xlstm_dtype type_in(const char *path, const char *name)
{
    xlstm_model *m = NULL;
    xlstm_dtype found = XLSTM_DTYPE_COUNT;
    OK(xlstm_model_open(&m, path, &(xlstm_model_options){.headers_only = true}, &err));
    for (size_t i = 0; i < xlstm_model_tensor_count(m); i++) {
        xlstm_tensor_info t;
        xlstm_model_tensor(m, i, &t);
        if (strcmp(t.name, name) == 0) found = t.dtype;
    }
    xlstm_model_free(m);
    return found;
}

static void test_formats(void **state)
{
    (void)state;
    const mk_model model = {.seed = 8, .dim = 256, .heads = 2, .ffn = 352, .blocks = 2};
    char *folder = mk_folder(), *other = mk_folder();
    mk_put_model(folder, &model);
    const char *out = file_in(other, "a.gguf");
    const char *const rules[] = {"ffn_*=q5_k", "blk.1.ffn_up.weight=f16", "mlstm_[qk]=q8_0"};
    const struct {
        xlstm_convert_options o;
        const char *name;
        xlstm_dtype expected;
    } cases[] = {
        {{.type = XLSTM_Q4_K}, "blk.0.mlstm_q.weight", XLSTM_Q4_K},
        {{.type = XLSTM_Q4_K}, "blk.0.ffn_down.weight", XLSTM_Q4_0}, /* rows of 352 */
        {{.type = XLSTM_Q5_K}, "blk.0.ffn_down.weight", XLSTM_Q8_0},
        {{.type = XLSTM_Q6_K}, "blk.1.ffn_down.weight", XLSTM_Q8_0},
        {{.type = XLSTM_Q4_0}, "blk.1.ffn_down.weight", XLSTM_Q4_0},
        {{.type = XLSTM_Q4_K}, "token_embd.weight", XLSTM_Q6_K},
        {{.type = XLSTM_Q4_K}, "output.weight", XLSTM_Q6_K},
        {{.type = XLSTM_Q4_K, .embedding = XLSTM_F16}, "token_embd.weight", XLSTM_F16},
        {{.type = XLSTM_Q4_K, .head = XLSTM_Q4_K}, "output.weight", XLSTM_Q4_K},
        {{.type = XLSTM_Q4_K}, "blk.1.mlstm_igate.weight", XLSTM_F32},
        {{.type = XLSTM_Q4_K}, "blk.1.mlstm_fgate.bias", XLSTM_F32},
        {{.type = XLSTM_BF16}, "blk.1.ffn_norm.weight", XLSTM_F32},
        {{.type = XLSTM_BF16}, "output.weight", XLSTM_BF16},
        {{.type = XLSTM_Q4_K, .tensors = rules, .n_tensors = 3}, "blk.0.ffn_up.weight", XLSTM_Q5_K},
        {{.type = XLSTM_Q4_K, .tensors = rules, .n_tensors = 3}, "blk.1.ffn_up.weight", XLSTM_F16},
        {{.type = XLSTM_Q4_K, .tensors = rules, .n_tensors = 3}, "blk.1.mlstm_k.weight", XLSTM_Q8_0},
        {{.tensors = rules, .n_tensors = 3}, "blk.0.mlstm_v.weight", XLSTM_F32},
    };
    for (size_t i = 0; i < XL_COUNT(cases); i++) {
        OK(xlstm_convert(folder, out, &cases[i].o, &err));
        if (type_in(out, cases[i].name) != cases[i].expected) {
            fail_msg("case %zu: %s is %s", i, cases[i].name, xlstm_dtype_name(type_in(out, cases[i].name)));
        }
    }
    /* Threads do not change a bit; what was quantised is as good as it should be. */
    char *one, *many;
    size_t n, m;
    OK(xlstm_convert(folder, out, &(xlstm_convert_options){.type = XLSTM_Q5_K, .threads = 1}, &err));
    OK(xl_read_file(&one, &n, out, 1 << 24, &err));
    OK(xlstm_convert(folder, out, &(xlstm_convert_options){.type = XLSTM_Q5_K, .threads = 5}, &err));
    OK(xl_read_file(&many, &m, out, 1 << 24, &err));
    assert_true(n == m && memcmp(one, many, n) == 0);
    xl_release(one);
    xl_release(many);
    float *exact = logits_of(folder, "reference", NULL), *near = logits_of(out, "reference", NULL);
    double error = 0, power = 0;
    for (int i = 0; i < TEXT * VOCAB; i++) {
        error += (exact[i] - near[i]) * (exact[i] - near[i]);
        power += exact[i] * exact[i];
    }
    assert_true(error > 0 && error < 0.02 * power);
    free(exact);
    free(near);
    mk_remove_folder(folder);
    mk_remove_folder(other);
}

static bool refuse_always(void *user)
{
    (void)user;
    return true;
}

static void test_refusals(void **state)
{
    (void)state;
    const mk_model model = {.seed = 9};
    char *folder = mk_folder(), *other = mk_folder();
    mk_put_model(folder, &model);
    const char *out = file_in(other, "a.gguf");
    const struct {
        xlstm_convert_options o;
        const char *rule, *says;
        int code;
    } cases[] = {
        {{.type = XLSTM_F64}, NULL, "float64 is no format for weights", XLSTM_E_ARGUMENT},
        {{.head = XLSTM_I8}, NULL, "int8 is no format for weights", XLSTM_E_ARGUMENT},
        {{0}, "ffn_down", "expected PATTERN=TYPE", XLSTM_E_ARGUMENT},
        {{0}, "=q8_0", "expected PATTERN=TYPE", XLSTM_E_ARGUMENT},
        {{0}, "ffn_down=q9", "unknown number format", XLSTM_E_ARGUMENT},
        {{0}, "ffn_down=int8", "no format for weights", XLSTM_E_ARGUMENT},
        {{0}, "attn_q=q8_0", "no tensor of this model matches", XLSTM_E_ARGUMENT},
        {{0}, "mlstm_igate=q8_0", "stays float32", XLSTM_E_ARGUMENT},
        {{.imatrix = "/nonexistent/im.gguf"}, NULL, "/nonexistent/im.gguf", XLSTM_E_IO},
        {{.stop = refuse_always}, NULL, "stopped on request", XLSTM_E_IO},
    };
    for (size_t i = 0; i < XL_COUNT(cases); i++) {
        xlstm_convert_options o = cases[i].o;
        if (cases[i].rule != NULL) {
            o.tensors = &cases[i].rule;
            o.n_tensors = 1;
        }
        REFUSED(xlstm_convert(folder, out, &o, &err), cases[i].code, cases[i].says);
    }
    REFUSED(xlstm_convert(folder, "/nonexistent/a.gguf", NULL, &err), XLSTM_E_IO, "/nonexistent/a.gguf");
    REFUSED(xlstm_convert("/nonexistent", out, NULL, &err), XLSTM_E_IO, "/nonexistent");
    REFUSED(xlstm_convert(folder, "", NULL, &err), XLSTM_E_IO, "name of the file to write is empty");
    REFUSED(xlstm_convert(folder, other, NULL, &err), XLSTM_E_IO, "found a folder");
    REFUSED(xlstm_convert(folder, file_in(other, "a-00001-of-00002.gguf"), NULL, &err), XLSTM_E_ARGUMENT, "leave out -00001-of-00002");
    assert_int_equal(files_in(other), 0);

    mk_list list = mk_build(&model); /* values that a format cannot hold are named, and stay in one that can */
    mk_tensor *t = mk_find(&list, "backbone.blocks.1.ffn.proj_down.weight");
    ((float *)(void *)t->data)[64 * 3 + 5] = NAN;
    mk_put_safetensors(folder, "model.safetensors", list.t, list.n);
    REFUSED(xlstm_convert(folder, out, &(xlstm_convert_options){.type = XLSTM_Q8_0}, &err), XLSTM_E_UNSUPPORTED,
            "'backbone.blocks.1.ffn.proj_down.weight': the value at row 3, column 5");
    OK(xlstm_convert(folder, out, &(xlstm_convert_options){.type = XLSTM_F16}, &err));
    ((float *)(void *)t->data)[64 * 3 + 5] = -65520;
    mk_put_safetensors(folder, "model.safetensors", list.t, list.n);
    REFUSED(xlstm_convert(folder, out, &(xlstm_convert_options){.type = XLSTM_F16}, &err), XLSTM_E_UNSUPPORTED,
            "beyond 65504");
    OK(xlstm_convert(folder, out, &(xlstm_convert_options){.type = XLSTM_BF16}, &err));
    mk_free(&list);
    assert_int_equal(files_in(other), 1);
    mk_remove_folder(folder);
    mk_remove_folder(other);
}

/* ---- importance matrices ---------------------------------------------------------------------------------------- */

typedef struct seen {
    xlstm_imatrix *im;
    double down[64], head[32]; /* sums of squares of block 1's ffn_product, and of the head's input */
} seen;

static void observe(void *user, int block, const char *stage, const float *values, size_t rows, size_t width)
{
    seen *s = user;
    for (size_t i = 0; i < rows * width; i++) {
        if (block == 1 && strcmp(stage, "ffn_product") == 0) s->down[i % width] += (double)values[i] * values[i];
        if (block == -1 && strcmp(stage, "out_norm") == 0) s->head[i % width] += (double)values[i] * values[i];
    }
    xlstm_imatrix_observe(s->im, block, stage, values, rows, width);
}

static void test_imatrix(void **state)
{
    (void)state;
    const mk_model model = {.seed = 10}, wider = {.seed = 10, .ffn = 96};
    char *folder = mk_folder(), *other = mk_folder();
    mk_put_model(folder, &model);
    const char *path = file_in(other, "im.gguf"), *plain = file_in(other, "plain.gguf"), *fit = file_in(other, "fit.gguf");
    xlstm_model *m = fx_open(folder, XLSTM_DTYPE_DEFAULT, XLSTM_OFF);
    xlstm_session *s = fx_session(m);
    seen sums = {0};
    int32_t ids[TEXT];
    OK(xlstm_imatrix_new(&sums.im, m, &err));
    REFUSED(xlstm_imatrix_save(sums.im, path, &err), XLSTM_E_ARGUMENT, "seen no text");
    xlstm_session_set_trace(s, observe, &sums);
    fx_tokens(ids, TEXT, 6);
    xlstm_segment g = {.session = s, .tokens = ids, .count = TEXT, .want = XLSTM_WANT_ALL};
    OK(xlstm_evaluate(m, &g, 1, &err));
    assert_int_equal(xlstm_imatrix_tokens(sums.im), TEXT);
    OK(xlstm_imatrix_save(sums.im, path, &err));
    xlstm_imatrix_free(sums.im);
    xlstm_session_free(s);
    xlstm_model_free(m);

    xl_weights *w;
    const void *data;
    OK(xl_weights_open_typed(&w, path, "imatrix", &err));
    assert_int_equal(xl_weights_count(w), 2 * (2 * 8 + 1));
    OK(xl_weights_data(&data, w, xl_weights_find(w, "blk.1.ffn_down.weight.in_sum2"), &err));
    for (int i = 0; i < 64; i++) assert_true(((const float *)data)[i] == (float)sums.down[i]);
    OK(xl_weights_data(&data, w, xl_weights_find(w, "output.weight.in_sum2"), &err));
    for (int i = 0; i < 32; i++) assert_true(((const float *)data)[i] == (float)sums.head[i]);
    OK(xl_weights_data(&data, w, xl_weights_find(w, "blk.0.mlstm_q.weight.counts"), &err));
    assert_true(*(const float *)data == TEXT);
    xl_weights_close(w);

    /* The error that counts is smaller with it. */
    double error[2] = {0};
    OK(xlstm_convert(folder, plain, &(xlstm_convert_options){.type = XLSTM_Q4_0}, &err));
    OK(xlstm_convert(folder, fit, &(xlstm_convert_options){.type = XLSTM_Q4_0, .imatrix = path}, &err));
    mk_list list = mk_build(&model);
    const float *exact = (const float *)(const void *)mk_find(&list, "backbone.blocks.1.ffn.proj_down.weight")->data;
    for (int k = 0; k < 2; k++) {
        float row[64];
        OK(xl_weights_open(&w, k == 0 ? plain : fit, &(xl_log){0}, &err));
        OK(xl_weights_data(&data, w, xl_weights_find(w, "blk.1.ffn_down.weight"), &err));
        for (int r = 0; r < 32; r++) {
            xl_decode_row(row, (const uint8_t *)data + r * 36, XLSTM_Q4_0, 64);
            for (int c = 0; c < 64; c++) {
                double d = (double)row[c] - exact[r * 64 + c];
                error[k] += d * d * sums.down[c];
            }
        }
        xl_weights_close(w);
    }
    mk_free(&list);
    assert_true(error[1] < 0.95 * error[0]);

    /* one of a model with more blocks */
    char *small = mk_folder();
    mk_put_model(small, &(mk_model){.seed = 10, .blocks = 1});
    REFUSED(xlstm_convert(small, fit, &(xlstm_convert_options){.type = XLSTM_Q4_0, .imatrix = path}, &err),
            XLSTM_E_MISMATCH, "the model that is converted has no such matrix");
    mk_remove_folder(small);

    char *narrow = mk_folder();
    mk_put_model(narrow, &wider);
    REFUSED(xlstm_convert(narrow, fit, &(xlstm_convert_options){.type = XLSTM_Q4_0, .imatrix = path}, &err),
            XLSTM_E_MISMATCH, "expected 96 float32 values");
    REFUSED(xlstm_convert(folder, fit, &(xlstm_convert_options){.type = XLSTM_Q4_0, .imatrix = plain}, &err),
            XLSTM_E_UNSUPPORTED, "general.type: expected 'imatrix'");
    REFUSED(xlstm_model_open(&m, path, NULL, &err), XLSTM_E_FORMAT, "xlstm.block_count");
    mk_remove_folder(narrow);
    mk_remove_folder(folder);
    mk_remove_folder(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_container), cmocka_unit_test(test_every_layout), cmocka_unit_test(test_formats),
        cmocka_unit_test(test_refusals),  cmocka_unit_test(test_imatrix),
    };
    return cmocka_run_group_tests_name("gguf_write", tests, NULL, NULL);
}
