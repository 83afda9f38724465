/*
 * sampler.h — what a choice needs besides the logits, for who makes it elsewhere than in sampler.c. Layer 4.
 */
#ifndef XL_SAMPLER_H
#define XL_SAMPLER_H

#include "base.h"

/* Ids 0 .. n-1 may be chosen. */
uint32_t xl_sampler_size(const xlstm_sampler *s);
/* The settings of a sampler without bias and penalties, top_k at most its size; NULL for others: their choices take the
 * ids seen so far. */
const xlstm_sampler_options *xl_sampler_plain(const xlstm_sampler *s);
/* The number in [0, 1) that xlstm_sampler_choose would draw; it draws none when greedy. */
double xl_sampler_draw(xlstm_sampler *s);

#endif
