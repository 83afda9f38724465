/*
 * cpu_neon.c — the cpu kernels for 64-bit Arm.
 */
#include <arm_neon.h>

#define VW 4
#define NV 4
#define MR 6
#define QR 4
#define GR 6
#define GN 4
#define SN 8
#define FMA(a, b, c) ((V)vfmaq_f32(c, a, b))
#define FROM_F16(h) ((V)vcvt_f32_f16((float16x4_t)(h)))
#define TO_F16(v) ((H)vcvt_f16_f32(v))

#include "cpu_product.h"
static inline VI dot4(VI sum, VU w, VU x)
{
    int8x16_t a = (int8x16_t)w, b = (int8x16_t)x;
    int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    int32x4_t high = vpaddlq_s16(vmull_s8(vget_high_s8(a), vget_high_s8(b)));
    return (VI)vaddq_s32((int32x4_t)sum, vpaddq_s32(low, high));
}
#define DOT4(sum, w, x) dot4(sum, w, x)
#define DOT4_Q8(sum, w, x) dot4(sum, (w) ^ 0x80808080u, x)
#define Q8_BIAS 0

#include "cpu_quant.h"
#include "cpu_cell.h"

const xl_cpu_kernels xl_cpu_kernels_neon = {
    .name = "neon",
    .bit = XLSTM_CPU_NEON,
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
