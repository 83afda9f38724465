/*
 * backend.h — the seam between the model graph and the machine. A backend owns prepared weights, activation buffers,
 * recurrent states and about fifteen coarse operations; forward.c drives every backend with the same calls and holds no
 * #ifdef. Only backend.c knows which backends were built. Layer 2.
 *
 * A pass:   begin(batch) -> operations, in order -> submit
 * Operations act on the batch given to begin: its rows are the first `rows` rows of every buffer. They may run at once
 * (cpu, reference) or be recorded (cuda); none of them fails on its own, submit reports for the whole pass. A backend
 * that holds a recorded pass of the same shape sets *replay in begin, and forward.c goes straight to submit.
 *
 * Numeric contract, identical for all backends (the reference backend is the executable form):
 *   - accumulation is float32 (float64 in reference64), whatever the weights' storage format;
 *   - with activations BF16 or F16, the result of every operation (linear, norm, sum, product, h) is rounded to that
 *     format when it is stored; state, gates, denominators and norm statistics stay float32;
 *   - linear: y = x W^T + b, rounded (not when `wide`); with `add`: y = round(y_old + round(x W^T + b));
 *   - norms: one rounding at the end, statistics in float32 unless norm_float32 is off;
 *   - a row's result never depends on other rows, nor on how many there are (cpu: bit-identical);
 *   - nothing is ever flushed, clamped or skipped in a way that hides NaN or Inf.
 */
#ifndef XL_BACKEND_H
#define XL_BACKEND_H

#include "dtype.h"
#include "weights.h"

typedef struct xl_backend xl_backend; /* starts with the vtable pointer: struct xl_backend { const xl_backend_ops *ops; } */
typedef struct xl_matrix xl_matrix;   /* prepared weights [out, in] or [n]; the backend's own layout */
typedef struct xl_buffer xl_buffer;   /* activations [max_rows][width], the backend's own number format */
typedef struct xl_store xl_store;     /* recurrent state of one sequence, all blocks */

typedef struct xl_backend_options {
    uint32_t threads;  /* 0: all */
    uint32_t cpu_mask; /* 0: all found */
    uint32_t device;   /* index among the backend's devices */
    bool no_repack;
    uint32_t max_rows, max_runs; /* capacity of every buffer and batch */
    uint32_t chunk_size;
    xlstm_dtype activations; /* F32, BF16, F16 */
    xlstm_dtype kernel;      /* DEFAULT: off, else q k v i f are rounded to it at the mlstm operation's door */
    bool norm_float32;       /* off: norm statistics are rounded to `activations` at every step of their computation */
    /* geometry, for scratch */
    uint32_t num_blocks, num_heads, head_qk, head_v, embedding_dim, ffn_dim, vocab_size;
    xlstm_dtype state; /* F32, BF16 or I8 (reference64 always keeps F64) */
    uint32_t device_states; /* most states in a device's own memory, others wait in the host's; 0: as many as fit */
    const xl_log *log;
} xl_backend_options;

/* How a matrix will be used, so that the backend can choose its layout. */
typedef enum xl_usage {
    XL_USE_MATMUL = 1, /* linear */
    XL_USE_ROWS = 2,   /* embed */
} xl_usage;

#define XL_ANY_BLOCK UINT32_MAX /* see place */

/* Where a non-finite value was noticed. A fault code is block * XL_STAGES + stage + 1; 0 is none. The stages outside
 * the blocks use block = num_blocks. */
typedef enum xl_stage {
    XL_AT_NORM_MLSTM, /* sum of squares of the block's input */
    XL_AT_GATES,      /* i, f, m' or the denominator of h */
    XL_AT_MHNORM,     /* statistics over h */
    XL_AT_NORM_FFN,   /* sum of squares of the mid-block residual */
    XL_AT_OUT_NORM,
    XL_AT_LOGITS,
    XL_STAGES
} xl_stage;
static inline uint32_t xl_fault_code(uint32_t block, xl_stage stage) { return block * XL_STAGES + (uint32_t)stage + 1; }

/* Consecutive tokens of one sequence inside a batch. */
typedef struct xl_run {
    uint32_t row, count; /* rows row .. row+count-1 of the batch */
    uint64_t position;   /* of its first token in the sequence; chunks end at multiples of chunk_size */
    xl_store *store;
} xl_run;

/* A choice of an id from a row of logits, by the rules of sampler.c where neither bias nor penalties apply. */
typedef struct xl_sample {
    uint32_t out;       /* the row: index in out_rows */
    uint32_t n_tokens;  /* ids 0 .. n_tokens-1 may be chosen */
    uint32_t top_k;     /* n_tokens: off */
    float temperature;  /* 0: greedy */
    float top_p, min_p; /* 0: off */
    double uniform;     /* random number in [0, 1) */
} xl_sample;

typedef struct xl_batch {
    const int32_t *ids; /* [rows], valid */
    uint32_t rows;
    const xl_run *runs; /* [n_runs], covering the rows in order */
    uint32_t n_runs;
    const uint32_t *out_rows; /* [n_out], ascending: rows whose logits are wanted */
    uint32_t n_out;
    const xl_sample *samples; /* [n_samples], ascending rows, one a row at most; none for backends without `sample` */
    uint32_t n_samples;
    int32_t *chosen; /* out [n_samples], filled by submit: ids; -1 where a logit is NaN or +Inf, or all are -Inf */
    bool traced; /* buffers are read between operations: run them one by one, never replay */
} xl_batch;

/* One product of a group that shares its input. */
typedef struct xl_linear {
    const xl_matrix *weight; /* [out, in] */
    const xl_matrix *bias;   /* [out] or NULL */
    xl_buffer *out;          /* [rows][stride] */
    uint32_t stride, column; /* row stride of `out` in elements and first column written */
    bool add;                /* out += instead of out = */
    bool wide;               /* keep float32 whatever the activations are: gates and logits */
} xl_linear;

typedef struct xl_norm {
    const xl_matrix *weight; /* [width] */
    const xl_matrix *bias;   /* [width] or NULL */
    uint32_t width;
    float eps;
    uint32_t fault; /* code to report when the statistics are not finite */
} xl_norm;

typedef struct xl_mlstm {
    xl_buffer *h;               /* out [rows][Vd] */
    const xl_buffer *q, *k, *v; /* [rows][Qd], [rows][Qd], [rows][Vd] */
    const xl_buffer *gates;     /* [rows][2 NH]: i then f, pre-activations with bias, not capped */
    uint32_t block;
    float gate_soft_cap; /* 0: none */
    float eps;           /* added to the denominator after the max */
    uint32_t fault;
} xl_mlstm;

/* Host-side layout of a state, also that of state files: for each block: C [NH][head_qk][head_v] then n [NH][head_qk]
 * in the state dtype, then m [NH] in float32 (float64 for F64). I8: each C row [head_v] is head_v int8 followed by one
 * float32 scale, n is float32. Sizes: xl_state_layout. */
typedef struct xl_state_layout {
    xlstm_dtype dtype;            /* of C */
    xlstm_dtype n_dtype, m_dtype; /* of n and m */
    uint32_t num_blocks, num_heads, head_qk, head_v;
    size_t c_row_bytes;               /* one row of C: head_v elements and the scale */
    size_t n_head_bytes, m_head_bytes;
    size_t c_bytes, n_bytes, m_bytes; /* a block's parts, all heads, each padded to a multiple of 64 */
    size_t block_bytes, total_bytes;
} xl_state_layout;
int xl_state_layout_make(xl_state_layout *out, xlstm_dtype dtype, uint32_t num_blocks, uint32_t num_heads,
                         uint32_t head_qk, uint32_t head_v, xlstm_error *err);
/* Byte offsets of one head's parts from the start of the state. */
static inline size_t xl_state_c_offset(const xl_state_layout *s, size_t block, size_t head)
{
    return block * s->block_bytes + head * s->head_qk * s->c_row_bytes;
}
static inline size_t xl_state_n_offset(const xl_state_layout *s, size_t block, size_t head)
{
    return block * s->block_bytes + s->c_bytes + head * s->n_head_bytes;
}
static inline size_t xl_state_m_offset(const xl_state_layout *s, size_t block, size_t head)
{
    return block * s->block_bytes + s->c_bytes + s->n_bytes + head * s->m_head_bytes;
}

typedef struct xl_backend_ops {
    const char *name;
    int (*open)(xl_backend **out, const xl_backend_options *options, xlstm_error *err);
    void (*close)(xl_backend *be);
    void (*describe)(const xl_backend *be, char *out, size_t size); /* "cpu (avx512-bf16, 2 threads)" */

    /* Prepares rows row0 .. row0+rows-1 of a tensor (rank 2 [out, in]; rank 1 is a vector, kept in float32) from its
     * bytes. *borrows: the bytes stay in use and must not be dropped. `hold` narrows wider storage to this dtype
     * (round to nearest even), DEFAULT keeps it. XLSTM_E_UNSUPPORTED for a dtype the backend lacks. */
    int (*matrix_new)(xl_backend *be, xl_matrix **out, bool *borrows, const xl_tensor *t, const void *bytes,
                      uint64_t row0, uint64_t rows, xlstm_dtype hold, unsigned usage, xlstm_error *err);
    void (*matrix_free)(xl_backend *be, xl_matrix *m);
    size_t (*matrix_bytes)(const xl_matrix *m); /* as held, padding included */

    int (*buffer_new)(xl_backend *be, xl_buffer **out, size_t rows, size_t width, xlstm_error *err);
    void (*buffer_free)(xl_backend *be, xl_buffer *b);
    /* Copies n values starting at element `first` to host float32. Between operations or after submit. */
    int (*buffer_read)(xl_backend *be, const xl_buffer *b, size_t first, float *out, size_t n, xlstm_error *err);
    /* The way back, for values in the activation format: rounded to it, and not kept wide. At the same times. */
    int (*buffer_write)(xl_backend *be, xl_buffer *b, size_t first, const float *in, size_t n, xlstm_error *err);

    int (*store_new)(xl_backend *be, xl_store **out, xlstm_error *err); /* zeroed */
    void (*store_free)(xl_backend *be, xl_store *s);
    int (*store_zero)(xl_backend *be, xl_store *s, xlstm_error *err);
    int (*store_copy)(xl_backend *be, xl_store *to, const xl_store *from, xlstm_error *err);
    int (*store_read)(xl_backend *be, const xl_store *s, void *host, xlstm_error *err);  /* layout.total_bytes */
    int (*store_write)(xl_backend *be, xl_store *s, const void *host, xlstm_error *err);
    const xl_state_layout *(*layout)(const xl_backend *be);

    /* `batch` and all it points to stay valid until submit. */
    int (*begin)(xl_backend *be, const xl_batch *batch, bool *replay, xlstm_error *err);
    void (*embed)(xl_backend *be, xl_buffer *x, const xl_matrix *embedding);
    void (*rmsnorm)(xl_backend *be, xl_buffer *y, const xl_buffer *x, const xl_norm *norm, bool out_rows);
    /* `out_rows`: the inputs are the n_out gathered rows instead of the batch's rows. n <= 8. */
    void (*linear)(xl_backend *be, const xl_linear *group, uint32_t n, const xl_buffer *x, bool out_rows);
    void (*mlstm)(xl_backend *be, const xl_mlstm *op);
    /* g = sigmoid(o) * multihead_layernorm(h): per head over head_v channels, then weight (and bias) per channel */
    void (*mhnorm_gate)(xl_backend *be, xl_buffer *g, const xl_buffer *h, const xl_buffer *o, const xl_norm *norm);
    void (*swiglu)(xl_backend *be, xl_buffer *a, const xl_buffer *gate, const xl_buffer *up); /* silu(gate) * up */
    void (*add)(xl_backend *be, xl_buffer *x, const xl_buffer *y, uint32_t width);            /* x += y; tracing only */
    void (*gather)(xl_backend *be, xl_buffer *y, const xl_buffer *x, uint32_t width); /* y[i] = x[out_rows[i]] */
    /* In place over the n_out rows: cap * tanh(x / cap); reports non-finite rows as XL_AT_LOGITS. cap 0: only checks.
     * Logits are float32 in every mode. */
    void (*softcap)(xl_backend *be, xl_buffer *logits, uint32_t width, float cap, uint32_t fault);
    /* faults [rows]: for each batch row the first fault code met, 0 for none (gathered rows report to their origin). */
    int (*submit)(xl_backend *be, uint32_t *faults, xlstm_error *err);

    /* Optional, for a backend made of several: what is made from here on is used by this block; by what follows the
     * last one if it is num_blocks; anywhere if it is XL_ANY_BLOCK. Matrices used by row belong to the first. */
    void (*place)(xl_backend *be, uint32_t block);
    /* Optional, for a backend with memory of its own: bytes free there, SIZE_MAX if that is not known. */
    size_t (*room)(const xl_backend *be);
    /* Optional: NULL when the backend has nothing better than the composition. */
    void (*norm_linear)(xl_backend *be, const xl_linear *group, uint32_t n, const xl_buffer *x, const xl_norm *norm,
                        xl_buffer *scratch); /* linear(rmsnorm(x)) over the batch's rows */
    /* Most runs a batch can have at present. NULL: as many as max_runs. */
    uint32_t (*most_runs)(xl_backend *be);
    /* After softcap, in batches with samples: makes the choices. */
    void (*sample)(xl_backend *be, const xl_buffer *logits, uint32_t width);
} xl_backend_ops;

struct xl_backend {
    const xl_backend_ops *ops;
};

/* What a plugin exports as xlstm_NAME_plugin. It is opened only if it was built with the library that opens it. */
typedef struct xl_plugin {
    uint32_t version; /* XL_PLUGIN_VERSION */
    uint32_t ops_bytes, options_bytes;
    const xl_backend_ops *(*backend)(void);
} xl_plugin;
#define XL_PLUGIN_VERSION (XLSTM_VERSION_MAJOR * 1000000 + XLSTM_VERSION_MINOR * 1000 + XLSTM_VERSION_PATCH)

/* Whether a backend of that name works with a device's memory, not the host's. */
bool xl_backend_is_device(const char *name);
/* By name; NULL: the best that opens on this machine. The error lists what was built. */
int xl_backend_open(xl_backend **out, const char *name, const xl_backend_options *options, xlstm_error *err);

#endif
