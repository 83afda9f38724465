/*
 * convert.c — `xlstm convert`: any checkpoint as one GGUF file; and what `xlstm quantize` shares with it.
 */
#include "convert.h"

#include <stddef.h>
#include <string.h>

#define FIELD(member) offsetof(convert_options, member)
const option_row convert_rows[] = {
    {"type", 'T', OPTION_DTYPE, FIELD(type), "TYPE",
     "format of embedding, head and large matrices: float32, float16, bfloat16, q8_0, q6_k, q5_k, q4_k or q4_0; as stored "
     "without it",
     NULL, NULL, 0, 0},
    {"set", 0, OPTION_LIST, FIELD(set), "KEY=VALUE", "override a key of config.json, or stand in for it (repeatable)",
     NULL, NULL, 0, 0},
    {"threads", 't', OPTION_COUNT, FIELD(threads), "N", "threads to encode with; all processors without it", NULL, NULL, 0,
     1024},
    {"verbose", 'v', OPTION_FLAG, FIELD(verbose), NULL, "say which tensors get another format than asked for", NULL, NULL,
     0, 0},
    {"quiet", 'q', OPTION_FLAG, FIELD(quiet), NULL, "no warnings and no progress on standard error", NULL, NULL, 0, 0},
};
_Static_assert(COUNT_OF(convert_rows) == CONVERT_ROWS, "convert.h states the number of rows");

static void log_line(void *user, xlstm_log_level level, const char *line)
{
    const convert_options *o = user;
    if (level >= XLSTM_LOG_WARNING && !o->quiet)
        complain("warning: %s", line);
    else if (level < XLSTM_LOG_WARNING && o->verbose)
        complain("%s", line);
}

static void show_progress(void *user, const char *what, uint64_t done, uint64_t total)
{
    progress_show(user, what, done, total);
}

static bool stop(void *user)
{
    (void)user;
    return interrupted();
}

/* "out.gguf: 6.2 MB, 4.87 bits a weight; q4_k 61 tensors, float32 63" */
static int print_summary(const char *path)
{
    xlstm_model *model;
    xlstm_error err = {0};
    if (xlstm_model_open(&model, path, &(xlstm_model_options){.headers_only = true}, &err))
        return fail_error(&err);
    const xlstm_model_info *info = xlstm_model_get_info(model);
    size_t counts[XLSTM_DTYPE_COUNT] = {0};
    char size[32];
    for (size_t i = 0; i < xlstm_model_tensor_count(model); i++) {
        xlstm_tensor_info t;
        xlstm_model_tensor(model, i, &t);
        counts[t.dtype]++;
    }
    outputf("%s: %s, %.2f bits a weight;", path, human_bytes(size, info->weight_bytes),
            8.0 * (double)info->weight_bytes / (double)info->parameters);
    const char *separator = " ";
    for (int d = XLSTM_DTYPE_COUNT - 1; d > 0; d--) {
        if (counts[d] == 0)
            continue;
        outputf("%s%s %zu", separator, xlstm_dtype_name((xlstm_dtype)d), counts[d]);
        separator = ", ";
    }
    outputf(" tensors\n");
    xlstm_model_free(model);
    return EXIT_OK;
}

int convert_model(xlstm_convert_options *wanted, const convert_options *options, char **arguments, size_t n)
{
    if (n != 2)
        return fail_usage("give the model and the file to write: MODEL OUT.gguf");
    progress bar = progress_start(&(model_options){.quiet = options->quiet});
    wanted->type = options->type;
    wanted->threads = (uint32_t)options->threads;
    wanted->set = (const char *const *)options->set.items;
    wanted->n_set = options->set.n;
    wanted->log = log_line;
    wanted->log_user = (void *)(uintptr_t)options;
    wanted->progress = show_progress;
    /* cppcheck-suppress autoVariables; read by xlstm_convert below */
    wanted->progress_user = &bar;
    wanted->stop = stop;
    xlstm_error err = {0};
    interrupt_watch();
    const int code = xlstm_convert(arguments[0], arguments[1], wanted, &err);
    progress_end(&bar);
    if (code)
        return interrupted() ? EXIT_INTERRUPTED : fail_error(&err);
    return output_finish(options->quiet ? EXIT_OK : print_summary(arguments[1]));
}

static int run(const void *options, char **arguments, size_t n)
{
    xlstm_convert_options wanted = {0};
    return convert_model(&wanted, options, arguments, n);
}

static const option_group groups[] = {{"Options", convert_rows, CONVERT_ROWS, 0}};

const command command_convert = {
    .name = "convert",
    .summary = "write a model as one GGUF file",
    .usage = "[--type bfloat16] MODEL OUT.gguf",
    .details = "MODEL is whatever the other commands take: a Hugging Face or NX-AI folder, a .safetensors or .gguf file, "
               "preset:7b. Tokenizer, chat template and settings travel in the file. Weights are read and written piece "
               "by piece; OUT.gguf appears only when it is complete. Norms, gates and biases become float32. To choose "
               "formats by tensor, or to use an importance matrix, see xlstm quantize.",
    .arguments = "MODEL OUT",
    .size = sizeof(convert_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
