/*
 * test_sampler.c — the sampler against a naive oracle that sorts everything in double precision: which ids may be
 * chosen, how often, in which order the rules apply; ties, forbidden ids, hostile numbers, copies, seeds.
 */
#include "xlstm.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t noise_state;

static uint64_t noise(void)
{
    noise_state = noise_state * 6364136223846793005u + 1442695040888963407u;
    uint64_t x = noise_state >> 33;
    return x ^ (x >> 15);
}

static float noise_float(float low, float high)
{
    return low + (high - low) * (float)(noise() % 100003) / 100003.0f;
}

static xlstm_sampler *make(uint32_t n, xlstm_sampler_options options)
{
    xlstm_sampler *s = NULL;
    xlstm_error err = {0};
    if (xlstm_sampler_new(&s, n, &options, &err))
        fail_msg("%s", err.message);
    return s;
}

static int32_t choose(xlstm_sampler *s, const float *logits)
{
    int32_t id = -1;
    xlstm_error err = {0};
    if (xlstm_sampler_choose(&id, s, logits, &err))
        fail_msg("%s", err.message);
    return id;
}

/* ---- the oracle ------------------------------------------------------------------------------------------------- */

static double *oracle_values;

static int by_rank(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (oracle_values[i] != oracle_values[j])
        return oracle_values[i] > oracle_values[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* Probabilities after every rule; `history` [n_history] are accepted ids. */
static void oracle(double *p, uint32_t n, const float *logits, const xlstm_sampler_options *o, const int32_t *history,
                   size_t n_history)
{
    double *x = calloc(n, sizeof *x);
    int32_t *order = calloc(n, sizeof *order);
    unsigned *count = calloc(n, sizeof *count);
    for (uint32_t i = 0; i < n; i++) {
        x[i] = logits[i];
        order[i] = (int32_t)i;
    }
    for (size_t i = 0; i < o->n_bias; i++)
        x[o->bias[i].id] += o->bias[i].bias;
    size_t from = o->penalty_window && n_history > o->penalty_window ? n_history - o->penalty_window : 0;
    for (size_t i = from; i < n_history; i++)
        count[history[i]]++;
    double repetition = o->repetition_penalty == 0.0f ? 1.0 : o->repetition_penalty;
    for (uint32_t i = 0; i < n; i++) {
        if (!count[i])
            continue;
        x[i] = x[i] > 0 ? x[i] / repetition : x[i] * repetition;
        x[i] -= (double)o->frequency_penalty * count[i] + o->presence_penalty;
    }
    oracle_values = x;
    qsort(order, n, sizeof *order, by_rank);
    double largest = x[order[0]], total = 0, sum = 0;
    uint32_t kept = o->top_k && o->top_k < n ? o->top_k : n;
    for (uint32_t i = 0; i < n; i++)
        p[i] = 0;
    for (uint32_t i = 0; i < kept; i++) {
        p[order[i]] = exp((x[order[i]] - largest) / o->temperature);
        total += p[order[i]];
    }
    if (o->top_p > 0 && o->top_p < 1) {
        uint32_t i = 0;
        while (i < kept && sum < (double)o->top_p * total)
            sum += p[order[i++]];
        for (uint32_t j = i; j < kept; j++)
            p[order[j]] = 0;
    }
    total = 0;
    for (uint32_t i = 0; i < n; i++) {
        if (p[i] < o->min_p)
            p[i] = 0;
        total += p[i];
    }
    for (uint32_t i = 0; i < n; i++)
        p[i] /= total;
    free(x);
    free(order);
    free(count);
}

/* Draws many times and compares with the oracle: ids of no probability never come; the chi-square statistic of the
 * others stays below mean + 6 standard deviations. */
static void check_distribution(uint32_t n, const float *logits, const xlstm_sampler_options *options,
                               const int32_t *history, size_t n_history, unsigned draws)
{
    double *p = calloc(n, sizeof *p);
    unsigned *hits = calloc(n, sizeof *hits);
    oracle(p, n, logits, options, history, n_history);
    xlstm_sampler *s = make(n, *options);
    for (size_t i = 0; i < n_history; i++)
        xlstm_sampler_accept(s, history[i]);
    for (unsigned i = 0; i < draws; i++) {
        int32_t id = choose(s, logits);
        assert_in_range(id, 0, n - 1);
        if (p[id] == 0)
            fail_msg("id %d was chosen, its probability is 0", id);
        hits[id]++;
    }
    double chi = 0, small_expected = 0, small_hits = 0;
    unsigned cells = 0;
    for (uint32_t i = 0; i < n; i++) {
        double expected = p[i] * draws;
        if (expected < 5) { /* pooled into one cell */
            small_expected += expected;
            small_hits += hits[i];
            continue;
        }
        chi += (hits[i] - expected) * (hits[i] - expected) / expected;
        cells++;
    }
    if (small_expected >= 5) {
        chi += (small_hits - small_expected) * (small_hits - small_expected) / small_expected;
        cells++;
    }
    double degrees = cells > 1 ? cells - 1 : 1;
    if (chi > degrees + 6 * sqrt(2 * degrees) + 6)
        fail_msg("chi-square %.1f at %.0f degrees of freedom", chi, degrees);
    xlstm_sampler_free(s);
    free(p);
    free(hits);
}

/* ---- tests ------------------------------------------------------------------------------------------------------ */

static void test_greedy(void **state)
{
    (void)state;
    float logits[] = {1, 5, -2, 5, 5, 9};
    xlstm_sampler *s = make(5, (xlstm_sampler_options){0});
    assert_int_equal(choose(s, logits), 1); /* the lowest of three; 5 is beyond n_tokens */
    xlstm_sampler_free(s);

    xlstm_error err;
    assert_int_equal(xlstm_sampler_new(&s, 6, NULL, &err), XLSTM_OK); /* NULL options: greedy */
    assert_int_equal(choose(s, logits), 5);
    xlstm_sampler_free(s);

    float hidden[] = {-INFINITY, -FLT_MAX, -INFINITY};
    s = make(3, (xlstm_sampler_options){.temperature = 0});
    assert_int_equal(choose(s, hidden), 1);
    xlstm_sampler_free(s);
    float zeros[] = {-0.0f, 0.0f};
    s = make(2, (xlstm_sampler_options){0});
    assert_int_equal(choose(s, zeros), 0);
    xlstm_sampler_free(s);
}

static void test_top_k_one_is_greedy(void **state)
{
    (void)state;
    noise_state = 7;
    for (int round = 0; round < 200; round++) {
        float logits[300];
        for (int i = 0; i < 300; i++)
            logits[i] = (float)(int)(noise() % 40); /* many ties */
        xlstm_sampler *greedy = make(300, (xlstm_sampler_options){0});
        xlstm_sampler *one = make(300, (xlstm_sampler_options){.temperature = 2, .top_k = 1, .seed = noise()});
        xlstm_sampler *nucleus = make(300, (xlstm_sampler_options){.temperature = 2, .top_p = 1e-6f, .seed = noise()});
        int32_t expected = choose(greedy, logits);
        assert_int_equal(choose(one, logits), expected);
        assert_int_equal(choose(nucleus, logits), expected);
        xlstm_sampler_free(greedy);
        xlstm_sampler_free(one);
        xlstm_sampler_free(nucleus);
    }
}

static void test_plain_distribution(void **state)
{
    (void)state;
    float logits[] = {0, 1, 2, 3, -1, -50, -INFINITY, 2};
    check_distribution(8, logits, &(xlstm_sampler_options){.temperature = 1, .seed = 1}, NULL, 0, 50000);
    check_distribution(8, logits, &(xlstm_sampler_options){.temperature = 0.5f, .seed = 2}, NULL, 0, 50000);
    check_distribution(8, logits, &(xlstm_sampler_options){.temperature = 30, .seed = 3}, NULL, 0, 50000);
    float flat[1000] = {0};
    check_distribution(1000, flat, &(xlstm_sampler_options){.temperature = 1, .seed = 4}, NULL, 0, 50000);
}

/* p exactly at a border: with weights 1/2, 1/4, 1/8, ... every partial sum is exact. */
static void test_top_p_keeps_the_crossing_token(void **state)
{
    (void)state;
    const float ln2 = 0.693147181f;
    float logits[12];
    for (int i = 0; i < 12; i++)
        logits[i] = -ln2 * (float)i;
    struct {
        float p;
        int highest;
    } const cases[] = {{0.4f, 0}, {0.51f, 1}, {0.74f, 1}, {0.76f, 2}, {0.87f, 2}, {0.88f, 3}, {0.99f, 6}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        xlstm_sampler *s = make(12, (xlstm_sampler_options){.temperature = 1, .top_p = cases[c].p, .seed = 5});
        int highest = 0;
        for (int i = 0; i < 20000; i++) {
            int32_t id = choose(s, logits);
            highest = id > highest ? id : highest;
        }
        assert_int_equal(highest, cases[c].highest);
        xlstm_sampler_free(s);
    }
}

static void test_ties_at_the_borders(void **state)
{
    (void)state;
    float logits[64];
    for (int i = 0; i < 64; i++)
        logits[i] = i < 10 ? -3.0f : 1.0f; /* 54 equal ones from id 10 */
    check_distribution(64, logits, &(xlstm_sampler_options){.temperature = 1, .top_k = 7, .seed = 6}, NULL, 0, 20000);
    check_distribution(64, logits, &(xlstm_sampler_options){.temperature = 1, .top_p = 0.3f, .seed = 7}, NULL, 0, 20000);
    xlstm_sampler *s = make(64, (xlstm_sampler_options){.temperature = 1, .top_k = 7, .seed = 8});
    for (int i = 0; i < 1000; i++)
        assert_in_range(choose(s, logits), 10, 16);
    xlstm_sampler_free(s);
}

static void test_random_settings(void **state)
{
    (void)state;
    noise_state = 20240517;
    printf("random settings from seed %llu\n", (unsigned long long)noise_state);
    for (int round = 0; round < 300; round++) {
        uint32_t n = 2 + (uint32_t)(noise() % 200);
        float *logits = calloc(n, sizeof *logits);
        float spread = noise_float(0.1f, 8.0f);
        for (uint32_t i = 0; i < n; i++)
            logits[i] = noise() % 10 == 0 ? -INFINITY : noise_float(-spread, spread);
        logits[noise() % n] = spread;
        xlstm_logit_bias bias[3];
        for (int i = 0; i < 3; i++)
            bias[i] = (xlstm_logit_bias){(int32_t)(noise() % n), noise() % 5 == 0 ? -INFINITY : noise_float(-2, 2)};
        int32_t history[40];
        for (int i = 0; i < 40; i++)
            history[i] = (int32_t)(noise() % n);
        xlstm_sampler_options o = {.temperature = noise_float(0.3f, 2.5f), .seed = noise()};
        if (noise() % 2)
            o.top_k = 1 + (uint32_t)(noise() % (n + 5));
        if (noise() % 2)
            o.top_p = noise_float(0.05f, 0.99f);
        if (noise() % 2)
            o.min_p = noise_float(0.001f, 0.5f);
        if (noise() % 2)
            o.repetition_penalty = noise_float(0.8f, 1.6f);
        if (noise() % 2)
            o.frequency_penalty = noise_float(-0.5f, 1.0f);
        if (noise() % 2)
            o.presence_penalty = noise_float(-0.5f, 1.0f);
        if (noise() % 2)
            o.penalty_window = 1 + (uint32_t)(noise() % 50);
        if (noise() % 2 && n > 3) {
            o.bias = bias;
            o.n_bias = 3;
        }
        check_distribution(n, logits, &o, history, 40, 3000);
        free(logits);
    }
}

/* Rules in the documented order: each pair of neighbours is exchanged in a case where that would show. */
static void test_order(void **state)
{
    (void)state;
    /* Bias comes before the repetition penalty: (1 + 3) / 2 = 2 < 2.5; the other way round 1 / 2 + 3 wins. */
    xlstm_logit_bias bias = {0, 3.0f};
    float logits[] = {1.0f, 2.5f, -9.0f};
    xlstm_sampler *s = make(3, (xlstm_sampler_options){.repetition_penalty = 2, .bias = &bias, .n_bias = 1});
    assert_int_equal(choose(s, logits), 0);
    xlstm_sampler_accept(s, 0);
    assert_int_equal(choose(s, logits), 1);
    xlstm_sampler_free(s);

    /* Temperature comes before top-p: at T = 1 one token holds 0.95, at T = 4 it holds 0.52. */
    float two[] = {3.0f, 0.0f};
    s = make(2, (xlstm_sampler_options){.temperature = 4, .top_p = 0.8f, .seed = 1});
    int second = 0;
    for (int i = 0; i < 1000; i++)
        second += choose(s, two) == 1;
    assert_in_range(second, 250, 400); /* 1 / (1 + e^0.75) = 0.32 */
    xlstm_sampler_free(s);

    /* top-p is of what top-k left: of weights 4 3 2 1 1 the first is 4 of 7 after top-2, but 4 of 11 before. */
    float five[5];
    for (int i = 0; i < 5; i++)
        five[i] = logf((float[]){4, 3, 2, 1, 1}[i]);
    s = make(5, (xlstm_sampler_options){.temperature = 1, .top_k = 2, .top_p = 0.5f, .seed = 3});
    for (int i = 0; i < 500; i++)
        assert_int_equal(choose(s, five), 0);
    xlstm_sampler_free(s);
}

static void test_penalties_and_window(void **state)
{
    (void)state;
    float logits[] = {2.0f, 1.9f, -1.0f};
    xlstm_sampler *s = make(3, (xlstm_sampler_options){.presence_penalty = 0.5f, .penalty_window = 2});
    assert_int_equal(choose(s, logits), 0);
    xlstm_sampler_accept(s, 0);
    assert_int_equal(choose(s, logits), 1);
    xlstm_sampler_accept(s, 2);
    xlstm_sampler_accept(s, 2); /* 0 has left the window */
    assert_int_equal(choose(s, logits), 0);
    xlstm_sampler_accept(s, 5); /* ids out of range are no concern of the penalties */
    xlstm_sampler_accept(s, -1);
    assert_int_equal(choose(s, logits), 0);
    xlstm_sampler_free(s);

    /* Frequency counts occurrences: three times 0.4 passes the gap of 1. */
    float gap[] = {1.0f, 0.0f};
    s = make(2, (xlstm_sampler_options){.frequency_penalty = 0.4f});
    for (int i = 0; i < 2; i++) {
        xlstm_sampler_accept(s, 0);
        assert_int_equal(choose(s, gap), 0);
    }
    xlstm_sampler_accept(s, 0);
    assert_int_equal(choose(s, gap), 1);
    xlstm_sampler_free(s);

    /* A negative logit is multiplied, so the penalty always pushes down. */
    float negative[] = {-1.0f, -1.5f};
    s = make(2, (xlstm_sampler_options){.repetition_penalty = 2});
    xlstm_sampler_accept(s, 0);
    assert_int_equal(choose(s, negative), 1);
    xlstm_sampler_free(s);
}

static void test_bias_forbids_and_forces(void **state)
{
    (void)state;
    xlstm_logit_bias bias[] = {{0, -INFINITY}, {2, 1000.0f}};
    float logits[] = {50, 1, 1, 1};
    xlstm_sampler *s = make(4, (xlstm_sampler_options){.temperature = 1, .bias = bias, .n_bias = 2});
    bias[1].bias = 0; /* the sampler has its own copy */
    for (int i = 0; i < 100; i++)
        assert_int_equal(choose(s, logits), 2);
    xlstm_sampler_free(s);
}

static void test_ids_beyond_the_vocabulary(void **state)
{
    (void)state;
    float logits[100];
    for (int i = 0; i < 100; i++)
        logits[i] = i < 90 ? 0.0f : 80.0f;
    logits[95] = NAN; /* padding rows are not even looked at */
    for (int kind = 0; kind < 3; kind++) {
        xlstm_sampler *s = make(90, (xlstm_sampler_options){.temperature = 1, .top_k = kind == 1 ? 20 : 0,
                                                            .top_p = kind == 2 ? 0.9f : 0});
        for (int i = 0; i < 2000; i++)
            assert_in_range(choose(s, logits), 0, 89);
        xlstm_sampler_free(s);
    }
}

static void test_nonfinite(void **state)
{
    (void)state;
    const float bad[] = {NAN, -NAN, INFINITY};
    for (int b = 0; b < 3; b++) {
        for (int kind = 0; kind < 3; kind++) {
            float logits[70];
            for (int i = 0; i < 70; i++)
                logits[i] = (float)i;
            logits[33] = bad[b];
            xlstm_logit_bias bias = {33, -INFINITY}; /* does not hide it */
            xlstm_sampler *s = make(70, (xlstm_sampler_options){.temperature = kind ? 1 : 0,
                                                                .top_k = kind == 2 ? 3 : 0,
                                                                .bias = &bias,
                                                                .n_bias = 1});
            int32_t id = 5;
            xlstm_error err = {0};
            assert_int_equal(xlstm_sampler_choose(&id, s, logits, &err), XLSTM_E_NONFINITE);
            assert_non_null(strstr(err.message, "33"));
            assert_int_equal(xlstm_sampler_choose(&id, s, logits, NULL), XLSTM_E_NONFINITE);
            xlstm_sampler_free(s);
        }
    }
    float none[] = {-INFINITY, -INFINITY};
    xlstm_sampler *s = make(2, (xlstm_sampler_options){.temperature = 1});
    int32_t id;
    xlstm_error err;
    assert_int_equal(xlstm_sampler_choose(&id, s, none, &err), XLSTM_E_ARGUMENT);
    xlstm_sampler_free(s);
}

static void test_extreme_numbers(void **state)
{
    (void)state;
    float logits[] = {FLT_MAX, -FLT_MAX, FLT_MAX, 0};
    const float temperatures[] = {1e-45f, 1e-20f, 1.0f, 1e20f, FLT_MAX};
    for (size_t t = 0; t < 5; t++) {
        xlstm_sampler *s = make(4, (xlstm_sampler_options){.temperature = temperatures[t], .seed = 9, .top_p = 0.9f,
                                                           .repetition_penalty = 1e-30f, .presence_penalty = FLT_MAX});
        xlstm_sampler_accept(s, 3);
        for (int i = 0; i < 200; i++)
            assert_in_range(choose(s, logits), 0, 3);
        xlstm_sampler_free(s);
    }
    xlstm_sampler *s = make(1, (xlstm_sampler_options){.temperature = 1, .top_k = 5, .top_p = 0.5f, .min_p = 1});
    assert_int_equal(choose(s, logits), 0);
    xlstm_sampler_free(s);
}

static void test_bad_options(void **state)
{
    (void)state;
    xlstm_logit_bias high = {9, 1}, low = {-1, 1}, nan_bias = {0, NAN}, inf_bias = {0, INFINITY};
    const xlstm_sampler_options bad[] = {
        {.temperature = -1},          {.temperature = NAN},       {.temperature = INFINITY},
        {.top_p = -0.1f},             {.top_p = 1.1f},            {.top_p = NAN},
        {.min_p = -0.1f},             {.min_p = 2},               {.repetition_penalty = -1},
        {.repetition_penalty = NAN},  {.frequency_penalty = NAN}, {.presence_penalty = INFINITY},
        {.bias = &high, .n_bias = 1}, {.bias = &low, .n_bias = 1}, {.bias = &nan_bias, .n_bias = 1},
        {.bias = &inf_bias, .n_bias = 1},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        xlstm_sampler *s = (xlstm_sampler *)1;
        xlstm_error err = {0};
        assert_int_equal(xlstm_sampler_new(&s, 9, &bad[i], &err), XLSTM_E_ARGUMENT);
        assert_null(s);
        assert_int_equal(err.code, XLSTM_E_ARGUMENT);
        assert_true(strlen(err.message) > 10);
    }
    xlstm_sampler *s;
    assert_int_equal(xlstm_sampler_new(&s, 0, NULL, NULL), XLSTM_E_ARGUMENT);
    xlstm_sampler_free(NULL);
}

static void test_seed_and_copy(void **state)
{
    (void)state;
    noise_state = 11;
    float logits[500];
    for (int i = 0; i < 500; i++)
        logits[i] = noise_float(-2, 2);
    xlstm_sampler_options o = {.temperature = 1, .top_p = 0.95f, .frequency_penalty = 0.1f, .penalty_window = 16,
                               .seed = 1234};
    xlstm_sampler *a = make(500, o), *b = make(500, o);
    o.seed = 1235;
    xlstm_sampler *other = make(500, o);
    int differ = 0;
    for (int i = 0; i < 300; i++) {
        int32_t id = choose(a, logits);
        assert_int_equal(choose(b, logits), id);
        differ += choose(other, logits) != id;
        xlstm_sampler_accept(a, id);
        xlstm_sampler_accept(b, id);
    }
    assert_true(differ > 200);

    xlstm_sampler *copy = NULL;
    assert_int_equal(xlstm_sampler_copy(&copy, a, NULL), XLSTM_OK);
    xlstm_sampler_free(a); /* the copy stands alone */
    for (int i = 0; i < 300; i++) {
        int32_t id = choose(copy, logits);
        assert_int_equal(choose(b, logits), id);
        xlstm_sampler_accept(copy, id);
        xlstm_sampler_accept(b, id);
    }
    xlstm_sampler_free(copy);
    xlstm_sampler_free(b);
    xlstm_sampler_free(other);
}

/* The choice of a filter does not shift the random sequence: one number a call. */
static void test_one_draw_a_call(void **state)
{
    (void)state;
    float wide[50] = {0}, narrow[50] = {0};
    narrow[7] = 60.0f;
    xlstm_sampler_options o = {.temperature = 1, .seed = 77};
    xlstm_sampler *a = make(50, o), *b = make(50, o);
    for (int i = 0; i < 10; i++) {
        choose(a, wide);
        choose(b, narrow);
    }
    for (int i = 0; i < 20; i++)
        assert_int_equal(choose(a, wide), choose(b, wide));
    xlstm_sampler_free(a);
    xlstm_sampler_free(b);
}

static void test_large_vocabulary(void **state)
{
    (void)state;
    enum { N = 50304 };
    noise_state = 3;
    float *logits = calloc(N, sizeof *logits);
    for (int i = 0; i < N; i++)
        logits[i] = noise_float(-10, 10) * noise_float(0, 1);
    float before = logits[N - 1];
    check_distribution(N, logits, &(xlstm_sampler_options){.temperature = 1, .seed = 1}, NULL, 0, 1000);
    check_distribution(N, logits, &(xlstm_sampler_options){.temperature = 1, .top_k = 40, .seed = 2}, NULL, 0, 1000);
    check_distribution(N, logits, &(xlstm_sampler_options){.temperature = 1, .top_p = 0.9f, .seed = 3}, NULL, 0, 1000);
    check_distribution(N, logits, &(xlstm_sampler_options){.temperature = 1, .min_p = 0.1f, .seed = 4}, NULL, 0, 1000);
    check_distribution(N, logits, &(xlstm_sampler_options){.temperature = 5, .top_p = 0.99f, .seed = 5}, NULL, 0, 1000);
    assert_true(logits[N - 1] == before);
    free(logits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_top_k_one_is_greedy),
        cmocka_unit_test(test_plain_distribution),
        cmocka_unit_test(test_top_p_keeps_the_crossing_token),
        cmocka_unit_test(test_ties_at_the_borders),
        cmocka_unit_test(test_random_settings),
        cmocka_unit_test(test_order),
        cmocka_unit_test(test_penalties_and_window),
        cmocka_unit_test(test_bias_forbids_and_forces),
        cmocka_unit_test(test_ids_beyond_the_vocabulary),
        cmocka_unit_test(test_nonfinite),
        cmocka_unit_test(test_extreme_numbers),
        cmocka_unit_test(test_bad_options),
        cmocka_unit_test(test_seed_and_copy),
        cmocka_unit_test(test_one_draw_a_call),
        cmocka_unit_test(test_large_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
