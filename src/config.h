/*
 * config.h — hyperparameters and numeric settings, resolved once. config.json (or what travels in a GGUF file), the
 * overrides and the tensors' shapes go in; one xl_config comes out, with the source of every setting that matters.
 * docs/model.md section 1 lists every key. Layer 3.
 */
#ifndef XL_CONFIG_H
#define XL_CONFIG_H

#include "wiring.h"

typedef struct xl_numerics {
    xlstm_resolved weights;      /* dtype the weights are held in (torch_dtype / dtype) */
    xlstm_resolved activations;  /* F32, BF16 or F16: what activations are rounded to between operations */
    xlstm_resolved kernel;       /* DEFAULT: off. Rounds q k v i f at the mLSTM kernel's door */
    xlstm_resolved state;        /* C and n */
    xlstm_resolved norm_float32; /* every norm */
    xlstm_dtype config_weights;  /* dtype or torch_dtype as written; DEFAULT: neither is, or an option overrules them */
    xlstm_dtype config_kernel;   /* autocast_kernel_dtype as written, obeyed only on request */
} xl_numerics;

typedef struct xl_config {
    xl_dims dims; /* from the tensors */
    uint32_t chunk_size;
    float norm_eps, cell_eps, gate_soft_cap, logit_soft_cap; /* caps: 0 is none */
    bool tied, force_bos;
    int32_t bos_id, eos_id, pad_id; /* -1: none */
    xl_numerics numerics;
} xl_config;

/* Inner width of the feed-forward part as the reference computes it: the fraction is dropped before rounding up, so
 * 768 * 2.667 = 2048.256 gives 2048. 0 if it does not fit. */
uint64_t xl_config_ffn_dim(uint32_t embedding_dim, double factor, uint32_t multiple);

/* `json`: text of config.json, or NULL when there is none: then every setting that shapes cannot tell must come from
 * options->set, and the error says which. `source_name` is the file name for messages. */
int xl_config_resolve(xl_config *out, const char *json, const char *source_name, const xl_wiring *wiring,
                      const xlstm_model_options *options, const xl_log *log, xlstm_error *err);

#endif
