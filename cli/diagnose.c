/*
 * diagnose.c — `xlstm diagnose`: everything worth checking about a doubtful checkpoint, one verdict a line.
 */
#include "common.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

typedef struct diagnose_options {
    bool json, quick;
    model_options model;
} diagnose_options;

static const option_row rows[] = {
    {"json", 0, OPTION_FLAG, offsetof(diagnose_options, json), NULL, "a JSON list of verdicts", NULL, NULL, 0, 0},
    {"quick", 0, OPTION_FLAG, offsetof(diagnose_options, quick), NULL,
     "leave out what reads every byte of the files: hashes and weight statistics", NULL, NULL, 0, 0},
};

typedef enum verdict { GOOD, DOUBTFUL, BAD, NOT_CHECKED } verdict;

typedef struct examination {
    const diagnose_options *o;
    xlstm_model *model;
    const xlstm_model_info *info;
    size_t counts[4], printed;
    progress bar;
    bool located;
} examination;

static void say(examination *e, verdict v, const char *check, const char *format, ...) __attribute__((format(printf, 4, 5)));
static void say(examination *e, verdict v, const char *check, const char *format, ...)
{
    static const char *const words[] = {"ok", "warn", "FAIL", "skip"};
    char detail[1200];
    va_list list;
    va_start(list, format);
    vsnprintf(detail, sizeof detail, format, list);
    va_end(list);
    e->counts[v]++;
    if (e->o->json) {
        outputf("%s{\"verdict\":\"%s\",\"check\":\"%s\",\"detail\":", e->printed++ ? ",\n " : "[", words[v], check);
        output_json_string(detail, strlen(detail));
        outputf("}");
    } else {
        outputf("%-4s  %-12s %s\n", words[v], check, detail);
        output_flush();
    }
}

/* ---- files -------------------------------------------------------------------------------------------------------- */

/* XXH3-64, as `xxhsum -H3` prints it. */
static bool hash_file(examination *e, const char *path, uint64_t size, uint64_t *hash)
{
    FILE *f = fopen(path, "rb");
    XXH3_state_t *state = must(XXH3_createState());
    XXH3_64bits_reset(state);
    enum { BLOCK = 1 << 20 };
    char *block = must(malloc(BLOCK));
    uint64_t done = 0;
    size_t n;
    while (f && (n = fread(block, 1, BLOCK, f)) > 0) {
        XXH3_64bits_update(state, block, n);
        done += n;
        progress_show(&e->bar, "hashing", done, size);
    }
    const bool sound = f && !ferror(f);
    *hash = XXH3_64bits_digest(state);
    free(block);
    XXH3_freeState(state);
    if (f)
        fclose(f);
    return sound;
}

static void check_file(examination *e, const char *path, const char *name)
{
    struct stat st;
    if (stat(path, &st) || !S_ISREG(st.st_mode))
        return;
    char size[32];
    human_bytes(size, (uint64_t)st.st_size);
    uint64_t hash;
    if (e->o->quick)
        say(e, GOOD, "file", "%s, %s", name, size);
    else if (hash_file(e, path, (uint64_t)st.st_size, &hash))
        say(e, GOOD, "file", "%s, %s, xxh3 %016llx", name, size, (unsigned long long)hash);
    else
        say(e, BAD, "file", "%s: cannot read: %s", name, strerror(errno));
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void check_files(examination *e, const char *path)
{
    struct dirent **entries;
    const int n = scandir(path, &entries, NULL, by_name);
    if (n < 0) {
        check_file(e, path, path);
        return;
    }
    for (int i = 0; i < n; i++) {
        buffer file = {0};
        buffer_addf(&file, "%s/%s", path, entries[i]->d_name);
        check_file(e, file.data, entries[i]->d_name);
        buffer_free(&file);
        free(entries[i]);
    }
    free(entries);
}

/* ---- tensors ------------------------------------------------------------------------------------------------------ */

static const char *dtype_of_group(const examination *e, const char *part)
{
    xlstm_tensor_info t;
    for (size_t i = 0; i < xlstm_model_tensor_count(e->model); i++) {
        xlstm_model_tensor(e->model, i, &t);
        if (strstr(t.name, part))
            return xlstm_dtype_name(t.dtype);
    }
    return NULL;
}

static void check_dtypes(examination *e)
{
    static const char *const groups[][2] = {
        {"embeddings", "embed"}, {"q, k, v", "mlstm_layer.q"}, {"fused q, k, v, o", "qkv_opreact"},
        {"gates", "gate_preact.weight"}, {"norms", "norm"}, {"feed-forward", "ffn.proj"}, {"head", "lm_head"},
    };
    buffer text = {0};
    for (size_t i = 0; i < COUNT_OF(groups); i++) {
        const char *dtype = dtype_of_group(e, groups[i][1]);
        if (dtype)
            buffer_addf(&text, "%s%s %s", text.size ? ", " : "", groups[i][0], dtype);
    }
    if (text.size)
        say(e, GOOD, "dtypes", "%s", text.data);
    buffer_free(&text);
}

static void check_weights(examination *e)
{
    const size_t n = xlstm_model_tensor_count(e->model);
    uint64_t values = 0, bad_tensors = 0, zeros = 0;
    double largest = 0;
    const char *largest_name = "";
    for (size_t i = 0; i < n; i++) {
        xlstm_tensor_info t;
        xlstm_tensor_stats s;
        xlstm_error err = {0};
        xlstm_model_tensor(e->model, i, &t);
        progress_show(&e->bar, "reading weights", i, n);
        if (xlstm_model_tensor_stats(&s, e->model, i, &err)) {
            say(e, BAD, "weights", "%s", err.message);
            return;
        }
        values += s.count;
        if (s.nan || s.inf) {
            bad_tensors++;
            say(e, BAD, "weights", "%s in %s: %llu NaN and %llu infinite of %llu values; get the file again", t.name, t.file,
                (unsigned long long)s.nan, (unsigned long long)s.inf, (unsigned long long)s.count);
        }
        if (s.rms == 0 && t.rank > 1) {
            zeros++;
            say(e, DOUBTFUL, "weights", "%s is all zero", t.name);
        }
        const double size = fmax(fabs(s.min), fabs(s.max));
        if (size > largest) {
            largest = size;
            largest_name = t.name;
        }
    }
    char count[32];
    if (!bad_tensors)
        say(e, GOOD, "weights", "%s values in %zu tensors are finite; the largest is %.4g, in %s", human_count(count, values),
            n, largest, largest_name);
}

/* ---- running it --------------------------------------------------------------------------------------------------- */

enum { TEXT_TOKENS = 300 };

/* Tokens of ordinary prose, or, without a tokenizer, ids spread over the vocabulary. */
static size_t some_tokens(const examination *e, int32_t out[TEXT_TOKENS])
{
    static const char text[] =
        "The old lighthouse stood at the end of the road, where the grass gave way to stones and the stones to the sea. "
        "Every evening a keeper climbed its 214 steps, lit the lamp, and wrote one line into a book: the date, the wind, "
        "and the ships that passed. \"What is it for?\" a child once asked him. \"For whoever comes after,\" he said; "
        "\"they will want to know that somebody was awake.\" In winter the snow lay on the rail and the gulls were few. ";
    const xlstm_tokenizer *tokenizer = xlstm_model_tokenizer(e->model);
    int32_t *ids = NULL;
    size_t n = 0;
    if (tokenizer && xlstm_tokenizer_encode(&ids, &n, tokenizer, text, sizeof text - 1, 0, NULL))
        n = 0;
    for (size_t i = 0; i < TEXT_TOKENS; i++)
        out[i] = n ? ids[i % n] : (int32_t)((2654435761u * (uint32_t)(i + 1)) % e->info->n_tokens);
    xlstm_free(ids);
    return TEXT_TOKENS;
}

/* Evaluates in one go or token by token; logits of the last token go to `out` [vocab_size]. */
static bool evaluate(examination *e, xlstm_model *model, const int32_t *ids, size_t n, bool steps, float *out,
                     const char *check)
{
    xlstm_session *session;
    xlstm_error err = {0};
    if (xlstm_session_new(&session, model, &err)) {
        say(e, BAD, check, "%s", err.message);
        return false;
    }
    int code = XLSTM_OK;
    for (size_t i = 0; steps && !code && i < n; i++)
        code = xlstm_decode(session, ids[i], &err);
    if (!steps)
        code = xlstm_prefill(session, ids, n, &err);
    if (!code)
        memcpy(out, xlstm_session_logits(session), e->info->vocab_size * sizeof *out);
    xlstm_session_free(session);
    if (code)
        say(e, BAD, check, "%zu tokens: %s", n, err.message);
    if (code == XLSTM_E_NONFINITE && !e->located) { /* the origin of the first is enough */
        xlstm_fault f;
        e->located = true;
        if (!xlstm_locate_fault(&f, model, NULL, ids, n, &err) && f.found)
            say(e, BAD, check, "%s", fault_text((char[FAULT_TEXT]){0}, &f));
    }
    return code == XLSTM_OK;
}

/* Largest difference relative to the largest logit. */
static double relative_difference(const float *a, const float *b, uint32_t n)
{
    double most = 0, size = 0;
    for (uint32_t i = 0; i < n; i++) {
        most = fmax(most, fabs((double)a[i] - b[i]));
        size = fmax(size, fabs((double)b[i]));
    }
    return size > 0 ? most / size : most;
}

static void check_inference(examination *e, float *a, float *b)
{
    static const int32_t dummy[] = {1, 2, 3, 4};
    static const size_t lengths[] = {1, 2, 17, 64, 65, 130, 300};
    int32_t ids[TEXT_TOKENS];
    some_tokens(e, ids);
    if (e->info->vocab_size > 4 && evaluate(e, e->model, dummy, 4, false, a, "dummy ids"))
        say(e, GOOD, "dummy ids", "1, 2, 3, 4 give finite logits");
    size_t sound = 0;
    for (size_t i = 0; i < COUNT_OF(lengths); i++)
        sound += evaluate(e, e->model, ids, lengths[i], false, a, "real text");
    if (sound == COUNT_OF(lengths))
        say(e, GOOD, "real text", "prompts of 1, 2, 17, 64, 65, 130 and 300 tokens give finite logits");
    const bool rounded = e->info->activations.dtype != XLSTM_F32 || e->info->state.dtype != XLSTM_F32;
    const double step_limit = rounded ? 0.1 : 1e-3;
    if (evaluate(e, e->model, ids, 100, false, a, "step = chunk") && evaluate(e, e->model, ids, 100, true, b, "step = chunk")) {
        const double d = relative_difference(a, b, e->info->vocab_size);
        say(e, d <= step_limit ? GOOD : BAD, "step = chunk",
            "100 tokens at once and one by one differ by %.2g of the largest logit (limit %g)", d, step_limit);
    }
}

/* The oracle is slow: few tokens for large models. */
static void check_backend(examination *e, float *a, float *b)
{
    const size_t n = e->info->parameters > 1000000000u ? 2 : 16;
    model_options options = e->o->model;
    options.backend = "reference64";
    options.offload_blocks = 0;
    options.quiet = true;
    int32_t ids[TEXT_TOKENS];
    some_tokens(e, ids);
    xlstm_model *oracle;
    if (open_model(&oracle, &options, false)) {
        say(e, NOT_CHECKED, "oracle", "the float64 reference could not be opened");
        return;
    }
    if (evaluate(e, e->model, ids, n, false, a, "oracle") && evaluate(e, oracle, ids, n, false, b, "oracle")) {
        const double d = relative_difference(a, b, e->info->vocab_size);
        const double limit = e->info->activations.dtype != XLSTM_F32 ? 0.1 : 1e-3;
        say(e, d <= limit ? GOOD : BAD, "oracle",
            "%s and the float64 reference differ by %.2g of the largest logit after %zu tokens (limit %g)", e->info->backend,
            d, n, limit);
    }
    xlstm_model_free(oracle);
}

/* ---- tokenizer ---------------------------------------------------------------------------------------------------- */

static void check_tokenizer(examination *e)
{
    static const char text[] = "Hello, world! 3.14 na\xc3\xafve caf\xc3\xa9 \xe4\xbd\xa0\xe5\xa5\xbd\n\ttwo  spaces";
    const xlstm_tokenizer *t = xlstm_model_tokenizer(e->model);
    if (!t) {
        say(e, DOUBTFUL, "tokenizer", "there is none: the model can be used with token ids only");
        return;
    }
    int32_t *ids = NULL;
    char *back = NULL;
    size_t n = 0, size = 0;
    xlstm_error err = {0};
    if (xlstm_tokenizer_encode(&ids, &n, t, text, sizeof text - 1, 0, &err) ||
        xlstm_tokenizer_decode(&back, &size, t, ids, n, false, &err))
        say(e, BAD, "tokenizer", "%s", err.message);
    else if (size != sizeof text - 1 || memcmp(back, text, size) != 0)
        say(e, DOUBTFUL, "tokenizer", "a text does not survive the round trip: %zu tokens decode to \"%s\"", n, back);
    else
        say(e, GOOD, "tokenizer", "%u ids for a vocabulary of %u; a text of %zu tokens survives the round trip",
            xlstm_tokenizer_size(t), e->info->vocab_size, n);
    xlstm_free(ids);
    xlstm_free(back);
    if (xlstm_tokenizer_size(t) > e->info->vocab_size)
        say(e, BAD, "tokenizer", "it has %u ids but the model only %u rows: it belongs to another model",
            xlstm_tokenizer_size(t), e->info->vocab_size);
}

static void check_special(examination *e)
{
    const xlstm_model_info *i = e->info;
    say(e, GOOD, "BOS", "id %d, %s (%s)", i->bos_id, i->bos_auto ? "put in front of every text" : "not inserted",
        i->bos_source);
    buffer stops = {0};
    for (uint32_t k = 0; k < i->n_stop_ids; k++)
        buffer_addf(&stops, "%s%d", k ? ", " : "", i->stop_ids[k]);
    if (stops.size)
        say(e, GOOD, "EOS", "texts end at id %s", stops.data);
    else
        say(e, DOUBTFUL, "EOS", "no id is known to end a text: give --stop-id");
    buffer_free(&stops);
}

/* ---- command ------------------------------------------------------------------------------------------------------ */

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const diagnose_options *o = options;
    examination e = {.o = o, .bar = progress_start(&o->model)};
    const char *path = model_path(&o->model);
    if (!path)
        return EXIT_USAGE;
    check_files(&e, path);
    int status = open_model(&e.model, &o->model, false);
    if (status) {
        say(&e, BAD, "open", "the checkpoint cannot be opened: %s", last_error());
    } else {
        e.info = xlstm_model_get_info(e.model);
        const xlstm_model_info *i = e.info;
        char count[32];
        say(&e, GOOD, "shapes", "%u blocks of width %u, %u heads, feed-forward %u, vocabulary %u, %s parameters", i->num_blocks,
            i->embedding_dim, i->num_heads, i->ffn_dim, i->vocab_size, human_count(count, i->parameters));
        for (size_t k = 0; xlstm_model_warning(e.model, k); k++)
            say(&e, DOUBTFUL, "open", "%s", xlstm_model_warning(e.model, k));
        check_dtypes(&e);
        say(&e, i->norm_float32.on ? GOOD : DOUBTFUL, "numerics",
            "weights %s (%s), activations %s (%s), state %s (%s), norm reductions in float32: %s (%s)",
            xlstm_dtype_name(i->weights.dtype), i->weights.source, xlstm_dtype_name(i->activations.dtype),
            i->activations.source, xlstm_dtype_name(i->state.dtype), i->state.source, i->norm_float32.on ? "on" : "off",
            i->norm_float32.source);
        if (!o->quick)
            check_weights(&e);
        float *a = must(malloc(2 * i->vocab_size * sizeof *a));
        check_inference(&e, a, a + i->vocab_size);
        check_backend(&e, a, a + i->vocab_size);
        free(a);
        check_tokenizer(&e);
        check_special(&e);
    }
    progress_end(&e.bar);
    if (o->json)
        outputf("]\n");
    else
        outputf("\n%zu ok, %zu warnings, %zu failures, %zu skipped\n", e.counts[GOOD], e.counts[DOUBTFUL], e.counts[BAD],
                e.counts[NOT_CHECKED]);
    xlstm_model_free(e.model);
    return output_finish(e.counts[BAD] ? EXIT_RUNTIME : EXIT_OK);
}

static const option_group groups[] = {
    {"Output", rows, COUNT_OF(rows), 0},
    MODEL_GROUP(diagnose_options, model),
};

const command command_diagnose = {
    .name = "diagnose",
    .summary = "check a doubtful checkpoint: files, weights, numerics, tokenizer",
    .usage = "-m MODEL [--json]",
    .details = "One verdict a line: ok, warn, FAIL or skip. The exit status is 1 if anything failed. File hashes are XXH3, "
               "as xxhsum -H3 prints them. Values beyond the limits named mean a defect of the file or of this program; "
               "either is worth a report.",
    .size = sizeof(diagnose_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
