/*
 * cpu_avx2.c — the cpu kernels for AVX2 with FMA and half-precision conversion.
 */
#if !defined(__AVX2__) || !defined(__FMA__) || !defined(__F16C__)
#error "compile this file with -mavx2 -mfma -mf16c"
#endif
#include <immintrin.h>

#define VW 8
#define NV 2
#define MR 6
#define GR 6
#define GN 2
#define SN 8
#define FMA(a, b, c) ((V)_mm256_fmadd_ps(a, b, c))
#define FROM_F16(h) ((V)_mm256_cvtph_ps((__m128i)(h)))
#define TO_F16(v) ((H)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))

#include "cpu_product.h"
#include "cpu_cell.h"

const xl_cpu_kernels xl_cpu_kernels_avx2 = {
    .name = "avx2",
    .bit = XLSTM_CPU_AVX2,
    .lanes = VW,
    .panel = PANEL,
    .tile = MR,
    .product = {[XLSTM_F32] = {product_f32, XL_CPU_PACK_F32},
                [XLSTM_F16] = {product_f16, XL_CPU_PACK_F32},
                [XLSTM_BF16] = {product_bf16, XL_CPU_PACK_F32}},
    .pack = {[XL_CPU_PACK_F32] = pack_f32, [XL_CPU_PACK_BF16] = pack_bf16},
    CELL_KERNELS,
};
