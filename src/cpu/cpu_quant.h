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

/* Panels are read from front to back, and what follows is fetched ahead: while one block is multiplied nothing else
 * would keep the memory busy. The distance is worth a memory latency at full bandwidth. */
enum { AHEAD = 8192 };
INLINE VU u_load_ahead(const uint8_t *p)
{
    __builtin_prefetch(p + AHEAD);
    return u_load(p);
}

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
                VU w = u_load_ahead(p + width * 2 + ((size_t)g * width + (size_t)v * VW) * 4);
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
            __builtin_prefetch(scales + (size_t)b * width + lane + AHEAD);
            __builtin_prefetch(mins + (size_t)b * width + lane + AHEAD);
        }
    }
    for (int c = 0; c < 4; c++)
        for (int g = 0; g < 8; g++)
            for (int v = 0; v < nv; v++) {
                VU w = u_load_ahead(nibbles + ((size_t)(c * 8 + g) * width + (size_t)v * VW) * 4);
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
                VU high = u_load_ahead(bits + lane * 4), first = u_load_ahead(bits + (width + lane) * 4);
                VU second = u_load_ahead(bits + (2 * width + lane) * 4);
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

INLINE VI quant_dot(VI sum, const VU *w, const int8_t *x, int mr, int from, int to, int nv, int v, quant_kind kind)
{
    UNROLL for (int g = from; g < to; g++) {
        uint32_t four;
        memcpy(&four, x + g * mr * 4, 4);
        if (kind == QUANT_Q8)
            sum = DOT4_Q8(sum, w[g * nv + v], u_all(four));
        else
            sum = DOT4(sum, w[g * nv + v], u_all(four));
    }
    return sum;
}

/* One tile of mr rows against up to 256 values of a panel. */
INLINE void quant_tile(float *out, const spread *s, const uint8_t *x, int blocks, int mr, int nv,
                       quant_kind kind, bool first)
{
    V sum[QR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) sum[r][v] = (V){0};
    const uint8_t *at = s->at;
    for (int b = 0; b < blocks; b++, at += s->stride, x += 48 * mr) {
        VU w[8 * NV];
        UNROLL for (int g = 0; g < 8; g++)
            UNROLL for (int v = 0; v < nv; v++) w[g * nv + v] = u_load(at + ((size_t)g * s->row + (size_t)v * VW) * 4);
        UNROLL for (int r = 0; r < mr; r++) {
            float step, total;
            int32_t sums[2];
            memcpy(&step, x + 4 * r, 4);
            memcpy(&total, x + 4 * mr + 4 * r, 4);
            memcpy(&sums[0], x + 8 * mr + 4 * r, 4);
            memcpy(&sums[1], x + 12 * mr + 4 * r, 4);
            const int8_t *q = (const int8_t *)x + 16 * mr + 4 * r;
            UNROLL for (int v = 0; v < nv; v++) {
                if (kind == QUANT_HALF) {
                    VI low = quant_dot((VI){0} - 32 * sums[0], w, q, mr, 0, 4, nv, v, kind);
                    VI high = quant_dot((VI){0} - 32 * sums[1], w, q, mr, 4, 8, nv, v, kind);
                    sum[r][v] = FMA(__builtin_convertvector(low, V), step * v_load(&s->scale[2 * b][v * VW]), sum[r][v]);
                    sum[r][v] =
                        FMA(__builtin_convertvector(high, V), step * v_load(&s->scale[2 * b + 1][v * VW]), sum[r][v]);
                    continue;
                }
                int32_t bias = kind == QUANT_Q8 ? Q8_BIAS : kind == QUANT_Q4 ? 8 : 0;
                VI dot = quant_dot((VI){0} - bias * (sums[0] + sums[1]), w, q, mr, 0, 8, nv, v, kind);
                sum[r][v] = FMA(__builtin_convertvector(dot, V), step * v_load(&s->scale[b][v * VW]), sum[r][v]);
                if (kind == QUANT_MIN) sum[r][v] = FMA(v_all(-total), v_load(&s->min[b][v * VW]), sum[r][v]);
            }
        }
    }
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) {
            float *y = out + r * (NV * VW) + v * VW;
            v_store(y, first ? sum[r][v] : v_load(y) + sum[r][v]);
        }
}

#define QUANT_CASE(n) \
    case n: \
        if (n <= QR) { \
            if (wide) \
                quant_tile(at, &s, tile, blocks, n <= QR ? n : QR, NV, kind, k == 0); \
            else \
                quant_tile(at, &s, tile, blocks, n <= QR ? n : QR, 1, kind, k == 0); \
        } \
        break;

INLINE void quant_product(float *out, const xl_cpu_panels *panels, const uint8_t *x, uint32_t rows, size_t K,
                          xlstm_dtype dtype, quant_kind kind, size_t bytes_256)
{
    spread s;
    uint32_t tiles = xl_cpu_tiles(rows, QR);
    for (size_t k = 0; k < K; k += 256)
        for (uint32_t p = 0; p < panels->count; p++) {
            size_t width = p + 1 < panels->count ? NV * VW : panels->last_width, row = 0;
            const uint8_t *w = panels->first + p * panels->bytes + k / 256 * width * bytes_256;
            bool wide = width == NV * VW;
            int blocks = (int)(XL_MIN(K - k, (size_t)256) / 32), nv = wide ? NV : 1;
            switch (dtype) {
            case XLSTM_Q8_0:
                spread_q8_0(&s, w, blocks, width, nv);
                break;
            case XLSTM_Q4_0:
                spread_q4_0(&s, w, blocks, width, nv);
                break;
            case XLSTM_Q6_K:
                spread_q6_k(&s, w, width, nv);
                break;
            default:
                spread_q45_k(&s, w, width, nv, dtype == XLSTM_Q5_K);
            }
            for (uint32_t t = 0; t < tiles; t++) {
                uint32_t n = xl_cpu_tile_rows(rows, QR, t);
                float *at = out + ((size_t)p * rows + row) * (NV * VW);
                const uint8_t *tile = x + row * (K / 32 * 48) + k / 32 * 48 * n;
                switch (n) {
                    QUANT_CASE(1) QUANT_CASE(2) QUANT_CASE(3) QUANT_CASE(4)
                default: break;
                }
                row += n;
            }
        }
}

#define QUANT_FUNCTION(name, dtype, kind, bytes_256) \
    static void name(float *out, const xl_cpu_panels *w, const void *x, uint32_t rows, size_t K) \
    { \
        quant_product(out, w, x, rows, K, dtype, kind, bytes_256); \
    }
QUANT_FUNCTION(product_q8_0, XLSTM_Q8_0, QUANT_Q8, 8 * 34)
QUANT_FUNCTION(product_q4_0, XLSTM_Q4_0, QUANT_Q4, 8 * 18)
QUANT_FUNCTION(product_q4_k, XLSTM_Q4_K, QUANT_MIN, 148)
QUANT_FUNCTION(product_q5_k, XLSTM_Q5_K, QUANT_MIN, 180)
QUANT_FUNCTION(product_q6_k, XLSTM_Q6_K, QUANT_HALF, 210)

#define QUANT_PRODUCTS \
    [XLSTM_Q8_0] = {product_q8_0, XL_CPU_PACK_Q8}, [XLSTM_Q6_K] = {product_q6_k, XL_CPU_PACK_Q8}, \
    [XLSTM_Q5_K] = {product_q5_k, XL_CPU_PACK_Q8}, [XLSTM_Q4_K] = {product_q4_k, XL_CPU_PACK_Q8}, \
    [XLSTM_Q4_0] = {product_q4_0, XL_CPU_PACK_Q8}

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* 32 activations to int8: nearest even of x * 127 / max |x|. A NaN or Inf among them makes the scale NaN or Inf, and
 * with it every product. */
INLINE void quantise_32(int8_t *q, float *step, const float *x)
{
    V top = {0};
    for (int i = 0; i < 32; i += VW) {
        V a = v_abs(v_load(x + i));
        top = v_select(a <= top, top, a);
    }
    float lanes[VW], largest = 0;
    v_store(lanes, top);
    for (int j = 0; j < VW; j++) largest = lanes[j] <= largest ? largest : lanes[j];
    for (int i = 0; i < 32; i++)
        if (x[i] != x[i]) largest = x[i];
    *step = largest / 127.0f;
    V inverse = v_all(largest > 0 ? 127.0f / largest : 0);
    for (int i = 0; i < 32; i += VW) {
        V level = v_nearest(v_load(x + i) * inverse);
        level = v_select(v_abs(level) <= 127.0f, level, v_all(0));
        B b = v_to_i8(level);
        memcpy(q + i, &b, sizeof b);
    }
}

__attribute__((unused)) static void pack_q8(void *out, const float *x, size_t x_row, uint32_t rows, size_t K)
{
    uint8_t *o = out;
    for (size_t k = 0; k < K; k += 32, o += 48 * rows)
        for (uint32_t r = 0; r < rows; r++) {
            int8_t q[32];
            float step, total;
            quantise_32(q, &step, x + r * x_row + k);
            int32_t sums[2] = {0, 0};
            for (int i = 0; i < 32; i++) sums[i / 16] += q[i];
            total = step * (float)(sums[0] + sums[1]);
            memcpy(o + 4 * r, &step, 4);
            memcpy(o + 4 * rows + 4 * r, &total, 4);
            memcpy(o + 8 * rows + 4 * r, &sums[0], 4);
            memcpy(o + 12 * rows + 4 * r, &sums[1], 4);
            for (uint32_t g = 0; g < 8; g++) memcpy(o + 16 * rows + (g * rows + r) * 4, q + 4 * g, 4);
        }
}
