/*
 * threads.c — the worker pool. Each thread has a ticket, one 64-bit word: the number of the region and how many of the
 * thread's own pieces are left to take, by itself or by a thread that has run out. Claiming a piece is a
 * compare-and-swap on a ticket, so a late worker can never take a piece of a region that has ended, and whatever it
 * reads after a successful claim (function, argument, count) stays put until it has reported the piece done. Waiting
 * spins for a fraction of a millisecond, the usual gap between two operations of a token, and then sleeps on a
 * condition variable. A thread that spins fetches memory it will read later, if it was told of some.
 */
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

enum { MAX_THREADS = 1024, SPINS = 20000, LINES = 8 /* fetched between two looks for work */ };

/* How far a thread has come with fetching ahead. */
typedef struct fetching {
    const xl_pool_ahead *what; /* the list it goes by */
    uintptr_t at, end;
} fetching;

typedef struct worker {
    struct xl_pool *pool;
    pthread_t thread;
    uint32_t index; /* 1 .. threads - 1; the caller is 0 */
    fetching fetch;
} worker;

/* On a line of its own: most of the time a thread takes from its own only. */
typedef struct ticket {
    _Alignas(XL_ALIGN) atomic_uint_least64_t left; /* region << 32 | pieces left */
} ticket;

struct xl_pool {
    _Alignas(XL_ALIGN) atomic_uint region;   /* the one whose tickets are out */
    _Alignas(XL_ALIGN) atomic_uint done;     /* pieces finished in this region */
    _Alignas(XL_ALIGN) atomic_uint sleepers; /* workers asleep or about to be */
    atomic_bool caller_sleeps, quit;
    _Atomic(const xl_pool_ahead *) ahead; /* [threads] or NULL */
    /* written by the caller while no piece is left, read by a worker only after it has claimed one */
    xl_task_fn fn;
    void *arg;
    uint32_t pieces;

    pthread_mutex_t mutex;
    pthread_cond_t work, finished;
    uint32_t threads, started; /* threads: caller included; started: workers that run */
    pid_t process;             /* the one whose threads they are */
    worker *workers; /* [threads], the first for the caller */
    ticket *tickets; /* [threads] */
};

static void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* A moment of waiting: the next few lines of memory that are to be fetched, or nothing. */
static void wait_a_moment(xl_pool *pool, uint32_t index)
{
    fetching *f = &pool->workers[index].fetch;
    const xl_pool_ahead *what = atomic_load_explicit(&pool->ahead, memory_order_acquire);
    if (what != f->what) {
        f->what = what;
        f->at = what ? atomic_load_explicit(&what[index].first, memory_order_relaxed) : 0;
        f->end = what ? atomic_load_explicit(&what[index].end, memory_order_relaxed) : 0;
    }
    if (f->at >= f->end) {
        relax();
        return;
    }
    for (int i = 0; i < LINES; i++, f->at += 64) __builtin_prefetch((const void *)f->at, 0, 2);
}

uint32_t xl_pool_first(const xl_pool *pool, uint32_t pieces, uint32_t thread)
{
    return (uint32_t)((uint64_t)pieces * thread / pool->threads);
}

void xl_pool_fetch(xl_pool *pool, const xl_pool_ahead *ahead)
{
    atomic_store_explicit(&pool->ahead, ahead, memory_order_release);
}

/* Takes pieces of the current region until none is left: its own in order, then those of the threads that follow. */
static void drain(xl_pool *pool, uint32_t index)
{
    uint32_t done = 0, pieces = 0;
    for (uint32_t i = 0; i < pool->threads; i++) {
        uint32_t owner = index + i < pool->threads ? index + i : index + i - pool->threads;
        atomic_uint_least64_t *word = &pool->tickets[owner].left;
        uint64_t left = atomic_load_explicit(word, memory_order_acquire);
        while ((uint32_t)left != 0) {
            if (!atomic_compare_exchange_weak_explicit(word, &left, left - 1, memory_order_acq_rel, memory_order_acquire))
                continue;
            pieces = pool->pieces;
            pool->fn(pool->arg, xl_pool_first(pool, pieces, owner + 1) - (uint32_t)left, index);
            done++;
            left = atomic_load_explicit(word, memory_order_acquire);
        }
    }
    /* seq_cst pairs with the caller's store of caller_sleeps: one of the two sees the other */
    if (done > 0 && atomic_fetch_add(&pool->done, done) + done == pieces && index != 0 &&
        atomic_load(&pool->caller_sleeps)) {
        pthread_mutex_lock(&pool->mutex);
        pthread_cond_signal(&pool->finished);
        pthread_mutex_unlock(&pool->mutex);
    }
}

static bool idle(xl_pool *pool, uint32_t seen)
{
    return atomic_load(&pool->region) == seen && !atomic_load(&pool->quit);
}

static void *work(void *arg)
{
    worker *w = arg;
    xl_pool *pool = w->pool;
    uint32_t seen = 0;
    while (!atomic_load(&pool->quit)) {
        for (int i = 0; i < SPINS && idle(pool, seen); i++) wait_a_moment(pool, w->index);
        if (idle(pool, seen)) {
            pthread_mutex_lock(&pool->mutex);
            atomic_fetch_add(&pool->sleepers, 1);
            while (idle(pool, seen)) pthread_cond_wait(&pool->work, &pool->mutex);
            atomic_fetch_sub(&pool->sleepers, 1);
            pthread_mutex_unlock(&pool->mutex);
        }
        seen = atomic_load(&pool->region);
        drain(pool, w->index);
    }
    return NULL;
}

static void wake_workers(xl_pool *pool)
{
    /* a forked child has no workers, and its copy of the mutex may be one that a worker held */
    if (atomic_load(&pool->sleepers) == 0 || pool->process != getpid()) return;
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->mutex);
}

static uint32_t usable_cpus(void)
{
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return (uint32_t)CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

int xl_pool_new(xl_pool **out, uint32_t threads, xlstm_error *err)
{
    *out = NULL;
    if (threads > MAX_THREADS)
        return xl_fail(err, XLSTM_E_ARGUMENT, "threads: %u is more than %d", threads, MAX_THREADS);
    if (threads == 0) threads = XL_MIN(usable_cpus(), (uint32_t)MAX_THREADS);

    xl_pool *pool = xl_calloc(1, sizeof *pool, err);
    if (!pool) return XLSTM_E_MEMORY;
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->finished, NULL);
    pool->threads = threads;
    pool->process = getpid();
    pool->workers = xl_calloc(threads, sizeof *pool->workers, err);
    if (pool->workers) pool->tickets = xl_calloc(threads, sizeof *pool->tickets, err);
    if (!pool->workers || !pool->tickets) {
        xl_pool_free(pool);
        return XLSTM_E_MEMORY;
    }

    /* signals belong to the program's own threads */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = 0;
    for (uint32_t i = 1; i < threads && !failed; i++) {
        worker *w = &pool->workers[i];
        w->pool = pool;
        w->index = i;
        failed = pthread_create(&w->thread, NULL, work, w);
        if (!failed) pool->started++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed) {
        int code = xl_fail(err, XLSTM_E_MEMORY, "threads: only %u of %u could be started (%s); ask for fewer",
                           pool->started + 1, threads, strerror(failed));
        xl_pool_free(pool);
        return code;
    }
    *out = pool;
    return XLSTM_OK;
}

void xl_pool_free(xl_pool *pool)
{
    if (!pool) return;
    if (pool->process == getpid()) { /* a forked child has no workers to wait for */
        pthread_mutex_lock(&pool->mutex);
        atomic_store(&pool->quit, true);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->mutex);
        for (uint32_t i = 1; i <= pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
        pthread_mutex_destroy(&pool->mutex);
        pthread_cond_destroy(&pool->work);
        pthread_cond_destroy(&pool->finished);
    }
    xl_release(pool->workers);
    xl_release(pool->tickets);
    xl_release(pool);
}

uint32_t xl_pool_threads(const xl_pool *pool) { return pool->threads; }

void xl_pool_run(xl_pool *pool, uint32_t n, xl_task_fn fn, void *arg)
{
    if (n <= 1 || pool->threads == 1) {
        for (uint32_t i = 0; i < n; i++) fn(arg, i, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->pieces = n;
    atomic_store(&pool->done, 0);
    uint32_t region = atomic_load(&pool->region) + 1;
    for (uint32_t i = 0; i < pool->threads; i++)
        atomic_store_explicit(&pool->tickets[i].left,
                              (uint64_t)region << 32 | (xl_pool_first(pool, n, i + 1) - xl_pool_first(pool, n, i)),
                              memory_order_release);
    atomic_store(&pool->region, region);
    wake_workers(pool);
    drain(pool, 0);
    for (int i = 0; i < SPINS && atomic_load(&pool->done) != n; i++) wait_a_moment(pool, 0);
    if (atomic_load(&pool->done) == n) return;
    pthread_mutex_lock(&pool->mutex);
    atomic_store(&pool->caller_sleeps, true);
    while (atomic_load(&pool->done) != n) pthread_cond_wait(&pool->finished, &pool->mutex);
    atomic_store(&pool->caller_sleeps, false);
    pthread_mutex_unlock(&pool->mutex);
}
