/* test_config.c — every rule by which config.json, overrides, options and shapes become settings. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "config.h"
#include "make_model.h"

static xlstm_error err;
static char warnings[4096];

static void keep_warning(void *user, xlstm_log_level level, const char *line)
{
    (void)user;
    size_t n = strlen(warnings);
    if (level == XLSTM_LOG_WARNING) snprintf(warnings + n, sizeof(warnings) - n, "%s\n", line);
}
static const xl_log warning_log = {keep_warning, NULL};

/* A wired checkpoint; the default one has D 32, NH 4, Qd 16, Vd 32, F 64, V 48 and 2 blocks. */
typedef struct fixture {
    char *folder;
    xl_weights *w;
    xl_wiring wiring;
} fixture;

static fixture make(const mk_model *m)
{
    fixture f = {.folder = mk_folder()};
    mk_put_model(f.folder, m);
    if (xl_weights_open(&f.w, f.folder, NULL, &err) != XLSTM_OK || xl_wiring_discover(&f.wiring, f.w, NULL, &err) != 0) {
        fail_msg("%s", err.message);
    }
    return f;
}

static void drop(fixture *f)
{
    xl_wiring_free(&f->wiring);
    xl_weights_close(f->w);
    mk_remove_folder(f->folder);
}

static int setup(void **state)
{
    fixture *f = malloc(sizeof(*f));
    *f = make(&(mk_model){0});
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    drop(*state);
    free(*state);
    return 0;
}

static int resolve(xl_config *out, const fixture *f, const char *json, const xlstm_model_options *options)
{
    warnings[0] = '\0';
    memset(&err, 0, sizeof(err));
    int result = xl_config_resolve(out, json, "some/folder/config.json", &f->wiring, options, &warning_log, &err);
    assert_int_equal(result, err.code);
    return result;
}

static xl_config good(const fixture *f, const char *json, const xlstm_model_options *options)
{
    xl_config c;
    if (resolve(&c, f, json, options) != XLSTM_OK) fail_msg("%s: %s", json != NULL ? json : "no config.json", err.message);
    return c;
}

static void assert_refused(const fixture *f, const char *json, const xlstm_model_options *options, const char *part1,
                           const char *part2)
{
    xl_config c;
    if (resolve(&c, f, json, options) == XLSTM_OK) fail_msg("not refused: %s", json != NULL ? json : "no config.json");
    if (strstr(err.message, part1) == NULL || strstr(err.message, part2) == NULL) {
        fail_msg("\"%s\" lacks \"%s\" or \"%s\"", err.message, part1, part2);
    }
}

static void test_ffn_rounding(void **state)
{
    (void)state;
    static const struct {
        uint32_t dim;
        double factor;
        uint64_t want;
    } table[] = {
        {4096, 2.667, 10944}, {4096, 2.6667, 10944}, {768, 2.667, 2048},  {768, 2.6667, 2048}, {1536, 2.667, 4096},
        {512, 2.667, 1408},   {512, 2.6667, 1408},   {1024, 2.667, 2752}, {3072, 2.667, 8256}, {256, 2.667, 704},
    };
    for (size_t i = 0; i < XL_COUNT(table); i++) {
        assert_int_equal(xl_config_ffn_dim(table[i].dim, table[i].factor, 64), table[i].want);
    }
    assert_int_equal(xl_config_ffn_dim(100, 1.119, 10), 120); /* 111.9 -> 111 -> 120 */
    assert_int_equal(xl_config_ffn_dim(100, 1.109, 10), 110);
    assert_int_equal(xl_config_ffn_dim(64, 2, 1), 128);
    assert_int_equal(xl_config_ffn_dim(64, 2, 0), 0);
    assert_int_equal(xl_config_ffn_dim(UINT32_MAX, 1e6, 64), 0);
    assert_int_equal(xl_config_ffn_dim(64, NAN, 64), 0);
}

static void test_defaults(void **state)
{
    const fixture *f = *state;
    xl_config c = good(f, "{}", NULL);
    assert_memory_equal(&c.dims, &f->wiring.dims, sizeof(c.dims));
    assert_true(c.norm_eps == 1e-6f && c.cell_eps == 1e-6f && c.gate_soft_cap == 15 && c.logit_soft_cap == 30);
    assert_int_equal(c.chunk_size, 64);
    assert_true(!c.tied && !c.force_bos && c.bos_id == -1 && c.eos_id == -1 && c.pad_id == -1);
    assert_int_equal(c.numerics.weights.dtype, XLSTM_F32);
    assert_string_equal(c.numerics.weights.source, "as stored");
    assert_int_equal(c.numerics.activations.dtype, XLSTM_F32);
    assert_string_equal(c.numerics.activations.source, "policy: float32 activations");
    assert_int_equal(c.numerics.kernel.dtype, XLSTM_DTYPE_DEFAULT);
    assert_int_equal(c.numerics.state.dtype, XLSTM_F32);
    assert_string_equal(c.numerics.state.source, "default");
    assert_true(c.numerics.norm_float32.on);
    assert_string_equal(warnings, "");

    /* what is written, in ints, floats and nulls; unknown keys and those of training are not looked at */
    c = good(f,
             "{\"norm_eps\": 1e-5, \"eps\": 0, \"gate_soft_cap\": 20, \"output_logit_soft_cap\": null, \"chunk_size\": 32,"
             " \"qk_dim_factor\": 0.5, \"v_dim_factor\": 1, \"ffn_proj_factor\": 2, \"bos_token_id\": 0,"
             " \"eos_token_id\": [2, 3], \"pad_token_id\": null, \"force_bos_token_insert\": true, \"mode\": \"train\","
             " \"return_last_states\": false, \"cell_norm_eps\": \"what\", \"head_dim\": 512, \"nonsense\": {\"a\": []},"
             " \"max_inference_chunksize\": 16384, \"chunkwise_kernel\": \"chunkwise--triton_xl_chunk\"}", NULL);
    assert_true(c.norm_eps == 1e-5f && c.cell_eps == 0 && c.gate_soft_cap == 20 && c.logit_soft_cap == 0);
    assert_true(c.chunk_size == 32 && c.bos_id == 0 && c.eos_id == 2 && c.pad_id == -1 && c.force_bos);
    assert_string_equal(warnings, "");
    c = good(f, "{\"gate_soft_cap\": null, \"chunk_size\": 100000}", &(xlstm_model_options){.chunk_size = 7});
    assert_true(c.gate_soft_cap == 0 && c.logit_soft_cap == 30 && c.chunk_size == 7);
    c = good(f, "{\"chunk_size\": 100000}", NULL);
    assert_int_equal(c.chunk_size, 4096);
}

static void test_dimensions(void **state)
{
    const fixture *f = *state;
    /* either spelling alone, and both in agreement */
    static const char *const fine[] = {
        "{\"embedding_dim\": 32}", "{\"hidden_size\": 32}", "{\"embedding_dim\": 32, \"hidden_size\": 32}",
        "{\"num_blocks\": 2}", "{\"num_hidden_layers\": 2}", "{\"num_blocks\": 2.0, \"num_hidden_layers\": 2}",
        "{\"embedding_dim\": null, \"hidden_size\": 32}",
        "{\"qk_dim_factor\": 0.53, \"v_dim_factor\": 1.03}", /* truncated to 16 and 32 */
        "{\"ffn_proj_factor\": 1.99, \"ffn_round_up_to_multiple_of\": 64}",
        "{\"ffn_proj_factor\": 2.03, \"ffn_round_up_to_multiple_of\": 1}",
        "{\"vocab_size\": 48, \"num_heads\": 4, \"use_bias\": false, \"weight_mode\": \"single\", \"add_out_norm\": true}",
    };
    for (size_t i = 0; i < XL_COUNT(fine); i++) {
        good(f, fine[i], NULL);
        if (warnings[0] != '\0') fail_msg("%s: %s", fine[i], warnings);
    }
    assert_refused(f, "{\"embedding_dim\": 32, \"hidden_size\": 64}", NULL, "embedding_dim", "hidden_size");
    assert_refused(f, "{\"num_blocks\": 2, \"num_hidden_layers\": 3}", NULL, "num_blocks", "num_hidden_layers");
    assert_refused(f, "{\"num_blocks\": 3}", NULL, "num_blocks is 3", "2 blocks");

    /* shapes win, with a warning that names the key and both numbers */
    static const struct {
        const char *json, *part, *stated, *found;
    } warned[] = {
        {"{\"embedding_dim\": 64}", "embedding_dim", "64", "32"}, {"{\"vocab_size\": 50304}", "vocab_size", "50304", "48"},
        {"{\"num_heads\": 8}", "num_heads", "8", "4"},            {"{\"qk_dim_factor\": 1}", "qk_dim_factor", "32", "16"},
        {"{\"v_dim_factor\": 2.0}", "v_dim_factor", "64", "32"},  {"{\"ffn_proj_factor\": 2.667}", "ffn_proj_factor", "128", "64"},
        {"{\"weight_mode\": \"fused\"}", "weight_mode", "fused", "single"},
        {"{\"add_out_norm\": false}", "add_out_norm", "false", "out_norm.weight"},
        {"{\"head_qk\": 5, \"head_v\": 8, \"ffn_dim\": 64}", "q and k width of a head", "5", "4"},
    };
    for (size_t i = 0; i < XL_COUNT(warned); i++) {
        xl_config c = good(f, warned[i].json, NULL);
        assert_memory_equal(&c.dims, &f->wiring.dims, sizeof(c.dims));
        if (strstr(warnings, warned[i].part) == NULL || strstr(warnings, warned[i].stated) == NULL ||
            strstr(warnings, warned[i].found) == NULL) {
            fail_msg("%s: \"%s\"", warned[i].json, warnings);
        }
        assert_ptr_equal(strchr(warnings, '\n'), warnings + strlen(warnings) - 1); /* one line */
    }

    static const struct {
        const char *json, *part1, *part2;
    } refused[] = {
        {"{\"use_bias\": true}", "use_bias", "no bias"},
        {"{\"use_bias\": 1}", "use_bias", "true or false"},
        {"{\"weight_mode\": \"double\"}", "weight_mode", "double"},
        {"{\"embedding_dim\": \"32\"}", "embedding_dim", "integer"},
        {"{\"embedding_dim\": 0}", "embedding_dim", "0"},
        {"{\"num_heads\": 4.5}", "num_heads", "integer"},
        {"{\"qk_dim_factor\": \"half\"}", "qk_dim_factor", "number"},
        {"{\"qk_dim_factor\": -1}", "qk_dim_factor", "-1"},
        {"{\"ffn_round_up_to_multiple_of\": 0}", "ffn_round_up_to_multiple_of", "0"},
        {"{\"norm_eps\": -1e-6}", "norm_eps", "-1e-06"},
        {"{\"eps\": true}", "eps", "number"},
        {"{\"gate_soft_cap\": 0}", "gate_soft_cap", "0"},
        {"{\"gate_soft_cap\": -15}", "gate_soft_cap", "-15"},
        {"{\"output_logit_soft_cap\": \"30\"}", "output_logit_soft_cap", "number"},
        {"{\"chunk_size\": 0}", "chunk_size", "0"},
        {"{\"bos_token_id\": 48}", "bos_token_id", "-1 .. 47"},
        {"{\"eos_token_id\": -2}", "eos_token_id", "-2"},
        {"{\"eos_token_id\": [48]}", "eos_token_id", "48"},
        {"{\"pad_token_id\": \"<pad>\"}", "pad_token_id", "integer"},
        {"{\"tie_word_embeddings\": \"no\"}", "tie_word_embeddings", "true or false"},
        {"{\"model_type\": \"llama\"}", "model_type", "llama"},
        {"{\"chunkwise_kernel\": \"chunkwise--native_siging\"}", "chunkwise_kernel", "sigmoid input gate"},
        {"{\"step_kernel\": \"siging\"}", "step_kernel", "sigmoid input gate"},
        {"{\"slstm_at\": [1]}", "slstm_at", "sLSTM"},
        {"{\"eps\": 1e-6, \"eps\": 1e-6}", "config.json", "duplicate"},
        {"[]", "config.json", "object"},
        {"{\"eps\": 1e-6", "config.json", "JSON"},
        {"", "config.json", "JSON"},
    };
    for (size_t i = 0; i < XL_COUNT(refused); i++) {
        assert_refused(f, refused[i].json, NULL, refused[i].part1, refused[i].part2);
        assert_non_null(strstr(err.message, "config.json"));
    }
    assert_refused(f, "{}", &(xlstm_model_options){.chunk_size = 5000}, "chunk size", "5000");
}

static void test_layout_flags(void **state)
{
    (void)state;
    fixture biased = make(&(mk_model){.use_bias = true}), tied = make(&(mk_model){.tied = true});
    fixture bare = make(&(mk_model){.no_out_norm = true}), fused = make(&(mk_model){.fused = true});
    good(&biased, "{\"use_bias\": true}", NULL);
    good(&biased, "{}", NULL);
    assert_refused(&biased, "{\"use_bias\": false}", NULL, "use_bias", "false");

    xl_config c = good(&tied, "{\"tie_word_embeddings\": true}", NULL);
    assert_true(c.tied);
    assert_string_equal(warnings, "");
    c = good(&tied, "{\"tie_word_embeddings\": false}", NULL); /* the tensor is missing whatever the flag says */
    assert_true(c.tied);
    assert_non_null(strstr(warnings, "lm_head.weight"));
    c = good(&tied, "{}", NULL);
    assert_true(c.tied && strstr(warnings, "lm_head.weight") != NULL);
    c = good(&fused, "{\"tie_word_embeddings\": true, \"weight_mode\": \"fused\"}", NULL);
    assert_true(c.tied); /* and the flag ties even where a head is stored */
    assert_string_equal(warnings, "");

    good(&bare, "{\"add_out_norm\": false}", NULL);
    assert_refused(&bare, "{}", NULL, "out_norm.weight", "add_out_norm=false");
    drop(&biased);
    drop(&tied);
    drop(&bare);
    drop(&fused);
}

static void test_overrides(void **state)
{
    const fixture *f = *state;
    /* without config.json, exactly what is missing is asked for */
    assert_refused(f, NULL, NULL, "--set gate_soft_cap=15 --set output_logit_soft_cap=30 --set norm_eps=1e-6 --set eps=1e-6",
                   "no config.json");
    const char *three[] = {"gate_soft_cap=15", "output_logit_soft_cap=null", "eps=1e-6"};
    assert_refused(f, NULL, &(xlstm_model_options){.set = three, .n_set = 3}, "give --set norm_eps=1e-6 (", "no config.json");
    const char *all[] = {"gate_soft_cap=12.5", "output_logit_soft_cap=null", "eps=1e-5", "norm_eps=1e-7", "bos_token_id=3",
                         "dtype=bfloat16", "force_bos_token_insert=true", "chunk_size=16"};
    xlstm_model_options o = {.set = all, .n_set = XL_COUNT(all)};
    xl_config c = good(f, NULL, &o);
    assert_true(c.gate_soft_cap == 12.5f && c.logit_soft_cap == 0 && c.cell_eps == 1e-5f && c.norm_eps == 1e-7f);
    assert_true(c.bos_id == 3 && c.force_bos && c.chunk_size == 16);
    assert_int_equal(c.numerics.weights.dtype, XLSTM_BF16);
    assert_string_equal(c.numerics.weights.source, "--set dtype");

    /* and over a config.json, each key alone */
    c = good(f, "{\"gate_soft_cap\": 15, \"norm_eps\": 1e-3, \"dtype\": \"float16\", \"bos_token_id\": 1, \"eps\": 0.5}", &o);
    assert_true(c.gate_soft_cap == 12.5f && c.norm_eps == 1e-7f && c.bos_id == 3);
    const char *caps[] = {"gate_soft_cap=null", "bos_token_id=null"};
    c = good(f, "{\"gate_soft_cap\": 15, \"bos_token_id\": 1, \"eos_token_id\": 2}",
             &(xlstm_model_options){.set = caps, .n_set = 2});
    assert_true(c.gate_soft_cap == 0 && c.bos_id == -1 && c.eos_id == 2);
    const char *blocks[] = {"num_blocks=2", "embedding_dim=32"};
    good(f, "{\"num_blocks\": 3, \"num_hidden_layers\": 3, \"hidden_size\": 77}",
         &(xlstm_model_options){.set = blocks, .n_set = 2});
    assert_string_equal(warnings, "");

    static const struct {
        const char *set, *part1, *part2;
    } bad[] = {
        {"gate_soft_cap", "gate_soft_cap", "KEY=VALUE"},      {"=3", "=3", "KEY=VALUE"},
        {"gate_softcap=15", "gate_softcap", "no such"},       {"eps=much", "--set", "eps"},
        {"eps=", "eps", "number"},                            {"chunk_size=-1", "--set", "chunk_size"},
        {"eos_token_id=48", "--set", "eos_token_id"},         {"dtype=int4", "--set", "int4"},
        {"eps=\xff", "eps", "UTF-8"},                         {"eps=[1]", "eps", "number"},
    };
    for (size_t i = 0; i < XL_COUNT(bad); i++) {
        assert_refused(f, "{}", &(xlstm_model_options){.set = &bad[i].set, .n_set = 1}, bad[i].part1, bad[i].part2);
    }
}

/* Weights, kernel and state each have their own field; no field reaches into another setting. */
static void test_three_dtypes(void **state)
{
    const fixture *f = *state;
    static const char *const names[] = {"float32", "bfloat16"};
    static const xlstm_dtype dtypes[] = {XLSTM_F32, XLSTM_BF16};
    static const char *const spellings[] = {"torch_dtype", "dtype"};
    for (int spelling = 0; spelling < 2; spelling++) {
        for (int w = 0; w < 2; w++) {
            for (int k = 0; k < 2; k++) {
                for (int s = 0; s < 2; s++) {
                    char json[256], source[64];
                    snprintf(json, sizeof(json),
                             "{\"%s\": \"%s\", \"autocast_kernel_dtype\": \"%s\", \"inference_state_dtype\": \"%s\"}",
                             spellings[spelling], names[w], names[k], names[s]);
                    xl_config c = good(f, json, NULL);
                    assert_int_equal(c.numerics.weights.dtype, dtypes[w]);
                    snprintf(source, sizeof(source), "config.json %s", spellings[spelling]);
                    assert_string_equal(c.numerics.weights.source, source);
                    assert_int_equal(c.numerics.activations.dtype, XLSTM_F32);
                    assert_int_equal(c.numerics.kernel.dtype, XLSTM_DTYPE_DEFAULT);
                    assert_int_equal(c.numerics.config_kernel, dtypes[k]);
                    assert_int_equal(c.numerics.state.dtype, dtypes[s]);
                    assert_string_equal(c.numerics.state.source, "config.json inference_state_dtype");

                    /* and the options, each against the opposite in the file */
                    xlstm_model_options o = {.dtype = dtypes[!w], .kernel_dtype = dtypes[!k], .state_dtype = dtypes[!s]};
                    c = good(f, json, &o);
                    assert_int_equal(c.numerics.weights.dtype, dtypes[!w]);
                    assert_int_equal(c.numerics.activations.dtype, dtypes[!w]);
                    assert_int_equal(c.numerics.kernel.dtype, dtypes[!k]);
                    assert_int_equal(c.numerics.state.dtype, dtypes[!s]);
                    assert_string_equal(c.numerics.weights.source, "option");
                    assert_string_equal(c.numerics.activations.source, "option");
                    assert_string_equal(c.numerics.kernel.source, "option");
                    assert_string_equal(c.numerics.state.source, "option");
                }
            }
        }
    }
    /* dtype is preferred over torch_dtype; torch. prefixes and short names are understood */
    xl_config c = good(f, "{\"torch_dtype\": \"float16\", \"dtype\": \"torch.bfloat16\"}", NULL);
    assert_int_equal(c.numerics.weights.dtype, XLSTM_BF16);
    assert_string_equal(c.numerics.weights.source, "config.json dtype");
    c = good(f, "{\"inference_state_dtype\": \"int8\"}", NULL);
    assert_int_equal(c.numerics.state.dtype, XLSTM_I8);

    static const struct {
        const char *json, *part1, *part2;
    } bad[] = {
        {"{\"dtype\": \"float12\"}", "\"dtype\"", "float32, bfloat16 or float16"},
        {"{\"torch_dtype\": \"int8\"}", "\"torch_dtype\"", "int8"},
        {"{\"torch_dtype\": 32}", "\"torch_dtype\"", "string"},
        {"{\"autocast_kernel_dtype\": \"q4_k\"}", "\"autocast_kernel_dtype\"", "q4_k"},
        {"{\"inference_state_dtype\": \"float64\"}", "\"inference_state_dtype\"", "float32, bfloat16 or int8"},
        {"{\"inference_state_dtype\": \"float16\"}", "\"inference_state_dtype\"", "--state-dtype float32"},
    };
    for (size_t i = 0; i < XL_COUNT(bad); i++) {
        assert_refused(f, bad[i].json, NULL, bad[i].part1, bad[i].part2);
        assert_non_null(strstr(err.message, "config.json"));
    }
    good(f, "{\"inference_state_dtype\": \"float16\"}", &(xlstm_model_options){.state_dtype = XLSTM_F32});
    assert_refused(f, "{}", &(xlstm_model_options){.state_dtype = XLSTM_F16}, "--state-dtype", "bfloat16");
    assert_refused(f, "{}", &(xlstm_model_options){.dtype = XLSTM_Q4_K}, "--dtype", "q4_k");
    assert_refused(f, "{}", &(xlstm_model_options){.kernel_dtype = XLSTM_I8}, "--kernel-dtype", "int8");
    assert_refused(f, "{}", &(xlstm_model_options){.dtype = (xlstm_dtype)99}, "--dtype", "expected");
}

static void test_norm_flag(void **state)
{
    const fixture *f = *state;
    static const char *const json[] = {"{}", "{\"norm_reduction_force_float32\": true}",
                                       "{\"norm_reduction_force_float32\": false}"};
    for (int file = 0; file < 3; file++) {
        for (xlstm_switch option = XLSTM_AUTO; option <= XLSTM_OFF; option++) {
            xl_config c = good(f, json[file], &(xlstm_model_options){.norm_reduction_float32 = option});
            assert_int_equal(c.numerics.norm_float32.on, option == XLSTM_AUTO ? file != 2 : option == XLSTM_ON);
            assert_string_equal(c.numerics.norm_float32.source,
                                option != XLSTM_AUTO ? "option"
                                : file == 0          ? "default"
                                                     : "config.json norm_reduction_force_float32");
        }
    }
}

/* Only float32 is narrowed; narrower storage stays what it is. */
static void test_stored(void **state)
{
    (void)state;
    fixture half = make(&(mk_model){.dtype = XLSTM_BF16}), mixed = make(&(mk_model){.dtype = XLSTM_BF16, .small_float32 = true});
    fixture block = make(&(mk_model){.scheme = "gguf", .dtype = XLSTM_Q8_0});
    xl_config c = good(&half, "{\"dtype\": \"float32\"}", NULL);
    assert_int_equal(c.numerics.weights.dtype, XLSTM_BF16);
    assert_string_equal(c.numerics.weights.source, "as stored (config.json dtype: float32)");
    c = good(&half, "{}", &(xlstm_model_options){.dtype = XLSTM_F16});
    assert_int_equal(c.numerics.weights.dtype, XLSTM_BF16);
    assert_int_equal(c.numerics.activations.dtype, XLSTM_F16);
    c = good(&mixed, "{}", NULL); /* float32 norms and gates beside bfloat16 matrices */
    assert_int_equal(c.numerics.weights.dtype, XLSTM_BF16);
    c = good(&block, xl_weights_config(block.w), &(xlstm_model_options){.dtype = XLSTM_BF16});
    assert_int_equal(c.numerics.weights.dtype, XLSTM_Q8_0);
    assert_string_equal(c.numerics.weights.source, "as stored (option: bfloat16)");
    assert_int_equal(c.numerics.activations.dtype, XLSTM_BF16);
    assert_string_equal(warnings, "");
    drop(&half);
    drop(&mixed);
    drop(&block);
}

/* What Hugging Face, NX-AI and GGUF folders say about themselves agrees with their tensors. */
static void test_own_configs(void **state)
{
    (void)state;
    static const char *const schemes[] = {"huggingface", "nx-ai", "gguf"};
    for (size_t i = 0; i < XL_COUNT(schemes); i++) {
        for (int bias = 0; bias < 2; bias++) {
            fixture f = make(&(mk_model){.scheme = schemes[i], .use_bias = bias, .tied = true, .dim = 24, .heads = 3, .qk = 9,
                                         .v = 21, .ffn = 17, .chunk_size = 16});
            char path[1024], *json = NULL;
            size_t n;
            snprintf(path, sizeof(path), "%s/config.json", f.folder);
            if (i == 0) assert_int_equal(xl_read_file(&json, &n, path, 1 << 16, &err), XLSTM_OK);
            assert_int_equal(xl_weights_config(f.w) != NULL, i != 0);
            xl_config c = good(&f, json != NULL ? json : xl_weights_config(f.w), NULL);
            assert_string_equal(warnings, "");
            assert_int_equal(c.chunk_size, 16);
            assert_true(c.norm_eps == 1e-6f && c.cell_eps == 1e-6f && c.gate_soft_cap == 15 && c.logit_soft_cap == 30);
            assert_true(c.tied);
            free(json);
            drop(&f);
        }
    }
    xl_weights *w;
    assert_int_equal(xl_weights_open(&w, "preset:125m:q4_0", NULL, &err), XLSTM_OK);
    fixture f = {.w = w};
    assert_int_equal(xl_wiring_discover(&f.wiring, w, NULL, &err), XLSTM_OK);
    xl_config c = good(&f, xl_weights_config(w), NULL);
    assert_string_equal(warnings, "");
    assert_true(c.tied && c.numerics.weights.dtype == XLSTM_Q4_0);
    xl_wiring_free(&f.wiring);
    xl_weights_close(w);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ffn_rounding), TEST(test_defaults), TEST(test_dimensions),
        cmocka_unit_test(test_layout_flags), TEST(test_overrides), TEST(test_three_dtypes), TEST(test_norm_flag),
        cmocka_unit_test(test_stored), cmocka_unit_test(test_own_configs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
