/*
 * prompt.h — where a prompt comes from: text, a file, token ids. Shared by every command that feeds a model.
 */
#ifndef CLI_PROMPT_H
#define CLI_PROMPT_H

#include "common.h"

typedef struct prompt_options {
    const char *text, *file;
    id_list ids;
    bool escape;
} prompt_options;

extern const option_row prompt_rows[];
enum { PROMPT_ROWS = 4 };
#define PROMPT_GROUP(type, member) {"Prompt", prompt_rows, PROMPT_ROWS, offsetof(type, member)}

/* A prompt as ids, and as text when it was given as text. Zero it first; free with prompt_free. */
typedef struct prompt {
    id_list ids;
    buffer text;
    bool given, is_text;
} prompt;

/* Reads and tokenizes; without any of the options `given` stays false. EXIT_OK or a status after a message. */
int prompt_read(prompt *out, const prompt_options *options, const xlstm_model *model);
/* Tokenizes `text` into a prompt. */
int prompt_from_text(prompt *out, const char *text, size_t size, const xlstm_model *model);
void prompt_free(prompt *p);
/* What to feed when there is no prompt: the begin-of-sequence or end-of-text id; -1 if the model has neither. */
int32_t first_id(const xlstm_model *model);

#endif
