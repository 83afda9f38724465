/*
 * make_model.h — writes tiny random checkpoints for tests, in every layout the loader knows: Hugging Face, NX-AI, bare and
 * GGUF names; single and fused; with and without biases, head and final norm; float32, bfloat16 and float16; one file or
 * shards. The numbers of a part depend on the seed, the part and the block alone, so two layouts of one model hold the
 * same values, and mk_values gives them to an oracle. Everything aborts on failure: a test cannot go on without.
 */
#ifndef MAKE_MODEL_H
#define MAKE_MODEL_H

#include "dtype.h"

#include <assert.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MK_UNUSED __attribute__((unused))
#define MK_CHECK(x) ((x) ? (void)0 : (fprintf(stderr, "%s:%d: %s failed\n", __FILE__, __LINE__, #x), abort()))

typedef struct mk_model {
    uint32_t vocab, dim, blocks, heads, qk, v, ffn; /* 0: 48, 32, 2, 4, dim / 2, dim, 64 */
    bool fused, use_bias, tied, no_out_norm;
    bool head_norm_2d;  /* multihead_norm stored [NH, dv] */
    bool small_float32; /* norms, gates and biases float32 whatever dtype is */
    const char *scheme; /* NULL: "huggingface"; "nx-ai", "bare", "query" (query, key, value names), "gguf" */
    xlstm_dtype dtype;  /* 0: float32; bfloat16, float16; with gguf also block formats (rows permitting) */
    uint32_t shards;    /* 0, 1: one file */
    uint64_t seed;
    uint32_t chunk_size;      /* 0: 64 */
    const char *config_extra; /* members to add to config.json, beginning with a comma: ", \"eps\": 1e-5" */
} mk_model;

typedef struct mk_tensor {
    char name[160];
    xlstm_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
    size_t bytes;
    uint8_t *data;
} mk_tensor;

typedef struct mk_list {
    mk_tensor *t;
    size_t n;
} mk_list;

/* ---- random numbers --------------------------------------------------------------------------------------------- */

static MK_UNUSED uint64_t mk_next(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

static MK_UNUSED double mk_uniform(uint64_t *state) { return ((double)(mk_next(state) >> 11) + 0.5) * 0x1p-53; }

static MK_UNUSED float mk_normal(uint64_t *state)
{
    double r = sqrt(-2 * log(mk_uniform(state)));
    return (float)(r * cos(6.283185307179586 * mk_uniform(state)));
}

/* ---- parts ------------------------------------------------------------------------------------------------------ */

static MK_UNUSED mk_model mk_defaults(const mk_model *in)
{
    mk_model m = *in;
    if (m.vocab == 0) m.vocab = 48;
    if (m.dim == 0) m.dim = 32;
    if (m.blocks == 0) m.blocks = 2;
    if (m.heads == 0) m.heads = 4;
    if (m.qk == 0) m.qk = m.dim / 2;
    if (m.v == 0) m.v = m.dim;
    if (m.ffn == 0) m.ffn = 64;
    if (m.scheme == NULL) m.scheme = "huggingface";
    if (m.dtype == XLSTM_DTYPE_DEFAULT) m.dtype = XLSTM_F32;
    if (m.chunk_size == 0) m.chunk_size = 64;
    return m;
}

/* Values [rows][cols] of a part ("embedding", "head", "out_norm" with block 0, or a role's name as xl_role_name gives it:
 * "q", "igate_preact", "proj_up", ...), before rounding to the model's dtype. cols 0: a vector. */
static MK_UNUSED void mk_values(float *out, const mk_model *model, const char *part, uint32_t block, bool bias,
                                uint64_t rows, uint64_t cols)
{
    uint64_t state = model->seed * 1000003 + block * 7919 + (bias ? 104729 : 0);
    for (const char *p = part; *p != '\0'; p++) state = state * 131 + (uint8_t)*p;
    uint64_t n = cols > 0 ? rows * cols : rows;
    bool norm = strstr(part, "norm") != NULL;
    for (uint64_t i = 0; i < n; i++) {
        float x = mk_normal(&state);
        if (bias && strcmp(part, "igate_preact") == 0) {
            out[i] = -2 + 2 * x;
        } else if (bias && strcmp(part, "fgate_preact") == 0) {
            out[i] = 3 + 1.5f * x;
        } else if (bias) {
            out[i] = 0.2f * x;
        } else if (norm) {
            out[i] = 1 + 0.2f * x;
        } else if (strcmp(part, "embedding") == 0) {
            out[i] = 0.5f * x;
        } else {
            out[i] = x / sqrtf((float)cols);
        }
    }
}

static MK_UNUSED mk_tensor *mk_add(mk_list *list, const char *name, xlstm_dtype dtype, uint64_t rows, uint64_t cols)
{
    list->t = realloc(list->t, (list->n + 1) * sizeof(*list->t));
    MK_CHECK(list->t != NULL);
    mk_tensor *t = &list->t[list->n++];
    *t = (mk_tensor){.dtype = dtype, .rank = cols > 0 ? 2 : 1, .shape = {rows, cols}};
    snprintf(t->name, sizeof(t->name), "%s", name);
    size_t row;
    MK_CHECK(xl_dtype_row_bytes(&row, dtype, cols > 0 ? cols : rows));
    t->bytes = row * (cols > 0 ? rows : 1);
    t->data = calloc(t->bytes + 1, 1);
    MK_CHECK(t->data != NULL);
    return t;
}

static MK_UNUSED void mk_free(mk_list *list)
{
    for (size_t i = 0; i < list->n; i++) free(list->t[i].data);
    free(list->t);
    *list = (mk_list){0};
}

static MK_UNUSED mk_tensor *mk_find(mk_list *list, const char *name)
{
    for (size_t i = 0; i < list->n; i++) {
        if (strcmp(list->t[i].name, name) == 0) return &list->t[i];
    }
    return NULL;
}

static MK_UNUSED void mk_remove(mk_list *list, const char *name)
{
    mk_tensor *t = mk_find(list, name);
    MK_CHECK(t != NULL);
    free(t->data);
    memmove(t, t + 1, (size_t)(list->t + list->n - t - 1) * sizeof(*t));
    list->n--;
}

/* One tensor made of `n` parts below each other, each `rows[i]` high. */
static MK_UNUSED void mk_add_parts(mk_list *list, const mk_model *m, const char *name, const char *const *part,
                                   const uint64_t *rows, int n, uint64_t cols, uint32_t block, bool bias)
{
    uint64_t total = 0, width = cols > 0 ? cols : 1, done = 0;
    for (int i = 0; i < n; i++) total += rows[i];
    bool small = cols == 0 || strstr(part[0], "igate") != NULL || strstr(part[0], "fgate") != NULL;
    bool plain = xl_dtype_get(m->dtype)->block == 1;
    xlstm_dtype dtype = small && (m->small_float32 || !plain) ? XLSTM_F32 : m->dtype;
    mk_tensor *t = mk_add(list, name, dtype, total, cols);
    float *values = malloc(total * width * sizeof(*values));
    MK_CHECK(values != NULL);
    for (int i = 0; i < n; i++) {
        mk_values(values + done * width, m, part[i], block, bias, rows[i], cols);
        done += rows[i];
    }
    xl_encode_row(t->data, values, dtype, total * width);
    free(values);
}

/* All tensors of a model, in its scheme's names. */
static MK_UNUSED mk_list mk_build(const mk_model *model)
{
    mk_model m = mk_defaults(model);
    mk_list list = {0};
    bool gguf = strcmp(m.scheme, "gguf") == 0, bare = strcmp(m.scheme, "bare") == 0;
    bool query = strcmp(m.scheme, "query") == 0, nxai = strcmp(m.scheme, "nx-ai") == 0;
    const char *prefix = gguf ? "blk." : bare ? "blocks." : "backbone.blocks.";
    uint64_t q = m.qk, v = m.v, d = m.dim, f = m.ffn, nh = m.heads;
    const struct {
        const char *name, *gguf, *part[4];
        uint64_t rows[4], cols;
        int n, when; /* 0: always, 1: single, 2: fused */
        bool gate;   /* bias always */
    } parts[] = {
        {"norm_mlstm", "mlstm_norm", {"norm_mlstm"}, {d}, 0, 1, 0, false},
        {query ? "mlstm_layer.query" : "mlstm_layer.q", "mlstm_q", {"q"}, {q}, d, 1, 1, false},
        {query ? "mlstm_layer.key" : "mlstm_layer.k", "mlstm_k", {"k"}, {q}, d, 1, 1, false},
        {query ? "mlstm_layer.value" : "mlstm_layer.v", "mlstm_v", {"v"}, {v}, d, 1, 1, false},
        {"mlstm_layer.ogate_preact", "mlstm_ogate", {"ogate_preact"}, {v}, d, 1, 1, false},
        {"mlstm_layer.igate_preact", "mlstm_igate", {"igate_preact"}, {nh}, d, 1, 1, true},
        {"mlstm_layer.fgate_preact", "mlstm_fgate", {"fgate_preact"}, {nh}, d, 1, 1, true},
        {"mlstm_layer.qkv_opreact", "mlstm_qkvo", {"q", "k", "v", "ogate_preact"}, {q, q, v, v}, d, 4, 2, false},
        {"mlstm_layer.ifgate_preact", "mlstm_ifgate", {"igate_preact", "fgate_preact"}, {nh, nh}, d, 2, 2, true},
        {"mlstm_layer.multihead_norm", "mlstm_head_norm", {"multihead_norm"}, {v}, 0, 1, 0, false},
        {"mlstm_layer.out_proj", "mlstm_out", {"out_proj"}, {d}, v, 1, 0, false},
        {"norm_ffn", "ffn_norm", {"norm_ffn"}, {d}, 0, 1, 0, false},
        {"ffn.proj_up_gate", "ffn_gate", {"proj_up_gate"}, {f}, d, 1, 1, false},
        {"ffn.proj_up", "ffn_up", {"proj_up"}, {f}, d, 1, 1, false},
        {"ffn.proj_up_gate_z", "ffn_gate_up", {"proj_up_gate", "proj_up"}, {f, f}, d, 2, 2, false},
        {"ffn.proj_down", "ffn_down", {"proj_down"}, {d}, f, 1, 0, false},
    };
    const char *const embedding = "embedding", *const head = "head", *const norm = "out_norm";
    const uint64_t vocab = m.vocab;
    mk_add_parts(&list, &m,
                 gguf ? "token_embd.weight" : bare ? "embeddings.weight" : nxai ? "embedding.weight"
                                                                              : "backbone.embeddings.weight",
                 &embedding, &vocab, 1, d, 0, false);
    for (uint32_t b = 0; b < m.blocks; b++) {
        for (size_t i = 0; i < XL_COUNT(parts); i++) {
            if (parts[i].when != 0 && (parts[i].when == 2) != m.fused) continue;
            char name[128];
            snprintf(name, sizeof(name), "%s%u.%s.weight", prefix, b, gguf ? parts[i].gguf : parts[i].name);
            mk_add_parts(&list, &m, name, parts[i].part, parts[i].rows, parts[i].n, parts[i].cols, b, false);
            if (m.head_norm_2d && strcmp(parts[i].part[0], "multihead_norm") == 0) {
                mk_tensor *t = &list.t[list.n - 1];
                t->rank = 2;
                t->shape[0] = m.heads;
                t->shape[1] = m.v / m.heads;
            }
            if (!m.use_bias && !parts[i].gate) continue;
            snprintf(name, sizeof(name), "%s%u.%s.bias", prefix, b, gguf ? parts[i].gguf : parts[i].name);
            mk_add_parts(&list, &m, name, parts[i].part, parts[i].rows, parts[i].n, 0, b, true);
        }
    }
    if (!m.no_out_norm) {
        mk_add_parts(&list, &m, gguf ? "output_norm.weight" : bare ? "out_norm.weight" : "backbone.out_norm.weight",
                     &norm, &d, 1, 0, 0, false);
    }
    if (!m.tied) {
        mk_add_parts(&list, &m, gguf ? "output.weight" : "lm_head.weight", &head, &vocab, 1, d, 0, false);
    }
    return list;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

static MK_UNUSED void mk_put_file(const char *folder, const char *name, const void *bytes, size_t n)
{
    char path[1024];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    MK_CHECK(f != NULL);
    MK_CHECK(n == 0 || fwrite(bytes, 1, n, f) == n);
    MK_CHECK(fclose(f) == 0);
}

static MK_UNUSED void mk_put_text(const char *folder, const char *name, const char *text)
{
    mk_put_file(folder, name, text, strlen(text));
}

/* A new folder under $TMPDIR, else in memory if the system has that, else under /tmp; free with mk_remove_folder. */
static MK_UNUSED char *mk_folder(void)
{
    const char *base = getenv("TMPDIR");
    char *path = NULL;
    if (base == NULL) base = access("/dev/shm", W_OK | X_OK) == 0 ? "/dev/shm" : "/tmp";
    MK_CHECK(asprintf(&path, "%s/xlstm-test-XXXXXX", base) > 0);
    MK_CHECK(mkdtemp(path) != NULL);
    return path;
}

/* Empties a folder of files and removes it. */
static MK_UNUSED void mk_remove_folder(char *folder)
{
    DIR *dir = opendir(folder);
    MK_CHECK(dir != NULL);
    for (struct dirent *e; (e = readdir(dir)) != NULL;) {
        char path[1024];
        snprintf(path, sizeof(path), "%s/%s", folder, e->d_name);
        if (e->d_name[0] != '.') MK_CHECK(unlink(path) == 0);
    }
    closedir(dir);
    MK_CHECK(rmdir(folder) == 0);
    free(folder);
}

/* A safetensors file from a header text (padded with spaces to a multiple of 8) and data. */
static MK_UNUSED void mk_put_raw_safetensors(const char *folder, const char *name, const char *header, const void *data,
                                             size_t size)
{
    uint64_t n = xl_round_up(strlen(header), 8);
    uint8_t *file = malloc(8 + n + size);
    MK_CHECK(file != NULL);
    memcpy(file, &n, 8);
    memset(file + 8, ' ', n);
    memcpy(file + 8, header, strlen(header));
    if (size > 0) memcpy(file + 8 + n, data, size);
    mk_put_file(folder, name, file, 8 + n + size);
    free(file);
}

static MK_UNUSED const char *mk_type_name(xlstm_dtype dtype)
{
    switch (dtype) {
    case XLSTM_F64: return "F64";
    case XLSTM_F32: return "F32";
    case XLSTM_F16: return "F16";
    case XLSTM_BF16: return "BF16";
    default: MK_CHECK(dtype == XLSTM_I8); return "I8";
    }
}

static MK_UNUSED void mk_put_safetensors(const char *folder, const char *name, const mk_tensor *t, size_t n)
{
    xl_text header = {0}, data = {0};
    xl_text_addf(&header, "{\"__metadata__\": {\"format\": \"pt\"}");
    for (size_t i = 0; i < n; i++) {
        xl_text_addf(&header, ", \"%s\": {\"dtype\": \"%s\", \"shape\": [", t[i].name, mk_type_name(t[i].dtype));
        for (uint32_t k = 0; k < t[i].rank; k++) {
            xl_text_addf(&header, "%s%llu", k > 0 ? ", " : "", (unsigned long long)t[i].shape[k]);
        }
        xl_text_addf(&header, "], \"data_offsets\": [%zu, %zu]}", data.size, data.size + t[i].bytes);
        xl_text_add(&data, (const char *)t[i].data, t[i].bytes);
    }
    xl_text_add(&header, "}", 1);
    MK_CHECK(!header.failed && !data.failed);
    mk_put_raw_safetensors(folder, name, header.data, data.data, data.size);
    free(header.data);
    free(data.data);
}

/* ---- GGUF ------------------------------------------------------------------------------------------------------- */

static MK_UNUSED void mk_u32(xl_text *t, uint32_t x) { xl_text_add(t, (const char *)&x, 4); }
static MK_UNUSED void mk_u64(xl_text *t, uint64_t x) { xl_text_add(t, (const char *)&x, 8); }
static MK_UNUSED void mk_string(xl_text *t, const char *s)
{
    mk_u64(t, strlen(s));
    xl_text_add(t, s, strlen(s));
}
static MK_UNUSED void mk_key_u32(xl_text *t, const char *key, uint32_t x)
{
    mk_string(t, key);
    mk_u32(t, 4);
    mk_u32(t, x);
}
static MK_UNUSED void mk_key_f32(xl_text *t, const char *key, float x)
{
    mk_string(t, key);
    mk_u32(t, 6);
    xl_text_add(t, (const char *)&x, 4);
}
static MK_UNUSED void mk_key_string(xl_text *t, const char *key, const char *s)
{
    mk_string(t, key);
    mk_u32(t, 8);
    mk_string(t, s);
}

static MK_UNUSED uint32_t mk_ggml_type(xlstm_dtype dtype)
{
    switch (dtype) {
    case XLSTM_F32: return 0;
    case XLSTM_F16: return 1;
    case XLSTM_Q4_0: return 2;
    case XLSTM_Q8_0: return 8;
    case XLSTM_Q4_K: return 12;
    case XLSTM_Q5_K: return 13;
    case XLSTM_Q6_K: return 14;
    case XLSTM_F64: return 28;
    default: MK_CHECK(dtype == XLSTM_BF16); return 30;
    }
}

/* A GGUF file from encoded keys (n_keys of them) and tensors. */
static MK_UNUSED void mk_put_gguf(const char *folder, const char *name, const xl_text *keys, uint64_t n_keys,
                                  const mk_tensor *t, size_t n)
{
    xl_text file = {0}, data = {0};
    static const char zeros[32];
    xl_text_add(&file, "GGUF", 4);
    mk_u32(&file, 3);
    mk_u64(&file, n);
    mk_u64(&file, n_keys);
    xl_text_add(&file, keys->data, keys->size);
    for (size_t i = 0; i < n; i++) {
        mk_string(&file, t[i].name);
        mk_u32(&file, t[i].rank);
        for (uint32_t k = t[i].rank; k-- > 0;) mk_u64(&file, t[i].shape[k]);
        mk_u32(&file, mk_ggml_type(t[i].dtype));
        mk_u64(&file, data.size);
        xl_text_add(&data, (const char *)t[i].data, t[i].bytes);
        xl_text_add(&data, zeros, xl_round_up(data.size, 32) - data.size);
    }
    xl_text_add(&file, zeros, xl_round_up(file.size, 32) - file.size);
    xl_text_add(&file, data.data, data.size);
    MK_CHECK(!file.failed && !data.failed);
    mk_put_file(folder, name, file.data, file.size);
    free(file.data);
    free(data.data);
}

static MK_UNUSED uint64_t mk_gguf_keys(xl_text *k, const mk_model *model)
{
    mk_model m = mk_defaults(model);
    mk_key_string(k, "general.architecture", "xlstm");
    mk_key_u32(k, "xlstm.block_count", m.blocks);
    mk_key_u32(k, "xlstm.embedding_length", m.dim);
    mk_key_u32(k, "xlstm.head_count", m.heads);
    mk_key_u32(k, "xlstm.key_length", m.qk / m.heads);
    mk_key_u32(k, "xlstm.value_length", m.v / m.heads);
    mk_key_u32(k, "xlstm.feed_forward_length", m.ffn);
    mk_key_u32(k, "xlstm.vocab_size", m.vocab);
    mk_key_u32(k, "xlstm.chunk_size", m.chunk_size);
    mk_key_f32(k, "xlstm.norm_epsilon", 1e-6f);
    mk_key_f32(k, "xlstm.cell_epsilon", 1e-6f);
    mk_key_f32(k, "xlstm.gate_soft_cap", 15);
    mk_key_f32(k, "xlstm.logit_soft_cap", 30);
    return 13;
}

/* ---- whole models ----------------------------------------------------------------------------------------------- */

/* Text of config.json; free it. */
static MK_UNUSED char *mk_config(const mk_model *model)
{
    mk_model m = mk_defaults(model);
    char *text = NULL;
    MK_CHECK(asprintf(&text,
                      "{\"model_type\": \"xlstm\", \"vocab_size\": %u, \"embedding_dim\": %u, \"hidden_size\": %u, "
                      "\"num_blocks\": %u, \"num_hidden_layers\": %u, \"num_heads\": %u, \"use_bias\": %s, "
                      "\"norm_eps\": 1e-06, \"eps\": 1e-06, \"gate_soft_cap\": 15.0, \"output_logit_soft_cap\": 30.0, "
                      "\"qk_dim_factor\": %.17g, \"v_dim_factor\": %.17g, \"ffn_proj_factor\": %.17g, "
                      "\"ffn_round_up_to_multiple_of\": 1, \"weight_mode\": \"%s\", \"chunk_size\": %u, "
                      "\"add_out_norm\": %s, \"tie_word_embeddings\": %s, \"mode\": \"inference\"%s}\n",
                      m.vocab, m.dim, m.dim, m.blocks, m.blocks, m.heads, m.use_bias ? "true" : "false",
                      (m.qk + 0.25) / m.dim, (m.v + 0.25) / m.dim, (m.ffn + 0.25) / m.dim, m.fused ? "fused" : "single",
                      m.chunk_size, m.no_out_norm ? "false" : "true", m.tied ? "true" : "false",
                      m.config_extra != NULL ? m.config_extra : "") > 0);
    return text;
}

/* The tensors as shards with an index, dealt in order. */
static MK_UNUSED void mk_put_shards(const char *folder, const mk_list *list, uint32_t shards)
{
    xl_text index = {0};
    xl_text_addf(&index, "{\"metadata\": {\"total_size\": 0}, \"weight_map\": {");
    for (uint32_t s = 0; s < shards; s++) {
        size_t first = list->n * s / shards, last = list->n * (s + 1) / shards;
        char name[64];
        snprintf(name, sizeof(name), "model-%05u-of-%05u.safetensors", s + 1, shards);
        mk_put_safetensors(folder, name, list->t + first, last - first);
        for (size_t i = first; i < last; i++) {
            xl_text_addf(&index, "%s\"%s\": \"%s\"", i > 0 ? ", " : "", list->t[i].name, name);
        }
    }
    xl_text_addf(&index, "}}");
    mk_put_file(folder, "model.safetensors.index.json", index.data, index.size);
    free(index.data);
}

/* Writes a model's files into a folder, in the form its scheme is published in. */
static MK_UNUSED void mk_put_model(const char *folder, const mk_model *model)
{
    mk_model m = mk_defaults(model);
    mk_list list = mk_build(&m);
    bool nxai = strcmp(m.scheme, "nx-ai") == 0;
    if (strcmp(m.scheme, "gguf") == 0) {
        xl_text keys = {0};
        uint64_t n = mk_gguf_keys(&keys, &m);
        mk_put_gguf(folder, "model.gguf", &keys, n, list.t, list.n);
        free(keys.data);
    } else {
        char *config = mk_config(&m);
        if (nxai) { /* a line each, without braces and quotes, is YAML */
            for (char *p = config; *p != '\0'; p++) {
                if (*p == '{' || *p == '"' || *p == '}') *p = ' ';
                if (*p == ',') *p = '\n';
            }
            xl_text yaml = {0};
            for (char *line = strtok(config, "\n"); line != NULL; line = strtok(NULL, "\n")) {
                char key[64], value[64];
                if (sscanf(line, " %63[a-z_] : %63s", key, value) == 2) xl_text_addf(&yaml, "%s: %s\n", key, value);
            }
            mk_put_file(folder, "config.yaml", yaml.data, yaml.size);
            free(yaml.data);
        } else {
            mk_put_text(folder, "config.json", config);
        }
        free(config);
        if (m.shards <= 1) {
            mk_put_safetensors(folder, "model.safetensors", list.t, list.n);
        } else if (nxai) {
            for (uint32_t s = 0; s < m.shards; s++) {
                size_t first = list.n * s / m.shards, last = list.n * (s + 1) / m.shards;
                char name[64];
                snprintf(name, sizeof(name), "model_%u.safetensors", s);
                mk_put_safetensors(folder, name, list.t + first, last - first);
            }
        } else {
            mk_put_shards(folder, &list, m.shards);
        }
    }
    mk_free(&list);
}

#endif
