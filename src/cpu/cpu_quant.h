/*
 * cpu_quant.h — products with weights in ggml block formats, included once by an instruction set's file after cpu_vec.h.
 *   DOT4(sum, w, x)     sum + four products a lane: w unsigned bytes below 128, x signed bytes
 *   DOT4_Q8(sum, w, x)  the same for bytes that mean w - 128, except for Q8_BIAS times the sum of x
 *   Q8_BIAS             128 where DOT4_Q8 leaves the offset to the caller, else 0
 *   DOT4_WHOLE          DOT4 takes all unsigned bytes; may be left out
 *   DOT2(sum, w, x)     sum + two products a lane of signed 16-bit numbers; may be left out
 *   QR                  most activation rows in a tile
 * Activations are held in int8 (XL_CPU_PACK_Q8). Panels (W weight rows side by side):
 *   Q8_0   for 32 values:  f16 d [W], bytes q + 128 [8][W][4]
 *   Q4_0   for 32 values:  f16 d [W], [4][W][4] bytes as they come (value k low, k + 16 high)
 *   Q4_K   for 256 values: f16 d [W], dmin [W], then bytes as they come: scales and minima [3][W][4], nibbles [4][8][W][4]
 *   Q5_K   the same with the fifth bits [8][W][4] before the nibbles
 *   Q6_K   for 256 values: f16 d [W], int8 sc [16][W], [2][8] x { upper bits [W][4], low nibbles [2][W][4] }
 * A block of up to 256 values is first spread into float32 scales and bytes in the first-level cache, once for all rows; but where
 * taking bytes out of the panel for each tile costs less than that detour (`directly`), only the scales are.
 *
 * Vector units multiply integers and floats on the same pipes, so what is not a product of levels is kept off them. The
 * integer sum of 32 products starts from the bits of 1.5 * 2^(23 + e), whose last bit is worth 2^e: read as a float it is
 * that number plus the sum times 2^e, and one subtraction leaves the product, exactly and already scaled.
 */
#include "cpu_vec.h"

#ifndef DOT2
#define DOT2(sum, w, x) \
    ((sum) + ((VI)((w) << 16) >> 16) * ((VI)((x) << 16) >> 16) + ((VI)(w) >> 16) * ((VI)(x) >> 16))
#endif

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
/* Formats whose scales and minima are small integers times d and dmin. */
INLINE bool has_super(quant_format f) { return f == Q4_K || f == Q5_K || f == Q6_K; }
/* Whether that many rows are multiplied without spreading the panel's bytes; for the others that was slower. */
INLINE bool directly(uint32_t rows, quant_format f)
{
    return f == Q8_0 || (rows <= 4 * QR && (f == Q4_0 || f == Q4_K)) || (rows == 1 && f == Q5_K);
}
/* Bytes of 256 values of a weight row. */
INLINE size_t bytes_256(quant_format f)
{
    return f == Q8_0 ? 8 * 34 : f == Q4_0 ? 8 * 18 : f == Q4_K ? 144 : f == Q5_K ? 176 : 210;
}

/* Up to 256 values of K of one panel, ready to multiply. */
typedef struct spread {
    _Alignas(64) uint8_t bytes[8][8][NV * VW][4];
    _Alignas(64) float scale[16][NV * VW];
    _Alignas(64) uint32_t minima[4][NV * VW]; /* 16 bits each: blocks 0 and 2, 1 and 3, 4 and 6, 5 and 7 */
} spread;

/* ---- reading panels --------------------------------------------------------------------------------------------- */

/* Scale i of VW weight rows from `lane`, where scales are numbers by themselves; without d in Q6_K. */
INLINE V read_scale(const uint8_t *p, int i, size_t width, size_t lane, quant_format f)
{
    if (f == Q6_K) return v_load_i8(p + ((size_t)i + 2) * width + lane);
    return v_load_f16(p + (size_t)i * width * (bytes_256(f) / 8) + lane * 2);
}

/* Whether `read_place` leaves the bytes of a place four bits too high when asked for them raised: a shift less, and scales are a
 * sixteenth. */
INLINE bool raised(quant_format f, int place)
{
#ifdef DOT4_WHOLE
    return f == Q4_K && place == 1;
#else
    (void)f, (void)place;
    return false;
#endif
}

/* Scales and minima of 6 bits, without d and dmin, of 256 values of VW weight rows from `lane`. */
INLINE void spread_six_bits(spread *s, const uint8_t *p, size_t width, size_t lane, bool direct, quant_format f)
{
    const uint8_t *at = p + (width + lane) * 4;
    const VU word[3] = {u_load(at), u_load(at + width * 4), u_load(at + width * 8)};
    const VU scales[2] = {word[0] & 0x3f3f3f3fu, (word[2] & 0x0f0f0f0fu) | (word[0] >> 2 & 0x30303030u)};
    const VU minima[2] = {word[1] & 0x3f3f3f3fu, (word[2] >> 4 & 0x0f0f0f0fu) | (word[1] >> 2 & 0x30303030u)};
    UNROLL for (int i = 0; i < 8; i++)
        v_store(&s->scale[i][lane], __builtin_convertvector((VI)(scales[i / 4] >> i % 4 * 8 & 0xffu), V) * (direct && raised(f, i % 2) ? 0.0625f : 1));
    UNROLL for (int i = 0; i < 4; i++) {
        VU pair = minima[i / 2] >> i % 2 * 8 & 0x00ff00ffu;
        memcpy(&s->minima[i][lane], &pair, sizeof pair);
    }
}

/* The bytes that read g of a unit gives VW weight rows from `lane` for one of its places. Places share their loads. */
INLINE VU read_place(const uint8_t *p, int unit, int place, int g, size_t width, size_t lane, bool raise, quant_format f)
{
    if (f == Q8_0) return u_load(p + (size_t)unit * width * 34 + width * 2 + ((size_t)g * width + lane) * 4);
    if (f == Q4_0) {
        VU w = u_load(p + (size_t)unit * width * 18 + width * 2 + ((size_t)g * width + lane) * 4);
        return (place == 0 ? w : w >> 4) & 0x0f0f0f0fu;
    }
    if (f == Q6_K) {
        const uint8_t *at = p + width * 18 + (size_t)(unit * 8 + g) * width * 12;
        VU high = u_load(at + lane * 4), low = u_load(at + ((size_t)(1 + place % 2) * width + lane) * 4);
        return ((place < 2 ? low : low >> 4) & 0x0f0f0f0fu) | (high >> 2 * place & 0x03030303u) << 4;
    }
    const uint8_t *high = p + width * 16, *nibbles = high + (f == Q5_K ? width * 32 : 0);
    VU w = u_load(nibbles + ((size_t)(unit * 8 + g) * width + lane) * 4);
    w = place == 0 ? w & 0x0f0f0f0fu : raise && raised(f, place) ? w & 0xf0f0f0f0u : w >> 4 & 0x0f0f0f0fu;
    if (f == Q4_K) return w;
    VU bits = u_load(high + ((size_t)g * width + lane) * 4);
    return w | (bits >> (2 * unit + place) & 0x01010101u) << 4;
}

INLINE void spread_panel(spread *s, tile *b, int nv, quant_format f)
{
    const int blocks = (int)(b->span / 32);
    const size_t width = (size_t)nv * VW;
    b->direct = directly(b->rows, f);
    if (b->rows == 1 && !has_super(f)) return;
    for (size_t lane = 0; has_min(f) && lane < width; lane += VW) spread_six_bits(s, b->w, width, lane, b->direct, f);
    for (int i = 0; !has_min(f) && i < blocks * scales_32(f); i++)
        for (size_t lane = 0; lane < width; lane += VW) v_store(&s->scale[i][lane], read_scale(b->w, i, width, lane, f));
    if (b->direct) return;
    for (int unit = 0; unit < blocks / unit_blocks(f); unit++)
        for (int g = 0; g < unit_reads(f); g++)
            for (int v = 0; v < nv; v++) {
                VU bytes[4];
                UNROLL for (int i = 0; i < reads_give(f); i++) bytes[i] = read_place(b->w, unit, i, g, width, (size_t)v * VW, false, f);
                UNROLL for (int i = 0; i < reads_give(f); i++) {
                    const int block = f == Q4_0 ? unit : unit * unit_blocks(f) + i, group = f == Q4_0 ? g + 4 * i : g;
                    memcpy(s->bytes[block][group][v * VW], &bytes[i], sizeof bytes[i]);
                }
            }
}

/* ---- multiplying ------------------------------------------------------------------------------------------------ */

/* Word `i` of row r of packed activations, in every lane. */
INLINE VU word_at(const uint8_t *x, int mr, int r, int i)
{
    uint32_t word;
    memcpy(&word, x + (i * mr + r) * 4, 4);
    return u_all(word);
}

/* The number that integer sums of a block are told from: 1.5 * 2^(23 + e) of the row. */
INLINE VU start_at(const uint8_t *x, int mr, int r) { return word_at(x, mr, r, 0); }

/* Where the integer sum of `part` of a block begins: there, less what the bytes' offset makes of the sum of x. */
INLINE VI first_dot(const uint8_t *x, int mr, int r, int part, quant_format f)
{
    enum { OFFSET_Q8 = Q8_BIAS };
    if (f == Q6_K) return (VI)word_at(x, mr, r, 3 + part);
    if (f == Q4_0) return (VI)word_at(x, mr, r, 2);
    if (f == Q8_0 && OFFSET_Q8 != 0) return (VI)word_at(x, mr, r, 1);
    return (VI)start_at(x, mr, r);
}

INLINE VI add_dot(VI dot, VU weights, const uint8_t *x, int mr, int r, int g, quant_format f)
{
    uint32_t four;
    memcpy(&four, x + 20 * mr + r * 32 + g * 4, 4);
    return f == Q8_0 ? DOT4_Q8(dot, weights, u_all(four)) : DOT4(dot, weights, u_all(four));
}

/* Adds what one block of 32 values gives to the sums of row r. */
INLINE void add_block(V sum[NV], VI dot[][NV], V scale[][NV], const uint8_t *x, int mr, int r, int nv, quant_format f)
{
    UNROLL for (int part = 0; part < scales_32(f); part++)
        UNROLL for (int v = 0; v < nv; v++)
            sum[v] = FMA((V)dot[part][v] - (V)start_at(x, mr, r), scale[part][v], sum[v]);
}

/* Bytes g, of 8, of block b of those that several rows take at once. */
INLINE VU block_bytes(const tile *t, const spread *s, int unit, int b, int g, size_t width, size_t lane, bool direct, quant_format f)
{
    if (!direct) return u_load(s->bytes[unit][g][lane]);
    if (f == Q4_0) return read_place(t->w, unit, g / 4, g % 4, width, lane, false, f);
    return read_place(t->w, unit, b, g, width, lane, true, f);
}

/* One tile of mr rows against up to 256 values of a panel: each vector of weights is loaded once for all rows. */
INLINE void quant_tile(tile *t, V sum[QR][NV], const spread *s, int mr, int nv, bool direct, quant_format f)
{
    const size_t width = (size_t)nv * VW;
    const int at_once = direct ? unit_blocks(f) : 1, units = (int)(t->span / 32) / at_once;
    const uint8_t *x = (const uint8_t *)t->x + XL_CPU_Q8_GROUP * mr;
    for (int unit = 0; unit < units; unit++)
        UNROLL for (int b = 0; b < at_once; b++, x += XL_CPU_Q8_BLOCK * mr) {
            fetch_some(&t->ahead);
            fetch_rows(t, (size_t)(unit * at_once + b) * XL_CPU_Q8_BLOCK * (size_t)mr, XL_CPU_Q8_BLOCK * (size_t)mr);
            /* or compilers keep what they loaded for the block before, and then the starts of sums, and there are too few registers */
            if (b > 0) __asm__ volatile("" : : : "memory");
            VI dot[QR][2][NV];
            UNROLL for (int part = 0; part < scales_32(f); part++) {
                UNROLL for (int r = 0; r < mr; r++)
                    UNROLL for (int v = 0; v < nv; v++) dot[r][part][v] = first_dot(x, mr, r, part, f);
                UNROLL for (int g = part * 8 / scales_32(f); g < (part + 1) * 8 / scales_32(f); g++) {
                    VU weights[NV];
                    UNROLL for (int v = 0; v < nv; v++) weights[v] = block_bytes(t, s, unit, b, g, width, (size_t)v * VW, direct, f);
                    UNROLL for (int r = 0; r < mr; r++)
                        UNROLL for (int v = 0; v < nv; v++)
                            dot[r][part][v] = add_dot(dot[r][part][v], weights[v], x, mr, r, g, f);
                }
            }
            if (at_once > 1) __asm__ volatile("" : : : "memory");
            V scale[2][NV];
            UNROLL for (int v = 0; v < nv; v++)
                UNROLL for (int part = 0; part < scales_32(f); part++)
                    scale[part][v] = v_load(&s->scale[scales_32(f) * (unit * at_once + b) + part][v * VW]);
            UNROLL for (int r = 0; r < mr; r++) add_block(sum[r], dot[r], scale, x, mr, r, nv, f);
        }
}

/* A single row against one unit of a panel, through registers. */
INLINE void quant_row_unit(tile *t, V sum[NV], const spread *s, const uint8_t *x, int unit, int nv, bool kept, quant_format f)
{
    const size_t width = (size_t)nv * VW, bytes = width * bytes_256(f) / 8 * (size_t)unit_blocks(f);
    VI dot[2][1][NV];
    UNROLL for (int b = 0; b < unit_blocks(f); b++)
        UNROLL for (int v = 0; v < nv; v++) dot[b][0][v] = first_dot(x + XL_CPU_Q8_BLOCK * b, 1, 0, 0, f);
    UNROLL for (int g = 0; g < unit_reads(f); g++) {
        fetch_step(&t->ahead, (size_t)unit * bytes, bytes, (size_t)g, (size_t)unit_reads(f), kept);
        UNROLL for (int v = 0; v < nv; v++) {
            UNROLL for (int i = 0; i < reads_give(f); i++) {
                const int b = f == Q4_0 ? 0 : i, group = f == Q4_0 ? g + 4 * i : g;
                VU weights = read_place(t->w, unit, i, g, width, (size_t)v * VW, true, f);
                dot[b][0][v] = add_dot(dot[b][0][v], weights, x + XL_CPU_Q8_BLOCK * b, 1, 0, group, f);
            }
        }
    }
    UNROLL for (int b = 0; b < unit_blocks(f); b++) {
        V scale[1][NV];
        const int i = unit * unit_blocks(f) + b;
        UNROLL for (int v = 0; v < nv; v++)
            scale[0][v] = has_super(f) ? v_load(&s->scale[i][v * VW]) : read_scale(t->w, i, width, (size_t)v * VW, f);
        add_block(sum, dot[b], scale, x + XL_CPU_Q8_BLOCK * b, 1, 0, nv, f);
    }
}

INLINE void quant_row_units(tile *t, V sum[NV], const spread *s, int nv, bool kept, quant_format f)
{
    const int units = (int)(t->span / 32) / unit_blocks(f);
    const uint8_t *x = (const uint8_t *)t->x + XL_CPU_Q8_GROUP;
    const size_t step = XL_CPU_Q8_BLOCK * (size_t)unit_blocks(f);
    int unit = 0;
    /* Q8_0 gains a twentieth where no branch comes between the blocks, the others lose */
    if (f == Q8_0 && units == 8)
        UNROLL for (; unit < 8; unit++) quant_row_unit(t, sum, s, x + (size_t)unit * step, unit, nv, kept, f);
    for (; unit < units; unit++) quant_row_unit(t, sum, s, x + (size_t)unit * step, unit, nv, kept, f);
}

INLINE void quant_row(tile *t, V sum[NV], const spread *s, int nv, quant_format f)
{
    if (t->ahead.kept)
        quant_row_units(t, sum, s, nv, true, f);
    else
        quant_row_units(t, sum, s, nv, false, f);
}

/* Sums of 256 values get what all of them share: d, the minima, the row's step. */
INLINE void quant_finish(const tile *t, V sum[QR][NV], const spread *s, int mr, int nv, quant_format f)
{
    const size_t width = (size_t)nv * VW;
    V d[NV], dmin[NV];
    UNROLL for (int v = 0; v < nv; v++) {
        const uint8_t *at = t->w + (size_t)v * VW * 2;
        if (has_super(f)) d[v] = v_load_f16(at);
        if (has_min(f)) dmin[v] = v_load_f16(at + width * 2) * (-1.0f / XL_CPU_Q8_SUMS);
    }
    VI less[QR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) less[r][v] = (VI){0};
    if (has_min(f))
        UNROLL for (int i = 0; i < 4; i++)
            UNROLL for (int v = 0; v < nv; v++) {
                VU minima = u_load(&s->minima[i][v * VW]);
                UNROLL for (int r = 0; r < mr; r++) less[r][v] = DOT2(less[r][v], minima, word_at(t->x, mr, r, 1 + i));
            }
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) {
            V all = has_super(f) ? sum[r][v] * d[v] : sum[r][v], step = (V)word_at(t->x, mr, r, 0);
            if (has_min(f)) all = FMA(__builtin_convertvector(less[r][v], V), dmin[v], all);
            float *y = t->out + r * (NV * VW) + v * VW;
            v_store(y, t->k == 0 ? all * step : FMA(all, step, v_load(y)));
        }
}

INLINE void quant_sums(tile *t, const spread *s, int mr, int nv, quant_format f)
{
    V sum[QR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) sum[r][v] = (V){0};
    /* each format gets the ways that it goes, no others */
    if (mr == 1 && directly(1, f))
        quant_row(t, sum[0], s, nv, f);
    else if (t->direct && directly((uint32_t)mr, f))
        quant_tile(t, sum, s, mr, nv, true, f);
    else if (!directly(UINT32_MAX, f))
        quant_tile(t, sum, s, mr, nv, false, f);
    quant_finish(t, sum, s, mr, nv, f);
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
        walk_sizes sizes = {.w_256 = bytes_256(f), .x_256 = XL_CPU_Q8_GROUP + 8 * XL_CPU_Q8_BLOCK, .x_row = xl_cpu_q8_row(K), .most_rows = QR, .steps_32 = 1}; \
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

/* One row of a group of up to 256 activations. Its step is that of the block of 32 with the largest activation, so that this one
 * is 127 steps; the steps of the others are that by a power of two, the smallest that leaves them below 128 steps. A NaN or
 * Inf makes the step NaN or Inf, and with it every product; levels are nothing then, or where the step is too small to divide by. */
INLINE void quantise_group(uint8_t *o, uint32_t rows, uint32_t r, const float *x, uint32_t blocks)
{
    enum { LEAST = -20 }; /* activations a million times smaller than the largest are worth nothing */
    static const float nothing[256];
    VI tops[8] = {{0}}, firsts[8] = {{0}}, seconds[8] = {{0}};
    UNROLL for (uint32_t b = 0; b < 8; b++)
        UNROLL for (int i = 0; i < 32 / VW; i++)
            if (b < blocks) tops[b] = v_larger(tops[b], v_load(x + 32 * b + i * VW));
    const VI4 largest[2] = {v_largest_4(tops), v_largest_4(tops + 4)};
    int32_t top = 0;
    UNROLL for (int i = 0; i < 8; i++) top = XL_MAX(top, largest[i / 4][i % 4]);
    float most;
    memcpy(&most, &top, 4);
    float step = most / 127.0f, inverse = 127.0f / most;
    memcpy(o + 4 * r, &step, 4);
    if (!xl_is_finite(most) || !xl_is_finite(inverse)) {
        x = nothing;
        inverse = 0;
    }
    /* magnitudes as integers: the exponent's difference, one more where the mantissa is larger */
    VI4 exponent[2];
    UNROLL for (int i = 0; i < 2; i++) {
        VI4 e = (largest[i] - top + 0x7fffff) >> 23, least = (VI4){0} + LEAST;
        exponent[i] = LARGER(e, least);
    }
    uint8_t *levels = o + XL_CPU_Q8_GROUP * rows + 20 * rows + 32 * r;
    for (uint32_t b = 0; b < blocks; b++) {
        V factor = (V)u_all((uint32_t)(127 - exponent[b / 4][b % 4]) << 23) * inverse;
        UNROLL for (int i = 0; i < 32 / VW; i++) {
            VI level = v_level(v_load(x + 32 * b + i * VW) * factor);
            B bytes = v_to_bytes(level);
            if (i < 16 / VW)
                firsts[b] += level;
            else
                seconds[b] += level;
            memcpy(levels + b * XL_CPU_Q8_BLOCK * rows + i * VW, &bytes, sizeof bytes);
        }
    }
    int16_t scaled[8];
    UNROLL for (int i = 0; i < 2; i++) {
        VI4 first = v_sum_4(firsts + 4 * i), second = v_sum_4(seconds + 4 * i), all = first + second;
        VI4 start = (exponent[i] + 127 + 23) << 23 | 1 << 22;
        const VI4 starts[5] = {start, start - 128 * all, start - 8 * all, start - 32 * first, start - 32 * second};
        V4 down = (V4)((exponent[i] + 127) << 23) * (float)XL_CPU_Q8_SUMS;
        VI4 sums = (VI4)(__builtin_convertvector(all, V4) * down + 12582912.0f) - 0x4b400000;
        UNROLL for (int j = 0; j < 4; j++) scaled[4 * i + j % 2 * 2 + j / 2] = (int16_t)sums[j];
        for (uint32_t b = 4 * (uint32_t)i; b < XL_MIN(blocks, 4 * (uint32_t)i + 4); b++) {
            uint8_t *block = o + (XL_CPU_Q8_GROUP + XL_CPU_Q8_BLOCK * b) * rows + 4 * r;
            for (uint32_t n = 0; n < 5; n++) memcpy(block + 4 * n * rows, (const char *)&starts[n] + b % 4 * 4, 4);
        }
    }
    UNROLL for (int i = 0; i < 4; i++) memcpy(o + 4 * ((1 + (uint32_t)i) * rows + r), &scaled[2 * i], 4);
}

__attribute__((unused)) static void pack_q8(void *out, const float *x, size_t x_row, uint32_t rows, size_t K)
{
    for (uint32_t r = 0; r < rows; r++) {
        uint8_t *o = out;
        for (size_t k = 0; k < K; k += 256) {
            uint32_t blocks = (uint32_t)XL_MIN((K - k) / 32, (size_t)8);
            if (blocks == 8)
                quantise_group(o, rows, r, x + r * x_row + k, 8);
            else
                quantise_group(o, rows, r, x + r * x_row + k, blocks);
            o += (XL_CPU_Q8_GROUP + XL_CPU_Q8_BLOCK * (size_t)blocks) * rows;
        }
    }
}
