/*
 * locate.c — finds where a non-finite value came from. Detection during evaluation costs nothing and says only in which
 * block a norm met it; this replays the tokens, narrows the failure down to one token, traces that token through every
 * stage in the order of the forward pass and looks inside the cell in float64. Layer 4.
 */
#include "session.h"

#include <math.h>

enum { STAGES_MAX = 40, PIECE = 512 };

/* ---- looking at stages -------------------------------------------------------------------------------------------- */

typedef struct summary {
    char stage[24];
    float min, max; /* over finite values */
    uint64_t nonfinite;
} summary;

typedef struct search {
    xlstm_model *m;
    xlstm_fault *fault;
    const xlstm_state *before; /* state in front of the traced tokens */
    summary seen[STAGES_MAX];  /* of the current block */
    size_t n_seen;
    int block;
    size_t row; /* row of the traced piece where the fault was found */
    size_t overflow_row, overflow_channel; /* where the last residual is largest, if its squares overflow a norm */
    bool overflow;
    /* the current block's inputs of the cell, one token: */
    float *q, *k, *v, *igate, *fgate, *h; /* [Qd], [Qd], [Vd], [NH], [NH], [Vd] */
} search;

/* Which stage a stage is computed from; the summaries of these are reported. */
static const struct {
    const char *stage, *input;
} inputs[] = {
    {"norm_mlstm", "x_in"},          {"q", "norm_mlstm"},         {"k", "norm_mlstm"},
    {"v", "norm_mlstm"},             {"ogate_preact", "norm_mlstm"}, {"igate_preact", "norm_mlstm"},
    {"fgate_preact", "norm_mlstm"},  {"igate", "igate_preact"},   {"fgate", "fgate_preact"},
    {"log_fgate", "fgate"},          {"m", "igate"},              {"fgate_factor", "log_fgate"},
    {"igate_factor", "igate"},       {"C", "v"},                  {"n", "k"},
    {"numerator", "q"},              {"qn", "q"},                 {"denominator", "qn"},
    {"h", "numerator"},              {"multihead_norm", "h"},     {"gated", "ogate_preact"},
    {"out_proj", "gated"},           {"x_mid", "out_proj"},       {"norm_ffn", "x_mid"},
    {"proj_up_gate", "norm_ffn"},    {"proj_up", "norm_ffn"},     {"ffn_product", "proj_up"},
    {"proj_down", "ffn_product"},    {"x_out", "proj_down"},      {"out_norm", "x_in"},
    {"logits", "out_norm"},
};

static void summarise(search *s, const char *stage, const float *values, size_t n)
{
    if (s->n_seen == STAGES_MAX) return;
    summary *out = &s->seen[s->n_seen++];
    *out = (summary){.min = INFINITY, .max = -INFINITY};
    snprintf(out->stage, sizeof(out->stage), "%s", stage);
    for (size_t i = 0; i < n; i++) {
        if (!xl_is_finite(values[i])) {
            out->nonfinite++;
            continue;
        }
        if (values[i] < out->min) out->min = values[i];
        if (values[i] > out->max) out->max = values[i];
    }
}

static void report(search *s, const char *stage, int head, size_t channel, float value)
{
    xlstm_fault *f = s->fault;
    f->found = true;
    f->block = s->block;
    f->head = head;
    f->channel = (uint32_t)channel;
    f->value = value;
    snprintf(f->stage, sizeof(f->stage), "%s", stage);
    for (size_t i = 0; i < XL_COUNT(inputs); i++) {
        if (strcmp(inputs[i].stage, stage) == 0) snprintf(f->input, sizeof(f->input), "%s", inputs[i].input);
    }
    for (size_t i = 0; i < s->n_seen; i++) {
        if (strcmp(s->seen[i].stage, f->input) != 0) continue;
        f->input_min = s->seen[i].min;
        f->input_max = s->seen[i].max;
        f->input_nonfinite = s->seen[i].nonfinite;
    }
}

/* Checks a stage computed here in float64: `heads` runs of `width` values each. */
static bool check_wide(search *s, const char *stage, int head, const double *values, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        float x = (float)values[i];
        if (xl_is_finite(x)) continue;
        report(s, stage, head, i, x);
        return true;
    }
    return false;
}

/* ---- inside the cell ---------------------------------------------------------------------------------------------- */

/* One head of the step of docs/model.md in float64, stage by stage, from the state before the token. Values that
 * overflow float32 count as infinite. Returns true once a fault is reported. */
static bool check_head(search *s, uint32_t h, float *C, float *n, double *wide)
{
    const xl_config *c = &s->m->config;
    size_t dq = c->dims.head_qk, dv = c->dims.head_v;
    const float *q = s->q + h * dq, *k = s->k + h * dq, *v = s->v + h * dv;
    float m_before = 0;
    memset(C, 0, dq * dv * sizeof(*C));
    memset(n, 0, dq * sizeof(*n));
    if (s->before != NULL &&
        xlstm_state_read_head(s->before, (uint32_t)s->block, h, C, n, &m_before, NULL) != XLSTM_OK) {
        return false;
    }
    double i = s->igate[h], f = s->fgate[h], scale = 1 / sqrt((double)dq);
    double lf = f >= 0 ? -log1p(exp(-f)) : f - log1p(exp(f));
    double m = lf + m_before > i || isnan(lf + m_before) ? lf + m_before : i;
    double forget = exp(lf + m_before - m), input = exp(i - m), qn = 0;
    if (check_wide(s, "log_fgate", (int)h, &lf, 1) || check_wide(s, "m", (int)h, &m, 1) ||
        check_wide(s, "fgate_factor", (int)h, &forget, 1) || check_wide(s, "igate_factor", (int)h, &input, 1)) {
        return true;
    }
    double *numerator = wide;
    for (size_t b = 0; b < dv; b++) numerator[b] = 0;
    for (size_t a = 0; a < dq; a++) {
        for (size_t b = 0; b < dv; b++) {
            double x = forget * C[a * dv + b] + input * k[a] * v[b];
            if (!xl_is_finite((float)x)) {
                report(s, "C", (int)h, a * dv + b, (float)x);
                return true;
            }
            numerator[b] += scale * q[a] * x;
        }
    }
    for (size_t a = 0; a < dq; a++) {
        double x = forget * n[a] + input * k[a];
        if (!xl_is_finite((float)x)) {
            report(s, "n", (int)h, a, (float)x);
            return true;
        }
        qn += scale * q[a] * x;
    }
    double floor = exp(-m), denominator = (fabs(qn) > floor ? fabs(qn) : floor) + c->cell_eps;
    return check_wide(s, "numerator", (int)h, numerator, dv) || check_wide(s, "qn", (int)h, &qn, 1) ||
           check_wide(s, "denominator", (int)h, &denominator, 1);
}

static bool check_cell(search *s)
{
    const xl_dims *d = &s->m->config.dims;
    size_t dq = d->head_qk, dv = d->head_v;
    float *C = xl_alloc(dq * dv * sizeof(float), NULL), *n = xl_alloc(dq * sizeof(float), NULL);
    double *wide = xl_alloc(dv * sizeof(double), NULL);
    bool found = false;
    for (uint32_t h = 0; C != NULL && n != NULL && wide != NULL && h < d->num_heads && !found; h++) {
        found = check_head(s, h, C, n, wide);
    }
    xl_release(C);
    xl_release(n);
    xl_release(wide);
    return found;
}

/* The norm by itself: the trace only shows its product with the output gate. */
static void check_multihead_norm(search *s)
{
    const xl_dims *d = &s->m->config.dims;
    for (uint32_t h = 0; h < d->num_heads && !s->fault->found; h++) {
        const float *x = s->h + h * d->head_v;
        double sum = 0, squares = 0;
        for (size_t j = 0; j < d->head_v; j++) sum += x[j];
        double mean = sum / d->head_v;
        for (size_t j = 0; j < d->head_v; j++) squares += (x[j] - mean) * (x[j] - mean);
        double scale = 1 / sqrt(squares / d->head_v + s->m->config.norm_eps);
        check_wide(s, "multihead_norm", (int)h, &scale, 1);
        /* statistics in float32 overflow before float64 does */
        if (!s->fault->found) check_wide(s, "multihead_norm", (int)h, &squares, 1);
    }
}

/* ---- the trace ---------------------------------------------------------------------------------------------------- */

static float *kept(search *s, const char *stage)
{
    static const char *const names[] = {"q", "k", "v", "igate", "fgate", "h"};
    float *const values[] = {s->q, s->k, s->v, s->igate, s->fgate, s->h};
    for (size_t i = 0; i < XL_COUNT(names); i++) {
        if (strcmp(names[i], stage) == 0) return values[i];
    }
    return NULL;
}

static int heads_of(const xl_dims *d, const char *stage)
{
    static const char *const with[] = {"q", "k", "v", "ogate_preact", "igate_preact", "fgate_preact",
                                       "igate", "fgate", "h", "gated"};
    for (size_t i = 0; i < XL_COUNT(with); i++) {
        if (strcmp(with[i], stage) == 0) return (int)d->num_heads;
    }
    return 0;
}

/* A residual of finite values whose sum of squares is not: the norm that follows fails, with finite (zero) output. */
static void watch_residual(search *s, const float *values, size_t rows, size_t width)
{
    s->overflow = false;
    for (size_t r = 0; r < rows && !s->overflow; r++) {
        float sum = 0;
        for (size_t i = 0; i < width; i++) sum += values[r * width + i] * values[r * width + i];
        if (xl_is_finite(sum)) continue;
        s->overflow = true;
        s->overflow_row = r;
        s->overflow_channel = 0;
        for (size_t i = 1; i < width; i++) {
            if (fabsf(values[r * width + i]) > fabsf(values[r * width + s->overflow_channel])) s->overflow_channel = i;
        }
    }
}

static bool is_one_of(const char *stage, const char *a, const char *b, const char *c)
{
    return strcmp(stage, a) == 0 || strcmp(stage, b) == 0 || strcmp(stage, c) == 0;
}

static void on_stage(void *user, int block, const char *stage, const float *values, size_t rows, size_t width)
{
    search *s = user;
    if (s->fault->found) return;
    if (block != s->block) {
        /* the last stage of a block is the input of what follows */
        summary last = s->n_seen > 0 ? s->seen[s->n_seen - 1] : (summary){0};
        s->n_seen = 0;
        s->block = block;
        if (block < 0) {
            snprintf(last.stage, sizeof(last.stage), "x_in");
            s->seen[s->n_seen++] = last;
        }
    }
    if (s->overflow && is_one_of(stage, "norm_mlstm", "norm_ffn", "out_norm")) {
        s->row = s->overflow_row;
        report(s, stage, -1, s->overflow_channel, INFINITY);
        return;
    }
    bool single = rows == 1;
    if (single && strcmp(stage, "h") == 0 && check_cell(s)) return;
    float *keep = kept(s, stage);
    if (single && keep != NULL) memcpy(keep, values, width * sizeof(float));
    if (single && strcmp(stage, "gated") == 0) {
        check_multihead_norm(s);
        if (s->fault->found) return;
    }
    summarise(s, stage, values, rows * width);
    for (size_t i = 0; i < rows * width; i++) {
        if (xl_is_finite(values[i])) continue;
        int heads = heads_of(&s->m->config.dims, stage);
        size_t column = i % width, per_head = heads > 0 ? width / (size_t)heads : width;
        s->row = i / width;
        report(s, stage, heads > 0 ? (int)(column / per_head) : -1, column % per_head, values[i]);
        return;
    }
    if (is_one_of(stage, "x_in", "x_mid", "x_out")) watch_residual(s, values, rows, width);
}

/* ---- non-finite weights ------------------------------------------------------------------------------------------- */

static bool scan_rows(xlstm_model *m, const xl_slice *slice, size_t first, size_t count, char *out, size_t size)
{
    const void *bytes;
    size_t row_bytes, width;
    if (slice->t == NULL || xl_weights_data(&bytes, m->weights, slice->t, NULL) != XLSTM_OK) return false;
    bool vector = slice->t->rank < 2;
    width = vector ? slice->rows : slice->t->shape[1];
    if (!xl_dtype_row_bytes(&row_bytes, slice->t->dtype, width)) return false;
    float *row = xl_alloc(width * sizeof(float), NULL);
    bool found = false;
    for (size_t r = first; row != NULL && r < first + count && !found; r++) {
        size_t at = (slice->row0 + r) * row_bytes;
        if (vector) (void)xl_dtype_row_bytes(&at, slice->t->dtype, slice->row0);
        xl_decode_row(row, (const uint8_t *)bytes + at, slice->t->dtype, width);
        for (size_t i = 0; i < width && !found; i++) {
            if (xl_is_finite(row[i])) continue;
            found = true;
            if (vector) {
                snprintf(out, size, "%s[%zu]", slice->t->name, i);
            } else {
                snprintf(out, size, "%s[%zu][%zu]", slice->t->name, (size_t)slice->row0 + r, i);
            }
        }
    }
    xl_release(row);
    return found;
}

/* If the stage that failed multiplies by weights, is one of the weights of that output non-finite itself? */
static void find_culprit(search *s)
{
    static const struct {
        const char *stage;
        xl_role role;
    } roles[] = {
        {"norm_mlstm", XL_NORM_MLSTM},    {"q", XL_Q},
        {"k", XL_K},                      {"v", XL_V},
        {"ogate_preact", XL_OGATE},       {"igate_preact", XL_IGATE},
        {"fgate_preact", XL_FGATE},       {"gated", XL_MHNORM},
        {"out_proj", XL_OUT_PROJ},        {"norm_ffn", XL_NORM_FFN},
        {"proj_up_gate", XL_FFN_GATE},    {"proj_up", XL_FFN_UP},
        {"proj_down", XL_FFN_DOWN},
    };
    xlstm_model *m = s->m;
    xlstm_fault *f = s->fault;
    const xl_dims *d = &m->config.dims;
    if (f->block < 0) {
        xl_slice head = {m->wiring.head, 0, d->vocab_size};
        if (strcmp(f->stage, "logits") == 0) scan_rows(m, &head, f->channel, 1, f->culprit, sizeof(f->culprit));
        if (strcmp(f->stage, "out_norm") == 0) scan_rows(m, &m->wiring.out_norm, 0, 1, f->culprit, sizeof(f->culprit));
        return;
    }
    if (strcmp(f->stage, "x_in") == 0 && f->block == 0) {
        xl_slice embedding = {m->wiring.embedding, 0, d->vocab_size};
        scan_rows(m, &embedding, (size_t)f->token, 1, f->culprit, sizeof(f->culprit));
        return;
    }
    for (size_t i = 0; i < XL_COUNT(roles); i++) {
        if (strcmp(roles[i].stage, f->stage) != 0) continue;
        const xl_block_wiring *b = &m->wiring.blocks[f->block];
        const xl_slice *w = &b->weight[roles[i].role], *bias = &b->bias[roles[i].role];
        size_t per_head = f->head >= 0 ? w->rows / d->num_heads : 0;
        size_t row = (f->head >= 0 ? (size_t)f->head * per_head : 0) + f->channel;
        if (!scan_rows(m, w, w->t->rank < 2 ? 0 : row, 1, f->culprit, sizeof(f->culprit))) {
            scan_rows(m, bias, 0, 1, f->culprit, sizeof(f->culprit));
        }
    }
}

/* ---- the search --------------------------------------------------------------------------------------------------- */

/* Reads tokens[0 .. n) in pieces of at most `piece`, remembering the state before each. Returns the index of the first
 * token of the piece that failed, n if none did, or a negative error. *before is then the state in front of it. */
static int64_t first_bad_piece(xlstm_session *session, xlstm_state **before, const int32_t *tokens, size_t n,
                               size_t piece, xlstm_error *err)
{
    for (size_t at = 0; at < n;) {
        size_t chunk = session->model->config.chunk_size, count = XL_MIN(piece, n - at);
        if (piece > 1 && session->position % chunk != 0) count = XL_MIN(count, chunk - session->position % chunk);
        xlstm_state_free(*before);
        *before = NULL;
        int result = xlstm_state_snapshot(before, session, err);
        if (result != XLSTM_OK) return result;
        xlstm_segment g = {.session = session, .tokens = tokens + at, .count = count, .want = XLSTM_WANT_LAST};
        result = xlstm_evaluate(session->model, &g, 1, err);
        if (result == XLSTM_E_NONFINITE) return (int64_t)at;
        if (result != XLSTM_OK) return result;
        at += count;
    }
    return (int64_t)n;
}

int xlstm_locate_fault(xlstm_fault *out, xlstm_model *model, const xlstm_state *from, const int32_t *tokens, size_t n,
                       xlstm_error *err)
{
    const xl_dims *d = &model->config.dims;
    *out = (xlstm_fault){.block = -1, .head = -1};
    search s = {.m = model, .fault = out, .block = -2};
    xlstm_session *session = NULL;
    xlstm_state *before = NULL, *piece_state = NULL;
    float *values = NULL;
    int32_t *ids = NULL;
    int result = xlstm_session_new(&session, model, err);
    if (result == XLSTM_OK && from != NULL) result = xlstm_state_restore(session, from, err);
    if (result != XLSTM_OK) goto done;

    /* BOS is fed by hand, so that every piece holds just the tokens given to it */
    bool bos = n > 0 && model->info.bos_auto && session->position == 0 && tokens[0] != model->info.bos_id;
    ids = xl_alloc((n + 1) * sizeof(*ids), err);
    if (ids == NULL) {
        result = XLSTM_E_MEMORY;
        goto done;
    }
    if (bos) ids[0] = model->info.bos_id;
    if (n > 0) memcpy(ids + (bos ? 1 : 0), tokens, n * sizeof(*ids));
    n += bos ? 1 : 0;

    /* narrow it down: pieces, then chunks, then tokens; ids[at .. at + count) fail from the state `before` */
    size_t at = 0, count = n;
    const size_t sizes[] = {PIECE, model->config.chunk_size, 1};
    for (size_t i = 0; i < XL_COUNT(sizes); i++) {
        int64_t bad = first_bad_piece(session, &piece_state, ids + at, count, sizes[i], err);
        if (bad < 0) {
            result = (int)bad;
            goto done;
        }
        if ((size_t)bad == count) {
            if (i == 0) goto done; /* nothing to find */
            break;                 /* fails in a chunk but not in smaller pieces: trace the chunk */
        }
        at += (size_t)bad;
        count = XL_MIN(count - (size_t)bad, sizes[i]);
        xlstm_state_free(before);
        before = piece_state;
        piece_state = NULL;
        if ((result = xlstm_state_restore(session, before, err)) != XLSTM_OK) goto done;
    }
    if ((result = xlstm_state_restore(session, before, err)) != XLSTM_OK) goto done;

    result = XLSTM_E_MEMORY;
    values = xl_calloc(2 * (size_t)d->qk_dim + 2 * (size_t)d->v_dim + 2 * (size_t)d->num_heads, sizeof(float), err);
    if (values == NULL) goto done;
    s.q = values;
    s.k = s.q + d->qk_dim;
    s.v = s.k + d->qk_dim;
    s.h = s.v + d->v_dim;
    s.igate = s.h + d->v_dim;
    s.fgate = s.igate + d->num_heads;
    s.before = before;
    uint64_t position = session->position;
    xlstm_session_set_trace(session, on_stage, &s);
    xlstm_segment g = {.session = session, .tokens = ids + at, .count = count, .want = XLSTM_WANT_ALL};
    xlstm_error ignored;
    (void)xlstm_evaluate(model, &g, 1, &ignored);
    result = XLSTM_OK;
    if (out->found) {
        out->position = position + s.row;
        out->token = ids[at + s.row];
        find_culprit(&s);
    }
done:
    xlstm_session_free(session);
    xlstm_state_free(before);
    xlstm_state_free(piece_state);
    xl_release(values);
    xl_release(ids);
    return result;
}
