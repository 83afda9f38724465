/*
 * weights_preset.c — models that exist only in memory: the geometry of known sizes with random weights, for benchmarks
 * and tests that must not download anything. "7b", or "7b:q4_k" to choose the storage format (default bf16).
 *
 * Values follow the published initialisation in scale (small-init normal, output projections shrunk by depth, forget
 * biases from 3 to 6), with gates alive enough for heads to differ. A tensor is made when it is first asked for, from a
 * counter-based generator keyed by its name: the same bytes every time, in any order.
 */
#include "weights_internal.h"

#include <math.h>

typedef struct geometry {
    const char *name;
    uint32_t vocab, dim, blocks, heads, qk, v, ffn;
    bool tied;
} geometry;

/* 7b is the published model. The others keep its proportions: Qd = D/2, Vd = D, F = 2.667 D by the reference's rounding,
 * value heads of 512, 256 and 192. 125m shares its embedding with the head, as models of that size do. */
static const geometry geometries[] = {
    {"7b", 50304, 4096, 32, 8, 2048, 4096, 10944, false},
    {"1b", 50304, 2048, 16, 4, 1024, 2048, 5504, false},
    {"410m", 50304, 1024, 24, 4, 512, 1024, 2752, false},
    {"125m", 50304, 768, 12, 4, 384, 768, 2048, true},
    {"tiny", 512, 256, 2, 4, 128, 256, 704, false},
};

enum { LEVELS = 4096 }; /* distinct values in a random tensor of a plain format */

typedef struct preset {
    geometry g;
    xlstm_dtype dtype;
    float quantile[LEVELS]; /* of the standard normal distribution, ascending */
} preset;

/* ---- values ----------------------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* By bisection on erf: 4096 times 40 steps is nothing. */
static void fill_quantiles(float out[LEVELS])
{
    for (int i = 0; i < LEVELS; i++) {
        double p = (i + 0.5) / LEVELS, low = -5, high = 5;
        for (int step = 0; step < 40; step++) {
            double middle = (low + high) / 2;
            if (0.5 * erfc(-middle / sqrt(2)) < p) {
                low = middle;
            } else {
                high = middle;
            }
        }
        out[i] = (float)low;
    }
}

/* mean + scale * normal; four elements a draw. */
static void fill_plain(const preset *p, void *out, xlstm_dtype dtype, size_t n, float mean, float scale, uint64_t key)
{
    float *f = out;
    uint16_t *h = out, table16[LEVELS];
    float table[LEVELS];
    for (int i = 0; i < LEVELS; i++) {
        table[i] = mean + scale * p->quantile[i];
        table16[i] = dtype == XLSTM_F16 ? xl_f32_to_f16(table[i]) : xl_f32_to_bf16(table[i]);
    }
    for (size_t i = 0; i < n; i += 4) {
        uint64_t r = mix(key + i);
        for (size_t j = i; j < XL_MIN(i + 4, n); j++, r >>= 16) {
            if (dtype == XLSTM_F32) {
                f[j] = table[r % LEVELS];
            } else {
                h[j] = table16[r % LEVELS];
            }
        }
    }
}

static void put_half(uint8_t *out, float x)
{
    uint16_t h = xl_f32_to_f16(x);
    memcpy(out, &h, 2);
}

/* Blocks with random digits and the scales that give the wanted standard deviation: uniform digits of 4, 5, 6 and 8 bits
 * deviate by 4.61, 9.23, 18.5 and 73.9 steps. The 6-bit group scales and minima of Q4_K and Q5_K are all 48: bytes 0xf0
 * eight times, then zeros. */
static void fill_blocks(uint8_t *out, xlstm_dtype dtype, size_t bytes, float scale, uint64_t key)
{
    size_t block = xl_dtype_get(dtype)->block_bytes;
    for (size_t i = 0; i < bytes / 8; i++) {
        uint64_t r = mix(key + i);
        memcpy(out + 8 * i, &r, 8);
    }
    for (size_t i = bytes / 8 * 8; i < bytes; i++) out[i] = (uint8_t)mix(key + i);
    for (uint8_t *b = out; b < out + bytes; b += block) {
        float d = (b[block - 3] & 1) != 0 ? scale : -scale; /* half a step off centre cancels over many blocks */
        switch (dtype) {
        case XLSTM_Q8_0: put_half(b, d / 73.9f); break;
        case XLSTM_Q4_0: put_half(b, d / 4.61f); break;
        case XLSTM_Q4_K:
        case XLSTM_Q5_K:
            put_half(b, scale / (dtype == XLSTM_Q4_K ? 4.61f : 9.23f) / 48);
            put_half(b + 2, scale / (dtype == XLSTM_Q4_K ? 4.61f / 7.5f : 9.23f / 15.5f) / 48);
            memset(b + 4, 0xf0, 8);
            memset(b + 12, 0, 4);
            break;
        default: /* Q6_K */
            memset(b + 192, 48, 16);
            put_half(b + 208, d / 18.5f / 48);
            break;
        }
    }
}

static bool contains(const char *name, const char *part) { return strstr(name, part) != NULL; }

/* Bias of the gates: rising from head to head, so that heads remember for different times. */
static void fill_gate_bias(void *out, const xl_tensor *t, float first, float last)
{
    for (uint64_t i = 0; i < t->shape[0]; i++) {
        float x = t->shape[0] > 1 ? first + (last - first) * (float)i / (float)(t->shape[0] - 1) : first;
        xl_encode_row((uint8_t *)out + i * xl_dtype_get(t->dtype)->block_bytes, &x, t->dtype, 1);
    }
}

static void make_tensor(void *state, const xl_tensor *t, void *out)
{
    const preset *p = state;
    uint64_t key = xl_hash(t->name, strlen(t->name), 1);
    size_t n = t->rank == 2 ? (size_t)(t->shape[0] * t->shape[1]) : (size_t)t->shape[0];
    float width = (float)p->g.dim, mean = 0, scale = sqrtf(2 / (5 * width));
    if (contains(t->name, "gate_preact.bias")) {
        if (contains(t->name, "igate")) {
            fill_gate_bias(out, t, -10, -4);
        } else {
            fill_gate_bias(out, t, 3, 6);
        }
        return;
    }
    if (contains(t->name, "norm")) {
        mean = 1;
        scale = 0.05f;
    } else if (contains(t->name, "igate")) {
        scale = 1.5f / sqrtf(width); /* the input is normalised: a standard deviation of 1.5 */
    } else if (contains(t->name, "fgate")) {
        scale = 0.5f / sqrtf(width);
    } else if (contains(t->name, "out_proj") || contains(t->name, "proj_down")) {
        scale = 2 / ((float)p->g.blocks * sqrtf((float)t->shape[1]));
    }
    if (xl_dtype_get(t->dtype)->block > 1) {
        fill_blocks(out, t->dtype, t->bytes, scale, key);
    } else {
        fill_plain(p, out, t->dtype, n, mean, scale, key);
    }
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* Storage of a matrix whose rows have n elements: rows that are no multiple of 256 cannot be K-quantised and take the
 * nearest format with blocks of 32. */
static xlstm_dtype row_dtype(xlstm_dtype dtype, uint64_t n)
{
    if (n % xl_dtype_get(dtype)->block == 0) return dtype;
    return dtype == XLSTM_Q4_K ? XLSTM_Q4_0 : XLSTM_Q8_0;
}

/* cols 0: a vector. Norms and gates stay float32 beside block formats. */
static int add(xl_weights *w, const preset *p, const char *name, uint64_t rows, uint64_t cols, xlstm_error *err)
{
    bool plain = xl_dtype_get(p->dtype)->block == 1, small = cols == 0 || contains(name, "igate") ||
                                                             contains(name, "fgate");
    xl_tensor t = {.rank = cols > 0 ? 2 : 1, .shape = {rows, cols}};
    t.dtype = plain ? p->dtype : small ? XLSTM_F32 : row_dtype(p->dtype, cols);
    t.type = xlstm_dtype_name(t.dtype);
    size_t row_bytes = 0;
    if (!xl_dtype_row_bytes(&row_bytes, t.dtype, cols > 0 ? cols : rows) ||
        !xl_mul(&t.bytes, row_bytes, cols > 0 ? rows : 1)) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "preset:%s: '%s' cannot be stored as %s", p->g.name, name, t.type);
    }
    return xl_weights_add(w, name, strlen(name), &t, err);
}

static int add_all(xl_weights *w, const preset *p, xlstm_error *err)
{
    const geometry *g = &p->g;
    const struct {
        const char *name;
        uint64_t rows, cols;
    } parts[] = {
        {"norm_mlstm.weight", g->dim, 0},
        {"mlstm_layer.q.weight", g->qk, g->dim},
        {"mlstm_layer.k.weight", g->qk, g->dim},
        {"mlstm_layer.v.weight", g->v, g->dim},
        {"mlstm_layer.ogate_preact.weight", g->v, g->dim},
        {"mlstm_layer.igate_preact.weight", g->heads, g->dim},
        {"mlstm_layer.igate_preact.bias", g->heads, 0},
        {"mlstm_layer.fgate_preact.weight", g->heads, g->dim},
        {"mlstm_layer.fgate_preact.bias", g->heads, 0},
        {"mlstm_layer.multihead_norm.weight", g->v, 0},
        {"mlstm_layer.out_proj.weight", g->dim, g->v},
        {"norm_ffn.weight", g->dim, 0},
        {"ffn.proj_up_gate.weight", g->ffn, g->dim},
        {"ffn.proj_up.weight", g->ffn, g->dim},
        {"ffn.proj_down.weight", g->dim, g->ffn},
    };
    int result = add(w, p, "backbone.embeddings.weight", g->vocab, g->dim, err);
    for (uint32_t b = 0; b < g->blocks; b++) {
        for (size_t i = 0; i < XL_COUNT(parts) && result == XLSTM_OK; i++) {
            char name[128];
            snprintf(name, sizeof(name), "backbone.blocks.%u.%s", b, parts[i].name);
            result = add(w, p, name, parts[i].rows, parts[i].cols, err);
        }
    }
    if (result == XLSTM_OK) result = add(w, p, "backbone.out_norm.weight", g->dim, 0, err);
    if (result == XLSTM_OK && !g->tied) result = add(w, p, "lm_head.weight", g->vocab, g->dim, err);
    return result;
}

int xl_preset_open(xl_weights *w, const char *name, xlstm_error *err)
{
    const char *colon = strchr(name, ':');
    size_t n = colon != NULL ? (size_t)(colon - name) : strlen(name), k = 0;
    while (k < XL_COUNT(geometries) && !(strlen(geometries[k].name) == n && memcmp(geometries[k].name, name, n) == 0)) k++;
    if (k == XL_COUNT(geometries)) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "preset:%.80s: expected preset:7b, 1b, 410m, 125m or tiny, and a format "
                       "after another colon if wanted (preset:7b:q4_k)", name);
    }
    xlstm_dtype dtype = XLSTM_BF16;
    if (colon != NULL) {
        int result = xlstm_dtype_parse(&dtype, colon + 1, err);
        if (result != XLSTM_OK) return result;
    }
    if (dtype == XLSTM_DTYPE_DEFAULT || dtype == XLSTM_F64 || dtype == XLSTM_I8) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "preset:%.80s: %s is no format for weights", name, xlstm_dtype_name(dtype));
    }
    preset *p = xl_alloc(sizeof(*p), err);
    if (p == NULL) return XLSTM_E_MEMORY;
    p->g = geometries[k];
    p->dtype = dtype;
    fill_quantiles(p->quantile);
    w->make = make_tensor;
    w->make_state = p;
    snprintf(w->format, sizeof(w->format), "preset");
    w->config = xl_printf(err,
                          "{\"model_type\": \"xlstm\", \"embedding_dim\": %u, \"num_blocks\": %u, \"num_heads\": %u, "
                          "\"vocab_size\": %u, \"tie_word_embeddings\": %s, \"chunk_size\": 64, \"norm_eps\": 1e-6, "
                          "\"eps\": 1e-6, \"gate_soft_cap\": 15.0, \"output_logit_soft_cap\": 30.0, "
                          "\"inference_state_dtype\": \"float32\", \"norm_reduction_force_float32\": true}",
                          p->g.dim, p->g.blocks, p->g.heads, p->g.vocab, p->g.tied ? "true" : "false");
    return w->config != NULL ? add_all(w, p, err) : XLSTM_E_MEMORY;
}
