/* fuzz_chat_template.c — the bytes are a chat template, rendered over fixed variables. Corpus:
 * tests/corpus/chat_template. */
#include "xlstm.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char variables[] =
        "{\"messages\":[{\"role\":\"system\",\"content\":\" a \"},{\"role\":\"user\",\"content\":\"h\\u00e9 <b>\"},"
        "{\"role\":\"assistant\",\"content\":\"x\",\"tool_calls\":[{\"name\":\"f\",\"arguments\":{\"a\":[1,2.5,null]}}]}],"
        "\"add_generation_prompt\":true,\"bos_token\":\"<s>\",\"n\":7,\"s\":\"Hello\",\"l\":[3,1,2],\"d\":{\"b\":1}}";
    char *source = malloc(size + 1), *text;
    if (!source)
        return 0;
    if (size)
        memcpy(source, data, size);
    source[size] = 0;
    size_t length;
    xlstm_error err = {0};
    int code = xlstm_chat_render(&text, &length, source, variables, sizeof variables - 1, &err);
    if (code ? text || err.code != code || !err.message[0] : !text || text[length])
        abort();
    xlstm_free(text);
    free(source);
    return 0;
}
