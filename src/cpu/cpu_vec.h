/*
 * cpu_vec.h — what the kernels need of a vector, on top of the compiler's vector extension. The file of an instruction
 * set defines, before including it:
 *   VW                     floats in a vector
 *   FMA(a, b, c)           a * b + c, fused where the machine can
 *   FROM_F16(h), TO_F16(v) conversion between H and V; may be left out
 *   FROM_I8(p)             VW bytes as floats; may be left out
 * Lanes never mix except in v_sum, whose order is fixed: a value's result is the same in whichever lane it sits, and
 * the end of an array goes through the same operations as its middle.
 */
#ifndef XL_CPU_VEC_H
#define XL_CPU_VEC_H

#include "cpu_kernels.h"

#include <math.h>

/* Loops over a tile are unrolled so that its sums live in registers. Under a sanitizer that only makes compilation take
 * minutes: there tiles stay in memory, with the same results. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED
#endif
#if defined(SANITIZED)
#define UNROLL
#define INLINE static inline __attribute__((unused))
#elif defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#define INLINE static inline __attribute__((always_inline, unused))
#else
#define UNROLL _Pragma("GCC unroll 32")
#define INLINE static inline __attribute__((always_inline, unused))
#endif

typedef float V __attribute__((vector_size(4 * VW)));
typedef int32_t VI __attribute__((vector_size(4 * VW)));
typedef uint32_t VU __attribute__((vector_size(4 * VW)));
typedef uint16_t H __attribute__((vector_size(2 * VW)));
typedef int16_t S __attribute__((vector_size(2 * VW)));
typedef int8_t B __attribute__((vector_size(VW)));

#ifndef FMA
#define FMA(a, b, c) ((a) * (b) + (c))
#endif

INLINE V v_load(const float *p) { V v; memcpy(&v, p, sizeof v); return v; }
INLINE void v_store(float *p, V v) { memcpy(p, &v, sizeof v); }
INLINE VU u_load(const void *p) { VU v; memcpy(&v, p, sizeof v); return v; }
INLINE V v_all(float x) { return x - (V){0}; }
INLINE VU u_all(uint32_t x) { return x - (VU){0}; }

/* The first n < VW values; the others read as zero and are not touched by a store. */
INLINE V v_load_part(const float *p, size_t n) { V v = {0}; memcpy(&v, p, n * 4); return v; }
INLINE void v_store_part(float *p, V v, size_t n) { memcpy(p, &v, n * 4); }

/* Values i .. of an array of n. */
INLINE V v_get(const float *p, size_t i, size_t n) { return i + VW <= n ? v_load(p + i) : v_load_part(p + i, n - i); }
INLINE void v_put(float *p, V v, size_t i, size_t n)
{
    if (i + VW <= n)
        v_store(p + i, v);
    else
        v_store_part(p + i, v, n - i);
}

INLINE V v_select(VI mask, V a, V b) { return (V)((mask & (VI)a) | (~mask & (VI)b)); }
INLINE V v_abs(V v) { return (V)((VU)v & 0x7fffffffu); }

/* Halves of a vector's lanes are joined until four are left, in registers, then those likewise: a fixed tree. */
typedef float V4 __attribute__((vector_size(16)));
typedef int32_t VI4 __attribute__((vector_size(16)));
#define ADD(a, b) ((a) + (b))
#define LARGER(a, b) ((((a) > (b)) & (a)) | (~((a) > (b)) & (b)))
#define JOIN_HALVES(FOUR, SOURCE, OP) \
    FOUR part[VW / 4]; \
    memcpy(part, &(SOURCE), sizeof part); \
    UNROLL for (int n = VW / 8; n > 0; n /= 2) \
        UNROLL for (int i = 0; i < n; i++) part[i] = OP(part[i], part[i + n]);

INLINE float v_sum(V v)
{
    JOIN_HALVES(V4, v, ADD)
    return (part[0][0] + part[0][2]) + (part[0][1] + part[0][3]);
}

/* Of magnitudes as integers. */
INLINE float v_largest(VI magnitudes)
{
    JOIN_HALVES(VI4, magnitudes, LARGER)
    int32_t low = XL_MAX(part[0][0], part[0][2]), high = XL_MAX(part[0][1], part[0][3]), most = XL_MAX(low, high);
    float largest;
    memcpy(&largest, &most, sizeof largest);
    return largest;
}

/* Four vectors at once: lane i of the result is what is left of v[i]. */
#define JOIN_FOUR(NAME, OP) \
    INLINE VI4 NAME(const VI *v) \
    { \
        VI4 four[4]; \
        UNROLL for (int j = 0; j < 4; j++) { \
            JOIN_HALVES(VI4, v[j], OP) \
            four[j] = part[0]; \
        } \
        UNROLL for (int j = 0; j < 4; j += 2) { \
            VI4 a = __builtin_shufflevector(four[j], four[j + 1], 0, 4, 1, 5); \
            VI4 b = __builtin_shufflevector(four[j], four[j + 1], 2, 6, 3, 7); \
            four[j] = OP(a, b); \
        } \
        VI4 a = __builtin_shufflevector(four[0], four[2], 0, 1, 4, 5); \
        VI4 b = __builtin_shufflevector(four[0], four[2], 2, 3, 6, 7); \
        return OP(a, b); \
    }
JOIN_FOUR(v_sum_4, ADD)
JOIN_FOUR(v_largest_4, LARGER)

/* Magnitudes as integers: in order too, with Inf and NaN above all numbers. Lanes' largest so far. */
INLINE VI v_larger(VI top, V v)
{
    VI magnitude = (VI)v_abs(v);
    return LARGER(magnitude, top);
}

/* ---- 16-bit formats --------------------------------------------------------------------------------------------- */

INLINE VU u_load16(const void *p) { H h; memcpy(&h, p, sizeof h); return __builtin_convertvector(h, VU); }
INLINE void u_store16(void *p, VU v) { H h = __builtin_convertvector(v, H); memcpy(p, &h, sizeof h); }

INLINE V v_from_bf16(VU h) { return (V)(h << 16); }
/* Nearest even; NaN stays NaN. */
INLINE VU v_to_bf16(V v)
{
    VU u = (VU)v, rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16, quiet = (u >> 16) | 0x40u;
    VU nan = (VU)((VI)((u & 0x7fffffffu) > 0x7f800000u));
    return (nan & quiet) | (~nan & rounded);
}

INLINE V v_load_f16(const void *p)
{
    H h;
    memcpy(&h, p, sizeof h);
#ifdef FROM_F16
    return FROM_F16(h);
#else
    VU u = __builtin_convertvector(h, VU);
    /* those below 2^-14 are made from 2^-14 and taken off again: no operand is subnormal */
    VU tiny = (VU)((VI)((u & 0x7c00u) == 0));
    V magnitude = (V)(((u & 0x7fffu) << 13) + 0x38000000u + (tiny & 0x00800000u)) - (V)(tiny & 0x38800000u);
    VU special = (VU)((VI)((u & 0x7c00u) == 0x7c00u)) & (0x7f800000u | (u & 0x3ffu) << 13);
    return (V)((VU)magnitude | special | (u & 0x8000u) << 16);
#endif
}

INLINE V v_round_f16(V v)
{
#ifdef TO_F16
    return FROM_F16(TO_F16(v));
#else
    float x[VW];
    memcpy(x, &v, sizeof v);
    for (int i = 0; i < VW; i++) x[i] = xl_round_f16(x[i]);
    return v_load(x);
#endif
}

/* What is stored when activations are `dtype`. */
INLINE V v_round_to(V v, xlstm_dtype dtype)
{
    if (dtype == XLSTM_BF16) return v_from_bf16(v_to_bf16(v));
    if (dtype == XLSTM_F16) return v_round_f16(v);
    return v;
}

INLINE float round_to(float x, xlstm_dtype dtype)
{
    if (dtype == XLSTM_BF16) return xl_round_bf16(x);
    if (dtype == XLSTM_F16) return xl_round_f16(x);
    return x;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------ */

/* Widened and narrowed by steps of two: compilers turn longer steps into scalar code. */
INLINE V v_load_i8(const void *p)
{
#ifdef FROM_I8
    return FROM_I8(p);
#endif
    B b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(__builtin_convertvector(b, S), VI), V);
}

/* ---- functions -------------------------------------------------------------------------------------------------- */

/* Nearest integer, for |x| < 2^22. */
INLINE V v_nearest(V x) { return (x + 12582912.0f) - 12582912.0f; }
/* The same as an integer, which adding that number leaves in the lowest bits; and small ones as bytes. */
INLINE VI v_level(V x) { return (VI)(x + 12582912.0f) - 0x4b400000; }
INLINE B v_to_bytes(VI level) { return __builtin_convertvector(__builtin_convertvector(level, S), B); }

/* e^x within 2 ulp: x = n ln 2 + r, Taylor to degree 7 on |r| < 0.35, scaled in two steps so that the largest and
 * smallest results come out right. NaN goes through. */
INLINE V v_exp(V x)
{
    x = v_select(x < -104.0f, v_all(-104.0f), x);
    x = v_select(x > 89.0f, v_all(89.0f), x);
    V n = v_nearest(x * 1.44269504f);
    n = v_select(n == n, n, v_all(0)); /* NOLINT(misc-redundant-expression): not for NaN */
    V r = FMA(n, v_all(-0.693359375f), x);
    r = FMA(n, v_all(2.12194440e-4f), r);
    V p = FMA(r, v_all(1.0f / 5040), v_all(1.0f / 720));
    p = FMA(p, r, v_all(1.0f / 120));
    p = FMA(p, r, v_all(1.0f / 24));
    p = FMA(p, r, v_all(1.0f / 6));
    p = FMA(p, r, v_all(0.5f));
    p = FMA(p, r, v_all(1.0f));
    p = FMA(p, r, v_all(1.0f));
    VI e = __builtin_convertvector(n, VI), low = e >> 1, high = e - low;
    return p * (V)((VU)(low + 127) << 23) * (V)((VU)(high + 127) << 23);
}

INLINE V v_sigmoid(V x) { return 1.0f / (1.0f + v_exp(-x)); }

/* Within 3 ulp: below 0.625 a polynomial in x^2 (Chebyshev fit of (tanh(x)/x - 1)/x^2), above through e^2x. */
INLINE V v_tanh(V x)
{
    V a = v_abs(x), z = x * x;
    V p = FMA(z, v_all(0.0022183629f), v_all(-0.008276126f));
    p = FMA(p, z, v_all(0.02174755f));
    p = FMA(p, z, v_all(-0.053956557f));
    p = FMA(p, z, v_all(0.13333292f));
    p = FMA(p, z, v_all(-0.33333334f));
    V near = FMA(x * z, p, x), far = 1.0f - 2.0f / (v_exp(a + a) + 1.0f);
    far = (V)((VU)far | ((VU)x & 0x80000000u));
    return v_select(a < 0.625f, near, far);
}

/* ---- walking a product -------------------------------------------------------------------------------------------- */

/* The weights of a block to come, fetched while this one is multiplied: the machine's own prefetcher stops where a block is
 * used for many rows, and too late when it is used for one. Every tile of rows fetches its share, `lines` at a time. */
typedef struct fetch {
    uintptr_t at, end; /* may lie past the last panel */
    uint32_t lines;
    bool kept; /* xl_cpu_panels.kept */
} fetch;

/* The last argument of the builtin: 3 means all caches, 2 the second-level one and those behind it, 0 the nearest alone. */
INLINE void fetch_line(uintptr_t at, bool kept, bool one_row)
{
    if (__builtin_expect(!kept, 1)) /* told otherwise, gcc lays out the whole kernel anew: one row of Q4_K 4 % slower */
        __builtin_prefetch((const void *)at, 0, 0);
    else if (one_row)
        __builtin_prefetch((const void *)at, 0, 2);
    else
        __builtin_prefetch((const void *)at, 0, 3);
}

INLINE void fetch_some(fetch *f)
{
    for (uint32_t i = 0; i < f->lines && f->at < f->end; i++, f->at += 64) fetch_line(f->at, f->kept, false);
}

/* For a single row, where every instruction counts: step i of n that cover `bytes`, all constants but `at`. */
INLINE void fetch_step(const fetch *f, size_t at, size_t bytes, size_t i, size_t n, bool kept)
{
    const size_t lines = (bytes + 63) / 64;
    UNROLL for (size_t line = i * lines / n; line < (i + 1) * lines / n; line++) {
        fetch_line(f->at + at + line * 64, kept, true);
    }
    __asm__ volatile("" : : : "memory"); /* or compilers gather the fetches of many steps in one place */
}

/* One block of K of one panel, and one tile of activation rows to multiply it with. */
typedef struct tile {
    const uint8_t *w;
    size_t k, span; /* first value of K, how many */
    bool wide;      /* a full panel, not the narrow last one */
    float *out;     /* [rows][PANEL]: sums, added to unless k is 0 */
    const void *x;
    uint32_t rows; /* while preparing: of all tiles */
    bool direct;   /* weights are multiplied out of the panel; of use to block formats */
    fetch ahead;
    const uint8_t *next; /* x of the tile to come; may lie past the last */
} tile;

/* Of the activations of the tile to come `bytes` from `at` on: they are further away than the weights, and the machine's own
 * prefetcher begins anew with each tile. */
INLINE void fetch_rows(const tile *t, size_t at, size_t bytes)
{
    UNROLL for (size_t line = 0; line < bytes; line += 64) __builtin_prefetch(t->next + at + line);
}

/* Sizes of a product's operands in bytes: 256 values of a weight row, 256 of an activation row, a whole packed row; and
 * how often a tile calls fetch_some for 32 values of K. */
typedef struct walk_sizes {
    size_t w_256, x_256, x_row;
    uint32_t most_rows, steps_32;
} walk_sizes;

/* Many rows: blocks of K outermost, then panels, then tiles, so that a block of weights stays in the first-level cache for all
 * tiles, the activations of a block in the second-level cache for all panels. Few rows: as the weights lie in memory. `prepare`
 * sees a block first, without tile. */
INLINE void walk(float *out, const xl_cpu_panels *panels, const uint8_t *x, uint32_t rows, size_t K, size_t panel,
                 walk_sizes s, void (*prepare)(tile *b, void *), void (*multiply)(tile *b, void *), void *context)
{
    enum { AHEAD = 8192 }; /* bytes at full bandwidth while memory answers */
    uint32_t tiles = xl_cpu_tiles(rows, s.most_rows), steps = s.steps_32 * XL_CPU_K_BLOCK / 32 * tiles;
    const size_t bytes = panel * s.w_256, side = panels->in_turn ? 1 : panels->count;
    for (size_t from = 0; from < panels->count; from += side)
        for (size_t k = 0; k < K; k += XL_CPU_K_BLOCK)
            for (size_t p = 0; p < side; p++) {
                size_t width = from + p + 1 < panels->count ? panel : panels->last_width, row = 0;
                const uint8_t *first = panels->first + from * panels->bytes;
                tile b = {.k = k, .span = XL_MIN(K - k, (size_t)XL_CPU_K_BLOCK), .wide = width == panel, .rows = rows};
                b.w = first + p * panels->bytes + k / XL_CPU_K_BLOCK * width * s.w_256;
                size_t next = p + (AHEAD + bytes - 1) / bytes; /* counted in blocks, panels first */
                b.ahead.at = (uintptr_t)first + next % side * panels->bytes + (k / XL_CPU_K_BLOCK + next / side) * bytes;
                b.ahead.end = b.ahead.at + bytes;
                b.ahead.kept = panels->kept || !panels->in_turn; /* many tiles would push them out of the first-level cache again */
                b.ahead.lines = (uint32_t)((bytes / 64 + steps - 1) / steps);
                prepare(&b, context);
                for (uint32_t t = 0; t < tiles; t++, row += b.rows) {
                    const uint32_t to_come = t + 1 < tiles ? t + 1 : 0;
                    b.rows = xl_cpu_tile_rows(rows, s.most_rows, t);
                    b.out = out + ((from + p) * (size_t)rows + row) * panel;
                    b.x = x + row * s.x_row + k / XL_CPU_K_BLOCK * s.x_256 * b.rows;
                    b.next = x + (to_come ? row + b.rows : 0) * s.x_row +
                             (k / XL_CPU_K_BLOCK + (!to_come && p + 1 == side)) * s.x_256 * xl_cpu_tile_rows(rows, s.most_rows, to_come);
                    multiply(&b, context);
                }
            }
}

INLINE void prepare_nothing(tile *b, void *context) { (void)b, (void)context; }

#endif
