/*
 * xlstm.h — run xLSTM language models from C. The whole public interface of libxlstm.
 *
 *   xlstm_model     an opened checkpoint: weights and resolved settings. Immutable after open; share it freely
 *                   between threads. Evaluations on one model are served one after another: batch them instead.
 *   xlstm_session   one sequence: its recurrent state, its position and the last logits. One thread at a time;
 *                   any number per model. Free sessions before their model.
 *   xlstm_state     a frozen copy of a session's state: fixed size whatever the length of the text it has read.
 *   xlstm_tokenizer, xlstm_sampler   stand alone; neither needs a model.
 *
 * Conventions. Functions return 0 (XLSTM_OK) or a negative xlstm_code. Out-parameters come first. Every `err` may be
 * NULL; otherwise it receives the code and one line that names the file, tensor or field, what was expected and found,
 * and the remedy. Option structs may be NULL or all-zero for the defaults. Borrowed pointers live as long as the
 * object they came from unless the declaration says otherwise; memory handed over is freed with xlstm_free or with
 * the object's own *_free, which accept NULL. The library never exits, prints, or reads the environment, does not heed
 * the locale, and allocates nothing in xlstm_evaluate after the session was created, but while a session is traced.
 *
 * Threads. Tokenizers, states, prefix caches and stores may be shared by threads, and so may a model: evaluations of its
 * sessions take turns. A session, sampler, stream, history or importance matrix belongs to one thread at a time. A state, a
 * history and an importance matrix outlive their model; sessions, prefix caches and mapped tensors do not; a stream does
 * not outlive its tokenizer. A child of fork() may use and free what it has, with one thread.
 *
 * The mathematics follows "xLSTM: Extended Long Short-Term Memory" (arXiv:2405.04517) and "xLSTM 7B"
 * (arXiv:2503.13427); docs/model.md states every formula. SPDX-License-Identifier: Apache-2.0
 */
#ifndef XLSTM_H
#define XLSTM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(XLSTM_STATIC)
#define XLSTM_API
#else
#define XLSTM_API __attribute__((visibility("default")))
#endif

#define XLSTM_VERSION_MAJOR 0
#define XLSTM_VERSION_MINOR 1
#define XLSTM_VERSION_PATCH 0

/* "0.1.0" */
XLSTM_API const char *xlstm_version(void);

/* ---- errors and messages ---------------------------------------------------------------------------------------- */

typedef enum xlstm_code {
    XLSTM_OK = 0,
    XLSTM_E_ARGUMENT = -1,    /* a call's arguments make no sense: token id out of range, sessions of another model */
    XLSTM_E_MEMORY = -2,      /* an allocation failed; the message says how many bytes */
    XLSTM_E_IO = -3,          /* a file could not be opened, read or written */
    XLSTM_E_FORMAT = -4,      /* a file is malformed, truncated or lies about itself */
    XLSTM_E_UNSUPPORTED = -5, /* well-formed, but not something this build can run */
    XLSTM_E_MISMATCH = -6,    /* a state belongs to another model, version or shape */
    XLSTM_E_NONFINITE = -7,   /* NaN or Inf arose, and the session is poisoned until it is reset or restored; or it is used so */
    XLSTM_E_DEVICE = -8,      /* a compute device failed */
} xlstm_code;

typedef struct xlstm_error {
    int code; /* xlstm_code */
    char message[1020];
} xlstm_error;

typedef enum xlstm_log_level { XLSTM_LOG_INFO, XLSTM_LOG_WARNING } xlstm_log_level;

/* One line without newline. Called from the thread that made the API call. */
typedef void (*xlstm_log_fn)(void *user, xlstm_log_level level, const char *line);

/* Long work: `done` of `total` units of `what` ("loading weights"). Called from the calling thread. */
typedef void (*xlstm_progress_fn)(void *user, const char *what, uint64_t done, uint64_t total);

/* Frees any memory this library handed over. NULL is fine. */
XLSTM_API void xlstm_free(void *memory);

/* ---- number formats --------------------------------------------------------------------------------------------- */

typedef enum xlstm_dtype {
    XLSTM_DTYPE_DEFAULT = 0, /* in options: as the checkpoint says */
    XLSTM_F64,
    XLSTM_F32,
    XLSTM_F16,
    XLSTM_BF16,
    XLSTM_I8, /* state storage only */
    /* ggml block formats, weights only */
    XLSTM_Q8_0,
    XLSTM_Q6_K,
    XLSTM_Q5_K,
    XLSTM_Q4_K,
    XLSTM_Q4_0,
    XLSTM_DTYPE_COUNT
} xlstm_dtype;

/* "float32", "bfloat16", "q4_k", ...; "default" for 0. Static storage. */
XLSTM_API const char *xlstm_dtype_name(xlstm_dtype dtype);
/* Accepts the names above, their short forms (f32, fp32, bf16, half, ...) and "torch." prefixes, any case. */
XLSTM_API int xlstm_dtype_parse(xlstm_dtype *out, const char *name, xlstm_error *err);

typedef enum xlstm_switch { XLSTM_AUTO = 0, XLSTM_ON = 1, XLSTM_OFF = 2 } xlstm_switch;

/* ---- model ------------------------------------------------------------------------------------------------------ */

typedef struct xlstm_model xlstm_model;

typedef struct xlstm_model_options {
    /* The four numeric settings (docs/numerics.md). Zero: what config.json says, else float32 / on. */
    xlstm_dtype dtype;                   /* weights and activations: F32, BF16 or F16 (torch_dtype) */
    xlstm_dtype kernel_dtype;            /* asks for kernel autocast: inputs of the mLSTM kernel are rounded to it */
    xlstm_dtype state_dtype;             /* C and n of every head: F32, BF16 or I8 (inference_state_dtype) */
    xlstm_switch norm_reduction_float32; /* norm_reduction_force_float32, the multi-head norm included */

    xlstm_switch bos;         /* begin-of-sequence token in front of a fresh session's first token */
    bool obey_config_eos;     /* stop at config.json's eos_token_id even when it is printable text */
    const char *backend;      /* NULL: the best available. "cpu", "reference", "reference64", "cuda" */
    uint32_t offload_blocks;  /* only the first so many blocks run on `backend`, the rest on cpu; 0: all of them */
    uint32_t threads;         /* 0: all CPUs this process may run on; at most 1024 */
    uint32_t chunk_size;      /* tokens a chunk in prefill; 0: the checkpoint's (64). 1 .. 4096 */
    uint32_t max_rows;        /* most token rows in one pass through the blocks; 0: 512, on a GPU 2048; at least a chunk, at most 1048576.
                                 Bounds scratch memory */
    uint32_t device;          /* which GPU of this machine, as its driver numbers them from 0; models may be on different ones */
    uint32_t device_states;   /* most states in a GPU's memory at once, the others wait in the host's; 0: what fits */
    uint32_t cpu_mask;        /* instruction sets the cpu backend may use, XLSTM_CPU_* bits; 0: all it finds */
    bool no_repack;           /* use weights where they are mapped; no second layout */
    bool headers_only;        /* read facts only: no weights are prepared; what needs them (sessions, states, caches) refuses */
    const char *const *set;   /* n_set strings "key=value" that override config.json keys, or stand in for it */
    size_t n_set;
    xlstm_log_fn log; /* warnings and notes; NULL: dropped */
    void *log_user;
    xlstm_progress_fn progress; /* NULL: none */
    void *progress_user;
} xlstm_model_options;

enum { XLSTM_CPU_SCALAR = 1, XLSTM_CPU_AVX2 = 2, XLSTM_CPU_AVX512 = 4, XLSTM_CPU_AVX512_BF16 = 8,
       XLSTM_CPU_AVX512_VNNI = 16, XLSTM_CPU_AMX = 32, XLSTM_CPU_NEON = 64, XLSTM_CPU_DOTPROD = 128 };

/* Opens a Hugging Face folder, NX-AI's own folder, a .safetensors file, a .gguf file, or "preset:7b" (also 1b, 410m,
 * 125m, tiny: random weights of that geometry made in memory; "preset:7b:q4_k" in another format than bfloat16). `path` is
 * copied. A tokenizer that is not understood is a warning; one that cannot be read for lack of memory or an I/O error fails.
 * On failure *out is NULL. */
XLSTM_API int xlstm_model_open(xlstm_model **out, const char *path, const xlstm_model_options *options,
                               xlstm_error *err);
/* After every session of the model is freed. */
XLSTM_API void xlstm_model_free(xlstm_model *model);

/* A setting as resolved and where it came from: "option", "config.json dtype", "default", ... */
typedef struct xlstm_resolved {
    xlstm_dtype dtype; /* DEFAULT (0) for kernel_dtype: no autocast */
    bool on;           /* norm flag */
    char source[60];
} xlstm_resolved;

typedef struct xlstm_model_info {
    uint32_t vocab_size;    /* V: rows of embedding and head */
    uint32_t n_tokens;      /* ids with a meaning; rows n_tokens .. V-1 are padding and never sampled */
    uint32_t embedding_dim; /* D */
    uint32_t num_blocks;
    uint32_t num_heads;  /* NH */
    uint32_t qk_dim;     /* Qd, all heads together; a head has Qd / NH */
    uint32_t v_dim;      /* Vd, all heads together */
    uint32_t ffn_dim;    /* F */
    uint32_t chunk_size; /* tokens */
    float norm_eps, cell_eps;
    float gate_soft_cap, logit_soft_cap; /* 0: no cap */
    bool use_bias, tied, fused, out_norm;

    xlstm_resolved weights;     /* dtype the weights are held in */
    xlstm_resolved activations; /* dtype activations are rounded to between operations */
    xlstm_resolved kernel;
    xlstm_resolved state;
    xlstm_resolved norm_float32;
    xlstm_dtype stored_dtype; /* of the largest tensor group in the files */

    int32_t bos_id, eos_id, pad_id; /* -1: none. As config.json says, obeyed or not */
    bool bos_auto;                  /* BOS is put in front of fresh sessions */
    char bos_source[60];
    int32_t stop_ids[16]; /* ids that end a text */
    uint32_t n_stop_ids;

    uint32_t max_rows; /* token rows that go through the blocks together; 0 after headers_only */

    uint64_t parameters;   /* elements of all tensors used */
    uint64_t weight_bytes; /* as held in memory */
    uint64_t state_bytes;  /* of one session */
    uint64_t fingerprint;  /* of architecture and weights; in every state file. 0 after headers_only */
    char path[512];
    char format[32];  /* "safetensors", "gguf", "preset" */
    char backend[256]; /* "cpu (avx512-bf16, 2 threads)"; empty after headers_only */
} xlstm_model_info;

/* Borrowed, constant for the model's life. */
XLSTM_API const xlstm_model_info *xlstm_model_get_info(const xlstm_model *model);
/* Warnings collected at open, also sent to the log. NULL past the last. */
XLSTM_API const char *xlstm_model_warning(const xlstm_model *model, size_t i);

typedef struct xlstm_tensor_info {
    const char *name; /* borrowed */
    const char *file; /* base name of the file that holds it, borrowed */
    xlstm_dtype dtype;
    uint32_t rank;
    uint64_t shape[4];
    uint64_t bytes;
} xlstm_tensor_info;

XLSTM_API size_t xlstm_model_tensor_count(const xlstm_model *model);
/* i < count, in file order. */
XLSTM_API void xlstm_model_tensor(const xlstm_model *model, size_t i, xlstm_tensor_info *out);

typedef struct xlstm_tensor_stats {
    uint64_t count, nan, inf;
    double min, max, mean, rms; /* over the finite values */
} xlstm_tensor_stats;

/* Reads every value of tensor i < count as stored. Takes as long as reading its bytes from disk, after an evaluation that
 * runs meanwhile. */
XLSTM_API int xlstm_model_tensor_stats(xlstm_tensor_stats *out, xlstm_model *model, size_t i, xlstm_error *err);
/* The wiring discovered from the tensors, as text with newlines; caller frees with xlstm_free. */
XLSTM_API int xlstm_model_draw_wiring(char **out, const xlstm_model *model, bool unicode, xlstm_error *err);

/* ---- sessions and evaluation ------------------------------------------------------------------------------------ */

typedef struct xlstm_session xlstm_session;
typedef struct xlstm_state xlstm_state;
typedef struct xlstm_sampler xlstm_sampler;

/* A fresh session: C = 0, n = 0, m = 0, position 0. */
XLSTM_API int xlstm_session_new(xlstm_session **out, xlstm_model *model, xlstm_error *err);
/* A second session that continues where `source` stands, last logits included: one state copy. A poisoned one is refused. */
XLSTM_API int xlstm_session_fork(xlstm_session **out, const xlstm_session *source, xlstm_error *err);
XLSTM_API void xlstm_session_free(xlstm_session *session);
/* Back to fresh; also heals a poisoned session. */
XLSTM_API int xlstm_session_reset(xlstm_session *session, xlstm_error *err);
XLSTM_API xlstm_model *xlstm_session_model(const xlstm_session *session);
/* Tokens read since the start, BOS included. */
XLSTM_API uint64_t xlstm_session_position(const xlstm_session *session);
/* Rolling hash over every token read: equal histories have equal hashes. */
XLSTM_API uint64_t xlstm_session_token_hash(const xlstm_session *session);
/* [vocab_size] capped float32 logits after the last token evaluated with LAST or ALL, borrowed until the session's
 * next change; NULL if there are none. Rows of padding ids are included as computed. */
XLSTM_API const float *xlstm_session_logits(const xlstm_session *session);

typedef enum xlstm_want { XLSTM_WANT_NONE = 0, XLSTM_WANT_LAST = 1, XLSTM_WANT_ALL = 2 } xlstm_want;

/* A run of consecutive tokens of one session. */
typedef struct xlstm_segment {
    xlstm_session *session;
    const int32_t *tokens;  /* [count], each in [0, vocab_size) */
    size_t count;           /* >= 1 */
    xlstm_want want;        /* which rows' logits are handed over */
    float *logits;          /* out: [vocab_size] for LAST, [count][vocab_size] for ALL; NULL: session keeps the last */
    int status;             /* out: XLSTM_OK, or why this segment failed while others may have succeeded */
    xlstm_sampler *sampler; /* chooses from the last token's logits; NULL: none */
    int32_t id;             /* out: what it chose; -1 if it failed or there is none */
} xlstm_segment;

/*
 * Evaluates a ragged batch: reads every segment's tokens into its session. One decode step, a long prefill and a mix of
 * both are the same call. Each session may appear once. On the CPU a segment's logits and state are bit-identical
 * whatever else is in the batch, for any thread count, and wherever the sequence was cut at multiples of chunk_size.
 * If BOS is due it is read first; logits stay aligned with the caller's tokens.
 * Returns the first segment's failure. A batch with a wrong argument is refused as a whole: nothing is read, and every
 * status is that failure, logits of earlier evaluations stay. XLSTM_E_NONFINITE poisons the session concerned, and is the status of one that was poisoned
 * before; the others are complete.
 *
 * A segment's sampler chooses as xlstm_sampler_choose would from these logits, and does not accept the id. Where the
 * backend can (cuda, without bias and penalties) the choice is made on the device, and with WANT_NONE no logits come
 * back from there; a random number within about 1e-9 of the border between two ids may then choose the other one.
 * Segments may share a sampler: they draw in their order. One that fails may have drawn. Failing to choose fails the
 * segment, whose tokens are read all the same.
 */
XLSTM_API int xlstm_evaluate(xlstm_model *model, xlstm_segment *segments, size_t n, xlstm_error *err);
/* One segment, logits of the last token: xlstm_session_logits. */
XLSTM_API int xlstm_prefill(xlstm_session *session, const int32_t *tokens, size_t count, xlstm_error *err);
XLSTM_API int xlstm_decode(xlstm_session *session, int32_t token, xlstm_error *err);

/* ---- tracing ---------------------------------------------------------------------------------------------------- */

/* One stage's values: `rows` token rows of `width` float32, row-major, borrowed during the call. `block` is -1 outside
 * the blocks. Stage names as in docs/numerics.md: "x_in", "q", "h", ... */
typedef void (*xlstm_trace_fn)(void *user, int block, const char *stage, const float *values, size_t rows,
                               size_t width);
/* Calls `fn` for every stage of the session's evaluations until set to NULL. Costs nothing while NULL. */
XLSTM_API void xlstm_session_set_trace(xlstm_session *session, xlstm_trace_fn fn, void *user);

/* Where a non-finite value first arose, as found by xlstm_locate_fault. */
typedef struct xlstm_fault {
    bool found;        /* false: the tokens evaluate without one */
    uint64_t position; /* of the token in its sequence, BOS counted */
    int32_t token;
    int block;         /* -1: outside the blocks */
    int head;          /* -1: the stage has no heads */
    uint32_t channel;  /* within the head, or within the row when there is none */
    float value;
    char stage[24];    /* docs/numerics.md lists the stages in their order */
    char input[24];    /* the stage or weights it was computed from; "" for the first */
    float input_min, input_max; /* over the finite values of that input */
    uint64_t input_nonfinite;   /* how many of its values were not */
    char culprit[160]; /* a non-finite weight that explains it: tensor name and index; "" if none does */
} xlstm_fault;

/* Replays `tokens` from a good state (NULL: a fresh session, BOS as usual) and finds the first stage that produced a
 * non-finite value, in the order of the forward pass. Takes about as long as reading the tokens. */
XLSTM_API int xlstm_locate_fault(xlstm_fault *out, xlstm_model *model, const xlstm_state *from, const int32_t *tokens,
                                 size_t n, xlstm_error *err);

/* ---- state ------------------------------------------------------------------------------------------------------ */

/* A frozen copy: state, position, token hash, last logits. Fails on a poisoned session. Threads may share it. */
XLSTM_API int xlstm_state_snapshot(xlstm_state **out, const xlstm_session *session, xlstm_error *err);
/* Makes the session stand exactly where the snapshot was taken. Any session of the same model. */
XLSTM_API int xlstm_state_restore(xlstm_session *session, const xlstm_state *state, xlstm_error *err);
XLSTM_API int xlstm_state_copy(xlstm_state **out, const xlstm_state *state, xlstm_error *err);
XLSTM_API void xlstm_state_free(xlstm_state *state);

/* Writes atomically: a killed process leaves the old file or the new one. A link is followed; a device, pipe or folder is
 * refused. Layout: docs/state-file.md. `note`: user text, may be NULL. */
XLSTM_API int xlstm_state_save(const xlstm_state *state, const char *path, const char *note, xlstm_error *err);
/* Maps a file and checks everything but the bulk checksum unless `verify`. `model` decides what fits; NULL: a tool that
 * takes any state. Files are to be replaced, never changed in place, while they are mapped. */
XLSTM_API int xlstm_state_load(xlstm_state **out, xlstm_model *model, const char *path, bool verify, xlstm_error *err);
/* The same bytes as a file's, in memory: *out is freed with xlstm_free. */
XLSTM_API int xlstm_state_serialize(void **out, size_t *size, const xlstm_state *state, const char *note,
                                    xlstm_error *err);
XLSTM_API int xlstm_state_deserialize(xlstm_state **out, xlstm_model *model, const void *bytes, size_t size,
                                      xlstm_error *err);

typedef struct xlstm_state_info {
    uint32_t version, num_blocks, num_heads, qk_head_dim, v_head_dim, vocab_size;
    xlstm_dtype dtype;
    uint64_t fingerprint, position, token_hash, state_bytes, file_bytes;
    bool has_logits;
    char note[1024];
} xlstm_state_info;

XLSTM_API void xlstm_state_get_info(const xlstm_state *state, xlstm_state_info *out);
/* Reads a file's header without a model; `verify` also checks every byte against the checksum. */
XLSTM_API int xlstm_state_describe(xlstm_state_info *out, const char *path, bool verify, xlstm_error *err);
/* [vocab_size] logits after the last token read; NULL if the state has none. Borrowed. */
XLSTM_API const float *xlstm_state_logits(const xlstm_state *state);
/* The same state stored as F64 (for reference64), F32, BF16 or I8. */
XLSTM_API int xlstm_state_convert(xlstm_state **out, const xlstm_state *state, xlstm_dtype dtype, xlstm_error *err);

/* One head as float32: C [qk_head_dim][v_head_dim] (key first), n [qk_head_dim], m [1]; any may be NULL. These are the
 * stabilised values; the true ones are exp(m) times them. Writing is for a state of your own that no other thread has
 * yet (one from xlstm_state_load is refused: copy it first); it drops the last logits. Values are not checked: those that are
 * not finite poison a session that goes on from them. */
XLSTM_API int xlstm_state_read_head(const xlstm_state *state, uint32_t block, uint32_t head, float *C, float *n,
                                    float *m, xlstm_error *err);
XLSTM_API int xlstm_state_write_head(xlstm_state *state, uint32_t block, uint32_t head, const float *C, const float *n,
                                     const float *m, xlstm_error *err);

/* Euclidean norms of a head's true C and n in two states, and of what lies between them, all divided by
 * exp(log_scale), log_scale being the larger m. */
typedef struct xlstm_head_difference {
    double log_scale;
    double C_first, C_second, C_between;
    double n_first, n_second, n_between;
} xlstm_head_difference;

/* out [num_blocks][num_heads]. */
XLSTM_API int xlstm_state_diff(xlstm_head_difference *out, const xlstm_state *first, const xlstm_state *second,
                               xlstm_error *err);
/* The sum of weights[i] times the true C and n of states[i], n >= 1, stabilised anew; for interpolation and averages.
 * States of one model; dtype and position are those of the first. The result has no logits. */
XLSTM_API int xlstm_state_mix(xlstm_state **out, const xlstm_state *const *states, const double *weights, size_t n,
                              xlstm_error *err);
/* All heads as float32 tensors "block.I.C" [heads][qk][v], "block.I.n", "block.I.m", the logits, and the facts that
 * import needs. By the name: .safetensors, or .npz for NumPy. */
XLSTM_API int xlstm_state_export(const xlstm_state *state, const char *path, xlstm_error *err);
XLSTM_API int xlstm_state_import(xlstm_state **out, const char *path, xlstm_error *err);

/* Snapshots of one conversation for undo and regenerate: a ring that forgets the oldest past a byte budget. */
typedef struct xlstm_history xlstm_history;
XLSTM_API int xlstm_history_new(xlstm_history **out, size_t budget_bytes, xlstm_error *err);
XLSTM_API void xlstm_history_free(xlstm_history *history);
/* Remembers where the session stands. The newest is kept even if it alone exceeds the budget. */
XLSTM_API int xlstm_history_push(xlstm_history *history, const xlstm_session *session, xlstm_error *err);
/* How many snapshots are held, and the position of the one `back` steps before the newest (0: the newest itself); 0 if there
 * is none. */
XLSTM_API size_t xlstm_history_count(const xlstm_history *history);
XLSTM_API uint64_t xlstm_history_position(const xlstm_history *history, size_t back);
/* Puts the session, or another of the model, where it stood `back` steps before the newest snapshot; that snapshot stays,
 * newer ones are dropped. */
XLSTM_API int xlstm_history_restore(xlstm_history *history, xlstm_session *session, size_t back, xlstm_error *err);

/* ---- prefix cache ----------------------------------------------------------------------------------------------- */

/* States of texts read before, found again by their tokens (compared, not only hashed). Threads may share it. What it
 * restores is bit-identical to reading the text anew (docs/sessions.md). Free it before its model. */
typedef struct xlstm_prefix_cache xlstm_prefix_cache;

typedef struct xlstm_prefix_cache_options {
    size_t ram_bytes;    /* 0: 1 GiB */
    const char *folder;  /* NULL: memory only. Entries squeezed out of memory go there, and all do when it is freed */
    uint64_t disk_bytes; /* 0: 8 GiB */
    uint32_t spacing;    /* tokens between snapshots, rounded up to whole chunks; 0: 2048 */
} xlstm_prefix_cache_options;

typedef struct xlstm_prefix_cache_stats {
    uint64_t lookups, hits, disk_hits;
    uint64_t tokens_asked, tokens_reused;
    uint64_t ram_entries, ram_bytes, disk_entries, disk_bytes;
    uint64_t evicted;  /* left the cache for good */
    uint64_t failures; /* files that could not be written or were damaged: the cache goes on without them */
} xlstm_prefix_cache_stats;

XLSTM_API int xlstm_prefix_cache_new(xlstm_prefix_cache **out, xlstm_model *model,
                                     const xlstm_prefix_cache_options *options, xlstm_error *err);
XLSTM_API void xlstm_prefix_cache_free(xlstm_prefix_cache *cache);
XLSTM_API void xlstm_prefix_cache_get_stats(xlstm_prefix_cache *cache, xlstm_prefix_cache_stats *out);
/* Makes the session stand as after a reset and xlstm_prefill of these tokens, reading only what no snapshot covers
 * and leaving new snapshots behind. *reused (NULL allowed): tokens that were not read. */
XLSTM_API int xlstm_prefix_cache_read(xlstm_prefix_cache *cache, xlstm_session *session, const int32_t *tokens,
                                      size_t n, size_t *reused, xlstm_error *err);
/* The three steps of the above, for callers that batch their evaluations: `restore` puts the session behind *reused of
 * the tokens (maybe all, maybe none; logits are there if all; reused may be NULL), then until `done` is n: evaluate
 * xlstm_prefix_cache_piece tokens, `put`. */
XLSTM_API int xlstm_prefix_cache_restore(xlstm_prefix_cache *cache, xlstm_session *session, const int32_t *tokens,
                                         size_t n, size_t *reused, xlstm_error *err);
XLSTM_API size_t xlstm_prefix_cache_piece(const xlstm_prefix_cache *cache, const int32_t *tokens, size_t n,
                                          size_t done);
XLSTM_API int xlstm_prefix_cache_put(xlstm_prefix_cache *cache, const xlstm_session *session, const int32_t *tokens,
                                     size_t n, xlstm_error *err);

/* ---- session store ---------------------------------------------------------------------------------------------- */

/* Thousands of idle sessions in a folder: an SQLite index and one state file each. Any number of processes and threads
 * may have it open; writers take turns. Killing one at any moment leaves every session as it was before or after. */
typedef struct xlstm_store xlstm_store;

typedef struct xlstm_store_entry {
    uint64_t id;
    char name[128];  /* unique; empty: none */
    uint64_t parent; /* id it was forked from, 0: none */
    uint64_t position, fingerprint, bytes;
    int64_t created, used; /* seconds since 1970; used: last save or load */
} xlstm_store_entry;

XLSTM_API int xlstm_store_open(xlstm_store **out, const char *folder, xlstm_error *err);
XLSTM_API void xlstm_store_close(xlstm_store *store);
/* Whether a session may have this name: up to 127 bytes, no control characters, not a number, because sessions are found by
 * number, too. XLSTM_E_ARGUMENT says what is wrong. Functions that give names check this themselves. Any thread. */
XLSTM_API int xlstm_store_check_name(const char *name, xlstm_error *err);
/* A new session; `name` may be NULL. */
XLSTM_API int xlstm_store_create(uint64_t *id, xlstm_store *store, const xlstm_state *state, const char *name,
                                 xlstm_error *err);
/* Replaces the state of a session. */
XLSTM_API int xlstm_store_save(xlstm_store *store, uint64_t id, const xlstm_state *state, xlstm_error *err);
/* Maps the state of a session; with the checks of xlstm_state_load. */
XLSTM_API int xlstm_store_load(xlstm_state **out, xlstm_store *store, xlstm_model *model, uint64_t id, bool verify,
                               xlstm_error *err);
/* A second session with the same state: constant time, the file is shared until one of them is saved. */
XLSTM_API int xlstm_store_fork(uint64_t *id, xlstm_store *store, uint64_t source, const char *name, xlstm_error *err);
/* NULL or "" takes the name away. */
XLSTM_API int xlstm_store_rename(xlstm_store *store, uint64_t id, const char *name, xlstm_error *err);
XLSTM_API int xlstm_store_remove(xlstm_store *store, uint64_t id, xlstm_error *err);
/* Removes the sessions not used for `seconds` (>= 0); removed may be NULL. */
XLSTM_API int xlstm_store_expire(size_t *removed, xlstm_store *store, int64_t seconds, xlstm_error *err);
/* By name, or by number when no session has that name. */
XLSTM_API int xlstm_store_find(xlstm_store_entry *out, xlstm_store *store, const char *name, xlstm_error *err);
/* The most recently used first; freed with xlstm_free. */
XLSTM_API int xlstm_store_list(xlstm_store_entry **out, size_t *n, xlstm_store *store, xlstm_error *err);

/* ---- tokenizer -------------------------------------------------------------------------------------------------- */

typedef struct xlstm_tokenizer xlstm_tokenizer; /* immutable after open; threads may share it */

/* A folder that holds tokenizer.json, such a file itself, or a GGUF file with an embedded one. */
XLSTM_API int xlstm_tokenizer_open(xlstm_tokenizer **out, const char *path, xlstm_error *err);
/* From the text of a tokenizer.json; `config` is the text of tokenizer_config.json or NULL. */
XLSTM_API int xlstm_tokenizer_open_memory(xlstm_tokenizer **out, const char *json, size_t size, const char *config,
                                          size_t config_size, xlstm_error *err);
XLSTM_API void xlstm_tokenizer_free(xlstm_tokenizer *tokenizer);

enum { XLSTM_ENCODE_SPECIAL = 1,   /* add what the post-processor adds (BOS, ...) */
       XLSTM_ENCODE_LITERAL = 2 }; /* special tokens' texts in the input are plain text (untrusted input) */

/* Text may hold any bytes, NUL included; invalid UTF-8 is read as U+FFFD per maximal invalid part. *ids is freed with
 * xlstm_free; n may be 0. */
XLSTM_API int xlstm_tokenizer_encode(int32_t **ids, size_t *n, const xlstm_tokenizer *tokenizer, const char *text,
                                     size_t size, unsigned flags, xlstm_error *err);
/* UTF-8 text, NUL-terminated, size without the NUL; freed with xlstm_free. Unknown ids are an error. */
XLSTM_API int xlstm_tokenizer_decode(char **text, size_t *size, const xlstm_tokenizer *tokenizer, const int32_t *ids,
                                     size_t n, bool skip_special, xlstm_error *err);

/* Highest id + 1, added tokens included. */
XLSTM_API uint32_t xlstm_tokenizer_size(const xlstm_tokenizer *tokenizer);
/* Id of an exact token, -1 if there is none. */
XLSTM_API int32_t xlstm_tokenizer_find(const xlstm_tokenizer *tokenizer, const char *token);
/* The token as the file spells it; NULL for ids without one. Borrowed. */
XLSTM_API const char *xlstm_tokenizer_token(const xlstm_tokenizer *tokenizer, int32_t id);
XLSTM_API bool xlstm_tokenizer_is_special(const xlstm_tokenizer *tokenizer, int32_t id);
/* Ids the files name, -1 if they don't. `end_of_text`: the token that ends a text ("<|endoftext|>", "</s>", ...). */
XLSTM_API int32_t xlstm_tokenizer_bos(const xlstm_tokenizer *tokenizer);
XLSTM_API int32_t xlstm_tokenizer_end_of_text(const xlstm_tokenizer *tokenizer);
/* XLSTM_ON/OFF when tokenizer_config.json's add_bos_token or the post-processor decides, else AUTO. */
XLSTM_API xlstm_switch xlstm_tokenizer_adds_bos(const xlstm_tokenizer *tokenizer);
/* The chat template (Jinja source) of tokenizer_config.json or chat_template.jinja; NULL if none. Borrowed. */
XLSTM_API const char *xlstm_tokenizer_chat_template(const xlstm_tokenizer *tokenizer);

/* Decodes one id at a time; never emits part of a UTF-8 character. */
typedef struct xlstm_stream xlstm_stream;
XLSTM_API int xlstm_stream_new(xlstm_stream **out, const xlstm_tokenizer *tokenizer, bool skip_special,
                               xlstm_error *err);
XLSTM_API void xlstm_stream_free(xlstm_stream *stream);
/* The text that became certain with this id: *text is borrowed until the next call, maybe empty. */
XLSTM_API int xlstm_stream_push(const char **text, size_t *size, xlstm_stream *stream, int32_t id, xlstm_error *err);
/* What is left at the end: incomplete bytes become U+FFFD. */
XLSTM_API int xlstm_stream_finish(const char **text, size_t *size, xlstm_stream *stream, xlstm_error *err);

/* The tokenizer found beside the model (or inside the GGUF file); NULL if there is none. Borrowed from the model. */
XLSTM_API const xlstm_tokenizer *xlstm_model_tokenizer(const xlstm_model *model);

/* ---- chat templates --------------------------------------------------------------------------------------------- */

/* Renders a chat template: the subset of Jinja that models use, with the settings of Hugging Face. `variables` is the
 * text of a JSON object: "messages" (a list of {"role": .., "content": ..}), "add_generation_prompt", "bos_token",
 * "tools", ... *text is freed with xlstm_free. XLSTM_E_UNSUPPORTED names line and construct; XLSTM_E_ARGUMENT passes on
 * what the template itself refuses. */
XLSTM_API int xlstm_chat_render(char **text, size_t *size, const char *source, const char *variables,
                                size_t variables_size, xlstm_error *err);

/* ---- conversion ------------------------------------------------------------------------------------------------- */

typedef struct xlstm_convert_options {
    xlstm_dtype type;      /* of embedding, head and large matrices: F32, F16, BF16 or a block format; 0: as stored */
    xlstm_dtype embedding; /* 0: as docs/gguf.md says for `type` */
    xlstm_dtype head;      /* the same; of the embedding where the two are one tensor */
    const char *const *tensors; /* "PATTERN=TYPE", [n_tensors], the last match wins: "ffn_down=q8_0", "blk.[0-3].*=q6_k" */
    size_t n_tensors;
    const char *imatrix;    /* file of an importance matrix that block formats heed; NULL: none */
    const char *const *set; /* [n_set] "key=value", as in xlstm_model_options */
    size_t n_set;
    uint32_t threads; /* 0: all online CPUs. The result does not depend on it */
    xlstm_log_fn log;
    void *log_user;
    xlstm_progress_fn progress;
    void *progress_user;
    bool (*stop)(void *user); /* asked now and then: true gives up with XLSTM_E_IO and leaves no file. NULL: never */
    void *stop_user;
} xlstm_convert_options;

/* Writes any model that xlstm_model_open takes as one GGUF file (docs/gguf.md), tokenizer and settings included. Reads
 * and writes piece by piece, whatever the size; `out` appears, or is replaced, only when all of it is on disk. */
XLSTM_API int xlstm_convert(const char *path, const char *out, const xlstm_convert_options *options, xlstm_error *err);

/* Importance matrix: mean squares of what every column of the large matrices is multiplied with, gathered while a model
 * reads typical text. */
typedef struct xlstm_imatrix xlstm_imatrix;
XLSTM_API int xlstm_imatrix_new(xlstm_imatrix **out, const xlstm_model *model, xlstm_error *err);
XLSTM_API void xlstm_imatrix_free(xlstm_imatrix *imatrix);
/* Give this and the imatrix to xlstm_session_set_trace and evaluate with XLSTM_WANT_ALL. */
XLSTM_API void xlstm_imatrix_observe(void *imatrix, int block, const char *stage, const float *values, size_t rows,
                                     size_t width);
/* Tokens seen so far, by all sessions of one model that reported to it. */
XLSTM_API uint64_t xlstm_imatrix_tokens(const xlstm_imatrix *imatrix);
/* A GGUF file with general.type "imatrix" (docs/gguf.md). */
XLSTM_API int xlstm_imatrix_save(const xlstm_imatrix *imatrix, const char *path, xlstm_error *err);

/* ---- sampler ---------------------------------------------------------------------------------------------------- */

typedef struct xlstm_logit_bias {
    int32_t id;
    float bias; /* added to the logit; -INFINITY forbids the id */
} xlstm_logit_bias;

/* Applied in this order: logit bias, repetition, frequency and presence penalties, temperature, top-k, top-p, min-p. */
typedef struct xlstm_sampler_options {
    float temperature;        /* 0: greedy, the lowest id on ties */
    uint32_t top_k;           /* 0: off */
    float top_p;              /* 0 or 1: off. Keeps the token that crosses p */
    float min_p;              /* 0: off. Drops tokens below min_p times the likeliest */
    float repetition_penalty; /* 0 or 1: off. Divides positive, multiplies negative logits of ids seen */
    float frequency_penalty;  /* subtracted once per occurrence */
    float presence_penalty;   /* subtracted once */
    uint32_t penalty_window;  /* how many last ids count; 0: all */
    uint64_t seed;
    const xlstm_logit_bias *bias; /* [n_bias], copied */
    size_t n_bias;
} xlstm_sampler_options;

/* `n_tokens`: ids at and above it are never chosen (xlstm_model_info.n_tokens). */
XLSTM_API int xlstm_sampler_new(xlstm_sampler **out, uint32_t n_tokens, const xlstm_sampler_options *options,
                                xlstm_error *err);
XLSTM_API int xlstm_sampler_copy(xlstm_sampler **out, const xlstm_sampler *sampler, xlstm_error *err);
XLSTM_API void xlstm_sampler_free(xlstm_sampler *sampler);
/* Tells the penalties that an id is part of the text (prompt or chosen). */
XLSTM_API void xlstm_sampler_accept(xlstm_sampler *sampler, int32_t id);
/* Chooses from logits [>= n_tokens], which stay untouched. Does not accept the id. Same seed, same calls, same ids.
 * XLSTM_E_NONFINITE if a logit is NaN or +Inf, XLSTM_E_ARGUMENT if all are -Inf. (xlstm_evaluate does the same for a segment that has a sampler.) */
XLSTM_API int xlstm_sampler_choose(int32_t *id, xlstm_sampler *sampler, const float *logits, xlstm_error *err);

#ifdef __cplusplus
}
#endif
#endif /* XLSTM_H */
