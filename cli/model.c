/*
 * model.c — the model options that all commands share, finding the model that ships, opening with warnings and a
 * progress bar on standard error.
 */
#include "common.h"

#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SHIPPED_NAME "xlstm-stories-10m"

#define FIELD(member) offsetof(model_options, member)
const option_row model_rows[] = {
    {"model", 'm', OPTION_TEXT, FIELD(model), "PATH",
     "a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset:7b; without it the small model that ships",
     NULL, NULL, 0, 0},
    {"dtype", 0, OPTION_DTYPE, FIELD(dtype), "TYPE",
     "weights and activations: float32, bfloat16 or float16; as the checkpoint says without it", NULL, NULL, 0, 0},
    {"kernel-dtype", 0, OPTION_DTYPE, FIELD(kernel_dtype), "TYPE",
     "round the inputs of the mLSTM kernel to this type; no rounding without it", NULL, NULL, 0, 0},
    {"state-dtype", 0, OPTION_DTYPE, FIELD(state_dtype), "TYPE",
     "recurrent state: float32, bfloat16 or int8; as the checkpoint says without it", NULL, NULL, 0, 0},
    {"norm-reduction-float32", 0, OPTION_CHOICE, FIELD(norm_reduction_float32), "on|off",
     "compute all norms in float32; as the checkpoint says without it", "auto", "auto|on|off", 0, 0},
    {"threads", 't', OPTION_COUNT, FIELD(threads), "N", "threads to compute with; all processors without it", NULL, NULL,
     0, 1024},
    {"chunk-size", 0, OPTION_COUNT, FIELD(chunk_size), "N",
     "tokens a chunk while reading a prompt; as the checkpoint says without it", NULL, NULL, 0, 4096},
    {"backend", 0, OPTION_TEXT, FIELD(backend), "NAME",
     "cpu, cuda, reference or reference64; the best available without it", NULL, NULL, 0, 0},
    {"device", 0, OPTION_COUNT, FIELD(device), "N", "which GPU, where there are several", "0", NULL, 0, 1000},
    {"device-states", 0, OPTION_COUNT, FIELD(device_states), "N",
     "most sessions whose states are in GPU memory at once, the others wait in host memory; as many as fit without it",
     NULL, NULL, 0, 1000000},
    {"offload-blocks", 0, OPTION_COUNT, FIELD(offload_blocks), "K",
     "run only the first K blocks on the backend, the rest on the cpu; for a device too small for the model", NULL, NULL,
     0, UINT32_MAX},
    {"cpu-mask", 0, OPTION_CPU, FIELD(cpu_mask), "NAMES",
     "instruction sets the cpu backend may use: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod",
     NULL, NULL, 0, 0},
    {"bos", 0, OPTION_CHOICE, FIELD(bos), "auto|on|off", "put the begin-of-sequence token in front of a fresh text",
     "auto", "auto|on|off", 0, 0},
    {"obey-config-eos", 0, OPTION_FLAG, FIELD(obey_config_eos), NULL,
     "stop at the eos_token_id of config.json even if it is a printable word", NULL, NULL, 0, 0},
    {"no-repack", 0, OPTION_FLAG, FIELD(no_repack), NULL, "use the weights as they lie in the file", NULL, NULL, 0, 0},
    {"set", 0, OPTION_LIST, FIELD(set), "KEY=VALUE", "override a key of config.json, or stand in for it (repeatable)",
     NULL, NULL, 0, 0},
    {"verbose", 'v', OPTION_FLAG, FIELD(verbose), NULL, "more notes on standard error", NULL, NULL, 0, 0},
    {"quiet", 'q', OPTION_FLAG, FIELD(quiet), NULL, "no warnings and no progress on standard error", NULL, NULL, 0, 0},
};
const size_t n_model_rows = COUNT_OF(model_rows);
_Static_assert(COUNT_OF(model_rows) == MODEL_ROWS, "common.h states the number of rows");

/* The folder of the running program, with a slash; false if the system does not tell. */
static bool program_folder(char *out, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", out, size - 1);
    if (n <= 0)
        return false;
    out[n] = 0;
    char *slash = strrchr(out, '/');
    if (slash)
        slash[1] = 0;
    return slash != NULL;
}

const char *shipped_model(void)
{
    static const char *const places[] = {"../models/", "models/", "../share/xlstm/models/", "../../models/"};
    static char path[2 * PATH_MAX];
    char folder[PATH_MAX];
    if (!program_folder(folder, sizeof folder))
        return "";
    for (size_t i = 0; i < COUNT_OF(places); i++) {
        struct stat status;
        snprintf(path, sizeof path, "%s%s" SHIPPED_NAME "/config.json", folder, places[i]);
        if (stat(path, &status))
            continue;
        *strrchr(path, '/') = 0;
        char *real = realpath(path, NULL);
        if (real)
            snprintf(path, sizeof path, "%s", real);
        free(real);
        return path;
    }
    return "";
}

const char *model_path(const model_options *options)
{
    if (options->model && *options->model)
        return options->model;
    const char *path = shipped_model();
    if (*path)
        return path;
    complain("no model: give a model folder or file with -m PATH or in XLSTM_MODEL (the model that ships, "
             "models/" SHIPPED_NAME ", is not beside this program)");
    return NULL;
}

static void log_line(void *user, xlstm_log_level level, const char *line)
{
    const model_options *options = user;
    if (level >= XLSTM_LOG_WARNING && !options->quiet)
        complain("warning: %s", line);
    else if (level < XLSTM_LOG_WARNING && options->verbose)
        complain("%s", line);
}

static void load_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    progress_show(user, what, done, total);
}

int open_model(xlstm_model **out, const model_options *options, bool headers_only)
{
    *out = NULL;
    const char *path = model_path(options);
    if (!path)
        return EXIT_USAGE;
    if (options->offload_blocks && !options->backend && !headers_only) {
        complain("--offload-blocks needs --backend: what the first %llu blocks run on, cuda for instance",
                 (unsigned long long)options->offload_blocks);
        return EXIT_USAGE;
    }
    progress bar = progress_start(options);
    xlstm_model_options o = {
        .dtype = options->dtype,
        .kernel_dtype = options->kernel_dtype,
        .state_dtype = options->state_dtype,
        .norm_reduction_float32 = (xlstm_switch)options->norm_reduction_float32,
        .bos = (xlstm_switch)options->bos,
        .obey_config_eos = options->obey_config_eos,
        .backend = options->backend,
        .offload_blocks = (uint32_t)options->offload_blocks,
        .threads = (uint32_t)options->threads,
        .chunk_size = (uint32_t)options->chunk_size,
        .device = (uint32_t)options->device,
        .device_states = (uint32_t)options->device_states,
        .cpu_mask = options->cpu_mask,
        .no_repack = options->no_repack,
        .headers_only = headers_only,
        .set = (const char *const *)options->set.items,
        .n_set = options->set.n,
        .log = log_line,
        .log_user = (void *)(uintptr_t)options,
        .progress = load_progress,
        .progress_user = &bar,
    };
    xlstm_error err = {0};
    int code = xlstm_model_open(out, path, &o, &err);
    progress_end(&bar);
    return code ? fail_error(&err) : EXIT_OK;
}

int new_session(xlstm_session **out, xlstm_model *model, const char *state_in)
{
    xlstm_state *state = NULL;
    xlstm_error err = {0};
    int code = xlstm_session_new(out, model, &err);
    if (!code && state_in)
        code = xlstm_state_load(&state, model, state_in, true, &err);
    if (!code && state)
        code = xlstm_state_restore(*out, state, &err);
    xlstm_state_free(state);
    return code ? fail_error(&err) : EXIT_OK;
}

const xlstm_tokenizer *need_tokenizer(const xlstm_model *model, const char *what_for)
{
    const xlstm_tokenizer *tokenizer = xlstm_model_tokenizer(model);
    if (!tokenizer)
        complain("%s has no tokenizer, which %s needs; give ids with --prompt-ids and take ids with --output ids, or "
                 "put its tokenizer.json there",
                 xlstm_model_get_info(model)->path, what_for);
    return tokenizer;
}
