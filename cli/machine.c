/*
 * machine.c — see machine.h. Nothing here is part of the engine: these loops are the yardsticks it is held against.
 */
#include "machine.h"

#include "common.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

static volatile float sink;

/* Operands are ordinary numbers, not zeros: a chip may clock higher on zeros than on what models are made of. They lie in
 * 0.5 .. 2, read as float32 or as bfloat16. */
enum { NOISE = 4096 };
static uint8_t noise[NOISE] __attribute__((aligned(64)));

static void fill_noise(void)
{
    uint32_t x = 1;
    for (size_t i = 0; i < NOISE; i += 4) {
        x = x * 1664525u + 1013904223u;
        const uint32_t word = 0x3f003f00u | (x >> 8 & 0x007f007fu);
        memcpy(noise + i, &word, sizeof word);
    }
}

/* ---- peak loops: `rounds` times a fixed number of operations, from registers --------------------------------------- */

typedef struct peak_loop {
    const char *name;
    double operations; /* a round */
    void (*run)(uint64_t rounds);
    bool (*here)(void); /* the processor has it */
} peak_loop;

#if defined(__x86_64__)
/* Chains hide the latency; the empty asm keeps the compiler from folding operations. */
enum { CHAINS = 12 };
#define EACH_CHAIN _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++)

#define PEAK_LOOP(NAME, TARGET, TYPE, OPERAND, START, LOAD, STEP, END)                                                 \
    __attribute__((target(TARGET))) static void NAME(uint64_t rounds)                                                  \
    {                                                                                                                  \
        TYPE a[CHAINS];                                                                                                \
        OPERAND x = LOAD(noise), y = LOAD(noise + 64);                                                                 \
        EACH_CHAIN a[i] = START(i);                                                                                    \
        for (; rounds > 0; rounds--) {                                                                                 \
            EACH_CHAIN                                                                                                 \
            {                                                                                                          \
                STEP;                                                                                                  \
                __asm__ volatile("" : "+v"(x), "+v"(y), "+v"(a[i]));                                                   \
            }                                                                                                          \
        }                                                                                                              \
        float out[16];                                                                                                 \
        EACH_CHAIN                                                                                                     \
        {                                                                                                              \
            END(out, a[i]);                                                                                            \
            sink = out[0];                                                                                             \
        }                                                                                                              \
    }
#define LOAD256(p) _mm256_load_ps((const float *)(const void *)(p))
#define LOAD256I(p) _mm256_load_si256((const __m256i *)(const void *)(p))
#define END256I(out, a) _mm256_storeu_si256((__m256i *)(void *)(out), a)
#define START256(i) _mm256_set1_ps((float)(i))
#define ONES256 _mm256_set1_epi16(1)
PEAK_LOOP(f32_avx2, "avx2,fma", __m256, __m256, START256, LOAD256, a[i] = _mm256_fmadd_ps(x, y, a[i]), _mm256_storeu_ps)
PEAK_LOOP(int8_avx2, "avx2", __m256i, __m256i, _mm256_set1_epi32, LOAD256I,
          a[i] = _mm256_add_epi32(a[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, y), ONES256)), END256I)

#define LOAD512(p) _mm512_load_ps(p)
#define LOAD512I(p) _mm512_load_si512(p)
#define START512(i) _mm512_set1_ps((float)(i))
#define ONES512 _mm512_set1_epi16(1)
PEAK_LOOP(f32_avx512, "avx512f", __m512, __m512, START512, LOAD512, a[i] = _mm512_fmadd_ps(x, y, a[i]),
          _mm512_storeu_ps)
PEAK_LOOP(int8_avx512, "avx512f,avx512bw", __m512i, __m512i, _mm512_set1_epi32, LOAD512I,
          a[i] = _mm512_add_epi32(a[i], _mm512_madd_epi16(_mm512_maddubs_epi16(x, y), ONES512)), _mm512_storeu_si512)
PEAK_LOOP(bf16_avx512, "avx512f,avx512bf16", __m512, __m512i, START512, LOAD512I,
          a[i] = _mm512_dpbf16_ps(a[i], (__m512bh)x, (__m512bh)y), _mm512_storeu_ps)
PEAK_LOOP(vnni_avx512, "avx512f,avx512vnni", __m512i, __m512i, _mm512_set1_epi32, LOAD512I,
          a[i] = _mm512_dpbusd_epi32(a[i], x, y), _mm512_storeu_si512)

/* One tile product is 16 x 16 results of 32 (bf16) or 64 (int8) products. Two tiles of each side give four products. */
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
        _tile_loadd(4, noise, 64);                                                                                     \
        _tile_loadd(5, noise + 1024, 64);                                                                              \
        _tile_loadd(6, noise + 2048, 64);                                                                              \
        _tile_loadd(7, noise + 3072, 64);                                                                              \
        for (; rounds > 0; rounds--) {                                                                                 \
            PRODUCT(0, 4, 6);                                                                                          \
            PRODUCT(1, 4, 7);                                                                                          \
            PRODUCT(2, 5, 6);                                                                                          \
            PRODUCT(3, 5, 7);                                                                                          \
        }                                                                                                              \
        _tile_release();                                                                                               \
    }
TILE_LOOP(bf16_amx, "amx-bf16", _tile_dpbf16ps)
TILE_LOOP(int8_amx, "amx-int8", _tile_dpbusd)

static bool has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
static bool has_avx512(void) { return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"); }
static bool has_vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

static bool has_bf16(void)
{
    unsigned a, b, c, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(1));
    return has_avx512() && (a >> 5 & 1);
}

/* The operating system hands out tile registers only on request. */
static bool has_amx(void)
{
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    unsigned a, b, c, d;
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
    const bool has = (d >> 22 & 1) && (d >> 24 & 1) && (d >> 25 & 1);
    return has && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}

static const peak_loop peak_loops[] = {
    {"avx2", CHAINS * 8 * 2, f32_avx2, has_avx2},
    {"avx2-int8", CHAINS * 32 * 2, int8_avx2, has_avx2},
    {"avx512", CHAINS * 16 * 2, f32_avx512, has_avx512},
    {"avx512-int8", CHAINS * 64 * 2, int8_avx512, has_avx512},
    {"avx512-bf16", CHAINS * 32 * 2, bf16_avx512, has_bf16},
    {"avx512-vnni", CHAINS * 64 * 2, vnni_avx512, has_vnni},
    {"amx-bf16", 4.0 * 16 * 16 * 32 * 2, bf16_amx, has_amx},
    {"amx-int8", 4.0 * 16 * 16 * 64 * 2, int8_amx, has_amx},
};
#elif defined(__aarch64__)
enum { CHAINS = 16 };

static void f32_neon(uint64_t rounds)
{
    float32x4_t a[CHAINS], x = vld1q_f32((const float *)(const void *)noise), y = x;
    for (int i = 0; i < CHAINS; i++)
        a[i] = vdupq_n_f32((float)i);
    for (; rounds > 0; rounds--) {
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++)
        {
            a[i] = vfmaq_f32(a[i], x, y);
            __asm__ volatile("" : "+w"(x), "+w"(y), "+w"(a[i]));
        }
    }
    for (int i = 0; i < CHAINS; i++)
        sink = vgetq_lane_f32(a[i], 0);
}

__attribute__((target("arch=armv8.2-a+dotprod"))) static void int8_dotprod(uint64_t rounds)
{
    int32x4_t a[CHAINS];
    int8x16_t x = vld1q_s8((const int8_t *)noise), y = x;
    for (int i = 0; i < CHAINS; i++)
        a[i] = vdupq_n_s32(i);
    for (; rounds > 0; rounds--) {
        _Pragma("GCC unroll 16") for (int i = 0; i < CHAINS; i++)
        {
            a[i] = vdotq_s32(a[i], x, y);
            __asm__ volatile("" : "+w"(x), "+w"(y), "+w"(a[i]));
        }
    }
    for (int i = 0; i < CHAINS; i++)
        sink = (float)vgetq_lane_s32(a[i], 0);
}

static bool has_neon(void) { return true; }
static bool has_dotprod(void) { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }

static const peak_loop peak_loops[] = {
    {"neon", CHAINS * 4 * 2, f32_neon, has_neon},
    {"neon-dotprod", CHAINS * 16 * 2, int8_dotprod, has_dotprod},
};
#else
enum { LANES = 64 };

/* Plain C that compilers turn into whatever vectors there are. */
static void f32_plain(uint64_t rounds)
{
    float a[LANES], x = 0.75f, y = 0.25f;
    for (int i = 0; i < LANES; i++)
        a[i] = (float)i;
    for (; rounds > 0; rounds--)
        for (int i = 0; i < LANES; i++)
            a[i] = x * y + a[i];
    for (int i = 0; i < LANES; i++)
        sink = a[i];
}
static bool always(void) { return true; }

static const peak_loop peak_loops[] = {{"generic", LANES * 2, f32_plain, always}};
#endif

/* ---- reading ------------------------------------------------------------------------------------------------------ */

/* Processors differ in what reads fastest: one stream or several a thread; fetching ahead left to them or done by hand,
 * how far, and into which caches. */
typedef struct read_way {
    uint32_t streams, ahead; /* bytes fetched ahead by hand; 0: none */
    bool passing;            /* fetched as data that is used once */
} read_way;

static const read_way read_ways[] = {
    {1, 0, false},    {1, 1024, false}, {1, 2048, false}, {1, 4096, false}, {1, 8192, false}, {1, 16384, false},
    {1, 1024, true},  {1, 2048, true},  {1, 4096, true},  {1, 8192, true},  {2, 0, false},    {2, 1024, false},
    {2, 2048, false}, {2, 4096, false}, {2, 8192, false}, {2, 4096, true},  {4, 0, false},    {4, 1024, false},
    {4, 2048, false}, {4, 4096, false}, {4, 2048, true},
};
enum { PIECE = 1 << 20, STRIDE = 512 /* bytes of a stream at a time */ };

/* Reads a piece; what it returns depends on every byte. */
#define READ_LOOP(NAME, TARGET, TYPE)                                                                                  \
    TARGET static inline __attribute__((always_inline)) uint64_t NAME##_as(const uint8_t *p, size_t streams,           \
                                                                           size_t ahead, bool passing)                \
    {                                                                                                                  \
        enum { WIDE = sizeof(TYPE), VECTORS = STRIDE / WIDE };                                                         \
        TYPE a[VECTORS] = {{0}};                                                                                       \
        const size_t length = PIECE / streams;                                                                         \
        for (size_t at = 0; at < length; at += STRIDE)                                                                 \
            for (size_t s = 0; s < streams; s++) {                                                                     \
                const uint8_t *q = p + s * length + at;                                                                \
                for (size_t line = 0; ahead && line < STRIDE; line += 64) {                                            \
                    if (passing)                                                                                       \
                        __builtin_prefetch(q + ahead + line, 0, 0);                                                    \
                    else                                                                                               \
                        __builtin_prefetch(q + ahead + line, 0, 3);                                                    \
                }                                                                                                      \
                for (int k = 0; k < VECTORS; k++)                                                                      \
                    a[k] ^= *(const TYPE *)(const void *)(q + (size_t)k * WIDE);                                       \
            }                                                                                                          \
        for (int k = 1; k < VECTORS; k++)                                                                              \
            a[0] ^= a[k];                                                                                              \
        uint64_t all = 0;                                                                                              \
        for (size_t k = 0; k < WIDE / sizeof all; k++)                                                                 \
            all ^= a[0][k];                                                                                            \
        return all;                                                                                                    \
    }                                                                                                                  \
    TARGET static uint64_t NAME(const uint8_t *p, const read_way *w)                                                   \
    {                                                                                                                  \
        switch (w->streams * 4 + (w->ahead > 0 ? 2u : 0u) + w->passing) {                                                 \
        case 4: return NAME##_as(p, 1, 0, false);                                                                      \
        case 6: return NAME##_as(p, 1, w->ahead, false);                                                               \
        case 7: return NAME##_as(p, 1, w->ahead, true);                                                                \
        case 8: return NAME##_as(p, 2, 0, false);                                                                      \
        case 10: return NAME##_as(p, 2, w->ahead, false);                                                              \
        case 11: return NAME##_as(p, 2, w->ahead, true);                                                               \
        case 16: return NAME##_as(p, 4, 0, false);                                                                     \
        case 18: return NAME##_as(p, 4, w->ahead, false);                                                              \
        default: return NAME##_as(p, 4, w->ahead, true);                                                               \
        }                                                                                                              \
    }
typedef uint64_t words_16 __attribute__((vector_size(16)));
READ_LOOP(read_baseline, , words_16)
#if defined(__x86_64__)
typedef uint64_t words_32 __attribute__((vector_size(32)));
typedef uint64_t words_64 __attribute__((vector_size(64)));
READ_LOOP(read_avx2, __attribute__((target("avx2"))), words_32)
READ_LOOP(read_avx512, __attribute__((target("avx512f"))), words_64)
#endif

static uint64_t read_piece(const uint8_t *p, const read_way *w)
{
#if defined(__x86_64__)
    if (has_avx512())
        return read_avx512(p, w);
    if (has_avx2())
        return read_avx2(p, w);
#endif
    return read_baseline(p, w);
}

/* ---- threads ------------------------------------------------------------------------------------------------------ */

enum { KEPT = 3, /* ways measured each time, beside one challenger */ WAYS = COUNT_OF(read_ways) };

/* What threads read in one measurement, each way in its turn. */
typedef struct reading {
    double pieces[WAYS], seconds[WAYS]; /* of all threads */
} reading;

struct machine {
    uint32_t threads;
    uint8_t *mapped, *memory; /* memory: on a huge page's border */
    size_t mapped_bytes, pieces;
    size_t ways[KEPT + 1]; /* into read_ways; the fastest so far first, the challenger last */
    double scores[WAYS];   /* how fast each was so far, in bytes a second of the first measurement */
    /* the measurement that is going on */
    const size_t *turns;    /* ways that take turns, */
    size_t n_turns;         /* so many; or */
    const peak_loop *loop;  /* or, both NULL, filling the memory */
    double started, deadline;
    atomic_uint waiting;         /* threads that have not started */
    atomic_size_t next, done;    /* pieces or slices of rounds */
    pthread_mutex_t lock;        /* of `read` */
    reading read;
};

enum { SLICE = 1 << 13 /* rounds of a peak loop between two looks at the clock */ };
static const double TURN = 4e-3; /* seconds */

/* Reads until the time is over. All threads read in the same way, for some milliseconds, then in the next: what neighbours do
 * to the memory meanwhile meets all ways alike, so that the fastest is not the one that had a good moment. */
static void read_in_turns(machine *m)
{
    reading r = {0};
    for (double t = now(); t < m->deadline && !interrupted();) {
        const size_t w = m->turns[(size_t)((t - m->started) / TURN) % m->n_turns];
        sink = (float)read_piece(m->memory + atomic_fetch_add(&m->next, 1) % m->pieces * PIECE, &read_ways[w]);
        const double end = now();
        r.pieces[w]++;
        r.seconds[w] += end - t;
        t = end;
    }
    pthread_mutex_lock(&m->lock);
    for (size_t w = 0; w < WAYS; w++) {
        m->read.pieces[w] += r.pieces[w];
        m->read.seconds[w] += r.seconds[w];
    }
    pthread_mutex_unlock(&m->lock);
}

/* Threads take pieces from one counter until the time is over or Ctrl-C comes, as the engine's threads do: a thread that
 * a neighbour slows down then costs its own share only. */
static void *work(void *arg)
{
    machine *m = arg;
    size_t done = 0;
    atomic_fetch_sub(&m->waiting, 1);
    while (atomic_load(&m->waiting) > 0)
        sched_yield();
    if (m->turns) {
        read_in_turns(m);
    } else if (m->loop) {
        do {
            m->loop->run(SLICE);
            done++;
        } while (now() < m->deadline && !interrupted());
        atomic_fetch_add(&m->done, done);
    } else {
        for (size_t i; (i = atomic_fetch_add(&m->next, 1)) < m->pieces && !interrupted();)
            memset(m->memory + i * PIECE, (int)i, PIECE);
    }
    return NULL;
}

/* Slices a second, all threads together. */
static double run_all(machine *m, double seconds)
{
    pthread_t *threads = must(calloc(m->threads, sizeof *threads));
    uint32_t n = 0;
    atomic_store(&m->done, 0);
    atomic_store(&m->next, 0);
    atomic_store(&m->waiting, m->threads);
    m->deadline = now() + 3600;
    for (uint32_t i = 1; i < m->threads; i++) {
        if (pthread_create(&threads[n], NULL, work, m))
            atomic_fetch_sub(&m->waiting, 1);
        else
            n++;
    }
    while (atomic_load(&m->waiting) > 1)
        sched_yield();
    m->started = now();
    m->deadline = m->started + seconds;
    work(m);
    for (uint32_t i = 0; i < n; i++)
        pthread_join(threads[i], NULL);
    const double taken = now() - m->started;
    free(threads);
    return (double)atomic_load(&m->done) / taken;
}

/* Measures n ways beside each other: bytes a second of each that had a turn. */
static void read_rates(machine *m, double rates[WAYS], const size_t *ways, size_t n, double seconds)
{
    m->turns = ways;
    m->n_turns = n;
    m->read = (reading){0};
    run_all(m, seconds);
    m->turns = NULL;
    for (size_t w = 0; w < WAYS; w++)
        rates[w] = m->read.seconds[w] > 0 ? m->read.pieces[w] * PIECE / m->read.seconds[w] * m->threads : 0;
}

/* Ways by score, the best first. */
static void sort_ways(size_t *ways, size_t n, const double scores[WAYS])
{
    for (size_t i = 1; i < n; i++)
        for (size_t k = i; k > 0 && scores[ways[k]] > scores[ways[k - 1]]; k--) {
            const size_t way = ways[k];
            ways[k] = ways[k - 1];
            ways[k - 1] = way;
        }
}

static void choose_ways(machine *m)
{
    size_t all[WAYS];
    for (size_t w = 0; w < WAYS; w++)
        all[w] = w;
    read_rates(m, m->scores, all, WAYS, 2);
    sort_ways(all, WAYS, m->scores);
    memcpy(m->ways, all, sizeof m->ways);
}

void machine_set_threads(machine *m, uint32_t threads)
{
    cpu_set_t set;
    if (threads == 0)
        threads = sched_getaffinity(0, sizeof set, &set) ? 1u : (uint32_t)CPU_COUNT(&set);
    if (threads == m->threads)
        return;
    m->threads = threads;
    choose_ways(m);
}

machine *machine_new(uint32_t threads)
{
    enum { HUGE_PAGE = 2 << 20 };
    machine *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    fill_noise();
    for (size_t bytes = (size_t)1 << 30; bytes >= (size_t)1 << 26 && !m->memory; bytes /= 2) {
        void *p = mmap(NULL, bytes + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (p == MAP_FAILED)
            continue;
        m->mapped = p;
        m->mapped_bytes = bytes + HUGE_PAGE;
        m->memory = m->mapped + (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
        m->pieces = bytes / PIECE;
        (void)madvise(m->memory, bytes, MADV_HUGEPAGE);
    }
    if (!m->memory) {
        free(m);
        return NULL;
    }
    pthread_mutex_init(&m->lock, NULL);
    m->threads = 1;
    run_all(m, 0); /* fills the memory */
    m->threads = 0;
    machine_set_threads(m, threads);
    return m;
}

void machine_free(machine *m)
{
    if (!m)
        return;
    munmap(m->mapped, m->mapped_bytes);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* ---- facts and measurements ----------------------------------------------------------------------------------------- */

const char *machine_cpu(void)
{
    static char name[128];
    char line[256];
    FILE *f = *name ? NULL : fopen("/proc/cpuinfo", "r");
    while (f && fgets(line, sizeof line, f)) {
        char *value = strchr(line, ':');
        if (value && !strncmp(line, "model name", 10)) {
            value[strcspn(value, "\n")] = '\0';
            snprintf(name, sizeof name, "%.*s", (int)sizeof name - 1, value + 2);
            break;
        }
    }
    if (f)
        fclose(f);
    return *name ? name : "unknown processor";
}

/* The rate is that of the way that was fastest in the measurements before: the fastest of this one would be the luckiest.
 * Afterwards this one counts, too. Neighbours may have spoilt the first choice: each time another way is tried beside the
 * kept ones, and takes the place of the last of them if it has done better by now. */
double machine_read_bandwidth(machine *m, double seconds)
{
    enum { MEMORY = 8 }; /* measurements that a score is made of, about */
    double rates[WAYS], kept_rates = 0, kept_scores = 0;
    read_rates(m, rates, m->ways, KEPT + 1, seconds);
    const double rate = rates[m->ways[0]];
    for (size_t k = 0; k < KEPT; k++) {
        kept_rates += rates[m->ways[k]];
        kept_scores += m->scores[m->ways[k]];
    }
    for (size_t k = 0; k <= KEPT && kept_rates > 0; k++) { /* bandwidth itself comes and goes: only ratios count */
        double *score = &m->scores[m->ways[k]];
        *score += (rates[m->ways[k]] * kept_scores / kept_rates - *score) / MEMORY;
    }
    const size_t last = m->ways[KEPT];
    sort_ways(m->ways, KEPT + 1, m->scores);
    size_t other = last;
    for (bool chosen = true; chosen;) {
        chosen = false;
        other = (other + 1) % WAYS;
        for (int k = 0; k < KEPT; k++)
            chosen |= m->ways[k] == other;
    }
    m->ways[KEPT] = other;
    return rate;
}

const char *machine_read_way(const machine *m)
{
    static char text[96];
    const read_way *w = &read_ways[m->ways[0]];
    snprintf(text, sizeof text, "%u stream%s a thread", w->streams, w->streams > 1 ? "s" : "");
    const size_t n = strlen(text);
    if (w->ahead)
        snprintf(text + n, sizeof text - n, ", fetched %u bytes ahead%s", w->ahead, w->passing ? " past the caches" : "");
    return text;
}

static const peak_loop *find_peak(const char *name)
{
    for (size_t i = 0; name && i < COUNT_OF(peak_loops); i++)
        if (!strcmp(peak_loops[i].name, name))
            return peak_loops[i].here() ? &peak_loops[i] : NULL;
    return NULL;
}

const char *machine_peak_at(size_t i)
{
    for (size_t k = 0; k < COUNT_OF(peak_loops); k++)
        if (peak_loops[k].here() && i-- == 0)
            return peak_loops[k].name;
    return NULL;
}

bool machine_has_peak(const char *name)
{
    return find_peak(name) != NULL;
}

double machine_peak(machine *m, const char *name, double seconds)
{
    m->loop = find_peak(name);
    const double rate = m->loop ? run_all(m, seconds) * SLICE * m->loop->operations : 0;
    m->loop = NULL;
    return rate;
}
