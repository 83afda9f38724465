/*
 * tokenize.c — `xlstm tokenize`: text to ids and back, with nothing but a tokenizer.
 */
#include "common.h"

#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

typedef struct tokenize_options {
    const char *model, *text;
    bool decode, json, jsonl, special, literal, skip_special;
} tokenize_options;

#define FIELD(member) offsetof(tokenize_options, member)
static const option_row rows[] = {
    {"model", 'm', OPTION_TEXT, FIELD(model), "PATH",
     "a folder with tokenizer.json, such a file itself, or a .gguf file; without it the model that ships", NULL, NULL, 0,
     0},
    {"prompt", 'p', OPTION_TEXT, FIELD(text), "TEXT", "the text (or, with --decode, the ids); standard input without it",
     NULL, NULL, 0, 0},
    {"decode", 'd', OPTION_FLAG, FIELD(decode), NULL, "from ids to text", NULL, NULL, 0, 0},
    {"json", 'j', OPTION_FLAG, FIELD(json), NULL, "ids as a JSON list; with --decode text as a JSON string", NULL, NULL,
     0, 0},
    {"jsonl", 0, OPTION_FLAG, FIELD(jsonl), NULL,
     "one JSON string a line in, one list of ids a line out; with --decode the other way round", NULL, NULL, 0, 0},
    {"special", 0, OPTION_FLAG, FIELD(special), NULL,
     "add the tokens the tokenizer puts around a text (begin of sequence, ...)", NULL, NULL, 0, 0},
    {"literal", 0, OPTION_FLAG, FIELD(literal), NULL,
     "read special tokens spelled out in the text as plain text", NULL, NULL, 0, 0},
    {"skip-special", 0, OPTION_FLAG, FIELD(skip_special), NULL, "with --decode: leave special tokens out", NULL, NULL, 0,
     0},
};

/* Where the current input came from, for messages. */
typedef struct input_place {
    char name[64];
} input_place;

static int encode(const xlstm_tokenizer *tokenizer, const tokenize_options *o, const char *text, size_t size)
{
    unsigned flags = (o->special ? XLSTM_ENCODE_SPECIAL : 0u) | (o->literal ? XLSTM_ENCODE_LITERAL : 0u);
    int32_t *ids;
    size_t n;
    xlstm_error err = {0};
    if (xlstm_tokenizer_encode(&ids, &n, tokenizer, text, size, flags, &err))
        return fail_error(&err);
    if (o->json || o->jsonl)
        output_json_ids(ids, n);
    else
        for (size_t i = 0; i < n; i++)
            outputf("%s%d", i ? "," : "", ids[i]);
    output("\n", 1);
    xlstm_free(ids);
    return EXIT_OK;
}

static int decode(const xlstm_tokenizer *tokenizer, const tokenize_options *o, const char *text, size_t size,
                  const input_place *place)
{
    id_list ids = {0};
    const char *stopped;
    if (ids_parse(&ids, text, size, &stopped)) {
        free(ids.ids);
        return fail("%s: expected token ids like 1,2,3, found \"%.*s\"", place->name,
                    (int)(text + size - stopped > 20 ? 20 : text + size - stopped), stopped);
    }
    char *out;
    size_t length;
    xlstm_error err = {0};
    int code = xlstm_tokenizer_decode(&out, &length, tokenizer, ids.ids, ids.n, o->skip_special, &err);
    free(ids.ids);
    if (code)
        return fail("%s: %s", place->name, err.message);
    if (o->json || o->jsonl) {
        output_json_string(out, length);
        output("\n", 1);
    } else {
        output(out, length);
    }
    xlstm_free(out);
    return EXIT_OK;
}

static int convert_line(const xlstm_tokenizer *tokenizer, const tokenize_options *o, const char *line, size_t size,
                        const input_place *place)
{
    if (o->decode)
        return decode(tokenizer, o, line, size, place);
    json_error_t problem;
    json_t *value = json_loadb(line, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, &problem);
    if (!json_is_string(value)) {
        json_decref(value);
        return fail("%s: expected a JSON string%s%s", place->name, value ? "" : ": ", value ? "" : problem.text);
    }
    int status = encode(tokenizer, o, json_string_value(value), json_string_length(value));
    json_decref(value);
    return status;
}

static int convert_lines(const xlstm_tokenizer *tokenizer, const tokenize_options *o)
{
    char *line = NULL;
    size_t capacity = 0;
    int status = EXIT_OK;
    ssize_t size;
    for (unsigned long number = 1; status == EXIT_OK && !output_broken() &&
                                   (size = getline(&line, &capacity, stdin)) >= 0;
         number++) {
        input_place place;
        snprintf(place.name, sizeof place.name, "line %lu", number);
        status = convert_line(tokenizer, o, line, (size_t)size, &place);
    }
    if (ferror(stdin))
        status = fail("cannot read standard input: %s", strerror(errno));
    free(line);
    return status;
}

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const tokenize_options *o = options;
    if (o->json && o->jsonl)
        return fail_usage("give one of --json and --jsonl");
    const char *path = model_path(&(model_options){.model = o->model});
    if (!path)
        return EXIT_USAGE;
    xlstm_tokenizer *tokenizer;
    xlstm_error err = {0};
    if (xlstm_tokenizer_open(&tokenizer, path, &err))
        return fail_error(&err);
    int status = EXIT_OK;
    if (o->jsonl && !o->text) {
        status = convert_lines(tokenizer, o);
    } else {
        buffer text = {0};
        input_place place = {"standard input"};
        if (o->text) {
            buffer_add(&text, o->text, strlen(o->text));
            place = (input_place){"--prompt"};
        } else {
            status = read_whole(&text, "-");
        }
        if (status == EXIT_OK && o->jsonl)
            status = convert_line(tokenizer, o, text.data, text.size, &place);
        else if (status == EXIT_OK && o->decode)
            status = decode(tokenizer, o, text.data, text.size, &place);
        else if (status == EXIT_OK)
            status = encode(tokenizer, o, text.data, text.size);
        buffer_free(&text);
    }
    xlstm_tokenizer_free(tokenizer);
    return output_finish(status);
}

static const option_group groups[] = {{"Options", rows, COUNT_OF(rows), 0}};

const command command_tokenize = {
    .name = "tokenize",
    .summary = "turn text into token ids, or ids into text",
    .usage = "[-m PATH] [-p TEXT] [--json | --jsonl] [--decode]",
    .details = "Text is taken byte for byte: `echo hi | xlstm tokenize` has a line break in it, `printf hi` has not. "
               "Ids are printed as 1,2,3, which --prompt-ids and --decode take.",
    .size = sizeof(tokenize_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
