/*
 * backend.c — which backends this build has, choice by name, and the host layout of a state. The only list of built
 * backends; nothing else knows.
 */
#include "backend.h"

#include "cpu/cpu_backend.h"
#include "ref/ref_backend.h"

/* In order of preference. The reference backends come last and are never chosen by themselves before "cpu". */
static const xl_backend_ops *const built[] = {&xl_cpu_backend, &xl_reference_backend,
                                              &xl_reference64_backend};

int xl_backend_open(xl_backend **out, const char *name, const xl_backend_options *options, xlstm_error *err)
{
    *out = NULL;
    if (name == NULL) return built[0]->open(out, options, err);
    for (size_t i = 0; i < XL_COUNT(built); i++) {
        if (strcmp(built[i]->name, name) == 0) return built[i]->open(out, options, err);
    }
    return xl_fail(err, XLSTM_E_UNSUPPORTED, "backend \"%s\" is not in this build; it has cpu, reference, reference64",
                   name);
}

#define STATE_LIMIT (SIZE_MAX / 16)

int xl_state_layout_make(xl_state_layout *out, xlstm_dtype dtype, uint32_t num_blocks, uint32_t num_heads,
                         uint32_t head_qk, uint32_t head_v, xlstm_error *err)
{
    *out = (xl_state_layout){.dtype = dtype,
                             .n_dtype = dtype == XLSTM_I8 ? XLSTM_F32 : dtype,
                             .m_dtype = dtype == XLSTM_F64 ? XLSTM_F64 : XLSTM_F32,
                             .num_blocks = num_blocks,
                             .num_heads = num_heads,
                             .head_qk = head_qk,
                             .head_v = head_v};
    if (num_blocks == 0 || num_heads == 0 || head_qk == 0 || head_v == 0) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "a state of %u blocks, %u heads of %u x %u: expected at least 1 of each",
                       num_blocks, num_heads, head_qk, head_v);
    }
    switch (dtype) {
    case XLSTM_F64: out->c_row_bytes = (size_t)head_v * 8; break;
    case XLSTM_F32: out->c_row_bytes = (size_t)head_v * 4; break;
    case XLSTM_BF16: out->c_row_bytes = (size_t)head_v * 2; break;
    case XLSTM_I8: out->c_row_bytes = (size_t)head_v + 4; break;
    default:
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "state dtype %s: expected float32, bfloat16 or int8",
                       xlstm_dtype_name(dtype));
    }
    size_t c_rows, n_items;
    out->n_head_bytes = (size_t)head_qk * (out->n_dtype == XLSTM_F64 ? 8 : out->n_dtype == XLSTM_F32 ? 4 : 2);
    out->m_head_bytes = out->m_dtype == XLSTM_F64 ? 8 : 4;
    /* Each part stays under STATE_LIMIT, so that sums of a few of them cannot wrap. */
    bool fits = xl_mul(&c_rows, num_heads, head_qk) && xl_mul(&out->c_bytes, c_rows, out->c_row_bytes) &&
                xl_mul(&n_items, num_heads, out->n_head_bytes) && out->c_bytes < STATE_LIMIT && n_items < STATE_LIMIT;
    if (fits) {
        out->c_bytes = xl_round_up(out->c_bytes, XL_ALIGN);
        out->n_bytes = xl_round_up(n_items, XL_ALIGN);
        out->m_bytes = xl_round_up(num_heads * out->m_head_bytes, XL_ALIGN);
        out->block_bytes = out->c_bytes + out->n_bytes + out->m_bytes;
        fits = xl_mul(&out->total_bytes, out->block_bytes, num_blocks) && out->total_bytes < STATE_LIMIT;
    }
    if (!fits) return xl_fail(err, XLSTM_E_UNSUPPORTED, "a state of this geometry does not fit in memory");
    return XLSTM_OK;
}
