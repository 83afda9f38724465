/*
 * cpu_generic.c — the cpu kernels for the baseline of whatever machine this is compiled for, four lanes wide and without
 * fused multiply-add. The other cpu_<set>.c files compile the same bodies for wider machines.
 */
#define VW 4
#define NV 2
#define MR 4
#define GR 4
#define GN 2
#define SN 4

#include "cpu_product.h"
#include "cpu_cell.h"

const xl_cpu_kernels xl_cpu_kernels_generic = {
    .name = "generic",
    .bit = XLSTM_CPU_SCALAR,
    .lanes = VW,
    .panel = PANEL,
    .tile = MR,
    .product = {[XLSTM_F32] = {product_f32, XL_CPU_PACK_F32},
                [XLSTM_F16] = {product_f16, XL_CPU_PACK_F32},
                [XLSTM_BF16] = {product_bf16, XL_CPU_PACK_F32}},
    .pack = {[XL_CPU_PACK_F32] = pack_f32, [XL_CPU_PACK_BF16] = pack_bf16},
    CELL_KERNELS,
};
