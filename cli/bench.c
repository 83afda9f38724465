/*
 * bench.c — `xlstm bench`: how fast a model is read and written on this machine, next to what the machine could do. Each
 * measurement is interleaved with a pure read loop or a multiply-add loop, and the shares are medians of ratios of
 * neighbours in time, because bandwidth and clock change with the neighbours on shared machines.
 */
#include "common.h"
#include "machine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

typedef struct bench_options {
    const char *preset;
    string_list types;
    id_list prompts, batches;
    uint64_t repetitions, tokens;
    bool no_prefill, no_decode, json, csv, md;
    model_options model;
} bench_options;

#define FIELD(member) offsetof(bench_options, member)
static const option_row rows[] = {
    {"preset", 0, OPTION_TEXT, FIELD(preset), "NAME",
     "random weights of a geometry, made in memory: 7b, 1b, 410m, 125m; without it the model of --model", NULL, NULL, 0, 0},
    {"type", 't', OPTION_LIST, FIELD(types), "TYPE",
     "weight formats of a preset, one measurement each: bf16, f32, f16, q8_0, q6_k, q5_k, q4_k, q4_0 (repeatable; default: "
     "bf16, q8_0 and q4_k)", NULL, NULL, 0, 0},
    {"prompt-lengths", 0, OPTION_IDS, FIELD(prompts), "N,N", "tokens to read at once (default: 512)", NULL, NULL, 0, 0},
    {"batch", 'b', OPTION_IDS, FIELD(batches), "N,N", "sequences decoded together (default: 1,8)", NULL, NULL, 0, 0},
    {"repetitions", 'r', OPTION_COUNT, FIELD(repetitions), "N", "how often each is measured", "5", NULL, 1, 1000},
    {"tokens", 'n', OPTION_COUNT, FIELD(tokens), "N", "decode steps in one measurement; 0: about a second's worth", "0",
     NULL, 0, 1e6},
    {"no-prefill", 0, OPTION_FLAG, FIELD(no_prefill), NULL, "leave out reading", NULL, NULL, 0, 0},
    {"no-decode", 0, OPTION_FLAG, FIELD(no_decode), NULL, "leave out decoding", NULL, NULL, 0, 0},
    {"json", 0, OPTION_FLAG, FIELD(json), NULL, "one JSON object", NULL, NULL, 0, 0},
    {"csv", 0, OPTION_FLAG, FIELD(csv), NULL, "comma-separated lines", NULL, NULL, 0, 0},
    {"md", 0, OPTION_FLAG, FIELD(md), NULL, "a Markdown table", NULL, NULL, 0, 0},
};

/* ---- one measurement ---------------------------------------------------------------------------------------------- */

typedef struct outcome {
    char weights[16], activations[16], state[16], test[8];
    uint32_t batch, length;
    double tokens_per_second, spread; /* median; (max - min) / median */
    double rate;                      /* bytes or operations a second at the median */
    double limit, share;              /* of the machine, measured alongside; share is the median of ratios */
    const char *limit_name;
    uint64_t hash; /* of the last logits */
} outcome;

typedef struct bench {
    const bench_options *o;
    machine *machine; /* NULL: limits are not known (devices) */
    xlstm_model *model;
    const xlstm_model_info *info;
    double step_bytes, state_bytes; /* read per step whatever the batch; read and written per sequence */
    double token_operations;
    bool printed;
} bench;

static int ascending(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, ascending);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

/* The yardstick for products with these weights: the fastest instruction that takes them without loss. */
static peak_kind best_peak(const xlstm_model_info *i)
{
    const bool plain = i->weights.dtype == XLSTM_F32 || i->weights.dtype == XLSTM_F16;
    return plain || machine_peak_name(PEAK_BF16) == NULL ? PEAK_F32 : PEAK_BF16;
}

static int32_t any_id(const bench *b, uint64_t i)
{
    return (int32_t)((2654435761u * (i + 1)) % b->info->n_tokens);
}

static void finish(bench *b, outcome *r, double *seconds, double *ratios, size_t n, double tokens, double work)
{
    const double middle = median(seconds, n);
    snprintf(r->weights, sizeof r->weights, "%s", xlstm_dtype_name(b->info->weights.dtype));
    snprintf(r->activations, sizeof r->activations, "%s", xlstm_dtype_name(b->info->activations.dtype));
    snprintf(r->state, sizeof r->state, "%s", xlstm_dtype_name(b->info->state.dtype));
    r->tokens_per_second = tokens / middle;
    r->spread = (seconds[n - 1] - seconds[0]) / middle;
    r->rate = work / middle;
    r->share = b->machine ? median(ratios, n) : 0;
}

static int measure_decode(bench *b, uint32_t batch, outcome *r)
{
    const size_t n = b->o->repetitions;
    xlstm_session **sessions = must(calloc(batch, sizeof *sessions));
    xlstm_segment *segments = must(calloc(batch, sizeof *segments));
    int32_t *ids = must(calloc(batch, sizeof *ids));
    double *seconds = must(calloc(2 * n, sizeof *seconds)), *ratios = seconds + n, limits = 0;
    xlstm_error err = {0};
    int code = XLSTM_OK;
    for (uint32_t i = 0; i < batch && !code; i++) {
        code = xlstm_session_new(&sessions[i], b->model, &err);
        ids[i] = any_id(b, i);
        segments[i] = (xlstm_segment){.session = sessions[i], .tokens = &ids[i], .count = 1, .want = XLSTM_WANT_LAST};
    }
    uint64_t steps = b->o->tokens, done = 0;
    for (size_t round = 0; round <= n && !code; round++) {
        const double read = b->machine ? machine_read_bandwidth(b->machine, 0.15) : 0;
        const uint64_t count = round == 0 ? 2 : steps;
        const double started = now();
        for (uint64_t s = 0; s < count && !code; s++, done++) {
            code = xlstm_evaluate(b->model, segments, batch, &err);
            for (uint32_t i = 0; i < batch; i++)
                ids[i] = any_id(b, (done + 1) * batch + i);
        }
        const double taken = (now() - started) / (double)count;
        if (round == 0) { /* warm-up; also tells how many steps make a second */
            if (!steps)
                steps = taken > 0.5 ? 2 : (uint64_t)(1.0 / taken) + 1;
            continue;
        }
        seconds[round - 1] = taken;
        limits += read / (double)n;
        ratios[round - 1] = read > 0 ? (b->step_bytes + batch * b->state_bytes) / taken / read : 0;
    }
    if (!code) {
        *r = (outcome){.test = "decode", .batch = batch, .length = 1, .limit = limits, .limit_name = "read"};
        r->hash = XXH3_64bits(xlstm_session_logits(sessions[0]), b->info->vocab_size * sizeof(float));
        finish(b, r, seconds, ratios, n, batch, b->step_bytes + batch * b->state_bytes);
    }
    for (uint32_t i = 0; i < batch; i++)
        xlstm_session_free(sessions[i]);
    free(sessions);
    free(segments);
    free(ids);
    free(seconds);
    return code ? fail_error(&err) : EXIT_OK;
}

static int measure_prefill(bench *b, uint32_t length, outcome *r)
{
    const size_t n = b->o->repetitions;
    const peak_kind kind = best_peak(b->info);
    int32_t *ids = must(calloc(length, sizeof *ids));
    double *seconds = must(calloc(2 * n, sizeof *seconds)), *ratios = seconds + n, limits = 0;
    for (uint32_t i = 0; i < length; i++)
        ids[i] = any_id(b, i);
    xlstm_session *session;
    xlstm_error err = {0};
    int code = xlstm_session_new(&session, b->model, &err);
    const double work = b->token_operations * length;
    for (size_t round = 0; round <= n && !code; round++) {
        const double peak = b->machine ? machine_peak(b->machine, kind, 0.15) : 0;
        code = xlstm_session_reset(session, &err);
        const double started = now();
        if (!code)
            code = xlstm_prefill(session, ids, length, &err);
        const double taken = now() - started;
        if (round == 0) /* warm-up */
            continue;
        seconds[round - 1] = taken;
        limits += peak / (double)n;
        ratios[round - 1] = peak > 0 ? work / taken / peak : 0;
    }
    if (!code) {
        *r = (outcome){.test = "prefill", .batch = 1, .length = length, .limit = limits,
                       .limit_name = b->machine ? machine_peak_name(kind) : NULL};
        r->hash = XXH3_64bits(xlstm_session_logits(session), b->info->vocab_size * sizeof(float));
        finish(b, r, seconds, ratios, n, length, work);
    }
    xlstm_session_free(session);
    free(ids);
    free(seconds);
    return code ? fail_error(&err) : EXIT_OK;
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
}

/* ---- printing ----------------------------------------------------------------------------------------------------- */

static void print_outcome(bench *b, const outcome *r)
{
    const bench_options *o = b->o;
    const bool decode = !strcmp(r->test, "decode");
    const double unit = 1e-9;
    if (o->json) {
        outputf("%s\n  {\"weights\":\"%s\",\"activations\":\"%s\",\"state\":\"%s\",\"test\":\"%s\",\"batch\":%u,\"length\":%u,"
                "\"tokens_per_second\":%.6g,\"spread\":%.4f,\"%s\":%.6g,\"limit\":%.6g,\"limit_name\":\"%s\",\"share\":%.4f,"
                "\"logits_hash\":\"%016llx\"}",
                b->printed ? "," : "", r->weights, r->activations, r->state, r->test, r->batch, r->length,
                r->tokens_per_second, r->spread, decode ? "gb_per_second" : "gflop_per_second", r->rate * unit,
                r->limit * unit, r->limit_name ? r->limit_name : "", r->share, (unsigned long long)r->hash);
    } else if (o->csv) {
        if (!b->printed)
            outputf("weights,activations,state,test,batch,length,tokens_per_second,spread,rate_g_per_second,limit_g_per_second,"
                    "limit,share,logits_hash\n");
        outputf("%s,%s,%s,%s,%u,%u,%.6g,%.4f,%.6g,%.6g,%s,%.4f,%016llx\n", r->weights, r->activations, r->state, r->test,
                r->batch, r->length, r->tokens_per_second, r->spread, r->rate * unit, r->limit * unit,
                r->limit_name ? r->limit_name : "", r->share, (unsigned long long)r->hash);
    } else {
        const char *bar = o->md ? "| " : "", *gap = o->md ? " | " : "  ", *end = o->md ? " |" : "";
        if (!b->printed)
            outputf("%s%-9s%s%-11s%s%-8s%s%-8s%s%5s%s%6s%s%10s%s%7s%s%12s%s%-24s%s%7s%s%-16s%s\n%s", bar, "weights", gap,
                    "activations", gap, "state", gap, "test", gap, "batch", gap, "length", gap, "tok/s", gap, "spread", gap,
                    "rate", gap, "limit here", gap, "share", gap, "logits", end,
                    o->md ? "|---|---|---|---|--:|--:|--:|--:|--:|---|--:|---|\n" : "");
        char limit[64] = "-";
        if (r->limit > 0)
            snprintf(limit, sizeof limit, "%.1f G%s/s %s", r->limit * unit, decode ? "B" : "FLOP", r->limit_name);
        outputf("%s%-9s%s%-11s%s%-8s%s%-8s%s%5u%s%6u%s%10.2f%s%6.1f%%%s%5.1f %s%s%-24s%s%6.1f%%%s%016llx%s\n", bar,
                r->weights, gap, r->activations, gap, r->state, gap, r->test, gap, r->batch, gap, r->length, gap,
                r->tokens_per_second, gap, 100 * r->spread, gap, r->rate * unit, decode ? "GB/s  " : "GFLOP/s", gap, limit,
                gap, 100 * r->share, gap, (unsigned long long)r->hash, end);
    }
    output_flush();
    b->printed = true;
}

static void print_machine(const bench *b)
{
    if (!b->machine)
        return;
    if (b->o->json)
        outputf("{\"cpu\":\"%s\",\"threads\":%u,\"version\":\"%s\",\"results\":[", machine_cpu(b->machine),
                machine_threads(b->machine), xlstm_version());
    else if (!b->o->csv && !b->o->md)
        outputf("%s, %u threads\n", machine_cpu(b->machine), machine_threads(b->machine));
}

/* ---- command ------------------------------------------------------------------------------------------------------ */

static int measure_all(bench *b)
{
    const bench_options *o = b->o;
    static int32_t default_prompts[] = {512}, default_batches[] = {1, 8};
    const id_list prompts = o->prompts.given ? o->prompts : (id_list){default_prompts, 1, true};
    const id_list batches = o->batches.given ? o->batches : (id_list){default_batches, 2, true};
    outcome r;
    int status = EXIT_OK;
    for (size_t i = 0; i < batches.n && !o->no_decode && status == EXIT_OK && !interrupted(); i++) {
        status = measure_decode(b, (uint32_t)batches.ids[i], &r);
        if (status == EXIT_OK)
            print_outcome(b, &r);
    }
    for (size_t i = 0; i < prompts.n && !o->no_prefill && status == EXIT_OK && !interrupted(); i++) {
        status = measure_prefill(b, (uint32_t)prompts.ids[i], &r);
        if (status == EXIT_OK)
            print_outcome(b, &r);
    }
    return status;
}

static int run_one(bench *b, const char *path)
{
    model_options options = b->o->model;
    if (path)
        options.model = path;
    int status = open_model(&b->model, &options, false);
    if (status)
        return status;
    b->info = xlstm_model_get_info(b->model);
    const bool host = !strncmp(b->info->backend, "cpu", 3) || !strncmp(b->info->backend, "ref", 3);
    if (host && !b->machine)
        b->machine = machine_new((uint32_t)options.threads);
    if (!b->printed)
        print_machine(b);
    count_costs(b);
    status = measure_all(b);
    xlstm_model_free(b->model);
    b->model = NULL;
    return status;
}

static bool counts_are_sane(const id_list *list)
{
    for (size_t i = 0; i < list->n; i++)
        if (list->ids[i] < 1)
            return false;
    return true;
}

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const bench_options *o = options;
    static const char *const default_types[] = {"bf16", "q8_0", "q4_k"};
    if (o->types.n && !o->preset)
        return fail_usage("--type goes with --preset; a file's weights are what they are");
    if (!counts_are_sane(&o->prompts) || !counts_are_sane(&o->batches))
        return fail_usage("--prompt-lengths and --batch take numbers from 1 on");
    interrupt_watch();
    bench b = {.o = o};
    int status = EXIT_OK;
    if (!o->preset)
        status = run_one(&b, NULL);
    const size_t n_types = o->types.n ? o->types.n : COUNT_OF(default_types);
    for (size_t i = 0; o->preset && i < n_types && status == EXIT_OK && !interrupted(); i++) {
        buffer path = {0};
        buffer_addf(&path, "preset:%s:%s", o->preset, o->types.n ? o->types.items[i] : default_types[i]);
        status = run_one(&b, path.data);
        buffer_free(&path);
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
        "share of the read bandwidth measured right before; prefill rates are multiply-adds of blocks and cells (two "
        "operations each) by time, and their share of the multiply-add peak measured right before. Medians of the "
        "repetitions; spread is the whole range by the median. The hash of the last logits tells whether two runs computed "
        "the same.\n"
        "\n"
        "Activations are float32 unless --dtype bfloat16 is given, which lets products use bfloat16 instructions.",
    .size = sizeof(bench_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
