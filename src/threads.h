/*
 * threads.h — a persistent worker pool. Work is cut into numbered pieces. Every thread takes a run of its own in order,
 * because neighbouring pieces read neighbouring memory, and then whatever is left of the others'; the caller works too,
 * and a region is done when all pieces are, so a slow worker delays one piece at most and a descheduled one that has not
 * begun none. Which thread runs a piece never changes its result: pieces split outputs, not sums. Layer 0.
 */
#ifndef XL_THREADS_H
#define XL_THREADS_H

#include "base.h"

typedef struct xl_pool xl_pool;

/* `threads` includes the caller; 0: all CPUs this process may use. */
int xl_pool_new(xl_pool **out, uint32_t threads, xlstm_error *err);
void xl_pool_free(xl_pool *pool);
uint32_t xl_pool_threads(const xl_pool *pool);

/* `worker` is in [0, threads): an index for scratch memory. */
typedef void (*xl_task_fn)(void *arg, uint32_t piece, uint32_t worker);
/* Runs pieces 0 .. n-1 and returns when all are done. One caller at a time. */
void xl_pool_run(xl_pool *pool, uint32_t n, xl_task_fn fn, void *arg);

#endif
