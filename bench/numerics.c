/*
 * numerics.c — what each numeric setting costs: the float64 oracle and every mode read the same stream; at 1, 1,000,
 * 10,000 and 100,000 tokens the distributions of the next tokens and the states are compared. Prints a Markdown table.
 *
 *   build/bench/numerics [TOKENS [MODEL TEXT]]
 *
 * TOKENS (default 10000) is where it stops. MODEL and TEXT: a checkpoint and a text for it; without them a random model of
 * 32 blocks with lively gates is made, and random ids are read.
 */
#include "../tests/make_model.h"
#include "xlstm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW = 64 }; /* positions compared at each mark */

typedef struct mode {
    const char *name;
    xlstm_model_options options;
} mode;

static const mode modes[] = {
    {"weights as stored, all else float32 (default)", {0}},
    {"`--dtype bfloat16`", {.dtype = XLSTM_BF16}},
    {"`--dtype float16`", {.dtype = XLSTM_F16}},
    {"`--state-dtype bfloat16`", {.state_dtype = XLSTM_BF16}},
    {"`--state-dtype int8`", {.state_dtype = XLSTM_I8}},
    {"`--kernel-dtype bfloat16`", {.kernel_dtype = XLSTM_BF16}},
    {"`--norm-reduction-float32 off`", {.norm_reduction_float32 = XLSTM_OFF}},
    {"`--dtype bfloat16 --norm-reduction-float32 off`", {.dtype = XLSTM_BF16, .norm_reduction_float32 = XLSTM_OFF}},
    {"`--dtype bfloat16 --kernel-dtype bfloat16`", {.dtype = XLSTM_BF16, .kernel_dtype = XLSTM_BF16}},
    {"all bfloat16, norm reductions float32",
     {.dtype = XLSTM_BF16, .kernel_dtype = XLSTM_BF16, .state_dtype = XLSTM_BF16}},
};

static void check(int code, const xlstm_error *err)
{
    if (code == XLSTM_OK) return;
    fprintf(stderr, "numerics: %s\n", err ? err->message : "a state cannot be read");
    exit(1);
}

typedef struct runner {
    xlstm_model *model;
    xlstm_session *session;
    uint32_t V;
    float *rows; /* [WINDOW][V] */
} runner;

static runner open_runner(const char *path, const xlstm_model_options *o)
{
    runner r = {0};
    xlstm_error err = {0};
    check(xlstm_model_open(&r.model, path, o, &err), &err);
    check(xlstm_session_new(&r.session, r.model, &err), &err);
    r.V = xlstm_model_get_info(r.model)->vocab_size;
    r.rows = malloc((size_t)WINDOW * r.V * sizeof(float));
    return r;
}

static void close_runner(runner *r)
{
    xlstm_session_free(r->session);
    xlstm_model_free(r->model);
    free(r->rows);
}

/* Reads ids[from .. to); the rows of the last min(WINDOW, to - from) tokens land in r->rows. */
static void feed(runner *r, const int32_t *ids, size_t from, size_t to)
{
    xlstm_error err = {0};
    size_t last = to - from < WINDOW ? to - from : WINDOW;
    xlstm_segment quiet = {.session = r->session, .tokens = ids + from, .count = to - from - last};
    if (quiet.count > 0) check(xlstm_evaluate(r->model, &quiet, 1, &err), &err);
    xlstm_segment g = {.session = r->session, .tokens = ids + to - last, .count = last, .want = XLSTM_WANT_ALL,
                       .logits = r->rows};
    check(xlstm_evaluate(r->model, &g, 1, &err), &err);
}

static double log_sum_exp(const float *x, uint32_t n)
{
    double most = x[0];
    for (uint32_t i = 1; i < n; i++) most = fmax(most, x[i]);
    double sum = exp(x[0] - most);
    for (uint32_t i = 1; i < n; i++) sum += exp(x[i] - most);
    return most + log(sum);
}

typedef struct score {
    double kl, agree, largest, drift;
} score;

/* Relative distance of all C, as true values exp(m) C, in the Frobenius norm of each head, averaged over heads. */
static double drift(const xlstm_state *a, const xlstm_state *b, double *small, double *large)
{
    xlstm_state_info i;
    xlstm_state_get_info(a, &i);
    size_t n = (size_t)i.qk_head_dim * i.v_head_dim;
    float *ca = malloc(n * sizeof(float)), *cb = malloc(n * sizeof(float)), ma, mb;
    double total = 0;
    for (uint32_t block = 0; block < i.num_blocks; block++) {
        for (uint32_t head = 0; head < i.num_heads; head++) {
            double difference = 0, size = 0;
            check(xlstm_state_read_head(a, block, head, ca, NULL, &ma, NULL), NULL);
            check(xlstm_state_read_head(b, block, head, cb, NULL, &mb, NULL), NULL);
            double shift = exp((double)ma - mb);
            for (size_t k = 0; k < n; k++) {
                double d = ca[k] * shift - cb[k];
                difference += d * d;
                size += (double)cb[k] * cb[k];
                if (fabs((double)cb[k]) > *large) *large = fabs((double)cb[k]);
                if (cb[k] != 0 && fabs((double)cb[k]) < 6e-8) *small += 1.0 / (double)(n * i.num_blocks * i.num_heads);
            }
            if (size > 0) total += sqrt(difference / size);
        }
    }
    free(ca);
    free(cb);
    return total / (i.num_blocks * i.num_heads);
}

static score compare(const runner *a, const runner *b, size_t rows, double *small, double *large)
{
    score s = {0};
    for (size_t r = 0; r < rows; r++) {
        const float *x = a->rows + r * a->V, *y = b->rows + r * b->V;
        double zx = log_sum_exp(x, a->V), zy = log_sum_exp(y, b->V);
        uint32_t bx = 0, by = 0;
        for (uint32_t i = 0; i < a->V; i++) {
            s.kl += exp(y[i] - zy) * ((y[i] - zy) - (x[i] - zx)) / (double)rows;
            s.largest = fmax(s.largest, fabs((double)x[i] - y[i]));
            if (x[i] > x[bx]) bx = i;
            if (y[i] > y[by]) by = i;
        }
        s.agree += (bx == by) / (double)rows;
    }
    xlstm_error err = {0};
    xlstm_state *sa, *sb;
    check(xlstm_state_snapshot(&sa, a->session, &err), &err);
    check(xlstm_state_snapshot(&sb, b->session, &err), &err);
    s.drift = drift(sa, sb, small, large);
    xlstm_state_free(sa);
    xlstm_state_free(sb);
    return s;
}

static int32_t *read_ids(const char *model, const char *path, size_t want, size_t *n)
{
    xlstm_tokenizer *t;
    xlstm_error err = {0};
    check(xlstm_tokenizer_open(&t, model, &err), &err);
    FILE *f = fopen(path, "rb");
    char *text = malloc(want * 8);
    size_t size = f != NULL ? fread(text, 1, want * 8, f) : 0;
    int32_t *ids;
    check(xlstm_tokenizer_encode(&ids, n, t, text, size, 0, &err), &err);
    if (f != NULL) fclose(f);
    free(text);
    xlstm_tokenizer_free(t);
    return ids;
}

/* The gates of mk_ models are random normal, which is lively: heads that forget at once and heads that keep. */
static char *lively_model(void)
{
    char *folder = mk_folder();
    mk_model m = {.vocab = 512, .dim = 128, .blocks = 32, .heads = 4, .ffn = 256, .dtype = XLSTM_BF16, .seed = 7};
    mk_put_model(folder, &m);
    return folder;
}

int main(int argc, char **argv)
{
    size_t limit = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000, n = 0;
    char *lively = argc > 3 ? NULL : lively_model();
    const char *model = argc > 3 ? argv[2] : lively;
    static const size_t marks[] = {1, 1000, 10000, 100000};
    int32_t *ids;
    if (argc > 3) {
        ids = read_ids(model, argv[3], limit, &n);
    } else {
        uint64_t state = 99;
        n = limit;
        ids = malloc(n * sizeof(*ids));
        for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(mk_next(&state) % 512);
    }
    if (limit > n) limit = n;
    runner oracle = open_runner(model, &(xlstm_model_options){.backend = "reference64"});
    enum { MODES = sizeof(modes) / sizeof(modes[0]) };
    runner r[MODES];
    for (size_t i = 0; i < MODES; i++) r[i] = open_runner(model, &modes[i].options);
    printf("| mode | tokens read | KL to float64 | same top-1 | largest logit error | state drift |\n|---|--:|--:|--:|--:|--:|\n");
    size_t at = 0;
    for (size_t k = 0; k < sizeof(marks) / sizeof(marks[0]) && marks[k] <= limit; k++) {
        size_t rows = marks[k] - at < WINDOW ? marks[k] - at : WINDOW;
        double small = 0, large = 0;
        feed(&oracle, ids, at, marks[k]);
        for (size_t i = 0; i < MODES; i++) {
            feed(&r[i], ids, at, marks[k]);
            small = large = 0;
            score s = compare(&r[i], &oracle, rows, &small, &large);
            printf("| %s | %zu | %.1e | %.1f %% | %.1e | %.1e |\n", modes[i].name, marks[k], fmax(s.kl, 0), 100 * s.agree,
                   s.largest, s.drift);
            fflush(stdout);
        }
        fprintf(stderr, "after %zu tokens: largest |C| %.3g, %.2g %% of C below float16's smallest number\n", marks[k], large,
                100 * small);
        at = marks[k];
    }
    for (size_t i = 0; i < MODES; i++) close_runner(&r[i]);
    close_runner(&oracle);
    free(ids);
    if (lively != NULL) mk_remove_folder(lively);
    return 0;
}
