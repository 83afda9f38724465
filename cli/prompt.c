/*
 * prompt.c — see prompt.h.
 */
#include "prompt.h"

#include <stdlib.h>
#include <string.h>

#define FIELD(member) offsetof(prompt_options, member)
const option_row prompt_rows[] = {
    {"prompt", 'p', OPTION_TEXT, FIELD(text), "TEXT", "the text to read", NULL, NULL, 0, 0},
    {"prompt-file", 'f', OPTION_TEXT, FIELD(file), "FILE", "read the text from a file, byte for byte; - is standard input",
     NULL, NULL, 0, 0},
    {"prompt-ids", 0, OPTION_IDS, FIELD(ids), "IDS", "token ids instead of text: 1,2,3 (needs no tokenizer)", NULL, NULL,
     0, 0},
    {"escape", 0, OPTION_FLAG, FIELD(escape), NULL,
     "interpret \\n, \\t, \\xHH, \\uHHHH and the like in --prompt and --stop", NULL, NULL, 0, 0},
};
_Static_assert(COUNT_OF(prompt_rows) == PROMPT_ROWS, "prompt.h states the number of rows");

int prompt_from_text(prompt *out, const char *text, size_t size, const xlstm_model *model)
{
    out->given = out->is_text = true;
    buffer_add(&out->text, text, size);
    const xlstm_tokenizer *tokenizer = need_tokenizer(model, "a prompt in text");
    if (!tokenizer)
        return EXIT_RUNTIME;
    int32_t *ids;
    size_t n;
    xlstm_error err = {0};
    if (xlstm_tokenizer_encode(&ids, &n, tokenizer, out->text.data, out->text.size, 0, &err))
        return fail_error(&err);
    for (size_t i = 0; i < n; i++)
        ids_add(&out->ids, ids[i]);
    xlstm_free(ids);
    return EXIT_OK;
}

int prompt_read(prompt *out, const prompt_options *options, const xlstm_model *model)
{
    if (!!options->text + !!options->file + options->ids.given > 1)
        return fail_usage("give one of --prompt, --prompt-file and --prompt-ids");
    const uint32_t vocab_size = xlstm_model_get_info(model)->vocab_size;
    for (size_t i = 0; i < options->ids.n; i++) {
        if ((uint32_t)options->ids.ids[i] >= vocab_size)
            return fail_usage("--prompt-ids: %d is not a token of this model, expected 0 to %u", options->ids.ids[i],
                              vocab_size - 1);
        ids_add(&out->ids, options->ids.ids[i]);
    }
    out->given = options->ids.given;
    if (!options->text && !options->file)
        return EXIT_OK;
    buffer text = {0};
    int status = EXIT_OK;
    if (options->file)
        status = read_whole(&text, options->file);
    else
        buffer_add(&text, options->text, strlen(options->text));
    if (status == EXIT_OK && options->escape && !options->file)
        unescape(text.data, &text.size);
    if (status == EXIT_OK)
        status = prompt_from_text(out, text.data, text.size, model);
    buffer_free(&text);
    return status;
}

void prompt_free(prompt *p)
{
    free(p->ids.ids);
    buffer_free(&p->text);
    *p = (prompt){0};
}

int32_t first_id(const xlstm_model *model)
{
    const xlstm_model_info *info = xlstm_model_get_info(model);
    const xlstm_tokenizer *tokenizer = xlstm_model_tokenizer(model);
    int32_t id = info->bos_id;
    if (id < 0 && tokenizer)
        id = xlstm_tokenizer_bos(tokenizer);
    if (id < 0 && tokenizer)
        id = xlstm_tokenizer_end_of_text(tokenizer);
    return id >= 0 && (uint32_t)id < info->vocab_size ? id : -1;
}
