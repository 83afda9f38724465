/*
 * generation.h — reading prompts and producing text, shared by `generate` and `chat`: prefill in slabs, one ragged batch
 * for several continuations, stop rules, statistics. Leaves what is printed and how to the commands.
 */
#ifndef CLI_GENERATION_H
#define CLI_GENERATION_H

#include "common.h"

#include <stddef.h>

/* How tokens are chosen and when a text ends. */
typedef struct sampling_options {
    float temperature, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty;
    uint64_t top_k, penalty_window;
    seed_value seed;
    bias_list bias;
    string_list stop;
    id_list stop_id;
    bool ignore_eos;
} sampling_options;

extern const option_row sampling_rows[];
enum { SAMPLING_ROWS = 13 };
#define SAMPLING_GROUP(type, member) {"Choosing and stopping", sampling_rows, SAMPLING_ROWS, offsetof(type, member)}

/* Picks a random seed unless one was given. Call once. */
void sampling_settle_seed(sampling_options *options);
/* A sampler whose seed is the options' plus `offset`. EXIT_OK or a status after a message. */
int sampling_new(xlstm_sampler **out, const sampling_options *options, const xlstm_model *model, uint64_t offset);

typedef struct counters {
    uint64_t prompt_tokens, output_tokens, steps; /* steps: passes over the weights while generating */
    double prompt_seconds, output_seconds;
} counters;

/* Two or three lines on standard error. */
void print_stats(const counters *c, const xlstm_model *model);

/* How many of `n` tokens end at the next position that is a multiple of `multiple` (a multiple of the chunk size). A
 * result does not depend on cuts there. */
size_t tokens_to_border(const xlstm_session *session, int32_t next_id, size_t n, uint64_t multiple);
/*
 * Reads the ids into the session, in slabs whose borders lie at multiples of the chunk size, with a progress bar, so
 * that Ctrl-C is noticed between them. EXIT_OK, EXIT_INTERRUPTED without a message, or EXIT_RUNTIME after one.
 */
int read_ids(xlstm_session *session, const int32_t *ids, size_t n, counters *c, const model_options *options);
/* The same for a text that begins afresh, in any session: takes up its longest beginning that was read before (*reused
 * tokens), reads the rest and leaves states behind for the next. */
int read_cached(xlstm_prefix_cache *cache, xlstm_session *session, const id_list *ids, size_t *reused, counters *c,
                const model_options *options);

/* If the session is poisoned by a non-finite value: replays `ids` from `start` (NULL: fresh) and says on standard error
 * where the value came from. */
void explain_fault(const xlstm_session *session, const xlstm_state *start, const int32_t *ids, size_t n);

typedef enum stop_reason {
    STOP_NONE, /* still running */
    STOP_LENGTH,
    STOP_EOS,
    STOP_ID,
    STOP_TEXT,
    STOP_INTERRUPT, /* Ctrl-C, or nobody reads standard output */
    STOP_FAILED,
} stop_reason;

extern const char *const stop_reason_names[];

/* One continuation in the making. */
typedef struct sample {
    xlstm_session *session;  /* borrowed */
    xlstm_sampler *sampler;  /* owned */
    xlstm_stream *stream;    /* owned; NULL without a tokenizer */
    const sampling_options *options;

    id_list ids;       /* chosen so far; a stopping id is not among them */
    size_t *ends;      /* [ids.n] bytes of text after each id; only with a stream */
    size_t n_read;     /* ids that the session has read */
    size_t shown_ids;  /* ids certain to be part of the result: no stop text can take them back */
    buffer text;       /* decoded */
    size_t shown_text; /* bytes of it certain to be part of the result */
    int32_t next;      /* id chosen when the last one was read; -1: none yet */
    stop_reason reason;
    int32_t stop_id;       /* with STOP_EOS and STOP_ID */
    const char *stop_text; /* with STOP_TEXT */
} sample;

/* `context`: ids in front, so that decoders which treat the start of a text specially know it is not one. */
int sample_start(sample *s, xlstm_session *session, xlstm_sampler *sampler, const xlstm_tokenizer *tokenizer,
                 const sampling_options *options, const int32_t *context, size_t n_context);
void sample_free(sample *s);

/* Called whenever a sample has more to show, or has ended. */
typedef void (*show_fn)(void *user, sample *s);

/* Runs `n` samples, whose sessions hold logits, to their ends in one ragged batch; at most `max_tokens` ids each. With
 * `keep_logits` the sessions hold logits afterwards, too; without, they need not leave the device they are computed on.
 * EXIT_OK (an interruption is a reason, not a failure) or EXIT_RUNTIME after a message. */
int generate_samples(sample *samples, size_t n, uint64_t max_tokens, bool keep_logits, show_fn show, void *user,
                     counters *c);

/*
 * Makes the session stand exactly after the text shown: reads what it has not read, or, after a stop text, goes back to
 * `start` (taken before the first chosen id was read) and reads the kept part again.
 */
int sample_settle(sample *s, const xlstm_state *start, const xlstm_tokenizer *tokenizer, const model_options *options);

#endif
