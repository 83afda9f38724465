/*
 * config.c — turns config.json, overrides, options and the tensors' shapes into one xl_config. See config.h.
 *
 * Who wins. Dimensions come from the tensors: a width, head count or vocabulary size that config.json states otherwise
 * is only warned about. What would change which tensors exist is an error instead: a block count that differs, use_bias
 * or add_out_norm against what is stored. The two spellings of width (embedding_dim, hidden_size) and of depth
 * (num_blocks, num_hidden_layers) stand for each other, and it is an error if both are there and differ.
 * A key given by --set replaces config.json's. Keys that only steer training or kernel choice are not looked at.
 */
#include "config.h"
#include "json.h"

#include <math.h>

/* ---- sources ---------------------------------------------------------------------------------------------------- */

/* Every key that means something to some xLSTM Large tool: what --set accepts. */
static const char *const known_keys[] = {
    "vocab_size", "embedding_dim", "hidden_size", "num_blocks", "num_hidden_layers", "num_heads", "use_bias",
    "norm_eps", "norm_reduction_force_float32", "add_out_norm", "qk_dim_factor", "v_dim_factor", "ffn_proj_factor",
    "ffn_round_up_to_multiple_of", "gate_soft_cap", "output_logit_soft_cap", "weight_mode", "chunk_size", "eps", "mode",
    "return_last_states", "chunkwise_kernel", "sequence_kernel", "step_kernel", "autocast_kernel_dtype",
    "inference_state_dtype", "torch_dtype", "dtype", "tie_word_embeddings", "max_inference_chunksize", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "force_bos_token_insert", "model_type",
};

typedef struct reader {
    json_t *file, *set; /* objects; file is NULL without config.json */
    const char *name;   /* of the file, for messages */
    const char *base;   /* its last component, for sources */
    const xl_log *log;
    xlstm_error *err;
} reader;

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

/* The object that decides a key, and its name for messages. A null in --set hides the file's value. */
static const json_t *owner(const reader *r, const char *key, const char **name)
{
    bool set = json_object_get(r->set, key) != NULL;
    *name = set ? "--set" : r->name;
    return set ? r->set : r->file;
}

static const json_t *value_of(const reader *r, const char *key)
{
    const char *name;
    const json_t *value = json_object_get(owner(r, key, &name), key);
    return json_is_null(value) ? NULL : value;
}

static bool has(const reader *r, const char *key) { return value_of(r, key) != NULL; }

static int read_bool(bool *out, const reader *r, const char *key)
{
    const char *name;
    const json_t *object = owner(r, key, &name);
    return xl_json_bool(out, object, key, name, r->err);
}

static int read_int(int64_t *out, const reader *r, const char *key, int64_t low, int64_t high)
{
    const char *name;
    const json_t *object = owner(r, key, &name);
    return xl_json_int(out, object, key, low, high, name, r->err);
}

static int read_real(double *out, const reader *r, const char *key, double low, double high)
{
    const char *name;
    const json_t *object = owner(r, key, &name);
    return xl_json_real(out, object, key, low, high, name, r->err);
}

static int read_text(const char **out, const reader *r, const char *key)
{
    const char *name;
    const json_t *object = owner(r, key, &name);
    return xl_json_text(out, object, key, name, r->err);
}

/* "key=value" into an object; the value is JSON where it reads as a JSON scalar, else a string. */
static int add_override(json_t *set, const char *text, xlstm_error *err)
{
    const char *equals = strchr(text, '=');
    char key[64];
    if (equals == NULL || equals == text || (size_t)(equals - text) >= sizeof(key)) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "--set %.200s: expected KEY=VALUE", text);
    }
    snprintf(key, sizeof(key), "%.*s", (int)(equals - text), text);
    size_t i = 0;
    while (i < XL_COUNT(known_keys) && strcmp(known_keys[i], key) != 0) i++;
    if (i == XL_COUNT(known_keys)) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "--set %s: no such setting; expected a key of config.json such as "
                       "gate_soft_cap, output_logit_soft_cap, norm_eps, eps, chunk_size or bos_token_id", key);
    }
    const char *value = equals + 1;
    if (!xl_json_utf8(value, strlen(value))) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "--set %s: the value is not UTF-8 text", key);
    }
    json_t *json;
    int result = xl_json_value(&json, value, strlen(value), err);
    if (result != XLSTM_OK) return result;
    if (json == NULL || json_is_object(json) || json_is_array(json)) {
        json_decref(json);
        json = json_string(value);
    }
    return xl_json_set(set, key, json, err);
}

/* Writes where a value comes from: "config.json dtype", "--set dtype". */
static void note_source(const reader *r, xlstm_resolved *out, const char *key)
{
    bool set = json_object_get(r->set, key) != NULL;
    snprintf(out->source, sizeof(out->source), "%.24s %.32s", set ? "--set" : r->base, key);
}

/* ---- architecture ----------------------------------------------------------------------------------------------- */

static int refuse_other_models(const reader *r)
{
    const char *type = NULL;
    int result = read_text(&type, r, "model_type");
    if (result != XLSTM_OK) return result;
    if (type != NULL && strcmp(type, "xlstm") != 0) {
        return xl_fail(r->err, XLSTM_E_UNSUPPORTED, "%s: field \"model_type\": expected \"xlstm\", found \"%.80s\"",
                       r->name, type);
    }
    const json_t *at = value_of(r, "slstm_at"), *block = value_of(r, "slstm_block");
    if ((at != NULL && !(json_is_array(at) && json_array_size(at) == 0)) || block != NULL) {
        return xl_fail(r->err, XLSTM_E_UNSUPPORTED,
                       "%s: field \"%s\": sLSTM blocks are not supported, expected an xLSTM Large model of mLSTM blocks",
                       r->name, block != NULL ? "slstm_block" : "slstm_at");
    }
    static const char *const kernels[] = {"chunkwise_kernel", "sequence_kernel", "step_kernel"};
    for (size_t i = 0; i < XL_COUNT(kernels); i++) {
        const char *kernel = json_string_value(value_of(r, kernels[i]));
        if (kernel != NULL && strstr(kernel, "siging") != NULL) {
            return xl_fail(r->err, XLSTM_E_UNSUPPORTED,
                           "%s: field \"%s\": \"%.80s\" has a sigmoid input gate, which is not supported; expected a "
                           "kernel with the exponential input gate",
                           r->name, kernels[i], kernel);
        }
    }
    return XLSTM_OK;
}

/* Two keys for one number. *out is 0 when neither is there. */
static int read_alias(int64_t *out, const reader *r, const char *key, const char *other)
{
    int64_t a = 0, b = 0;
    int result = read_int(&a, r, key, 1, INT32_MAX);
    if (result == XLSTM_OK) result = read_int(&b, r, other, 1, INT32_MAX);
    if (result != XLSTM_OK) return result;
    /* One of them set on the command line stands for both. */
    bool a_set = json_object_get(r->set, key) != NULL, b_set = json_object_get(r->set, other) != NULL;
    if (a_set != b_set) {
        *out = a_set ? a : b;
        return XLSTM_OK;
    }
    if (a != 0 && b != 0 && a != b) {
        return xl_fail(r->err, XLSTM_E_FORMAT, "%s: fields \"%s\" (%lld) and \"%s\" (%lld) mean the same and disagree; "
                       "remove the wrong one", r->name, key, (long long)a, other, (long long)b);
    }
    *out = a != 0 ? a : b;
    return XLSTM_OK;
}

/* `key` decides who is named. */
static void warn_dimension(const reader *r, const char *key, const char *what, double stated, uint32_t found)
{
    const char *name;
    if (stated == (double)found) return;
    (void)owner(r, key, &name);
    xl_logf(r->log, XLSTM_LOG_WARNING, "%s: %s is %.0f there, but %u by the tensors' shapes, which are used", name, what,
            stated, found);
}

uint64_t xl_config_ffn_dim(uint32_t embedding_dim, double factor, uint32_t multiple)
{
    double x = (double)embedding_dim * factor;
    if (!(x >= 1 && x < 1e15) || multiple == 0) return 0;
    return ((uint64_t)x + multiple - 1) / multiple * multiple;
}

static int check_dims(const reader *r, const xl_dims *d)
{
    int64_t width = 0, depth = 0, vocabulary = 0, heads = 0, multiple = 64, head_qk = 0, head_v = 0, ffn = 0;
    double q = 0, v = 0, f = 0;
    int result = read_alias(&width, r, "embedding_dim", "hidden_size");
    if (result == XLSTM_OK) result = read_alias(&depth, r, "num_blocks", "num_hidden_layers");
    if (result == XLSTM_OK) result = read_int(&vocabulary, r, "vocab_size", 1, INT32_MAX);
    if (result == XLSTM_OK) result = read_int(&heads, r, "num_heads", 1, INT32_MAX);
    if (result == XLSTM_OK) result = read_int(&multiple, r, "ffn_round_up_to_multiple_of", 1, INT32_MAX);
    if (result == XLSTM_OK) result = read_int(&head_qk, r, "head_qk", 1, INT32_MAX); /* these three: from GGUF keys */
    if (result == XLSTM_OK) result = read_int(&head_v, r, "head_v", 1, INT32_MAX);
    if (result == XLSTM_OK) result = read_int(&ffn, r, "ffn_dim", 1, INT32_MAX);
    if (result == XLSTM_OK) result = read_real(&q, r, "qk_dim_factor", 1e-6, 1e6);
    if (result == XLSTM_OK) result = read_real(&v, r, "v_dim_factor", 1e-6, 1e6);
    if (result == XLSTM_OK) result = read_real(&f, r, "ffn_proj_factor", 1e-6, 1e6);
    if (result != XLSTM_OK) return result;
    if (depth != 0 && depth != d->num_blocks) {
        const char *name;
        (void)owner(r, "num_blocks", &name);
        return xl_fail(r->err, XLSTM_E_FORMAT,
                       "%s: num_blocks is %lld, but the checkpoint holds %u blocks: files are missing or belong to "
                       "another model (--set num_blocks=%u takes them as they are)",
                       name, (long long)depth, d->num_blocks, d->num_blocks);
    }
    if (width != 0) warn_dimension(r, "embedding_dim", "embedding_dim", (double)width, d->embedding_dim);
    if (vocabulary != 0) warn_dimension(r, "vocab_size", "vocab_size", (double)vocabulary, d->vocab_size);
    if (heads != 0) warn_dimension(r, "num_heads", "num_heads", (double)heads, d->num_heads);
    if (head_qk != 0) warn_dimension(r, "head_qk", "the q and k width of a head", (double)head_qk, d->head_qk);
    if (head_v != 0) warn_dimension(r, "head_v", "the v width of a head", (double)head_v, d->head_v);
    if (ffn != 0) warn_dimension(r, "ffn_dim", "the feed-forward width", (double)ffn, d->ffn_dim);
    if (q > 0) warn_dimension(r, "qk_dim_factor", "the q and k width (qk_dim_factor)", trunc(d->embedding_dim * q), d->qk_dim);
    if (v > 0) warn_dimension(r, "v_dim_factor", "the v width (v_dim_factor)", trunc(d->embedding_dim * v), d->v_dim);
    if (f > 0) {
        uint64_t stated = xl_config_ffn_dim(d->embedding_dim, f, (uint32_t)multiple);
        warn_dimension(r, "ffn_proj_factor", "the feed-forward width (ffn_proj_factor)", (double)stated, d->ffn_dim);
    }
    return XLSTM_OK;
}

static int check_layout(const reader *r, const xl_wiring *wiring, xl_config *out)
{
    bool use_bias = wiring->use_bias, out_norm = true, tied = wiring->tied;
    const char *mode = NULL;
    int result = read_bool(&use_bias, r, "use_bias");
    if (result == XLSTM_OK) result = read_bool(&out_norm, r, "add_out_norm");
    if (result == XLSTM_OK) result = read_bool(&tied, r, "tie_word_embeddings");
    if (result == XLSTM_OK) result = read_bool(&out->force_bos, r, "force_bos_token_insert");
    if (result == XLSTM_OK) result = read_text(&mode, r, "weight_mode");
    if (result != XLSTM_OK) return result;
    if (use_bias != wiring->use_bias) {
        return xl_fail(r->err, XLSTM_E_FORMAT, "%s: field \"use_bias\" is %s, but the checkpoint has %s bias tensors",
                       r->name, use_bias ? "true" : "false", use_bias ? "no" : "such");
    }
    if (out_norm && wiring->out_norm.t == NULL) {
        return xl_fail(r->err, XLSTM_E_FORMAT,
                       "tensor '%s' is missing; a model without final norm says so: --set add_out_norm=false",
                       strcmp(wiring->scheme, "gguf") == 0 ? "output_norm.weight" : "out_norm.weight");
    }
    if (!out_norm && wiring->out_norm.t != NULL) {
        xl_logf(r->log, XLSTM_LOG_WARNING, "%s: add_out_norm is false, but there is '%s', which is used", r->name,
                wiring->out_norm.t->name);
    }
    if (mode != NULL && strcmp(mode, "single") != 0 && strcmp(mode, "fused") != 0) {
        return xl_fail(r->err, XLSTM_E_FORMAT, "%s: field \"weight_mode\": expected \"single\" or \"fused\", found "
                       "\"%.80s\"", r->name, mode);
    }
    if (mode != NULL && (strcmp(mode, "fused") == 0) != wiring->fused) {
        xl_logf(r->log, XLSTM_LOG_WARNING, "%s: weight_mode is %s there, but the tensors are %s, which is used", r->name,
                mode, wiring->fused ? "fused" : "single");
    }
    /* GGUF files say it by leaving the tensor out. */
    if (wiring->tied && !(tied && has(r, "tie_word_embeddings")) && strcmp(wiring->scheme, "gguf") != 0) {
        xl_logf(r->log, XLSTM_LOG_WARNING,
                "there is no head tensor (lm_head.weight): the embedding is used in its place");
    }
    out->tied = tied || wiring->tied;
    return XLSTM_OK;
}

/* ---- plain settings --------------------------------------------------------------------------------------------- */

/* null means no cap. */
static int read_cap(float *out, const reader *r, const char *key)
{
    const char *name;
    double cap = 0;
    const json_t *object = owner(r, key, &name);
    if (json_object_get(object, key) == NULL) return XLSTM_OK;
    int result = read_real(&cap, r, key, 1e-3, 1e6);
    if (result == XLSTM_OK) *out = (float)cap;
    return result;
}

static int read_eps(float *out, const reader *r, const char *key)
{
    double eps = *out;
    int result = read_real(&eps, r, key, 0, 1);
    *out = (float)eps;
    return result;
}

/* What no shape tells must be said by someone. */
static int need_settings(const reader *r)
{
    static const struct {
        const char *key, *value;
    } needed[] = {{"gate_soft_cap", "15"}, {"output_logit_soft_cap", "30"}, {"norm_eps", "1e-6"}, {"eps", "1e-6"}};
    char list[256];
    size_t n = 0;
    if (r->file != NULL) return XLSTM_OK;
    for (size_t i = 0; i < XL_COUNT(needed); i++) {
        if (json_object_get(r->set, needed[i].key) != NULL) continue;
        n += (size_t)snprintf(list + n, sizeof(list) - n, " --set %s=%s", needed[i].key, needed[i].value);
    }
    if (n == 0) return XLSTM_OK;
    return xl_fail(r->err, XLSTM_E_IO,
                   "there is no config.json, and the tensors' shapes do not tell everything: give%s (the values shown "
                   "are those of the published models; a cap may be null)",
                   list);
}

/* null, -1 or absent: none. A list, as generation_config.json has for eos, counts by its first entry. */
static int read_token(int32_t *out, const reader *r, const char *key, const xl_dims *d)
{
    const char *name;
    const json_t *object = owner(r, key, &name), *value = value_of(r, key);
    *out = -1;
    if (value == NULL) return XLSTM_OK;
    if (json_is_array(value)) value = json_array_get(value, 0);
    json_t *single = json_pack("{s:O?}", key, value);
    int64_t id = -1;
    int result = object != NULL && single != NULL
                     ? xl_json_int(&id, single, key, -1, (int64_t)d->vocab_size - 1, name, r->err)
                     : xl_fail(r->err, XLSTM_E_MEMORY, "out of memory while reading \"%s\"", key);
    json_decref(single);
    *out = (int32_t)id;
    return result;
}

static int read_settings(const reader *r, const xlstm_model_options *options, xl_config *out)
{
    int64_t chunk = 64;
    out->norm_eps = out->cell_eps = 1e-6f;
    out->gate_soft_cap = 15;
    out->logit_soft_cap = 30;
    int result = need_settings(r);
    if (result == XLSTM_OK) result = read_eps(&out->norm_eps, r, "norm_eps");
    if (result == XLSTM_OK) result = read_eps(&out->cell_eps, r, "eps");
    if (result == XLSTM_OK) result = read_cap(&out->gate_soft_cap, r, "gate_soft_cap");
    if (result == XLSTM_OK) result = read_cap(&out->logit_soft_cap, r, "output_logit_soft_cap");
    if (result == XLSTM_OK) result = read_int(&chunk, r, "chunk_size", 1, INT32_MAX);
    if (result == XLSTM_OK) result = read_token(&out->bos_id, r, "bos_token_id", &out->dims);
    if (result == XLSTM_OK) result = read_token(&out->eos_id, r, "eos_token_id", &out->dims);
    if (result == XLSTM_OK) result = read_token(&out->pad_id, r, "pad_token_id", &out->dims);
    if (result != XLSTM_OK) return result;
    if (options->chunk_size > 4096) {
        return xl_fail(r->err, XLSTM_E_ARGUMENT, "chunk size: expected 1 .. 4096, found %u", options->chunk_size);
    }
    /* Any chunk length computes the same function; the bound is on scratch memory. */
    out->chunk_size = options->chunk_size > 0 ? options->chunk_size : (uint32_t)XL_MIN(chunk, 4096);
    return XLSTM_OK;
}

/* ---- numeric settings ------------------------------------------------------------------------------------------- */

enum { PLAIN = 1u << XLSTM_F32 | 1u << XLSTM_BF16 | 1u << XLSTM_F16, STATE = 1u << XLSTM_F32 | 1u << XLSTM_BF16 |
       1u << XLSTM_I8 };

static const char *allowed_text(unsigned allowed)
{
    return allowed == PLAIN ? "float32, bfloat16 or float16" : "float32, bfloat16 or int8";
}

/* The dtype a key asks for, DEFAULT if it is absent. */
static int read_dtype(xlstm_dtype *out, const reader *r, const char *key, unsigned allowed)
{
    const char *text = NULL, *name;
    (void)owner(r, key, &name);
    *out = XLSTM_DTYPE_DEFAULT;
    int result = read_text(&text, r, key);
    if (result != XLSTM_OK || text == NULL) return result;
    xlstm_dtype dtype;
    if (xlstm_dtype_parse(&dtype, text, NULL) == XLSTM_OK && (allowed >> dtype & 1u) != 0) {
        *out = dtype;
        return XLSTM_OK;
    }
    bool half_state = allowed == STATE && xlstm_dtype_parse(&dtype, text, NULL) == XLSTM_OK && dtype == XLSTM_F16;
    return xl_fail(r->err, XLSTM_E_FORMAT, "%s: field \"%s\": expected %s, found \"%.80s\"%s", name, key,
                   allowed_text(allowed), text,
                   half_state ? "; float16 cannot hold the state's normaliser, --state-dtype float32 overrides it" : "");
}

static int check_option(const reader *r, const char *flag, xlstm_dtype dtype, unsigned allowed)
{
    if (dtype == XLSTM_DTYPE_DEFAULT || ((unsigned)dtype < XLSTM_DTYPE_COUNT && (allowed >> dtype & 1u) != 0)) {
        return XLSTM_OK;
    }
    bool half_state = allowed == STATE && dtype == XLSTM_F16;
    return xl_fail(r->err, XLSTM_E_ARGUMENT, "%s: expected %s, found %s%s", flag, allowed_text(allowed),
                   xlstm_dtype_name(dtype),
                   half_state ? "; float16 cannot hold the state's normaliser, which reaches 3e6: use bfloat16" : "");
}

static void resolve(xlstm_resolved *out, xlstm_dtype dtype, const char *source)
{
    out->dtype = dtype;
    snprintf(out->source, sizeof(out->source), "%s", source);
}

/* How the large matrices are stored. */
typedef struct storage {
    xlstm_dtype largest; /* by bytes */
    bool block_format;   /* the largest group is quantised */
    bool has_float32;
} storage;

static void count_slice(uint64_t bytes[XLSTM_DTYPE_COUNT], const xl_tensor *t, uint64_t rows)
{
    bytes[t->dtype] += t->shape[0] > 0 ? t->bytes / t->shape[0] * rows : 0;
}

static storage find_storage(const xl_wiring *w)
{
    static const xl_role matrices[] = {XL_Q, XL_K, XL_V, XL_OGATE, XL_OUT_PROJ, XL_FFN_GATE, XL_FFN_UP, XL_FFN_DOWN};
    uint64_t bytes[XLSTM_DTYPE_COUNT] = {0};
    count_slice(bytes, w->embedding, w->dims.vocab_size);
    if (!w->tied) count_slice(bytes, w->head, w->dims.vocab_size);
    for (uint32_t b = 0; b < w->dims.num_blocks; b++) {
        for (size_t i = 0; i < XL_COUNT(matrices); i++) {
            const xl_slice *s = &w->blocks[b].weight[matrices[i]];
            count_slice(bytes, s->t, s->rows);
        }
    }
    storage s = {.largest = XLSTM_F32, .has_float32 = bytes[XLSTM_F32] > 0};
    for (int d = 0; d < XLSTM_DTYPE_COUNT; d++) {
        if (bytes[d] > bytes[s.largest]) s.largest = (xlstm_dtype)d;
    }
    s.block_format = xl_dtype_get(s.largest)->block > 1;
    return s;
}

/* Asked for: option, dtype, torch_dtype. Only float32 is ever narrowed; narrower storage already holds the values. */
static int resolve_weights(const reader *r, xlstm_dtype option, const storage *s, xlstm_resolved *out,
                           xlstm_dtype *written)
{
    xlstm_dtype torch = XLSTM_DTYPE_DEFAULT, dtype = XLSTM_DTYPE_DEFAULT;
    int result = option == XLSTM_DTYPE_DEFAULT ? read_dtype(&dtype, r, "dtype", PLAIN) : XLSTM_OK;
    if (result == XLSTM_OK && option == XLSTM_DTYPE_DEFAULT && dtype == XLSTM_DTYPE_DEFAULT) {
        result = read_dtype(&torch, r, "torch_dtype", PLAIN);
    }
    if (result != XLSTM_OK) return result;
    *written = dtype != XLSTM_DTYPE_DEFAULT ? dtype : torch;
    if (option != XLSTM_DTYPE_DEFAULT) {
        resolve(out, option, "option");
    } else if (dtype != XLSTM_DTYPE_DEFAULT || torch != XLSTM_DTYPE_DEFAULT) {
        out->dtype = *written;
        note_source(r, out, dtype != XLSTM_DTYPE_DEFAULT ? "dtype" : "torch_dtype");
    } else {
        resolve(out, s->has_float32 && !s->block_format ? XLSTM_F32 : s->largest, "as stored");
    }
    if (out->dtype != s->largest && (s->block_format || !s->has_float32)) {
        char source[sizeof(out->source)];
        snprintf(source, sizeof(source), "as stored (%.28s: %.14s)", out->source, xlstm_dtype_name(out->dtype));
        resolve(out, s->largest, source);
    }
    return XLSTM_OK;
}

static int resolve_numerics(const reader *r, const xl_wiring *wiring, const xlstm_model_options *options,
                            xl_numerics *out)
{
    storage stored = find_storage(wiring);
    xlstm_dtype state;
    int result = check_option(r, "--dtype", options->dtype, PLAIN);
    if (result == XLSTM_OK) result = check_option(r, "--kernel-dtype", options->kernel_dtype, PLAIN);
    if (result == XLSTM_OK) result = check_option(r, "--state-dtype", options->state_dtype, STATE);
    if (result == XLSTM_OK) result = resolve_weights(r, options->dtype, &stored, &out->weights, &out->config_weights);
    if (result == XLSTM_OK) result = read_dtype(&out->config_kernel, r, "autocast_kernel_dtype", PLAIN);
    if (result != XLSTM_OK) return result;

    if (options->dtype != XLSTM_DTYPE_DEFAULT) {
        resolve(&out->activations, options->dtype, "option");
    } else {
        resolve(&out->activations, XLSTM_F32, "policy: float32 activations");
    }
    if (options->kernel_dtype != XLSTM_DTYPE_DEFAULT) {
        resolve(&out->kernel, options->kernel_dtype, "option");
    } else {
        resolve(&out->kernel, XLSTM_DTYPE_DEFAULT, "default: no kernel autocast unless asked for");
    }
    if (options->state_dtype != XLSTM_DTYPE_DEFAULT) {
        resolve(&out->state, options->state_dtype, "option");
    } else {
        result = read_dtype(&state, r, "inference_state_dtype", STATE);
        if (result != XLSTM_OK) return result;
        resolve(&out->state, state != XLSTM_DTYPE_DEFAULT ? state : XLSTM_F32, "default");
        if (state != XLSTM_DTYPE_DEFAULT) note_source(r, &out->state, "inference_state_dtype");
    }
    out->norm_float32.on = true;
    if (options->norm_reduction_float32 != XLSTM_AUTO) {
        out->norm_float32.on = options->norm_reduction_float32 == XLSTM_ON;
        resolve(&out->norm_float32, XLSTM_DTYPE_DEFAULT, "option");
        return XLSTM_OK;
    }
    resolve(&out->norm_float32, XLSTM_DTYPE_DEFAULT, "default");
    result = read_bool(&out->norm_float32.on, r, "norm_reduction_force_float32");
    if (has(r, "norm_reduction_force_float32")) note_source(r, &out->norm_float32, "norm_reduction_force_float32");
    return result;
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

int xl_config_resolve(xl_config *out, const char *json, const char *source_name, const xl_wiring *wiring,
                      const xlstm_model_options *options, const xl_log *log, xlstm_error *err)
{
    static const xlstm_model_options defaults;
    if (options == NULL) options = &defaults;
    *out = (xl_config){.dims = wiring->dims};
    if (source_name == NULL || json == NULL) source_name = "settings";
    reader r = {.name = source_name, .base = base_name(source_name), .log = log, .err = err, .set = json_object()};
    int result = r.set != NULL ? XLSTM_OK : xl_fail(err, XLSTM_E_MEMORY, "out of memory while reading settings");
    if (result == XLSTM_OK && json != NULL) {
        result = xl_json_parse(&r.file, json, strlen(json), source_name, true, err);
    }
    for (size_t i = 0; i < options->n_set && result == XLSTM_OK; i++) {
        result = add_override(r.set, options->set[i], err);
    }
    if (result == XLSTM_OK) result = refuse_other_models(&r);
    if (result == XLSTM_OK) result = check_dims(&r, &wiring->dims);
    if (result == XLSTM_OK) result = check_layout(&r, wiring, out);
    if (result == XLSTM_OK) result = read_settings(&r, options, out);
    if (result == XLSTM_OK) result = resolve_numerics(&r, wiring, options, &out->numerics);
    json_decref(r.set);
    json_decref(r.file);
    return result;
}
