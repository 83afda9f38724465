/*
 * model.h — an opened checkpoint: settings, prepared weights, the buffers of one pass, and the pass itself. Layer 3.
 * Owns the file mapping, the backend and everything the backend made for it.
 */
#ifndef XL_MODEL_H
#define XL_MODEL_H

#include "backend.h"
#include "config.h"

#include <pthread.h>

typedef struct xl_block {
    xl_matrix *weight[XL_ROLES]; /* shapes as in wiring.h */
    xl_matrix *bias[XL_ROLES];   /* NULL where the checkpoint has none */
} xl_block;

/* Activations of a pass, [max_rows][width]. */
typedef struct xl_pass_buffers {
    xl_buffer *x;          /* residual stream [D] */
    xl_buffer *u;          /* normalised input [D] */
    xl_buffer *q, *k;      /* [Qd] */
    xl_buffer *v, *o;      /* [Vd]; o before its sigmoid */
    xl_buffer *gates;      /* [2 NH]: i, f before the cap */
    xl_buffer *h, *g;      /* [Vd]: cell output; normalised and gated */
    xl_buffer *gate, *up;  /* [F] */
    xl_buffer *product;    /* [F] */
    xl_buffer *last;       /* [D]: rows whose logits are wanted, then normalised in u */
    xl_buffer *logits;     /* [V] */
} xl_pass_buffers;

/* What a row of a pass is: which segment, which of its tokens (-1: the inserted BOS), and which of the pass's samples is
 * taken from it by the backend (-1: none). */
typedef struct xl_pass_row {
    uint32_t segment;
    int64_t token;
    int32_t sample;
} xl_pass_row;

enum { XL_IDLE_STORES = 8, XL_IDLE_BYTES = 512 << 20 }; /* most stores kept, and most bytes of them */

struct xlstm_model {
    xlstm_model_info info;
    xl_config config;
    xl_log log;
    char **warnings; /* [n_warnings] */
    size_t n_warnings;
    xlstm_tokenizer *tokenizer; /* NULL: none */

    xl_weights *weights;
    xl_wiring wiring;
    xl_backend *backend; /* NULL after headers_only: the rest is empty then */
    uint32_t offloaded;  /* blocks on the first side of a split backend, 0 if it is not split */
    xl_block *blocks;    /* [num_blocks] */
    xl_matrix *embedding, *head, *out_norm, *out_norm_bias;
    xl_pass_buffers b;

    /* Stores of freed sessions, kept for the next ones: touching new memory costs more than copying a state into it. */
    pthread_mutex_t idle_lock;
    xl_store *idle[XL_IDLE_STORES];
    uint32_t n_idle;

    /* One evaluation at a time; what it needs is here so that it allocates nothing. */
    pthread_mutex_t lock;
    uint32_t max_rows;
    int32_t *ids;       /* [max_rows] */
    xl_run *runs;       /* [max_rows] */
    uint32_t *out_rows; /* [max_rows] */
    uint32_t *faults;   /* [max_rows] */
    xl_pass_row *pass;  /* [max_rows] */
    xl_sample *samples; /* [max_rows] */
    int32_t *chosen;    /* [max_rows] */
};

/* The folder that small files are looked for in: `path` itself, or where the weights file lies. Freed by the caller. */
char *xl_model_folder(const char *path, xlstm_error *err);

/* After device memory ran out while weights or buffers were made: adds to the message how many blocks would fit, judged
 * from what the weights read so far have taken of the `room` bytes there were. Nothing for a backend in host memory. */
void xl_advise_offload(const xlstm_model *m, size_t room, xlstm_error *err);

/* Where stage values go while tracing; see xlstm_session_set_trace. */
typedef struct xl_trace {
    xlstm_trace_fn fn;
    void *user;
} xl_trace;

/* Runs a batch through embedding, blocks, final norm and head; logits of batch->out_rows are then in b.logits,
 * m->faults holds a fault code per row, and batch->chosen what its samples came to. `trace` may be NULL. Caller holds m->lock. */
int xl_forward(xlstm_model *m, const xl_batch *batch, const xl_trace *trace, xlstm_error *err);

#endif
