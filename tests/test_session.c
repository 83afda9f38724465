/*
 * test_session.c — sessions, the ragged batch, BOS, forks, states and poisoning through the public API, on the model
 * that ships. Bit-identity is checked with memcmp on logits and on serialised states.
 */
#include "count_allocations.h"
#include "make_model.h"
#include "model.h"
#include "poison.h"
#include "sampler.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#define MODEL "models/xlstm-stories-10m"
enum { V = 4096 };

/* ---- helpers ---------------------------------------------------------------------------------------------------- */

static uint32_t seed = 12345;

static int32_t random_id(void)
{
    seed = seed * 1664525u + 1013904223u;
    return (int32_t)(2 + (seed >> 8) % (V - 2));
}

static void random_ids(int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++) ids[i] = random_id();
}

static xlstm_model *open_model(const char *path, const xlstm_model_options *options)
{
    xlstm_model *m;
    xlstm_error err;
    if (xlstm_model_open(&m, path, options, &err) != XLSTM_OK) fail_msg("%s", err.message);
    return m;
}

static xlstm_session *new_session(xlstm_model *m)
{
    xlstm_session *s;
    assert_int_equal(xlstm_session_new(&s, m, NULL), XLSTM_OK);
    return s;
}

static void prefill(xlstm_session *s, const int32_t *ids, size_t n)
{
    xlstm_error err;
    if (xlstm_prefill(s, ids, n, &err) != XLSTM_OK) fail_msg("%s", err.message);
}

/* Logits and state equal to the last bit. */
static void assert_same(const xlstm_session *a, const xlstm_session *b)
{
    xlstm_state *sa, *sb;
    void *ba, *bb;
    size_t na, nb;
    assert_int_equal(xlstm_state_snapshot(&sa, a, NULL), XLSTM_OK);
    assert_int_equal(xlstm_state_snapshot(&sb, b, NULL), XLSTM_OK);
    assert_int_equal(xlstm_state_serialize(&ba, &na, sa, NULL, NULL), XLSTM_OK);
    assert_int_equal(xlstm_state_serialize(&bb, &nb, sb, NULL, NULL), XLSTM_OK);
    assert_int_equal(na, nb);
    assert_memory_equal(ba, bb, na);
    xlstm_free(ba);
    xlstm_free(bb);
    xlstm_state_free(sa);
    xlstm_state_free(sb);
}

static double largest_difference(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

/* ---- company and threads ------------------------------------------------------------------------------------------ */

enum { SEQUENCES = 6 };
static const size_t lengths[SEQUENCES] = {1, 17, 64, 130, 63, 200};

static void test_results_do_not_depend_on_company(void **state)
{
    (void)state;
    static const uint32_t threads[] = {1, 2, 3, 8}, rows[] = {64, 150, 512};
    int32_t ids[SEQUENCES][200], more[SEQUENCES];
    for (size_t i = 0; i < SEQUENCES; i++) random_ids(ids[i], lengths[i]);
    random_ids(more, SEQUENCES);
    xlstm_model *alone_model = open_model(MODEL, &(xlstm_model_options){.threads = 1});
    xlstm_session *alone[SEQUENCES];
    for (size_t i = 0; i < SEQUENCES; i++) {
        alone[i] = new_session(alone_model);
        prefill(alone[i], ids[i], lengths[i]);
    }
    for (size_t c = 0; c < XL_COUNT(threads) * XL_COUNT(rows); c++) {
        xlstm_model_options o = {.threads = threads[c % XL_COUNT(threads)], .max_rows = rows[c / XL_COUNT(threads)]};
        xlstm_model *m = open_model(MODEL, &o);
        xlstm_segment g[SEQUENCES];
        xlstm_session *s[SEQUENCES];
        for (size_t i = 0; i < SEQUENCES; i++) {
            s[i] = new_session(m);
            g[i] = (xlstm_segment){.session = s[i], .tokens = ids[i], .count = lengths[i], .want = XLSTM_WANT_LAST};
        }
        assert_int_equal(xlstm_evaluate(m, g, SEQUENCES, NULL), XLSTM_OK);
        for (size_t i = 0; i < SEQUENCES; i++) assert_same(s[i], alone[i]);
        /* then a mixed step: three decode, the others stand still; against each by itself */
        xlstm_session *twin[3];
        for (size_t i = 0; i < 3; i++) {
            assert_int_equal(xlstm_session_fork(&twin[i], s[i], NULL), XLSTM_OK);
            g[i] = (xlstm_segment){.session = s[i], .tokens = &more[i], .count = 1, .want = XLSTM_WANT_LAST};
        }
        assert_int_equal(xlstm_evaluate(m, g, 3, NULL), XLSTM_OK);
        for (size_t i = 0; i < 3; i++) {
            assert_int_equal(xlstm_decode(twin[i], more[i], NULL), XLSTM_OK);
            assert_same(s[i], twin[i]);
            xlstm_session_free(twin[i]);
        }
        for (size_t i = 0; i < SEQUENCES; i++) xlstm_session_free(s[i]);
        xlstm_model_free(m);
    }
    for (size_t i = 0; i < SEQUENCES; i++) xlstm_session_free(alone[i]);
    xlstm_model_free(alone_model);
}

static uint32_t room_for_two(xl_backend *be)
{
    (void)be;
    return 2;
}

/* A backend that has room for two sequences at a time takes the others in further passes. */
static void test_a_batch_larger_than_the_backend_takes_passes(void **state)
{
    (void)state;
    xlstm_model *m = open_model(MODEL, NULL);
    int32_t ids[SEQUENCES][200];
    xlstm_session *alone[SEQUENCES], *s[SEQUENCES];
    xlstm_segment g[SEQUENCES];
    for (size_t i = 0; i < SEQUENCES; i++) {
        random_ids(ids[i], lengths[i]);
        alone[i] = new_session(m);
        s[i] = new_session(m);
        prefill(alone[i], ids[i], lengths[i]);
        g[i] = (xlstm_segment){.session = s[i], .tokens = ids[i], .count = lengths[i], .want = XLSTM_WANT_LAST};
    }
    const xl_backend_ops *real = m->backend->ops;
    xl_backend_ops small = *real;
    small.most_runs = room_for_two;
    m->backend->ops = &small;
    assert_int_equal(xlstm_evaluate(m, g, SEQUENCES, NULL), XLSTM_OK);
    m->backend->ops = real;
    for (size_t i = 0; i < SEQUENCES; i++) {
        assert_same(s[i], alone[i]);
        xlstm_session_free(s[i]);
        xlstm_session_free(alone[i]);
    }
    xlstm_model_free(m);
}

static void test_cuts_at_chunk_borders_change_nothing(void **state)
{
    (void)state;
    int32_t ids[300];
    random_ids(ids, 300);
    xlstm_model *m = open_model(MODEL, &(xlstm_model_options){.bos = XLSTM_OFF, .threads = 2});
    xlstm_session *whole = new_session(m), *cut = new_session(m);
    prefill(whole, ids, 300);
    prefill(cut, ids, 64);
    prefill(cut, ids + 64, 128);
    prefill(cut, ids + 192, 108);
    assert_same(whole, cut);
    xlstm_session_free(whole);
    xlstm_session_free(cut);
    xlstm_model_free(m);
}

/* Steps agree with chunks to rounding for every split of 131 tokens. */
static void test_every_split_agrees(void **state)
{
    (void)state;
    int32_t ids[131];
    random_ids(ids, 131);
    xlstm_model *m = open_model(MODEL, NULL);
    xlstm_session *whole = new_session(m);
    prefill(whole, ids, 131);
    const float *want = xlstm_session_logits(whole);
    for (size_t cut = 1; cut <= 130; cut++) {
        xlstm_session *s = new_session(m);
        prefill(s, ids, cut);
        prefill(s, ids + cut, 131 - cut);
        assert_true(largest_difference(xlstm_session_logits(s), want, V) < 1e-4);
        assert_int_equal(xlstm_session_token_hash(s), xlstm_session_token_hash(whole));
        xlstm_session_free(s);
    }
    xlstm_session *steps = new_session(m);
    for (size_t i = 0; i < 131; i++) assert_int_equal(xlstm_decode(steps, ids[i], NULL), XLSTM_OK);
    assert_true(largest_difference(xlstm_session_logits(steps), want, V) < 1e-4);
    xlstm_session_free(steps);
    xlstm_session_free(whole);
    xlstm_model_free(m);
}

static void test_cpu_agrees_with_the_references(void **state)
{
    (void)state;
    int32_t ids[40];
    random_ids(ids, 40);
    float *all[3];
    static const char *const names[] = {"reference64", "reference", "cpu"};
    for (size_t b = 0; b < 3; b++) {
        xlstm_model *m = open_model(MODEL, &(xlstm_model_options){.backend = names[b]});
        xlstm_session *s = new_session(m);
        all[b] = malloc(40 * V * sizeof(float));
        memset(all[b], 0x7f, 40 * V * sizeof(float));
        xlstm_segment g = {.session = s, .tokens = ids, .count = 40, .want = XLSTM_WANT_ALL, .logits = all[b]};
        assert_int_equal(xlstm_evaluate(m, &g, 1, NULL), XLSTM_OK);
        assert_memory_equal(xlstm_session_logits(s), all[b] + 39 * V, V * sizeof(float));
        xlstm_session_free(s);
        xlstm_model_free(m);
    }
    assert_true(largest_difference(all[1], all[0], 40 * V) < 1e-4);
    assert_true(largest_difference(all[2], all[0], 40 * V) < 1e-4);
    for (size_t b = 0; b < 3; b++) free(all[b]);
}

/* ---- samplers of segments ---------------------------------------------------------------------------------------- */

static xlstm_sampler *new_sampler(const xlstm_sampler_options *options)
{
    xlstm_sampler *s;
    assert_int_equal(xlstm_sampler_new(&s, V, options, NULL), XLSTM_OK);
    return s;
}

enum { SAMPLED = 5, STEPS = 12 };
static const xlstm_logit_bias against = {17, -3};
static const xlstm_sampler_options rules[SAMPLED] = {
    {.temperature = 0},
    {.temperature = 1, .seed = 1},
    {.temperature = 0.8f, .top_k = 40, .top_p = 0.9f, .min_p = 0.01f, .seed = 2},
    {.temperature = 1.2f, .repetition_penalty = 1.3f, .presence_penalty = 0.2f, .seed = 3},
    {.temperature = 1, .bias = &against, .n_bias = 1, .seed = 4},
};

/* Ids that sessions of a batch choose step by step, [STEPS][SAMPLED]: by their segments, or from the sessions' logits. */
static void continue_text(xlstm_model *m, int32_t *out, bool by_segment, xlstm_want want)
{
    int32_t ids[SAMPLED][30];
    xlstm_session *s[SAMPLED];
    xlstm_sampler *samplers[SAMPLED];
    xlstm_segment g[SAMPLED];
    seed = 777;
    for (size_t i = 0; i < SAMPLED; i++) {
        random_ids(ids[i], 30);
        s[i] = new_session(m);
        samplers[i] = new_sampler(&rules[i]);
        for (size_t t = 0; t < 30; t++) xlstm_sampler_accept(samplers[i], ids[i][t]);
        g[i] = (xlstm_segment){.session = s[i], .tokens = ids[i], .count = 10 + 5 * i};
    }
    for (size_t step = 0; step < STEPS; step++) {
        for (size_t i = 0; i < SAMPLED; i++) {
            g[i].want = by_segment ? want : XLSTM_WANT_LAST;
            g[i].sampler = by_segment ? samplers[i] : NULL;
            g[i].id = 12345;
        }
        assert_int_equal(xlstm_evaluate(m, g, SAMPLED, NULL), XLSTM_OK);
        for (size_t i = 0; i < SAMPLED; i++) {
            int32_t *id = &out[step * SAMPLED + i];
            *id = g[i].id;
            if (!by_segment) {
                assert_int_equal(g[i].id, -1);
                assert_int_equal(xlstm_sampler_choose(id, samplers[i], xlstm_session_logits(s[i]), NULL), XLSTM_OK);
            } else if (want == XLSTM_WANT_NONE) {
                assert_null(xlstm_session_logits(s[i]));
            } else {
                assert_non_null(xlstm_session_logits(s[i]));
            }
            xlstm_sampler_accept(samplers[i], *id);
            g[i].tokens = id;
            g[i].count = 1;
        }
    }
    for (size_t i = 0; i < SAMPLED; i++) {
        xlstm_session_free(s[i]);
        xlstm_sampler_free(samplers[i]);
    }
}

static void test_a_segments_sampler_chooses_what_its_logits_say(void **state)
{
    (void)state;
    int32_t want[STEPS * SAMPLED], got[STEPS * SAMPLED];
    for (uint32_t rows = 64; rows <= 512; rows *= 8) { /* in several passes, in one */
        xlstm_model *m = open_model(MODEL, &(xlstm_model_options){.max_rows = rows});
        continue_text(m, want, false, XLSTM_WANT_LAST);
        for (int w = XLSTM_WANT_NONE; w <= XLSTM_WANT_ALL; w++) {
            continue_text(m, got, true, (xlstm_want)w);
            assert_memory_equal(got, want, sizeof(want));
        }
        xlstm_model_free(m);
    }
}

/* A backend that samples: greedy, from the logits of the pass, noting what it was asked. */
static const xl_batch *sampling_batch;
static const xl_backend_ops *real_ops;
static uint32_t asked;
static bool refuses;

static int begin_sampling(xl_backend *be, const xl_batch *batch, bool *replay, xlstm_error *err)
{
    sampling_batch = batch;
    return real_ops->begin(be, batch, replay, err);
}

static void sample_greedily(xl_backend *be, const xl_buffer *logits, uint32_t width)
{
    float *row = malloc(width * sizeof(*row));
    for (uint32_t i = 0; i < sampling_batch->n_samples; i++) {
        const xl_sample *r = &sampling_batch->samples[i];
        assert_int_equal(r->n_tokens, V);
        assert_int_equal(r->top_k, V);
        assert_true(r->temperature == 0 && r->uniform == 0);
        assert_int_equal(real_ops->buffer_read(be, logits, (size_t)r->out * width, row, width, NULL), XLSTM_OK);
        int32_t best = 0;
        for (uint32_t id = 1; id < width; id++) best = row[id] > row[best] ? (int32_t)id : best;
        sampling_batch->chosen[i] = refuses ? -1 : best;
        asked++;
    }
    free(row);
}

static void test_a_backend_that_samples_is_asked(void **state)
{
    (void)state;
    xlstm_model *m = open_model(MODEL, NULL);
    xlstm_sampler *greedy = new_sampler(NULL), *biased = new_sampler(&rules[4]), *twin = new_sampler(&rules[4]);
    int32_t ids[3][20];
    xlstm_segment g[3], plain[3];
    for (size_t i = 0; i < 3; i++) {
        random_ids(ids[i], 20);
        g[i] = (xlstm_segment){.session = new_session(m), .tokens = ids[i], .count = 20};
        plain[i] = g[i];
        plain[i].session = new_session(m);
        plain[i].want = XLSTM_WANT_LAST;
    }
    assert_int_equal(xlstm_evaluate(m, plain, 3, NULL), XLSTM_OK);
    g[0].want = XLSTM_WANT_ALL; /* many output rows, the last of which is sampled */
    g[0].logits = malloc(20 * V * sizeof(float));
    g[0].sampler = g[2].sampler = greedy;
    g[1].sampler = biased; /* not for the backend */
    real_ops = m->backend->ops;
    xl_backend_ops ops = *real_ops;
    ops.begin = begin_sampling;
    ops.sample = sample_greedily;
    m->backend->ops = &ops;
    asked = 0;
    assert_int_equal(xlstm_evaluate(m, g, 3, NULL), XLSTM_OK);
    assert_int_equal(asked, 2);
    int32_t want[3];
    for (size_t i = 0; i < 3; i++) {
        const float *logits = xlstm_session_logits(plain[i].session);
        assert_int_equal(xlstm_sampler_choose(&want[i], i == 1 ? twin : greedy, logits, NULL), XLSTM_OK);
        assert_int_equal(g[i].id, want[i]);
    }
    assert_memory_equal(g[0].logits + 19 * V, xlstm_session_logits(plain[0].session), V * sizeof(float));
    assert_null(xlstm_session_logits(g[2].session));
    refuses = true; /* then the logits decide after all */
    g[2].count = plain[2].count = 1;
    assert_int_equal(xlstm_evaluate(m, &g[2], 1, NULL), XLSTM_OK);
    assert_int_equal(xlstm_evaluate(m, &plain[2], 1, NULL), XLSTM_OK);
    assert_int_equal(xlstm_sampler_choose(&want[2], greedy, xlstm_session_logits(plain[2].session), NULL), XLSTM_OK);
    assert_int_equal(g[2].id, want[2]);
    assert_int_equal(asked, 3);
    refuses = false;
    m->backend->ops = real_ops;
    free(g[0].logits);
    for (size_t i = 0; i < 3; i++) {
        xlstm_session_free(g[i].session);
        xlstm_session_free(plain[i].session);
    }
    xlstm_sampler_free(greedy);
    xlstm_sampler_free(biased);
    xlstm_sampler_free(twin);
    xlstm_model_free(m);
}

/* However long they are and wherever passes are cut. */
static void test_segments_that_share_a_sampler_draw_in_their_order(void **state)
{
    (void)state;
    xlstm_model *m = open_model(MODEL, &(xlstm_model_options){.max_rows = 128});
    const xlstm_sampler_options hot = {.temperature = 1, .seed = 7};
    const size_t counts[3] = {140, 2, 3};
    for (int round = 0; round < 4; round++) {
        xlstm_sampler *together = new_sampler(&hot), *alone = new_sampler(&hot), *other = new_sampler(&hot);
        xlstm_segment g[3];
        int32_t ids[3][140], start[10];
        random_ids(start, 10);
        for (size_t i = 0; i < 3; i++) {
            random_ids(ids[i], counts[i]);
            g[i] = (xlstm_segment){.session = new_session(m), .tokens = ids[i], .count = counts[i], .sampler = i < 2 ? together : other};
            if (i == 0) prefill(g[i].session, start, 10); /* its chunks end elsewhere than passes */
        }
        assert_int_equal(xlstm_evaluate(m, g, 3, NULL), XLSTM_OK);
        for (size_t i = 0; i < 2; i++) {
            xlstm_session *s = new_session(m);
            if (i == 0) prefill(s, start, 10);
            prefill(s, ids[i], counts[i]);
            int32_t want;
            assert_int_equal(xlstm_sampler_choose(&want, alone, xlstm_session_logits(s), NULL), XLSTM_OK);
            assert_int_equal(g[i].id, want);
            xlstm_session_free(s);
        }
        for (size_t i = 0; i < 3; i++) xlstm_session_free(g[i].session);
        xlstm_sampler_free(together);
        xlstm_sampler_free(alone);
        xlstm_sampler_free(other);
    }
    xlstm_model_free(m);
}

static void test_a_choice_that_fails_fails_its_segment_alone(void **state)
{
    (void)state;
    xlstm_model *m = open_model(MODEL, NULL);
    xlstm_logit_bias *none = malloc(V * sizeof(*none));
    for (int32_t i = 0; i < V; i++) none[i] = (xlstm_logit_bias){i, -INFINITY};
    xlstm_sampler *stuck = new_sampler(&(xlstm_sampler_options){.bias = none, .n_bias = V}), *fine = new_sampler(NULL),
                  *big;
    int32_t ids[2] = {5, 6};
    xlstm_segment g[2] = {{.session = new_session(m), .tokens = ids, .count = 2, .sampler = stuck},
                          {.session = new_session(m), .tokens = ids, .count = 2, .sampler = fine}};
    xlstm_error err;
    assert_int_equal(xlstm_evaluate(m, g, 2, &err), XLSTM_E_ARGUMENT);
    assert_non_null(strstr(err.message, "every logit is -Inf"));
    assert_int_equal(g[0].status, XLSTM_E_ARGUMENT);
    assert_int_equal(g[0].id, -1);
    assert_int_equal(g[1].status, XLSTM_OK);
    assert_in_range(g[1].id, 0, V - 1);
    assert_int_equal(xlstm_session_position(g[0].session), 3); /* BOS and both tokens */
    g[0].sampler = fine;                                       /* the session is well */
    assert_int_equal(xlstm_evaluate(m, g, 1, &err), XLSTM_OK);
    assert_int_equal(xlstm_sampler_new(&big, V + 1, NULL, NULL), XLSTM_OK);
    g[0].sampler = big;
    assert_int_equal(xlstm_evaluate(m, g, 1, &err), XLSTM_E_ARGUMENT);
    assert_non_null(strstr(err.message, "4097"));
    xlstm_session_free(g[0].session);
    xlstm_session_free(g[1].session);
    xlstm_sampler_free(stuck);
    xlstm_sampler_free(fine);
    xlstm_sampler_free(big);
    xlstm_model_free(m);
    free(none);
}

/* ---- BOS -------------------------------------------------------------------------------------------------------- */

static void test_bos_is_inserted_once_and_only_when_due(void **state)
{
    (void)state;
    int32_t with[5] = {0, 100, 200, 300, 400};
    xlstm_model *on = open_model(MODEL, NULL), *off = open_model(MODEL, &(xlstm_model_options){.bos = XLSTM_OFF});
    assert_true(xlstm_model_get_info(on)->bos_auto);
    assert_false(xlstm_model_get_info(off)->bos_auto);
    xlstm_session *a = new_session(on), *b = new_session(on), *c = new_session(off);
    float *la = malloc(4 * V * sizeof(float)), *lb = malloc(5 * V * sizeof(float));
    xlstm_segment ga = {.session = a, .tokens = with + 1, .count = 4, .want = XLSTM_WANT_ALL, .logits = la};
    xlstm_segment gb = {.session = b, .tokens = with, .count = 5, .want = XLSTM_WANT_ALL, .logits = lb};
    assert_int_equal(xlstm_evaluate(on, &ga, 1, NULL), XLSTM_OK);
    assert_int_equal(xlstm_evaluate(on, &gb, 1, NULL), XLSTM_OK);
    assert_int_equal(xlstm_session_position(a), 5);
    assert_int_equal(xlstm_session_position(b), 5);
    assert_memory_equal(la, lb + V, 4 * V * sizeof(float)); /* aligned to the caller's tokens */
    assert_same(a, b);
    prefill(a, with + 1, 2); /* no second BOS on continuation */
    assert_int_equal(xlstm_session_position(a), 7);
    prefill(c, with + 1, 4);
    assert_int_equal(xlstm_session_position(c), 4);
    assert_int_equal(xlstm_session_reset(a, NULL), XLSTM_OK);
    assert_null(xlstm_session_logits(a));
    prefill(a, with + 1, 4);
    assert_same(a, b);
    free(la);
    free(lb);
    xlstm_session_free(a);
    xlstm_session_free(b);
    xlstm_session_free(c);
    xlstm_model_free(on);
    xlstm_model_free(off);
}

/* ---- states ----------------------------------------------------------------------------------------------------- */

static void test_fork_snapshot_and_bytes_continue_identically(void **state)
{
    (void)state;
    int32_t ids[100];
    random_ids(ids, 100);
    xlstm_model *m = open_model(MODEL, NULL);
    xlstm_session *s = new_session(m), *fork, *restored = new_session(m), *loaded = new_session(m);
    prefill(s, ids, 70);
    xlstm_state *snapshot, *copy, *back;
    void *bytes;
    size_t size;
    assert_int_equal(xlstm_session_fork(&fork, s, NULL), XLSTM_OK);
    assert_int_equal(xlstm_state_snapshot(&snapshot, s, NULL), XLSTM_OK);
    assert_int_equal(xlstm_state_copy(&copy, snapshot, NULL), XLSTM_OK);
    assert_int_equal(xlstm_state_serialize(&bytes, &size, snapshot, "a note", NULL), XLSTM_OK);
    xlstm_state_free(snapshot);
    assert_int_equal(xlstm_state_deserialize(&back, m, bytes, size, NULL), XLSTM_OK);
    xlstm_state_info info;
    xlstm_state_get_info(back, &info);
    assert_string_equal(info.note, "a note");
    assert_int_equal(info.position, xlstm_session_position(s));
    assert_int_equal(xlstm_state_restore(restored, copy, NULL), XLSTM_OK);
    assert_int_equal(xlstm_state_restore(loaded, back, NULL), XLSTM_OK);
    assert_memory_equal(xlstm_session_logits(restored), xlstm_session_logits(s), V * sizeof(float));
    prefill(s, ids + 70, 30);
    prefill(fork, ids + 70, 30);
    prefill(restored, ids + 70, 30);
    prefill(loaded, ids + 70, 30);
    assert_same(s, fork);
    assert_same(s, restored);
    assert_same(s, loaded);
    xlstm_error err;
    for (size_t cut = 0; cut < size; cut += cut < 5000 ? 97 : 100003) { /* truncation is refused by name */
        xlstm_state *bad;
        assert_int_not_equal(xlstm_state_deserialize(&bad, m, bytes, cut, &err), XLSTM_OK);
        assert_null(bad);
    }
    for (size_t i = 0; i < 300; i++) { /* so is any flipped bit */
        size_t at = i < 150 ? i : ((size_t)random_id() * 7919 + i) % size;
        ((uint8_t *)bytes)[at] ^= (uint8_t)(1u << (i % 8));
        xlstm_state *bad;
        assert_int_not_equal(xlstm_state_deserialize(&bad, m, bytes, size, &err), XLSTM_OK);
        ((uint8_t *)bytes)[at] ^= (uint8_t)(1u << (i % 8));
    }
    xlstm_free(bytes);
    xlstm_state_free(copy);
    xlstm_state_free(back);
    xlstm_session_free(s);
    xlstm_session_free(fork);
    xlstm_session_free(restored);
    xlstm_session_free(loaded);
    xlstm_model_free(m);
}

/* ---- misuse and poison -------------------------------------------------------------------------------------------- */

static void test_misuse_is_refused(void **state)
{
    (void)state;
    xlstm_model *m = open_model(MODEL, NULL), *facts = open_model(MODEL, &(xlstm_model_options){.headers_only = true});
    xlstm_session *s = new_session(m), *none;
    xlstm_error err;
    int32_t good[2] = {5, 6}, bad[2] = {5, V}, negative[1] = {-1};
    assert_int_equal(xlstm_session_new(&none, facts, &err), XLSTM_E_ARGUMENT);
    assert_int_equal(xlstm_prefill(s, bad, 2, &err), XLSTM_E_ARGUMENT);
    assert_non_null(strstr(err.message, "4096"));
    assert_int_equal(xlstm_prefill(s, negative, 1, &err), XLSTM_E_ARGUMENT);
    assert_int_equal(xlstm_prefill(s, good, 0, &err), XLSTM_E_ARGUMENT);
    xlstm_segment twice[2] = {{.session = s, .tokens = good, .count = 2}, {.session = s, .tokens = good, .count = 2}};
    assert_int_equal(xlstm_evaluate(m, twice, 2, &err), XLSTM_E_ARGUMENT);
    assert_int_equal(xlstm_session_position(s), 0); /* nothing was read */
    prefill(s, good, 2);
    xlstm_session_free(s);
    xlstm_model_free(m);
    xlstm_model_free(facts);
}

static void test_nan_names_block_and_stage_and_poisons(void **state)
{
    (void)state;
    static const struct {
        const char *tensor, *stage;
    } cases[] = {
        {"backbone.blocks.7.mlstm_layer.igate_preact.weight", "mlstm cell"},
        {"backbone.blocks.7.mlstm_layer.v.weight", "multihead_norm"},
        {"backbone.blocks.7.mlstm_layer.out_proj.weight", "norm_ffn"},
        {"backbone.blocks.6.ffn.proj_down.weight", "norm_mlstm"},
    };
    for (size_t c = 0; c < XL_COUNT(cases); c++) {
        char *folder = poisoned_copy(MODEL, cases[c].tensor, 3);
        for (int b = 0; b < 2; b++) {
            xlstm_model *m = open_model(folder, &(xlstm_model_options){.backend = b == 0 ? "reference" : "cpu"});
            xlstm_session *s = new_session(m);
            xlstm_error err;
            int32_t ids[20];
            random_ids(ids, 20);
            assert_int_equal(xlstm_prefill(s, ids, 20, &err), XLSTM_E_NONFINITE);
            assert_non_null(strstr(err.message, "block 7"));
            assert_non_null(strstr(err.message, cases[c].stage));
            assert_non_null(strstr(err.message, "consider enabling norm_reduction_force_float32 or using float32 compute "
                                                "dtype instead of bfloat16"));
            xlstm_state *none;
            assert_int_equal(xlstm_state_snapshot(&none, s, &err), XLSTM_E_NONFINITE);
            assert_null(none);
            assert_null(xlstm_session_logits(s));
            xlstm_session *branch;
            assert_int_equal(xlstm_session_fork(&branch, s, &err), XLSTM_E_NONFINITE);
            assert_null(branch);
            assert_int_equal(xlstm_decode(s, 5, &err), XLSTM_E_NONFINITE);
            assert_int_equal(xlstm_session_reset(s, NULL), XLSTM_OK);
            assert_int_equal(xlstm_session_position(s), 0);
            xlstm_session_free(s);
            xlstm_model_free(m);
        }
        remove_folder(folder);
    }
}

/* An embedding row of NaN poisons the session that reads it and no other. */
static void test_one_poisoned_session_leaves_the_others_alone(void **state)
{
    (void)state;
    char *folder = poisoned_copy(MODEL, "backbone.embeddings.weight", 77 * 256);
    xlstm_model *m = open_model(folder, NULL);
    xlstm_session *a = new_session(m), *b = new_session(m), *c = new_session(m);
    int32_t good[70], bad[70];
    for (size_t i = 0; i < 70; i++) good[i] = bad[i] = (int32_t)(100 + i);
    bad[40] = 77;
    xlstm_segment g[2] = {{.session = a, .tokens = bad, .count = 70, .want = XLSTM_WANT_LAST},
                          {.session = b, .tokens = good, .count = 70, .want = XLSTM_WANT_LAST}};
    xlstm_error err;
    assert_int_equal(xlstm_evaluate(m, g, 2, &err), XLSTM_E_NONFINITE);
    assert_int_equal(g[0].status, XLSTM_E_NONFINITE);
    assert_int_equal(g[1].status, XLSTM_OK);
    assert_non_null(strstr(err.message, "block 0"));
    assert_non_null(strstr(err.message, "position 41")); /* BOS stands in front */
    prefill(c, good, 70);
    assert_same(b, c);
    xlstm_session_free(a);
    xlstm_session_free(b);
    xlstm_session_free(c);
    xlstm_model_free(m);
    remove_folder(folder);
}

/* So is a session that was poisoned before; a wrong argument refuses all. */
static void test_a_refused_batch_reads_nothing(void **state)
{
    (void)state;
    char *folder = poisoned_copy(MODEL, "backbone.embeddings.weight", 77 * 256);
    xlstm_model *m = open_model(folder, NULL);
    xlstm_session *bad = new_session(m), *well = new_session(m), *alone = new_session(m);
    const int32_t good[3] = {5, 6, 7}, poison = 77, wrong[2] = {5, V};
    xlstm_error err;
    assert_int_equal(xlstm_decode(bad, poison, &err), XLSTM_E_NONFINITE);
    xlstm_segment g[3] = {{.session = well, .tokens = good, .count = 3, .want = XLSTM_WANT_LAST, .status = 99},
                          {.session = alone, .tokens = wrong, .count = 2, .status = 99},
                          {.session = bad, .tokens = good, .count = 3, .status = 99}};
    assert_int_equal(xlstm_evaluate(m, g, 3, &err), XLSTM_E_ARGUMENT);
    assert_non_null(strstr(err.message, "segment 1: token 1"));
    for (size_t i = 0; i < 3; i++) assert_int_equal(g[i].status, XLSTM_E_ARGUMENT);
    assert_int_equal(xlstm_session_position(well), 0);
    g[1].session = well;
    g[1].tokens = good;
    assert_int_equal(xlstm_evaluate(m, g, 2, &err), XLSTM_E_ARGUMENT);
    assert_non_null(strstr(err.message, "twice"));
    assert_int_equal(g[0].status, XLSTM_E_ARGUMENT);
    g[1] = g[0];
    g[0] = g[2];
    g[0].tokens = good;
    assert_int_equal(xlstm_evaluate(m, g, 2, &err), XLSTM_E_NONFINITE);
    assert_non_null(strstr(err.message, "segment 0: its session is poisoned"));
    assert_int_equal(g[0].status, XLSTM_E_NONFINITE);
    assert_int_equal(g[1].status, XLSTM_OK);
    prefill(alone, good, 3);
    assert_same(well, alone);
    xlstm_session_free(bad);
    xlstm_session_free(well);
    xlstm_session_free(alone);
    xlstm_model_free(m);
    remove_folder(folder);
}

/* ---- memory and threads ------------------------------------------------------------------------------------------- */

static void test_evaluation_allocates_nothing(void **state)
{
    (void)state;
#if COUNTS_ALLOCATIONS
    int32_t ids[700];
    random_ids(ids, 700);
    xlstm_model *m = open_model(MODEL, NULL);
    xlstm_session *s = new_session(m);
    xlstm_sampler *sampler = new_sampler(&rules[2]);
    long before = allocations;
    prefill(s, ids, 700);
    for (int i = 0; i < 5; i++) assert_int_equal(xlstm_decode(s, ids[i], NULL), XLSTM_OK);
    xlstm_segment g = {.session = s, .tokens = ids, .count = 1, .sampler = sampler};
    assert_int_equal(xlstm_evaluate(m, &g, 1, NULL), XLSTM_OK);
    assert_int_equal(allocations, before);
    xlstm_sampler_free(sampler);
    xlstm_session_free(s);
    xlstm_model_free(m);
#else
    skip();
#endif
}

static double resident_mb(void)
{
    long all, pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%ld %ld", &all, &pages), 2);
    fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

/* A prompt of 100,000 tokens in one call needs no more memory than one of 10,000. */
static void test_a_long_prompt_takes_no_memory(void **state)
{
    (void)state;
    enum { N = 100000 };
    mk_model model = {.seed = 21};
    char *folder = mk_folder();
    mk_put_model(folder, &model);
    xlstm_model *m = open_model(folder, NULL);
    xlstm_session *s = new_session(m);
    int32_t *ids = malloc(N * sizeof(*ids));
    for (size_t i = 0; i < N; i++) ids[i] = random_id() % 48;
    prefill(s, ids, N / 10);
    double before = resident_mb();
    prefill(s, ids, N);
    assert_int_equal(xlstm_session_position(s), N + N / 10);
    if (COUNTS_ALLOCATIONS) assert_true(resident_mb() - before < 1);
    free(ids);
    xlstm_session_free(s);
    xlstm_model_free(m);
    mk_remove_folder(folder);
}

static void *evaluate_in_thread(void *arg)
{
    xlstm_session *s = arg;
    int32_t ids[40];
    for (int i = 0; i < 40; i++) ids[i] = 50 + i;
    for (int i = 0; i < 4; i++) {
        if (xlstm_prefill(s, ids, 40, NULL) != XLSTM_OK || xlstm_decode(s, 7, NULL) != XLSTM_OK) return arg;
        xlstm_session *fork;
        if (xlstm_session_fork(&fork, s, NULL) != XLSTM_OK) return arg;
        if (xlstm_decode(fork, 9, NULL) != XLSTM_OK) return arg;
        xlstm_session_free(fork);
    }
    return NULL;
}

static void test_sessions_of_one_model_in_many_threads(void **state)
{
    (void)state;
    xlstm_model *m = open_model(MODEL, NULL);
    xlstm_session *s[4];
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        s[i] = new_session(m);
        assert_int_equal(pthread_create(&threads[i], NULL, evaluate_in_thread, s[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    for (int i = 1; i < 4; i++) assert_same(s[0], s[i]);
    for (int i = 0; i < 4; i++) xlstm_session_free(s[i]);
    xlstm_model_free(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_results_do_not_depend_on_company),
        cmocka_unit_test(test_a_batch_larger_than_the_backend_takes_passes),
        cmocka_unit_test(test_cuts_at_chunk_borders_change_nothing),
        cmocka_unit_test(test_every_split_agrees),
        cmocka_unit_test(test_cpu_agrees_with_the_references),
        cmocka_unit_test(test_a_segments_sampler_chooses_what_its_logits_say),
        cmocka_unit_test(test_a_backend_that_samples_is_asked),
        cmocka_unit_test(test_segments_that_share_a_sampler_draw_in_their_order),
        cmocka_unit_test(test_a_choice_that_fails_fails_its_segment_alone),
        cmocka_unit_test(test_bos_is_inserted_once_and_only_when_due),
        cmocka_unit_test(test_fork_snapshot_and_bytes_continue_identically),
        cmocka_unit_test(test_misuse_is_refused),
        cmocka_unit_test(test_nan_names_block_and_stage_and_poisons),
        cmocka_unit_test(test_one_poisoned_session_leaves_the_others_alone),
        cmocka_unit_test(test_a_refused_batch_reads_nothing),
        cmocka_unit_test(test_evaluation_allocates_nothing),
        cmocka_unit_test(test_a_long_prompt_takes_no_memory),
        cmocka_unit_test(test_sessions_of_one_model_in_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
