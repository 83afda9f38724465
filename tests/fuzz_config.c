/* fuzz_config.c — the bytes are a config.json, and after a NUL one --set argument a line. Corpus: tests/corpus/config. */
#include "config.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static xl_weights *w;
    static xl_wiring wiring;
    xlstm_error err = {0};
    if (w == NULL) {
        if (xl_weights_open(&w, "preset:tiny", NULL, &err) != XLSTM_OK) abort();
        if (xl_wiring_discover(&wiring, w, NULL, &err) != XLSTM_OK) abort();
    }
    char *text = malloc(size + 1);
    if (text == NULL) return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    const char *set[8];
    xlstm_model_options options = {.set = set};
    char *line = strlen(text) < size ? text + strlen(text) + 1 : NULL;
    while (line != NULL && options.n_set < XL_COUNT(set)) {
        set[options.n_set++] = line;
        line = strchr(line, '\n');
        if (line != NULL) *line++ = '\0';
    }
    xl_config config;
    int result = xl_config_resolve(&config, *text != '\0' ? text : NULL, "config.json", &wiring, &options, NULL, &err);
    if (result != XLSTM_OK && (err.code != result || err.message[0] == '\0')) abort();
    free(text);
    return 0;
}
