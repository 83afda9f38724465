/*
 * session.h — one sequence: its store in the backend, position, token hash and last logits. Layer 4.
 */
#ifndef XL_SESSION_H
#define XL_SESSION_H

#include "model.h"

struct xlstm_session {
    xlstm_model *model;
    xl_store *store;
    uint64_t position, token_hash;
    float *logits; /* [V] */
    bool has_logits;
    bool poisoned; /* a non-finite value reached the state */
    xl_trace trace; /* fn NULL: off */

    /* while an evaluation runs */
    bool busy;    /* in the batch already */
    size_t taken; /* tokens of the segment that were put in passes, BOS not counted */
    bool bos_due; /* BOS comes first */
};

/* The hash of a history with one more token. */
uint64_t xl_token_hash(uint64_t before, int32_t token);

#endif
