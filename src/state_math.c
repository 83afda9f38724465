/*
 * state_math.c — the values inside a state: heads in and out as float32, conversion between state formats, differences
 * and weighted sums. A head's true memory is exp(m) C and exp(m) n; everything that compares or adds works on those,
 * under a common exponent so that nothing overflows. Files of tensors are left to state_tensors.c.
 */
#include "state.h"

#include <float.h>
#include <math.h>

/* ---- one row between a storage format and float64 ---------------------------------------------------------------- */

/* n values of a C row, of n or of m. float64 holds each of the formats exactly. */
static void load_row(double *out, const uint8_t *in, xlstm_dtype dtype, size_t n)
{
    float scale = 1;
    if (dtype == XLSTM_I8) memcpy(&scale, in + n, sizeof(scale));
    for (size_t i = 0; i < n; i++) {
        float single;
        uint16_t half;
        switch (dtype) {
        case XLSTM_F64: memcpy(&out[i], in + i * sizeof(double), sizeof(double)); break;
        case XLSTM_F32:
            memcpy(&single, in + i * sizeof(single), sizeof(single));
            out[i] = (double)single;
            break;
        case XLSTM_BF16:
            memcpy(&half, in + i * sizeof(half), sizeof(half));
            out[i] = (double)xl_bf16_to_f32(half);
            break;
        default: out[i] = (double)((float)(int8_t)in[i] * scale);
        }
    }
}

/* The inverse, rounded to nearest as the backends do; I8 takes its scale from the largest magnitude of the row. */
static void save_row(uint8_t *out, const double *in, xlstm_dtype dtype, size_t n)
{
    float largest = 0, inverse = 0;
    if (dtype == XLSTM_I8) {
        for (size_t i = 0; i < n; i++) {
            float a = fabsf((float)in[i]);
            if (a > largest || a != a) largest = a; /* a NaN stays and poisons the scale */
        }
        float scale = largest / 127.0f;
        if (scale > 0) inverse = 1.0f / scale;
        memcpy(out + n, &scale, sizeof(scale));
    }
    for (size_t i = 0; i < n; i++) {
        float single = (float)in[i], level = rintf(single * inverse);
        uint16_t half = xl_f32_to_bf16(single);
        switch (dtype) {
        case XLSTM_F64: memcpy(out + i * sizeof(double), &in[i], sizeof(double)); break;
        case XLSTM_F32: memcpy(out + i * sizeof(single), &single, sizeof(single)); break;
        case XLSTM_BF16: memcpy(out + i * sizeof(half), &half, sizeof(half)); break;
        default: out[i] = (uint8_t)(int8_t)(level >= -127 && level <= 127 ? level : 0);
        }
    }
}

/* Row a of a head's C (a < head_qk), its n (a == head_qk) or its m (a == head_qk + 1): where it lies and what it is. */
typedef struct row {
    size_t offset, n;
    xlstm_dtype dtype;
} row;

static row row_of(const xl_state_layout *l, uint32_t block, uint32_t head, size_t a)
{
    if (a < l->head_qk) return (row){xl_state_c_offset(l, block, head) + a * l->c_row_bytes, l->head_v, l->dtype};
    if (a == l->head_qk) return (row){xl_state_n_offset(l, block, head), l->head_qk, l->n_dtype};
    return (row){xl_state_m_offset(l, block, head), 1, l->m_dtype};
}

static void get_row(double *out, const xlstm_state *s, uint32_t block, uint32_t head, size_t a)
{
    row r = row_of(&s->layout, block, head, a);
    load_row(out, s->bytes + r.offset, r.dtype, r.n);
}

static void put_row(xlstm_state *s, uint32_t block, uint32_t head, size_t a, const double *in)
{
    row r = row_of(&s->layout, block, head, a);
    save_row(s->memory + r.offset, in, r.dtype, r.n);
}

/* Room for the longest row, `rows` times. */
static double *row_buffers(const xl_state_layout *l, size_t rows, xlstm_error *err)
{
    return xl_calloc(rows * XL_MAX(l->head_v, l->head_qk), sizeof(double), err);
}

/* ---- heads and formats ------------------------------------------------------------------------------------------ */

static int check_head(const xl_state_layout *l, uint32_t block, uint32_t head, xlstm_error *err)
{
    if (block < l->num_blocks && head < l->num_heads) return XLSTM_OK;
    return xl_fail(err, XLSTM_E_ARGUMENT, "block %u, head %u: expected below %u and %u", block, head, l->num_blocks,
                   l->num_heads);
}

int xlstm_state_read_head(const xlstm_state *s, uint32_t block, uint32_t head, float *C, float *n, float *m,
                          xlstm_error *err)
{
    const xl_state_layout *l = &s->layout;
    int result = check_head(l, block, head, err);
    if (result != XLSTM_OK) return result;
    double *values = row_buffers(l, 1, err);
    if (values == NULL) return XLSTM_E_MEMORY;
    for (size_t a = 0; a < (size_t)l->head_qk + 2; a++) {
        float *out = a < l->head_qk ? C : a == l->head_qk ? n : m;
        if (out == NULL) continue;
        if (a < l->head_qk) out += a * l->head_v;
        get_row(values, s, block, head, a);
        for (size_t i = 0; i < row_of(l, block, head, a).n; i++) out[i] = (float)values[i];
    }
    xl_release(values);
    return XLSTM_OK;
}

int xlstm_state_write_head(xlstm_state *s, uint32_t block, uint32_t head, const float *C, const float *n,
                           const float *m, xlstm_error *err)
{
    const xl_state_layout *l = &s->layout;
    int result = check_head(l, block, head, err);
    if (result != XLSTM_OK) return result;
    if (s->memory == NULL) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "a state that was loaded from a file is read-only; copy it first");
    }
    double *values = row_buffers(l, 1, err);
    if (values == NULL) return XLSTM_E_MEMORY;
    for (size_t a = 0; a < (size_t)l->head_qk + 2; a++) {
        const float *in = a < l->head_qk ? C : a == l->head_qk ? n : m;
        if (in == NULL) continue;
        if (a < l->head_qk) in += a * l->head_v;
        for (size_t i = 0; i < row_of(l, block, head, a).n; i++) values[i] = (double)in[i];
        put_row(s, block, head, a, values);
    }
    xl_release(values);
    s->logits = NULL;
    return XLSTM_OK;
}

/* Calls for every head of a state: for (block, head) ... */
#define EACH_HEAD(l, b, h)                              \
    for (uint32_t b = 0; b < (l)->num_blocks; b++)      \
        for (uint32_t h = 0; h < (l)->num_heads; h++)

int xlstm_state_convert(xlstm_state **out, const xlstm_state *state, xlstm_dtype dtype, xlstm_error *err)
{
    if (dtype == state->layout.dtype) return xlstm_state_copy(out, state, err);
    xlstm_state *s;
    *out = NULL;
    int result = xl_state_like(&s, state, dtype, state->logits != NULL, err);
    if (result != XLSTM_OK) return result;
    double *values = row_buffers(&s->layout, 1, err);
    if (values == NULL) {
        xlstm_state_free(s);
        return XLSTM_E_MEMORY;
    }
    memset(s->memory, 0, s->layout.total_bytes);
    EACH_HEAD(&s->layout, b, h) {
        for (size_t a = 0; a < (size_t)s->layout.head_qk + 2; a++) {
            get_row(values, state, b, h, a);
            put_row(s, b, h, a, values);
        }
    }
    xl_release(values);
    *out = s;
    return XLSTM_OK;
}

/* ---- differences and sums --------------------------------------------------------------------------------------- */

static int check_alike(const xlstm_state *a, const xlstm_state *b, size_t index, xlstm_error *err)
{
    const xl_state_layout *x = &a->layout, *y = &b->layout;
    if (x->num_blocks != y->num_blocks || x->num_heads != y->num_heads || x->head_qk != y->head_qk ||
        x->head_v != y->head_v) {
        return xl_fail(err, XLSTM_E_MISMATCH, "state %zu has %u blocks, %u heads of %u x %u; the first has %u, %u of %u x %u",
                       index + 1, y->num_blocks, y->num_heads, y->head_qk, y->head_v, x->num_blocks, x->num_heads,
                       x->head_qk, x->head_v);
    }
    if (a->fingerprint != b->fingerprint) {
        return xl_fail(err, XLSTM_E_MISMATCH, "state %zu is of another model: fingerprint %016llx, the first has %016llx",
                       index + 1, (unsigned long long)b->fingerprint, (unsigned long long)a->fingerprint);
    }
    return XLSTM_OK;
}

int xlstm_state_diff(xlstm_head_difference *out, const xlstm_state *first, const xlstm_state *second, xlstm_error *err)
{
    const xl_state_layout *l = &first->layout;
    int result = check_alike(first, second, 1, err);
    if (result != XLSTM_OK) return result;
    double *x = row_buffers(l, 2, err), *y = x != NULL ? x + XL_MAX(l->head_v, l->head_qk) : NULL;
    if (x == NULL) return XLSTM_E_MEMORY;
    EACH_HEAD(l, b, h) {
        double mx, my;
        get_row(&mx, first, b, h, (size_t)l->head_qk + 1);
        get_row(&my, second, b, h, (size_t)l->head_qk + 1);
        xlstm_head_difference d = {.log_scale = fmax(mx, my)};
        double fx = exp(mx - d.log_scale), fy = exp(my - d.log_scale);
        for (size_t a = 0; a <= l->head_qk; a++) {
            double xx = 0, yy = 0, between = 0;
            get_row(x, first, b, h, a);
            get_row(y, second, b, h, a);
            for (size_t i = 0; i < row_of(l, b, h, a).n; i++) {
                double u = fx * x[i], v = fy * y[i];
                xx += u * u;
                yy += v * v;
                between += (u - v) * (u - v);
            }
            bool is_n = a == l->head_qk;
            *(is_n ? &d.n_first : &d.C_first) += xx;
            *(is_n ? &d.n_second : &d.C_second) += yy;
            *(is_n ? &d.n_between : &d.C_between) += between;
        }
        double *norms[] = {&d.C_first, &d.C_second, &d.C_between, &d.n_first, &d.n_second, &d.n_between};
        for (size_t i = 0; i < XL_COUNT(norms); i++) *norms[i] = sqrt(*norms[i]);
        out[b * l->num_heads + h] = d;
    }
    xl_release(x);
    return XLSTM_OK;
}

/* One head of the weighted sum; false if a value of it cannot be held. factor [n]: weights[i] exp(m_i - m), m the largest m_i
 * that counts. */
static bool mix_head(xlstm_state *out, const xlstm_state *const *states, const double *weights, size_t n, uint32_t b,
                     uint32_t h, double *factor, double *in, double *sum)
{
    const xl_state_layout *l = &out->layout;
    double m = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        get_row(&factor[i], states[i], b, h, (size_t)l->head_qk + 1);
        if (weights[i] != 0 && !(factor[i] <= m)) m = factor[i];
    }
    if (m == -INFINITY) m = 0; /* all weights are zero */
    const double most = l->dtype == XLSTM_F64 ? DBL_MAX : FLT_MAX;
    bool fits = true;
    for (size_t i = 0; i < n; i++) factor[i] = weights[i] != 0 ? weights[i] * exp(factor[i] - m) : 0;
    for (size_t a = 0; a <= l->head_qk; a++) {
        size_t width = row_of(l, b, h, a).n;
        for (size_t j = 0; j < width; j++) sum[j] = 0;
        for (size_t i = 0; i < n; i++) {
            if (factor[i] == 0) continue;
            get_row(in, states[i], b, h, a);
            for (size_t j = 0; j < width; j++) sum[j] += factor[i] * in[j];
        }
        for (size_t j = 0; j < width; j++) fits = fits && fabs(sum[j]) <= most;
        put_row(out, b, h, a, sum);
    }
    put_row(out, b, h, (size_t)l->head_qk + 1, &m);
    return fits;
}

int xlstm_state_mix(xlstm_state **out, const xlstm_state *const *states, const double *weights, size_t n,
                    xlstm_error *err)
{
    *out = NULL;
    if (n == 0) return xl_fail(err, XLSTM_E_ARGUMENT, "no states to mix: expected at least one");
    const xl_state_layout *l = &states[0]->layout;
    for (size_t i = 0; i < n; i++) {
        int result = check_alike(states[0], states[i], i, err);
        if (result != XLSTM_OK) return result;
        if (!isfinite(weights[i])) return xl_fail(err, XLSTM_E_ARGUMENT, "weight %zu is not finite", i + 1);
    }
    xlstm_state *s;
    int result = xl_state_like(&s, states[0], l->dtype, false, err);
    if (result != XLSTM_OK) return result;
    size_t width = XL_MAX(l->head_v, l->head_qk);
    double *buffers = row_buffers(l, 2, err), *factor = xl_calloc(n, sizeof(double), err);
    if (buffers == NULL || factor == NULL) {
        xl_release(buffers);
        xl_release(factor);
        xlstm_state_free(s);
        return XLSTM_E_MEMORY;
    }
    memset(s->memory, 0, s->layout.total_bytes);
    bool fits = true;
    EACH_HEAD(l, b, h) fits = mix_head(s, states, weights, n, b, h, factor, buffers, buffers + width) && fits;
    /* No text leads here, so the hash must be none's. */
    for (size_t i = 0; i < n; i++) {
        uint64_t part[2] = {states[i]->token_hash, 0};
        memcpy(&part[1], &weights[i], sizeof(part[1]));
        s->token_hash = xl_hash(part, sizeof(part), s->token_hash);
    }
    s->note[0] = '\0';
    xl_release(buffers);
    xl_release(factor);
    if (!fits) {
        xlstm_state_free(s);
        return xl_fail(err, XLSTM_E_ARGUMENT, "the sum has values beyond %s: expected smaller weights", xlstm_dtype_name(l->dtype));
    }
    *out = s;
    return XLSTM_OK;
}
