/*
 * cpu_mlstm.c — the mLSTM cell over a ragged batch. A run is cut at positions that are multiples of the chunk size; a
 * piece of one token is a recurrent step, a longer one uses the chunk form with one live C a head (docs/model.md states
 * both). Two passes over the pool:
 *   gates    one task a (run, head): gates, stabiliser, n, and the weights that link a piece to its state
 *   columns  one task a (run, head, columns of C): read-outs and the update of C; columns never meet
 * Log weights are summed from the older token on, in the order of the recurrence for m, so that the running maximum is
 * exactly one of them and no exponent is ever positive; nothing is subtracted that was added before.
 */
#include "cpu_internal.h"

#include <math.h>

typedef struct cell_job {
    xl_cpu *c;
    const xl_mlstm *op;
    bool rounds; /* q k v are rounded to the kernel format first */
    uint32_t tiles; /* of columns */
} cell_job;

static float max_nan(float a, float b) { return a > b || a != a ? a : b; }
static float log_sigmoid(float x) { return x >= 0 ? -log1pf(expf(-x)) : x - log1pf(expf(x)); }
static float soft_cap(float x, float cap) { return cap > 0 ? cap * tanhf(x / cap) : x; }

static float round_to(float x, xlstm_dtype dtype)
{
    return dtype == XLSTM_BF16 ? xl_round_bf16(x) : dtype == XLSTM_F16 ? xl_round_f16(x) : x;
}

/* `x` as the cell sees it: itself, or rounded into `scratch`. */
static const float *seen(const cell_job *job, float *scratch, const float *x, size_t n)
{
    if (!job->rounds) return x;
    job->c->kernels.round(scratch, x, n, job->c->o.kernel);
    return scratch;
}

static uint32_t piece_length(const xl_cpu *c, const xl_run *run, uint32_t done)
{
    uint64_t left = c->o.chunk_size - (run->position + done) % c->o.chunk_size;
    return (uint32_t)XL_MIN(left, (uint64_t)(run->count - done));
}

/* ---- gates and n ------------------------------------------------------------------------------------------------ */

static void gates_of(const cell_job *job, uint32_t head, size_t row)
{
    xl_cpu *c = job->c;
    size_t NH = c->o.num_heads, at = head * (size_t)c->o.max_rows + row;
    const float *gates = job->op->gates->data + row * 2 * NH;
    float i = round_to(soft_cap(gates[head], job->op->gate_soft_cap), c->o.kernel);
    float lf = log_sigmoid(round_to(soft_cap(gates[NH + head], job->op->gate_soft_cap), c->o.kernel));
    if (!xl_is_finite(i) || !xl_is_finite(lf)) xl_cpu_fault(c, row, job->op->fault);
    c->gates.i[at] = i;
    c->gates.lf[at] = lf;
}

static void gates_task(void *arg, uint32_t piece, uint32_t worker)
{
    const cell_job *job = arg;
    xl_cpu *c = job->c;
    const xl_state_layout *s = &c->layout;
    const xl_cpu_kernels *kn = &c->kernels;
    xl_cpu_worker *w = &c->workers[worker];
    uint32_t NH = s->num_heads, dq = s->head_qk, head = piece % NH;
    const xl_run *run = &c->batch->runs[piece / NH];
    uint8_t *n_at = run->store->bytes + xl_state_n_offset(s, job->op->block, head);
    uint8_t *m_at = run->store->bytes + xl_state_m_offset(s, job->op->block, head);
    float m, q_scale = 1 / sqrtf((float)dq), *n = w->n;
    memcpy(&m, m_at, sizeof m);
    for (uint32_t done = 0, L; done < run->count; done += L) {
        L = piece_length(c, run, done);
        size_t row = run->row + done, at = head * (size_t)c->o.max_rows + row;
        kn->load_state(n, n_at, s->n_dtype, dq);
        memcpy(c->n_start + row * NH * dq + head * dq, n, dq * sizeof *n);
        float carried = m, *lf = c->gates.lf + at, *i = c->gates.i + at, *stab = c->gates.m + at;
        for (uint32_t t = 0; t < L; t++) {
            gates_of(job, head, row + t);
            m = max_nan(lf[t] + m, i[t]);
            carried += lf[t];
            stab[t] = m;
            c->gates.carry[at + t] = expf(carried - m);
            if (!xl_is_finite(m)) xl_cpu_fault(c, row + t, job->op->fault);
        }
        float since = 0, *weight = c->gates.weight + at, keep = c->gates.carry[at + L - 1];
        for (uint32_t t = L; t-- > 0;) {
            weight[t] = expf(i[t] + since - m);
            since += lf[t];
        }
        for (uint32_t t = 0; t < L; t++) {
            const float *k = seen(job, w->row, job->op->k->data + ((row + t) * NH + head) * dq, dq);
            kn->blend(n, k, keep, weight[t], dq);
            keep = 1;
        }
        if (L == 1) {
            const float *q = seen(job, w->row, job->op->q->data + (row * NH + head) * dq, dq);
            kn->scale(w->row, q, q_scale, dq);
            c->gates.den[at] = max_nan(fabsf(kn->dot(w->row, n, dq)), expf(-m)) + job->op->eps;
            if (!xl_is_finite(c->gates.den[at])) xl_cpu_fault(c, row, job->op->fault);
        }
        kn->save_state(n_at, n, s->n_dtype, dq);
    }
    memcpy(m_at, &m, sizeof m);
}

/* ---- C and the read-outs ---------------------------------------------------------------------------------------- */

/* One task's share: some columns of one head of one run. */
typedef struct columns {
    const cell_job *job;
    xl_cpu_worker *w;
    uint8_t *C;             /* first of these columns in the state */
    uint32_t head, first, width;
} columns;

static void step_piece(const columns *a, size_t row)
{
    xl_cpu *c = a->job->c;
    const xl_mlstm *op = a->job->op;
    const xl_cpu_kernels *kn = &c->kernels;
    xl_cpu_worker *w = a->w;
    uint32_t NH = c->o.num_heads, dq = c->o.head_qk, dv = c->o.head_v;
    size_t at = a->head * (size_t)c->o.max_rows + row, qk = (row * NH + a->head) * dq;
    size_t v = (row * NH + a->head) * dv + a->first;
    kn->scale(w->q, seen(a->job, w->row, op->q->data + qk, dq), 1 / sqrtf((float)dq), dq);
    kn->scale(w->k_weighed, seen(a->job, w->row, op->k->data + qk, dq), c->gates.weight[at], dq);
    xl_cpu_step step = {.C = a->C, .c_row_bytes = c->layout.c_row_bytes, .dtype = c->layout.dtype, .q = w->q,
                        .kw = w->k_weighed, .v = seen(a->job, w->v, op->v->data + v, a->width),
                        .forget = c->gates.carry[at], .h = op->h->data + v, .sums = w->num, .row = w->row, .dq = dq,
                        .width = a->width, .round = c->o.activations};
    kn->step(&step, c->gates.den[at]);
}

static void chunk_piece(const columns *a, size_t row, uint32_t L)
{
    xl_cpu *c = a->job->c;
    const xl_mlstm *op = a->job->op;
    const xl_cpu_kernels *kn = &c->kernels;
    const xl_state_layout *s = &c->layout;
    xl_cpu_worker *w = a->w;
    size_t NH = c->o.num_heads, dq = c->o.head_qk, dv = c->o.head_v, at = a->head * (size_t)c->o.max_rows + row;
    size_t v_row = NH * dv, p_row = c->piece_row;
    const float *lf = c->gates.lf + at, *i = c->gates.i + at, *m = c->gates.m + at, *carry = c->gates.carry + at;
    const float *n_start = c->n_start + (row * NH + a->head) * dq;
    const float *v = op->v->data + (row * NH + a->head) * dv + a->first;
    if (a->job->rounds) {
        for (uint32_t t = 0; t < L; t++) kn->round(w->v + t * a->width, v + t * v_row, a->width, c->o.kernel);
        v = w->v;
        v_row = a->width;
    }
    float *C = w->C;
    size_t c_row = a->width;
    if (s->dtype == XLSTM_F32) {
        C = (float *)(void *)a->C;
        c_row = dv;
    } else {
        for (size_t r = 0; r < dq; r++) kn->load_state(C + r * c_row, a->C + r * s->c_row_bytes, s->dtype, a->width);
    }
    for (uint32_t t = 0; t < L; t++) {
        const float *k = seen(a->job, w->row, op->k->data + ((row + t) * NH + a->head) * dq, dq);
        for (size_t r = 0; r < dq; r++) w->k_turned[r * p_row + t] = k[r];
        kn->scale(w->k_weighed + t * dq, k, c->gates.weight[at + t], (uint32_t)dq);
    }

    for (uint32_t t0 = 0; t0 < L; t0 += XL_CPU_QUERY_TILE) {
        uint32_t T = XL_MIN(L - t0, (uint32_t)XL_CPU_QUERY_TILE), end = t0 + T;
        for (uint32_t t = 0; t < T; t++) {
            const float *q = seen(a->job, w->row, op->q->data + ((row + t0 + t) * NH + a->head) * dq, dq);
            kn->scale(w->q + t * dq, q, 1 / sqrtf((float)dq), (uint32_t)dq);
        }
        /* q k^T, from older tokens and itself only */
        xl_cpu_gemm scores = {.out = w->p, .out_row = p_row, .a = w->q, .a_row = dq, .a_k = 1, .b = w->k_turned,
                              .b_row = p_row, .M = T, .N = end, .K = (uint32_t)dq};
        kn->gemm(&scores);
        /* what the state says */
        xl_cpu_gemm carried = {.out = w->num, .out_row = a->width, .a = w->q, .a_row = dq, .a_k = 1, .b = C,
                               .b_row = c_row, .M = T, .N = a->width, .K = (uint32_t)dq};
        kn->gemm(&carried);
        float den[XL_CPU_QUERY_TILE];
        for (uint32_t t = 0; t < T; t++) {
            uint32_t g = t0 + t;
            float *p = w->p + t * p_row, sum = kn->weigh(p, w->log_weight, lf[g], m[g], g);
            w->log_weight[g] = i[g];
            p[g] *= expf(i[g] - m[g]);
            memset(p + g + 1, 0, (end - g - 1) * sizeof *p);
            float qn = carry[g] * kn->dot(w->q + t * dq, n_start, (uint32_t)dq) + (sum + p[g]);
            den[t] = max_nan(fabsf(qn), expf(-m[g])) + op->eps;
            if (!xl_is_finite(den[t])) xl_cpu_fault(c, row + g, op->fault);
            kn->scale(w->num + t * a->width, w->num + t * a->width, carry[g], a->width);
        }
        /* what the piece's own tokens say */
        xl_cpu_gemm own = {.out = w->num, .out_row = a->width, .a = w->p, .a_row = p_row, .a_k = 1, .b = v,
                           .b_row = v_row, .M = T, .N = a->width, .K = end, .keep = true, .scale = 1};
        kn->gemm(&own);
        for (uint32_t t = 0; t < T; t++)
            kn->quotient(op->h->data + ((row + t0 + t) * NH + a->head) * dv + a->first, w->num + t * a->width, den[t],
                         a->width, c->o.activations);
    }

    xl_cpu_gemm update = {.out = C, .out_row = c_row, .a = w->k_weighed, .a_row = 1, .a_k = dq, .b = v, .b_row = v_row,
                          .M = (uint32_t)dq, .N = a->width, .K = L, .keep = true, .scale = carry[L - 1]};
    kn->gemm(&update);
    if (s->dtype != XLSTM_F32)
        for (size_t r = 0; r < dq; r++) kn->save_state(a->C + r * s->c_row_bytes, C + r * c_row, s->dtype, a->width);
}

static void columns_task(void *arg, uint32_t piece, uint32_t worker)
{
    const cell_job *job = arg;
    xl_cpu *c = job->c;
    const xl_state_layout *s = &c->layout;
    uint32_t tile = piece % job->tiles, head = piece / job->tiles % s->num_heads;
    const xl_run *run = &c->batch->runs[piece / job->tiles / s->num_heads];
    uint32_t first = tile * c->columns;
    columns a = {.job = job, .w = &c->workers[worker], .head = head, .first = first,
                 .width = XL_MIN(s->head_v - first, c->columns),
                 .C = run->store->bytes + xl_state_c_offset(s, job->op->block, head) +
                      first * (s->dtype == XLSTM_F32 ? 4u : s->dtype == XLSTM_BF16 ? 2u : 1u)};
    for (uint32_t done = 0, L; done < run->count; done += L) {
        L = piece_length(c, run, done);
        if (L == 1)
            step_piece(&a, run->row + done);
        else
            chunk_piece(&a, run->row + done, L);
    }
}

void xl_cpu_mlstm(xl_backend *be, const xl_mlstm *op)
{
    xl_cpu *c = xl_cpu_of(be);
    cell_job job = {.c = c, .op = op};
    job.rounds = c->o.kernel != XLSTM_DTYPE_DEFAULT && c->o.kernel != XLSTM_F32 && c->o.kernel != c->o.activations;
    job.tiles = (c->o.head_v + c->columns - 1) / c->columns;
    uint32_t heads = c->batch->n_runs * c->o.num_heads;
    xl_cpu_run(c, heads, gates_task, &job);
    xl_cpu_run(c, heads * job.tiles, columns_task, &job);
}
