/*
 * state.h — a frozen state and its bytes. Layer 4.
 */
#ifndef XL_STATE_H
#define XL_STATE_H

#include "session.h"

struct xlstm_state {
    xl_state_layout layout;
    uint64_t fingerprint, position, token_hash;
    uint32_t vocab_size;
    const uint8_t *bytes; /* [layout.total_bytes]: in `memory` or in `map` */
    const float *logits;  /* [vocab_size] or NULL, likewise */
    uint8_t *memory;      /* owned, or NULL */
    xl_map map;           /* of a loaded file; bytes NULL otherwise */
    char note[1024];
};

/* A state of that geometry in memory of its own, with room for logits if asked for; all values uninitialised, facts 0. The
 * layout's total is a multiple of 64, so that the logits behind it are aligned. */
int xl_state_new(xlstm_state **out, const xl_state_layout *layout, uint32_t vocab_size, bool logits, xlstm_error *err);
/* The same with the facts (and logits, if asked for: it must have some) of `state`; its values are uninitialised. */
int xl_state_like(xlstm_state **out, const xlstm_state *state, xlstm_dtype dtype, bool logits, xlstm_error *err);

#endif
