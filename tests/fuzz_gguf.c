/* fuzz_gguf.c — the bytes are a .gguf file. Corpus: tests/corpus/gguf. */
#include "fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    mk_put_file(fuzz_get_folder(), "x.gguf", data, size);
    snprintf(path, sizeof(path), "%s/x.gguf", fuzz_get_folder());
    fuzz_use_weights(path);
    return 0;
}
