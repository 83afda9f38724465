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
 * For several rows of activations, a block of up to 256 values is first spread into bytes and float32 scales in the
 * first-level cache, once for all; then one kernel serves every format. Most formats spare a single row that detour.
 */
#include "cpu_vec.h"

typedef enum quant_format { Q8_0, Q4_0, Q4_K, Q5_K, Q6_K } quant_format;

/* What a byte means: q - 128 in Q8_0, q - 8 in Q4_0, q - 32 in Q6_K; in the others scale q - min. */
INLINE bool has_min(quant_format f) { return f == Q4_K || f == Q5_K; }
/* Scales for 32 values. */
INLINE int scales_32(quant_format f) { return f == Q6_K ? 2 : 1; }
/* One read of a panel gives the bytes of `reads_give` places; they are in as many blocks of 32 values, but in Q4_0 in one. */
INLINE int reads_give(quant_format f) { return f == Q8_0 ? 1 : f == Q6_K ? 4 : 2; }
INLINE int unit_blocks(quant_format f) { return f == Q4_0 ? 1 : reads_give(f); }
/* Reads for a unit, four values of each place at a time. */
INLINE int unit_reads(quant_format f) { return f == Q4_0 ? 4 : 8; }
/* Whether a single row is multiplied without spreading the panel's bytes; for the others that was slower. */
INLINE bool rows_directly(quant_format f) { return f != Q6_K; }
/* Bytes of 256 values of a weight row. */
INLINE size_t bytes_256(quant_format f)
{
    return f == Q8_0 ? 8 * 34 : f == Q4_0 ? 8 * 18 : f == Q4_K ? 148 : f == Q5_K ? 180 : 210;
}

/* Up to 256 values of K of one panel, ready to multiply. */
typedef struct spread {
    _Alignas(64) uint8_t bytes[8][8][NV * VW][4];
    _Alignas(64) float scale[16][NV * VW];
    _Alignas(64) float min[8][NV * VW];
} spread;

/* ---- reading panels --------------------------------------------------------------------------------------------- */

/* Scale i of VW weight rows from `lane`, and the minimum of block b. */
INLINE V read_scale(const uint8_t *p, int i, size_t width, size_t lane, quant_format f)
{
    if (f == Q8_0 || f == Q4_0) return v_load_f16(p + (size_t)i * width * (bytes_256(f) / 8) + lane * 2);
    V d = v_load_f16(p + lane * 2);
    if (f == Q6_K) return d * v_load_i8(p + ((size_t)i + 2) * width + lane);
    return d * v_load_u8(p + ((size_t)i + 4) * width + lane);
}

INLINE V read_min(const uint8_t *p, int b, size_t width, size_t lane)
{
    return v_load_f16(p + width * 2 + lane * 2) * v_load_u8(p + ((size_t)b + 12) * width + lane);
}

/* Read g of a unit: the bytes of VW weight rows from `lane`, for each place. */
INLINE void read_bytes(VU place[4], const uint8_t *p, int unit, int g, size_t width, size_t lane, quant_format f)
{
    if (f == Q8_0) {
        place[0] = u_load(p + (size_t)unit * width * 34 + width * 2 + ((size_t)g * width + lane) * 4);
    } else if (f == Q4_0) {
        VU w = u_load(p + (size_t)unit * width * 18 + width * 2 + ((size_t)g * width + lane) * 4);
        place[0] = w & 0x0f0f0f0fu;
        place[1] = w >> 4 & 0x0f0f0f0fu;
    } else if (f == Q6_K) {
        const uint8_t *at = p + width * 18 + (size_t)(unit * 8 + g) * width * 12;
        VU high = u_load(at + lane * 4), first = u_load(at + (width + lane) * 4);
        VU second = u_load(at + (2 * width + lane) * 4);
        place[0] = (first & 0x0f0f0f0fu) | (high & 0x03030303u) << 4;
        place[1] = (second & 0x0f0f0f0fu) | (high >> 2 & 0x03030303u) << 4;
        place[2] = (first >> 4 & 0x0f0f0f0fu) | (high >> 4 & 0x03030303u) << 4;
        place[3] = (second >> 4 & 0x0f0f0f0fu) | (high >> 6 & 0x03030303u) << 4;
    } else {
        const uint8_t *high = p + width * 20, *nibbles = high + (f == Q5_K ? width * 32 : 0);
        VU w = u_load(nibbles + ((size_t)(unit * 8 + g) * width + lane) * 4);
        place[0] = w & 0x0f0f0f0fu;
        place[1] = w >> 4 & 0x0f0f0f0fu;
        if (f == Q5_K) {
            VU bits = u_load(high + ((size_t)g * width + lane) * 4);
            place[0] |= (bits >> (2 * unit) & 0x01010101u) << 4;
            place[1] |= (bits >> (2 * unit + 1) & 0x01010101u) << 4;
        }
    }
}

INLINE void spread_panel(spread *s, const tile *b, int nv, quant_format f)
{
    const int blocks = (int)(b->span / 32);
    const size_t width = (size_t)nv * VW;
    if (b->rows == 1 && rows_directly(f)) return;
    for (int i = 0; i < blocks; i++)
        for (size_t lane = 0; lane < width; lane += VW) {
            for (int part = i * scales_32(f); part < (i + 1) * scales_32(f); part++)
                v_store(&s->scale[part][lane], read_scale(b->w, part, width, lane, f));
            if (has_min(f)) v_store(&s->min[i][lane], read_min(b->w, i, width, lane));
        }
    if (f == Q8_0) return; /* bytes are multiplied where they are */
    for (int unit = 0; unit < blocks / unit_blocks(f); unit++)
        for (int g = 0; g < unit_reads(f); g++)
            for (int v = 0; v < nv; v++) {
                VU place[4];
                read_bytes(place, b->w, unit, g, width, (size_t)v * VW, f);
                UNROLL for (int i = 0; i < reads_give(f); i++) {
                    const int block = f == Q4_0 ? unit : unit * unit_blocks(f) + i, group = f == Q4_0 ? g + 4 * i : g;
                    memcpy(s->bytes[block][group][v * VW], &place[i], sizeof place[i]);
                }
            }
}

/* ---- multiplying ------------------------------------------------------------------------------------------------ */

/* Where the integer sum of `part` of a block begins: bytes have an offset. The sums of x of an activation row, less than
 * zero, are those of all 32 and of the first 16. */
INLINE VI first_dot(const uint8_t *x, int mr, int r, int part, quant_format f)
{
    enum { BIAS_Q8 = Q8_BIAS };
    const uint32_t bias = f == Q8_0 ? BIAS_Q8 : f == Q4_0 ? 8 : f == Q6_K ? 32 : 0;
    if (bias == 0) return (VI){0};
    uint32_t less[2];
    memcpy(&less[0], x + (2 * mr + r) * 4, 4);
    memcpy(&less[1], x + (3 * mr + r) * 4, 4);
    return (VI)(u_all(f != Q6_K ? less[0] : part == 0 ? less[1] : less[0] - less[1]) * bias);
}

INLINE VI add_dot(VI dot, VU weights, const uint8_t *x, int mr, int r, int g, quant_format f)
{
    uint32_t four;
    memcpy(&four, x + 16 * mr + r * 32 + g * 4, 4);
    return f == Q8_0 ? DOT4_Q8(dot, weights, u_all(four)) : DOT4(dot, weights, u_all(four));
}

/* Adds what one block of 32 values gives to the sums of row r. */
INLINE void add_block(V sum[NV], VI dot[][NV], V scale[][NV], V min[NV], const uint8_t *x, int mr, int r, int nv,
                      quant_format f)
{
    float step, total;
    memcpy(&step, x + r * 4, 4);
    memcpy(&total, x + (mr + r) * 4, 4);
    UNROLL for (int part = 0; part < scales_32(f); part++)
        UNROLL for (int v = 0; v < nv; v++)
            sum[v] = FMA(__builtin_convertvector(dot[part][v], V), step * scale[part][v], sum[v]);
    if (has_min(f)) UNROLL for (int v = 0; v < nv; v++) sum[v] = FMA(v_all(-total), min[v], sum[v]);
}

/* One tile of mr rows against up to 256 values of a panel: each vector of weights is loaded once for all rows. */
INLINE void quant_tile(tile *t, V sum[QR][NV], const spread *s, int mr, int nv, quant_format f)
{
    const size_t width = (size_t)nv * VW, row = f == Q8_0 ? width : NV * VW;
    const uint8_t *at = f == Q8_0 ? t->w + width * 2 : s->bytes[0][0][0], *x = t->x;
    for (int b = 0; b < (int)(t->span / 32); b++, at += f == Q8_0 ? width * 34 : sizeof s->bytes[0], x += 48 * mr) {
        fetch_some(&t->ahead);
        VI dot[QR][2][NV];
        UNROLL for (int part = 0; part < scales_32(f); part++) {
            UNROLL for (int r = 0; r < mr; r++)
                UNROLL for (int v = 0; v < nv; v++) dot[r][part][v] = first_dot(x, mr, r, part, f);
            UNROLL for (int g = part * 8 / scales_32(f); g < (part + 1) * 8 / scales_32(f); g++) {
                VU weights[NV];
                UNROLL for (int v = 0; v < nv; v++) weights[v] = u_load(at + ((size_t)g * row + (size_t)v * VW) * 4);
                UNROLL for (int r = 0; r < mr; r++)
                    UNROLL for (int v = 0; v < nv; v++)
                        dot[r][part][v] = add_dot(dot[r][part][v], weights[v], x, mr, r, g, f);
            }
        }
        V scale[2][NV], min[NV];
        UNROLL for (int v = 0; v < nv; v++) {
            UNROLL for (int part = 0; part < scales_32(f); part++)
                scale[part][v] = v_load(&s->scale[scales_32(f) * b + part][v * VW]);
            if (has_min(f)) min[v] = v_load(&s->min[b][v * VW]);
        }
        UNROLL for (int r = 0; r < mr; r++) add_block(sum[r], dot[r], scale, min, x, mr, r, nv, f);
    }
}

/* A single row, from the panel through registers. */
INLINE void quant_row(tile *t, V sum[NV], int nv, quant_format f)
{
    const size_t width = (size_t)nv * VW, bytes = width * bytes_256(f) / 8 * (size_t)unit_blocks(f);
    const uint8_t *x = t->x;
    for (int unit = 0; unit < (int)(t->span / 32) / unit_blocks(f); unit++, x += 48 * unit_blocks(f)) {
        VI dot[2][1][NV];
        UNROLL for (int b = 0; b < unit_blocks(f); b++)
            UNROLL for (int v = 0; v < nv; v++) dot[b][0][v] = first_dot(x + 48 * b, 1, 0, 0, f);
        UNROLL for (int g = 0; g < unit_reads(f); g++) {
            fetch_step(&t->ahead, (size_t)unit * bytes, bytes, (size_t)g, (size_t)unit_reads(f));
            UNROLL for (int v = 0; v < nv; v++) {
                VU place[4];
                read_bytes(place, t->w, unit, g, width, (size_t)v * VW, f);
                UNROLL for (int i = 0; i < reads_give(f); i++) {
                    const int b = f == Q4_0 ? 0 : i, group = f == Q4_0 ? g + 4 * i : g;
                    dot[b][0][v] = add_dot(dot[b][0][v], place[i], x + 48 * b, 1, 0, group, f);
                }
            }
        }
        UNROLL for (int b = 0; b < unit_blocks(f); b++) {
            V scale[1][NV], min[NV];
            UNROLL for (int v = 0; v < nv; v++) {
                scale[0][v] = read_scale(t->w, unit * unit_blocks(f) + b, width, (size_t)v * VW, f);
                if (has_min(f)) min[v] = read_min(t->w, unit * unit_blocks(f) + b, width, (size_t)v * VW);
            }
            add_block(sum, dot[b], scale, min, x + 48 * b, 1, 0, nv, f);
        }
    }
}

INLINE void quant_sums(tile *t, const spread *s, int mr, int nv, quant_format f)
{
    V sum[QR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) sum[r][v] = (V){0};
    if (mr == 1 && rows_directly(f))
        quant_row(t, sum[0], nv, f);
    else
        quant_tile(t, sum, s, mr, nv, f);
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) {
            float *y = t->out + r * (NV * VW) + v * VW;
            v_store(y, t->k == 0 ? sum[r][v] : v_load(y) + sum[r][v]);
        }
}

#define QUANT_CASE(n) \
    case n: \
        if (n <= QR && b->wide) quant_sums(b, s, n <= QR ? n : QR, NV, f); \
        if (n <= QR && !b->wide) quant_sums(b, s, n <= QR ? n : QR, 1, f); \
        break;
INLINE void quant_multiply(tile *b, const spread *s, quant_format f)
{
    switch (b->rows) {
        QUANT_CASE(1) QUANT_CASE(2) QUANT_CASE(3) QUANT_CASE(4) QUANT_CASE(5) QUANT_CASE(6)
    default: break;
    }
}

#define QUANT_FUNCTION(name, f) \
    INLINE void spread_for_##name(tile *b, void *context) \
    { \
        if (b->wide) \
            spread_panel(context, b, NV, f); \
        else \
            spread_panel(context, b, 1, f); \
    } \
    INLINE void multiply_for_##name(tile *b, void *context) { quant_multiply(b, context, f); } \
    static void name(float *out, const xl_cpu_panels *w, const void *x, uint32_t rows, size_t K) \
    { \
        spread s; \
        walk_sizes sizes = {.w_256 = bytes_256(f), .x_32 = 48, .x_row = K / 32 * 48, .most_rows = QR, .steps_32 = 1}; \
        walk(out, w, x, rows, K, NV * VW, sizes, spread_for_##name, multiply_for_##name, &s); \
    }
QUANT_FUNCTION(product_q8_0, Q8_0)
QUANT_FUNCTION(product_q4_0, Q4_0)
QUANT_FUNCTION(product_q4_k, Q4_K)
QUANT_FUNCTION(product_q5_k, Q5_K)
QUANT_FUNCTION(product_q6_k, Q6_K)

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
