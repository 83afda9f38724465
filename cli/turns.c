/*
 * turns.c — see turns.h. A template always renders a whole conversation. The part for a later turn is cut out of a made-up
 * one: everything behind a marker that stands for the answer before. So nothing said earlier is needed again, and a
 * conversation can go on from a saved state.
 */
#include "turns.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define MARKER "xlstm-answer-1f6e9b04"

int turn_style_open(turn_style *style, const char *choice)
{
    if (!strcmp(choice, "plain"))
        return EXIT_OK;
    if (!strcmp(choice, "auto")) {
        style->source = xlstm_tokenizer_chat_template(style->tokenizer);
        return EXIT_OK;
    }
    buffer text = {0};
    int status = read_whole(&text, choice);
    if (status == EXIT_OK)
        style->source = style->file = must(strdup(text.data));
    buffer_free(&text);
    return status;
}

void turn_style_close(turn_style *style)
{
    free(style->file);
    style->source = style->file = NULL;
}

static void add_message(json_t *messages, const char *role, const char *content)
{
    buffer clean = {0};
    buffer_add(&clean, "", 0);
    buffer_add_utf8(&clean, content, strlen(content));
    json_array_append_new(messages, json_pack("{s:s, s:o}", "role", role, "content",
                                              must(json_stringn(clean.data, clean.size))));
    buffer_free(&clean);
}

static void add_token(json_t *variables, const char *name, const xlstm_tokenizer *tokenizer, int32_t id)
{
    const char *token = id >= 0 ? xlstm_tokenizer_token(tokenizer, id) : NULL;
    if (token)
        json_object_set_new(variables, name, json_string(token));
}

/* Renders system, then for later turns a made-up exchange, then the words. */
static int render(buffer *out, const turn_style *style, const char *words, bool first)
{
    json_t *variables = json_object(), *messages = json_array();
    if (style->system && *style->system)
        add_message(messages, "system", style->system);
    if (!first) {
        add_message(messages, "user", "?");
        add_message(messages, "assistant", MARKER);
    }
    add_message(messages, "user", words);
    json_object_set_new(variables, "messages", messages);
    json_object_set_new(variables, "add_generation_prompt", json_true());
    add_token(variables, "bos_token", style->tokenizer, xlstm_tokenizer_bos(style->tokenizer));
    add_token(variables, "eos_token", style->tokenizer, xlstm_tokenizer_end_of_text(style->tokenizer));
    char *json = must(json_dumps(variables, 0)), *text;
    size_t size;
    xlstm_error err = {0};
    int code = xlstm_chat_render(&text, &size, style->source, json, strlen(json), &err);
    free(json);
    json_decref(variables);
    if (code)
        return fail("%s; --chat-template plain goes without it", err.message);
    const char *from = first ? text : strstr(text, MARKER);
    if (from)
        buffer_add(out, from + (first ? 0 : strlen(MARKER)), size - (size_t)(from - text) - (first ? 0 : strlen(MARKER)));
    xlstm_free(text);
    return from ? EXIT_OK : fail("the chat template leaves out answers; --chat-template plain goes without it");
}

int turn_text(buffer *out, const turn_style *style, const char *words, bool first)
{
    buffer_add(out, "", 0);
    if (style->source)
        return render(out, style, words, first);
    if (!first)
        buffer_add(out, "\n", 1);
    else if (style->system && *style->system)
        buffer_addf(out, "%s\n", style->system);
    buffer_addf(out, "%s%s\n%s", style->user_prefix, words, style->assistant_prefix);
    return EXIT_OK;
}

int32_t turn_stop_id(const turn_style *style)
{
    buffer text = {0};
    int32_t *ids = NULL, id = -1;
    size_t n = 0;
    if (style->source && render(&text, style, "?", false) == EXIT_OK &&
        !xlstm_tokenizer_encode(&ids, &n, style->tokenizer, text.data, text.size, 0, NULL) && n > 0 &&
        xlstm_tokenizer_is_special(style->tokenizer, ids[0]))
        id = ids[0];
    xlstm_free(ids);
    buffer_free(&text);
    return id;
}

char *turn_stop_text(const turn_style *style)
{
    size_t n = strlen(style->user_prefix);
    while (n > 0 && style->user_prefix[n - 1] == ' ')
        n--;
    char *stop = NULL;
    if (!style->source && n > 0 && asprintf(&stop, "\n%.*s", (int)n, style->user_prefix) < 0)
        must(NULL);
    return stop;
}
