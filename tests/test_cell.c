/*
 * test_cell.c — the mLSTM cell and the multi-head norm of every backend in the build, against a recurrence written here
 * in float64 without any stabiliser trick: C* = sigmoid(f) C* + exp(i) k v^T, h = (q C*) / (max(|q n*|, 1) + eps e^m).
 * Values reach a backend's buffers through `embed`, one embedding matrix a buffer.
 */
#include "backend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

static uint64_t seed = 0x9e3779b97f4a7c15u;

static double uniform(void) /* [0, 1) */
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (double)(seed >> 11) * 0x1p-53;
}

static double normal(void) { return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform()); }

static const char *const backends[] = {"reference64", "reference", "cpu"};

/* ---- one cell problem: T tokens, NH heads --------------------------------------------------------------------------- */

enum { NH = 4, BLOCKS = 1 };

typedef struct problem {
    size_t T, dq, dv;
    float cap;
    float *q, *k, *v, *gates; /* [T][NH dq], [T][NH dq], [T][NH dv], [T][2 NH] */
} problem;

static problem make_problem(size_t T, size_t dq, size_t dv, float cap)
{
    problem p = {T, dq, dv, cap, NULL, NULL, NULL, NULL};
    p.q = malloc(T * NH * dq * sizeof(float));
    p.k = malloc(T * NH * dq * sizeof(float));
    p.v = malloc(T * NH * dv * sizeof(float));
    p.gates = malloc(T * 2 * NH * sizeof(float));
    for (size_t i = 0; i < T * NH * dq; i++) {
        p.q[i] = (float)normal();
        p.k[i] = (float)normal();
    }
    for (size_t i = 0; i < T * NH * dv; i++) p.v[i] = (float)normal();
    for (size_t t = 0; t < T; t++) {
        for (size_t h = 0; h < NH; h++) {
            p.gates[t * 2 * NH + h] = (float)(4 * normal() - 2);
            p.gates[t * 2 * NH + NH + h] = (float)(3 * normal() + 3);
        }
    }
    return p;
}

static void free_problem(problem *p)
{
    free(p->q);
    free(p->k);
    free(p->v);
    free(p->gates);
}

typedef struct result {
    float *h;           /* [T][NH dv] */
    double *C, *n, *m;  /* [NH][dq][dv], [NH][dq], [NH]: as stored, stabilised */
} result;

static result new_result(const problem *p)
{
    return (result){calloc(p->T * NH * p->dv, sizeof(float)), calloc(NH * p->dq * p->dv, sizeof(double)),
                    calloc(NH * p->dq, sizeof(double)), calloc(NH, sizeof(double))};
}

static void free_result(result *r)
{
    free(r->h);
    free(r->C);
    free(r->n);
    free(r->m);
}

static double cap_of(double x, double c) { return c > 0 ? c * tanh(x / c) : x; }
static double log_sigmoid(double x) { return x >= 0 ? -log1p(exp(-x)) : x - log1p(exp(x)); }

/* True quantities in float64 (range enough for these tests), m by its definition. */
static result oracle(const problem *p)
{
    result r = new_result(p);
    double scale = 1 / sqrt((double)p->dq), eps = 1e-6f;
    for (size_t h = 0; h < NH; h++) {
        double *C = r.C + h * p->dq * p->dv, *n = r.n + h * p->dq, m = 0;
        for (size_t t = 0; t < p->T; t++) {
            double i = cap_of(p->gates[t * 2 * NH + h], p->cap), f = cap_of(p->gates[t * 2 * NH + NH + h], p->cap);
            const float *q = p->q + (t * NH + h) * p->dq, *k = p->k + (t * NH + h) * p->dq;
            const float *v = p->v + (t * NH + h) * p->dv;
            double forget = 1 / (1 + exp(-f)), input = exp(i), qn = 0;
            m = fmax(log_sigmoid(f) + m, i);
            for (size_t a = 0; a < p->dq; a++) {
                n[a] = forget * n[a] + input * k[a];
                qn += scale * q[a] * n[a];
                for (size_t b = 0; b < p->dv; b++) C[a * p->dv + b] = forget * C[a * p->dv + b] + input * k[a] * v[b];
            }
            for (size_t b = 0; b < p->dv; b++) {
                double num = 0;
                for (size_t a = 0; a < p->dq; a++) num += scale * q[a] * C[a * p->dv + b];
                r.h[(t * NH + h) * p->dv + b] = (float)(num / (fmax(fabs(qn), 1) + eps * exp(m)));
            }
        }
        for (size_t a = 0; a < p->dq * p->dv; a++) C[a] *= exp(-m);
        for (size_t a = 0; a < p->dq; a++) n[a] *= exp(-m);
        r.m[h] = m;
    }
    return r;
}

static xl_backend *open_backend(const char *name, const problem *p, uint32_t chunk, uint32_t threads)
{
    xl_backend_options o = {.threads = threads,
                            .max_rows = (uint32_t)p->T,
                            .max_runs = (uint32_t)p->T,
                            .chunk_size = chunk,
                            .activations = XLSTM_F32,
                            .norm_float32 = true,
                            .num_blocks = BLOCKS,
                            .num_heads = NH,
                            .head_qk = (uint32_t)p->dq,
                            .head_v = (uint32_t)p->dv,
                            .embedding_dim = 64,
                            .ffn_dim = 64,
                            .vocab_size = (uint32_t)p->T,
                            .state = XLSTM_F32};
    xl_backend *be = NULL;
    xlstm_error err;
    if (xl_backend_open(&be, name, &o, &err) != XLSTM_OK) {
        print_message("skip: %s\n", err.message);
        return NULL;
    }
    return be;
}

static xl_matrix *rows_matrix(xl_backend *be, const float *values, size_t rows, size_t cols)
{
    xl_tensor t = {.name = "test", .dtype = XLSTM_F32, .rank = 2, .shape = {rows, cols}, .bytes = rows * cols * 4};
    xl_matrix *m;
    bool borrows;
    assert_int_equal(be->ops->matrix_new(be, &m, &borrows, &t, values, 0, rows, XLSTM_DTYPE_DEFAULT, XL_USE_ROWS, NULL),
                     XLSTM_OK);
    return m;
}

static void read_state(xl_backend *be, const xl_store *s, const problem *p, result *r)
{
    const xl_state_layout *l = be->ops->layout(be);
    uint8_t *bytes = malloc(l->total_bytes);
    assert_int_equal(be->ops->store_read(be, s, bytes, NULL), XLSTM_OK);
    bool wide = l->dtype == XLSTM_F64;
    for (size_t h = 0; h < NH; h++) {
        const uint8_t *C = bytes + xl_state_c_offset(l, 0, h), *n = bytes + xl_state_n_offset(l, 0, h);
        const uint8_t *m = bytes + xl_state_m_offset(l, 0, h);
        for (size_t i = 0; i < p->dq * p->dv; i++) {
            r->C[h * p->dq * p->dv + i] = wide ? ((const double *)(const void *)C)[i] : ((const float *)(const void *)C)[i];
        }
        for (size_t i = 0; i < p->dq; i++) {
            r->n[h * p->dq + i] = wide ? ((const double *)(const void *)n)[i] : ((const float *)(const void *)n)[i];
        }
        r->m[h] = wide ? *(const double *)(const void *)m : *(const float *)(const void *)m;
    }
    free(bytes);
}

/* Runs the problem in segments that end at cuts[0 .. n_cuts-1] (the last is T). Returns whether any row was faulted. */
static bool run_cell(xl_backend *be, const problem *p, const size_t *cuts, size_t n_cuts, result *r)
{
    const xl_backend_ops *ops = be->ops;
    size_t widths[5] = {NH * p->dq, NH * p->dq, NH * p->dv, 2 * NH, NH * p->dv};
    const float *values[4] = {p->q, p->k, p->v, p->gates};
    xl_buffer *b[5];
    xl_matrix *source[4];
    for (size_t i = 0; i < 5; i++) assert_int_equal(ops->buffer_new(be, &b[i], p->T, widths[i], NULL), XLSTM_OK);
    for (size_t i = 0; i < 4; i++) source[i] = rows_matrix(be, values[i], p->T, widths[i]);
    xl_store *store;
    assert_int_equal(ops->store_new(be, &store, NULL), XLSTM_OK);
    int32_t *ids = malloc(p->T * sizeof(*ids));
    uint32_t *faults = malloc(p->T * sizeof(*faults));
    bool faulted = false;
    for (size_t c = 0, from = 0; c < n_cuts; from = cuts[c++]) {
        uint32_t count = (uint32_t)(cuts[c] - from);
        for (uint32_t i = 0; i < count; i++) ids[i] = (int32_t)(from + i);
        xl_run run = {0, count, from, store};
        xl_batch batch = {.ids = ids, .rows = count, .runs = &run, .n_runs = 1};
        bool replay;
        assert_int_equal(ops->begin(be, &batch, &replay, NULL), XLSTM_OK);
        for (size_t i = 0; i < 4; i++) ops->embed(be, b[i], source[i]);
        xl_mlstm op = {b[4], b[0], b[1], b[2], b[3], 0, p->cap, 1e-6f, xl_fault_code(0, XL_AT_GATES)};
        ops->mlstm(be, &op);
        assert_int_equal(ops->submit(be, faults, NULL), XLSTM_OK);
        for (uint32_t i = 0; i < count; i++) faulted |= faults[i] != 0;
        assert_int_equal(ops->buffer_read(be, b[4], 0, r->h + from * NH * p->dv, count * NH * p->dv, NULL), XLSTM_OK);
    }
    read_state(be, store, p, r);
    ops->store_free(be, store);
    for (size_t i = 0; i < 5; i++) ops->buffer_free(be, b[i]);
    for (size_t i = 0; i < 4; i++) ops->matrix_free(be, source[i]);
    free(ids);
    free(faults);
    return faulted;
}

static double largest(const double *x, size_t n)
{
    double a = 0;
    for (size_t i = 0; i < n; i++) a = fmax(a, fabs(x[i]));
    return a;
}

static double distance(const double *x, const double *y, size_t n)
{
    double a = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs(x[i] - y[i]);
        if (!(d <= a)) a = d; /* NaN sticks */
    }
    return a;
}

static double distance32(const float *x, const float *y, size_t n, double *size)
{
    double a = 0;
    *size = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)x[i] - (double)y[i]);
        if (!(d <= a)) a = d;
        *size = fmax(*size, fabs((double)y[i]));
    }
    return a;
}

static void compare(const problem *p, const result *got, const result *want, double state_tol, double m_tol, double h_tol)
{
    double size;
    size_t nC = NH * p->dq * p->dv, nn = NH * p->dq;
    assert_true(distance(got->C, want->C, nC) <= state_tol * largest(want->C, nC));
    assert_true(distance(got->n, want->n, nn) <= state_tol * largest(want->n, nn));
    assert_true(distance(got->m, want->m, NH) <= m_tol * fmax(1, largest(want->m, NH)));
    double d = distance32(got->h, want->h, p->T * NH * p->dv, &size);
    if (!(d <= h_tol * size)) print_error("h differs by %g of %g\n", d, size);
    assert_true(d <= h_tol * size);
}

/* ---- tests ------------------------------------------------------------------------------------------------------ */

/* Random partitions of 150 tokens, every chunk length: the float64 backend to 1e-11, the others to float32 rounding. */
static void test_partitions_agree_with_recurrence(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {{16, 32}, {48, 96}, {5, 7}, {64, 128}};
    static const uint32_t chunks[] = {1, 7, 16, 64, 100};
    for (size_t s = 0; s < XL_COUNT(shapes); s++) {
        problem p = make_problem(150, shapes[s][0], shapes[s][1], s == 1 ? 0 : 15);
        result want = oracle(&p);
        for (size_t b = 0; b < XL_COUNT(backends); b++) {
            for (size_t c = 0; c < XL_COUNT(chunks); c++) {
                xl_backend *be = open_backend(backends[b], &p, chunks[c], 2);
                if (be == NULL) break;
                bool f64 = strcmp(backends[b], "reference64") == 0;
                for (int round = 0; round < 4; round++) {
                    size_t cuts[150], n = 0, at = 0;
                    while (at < p.T) {
                        size_t step = round == 0 ? p.T : round == 1 ? 1 : 1 + (size_t)(uniform() * 70);
                        at = XL_MIN(at + step, p.T);
                        cuts[n++] = at;
                    }
                    result got = new_result(&p);
                    assert_false(run_cell(be, &p, cuts, n, &got));
                    compare(&p, &got, &want, f64 ? 1e-11 : 1e-5, f64 ? 1e-12 : 2e-6, f64 ? 2e-7 : 1e-4); /* qn can cancel */
                    free_result(&got);
                }
                be->ops->close(be);
            }
        }
        free_result(&want);
        free_problem(&p);
    }
}

/* Step against chunk in float32 at the 7B head shape. */
static void test_step_equals_chunk_at_7b_shape(void **state)
{
    (void)state;
    problem p = make_problem(130, 256, 512, 15);
    for (size_t b = 1; b < XL_COUNT(backends); b++) {
        xl_backend *be = open_backend(backends[b], &p, 64, 2);
        if (be == NULL) continue;
        size_t whole[1] = {130}, steps[130];
        for (size_t i = 0; i < 130; i++) steps[i] = i + 1;
        result chunk = new_result(&p), step = new_result(&p);
        assert_false(run_cell(be, &p, whole, 1, &chunk));
        assert_false(run_cell(be, &p, steps, 130, &step));
        compare(&p, &chunk, &step, 1e-4, 1e-5, 1e-4);
        free_result(&chunk);
        free_result(&step);
        be->ops->close(be);
    }
    free_problem(&p);
}

/* Keys and chunks longer than what products take of K at once, head dimensions no vector divides: against the recurrence. One
 * thread has all columns of a head, five share them. */
static void test_long_keys_and_chunks(void **state)
{
    (void)state;
    problem p = make_problem(330, 300, 523, 15);
    result want = oracle(&p);
    for (size_t b = 1; b < XL_COUNT(backends); b++)
        for (uint32_t threads = 1; threads <= 5; threads += 4) {
            xl_backend *be = open_backend(backends[b], &p, 320, threads);
            if (be == NULL) break;
            size_t whole[1] = {330};
            result got = new_result(&p);
            assert_false(run_cell(be, &p, whole, 1, &got));
            compare(&p, &got, &want, 1e-5, 2e-6, 1e-4);
            free_result(&got);
            be->ops->close(be);
        }
    free_result(&want);
    free_problem(&p);
}

/* Gates pinned at the caps, +-50 before them, for 4096 tokens: nothing overflows, in chunks and in steps. */
static void test_gate_extremes_stay_finite(void **state)
{
    (void)state;
    for (int signs = 0; signs < 4; signs++) {
        problem p = make_problem(4096, 8, 12, 15);
        for (size_t t = 0; t < p.T; t++) {
            for (size_t h = 0; h < NH; h++) {
                p.gates[t * 2 * NH + h] = signs & 1 ? 50.0f : -50.0f;
                p.gates[t * 2 * NH + NH + h] = signs & 2 ? 50.0f : -50.0f;
            }
        }
        for (size_t b = 0; b < XL_COUNT(backends); b++) {
            xl_backend *be = open_backend(backends[b], &p, 64, 2);
            if (be == NULL) continue;
            size_t whole[1] = {4096}, steps[4096];
            for (size_t i = 0; i < 4096; i++) steps[i] = i + 1;
            result chunk = new_result(&p), step = new_result(&p);
            assert_false(run_cell(be, &p, whole, 1, &chunk));
            assert_false(run_cell(be, &p, steps, 4096, &step));
            for (size_t i = 0; i < p.T * NH * p.dv; i++) {
                assert_true(xl_is_finite(chunk.h[i]));
                assert_true(xl_is_finite(step.h[i]));
            }
            for (size_t i = 0; i < NH * p.dq * p.dv; i++) assert_true(isfinite(chunk.C[i]) && isfinite(step.C[i]));
            free_result(&chunk);
            free_result(&step);
            be->ops->close(be);
        }
        free_problem(&p);
    }
}

/* NaN in i or f must be reported and must not be swallowed by a maximum. */
static void test_nan_gate_is_reported(void **state)
{
    (void)state;
    for (int which = 0; which < 2; which++) {
        problem p = make_problem(70, 16, 16, 15);
        p.gates[33 * 2 * NH + (which == 0 ? 1 : NH + 1)] = NAN;
        for (size_t b = 0; b < XL_COUNT(backends); b++) {
            xl_backend *be = open_backend(backends[b], &p, 64, 2);
            if (be == NULL) continue;
            size_t whole[1] = {70}, steps[70];
            for (size_t i = 0; i < 70; i++) steps[i] = i + 1;
            result r = new_result(&p);
            assert_true(run_cell(be, &p, whole, 1, &r));
            assert_true(run_cell(be, &p, steps, 70, &r));
            free_result(&r);
            be->ops->close(be);
        }
        free_problem(&p);
    }
}

/* A head with constant output is all mean: LayerNorm gives 0 (an RMSNorm would give the weight). */
static void test_constant_head_is_normalised_to_zero(void **state)
{
    (void)state;
    problem p = make_problem(3, 16, 24, 15);
    size_t width = NH * p.dv;
    float *h = malloc(p.T * width * sizeof(float)), *o = malloc(p.T * width * sizeof(float));
    float *weight = malloc(width * sizeof(float)), *g = malloc(p.T * width * sizeof(float));
    for (size_t i = 0; i < p.T * width; i++) {
        h[i] = 0.5f + (float)(i / p.dv);
        o[i] = (float)normal();
    }
    for (size_t i = 0; i < width; i++) weight[i] = 1 + (float)normal();
    for (size_t b = 0; b < XL_COUNT(backends); b++) {
        xl_backend *be = open_backend(backends[b], &p, 64, 1);
        if (be == NULL) continue;
        const xl_backend_ops *ops = be->ops;
        xl_tensor t = {.name = "weight", .dtype = XLSTM_F32, .rank = 1, .shape = {width}, .bytes = width * 4};
        xl_matrix *mh = rows_matrix(be, h, p.T, width), *mo = rows_matrix(be, o, p.T, width), *mw;
        bool borrows, replay;
        assert_int_equal(ops->matrix_new(be, &mw, &borrows, &t, weight, 0, width, 0, XL_USE_MATMUL, NULL), XLSTM_OK);
        xl_buffer *bh, *bo, *bg;
        assert_int_equal(ops->buffer_new(be, &bh, p.T, width, NULL), XLSTM_OK);
        assert_int_equal(ops->buffer_new(be, &bo, p.T, width, NULL), XLSTM_OK);
        assert_int_equal(ops->buffer_new(be, &bg, p.T, width, NULL), XLSTM_OK);
        xl_store *store;
        assert_int_equal(ops->store_new(be, &store, NULL), XLSTM_OK);
        int32_t ids[3] = {0, 1, 2};
        uint32_t faults[3];
        xl_run run = {0, 3, 0, store};
        xl_batch batch = {.ids = ids, .rows = 3, .runs = &run, .n_runs = 1};
        assert_int_equal(ops->begin(be, &batch, &replay, NULL), XLSTM_OK);
        ops->embed(be, bh, mh);
        ops->embed(be, bo, mo);
        xl_norm norm = {mw, NULL, (uint32_t)width, 1e-6f, 1};
        ops->mhnorm_gate(be, bg, bh, bo, &norm);
        assert_int_equal(ops->submit(be, faults, NULL), XLSTM_OK);
        assert_int_equal(ops->buffer_read(be, bg, 0, g, p.T * width, NULL), XLSTM_OK);
        for (size_t i = 0; i < p.T * width; i++) assert_true(fabsf(g[i]) < 1e-2f);
        ops->store_free(be, store);
        ops->buffer_free(be, bh);
        ops->buffer_free(be, bo);
        ops->buffer_free(be, bg);
        ops->matrix_free(be, mh);
        ops->matrix_free(be, mo);
        ops->matrix_free(be, mw);
        ops->close(be);
    }
    free(h);
    free(o);
    free(weight);
    free(g);
    free_problem(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_partitions_agree_with_recurrence),
        cmocka_unit_test(test_step_equals_chunk_at_7b_shape),
        cmocka_unit_test(test_long_keys_and_chunks),
        cmocka_unit_test(test_gate_extremes_stay_finite),
        cmocka_unit_test(test_nan_gate_is_reported),
        cmocka_unit_test(test_constant_head_is_normalised_to_zero),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
