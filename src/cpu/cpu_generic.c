/*
 * cpu_generic.c — the cpu kernels for the baseline of whatever machine this is compiled for, four lanes wide and without
 * fused multiply-add. The other cpu_<set>.c files compile the same bodies for wider machines.
 */
#define VW 4
#define NV 2
#define MR 4
#define QR 2
#define GR 4
#define GN 2
#define SN 4

#include "cpu_product.h"
/* Byte j of w times byte j of x, added up. */
static inline VI dot4(VI sum, VU w, VU x, int32_t bias)
{
    for (int j = 0; j < 4; j++) {
        VI a = (VI)(w >> (8 * j) & 0xffu) - bias;
        VI b = (VI)(x << (24 - 8 * j)) >> 24;
        sum += a * b;
    }
    return sum;
}
#define DOT4(sum, w, x) dot4(sum, w, x, 0)
#define DOT4_Q8(sum, w, x) dot4(sum, w, x, 128)
#define Q8_BIAS 0

#include "cpu_quant.h"
#include "cpu_cell.h"

const xl_cpu_kernels xl_cpu_kernels_generic = {
    .name = "generic",
    .bit = XLSTM_CPU_SCALAR,
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
