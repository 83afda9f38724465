/*
 * wiring.h — which tensor does what. Recognises the naming schemes (Hugging Face with and without "backbone.", NX-AI's
 * own, GGUF), the single and fused layouts, biases and tying; finds block count and every dimension from names and
 * shapes alone; refuses gaps, unknown kinds, missing, surplus, duplicate and mis-shaped tensors by name. Layer 3.
 */
#ifndef XL_WIRING_H
#define XL_WIRING_H

#include "weights.h"

typedef struct xl_dims {
    uint32_t vocab_size;    /* V */
    uint32_t embedding_dim; /* D */
    uint32_t num_blocks;
    uint32_t num_heads; /* NH */
    uint32_t qk_dim;    /* Qd = NH * head_qk */
    uint32_t v_dim;     /* Vd = NH * head_v */
    uint32_t head_qk, head_v;
    uint32_t ffn_dim; /* F */
} xl_dims;

/* What a tensor does in its block, in the order of the forward pass. */
typedef enum xl_role {
    XL_NORM_MLSTM, /* [D] */
    XL_Q,          /* [Qd, D] */
    XL_K,          /* [Qd, D] */
    XL_V,          /* [Vd, D] */
    XL_OGATE,      /* [Vd, D] */
    XL_IGATE,      /* [NH, D], bias always */
    XL_FGATE,      /* [NH, D], bias always */
    XL_MHNORM,     /* [Vd] */
    XL_OUT_PROJ,   /* [D, Vd] */
    XL_NORM_FFN,   /* [D] */
    XL_FFN_GATE,   /* [F, D] */
    XL_FFN_UP,     /* [F, D] */
    XL_FFN_DOWN,   /* [D, F] */
    XL_ROLES
} xl_role;
const char *xl_role_name(xl_role role); /* "q", "ogate_preact", "proj_up_gate", ... */

/* Rows row0 .. row0+rows-1 of a tensor: fused tensors are shared by several roles. t is NULL when absent (biases). */
typedef struct xl_slice {
    const xl_tensor *t;
    uint64_t row0, rows;
} xl_slice;

typedef struct xl_block_wiring {
    xl_slice weight[XL_ROLES];
    xl_slice bias[XL_ROLES];
} xl_block_wiring;

typedef struct xl_wiring {
    xl_dims dims;
    bool fused, use_bias;
    bool tied; /* no head tensor in the files */
    const xl_tensor *embedding;
    xl_slice out_norm, out_norm_bias; /* t NULL: no final norm */
    const xl_tensor *head;            /* the embedding when tied */
    xl_block_wiring *blocks;          /* [num_blocks] */
    xl_tensor *views;                 /* owned: flat views of tensors that are stored with another rank */
    char scheme[32];                  /* "huggingface", "nx-ai", "bare", "gguf" */
} xl_wiring;

/* Tensors stay owned by `w`, which must outlive the wiring. */
int xl_wiring_discover(xl_wiring *out, const xl_weights *w, const xl_log *log, xlstm_error *err);
void xl_wiring_free(xl_wiring *wiring);
/* Adds the drawing, in unicode box characters or pure ASCII, readable for 1 and for 32 blocks. */
void xl_wiring_draw(xl_text *out, const xl_wiring *wiring, bool unicode);

#endif
