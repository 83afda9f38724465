/* test_threads.c — the worker pool: every piece runs exactly once, regions do not leak into each other, valid worker
 * indices, odd thread counts, more threads than CPUs. Meant to run under ThreadSanitizer too. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "threads.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct region {
    atomic_uint runs[512];
    uint32_t number, threads;
    atomic_uint bad;
    uint64_t plain[512]; /* written without atomics: each piece owns its slot */
} region;

static void count(void *arg, uint32_t piece, uint32_t worker)
{
    region *r = arg;
    atomic_fetch_add(&r->runs[piece], 1);
    if (worker >= r->threads) atomic_fetch_add(&r->bad, 1);
    r->plain[piece] += r->number + piece;
}

static void test_every_piece_once(void **state)
{
    (void)state;
    static region r;
    static const uint32_t threads[] = {1, 2, 3, 8};
    for (size_t t = 0; t < XL_COUNT(threads); t++) {
        xl_pool *pool;
        assert_int_equal(xl_pool_new(&pool, threads[t], NULL), XLSTM_OK);
        assert_int_equal(xl_pool_threads(pool), threads[t]);
        memset(&r, 0, sizeof r);
        r.threads = threads[t];
        uint32_t expected[512] = {0};
        uint64_t sums[512] = {0};
        for (uint32_t i = 0; i < 3000; i++) {
            uint32_t n = i * 7 % 60;
            if (i % 500 == 499) {
                n = 512;
                usleep(3000); /* workers fall asleep */
            }
            r.number = i;
            xl_pool_run(pool, n, count, &r);
            for (uint32_t p = 0; p < n; p++) {
                expected[p]++;
                sums[p] += i + p;
            }
        }
        for (uint32_t p = 0; p < 512; p++) {
            assert_int_equal(atomic_load(&r.runs[p]), expected[p]);
            assert_true(r.plain[p] == sums[p]);
        }
        assert_int_equal(atomic_load(&r.bad), 0);
        xl_pool_free(pool);
    }
}

/* Threads that wait fetch memory, whether it is there or not, in lists that change under them; pieces still run once each. */
static void test_fetching_while_waiting(void **state)
{
    enum { THREADS = 4, LISTS = 3, BYTES = 1 << 16 };
    (void)state;
    static region r;
    static uint8_t memory[BYTES];
    static xl_pool_ahead lists[LISTS][THREADS];
    uint8_t *gone = malloc(BYTES);
    assert_non_null(gone);
    uintptr_t freed = (uintptr_t)gone;
    free(gone);
    const uintptr_t begin[] = {(uintptr_t)memory, freed, 0, UINTPTR_MAX - BYTES};
    for (int l = 0; l < LISTS; l++)
        for (int t = 0; t < THREADS; t++) {
            lists[l][t].first = begin[(l + t) % 4];
            lists[l][t].end = begin[(l + t) % 4] + (l + t == 0 ? 0 : BYTES - 1);
        }
    xl_pool *pool;
    assert_int_equal(xl_pool_new(&pool, THREADS, NULL), XLSTM_OK);
    memset(&r, 0, sizeof r);
    r.threads = THREADS;
    for (uint32_t i = 0; i < 2000; i++) {
        xl_pool_fetch(pool, i % 5 == 4 ? NULL : lists[i % LISTS]);
        atomic_store_explicit(&lists[(i + 1) % LISTS][i % THREADS].first, begin[i % 4], memory_order_relaxed);
        xl_pool_run(pool, 9, count, &r);
    }
    for (uint32_t p = 0; p < 9; p++) assert_int_equal(atomic_load(&r.runs[p]), 2000);
    assert_int_equal(atomic_load(&r.bad), 0);
    for (size_t i = 0; i < BYTES; i++) assert_int_equal(memory[i], 0);
    xl_pool_free(pool);
}

/* The runs of all threads cover the pieces, in order, and differ by one at most. */
static void test_first_pieces(void **state)
{
    (void)state;
    static const uint32_t threads[] = {1, 2, 3, 16}, pieces[] = {0, 1, 2, 15, 16, 17, 386, UINT32_MAX / 2};
    for (size_t t = 0; t < XL_COUNT(threads); t++) {
        xl_pool *pool;
        assert_int_equal(xl_pool_new(&pool, threads[t], NULL), XLSTM_OK);
        for (size_t n = 0; n < XL_COUNT(pieces); n++) {
            assert_int_equal(xl_pool_first(pool, pieces[n], 0), 0);
            assert_int_equal(xl_pool_first(pool, pieces[n], threads[t]), pieces[n]);
            for (uint32_t i = 0; i < threads[t]; i++) {
                uint32_t own = xl_pool_first(pool, pieces[n], i + 1) - xl_pool_first(pool, pieces[n], i);
                assert_in_range(own, pieces[n] / threads[t], pieces[n] / threads[t] + 1);
            }
        }
        xl_pool_free(pool);
    }
}

static void tally(void *arg, uint32_t piece, uint32_t worker)
{
    (void)piece, (void)worker;
    atomic_fetch_add((atomic_uint *)arg, 1);
}

/* A forked child has the pool but none of its threads: it works alone and frees the pool without waiting. */
static void test_forked_child(void **state)
{
    (void)state;
    xl_pool *pool;
    assert_int_equal(xl_pool_new(&pool, 3, NULL), XLSTM_OK);
    /* at different times after a region: workers still spin, are about to sleep with the mutex in their hands, or sleep */
    for (useconds_t wait = 0; wait < 2000; wait += 50) {
        atomic_uint pieces = 0;
        xl_pool_run(pool, 100, tally, &pieces);
        usleep(wait);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            alarm(20);
            xl_pool_run(pool, 100, tally, &pieces);
            xl_pool_free(pool);
            _exit(atomic_load(&pieces) == 200 ? 0 : 1);
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    xl_pool_free(pool);
}

static void nap(void *arg, uint32_t piece, uint32_t worker)
{
    (void)worker;
    if (piece == 0) usleep(20000);
    atomic_fetch_add((atomic_uint *)arg, 1);
}

static void test_caller_waits_for_slow_piece(void **state)
{
    (void)state;
    xl_pool *pool;
    assert_int_equal(xl_pool_new(&pool, 3, NULL), XLSTM_OK);
    for (int i = 0; i < 5; i++) {
        atomic_uint done = 0;
        xl_pool_run(pool, 9, nap, &done);
        assert_int_equal(atomic_load(&done), 9);
    }
    xl_pool_free(pool);
}

static void test_arguments(void **state)
{
    (void)state;
    xl_pool *pool;
    xlstm_error err = {0};
    assert_int_equal(xl_pool_new(&pool, 100000, &err), XLSTM_E_ARGUMENT);
    assert_null(pool);
    assert_non_null(strstr(err.message, "100000"));
    assert_int_equal(xl_pool_new(&pool, 0, &err), XLSTM_OK);
    assert_true(xl_pool_threads(pool) >= 1);
    xl_pool_free(pool);
    xl_pool_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_piece_once),
        cmocka_unit_test(test_fetching_while_waiting),
        cmocka_unit_test(test_forked_child),
        cmocka_unit_test(test_first_pieces),
        cmocka_unit_test(test_caller_waits_for_slow_piece),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests_name("threads", tests, NULL, NULL);
}
