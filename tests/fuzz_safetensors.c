/* fuzz_safetensors.c — the bytes are a .safetensors file; text that begins with '{' is an index beside a good shard, text
 * that begins with '#' is a config.yaml beside one. Corpus: tests/corpus/safetensors. */
#include "fuzz_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *folder = fuzz_get_folder();
    char path[64];
    if (size > 0 && (data[0] == '{' || data[0] == '#')) {
        mk_list list = {0};
        mk_add(&list, "a", XLSTM_F32, 2, 0);
        bool yaml = data[0] == '#';
        snprintf(path, sizeof(path), "%s/model.safetensors", folder);
        if (!yaml) (void)unlink(path);
        mk_put_safetensors(folder, yaml ? "model.safetensors" : "1.safetensors", list.t, list.n);
        mk_put_file(folder, yaml ? "config.yaml" : "model.safetensors.index.json", data, size);
        mk_free(&list);
        fuzz_use_weights(folder);
        return 0;
    }
    mk_put_file(folder, "x.safetensors", data, size);
    snprintf(path, sizeof(path), "%s/x.safetensors", folder);
    fuzz_use_weights(path);
    return 0;
}
