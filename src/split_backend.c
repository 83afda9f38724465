/*
 * split_backend.c — a backend made of two. Its objects hold one of the inner backends' objects for each side that needs
 * it; its operations go to the side of their weights. A pass begins on both sides, runs through the first, is submitted
 * there, and goes on in the second: the first may thus record and replay its part, which the caller never notices.
 *
 * A buffer knows which side wrote it last. Read on the other side, it is carried over through host memory; in the
 * forward pass that happens to the residual stream, once. Both sides round alike, so carrying changes no bit.
 */
#include "split_backend.h"

#include <assert.h>

enum { FIRST, SECOND, SIDES };

/* Pointers named `on` are the sides' own objects, NULL where a side has none; they are never looked into. */
struct xl_matrix {
    const xl_backend_ops *ops[SIDES];
    xl_matrix *on[SIDES];
};

struct xl_buffer {
    xl_buffer *on[SIDES];
    size_t width;
    int fresh; /* the side that wrote it last */
};

struct xl_store {
    xl_store *on[SIDES];
};

typedef struct split {
    xl_backend base;
    xl_backend *side[SIDES];
    uint32_t blocks[SIDES];
    xl_state_layout layout; /* all blocks */
    uint32_t max_runs;
    uint32_t place; /* the block that new objects are for */

    /* the pass */
    xl_batch batch[SIDES];
    xl_run *runs[SIDES]; /* [max_runs]: the sides' own stores */
    bool replay[SIDES];  /* the side has its operations recorded already */
    int at;              /* the side that operations go to */
    uint32_t *faults;    /* [max_rows]: the first side's */
    float *values;       /* [n_values]: on their way from one side to the other */
    size_t n_values;
    int failed; /* the first failure between begin and submit, XLSTM_OK if none */
    xlstm_error why;
} split;

static split *split_of(xl_backend *be) { return (split *)be; }
static const xl_backend_ops *ops_of(const split *s, int side) { return s->side[side]->ops; }

/* ---- open and close --------------------------------------------------------------------------------------------- */

static void split_close(xl_backend *be)
{
    if (be == NULL) return;
    split *s = split_of(be);
    for (int i = 0; i < SIDES; i++) {
        if (s->side[i] != NULL) ops_of(s, i)->close(s->side[i]);
        xl_release(s->runs[i]);
    }
    xl_release(s->faults);
    xl_release(s->values);
    xl_release(s);
}

static int check_layouts(split *s, const xl_backend_options *o, xlstm_error *err)
{
    xlstm_dtype first = ops_of(s, FIRST)->layout(s->side[FIRST])->dtype;
    xlstm_dtype second = ops_of(s, SECOND)->layout(s->side[SECOND])->dtype;
    if (first != second) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED,
                       "blocks cannot be split between %s, which keeps %s states, and %s, which keeps them in %s",
                       ops_of(s, FIRST)->name, xlstm_dtype_name(first), ops_of(s, SECOND)->name,
                       xlstm_dtype_name(second));
    }
    return xl_state_layout_make(&s->layout, first, o->num_blocks, o->num_heads, o->head_qk, o->head_v, err);
}

extern const xl_backend_ops xl_split_backend;

int xl_split_open(xl_backend **out, const char *first, const char *second, uint32_t blocks,
                  const xl_backend_options *options, xlstm_error *err)
{
    assert(blocks > 0 && blocks < options->num_blocks);
    *out = NULL;
    split *s = xl_calloc(1, sizeof(*s), err);
    if (s == NULL) return XLSTM_E_MEMORY;
    s->base.ops = &xl_split_backend;
    s->blocks[FIRST] = blocks;
    s->blocks[SECOND] = options->num_blocks - blocks;
    s->max_runs = options->max_runs;
    s->place = XL_ANY_BLOCK;
    int result = XLSTM_OK;
    for (int i = 0; i < SIDES && result == XLSTM_OK; i++) {
        xl_backend_options o = *options;
        o.num_blocks = s->blocks[i];
        result = xl_backend_open(&s->side[i], i == FIRST ? first : second, &o, err);
    }
    if (result == XLSTM_OK) result = check_layouts(s, options, err);
    if (result != XLSTM_OK) goto fail;
    result = XLSTM_E_MEMORY;
    s->n_values = (size_t)options->max_rows * options->embedding_dim;
    s->values = xl_calloc(s->n_values, sizeof(*s->values), err);
    s->faults = xl_calloc(options->max_rows, sizeof(*s->faults), err);
    for (int i = 0; i < SIDES; i++) s->runs[i] = xl_calloc(options->max_runs, sizeof(*s->runs[i]), err);
    if (!s->values || !s->faults || !s->runs[FIRST] || !s->runs[SECOND]) goto fail;
    *out = &s->base;
    return XLSTM_OK;
fail:
    split_close(&s->base);
    return result;
}

xl_backend *xl_split_side(xl_backend *be, int side) { return split_of(be)->side[side]; }

static void split_describe(const xl_backend *be, char *out, size_t size)
{
    const split *s = (const split *)be;
    char text[SIDES][128];
    for (int i = 0; i < SIDES; i++) ops_of(s, i)->describe(s->side[i], text[i], sizeof(text[i]));
    snprintf(out, size, "%s for blocks 0..%u, %s for the rest", text[FIRST], s->blocks[FIRST] - 1, text[SECOND]);
}

static void split_place(xl_backend *be, uint32_t block) { split_of(be)->place = block; }

static size_t split_room(const xl_backend *be)
{
    const split *s = (const split *)be;
    return ops_of(s, FIRST)->room != NULL ? ops_of(s, FIRST)->room(s->side[FIRST]) : SIZE_MAX;
}

static uint32_t split_most_runs(xl_backend *be)
{
    split *s = split_of(be);
    uint32_t most = s->max_runs;
    for (int i = 0; i < SIDES; i++) {
        if (ops_of(s, i)->most_runs != NULL) most = XL_MIN(most, ops_of(s, i)->most_runs(s->side[i]));
    }
    return most;
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

static void split_matrix_free(xl_backend *be, xl_matrix *m)
{
    if (m == NULL) return;
    split *s = split_of(be);
    for (int i = 0; i < SIDES; i++) ops_of(s, i)->matrix_free(s->side[i], m->on[i]);
    xl_release(m);
}

/* Rows are looked up in front of the first block. A matrix that is multiplied with as well is a tied head, and so it is
 * used on both sides. */
static int split_matrix_new(xl_backend *be, xl_matrix **out, bool *borrows, const xl_tensor *t, const void *bytes,
                            uint64_t row0, uint64_t rows, xlstm_dtype hold, unsigned usage, xlstm_error *err)
{
    split *s = split_of(be);
    *out = NULL;
    *borrows = false;
    unsigned use[SIDES] = {usage & XL_USE_ROWS, 0};
    if (usage & XL_USE_MATMUL) use[(usage & XL_USE_ROWS) || s->place >= s->blocks[FIRST]] |= XL_USE_MATMUL;
    xl_matrix *m = xl_calloc(1, sizeof(*m), err);
    if (m == NULL) return XLSTM_E_MEMORY;
    for (int i = 0; i < SIDES; i++) {
        m->ops[i] = ops_of(s, i);
        if (use[i] == 0) continue;
        bool lent = false;
        int result = m->ops[i]->matrix_new(s->side[i], &m->on[i], &lent, t, bytes, row0, rows, hold, use[i], err);
        if (result != XLSTM_OK) {
            split_matrix_free(be, m);
            return result;
        }
        *borrows = *borrows || lent;
    }
    *out = m;
    return XLSTM_OK;
}

static size_t split_matrix_bytes(const xl_matrix *m)
{
    size_t bytes = 0;
    for (int i = 0; i < SIDES; i++) bytes += m->on[i] != NULL ? m->ops[i]->matrix_bytes(m->on[i]) : 0;
    return bytes;
}

/* ---- buffers ---------------------------------------------------------------------------------------------------- */

static void split_buffer_free(xl_backend *be, xl_buffer *b)
{
    if (b == NULL) return;
    split *s = split_of(be);
    for (int i = 0; i < SIDES; i++) ops_of(s, i)->buffer_free(s->side[i], b->on[i]);
    xl_release(b);
}

static int split_buffer_new(xl_backend *be, xl_buffer **out, size_t rows, size_t width, xlstm_error *err)
{
    split *s = split_of(be);
    *out = NULL;
    xl_buffer *b = xl_calloc(1, sizeof(*b), err);
    if (b == NULL) return XLSTM_E_MEMORY;
    b->width = width;
    int home = s->place >= s->blocks[FIRST] ? SECOND : FIRST;
    for (int i = 0; i < SIDES; i++) {
        if (s->place != XL_ANY_BLOCK && i != home) continue;
        int result = ops_of(s, i)->buffer_new(s->side[i], &b->on[i], rows, width, err);
        if (result != XLSTM_OK) {
            split_buffer_free(be, b);
            return result;
        }
        b->fresh = i;
    }
    *out = b;
    return XLSTM_OK;
}

static int split_buffer_read(xl_backend *be, const xl_buffer *b, size_t first, float *out, size_t n, xlstm_error *err)
{
    split *s = split_of(be);
    return ops_of(s, b->fresh)->buffer_read(s->side[b->fresh], b->on[b->fresh], first, out, n, err);
}

static int split_buffer_write(xl_backend *be, xl_buffer *b, size_t first, const float *in, size_t n, xlstm_error *err)
{
    split *s = split_of(be);
    return ops_of(s, b->fresh)->buffer_write(s->side[b->fresh], b->on[b->fresh], first, in, n, err);
}

/* ---- states: the first side's blocks, then the second's ------------------------------------------------------------ */

/* Where a side's blocks begin in a state of all blocks. */
static size_t state_offset(const split *s, int side)
{
    return side == FIRST ? 0 : s->blocks[FIRST] * s->layout.block_bytes;
}

static void split_store_free(xl_backend *be, xl_store *store)
{
    if (store == NULL) return;
    split *s = split_of(be);
    for (int i = 0; i < SIDES; i++) ops_of(s, i)->store_free(s->side[i], store->on[i]);
    xl_release(store);
}

static int split_store_new(xl_backend *be, xl_store **out, xlstm_error *err)
{
    split *s = split_of(be);
    *out = NULL;
    xl_store *store = xl_calloc(1, sizeof(*store), err);
    if (store == NULL) return XLSTM_E_MEMORY;
    for (int i = 0; i < SIDES; i++) {
        int result = ops_of(s, i)->store_new(s->side[i], &store->on[i], err);
        if (result != XLSTM_OK) {
            split_store_free(be, store);
            return result;
        }
    }
    *out = store;
    return XLSTM_OK;
}

static int split_store_zero(xl_backend *be, xl_store *store, xlstm_error *err)
{
    split *s = split_of(be);
    int result = XLSTM_OK;
    for (int i = 0; i < SIDES && result == XLSTM_OK; i++) {
        result = ops_of(s, i)->store_zero(s->side[i], store->on[i], err);
    }
    return result;
}

static int split_store_copy(xl_backend *be, xl_store *to, const xl_store *from, xlstm_error *err)
{
    split *s = split_of(be);
    int result = XLSTM_OK;
    for (int i = 0; i < SIDES && result == XLSTM_OK; i++) {
        result = ops_of(s, i)->store_copy(s->side[i], to->on[i], from->on[i], err);
    }
    return result;
}

static int split_store_read(xl_backend *be, const xl_store *store, void *host, xlstm_error *err)
{
    split *s = split_of(be);
    int result = XLSTM_OK;
    for (int i = 0; i < SIDES && result == XLSTM_OK; i++) {
        result = ops_of(s, i)->store_read(s->side[i], store->on[i], (uint8_t *)host + state_offset(s, i), err);
    }
    return result;
}

static int split_store_write(xl_backend *be, xl_store *store, const void *host, xlstm_error *err)
{
    split *s = split_of(be);
    int result = XLSTM_OK;
    for (int i = 0; i < SIDES && result == XLSTM_OK; i++) {
        result = ops_of(s, i)->store_write(s->side[i], store->on[i], (const uint8_t *)host + state_offset(s, i), err);
    }
    return result;
}

static const xl_state_layout *split_layout(const xl_backend *be) { return &((const split *)be)->layout; }

/* ---- the pass --------------------------------------------------------------------------------------------------- */

/* Logits are the second side's business. The first side begins last, since it is the one whose begin may fail. */
static int split_begin(xl_backend *be, const xl_batch *batch, bool *replay, xlstm_error *err)
{
    split *s = split_of(be);
    *replay = false;
    if (batch->n_runs > s->max_runs) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "a batch of %u runs: room is for %u", batch->n_runs, s->max_runs);
    }
    s->at = FIRST;
    s->failed = XLSTM_OK;
    for (int i = SIDES; i-- > 0;) {
        xl_batch *own = &s->batch[i];
        *own = *batch;
        own->runs = s->runs[i];
        if (i == FIRST) own->n_out = 0;
        for (uint32_t r = 0; r < batch->n_runs; r++) {
            s->runs[i][r] = batch->runs[r];
            if (batch->runs[r].store != NULL) s->runs[i][r].store = batch->runs[r].store->on[i];
        }
        s->replay[i] = false;
        int result = ops_of(s, i)->begin(s->side[i], own, &s->replay[i], err);
        if (result != XLSTM_OK) return result;
    }
    return XLSTM_OK;
}

static void note_failure(split *s, int result)
{
    if (s->failed == XLSTM_OK) s->failed = result;
}

/* Ends the first side's part of the pass. */
static void cross(split *s)
{
    if (s->at == SECOND) return;
    s->at = SECOND;
    note_failure(s, ops_of(s, FIRST)->submit(s->side[FIRST], s->faults, &s->why));
}

static void go_to(split *s, const xl_matrix *weight)
{
    if (weight->on[s->at] == NULL) cross(s);
    assert(weight->on[s->at] != NULL);
}

/* Values of the batch's rows from the side that wrote them last to the one at hand. */
static void carry(split *s, xl_buffer *b)
{
    int from = b->fresh, to = s->at;
    size_t n = s->batch[to].rows * b->width;
    assert(b->on[to] != NULL);
    b->fresh = to;
    for (size_t done = 0, part; done < n && s->failed == XLSTM_OK; done += part) {
        part = XL_MIN(n - done, s->n_values);
        note_failure(s, ops_of(s, from)->buffer_read(s->side[from], b->on[from], done, s->values, part, &s->why));
        if (s->failed != XLSTM_OK) return;
        note_failure(s, ops_of(s, to)->buffer_write(s->side[to], b->on[to], done, s->values, part, &s->why));
    }
}

/* The buffer on the side at hand, to be read there. */
static const xl_buffer *input(split *s, const xl_buffer *b)
{
    if (b->fresh != s->at) carry(s, (xl_buffer *)(uintptr_t)b); /* its values stay what they are */
    return b->on[s->at];
}

/* The same, to be overwritten: the whole of its rows, if not by this operation then by the group it is in. */
static xl_buffer *output(split *s, xl_buffer *b)
{
    b->fresh = s->at;
    return b->on[s->at];
}

/* The backend at hand, NULL when it shall not see the operation: it has it recorded, or the pass has failed. */
static xl_backend *target(const split *s) { return s->replay[s->at] || s->failed != XLSTM_OK ? NULL : s->side[s->at]; }

static const xl_matrix *weight_at(const split *s, const xl_matrix *m) { return m != NULL ? m->on[s->at] : NULL; }

static xl_norm norm_at(const split *s, const xl_norm *norm)
{
    xl_norm own = *norm;
    own.weight = weight_at(s, norm->weight);
    own.bias = weight_at(s, norm->bias);
    return own;
}

static void split_embed(xl_backend *be, xl_buffer *x, const xl_matrix *embedding)
{
    split *s = split_of(be);
    go_to(s, embedding);
    xl_buffer *to = output(s, x);
    xl_backend *t = target(s);
    if (t != NULL) t->ops->embed(t, to, weight_at(s, embedding));
}

static void split_rmsnorm(xl_backend *be, xl_buffer *y, const xl_buffer *x, const xl_norm *norm, bool out_rows)
{
    split *s = split_of(be);
    go_to(s, norm->weight);
    const xl_buffer *from = input(s, x);
    xl_buffer *to = output(s, y);
    xl_norm own = norm_at(s, norm);
    xl_backend *t = target(s);
    if (t != NULL) t->ops->rmsnorm(t, to, from, &own, out_rows);
}

static void split_linear(xl_backend *be, const xl_linear *group, uint32_t n, const xl_buffer *x, bool out_rows)
{
    split *s = split_of(be);
    xl_linear own[8];
    assert(n <= XL_COUNT(own));
    go_to(s, group[0].weight);
    const xl_buffer *from = input(s, x);
    for (uint32_t i = 0; i < n; i++) {
        own[i] = group[i];
        own[i].weight = weight_at(s, group[i].weight);
        own[i].bias = weight_at(s, group[i].bias);
        if (group[i].add) (void)input(s, group[i].out);
        own[i].out = output(s, group[i].out);
    }
    xl_backend *t = target(s);
    if (t != NULL) t->ops->linear(t, own, n, from, out_rows);
}

static void split_mlstm(xl_backend *be, const xl_mlstm *op)
{
    split *s = split_of(be);
    if (op->block >= s->blocks[FIRST]) cross(s);
    xl_mlstm own = *op;
    own.q = input(s, op->q);
    own.k = input(s, op->k);
    own.v = input(s, op->v);
    own.gates = input(s, op->gates);
    own.h = output(s, op->h);
    if (s->at == SECOND) own.block -= s->blocks[FIRST];
    xl_backend *t = target(s);
    if (t != NULL) t->ops->mlstm(t, &own);
}

static void split_mhnorm_gate(xl_backend *be, xl_buffer *g, const xl_buffer *h, const xl_buffer *o, const xl_norm *norm)
{
    split *s = split_of(be);
    go_to(s, norm->weight);
    const xl_buffer *cell = input(s, h), *gate = input(s, o);
    xl_buffer *to = output(s, g);
    xl_norm own = norm_at(s, norm);
    xl_backend *t = target(s);
    if (t != NULL) t->ops->mhnorm_gate(t, to, cell, gate, &own);
}

/* Operations without weights follow those before them. */
static void split_swiglu(xl_backend *be, xl_buffer *a, const xl_buffer *gate, const xl_buffer *up)
{
    split *s = split_of(be);
    const xl_buffer *x = input(s, gate), *y = input(s, up);
    xl_buffer *to = output(s, a);
    xl_backend *t = target(s);
    if (t != NULL) t->ops->swiglu(t, to, x, y);
}

static void split_add(xl_backend *be, xl_buffer *x, const xl_buffer *y, uint32_t width)
{
    split *s = split_of(be);
    const xl_buffer *from = input(s, y);
    (void)input(s, x);
    xl_buffer *to = output(s, x);
    xl_backend *t = target(s);
    if (t != NULL) t->ops->add(t, to, from, width);
}

/* Only the second side knows which rows' logits are wanted. */
static void split_gather(xl_backend *be, xl_buffer *y, const xl_buffer *x, uint32_t width)
{
    split *s = split_of(be);
    cross(s);
    const xl_buffer *from = input(s, x);
    xl_buffer *to = output(s, y);
    xl_backend *t = target(s);
    if (t != NULL) t->ops->gather(t, to, from, width);
}

static void split_softcap(xl_backend *be, xl_buffer *logits, uint32_t width, float cap, uint32_t fault)
{
    split *s = split_of(be);
    cross(s);
    (void)input(s, logits);
    xl_buffer *to = output(s, logits);
    xl_backend *t = target(s);
    if (t != NULL) t->ops->softcap(t, to, width, cap, fault);
}

/* A row's first fault is the first side's, if it has one. */
static int split_submit(xl_backend *be, uint32_t *faults, xlstm_error *err)
{
    split *s = split_of(be);
    cross(s);
    int failed = s->failed; /* the second side's pass ends all the same */
    note_failure(s, ops_of(s, SECOND)->submit(s->side[SECOND], faults, failed == XLSTM_OK ? &s->why : NULL));
    if (s->failed != XLSTM_OK) return xl_fail(err, (xlstm_code)s->failed, "%s", s->why.message);
    for (uint32_t r = 0; r < s->batch[SECOND].rows; r++) {
        if (s->faults[r] != 0) faults[r] = s->faults[r];
    }
    return XLSTM_OK;
}

const xl_backend_ops xl_split_backend = {
    .name = "split",
    .close = split_close,
    .describe = split_describe,
    .matrix_new = split_matrix_new,
    .matrix_free = split_matrix_free,
    .matrix_bytes = split_matrix_bytes,
    .buffer_new = split_buffer_new,
    .buffer_free = split_buffer_free,
    .buffer_read = split_buffer_read,
    .buffer_write = split_buffer_write,
    .store_new = split_store_new,
    .store_free = split_store_free,
    .store_zero = split_store_zero,
    .store_copy = split_store_copy,
    .store_read = split_store_read,
    .store_write = split_store_write,
    .layout = split_layout,
    .begin = split_begin,
    .embed = split_embed,
    .rmsnorm = split_rmsnorm,
    .linear = split_linear,
    .mlstm = split_mlstm,
    .mhnorm_gate = split_mhnorm_gate,
    .swiglu = split_swiglu,
    .add = split_add,
    .gather = split_gather,
    .softcap = split_softcap,
    .submit = split_submit,
    .place = split_place,
    .room = split_room,
    .most_runs = split_most_runs,
};
