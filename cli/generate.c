/*
 * generate.c — `xlstm generate`: continue a prompt. One prefill, then one or several continuations in a ragged batch;
 * printing as text, ids or JSON. How text is made is in generation.c.
 */
#include "generation.h"
#include "info.h"
#include "line.h"
#include "prompt.h"

#include <stdlib.h>
#include <string.h>

typedef enum output_kind { OUTPUT_AUTO, OUTPUT_TEXT, OUTPUT_IDS, OUTPUT_JSON } output_kind;

typedef struct generate_options {
    prompt_options prompt;
    sampling_options sampling;
    model_options model;
    uint64_t max_tokens, samples;
    int output, style;
    bool no_echo, stats, interactive, info, show_wiring;
    const char *state_in, *state_out, *prefix_cache;
} generate_options;

#define FIELD(member) offsetof(generate_options, member)
static const option_row length_rows[] = {
    {"max-tokens", 0, OPTION_COUNT, FIELD(max_tokens), "N", "end after N new tokens; 0 only reads the prompt", "50", NULL,
     0, 0},
    {"samples", 'n', OPTION_COUNT, FIELD(samples), "K",
     "K different continuations; the prompt is read once and they are computed together", "1", NULL, 1, 4096},
};
static const option_row output_rows[] = {
    {"output", 'o', OPTION_CHOICE, FIELD(output), "text|ids|json",
     "what to print; ids if the model has no tokenizer, text otherwise", "auto", "auto|text|ids|json", 0, 0},
    {"no-echo", 0, OPTION_FLAG, FIELD(no_echo), NULL, "print the continuation without the prompt", NULL, NULL, 0, 0},
    {"stats", 0, OPTION_FLAG, FIELD(stats), NULL, "tokens a second, memory and seed on standard error", NULL, NULL, 0, 0},
    {"info", 0, OPTION_FLAG, FIELD(info), NULL, "describe the model on standard error first", NULL, NULL, 0, 0},
    {"show-wiring", 0, OPTION_FLAG, FIELD(show_wiring), NULL, "draw the model's wiring on standard error first", NULL,
     NULL, 0, 0},
    {"wiring-style", 0, OPTION_CHOICE, FIELD(style), "unicode|ascii", "characters of the drawing", "unicode",
     "unicode|ascii", 0, 0},
    {"interactive", 'i', OPTION_FLAG, FIELD(interactive), NULL,
     "ask for prompts line by line; each starts afresh (for a conversation: xlstm chat)", NULL, NULL, 0, 0},
};
static const option_row state_rows[] = {
    {"state-in", 0, OPTION_TEXT, FIELD(state_in), "FILE",
     "begin where a saved state stands; the prompt may then be missing", NULL, NULL, 0, 0},
    {"state-out", 0, OPTION_TEXT, FIELD(state_out), "FILE", "save the state after the last token", NULL, NULL, 0, 0},
    {"prefix-cache", 0, OPTION_TEXT, FIELD(prefix_cache), "FOLDER",
     "keep states of prompts here; a later prompt that begins alike reads only the rest", NULL, NULL, 0, 0},
};

/* What one run of the command holds. */
typedef struct generation {
    const generate_options *o;
    sampling_options sampling; /* with the seed settled and stop texts unescaped */
    output_kind output;
    xlstm_model *model;
    const xlstm_tokenizer *tokenizer; /* NULL: ids only */
    xlstm_session *session;
    xlstm_state *start; /* where every prompt begins; NULL: fresh */
    xlstm_prefix_cache *cache; /* NULL: none */
} generation;

/* The samples of one prompt, while they are made and shown. */
typedef struct batch {
    generation *g;
    const prompt *prompt;
    sample *samples;
    size_t n;
    size_t printed; /* of sample 0: bytes or ids on standard output */
} batch;

/* ---- printing --------------------------------------------------------------------------------------------------- */

/* The prompt as text: as given, else decoded. */
static int add_prompt_text(buffer *out, const generation *g, const prompt *p)
{
    buffer_add(out, "", 0);
    if (p->is_text) {
        buffer_add(out, p->text.data, p->text.size);
        return EXIT_OK;
    }
    char *text;
    size_t size;
    xlstm_error err = {0};
    if (xlstm_tokenizer_decode(&text, &size, g->tokenizer, p->ids.ids, p->ids.n, true, &err))
        return fail_error(&err);
    buffer_add(out, text, size);
    xlstm_free(text);
    return EXIT_OK;
}

static void print_ids(const int32_t *ids, size_t n, bool *comma)
{
    for (size_t i = 0; i < n; i++) {
        outputf("%s%d", *comma ? "," : "", ids[i]);
        *comma = true;
    }
}

static int echo(const batch *b)
{
    const generation *g = b->g;
    if (g->o->no_echo || g->output == OUTPUT_JSON)
        return EXIT_OK;
    if (g->output == OUTPUT_IDS) {
        bool comma = false;
        print_ids(b->prompt->ids.ids, b->prompt->ids.n, &comma);
    } else {
        buffer text = {0};
        int status = add_prompt_text(&text, g, b->prompt);
        output(text.data, text.size);
        buffer_free(&text);
        if (status)
            return status;
    }
    output_flush();
    return EXIT_OK;
}

/* Prints what sample 0 has had to show since the last call; it streams, the others wait for its end. */
static void print_more(batch *b, const sample *s)
{
    if (b->g->output == OUTPUT_TEXT) {
        output(s->text.data + b->printed, s->shown_text - b->printed);
        b->printed = s->shown_text;
    } else if (b->g->output == OUTPUT_IDS) {
        bool comma = b->printed > 0 || (!b->g->o->no_echo && b->prompt->ids.n > 0);
        print_ids(s->ids.ids + b->printed, s->shown_ids - b->printed, &comma);
        b->printed = s->shown_ids;
    }
    output_flush();
}

static void show(void *user, sample *s)
{
    batch *b = user;
    if (s == b->samples)
        print_more(b, s);
}

static int print_json(const batch *b, size_t i)
{
    const generation *g = b->g;
    const sample *s = &b->samples[i];
    const unsigned long long seed = g->sampling.seed.value + i;
    outputf("{\"index\":%zu,\"seed\":%llu", i, seed);
    if (!g->o->no_echo) {
        outputf(",\"prompt_ids\":");
        output_json_ids(b->prompt->ids.ids, b->prompt->ids.n);
        if (g->tokenizer) {
            buffer text = {0};
            int status = add_prompt_text(&text, g, b->prompt);
            outputf(",\"prompt\":");
            output_json_string(text.data, text.size);
            buffer_free(&text);
            if (status)
                return status;
        }
    }
    outputf(",\"ids\":");
    output_json_ids(s->ids.ids, s->shown_ids);
    if (g->tokenizer) {
        outputf(",\"text\":");
        output_json_string(s->text.data, s->shown_text);
    }
    outputf(",\"stop_reason\":\"%s\"", stop_reason_names[s->reason]);
    if (s->reason == STOP_EOS || s->reason == STOP_ID)
        outputf(",\"stop_id\":%d", s->stop_id);
    if (s->reason == STOP_TEXT) {
        outputf(",\"stop_text\":");
        output_json_string(s->stop_text, strlen(s->stop_text));
    }
    outputf("}\n");
    return EXIT_OK;
}

static void print_title(const batch *b, size_t i)
{
    if (b->n > 1 && b->g->output == OUTPUT_TEXT)
        outputf("--- %zu of %zu ---\n", i + 1, b->n);
}

/* Everything that did not stream. */
static int print_rest(batch *b)
{
    const generation *g = b->g;
    if (g->output == OUTPUT_JSON) {
        int status = EXIT_OK;
        for (size_t i = 0; i < b->n && status == EXIT_OK; i++)
            status = print_json(b, i);
        return status;
    }
    output("\n", 1);
    for (size_t i = 1; i < b->n; i++) {
        print_title(b, i);
        int status = echo(b);
        if (status)
            return status;
        b->printed = 0;
        print_more(b, &b->samples[i]);
        output("\n", 1);
    }
    return EXIT_OK;
}

/* ---- one prompt ------------------------------------------------------------------------------------------------- */

/* Brings the session to where prompts begin. */
static int rewind_session(generation *g)
{
    xlstm_error err = {0};
    int code = g->start ? xlstm_state_restore(g->session, g->start, &err) : xlstm_session_reset(g->session, &err);
    return code ? fail_error(&err) : EXIT_OK;
}

static int read_prompt(generation *g, const prompt *p, counters *c)
{
    if (p->ids.n > 0 && g->cache) {
        size_t reused = 0;
        const int status = read_cached(g->cache, g->session, &p->ids, &reused, c, &g->o->model);
        if (g->o->stats)
            fprintf(stderr, "%-9s %6zu of %zu prompt tokens were read before\n", "cache", reused, p->ids.n);
        return status;
    }
    if (p->ids.n > 0)
        return read_ids(g->session, p->ids.ids, p->ids.n, c, &g->o->model);
    if (g->start)
        return EXIT_OK;
    int32_t first = g->o->model.bos == XLSTM_OFF ? -1 : first_id(g->model);
    if (first < 0)
        return fail_usage("an empty prompt needs a begin-of-sequence token to start from%s; give a prompt with -p, "
                          "--prompt-file or --prompt-ids",
                          g->o->model.bos == XLSTM_OFF ? ", which --bos off forbids" : "; this model has none");
    return read_ids(g->session, &first, 1, c, &g->o->model);
}

/* Forks the session for every sample but the first. sessions[0] is the generation's own. */
static int start_samples(batch *b, xlstm_session **sessions)
{
    generation *g = b->g;
    sessions[0] = g->session;
    for (size_t i = 0; i < b->n; i++) {
        xlstm_error err = {0};
        if (i > 0 && xlstm_session_fork(&sessions[i], g->session, &err))
            return fail_error(&err);
        xlstm_sampler *sampler;
        int status = sampling_new(&sampler, &g->sampling, g->model, i);
        if (status)
            return status;
        for (size_t k = 0; k < b->prompt->ids.n; k++)
            xlstm_sampler_accept(sampler, b->prompt->ids.ids[k]);
        status = sample_start(&b->samples[i], sessions[i], sampler, g->tokenizer, &g->sampling, b->prompt->ids.ids,
                              b->prompt->ids.n);
        if (status)
            return status;
    }
    return EXIT_OK;
}

static int save_state(generation *g, sample *s, const xlstm_state *before)
{
    xlstm_state *state = NULL;
    xlstm_error err = {0};
    int status = sample_settle(s, before, g->tokenizer, &g->o->model);
    if (status)
        return status;
    if (xlstm_state_snapshot(&state, g->session, &err) || xlstm_state_save(state, g->o->state_out, NULL, &err))
        status = fail_error(&err);
    xlstm_state_free(state);
    return status;
}

static void explain_sample(const batch *b, const sample *s)
{
    id_list ids = {0};
    for (size_t i = 0; i < b->prompt->ids.n; i++)
        ids_add(&ids, b->prompt->ids.ids[i]);
    for (size_t i = 0; i < s->ids.n; i++)
        ids_add(&ids, s->ids.ids[i]);
    explain_fault(s->session, b->g->start, ids.ids, ids.n);
    free(ids.ids);
}

static int generate_samples_for(batch *b, counters *c)
{
    generation *g = b->g;
    const generate_options *o = g->o;
    xlstm_session **sessions = must(calloc(b->n, sizeof(xlstm_session *)));
    xlstm_state *before = NULL; /* after the prompt; needed to take a stop text back out of a saved state */
    xlstm_error err = {0};
    int status = EXIT_OK;
    if (o->state_out && g->sampling.stop.n && xlstm_state_snapshot(&before, g->session, &err))
        status = fail_error(&err);
    if (status == EXIT_OK)
        status = start_samples(b, sessions);
    if (status == EXIT_OK) {
        print_title(b, 0);
        status = echo(b);
    }
    if (status == EXIT_OK) {
        status = generate_samples(b->samples, b->n, o->max_tokens, o->state_out != NULL, show, b, c);
        bool stopped = b->samples[0].reason == STOP_INTERRUPT;
        interrupt_clear();
        if (status == EXIT_OK)
            status = print_rest(b);
        else if (g->output != OUTPUT_JSON)
            output("\n", 1);
        for (size_t i = 0; status == EXIT_RUNTIME && i < b->n; i++)
            explain_sample(b, &b->samples[i]);
        if (status == EXIT_OK && o->state_out)
            status = save_state(g, &b->samples[0], before);
        if (status == EXIT_OK && stopped && !output_broken())
            status = EXIT_INTERRUPTED;
    }
    for (size_t i = 0; i < b->n; i++) {
        sample_free(&b->samples[i]);
        if (i > 0)
            xlstm_session_free(sessions[i]);
    }
    free(sessions);
    xlstm_state_free(before);
    return status;
}

static int answer(generation *g, const prompt *p)
{
    counters c = {0};
    int status = rewind_session(g);
    if (status == EXIT_OK)
        status = read_prompt(g, p, &c);
    if (status == EXIT_RUNTIME)
        explain_fault(g->session, g->start, p->ids.ids, p->ids.n);
    if (status == EXIT_INTERRUPTED)
        complain("interrupted while reading the prompt%s", g->o->state_out ? "; no state was saved" : "");
    if (status == EXIT_OK) {
        batch b = {.g = g, .prompt = p, .n = (size_t)g->o->samples};
        b.samples = must(calloc(b.n, sizeof *b.samples));
        status = generate_samples_for(&b, &c);
        free(b.samples);
    }
    if (g->o->stats) {
        print_stats(&c, g->model);
        fprintf(stderr, "%-9s %llu\n", "seed", (unsigned long long)g->sampling.seed.value);
    }
    return status;
}

static int interact(generation *g)
{
    line_reader *reader = line_new(NULL);
    buffer line = {0};
    int status = EXIT_OK;
    while (status != EXIT_RUNTIME && !output_broken()) {
        line_result result = line_read(&line, reader, "> ");
        interrupt_clear();
        if (result == LINE_END)
            break;
        if (result == LINE_INTERRUPTED || line.size == 0)
            continue;
        if (g->o->prompt.escape)
            unescape(line.data, &line.size);
        prompt p = {0};
        status = prompt_from_text(&p, line.data, line.size, g->model);
        if (status == EXIT_OK)
            status = answer(g, &p);
        prompt_free(&p);
    }
    buffer_free(&line);
    line_free(reader);
    if (ferror(stdin)) /* line_read has said so */
        return EXIT_RUNTIME;
    return status == EXIT_INTERRUPTED ? EXIT_OK : status;
}

/* ---- command ---------------------------------------------------------------------------------------------------- */

static int check(const generate_options *o)
{
    const prompt_options *p = &o->prompt;
    if (o->interactive && (p->text || p->file || p->ids.given))
        return fail_usage("--interactive asks for prompts: give none");
    if (o->state_out && (o->samples > 1 || o->interactive))
        return fail_usage("--state-out saves one state: it does not go with %s",
                          o->samples > 1 ? "--samples above 1" : "--interactive");
    if (o->prefix_cache && o->state_in)
        return fail_usage("--prefix-cache is for prompts that begin afresh: it does not go with --state-in");
    return check_output("--state-out", o->state_out);
}

/* Decides what is printed and whether a tokenizer is at hand for it. */
static int settle_output(generation *g)
{
    const generate_options *o = g->o;
    g->tokenizer = xlstm_model_tokenizer(g->model);
    g->output = (output_kind)o->output;
    if (g->output == OUTPUT_AUTO)
        g->output = g->tokenizer ? OUTPUT_TEXT : OUTPUT_IDS;
    if (g->output == OUTPUT_TEXT && !need_tokenizer(g->model, "--output text"))
        return EXIT_RUNTIME;
    if (g->sampling.stop.n && !need_tokenizer(g->model, "--stop"))
        return EXIT_RUNTIME;
    return EXIT_OK;
}

static int open_session(generation *g)
{
    xlstm_error err = {0};
    if (xlstm_session_new(&g->session, g->model, &err) ||
        (g->o->state_in && xlstm_state_load(&g->start, g->model, g->o->state_in, true, &err)))
        return fail_error(&err);
    const xlstm_prefix_cache_options cache = {.folder = g->o->prefix_cache};
    if (cache.folder && xlstm_prefix_cache_new(&g->cache, g->model, &cache, &err))
        return fail_error(&err);
    return EXIT_OK;
}

static int run(const void *options, char **arguments, size_t n)
{
    (void)arguments;
    (void)n;
    const generate_options *o = options;
    generation g = {.o = o, .sampling = o->sampling};
    int status = check(o);
    if (status)
        return status;
    sampling_settle_seed(&g.sampling);
    for (size_t i = 0; i < g.sampling.stop.n && o->prompt.escape; i++) {
        size_t size = strlen(g.sampling.stop.items[i]);
        unescape(g.sampling.stop.items[i], &size);
        if (strlen(g.sampling.stop.items[i]) != size)
            return fail_usage("--stop holds a NUL character, expected a text without one");
    }
    prompt p = {0};
    status = open_model(&g.model, &o->model, false);
    if (status == EXIT_OK && o->info)
        info_print(stderr, g.model);
    if (status == EXIT_OK && o->show_wiring)
        status = wiring_print(stderr, g.model, o->style);
    if (status == EXIT_OK)
        status = settle_output(&g);
    if (status == EXIT_OK)
        status = open_session(&g);
    if (status == EXIT_OK)
        interrupt_watch();
    if (status == EXIT_OK && o->interactive) {
        status = interact(&g);
    } else if (status == EXIT_OK) {
        status = prompt_read(&p, &o->prompt, g.model);
        if (status == EXIT_OK)
            status = answer(&g, &p);
    }
    prompt_free(&p);
    xlstm_state_free(g.start);
    xlstm_prefix_cache_free(g.cache);
    xlstm_session_free(g.session);
    xlstm_model_free(g.model);
    return output_finish(status);
}

static const option_group groups[] = {
    PROMPT_GROUP(generate_options, prompt),
    {"Length", length_rows, COUNT_OF(length_rows), 0},
    SAMPLING_GROUP(generate_options, sampling),
    {"Output", output_rows, COUNT_OF(output_rows), 0},
    {"State", state_rows, COUNT_OF(state_rows), 0},
    MODEL_GROUP(generate_options, model),
};

const command command_generate = {
    .name = "generate",
    .summary = "continue a text, streaming",
    .usage = "[-m MODEL] [-p TEXT] [--max-tokens N] [--temperature T]",
    .details =
        "Without a prompt the text begins from nothing. The result is the prompt (unless --no-echo) and its "
        "continuation, then a line break; --output ids prints them as 1,2,3; --output json prints one object a sample "
        "and line, with ids and text of the continuation and why it ended (length, eos, stop_id, stop_text, "
        "interrupt).\n"
        "\n"
        "Order of the choosing rules: logit bias, penalties, temperature, top-k, top-p, min-p. Sample i of several is "
        "what seed + i alone would give.\n"
        "\n"
        "--state-out saves a state that has read everything printed, and nothing of a stop text: a later run with "
        "--state-in goes on as if it had never ended. Penalties do not remember what was before a loaded state.\n"
        "\n"
        "Ctrl-C ends the text, not the program: the line is finished, state and statistics are written, and the exit "
        "status is 130. A second Ctrl-C ends the program at once.",
    .size = sizeof(generate_options),
    .groups = groups,
    .n_groups = COUNT_OF(groups),
    .run = run,
};
