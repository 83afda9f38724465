/*
 * cpu_amx.c — products of bfloat16 weights and bfloat16 activations on the matrix unit (TDPBF16PS). The panels of the
 * other kernels are already in the unit's layout: 16 pairs of K a tile, 16 weight rows across, a row of tile every 128
 * bytes. Sums stay in tiles for K_SPAN values of K and then wait in memory, unrounded, so that one chain of additions
 * runs along all of K whatever the number of rows. Subnormals count as zero, as in the vector instruction.
 */
#if !defined(__AMX_TILE__) || !defined(__AMX_BF16__)
#error "compile this file with -mamx-tile -mamx-bf16"
#endif
#include <immintrin.h>

#include "cpu_kernels.h"

enum { PANEL = 32, TILE = 16, STEP = 32 /* values of K a multiplication takes */, K_SPAN = 1024 };

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

/* Steps of K for one or two groups of rows (a, b: packed tiles) and one or two halves of a panel. */
#define MULTIPLY(two_groups, two_halves) \
    for (size_t k = 0; k < steps; k++) { \
        const uint8_t *at = w + k * STEP * width * 2; \
        _tile_loadd(4, a + k * STEP * 2 * first, 64); \
        if (two_groups) _tile_loadd(5, b + k * STEP * 2 * second, 64); \
        _tile_loadd(6, at, width * 4); \
        _tile_dpbf16ps(0, 4, 6); \
        if (two_groups) _tile_dpbf16ps(2, 5, 6); \
        if (two_halves) { \
            _tile_loadd(7, at + 64, width * 4); \
            _tile_dpbf16ps(1, 4, 7); \
            if (two_groups) _tile_dpbf16ps(3, 5, 7); \
        } \
    }

static void block(float *out, const uint8_t *w, size_t width, const uint8_t *a, const uint8_t *b, uint32_t first,
                  uint32_t second, size_t steps, bool fresh)
{
    float *below = out + (size_t)first * PANEL;
    bool wide = width == PANEL;
    if (fresh) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, out, PANEL * 4);
        if (wide) _tile_loadd(1, out + TILE, PANEL * 4);
        if (second) _tile_loadd(2, below, PANEL * 4);
        if (second && wide) _tile_loadd(3, below + TILE, PANEL * 4);
    }
    if (second && wide) {
        MULTIPLY(true, true)
    } else if (wide) {
        MULTIPLY(false, true)
    } else if (second) {
        MULTIPLY(true, false)
    } else {
        MULTIPLY(false, false)
    }
    _tile_stored(0, out, PANEL * 4);
    if (wide) _tile_stored(1, out + TILE, PANEL * 4);
    if (second) _tile_stored(2, below, PANEL * 4);
    if (second && wide) _tile_stored(3, below + TILE, PANEL * 4);
}

static void product(float *out, const xl_cpu_panels *panels, const void *x, uint32_t rows, size_t K)
{
    size_t padded = xl_round_up(K, STEP);
    uint32_t tiles = xl_cpu_tiles(rows, TILE), set_first = 0, set_second = 0;
    for (size_t from = 0; from < padded; from += K_SPAN) {
        size_t span = XL_MIN(padded - from, (size_t)K_SPAN), row = 0;
        /* the last step may reach past the panel's end: its weights are copied and padded with zeros */
        size_t whole = XL_MIN(span, K - from) / STEP, left = XL_MIN(span, K - from) % STEP;
        for (uint32_t t = 0; t < tiles; t += 2) {
            uint32_t first = xl_cpu_tile_rows(rows, TILE, t);
            uint32_t second = t + 1 < tiles ? xl_cpu_tile_rows(rows, TILE, t + 1) : 0;
            if (first != set_first || second != set_second) configure(first, second);
            set_first = first;
            set_second = second;
            const uint8_t *a = (const uint8_t *)x + row * padded * 2 + from * 2 * first;
            const uint8_t *b = (const uint8_t *)x + (row + first) * padded * 2 + from * 2 * second;
            for (uint32_t p = 0; p < panels->count; p++) {
                size_t width = p + 1 < panels->count ? PANEL : panels->last_width;
                const uint8_t *w = panels->first + p * panels->bytes + from * width * 2;
                float *sums = out + ((size_t)p * rows + row) * PANEL;
                if (whole > 0) block(sums, w, width, a, b, first, second, whole, from == 0);
                if (left > 0) {
                    _Alignas(64) uint8_t end[STEP * PANEL * 2] = {0};
                    memcpy(end, w + whole * STEP * width * 2, (left + (left & 1)) * width * 2);
                    block(sums, end, width, a + whole * STEP * 2 * first, b + whole * STEP * 2 * second, first, second,
                          1, from == 0 && whole == 0);
                }
            }
            row += first + second;
        }
    }
    _tile_release();
}

/* [K/32][rows][32] bfloat16 */
static void pack(void *out, const float *x, size_t x_row, uint32_t rows, size_t K)
{
    uint16_t *o = out;
    for (size_t k = 0; k < K; k += STEP, o += STEP * rows)
        for (uint32_t r = 0; r < rows; r++) {
            const float *in = x + r * x_row + k;
            size_t n = XL_MIN(K - k, (size_t)STEP);
            for (size_t i = 0; i < n; i++) o[r * STEP + i] = xl_f32_to_bf16(in[i]);
            for (size_t i = n; i < STEP; i++) o[r * STEP + i] = 0;
        }
}

const xl_cpu_product xl_cpu_product_bf16_amx = {product, XL_CPU_PACK_TILES};
const xl_cpu_pack_fn xl_cpu_pack_amx = pack;
