/*
 * cpu_avx512bf16.c — products of bfloat16 weights with activations that are bfloat16 anyway, two at a time
 * (vdpbf16ps). The machine's instruction treats subnormal operands and results as zero; normal numbers are exact
 * products summed in float32. Same panels as the float32 product.
 */
#if !defined(__AVX512BF16__)
#error "compile this file with -mavx512f -mavx512bf16"
#endif
#include <immintrin.h>

#define VW 16
#define NV 2
#define MR 12
#define FMA(a, b, c) ((V)_mm512_fmadd_ps(a, b, c))

#include "cpu_vec.h"

enum { PANEL = NV * VW };

INLINE void tile_block(tile *b, int mr, int nv)
{
    const size_t step = (size_t)nv * VW * 4, steps = mr == 1 ? 4 : 1; /* taken at once, two values of K each */
    const uint8_t *w = b->w;
    const uint32_t *x = b->x;
    __m512 sum[MR][NV];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) sum[r][v] = _mm512_setzero_ps();
    for (size_t k = 0; k < b->span; k += 2 * steps) {
        if (mr == 1) {
            fetch_step(&b->ahead, k / 2 * step, steps * step, 0, 1, false);
        } else {
            fetch_some(&b->ahead);
            fetch_rows(b, k * (size_t)mr * 2, (size_t)mr * 4);
        }
        UNROLL for (size_t i = 0; i < steps; i++, w += step, x += mr) {
            if (i > 0 && k + 2 * i >= b->span) break;
            __m512bh pair[NV];
            UNROLL for (int v = 0; v < nv; v++) pair[v] = (__m512bh)_mm512_loadu_si512(w + (size_t)v * VW * 4);
            UNROLL for (int r = 0; r < mr; r++) {
                __m512bh a = (__m512bh)_mm512_set1_epi32((int)x[r]);
                UNROLL for (int v = 0; v < nv; v++) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], a, pair[v]);
            }
        }
    }
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) {
            float *at = b->out + r * PANEL + v * VW;
            v_store(at, b->k == 0 ? (V)sum[r][v] : v_load(at) + (V)sum[r][v]);
        }
}

#define TILE_CASE(n) \
    case n: \
        if (b->wide) \
            tile_block(b, n, NV); \
        else \
            tile_block(b, n, 1); \
        break;

INLINE void multiply(tile *b, void *context)
{
    (void)context;
    switch (b->rows) {
        TILE_CASE(1) TILE_CASE(2) TILE_CASE(3) TILE_CASE(4) TILE_CASE(5) TILE_CASE(6) TILE_CASE(7) TILE_CASE(8)
        TILE_CASE(9) TILE_CASE(10) TILE_CASE(11) TILE_CASE(12)
    default: break;
    }
}

static void product(float *out, const xl_cpu_panels *panels, const void *x, uint32_t rows, size_t K)
{
    size_t padded = K + (K & 1);
    walk_sizes s = {.w_256 = 512, .x_256 = 512, .x_row = padded * 2, .most_rows = MR, .steps_32 = 16};
    walk(out, panels, x, rows, padded, PANEL, s, prepare_nothing, multiply, NULL);
}

const xl_cpu_product_fn xl_cpu_product_bf16_avx512bf16 = product;
