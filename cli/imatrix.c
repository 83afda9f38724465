/*
 * imatrix.c — `xlstm imatrix`: lets a model read typical text and records how strongly it uses every column of its
 * matrices, for `xlstm quantize --imatrix`.
 */
#include "generation.h"
#include "prompt.h"

#include <stdlib.h>

typedef struct imatrix_options {
    prompt_options prompt;
    const char *out;
    uint64_t tokens, window;
    model_options model;
} imatrix_options;

#define FIELD(member) offsetof(imatrix_options, member)
static const option_row rows[] = {
    {"output", 'o', OPTION_TEXT, FIELD(out), "FILE", "where to write the matrix, a GGUF file", NULL, NULL, 0, 0},
    {"tokens", 'n', OPTION_COUNT, FIELD(tokens), "N", "use only the first N tokens of the text", NULL, NULL, 0, 0},
    {"window", 'w', OPTION_COUNT, FIELD(window), "N",
     "cut the text into windows of N tokens that each start fresh; without it the text is one endless stream", NULL, NULL,
     0, 0},
};

/* Reads the text in portions of some hundred tokens, so that what a trace holds stays small. */
static int read_text(xlstm_session *session, const id_list *ids, size_t n, const imatrix_options *o)
{
    xlstm_model *model = xlstm_session_model(session);
    const xlstm_model_info *info = xlstm_model_get_info(model);
    const size_t portion = (info->chunk_size + 255u) / info->chunk_size * info->chunk_size;
    const size_t window = o->window ? o->window : n;
    progress bar = progress_start(&o->model);
    xlstm_error err = {0};
    int code = XLSTM_OK;
    for (size_t at = 0, start = 0; at < n && !code && !interrupted();) {
        if (at == start + window) {
            start = at;
            code = xlstm_session_reset(session, &err);
        }
        const size_t end = start + window < n ? start + window : n;
        xlstm_segment g = {.session = session, .tokens = ids->ids + at, .want = XLSTM_WANT_ALL,
                           .count = tokens_to_border(session, ids->ids[at], end - at, portion)};
        if (!code)
            code = xlstm_evaluate(model, &g, 1, &err);
        at += g.count;
        progress_show(&bar, "imatrix", at, n);
    }
    progress_end(&bar);
    if (interrupted())
        return EXIT_INTERRUPTED;
    return code ? fail_error(&err) : EXIT_OK;
}

static int run(const void *options, char **arguments, size_t n_arguments)
{
    (void)arguments;
    (void)n_arguments;
    const imatrix_options *o = options;
    if (!o->out)
        return fail_usage("say where to write the matrix with --output FILE");
    int status = check_output("--output", o->out);
    if (status)
        return status;
    xlstm_model *model;
    status = open_model(&model, &o->model, false);
    if (status)
        return status;
    prompt input = {0};
    xlstm_session *session = NULL;
    xlstm_imatrix *imatrix = NULL;
    xlstm_error err = {0};
    status = prompt_read(&input, &o->prompt, model);
    if (status == EXIT_OK && input.ids.n == 0)
        status = fail_usage("give a text with -f FILE, --prompt or --prompt-ids");
    const size_t n = o->tokens && o->tokens < input.ids.n ? o->tokens : input.ids.n;
    if (status == EXIT_OK && (xlstm_session_new(&session, model, &err) || xlstm_imatrix_new(&imatrix, model, &err)))
        status = fail_error(&err);
    interrupt_watch();
    if (status == EXIT_OK) {
        xlstm_session_set_trace(session, xlstm_imatrix_observe, imatrix);
        status = read_text(session, &input.ids, n, o);
    }
    if (status == EXIT_OK && xlstm_imatrix_save(imatrix, o->out, &err))
        status = fail_error(&err);
    if (status == EXIT_OK && !o->model.quiet)
        outputf("%s: %llu tokens\n", o->out, (unsigned long long)xlstm_imatrix_tokens(imatrix));
    xlstm_imatrix_free(imatrix);
    xlstm_session_free(session);
    prompt_free(&input);
    xlstm_model_free(model);
    return output_finish(status);
}

static const option_group groups[] = {
    PROMPT_GROUP(imatrix_options, prompt),
    {"Matrix", rows, COUNT_OF(rows), 0},
    MODEL_GROUP(imatrix_options, model),
};

const command command_imatrix = {
    .name = "imatrix",
    .summary = "record what a model uses its weights for, to quantize it better",
    .usage = "-m MODEL -f FILE -o imatrix.gguf",
    .details = "Reads a text and sums the squares of what every column of every large matrix is multiplied with. "
               "`xlstm quantize --imatrix` then spends the precision of a format where it matters. Some hundred thousand "
               "tokens of the kind of text that the model is for are plenty.",
    .no_twin = "output",
    .size = sizeof(imatrix_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
