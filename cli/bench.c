/*
 * bench.c — `xlstm bench`: how fast a model is read and written on this machine, next to what the machine could do. Each
 * measurement is interleaved with yardsticks, a loop that only reads and loops that only multiply, and the shares are
 * medians of ratios of neighbours in time, because bandwidth and clock change with the neighbours on shared machines.
 */
#include "common.h"
#include "machine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

typedef struct bench_options {
    const char *preset;
    string_list types, activations;
    id_list prompts, batches, threads;
    uint64_t repetitions, tokens;
    float limit_read, limit_peak; /* 1e9 a second */
    bool no_prefill, no_decode, json, csv, md;
    model_options model;
} bench_options;

#define FIELD(member) offsetof(bench_options, member)
static const option_row rows[] = {
    {"preset", 0, OPTION_TEXT, FIELD(preset), "NAME",
     "random weights of a geometry, made in memory: 7b, 1b, 410m, 125m, tiny; without it the model of --model", NULL, NULL,
     0, 0},
    {"type", 'T', OPTION_LIST, FIELD(types), "TYPE",
     "weight formats of a preset, one measurement each: bf16, f32, f16, q8_0, q6_k, q5_k, q4_k, q4_0 (repeatable; default: "
     "bf16, q8_0 and q4_k)", NULL, NULL, 0, 0},
    {"activations", 0, OPTION_LIST, FIELD(activations), "TYPE",
     "as --dtype, one measurement each (repeatable): f32, bf16; a preset without either: bf16", NULL, NULL, 0, 0},
    {"prompt-lengths", 0, OPTION_IDS, FIELD(prompts), "N,N", "tokens to read at once (default: 512)", NULL, NULL, 0, 0},
    {"batch", 'b', OPTION_IDS, FIELD(batches), "N,N", "sequences decoded together (default: 1,8)", NULL, NULL, 0, 0},
    {"thread-counts", 0, OPTION_IDS, FIELD(threads), "N,N",
     "as --threads, one measurement each; the model is opened anew for each", NULL, NULL, 0, 0},
    {"repetitions", 'r', OPTION_COUNT, FIELD(repetitions), "N", "how often each is measured, decoding three times as often", "5", NULL, 1, 1000},
    {"tokens", 'n', OPTION_COUNT, FIELD(tokens), "N", "decode steps in one measurement; 0: about a third of a second's worth", "0",
     NULL, 0, 1e6},
    {"no-prefill", 0, OPTION_FLAG, FIELD(no_prefill), NULL, "leave out reading", NULL, NULL, 0, 0},
    {"no-decode", 0, OPTION_FLAG, FIELD(no_decode), NULL, "leave out decoding", NULL, NULL, 0, 0},
    {"limit-read", 0, OPTION_NUMBER, FIELD(limit_read), "GB/S",
     "judge by this read bandwidth instead of measuring: for devices, whose limits are not measured", NULL, NULL, 0, 0},
    {"limit-peak", 0, OPTION_NUMBER, FIELD(limit_peak), "GFLOP/S", "judge by this multiply-add peak, likewise", NULL, NULL,
     0, 0},
    {"json", 0, OPTION_FLAG, FIELD(json), NULL, "one JSON object", NULL, NULL, 0, 0},
    {"csv", 0, OPTION_FLAG, FIELD(csv), NULL, "comma-separated lines", NULL, NULL, 0, 0},
    {"md", 0, OPTION_FLAG, FIELD(md), NULL, "a Markdown table", NULL, NULL, 0, 0},
};

/* ---- yardsticks --------------------------------------------------------------------------------------------------- */

/* What products with the weights at hand are compared with. */
typedef struct yardsticks {
    const char *kernel; /* peak of the instruction that the backend's kernel uses; NULL: none is known */
    char kernel_name[48];
    double kernel_passes; /* how often that kernel multiplies each weight */
    const char *best;     /* peak of the fastest instruction that takes weights of this format without loss */
    const char *best_name, *read_name;
} yardsticks;

/* The fastest of these that the machine has; a list of names, best first. */
static const char *first_peak(const char *const *names)
{
    for (; *names; names++)
        if (machine_has_peak(*names))
            return *names;
    return NULL;
}

/* Computes on this machine's processors, whose limits can be measured here. */
static bool is_host(const char *backend)
{
    return strncmp(backend, "cpu", 3) == 0 || strncmp(backend, "ref", 3) == 0;
}

/* "cpu (avx512-bf16-vnni-amx, 16 threads)" says what kernels there are; src/cpu/cpu_backend.c which are for what. */
static yardsticks choose_yardsticks(const xlstm_model_info *i, bool repacked)
{
    static const char *const f32[] = {"avx512", "avx2", "neon", "generic", NULL};
    static const char *const bf16[] = {"amx-bf16", "avx512-bf16", "avx512", "avx2", "neon", "generic", NULL};
    static const char *const int8[] = {"amx-int8", "avx512-vnni", "avx512-int8", "avx2-int8", "neon-dotprod", "neon",
                                       "generic", NULL};
    const bool block = i->weights.dtype >= XLSTM_Q8_0, pairs = i->weights.dtype == XLSTM_BF16;
    const char *features = strchr(i->backend, '(');
    char set[32] = "";
    yardsticks y = {.kernel_passes = 1};
    if (is_host(i->backend))
        y.best = first_peak(block ? int8 : pairs ? bf16 : f32);
    if (strncmp(i->backend, "cpu", 3) != 0 || !features || sscanf(features, "(%31[a-z0-9]", set) != 1)
        return y;
    const bool amx = strstr(features, "-amx"), dpbf16 = strstr(features, "-bf16"), vnni = strstr(features, "-vnni");
    const bool dotprod = strstr(features, "-dotprod"), narrow = i->activations.dtype == XLSTM_BF16;
    char name[sizeof y.kernel_name];
    snprintf(name, sizeof name, "%s", set); /* float32 multiply-adds */
    if (block && repacked)
        snprintf(name, sizeof name, "%s%s", set, vnni ? "-vnni" : dotprod ? "-dotprod" : "-int8");
    else if (pairs && repacked && amx)
        snprintf(name, sizeof name, "amx-bf16");
    else if (pairs && repacked && dpbf16 && narrow)
        snprintf(name, sizeof name, "avx512-bf16");
    if (pairs && repacked && amx && !narrow)
        y.kernel_passes = 3; /* a float32 activation is the sum of three bfloat16 numbers */
    for (size_t k = 0; machine_peak_at(k); k++)
        if (!strcmp(machine_peak_at(k), name))
            y.kernel = machine_peak_at(k);
    if (y.kernel)
        snprintf(y.kernel_name, sizeof y.kernel_name, y.kernel_passes > 1 ? "%s / %.0f" : "%s", name, y.kernel_passes);
    return y;
}

static const double GIGA = 1e9;

typedef struct limits {
    double read, kernel, best; /* bytes or operations a second; 0: not known */
} limits;

/* One repetition. */
typedef struct sample {
    double seconds; /* of one step or of one prompt */
    limits limit;   /* mean of what was measured right before and right after */
} sample;

/* ---- shares of limits ------------------------------------------------------------------------------------------------ */

typedef struct outcome {
    const char *test;
    uint32_t batch, length;
    double tokens_per_second, spread; /* median; (max - min) / median */
    double gain;                      /* median of tokens a second by those of the first batch in the same round; 0: none */
    double bytes, operations;         /* of one step or of one prompt */
    double seconds;                   /* median of it */
    limits limit;                     /* medians of what the machine could do, measured alongside */
    double read_share, kernel_share, best_share; /* medians of ratios */
    uint64_t hash;                    /* of the last logits; decode: of those after the warm-up */
} outcome;

typedef struct bench {
    const bench_options *o;
    machine *machine; /* NULL: not measured */
    xlstm_model *model;
    const xlstm_model_info *info;
    yardsticks yard;
    uint32_t threads;
    const char *name; /* of the model */
    double step_bytes, state_bytes; /* read per step whatever the batch; read and written per sequence */
    double token_operations, head_operations;
    bool printed, any;
} bench;

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Sorts. */
static double median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, ascending);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

static int32_t any_id(const bench *b, uint64_t i)
{
    return (int32_t)((2654435761u * (i + 1)) % b->info->n_tokens);
}

static limits measure_limits(const bench *b)
{
    limits l = {0};
    if (b->o->limit_read > 0)
        l.read = (double)b->o->limit_read * GIGA;
    else if (b->machine)
        l.read = machine_read_bandwidth(b->machine, 0.15);
    if (b->o->limit_peak > 0)
        l.kernel = l.best = (double)b->o->limit_peak * GIGA;
    else if (b->machine) {
        l.best = machine_peak(b->machine, b->yard.best, 0.1);
        if (b->yard.kernel)
            l.kernel = b->yard.kernel == b->yard.best ? l.best : machine_peak(b->machine, b->yard.kernel, 0.1);
        l.kernel /= b->yard.kernel_passes;
    }
    return l;
}

static limits between(const limits *a, const limits *b)
{
    return (limits){0.5 * (a->read + b->read), 0.5 * (a->kernel + b->kernel), 0.5 * (a->best + b->best)};
}

static double member_of(const limits *l, size_t member)
{
    double value;
    memcpy(&value, (const char *)l + member, sizeof value);
    return value;
}

/* Median of a limit, and of the shares of it that `work` in each sample's time is. */
static void judge(double *scratch, const sample *s, size_t n, double work, size_t member, double *limit, double *share)
{
    for (size_t i = 0; i < n; i++)
        scratch[i] = member_of(&s[i].limit, member);
    *limit = median(scratch, n);
    for (size_t i = 0; i < n; i++)
        scratch[i] = member_of(&s[i].limit, member) > 0 ? work / s[i].seconds / member_of(&s[i].limit, member) : 0;
    *share = median(scratch, n);
}

/* Of n samples in which `tokens` were read or written each; r has bytes and operations. */
static void finish(outcome *r, const sample *s, size_t n, double tokens)
{
    double *scratch = must(calloc(n, sizeof *scratch));
    judge(scratch, s, n, r->bytes, offsetof(limits, read), &r->limit.read, &r->read_share);
    judge(scratch, s, n, r->operations, offsetof(limits, kernel), &r->limit.kernel, &r->kernel_share);
    judge(scratch, s, n, r->operations, offsetof(limits, best), &r->limit.best, &r->best_share);
    for (size_t i = 0; i < n; i++)
        scratch[i] = s[i].seconds;
    r->seconds = median(scratch, n);
    r->tokens_per_second = tokens / r->seconds;
    r->spread = (scratch[n - 1] - scratch[0]) / r->seconds;
    free(scratch);
}

/* ---- what a token costs ------------------------------------------------------------------------------------------- */

/* Bytes and operations as docs/performance.md counts them. */
static void count_costs(bench *b)
{
    const xlstm_model_info *i = b->info;
    double embedding_bytes = 0, D = i->embedding_dim;
    xlstm_tensor_info t;
    for (size_t k = 0; k < xlstm_model_tensor_count(b->model); k++) {
        xlstm_model_tensor(b->model, k, &t);
        if (strstr(t.name, "embed") || strstr(t.name, "token_embd"))
            embedding_bytes = (double)t.bytes;
    }
    /* the embedding table is not read, only a row of it; a tied one is read as the head */
    b->step_bytes = (double)i->weight_bytes - (i->tied ? 0 : embedding_bytes);
    b->state_bytes = 2.0 * (double)i->state_bytes;
    const double NH = i->num_heads, dq = i->qk_dim / NH, dv = i->v_dim / NH, L = i->chunk_size;
    const double products = 2 * i->qk_dim * D + 3 * i->v_dim * D + 2 * NH * D + 3 * D * i->ffn_dim;
    const double cell = NH * (4 * dq * dv + (L + 1) * (dq + dv));
    b->token_operations = i->num_blocks * (2 * products + cell);
    b->head_operations = 2.0 * i->vocab_size * D;
}

/* ---- printing ----------------------------------------------------------------------------------------------------- */

static const char *type_name(const xlstm_resolved *r)
{
    return xlstm_dtype_name(r->dtype);
}

/* `none` where there is no gain. */
static const char *gain_text(char gain[16], const char *format, const outcome *r, const char *none)
{
    snprintf(gain, 16, format, r->gain);
    return r->gain > 0 ? gain : none;
}

static void print_json(const bench *b, const outcome *r)
{
    const xlstm_model_info *i = b->info;
    const bool decode = !strcmp(r->test, "decode");
    char gain[16];
    outputf("%s\n  {\"model\":", b->any ? "," : "");
    output_json_string(b->name, strlen(b->name));
    outputf(",\"backend\":");
    output_json_string(i->backend, strlen(i->backend));
    outputf(",\"threads\":%u,\"weights\":\"%s\",\"activations\":\"%s\",\"state\":\"%s\",\"test\":\"%s\",\"batch\":%u,"
            "\"length\":%u,\"tokens_per_second\":%.6g,\"spread\":%.4f,\"gain\":%s,\"gb_per_second\":%.6g,"
            "\"gflop_per_second\":%.6g,\"read_gb_per_second\":%.6g,\"read_share\":%.4f,\"kernel_peak\":\"%s\","
            "\"kernel_gflop_per_second\":%.6g,\"kernel_share\":%.4f,\"best_peak\":\"%s\",\"best_gflop_per_second\":%.6g,"
            "\"best_share\":%.4f,\"share\":%.4f,"
            "\"flop_per_byte\":%.6g,\"logits_hash\":\"%016llx\"}",
            b->threads, type_name(&i->weights), type_name(&i->activations), type_name(&i->state), r->test, r->batch,
            r->length, r->tokens_per_second, r->spread, gain_text(gain, "%.4g", r, "null"), r->bytes / r->seconds / GIGA,
            r->operations / r->seconds / GIGA, r->limit.read / GIGA, r->read_share, b->yard.kernel_name,
            r->limit.kernel / GIGA, r->kernel_share, b->yard.best_name, r->limit.best / GIGA, r->best_share,
            decode ? r->read_share : r->kernel_share, r->operations / r->bytes, (unsigned long long)r->hash);
}

/* A CSV field; quoted if it has to be. */
static void output_csv(const char *text)
{
    if (!strpbrk(text, ",\"\n")) {
        outputf("%s", text);
        return;
    }
    output("\"", 1);
    for (; *text; text++)
        outputf(*text == '"' ? "\"\"" : "%c", *text);
    output("\"", 1);
}

static void print_csv(const bench *b, const outcome *r)
{
    const xlstm_model_info *i = b->info;
    char gain[16];
    if (!b->any)
        outputf("cpu,backend,threads,model,weights,activations,state,test,batch,length,tokens_per_second,spread,gain,"
                "gb_per_second,gflop_per_second,read_gb_per_second,read_share,kernel_peak,kernel_gflop_per_second,"
                "kernel_share,best_peak,best_gflop_per_second,best_share,flop_per_byte,logits_hash\n");
    output_csv(machine_cpu());
    outputf(",");
    output_csv(i->backend);
    outputf(",%u,", b->threads);
    output_csv(b->name);
    outputf(",%s,%s,%s,%s,%u,%u,%.6g,%.4f,%s,%.6g,%.6g,%.6g,%.4f,%s,%.6g,%.4f,%s,%.6g,%.4f,%.6g,%016llx\n",
            type_name(&i->weights), type_name(&i->activations), type_name(&i->state), r->test, r->batch, r->length,
            r->tokens_per_second, r->spread, gain_text(gain, "%.4g", r, ""), r->bytes / r->seconds / GIGA,
            r->operations / r->seconds / GIGA, r->limit.read / GIGA, r->read_share, b->yard.kernel_name,
            r->limit.kernel / GIGA, r->kernel_share, b->yard.best_name, r->limit.best / GIGA, r->best_share, r->operations / r->bytes,
            (unsigned long long)r->hash);
}

/* "1043.2 avx512-vnni" and "51.2%", or dashes */
static void limit_text(char limit[64], char part[16], double value, double portion, const char *name)
{
    snprintf(limit, 64, "-");
    snprintf(part, 16, "-");
    if (!(value > 0))
        return;
    snprintf(limit, 64, "%.1f %.40s", value / GIGA, name);
    snprintf(part, 16, "%.1f%%", 100 * portion);
}

static void print_row(const bench *b, const outcome *r)
{
    const xlstm_model_info *i = b->info;
    const bool md = b->o->md, decode = !strcmp(r->test, "decode");
    const char *bar = md ? "| " : "", *gap = md ? " | " : "  ", *end = md ? " |" : "";
    char limit[64], part[16], best[64], best_part[16], spread[16], gain[16];
    if (decode)
        limit_text(limit, part, r->limit.read, r->read_share, b->yard.read_name);
    else
        limit_text(limit, part, r->limit.kernel, r->kernel_share, b->yard.kernel_name);
    limit_text(best, best_part, decode ? 0 : r->limit.best, r->best_share, b->yard.best_name);
    snprintf(spread, sizeof spread, "%.1f%%", 100 * r->spread);
    if (!b->any)
        outputf("%s%-9s%s%-11s%s%-8s%s%7s%s%-7s%s%5s%s%6s%s%9s%s%7s%s%6s%s%14s%s%-20s%s%6s%s%-20s%s%6s%s%-16s%s\n%s", bar,
                "weights", gap, "activations", gap, "state", gap, "threads", gap, "test", gap, "batch", gap, "length", gap,
                "tok/s", gap, "spread", gap, "gain", gap, "rate", gap, "limit of the kernel", gap, "share", gap,
                "limit of the chip", gap, "share", gap, "logits", end,
                md ? "|---|---|---|--:|---|--:|--:|--:|--:|--:|--:|---|--:|---|--:|---|\n" : "");
    outputf("%s%-9s%s%-11s%s%-8s%s%7u%s%-7s%s%5u%s%6u%s%9.2f%s%7s%s%6s%s%6.1f %-7s%s%-20s%s%6s%s%-20s%s%6s%s%016llx%s\n", bar,
            type_name(&i->weights), gap, type_name(&i->activations), gap, type_name(&i->state), gap, b->threads, gap,
            r->test, gap, r->batch, gap, r->length, gap, r->tokens_per_second, gap, spread, gap,
            gain_text(gain, "%.2f", r, "-"), gap, (decode ? r->bytes : r->operations) / r->seconds / GIGA,
            decode ? "GB/s" : "GFLOP/s", gap, limit, gap, part, gap, best, gap, best_part, gap, (unsigned long long)r->hash, end);
}

static void print_outcome(bench *b, const outcome *r)
{
    if (b->o->json)
        print_json(b, r);
    else if (b->o->csv)
        print_csv(b, r);
    else
        print_row(b, r);
    output_flush();
    b->any = true;
}

static void print_machine(bench *b)
{
    if (b->o->json)
        outputf("{\"cpu\":\"%s\",\"version\":\"%s\",\"results\":[", machine_cpu(), xlstm_version());
    else if (!b->o->csv && !b->o->md) {
        outputf("%s; %s", machine_cpu(), b->info->backend);
        if (b->machine)
            outputf("; fastest read: %s", machine_read_way(b->machine));
        outputf("\n");
    }
    b->printed = true;
}

/* ---- measuring ---------------------------------------------------------------------------------------------------- */

/* Sequences that are decoded together, the first `batch` of `segments`. */
typedef struct decoding {
    bench *b;
    xlstm_session **sessions;
    xlstm_segment *segments;
    int32_t *ids;
    xlstm_error err;
} decoding;

/* Seconds of one of `steps` steps of the first `batch` sequences; < 0: failed or interrupted. */
static double decode_steps(decoding *d, uint32_t batch, uint64_t steps)
{
    const double started = now();
    for (uint64_t s = 0; s < steps; s++) {
        for (uint32_t i = 0; i < batch; i++)
            d->ids[i] = any_id(d->b, s * batch + i);
        if (interrupted() || xlstm_evaluate(d->b->model, d->segments, batch, &d->err))
            return -1;
    }
    return (now() - started) / (double)steps;
}

/* A measurement of every batch in turn, again and again: so what the machine does meanwhile falls on all of them alike.
 * samples [n_batches][n], hashes [n_batches] */
static bool decode_rounds(decoding *d, const id_list *batches, sample *samples, size_t n, uint64_t *hashes)
{
    bench *b = d->b;
    uint64_t *steps = must(calloc(batches->n, sizeof *steps));
    limits before = {0};
    bool good = true;
    for (size_t round = 0; round <= n && good; round++) { /* the first is a warm-up */
        for (size_t k = 0; k < batches->n && good; k++) {
            const uint32_t batch = (uint32_t)batches->ids[k];
            for (uint32_t i = 0; i < batch && good && round == 0; i++)
                good = xlstm_session_reset(d->sessions[i], &d->err) == XLSTM_OK;
            const double seconds = good ? decode_steps(d, batch, round == 0 ? 2 : steps[k]) : -1;
            good = seconds >= 0;
            const limits after = good ? measure_limits(b) : before;
            if (round > 0)
                samples[k * n + round - 1] = (sample){seconds, between(&before, &after)};
            before = after;
            if (round == 0 && good) { /* the same number of steps in every run; it also tells how many to measure */
                hashes[k] = XXH3_64bits(xlstm_session_logits(d->sessions[0]), b->info->vocab_size * sizeof(float));
                steps[k] = b->o->tokens ? b->o->tokens : (uint64_t)(0.33 / seconds) + 1;
            }
        }
    }
    free(steps);
    return good && !interrupted();
}

static int measure_decode(bench *b, const id_list *batches)
{
    const size_t n = 3 * b->o->repetitions; /* of a third of a second: memory can change its mind within seconds */
    uint32_t most = 0;
    for (size_t k = 0; k < batches->n; k++)
        most = (uint32_t)batches->ids[k] > most ? (uint32_t)batches->ids[k] : most;
    decoding d = {.b = b};
    d.sessions = must(calloc(most, sizeof *d.sessions)); /* NOLINT(bugprone-sizeof-expression) */
    d.segments = must(calloc(most, sizeof *d.segments));
    d.ids = must(calloc(most, sizeof *d.ids));
    sample *samples = must(calloc(batches->n * n, sizeof *samples));
    uint64_t *hashes = must(calloc(batches->n, sizeof *hashes));
    bool good = true;
    for (uint32_t i = 0; i < most && good; i++) {
        good = xlstm_session_new(&d.sessions[i], b->model, &d.err) == XLSTM_OK;
        d.segments[i] = (xlstm_segment){.session = d.sessions[i], .tokens = &d.ids[i], .count = 1, .want = XLSTM_WANT_LAST};
    }
    good = good && decode_rounds(&d, batches, samples, n, hashes);
    for (size_t k = 0; k < batches->n && good; k++) {
        const uint32_t batch = (uint32_t)batches->ids[k];
        outcome r = {.test = "decode", .batch = batch, .length = 1, .hash = hashes[k]};
        r.bytes = b->step_bytes + batch * b->state_bytes;
        r.operations = batch * (b->token_operations + b->head_operations);
        finish(&r, samples + k * n, n, batch);
        double *gains = must(calloc(n, sizeof *gains));
        for (size_t i = 0; i < n; i++)
            gains[i] = batch / samples[k * n + i].seconds / (batches->ids[0] / samples[i].seconds);
        r.gain = median(gains, n);
        free(gains);
        print_outcome(b, &r);
    }
    for (uint32_t i = 0; i < most; i++)
        xlstm_session_free(d.sessions[i]);
    free(d.sessions);
    free(d.segments);
    free(d.ids);
    free(samples);
    free(hashes);
    return d.err.code ? fail_error(&d.err) : good ? EXIT_OK : EXIT_INTERRUPTED;
}

static int measure_prefill(bench *b, uint32_t length)
{
    const uint32_t pass = xlstm_model_get_info(b->model)->max_rows;
    const size_t n = b->o->repetitions;
    int32_t *ids = must(calloc(length, sizeof *ids));
    sample *samples = must(calloc(n, sizeof *samples));
    limits before = {0};
    for (uint32_t i = 0; i < length; i++)
        ids[i] = any_id(b, i);
    xlstm_session *session;
    xlstm_error err = {0};
    int code = xlstm_session_new(&session, b->model, &err);
    for (size_t round = 0; round <= n && !code && !interrupted(); round++) { /* the first is a warm-up */
        code = xlstm_session_reset(session, &err);
        const double started = now();
        if (!code)
            code = xlstm_prefill(session, ids, length, &err);
        const double seconds = now() - started;
        const limits after = measure_limits(b);
        if (round > 0)
            samples[round - 1] = (sample){seconds, between(&before, &after)};
        before = after;
    }
    const bool stopped = interrupted();
    if (!code && !stopped) {
        outcome r = {.test = "prefill", .batch = 1, .length = length};
        r.bytes = ((length + pass - 1) / pass) * b->step_bytes + b->state_bytes;
        r.operations = b->token_operations * length + b->head_operations;
        r.hash = XXH3_64bits(xlstm_session_logits(session), b->info->vocab_size * sizeof(float));
        finish(&r, samples, n, length);
        print_outcome(b, &r);
    }
    xlstm_session_free(session);
    free(ids);
    free(samples);
    return code ? fail_error(&err) : stopped ? EXIT_INTERRUPTED : EXIT_OK;
}

/* ---- command ------------------------------------------------------------------------------------------------------ */

static int measure_all(bench *b)
{
    const bench_options *o = b->o;
    static int32_t default_prompts[] = {512}, default_batches[] = {1, 8};
    const id_list prompts = o->prompts.given ? o->prompts : (id_list){default_prompts, 1, true};
    const id_list batches = o->batches.given ? o->batches : (id_list){default_batches, 2, true};
    int status = o->no_decode ? EXIT_OK : measure_decode(b, &batches);
    for (size_t i = 0; i < prompts.n && !o->no_prefill && status == EXIT_OK && !interrupted(); i++)
        status = measure_prefill(b, (uint32_t)prompts.ids[i]);
    return status;
}

static void make_machine(bench *b, uint32_t threads)
{
    const bool given = b->o->limit_read > 0 && b->o->limit_peak > 0;
    if (is_host(b->info->backend) && !given && !b->machine)
        b->machine = machine_new(threads);
    else if (b->machine)
        machine_set_threads(b->machine, threads);
}

static int run_one(bench *b, const char *path, const model_options *options)
{
    model_options o = *options;
    if (path)
        o.model = path;
    if (o.bos == XLSTM_AUTO)
        o.bos = XLSTM_OFF; /* lengths are what they are called */
    int status = open_model(&b->model, &o, false);
    if (status)
        return status;
    b->info = xlstm_model_get_info(b->model);
    b->yard = choose_yardsticks(b->info, !o.no_repack);
    b->yard.best_name = b->yard.best ? b->yard.best : "";
    b->yard.read_name = b->o->limit_read > 0 ? "given" : "read";
    if (b->o->limit_peak > 0)
        snprintf(b->yard.kernel_name, sizeof b->yard.kernel_name, "%s", b->yard.best_name = "given");
    const char *slash = strrchr(b->info->path, '/');
    b->name = slash && slash[1] ? slash + 1 : b->info->path;
    const char *comma = strrchr(b->info->backend, ',');
    unsigned threads = (unsigned)o.threads;
    if (comma)
        (void)sscanf(comma, ", %u thread", &threads);
    b->threads = threads;
    make_machine(b, threads);
    if (!b->printed && !interrupted())
        print_machine(b);
    count_costs(b);
    status = measure_all(b);
    xlstm_model_free(b->model);
    b->model = NULL;
    return status;
}

/* Every weight format, or the model as it is. */
static int run_types(bench *b, const model_options *options)
{
    static const char *const default_types[] = {"bf16", "q8_0", "q4_k"};
    const bench_options *o = b->o;
    if (!o->preset)
        return run_one(b, NULL, options);
    const size_t n = o->types.n ? o->types.n : COUNT_OF(default_types);
    int status = EXIT_OK;
    for (size_t i = 0; i < n && status == EXIT_OK && !interrupted(); i++) {
        buffer path = {0};
        buffer_addf(&path, "preset:%s:%s", o->preset, o->types.n ? o->types.items[i] : default_types[i]);
        status = run_one(b, path.data, options);
        buffer_free(&path);
    }
    return status;
}

static int check_counts(const char *option, const id_list *list, int32_t most)
{
    for (size_t i = 0; i < list->n; i++)
        if (list->ids[i] < 1 || list->ids[i] > most)
            return fail_usage("%s: expected whole numbers from 1 to %d, found %d", option, most, list->ids[i]);
    return EXIT_OK;
}

static int check(const bench_options *o)
{
    if (o->types.n && !o->preset)
        return fail_usage("--type goes with --preset; a file's weights are what they are");
    int status = check_counts("--prompt-lengths", &o->prompts, 1000000);
    if (status == EXIT_OK)
        status = check_counts("--batch", &o->batches, 4096);
    if (status == EXIT_OK)
        status = check_counts("--thread-counts", &o->threads, 1024);
    xlstm_dtype type;
    xlstm_error err = {0};
    for (size_t i = 0; i < o->types.n && status == EXIT_OK; i++)
        if (xlstm_dtype_parse(&type, o->types.items[i], &err))
            status = fail_usage("--type: %s", err.message);
    for (size_t i = 0; i < o->activations.n && status == EXIT_OK; i++) {
        if (xlstm_dtype_parse(&type, o->activations.items[i], &err))
            status = fail_usage("--activations: %s", err.message);
        else if (type != XLSTM_F32 && type != XLSTM_BF16 && type != XLSTM_F16)
            status = fail_usage("--activations: expected float32, bfloat16 or float16, found %s", o->activations.items[i]);
    }
    return status;
}

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const bench_options *o = options;
    int status = check(o);
    if (status)
        return status;
    interrupt_watch();
    bench b = {.o = o};
    for (size_t t = 0; t < (o->threads.n ? o->threads.n : 1) && status == EXIT_OK; t++)
        for (size_t a = 0; a < (o->activations.n ? o->activations.n : 1) && status == EXIT_OK && !interrupted(); a++) {
            model_options chosen = o->model;
            if (o->threads.n)
                chosen.threads = (uint64_t)o->threads.ids[t];
            if (o->activations.n)
                (void)xlstm_dtype_parse(&chosen.dtype, o->activations.items[a], NULL);
            else if (o->preset && chosen.dtype == XLSTM_DTYPE_DEFAULT)
                chosen.dtype = XLSTM_BF16;
            status = run_types(&b, &chosen);
        }
    if (o->json && b.printed)
        outputf("\n]}\n");
    machine_free(b.machine);
    return output_finish(interrupted() ? EXIT_INTERRUPTED : status);
}

static const option_group groups[] = {
    {"Measuring", rows, COUNT_OF(rows), 0},
    MODEL_GROUP(bench_options, model),
};

const command command_bench = {
    .name = "bench",
    .summary = "measure reading and decoding speed against this machine's limits",
    .usage = "[--preset 7b] [--json | --csv | --md]",
    .details =
        "Decode rates are bytes that a step must move (weights once, each state read and written once) by time, and their "
        "share of the read bandwidth; prefill rates are multiply-adds of blocks, cells and head (two operations each) by "
        "time, and their share of a multiply-add peak. Bandwidth and peaks are measured before and after each repetition, "
        "with as many threads; the bandwidth is that of the fastest of many reading loops. A peak is named by its "
        "instruction: the limit of the kernel is what the kernel in use multiplies with (amx-bf16 / 3: each weight three "
        "times, because float32 activations are split in three), the limit of the chip is the fastest that takes weights "
        "of this format without loss. Medians of the repetitions; spread is the whole range by the median. Batches are decoded "
        "in turns, so that what the machine does meanwhile falls on all of them alike; gain is the tokens a second by those of "
        "the first batch. The hash of the logits (decode: after two steps) tells whether two runs computed the same. A model "
        "that fits a cache is read faster than memory: its share of the bandwidth can pass 100 %.\n"
        "\n"
        "Activations of a preset are bfloat16, the format published checkpoints were trained in, which lets products use "
        "bfloat16 instructions; those of a model are float32, as everywhere else, unless --dtype or --activations says "
        "otherwise. On a device (--backend cuda) limits are not measured; --limit-read and --limit-peak state them.",
    .no_twin = "tokens",
    .size = sizeof(bench_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
