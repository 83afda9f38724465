/*
 * endurance.c — one session reads a million tokens: every logit stays finite, the state stays within what theory allows,
 * memory stays flat and the last thousand steps take as long as the first.
 *
 *   build/bench/endurance [TOKENS [MODEL]]          default 1000000, models/xlstm-stories-10m
 */
#include "xlstm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 1000, ROUNDS = 11, PORTION = 8192 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double resident_mb(void)
{
    long pages = 0, all;
    FILE *f = fopen("/proc/self/statm", "r");
    if (f == NULL || fscanf(f, "%ld %ld", &all, &pages) != 2) pages = 0;
    if (f != NULL) fclose(f);
    return (double)pages * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

static void check(int code, const xlstm_error *err)
{
    if (code == XLSTM_OK) return;
    fprintf(stderr, "endurance: %s\n", err->message);
    exit(1);
}

static uint32_t seed = 1;
static int32_t random_id(uint32_t n)
{
    seed = seed * 1664525u + 1013904223u;
    return (int32_t)(2 + (seed >> 8) % (n - 2));
}

/* Largest |C|, |n| and |m| of all heads. */
static void norms(const xlstm_session *s, double out[3])
{
    xlstm_state *state;
    xlstm_error err = {0};
    xlstm_state_info i;
    check(xlstm_state_snapshot(&state, s, &err), &err);
    xlstm_state_get_info(state, &i);
    size_t size = (size_t)i.qk_head_dim * i.v_head_dim;
    float *C = malloc(size * sizeof(float)), *n = malloc(i.qk_head_dim * sizeof(float)), m;
    memset(out, 0, 3 * sizeof(*out));
    for (uint32_t b = 0; b < i.num_blocks; b++) {
        for (uint32_t h = 0; h < i.num_heads; h++) {
            check(xlstm_state_read_head(state, b, h, C, n, &m, &err), &err);
            for (size_t k = 0; k < size; k++) out[0] = fmax(out[0], fabs((double)C[k]));
            for (size_t k = 0; k < i.qk_head_dim; k++) out[1] = fmax(out[1], fabs((double)n[k]));
            out[2] = fmax(out[2], fabs((double)m));
        }
    }
    free(C);
    free(n);
    xlstm_state_free(state);
}

static double processor_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Processor seconds of some steps; the session's model has one thread, this one. */
static double time_steps(xlstm_session *s, uint32_t V)
{
    xlstm_error err = {0};
    double started = processor_time();
    for (int i = 0; i < STEPS / ROUNDS + 1; i++) check(xlstm_decode(s, random_id(V), &err), &err);
    return processor_time() - started;
}

int main(int argc, char **argv)
{
    uint64_t total = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000;
    const char *path = argc > 2 ? argv[2] : "models/xlstm-stories-10m";
    xlstm_model *m;
    xlstm_session *s;
    xlstm_error err = {0};
    check(xlstm_model_open(&m, path, NULL, &err), &err);
    check(xlstm_session_new(&s, m, &err), &err);
    uint32_t V = xlstm_model_get_info(m)->n_tokens;
    int32_t *ids = malloc(PORTION * sizeof(*ids));
    double n[3], before = 0;
    printf("| tokens | largest abs C | largest abs n | largest abs m | resident MB | tok/s |\n|--:|--:|--:|--:|--:|--:|\n");
    uint64_t next = PORTION;
    for (uint64_t done = 0; done < total;) {
        double started = now();
        uint64_t from = done;
        while (done < total && done < next) {
            for (int i = 0; i < PORTION; i++) ids[i] = random_id(V);
            check(xlstm_prefill(s, ids, PORTION, &err), &err);
            done += PORTION;
        }
        double rate = (double)(done - from) / (now() - started);
        norms(s, n);
        if (before == 0) before = resident_mb();
        printf("| %llu | %.4g | %.4g | %.4g | %.1f | %.0f |\n", (unsigned long long)done, n[0], n[1], n[2], resident_mb(), rate);
        fflush(stdout);
        next = done + (done < total / 8 ? done : total / 8);
    }
    double grown = resident_mb() - before;
    xlstm_model *single; /* on one thread, whose processor time other work hardly changes */
    xlstm_session *fresh, *worn;
    xlstm_state *state;
    check(xlstm_model_open(&single, path, &(xlstm_model_options){.threads = 1}, &err), &err);
    check(xlstm_session_new(&fresh, single, &err), &err);
    check(xlstm_session_new(&worn, single, &err), &err);
    check(xlstm_state_snapshot(&state, s, &err), &err);
    check(xlstm_state_restore(worn, state, &err), &err);
    double young = INFINITY, old = INFINITY; /* the fastest of interleaved rounds */
    for (int i = 0; i < ROUNDS; i++) {
        young = fmin(young, time_steps(fresh, V));
        old = fmin(old, time_steps(worn, V));
    }
    printf("\nresident memory grew by %.2f MB after the first %d tokens\n", grown, PORTION);
    printf("%d steps after %llu tokens take %.3f times as long as a fresh session's\n", STEPS,
           (unsigned long long)xlstm_session_position(worn), old / young);
    xlstm_session_free(s);
    xlstm_session_free(fresh);
    xlstm_session_free(worn);
    xlstm_state_free(state);
    xlstm_model_free(single);
    xlstm_model_free(m);
    free(ids);
    return 0;
}
