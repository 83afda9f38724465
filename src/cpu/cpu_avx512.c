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
#define QR 6
#define GR 6
#define GN 4
#define SN 16
#define FMA(a, b, c) ((V)_mm512_fmadd_ps(a, b, c))
#define FROM_I8(p) ((V)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p)))))
#define FROM_F16(h) ((V)_mm512_cvtph_ps((__m256i)(h)))
#define TO_F16(v) ((H)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))

/* vpmaddubsw saturates at 16 bits: weights below 128 are safe as they are, the others go through their magnitude. */
#define DOT4(sum, w, x) \
    ((VI)_mm512_add_epi32((__m512i)(sum), _mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)(w), (__m512i)(x)), \
                                                            _mm512_set1_epi16(1))))
#define DOT4_Q8(sum, w, x) dot4_q8(sum, w, x)
#define DOT2(sum, w, x) ((VI)_mm512_add_epi32((__m512i)(sum), _mm512_madd_epi16((__m512i)(w), (__m512i)(x))))
#define Q8_BIAS 0

#include "cpu_product.h"
static inline VI dot4_q8(VI sum, VU w, VU x)
{
    __m512i plain = _mm512_xor_si512((__m512i)w, _mm512_set1_epi8((char)0x80)), xs = (__m512i)x;
    return DOT4(sum, _mm512_abs_epi8(plain),
                _mm512_mask_sub_epi8(xs, _mm512_movepi8_mask(plain), _mm512_setzero_si512(), xs));
}

#include "cpu_quant.h"
#include "cpu_cell.h"

const xl_cpu_kernels xl_cpu_kernels_avx512 = {
    .name = "avx512",
    .bit = XLSTM_CPU_AVX512,
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
