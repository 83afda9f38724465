/*
 * forward.c — the forward pass of xLSTM Large, written once for every backend and every mix of prefill and decode
 * (docs/model.md section 2). Which rows belong together is in the batch; nothing here looks at it.
 */
#include "model.h"

#include <assert.h>
#include <math.h>

/* ---- tracing ---------------------------------------------------------------------------------------------------- */

typedef struct tap {
    xlstm_model *m;
    const xl_trace *trace; /* NULL: off, and then nothing below is ever called */
    int block;
    size_t rows;
    float *values; /* [rows][widest stage], only while tracing */
    int result;
    xlstm_error *err;
} tap;

static void show(tap *t, const char *stage, const xl_buffer *b, size_t rows, size_t width)
{
    if (t->result == XLSTM_OK) {
        t->result = t->m->backend->ops->buffer_read(t->m->backend, b, 0, t->values, rows * width, t->err);
    }
    if (t->result == XLSTM_OK) t->trace->fn(t->trace->user, t->block, stage, t->values, rows, width);
}

/* Columns column .. column + width - 1 of rows `stride` wide, soft-capped when cap > 0. */
static void show_columns(tap *t, const char *stage, const xl_buffer *b, size_t stride, size_t column, size_t width,
                         float cap)
{
    if (t->result == XLSTM_OK) {
        t->result = t->m->backend->ops->buffer_read(t->m->backend, b, 0, t->values, t->rows * stride, t->err);
    }
    if (t->result != XLSTM_OK) return;
    for (size_t r = 0; r < t->rows; r++) {
        for (size_t i = 0; i < width; i++) {
            float x = t->values[r * stride + column + i];
            t->values[r * width + i] = cap > 0 ? cap * tanhf(x / cap) : x;
        }
    }
    t->trace->fn(t->trace->user, t->block, stage, t->values, t->rows, width);
}

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

static xl_linear linear(const xl_block *w, xl_role role, xl_buffer *out, uint32_t stride)
{
    return (xl_linear){.weight = w->weight[role], .bias = w->bias[role], .out = out, .stride = stride};
}

/* x += y W^T (+ b). The sum is split in two while tracing, to show the product by itself; both ways round alike. */
static void add_projection(xlstm_model *m, const xl_block *w, xl_role role, const xl_buffer *y, tap *t,
                           const char *stage)
{
    const xl_backend_ops *ops = m->backend->ops;
    uint32_t D = m->config.dims.embedding_dim;
    xl_linear l = linear(w, role, m->b.x, D);
    if (t->trace == NULL) {
        l.add = true;
        ops->linear(m->backend, &l, 1, y, false);
        return;
    }
    l.out = m->b.u;
    ops->linear(m->backend, &l, 1, y, false);
    show(t, stage, m->b.u, t->rows, D);
    ops->add(m->backend, m->b.x, m->b.u, D);
}

static void mlstm_layer(xlstm_model *m, uint32_t i, tap *t)
{
    const xl_backend_ops *ops = m->backend->ops;
    const xl_config *c = &m->config;
    const xl_dims *d = &c->dims;
    const xl_block *w = &m->blocks[i];
    xl_pass_buffers *b = &m->b;
    uint32_t NH = d->num_heads;
    xl_norm norm = {w->weight[XL_NORM_MLSTM], w->bias[XL_NORM_MLSTM], d->embedding_dim, c->norm_eps,
                    xl_fault_code(i, XL_AT_NORM_MLSTM)};
    xl_linear group[] = {
        linear(w, XL_Q, b->q, d->qk_dim),   linear(w, XL_K, b->k, d->qk_dim),
        linear(w, XL_V, b->v, d->v_dim),    linear(w, XL_OGATE, b->o, d->v_dim),
        linear(w, XL_IGATE, b->gates, 2 * NH), linear(w, XL_FGATE, b->gates, 2 * NH),
    };
    group[4].wide = group[5].wide = true;
    group[5].column = NH;
    if (t->trace != NULL) show(t, "x_in", b->x, t->rows, d->embedding_dim);
    if (ops->norm_linear != NULL && t->trace == NULL) {
        ops->norm_linear(m->backend, group, XL_COUNT(group), b->x, &norm, b->u);
    } else {
        ops->rmsnorm(m->backend, b->u, b->x, &norm, false);
        if (t->trace != NULL) show(t, "norm_mlstm", b->u, t->rows, d->embedding_dim);
        ops->linear(m->backend, group, XL_COUNT(group), b->u, false);
    }
    if (t->trace != NULL) {
        show(t, "q", b->q, t->rows, d->qk_dim);
        show(t, "k", b->k, t->rows, d->qk_dim);
        show(t, "v", b->v, t->rows, d->v_dim);
        show(t, "ogate_preact", b->o, t->rows, d->v_dim);
        show_columns(t, "igate_preact", b->gates, 2 * NH, 0, NH, 0);
        show_columns(t, "fgate_preact", b->gates, 2 * NH, NH, NH, 0);
        show_columns(t, "igate", b->gates, 2 * NH, 0, NH, c->gate_soft_cap);
        show_columns(t, "fgate", b->gates, 2 * NH, NH, NH, c->gate_soft_cap);
    }
    xl_mlstm cell = {.h = b->h,
                     .q = b->q,
                     .k = b->k,
                     .v = b->v,
                     .gates = b->gates,
                     .block = i,
                     .gate_soft_cap = c->gate_soft_cap,
                     .eps = c->cell_eps,
                     .fault = xl_fault_code(i, XL_AT_GATES)};
    ops->mlstm(m->backend, &cell);
    xl_norm mhnorm = {w->weight[XL_MHNORM], w->bias[XL_MHNORM], d->v_dim, c->norm_eps,
                      xl_fault_code(i, XL_AT_MHNORM)};
    ops->mhnorm_gate(m->backend, b->g, b->h, b->o, &mhnorm);
    if (t->trace != NULL) {
        show(t, "h", b->h, t->rows, d->v_dim);
        show(t, "gated", b->g, t->rows, d->v_dim);
    }
    add_projection(m, w, XL_OUT_PROJ, b->g, t, "out_proj");
}

static void ffn_layer(xlstm_model *m, uint32_t i, tap *t)
{
    const xl_backend_ops *ops = m->backend->ops;
    const xl_dims *d = &m->config.dims;
    const xl_block *w = &m->blocks[i];
    xl_pass_buffers *b = &m->b;
    xl_norm norm = {w->weight[XL_NORM_FFN], w->bias[XL_NORM_FFN], d->embedding_dim, m->config.norm_eps,
                    xl_fault_code(i, XL_AT_NORM_FFN)};
    xl_linear group[] = {linear(w, XL_FFN_GATE, b->gate, d->ffn_dim), linear(w, XL_FFN_UP, b->up, d->ffn_dim)};
    if (t->trace != NULL) show(t, "x_mid", b->x, t->rows, d->embedding_dim);
    if (ops->norm_linear != NULL && t->trace == NULL) {
        ops->norm_linear(m->backend, group, XL_COUNT(group), b->x, &norm, b->u);
    } else {
        ops->rmsnorm(m->backend, b->u, b->x, &norm, false);
        if (t->trace != NULL) show(t, "norm_ffn", b->u, t->rows, d->embedding_dim);
        ops->linear(m->backend, group, XL_COUNT(group), b->u, false);
    }
    ops->swiglu(m->backend, b->product, b->gate, b->up);
    if (t->trace != NULL) {
        show(t, "proj_up_gate", b->gate, t->rows, d->ffn_dim);
        show(t, "proj_up", b->up, t->rows, d->ffn_dim);
        show(t, "ffn_product", b->product, t->rows, d->ffn_dim);
    }
    add_projection(m, w, XL_FFN_DOWN, b->product, t, "proj_down");
    if (t->trace != NULL) show(t, "x_out", b->x, t->rows, d->embedding_dim);
}

/* ---- the whole pass --------------------------------------------------------------------------------------------- */

static void head(xlstm_model *m, const xl_batch *batch, tap *t)
{
    const xl_backend_ops *ops = m->backend->ops;
    const xl_config *c = &m->config;
    const xl_dims *d = &c->dims;
    xl_pass_buffers *b = &m->b;
    xl_norm norm = {m->out_norm, m->out_norm_bias, d->embedding_dim, c->norm_eps,
                    xl_fault_code(d->num_blocks, XL_AT_OUT_NORM)};
    xl_linear l = {.weight = m->head, .out = b->logits, .stride = d->vocab_size, .wide = true};
    xl_buffer *in = b->last;
    ops->gather(m->backend, b->last, b->x, d->embedding_dim);
    if (m->out_norm != NULL) {
        ops->rmsnorm(m->backend, b->u, b->last, &norm, true);
        in = b->u;
    }
    ops->linear(m->backend, &l, 1, in, true);
    ops->softcap(m->backend, b->logits, d->vocab_size, c->logit_soft_cap, xl_fault_code(d->num_blocks, XL_AT_LOGITS));
    if (t->trace != NULL) {
        t->block = -1;
        show(t, "out_norm", in, batch->n_out, d->embedding_dim);
        show(t, "logits", b->logits, batch->n_out, d->vocab_size);
    }
    if (batch->n_samples > 0) ops->sample(m->backend, b->logits, d->vocab_size);
}

int xl_forward(xlstm_model *m, const xl_batch *batch, const xl_trace *trace, xlstm_error *err)
{
    const xl_backend_ops *ops = m->backend->ops;
    const xl_dims *d = &m->config.dims;
    tap t = {.m = m, .trace = trace, .rows = batch->rows, .err = err};
    assert(batch->traced == (trace != NULL));
    if (trace != NULL) {
        size_t widest = XL_MAX(XL_MAX(d->ffn_dim, d->vocab_size), XL_MAX(d->embedding_dim, XL_MAX(d->v_dim, d->qk_dim)));
        t.values = xl_calloc(batch->rows * widest, sizeof(float), err);
        if (t.values == NULL) return XLSTM_E_MEMORY;
    }
    bool replay = false;
    int result = ops->begin(m->backend, batch, &replay, err);
    if (result == XLSTM_OK && !replay) {
        ops->embed(m->backend, m->b.x, m->embedding);
        for (uint32_t i = 0; i < d->num_blocks; i++) {
            t.block = (int)i;
            mlstm_layer(m, i, &t);
            ffn_layer(m, i, &t);
        }
        if (batch->n_out > 0) head(m, batch, &t);
    }
    if (result == XLSTM_OK) result = ops->submit(m->backend, m->faults, err);
    xl_release(t.values);
    return result != XLSTM_OK ? result : t.result;
}
