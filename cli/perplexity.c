/*
 * perplexity.c — `xlstm perplexity`: how well a model predicts a text, and how far its distributions are from those of
 * another model or precision (KL divergence). Numbers for people who compare: alignment, BOS rule and windows are in
 * docs/numerics.md.
 */
#include "generation.h"
#include "prompt.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct perplexity_options {
    prompt_options prompt;
    uint64_t tokens, window, stride;
    const char *kl_base, *kl, *state_in;
    bool json;
    model_options model;
} perplexity_options;

#define FIELD(member) offsetof(perplexity_options, member)
static const option_row rows[] = {
    {"tokens", 'n', OPTION_COUNT, FIELD(tokens), "N", "use only the first N tokens of the text", NULL, NULL, 0, 0},
    {"window", 'w', OPTION_COUNT, FIELD(window), "N",
     "cut the text into windows of N tokens that each start fresh; without it the text is one endless stream", NULL, NULL,
     0, 0},
    {"stride", 0, OPTION_COUNT, FIELD(stride), "N",
     "windows begin N tokens apart and count only what earlier ones did not (default: the window)", NULL, NULL, 0, 0},
    {"kl-base", 0, OPTION_TEXT, FIELD(kl_base), "FILE", "write the logits there, to compare others with", NULL, NULL, 0, 0},
    {"kl", 0, OPTION_TEXT, FIELD(kl), "FILE", "compare with the logits that --kl-base wrote from the same text", NULL,
     NULL, 0, 0},
    {"state-in", 0, OPTION_TEXT, FIELD(state_in), "FILE", "begin where a saved state stands", NULL, NULL, 0, 0},
    {"json", 0, OPTION_FLAG, FIELD(json), NULL, "one JSON object", NULL, NULL, 0, 0},
};

/* ---- the file of base logits -------------------------------------------------------------------------------------- */

/* Then the scored token of every row, int32, and a row of float32 logits for each. Little-endian. */
typedef struct base_header {
    char magic[8];
    uint32_t version, vocab_size;
    uint64_t rows;
} base_header;
static const char base_magic[8] = {'x', 'L', 'S', 'T', 'M', 'k', 'l', 'b'};

typedef struct base_file {
    FILE *file; /* NULL: none */
    const char *path;
    char *target, *temporary; /* being written: what links lead to, and the file that is renamed to that at the end */
    uint64_t rows;
} base_file;

static int base_create(base_file *b, const char *path, uint32_t vocab_size, const int32_t *targets, uint64_t n)
{
    char *target = realpath(path, NULL);
    if (!target) /* not there yet */
        target = must(strdup(path));
    buffer name = {0};
    buffer_addf(&name, "%s.partial", target);
    *b = (base_file){.path = path, .target = target, .temporary = name.data, .rows = n};
    b->file = fopen(b->temporary, "wb");
    base_header h = {.version = 1, .vocab_size = vocab_size, .rows = n};
    memcpy(h.magic, base_magic, sizeof h.magic);
    if (!b->file || fwrite(&h, sizeof h, 1, b->file) != 1 || fwrite(targets, sizeof *targets, n, b->file) != n)
        return fail("%s: cannot write: %s", path, strerror(errno));
    return EXIT_OK;
}

static int base_finish(base_file *b, int status)
{
    bool written = b->file && fflush(b->file) == 0;
    written = b->file && fclose(b->file) == 0 && written;
    b->file = NULL;
    if (b->temporary) {
        if (status == EXIT_OK && (!written || rename(b->temporary, b->target)))
            status = fail("%s: cannot write: %s", b->path, strerror(errno));
        if (status != EXIT_OK)
            remove(b->temporary);
    }
    free(b->target);
    free(b->temporary);
    return status;
}

static int base_open(base_file *b, const char *path, uint32_t vocab_size, const int32_t *targets, uint64_t n)
{
    *b = (base_file){.file = fopen(path, "rb"), .path = path, .rows = n};
    base_header h;
    if (!b->file)
        return fail("%s: cannot open: %s", path, strerror(errno));
    if (fread(&h, sizeof h, 1, b->file) != 1 || memcmp(h.magic, base_magic, sizeof h.magic) != 0 || h.version != 1)
        return fail("%s: not a file that perplexity --kl-base wrote", path);
    if (h.vocab_size != vocab_size)
        return fail("%s: logits over %u tokens, this model has %u; compare models with one tokenizer", path, h.vocab_size,
                    vocab_size);
    if (h.rows != n)
        return fail("%s: %llu positions, this run has %llu; use the same text, --tokens, --window and --stride", path,
                    (unsigned long long)h.rows, (unsigned long long)n);
    for (uint64_t i = 0; i < n; i++) {
        int32_t id;
        if (fread(&id, sizeof id, 1, b->file) != 1)
            return fail("%s: truncated", path);
        if (id != targets[i])
            return fail("%s: position %llu has token %d, this run has %d; use the same text", path,
                        (unsigned long long)i, id, targets[i]);
    }
    return EXIT_OK;
}

/* ---- sums --------------------------------------------------------------------------------------------------------- */

typedef struct totals {
    uint64_t n, agree;
    double nll, nll_squares;
    double base_nll, logit_squares, logit_largest;
    double *kl; /* [expected rows], only when comparing */
} totals;

/* log of the sum of exponentials, in float64 */
static double log_sum_exp(const float *x, uint32_t n)
{
    float most = x[0];
    double sum = 0;
    for (uint32_t i = 1; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (uint32_t i = 0; i < n; i++)
        sum += exp((double)x[i] - most);
    return most + log(sum); /* cppcheck-suppress invalidFunctionArg; at least e^0 */
}

static uint32_t best_of(const float *x, uint32_t n)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        if (x[i] > x[best])
            best = i;
    return best;
}

static void score(totals *t, const float *row, const float *base, uint32_t n, int32_t target)
{
    const double z = log_sum_exp(row, n), nll = z - row[target];
    t->nll += nll;
    t->nll_squares += nll * nll;
    if (base) {
        const double zb = log_sum_exp(base, n);
        double kl = 0;
        for (uint32_t i = 0; i < n; i++) {
            const double difference = (double)base[i] - row[i];
            kl += exp(base[i] - zb) * (difference - zb + z);
            t->logit_squares += difference * difference / n;
            if (fabs(difference) > t->logit_largest)
                t->logit_largest = fabs(difference);
        }
        t->kl[t->n] = kl > 0 ? kl : 0; /* rounding can leave -1e-17 */
        t->base_nll += zb - base[target];
        t->agree += best_of(row, n) == best_of(base, n);
    }
    t->n++;
}

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Half the width of a 95 % interval for a mean. Neighbouring tokens are not independent: read it as a lower bound. */
static double interval(double sum, double squares, uint64_t n)
{
    if (n < 2)
        return 0;
    const double mean = sum / (double)n, variance = (squares - sum * mean) / (double)(n - 1);
    return 1.96 * sqrt(variance > 0 ? variance / (double)n : 0);
}

typedef struct kl_summary {
    double mean, mean_interval, median, p99, max, agree, agree_interval, rms;
} kl_summary;

static kl_summary summarise(totals *t)
{
    double sum = 0, squares = 0;
    for (uint64_t i = 0; i < t->n; i++) {
        sum += t->kl[i];
        squares += t->kl[i] * t->kl[i];
    }
    qsort(t->kl, t->n, sizeof *t->kl, ascending);
    const double n = (double)t->n, p = (double)t->agree / n;
    return (kl_summary){
        .mean = sum / n,
        .mean_interval = interval(sum, squares, t->n),
        .median = t->kl[t->n / 2],
        .p99 = t->kl[(uint64_t)(0.99 * (n - 1))],
        .max = t->kl[t->n - 1],
        .agree = p,
        .agree_interval = 1.96 * sqrt(p * (1 - p) / n),
        .rms = sqrt(t->logit_squares / n),
    };
}

static void print_result(const perplexity_options *o, const xlstm_model *model, totals *t, double seconds)
{
    const double mean = t->nll / (double)t->n, half = interval(t->nll, t->nll_squares, t->n);
    if (o->json)
        outputf("{\"tokens\":%llu,\"nll\":%.10g,\"ppl\":%.10g,\"nll_interval95\":%.6g,\"seconds\":%.3f",
                (unsigned long long)t->n, mean, exp(mean), half, seconds);
    else
        outputf("tokens      %llu\nnll         %.6f +- %.6f nats a token\nperplexity  %.5f\n", (unsigned long long)t->n,
                mean, half, exp(mean));
    if (t->kl) {
        const kl_summary s = summarise(t);
        const double base = t->base_nll / (double)t->n;
        if (o->json)
            outputf(",\"base_nll\":%.10g,\"kl\":{\"mean\":%.6g,\"mean_interval95\":%.6g,\"median\":%.6g,\"p99\":%.6g,"
                    "\"max\":%.6g},\"top1_agreement\":%.8g,\"top1_interval95\":%.6g,\"logit_rms\":%.6g,"
                    "\"logit_max\":%.6g",
                    base, s.mean, s.mean_interval, s.median, s.p99, s.max, s.agree, s.agree_interval, s.rms,
                    t->logit_largest);
        else
            outputf("base nll    %.6f (perplexity %.5f)\nKL          mean %.3e +- %.1e, median %.3e, p99 %.3e, max %.3e\n"
                    "same top-1  %.3f %% +- %.3f\nlogits      rms difference %.3e, largest %.3e\n",
                    base, exp(base), s.mean, s.mean_interval, s.median, s.p99, s.max, 100 * s.agree,
                    100 * s.agree_interval, s.rms, t->logit_largest);
    }
    if (o->json)
        outputf("}\n");
    (void)model;
}

/* ---- evaluation --------------------------------------------------------------------------------------------------- */

/* What is fed and what is scored: row i of the text predicts ids[i + 1]. */
typedef struct task {
    const perplexity_options *o;
    xlstm_session *session;
    const int32_t *ids; /* BOS, when it is automatic, stands in front already */
    size_t n;
    totals totals;
    base_file base;
    float *rows, *base_row;
    size_t portion;
    progress bar;
    size_t total, fed;
} task;

/* Feeds ids[from .. to) in a fresh or continuing session; rows below `score_from` are read but not counted. */
static int feed(task *t, size_t from, size_t to, size_t score_from)
{
    xlstm_model *model = xlstm_session_model(t->session);
    const uint32_t V = xlstm_model_get_info(model)->vocab_size;
    for (size_t at = from; at < to;) {
        const size_t count = tokens_to_border(t->session, t->ids[at], to - at, t->portion);
        xlstm_segment g = {.session = t->session, .tokens = t->ids + at, .count = count, .want = XLSTM_WANT_ALL,
                           .logits = t->rows};
        xlstm_error err = {0};
        if (xlstm_evaluate(model, &g, 1, &err))
            return fail_error(&err);
        for (size_t i = 0; i < count; i++) {
            if (at + i + 1 >= t->n || at + i < score_from)
                continue;
            const float *row = t->rows + i * V, *base = NULL;
            if (t->base.temporary && fwrite(row, sizeof *row, V, t->base.file) != V)
                return fail("%s: cannot write: %s", t->base.path, strerror(errno));
            if (t->base.file && !t->base.temporary) {
                if (fread(t->base_row, sizeof *t->base_row, V, t->base.file) != V)
                    return fail("%s: truncated", t->base.path);
                base = t->base_row;
            }
            score(&t->totals, row, base, V, t->ids[at + i + 1]);
        }
        at += count;
        t->fed += count;
        progress_show(&t->bar, "perplexity", t->fed, t->total);
        if (interrupted())
            return EXIT_INTERRUPTED;
    }
    return EXIT_OK;
}

/* The windows [first, last) and from where each counts. One window over everything without --window. */
static bool next_window(const task *t, size_t *first, size_t *last, size_t *score_from, bool start)
{
    const size_t scored = t->n - 1, window = t->o->window ? t->o->window : scored;
    const size_t stride = t->o->stride ? t->o->stride : window;
    if (start) {
        *first = *score_from = 0;
    } else {
        if (*last >= scored)
            return false;
        *first += stride;
        *score_from = *last > *first ? *last : *first;
    }
    *last = scored - *first < window ? scored : *first + window;
    return true;
}

/* The tokens that will be scored, in order: what a file of base logits is checked against. */
static size_t list_targets(const task *t, int32_t *out)
{
    size_t first, last, from, n = 0;
    for (bool more = next_window(t, &first, &last, &from, true); more; more = next_window(t, &first, &last, &from, false))
        for (size_t i = from; i < last; i++)
            out[n++] = t->ids[i + 1];
    return n;
}

static int evaluate(task *t, const xlstm_state *start)
{
    size_t first, last, from;
    for (size_t i = 0; next_window(t, &first, &last, &from, i == 0); i++) {
        xlstm_error err = {0};
        if (i > 0 && (start ? xlstm_state_restore(t->session, start, &err) : xlstm_session_reset(t->session, &err)))
            return fail_error(&err);
        const int status = feed(t, first, last, from);
        if (status)
            return status;
    }
    return EXIT_OK;
}

static int run_on(task *t, const xlstm_model *model)
{
    const perplexity_options *o = t->o;
    const xlstm_model_info *info = xlstm_model_get_info(model);
    xlstm_state *state = NULL;
    xlstm_error err = {0};
    int status = EXIT_OK;
    if (o->state_in && (xlstm_state_load(&state, xlstm_session_model(t->session), o->state_in, true, &err) ||
                        xlstm_state_restore(t->session, state, &err)))
        status = fail_error(&err);
    t->portion = (info->chunk_size + 255u) / info->chunk_size * info->chunk_size;
    t->rows = must(malloc(t->portion * info->vocab_size * sizeof *t->rows));
    t->base_row = must(malloc(info->vocab_size * sizeof *t->base_row));
    int32_t *targets = must(malloc((t->n + 1) * sizeof *targets));
    const size_t scored = list_targets(t, targets);
    if (status == EXIT_OK && o->kl_base)
        status = base_create(&t->base, o->kl_base, info->vocab_size, targets, scored);
    if (status == EXIT_OK && o->kl) {
        status = base_open(&t->base, o->kl, info->vocab_size, targets, scored);
        t->totals.kl = must(malloc(scored * sizeof *t->totals.kl));
    }
    free(targets);
    t->total = scored;
    if (o->window && o->stride && o->stride < o->window)
        t->total = (scored + o->stride - 1) / o->stride * o->window;
    t->bar = progress_start(&o->model);
    const double started = now();
    if (status == EXIT_OK)
        status = evaluate(t, state);
    progress_end(&t->bar);
    if (t->base.file)
        status = base_finish(&t->base, status);
    if (status == EXIT_OK)
        print_result(o, model, &t->totals, now() - started);
    free(t->totals.kl);
    free(t->rows);
    free(t->base_row);
    xlstm_state_free(state);
    return status;
}

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const perplexity_options *o = options;
    int status = check_output("--kl-base", o->kl_base);
    if (status)
        return status;
    if (o->kl_base && o->kl)
        return fail_usage("give one of --kl-base and --kl");
    if (o->stride && (!o->window || o->stride > o->window))
        return fail_usage("--stride needs a --window at least as long");
    xlstm_model *model;
    status = open_model(&model, &o->model, false);
    if (status)
        return status;
    prompt input = {0};
    task t = {.o = o};
    status = prompt_read(&input, &o->prompt, model);
    if (status == EXIT_OK && !input.given)
        status = fail_usage("give a text with -f FILE, --prompt or --prompt-ids");
    if (status == EXIT_OK && o->tokens && o->tokens < input.ids.n)
        input.ids.n = o->tokens;
    id_list ids = {0};
    const xlstm_model_info *info = xlstm_model_get_info(model);
    /* the first token is predicted from BOS when BOS is automatic */
    if (status == EXIT_OK && info->bos_auto && !o->state_in && (input.ids.n == 0 || input.ids.ids[0] != info->bos_id))
        ids_add(&ids, info->bos_id);
    for (size_t i = 0; i < input.ids.n; i++)
        ids_add(&ids, input.ids.ids[i]);
    t.ids = ids.ids;
    t.n = ids.n;
    if (status == EXIT_OK && t.n < 2)
        status = fail_usage("the text has %zu token(s), expected at least 2", input.ids.n);
    xlstm_error err = {0};
    if (status == EXIT_OK && xlstm_session_new(&t.session, model, &err))
        status = fail_error(&err);
    interrupt_watch();
    if (status == EXIT_OK)
        status = run_on(&t, model);
    xlstm_session_free(t.session);
    free(ids.ids);
    prompt_free(&input);
    xlstm_model_free(model);
    return output_finish(status);
}

static const option_group groups[] = {
    PROMPT_GROUP(perplexity_options, prompt),
    {"Measuring", rows, COUNT_OF(rows), 0},
    MODEL_GROUP(perplexity_options, model),
};

const command command_perplexity = {
    .name = "perplexity",
    .summary = "measure how well a model predicts a text, and compare models by KL divergence",
    .usage = "-m MODEL -f FILE [--json]",
    .details = "Prints the mean negative log likelihood of every predicted token, in nats, and its exponential. The whole "
               "text is one stream with carried state unless --window cuts it. Where a begin-of-sequence token is put "
               "in front, the first token is predicted from it; otherwise the first token is not scored.\n"
               "To compare two precisions or two files of a model: run once with --kl-base FILE, then with --kl FILE.",
    .size = sizeof(perplexity_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
