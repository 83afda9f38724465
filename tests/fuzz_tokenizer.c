/* fuzz_tokenizer.c — the bytes are a tokenizer.json, after a NUL a tokenizer_config.json (maybe empty), after another NUL
 * a text. What opens encodes fixed texts and that one; ids are decoded at once and one by one. Corpus:
 * tests/corpus/tokenizer. */
#include "tokenizer.h"

#include <stdlib.h>
#include <string.h>

static void check(bool good)
{
    if (!good) abort();
}

static void decode(const xlstm_tokenizer *t, const int32_t *ids, size_t n, bool skip)
{
    xlstm_error err = {0};
    char *text;
    size_t size, part, at = 0;
    const char *s;
    xlstm_stream *stream;
    int status = xlstm_tokenizer_decode(&text, &size, t, ids, n, skip, &err);
    check(status == XLSTM_OK ? text[size] == '\0' : text == NULL && err.message[0] != '\0');
    if (status != XLSTM_OK) return;
    check(xlstm_stream_new(&stream, t, skip, &err) == XLSTM_OK);
    for (size_t i = 0; i <= n; i++) {
        check((i < n ? xlstm_stream_push(&s, &part, stream, ids[i], &err)
                     : xlstm_stream_finish(&s, &part, stream, &err)) == XLSTM_OK);
        check(at + part <= size && memcmp(text + at, s, part) == 0 && xl_utf8_valid(s, part) == part);
        at += part;
    }
    check(at == size);
    xlstm_stream_free(stream);
    xlstm_free(text);
}

static void encode(const xlstm_tokenizer *t, const char *text, size_t size, unsigned flags)
{
    xlstm_error err = {0};
    int32_t *ids;
    size_t n;
    int status = xlstm_tokenizer_encode(&ids, &n, t, text, size, flags, &err);
    check(status == XLSTM_OK || (ids == NULL && n == 0 && err.code == status && err.message[0] != '\0'));
    if (status != XLSTM_OK) return;
    for (size_t i = 0; i < n; i++) check(xlstm_tokenizer_token(t, ids[i]) != NULL);
    decode(t, ids, n, false);
    decode(t, ids, n, true);
    xlstm_free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char fixed[] =
        "It's  a <s>caf\xc3\xa9\n\n e\xcc\x81 12345 \xea\xb0\x80\xe1\x86\xa8 \xe2\x96\x81 \xff\xe2\x82"
        " aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const char *json = (const char *)data, *end = json + size;
    size_t json_size = strnlen(json, size);
    const char *config = json_size < size ? json + json_size + 1 : end;
    size_t config_size = strnlen(config, (size_t)(end - config));
    const char *text = config + config_size < end ? config + config_size + 1 : end;
    size_t text_size = XL_MIN((size_t)(end - text), (size_t)300);

    xlstm_error err = {0};
    xlstm_tokenizer *t;
    int status = xlstm_tokenizer_open_memory(&t, json, json_size, config_size ? config : NULL, config_size, &err);
    check((status == XLSTM_OK) == (t != NULL));
    check(status == XLSTM_OK || (err.code == status && err.message[0] != '\0' && strchr(err.message, '\n') == NULL));
    if (t == NULL) return 0;
    encode(t, fixed, sizeof fixed, 0);
    encode(t, text, text_size, XLSTM_ENCODE_SPECIAL);
    encode(t, text, text_size, XLSTM_ENCODE_LITERAL);
    int32_t last = (int32_t)xlstm_tokenizer_size(t) - 1;
    decode(t, &last, 1, false);
    xlstm_tokenizer_free(t);
    return 0;
}
