/*
 * cpu_avx512.c — the cpu kernels for AVX-512 (F, BW, VL, DQ). Bfloat16 and int8 products have files of their own.
 */
#if !defined(__AVX512F__) || !defined(__AVX512BW__) || !defined(__AVX512VL__) || !defined(__AVX512DQ__)
#error "compile this file with -mavx512f -mavx512bw -mavx512vl -mavx512dq"
#endif
#include <immintrin.h>

#define VW 16
#define NV 2
#define MR 12
#define GR 6
#define GN 4
#define SN 16
#define FMA(a, b, c) ((V)_mm512_fmadd_ps(a, b, c))
#define FROM_F16(h) ((V)_mm512_cvtph_ps((__m256i)(h)))
#define TO_F16(v) ((H)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))

#include "cpu_product.h"
#include "cpu_cell.h"

const xl_cpu_kernels xl_cpu_kernels_avx512 = {
    .name = "avx512",
    .bit = XLSTM_CPU_AVX512,
    .lanes = VW,
    .panel = PANEL,
    .tile = MR,
    .product = {[XLSTM_F32] = {product_f32, XL_CPU_PACK_F32},
                [XLSTM_F16] = {product_f16, XL_CPU_PACK_F32},
                [XLSTM_BF16] = {product_bf16, XL_CPU_PACK_F32}},
    .pack = {[XL_CPU_PACK_F32] = pack_f32, [XL_CPU_PACK_BF16] = pack_bf16},
    CELL_KERNELS,
};
