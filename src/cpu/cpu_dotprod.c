/*
 * cpu_dotprod.c — products of ggml block formats for 64-bit Arm with the dot product extension (sdot).
 */
#if !defined(__ARM_FEATURE_DOTPROD)
#error "compile this file with -march=armv8.2-a+dotprod"
#endif
#include <arm_neon.h>

#define VW 4
#define NV 4
#define QR 4
#define FMA(a, b, c) ((V)vfmaq_f32(c, a, b))
#define FROM_F16(h) ((V)vcvt_f32_f16((float16x4_t)(h)))
#define TO_F16(v) ((H)vcvt_f16_f32(v))
#define DOT4(sum, w, x) ((VI)vdotq_s32((int32x4_t)(sum), (int8x16_t)(w), (int8x16_t)(x)))
#define DOT4_Q8(sum, w, x) DOT4(sum, (w) ^ 0x80808080u, x)
#define Q8_BIAS 0

#include "cpu_quant.h"

const xl_cpu_product_fn xl_cpu_products_dotprod[XLSTM_DTYPE_COUNT] = {
    [XLSTM_Q8_0] = product_q8_0, [XLSTM_Q6_K] = product_q6_k, [XLSTM_Q5_K] = product_q5_k,
    [XLSTM_Q4_K] = product_q4_k, [XLSTM_Q4_0] = product_q4_0,
};
