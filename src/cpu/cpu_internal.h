/*
 * cpu_internal.h — what the files of the cpu backend share. cpu_backend.c: opening, weights, buffers, states, the small
 * operations; cpu_linear.c: products; cpu_mlstm.c: the cell; cpu_<set>.c: kernels.
 *
 * Work is cut so that every output element is computed by one thread in an order that depends on its row alone; that is
 * what makes results bit-identical for any thread count and any company in the batch.
 */
#ifndef XL_CPU_INTERNAL_H
#define XL_CPU_INTERNAL_H

#include "cpu_backend.h"
#include "cpu_kernels.h"
#include "../threads.h"

enum {
    XL_CPU_MAX_ROWS = 256,    /* activation rows a thread takes through one panel */
    XL_CPU_DOT_ROWS = 32,     /* weight rows a thread takes when they are used in place */
    XL_CPU_QUERY_TILE = 64,   /* tokens whose read-outs are computed together in the chunk form */
    XL_CPU_COLUMNS = 256,     /* columns of C a thread takes; twice as many where there are several heads for each thread */
};

struct xl_matrix {
    xlstm_dtype dtype; /* as held */
    size_t rows, cols;
    float *vector;         /* [rows], owned: rank 1; the rest is unused */
    const uint8_t *bytes;  /* borrowed row-major rows, row_bytes each; NULL when only panels are used */
    size_t row_bytes;
    xlstm_dtype lookup;    /* borrowed rows are rounded to this when looked up; DEFAULT: not */
    uint8_t *panels;       /* owned */
    size_t panel_bytes;    /* of a full panel */
    size_t total_bytes;    /* of all panels */
    xl_cpu_product product;
};

struct xl_buffer {
    float *data; /* values are representable in the activation format */
    size_t width;
};

struct xl_store {
    uint8_t *bytes; /* in xl_state_layout */
};

/* Scratch memory of one thread. */
typedef struct xl_cpu_worker {
    float *sums;    /* [PANELS][MAX_ROWS][panel] */
    float *decoded; /* [widest row used in place in a block format] */
    /* mLSTM; L: tokens in the longest piece, T: min(L, QUERY_TILE), W: columns */
    float *q, *k_turned, *k_weighed; /* [T][dq], [dq][L_row], [L][dq] */
    float *p, *log_weight;           /* [T][L_row], [L_row] */
    float *num, *v, *C;              /* [T][W], [L][W], [dq][W] */
    float *n, *row;                  /* [dq], [max(dq, head_v)] */
} xl_cpu_worker;

/* Per (head, row) values of the running mLSTM operation, each [num_heads][max_rows]. */
typedef struct xl_cpu_gates {
    float *i, *lf, *m; /* capped input gate, log sigmoid of the forget gate, stabiliser after the token */
    float *carry;      /* weight of the state before the piece in this token's result */
    float *weight;     /* weight of this token in the state after its piece */
    float *den;        /* pieces of one token only */
} xl_cpu_gates;

typedef struct xl_cpu {
    xl_backend base;
    xl_backend_options o;
    xl_state_layout layout;
    xl_pool *pool;
    xl_cpu_kernels kernels;
    char features[48];
    const xl_batch *batch;
    uint32_t *faults; /* [max_rows] */
    xl_cpu_worker *workers;
    uint32_t threads;
    uint8_t *packed[XL_CPU_PACKS]; /* activations of the running product, for packed_cols columns */
    size_t packed_cols[XL_CPU_PACKS], decoded_cols;
    /* Where each thread began to read weights in each product of the last pass of few rows: [products][threads]. NULL: nothing is
     * fetched while threads wait. */
    xl_pool_ahead *ahead;
    uint32_t products, product; /* of a pass; index of the next in the running pass */
    size_t ahead_bytes;         /* fetched for a thread at most */
    xl_cpu_gates gates;
    float *n_start; /* [max_rows][num_heads * head_qk]: n before the piece that starts at this row */
    size_t piece_max, piece_row; /* L, L_row */
    uint32_t columns; /* W */
} xl_cpu;

static inline xl_cpu *xl_cpu_of(xl_backend *be) { return (xl_cpu *)be; }

/* Runs the pieces of an operation. Numbers too small to be normal (below 1.2e-38) count as zero in them: on some processors
 * each costs a hundred times an ordinary one, and every head that forgets has some, in C and in the weights of a chunk. */
void xl_cpu_run(xl_cpu *c, uint32_t pieces, xl_task_fn fn, void *arg);

/* First fault of a row wins; heads of one row may report at the same time, but then the same code. */
static inline void xl_cpu_fault(xl_cpu *c, size_t row, uint32_t code)
{
    uint32_t none = 0;
    __atomic_compare_exchange_n(&c->faults[row], &none, code, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

/* Weight rows that panel p holds side by side: a full panel, or one vector when the rest fits. */
static inline uint32_t xl_cpu_panel_width(const xl_cpu *c, const xl_matrix *m, size_t p)
{
    return m->rows - p * c->kernels.panel <= c->kernels.lanes ? c->kernels.lanes : c->kernels.panel;
}

/* cpu_linear.c */
int xl_cpu_repack(xl_cpu *c, xl_matrix *m, const uint8_t *bytes, xlstm_dtype stored, size_t row_bytes,
                  xlstm_error *err);
int xl_cpu_reserve(xl_cpu *c, const xl_matrix *m, xlstm_error *err); /* scratch for products with m */
void xl_cpu_panel_row(const xl_cpu *c, float *out, const xl_matrix *m, size_t row);
void xl_cpu_linear(xl_backend *be, const xl_linear *group, uint32_t n, const xl_buffer *x, bool out_rows);

/* cpu_mlstm.c */
void xl_cpu_mlstm(xl_backend *be, const xl_mlstm *op);

#endif
