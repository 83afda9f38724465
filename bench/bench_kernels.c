/*
 * bench_kernels.c — how far the cpu backend is from what the machine can do. Every timed kernel is interleaved with a
 * loop that only reads (decode) or only multiplies (prefill), and judged by the ratio: bandwidth and clock of a shared
 * machine swing by a factor of two from minute to minute, ratios do not.
 *   bench_kernels [decode|prefill|cell|token] [weight format] [threads] [activation format] [state format]
 */
#include "cpu/cpu_backend.h"
#include "cpu/cpu_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

enum { K = 4096, N = 10944, ROUNDS = 11 };

static xl_pool *pool;
static uint32_t threads;

/* Seconds. With one thread: of its own processor time, which a busy machine disturbs less than the clock on the wall. */
static double now(void)
{
    if (threads > 1) return xl_now();
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}
static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, by_size);
    return x[n / 2];
}

/* ---- baselines -------------------------------------------------------------------------------------------------- */

typedef struct reading {
    const uint8_t *bytes;
    size_t size;
    uint64_t seen[64][8];
} reading;

enum { READ_PIECE = 1 << 19 };

static void read_piece(void *arg, uint32_t piece, uint32_t worker)
{
    reading *r = arg;
    const uint64_t *p = (const uint64_t *)(const void *)(r->bytes + (size_t)piece * READ_PIECE);
    typedef uint64_t wide __attribute__((vector_size(64), aligned(8)));
    wide x[4] = {{0}, {0}, {0}, {0}};
    for (size_t i = 0; i < READ_PIECE / 8; i += 32)
        for (int j = 0; j < 4; j++) x[j] ^= *(const wide *)(p + i + 8 * j);
    wide all = x[0] ^ x[1] ^ x[2] ^ x[3];
    memcpy(r->seen[worker & 63], &all, sizeof all);
}

/* Bytes per second of reading `size` bytes on all threads. */
static double read_rate(const uint8_t *bytes, size_t size)
{
    static reading r;
    r.bytes = bytes;
    r.size = size;
    double start = now();
    xl_pool_run(pool, (uint32_t)(size / READ_PIECE), read_piece, &r);
    return (double)(size / READ_PIECE * READ_PIECE) / (now() - start);
}

enum { PEAK_STEPS = 400000 };

#if defined(__x86_64__)
static float sink[64][16];

__attribute__((target("avx512f,avx512bf16"))) static void peak_bf16(void *arg, uint32_t piece, uint32_t worker)
{
    (void)arg;
    (void)piece;
    __m512 s[24];
    UNROLL for (int i = 0; i < 24; i++) s[i] = _mm512_set1_ps((float)i);
    __m512bh a = (__m512bh)_mm512_set1_epi32(0x3c003c00 + (int)worker), b = (__m512bh)_mm512_set1_epi32(0x3c013c02);
    for (int k = 0; k < PEAK_STEPS / 24; k++) {
        UNROLL for (int i = 0; i < 24; i++) s[i] = _mm512_dpbf16_ps(s[i], a, b);
    }
    UNROLL for (int i = 1; i < 24; i++) s[0] = _mm512_add_ps(s[0], s[i]);
    _mm512_storeu_ps(sink[worker & 63], s[0]);
}
__attribute__((target("avx512f"))) static void peak_f32_512(void *arg, uint32_t piece, uint32_t worker)
{
    (void)arg;
    (void)piece;
    __m512 s[24], a = _mm512_set1_ps(0.5f + (float)worker), b = _mm512_set1_ps(0.25f);
    UNROLL for (int i = 0; i < 24; i++) s[i] = _mm512_set1_ps((float)i);
    for (int k = 0; k < PEAK_STEPS / 24; k++) {
        UNROLL for (int i = 0; i < 24; i++) s[i] = _mm512_fmadd_ps(a, b, s[i]);
    }
    UNROLL for (int i = 1; i < 24; i++) s[0] = _mm512_add_ps(s[0], s[i]);
    _mm512_storeu_ps(sink[worker & 63], s[0]);
}
__attribute__((target("avx2,fma"))) static void peak_f32_256(void *arg, uint32_t piece, uint32_t worker)
{
    (void)arg;
    (void)piece;
    __m256 s[12], a = _mm256_set1_ps(0.5f + (float)worker), b = _mm256_set1_ps(0.25f);
    UNROLL for (int i = 0; i < 12; i++) s[i] = _mm256_set1_ps((float)i);
    for (int k = 0; k < PEAK_STEPS / 12; k++) {
        UNROLL for (int i = 0; i < 12; i++) s[i] = _mm256_fmadd_ps(a, b, s[i]);
    }
    UNROLL for (int i = 1; i < 12; i++) s[0] = _mm256_add_ps(s[0], s[i]);
    _mm256_storeu_ps(sink[worker & 63], s[0]);
}
__attribute__((target("avx512f,avx512vnni"))) static void peak_int8(void *arg, uint32_t piece, uint32_t worker)
{
    (void)arg;
    (void)piece;
    __m512i s[24], a = _mm512_set1_epi32(0x01020304 + (int)worker), b = _mm512_set1_epi32(0x01010203);
    UNROLL for (int i = 0; i < 24; i++) s[i] = _mm512_set1_epi32(i);
    for (int k = 0; k < PEAK_STEPS / 24; k++) {
        UNROLL for (int i = 0; i < 24; i++) {
            s[i] = _mm512_dpbusd_epi32(s[i], a, b);
            __asm__ volatile("" : "+v"(s[i]));
        }
    }
    UNROLL for (int i = 1; i < 24; i++) s[0] = _mm512_add_epi32(s[0], s[i]);
    _mm512_storeu_si512(sink[worker & 63], s[0]);
}
__attribute__((target("amx-tile,amx-bf16"))) static void peak_amx(void *arg, uint32_t piece, uint32_t worker)
{
    (void)arg;
    (void)piece;
    static const uint8_t zeros[1024];
    _Alignas(64) struct { uint8_t palette, start, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.row_bytes[i] = 64;
        c.rows[i] = 16;
    }
    _tile_loadconfig(&c);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    _tile_loadd(6, zeros, 64);
    _tile_loadd(7, zeros, 64);
    for (int k = 0; k < PEAK_STEPS / 16; k += 4) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    float out[256];
    _tile_stored(0, out, 64);
    sink[worker & 63][0] = out[0];
    _tile_release();
}
#endif

typedef enum peak { PEAK_F32, PEAK_BF16, PEAK_INT8, PEAK_AMX } peak;

/* Multiply-adds count as two operations. 0 when this machine lacks the instruction. */
static double peak_rate(peak kind)
{
    xl_task_fn fn = NULL;
    double each = 0;
    (void)kind;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (kind == PEAK_F32 && __builtin_cpu_supports("avx512f")) {
        fn = peak_f32_512;
        each = 32;
    } else if (kind == PEAK_F32 && __builtin_cpu_supports("avx2")) {
        fn = peak_f32_256;
        each = 16;
    } else if (kind == PEAK_BF16 && __builtin_cpu_supports("avx512bf16")) {
        fn = peak_bf16;
        each = 64;
    } else if (kind == PEAK_INT8 && __builtin_cpu_supports("avx512vnni")) {
        fn = peak_int8;
        each = 128;
    } else if (kind == PEAK_AMX) {
        fn = peak_amx;
        each = 16384.0 / 16;
    }
#endif
    if (!fn) return 0;
    double start = now();
    uint32_t pieces = 8 * threads;
    xl_pool_run(pool, pieces, fn, NULL);
    return each * PEAK_STEPS * pieces / (now() - start);
}

/* ---- kernels ---------------------------------------------------------------------------------------------------- */

static const peak peaks[XL_CPU_PACKS] = {[XL_CPU_PACK_F32] = PEAK_F32, [XL_CPU_PACK_BF16] = PEAK_BF16,
                                         [XL_CPU_PACK_Q8] = PEAK_INT8, [XL_CPU_PACK_TILES] = PEAK_AMX, [XL_CPU_PACK_SPLIT] = PEAK_AMX};
static xl_backend *be;
static xlstm_dtype weights = XLSTM_BF16, activations = XLSTM_BF16, state = XLSTM_F32;
static uint32_t counting[4096];
static int32_t ids[4096];

static void open_backend(uint32_t max_rows, uint32_t blocks)
{
    xl_backend_options o = {.threads = threads, .max_rows = max_rows, .max_runs = max_rows, .chunk_size = 64,
                            .activations = activations, .norm_float32 = true, .num_blocks = blocks, .num_heads = 8,
                            .head_qk = 256, .head_v = 512, .embedding_dim = K, .ffn_dim = N, .vocab_size = 50304,
                            .state = state};
    xlstm_error err;
    if (xl_cpu_backend.open(&be, &o, &err)) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    /* the baselines run on the backend's own threads: spinning pools would steal from each other */
    pool = ((xl_cpu *)be)->pool;
    char text[64];
    xl_cpu_backend.describe(be, text, sizeof text);
    printf("%s, weights %s, activations %s\n", text, xlstm_dtype_name(weights), xlstm_dtype_name(activations));
}

/* A matrix of random values; the same source bytes serve all matrices of a size. */
static xl_matrix *random_matrix(size_t rows, size_t cols, xlstm_dtype dtype, size_t *bytes)
{
    size_t row;
    xl_dtype_row_bytes(&row, dtype, cols);
    uint8_t *source = malloc(rows * row);
    float *values = malloc(cols * sizeof *values);
    uint64_t seed = 88172645463325252u;
    for (size_t r = 0; r < XL_MIN(rows, (size_t)16); r++) {
        for (size_t k = 0; k < cols; k++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            values[k] = ((float)(seed >> 40) * 0x1p-24f - 0.5f) * 0.05f;
        }
        xl_encode_row(source + r * row, values, dtype, cols);
    }
    for (size_t r = 16; r < rows; r++) memcpy(source + r * row, source + r % 16 * row, row);
    xl_tensor t = {.name = "random", .dtype = dtype, .rank = 2, .shape = {rows, cols}};
    xl_matrix *m;
    bool borrows;
    xlstm_error err;
    if (xl_cpu_backend.matrix_new(be, &m, &borrows, &t, source, 0, rows, XLSTM_DTYPE_DEFAULT, XL_USE_MATMUL, &err)) {
        fprintf(stderr, "%s\n", err.message);
        exit(1);
    }
    if (!borrows) free(source);
    free(values);
    *bytes += xl_cpu_backend.matrix_bytes(m);
    return m;
}

static xl_buffer *new_buffer(size_t rows, size_t width)
{
    xl_buffer *b;
    if (xl_cpu_backend.buffer_new(be, &b, rows, width, NULL)) exit(1);
    for (size_t i = 0; i < rows * width; i++) b->data[i] = xl_round_bf16((float)((i * 2654435761u >> 8) % 1000) * 1e-3f - 0.5f);
    return b;
}

static void begin(uint32_t rows, xl_run *runs, uint32_t n_runs)
{
    static xl_batch batch;
    bool replay;
    for (uint32_t i = 0; i < 4096; i++) counting[i] = i;
    batch = (xl_batch){.ids = ids, .rows = rows, .runs = runs, .n_runs = n_runs, .out_rows = counting, .n_out = rows};
    xl_cpu_backend.begin(be, &batch, &replay, NULL);
}

static uint32_t faults[4096];

/* Matrix-vector products over a working set that no cache holds. */
static void bench_decode(void)
{
    enum { COUNT = 10 };
    open_backend(64, 1);
    size_t bytes = 0;
    xl_matrix *m[COUNT];
    for (int i = 0; i < COUNT; i++) m[i] = random_matrix(N, K, weights, &bytes);
    xl_buffer *x = new_buffer(64, K), *y = new_buffer(64, N);
    size_t pool_bytes = 900u << 20;
    uint8_t *memory = xl_alloc(pool_bytes, NULL);
    memset(memory, 1, pool_bytes);
    static const uint32_t batches[] = {1, 2, 4, 8, 12, 16, 32, 64};
    double single = 0;
    for (size_t b = 0; b < XL_COUNT(batches); b++) {
        double ratio[ROUNDS], rate[ROUNDS], reads[ROUNDS];
        for (int r = 0; r < ROUNDS; r++) {
            double before = read_rate(memory, pool_bytes / 2), start = now();
            begin(batches[b], NULL, 0);
            for (int i = 0; i < COUNT; i++) {
                xl_linear l = {m[i], NULL, y, N, 0, false, false};
                xl_cpu_backend.linear(be, &l, 1, x, false);
            }
            xl_cpu_backend.submit(be, faults, NULL);
            double took = now() - start, after = read_rate(memory + pool_bytes / 2, pool_bytes / 2);
            rate[r] = (double)bytes / took;
            reads[r] = (before + after) / 2;
            ratio[r] = rate[r] / reads[r];
        }
        double speed = median(rate, ROUNDS) * batches[b];
        if (b == 0) single = speed;
        printf("decode M %2u: %5.1f GB/s, read %5.1f GB/s, ratio %.3f; %.2f x the tokens of M 1\n", batches[b],
               median(rate, ROUNDS) / 1e9, median(reads, ROUNDS) / 1e9, median(ratio, ROUNDS), speed / single);
    }
}

static void bench_prefill(void)
{
    open_backend(512, 1);
    size_t bytes = 0;
    xl_matrix *wide = random_matrix(N, K, weights, &bytes), *deep = random_matrix(K, N - N % 256, weights, &bytes);
    xl_buffer *x = new_buffer(512, N), *y = new_buffer(512, N);
    peak kind = peaks[wide->product.pack];
    static const char *const names[] = {"f32", "bf16", "int8", "amx"};
    static const uint32_t sizes[] = {16, 64, 128, 512};
    for (int which = 0; which < 2; which++)
        for (size_t s = 0; s < XL_COUNT(sizes); s++) {
            xl_matrix *m = which ? deep : wide;
            double ratio[ROUNDS], best[ROUNDS], work = 2.0 * (double)m->rows * (double)m->cols * sizes[s];
            for (int r = 0; r < ROUNDS; r++) {
                double before = peak_rate(kind), start = now();
                begin(sizes[s], NULL, 0);
                xl_linear l = {m, NULL, y, (uint32_t)m->rows, 0, false, false};
                xl_cpu_backend.linear(be, &l, 1, x, false);
                xl_cpu_backend.submit(be, faults, NULL);
                double rate = work / (now() - start), after = peak_rate(kind);
                best[r] = rate;
                ratio[r] = rate / ((before + after) / 2);
            }
            printf("prefill M %3u, %zu x %zu: %6.1f GFLOP/s, %.3f of the %s peak\n", sizes[s], m->rows, m->cols,
                   median(best, ROUNDS) / 1e9, median(ratio, ROUNDS), names[kind]);
        }
}

/* The cell alone, over the states of 32 blocks, which no cache holds: its share of the time that a 7B block's products
 * take at the peak, and the bytes of state read and written. */
static void bench_cell(void)
{
    enum { BLOCKS = 32 };
    open_backend(512, BLOCKS);
    xl_buffer *q = new_buffer(512, 2048), *k = new_buffer(512, 2048), *v = new_buffer(512, 4096);
    xl_buffer *g = new_buffer(512, 16), *h = new_buffer(512, 4096);
    xl_store *s;
    if (xl_cpu_backend.store_new(be, &s, NULL)) exit(1);
    static const uint32_t sizes[] = {1, 64, 512};
    for (size_t i = 0; i < XL_COUNT(sizes); i++) {
        double took[ROUNDS];
        for (int r = 0; r < ROUNDS; r++) {
            xl_run run = {0, sizes[i], 0, s};
            begin(sizes[i], &run, 1);
            double start = now();
            for (uint32_t block = 0; block < BLOCKS; block++) {
                xl_mlstm op = {h, q, k, v, g, block, 15, 1e-6f, 1};
                xl_cpu_backend.mlstm(be, &op);
            }
            took[r] = (now() - start) / BLOCKS;
            xl_cpu_backend.submit(be, faults, NULL);
        }
        double t = median(took, ROUNDS), peak = peak_rate(activations == XLSTM_BF16 ? PEAK_BF16 : PEAK_F32);
        if (peak == 0) peak = peak_rate(PEAK_F32);
        double products = 2.0 * 201654272 * sizes[i];
        printf("cell M %3u: %.3f ms, %.3f of the time its block's products take at the peak; %.1f GB/s of state\n",
               sizes[i], t * 1e3, t / (products / peak),
               2.0 * (double)xl_cpu_backend.layout(be)->block_bytes / t / 1e9);
    }
}

enum { QKVO, CELL, GATE_NORM, OUT, NORM, FFN, SWIGLU, DOWN, PARTS };
#define TIMED(part, call) \
    do { \
        double from = now(); \
        call; \
        spent[part] += now() - from; \
    } while (0)

/* Every operation of a token at 7B shapes: BLOCKS different blocks and a quarter of the head, as one decode step. */
static void bench_token(void)
{
    enum { BLOCKS = 3, D = K };
    open_backend(512, BLOCKS);
    static const uint32_t outs[] = {2048, 2048, 4096, 4096, 8, 8, 4096, N, N, 4096};
    xl_matrix *m[BLOCKS][10], *head, *vector;
    size_t bytes = 0;
    for (int b = 0; b < BLOCKS; b++)
        for (int i = 0; i < 10; i++) {
            xlstm_dtype d = i == 4 || i == 5 ? XLSTM_F32 : weights;
            /* 10944 is no multiple of 256: K formats fall back to blocks of 32, as a quantiser does */
            if (i == 9 && xl_dtype_get(d)->block == 256) d = XLSTM_Q8_0;
            m[b][i] = random_matrix(outs[i], i == 9 ? N : D, d, &bytes);
        }
    head = random_matrix(50304 / 4, D, weights, &bytes);
    float *ones = malloc(D * sizeof *ones);
    for (int i = 0; i < D; i++) ones[i] = 1;
    xl_tensor t = {.name = "ones", .dtype = XLSTM_F32, .rank = 1, .shape = {D}};
    bool borrows;
    xl_cpu_backend.matrix_new(be, &vector, &borrows, &t, ones, 0, D, XLSTM_DTYPE_DEFAULT, XL_USE_MATMUL, NULL);
    xl_buffer *x = new_buffer(512, D), *u = new_buffer(512, D), *q = new_buffer(512, 2048), *k = new_buffer(512, 2048);
    xl_buffer *v = new_buffer(512, D), *o = new_buffer(512, D), *gates = new_buffer(512, 16), *h = new_buffer(512, D);
    xl_buffer *gate = new_buffer(512, N), *up = new_buffer(512, N), *logits = new_buffer(1, 50304);
    xl_store *s;
    if (xl_cpu_backend.store_new(be, &s, NULL)) exit(1);
    size_t pool_bytes = 900u << 20;
    uint8_t *memory = xl_alloc(pool_bytes, NULL);
    memset(memory, 1, pool_bytes);
    static const uint32_t sizes[] = {1, 512};
    peak kind = peaks[m[0][0]->product.pack];
    for (size_t i = 0; i < XL_COUNT(sizes); i++) {
        uint32_t M = sizes[i];
        double ratio[ROUNDS], took[ROUNDS], spent[PARTS] = {0};
        double state = 2.0 * (double)xl_cpu_backend.layout(be)->total_bytes;
        double work = 2.0 * (201654272.0 * BLOCKS * M + 50304.0 / 4 * D);
        for (int r = 0; r < ROUNDS; r++) {
            double before = M == 1 ? read_rate(memory, pool_bytes / 2) : peak_rate(kind), start = now();
            xl_run run = {0, M, 0, s};
            begin(M, &run, 1);
            for (uint32_t b = 0; b < BLOCKS; b++) {
                xl_norm norm = {vector, NULL, D, 1e-6f, 1};
                xl_mlstm cell = {h, q, k, v, gates, b, 15, 1e-6f, 1};
                xl_linear in[] = {{m[b][0], NULL, q, 2048, 0, false, false}, {m[b][1], NULL, k, 2048, 0, false, false},
                                  {m[b][2], NULL, v, D, 0, false, false},    {m[b][3], NULL, o, D, 0, false, false},
                                  {m[b][4], NULL, gates, 16, 0, false, true},
                                  {m[b][5], NULL, gates, 16, 8, false, true}};
                xl_linear out = {m[b][6], NULL, x, D, 0, true, false}, down = {m[b][9], NULL, x, D, 0, true, false};
                xl_linear ffn[] = {{m[b][7], NULL, gate, N, 0, false, false}, {m[b][8], NULL, up, N, 0, false, false}};
                TIMED(NORM, xl_cpu_backend.rmsnorm(be, u, x, &norm, false));
                TIMED(QKVO, xl_cpu_backend.linear(be, in, 6, u, false));
                TIMED(CELL, xl_cpu_backend.mlstm(be, &cell));
                TIMED(GATE_NORM, xl_cpu_backend.mhnorm_gate(be, h, h, o, &norm));
                TIMED(OUT, xl_cpu_backend.linear(be, &out, 1, h, false));
                TIMED(NORM, xl_cpu_backend.rmsnorm(be, u, x, &norm, false));
                TIMED(FFN, xl_cpu_backend.linear(be, ffn, 2, u, false));
                TIMED(SWIGLU, xl_cpu_backend.swiglu(be, gate, gate, up));
                TIMED(DOWN, xl_cpu_backend.linear(be, &down, 1, gate, false));
            }
            xl_batch last = *((xl_cpu *)be)->batch;
            last.n_out = 1;
            ((xl_cpu *)be)->batch = &last;
            xl_linear l = {head, NULL, logits, 50304, 0, false, true};
            xl_cpu_backend.linear(be, &l, 1, u, true);
            xl_cpu_backend.softcap(be, logits, 50304, 30, 1);
            xl_cpu_backend.submit(be, faults, NULL);
            took[r] = now() - start;
            double after = M == 1 ? read_rate(memory + pool_bytes / 2, pool_bytes / 2) : peak_rate(kind);
            ratio[r] = (M == 1 ? (double)bytes + state : work) / took[r] / ((before + after) / 2);
        }
        double t = median(took, ROUNDS);
        printf("%s: %.2f ms for %d blocks, %.3f of the %s\n", M == 1 ? "one token" : "512 tokens", t * 1e3, BLOCKS,
               median(ratio, ROUNDS), M == 1 ? "read bandwidth (weights, and the state read and written)" : "peak");
        static const char *const parts[PARTS] = {"q k v o", "cell", "head norm", "out", "norms", "gate up", "swiglu", "down"};
        printf("  a block in ms:");
        for (int part = 0; part < PARTS; part++) printf(" %s %.3f", parts[part], spent[part] * 1e3 / ROUNDS / BLOCKS);
        printf("\n");
    }
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "decode";
    if (argc > 2 && xlstm_dtype_parse(&weights, argv[2], NULL)) return 2;
    threads = argc > 3 ? (uint32_t)atoi(argv[3]) : 0;
    if (argc > 4 && xlstm_dtype_parse(&activations, argv[4], NULL)) return 2;
    if (argc > 5 && xlstm_dtype_parse(&state, argv[5], NULL)) return 2;
    if (threads == 0) {
        xl_pool *all;
        if (xl_pool_new(&all, 0, NULL)) return 1;
        threads = xl_pool_threads(all);
        xl_pool_free(all);
    }
    if (strcmp(what, "decode") == 0) bench_decode();
    else if (strcmp(what, "prefill") == 0) bench_prefill();
    else if (strcmp(what, "cell") == 0) bench_cell();
    else if (strcmp(what, "token") == 0) bench_token();
    else return 2;
    return 0;
}
