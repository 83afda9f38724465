/*
 * ref_body.h — the scalar backend, compiled by ref_float.c and ref_double.c with
 *   REAL        float or double          FN(x)        the math function for it (expf / exp)
 *   STATE_F64   1: states are always kept in float64
 *   OPS, NAME   the vtable's symbol and the backend's name
 * Plain loops, one thread, no layout tricks. Sums run in index order. Formulas: docs/model.md.
 */
#include "ref_backend.h"

#include <math.h>

struct xl_matrix {
    const uint8_t *bytes; /* borrowed row-major weights; NULL for vectors */
    float *vector;        /* [cols], owned; NULL for matrices */
    xlstm_dtype dtype, hold;
    size_t rows, cols, row_bytes;
};

struct xl_buffer {
    REAL *data;
};

struct xl_store {
    uint8_t *bytes; /* in xl_state_layout */
};

typedef struct ref {
    xl_backend base;
    xl_backend_options o;
    xl_state_layout layout;
    const xl_batch *batch;
    uint32_t *faults; /* [max_rows] */
    REAL *row;        /* [row_capacity]: one weight row decoded */
    float *row32;     /* the same, before widening */
    size_t row_capacity;
    REAL *C, *n;  /* one head's state: [head_qk][head_v], [head_qk] */
    REAL *gates;  /* [3][chunk]: i, log sigmoid f, log weight */
    REAL *inputs; /* [chunk][2 head_qk + head_v]: q (scaled), k, v of one head as the kernel sees them */
} ref;

static ref *ref_of(xl_backend *be) { return (ref *)be; }

/* ---- rounding --------------------------------------------------------------------------------------------------- */

static REAL round_to(REAL x, xlstm_dtype dtype)
{
    if (dtype == XLSTM_BF16) return (REAL)xl_round_bf16((float)x);
    if (dtype == XLSTM_F16) return (REAL)xl_round_f16((float)x);
    return x;
}

static REAL act(const ref *r, REAL x) { return round_to(x, r->o.activations); }

/* Norm statistics: rounded at every step only when norm_reduction_force_float32 is off. */
static REAL stat(const ref *r, REAL x) { return r->o.norm_float32 ? x : round_to(x, r->o.activations); }

static bool finite_real(REAL x) { return xl_is_finite((float)x); }

static void note_fault(ref *r, size_t row, uint32_t code)
{
    if (r->faults[row] == 0) r->faults[row] = code;
}

/* ---- open and close --------------------------------------------------------------------------------------------- */

static void ref_close(xl_backend *be)
{
    if (be == NULL) return;
    ref *r = ref_of(be);
    xl_release(r->faults);
    xl_release(r->row);
    xl_release(r->row32);
    xl_release(r->C);
    xl_release(r->n);
    xl_release(r->gates);
    xl_release(r->inputs);
    xl_release(r);
}

static int ref_open(xl_backend **out, const xl_backend_options *options, xlstm_error *err)
{
    *out = NULL;
    ref *r = xl_calloc(1, sizeof(*r), err);
    if (r == NULL) return XLSTM_E_MEMORY;
    r->base.ops = &OPS;
    r->o = *options;
    size_t dq = options->head_qk, dv = options->head_v, L = options->chunk_size;
    int result = xl_state_layout_make(&r->layout, STATE_F64 ? XLSTM_F64 : options->state, options->num_blocks,
                                      options->num_heads, options->head_qk, options->head_v, err);
    if (result != XLSTM_OK) goto fail;
    result = XLSTM_E_MEMORY;
    r->faults = xl_calloc(options->max_rows, sizeof(*r->faults), err);
    r->C = xl_calloc(dq * dv, sizeof(REAL), err);
    r->n = xl_calloc(dq, sizeof(REAL), err);
    r->gates = xl_calloc(3 * L, sizeof(REAL), err);
    r->inputs = xl_calloc(L * (2 * dq + dv), sizeof(REAL), err);
    if (!r->faults || !r->C || !r->n || !r->gates || !r->inputs) goto fail;
    *out = &r->base;
    return XLSTM_OK;
fail:
    ref_close(&r->base);
    return result;
}

static void ref_describe(const xl_backend *be, char *out, size_t size)
{
    snprintf(out, size, "%s (scalar, 1 thread)", be->ops->name);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

static void ref_matrix_free(xl_backend *be, xl_matrix *m)
{
    (void)be;
    if (m == NULL) return;
    xl_release(m->vector);
    xl_release(m);
}

/* Matrices are always used in place: a row is decoded each time it is needed. */
static int ref_matrix_new(xl_backend *be, xl_matrix **out, bool *borrows, const xl_tensor *t, const void *bytes,
                          uint64_t row0, uint64_t rows, xlstm_dtype hold, unsigned usage, xlstm_error *err)
{
    (void)usage;
    ref *r = ref_of(be);
    *out = NULL;
    xl_matrix *m = xl_calloc(1, sizeof(*m), err);
    if (m == NULL) return XLSTM_E_MEMORY;
    m->dtype = t->dtype;
    m->hold = hold;
    int result = XLSTM_E_MEMORY;
    if (t->rank == 1) {
        size_t skip = 0;
        m->rows = 1;
        m->cols = rows;
        if (!xl_dtype_row_bytes(&skip, t->dtype, row0) || !xl_dtype_row_bytes(&m->row_bytes, t->dtype, rows)) {
            result = xl_fail(err, XLSTM_E_UNSUPPORTED, "tensor %s: a vector of %s cannot be cut there", t->name,
                             xlstm_dtype_name(t->dtype));
            goto fail;
        }
        m->vector = xl_calloc(rows, sizeof(float), err);
        if (m->vector == NULL) goto fail;
        xl_decode_row(m->vector, (const uint8_t *)bytes + skip, t->dtype, rows);
        *borrows = false;
    } else {
        m->rows = rows;
        m->cols = t->shape[1];
        if (!xl_dtype_row_bytes(&m->row_bytes, t->dtype, m->cols)) {
            result = xl_fail(err, XLSTM_E_UNSUPPORTED, "tensor %s: rows of %zu elements do not fill %s blocks", t->name,
                             m->cols, xlstm_dtype_name(t->dtype));
            goto fail;
        }
        m->bytes = (const uint8_t *)bytes + row0 * m->row_bytes;
        *borrows = true;
        if (m->cols > r->row_capacity) {
            xl_release(r->row);
            xl_release(r->row32);
            r->row_capacity = 0;
            r->row = xl_calloc(m->cols, sizeof(REAL), err);
            r->row32 = xl_calloc(m->cols, sizeof(float), err);
            if (r->row == NULL || r->row32 == NULL) goto fail;
            r->row_capacity = m->cols;
        }
    }
    *out = m;
    return XLSTM_OK;
fail:
    ref_matrix_free(be, m);
    return result;
}

static size_t ref_matrix_bytes(const xl_matrix *m)
{
    return m->vector != NULL ? m->cols * sizeof(float) : m->rows * m->row_bytes;
}

/* Row i of a matrix, in r->row. */
static const REAL *matrix_row(ref *r, const xl_matrix *m, size_t i)
{
    xl_decode_row(r->row32, m->bytes + i * m->row_bytes, m->dtype, m->cols);
    for (size_t k = 0; k < m->cols; k++) r->row[k] = round_to((REAL)r->row32[k], m->hold);
    return r->row;
}

/* ---- buffers and states ----------------------------------------------------------------------------------------- */

static void ref_buffer_free(xl_backend *be, xl_buffer *b)
{
    (void)be;
    if (b == NULL) return;
    xl_release(b->data);
    xl_release(b);
}

static int ref_buffer_new(xl_backend *be, xl_buffer **out, size_t rows, size_t width, xlstm_error *err)
{
    *out = NULL;
    xl_buffer *b = xl_calloc(1, sizeof(*b), err);
    if (b == NULL) return XLSTM_E_MEMORY;
    b->data = xl_calloc(rows * width, sizeof(REAL), err);
    if (b->data == NULL) {
        ref_buffer_free(be, b);
        return XLSTM_E_MEMORY;
    }
    *out = b;
    return XLSTM_OK;
}

static int ref_buffer_read(xl_backend *be, const xl_buffer *b, size_t first, float *out, size_t n, xlstm_error *err)
{
    (void)be;
    (void)err;
    for (size_t i = 0; i < n; i++) out[i] = (float)b->data[first + i];
    return XLSTM_OK;
}

static int ref_buffer_write(xl_backend *be, xl_buffer *b, size_t first, const float *in, size_t n, xlstm_error *err)
{
    (void)err;
    for (size_t i = 0; i < n; i++) b->data[first + i] = act(ref_of(be), (REAL)in[i]);
    return XLSTM_OK;
}

static void ref_store_free(xl_backend *be, xl_store *s)
{
    (void)be;
    if (s == NULL) return;
    xl_release(s->bytes);
    xl_release(s);
}

static int ref_store_new(xl_backend *be, xl_store **out, xlstm_error *err)
{
    *out = NULL;
    xl_store *s = xl_calloc(1, sizeof(*s), err);
    if (s == NULL) return XLSTM_E_MEMORY;
    s->bytes = xl_calloc(1, ref_of(be)->layout.total_bytes, err);
    if (s->bytes == NULL) {
        ref_store_free(be, s);
        return XLSTM_E_MEMORY;
    }
    *out = s;
    return XLSTM_OK;
}

static int ref_store_zero(xl_backend *be, xl_store *s, xlstm_error *err)
{
    (void)err;
    memset(s->bytes, 0, ref_of(be)->layout.total_bytes);
    return XLSTM_OK;
}

static int ref_store_copy(xl_backend *be, xl_store *to, const xl_store *from, xlstm_error *err)
{
    (void)err;
    memcpy(to->bytes, from->bytes, ref_of(be)->layout.total_bytes);
    return XLSTM_OK;
}

static int ref_store_read(xl_backend *be, const xl_store *s, void *host, xlstm_error *err)
{
    (void)err;
    memcpy(host, s->bytes, ref_of(be)->layout.total_bytes);
    return XLSTM_OK;
}

static int ref_store_write(xl_backend *be, xl_store *s, const void *host, xlstm_error *err)
{
    (void)err;
    memcpy(s->bytes, host, ref_of(be)->layout.total_bytes);
    return XLSTM_OK;
}

static const xl_state_layout *ref_layout(const xl_backend *be) { return &((const ref *)be)->layout; }

/* ---- one head's state between the layout's number format and REAL -------------------------------------------------- */

static void load_row(REAL *out, const uint8_t *in, xlstm_dtype dtype, size_t n)
{
    float scale = 1;
    if (dtype == XLSTM_I8) memcpy(&scale, in + n, sizeof(scale));
    for (size_t i = 0; i < n; i++) {
        double wide;
        float single;
        uint16_t half;
        switch (dtype) {
        case XLSTM_F64:
            memcpy(&wide, in + i * sizeof(wide), sizeof(wide));
            out[i] = (REAL)wide;
            break;
        case XLSTM_F32:
            memcpy(&single, in + i * sizeof(single), sizeof(single));
            out[i] = (REAL)single;
            break;
        case XLSTM_BF16:
            memcpy(&half, in + i * sizeof(half), sizeof(half));
            out[i] = (REAL)xl_bf16_to_f32(half);
            break;
        default: out[i] = (REAL)((float)(int8_t)in[i] * scale);
        }
    }
}

static void save_row(uint8_t *out, const REAL *in, xlstm_dtype dtype, size_t n)
{
    float largest = 0, inverse = 0;
    if (dtype == XLSTM_I8) {
        for (size_t i = 0; i < n; i++) {
            float a = fabsf((float)in[i]);
            if (a > largest || a != a) largest = a; /* a NaN stays and poisons the scale */
        }
        float scale = largest / 127.0f;
        if (scale > 0) inverse = 1.0f / scale;
        memcpy(out + n, &scale, sizeof(scale));
    }
    for (size_t i = 0; i < n; i++) {
        double wide = (double)in[i];
        float single = (float)in[i], level = rintf(single * inverse);
        uint16_t half = xl_f32_to_bf16(single);
        switch (dtype) {
        case XLSTM_F64: memcpy(out + i * sizeof(wide), &wide, sizeof(wide)); break;
        case XLSTM_F32: memcpy(out + i * sizeof(single), &single, sizeof(single)); break;
        case XLSTM_BF16: memcpy(out + i * sizeof(half), &half, sizeof(half)); break;
        default: out[i] = (uint8_t)(int8_t)(level >= -127 && level <= 127 ? level : 0);
        }
    }
}

/* ---- pass ------------------------------------------------------------------------------------------------------- */

static int ref_begin(xl_backend *be, const xl_batch *batch, bool *replay, xlstm_error *err)
{
    (void)err;
    ref *r = ref_of(be);
    r->batch = batch;
    memset(r->faults, 0, batch->rows * sizeof(*r->faults));
    *replay = false;
    return XLSTM_OK;
}

static int ref_submit(xl_backend *be, uint32_t *faults, xlstm_error *err)
{
    (void)err;
    ref *r = ref_of(be);
    memcpy(faults, r->faults, r->batch->rows * sizeof(*faults));
    r->batch = NULL;
    return XLSTM_OK;
}

static void ref_embed(xl_backend *be, xl_buffer *x, const xl_matrix *embedding)
{
    ref *r = ref_of(be);
    for (size_t t = 0; t < r->batch->rows; t++) {
        const REAL *e = matrix_row(r, embedding, (size_t)r->batch->ids[t]);
        for (size_t i = 0; i < embedding->cols; i++) x->data[t * embedding->cols + i] = act(r, e[i]);
    }
}

/* y = x / sqrt(mean(x^2) + eps) * weight (+ bias) */
static void ref_rmsnorm(xl_backend *be, xl_buffer *y, const xl_buffer *x, const xl_norm *norm, bool out_rows)
{
    ref *r = ref_of(be);
    size_t rows = out_rows ? r->batch->n_out : r->batch->rows, width = norm->width;
    for (size_t t = 0; t < rows; t++) {
        const REAL *in = x->data + t * width;
        REAL *out = y->data + t * width;
        REAL sum = 0;
        for (size_t i = 0; i < width; i++) sum += stat(r, in[i] * in[i]);
        if (!finite_real(sum)) note_fault(r, out_rows ? r->batch->out_rows[t] : t, norm->fault);
        REAL mean = stat(r, sum / (REAL)width);
        REAL scale = stat(r, 1 / FN(sqrt)(stat(r, mean + (REAL)norm->eps)));
        for (size_t i = 0; i < width; i++) {
            REAL v = stat(r, in[i] * scale) * (REAL)norm->weight->vector[i];
            out[i] = act(r, norm->bias != NULL ? v + (REAL)norm->bias->vector[i] : v);
        }
    }
}

/* Products of up to TOGETHER rows of x with one weight row, side by side: each sum runs in index order all the same, but
 * the processor need not wait for one addition before it begins the next. */
enum { TOGETHER = 8 };
static void dot_rows(REAL sum[TOGETHER], const REAL *x, const REAL *w, size_t in, size_t rows)
{
    const REAL *row[TOGETHER];
    for (size_t t = 0; t < TOGETHER; t++) {
        row[t] = x + XL_MIN(t, rows - 1) * in;
        sum[t] = 0;
    }
    for (size_t k = 0; k < in; k++) {
        for (size_t t = 0; t < TOGETHER; t++) sum[t] += row[t][k] * w[k];
    }
}

/* y = x W^T + b */
static void ref_linear(xl_backend *be, const xl_linear *group, uint32_t n, const xl_buffer *x, bool out_rows)
{
    ref *r = ref_of(be);
    size_t rows = out_rows ? r->batch->n_out : r->batch->rows;
    for (const xl_linear *l = group; l < group + n; l++) {
        size_t in = l->weight->cols;
        for (size_t o = 0; o < l->weight->rows; o++) {
            const REAL *w = matrix_row(r, l->weight, o);
            REAL sums[TOGETHER];
            for (size_t t = 0; t < rows; t++) {
                if (t % TOGETHER == 0) dot_rows(sums, x->data + t * in, w, in, rows - t);
                REAL sum = sums[t % TOGETHER], *y = &l->out->data[t * l->stride + l->column + o];
                if (l->bias != NULL) sum += (REAL)l->bias->vector[o];
                if (!l->wide) sum = act(r, sum);
                *y = l->add ? act(r, *y + sum) : sum;
            }
        }
    }
}

/* ---- mLSTM cell ------------------------------------------------------------------------------------------------- */

/* The larger; NaN if either is. */
static REAL max_nan(REAL a, REAL b) { return a > b || a != a ? a : b; }

static REAL log_sigmoid(REAL x) { return x >= 0 ? -FN(log1p)(FN(exp)(-x)) : x - FN(log1p)(FN(exp)(x)); }

static REAL soft_cap(REAL x, float limit) { return limit > 0 ? (REAL)limit * FN(tanh)(x / (REAL)limit) : x; }

/* One head's inputs over a piece of L tokens. */
typedef struct head {
    const REAL *q, *k, *v; /* [L][head_qk] scaled by head_qk^-0.5, [L][head_qk], [L][head_v] */
    const REAL *i, *lf;    /* [L]: i capped, log sigmoid of f capped */
    REAL *h;               /* out, rows h_stride apart */
    size_t h_stride, row;  /* row: batch row of the first token */
} head;

/* The recurrence for one token: docs/model.md, "step". Updates r->C, r->n and *m. */
static void cell_step(ref *r, const xl_mlstm *op, const head *a, REAL *m)
{
    size_t dq = r->o.head_qk, dv = r->o.head_v;
    REAL m_new = max_nan(a->lf[0] + *m, a->i[0]);
    REAL forget = FN(exp)(a->lf[0] + *m - m_new), input = FN(exp)(a->i[0] - m_new), qn = 0;
    if (!finite_real(m_new)) note_fault(r, a->row, op->fault);
    for (size_t j = 0; j < dv; j++) a->h[j] = 0;
    for (size_t c = 0; c < dq; c++) {
        r->n[c] = forget * r->n[c] + input * a->k[c];
        qn += a->q[c] * r->n[c];
        for (size_t j = 0; j < dv; j++) {
            REAL *C = &r->C[c * dv + j];
            *C = forget * *C + input * a->k[c] * a->v[j];
            a->h[j] += a->q[c] * *C; /* read-out from the new state */
        }
    }
    REAL den = max_nan(FN(fabs)(qn), FN(exp)(-m_new)) + (REAL)op->eps;
    if (!finite_real(den)) note_fault(r, a->row, op->fault); /* would divide h away to a finite 0 */
    for (size_t j = 0; j < dv; j++) a->h[j] = act(r, a->h[j] / den);
    *m = m_new;
}

/* The same for L tokens at once: docs/model.md, "chunk". Log forget gates are summed from the near end, so that no
 * difference of large numbers is taken; tokens after t have no weight and are never touched. */
static void cell_chunk(ref *r, const xl_mlstm *op, const head *a, size_t L, REAL *m)
{
    size_t dq = r->o.head_qk, dv = r->o.head_v;
    REAL *log_weight = r->gates + 2 * L, total = 0; /* total: sum of lf[0 .. t] */
    for (size_t t = 0; t < L; t++) {
        const REAL *q = a->q + t * dq;
        REAL *h = a->h + t * a->h_stride, since = 0, qn = 0;
        total += a->lf[t];
        REAL M = total + *m;
        for (size_t s = t + 1; s-- > 0;) {
            log_weight[s] = since + a->i[s];
            M = max_nan(M, log_weight[s]);
            since += a->lf[s];
        }
        if (!finite_real(M)) note_fault(r, a->row + t, op->fault);
        REAL carry = FN(exp)(total + *m - M);
        for (size_t j = 0; j < dv; j++) h[j] = 0;
        for (size_t c = 0; c < dq; c++) {
            qn += carry * q[c] * r->n[c];
            for (size_t j = 0; j < dv; j++) h[j] += carry * q[c] * r->C[c * dv + j];
        }
        for (size_t s = 0; s <= t; s++) {
            REAL p = 0;
            for (size_t c = 0; c < dq; c++) p += q[c] * a->k[s * dq + c];
            p *= FN(exp)(log_weight[s] - M);
            qn += p;
            for (size_t j = 0; j < dv; j++) h[j] += p * a->v[s * dv + j];
        }
        REAL den = max_nan(FN(fabs)(qn), FN(exp)(-M)) + (REAL)op->eps;
        if (!finite_real(den)) note_fault(r, a->row + t, op->fault);
        for (size_t j = 0; j < dv; j++) h[j] = act(r, h[j] / den);
    }
    /* the state after the piece; log_weight now holds the weights as seen from its end */
    REAL m_new = total + *m;
    for (size_t s = 0; s < L; s++) m_new = max_nan(m_new, log_weight[s]);
    REAL forget = FN(exp)(total + *m - m_new);
    for (size_t c = 0; c < dq; c++) {
        r->n[c] *= forget;
        for (size_t j = 0; j < dv; j++) r->C[c * dv + j] *= forget;
    }
    for (size_t s = 0; s < L; s++) {
        REAL w = FN(exp)(log_weight[s] - m_new);
        for (size_t c = 0; c < dq; c++) {
            REAL k = w * a->k[s * dq + c];
            r->n[c] += k;
            for (size_t j = 0; j < dv; j++) r->C[c * dv + j] += k * a->v[s * dv + j];
        }
    }
    *m = m_new;
}

/* Reads one head's q, k, v and gates of L tokens from `row` on, as the kernel sees them: rounded if kernel autocast was
 * asked for, q scaled, gates capped. */
static head gather_head(ref *r, const xl_mlstm *op, size_t row, size_t L, size_t at)
{
    size_t NH = r->o.num_heads, dq = r->o.head_qk, dv = r->o.head_v;
    xlstm_dtype kernel = r->o.kernel;
    REAL *q = r->inputs, *k = q + L * dq, *v = k + L * dq, *i = r->gates, *lf = i + L;
    REAL scale = 1 / FN(sqrt)((REAL)dq);
    for (size_t t = 0; t < L; t++) {
        for (size_t c = 0; c < dq; c++) {
            q[t * dq + c] = scale * round_to(op->q->data[((row + t) * NH + at) * dq + c], kernel);
            k[t * dq + c] = round_to(op->k->data[((row + t) * NH + at) * dq + c], kernel);
        }
        for (size_t j = 0; j < dv; j++) v[t * dv + j] = round_to(op->v->data[((row + t) * NH + at) * dv + j], kernel);
        const REAL *gates = op->gates->data + (row + t) * 2 * NH;
        i[t] = round_to(soft_cap(gates[at], op->gate_soft_cap), kernel);
        lf[t] = log_sigmoid(round_to(soft_cap(gates[NH + at], op->gate_soft_cap), kernel));
        if (!finite_real(i[t]) || !finite_real(lf[t])) note_fault(r, row + t, op->fault);
    }
    return (head){q, k, v, i, lf, op->h->data + (row * NH + at) * dv, NH * dv, row};
}

static void ref_mlstm(xl_backend *be, const xl_mlstm *op)
{
    ref *r = ref_of(be);
    const xl_state_layout *s = &r->layout;
    size_t dq = s->head_qk, dv = s->head_v, chunk = r->o.chunk_size;
    for (const xl_run *run = r->batch->runs; run < r->batch->runs + r->batch->n_runs; run++) {
        for (uint32_t h = 0; h < s->num_heads; h++) {
            uint8_t *C = run->store->bytes + xl_state_c_offset(s, op->block, h);
            uint8_t *n = run->store->bytes + xl_state_n_offset(s, op->block, h);
            uint8_t *m_at = run->store->bytes + xl_state_m_offset(s, op->block, h);
            REAL m;
            for (size_t done = 0, piece; done < run->count; done += piece) {
                /* a piece ends where the sequence's position is a multiple of the chunk size */
                piece = XL_MIN(chunk - (size_t)((run->position + done) % chunk), run->count - done);
                for (size_t c = 0; c < dq; c++) load_row(r->C + c * dv, C + c * s->c_row_bytes, s->dtype, dv);
                load_row(r->n, n, s->n_dtype, dq);
                load_row(&m, m_at, s->m_dtype, 1);
                head a = gather_head(r, op, run->row + done, piece, h);
                if (piece == 1) {
                    cell_step(r, op, &a, &m);
                } else {
                    cell_chunk(r, op, &a, piece, &m);
                }
                for (size_t c = 0; c < dq; c++) save_row(C + c * s->c_row_bytes, r->C + c * dv, s->dtype, dv);
                save_row(n, r->n, s->n_dtype, dq);
                save_row(m_at, &m, s->m_dtype, 1);
            }
        }
    }
}

/* ---- the rest of a block ---------------------------------------------------------------------------------------- */

static REAL sigmoid(REAL x) { return 1 / (1 + FN(exp)(-x)); }

/* g = sigmoid(o) * (layernorm of each head's channels of h, times weight per channel (+ bias)) */
static void ref_mhnorm_gate(xl_backend *be, xl_buffer *g, const xl_buffer *h, const xl_buffer *o, const xl_norm *norm)
{
    ref *r = ref_of(be);
    size_t NH = r->o.num_heads, dv = r->o.head_v;
    for (size_t t = 0; t < r->batch->rows; t++) {
        for (size_t a = 0; a < NH; a++) {
            size_t at = (t * NH + a) * dv;
            REAL sum = 0, squares = 0;
            for (size_t j = 0; j < dv; j++) sum += h->data[at + j];
            REAL mean = stat(r, sum / (REAL)dv);
            for (size_t j = 0; j < dv; j++) {
                REAL d = stat(r, h->data[at + j] - mean);
                squares += stat(r, d * d);
            }
            if (!finite_real(squares)) note_fault(r, t, norm->fault);
            REAL variance = stat(r, squares / (REAL)dv);
            REAL scale = stat(r, 1 / FN(sqrt)(stat(r, variance + (REAL)norm->eps)));
            for (size_t j = 0; j < dv; j++) {
                REAL y = stat(r, stat(r, h->data[at + j] - mean) * scale) * (REAL)norm->weight->vector[a * dv + j];
                if (norm->bias != NULL) y += (REAL)norm->bias->vector[a * dv + j];
                g->data[at + j] = act(r, sigmoid(o->data[at + j]) * y);
            }
        }
    }
}

static void ref_swiglu(xl_backend *be, xl_buffer *a, const xl_buffer *gate, const xl_buffer *up)
{
    ref *r = ref_of(be);
    size_t n = (size_t)r->batch->rows * r->o.ffn_dim;
    for (size_t i = 0; i < n; i++) a->data[i] = act(r, gate->data[i] * sigmoid(gate->data[i]) * up->data[i]);
}

static void ref_add(xl_backend *be, xl_buffer *x, const xl_buffer *y, uint32_t width)
{
    ref *r = ref_of(be);
    size_t n = (size_t)r->batch->rows * width;
    for (size_t i = 0; i < n; i++) x->data[i] = act(r, x->data[i] + y->data[i]);
}

static void ref_gather(xl_backend *be, xl_buffer *y, const xl_buffer *x, uint32_t width)
{
    ref *r = ref_of(be);
    for (size_t i = 0; i < r->batch->n_out; i++) {
        memcpy(y->data + i * width, x->data + (size_t)r->batch->out_rows[i] * width, width * sizeof(REAL));
    }
}

static void ref_softcap(xl_backend *be, xl_buffer *logits, uint32_t width, float limit, uint32_t fault)
{
    ref *r = ref_of(be);
    for (size_t t = 0; t < r->batch->n_out; t++) {
        REAL *row = logits->data + t * width;
        for (size_t i = 0; i < width; i++) {
            row[i] = soft_cap(row[i], limit);
            if (!finite_real(row[i])) note_fault(r, r->batch->out_rows[t], fault);
        }
    }
}

const xl_backend_ops OPS = {
    .name = NAME,
    .open = ref_open,
    .close = ref_close,
    .describe = ref_describe,
    .matrix_new = ref_matrix_new,
    .matrix_free = ref_matrix_free,
    .matrix_bytes = ref_matrix_bytes,
    .buffer_new = ref_buffer_new,
    .buffer_free = ref_buffer_free,
    .buffer_read = ref_buffer_read,
    .buffer_write = ref_buffer_write,
    .store_new = ref_store_new,
    .store_free = ref_store_free,
    .store_zero = ref_store_zero,
    .store_copy = ref_store_copy,
    .store_read = ref_store_read,
    .store_write = ref_store_write,
    .layout = ref_layout,
    .begin = ref_begin,
    .embed = ref_embed,
    .rmsnorm = ref_rmsnorm,
    .linear = ref_linear,
    .mlstm = ref_mlstm,
    .mhnorm_gate = ref_mhnorm_gate,
    .swiglu = ref_swiglu,
    .add = ref_add,
    .gather = ref_gather,
    .softcap = ref_softcap,
    .submit = ref_submit,
};
