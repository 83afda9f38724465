/*
 * threads.h — a persistent worker pool. Work is cut into numbered pieces. Every thread takes a run of its own in order,
 * because neighbouring pieces read neighbouring memory, and then whatever is left of the others'; the caller works too,
 * and a region is done when all pieces are, so a slow worker delays one piece at most and a descheduled one that has not
 * begun none. Which thread runs a piece never changes its result: pieces split outputs, not sums. Layer 0.
 */
#ifndef XL_THREADS_H
#define XL_THREADS_H

#include "base.h"

#include <stdatomic.h>

typedef struct xl_pool xl_pool;

/* `threads` includes the caller; 0: all CPUs this process may use. */
int xl_pool_new(xl_pool **out, uint32_t threads, xlstm_error *err);
void xl_pool_free(xl_pool *pool);
uint32_t xl_pool_threads(const xl_pool *pool);

/* `worker` is in [0, threads): an index for scratch memory. */
typedef void (*xl_task_fn)(void *arg, uint32_t piece, uint32_t worker);
/* Runs pieces 0 .. n-1 and returns when all are done. One caller at a time. */
void xl_pool_run(xl_pool *pool, uint32_t n, xl_task_fn fn, void *arg);
/* First of the run of pieces that is a thread's own, out of `pieces`. */
uint32_t xl_pool_first(const xl_pool *pool, uint32_t pieces, uint32_t thread);

/* Memory that a thread will read before long: from `first` up to `end`. It is only fetched, never read, so that nothing happens
 * if it is no longer there. */
typedef struct xl_pool_ahead {
    atomic_uintptr_t first, end;
} xl_pool_ahead;
/* From now on a thread that waits, for work or for the others, fetches its own into its second-level cache. `ahead` [threads], or
 * NULL for nothing, is used until the next call or xl_pool_free. By the pool's caller. */
void xl_pool_fetch(xl_pool *pool, const xl_pool_ahead *ahead);

#endif
