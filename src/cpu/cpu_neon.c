/*
 * cpu_neon.c — the cpu kernels for 64-bit Arm.
 */
#include <arm_neon.h>

#define VW 4
#define NV 4
#define MR 6
#define GR 6
#define GN 4
#define SN 8
#define FMA(a, b, c) ((V)vfmaq_f32(c, a, b))
#define FROM_F16(h) ((V)vcvt_f32_f16((float16x4_t)(h)))
#define TO_F16(v) ((H)vcvt_f16_f32(v))

#include "cpu_product.h"
#include "cpu_cell.h"

const xl_cpu_kernels xl_cpu_kernels_neon = {
    .name = "neon",
    .bit = XLSTM_CPU_NEON,
    .lanes = VW,
    .panel = PANEL,
    .tile = MR,
    .product = {[XLSTM_F32] = {product_f32, XL_CPU_PACK_F32},
                [XLSTM_F16] = {product_f16, XL_CPU_PACK_F32},
                [XLSTM_BF16] = {product_bf16, XL_CPU_PACK_F32}},
    .pack = {[XL_CPU_PACK_F32] = pack_f32, [XL_CPU_PACK_BF16] = pack_bf16},
    CELL_KERNELS,
};
