/* test_quantize.c — the encoders of block formats: what importance does, that they beat rounding to the range, that scales
 * of every magnitude work, and that nothing depends on neighbours. Layouts and ggml's own results are in test_dtype.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "make_model.h"
#include "quantize.h"

enum { N = 256 * 16 };

static const xlstm_dtype formats[] = {XLSTM_Q8_0, XLSTM_Q6_K, XLSTM_Q5_K, XLSTM_Q4_K, XLSTM_Q4_0};

/* sum w (x - y)^2 / sum w x^2 after a round trip. */
static double loss(const float *x, const float *importance, const float *weights, xlstm_dtype dtype)
{
    static uint8_t bytes[N * 4];
    static float y[N];
    double error = 0, power = 0;
    xl_quantize_row(bytes, x, dtype, N, importance);
    xl_decode_row(y, bytes, dtype, N);
    for (int i = 0; i < N; i++) {
        error += (double)weights[i] * (x[i] - y[i]) * (x[i] - y[i]);
        power += (double)weights[i] * x[i] * x[i];
    }
    return error / power;
}

static void fill(float *x, float *w, float *ones, uint64_t seed)
{
    printf("seed %llu\n", (unsigned long long)seed);
    for (int i = 0; i < N; i++) {
        x[i] = 0.02f * mk_normal(&seed);
        w[i] = expf(2 * mk_normal(&seed));
        ones[i] = 1;
    }
}

static void test_importance(void **state)
{
    (void)state;
    static float x[N], w[N], ones[N];
    fill(x, w, ones, 1);
    for (size_t f = 0; f < XL_COUNT(formats); f++) {
        const double blind = loss(x, NULL, w, formats[f]), seeing = loss(x, w, w, formats[f]);
        const double even = loss(x, NULL, ones, formats[f]), bent = loss(x, w, ones, formats[f]);
        printf("%-5s weighted loss %.3e, with importance %.3e (even %.3e, %.3e)\n", xlstm_dtype_name(formats[f]), blind, seeing,
               even, bent);
        if (formats[f] == XLSTM_Q8_0) {
            assert_true(seeing == blind);
            continue;
        }
        assert_true(seeing < 0.9 * blind);
        assert_true(bent < 2 * even); /* and the rest is not given up */
    }
}

/* All alike is the same as none, except that the plain Q4_0 is ggml's and all alike asks for a fit. */
static void test_even_importance(void **state)
{
    (void)state;
    static float x[N], w[N], ones[N];
    static uint8_t a[N * 4], b[N * 4];
    fill(x, w, ones, 2);
    for (size_t f = 0; f < XL_COUNT(formats); f++) {
        size_t bytes;
        assert_true(xl_dtype_row_bytes(&bytes, formats[f], N));
        if (formats[f] == XLSTM_Q4_0) {
            assert_true(loss(x, ones, ones, formats[f]) < 0.93 * loss(x, NULL, ones, formats[f]));
            continue;
        }
        xl_quantize_row(a, x, formats[f], N, NULL);
        xl_quantize_row(b, x, formats[f], N, ones);
        assert_true(loss(x, ones, ones, formats[f]) <= 1.001 * loss(x, NULL, ones, formats[f]));
        memset(w, 0, sizeof(w)); /* nothing was ever seen: nothing is preferred */
        xl_quantize_row(b, x, formats[f], N, w);
        assert_memory_equal(a, b, bytes);
    }
}

/* Values that lie on a grid of the format come back exactly, or nearly so where the factor is a half. */
static void test_grids(void **state)
{
    (void)state;
    static float x[N], ones[N];
    uint64_t seed = 3;
    for (int i = 0; i < N; i++) ones[i] = 1;
    static const struct {
        xlstm_dtype dtype;
        int low, high;
    } cases[] = {{XLSTM_Q6_K, -32, 31}, {XLSTM_Q5_K, 0, 31}, {XLSTM_Q4_K, 0, 15}, {XLSTM_Q4_K, -15, 0}, {XLSTM_Q4_0, -8, 7}};
    for (size_t c = 0; c < XL_COUNT(cases); c++) {
        const int range = cases[c].high - cases[c].low;
        for (int i = 0; i < N; i++) { /* both ends in every group, so that the grid is known */
            int digit = cases[c].low + (i % 16 == 0 ? 0 : i % 16 == 1 ? range : (int)(mk_uniform(&seed) * (range + 1)));
            x[i] = 0.0625f * (float)digit;
        }
        const double l = loss(x, ones, ones, cases[c].dtype);
        printf("%-5s %d..%d loss %.1e\n", xlstm_dtype_name(cases[c].dtype), cases[c].low, cases[c].high, l);
        assert_true(l < 1e-6);
    }
}

/* Over 20 orders of two (below, halves run out of bits), and with one value far out in each row, errors stay in proportion. */
static void test_magnitudes(void **state)
{
    (void)state;
    static float x[N], w[N], ones[N], y[N];
    static uint8_t bytes[N * 4];
    fill(x, w, ones, 4);
    for (size_t f = 0; f < XL_COUNT(formats); f++) {
        const double usual = loss(x, NULL, ones, formats[f]);
        for (int e = -3; e <= 17; e++) {
            static float scaled[N];
            for (int i = 0; i < N; i++) scaled[i] = ldexpf(x[i], e);
            const double l = loss(scaled, NULL, ones, formats[f]);
            if (l > 1.15 * usual) fail_msg("%s at 2^%d: loss %g, usually %g", xlstm_dtype_name(formats[f]), e, l, usual);
        }
        memset(y, 0, sizeof(y));
        for (int i = 0; i < N; i += 256) y[i + 7] = -3.0f;
        xl_quantize_row(bytes, y, formats[f], N, NULL);
        xl_decode_row(w, bytes, formats[f], N);
        for (int i = 0; i < N; i++) assert_true(fabsf(w[i] - y[i]) < 3e-3f);
    }
}

/* A block's bytes depend on its own values and importances alone. */
static void test_blocks_are_independent(void **state)
{
    (void)state;
    static float x[N], w[N], ones[N];
    static uint8_t all[N * 4], one[256 * 4];
    fill(x, w, ones, 5);
    for (size_t f = 0; f < XL_COUNT(formats); f++) {
        size_t bytes;
        xl_quantize_row(all, x, formats[f], N, w);
        for (size_t i = 0; i < N; i += 256) {
            assert_true(xl_dtype_row_bytes(&bytes, formats[f], 256));
            xl_quantize_row(one, x + i, formats[f], 256, w + i);
            assert_memory_equal(one, all + i / 256 * bytes, bytes);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_importance), cmocka_unit_test(test_even_importance), cmocka_unit_test(test_grids),
        cmocka_unit_test(test_magnitudes), cmocka_unit_test(test_blocks_are_independent),
    };
    return cmocka_run_group_tests_name("quantize", tests, NULL, NULL);
}
