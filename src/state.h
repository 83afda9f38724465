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

#endif
