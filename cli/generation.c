/*
 * generation.c — see generation.h. A sample is a state machine: take the id that was chosen, decode it, look for stop
 * texts, show what is certain; generate_samples drives all of them with one evaluate call a step, which reads the ids and
 * chooses the next ones.
 */
#include "generation.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>

#define FIELD(member) offsetof(sampling_options, member)
const option_row sampling_rows[] = {
    {"temperature", 0, OPTION_NUMBER, FIELD(temperature), "T",
     "1 samples as the model says, less is safer, 0 always takes the likeliest token", "1.0", NULL, 0, 0},
    {"top-k", 0, OPTION_COUNT, FIELD(top_k), "K", "choose among the K likeliest tokens; 0 is off", "0", NULL, 0,
     4294967295.0},
    {"top-p", 0, OPTION_NUMBER, FIELD(top_p), "P",
     "choose among the likeliest tokens that together reach P, the crossing one included; 1 is off", "1", NULL, 0, 1},
    {"min-p", 0, OPTION_NUMBER, FIELD(min_p), "P", "drop tokens below P times the likeliest; 0 is off", "0", NULL, 0, 1},
    {"repetition-penalty", 0, OPTION_NUMBER, FIELD(repetition_penalty), "R",
     "divide the logits of tokens seen, prompt included; 1 is off", "1", NULL, 1e-6, 1e6},
    {"frequency-penalty", 0, OPTION_NUMBER, FIELD(frequency_penalty), "F",
     "subtract F from a token's logit for each time it was seen", "0", NULL, -1e6, 1e6},
    {"presence-penalty", 0, OPTION_NUMBER, FIELD(presence_penalty), "F",
     "subtract F once from the logits of tokens seen", "0", NULL, -1e6, 1e6},
    {"penalty-window", 0, OPTION_COUNT, FIELD(penalty_window), "N", "how many last tokens the penalties look at; 0: all",
     "0", NULL, 0, 1e9},
    {"logit-bias", 0, OPTION_BIAS, FIELD(bias), "ID=BIAS", "add to a token's logit, -inf forbids it (repeatable)", NULL,
     NULL, 0, 0},
    {"seed", 0, OPTION_SEED, FIELD(seed), "N",
     "same seed, same text; without it another one each time (--stats tells which)", NULL, NULL, 0, 0},
    {"stop", 0, OPTION_LIST, FIELD(stop), "TEXT", "end before this text appears; it is not printed (repeatable)", NULL,
     NULL, 0, 0},
    {"stop-id", 0, OPTION_IDS, FIELD(stop_id), "IDS", "end at these token ids (repeatable)", NULL, NULL, 0, 0},
    {"ignore-eos", 0, OPTION_FLAG, FIELD(ignore_eos), NULL, "go on past the model's end-of-text tokens", NULL, NULL, 0,
     0},
};
_Static_assert(COUNT_OF(sampling_rows) == SAMPLING_ROWS, "generation.h states the number of rows");

const char *const stop_reason_names[] = {"none", "length", "eos", "stop_id", "stop_text", "interrupt", "failed"};

/* ---- sampler ---------------------------------------------------------------------------------------------------- */

void sampling_settle_seed(sampling_options *options)
{
    if (options->seed.given)
        return;
    uint32_t bits = 0; /* short enough to be typed again */
    if (getrandom(&bits, sizeof bits, 0) != (ssize_t)sizeof bits)
        bits = (uint32_t)(uint64_t)(now() * 1e6);
    options->seed = (seed_value){bits, true};
}

/* Stop rules that could never be met are mistakes. */
static int check_stops(const sampling_options *options, const xlstm_model *model)
{
    const uint32_t n_tokens = xlstm_model_get_info(model)->n_tokens;
    for (size_t i = 0; i < options->stop.n; i++)
        if (!options->stop.items[i][0])
            return fail_usage("--stop is empty, expected a text");
    for (size_t i = 0; i < options->stop_id.n; i++)
        if ((uint32_t)options->stop_id.ids[i] >= n_tokens)
            return fail_usage("--stop-id: %d is not a token of this model, expected 0 to %u", options->stop_id.ids[i],
                              n_tokens - 1);
    return EXIT_OK;
}

int sampling_new(xlstm_sampler **out, const sampling_options *options, const xlstm_model *model, uint64_t offset)
{
    const int status = check_stops(options, model);
    if (status)
        return status;
    xlstm_sampler_options o = {
        .temperature = options->temperature,
        .top_k = (uint32_t)options->top_k,
        .top_p = options->top_p,
        .min_p = options->min_p,
        .repetition_penalty = options->repetition_penalty,
        .frequency_penalty = options->frequency_penalty,
        .presence_penalty = options->presence_penalty,
        .penalty_window = (uint32_t)options->penalty_window,
        .seed = options->seed.value + offset,
        .bias = options->bias.items,
        .n_bias = options->bias.n,
    };
    xlstm_error err = {0};
    return xlstm_sampler_new(out, xlstm_model_get_info(model)->n_tokens, &o, &err) ? fail_error(&err) : EXIT_OK;
}

/* ---- statistics ------------------------------------------------------------------------------------------------- */

static void print_rate(const char *what, uint64_t tokens, double seconds)
{
    fprintf(stderr, "%-9s %6llu tokens %10.1f ms %10.1f tok/s", what, (unsigned long long)tokens, seconds * 1e3,
            seconds > 0 ? (double)tokens / seconds : 0.0);
}

void print_stats(const counters *c, const xlstm_model *model)
{
    const xlstm_model_info *info = xlstm_model_get_info(model);
    output_flush();
    print_rate("prompt", c->prompt_tokens, c->prompt_seconds);
    fputc('\n', stderr);
    print_rate("output", c->output_tokens, c->output_seconds);
    if (c->steps > 0 && c->output_seconds > 0)
        fprintf(stderr, "   weights at %.1f GB/s",
                (double)info->weight_bytes * (double)c->steps / c->output_seconds * 1e-9);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    char weights[32], state[32], memory[32];
    fprintf(stderr, "\n%-9s weights %s, state %s, peak memory %s, %s\n", "memory",
            human_bytes(weights, info->weight_bytes), human_bytes(state, info->state_bytes),
            human_bytes(memory, (uint64_t)usage.ru_maxrss * 1024), info->backend);
}

/* ---- prompts ---------------------------------------------------------------------------------------------------- */

/* Tokens read between two looks at the interrupt flag: a multiple of the chunk size. On the CPU about 10^12
 * multiplications, so that a large model answers Ctrl-C within seconds; elsewhere what keeps the device busy. */
static uint64_t slab_tokens(const xlstm_model_info *info)
{
    uint64_t slab = 2048;
    if (strstr(info->backend, "cpu (") || !strncmp(info->backend, "ref", 3)) {
        slab = 1000000000000u / (info->parameters + 1);
        slab = slab > 512 ? 512 : slab;
    }
    uint64_t chunk = info->chunk_size ? info->chunk_size : 1;
    return slab < chunk ? chunk : slab / chunk * chunk;
}

size_t tokens_to_border(const xlstm_session *session, int32_t next_id, size_t n, uint64_t multiple)
{
    const xlstm_model_info *info = xlstm_model_get_info(xlstm_session_model(session));
    uint64_t position = xlstm_session_position(session);
    if (position == 0 && info->bos_auto && next_id != info->bos_id)
        position = 1; /* BOS is read in front */
    uint64_t room = multiple - position % multiple;
    return n < room ? n : (size_t)room;
}

int read_ids(xlstm_session *session, const int32_t *ids, size_t n, counters *c, const model_options *options)
{
    xlstm_model *model = xlstm_session_model(session);
    const uint64_t slab = slab_tokens(xlstm_model_get_info(model));
    progress bar = progress_start(options);
    double started = now();
    int status = EXIT_OK;
    for (size_t done = 0; done < n && status == EXIT_OK;) {
        size_t count = tokens_to_border(session, ids[done], n - done, slab);
        xlstm_segment segment = {.session = session,
                                 .tokens = ids + done,
                                 .count = count,
                                 .want = done + count == n ? XLSTM_WANT_LAST : XLSTM_WANT_NONE};
        xlstm_error err = {0};
        if (xlstm_evaluate(model, &segment, 1, &err)) {
            progress_end(&bar);
            status = fail_error(&err);
            break;
        }
        done += count;
        c->prompt_tokens += count;
        progress_show(&bar, "reading the prompt", done, n);
        if (interrupted() && done < n)
            status = EXIT_INTERRUPTED;
    }
    progress_end(&bar);
    c->prompt_seconds += now() - started;
    return status;
}

int read_cached(xlstm_prefix_cache *cache, xlstm_session *session, const id_list *ids, size_t *reused, counters *c,
                const model_options *options)
{
    size_t done = 0, piece;
    xlstm_error err = {0};
    if (xlstm_prefix_cache_restore(cache, session, ids->ids, ids->n, &done, &err))
        return fail_error(&err);
    *reused = done;
    while ((piece = xlstm_prefix_cache_piece(cache, ids->ids, ids->n, done)) > 0) {
        const int status = read_ids(session, ids->ids + done, piece, c, options);
        if (status)
            return status;
        done += piece;
        if (xlstm_prefix_cache_put(cache, session, ids->ids, ids->n, &err))
            return fail_error(&err);
    }
    return EXIT_OK;
}

void explain_fault(const xlstm_session *session, const xlstm_state *start, const int32_t *ids, size_t n)
{
    xlstm_state *none;
    const int code = xlstm_state_snapshot(&none, session, NULL); /* refused just when the session is poisoned */
    xlstm_state_free(none);
    if (code != XLSTM_E_NONFINITE)
        return;
    xlstm_fault f;
    xlstm_error err = {0};
    if (xlstm_locate_fault(&f, xlstm_session_model(session), start, ids, n, &err))
        fail_error(&err);
    else if (f.found)
        complain("%s", fault_text((char[FAULT_TEXT]){0}, &f));
    else
        complain("a replay of the %zu tokens met no non-finite value", n);
}

/* ---- one sample ------------------------------------------------------------------------------------------------- */

int sample_start(sample *s, xlstm_session *session, xlstm_sampler *sampler, const xlstm_tokenizer *tokenizer,
                 const sampling_options *options, const int32_t *context, size_t n_context)
{
    enum { CONTEXT = 16 }; /* ids that can matter to a decoder */
    *s = (sample){.session = session, .sampler = sampler, .options = options, .next = -1};
    buffer_add(&s->text, "", 0);
    if (!tokenizer)
        return EXIT_OK;
    xlstm_error err = {0};
    if (xlstm_stream_new(&s->stream, tokenizer, true, &err))
        return fail_error(&err);
    for (size_t i = n_context > CONTEXT ? n_context - CONTEXT : 0; i < n_context; i++) {
        const char *text;
        size_t size;
        if (xlstm_stream_push(&text, &size, s->stream, context[i], NULL))
            continue; /* an id without a spelling has no text to continue */
    }
    return EXIT_OK;
}

void sample_free(sample *s)
{
    xlstm_sampler_free(s->sampler);
    xlstm_stream_free(s->stream);
    free(s->ids.ids);
    free(s->ends);
    buffer_free(&s->text);
    *s = (sample){0};
}

/* Looks for stop texts in what is not certain yet; sets how much is certain now. */
static void look_for_stops(sample *s, bool at_end)
{
    const string_list *stops = &s->options->stop;
    const char *from = s->text.data + s->shown_text;
    size_t left = s->text.size - s->shown_text, certain = left;
    for (size_t i = 0; i < stops->n; i++) {
        const char *hit = memmem(from, left, stops->items[i], strlen(stops->items[i]));
        if (hit && (!s->stop_text || (size_t)(hit - from) < certain)) {
            certain = (size_t)(hit - from);
            s->stop_text = stops->items[i];
        }
    }
    if (s->stop_text) {
        s->reason = STOP_TEXT;
    } else if (!at_end) { /* hold back an end that may be a stop text's beginning */
        for (size_t i = 0; i < stops->n; i++) {
            size_t longest = strlen(stops->items[i]) - 1;
            for (size_t n = longest < left ? longest : left; n > 0; n--) {
                if (!memcmp(from + left - n, stops->items[i], n)) {
                    certain = left - n < certain ? left - n : certain;
                    break;
                }
            }
        }
    }
    s->shown_text += certain;
}

static void update_shown_ids(sample *s)
{
    if (!s->stream) {
        s->shown_ids = s->ids.n;
        return;
    }
    while (s->shown_ids < s->ids.n && s->ends[s->shown_ids] <= s->shown_text)
        s->shown_ids++;
}

/* The sample has ended for another reason than a stop text: what was held back is certain, unless a last incomplete
 * character completes a stop text. */
static int sample_end(sample *s, stop_reason reason)
{
    s->reason = reason;
    if (s->stream) {
        const char *text;
        size_t size;
        xlstm_error err = {0};
        if (xlstm_stream_finish(&text, &size, s->stream, &err))
            return fail_error(&err);
        buffer_add(&s->text, text, size);
        look_for_stops(s, true);
    }
    update_shown_ids(s);
    return EXIT_OK;
}

static bool is_in(const int32_t *ids, size_t n, int32_t id)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] == id)
            return true;
    return false;
}

/* The first id comes from the logits that the prompt or a state left. */
static int choose_first(sample *s)
{
    const float *logits = xlstm_session_logits(s->session);
    xlstm_error err = {0};
    if (!logits)
        return fail("the state holds no logits to go on from; give a prompt");
    return xlstm_sampler_choose(&s->next, s->sampler, logits, &err) ? fail_error(&err) : EXIT_OK;
}

/* Takes in the next id. */
static int sample_step(sample *s, uint64_t max_tokens)
{
    const xlstm_model_info *info = xlstm_model_get_info(xlstm_session_model(s->session));
    xlstm_error err = {0};
    int status = s->next < 0 ? choose_first(s) : EXIT_OK;
    if (status)
        return status;
    int32_t id = s->next;
    bool own = is_in(s->options->stop_id.ids, s->options->stop_id.n, id);
    if (own || (!s->options->ignore_eos && is_in(info->stop_ids, info->n_stop_ids, id))) {
        s->stop_id = id;
        return sample_end(s, own ? STOP_ID : STOP_EOS);
    }
    xlstm_sampler_accept(s->sampler, id);
    ids_add(&s->ids, id);
    if (s->stream) {
        const char *text;
        size_t size;
        if (xlstm_stream_push(&text, &size, s->stream, id, &err))
            return fail_error(&err);
        buffer_add(&s->text, text, size);
        size_t n = s->ids.n;
        if (((n - 1) & (n - 2)) == 0) /* grown with ids: capacity is a power of two */
            s->ends = must(realloc(s->ends, 2 * n * sizeof *s->ends));
        s->ends[n - 1] = s->text.size;
        look_for_stops(s, false);
    }
    update_shown_ids(s);
    if (s->reason == STOP_NONE && s->ids.n >= max_tokens)
        return sample_end(s, STOP_LENGTH);
    return EXIT_OK;
}

/* ---- all samples ------------------------------------------------------------------------------------------------ */

int generate_samples(sample *samples, size_t n, uint64_t max_tokens, bool keep_logits, show_fn show, void *user,
                     counters *c)
{
    if (max_tokens == 0) {
        for (size_t i = 0; i < n; i++) {
            samples[i].reason = STOP_LENGTH;
            show(user, &samples[i]);
        }
        return EXIT_OK;
    }
    xlstm_segment *segments = must(calloc(n, sizeof *segments));
    xlstm_model *model = xlstm_session_model(samples[0].session);
    double started = now();
    int status = EXIT_OK;
    for (size_t live = n; live > 0 && status == EXIT_OK;) {
        live = 0;
        for (size_t i = 0; i < n && status == EXIT_OK; i++) {
            sample *s = &samples[i];
            if (s->reason != STOP_NONE)
                continue;
            if (interrupted() || output_broken())
                status = sample_end(s, STOP_INTERRUPT);
            else
                status = sample_step(s, max_tokens);
            if (status)
                break;
            show(user, s);
            if (s->reason != STOP_NONE)
                continue;
            segments[live++] = (xlstm_segment){.session = s->session,
                                               .tokens = &s->ids.ids[s->ids.n - 1],
                                               .count = 1,
                                               .want = keep_logits ? XLSTM_WANT_LAST : XLSTM_WANT_NONE,
                                               .sampler = s->sampler};
        }
        if (status || live == 0)
            break;
        xlstm_error err = {0};
        if (xlstm_evaluate(model, segments, live, &err))
            status = fail_error(&err);
        c->steps++;
        for (size_t i = 0, at = 0; i < n; i++) {
            if (samples[i].reason != STOP_NONE)
                continue;
            samples[i].n_read = samples[i].ids.n;
            samples[i].next = segments[at++].id;
        }
    }
    for (size_t i = 0; i < n; i++) {
        c->output_tokens += samples[i].ids.n;
        if (status && samples[i].reason == STOP_NONE)
            samples[i].reason = STOP_FAILED;
    }
    c->output_seconds += now() - started;
    free(segments);
    return status;
}

int sample_settle(sample *s, const xlstm_state *start, const xlstm_tokenizer *tokenizer, const model_options *options)
{
    xlstm_error err = {0};
    counters c = {0};
    if (s->reason != STOP_TEXT) {
        size_t from = s->n_read;
        s->n_read = s->ids.n;
        return read_ids(s->session, s->ids.ids + from, s->ids.n - from, &c, options);
    }
    if (xlstm_state_restore(s->session, start, &err))
        return fail_error(&err);
    id_list kept = {0};
    for (size_t i = 0; i < s->shown_ids; i++)
        ids_add(&kept, s->ids.ids[i]);
    size_t have = kept.n ? s->ends[kept.n - 1] : 0;
    if (have < s->shown_text) { /* the stop text began within a token */
        int32_t *rest;
        size_t n;
        if (xlstm_tokenizer_encode(&rest, &n, tokenizer, s->text.data + have, s->shown_text - have, 0, &err)) {
            free(kept.ids);
            return fail_error(&err);
        }
        for (size_t i = 0; i < n; i++)
            ids_add(&kept, rest[i]);
        xlstm_free(rest);
    }
    int status = read_ids(s->session, kept.ids, kept.n, &c, options);
    free(kept.ids);
    return status;
}
