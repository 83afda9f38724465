/*
 * cpu_quant.h — products with weights in ggml block formats, included once by an instruction set's file after cpu_vec.h.
 *   DOT4(sum, w, x)     sum + four products a lane: w unsigned bytes below 128, x signed bytes
 *   DOT4_Q8(sum, w, x)  the same for bytes that mean w - 128, except for Q8_BIAS times the sum of x
 *   Q8_BIAS             128 where DOT4_Q8 leaves the offset to the caller, else 0
 *   QR                  most activation rows in a tile
 * Activations are held in int8 with a scale for 32 of them. Panels (W weight rows side by side):
 *   Q8_0   for 32 values:  f16 d [W], bytes q + 128 [8][W][4]
 *   Q4_0   for 32 values:  f16 d [W], [4][W][4] bytes as they come (value k low, k + 16 high)
 *   Q4_K   for 256 values: f16 d [W], dmin [W], bytes sc [8][W], mn [8][W], [4][8][W][4] bytes as they come
 *   Q5_K   the same with the fifth bits [8][W][4] before the nibbles
 *   Q6_K   for 256 values: f16 d [W], int8 sc [16][W], [2][8] x { upper bits [W][4], low nibbles [2][W][4] }
 * A block of up to 256 values is first spread into bytes and float32 scales in the first-level cache, once for all
 * activation rows; then one kernel serves every format.
 */
#include "cpu_vec.h"

typedef enum quant_kind {
    QUANT_Q8,   /* bytes mean q - 128 */
    QUANT_Q4,   /* q - 8 */
    QUANT_MIN,  /* scale q - min */
    QUANT_HALF, /* q - 32, a scale for 16 values */
} quant_kind;

/* Up to 256 values of K of one panel, ready to multiply. */
typedef struct spread {
    _Alignas(64) uint8_t bytes[8][8][NV * VW][4];
    _Alignas(64) float scale[16][NV * VW];
    _Alignas(64) float min[8][NV * VW];
    const uint8_t *at; /* bytes of the first 32 values: above, or in the panel */
    size_t stride;     /* to the next 32 */
    size_t row;        /* weight rows side by side there */
} spread;

/* ---- spreading -------------------------------------------------------------------------------------------------- */

INLINE void put_bytes(spread *s, int block, int group, int v, VU w) { memcpy(s->bytes[block][group][v * VW], &w, sizeof w); }

INLINE void spread_q8_0(spread *s, const uint8_t *p, int blocks, size_t width, int nv)
{
    for (int b = 0; b < blocks; b++)
        for (int v = 0; v < nv; v++) v_store(&s->scale[b][v * VW], v_load_f16(p + (size_t)b * width * 34 + v * VW * 2));
    s->at = p + width * 2;
    s->stride = width * 34;
    s->row = width;
}

INLINE void spread_q4_0(spread *s, const uint8_t *p, int blocks, size_t width, int nv)
{
    for (int b = 0; b < blocks; b++, p += width * 18)
        for (int v = 0; v < nv; v++) {
            v_store(&s->scale[b][v * VW], v_load_f16(p + v * VW * 2));
            for (int g = 0; g < 4; g++) {
                VU w = u_load(p + width * 2 + ((size_t)g * width + (size_t)v * VW) * 4);
                put_bytes(s, b, g, v, w & 0x0f0f0f0fu);
                put_bytes(s, b, g + 4, v, w >> 4 & 0x0f0f0f0fu);
            }
        }
    s->at = s->bytes[0][0][0];
    s->stride = sizeof s->bytes[0];
    s->row = NV * VW;
}

INLINE void spread_q45_k(spread *s, const uint8_t *p, size_t width, int nv, bool five)
{
    const uint8_t *scales = p + width * 4, *mins = scales + width * 8, *high = mins + width * 8;
    const uint8_t *nibbles = high + (five ? width * 32 : 0);
    for (int v = 0; v < nv; v++) {
        size_t lane = (size_t)v * VW;
        V d = v_load_f16(p + lane * 2), dmin = v_load_f16(p + width * 2 + lane * 2);
        for (int b = 0; b < 8; b++) {
            v_store(&s->scale[b][lane], d * v_load_u8(scales + (size_t)b * width + lane));
            v_store(&s->min[b][lane], dmin * v_load_u8(mins + (size_t)b * width + lane));
        }
    }
    for (int c = 0; c < 4; c++)
        for (int g = 0; g < 8; g++)
            for (int v = 0; v < nv; v++) {
                VU w = u_load(nibbles + ((size_t)(c * 8 + g) * width + (size_t)v * VW) * 4);
                VU low = w & 0x0f0f0f0fu, top = w >> 4 & 0x0f0f0f0fu;
                if (five) {
                    VU bits = u_load(high + ((size_t)g * width + (size_t)v * VW) * 4);
                    low |= (bits >> (2 * c) & 0x01010101u) << 4;
                    top |= (bits >> (2 * c + 1) & 0x01010101u) << 4;
                }
                put_bytes(s, 2 * c, g, v, low);
                put_bytes(s, 2 * c + 1, g, v, top);
            }
    s->at = s->bytes[0][0][0];
    s->stride = sizeof s->bytes[0];
    s->row = NV * VW;
}

INLINE void spread_q6_k(spread *s, const uint8_t *p, size_t width, int nv)
{
    const uint8_t *scales = p + width * 2, *bits = scales + width * 16;
    for (int v = 0; v < nv; v++) {
        size_t lane = (size_t)v * VW;
        V d = v_load_f16(p + lane * 2);
        for (int b = 0; b < 16; b++)
            v_store(&s->scale[b][lane], d * v_load_i8(scales + (size_t)b * width + lane));
    }
    for (int half = 0; half < 2; half++)
        for (int g = 0; g < 8; g++, bits += width * 12)
            for (int v = 0; v < nv; v++) {
                size_t lane = (size_t)v * VW;
                VU high = u_load(bits + lane * 4), first = u_load(bits + (width + lane) * 4);
                VU second = u_load(bits + (2 * width + lane) * 4);
                put_bytes(s, half * 4, g, v, (first & 0x0f0f0f0fu) | (high & 0x03030303u) << 4);
                put_bytes(s, half * 4 + 1, g, v, (second & 0x0f0f0f0fu) | (high >> 2 & 0x03030303u) << 4);
                put_bytes(s, half * 4 + 2, g, v, (first >> 4 & 0x0f0f0f0fu) | (high >> 4 & 0x03030303u) << 4);
                put_bytes(s, half * 4 + 3, g, v, (second >> 4 & 0x0f0f0f0fu) | (high >> 6 & 0x03030303u) << 4);
            }
    s->at = s->bytes[0][0][0];
    s->stride = sizeof s->bytes[0];
    s->row = NV * VW;
}

/* ---- multiplying ------------------------------------------------------------------------------------------------ */

/* Groups from .. to - 1 of 32 values: each vector of weights is loaded once for all rows. */
INLINE void quant_dots(VI dot[QR][NV], const uint8_t *w, size_t row, const uint8_t *x, int from, int to, int mr, int nv,
                       quant_kind kind)
{
    UNROLL for (int g = from; g < to; g++) {
        VU weights[NV];
        UNROLL for (int v = 0; v < nv; v++) weights[v] = u_load(w + ((size_t)g * row + (size_t)v * VW) * 4);
        UNROLL for (int r = 0; r < mr; r++) {
            uint32_t four;
            memcpy(&four, x + r * 32 + g * 4, 4);
            VU all = u_all(four);
            UNROLL for (int v = 0; v < nv; v++)
                dot[r][v] = kind == QUANT_Q8 ? DOT4_Q8(dot[r][v], weights[v], all) : DOT4(dot[r][v], weights[v], all);
        }
    }
}

/* One tile of mr rows against up to 256 values of a panel. */
INLINE void quant_tile(tile *t, const spread *s, int mr, int nv, quant_kind kind)
{
    enum { BIAS_Q8 = Q8_BIAS };
    const int32_t bias = kind == QUANT_Q8 ? BIAS_Q8 : kind == QUANT_Q4 ? 8 : kind == QUANT_HALF ? 32 : 0;
    const int parts = kind == QUANT_HALF ? 2 : 1; /* scales for 32 values */
    V sum[QR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) sum[r][v] = (V){0};
    const uint8_t *at = s->at, *x = t->x;
    const int blocks = (int)(t->span / 32);
    for (int b = 0; b < blocks; b++, at += s->stride, x += 48 * mr) {
        fetch_some(&t->ahead);
        UNROLL for (int part = 0; part < parts; part++) {
            VI dot[QR][NV];
            UNROLL for (int r = 0; r < mr; r++) {
                uint32_t less[2];
                memcpy(&less[0], x + (2 * mr + r) * 4, 4);
                memcpy(&less[1], x + (3 * mr + r) * 4, 4);
                VU start = parts == 1 ? u_all(less[0]) : part == 0 ? u_all(less[1]) : u_all(less[0]) - u_all(less[1]);
                UNROLL for (int v = 0; v < nv; v++) dot[r][v] = bias ? (VI)(start * (uint32_t)bias) : (VI){0};
            }
            quant_dots(dot, at, s->row, x + 16 * mr, part * 8 / parts, (part + 1) * 8 / parts, mr, nv, kind);
            UNROLL for (int r = 0; r < mr; r++) {
                float step;
                memcpy(&step, x + r * 4, 4);
                UNROLL for (int v = 0; v < nv; v++)
                    sum[r][v] = FMA(__builtin_convertvector(dot[r][v], V),
                                    step * v_load(&s->scale[parts * b + part][v * VW]), sum[r][v]);
            }
        }
        if (kind == QUANT_MIN)
            UNROLL for (int r = 0; r < mr; r++) {
                float total;
                memcpy(&total, x + (mr + r) * 4, 4);
                UNROLL for (int v = 0; v < nv; v++)
                    sum[r][v] = FMA(v_all(-total), v_load(&s->min[b][v * VW]), sum[r][v]);
            }
    }
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) {
            float *y = t->out + r * (NV * VW) + v * VW;
            v_store(y, t->k == 0 ? sum[r][v] : v_load(y) + sum[r][v]);
        }
}

#define QUANT_CASE(n) \
    case n: \
        if (n <= QR && b->wide) quant_tile(b, s, n <= QR ? n : QR, NV, kind); \
        if (n <= QR && !b->wide) quant_tile(b, s, n <= QR ? n : QR, 1, kind); \
        break;
INLINE void quant_multiply(tile *b, const spread *s, quant_kind kind)
{
    switch (b->rows) {
        QUANT_CASE(1) QUANT_CASE(2) QUANT_CASE(3) QUANT_CASE(4) QUANT_CASE(5) QUANT_CASE(6)
    default: break;
    }
}

#define QUANT_FUNCTION(name, kind, bytes_256, SPREAD) \
    INLINE void spread_for_##name(tile *b, void *context) \
    { \
        spread *s = context; \
        const int blocks = (int)(b->span / 32), nv = b->wide ? NV : 1; \
        const size_t width = (size_t)nv * VW; \
        (void)blocks; \
        SPREAD; \
    } \
    INLINE void multiply_for_##name(tile *b, void *context) { quant_multiply(b, context, kind); } \
    static void name(float *out, const xl_cpu_panels *w, const void *x, uint32_t rows, size_t K) \
    { \
        spread s; \
        walk_sizes sizes = {.w_256 = bytes_256, .x_32 = 48, .x_row = K / 32 * 48, .most_rows = QR, .steps_32 = 1}; \
        walk(out, w, x, rows, K, NV * VW, sizes, spread_for_##name, multiply_for_##name, &s); \
    }
QUANT_FUNCTION(product_q8_0, QUANT_Q8, 8 * 34, spread_q8_0(s, b->w, blocks, width, nv))
QUANT_FUNCTION(product_q4_0, QUANT_Q4, 8 * 18, spread_q4_0(s, b->w, blocks, width, nv))
QUANT_FUNCTION(product_q4_k, QUANT_MIN, 148, spread_q45_k(s, b->w, width, nv, false))
QUANT_FUNCTION(product_q5_k, QUANT_MIN, 180, spread_q45_k(s, b->w, width, nv, true))
QUANT_FUNCTION(product_q6_k, QUANT_HALF, 210, spread_q6_k(s, b->w, width, nv))

#define QUANT_PRODUCTS \
    [XLSTM_Q8_0] = {product_q8_0, XL_CPU_PACK_Q8}, [XLSTM_Q6_K] = {product_q6_k, XL_CPU_PACK_Q8}, \
    [XLSTM_Q5_K] = {product_q5_k, XL_CPU_PACK_Q8}, [XLSTM_Q4_K] = {product_q4_k, XL_CPU_PACK_Q8}, \
    [XLSTM_Q4_0] = {product_q4_0, XL_CPU_PACK_Q8}

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* 32 activations to int8: nearest even of x * 127 / max |x|. A NaN or Inf among them makes the scale NaN or Inf, and
 * with it every product. Levels are small integers, so that their sums (of the first and the last 16) are exact. */
INLINE void quantise_32(int8_t *q, float *step, float sums[2], const float *x)
{
    V sum[2] = {{0}, {0}}, value[32 / VW];
    VI top = {0};
    UNROLL for (int i = 0; i < 32 / VW; i++) {
        value[i] = v_load(x + i * VW);
        top = v_larger(top, value[i]);
    }
    float largest = v_largest(top);
    *step = largest / 127.0f;
    V inverse = v_all(largest > 0 ? 127.0f / largest : 0);
    UNROLL for (int i = 0; i < 32 / VW; i++) {
        V level = v_nearest(value[i] * inverse);
        level = v_select(v_abs(level) <= 127.0f, level, v_all(0));
        sum[i * VW / 16] += level;
        B b = v_to_level(level);
        memcpy(q + i * VW, &b, sizeof b);
    }
    sums[0] = v_sum(sum[0]);
    sums[1] = v_sum(sum[1]);
}

__attribute__((unused)) static void pack_q8(void *out, const float *x, size_t x_row, uint32_t rows, size_t K)
{
    uint8_t *o = out;
    for (size_t k = 0; k < K; k += 32, o += 48 * rows)
        for (uint32_t r = 0; r < rows; r++) {
            float step, sums[2];
            quantise_32((int8_t *)o + 16 * rows + 32 * r, &step, sums, x + r * x_row + k);
            float total = step * (sums[0] + sums[1]);
            int32_t less = -(int32_t)(sums[0] + sums[1]), first = -(int32_t)sums[0];
            memcpy(o + 4 * r, &step, 4);
            memcpy(o + 4 * rows + 4 * r, &total, 4);
            memcpy(o + 8 * rows + 4 * r, &less, 4);
            memcpy(o + 12 * rows + 4 * r, &first, 4);
        }
}
