/*
 * backend.c — which backends this build has, choice by name, and the host layout of a state. The only list of built
 * backends; nothing else knows. Backends with large dependencies are plugins, opened when they are asked for by name.
 */
#include "backend.h"

#include <dlfcn.h>

#include "cpu/cpu_backend.h"
#include "ref/ref_backend.h"

/* In order of preference. The reference backends come last and are never chosen by themselves before "cpu". */
static const xl_backend_ops *const built[] = {&xl_cpu_backend, &xl_reference_backend, &xl_reference64_backend};

/* Plugins stay open for the life of the process. */
static const struct {
    const char *name, *file, *symbol;
} plugins[] = {{"cuda", "libxlstm_cuda.so", "xlstm_cuda_plugin"}};

/* Beside this library or program, in the lib folder next to it, then wherever the system looks. */
static void *open_plugin(const char *file)
{
    static const char *const places[] = {"", "../lib/", "../lib64/"};
    Dl_info self;
    if (dladdr((const void *)&plugins, &self) != 0 && self.dli_fname != NULL) {
        const char *slash = strrchr(self.dli_fname, '/');
        int folder = slash == NULL ? 0 : (int)(slash - self.dli_fname) + 1;
        for (size_t i = 0; i < XL_COUNT(places); i++) {
            char path[4096];
            int n = snprintf(path, sizeof(path), "%.*s%s%s", folder, self.dli_fname, places[i], file);
            if (n <= 0 || (size_t)n >= sizeof(path) || folder == 0 || !xl_is_file(path)) continue;
            return dlopen(path, RTLD_NOW | RTLD_LOCAL);
        }
    }
    return dlopen(file, RTLD_NOW | RTLD_LOCAL);
}

bool xl_backend_is_device(const char *name)
{
    for (size_t i = 0; name != NULL && i < XL_COUNT(plugins); i++) {
        if (strcmp(plugins[i].name, name) == 0) return true;
    }
    return false;
}

int xl_backend_open(xl_backend **out, const char *name, const xl_backend_options *options, xlstm_error *err)
{
    *out = NULL;
    if (name == NULL) return built[0]->open(out, options, err);
    for (size_t i = 0; i < XL_COUNT(built); i++) {
        if (strcmp(built[i]->name, name) == 0) return built[i]->open(out, options, err);
    }
    for (size_t i = 0; i < XL_COUNT(plugins); i++) {
        if (strcmp(plugins[i].name, name) != 0) continue;
        void *library = open_plugin(plugins[i].file);
        const xl_plugin *plugin = library != NULL ? dlsym(library, plugins[i].symbol) : NULL;
        if (plugin != NULL && (plugin->version != XL_PLUGIN_VERSION || plugin->ops_bytes != sizeof(xl_backend_ops) ||
                               plugin->options_bytes != sizeof(xl_backend_options))) {
            return xl_fail(err, XLSTM_E_UNSUPPORTED, "backend \"%s\": its plugin %s was built with another version of xlstm "
                           "than %s; install both together", name, plugins[i].file, xlstm_version());
        }
        if (plugin != NULL) return plugin->backend()->open(out, options, err);
        const char *why = dlerror();
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "backend \"%s\" needs its plugin %s: %s", name, plugins[i].file,
                       why != NULL ? why : "not found");
    }
    return xl_fail(err, XLSTM_E_UNSUPPORTED,
                   "backend \"%s\" is not in this build; it has cpu, reference, reference64 and the plugin cuda", name);
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
        return xl_fail(err, XLSTM_E_UNSUPPORTED,
                       "a state of %u blocks, %u heads of %u x %u: expected at least 1 of each", num_blocks, num_heads,
                       head_qk, head_v);
    }
    switch (dtype) {
    case XLSTM_F64:
        out->c_row_bytes = (size_t)head_v * 8;
        break;
    case XLSTM_F32:
        out->c_row_bytes = (size_t)head_v * 4;
        break;
    case XLSTM_BF16:
        out->c_row_bytes = (size_t)head_v * 2;
        break;
    case XLSTM_I8:
        out->c_row_bytes = (size_t)head_v + 4;
        break;
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
