/*
 * machine.c — see machine.h. Nothing here is part of the engine: these loops are the yardsticks it is held against.
 */
#include "machine.h"

#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* ---- peak loops: `rounds` times a fixed number of operations, from registers --------------------------------------- */

typedef struct peak_loop {
    const char *name;
    double operations; /* a round */
    void (*run)(uint64_t rounds);
} peak_loop;

static volatile float sink;

#if defined(__x86_64__)
/* Sixteen chains hide the latency; the empty asm keeps the compiler from folding them. */
#define CHAINS 16

#define F32_LOOP(NAME, TARGET, TYPE, ZERO, FMA, FIRST)                                                                        \
    __attribute__((target(TARGET))) static void NAME(uint64_t rounds)                                                  \
    {                                                                                                                  \
        TYPE a[CHAINS / 2], x = ZERO, y = ZERO;                                                                        \
        for (int i = 0; i < CHAINS / 2; i++)                                                                           \
            a[i] = ZERO;                                                                                               \
        for (; rounds > 0; rounds--) {                                                                                 \
            _Pragma("GCC unroll 8") for (int i = 0; i < CHAINS / 2; i++) a[i] = FMA(x, y, a[i]);                       \
            __asm__ volatile("" : "+v"(x), "+v"(y));                                                                   \
        }                                                                                                              \
        for (int i = 1; i < CHAINS / 2; i++)                                                                           \
            a[0] = FMA(a[i], a[i], a[0]);                                                                              \
        sink = FIRST(a[0]);                                                                                            \
    }
F32_LOOP(f32_avx2, "avx2,fma", __m256, _mm256_setzero_ps(), _mm256_fmadd_ps, _mm256_cvtss_f32)
F32_LOOP(f32_avx512, "avx512f", __m512, _mm512_setzero_ps(), _mm512_fmadd_ps, _mm512_cvtss_f32)

__attribute__((target("avx512f,avx512bf16"))) static void bf16_avx512(uint64_t rounds)
{
    __m512 a[CHAINS];
    __m512i x = _mm512_setzero_si512(), y = _mm512_setzero_si512();
    for (int i = 0; i < CHAINS; i++)
        a[i] = _mm512_setzero_ps();
    for (; rounds > 0; rounds--) {
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++) a[i] =
            _mm512_dpbf16_ps(a[i], (__m512bh)x, (__m512bh)y);
        __asm__ volatile("" : "+v"(x), "+v"(y));
    }
    for (int i = 1; i < CHAINS; i++)
        a[0] = _mm512_add_ps(a[0], a[i]);
    sink = _mm512_cvtss_f32(a[0]);
}

__attribute__((target("avx512f,avx512vnni"))) static void int8_avx512(uint64_t rounds)
{
    __m512i a[CHAINS], x = _mm512_setzero_si512(), y = _mm512_setzero_si512();
    for (int i = 0; i < CHAINS; i++)
        a[i] = _mm512_setzero_si512();
    for (; rounds > 0; rounds--) {
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++) a[i] = _mm512_dpbusd_epi32(a[i], x, y);
        __asm__ volatile("" : "+v"(x), "+v"(y));
    }
    for (int i = 1; i < CHAINS; i++)
        a[0] = _mm512_add_epi32(a[0], a[i]);
    sink = (float)_mm_cvtsi128_si32(_mm512_castsi512_si128(a[0]));
}

/* One tile product is 16 x 16 results of 32 (bf16) or 64 (int8) products. */
#define TILE_LOOP(NAME, TARGET, PRODUCT)                                                                               \
    __attribute__((target("amx-tile," TARGET))) static void NAME(uint64_t rounds)                                      \
    {                                                                                                                  \
        struct {                                                                                                       \
            uint8_t palette, start, reserved[14];                                                                      \
            uint16_t row_bytes[16];                                                                                    \
            uint8_t n_rows[16];                                                                                        \
        } shape = {.palette = 1};                                                                                      \
        for (int i = 0; i < 8; i++) {                                                                                  \
            shape.row_bytes[i] = 64;                                                                                   \
            shape.n_rows[i] = 16;                                                                                      \
        }                                                                                                              \
        __asm__ volatile("" : : "r"(&shape) : "memory"); /* gcc 12 thinks that only 8 bytes of it are read */          \
        _tile_loadconfig(&shape);                                                                                      \
        _tile_zero(0);                                                                                                 \
        _tile_zero(1);                                                                                                 \
        _tile_zero(2);                                                                                                 \
        _tile_zero(3);                                                                                                 \
        _tile_zero(4);                                                                                                 \
        _tile_zero(5);                                                                                                 \
        for (; rounds > 0; rounds--) {                                                                                 \
            PRODUCT(0, 4, 5);                                                                                          \
            PRODUCT(1, 4, 5);                                                                                          \
            PRODUCT(2, 4, 5);                                                                                          \
            PRODUCT(3, 4, 5);                                                                                          \
        }                                                                                                              \
        _tile_release();                                                                                               \
    }
TILE_LOOP(bf16_amx, "amx-bf16", _tile_dpbf16ps)
TILE_LOOP(int8_amx, "amx-int8", _tile_dpbusd)

/* The kernel hands out tile registers only on request. */
static bool tiles_allowed(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    const bool has = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);
    return has && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

static bool has_avx512_bf16(void)
{
    unsigned a, b, c, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
    return __builtin_cpu_supports("avx512f") && (a >> 5 & 1);
}

static peak_loop find_peak(peak_kind kind)
{
    const peak_loop none = {NULL, 0, NULL};
    switch (kind) {
    case PEAK_F32:
        if (__builtin_cpu_supports("avx512f"))
            return (peak_loop){"avx512", CHAINS / 2 * 16 * 2, f32_avx512};
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            return (peak_loop){"avx2", CHAINS / 2 * 8 * 2, f32_avx2};
        return none;
    case PEAK_BF16:
        if (tiles_allowed())
            return (peak_loop){"amx-bf16", 4.0 * 16 * 16 * 32 * 2, bf16_amx};
        return has_avx512_bf16() ? (peak_loop){"avx512-bf16", CHAINS * 32 * 2, bf16_avx512} : none;
    default:
        if (tiles_allowed())
            return (peak_loop){"amx-int8", 4.0 * 16 * 16 * 64 * 2, int8_amx};
        return __builtin_cpu_supports("avx512vnni") ? (peak_loop){"avx512-vnni", CHAINS * 64 * 2, int8_avx512} : none;
    }
}
#else
enum { LANES = 64 };

/* Plain C that compilers turn into fused multiply-adds over vector registers. */
static void f32_plain(uint64_t rounds)
{
    float a[LANES] = {0}, x = 0, y = 0;
    for (; rounds > 0; rounds--) {
        for (int i = 0; i < LANES; i++)
            a[i] = __builtin_fmaf(x, y, a[i]);
        __asm__ volatile("" : "+w"(x), "+w"(y));
    }
    for (int i = 1; i < LANES; i++)
        a[0] += a[i];
    sink = a[0];
}

static peak_loop find_peak(peak_kind kind)
{
    return kind == PEAK_F32 ? (peak_loop){"fma", LANES * 2, f32_plain} : (peak_loop){NULL, 0, NULL};
}
#endif

/* ---- reading ------------------------------------------------------------------------------------------------------ */

/* `ahead`: words fetched ahead by hand; 0 leaves it to the processor. Some machines read faster one way, some the other. */
#if defined(__x86_64__)
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
static uint64_t
read_all(const uint64_t *p, size_t n, size_t ahead)
{
    uint64_t a[32] = {0};
    for (size_t i = 0; i + 32 <= n; i += 32) {
        for (size_t line = 0; ahead && line < 32; line += 8)
            __builtin_prefetch(p + i + ahead + line);
        for (int k = 0; k < 32; k++)
            a[k] ^= p[i + (size_t)k];
    }
    for (int k = 1; k < 32; k++)
        a[0] ^= a[k];
    return a[0];
}

/* ---- threads ------------------------------------------------------------------------------------------------------ */

typedef enum job_kind { JOB_TOUCH, JOB_READ, JOB_READ_AHEAD, JOB_PEAK } job_kind;
enum { AHEAD = 512 }; /* words: a page */

struct machine {
    uint32_t threads;
    char cpu[128];
    uint64_t *memory;
    size_t words; /* of the memory; each thread has its share */
    job_kind job;
    uint64_t rounds;
    peak_loop loop;
};

typedef struct worker {
    machine *m;
    uint32_t index;
} worker;

static void *work(void *arg)
{
    const worker *w = arg;
    machine *m = w->m;
    const size_t share = m->words / m->threads;
    uint64_t *mine = m->memory + w->index * share;
    if (m->job == JOB_TOUCH)
        memset(mine, 0x5a, share * sizeof *mine);
    else if (m->job == JOB_PEAK)
        m->loop.run(m->rounds);
    else
        for (uint64_t i = 0; i < m->rounds; i++)
            sink = (float)read_all(mine, share, m->job == JOB_READ_AHEAD ? AHEAD : 0);
    return NULL;
}

/* Seconds that all threads together take. */
static double run_all(machine *m, job_kind job, uint64_t rounds)
{
    pthread_t *threads = must(calloc(m->threads, sizeof *threads));
    worker *workers = must(calloc(m->threads, sizeof *workers));
    m->job = job;
    m->rounds = rounds;
    const double started = now();
    uint32_t n = 0;
    for (uint32_t i = 1; i < m->threads; i++) {
        workers[i] = (worker){m, i};
        if (pthread_create(&threads[n], NULL, work, &workers[i]))
            work(&workers[i]);
        else
            n++;
    }
    workers[0] = (worker){m, 0};
    work(&workers[0]);
    for (uint32_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    const double seconds = now() - started;
    free(threads);
    free(workers);
    return seconds;
}

machine *machine_new(uint32_t threads)
{
    machine *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    cpu_set_t set;
    m->threads = threads ? threads : (sched_getaffinity(0, sizeof set, &set) ? 1u : (uint32_t)CPU_COUNT(&set));
    snprintf(m->cpu, sizeof m->cpu, "unknown processor");
    FILE *f = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (f && fgets(line, sizeof line, f)) {
        char *value = strchr(line, ':');
        if (value && !strncmp(line, "model name", 10)) {
            value[strcspn(value, "\n")] = '\0';
            snprintf(m->cpu, sizeof m->cpu, "%s", value + 2);
            break;
        }
    }
    if (f)
        fclose(f);
    for (size_t bytes = (size_t)1 << 30; bytes >= (size_t)1 << 26 && !m->memory; bytes /= 2) {
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            continue;
        (void)madvise(p, bytes, MADV_HUGEPAGE);
        m->memory = p;
        m->words = bytes / sizeof *m->memory;
    }
    if (!m->memory) {
        free(m);
        return NULL;
    }
    run_all(m, JOB_TOUCH, 1);
    return m;
}

void machine_free(machine *m)
{
    if (!m)
        return;
    munmap(m->memory, m->words * sizeof *m->memory);
    free(m);
}

uint32_t machine_threads(const machine *m)
{
    return m->threads;
}

const char *machine_cpu(const machine *m)
{
    return m->cpu;
}

double machine_read_bandwidth(machine *m, double seconds)
{
    const double bytes = (double)(m->words / m->threads * m->threads * sizeof *m->memory);
    double most = 0;
    for (int way = 0; way < 2; way++) {
        const job_kind job = way ? JOB_READ_AHEAD : JOB_READ;
        const uint64_t rounds = (uint64_t)(seconds / 2 / run_all(m, job, 1)) + 1;
        const double rate = bytes * (double)rounds / run_all(m, job, rounds);
        most = rate > most ? rate : most;
    }
    return most;
}

double machine_peak(machine *m, peak_kind kind, double seconds)
{
    m->loop = find_peak(kind);
    if (!m->loop.run)
        return 0;
    uint64_t rounds = 1 << 16;
    const double trial = run_all(m, JOB_PEAK, rounds);
    rounds = (uint64_t)((double)rounds * seconds / trial) + 1;
    return m->loop.operations * (double)rounds * m->threads / run_all(m, JOB_PEAK, rounds);
}

const char *machine_peak_name(peak_kind kind)
{
    return find_peak(kind).name;
}
