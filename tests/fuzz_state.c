/* fuzz_state.c — the first byte says what the rest is: '0' a state file whose header checksum is put right first, so that
 * the fields behind it are reached; '1' a .safetensors export, '2' an .npz export. Corpus: tests/corpus/state. */
#include "fuzz_file.h"
#include "state.h"

/* What a tool does with a state of any kind. */
static void use(xlstm_state *s)
{
    xlstm_state_info info;
    xlstm_state *other = NULL;
    xlstm_state_get_info(s, &info);
    for (int to = 0; to < XLSTM_DTYPE_COUNT; to++) {
        if (xlstm_state_convert(&other, s, (xlstm_dtype)to, NULL) == XLSTM_OK) xlstm_state_free(other);
    }
    const xlstm_state *pair[] = {s, s};
    const double weights[] = {0.25, -3};
    if (xlstm_state_mix(&other, pair, weights, 2, NULL) == XLSTM_OK) xlstm_state_free(other);
    xlstm_state_free(s);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    enum { HEADER = 4096, HASH_AT = 104, BODY_HASH_AT = 88 };
    if (size < 1) return 0;
    uint8_t kind = *data++;
    size--;
    xlstm_state *s = NULL;
    xlstm_error err = {0};
    int result;
    if (kind == '0') {
        uint8_t *bytes = malloc(size + 1);
        MK_CHECK(bytes != NULL);
        memcpy(bytes, data, size);
        if (size >= HEADER) {
            uint64_t body = xl_hash(bytes + HEADER, size - HEADER, 0);
            memcpy(bytes + BODY_HASH_AT, &body, sizeof(body));
            memset(bytes + HASH_AT, 0, 8);
            uint64_t hash = xl_hash(bytes, HEADER, 0);
            memcpy(bytes + HASH_AT, &hash, sizeof(hash));
        }
        result = xlstm_state_deserialize(&s, NULL, bytes, size, &err);
        free(bytes);
    } else {
        char path[64];
        const char *name = kind == '1' ? "s.safetensors" : "s.npz";
        mk_put_file(fuzz_get_folder(), name, data, size);
        snprintf(path, sizeof(path), "%s/%s", fuzz_get_folder(), name);
        result = xlstm_state_import(&s, path, &err);
    }
    MK_CHECK((result == XLSTM_OK) == (s != NULL) && (result == XLSTM_OK || err.message[0] != '\0'));
    if (s != NULL) use(s);
    return 0;
}
