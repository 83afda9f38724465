/*
 * state.c — `xlstm state`: look at state files, compare and convert them, mix them, hand them to other programs and back.
 * Needs no model.
 */
#include "common.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct state_options {
    xlstm_dtype to;
    const char *weights, *note;
    bool json;
} state_options;

#define FIELD(member) offsetof(state_options, member)
static const option_row rows[] = {
    {"to", 0, OPTION_DTYPE, FIELD(to), "DTYPE", "convert: float32, bfloat16, int8 or float64", NULL, NULL, 0, 0},
    {"weights", 0, OPTION_TEXT, FIELD(weights), "W,W,...", "mix: one number a file; without it the average", NULL, NULL, 0,
     0},
    {"note", 0, OPTION_TEXT, FIELD(note), "TEXT", "convert, mix, import: a note for the new file", NULL, NULL, 0, 0},
    {"json", 'j', OPTION_FLAG, FIELD(json), NULL, "describe, diff: print JSON", NULL, NULL, 0, 0},
};

/* ---- describe and verify ---------------------------------------------------------------------------------------- */

static void set_text(json_t *object, const char *key, const char *text)
{
    buffer clean = {0};
    buffer_add(&clean, "", 0);
    buffer_add_utf8(&clean, text, strlen(text));
    json_object_set_new(object, key, must(json_stringn(clean.data, clean.size)));
    buffer_free(&clean);
}

static void set_number(json_t *object, const char *key, uint64_t value)
{
    json_object_set_new(object, key, json_integer((json_int_t)value));
}

/* 64-bit hashes do not fit JSON's numbers. */
static void set_hash(json_t *object, const char *key, uint64_t value)
{
    char text[20];
    snprintf(text, sizeof text, "%016" PRIx64, value);
    json_object_set_new(object, key, json_string(text));
}

static void print_json(json_t *value)
{
    char *text = must(json_dumps(value, JSON_INDENT(2) | JSON_REAL_PRECISION(9)));
    outputf("%s\n", text);
    free(text);
    json_decref(value);
}

static json_t *to_json(const xlstm_state_info *i, const char *path)
{
    json_t *o = json_object();
    set_text(o, "file", path);
    set_number(o, "version", i->version);
    set_hash(o, "fingerprint", i->fingerprint);
    set_text(o, "dtype", xlstm_dtype_name(i->dtype));
    set_number(o, "num_blocks", i->num_blocks);
    set_number(o, "num_heads", i->num_heads);
    set_number(o, "qk_head_dim", i->qk_head_dim);
    set_number(o, "v_head_dim", i->v_head_dim);
    set_number(o, "vocab_size", i->vocab_size);
    set_number(o, "position", i->position);
    set_hash(o, "token_hash", i->token_hash);
    set_number(o, "state_bytes", i->state_bytes);
    set_number(o, "file_bytes", i->file_bytes);
    json_object_set_new(o, "has_logits", json_boolean(i->has_logits));
    set_text(o, "note", i->note);
    return o;
}

static void print_info(const xlstm_state_info *i, const char *path)
{
    char count[32], state[32], file[32];
    buffer note = {0};
    buffer_add(&note, "", 0);
    buffer_add_utf8(&note, i->note, strlen(i->note));
    for (size_t k = 0; k < note.size; k++)
        if ((unsigned char)note.data[k] < 0x20 || note.data[k] == 0x7f)
            note.data[k] = ' ';
    human_count(count, i->position);
    human_bytes(state, i->state_bytes);
    human_bytes(file, i->file_bytes);
    outputf("%s\n", path);
    outputf("  position      %s tokens, token hash %016" PRIx64 "\n", count, i->token_hash);
    outputf("  model         fingerprint %016" PRIx64 "\n", i->fingerprint);
    outputf("  shape         %u blocks, %u heads of %u x %u, vocabulary %u\n", i->num_blocks, i->num_heads, i->qk_head_dim,
            i->v_head_dim, i->vocab_size);
    outputf("  size          %s of %s, file %s, version %u\n", state, xlstm_dtype_name(i->dtype), file, i->version);
    outputf("  last logits   %s\n", i->has_logits ? "yes" : "no");
    if (note.size > 0)
        outputf("  note          %s\n", note.data);
    buffer_free(&note);
}

static int describe(const state_options *o, char **files, size_t n)
{
    json_t *list = o->json ? json_array() : NULL;
    int status = EXIT_OK;
    for (size_t i = 0; i < n; i++) {
        xlstm_state_info info;
        xlstm_error err = {0};
        if (xlstm_state_describe(&info, files[i], false, &err))
            status = fail_error(&err);
        else if (o->json)
            json_array_append_new(list, to_json(&info, files[i]));
        else
            print_info(&info, files[i]);
    }
    if (o->json)
        print_json(list);
    return status;
}

static int verify(const state_options *o, char **files, size_t n)
{
    (void)o;
    int status = EXIT_OK;
    for (size_t i = 0; i < n; i++) {
        xlstm_state_info info;
        xlstm_error err = {0};
        if (xlstm_state_describe(&info, files[i], true, &err))
            status = fail_error(&err);
        else
            outputf("%s: whole\n", files[i]);
    }
    return status;
}

/* ---- differences ------------------------------------------------------------------------------------------------ */

static int load(xlstm_state **out, const char *path)
{
    xlstm_error err = {0};
    return xlstm_state_load(out, NULL, path, true, &err) ? fail_error(&err) : EXIT_OK;
}

/* What lies between, in parts of the larger. */
static double relative(double first, double second, double between)
{
    double larger = fmax(first, second);
    return larger > 0 ? between / larger : 0;
}

static json_t *difference_json(const xlstm_head_difference *d, uint32_t block, uint32_t head)
{
    return json_pack("{s:i, s:i, s:f, s:[f,f,f], s:[f,f,f]}", "block", (int)block, "head", (int)head, "log_scale",
                     d->log_scale, "C", d->C_first, d->C_second, d->C_between, "n", d->n_first, d->n_second,
                     d->n_between);
}

static int print_difference(const state_options *o, const xlstm_state_info info[2], const xlstm_head_difference *all)
{
    bool same_text = info[0].position == info[1].position && info[0].token_hash == info[1].token_hash;
    if (o->json) {
        json_t *heads = json_array();
        for (uint32_t i = 0; i < info[0].num_blocks * info[0].num_heads; i++)
            json_array_append_new(heads, difference_json(&all[i], i / info[0].num_heads, i % info[0].num_heads));
        print_json(json_pack("{s:b, s:o}", "same_tokens", same_text, "heads", heads));
        return EXIT_OK;
    }
    char first[32], second[32];
    human_count(first, info[0].position);
    human_count(second, info[1].position);
    outputf("tokens: %s and %s, %s\n", first, second, same_text ? "the same" : "different ones");
    outputf("block head   |C first|  |C second|  |between|  relative   |n|: relative     (norms of exp(m) C / exp(scale))\n");
    for (uint32_t i = 0; i < info[0].num_blocks * info[0].num_heads; i++) {
        const xlstm_head_difference *d = &all[i];
        outputf("%5u %4u  %10.4g  %10.4g %10.4g  %8.2e        %8.2e  scale %.4g\n", i / info[0].num_heads,
                i % info[0].num_heads, d->C_first, d->C_second, d->C_between,
                relative(d->C_first, d->C_second, d->C_between), relative(d->n_first, d->n_second, d->n_between),
                d->log_scale);
    }
    return EXIT_OK;
}

static int diff(const state_options *o, char **files, size_t n)
{
    (void)n;
    xlstm_state *state[2] = {NULL, NULL};
    xlstm_state_info info[2];
    xlstm_head_difference *all = NULL;
    int status = load(&state[0], files[0]);
    if (status == EXIT_OK)
        status = load(&state[1], files[1]);
    if (status == EXIT_OK) {
        xlstm_error err = {0};
        for (int i = 0; i < 2; i++)
            xlstm_state_get_info(state[i], &info[i]);
        all = must(calloc((size_t)info[0].num_blocks * info[0].num_heads, sizeof *all));
        status = xlstm_state_diff(all, state[0], state[1], &err) ? fail_error(&err) : print_difference(o, info, all);
    }
    free(all);
    xlstm_state_free(state[0]);
    xlstm_state_free(state[1]);
    return status;
}

/* ---- new files -------------------------------------------------------------------------------------------------- */

static int save(const xlstm_state *state, const char *path, const char *note)
{
    xlstm_error err = {0};
    return xlstm_state_save(state, path, note, &err) ? fail_error(&err) : EXIT_OK;
}

static int convert(const state_options *o, char **files, size_t n)
{
    (void)n;
    if (o->to == XLSTM_DTYPE_DEFAULT)
        return fail_usage("convert: say what to with --to float32, bfloat16, int8 or float64");
    xlstm_state *in = NULL, *out = NULL;
    xlstm_error err = {0};
    int status = load(&in, files[0]);
    if (status == EXIT_OK && xlstm_state_convert(&out, in, o->to, &err))
        status = fail_error(&err);
    if (status == EXIT_OK)
        status = save(out, files[1], o->note);
    xlstm_state_free(in);
    xlstm_state_free(out);
    return status;
}

static int parse_weights(double *weights, size_t n, const char *text)
{
    for (size_t i = 0; i < n; i++) {
        char *end = NULL;
        weights[i] = text ? strtod(text, &end) : 1 / (double)n;
        if (!text)
            continue;
        if (end == text || (i + 1 < n ? *end != ',' : *end != 0) || !isfinite(weights[i]))
            return fail_usage("--weights: expected %zu numbers like 0.5,0.5", n);
        text = end + 1;
    }
    return EXIT_OK;
}

/* files: the new one, then the ones to mix */
static int mix(const state_options *o, char **files, size_t n)
{
    size_t count = n - 1, loaded = 0;
    double *weights = must(calloc(count, sizeof *weights));
    xlstm_state **states = must(calloc(count, sizeof(xlstm_state *))), *out = NULL;
    xlstm_error err = {0};
    int status = parse_weights(weights, count, o->weights);
    while (status == EXIT_OK && loaded < count) {
        status = load(&states[loaded], files[loaded + 1]);
        loaded += status == EXIT_OK;
    }
    if (status == EXIT_OK && xlstm_state_mix(&out, (const xlstm_state *const *)states, weights, count, &err))
        status = fail_error(&err);
    if (status == EXIT_OK)
        status = save(out, files[0], o->note);
    for (size_t i = 0; i < loaded; i++)
        xlstm_state_free(states[i]);
    xlstm_state_free(out);
    free(states);
    free(weights);
    return status;
}

static int export_tensors(const state_options *o, char **files, size_t n)
{
    (void)o;
    (void)n;
    xlstm_state *in = NULL;
    xlstm_error err = {0};
    int status = load(&in, files[0]);
    if (status == EXIT_OK && xlstm_state_export(in, files[1], &err))
        status = fail_error(&err);
    xlstm_state_free(in);
    return status;
}

static int import_tensors(const state_options *o, char **files, size_t n)
{
    (void)n;
    xlstm_state *in = NULL;
    xlstm_error err = {0};
    int status = xlstm_state_import(&in, files[0], &err) ? fail_error(&err) : EXIT_OK;
    if (status == EXIT_OK)
        status = save(in, files[1], o->note);
    xlstm_state_free(in);
    return status;
}

/* ---- command ---------------------------------------------------------------------------------------------------- */

static const struct action {
    const char *name, *arguments;
    size_t least, most; /* files */
    int (*run)(const state_options *o, char **files, size_t n);
} actions[] = {
    {"describe", "FILE...", 1, SIZE_MAX, describe}, {"verify", "FILE...", 1, SIZE_MAX, verify},
    {"diff", "FIRST SECOND", 2, 2, diff},           {"convert", "FILE NEW --to DTYPE", 2, 2, convert},
    {"mix", "NEW FILE...", 2, SIZE_MAX, mix},       {"export", "FILE NEW.safetensors|NEW.npz", 2, 2, export_tensors},
    {"import", "FILE NEW", 2, 2, import_tensors},
};

static int run(const void *options, char **arguments, size_t n)
{
    const char *names[COUNT_OF(actions)];
    for (size_t i = 0; i < COUNT_OF(actions); i++) {
        names[i] = actions[i].name;
        if (n == 0 || strcmp(arguments[0], names[i]) != 0)
            continue;
        if (n - 1 < actions[i].least || n - 1 > actions[i].most)
            return fail_usage("usage: xlstm state %s %s", actions[i].name, actions[i].arguments);
        return output_finish(actions[i].run(options, arguments + 1, n - 1));
    }
    const char *near = n > 0 ? nearest_name(arguments[0], names, COUNT_OF(names)) : NULL;
    return fail_usage("expected describe, verify, diff, convert, mix, export or import%s%s%s", near ? "; did you mean " : "",
                      near ? near : "", near ? "?" : "");
}

static const option_group groups[] = {{"Options", rows, COUNT_OF(rows), 0}};

const command command_state = {
    .name = "state",
    .summary = "describe, check, compare, convert and mix saved states",
    .usage = "describe|verify|diff|convert|mix|export|import FILE...",
    .details = "describe FILE...            facts from the header\n"
               "verify FILE...              check every byte against the checksum\n"
               "diff FIRST SECOND           what lies between two states, head by head\n"
               "convert FILE NEW --to T     another number format\n"
               "mix NEW FILE...             weighted sum of the true memories, exp(m) C and exp(m) n; two files with "
               "--weights 0.7,0.3 are an interpolation\n"
               "export FILE NEW             float32 tensors for other programs: .safetensors, or .npz for NumPy\n"
               "import FILE NEW             back from such a file\n"
               "\n"
               "No model is needed. The format is described in docs/state-file.md.",
    .arguments = "ACTION FILE...",
    .size = sizeof(state_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
