/*
 * cpu_avx512vnni.c — products of ggml block formats with one instruction for four byte products (vpdpbusd).
 */
#if !defined(__AVX512VNNI__)
#error "compile this file with -mavx512f -mavx512vnni"
#endif
#include <immintrin.h>

#define VW 16
#define NV 2
#define QR 6
#define FMA(a, b, c) ((V)_mm512_fmadd_ps(a, b, c))
#define FROM_I8(p) ((V)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p)))))
#define FROM_F16(h) ((V)_mm512_cvtph_ps((__m256i)(h)))
#define TO_F16(v) ((H)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT))
#define DOT4(sum, w, x) ((VI)_mm512_dpbusd_epi32((__m512i)(sum), (__m512i)(w), (__m512i)(x)))
#define DOT4_Q8 DOT4
#define DOT4_WHOLE
#define DOT2(sum, w, x) ((VI)_mm512_dpwssd_epi32((__m512i)(sum), (__m512i)(w), (__m512i)(x)))
#define Q8_BIAS 128

#include "cpu_quant.h"

const xl_cpu_product_fn xl_cpu_products_avx512vnni[XLSTM_DTYPE_COUNT] = {
    [XLSTM_Q8_0] = product_q8_0, [XLSTM_Q6_K] = product_q6_k, [XLSTM_Q5_K] = product_q5_k,
    [XLSTM_Q4_K] = product_q4_k, [XLSTM_Q4_0] = product_q4_0,
};
