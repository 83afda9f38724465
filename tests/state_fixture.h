/*
 * state_fixture.h — what the tests of states, prefix cache and session store share: a tiny model on the reference backend,
 * texts for it, comparison of sessions bit by bit, and a folder that may hold folders.
 */
#ifndef STATE_FIXTURE_H
#define STATE_FIXTURE_H

#include "make_model.h"
#include "state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <ftw.h>

#define OK(call)                                                     \
    do {                                                             \
        xlstm_error err = {0};                                       \
        if ((call) != XLSTM_OK) fail_msg("%s: %s", #call, err.message); \
    } while (0)
/* The call fails with that code, and the message names what `part` says. */
#define REFUSED(call, expected, part)                                                                              \
    do {                                                                                                           \
        xlstm_error err = {0};                                                                                     \
        int got_ = (call);                                                                                         \
        if (got_ != (expected) || strstr(err.message, part) == NULL) {                                             \
            fail_msg("%s: got %d \"%s\", expected %d \"...%s...\"", #call, got_, err.message, (int)(expected), part); \
        }                                                                                                          \
    } while (0)

enum { VOCAB = 48 };

static MK_UNUSED xlstm_model *fx_open(const char *folder, xlstm_dtype state_dtype, xlstm_switch bos)
{
    xlstm_model *model = NULL;
    const xlstm_model_options options = {.backend = "reference", .state_dtype = state_dtype, .bos = bos, .max_rows = 16};
    OK(xlstm_model_open(&model, folder, &options, &err));
    return model;
}

/* A model made on the spot; the folder is gone again. */
static MK_UNUSED xlstm_model *fx_model(const mk_model *shape, xlstm_dtype state_dtype, xlstm_switch bos)
{
    char *folder = mk_folder();
    mk_put_model(folder, shape);
    xlstm_model *model = fx_open(folder, state_dtype, bos);
    mk_remove_folder(folder);
    return model;
}

static MK_UNUSED void fx_tokens(int32_t *out, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++) out[i] = (int32_t)(2 + mk_next(&seed) % (VOCAB - 2));
}

static MK_UNUSED xlstm_session *fx_session(xlstm_model *model)
{
    xlstm_session *s = NULL;
    OK(xlstm_session_new(&s, model, &err));
    return s;
}

static MK_UNUSED xlstm_session *fx_read(xlstm_model *model, const int32_t *tokens, size_t n)
{
    xlstm_session *s = fx_session(model);
    OK(xlstm_prefill(s, tokens, n, &err));
    return s;
}

static MK_UNUSED xlstm_state *fx_snapshot(const xlstm_session *s)
{
    xlstm_state *state = NULL;
    OK(xlstm_state_snapshot(&state, s, &err));
    return state;
}

static MK_UNUSED bool fx_same_state(const xlstm_state *a, const xlstm_state *b)
{
    return a->layout.total_bytes == b->layout.total_bytes && a->position == b->position &&
           a->token_hash == b->token_hash && (a->logits == NULL) == (b->logits == NULL) &&
           memcmp(a->bytes, b->bytes, a->layout.total_bytes) == 0 &&
           (a->logits == NULL || memcmp(a->logits, b->logits, a->vocab_size * sizeof(float)) == 0);
}

static MK_UNUSED bool fx_same(const xlstm_session *a, const xlstm_session *b)
{
    xlstm_state *x = fx_snapshot(a), *y = fx_snapshot(b);
    bool same = fx_same_state(x, y);
    xlstm_state_free(x);
    xlstm_state_free(y);
    return same;
}

static int fx_remove_one(const char *path, const struct stat *st, int type, struct FTW *walk)
{
    (void)st;
    (void)type;
    (void)walk;
    return remove(path);
}

static MK_UNUSED void fx_remove_tree(char *folder)
{
    MK_CHECK(nftw(folder, fx_remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
    free(folder);
}

static MK_UNUSED size_t fx_file_size(const char *path)
{
    FILE *f = fopen(path, "rb");
    MK_CHECK(f != NULL && fseek(f, 0, SEEK_END) == 0);
    long size = ftell(f);
    MK_CHECK(size >= 0 && fclose(f) == 0);
    return (size_t)size;
}

#endif
