/*
 * test_kernels.c — every kernel variant this machine can run, through the backend's vtable, against the float64
 * reference backend: ragged shapes, fresh random data, poisoned outputs and guards; and bit for bit against itself for
 * every thread count and company. Builds without cmocka too (-DSTANDALONE), for machines that are only emulated.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#ifdef STANDALONE
#include <stdio.h>
#include <stdlib.h>
#define assert_true(c) \
    do { \
        if (!(c)) { \
            printf("%s:%d: %s is false\n", __FILE__, __LINE__, #c); \
            exit(1); \
        } \
    } while (0)
#define assert_int_equal(a, b) assert_true((a) == (b))
#define assert_non_null(p) assert_true((p) != NULL)
#else
#include <cmocka.h>
#endif

#include "cpu/cpu_backend.h"
#include "ref/ref_backend.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- random data ------------------------------------------------------------------------------------------------ */

static uint64_t seed = 0x2545f4914f6cdd1du;
static uint32_t next(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (uint32_t)(seed >> 32);
}
static uint32_t below(uint32_t n) { return next() % n; }
static float normal(void)
{
    double u = (next() + 0.5) * 0x1p-32, v = next() * 0x1p-32;
    return (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
}
static float *normals(size_t n, float scale)
{
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++) x[i] = scale * normal();
    return x;
}

/* ---- variants --------------------------------------------------------------------------------------------------- */

static const struct { const char *name; uint32_t mask; } variants[] = {
    {"generic", XLSTM_CPU_SCALAR},
#if defined(__x86_64__)
    {"avx2", XLSTM_CPU_AVX2},
    {"avx512", XLSTM_CPU_AVX512},
    {"avx512-bf16", XLSTM_CPU_AVX512 | XLSTM_CPU_AVX512_BF16},
    {"avx512-vnni", XLSTM_CPU_AVX512 | XLSTM_CPU_AVX512_VNNI},
    {"avx512-amx", XLSTM_CPU_AVX512 | XLSTM_CPU_AMX},
#elif defined(__aarch64__)
    {"neon", XLSTM_CPU_NEON},
    {"neon-dotprod", XLSTM_CPU_NEON | XLSTM_CPU_DOTPROD},
#endif
    {"all", 0},
};

static const xl_backend_options plain = {
    .threads = 2, .max_rows = 80, .max_runs = 80, .chunk_size = 16, .activations = XLSTM_F32, .norm_float32 = true,
    .num_blocks = 2, .num_heads = 2, .head_qk = 8, .head_v = 16, .embedding_dim = 32, .ffn_dim = 48, .vocab_size = 80,
    .state = XLSTM_F32,
};

/* NULL when this machine cannot run the variant. */
static xl_backend *open_cpu(xl_backend_options o, uint32_t mask)
{
    xl_backend *be = NULL;
    xlstm_error err;
    o.cpu_mask = mask;
    int code = xl_cpu_backend.open(&be, &o, &err);
    if (code == XLSTM_E_UNSUPPORTED) return NULL;
    assert_int_equal(code, 0);
    char text[64];
    be->ops->describe(be, text, sizeof text);
    if ((mask & XLSTM_CPU_AMX) && !strstr(text, "amx")) {
        be->ops->close(be);
        return NULL;
    }
    return be;
}

/* In float64; in float32 when the state or the cell's inputs are rounded, so that both round the same numbers. */
static xl_backend *open_reference(xl_backend_options o)
{
    xl_backend *be = NULL;
    bool wide = o.state == XLSTM_F32 && o.kernel == XLSTM_DTYPE_DEFAULT;
    const xl_backend_ops *ops = wide ? &xl_reference64_backend : &xl_reference_backend;
    assert_int_equal(ops->open(&be, &o, NULL), 0);
    return be;
}

static xl_matrix *matrix(xl_backend *be, xlstm_dtype dtype, const void *bytes, uint64_t rows, uint64_t cols,
                         xlstm_dtype hold, unsigned usage)
{
    xl_tensor t = {.name = "w", .dtype = dtype, .rank = cols ? 2 : 1, .shape = {rows, cols}};
    xl_matrix *m = NULL;
    bool borrows;
    xlstm_error err = {0};
    if (be->ops->matrix_new(be, &m, &borrows, &t, bytes, 0, rows, hold, usage, &err) != 0) printf("%s\n", err.message);
    assert_non_null(m);
    return m;
}

static xl_buffer *buffer(xl_backend *be, size_t rows, size_t width)
{
    xl_buffer *b = NULL;
    assert_int_equal(be->ops->buffer_new(be, &b, rows, width, NULL), 0);
    return b;
}

static int32_t counting[4096];
static uint32_t all_rows[4096];

static xl_batch batch_of(uint32_t rows)
{
    for (int i = 0; i < 4096; i++) {
        counting[i] = i;
        all_rows[i] = (uint32_t)i;
    }
    return (xl_batch){.ids = counting, .rows = rows, .out_rows = all_rows, .n_out = rows};
}

/* Writes rows of values into a buffer: they are the rows of an embedding. */
static void put(xl_backend *be, xl_buffer *b, const float *values, uint32_t rows, uint32_t width)
{
    bool replay;
    uint32_t faults[4096];
    xl_matrix *m = matrix(be, XLSTM_F32, values, rows, width, XLSTM_DTYPE_DEFAULT, XL_USE_ROWS);
    xl_batch batch = batch_of(rows);
    assert_int_equal(be->ops->begin(be, &batch, &replay, NULL), 0);
    be->ops->embed(be, b, m);
    assert_int_equal(be->ops->submit(be, faults, NULL), 0);
    be->ops->matrix_free(be, m);
}

static float *get(xl_backend *be, const xl_buffer *b, size_t n)
{
    float *x = malloc(n * sizeof *x);
    assert_int_equal(be->ops->buffer_read(be, b, 0, x, n, NULL), 0);
    return x;
}

static const float poison = -12345.678f;

static void fill(xl_backend *be, xl_buffer *b, uint32_t rows, uint32_t width)
{
    float *x = malloc((size_t)rows * width * sizeof *x);
    for (size_t i = 0; i < (size_t)rows * width; i++) x[i] = poison;
    put(be, b, x, rows, width);
    free(x);
}

static double unit_of(xlstm_dtype d) { return d == XLSTM_BF16 ? 0x1p-8 : d == XLSTM_F16 ? 0x1p-11 : 0; }

/* What is written is read again, rounded like any activation, and its neighbours stay. */
static void test_buffers_are_written_and_read(void **state)
{
    (void)state;
    enum { N = 3 * 37, FIRST = 5, COUNT = 90 };
    static const xlstm_dtype formats[] = {XLSTM_F32, XLSTM_BF16, XLSTM_F16};
    const xl_backend_ops *const all[] = {&xl_cpu_backend, &xl_reference_backend, &xl_reference64_backend};
    for (size_t a = 0; a < 3 * 3; a++) {
        xl_backend_options o = plain;
        o.activations = formats[a % 3];
        xl_backend *be = NULL;
        assert_int_equal(all[a / 3]->open(&be, &o, NULL), 0);
        xl_buffer *b = buffer(be, 3, 37);
        fill(be, b, 3, 37);
        float in[COUNT], *before = get(be, b, N);
        for (int i = 0; i < COUNT; i++) in[i] = 1.2345678f * (float)(i - 40);
        in[7] = NAN;
        in[8] = INFINITY;
        assert_int_equal(be->ops->buffer_write(be, b, FIRST, in, COUNT, NULL), 0);
        float *after = get(be, b, N);
        for (int i = 0; i < N; i++) {
            bool inside = i >= FIRST && i < FIRST + COUNT;
            float want = !inside ? before[i] : in[i - FIRST];
            if (inside && o.activations == XLSTM_BF16) want = xl_round_bf16(want);
            if (inside && o.activations == XLSTM_F16) want = xl_round_f16(want);
            assert_true(after[i] == want || (isnan(after[i]) && isnan(want)));
        }
        free(before);
        free(after);
        be->ops->buffer_free(be, b);
        be->ops->close(be);
    }
}

/* ---- products --------------------------------------------------------------------------------------------------- */

typedef struct product_case {
    xlstm_dtype stored, hold, activations;
    uint32_t M, N, K;
    bool no_repack, bias, add, wide;
    uint32_t spread; /* of a quantised product: blocks of 32 activations are smaller by up to so many powers of two */
} product_case;

/* More rows than are few, for which panels are taken side by side instead of one after the other. */
enum { PRODUCT_ROWS = 640, USUAL_ROWS = 110 };

/* Up to 100 weight rows, or so many that threads take several panels at a time; or so many activation rows that a thread takes
 * some of them only. */
static void choose_sizes(product_case *p)
{
    const uint32_t kind = below(12);
    p->M = 1 + below(USUAL_ROWS);
    p->N = 1 + below(100);
    if (kind > 1) return;
    p->K = XL_MIN(p->K, 256u);
    if (kind == 0) {
        p->N += 2048 + below(2) * 2048;
        p->M = 1 + below(p->M);
    } else {
        p->M = 250 + below(PRODUCT_ROWS - 250);
    }
}

/* One product of `rows` rows starting at x; out [rows + 1][stride], poisoned, `column` first. */
static float *run_product(xl_backend *be, const product_case *p, const void *w, const float *bias, const float *x,
                          const float *old, uint32_t rows, uint32_t stride, uint32_t column)
{
    bool replay;
    uint32_t faults[PRODUCT_ROWS];
    xl_matrix *m = matrix(be, p->stored, w, p->N, p->K, p->hold, XL_USE_MATMUL);
    xl_matrix *b = bias ? matrix(be, XLSTM_F32, bias, p->N, 0, XLSTM_DTYPE_DEFAULT, XL_USE_MATMUL) : NULL;
    xl_buffer *in = buffer(be, PRODUCT_ROWS, p->K), *out = buffer(be, PRODUCT_ROWS, stride);
    put(be, in, x, rows, p->K);
    put(be, out, old, rows + 1, stride);
    xl_batch batch = batch_of(rows);
    xl_linear l = {m, b, out, stride, column, p->add, p->wide};
    assert_int_equal(be->ops->begin(be, &batch, &replay, NULL), 0);
    be->ops->linear(be, &l, 1, in, false);
    assert_int_equal(be->ops->submit(be, faults, NULL), 0);
    float *y = get(be, out, (size_t)(rows + 1) * stride);
    be->ops->buffer_free(be, in);
    be->ops->buffer_free(be, out);
    be->ops->matrix_free(be, m);
    be->ops->matrix_free(be, b);
    return y;
}

/* What int8 makes of a group of activations (xl_cpu_pack in cpu_kernels.h): levels of the largest / 127, by a power of two
 * for each 32. Returns the step. */
static float int8_group(float *out, const float *x, uint32_t n)
{
    float top = 0;
    for (uint32_t i = 0; i < n; i++) top = fmaxf(top, fabsf(x[i]));
    float step = top / 127.0f, inverse = top > 0 ? 127.0f / top : 0;
    for (uint32_t b = 0; b < n; b += 32) {
        float most = 0, limit = top;
        int e = 0;
        for (uint32_t i = b; i < b + 32; i++) most = fmaxf(most, fabsf(x[i]));
        for (; e > -20 && most <= limit / 2; e--) limit /= 2;
        for (uint32_t i = b; i < b + 32; i++) out[i] = ldexpf(rintf(x[i] * ldexpf(inverse, -e)), e) * step;
    }
    return step;
}

static void check_product(const char *name, uint32_t mask, product_case p, double tolerance)
{
    xl_backend_options o = plain;
    o.activations = p.activations;
    o.no_repack = p.no_repack;
    o.max_rows = o.max_runs = PRODUCT_ROWS;
    bool quantised = xl_dtype_get(p.stored)->block > 1, mins = p.stored == XLSTM_Q4_K || p.stored == XLSTM_Q5_K;
    xl_backend *be = open_cpu(o, mask);
    if (quantised && !p.no_repack) o.activations = XLSTM_F32; /* whose input int8 makes, its result is rounded once, here */
    xl_backend *ref = open_reference(o);
    o.activations = p.activations;
    if (!be) {
        ref->ops->close(ref);
        return;
    }
    uint32_t column = 3, stride = p.N + 5;
    size_t row_bytes;
    assert_true(xl_dtype_row_bytes(&row_bytes, p.stored, p.K));
    float *values = normals((size_t)p.N * p.K, 1), *x = normals((size_t)p.M * p.K, 1);
    float *bias = p.bias ? normals(p.N, 1) : NULL, *old = normals((size_t)(p.M + 1) * stride, 1);
    /* the inputs are what the activation format can hold */
    for (size_t i = 0; i < (size_t)p.M * p.K; i++)
        x[i] = p.activations == XLSTM_BF16 ? xl_round_bf16(x[i]) : p.activations == XLSTM_F16 ? xl_round_f16(x[i]) : x[i];
    float *held = x, *extra = calloc(p.M, sizeof *extra); /* what the product sees of x, and what it may miss besides */
    for (size_t i = 0, power = 0; p.spread && i < (size_t)p.M * p.K; i++) {
        if (i % 32 == 0) power = below(p.spread + 1);
        x[i] = below(200) ? ldexpf(x[i], -(int)power) : 0;
    }
    if (quantised && !p.no_repack) {
        held = malloc((size_t)p.M * p.K * sizeof *held);
        for (uint32_t r = 0; r < p.M; r++)
            for (uint32_t k = 0; k < p.K; k += 256) {
                size_t at = (size_t)r * p.K + k;
                float step = int8_group(held + at, x + at, XL_MIN(p.K - k, 256u));
                /* sums for the minima (below 5, as weights are) are rounded to a sixteenth of a step a block */
                if (mins && p.spread > 1) extra[r] += step / 16 * 8 * 5;
            }
    }
    for (size_t i = 0; i < (size_t)(p.M + 1) * stride; i++) old[i] = xl_round_bf16(xl_round_f16(old[i]));
    uint8_t *w = malloc(p.N * row_bytes);
    for (uint32_t n = 0; n < p.N; n++) xl_encode_row(w + n * row_bytes, values + (size_t)n * p.K, p.stored, p.K);
    float *y = run_product(be, &p, w, bias, x, old, p.M, stride, column);
    product_case q = p;
    float *want = run_product(ref, &q, w, bias, held, old, p.M, stride, column);
    double worst = 0;
    for (uint32_t r = 0; r <= p.M; r++)
        for (uint32_t i = 0; i < stride; i++) {
            float a = y[r * stride + i], b = want[r * stride + i];
            if (r == p.M || i < column || i >= column + p.N) {
                assert_true(a == old[r * stride + i]); /* guards */
                continue;
            }
            double power = fmax(sqrt((double)p.K), fabs(b)); /* size of a typical sum, or of this one: rounding follows it */
            double unit = p.wide ? 0 : 4 * unit_of(p.activations) * (fabs(b) + 1 + (p.add ? fabs(old[r * stride + i]) : 0));
            double e = fabs((double)a - b);
            if (!(e <= tolerance * power + unit + extra[r])) {
                printf("%s: %s hold %s x %s%s%s M %u N %u K %u: row %u column %u: %.9g, expected %.9g\n", name,
                       xlstm_dtype_name(p.stored), xlstm_dtype_name(p.hold), xlstm_dtype_name(p.activations),
                       p.no_repack ? " in place" : "", p.wide ? " wide" : "", p.M, p.N, p.K, r, i, a, b);
                assert_true(false);
            }
            if (e / power > worst) worst = e / power;
        }
    /* a row alone gives the same bits as in company */
    for (int round = 0; round < 2; round++) {
        uint32_t r = below(p.M);
        float *alone = run_product(be, &p, w, bias, x + (size_t)r * p.K, old + (size_t)r * stride, 1, stride, column);
        assert_true(memcmp(alone, y + (size_t)r * stride, stride * sizeof *y) == 0);
        free(alone);
    }
    /* so does any number of threads */
    o.threads = round(p.M + p.N) > 40 ? 8 : 3;
    be->ops->close(be);
    be = open_cpu(o, mask);
    float *again = run_product(be, &p, w, bias, x, old, p.M, stride, column);
    assert_true(memcmp(again, y, (size_t)(p.M + 1) * stride * sizeof *y) == 0);
    free(again);
    free(values);
    if (held != x) free(held);
    free(x);
    free(bias);
    free(old);
    free(w);
    free(y);
    free(want);
    free(extra);
    be->ops->close(be);
    ref->ops->close(ref);
}

#if defined(STANDALONE) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { ROUNDS = 6, LARGEST_K = 1100 }; /* emulated or instrumented: slow */
#else
enum { ROUNDS = 60, LARGEST_K = 2300 };
#endif

static void test_products(void **state)
{
    (void)state;
    static const xlstm_dtype formats[] = {XLSTM_F32, XLSTM_BF16, XLSTM_F16, XLSTM_F64};
    static const xlstm_dtype activations[] = {XLSTM_F32, XLSTM_BF16, XLSTM_F16};
    static const xlstm_dtype holds[] = {XLSTM_DTYPE_DEFAULT, XLSTM_F32, XLSTM_BF16, XLSTM_F16};
    static const uint32_t ks[] = {1, 2, 3, 31, 48, 96, 100, 255, 256, 257, 1025, LARGEST_K - 1, LARGEST_K};
    for (size_t v = 0; v < XL_COUNT(variants); v++)
        for (int round = 0; round < ROUNDS; round++) {
            product_case p = {.stored = formats[below(4)], .hold = holds[below(4)], .activations = activations[below(3)],
                              .K = ks[below(XL_COUNT(ks))],
                              .no_repack = below(3) == 0, .bias = below(2), .add = below(2), .wide = below(2)};
            if (p.wide) p.add = false;
            choose_sizes(&p);
            check_product(variants[v].name, variants[v].mask, p, p.activations == XLSTM_BF16 ? 1e-5 : 3e-6);
        }
}

/* Blocks of 32 or 256 weights, on activations that are rounded to int8 unless weights are used in place. */
static void test_quantised_products(void **state)
{
    (void)state;
    static const xlstm_dtype formats[] = {XLSTM_Q8_0, XLSTM_Q6_K, XLSTM_Q5_K, XLSTM_Q4_K, XLSTM_Q4_0};
    for (size_t v = 0; v < XL_COUNT(variants); v++)
        for (int round = 0; round < ROUNDS; round++) {
            product_case p = {.stored = formats[below(5)], .activations = below(2) ? XLSTM_F32 : XLSTM_BF16,
                              .K = 256 * (1 + below(LARGEST_K / 256)),
                              .no_repack = below(3) == 0, .bias = below(2), .add = below(2), .wide = below(2)};
            if (p.wide) p.add = false;
            choose_sizes(&p);
            if (xl_dtype_get(p.stored)->block == 32) p.K -= 32 * below(8);
            p.spread = below(2) ? 1 : below(24);
            check_product(variants[v].name, variants[v].mask, p, 3e-6);
        }
}

/* A group of products of different formats and sizes on one input, and a tied matrix used for rows and products. */
static void test_group_and_tied(void **state)
{
    (void)state;
    for (size_t v = 0; v < XL_COUNT(variants); v++)
        for (int mode = 0; mode < 2; mode++) {
            xl_backend_options o = plain;
            o.activations = mode ? XLSTM_BF16 : XLSTM_F32;
            xl_backend *be = open_cpu(o, variants[v].mask), *ref = open_reference(o), *both[2] = {be, ref};
            if (!be) {
                ref->ops->close(ref);
                continue;
            }
            enum { K = 51, M = 9 };
            uint32_t rows[4] = {70, 4, 4, 33};
            float *w[4], *y[2][4], *x = normals(80 * K, 1);
            for (int i = 0; i < 4; i++) w[i] = normals(rows[i] * K, 0.2f);
            uint16_t *half = malloc(70 * K * 2);
            xl_encode_row(half, w[0], XLSTM_BF16, 70 * K);
            for (int b = 0; b < 2; b++) {
                xl_backend *e = both[b];
                bool replay;
                uint32_t faults[M];
                xl_matrix *m[4];
                xl_buffer *in = buffer(e, 80, K), *out[4];
                for (int i = 0; i < 4; i++) {
                    m[i] = i == 0 ? matrix(e, XLSTM_BF16, half, 70, K, 0, XL_USE_MATMUL | XL_USE_ROWS)
                                  : matrix(e, XLSTM_F32, w[i], rows[i], K, 0, XL_USE_MATMUL);
                    out[i] = buffer(e, 80, rows[i] * (i == 1 ? 2 : 1));
                }
                xl_batch batch = batch_of(M);
                int32_t ids[M];
                for (int i = 0; i < M; i++) ids[i] = (int32_t)(i * 8 + 5);
                batch.ids = ids;
                assert_int_equal(e->ops->begin(e, &batch, &replay, NULL), 0);
                e->ops->embed(e, in, m[0]);
                xl_linear group[4] = {{m[0], NULL, out[0], 70, 0, false, false},
                                      {m[1], NULL, out[1], 8, 0, false, true},
                                      {m[2], NULL, out[1], 8, 4, false, true},
                                      {m[3], NULL, out[3], 33, 0, false, false}};
                e->ops->linear(e, group, 4, in, false);
                assert_int_equal(e->ops->submit(e, faults, NULL), 0);
                y[b][0] = get(e, out[0], M * 70);
                y[b][1] = get(e, out[1], M * 8);
                y[b][2] = get(e, in, M * K);
                y[b][3] = get(e, out[3], M * 33);
                for (int i = 0; i < 4; i++) {
                    e->ops->matrix_free(e, m[i]);
                    e->ops->buffer_free(e, out[i]);
                }
                e->ops->buffer_free(e, in);
            }
            static const uint32_t sizes[4] = {M * 70, M * 8, M * K, M * 33};
            for (int i = 0; i < 4; i++)
                for (uint32_t j = 0; j < sizes[i]; j++) {
                    double unit = i == 1 ? 0 : 2 * unit_of(o.activations) * (fabs(y[1][i][j]) + 1e-2);
                    assert_true(fabs((double)y[0][i][j] - y[1][i][j]) <= 2e-6 + unit);
                    if (i == 2) assert_true(y[0][i][j] == y[1][i][j]);
                }
            for (int i = 0; i < 4; i++) {
                free(w[i]);
                free(y[0][i]);
                free(y[1][i]);
            }
            free(x);
            free(half);
            be->ops->close(be);
            ref->ops->close(ref);
        }
}

/* ---- row by row ------------------------------------------------------------------------------------------------- */

/* Runs every row operation on given inputs; y: [OPS][rows][width]. */
enum { ROW_OPS = 6 };
static void row_operations(xl_backend *be, const xl_backend_options *o, const float *a, const float *b, const float *w,
                           uint32_t rows, float **y, uint32_t *faults)
{
    uint32_t width = o->ffn_dim; /* == num_heads * head_v == vocabulary here */
    bool replay;
    xl_matrix *weight = matrix(be, XLSTM_F32, w, width, 0, 0, XL_USE_MATMUL);
    xl_matrix *bias = matrix(be, XLSTM_F32, w + width, width, 0, 0, XL_USE_MATMUL);
    xl_buffer *A = buffer(be, 80, width), *B = buffer(be, 80, width), *Y = buffer(be, 80, width);
    xl_norm norm = {weight, NULL, width, 1e-6f, 1}, biased = {weight, bias, width, 1e-3f, 2};
    for (int op = 0; op < ROW_OPS; op++) {
        put(be, A, a, rows, width);
        put(be, B, b, rows, width);
        fill(be, Y, rows + 1, width);
        xl_batch batch = batch_of(rows);
        assert_int_equal(be->ops->begin(be, &batch, &replay, NULL), 0);
        switch (op) {
        case 0: be->ops->rmsnorm(be, Y, A, &norm, false); break;
        case 1: be->ops->rmsnorm(be, Y, A, &biased, true); break;
        case 2: be->ops->mhnorm_gate(be, Y, A, B, &biased); break;
        case 3: be->ops->swiglu(be, Y, A, B); break;
        case 4:
            be->ops->gather(be, Y, A, width);
            be->ops->add(be, Y, B, width);
            break;
        default:
            be->ops->gather(be, Y, A, width);
            be->ops->softcap(be, Y, width, 30, 3);
        }
        assert_int_equal(be->ops->submit(be, faults + op * 80, NULL), 0);
        y[op] = get(be, Y, (size_t)(rows + 1) * width);
    }
    be->ops->matrix_free(be, weight);
    be->ops->matrix_free(be, bias);
    be->ops->buffer_free(be, A);
    be->ops->buffer_free(be, B);
    be->ops->buffer_free(be, Y);
}

static void test_row_operations(void **state)
{
    (void)state;
    static const uint32_t heads[] = {1, 3, 5}, widths[] = {1, 7, 20, 48, 96};
    static const xlstm_dtype activations[] = {XLSTM_F32, XLSTM_BF16, XLSTM_F16};
    for (size_t v = 0; v < XL_COUNT(variants); v++)
        for (int round = 0; round < ROUNDS; round++) {
            xl_backend_options o = plain;
            o.num_heads = heads[below(3)];
            o.head_v = widths[below(5)];
            o.ffn_dim = o.num_heads * o.head_v;
            o.activations = activations[below(3)];
            o.norm_float32 = below(2);
            uint32_t rows = 1 + below(20), width = o.ffn_dim, faults[2][ROW_OPS * 80];
            xl_backend *be = open_cpu(o, variants[v].mask), *ref = open_reference(o);
            if (be) {
                float *a = normals((size_t)rows * width, expf(2 * normal())), *b = normals((size_t)rows * width, 2);
                float *w = normals(2 * width, 1), *y[2][ROW_OPS];
                /* extremes of the functions */
                if (round == 3)
                    for (uint32_t i = 0; i < rows * width; i++) a[i] = (float)((int)below(400) - 200);
                row_operations(be, &o, a, b, w, rows, y[0], faults[0]);
                row_operations(ref, &o, a, b, w, rows, y[1], faults[1]);
                for (int op = 0; op < ROW_OPS; op++) {
                    /* with statistics rounded at every step one rounding may fall the other way */
                    double loose = op < 3 && !o.norm_float32 ? 4 : 1;
                    assert_true(width > 0);
                    for (uint32_t r = 0; r < rows; r++)
                        assert_int_equal(faults[0][op * 80 + r], faults[1][op * 80 + r]);
                    for (uint32_t i = 0; i < rows * width; i++) {
                        if (faults[1][op * 80 + i / width]) continue; /* float16 statistics overflow early */
                        double want = y[1][op][i], unit = op == 5 ? 0 : 2 * loose * unit_of(o.activations);
                        if (!(fabs(y[0][op][i] - want) <= 1e-5 * (1 + fabs(want)) + unit * (fabs(want) + 0.1))) {
                            printf("%s op %d width %u: [%u] %g, expected %g\n", variants[v].name, op, width, i,
                                   y[0][op][i], want);
                            assert_true(false);
                        }
                    }
                    for (uint32_t i = 0; i < width; i++)
                        assert_true(fabsf(y[0][op][rows * width + i] - poison) <= 64); /* poison, rounded */
                    free(y[0][op]);
                    free(y[1][op]);
                }
                free(a);
                free(b);
                free(w);
                be->ops->close(be);
            }
            ref->ops->close(ref);
        }
}

/* Numbers below the normal range count as zero inside operations, and only there: the caller's arithmetic keeps them. */
static void test_subnormals(void **state)
{
    (void)state;
    enum { ROWS = 3, WIDTH = 48 };
    float small[ROWS * WIDTH], large[ROWS * WIDTH];
    for (int i = 0; i < ROWS * WIDTH; i++) small[i] = 1e-39f, large[i] = 1e30f;
    for (size_t v = 0; v < XL_COUNT(variants); v++) {
        xl_backend *be = open_cpu(plain, variants[v].mask);
        if (!be) continue;
        bool replay;
        uint32_t faults[ROWS];
        xl_buffer *a = buffer(be, 80, WIDTH), *b = buffer(be, 80, WIDTH);
        put(be, a, small, ROWS, WIDTH);
        put(be, b, large, ROWS, WIDTH);
        xl_batch batch = batch_of(ROWS);
        assert_int_equal(be->ops->begin(be, &batch, &replay, NULL), 0);
        be->ops->swiglu(be, a, a, b);
        assert_int_equal(be->ops->submit(be, faults, NULL), 0);
        float *y = get(be, a, ROWS * WIDTH);
#if defined(__x86_64__) || defined(__aarch64__)
        for (int i = 0; i < ROWS * WIDTH; i++) assert_true(y[i] == 0);
#endif
        volatile float tiny = 1e-39f;
        assert_true(tiny * 0.5f > 0);
        free(y);
        be->ops->buffer_free(be, a);
        be->ops->buffer_free(be, b);
        be->ops->close(be);
    }
}

/* A NaN or Inf is reported by its own row, and by no other. */
static void test_faults(void **state)
{
    (void)state;
    for (size_t v = 0; v < XL_COUNT(variants); v++) {
        xl_backend_options o = plain;
        o.num_heads = 2;
        o.head_v = 24;
        o.ffn_dim = 48;
        xl_backend *be = open_cpu(o, variants[v].mask);
        if (!be) continue;
        float *a = normals(6 * 48, 1), *b = normals(6 * 48, 1), *w = normals(96, 1), *y[ROW_OPS];
        uint32_t faults[ROW_OPS * 80];
        a[2 * 48 + 47] = NAN;
        a[4 * 48 + 3] = -INFINITY;
        row_operations(be, &o, a, b, w, 6, y, faults);
        static const uint32_t code[ROW_OPS] = {1, 2, 2, 0, 0, 3};
        for (int op = 0; op < ROW_OPS; op++) {
            for (uint32_t r = 0; r < 6; r++) {
                /* tanh(-Inf) is finite */
                bool bad = r == 2 || (r == 4 && op != 5);
                assert_int_equal(faults[op * 80 + r], bad ? code[op] : 0);
            }
            assert_true(isnan(y[op][2 * 48 + 47]));
            free(y[op]);
        }
        free(a);
        free(b);
        free(w);
        be->ops->close(be);
    }
}

/* ---- mLSTM ------------------------------------------------------------------------------------------------------ */

typedef struct cell_data {
    uint32_t rows;
    float *q, *k, *v, *gates; /* [rows][NH dq], ..., [rows][2 NH] */
} cell_data;

static cell_data cell_random(const xl_backend_options *o, uint32_t rows, float i_mean, float f_mean, float spread)
{
    uint32_t NH = o->num_heads;
    cell_data d = {rows, normals((size_t)rows * NH * o->head_qk, 1), normals((size_t)rows * NH * o->head_qk, 1),
                   normals((size_t)rows * NH * o->head_v, 1), normals((size_t)rows * 2 * NH, spread)};
    for (uint32_t t = 0; t < rows; t++)
        for (uint32_t h = 0; h < 2 * NH; h++) d.gates[t * 2 * NH + h] += h < NH ? i_mean : f_mean;
    return d;
}

static void cell_free(cell_data *d)
{
    free(d->q);
    free(d->k);
    free(d->v);
    free(d->gates);
}

/* Feeds rows first .. of the data, cut into runs of the given lengths, to one store each (n_stores runs a pass) or all
 * to one store (sequential passes). Returns h [rows][Vd]; faults [rows]. */
static float *run_cell(xl_backend *be, const xl_backend_options *o, const cell_data *d, uint32_t first, uint32_t rows,
                       const xl_run *runs, uint32_t n_runs, uint32_t *faults)
{
    uint32_t Qd = o->num_heads * o->head_qk, Vd = o->num_heads * o->head_v, NH = o->num_heads;
    bool replay;
    xl_buffer *q = buffer(be, o->max_rows, Qd), *k = buffer(be, o->max_rows, Qd), *v = buffer(be, o->max_rows, Vd);
    xl_buffer *g = buffer(be, o->max_rows, 2 * NH), *h = buffer(be, o->max_rows, Vd);
    put(be, q, d->q + (size_t)first * Qd, rows, Qd);
    put(be, k, d->k + (size_t)first * Qd, rows, Qd);
    put(be, v, d->v + (size_t)first * Vd, rows, Vd);
    put(be, g, d->gates + (size_t)first * 2 * NH, rows, 2 * NH);
    fill(be, h, rows, Vd);
    xl_batch batch = batch_of(rows);
    batch.runs = runs;
    batch.n_runs = n_runs;
    xl_mlstm op = {h, q, k, v, g, 1, 15, 1e-6f, 77};
    assert_int_equal(be->ops->begin(be, &batch, &replay, NULL), 0);
    be->ops->mlstm(be, &op);
    assert_int_equal(be->ops->submit(be, faults, NULL), 0);
    float *y = get(be, h, (size_t)rows * Vd);
    be->ops->buffer_free(be, q);
    be->ops->buffer_free(be, k);
    be->ops->buffer_free(be, v);
    be->ops->buffer_free(be, g);
    be->ops->buffer_free(be, h);
    return y;
}

static xl_store *store(xl_backend *be)
{
    xl_store *s = NULL;
    assert_int_equal(be->ops->store_new(be, &s, NULL), 0);
    return s;
}

static uint8_t *store_bytes(xl_backend *be, const xl_store *s)
{
    uint8_t *bytes = malloc(be->ops->layout(be)->total_bytes);
    assert_int_equal(be->ops->store_read(be, s, bytes, NULL), 0);
    return bytes;
}

/* Value i of a row of n values; int8 rows end in their scale. */
static double element(const uint8_t *row, xlstm_dtype dtype, size_t i, size_t n)
{
    float x;
    double w;
    uint16_t h;
    switch (dtype) {
    case XLSTM_F64: memcpy(&w, row + 8 * i, 8); return w;
    case XLSTM_BF16: memcpy(&h, row + 2 * i, 2); return xl_bf16_to_f32(h);
    case XLSTM_I8: memcpy(&x, row + n, 4); return (float)(int8_t)row[i] * x;
    default: memcpy(&x, row + 4 * i, 4); return x;
    }
}

/* Largest difference of C and n relative to their largest value, and of m. */
static double state_distance(xl_backend *a, const uint8_t *A, xl_backend *b, const uint8_t *B)
{
    const xl_state_layout *la = a->ops->layout(a), *lb = b->ops->layout(b);
    double worst = 0;
    for (uint32_t h = 0; h < la->num_heads; h++) {
        double top = 1e-30, diff = 0, n_top = 1e-30, n_diff = 0;
        for (uint32_t r = 0; r < la->head_qk; r++) {
            const uint8_t *ra = A + xl_state_c_offset(la, 1, h) + r * la->c_row_bytes;
            const uint8_t *rb = B + xl_state_c_offset(lb, 1, h) + r * lb->c_row_bytes;
            for (uint32_t j = 0; j < la->head_v; j++) {
                double x = element(ra, la->dtype, j, la->head_v), y = element(rb, lb->dtype, j, lb->head_v);
                diff = fmax(diff, fabs(x - y));
                top = fmax(top, fabs(y));
            }
            double x = element(A + xl_state_n_offset(la, 1, h), la->n_dtype, r, 0);
            double y = element(B + xl_state_n_offset(lb, 1, h), lb->n_dtype, r, 0);
            n_diff = fmax(n_diff, fabs(x - y));
            n_top = fmax(n_top, fabs(y));
        }
        double m = element(A + xl_state_m_offset(la, 1, h), la->m_dtype, 0, 0);
        double want = element(B + xl_state_m_offset(lb, 1, h), lb->m_dtype, 0, 0);
        worst = fmax(worst, fmax(diff / top, n_diff / n_top));
        worst = fmax(worst, fabs(m - want) / (1 + fabs(want)));
    }
    return worst;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Error of h relative to the largest |h| of its row and head: what nine of ten rows and heads stay below, and the median
 * (h divides by a sum that may nearly cancel, so single rows may be far less accurate than the rest). */
static double h_distance(const float *a, const float *b, uint32_t rows, uint32_t heads, uint32_t dv, double *median)
{
    double *errors = malloc(rows * heads * sizeof *errors);
    for (uint32_t r = 0; r < rows * heads; r++) {
        double top = 1e-30, diff = 0;
        for (uint32_t j = 0; j < dv; j++) {
            double e = fabs((double)a[r * dv + j] - b[r * dv + j]);
            top = fmax(top, fabs(b[r * dv + j]));
            diff = e <= diff ? diff : e;
        }
        errors[r] = diff / top <= INFINITY ? diff / top : INFINITY;
    }
    qsort(errors, rows * heads, sizeof *errors, by_size);
    double most = errors[(rows * heads - 1) * 9 / 10];
    *median = errors[rows * heads / 2];
    free(errors);
    return most;
}

static xl_backend_options cell_options(uint32_t dq, uint32_t dv, uint32_t chunk, xlstm_dtype state_dtype)
{
    xl_backend_options o = plain;
    o.num_heads = 2;
    o.head_qk = dq;
    o.head_v = dv;
    o.chunk_size = chunk;
    o.state = state_dtype;
    return o;
}

static void test_cell_against_reference(void **state)
{
    (void)state;
    static const struct { uint32_t dq, dv; } dims[] = {{48, 96}, {64, 128}, {8, 16}, {5, 3}, {33, 300}};
    static const uint32_t chunks[] = {1, 7, 16, 64, 100};
    static const xlstm_dtype states[] = {XLSTM_F32, XLSTM_F32, XLSTM_BF16, XLSTM_I8};
    static const xlstm_dtype kernels[] = {XLSTM_DTYPE_DEFAULT, XLSTM_DTYPE_DEFAULT, XLSTM_BF16, XLSTM_F16};
    static const struct { float i, f, spread; } gates[] = {{-3, 4, 1}, {0, 0, 3}, {15, 15, 0.1f}, {-15, -15, 0.1f},
                                                           {50, 50, 1}, {-50, -50, 1}, {0, -60, 1}, {-10, 60, 20}};
    for (size_t v = 0; v < XL_COUNT(variants); v++)
        for (int round = 0; round < ROUNDS; round++) {
            size_t d = below(XL_COUNT(dims));
            xl_backend_options o = cell_options(dims[d].dq, dims[d].dv, chunks[below(5)], states[below(4)]);
            o.kernel = kernels[below(4)];
            if (below(4) == 0) o.activations = XLSTM_BF16;
            size_t g = below(XL_COUNT(gates));
            xl_backend *be = open_cpu(o, variants[v].mask), *ref = open_reference(o);
            if (be) {
                cell_data data = cell_random(&o, 75, gates[g].i, gates[g].f, gates[g].spread);
                uint32_t faults[80];
                /* three sequences at odd positions, two passes */
                xl_store *ours[3], *theirs[3];
                for (int s = 0; s < 3; s++) {
                    ours[s] = store(be);
                    theirs[s] = store(ref);
                }
                uint32_t a = 1 + below(40), b = 1 + below(30), rows = a + b + 1;
                for (int pass = 0; pass < 2; pass++) {
                    uint64_t p = pass ? a : 0;
                    xl_run mine[] = {{0, a, p, ours[0]}, {a, 1, 5 + p, ours[1]}, {a + 1, b, 3, ours[2]}}, his[3];
                    memcpy(his, mine, sizeof his);
                    for (int s = 0; s < 3; s++) his[s].store = theirs[s];
                    float *y = run_cell(be, &o, &data, 0, rows, mine, 3, faults);
                    for (uint32_t r = 0; r < rows; r++) assert_int_equal(faults[r], 0);
                    float *want = run_cell(ref, &o, &data, 0, rows, his, 3, faults);
                    /* the reference keeps its state in float64 */
                    double limit = o.activations == XLSTM_BF16 ? 8e-3 : 1e-5, median;
                    double e = h_distance(y, want, rows, o.num_heads, o.head_v, &median);
                    double most = o.state == XLSTM_F32 ? 5e-4 + 2 * limit : INFINITY;
                    if (o.state != XLSTM_F32) limit += 2e-3; /* a rounding may fall the other way */
                    if (!(e <= most && median <= limit))
                        printf("%s dq %u dv %u chunk %u state %s gates %zu kernel %s: h off by %.2g, median %.2g\n",
                               variants[v].name, o.head_qk, o.head_v, o.chunk_size, xlstm_dtype_name(o.state), g,
                               xlstm_dtype_name(o.kernel), e, median);
                    assert_true(e <= most && median <= limit);
                    free(y);
                    free(want);
                }
                for (int s = 0; s < 3; s++) {
                    uint8_t *A = store_bytes(be, ours[s]), *B = store_bytes(ref, theirs[s]);
                    double e = state_distance(be, A, ref, B);
                    double limit = o.state == XLSTM_F32 ? 3e-5 : 2e-2;
                    if (!(e <= limit)) printf("%s: state off by %g\n", variants[v].name, e);
                    assert_true(e <= limit);
                    free(A);
                    free(B);
                    be->ops->store_free(be, ours[s]);
                    ref->ops->store_free(ref, theirs[s]);
                }
                cell_free(&data);
                be->ops->close(be);
            }
            ref->ops->close(ref);
        }
}

/* Bit for bit: cut at chunk borders, in company, on any number of threads. Within rounding: token by token. */
static void test_cell_cuts_and_company(void **state)
{
    (void)state;
    static const uint32_t chunks[] = {7, 16, 64};
    static const xlstm_dtype states[] = {XLSTM_F32, XLSTM_BF16, XLSTM_I8};
    for (size_t v = 0; v < XL_COUNT(variants); v++)
        for (int round = 0; round < ROUNDS / 4; round++) {
            xl_backend_options o = cell_options(below(2) ? 48 : 64, below(2) ? 96 : 272, chunks[below(3)],
                                                states[round % 3]);
            uint32_t rows = 70, Vd = o.num_heads * o.head_v, faults[80];
            o.threads = 1;
            xl_backend *be = open_cpu(o, variants[v].mask);
            if (!be) continue;
            cell_data data = cell_random(&o, rows, -2, 3, 2);
            xl_store *whole = store(be);
            xl_run all = {0, rows, 0, whole};
            float *want = run_cell(be, &o, &data, 0, rows, &all, 1, faults);
            uint8_t *want_state = store_bytes(be, whole);
            be->ops->store_free(be, whole);
            be->ops->close(be);

            static const uint32_t counts[] = {1, 2, 3, 8};
            for (size_t t = 0; t < XL_COUNT(counts); t++) {
                o.threads = counts[t];
                be = open_cpu(o, variants[v].mask);
                xl_store *cut = store(be), *other = store(be);
                uint32_t at = o.chunk_size * (1 + below((rows - 1) / o.chunk_size));
                float *first = run_cell(be, &o, &data, 0, at, (xl_run[]){{0, at, 0, cut}}, 1, faults);
                /* second part with another sequence in the same pass: rows are shared out by the runs */
                xl_run runs[] = {{0, rows - at, at, cut}};
                float *second = run_cell(be, &o, &data, at, rows - at, runs, 1, faults);
                assert_true(memcmp(first, want, (size_t)at * Vd * 4) == 0);
                assert_true(memcmp(second, want + (size_t)at * Vd, (size_t)(rows - at) * Vd * 4) == 0);
                uint8_t *got = store_bytes(be, cut);
                assert_true(memcmp(got, want_state, be->ops->layout(be)->total_bytes) == 0);
                free(got);
                free(first);
                free(second);
                /* company: the first half of the rows is the sequence, the rest belongs to another */
                be->ops->store_zero(be, cut, NULL);
                uint32_t half = 1 + below(rows - 2);
                xl_run pair[] = {{0, half, 0, cut}, {half, rows - half, 11, other}};
                first = run_cell(be, &o, &data, 0, rows, pair, 2, faults);
                /* equal up to the last chunk border; the piece after it is cut short at another place */
                uint32_t same = half / o.chunk_size * o.chunk_size;
                assert_true(memcmp(first, want, (size_t)same * Vd * 4) == 0);
                be->ops->store_zero(be, cut, NULL);
                second = run_cell(be, &o, &data, 0, half, pair, 1, faults);
                assert_true(memcmp(first, second, (size_t)half * Vd * 4) == 0);
                free(first);
                free(second);
                be->ops->store_free(be, cut);
                be->ops->store_free(be, other);
                /* token by token */
                if (o.state == XLSTM_F32) {
                    xl_store *stepped = store(be);
                    for (uint32_t r = 0; r < rows; r++) {
                        xl_run one = {0, 1, r, stepped};
                        float *y = run_cell(be, &o, &data, r, 1, &one, 1, faults);
                        double median, e = h_distance(y, want + (size_t)r * Vd, 1, o.num_heads, o.head_v, &median);
                        assert_true(e <= 1e-4);
                        free(y);
                    }
                    uint8_t *end = store_bytes(be, stepped);
                    assert_true(state_distance(be, end, be, want_state) <= 1e-4);
                    free(end);
                    be->ops->store_free(be, stepped);
                }
                be->ops->close(be);
            }
            free(want);
            free(want_state);
            cell_free(&data);
        }
}

/* The stabiliser itself is the same number whichever form computed it. */
static void test_cell_faults(void **state)
{
    (void)state;
    for (size_t v = 0; v < XL_COUNT(variants); v++) {
        xl_backend_options o = cell_options(8, 16, 16, XLSTM_F32);
        xl_backend *be = open_cpu(o, variants[v].mask);
        if (!be) continue;
        for (int kind = 0; kind < 4; kind++) {
            cell_data data = cell_random(&o, 20, 0, 3, 1);
            uint32_t faults[80];
            float bad = kind & 1 ? NAN : -NAN;
            data.gates[9 * 4 + (kind & 2 ? 3 : 0)] = bad;
            xl_store *s = store(be);
            xl_run runs[] = {{0, 20, 0, s}};
            free(run_cell(be, &o, &data, 0, 20, runs, 1, faults));
            for (uint32_t r = 0; r < 20; r++) assert_int_equal(faults[r], r < 9 ? 0 : 77);
            be->ops->store_free(be, s);
            cell_free(&data);
        }
        be->ops->close(be);
    }
}

/* A NaN among the values of a row of C stays one in the state, wherever it stands and however the state is stored, in steps
 * and in chunks. */
static void test_cell_keeps_nan(void **state)
{
    (void)state;
    static const xlstm_dtype dtypes[] = {XLSTM_F32, XLSTM_BF16, XLSTM_I8};
    const uint32_t head_v = 37;
    for (size_t v = 0; v <= XL_COUNT(variants); v++)
        for (size_t d = 0; d < XL_COUNT(dtypes); d++) {
            xl_backend_options o = cell_options(8, head_v, 16, dtypes[d]);
            xl_backend *be = NULL;
            if (v < XL_COUNT(variants))
                be = open_cpu(o, variants[v].mask);
            else
                assert_int_equal(xl_reference_backend.open(&be, &o, NULL), 0);
            if (!be) continue;
            for (uint32_t at = 0; at < head_v; at += 9)
                for (uint32_t rows = 1; rows <= 20; rows += 19) {
                    cell_data data = cell_random(&o, rows, 0, 3, 1);
                    uint32_t faults[80];
                    data.v[at] = NAN;
                    xl_store *s = store(be);
                    xl_run runs[] = {{0, rows, 0, s}};
                    free(run_cell(be, &o, &data, 0, rows, runs, 1, faults));
                    const xl_state_layout *l = be->ops->layout(be);
                    uint8_t *bytes = store_bytes(be, s);
                    double x = element(bytes + xl_state_c_offset(l, 1, 0), dtypes[d], at, head_v);
                    if (!isnan(x)) printf("variant %zu, %s: column %u of C is %g\n", v, xlstm_dtype_name(dtypes[d]), at, x);
                    assert_true(isnan(x));
                    free(bytes);
                    be->ops->store_free(be, s);
                    cell_free(&data);
                }
            be->ops->close(be);
        }
}

static void test_open(void **state)
{
    (void)state;
    xl_backend *be;
    xlstm_error err;
    xl_backend_options o = plain;
    o.cpu_mask = 1u << 30;
    assert_int_equal(xl_cpu_backend.open(&be, &o, &err), XLSTM_E_UNSUPPORTED);
    assert_true(be == NULL && strstr(err.message, "0x40000000"));
    o = plain;
    o.state = XLSTM_F64;
    assert_int_equal(xl_cpu_backend.open(&be, &o, &err), XLSTM_E_UNSUPPORTED);
    o = plain;
    assert_int_equal(xl_cpu_backend.open(&be, &o, &err), 0);
    char name[64];
    be->ops->describe(be, name, sizeof name);
    printf("%s, seed %llx\n", name, (unsigned long long)seed);
    for (size_t v = 0; v < XL_COUNT(variants); v++) {
        xl_backend *each = open_cpu(plain, variants[v].mask);
        if (!each) printf("skip: %s is not on this machine\n", variants[v].name);
        if (each) each->ops->close(each);
    }
    be->ops->close(be);
}

#ifdef STANDALONE
#define TEST(f) {#f, f}
int main(void)
{
    static const struct { const char *name; void (*fn)(void **); } tests[] = {
#else
#define TEST(f) cmocka_unit_test(f)
int main(void)
{
    const struct CMUnitTest tests[] = {
#endif
        TEST(test_open),
        TEST(test_buffers_are_written_and_read),
        TEST(test_products),
        TEST(test_quantised_products),
        TEST(test_group_and_tied),
        TEST(test_row_operations),
        TEST(test_subnormals),
        TEST(test_faults),
        TEST(test_cell_against_reference),
        TEST(test_cell_cuts_and_company),
        TEST(test_cell_faults),
        TEST(test_cell_keeps_nan),
    };
#ifdef STANDALONE
    for (size_t i = 0; i < XL_COUNT(tests); i++) {
        tests[i].fn(NULL);
        printf("ok %s\n", tests[i].name);
    }
    return 0;
#else
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
#endif
}
