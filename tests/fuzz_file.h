/* fuzz_file.h — gives a fuzzer's bytes to code that reads files: one file in memory-backed storage, rewritten each time. */
#ifndef FUZZ_FILE_H
#define FUZZ_FILE_H

#include "make_model.h"
#include "weights.h"
#include "wiring.h"

static char fuzz_folder[] = "/tmp/xlstm-fuzz-XXXXXX";

static MK_UNUSED void fuzz_remove_folder(void)
{
    mk_remove_folder(strdup(fuzz_folder));
}

/* The same folder at every call; it goes away with the process. */
static MK_UNUSED const char *fuzz_get_folder(void)
{
    static bool made;
    if (!made) {
        if (access("/dev/shm", W_OK) == 0) memcpy(fuzz_folder, "/dev/shm/fuzz-XXXXXX\0", 21);
        MK_CHECK(mkdtemp(fuzz_folder) != NULL);
        atexit(fuzz_remove_folder);
        made = true;
    }
    return fuzz_folder;
}

/* What a caller does with a checkpoint: every error has a message, and what opens can be read, wired and drawn. */
static MK_UNUSED void fuzz_use_weights(const char *path)
{
    xl_weights *w = NULL;
    xlstm_error err = {0};
    int result = xl_weights_open(&w, path, NULL, &err);
    if (result != XLSTM_OK) {
        MK_CHECK(w == NULL && err.code == result && err.message[0] != '\0');
        return;
    }
    uint64_t sum = 0;
    for (size_t i = 0; i < xl_weights_count(w); i++) {
        const xl_tensor *t = xl_weights_at(w, i);
        const void *bytes = NULL;
        MK_CHECK(xl_weights_find(w, t->name) == t);
        if (xl_weights_data(&bytes, w, t, &err) == XLSTM_OK) sum += xl_hash(bytes, t->bytes, sum);
        xl_weights_drop(w, t);
    }
    MK_CHECK(xl_weights_fingerprint(&sum, w, &err) == XLSTM_OK);
    xl_wiring wiring;
    if (xl_wiring_discover(&wiring, w, NULL, &err) == XLSTM_OK) {
        xl_text text = {0};
        xl_wiring_draw(&text, &wiring, true);
        free(text.data);
        xl_wiring_free(&wiring);
    }
    xl_weights_close(w);
}

#endif
