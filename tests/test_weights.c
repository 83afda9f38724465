/* test_weights.c — safetensors, GGUF and presets: what is read is what was written, and files that are truncated, bent or
 * lie about themselves are refused with an error, never a crash. Run with the sanitizers to see the second half. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "make_model.h"
#include "json.h"
#include "weights.h"
#include "wiring.h"

static xlstm_error err;
static char *folder;

static int setup(void **state)
{
    (void)state;
    folder = mk_folder();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    mk_remove_folder(folder);
    json_set_alloc_funcs(malloc, free);
    return 0;
}

static const char *in_folder(const char *name)
{
    static char path[1024];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void remove_file(const char *name) { MK_CHECK(unlink(in_folder(name)) == 0); }

static xl_weights *open_good(const char *path)
{
    xl_weights *w = NULL;
    if (xl_weights_open(&w, path, NULL, &err) != XLSTM_OK) fail_msg("%s", err.message);
    return w;
}

/* Opening fails, and the message holds both texts. */
static void assert_refused(const char *path, const char *part1, const char *part2)
{
    xl_weights *w = NULL;
    memset(&err, 0, sizeof(err));
    int result = xl_weights_open(&w, path, NULL, &err);
    if (result == XLSTM_OK) {
        xl_weights_close(w);
        fail_msg("not refused: %s %s", part1, part2);
    }
    assert_null(w);
    assert_int_equal(result, err.code);
    if (strstr(err.message, part1) == NULL || strstr(err.message, part2) == NULL) {
        fail_msg("\"%s\" lacks \"%s\" or \"%s\"", err.message, part1, part2);
    }
}

static void assert_same(xl_weights *w, const mk_list *list)
{
    assert_int_equal(xl_weights_count(w), list->n);
    for (size_t i = 0; i < list->n; i++) {
        const mk_tensor *want = &list->t[i];
        const xl_tensor *t = xl_weights_find(w, want->name);
        assert_non_null(t);
        assert_string_equal(t->name, want->name);
        assert_int_equal(t->dtype, want->dtype);
        assert_int_equal(t->rank, want->rank);
        assert_memory_equal(t->shape, want->shape, sizeof(t->shape));
        assert_int_equal(t->bytes, want->bytes);
        const void *bytes;
        xl_weights_want(w, t);
        assert_int_equal(xl_weights_data(&bytes, w, t, &err), XLSTM_OK);
        assert_memory_equal(bytes, want->data, want->bytes);
        size_t align = xl_dtype_get(t->dtype)->block == 1 ? xl_dtype_get(t->dtype)->block_bytes : 2;
        assert_int_equal((uintptr_t)bytes % align, 0);
        xl_weights_drop(w, t);
        assert_int_equal(xl_weights_data(&bytes, w, t, &err), XLSTM_OK);
        assert_memory_equal(bytes, want->data, want->bytes);
    }
    assert_null(xl_weights_find(w, "no such tensor"));
    uint32_t file = 0;
    uint64_t offset = 0;
    for (size_t i = 0; i < xl_weights_count(w); i++) {
        const xl_tensor *t = xl_weights_at(w, i);
        assert_true(t->file > file || (t->file == file && t->offset >= offset));
        file = t->file;
        offset = t->offset;
    }
}

static uint64_t fingerprint(xl_weights *w)
{
    uint64_t h = 0;
    assert_int_equal(xl_weights_fingerprint(&h, w, &err), XLSTM_OK);
    return h;
}

/* ---- safetensors ------------------------------------------------------------------------------------------------ */

static void test_safetensors(void **state)
{
    (void)state;
    uint64_t prints[3] = {0};
    for (uint32_t shards = 1; shards <= 3; shards++) {
        mk_model m = {.dtype = XLSTM_BF16, .shards = shards};
        mk_put_model(folder, &m);
        mk_list list = mk_build(&m);
        xl_weights *w = open_good(folder);
        assert_string_equal(xl_weights_format(w), "safetensors");
        assert_same(w, &list);
        assert_null(xl_weights_config(w));
        prints[shards - 1] = fingerprint(w);
        xl_weights_close(w);
        mk_free(&list);
        if (shards == 1) remove_file("model.safetensors");
        if (shards == 2) {
            remove_file("model-00001-of-00002.safetensors");
            remove_file("model-00002-of-00002.safetensors");
        }
    }
    /* the same tensors give the same fingerprint however they are dealt out */
    assert_true(prints[0] == prints[1] && prints[1] == prints[2]);
    xl_weights *w = open_good(in_folder("model-00002-of-00003.safetensors"));
    assert_string_equal(xl_weights_file(w, 0), "model-00002-of-00003.safetensors");
    xl_weights_close(w);
}

/* A float32 tensor behind an odd number of bfloat16 values is not aligned in the file. */
static void test_alignment(void **state)
{
    (void)state;
    mk_list list = {0};
    mk_tensor *t = mk_add(&list, "a", XLSTM_BF16, 3, 0);
    memset(t->data, 1, t->bytes);
    t = mk_add(&list, "b", XLSTM_F32, 5, 7);
    for (size_t i = 0; i < t->bytes; i++) t->data[i] = (uint8_t)i;
    mk_add(&list, "empty", XLSTM_F32, 0, 0);
    mk_put_safetensors(folder, "x.safetensors", list.t, list.n);
    xl_weights *w = open_good(in_folder("x.safetensors"));
    assert_same(w, &list);
    const void *kept, *again; /* what is kept is not dropped */
    const xl_tensor *b = xl_weights_find(w, "b");
    assert_int_equal(xl_weights_data(&kept, w, b, &err), XLSTM_OK);
    xl_weights_keep(w, b);
    xl_weights_drop(w, b);
    assert_int_equal(xl_weights_data(&again, w, b, &err), XLSTM_OK);
    assert_ptr_equal(kept, again);
    assert_memory_equal(again, mk_find(&list, "b")->data, b->bytes);
    xl_weights_close(w);
    w = open_good(folder); /* the only weight file of a folder is found */
    xl_weights_close(w);
    mk_free(&list);
}

static void test_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header, *part1, *part2;
        size_t data;
    } cases[] = {
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 12]}}", "tensor 'a'", "takes 8 bytes", 12},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}", "tensor 'a'", "truncated", 4},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}", "2 bytes", "no tensor", 10},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [8, 0]}}", "tensor 'a'", "ascending", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [-2], \"data_offsets\": [0, 8]}}", "tensor 'a'", "dimension 0", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2.0], \"data_offsets\": [0, 8]}}", "tensor 'a'", "dimension 0", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [\"2\"], \"data_offsets\": [0, 8]}}", "tensor 'a'", "dimension 0", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [1,1,1,1,2], \"data_offsets\": [0, 8]}}", "tensor 'a'", "5 dimen", 8},
        {"{\"a\": {\"dtype\": \"F33\", \"shape\": [2], \"data_offsets\": [0, 8]}}", "tensor 'a'", "\"F33\"", 8},
        {"{\"a\": {\"shape\": [2], \"data_offsets\": [0, 8]}}", "tensor 'a'", "dtype", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"data_offsets\": [0, 8]}}", "tensor 'a'", "shape", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0]}}", "tensor 'a'", "data_offsets", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, -8]}}", "tensor 'a'", "ascending", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [4294967296, 4294967296], \"data_offsets\": [0, 8]}}", "tensor 'a'",
         "larger than any memory", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [4611686018427387904], \"data_offsets\": [0, 0]}}", "tensor 'a'",
         "larger than any memory", 0},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, "
         "\"b\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [4, 12]}}", "'a' and 'b'", "overlap", 12},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}, "
         "\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [8, 16]}}", "duplicate", "", 16},
        {"{\"\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}", "0 bytes", "", 8},
        {"{\"a\": [1]}", "tensor 'a'", "found array", 0},
        {"{\"__metadata__\": {\"x\": 1}}", "__metadata__", "", 0},
        {"{\"__metadata__\": {\"x\": \"y\"}", "JSON", "", 0},
        {"[1]", "does not begin with '{'", "", 0},
        {"{\"a\\u0000b\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}}", "JSON", "", 8},
        {"{\"a\": {\"dtype\": \"F32\", \"shape\": [2], \"data_offsets\": [0, 8]}} x", "JSON", "", 8},
    };
    static const uint8_t data[32];
    for (size_t i = 0; i < XL_COUNT(cases); i++) {
        mk_put_raw_safetensors(folder, "model.safetensors", cases[i].header, data, cases[i].data);
        assert_refused(folder, cases[i].part1, cases[i].part2);
    }
    mk_put_file(folder, "model.safetensors", data, 9);
    assert_refused(folder, "9 bytes", "too few");
    static const uint8_t lying[16] = {255, 255, 255, 255, 255, 255, 255, 255, '{', '}'};
    mk_put_file(folder, "model.safetensors", lying, sizeof(lying));
    assert_refused(folder, "18446744073709551615", "truncated");
    mk_put_file(folder, "model.safetensors", lying, 0);
    assert_refused(folder, "0 bytes", "too few");
    /* a list of tensors that only exist as numbers of other formats is listed */
    mk_put_raw_safetensors(folder, "model.safetensors",
                           "{\"a\": {\"dtype\": \"I64\", \"shape\": [2, 1], \"data_offsets\": [0, 16]}}", data, 16);
    xl_weights *w = open_good(folder);
    assert_string_equal(xl_weights_at(w, 0)->type, "I64");
    assert_int_equal(xl_weights_at(w, 0)->dtype, XLSTM_DTYPE_DEFAULT);
    xl_weights_close(w);
}

static void put_index(const char *map)
{
    char text[1024];
    snprintf(text, sizeof(text), "{\"metadata\": {}, \"weight_map\": %s}", map);
    mk_put_text(folder, "model.safetensors.index.json", text);
}

static void test_index(void **state)
{
    (void)state;
    mk_list list = {0};
    mk_add(&list, "a", XLSTM_F32, 4, 0);
    mk_add(&list, "b", XLSTM_F32, 4, 0);
    mk_add(&list, "c", XLSTM_F32, 4, 0);
    mk_put_safetensors(folder, "1.safetensors", list.t, 2);
    mk_put_safetensors(folder, "2.safetensors", list.t + 2, 1);
    put_index("{\"a\": \"1.safetensors\", \"b\": \"1.safetensors\", \"c\": \"2.safetensors\"}");
    xl_weights *w = open_good(folder);
    assert_same(w, &list);
    xl_weights_close(w);
    put_index("{\"a\": \"1.safetensors\", \"b\": \"1.safetensors\", \"c\": \"3.safetensors\"}");
    assert_refused(folder, "3.safetensors", "missing");
    put_index("{\"a\": \"1.safetensors\", \"b\": \"1.safetensors\", \"c\": \"2.safetensors\", \"d\": \"2.safetensors\"}");
    assert_refused(folder, "tensor 'd'", "2.safetensors");
    put_index("{\"a\": \"1.safetensors\", \"c\": \"2.safetensors\"}");
    assert_refused(folder, "tensor 'b'", "not in the index");
    put_index("{\"a\": \"1.safetensors\", \"b\": \"2.safetensors\", \"c\": \"2.safetensors\"}");
    assert_refused(folder, "tensor 'b'", "belongs in 2.safetensors");
    static const char *const escapes[] = {"../1.safetensors", "/etc/passwd", "x/../../1.safetensors", "..\\\\1.safetensors",
                                          "", ".", ".."};
    for (size_t i = 0; i < XL_COUNT(escapes); i++) {
        char map[256];
        snprintf(map, sizeof(map), "{\"a\": \"%s\"}", escapes[i]);
        put_index(map);
        assert_refused(folder, "tensor 'a'", "same folder");
    }
    put_index("{\"a\": 1}");
    assert_refused(folder, "tensor 'a'", "number");
    put_index("{}");
    assert_refused(folder, "weight_map", "empty");
    put_index("[]");
    assert_refused(folder, "weight_map", "array");
    put_index("{\"a\": \"1.safetensors\", \"a\": \"2.safetensors\"}");
    assert_refused(folder, "duplicate", "index.json");
    /* a tensor in two shards */
    mk_put_safetensors(folder, "2.safetensors", list.t + 1, 2);
    put_index("{\"a\": \"1.safetensors\", \"b\": \"1.safetensors\", \"c\": \"2.safetensors\"}");
    assert_refused(folder, "tensor 'b'", "belongs in 1.safetensors");
    remove_file("model.safetensors.index.json");
    assert_refused(folder, "several weight files", "");
    remove_file("1.safetensors");
    remove_file("2.safetensors");
    assert_refused(folder, "no weights", "model.safetensors");
    /* NX-AI's numbering has no index */
    mk_put_safetensors(folder, "model_0.safetensors", list.t, 2);
    mk_put_safetensors(folder, "model_1.safetensors", list.t + 1, 2);
    assert_refused(folder, "tensor 'b' occurs twice", "model_1.safetensors");
    mk_put_safetensors(folder, "model_2.safetensors", list.t + 2, 1);
    remove_file("model_1.safetensors");
    assert_refused(folder, "model_1.safetensors", "open");
    mk_free(&list);
}

static void test_yaml(void **state)
{
    (void)state;
    mk_put_model(folder, &(mk_model){.scheme = "nx-ai"});
    mk_put_text(folder, "config.yaml",
                "# a comment\n---\nembedding_dim: 32\nnorm_eps: 1.0e-06\neps: 1e-6\ngate_soft_cap: null\nmode: inference\n"
                "use_bias: false # no\nchunkwise_kernel: chunkwise--triton_xl_chunk\nweight_mode: 'single'\nx: -3\n\n");
    xl_weights *w = open_good(folder);
    json_t *config = json_loads(xl_weights_config(w), 0, NULL);
    assert_non_null(config);
    int dim, bias, x;
    double norm, eps;
    const char *mode, *kernel, *weight_mode;
    assert_int_equal(json_unpack(config, "{s:i, s:f, s:f, s:n, s:s, s:b, s:s, s:s, s:i !}", "embedding_dim", &dim, "norm_eps",
                                 &norm, "eps", &eps, "gate_soft_cap", "mode", &mode, "use_bias", &bias,
                                 "chunkwise_kernel", &kernel, "weight_mode", &weight_mode, "x", &x), 0);
    assert_int_equal(dim, 32);
    assert_true(norm == 1e-6 && eps == 1e-6 && !bias && x == -3);
    assert_string_equal(mode, "inference");
    assert_string_equal(kernel, "chunkwise--triton_xl_chunk");
    assert_string_equal(weight_mode, "single");
    json_decref(config);
    xl_weights_close(w);
    mk_put_text(folder, "config.yaml", "model:\n  embedding_dim: 32\n  num_heads: 4\n");
    w = open_good(folder);
    assert_non_null(strstr(xl_weights_config(w), "\"num_heads\": 4"));
    xl_weights_close(w);
    static const char *const bad[][2] = {
        {"a: 1\na: 2\n", "line 2"},    {"a:\n  - 1\n", "line 2"},         {"a: [1, 2]\n", "line 1"},
        {"just text\n", "line 1"},     {"a: 1\nother:\n  b: 1\n", "line 3"}, {"a: \"x\\n\"\n", "line 1"},
        {"a: &x 1\n", "line 1"},       {"a: |\n  text\n", "line 1"},      {": 1\n", "line 1"},
        {"{a: 1}\n", "line 1"},        {"a: \xff\n", "line 1"},           {"- a: 1\n", "line 1"},
    };
    for (size_t i = 0; i < XL_COUNT(bad); i++) {
        mk_put_text(folder, "config.yaml", bad[i][0]);
        assert_refused(folder, "config.yaml", bad[i][1]);
    }
}

/* ---- presets ---------------------------------------------------------------------------------------------------- */

static void test_presets(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t parameters;
        xl_dims dims;
    } cases[] = {
        {"preset:7b", 6865424896, {50304, 4096, 32, 8, 2048, 4096, 256, 512, 10944}},
        {"preset:1b:q4_k", 0, {50304, 2048, 16, 4, 1024, 2048, 256, 512, 5504}},
        {"preset:410m:f32", 0, {50304, 1024, 24, 4, 512, 1024, 128, 256, 2752}},
        {"preset:125m:q8_0", 0, {50304, 768, 12, 4, 384, 768, 96, 192, 2048}},
        {"preset:tiny:f16", 0, {512, 256, 2, 4, 128, 256, 32, 64, 704}},
    };
    for (size_t i = 0; i < XL_COUNT(cases); i++) {
        xl_weights *w = open_good(cases[i].name);
        xl_wiring wiring;
        if (xl_wiring_discover(&wiring, w, NULL, &err) != XLSTM_OK) fail_msg("%s", err.message);
        assert_memory_equal(&wiring.dims, &cases[i].dims, sizeof(xl_dims));
        uint64_t parameters = 0;
        for (size_t k = 0; k < xl_weights_count(w); k++) {
            const xl_tensor *t = xl_weights_at(w, k);
            parameters += t->rank == 2 ? t->shape[0] * t->shape[1] : t->shape[0];
        }
        if (cases[i].parameters != 0) assert_int_equal(parameters, cases[i].parameters);
        assert_non_null(xl_weights_config(w));
        xl_wiring_free(&wiring);
        xl_weights_close(w);
    }
    assert_refused("preset:3b", "preset:3b", "7b");
    assert_refused("preset:7b:int8", "int8", "");
    assert_refused("preset:7b:nonsense", "nonsense", "");
    assert_refused("preset:", "expected preset:7b", "");
}

/* Values of every format have the wanted spread and are finite, and are the same whenever they are made. */
static void test_preset_values(void **state)
{
    (void)state;
    static const char *const formats[] = {"f32", "bf16", "f16", "q8_0", "q6_k", "q5_k", "q4_k", "q4_0"};
    for (size_t i = 0; i < XL_COUNT(formats); i++) {
        char name[64];
        snprintf(name, sizeof(name), "preset:tiny:%s", formats[i]);
        xl_weights *w = open_good(name);
        for (size_t k = 0; k < xl_weights_count(w); k++) {
            const xl_tensor *t = xl_weights_at(w, k);
            size_t n = t->rank == 2 ? t->shape[0] * t->shape[1] : t->shape[0];
            float *x = malloc(n * sizeof(float));
            uint8_t *before = malloc(t->bytes);
            const void *bytes;
            assert_int_equal(xl_weights_data(&bytes, w, t, &err), XLSTM_OK);
            memcpy(before, bytes, t->bytes);
            xl_weights_drop(w, t);
            assert_int_equal(xl_weights_data(&bytes, w, t, &err), XLSTM_OK);
            assert_memory_equal(before, bytes, t->bytes);
            xl_decode_row(x, bytes, t->dtype, n);
            xl_weights_drop(w, t);
            double sum = 0, squares = 0;
            for (size_t j = 0; j < n; j++) {
                assert_true(xl_is_finite(x[j]));
                sum += x[j];
                squares += (double)x[j] * x[j];
            }
            double mean = sum / (double)n, deviation = sqrt(squares / (double)n - mean * mean);
            bool small_init = strstr(t->name, "embeddings") != NULL || strstr(t->name, "proj_up") != NULL ||
                              strstr(t->name, "lm_head") != NULL;
            if (small_init) {
                assert_true(fabs(deviation / sqrt(2.0 / (5 * 256)) - 1) < 0.05);
                assert_true(fabs(mean) < 0.05 * deviation);
            } else if (t->rank == 2) {
                assert_true(deviation > 0.003 && fabs(mean) < 0.1 * deviation);
            } else if (strstr(t->name, "norm") != NULL) {
                assert_true(fabs(mean - 1) < 0.05);
            } else if (strstr(t->name, "igate") != NULL) {
                assert_true(x[0] == -10 && x[n - 1] == -4);
            } else {
                assert_true(x[0] == 3 && x[n - 1] == 6);
            }
            free(x);
            free(before);
        }
        xl_weights_close(w);
    }
}

/* ---- GGUF ------------------------------------------------------------------------------------------------------- */

static void test_gguf(void **state)
{
    (void)state;
    static const xlstm_dtype dtypes[] = {XLSTM_F32, XLSTM_F16, XLSTM_BF16, XLSTM_Q8_0, XLSTM_Q4_0,
                                         XLSTM_Q4_K, XLSTM_Q5_K, XLSTM_Q6_K};
    for (size_t i = 0; i < XL_COUNT(dtypes); i++) {
        mk_model m = {.scheme = "gguf", .dtype = dtypes[i], .dim = 256, .ffn = 512, .heads = 2, .tied = i % 2 == 1,
                      .use_bias = i % 3 == 2, .fused = i % 4 == 3};
        mk_put_model(folder, &m);
        mk_list list = mk_build(&m);
        xl_weights *w = open_good(i % 2 == 0 ? in_folder("model.gguf") : folder);
        assert_string_equal(xl_weights_format(w), "gguf");
        assert_same(w, &list);
        json_t *config = json_loads(xl_weights_config(w), 0, NULL);
        assert_int_equal(json_integer_value(json_object_get(config, "num_heads")), 2);
        assert_true((float)json_real_value(json_object_get(config, "norm_eps")) == 1e-6f);
        assert_true(json_real_value(json_object_get(config, "output_logit_soft_cap")) == 30);
        json_decref(config);
        xl_wiring wiring;
        if (xl_wiring_discover(&wiring, w, NULL, &err) != XLSTM_OK) fail_msg("%s", err.message);
        assert_string_equal(wiring.scheme, "gguf");
        assert_int_equal(wiring.tied, m.tied);
        assert_int_equal(wiring.fused, m.fused);
        assert_int_equal(wiring.use_bias, m.use_bias);
        xl_wiring_free(&wiring);
        xl_weights_close(w);
        mk_free(&list);
    }
}

static void test_gguf_texts(void **state)
{
    (void)state;
    mk_model m = {.scheme = "gguf"};
    mk_list list = mk_build(&m);
    for (int with_template = 0; with_template < 2; with_template++) {
        xl_text keys = {0};
        uint64_t n = mk_gguf_keys(&keys, &m);
        mk_key_string(&keys, "tokenizer.huggingface.json", "{\"version\": \"1.0\"}");
        mk_key_string(&keys, "xlstm.tokenizer_config", "{\"bos_token\": \"<s>\"}");
        if (with_template) mk_key_string(&keys, "tokenizer.chat_template", "{{ messages }}");
        mk_key_u32(&keys, "tokenizer.ggml.bos_token_id", 7);
        mk_string(&keys, "xlstm.force_bos_token_insert");
        mk_u32(&keys, 7);
        xl_text_add(&keys, "\1", 1);
        mk_string(&keys, "general.tags"); /* an array of strings is stepped over */
        mk_u32(&keys, 9);
        mk_u32(&keys, 8);
        mk_u64(&keys, 2);
        mk_string(&keys, "a");
        mk_string(&keys, "");
        mk_put_gguf(folder, "model.gguf", &keys, n + 5 + (uint64_t)with_template, list.t, list.n);
        free(keys.data);
        xl_weights *w = open_good(folder);
        const char *config = NULL;
        assert_string_equal(xl_weights_tokenizer(w, &config), "{\"version\": \"1.0\"}");
        assert_non_null(strstr(config, "<s>"));
        assert_int_equal(strstr(config, "{{ messages }}") != NULL, with_template);
        assert_non_null(strstr(xl_weights_config(w), "\"bos_token_id\": 7"));
        assert_non_null(strstr(xl_weights_config(w), "\"force_bos_token_insert\": true"));
        xl_weights_close(w);
    }
    mk_free(&list);
}

static void put_split(const char *name, const mk_model *m, int number, int count, const mk_tensor *t, size_t n, int total)
{
    xl_text keys = {0};
    uint64_t n_keys = number == 0 ? mk_gguf_keys(&keys, m) : 0;
    mk_key_u32(&keys, "split.no", (uint32_t)number);
    mk_key_u32(&keys, "split.count", (uint32_t)count);
    mk_key_u32(&keys, "split.tensors.count", (uint32_t)total);
    mk_put_gguf(folder, name, &keys, n_keys + 3, t, n);
    free(keys.data);
}

static void test_gguf_splits(void **state)
{
    (void)state;
    mk_model m = {.scheme = "gguf"};
    mk_list list = mk_build(&m);
    int total = (int)list.n;
    put_split("m-00001-of-00003.gguf", &m, 0, 3, list.t, 0, total);
    put_split("m-00002-of-00003.gguf", &m, 1, 3, list.t, 10, total);
    put_split("m-00003-of-00003.gguf", &m, 2, 3, list.t + 10, list.n - 10, total);
    for (int i = 1; i <= 3; i++) {
        char name[64];
        snprintf(name, sizeof(name), "m-%05d-of-00003.gguf", i);
        xl_weights *w = open_good(in_folder(name));
        assert_same(w, &list);
        xl_weights_close(w);
    }
    put_split("m-00003-of-00003.gguf", &m, 2, 3, list.t + 10, list.n - 11, total);
    assert_refused(in_folder("m-00001-of-00003.gguf"), "split.tensors.count", "");
    put_split("m-00003-of-00003.gguf", &m, 1, 3, list.t + 10, list.n - 10, total);
    assert_refused(in_folder("m-00001-of-00003.gguf"), "m-00003-of-00003.gguf", "split.no");
    put_split("m-00003-of-00003.gguf", &m, 2, 3, list.t + 9, list.n - 9, total + 1);
    put_split("m-00001-of-00003.gguf", &m, 0, 3, list.t, 0, total + 1);
    assert_refused(in_folder("m-00001-of-00003.gguf"), "occurs twice", list.t[9].name);
    remove_file("m-00003-of-00003.gguf");
    assert_refused(in_folder("m-00002-of-00003.gguf"), "m-00003-of-00003.gguf", "open");
    put_split("other.gguf", &m, 0, 2, list.t, 3, total);
    assert_refused(in_folder("other.gguf"), "split", "2 files");
    mk_free(&list);
}

static void test_gguf_lies(void **state)
{
    (void)state;
    mk_model m = {.scheme = "gguf"};
    mk_list list = mk_build(&m);
    xl_text keys = {0};
    uint64_t n = mk_gguf_keys(&keys, &m);
    mk_put_gguf(folder, "good.gguf", &keys, n, list.t, list.n);
    mk_put_gguf(folder, "model.gguf", &keys, n + 1, list.t, list.n); /* the first tensor is read as a key */
    assert_refused(in_folder("model.gguf"), "model.gguf", "");
    mk_put_gguf(folder, "model.gguf", &keys, UINT64_MAX, list.t, list.n);
    assert_refused(in_folder("model.gguf"), "truncated", "lies");
    mk_put_gguf(folder, "model.gguf", &keys, n - 1, list.t, list.n); /* the last key is read as a tensor */
    assert_refused(in_folder("model.gguf"), "logit_soft_cap", "missing");

    char *file;
    size_t size = 0;
    assert_int_equal(xl_read_file(&file, &size, in_folder("good.gguf"), 1 << 24, &err), XLSTM_OK);
    static const struct {
        size_t at;
        const char *bytes;
        size_t n;
        const char *part;
    } patches[] = {
        {0, "GGML", 4, "does not begin"},
        {4, "\2\0\0\0", 4, "version 2"},
        {4, "\0\0\0\3", 4, "big-endian"},
        {8, "\377\377\377\377\377\377\377\377", 8, "lies"},
        {8, "\377\377\377\377\0\0\0\0", 8, "lies"},
        {24, "\377\377\377\377\377\377\377\177", 8, "lies"}, /* length of the first key */
        {24 + 8 + 20, "\15\0\0\0", 4, "unknown value type"},
        {24 + 8 + 20, "\11\0\0\0", 4, ""},                      /* now an array */
        {24 + 8 + 20 + 4, "\377\377\377\377\0\0\0\0", 8, "lies"}, /* length of its string */
    };
    for (size_t i = 0; i < XL_COUNT(patches); i++) {
        char *bent = malloc(size);
        memcpy(bent, file, size);
        memcpy(bent + patches[i].at, patches[i].bytes, patches[i].n);
        mk_put_file(folder, "model.gguf", bent, size);
        assert_refused(in_folder("model.gguf"), patches[i].part, "");
        free(bent);
    }
    free(file);

    /* keys */
    struct {
        const char *key, *part;
        uint32_t type, value;
    } bad_keys[] = {
        {"general.alignment", "general.alignment", 4, 0},  {"general.alignment", "general.alignment", 4, 24},
        {"general.alignment", "general.alignment", 4, 1u << 31}, {"general.alignment", "integer", 6, 0},
        {"xlstm.block_count", "occurs twice", 4, 2},      {"tokenizer.ggml.bos_token_id", "integer", 6, 0},
        {"xlstm.torch_dtype", "string", 4, 0},            {"tokenizer.huggingface.json", "string", 4, 0},
        {"general.nested", "array of arrays", 9, 9},      {"general.odd", "array of an unknown type", 9, 99},
    };
    for (size_t i = 0; i < XL_COUNT(bad_keys); i++) {
        xl_text more = {0};
        xl_text_add(&more, keys.data, keys.size);
        mk_string(&more, bad_keys[i].key);
        mk_u32(&more, bad_keys[i].type);
        mk_u32(&more, bad_keys[i].value);
        if (bad_keys[i].type == 9) mk_u64(&more, 1);
        mk_put_gguf(folder, "model.gguf", &more, n + 1, list.t, list.n);
        free(more.data);
        assert_refused(in_folder("model.gguf"), bad_keys[i].part, "");
    }

    /* tensors */
    mk_tensor odd = list.t[0];
    odd.rank = 5;
    odd.shape[2] = odd.shape[3] = 1;
    mk_tensor huge = list.t[1];
    huge.rank = 2;
    huge.shape[0] = huge.shape[1] = UINT64_MAX / 2;
    mk_tensor block = list.t[0];
    block.dtype = XLSTM_Q4_K; /* rows of 32 */
    mk_tensor far = list.t[1];
    far.shape[0] = 1 << 30;
    const struct {
        const mk_tensor *t;
        const char *part;
    } bad_tensors[] = {{&huge, "impossible"}, {&block, "impossible"}, {&far, "past the file's end"}};
    for (size_t i = 0; i < XL_COUNT(bad_tensors); i++) {
        mk_put_gguf(folder, "model.gguf", &keys, n, bad_tensors[i].t, 1);
        assert_refused(in_folder("model.gguf"), bad_tensors[i].t->name, bad_tensors[i].part);
    }
    free(keys.data);
    mk_free(&list);
}

/* ---- damage ----------------------------------------------------------------------------------------------------- */

/* Opens and, if that works, wires and reads everything: no crash, and a message with every error. */
static void try_file(const char *path)
{
    xl_weights *w;
    memset(&err, 0, sizeof(err));
    int result = xl_weights_open(&w, path, NULL, &err);
    if (result != XLSTM_OK) {
        assert_true(err.message[0] != '\0' && err.code == result);
        return;
    }
    xl_wiring wiring;
    if (xl_wiring_discover(&wiring, w, NULL, &err) == XLSTM_OK) xl_wiring_free(&wiring);
    uint64_t sum = fingerprint(w);
    for (size_t i = 0; i < xl_weights_count(w); i++) {
        const void *bytes;
        const xl_tensor *t = xl_weights_at(w, i);
        assert_int_equal(xl_weights_data(&bytes, w, t, &err), XLSTM_OK);
        sum += xl_hash(bytes, t->bytes, 0);
    }
    assert_true(sum != 1);
    xl_weights_close(w);
}

static void damage(const char *name, const char *scheme)
{
    mk_model m = {.scheme = scheme, .dim = 8, .heads = 2, .ffn = 8, .vocab = 8, .blocks = 1};
    mk_put_model(folder, &m);
    char *file;
    size_t size = 0;
    assert_int_equal(xl_read_file(&file, &size, in_folder(name), 1 << 24, &err), XLSTM_OK);
    size_t header = XL_MIN(size, (size_t)3000);
    for (size_t n = 0; n < size; n += n < header ? 7 : 101) { /* truncated: always an error */
        mk_put_file(folder, "bent.gguf", file, n);
        mk_put_file(folder, "bent.safetensors", file, n);
        const char *path = in_folder(strcmp(scheme, "gguf") == 0 ? "bent.gguf" : "bent.safetensors");
        assert_refused(path, "", "");
    }
    uint64_t random = 5;
    MK_CHECK(header > 0);
    for (int i = 0; i < 3000; i++) { /* bits flipped: anything but a crash */
        uint64_t r = mk_next(&random);
        size_t at = (size_t)(r >> 8) % header;
        uint8_t old = (uint8_t)file[at];
        file[at] = (char)((r & 1) != 0 ? old ^ (1u << (r >> 1 & 7)) : r >> 4 & 255);
        mk_put_file(folder, name, file, size);
        try_file(in_folder(name));
        file[at] = (char)old;
    }
    free(file);
}

static void test_damaged_safetensors(void **state)
{
    (void)state;
    damage("model.safetensors", "huggingface");
}

static void test_damaged_gguf(void **state)
{
    (void)state;
    damage("model.gguf", "gguf");
}

/* ---- memory of jansson ------------------------------------------------------------------------------------------ */

static size_t allowed; /* allocations until memory runs out */
enum { APART = 8 };    /* so that free() knows nothing of these pointers */

static void *json_alloc(size_t n)
{
    if (allowed == 0) return NULL;
    allowed--;
    char *p = malloc(n + APART);
    MK_CHECK(p != NULL);
    return p + APART;
}

static void json_release(void *p)
{
    if (p != NULL) free((char *)p - APART);
}

/* Opens with memory that ends ever later, until that succeeds. It does not come back, for then jansson can lose a byte of a
 * string; and no number is longer than the strings before it, for jansson aborts if memory ends inside one. */
static void open_by_and_by(const char *path)
{
    static const char *const set[] = {"chunk_size=32", "mode=inference"};
    const xlstm_model_options options = {.headers_only = true, .set = set, .n_set = 2};
    json_set_alloc_funcs(json_alloc, json_release);
    for (int with = 0; with < 2; with++) {
        xlstm_model *m = NULL;
        size_t n = 0;
        for (int result = XLSTM_E_MEMORY; result != XLSTM_OK; n++) {
            memset(&err, 0, sizeof(err));
            allowed = n;
            result = xlstm_model_open(&m, path, &options, with ? &err : NULL);
            if (result == XLSTM_OK) break;
            assert_null(m);
            assert_int_equal(result, XLSTM_E_MEMORY);
            if (with && (err.code != XLSTM_E_MEMORY || strstr(err.message, "out of memory") == NULL)) {
                fail_msg("after %zu allocations: %d, \"%s\"", n, err.code, err.message);
            }
        }
        assert_true(n > 100);
        if (xlstm_model_warning(m, 0) != NULL) fail_msg("%s", xlstm_model_warning(m, 0));
        const xlstm_model_info *info = xlstm_model_get_info(m);
        assert_int_equal(info->chunk_size, 32);
        assert_int_equal(info->bos_id, 3);
        assert_int_equal(info->n_stop_ids, 1);
        assert_non_null(xlstm_model_tokenizer(m));
        assert_string_equal(xlstm_tokenizer_chat_template(xlstm_model_tokenizer(m)), "{{ messages }}");
        xlstm_model_free(m);
    }
    json_set_alloc_funcs(malloc, free);
}

static void test_json_memory(void **state)
{
    (void)state;
    static const char tokenizer[] = "{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, "
                                    "\"merges\": [\"a b\"]}, \"added_tokens\": [{\"id\": 3, \"content\": \"<s>\", "
                                    "\"special\": true}]}";
    static const char config[] = "{\"bos_token\": \"<s>\", \"model_max_length\": 10000000000000000000}";
    static const char generation[] = "{\"eos_token_id\": [3]}", template[] = "{{ messages }}";
    mk_model m = {.scheme = "gguf", .dim = 8, .heads = 2, .ffn = 8, .vocab = 8, .blocks = 1, .shards = 2};
    mk_list list = mk_build(&m);
    xl_text keys = {0};
    uint64_t n = mk_gguf_keys(&keys, &m);
    const float long_number = 1e-6f, short_number = 0x1p-10f;
    for (char *at = keys.data; (at = memmem(at, (size_t)(keys.data + keys.size - at), &long_number, 4)) != NULL;) {
        memcpy(at, &short_number, 4);
    }
    mk_key_string(&keys, "tokenizer.huggingface.json", tokenizer);
    mk_key_string(&keys, "xlstm.tokenizer_config", config);
    mk_key_string(&keys, "tokenizer.chat_template", template);
    mk_key_string(&keys, "xlstm.generation_config", generation);
    mk_key_string(&keys, "xlstm.torch_dtype", "float32");
    mk_put_gguf(folder, "model.gguf", &keys, n + 5, list.t, list.n);
    open_by_and_by(in_folder("model.gguf"));
    remove_file("model.gguf");
    free(keys.data);
    mk_free(&list);

    mk_put_text(folder, "tokenizer.json", tokenizer);
    mk_put_text(folder, "tokenizer_config.json", config);
    mk_put_text(folder, "chat_template.jinja", template);
    mk_put_text(folder, "generation_config.json", generation);
    m.scheme = "nx-ai";
    mk_put_model(folder, &m);
    open_by_and_by(folder);
    remove_file("model_0.safetensors");
    remove_file("model_1.safetensors");
    remove_file("config.yaml");
    m.scheme = "huggingface";
    mk_put_model(folder, &m);
    open_by_and_by(folder);
}

/* Damage that ends with a quotation mark is not taken for lack of memory. */
static void test_json_damage(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "{", "{\"", "{\"a\"", "{\"a\" \"b\"}", "{\"a\": \"", "{\"a\": \"b\" \"c\"}", "{x\"}", "{\"a\": #\"}",
        "{\"a\": -\"}", "{\"a\": 1.\"}", "{\"a\": 1e\"}", "{\"a\": nul\"}", "{\"a\": \"\\q\"}", "{\"a\": \"\\ud800\"}",
        "{\"a\": \"\xff\"}", "{\"a\": [\"b\" \"c\"]}", "{}\"\"", "\"a\"", "[]", "{\"a\": 1, \"a\": 1}",
    };
    for (size_t i = 0; i < XL_COUNT(bad); i++) {
        json_t *root;
        assert_int_equal(xl_json_parse(&root, bad[i], strlen(bad[i]), "bad.json", true, &err), XLSTM_E_FORMAT);
        assert_null(root);
        assert_int_equal(err.code, XLSTM_E_FORMAT);
        assert_non_null(strstr(err.message, "expected"));
    }
}

static void test_fingerprint(void **state)
{
    (void)state;
    mk_list list = {0};
    mk_tensor *t = mk_add(&list, "a", XLSTM_F32, 1000, 100); /* larger than what is read whole */
    for (size_t i = 0; i < t->bytes; i++) t->data[i] = (uint8_t)(i * i >> 3);
    mk_put_safetensors(folder, "model.safetensors", list.t, 1);
    xl_weights *w = open_good(folder);
    uint64_t first = fingerprint(w);
    assert_true(fingerprint(w) == first);
    xl_weights_close(w);
    static const size_t places[] = {0, 4095, 399999, 395904};
    for (size_t i = 0; i < XL_COUNT(places); i++) {
        t->data[places[i]] ^= 1;
        mk_put_safetensors(folder, "model.safetensors", list.t, 1);
        w = open_good(folder);
        assert_true(fingerprint(w) != first);
        xl_weights_close(w);
        t->data[places[i]] ^= 1;
    }
    t->shape[0] = 500;
    t->shape[1] = 200;
    mk_put_safetensors(folder, "model.safetensors", list.t, 1);
    w = open_good(folder);
    assert_true(fingerprint(w) != first);
    xl_weights_close(w);
    mk_free(&list);
}

static void test_paths(void **state)
{
    (void)state;
    assert_refused(in_folder("nothing"), "nothing", "no such file");
    mk_put_text(folder, "text.txt", "hello");
    assert_refused(in_folder("text.txt"), "text.txt", "not a weight file");
    mk_put_text(folder, "pytorch_model.bin", "hello");
    assert_refused(folder, "no weights", "safetensors");
    mk_put_text(folder, "text.gguf", "hello");
    assert_refused(in_folder("text.gguf"), "GGUF", "");
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_safetensors), TEST(test_alignment), TEST(test_headers), TEST(test_index), TEST(test_yaml),
        TEST(test_presets), TEST(test_preset_values), TEST(test_gguf), TEST(test_gguf_texts), TEST(test_gguf_splits),
        TEST(test_gguf_lies), TEST(test_damaged_safetensors), TEST(test_damaged_gguf), TEST(test_json_memory),
        TEST(test_json_damage), TEST(test_fingerprint), TEST(test_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
