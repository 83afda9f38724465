/*
 * info.c — `xlstm info`: what a checkpoint is, from its headers only. Prints; decides nothing.
 */
#include "info.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

typedef struct info_options {
    model_options model;
    bool json, wiring, tensors;
    int style;
} info_options;

static const option_row rows[] = {
    {"json", 'j', OPTION_FLAG, offsetof(info_options, json), NULL, "print JSON", NULL, NULL, 0, 0},
    {"wiring", 0, OPTION_FLAG, offsetof(info_options, wiring), NULL, "draw the wiring found in the tensors", NULL, NULL,
     0, 0},
    {"wiring-style", 0, OPTION_CHOICE, offsetof(info_options, style), "unicode|ascii", "characters of the drawing",
     "unicode", "unicode|ascii", 0, 0},
    {"tensors", 0, OPTION_FLAG, offsetof(info_options, tensors), NULL, "list every tensor", NULL, NULL, 0, 0},
};

/* ---- for people ------------------------------------------------------------------------------------------------- */

static void print_setting(FILE *to, const char *what, const char *value, const char *source)
{
    fprintf(to, "  %-24s %-10s %s%s\n", what, value, *source ? "from " : "", source);
}

/* "0 (<|endoftext|>)" */
static void print_token(FILE *to, const xlstm_tokenizer *tokenizer, int32_t id)
{
    const char *spelled = tokenizer && id >= 0 ? xlstm_tokenizer_token(tokenizer, id) : NULL;
    if (id < 0) {
        fputs("none", to);
        return;
    }
    fprintf(to, "%d", id);
    if (spelled)
        fprintf(to, " (%s)", spelled);
}

void info_print(FILE *to, const xlstm_model *model)
{
    const xlstm_model_info *i = xlstm_model_get_info(model);
    const xlstm_tokenizer *tokenizer = xlstm_model_tokenizer(model);
    char a[32], b[32];
    fprintf(to, "%s\n", i->path);
    fprintf(to, "  %-24s %s, stored as %s\n", "format", i->format, xlstm_dtype_name(i->stored_dtype));
    fprintf(to, "  %-24s %s\n", "parameters", human_count(a, i->parameters));
    fprintf(to, "  %-24s %s\n", "weights in memory", human_bytes(a, i->weight_bytes));
    fprintf(to, "  %-24s %s, whatever the length of the text\n", "state of a sequence", human_bytes(a, i->state_bytes));
    if (*i->backend)
        fprintf(to, "  %-24s %s\n", "backend", i->backend);
    if (i->fingerprint) /* not known from headers alone */
        fprintf(to, "  %-24s %016llx\n", "fingerprint", (unsigned long long)i->fingerprint);
    fprintf(to, "architecture\n");
    fprintf(to, "  %-24s %u\n", "blocks", i->num_blocks);
    fprintf(to, "  %-24s %u\n", "embedding", i->embedding_dim);
    fprintf(to, "  %-24s %u, with q and k of %u and v of %u each\n", "heads", i->num_heads,
            i->num_heads ? i->qk_dim / i->num_heads : 0, i->num_heads ? i->v_dim / i->num_heads : 0);
    fprintf(to, "  %-24s %u\n", "feed-forward", i->ffn_dim);
    fprintf(to, "  %-24s %s tokens in %s rows\n", "vocabulary", human_count(a, i->n_tokens),
            human_count(b, i->vocab_size));
    fprintf(to, "  %-24s %u tokens\n", "chunk", i->chunk_size);
    fprintf(to, "  %-24s gates %g, logits %g\n", "soft caps", (double)i->gate_soft_cap, (double)i->logit_soft_cap);
    fprintf(to, "  %-24s norms %g, cell %g\n", "epsilon", (double)i->norm_eps, (double)i->cell_eps);
    fprintf(to, "  %-24s %s weights, %s head, %s biases, %s norm in front of the head\n", "variant",
            i->fused ? "fused" : "single", i->tied ? "tied" : "separate", i->use_bias ? "with" : "no",
            i->out_norm ? "a" : "no");
    fprintf(to, "numerics\n");
    print_setting(to, "weights", xlstm_dtype_name(i->weights.dtype), i->weights.source);
    print_setting(to, "activations", xlstm_dtype_name(i->activations.dtype), i->activations.source);
    print_setting(to, "kernel inputs", i->kernel.dtype ? xlstm_dtype_name(i->kernel.dtype) : "no cast", i->kernel.source);
    print_setting(to, "state", xlstm_dtype_name(i->state.dtype), i->state.source);
    print_setting(to, "norms in float32", i->norm_float32.on ? "on" : "off", i->norm_float32.source);
    fprintf(to, "tokens\n  %-24s ", "begin of sequence");
    print_token(to, tokenizer, i->bos_id);
    fprintf(to, ", %s%s%s\n", i->bos_auto ? "put in front" : "not put in front", *i->bos_source ? ", from " : "",
            i->bos_source);
    fprintf(to, "  %-24s ", "ends of text");
    for (uint32_t k = 0; k < i->n_stop_ids; k++) {
        fputs(k ? ", " : "", to);
        print_token(to, tokenizer, i->stop_ids[k]);
    }
    fprintf(to, "%s\n", i->n_stop_ids ? "" : "none");
    fprintf(to, "  %-24s eos ", "config says");
    print_token(to, tokenizer, i->eos_id);
    fprintf(to, ", pad ");
    print_token(to, tokenizer, i->pad_id);
    fprintf(to, "\n  %-24s %s%s\n", "tokenizer", tokenizer ? "found" : "none",
            tokenizer && xlstm_tokenizer_chat_template(tokenizer) ? ", with a chat template" : "");
}

int wiring_print(FILE *to, const xlstm_model *model, int style)
{
    char *drawing;
    xlstm_error err = {0};
    if (xlstm_model_draw_wiring(&drawing, model, style == 0, &err))
        return fail_error(&err);
    if (to == stdout)
        output(drawing, strlen(drawing));
    else
        fputs(drawing, to);
    xlstm_free(drawing);
    return EXIT_OK;
}

static void print_tensors(const xlstm_model *model)
{
    for (size_t i = 0; i < xlstm_model_tensor_count(model); i++) {
        xlstm_tensor_info t;
        xlstm_model_tensor(model, i, &t);
        char shape[100] = "", bytes[32];
        for (uint32_t k = 0; k < t.rank && k < 4; k++)
            snprintf(shape + strlen(shape), sizeof shape - strlen(shape), "%s%llu", k ? " x " : "",
                     (unsigned long long)t.shape[k]);
        outputf("  %-60s %-9s %-18s %10s  %s\n", t.name, xlstm_dtype_name(t.dtype), t.rank ? shape : "scalar",
                human_bytes(bytes, t.bytes), t.file);
    }
}

/* ---- for machines ----------------------------------------------------------------------------------------------- */

static json_t *text_value(const char *text)
{
    buffer clean = {0};
    buffer_add(&clean, "", 0);
    buffer_add_utf8(&clean, text, strlen(text));
    json_t *value = must(json_stringn(clean.data, clean.size));
    buffer_free(&clean);
    return value;
}

static json_t *dtype_value(const xlstm_resolved *r)
{
    return json_pack("{s:o, s:o}", "value", r->dtype ? text_value(xlstm_dtype_name(r->dtype)) : json_null(), "source",
                     text_value(r->source));
}

/* A float32 as the shortest number that reads back as it: 1e-06, not 9.99999997e-07. */
static json_t *float_value(float x)
{
    char text[32];
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x)
            break;
    }
    return json_real(strtod(text, NULL));
}

static json_t *id_value(int32_t id)
{
    return id < 0 ? json_null() : json_integer(id);
}

static json_t *to_json(const xlstm_model *model, const info_options *o)
{
    const xlstm_model_info *i = xlstm_model_get_info(model);
    const xlstm_tokenizer *tokenizer = xlstm_model_tokenizer(model);
    char fingerprint[20];
    snprintf(fingerprint, sizeof fingerprint, "%016llx", (unsigned long long)i->fingerprint);
    json_t *root = json_object();
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {
        {"parameters", i->parameters},
        {"weight_bytes", i->weight_bytes},
        {"state_bytes", i->state_bytes},
        {"num_blocks", i->num_blocks},
        {"embedding_dim", i->embedding_dim},
        {"num_heads", i->num_heads},
        {"qk_dim", i->qk_dim},
        {"v_dim", i->v_dim},
        {"qk_head_dim", i->num_heads ? i->qk_dim / i->num_heads : 0},
        {"v_head_dim", i->num_heads ? i->v_dim / i->num_heads : 0},
        {"ffn_dim", i->ffn_dim},
        {"vocab_size", i->vocab_size},
        {"n_tokens", i->n_tokens},
        {"chunk_size", i->chunk_size},
    };
    json_object_set_new(root, "path", text_value(i->path));
    json_object_set_new(root, "format", text_value(i->format));
    json_object_set_new(root, "stored_dtype", text_value(xlstm_dtype_name(i->stored_dtype)));
    json_object_set_new(root, "fingerprint", i->fingerprint ? json_string(fingerprint) : json_null());
    for (size_t k = 0; k < COUNT_OF(numbers); k++)
        json_object_set_new(root, numbers[k].name, json_integer((json_int_t)numbers[k].value));
    json_object_set_new(root, "gate_soft_cap", float_value(i->gate_soft_cap));
    json_object_set_new(root, "logit_soft_cap", float_value(i->logit_soft_cap));
    json_object_set_new(root, "norm_eps", float_value(i->norm_eps));
    json_object_set_new(root, "cell_eps", float_value(i->cell_eps));
    json_object_set_new(root, "use_bias", json_boolean(i->use_bias));
    json_object_set_new(root, "tied", json_boolean(i->tied));
    json_object_set_new(root, "fused", json_boolean(i->fused));
    json_object_set_new(root, "out_norm", json_boolean(i->out_norm));
    json_object_set_new(root, "numerics",
                        json_pack("{s:o, s:o, s:o, s:o, s:{s:b, s:o}}", "weights", dtype_value(&i->weights),
                                  "activations", dtype_value(&i->activations), "kernel", dtype_value(&i->kernel),
                                  "state", dtype_value(&i->state), "norm_reduction_float32", "value",
                                  i->norm_float32.on, "source", text_value(i->norm_float32.source)));
    json_t *stops = json_array();
    for (uint32_t k = 0; k < i->n_stop_ids; k++)
        json_array_append_new(stops, json_integer(i->stop_ids[k]));
    json_object_set_new(root, "bos", json_pack("{s:o, s:b, s:o}", "id", id_value(i->bos_id), "auto", i->bos_auto,
                                               "source", text_value(i->bos_source)));
    json_object_set_new(root, "eos_id", id_value(i->eos_id));
    json_object_set_new(root, "pad_id", id_value(i->pad_id));
    json_object_set_new(root, "stop_ids", stops);
    json_object_set_new(root, "tokenizer", json_boolean(tokenizer != NULL));
    json_object_set_new(root, "chat_template", json_boolean(tokenizer && xlstm_tokenizer_chat_template(tokenizer)));
    json_t *warnings = json_array();
    const char *line;
    for (size_t k = 0; (line = xlstm_model_warning(model, k)); k++)
        json_array_append_new(warnings, text_value(line));
    json_object_set_new(root, "warnings", warnings);
    if (o->tensors) {
        json_t *tensors = json_array();
        for (size_t k = 0; k < xlstm_model_tensor_count(model); k++) {
            xlstm_tensor_info t;
            xlstm_model_tensor(model, k, &t);
            json_t *shape = json_array();
            for (uint32_t d = 0; d < t.rank && d < 4; d++)
                json_array_append_new(shape, json_integer((json_int_t)t.shape[d]));
            json_array_append_new(tensors, json_pack("{s:o, s:o, s:o, s:o, s:I}", "name", text_value(t.name), "file",
                                                     text_value(t.file), "dtype",
                                                     text_value(xlstm_dtype_name(t.dtype)), "shape", shape, "bytes",
                                                     (json_int_t)t.bytes));
        }
        json_object_set_new(root, "tensors", tensors);
    }
    char *drawing;
    if (o->wiring && !xlstm_model_draw_wiring(&drawing, model, o->style == 0, NULL)) {
        json_object_set_new(root, "wiring", text_value(drawing));
        xlstm_free(drawing);
    }
    return root;
}

/* ---- command ---------------------------------------------------------------------------------------------------- */

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const info_options *o = options;
    xlstm_model *model;
    model_options facts = o->model;
    facts.quiet = facts.quiet || o->json; /* warnings are part of the JSON */
    int status = open_model(&model, &facts, true);
    if (status)
        return status;
    if (o->json) {
        json_t *root = to_json(model, o);
        char *text = must(json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9)));
        outputf("%s\n", text);
        free(text);
        json_decref(root);
    } else if (o->wiring) {
        status = wiring_print(stdout, model, o->style);
    } else if (!o->tensors) {
        info_print(stdout, model);
    }
    if (o->tensors && !o->json)
        print_tensors(model);
    xlstm_model_free(model);
    return output_finish(status);
}

static const option_group groups[] = {
    {"Output", rows, COUNT_OF(rows), 0},
    MODEL_GROUP(info_options, model),
};

const command command_info = {
    .name = "info",
    .summary = "show what a model is: sizes, numeric settings, tokens, wiring",
    .usage = "-m MODEL [--json] [--wiring] [--tensors]",
    .details = "Reads headers only, so it is quick for models of any size. The four numeric settings are shown as they "
               "would be used, with where each came from; try them with --dtype and the like.",
    .size = sizeof(info_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
