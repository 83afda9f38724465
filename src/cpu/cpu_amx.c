/*
 * cpu_amx.c — products with bfloat16 weights on the matrix unit (TDPBF16PS). The panels of the other kernels are
 * already in the unit's layout: 16 pairs of K a tile, 16 weight rows across, a row of tile every 128 bytes.
 *
 * Bfloat16 activations are multiplied as they are. Float32 activations are split into three bfloat16 numbers whose sum
 * they are (8 + 8 + 8 bits), each multiplied with the same weights and added to the same sums: three times the work, but
 * the unit is more than ten times faster than the vector units, and products stay exact. What lies below 2^-126 counts
 * as zero, as in the vector instruction. Every K_SPAN values of K are summed up by themselves, then added to the total.
 */
#if !(defined(__AMX_TILE__) && defined(__AMX_BF16__)) && !(defined(__AMXTILE__) && defined(__AMXBF16__)) /* gcc, clang */
#error "compile this file with -mamx-tile -mamx-bf16"
#endif
#include <immintrin.h>

#include "cpu_kernels.h"

#include <math.h>

#define INLINE static inline __attribute__((always_inline))

enum { PANEL = 32, TILE = 16, STEP = 32 /* values of K a multiplication takes */, FETCH = 2, K_SPAN = 1024 };

typedef struct config {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} config;

/* Tiles 0..3: sums of two groups of activation rows x two halves of a panel; 4, 5: activations; 6, 7: weights. */
static void configure(uint32_t first, uint32_t second)
{
    _Alignas(64) config c = {.palette = 1};
    for (int i = 0; i < 8; i++) c.row_bytes[i] = 64;
    c.rows[0] = c.rows[1] = c.rows[4] = (uint8_t)first;
    c.rows[2] = c.rows[3] = c.rows[5] = (uint8_t)(second ? second : 1);
    c.rows[6] = c.rows[7] = TILE;
    __asm__ volatile("" : : "r"(&c) : "memory"); /* gcc 12 thinks that only 8 bytes of it are read */
    _tile_loadconfig(&c);
}

/* Brings what is `ahead` bytes further on from the second-level cache to the first. The address may lie outside. */
INLINE void fetch(const uint8_t *p, size_t ahead, size_t rows, size_t row_bytes)
{
    for (size_t r = 0; r < rows; r++) __builtin_prefetch((const void *)((uintptr_t)p + ahead + r * row_bytes));
}

/* Two groups of activation rows, packed tiles of `first` and `second` (0: no second group) rows. */
typedef struct groups {
    const uint8_t *a, *b;
    uint32_t first, second;
} groups;

/* sums of `steps` steps of K, into out [first + second][PANEL] */
INLINE void multiply(float *out, const uint8_t *w, size_t width, const groups *g, size_t steps, size_t parts, bool two,
                     bool wide)
{
    size_t a_bytes = (size_t)g->first * STEP * 2, b_bytes = (size_t)g->second * STEP * 2, step = STEP * width * 2;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    const uint8_t *a = g->a, *b = g->b;
    for (size_t k = 0; k < steps; k++, w += step) {
        _tile_loadd(6, w, width * 4);
        if (wide) _tile_loadd(7, w + 64, width * 4);
        fetch(w, FETCH * step, TILE * width / PANEL * 2, 64);
        for (size_t part = 0; part < parts; part++, a += a_bytes, b += b_bytes) {
            _tile_loadd(4, a, 64);
            _tile_dpbf16ps(0, 4, 6);
            fetch(a, FETCH * parts * a_bytes, g->first, 64);
            if (wide) _tile_dpbf16ps(1, 4, 7);
            if (two) {
                _tile_loadd(5, b, 64);
                _tile_dpbf16ps(2, 5, 6);
                fetch(b, FETCH * parts * b_bytes, g->second, 64);
                if (wide) _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
    float *below = out + (size_t)g->first * PANEL;
    _tile_stored(0, out, PANEL * 4);
    if (wide) _tile_stored(1, out + TILE, PANEL * 4);
    if (two) _tile_stored(2, below, PANEL * 4);
    if (two && wide) _tile_stored(3, below + TILE, PANEL * 4);
}

static void block(float *sums, const uint8_t *w, size_t width, const groups *g, size_t steps, size_t parts, bool fresh)
{
    _Alignas(64) float some[2 * TILE * PANEL];
    float *out = fresh ? sums : some;
    if (g->second && width == PANEL) {
        multiply(out, w, width, g, steps, parts, true, true);
    } else if (width == PANEL) {
        multiply(out, w, width, g, steps, parts, false, true);
    } else if (g->second) {
        multiply(out, w, width, g, steps, parts, true, false);
    } else {
        multiply(out, w, width, g, steps, parts, false, false);
    }
    if (fresh) return;
    for (uint32_t r = 0; r < g->first + g->second; r++)
        for (size_t v = 0; v < width; v += 16) {
            float *at = sums + (size_t)r * PANEL + v;
            _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), _mm512_loadu_ps(some + (size_t)r * PANEL + v)));
        }
}

INLINE void product(float *out, const xl_cpu_panels *panels, const uint8_t *x, uint32_t rows, size_t K, size_t parts)
{
    size_t row_bytes = xl_round_up(K, STEP) * 2 * parts;
    uint32_t tiles = xl_cpu_tiles(rows, TILE), set_first = 0, set_second = 0;
    for (size_t from = 0; from < K; from += K_SPAN) {
        size_t span = XL_MIN(K - from, (size_t)K_SPAN), row = 0, whole = span / STEP, left = span % STEP;
        for (uint32_t t = 0; t < tiles; t += 2) {
            groups g = {.first = xl_cpu_tile_rows(rows, TILE, t)};
            g.second = t + 1 < tiles ? xl_cpu_tile_rows(rows, TILE, t + 1) : 0;
            if (g.first != set_first || g.second != set_second) configure(g.first, g.second);
            set_first = g.first;
            set_second = g.second;
            g.a = x + row * row_bytes + from * 2 * parts * g.first;
            g.b = x + (row + g.first) * row_bytes + from * 2 * parts * g.second;
            groups end = g;
            end.a += whole * STEP * 2 * parts * g.first;
            end.b += whole * STEP * 2 * parts * g.second;
            for (uint32_t p = 0; p < panels->count; p++) {
                size_t width = p + 1 < panels->count ? PANEL : panels->last_width;
                const uint8_t *w = panels->first + p * panels->bytes + from * width * 2;
                float *sums = out + ((size_t)p * rows + row) * PANEL;
                if (whole > 0) block(sums, w, width, &g, whole, parts, from == 0);
                if (left > 0) { /* a whole step would reach past the panel's end */
                    _Alignas(64) uint8_t rest[STEP * PANEL * 2] = {0};
                    memcpy(rest, w + whole * STEP * width * 2, (left + (left & 1)) * width * 2);
                    block(sums, rest, width, &end, 1, parts, from == 0 && whole == 0);
                }
            }
            row += g.first + g.second;
        }
    }
    _tile_release();
}

/* Panels together, or one after the other. */
INLINE void products(float *out, const xl_cpu_panels *panels, const uint8_t *x, uint32_t rows, size_t K, size_t parts)
{
    xl_cpu_panels some = *panels;
    if (panels->in_turn) some.count = 1;
    for (uint32_t p = 0; p < panels->count; p += some.count, some.first += panels->bytes) {
        some.last_width = p + some.count < panels->count ? PANEL : panels->last_width;
        product(out + (size_t)p * rows * PANEL, &some, x, rows, K, parts);
    }
}

static void product_bf16(float *out, const xl_cpu_panels *panels, const void *x, uint32_t rows, size_t K)
{
    products(out, panels, x, rows, K, 1);
}

static void product_split(float *out, const xl_cpu_panels *panels, const void *x, uint32_t rows, size_t K)
{
    products(out, panels, x, rows, K, 3);
}

/* The first n of 16 values. */
INLINE __m512 load_some(const float *p, size_t n)
{
    return _mm512_maskz_loadu_ps((__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1), p);
}

/* 32 values as one or three bfloat16 numbers each. A NaN or Inf stays one in the first; what it leaves to the others is
 * zero, so that an Inf does not turn into a NaN. */
INLINE void put_parts(uint16_t *out, size_t next, const float *in, size_t n, size_t parts)
{
    __m512 x[2] = {load_some(in, n), load_some(in + 16, n > 16 ? n - 16 : 0)};
    for (size_t part = 0; part < parts; part++, out += next) {
        __m512bh both = _mm512_cvtne2ps_pbh(x[1], x[0]);
        memcpy(out, &both, sizeof both);
        if (part + 1 == parts) break;
        for (int h = 0; h < 2; h++) {
            __m512i half = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)(out + 16 * h)));
            __m512 whole = _mm512_castsi512_ps(_mm512_slli_epi32(half, 16)), rest = _mm512_sub_ps(x[h], whole);
            x[h] = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(rest, _mm512_set1_ps(INFINITY), _CMP_LT_OQ) &
                                           _mm512_cmp_ps_mask(rest, _mm512_set1_ps(-INFINITY), _CMP_GT_OQ),
                                       rest);
        }
    }
}

INLINE void pack(uint16_t *out, const float *x, size_t x_row, uint32_t rows, size_t K, size_t parts)
{
    for (size_t k = 0; k < K; k += STEP, out += STEP * rows * parts)
        for (uint32_t r = 0; r < rows; r++)
            put_parts(out + r * STEP, (size_t)STEP * rows, x + r * x_row + k, XL_MIN(K - k, (size_t)STEP), parts);
}

static void pack_bf16(void *out, const float *x, size_t x_row, uint32_t rows, size_t K)
{
    pack(out, x, x_row, rows, K, 1);
}

static void pack_split(void *out, const float *x, size_t x_row, uint32_t rows, size_t K)
{
    pack(out, x, x_row, rows, K, 3);
}

const xl_cpu_product xl_cpu_products_amx[2] = {{product_bf16, XL_CPU_PACK_TILES}, {product_split, XL_CPU_PACK_SPLIT}};
const xl_cpu_pack_fn xl_cpu_packs_amx[2] = {pack_bf16, pack_split};
