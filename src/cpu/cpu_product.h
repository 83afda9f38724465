/*
 * cpu_product.h — matrix products of one instruction set, included once by its file after cpu_vec.h.
 *   NV   vectors in a full panel (panel = NV * VW weight rows)
 *   MR   most activation rows in a tile
 * A panel holds its weight rows side by side, K-major, so that a decode step reads one contiguous stream and never adds
 * across lanes, and a prefill tile keeps MR x NV sums in registers:
 *   F32   [K][width]        F16   [K][width]        BF16   [K/2][width][2], odd K padded with a zero
 */
#include "cpu_vec.h"

enum { PANEL = NV * VW };

typedef enum weight_kind { WEIGHT_F32, WEIGHT_F16, WEIGHT_BF16 } weight_kind;

INLINE void tile_block(tile *b, int mr, int nv, weight_kind kind)
{
    /* a step has two values of K in bfloat16, else one; a single row takes several steps at once */
    const size_t values = kind == WEIGHT_BF16 ? 2 : 1, step = (size_t)nv * VW * (kind == WEIGHT_F16 ? 2 : 4);
    const size_t steps = mr == 1 ? 4 : 1;
    const uint8_t *w = b->w;
    const float *x = b->x;
    V sum[MR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) sum[r][v] = (V){0};
    for (size_t k = 0; k < b->span; k += values * steps) {
        if (mr > 1) {
            fetch_some(&b->ahead);
            fetch_rows(b, k * (size_t)mr * 4, values * (size_t)mr * 4);
        }
        UNROLL for (size_t i = 0; i < steps; i++, w += step, x += values * (size_t)mr) {
            if (i > 0 && k + values * i >= b->span) break;
            if (mr == 1) fetch_step(&b->ahead, k / values * step, steps * step, i, steps, false);
            VU pair[NV];
            V row[NV];
            UNROLL for (int v = 0; v < nv; v++) {
                const uint8_t *at = w + (size_t)v * VW * (kind == WEIGHT_F16 ? 2 : 4);
                if (kind != WEIGHT_F16) pair[v] = u_load(at);
                row[v] = kind == WEIGHT_F16 ? v_load_f16(at) : (V)(kind == WEIGHT_BF16 ? pair[v] << 16 : pair[v]);
            }
            UNROLL for (int r = 0; r < mr; r++) {
                V a = v_all(x[r]);
                UNROLL for (int v = 0; v < nv; v++) sum[r][v] = FMA(a, row[v], sum[r][v]);
            }
            if (kind != WEIGHT_BF16) continue;
            UNROLL for (int r = 0; r < mr; r++) {
                V a = v_all(x[mr + r]);
                UNROLL for (int v = 0; v < nv; v++) sum[r][v] = FMA(a, (V)(pair[v] & 0xffff0000u), sum[r][v]);
            }
        }
    }
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) {
            float *at = b->out + r * PANEL + v * VW;
            v_store(at, b->k == 0 ? sum[r][v] : v_load(at) + sum[r][v]);
        }
}

#define TILE_CASE(n) \
    case n: \
        if (n <= MR && b->wide) tile_block(b, n <= MR ? n : MR, NV, kind); \
        if (n <= MR && !b->wide) tile_block(b, n <= MR ? n : MR, 1, kind); \
        break;
INLINE void multiply_kind(tile *b, weight_kind kind)
{
    switch (b->rows) {
        TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) TILE_CASE(4) TILE_CASE(5) TILE_CASE(6) TILE_CASE(7) TILE_CASE(8)
        TILE_CASE(9) TILE_CASE(10) TILE_CASE(11) TILE_CASE(12)
    default: break;
    }
}

INLINE void multiply_f32(tile *b, void *context) { (void)context; multiply_kind(b, WEIGHT_F32); }
INLINE void multiply_f16(tile *b, void *context) { (void)context; multiply_kind(b, WEIGHT_F16); }
INLINE void multiply_bf16(tile *b, void *context) { (void)context; multiply_kind(b, WEIGHT_BF16); }

/* Activations are padded to an even K (pack_f32); panels only where two values of K share a place. */
INLINE walk_sizes plain_sizes(size_t K, weight_kind kind)
{
    return (walk_sizes){.w_256 = kind == WEIGHT_F32 ? 1024 : 512, .x_256 = 1024, .x_row = (K + (K & 1)) * 4,
                        .most_rows = MR, .steps_32 = kind == WEIGHT_BF16 ? 16 : 32};
}

static void product_f32(float *out, const xl_cpu_panels *w, const void *x, uint32_t rows, size_t K)
{
    walk(out, w, x, rows, K, PANEL, plain_sizes(K, WEIGHT_F32), prepare_nothing, multiply_f32, NULL);
}

static void product_f16(float *out, const xl_cpu_panels *w, const void *x, uint32_t rows, size_t K)
{
    walk(out, w, x, rows, K, PANEL, plain_sizes(K, WEIGHT_F16), prepare_nothing, multiply_f16, NULL);
}

static void product_bf16(float *out, const xl_cpu_panels *w, const void *x, uint32_t rows, size_t K)
{
    walk(out, w, x, rows, K + (K & 1), PANEL, plain_sizes(K, WEIGHT_BF16), prepare_nothing, multiply_bf16, NULL);
}

/* ---- packing ---------------------------------------------------------------------------------------------------- */

/* [K rounded up to 2][rows] */
static void pack_f32(void *out, const float *x, size_t x_row, uint32_t rows, size_t K)
{
    float *o = out;
    if (rows == 1) memcpy(o, x, K * sizeof *o);
    for (uint32_t r = 0; r < rows; r++) {
        const float *in = x + r * x_row;
        for (size_t k = 0; rows > 1 && k < K; k++) o[k * rows + r] = in[k];
        if (K & 1) o[K * rows + r] = 0;
    }
}

/* [K rounded up to 2 / 2][rows][2] */
static void pack_bf16(void *out, const float *x, size_t x_row, uint32_t rows, size_t K)
{
    uint32_t *o = out;
    for (uint32_t r = 0; r < rows; r++)
        for (size_t k = 0; k < K; k += 2 * VW) {
            uint32_t pair[VW];
            for (size_t i = 0; i < 2; i++) {
                V v = k + i * VW < K ? v_get(x + r * x_row, k + i * VW, K) : (V){0};
                u_store16((uint16_t *)(void *)pair + i * VW, v_to_bf16(v));
            }
            size_t n = XL_MIN((K - k + 1) / 2, (size_t)VW);
            for (size_t i = 0; i < n; i++) o[(k / 2 + i) * rows + r] = pair[i];
        }
}

/* ---- rows in place ---------------------------------------------------------------------------------------------- */

/* K split over four vectors that are added at the end in a fixed order; the tail goes to the first. */
INLINE V weights_at(const uint8_t *w, size_t k, size_t n, xlstm_dtype dtype)
{
    if (n == VW) {
        if (dtype == XLSTM_F32) return (V)u_load(w + 4 * k);
        return dtype == XLSTM_BF16 ? v_from_bf16(u_load16(w + 2 * k)) : v_load_f16(w + 2 * k);
    }
    uint8_t part[4 * VW] = {0};
    memcpy(part, w + k * (dtype == XLSTM_F32 ? 4 : 2), n * (dtype == XLSTM_F32 ? 4 : 2));
    if (dtype == XLSTM_F32) return (V)u_load(part);
    return dtype == XLSTM_BF16 ? v_from_bf16(u_load16(part)) : v_load_f16(part);
}

INLINE void dots_rows(float *out, size_t out_row, const uint8_t *w, xlstm_dtype dtype, const float *x, size_t x_row,
                      int rows, size_t K)
{
    V sum[2][4];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int a = 0; a < 4; a++) sum[r][a] = (V){0};
    size_t k = 0;
    for (; k + 4 * VW <= K; k += 4 * VW)
        UNROLL for (int a = 0; a < 4; a++) {
            V weight = weights_at(w, k + (size_t)a * VW, VW, dtype);
            UNROLL for (int r = 0; r < rows; r++)
                sum[r][a] = FMA(v_load(x + (size_t)r * x_row + k + (size_t)a * VW), weight, sum[r][a]);
        }
    for (; k < K; k += VW) {
        size_t n = XL_MIN(K - k, (size_t)VW);
        V weight = weights_at(w, k, n, dtype);
        UNROLL for (int r = 0; r < rows; r++) sum[r][0] = FMA(v_get(x + (size_t)r * x_row, k, K), weight, sum[r][0]);
    }
    UNROLL for (int r = 0; r < rows; r++)
        out[(size_t)r * out_row] = v_sum((sum[r][0] + sum[r][1]) + (sum[r][2] + sum[r][3]));
}

INLINE void dots_all(float *out, size_t out_row, const uint8_t *w, xlstm_dtype dtype, const float *x, size_t x_row,
                     uint32_t rows, size_t K)
{
    uint32_t r = 0;
    for (; r + 2 <= rows; r += 2) dots_rows(out + r * out_row, out_row, w, dtype, x + r * x_row, x_row, 2, K);
    if (r < rows) dots_rows(out + r * out_row, out_row, w, dtype, x + r * x_row, x_row, 1, K);
}

static void dots(float *out, size_t out_row, const void *w, xlstm_dtype dtype, const float *x, size_t x_row,
                 uint32_t rows, size_t K, float *scratch)
{
    switch (dtype) {
    case XLSTM_F32:
        dots_all(out, out_row, w, XLSTM_F32, x, x_row, rows, K);
        break;
    case XLSTM_BF16:
        dots_all(out, out_row, w, XLSTM_BF16, x, x_row, rows, K);
        break;
    case XLSTM_F16:
        dots_all(out, out_row, w, XLSTM_F16, x, x_row, rows, K);
        break;
    default:
        xl_decode_row(scratch, w, dtype, K);
        dots_all(out, out_row, (const uint8_t *)scratch, XLSTM_F32, x, x_row, rows, K);
    }
}

/* ---- the way out ------------------------------------------------------------------------------------------------ */

INLINE void finish_vector(const xl_cpu_results *r, float *out, const float *sum, size_t i, size_t n, bool add, xlstm_dtype round)
{
    V y = v_get(sum, 0, n);
    if (r->bias) y += v_get(r->bias + i, 0, n);
    y = v_round_to(y, round);
    if (add) y = v_round_to(v_get(out + i, 0, n) + y, round);
    v_put(out + i, y, 0, n);
}

INLINE void finish_as(const xl_cpu_results *r, bool add, xlstm_dtype round)
{
    enum { AHEAD = 8 }; /* rows whose places are fetched: they lie a row of `out` apart */
    const size_t whole = r->n / VW * VW, next = (size_t)r->rows * r->width;
    for (uint32_t row = 0; row < r->rows; row++) {
        float *out = r->out + row * r->out_row;
        const float *sums = r->sums + (size_t)row * r->width;
        for (size_t i = 0; i < r->n && row + AHEAD < r->rows; i += 16) __builtin_prefetch(out + AHEAD * r->out_row + i, 1);
        for (size_t first = 0; first < whole; first += r->width, sums += next)
            for (size_t i = first; i < XL_MIN(whole, first + r->width); i += VW)
                finish_vector(r, out, sums + (i - first), i, VW, add, round);
    }
    if (whole == r->n) return;
    const float *sums = r->sums + whole / r->width * next + whole % r->width;
    for (uint32_t row = 0; row < r->rows; row++, sums += r->width)
        finish_vector(r, r->out + row * r->out_row, sums, whole, r->n - whole, add, round);
}

static void finish(const xl_cpu_results *r)
{
    /* constants for what every vector would ask */
    if (r->round == XLSTM_BF16 && r->add)
        finish_as(r, true, XLSTM_BF16);
    else if (r->round == XLSTM_BF16)
        finish_as(r, false, XLSTM_BF16);
    else
        finish_as(r, r->add, r->round);
}
