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
#define QR 2
#define GR 6
#define GN 2
#define SN 8
#define FMA(a, b, c) ((V)_mm256_fmadd_ps(a, b, c))
#define FROM_I8(p) ((V)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p)))))
#define FROM_F16(h) ((V)_mm256_cvtph_ps((__m128i)(h)))
#define TO_F16(v) ((H)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))

/* vpmaddubsw saturates at 16 bits: weights below 128 are safe as they are, the others go through their magnitude. */
#define DOT4(sum, w, x) \
    ((VI)_mm256_add_epi32((__m256i)(sum), _mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)(w), (__m256i)(x)), \
                                                            _mm256_set1_epi16(1))))
#define DOT4_Q8(sum, w, x) dot4_q8(sum, w, x)
#define DOT2(sum, w, x) ((VI)_mm256_add_epi32((__m256i)(sum), _mm256_madd_epi16((__m256i)(w), (__m256i)(x))))
#define Q8_BIAS 0

#include "cpu_product.h"
static inline VI dot4_q8(VI sum, VU w, VU x)
{
    __m256i plain = _mm256_xor_si256((__m256i)w, _mm256_set1_epi8((char)0x80));
    return DOT4(sum, _mm256_abs_epi8(plain), _mm256_sign_epi8((__m256i)x, plain));
}

#include "cpu_quant.h"
#include "cpu_cell.h"

const xl_cpu_kernels xl_cpu_kernels_avx2 = {
    .name = "avx2",
    .bit = XLSTM_CPU_AVX2,
    .lanes = VW,
    .panel = PANEL,
    .tile = {[XL_CPU_PACK_F32] = MR, [XL_CPU_PACK_BF16] = MR, [XL_CPU_PACK_Q8] = QR},
    .product = {[XLSTM_F32] = {product_f32, XL_CPU_PACK_F32},
                [XLSTM_F16] = {product_f16, XL_CPU_PACK_F32},
                [XLSTM_BF16] = {product_bf16, XL_CPU_PACK_F32},
                QUANT_PRODUCTS},
    .pack = {[XL_CPU_PACK_F32] = pack_f32, [XL_CPU_PACK_BF16] = pack_bf16, [XL_CPU_PACK_Q8] = pack_q8},
    CELL_KERNELS,
};
