/*
 * logits.c — `xlstm logits`: the model's raw answer as JSON, for comparing engines and for tests.
 */
#include "generation.h"
#include "prompt.h"

#include <stdlib.h>

typedef struct logits_options {
    prompt_options prompt;
    bool all;
    const char *state_in;
    model_options model;
} logits_options;

static const option_row rows[] = {
    {"all", 'a', OPTION_FLAG, offsetof(logits_options, all), NULL, "a row for every token, not only for the last", NULL,
     NULL, 0, 0},
    {"state-in", 0, OPTION_TEXT, offsetof(logits_options, state_in), "FILE", "begin where a saved state stands", NULL,
     NULL, 0, 0},
};

/* Nine significant digits tell every float32 from its neighbours. */
static void print_row(const float *row, uint32_t n)
{
    output("[", 1);
    for (uint32_t i = 0; i < n && !output_broken(); i++)
        outputf("%s%.9g", i ? "," : "", (double)row[i]);
    output("]", 1);
}

/* With `all`, rows come in portions, so that a long text does not need all its rows in memory at once. */
static int print_logits(xlstm_session *session, const id_list *ids, bool all)
{
    xlstm_model *model = xlstm_session_model(session);
    const xlstm_model_info *info = xlstm_model_get_info(model);
    const size_t portion = (info->chunk_size + 63u) / info->chunk_size * info->chunk_size;
    float *rows_out = must(calloc(all ? portion : 1, info->vocab_size * sizeof *rows_out));
    int status = EXIT_OK;
    for (size_t done = 0; done < ids->n && status == EXIT_OK && !output_broken();) {
        size_t count = ids->n - done;
        if (all)
            count = tokens_to_border(session, ids->ids[done], count, portion);
        xlstm_segment segment = {.session = session,
                                 .tokens = ids->ids + done,
                                 .count = count,
                                 .want = all ? XLSTM_WANT_ALL : XLSTM_WANT_LAST,
                                 .logits = rows_out};
        xlstm_error err = {0};
        if (xlstm_evaluate(model, &segment, 1, &err)) {
            status = fail_error(&err);
            break;
        }
        if (done == 0) {
            outputf("{\"ids\":");
            output_json_ids(ids->ids, ids->n);
            outputf(",\"logits\":%s", all ? "[" : "");
        }
        for (size_t i = 0; i < (all ? count : 1); i++) {
            outputf("%s", done + i > 0 && all ? "," : "");
            print_row(rows_out + i * info->vocab_size, info->vocab_size);
        }
        done += count;
    }
    if (status == EXIT_OK)
        outputf("%s}\n", all ? "]" : "");
    free(rows_out);
    return status;
}

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const logits_options *o = options;
    xlstm_model *model;
    int status = open_model(&model, &o->model, false);
    if (status)
        return status;
    prompt input = {0};
    xlstm_session *session = NULL;
    status = prompt_read(&input, &o->prompt, model);
    if (status == EXIT_OK && input.ids.n == 0)
        status = fail_usage("give at least one token with --prompt, --prompt-file or --prompt-ids");
    if (status == EXIT_OK)
        status = new_session(&session, model, o->state_in);
    if (status == EXIT_OK)
        status = print_logits(session, &input.ids, o->all);
    xlstm_session_free(session);
    prompt_free(&input);
    xlstm_model_free(model);
    return output_finish(status);
}

static const option_group groups[] = {
    PROMPT_GROUP(logits_options, prompt),
    {"Output", rows, COUNT_OF(rows), 0},
    MODEL_GROUP(logits_options, model),
};

const command command_logits = {
    .name = "logits",
    .summary = "print the logits after a prompt as JSON",
    .usage = "-m MODEL (-p TEXT | --prompt-ids 1,2,3) [--all]",
    .details = "Prints {\"ids\":[..],\"logits\":[..]}: after the last token, or with --all a list of rows, one for each "
               "token given. The begin-of-sequence token, where one is put in front, has no row.",
    .size = sizeof(logits_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
