/*
 * tokenizer.c — opening a tokenizer from a folder, a file or memory, and the questions that need no encoding.
 */
#include "tokenizer.h"
#include "weights.h"

#include <string.h>

enum { SIDE_FILE_LIMIT = 16 << 20 }; /* bytes of tokenizer_config.json and chat_template.jinja */

static int open_texts(xlstm_tokenizer **out, const char *json, size_t size, const char *name, const char *config,
                      size_t config_size, const char *config_name, xlstm_error *err)
{
    *out = NULL;
    xlstm_tokenizer *t = xl_calloc(1, sizeof *t, err);
    if (t == NULL) return XLSTM_E_MEMORY;
    int status = xl_tokenizer_read(t, json, size, name, err);
    if (status == XLSTM_OK && config != NULL)
        status = xl_tokenizer_read_config(t, config, config_size, config_name, err);
    if (status != XLSTM_OK) {
        xlstm_tokenizer_free(t);
        return status;
    }
    *out = t;
    return XLSTM_OK;
}

int xlstm_tokenizer_open_memory(xlstm_tokenizer **out, const char *json, size_t size, const char *config,
                                size_t config_size, xlstm_error *err)
{
    *out = NULL;
    if (size > XL_TOKENIZER_FILE_LIMIT) {
        return xl_fail(err, XLSTM_E_FORMAT, "tokenizer.json: expected at most %zu bytes, found %zu",
                       XL_TOKENIZER_FILE_LIMIT, size);
    }
    return open_texts(out, json, size, "tokenizer.json", config, config_size, "tokenizer_config.json", err);
}

/* Reads folder/name if it is there; *text stays NULL otherwise. */
static int read_side_file(char **text, size_t *size, char **path, const char *folder, const char *name,
                          xlstm_error *err)
{
    *path = xl_join(folder, name, err);
    if (*path == NULL) return XLSTM_E_MEMORY;
    return xl_is_file(*path) ? xl_read_file(text, size, *path, SIDE_FILE_LIMIT, err) : XLSTM_OK;
}

static int open_folder(xlstm_tokenizer **out, const char *folder, const char *path, xlstm_error *err)
{
    char *json = NULL, *config = NULL, *template = NULL, *config_path = NULL, *template_path = NULL;
    size_t size = 0, config_size = 0, template_size = 0;
    int status = xl_read_file(&json, &size, path, XL_TOKENIZER_FILE_LIMIT, err);
    if (status == XLSTM_OK) {
        status = read_side_file(&config, &config_size, &config_path, folder, "tokenizer_config.json", err);
    }
    if (status == XLSTM_OK) {
        status = read_side_file(&template, &template_size, &template_path, folder, "chat_template.jinja", err);
    }
    if (status == XLSTM_OK) status = open_texts(out, json, size, path, config, config_size, config_path, err);
    if (status == XLSTM_OK && template != NULL) { /* the file is newer custom than the member, and wins */
        xl_release((*out)->chat_template);
        (*out)->chat_template = template;
        template = NULL;
    }
    xl_release(json);
    xl_release(config);
    xl_release(template);
    xl_release(config_path);
    xl_release(template_path);
    return status;
}

static int open_gguf(xlstm_tokenizer **out, const char *path, xlstm_error *err)
{
    xl_weights *w;
    const xl_log quiet = {0};
    int status = xl_weights_open(&w, path, &quiet, err);
    if (status != XLSTM_OK) return status;
    const char *config = NULL, *json = xl_weights_tokenizer(w, &config);
    if (json == NULL) {
        status = xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: no tokenizer is embedded; expected tokenizer.huggingface.json",
                         path);
    } else {
        status = open_texts(out, json, strlen(json), path, config, config == NULL ? 0 : strlen(config), path, err);
    }
    xl_weights_close(w);
    return status;
}

int xlstm_tokenizer_open(xlstm_tokenizer **out, const char *path, xlstm_error *err)
{
    *out = NULL;
    size_t n = strlen(path);
    if (n > 5 && strcmp(path + n - 5, ".gguf") == 0) return open_gguf(out, path, err);
    char *file = NULL, *folder = NULL;
    int status = XLSTM_OK;
    if (xl_is_folder(path)) {
        folder = xl_strdup(path, err);
        file = xl_join(path, "tokenizer.json", err);
    } else {
        const char *slash = strrchr(path, '/');
        folder = slash == NULL ? xl_strdup(".", err) : xl_printf(err, "%.*s", (int)(slash - path + 1), path);
        file = xl_strdup(path, err);
    }
    if (folder == NULL || file == NULL) status = XLSTM_E_MEMORY;
    if (status == XLSTM_OK && !xl_is_file(file)) {
        status = xl_fail(err, XLSTM_E_IO, "%s: no such file; expected a tokenizer.json", file);
    }
    if (status == XLSTM_OK) status = open_folder(out, folder, file, err);
    xl_release(folder);
    xl_release(file);
    return status;
}

static void free_steps(xl_step steps[XL_STEPS])
{
    for (size_t i = 0; i < XL_STEPS; i++) {
        xl_pattern_free(&steps[i].pattern);
        xl_release(steps[i].text);
    }
}

void xlstm_tokenizer_free(xlstm_tokenizer *tokenizer)
{
    if (tokenizer == NULL) return;
    xl_names_free(&tokenizer->spelling);
    xl_names_free(&tokenizer->raw);
    xl_release(tokenizer->flags);
    xl_release((void *)tokenizer->whole);
    xl_release(tokenizer->merges.slots);
    for (uint32_t i = 0; i < tokenizer->n_added; i++) xl_release(tokenizer->added[i].shown);
    xl_release(tokenizer->added);
    xl_trie_free(&tokenizer->raw_trie);
    xl_trie_free(&tokenizer->normal_trie);
    free_steps(tokenizer->normalizers);
    free_steps(tokenizer->splitters);
    free_steps(tokenizer->decoders);
    xl_release(tokenizer->prefix);
    xl_release(tokenizer->suffix);
    xl_release(tokenizer->chat_template);
    xl_release(tokenizer);
}

uint32_t xlstm_tokenizer_size(const xlstm_tokenizer *tokenizer) { return tokenizer->spelling.n_ids; }

int32_t xlstm_tokenizer_find(const xlstm_tokenizer *tokenizer, const char *token)
{
    return xl_names_find(&tokenizer->spelling, token, strlen(token));
}

const char *xlstm_tokenizer_token(const xlstm_tokenizer *tokenizer, int32_t id)
{
    return id < 0 ? NULL : xl_names_get(&tokenizer->spelling, (uint32_t)id);
}

bool xlstm_tokenizer_is_special(const xlstm_tokenizer *tokenizer, int32_t id)
{
    return xlstm_tokenizer_token(tokenizer, id) != NULL && (tokenizer->flags[id] & XL_TOKEN_SPECIAL) != 0;
}

int32_t xlstm_tokenizer_bos(const xlstm_tokenizer *tokenizer) { return tokenizer->bos; }

int32_t xlstm_tokenizer_end_of_text(const xlstm_tokenizer *tokenizer) { return tokenizer->end_of_text; }

xlstm_switch xlstm_tokenizer_adds_bos(const xlstm_tokenizer *tokenizer) { return tokenizer->adds_bos; }

const char *xlstm_tokenizer_chat_template(const xlstm_tokenizer *tokenizer) { return tokenizer->chat_template; }
