/*
 * cpu_backend.c — the cpu backend's vtable: choice of kernels, weights, buffers, states, and the operations that work
 * row by row. Products are in cpu_linear.c, the cell in cpu_mlstm.c.
 */
#include "cpu_internal.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#if defined(__linux__)
#include <sys/syscall.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#include <unistd.h>

/* ---- choice of kernels ------------------------------------------------------------------------------------------ */

#if defined(__x86_64__)
/* The matrix unit's state must be granted by the operating system, once for the whole process. */
static bool matrix_unit(void)
{
#if defined(__linux__)
    enum { GET_MASK = 0x1022, REQUEST = 0x1023, TILE_DATA = 18, TILE = 1 << 24, BF16 = 1 << 22 };
    uint32_t a, b, c, d = 0;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & TILE) || !(d & BF16)) return false;
    unsigned long granted = 0;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0 && syscall(SYS_arch_prctl, GET_MASK, &granted) == 0 &&
           (granted >> TILE_DATA & 1);
#else
    return false;
#endif
}
#endif

/* XLSTM_CPU_* bits of what this machine can run and this build holds. */
static uint32_t machine_features(void)
{
    uint32_t bits = XLSTM_CPU_SCALAR;
#if defined(__x86_64__)
    __builtin_cpu_init();
    uint32_t a, b, c = 0, d;
    bool half = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && half) bits |= XLSTM_CPU_AVX2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        bits |= XLSTM_CPU_AVX512;
        if (__builtin_cpu_supports("avx512bf16")) bits |= XLSTM_CPU_AVX512_BF16;
        if (__builtin_cpu_supports("avx512vnni")) bits |= XLSTM_CPU_AVX512_VNNI;
        /* cpu_amx.c is compiled for both */
        if ((bits & XLSTM_CPU_AVX512_BF16) && (bits & XLSTM_CPU_AVX512_VNNI) && matrix_unit()) bits |= XLSTM_CPU_AMX;
    }
#elif defined(__aarch64__)
    bits |= XLSTM_CPU_NEON;
#if defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) bits |= XLSTM_CPU_DOTPROD;
#elif defined(__ARM_FEATURE_DOTPROD)
    bits |= XLSTM_CPU_DOTPROD;
#endif
#endif
    return bits;
}

/* Replaces block-format products of the chosen table by those of an extension. */
static void add_products(xl_cpu *c, const xl_cpu_product_fn *products)
{
    for (int d = 0; d < XLSTM_DTYPE_COUNT; d++)
        if (products[d]) c->kernels.product[d].fn = products[d];
}

/* Extensions of the chosen table that have kernels of their own. */
static void add_extensions(xl_cpu *c, uint32_t allowed)
{
    const char *names[3] = {"", "", ""};
#if defined(__x86_64__)
    if (c->kernels.bit == XLSTM_CPU_AVX512 && (allowed & XLSTM_CPU_AVX512_BF16)) {
        c->kernels.product_bf16[XLSTM_BF16] = (xl_cpu_product){xl_cpu_product_bf16_avx512bf16, XL_CPU_PACK_BF16};
        names[0] = "-bf16";
    }
    if (c->kernels.bit == XLSTM_CPU_AVX512 && (allowed & XLSTM_CPU_AVX512_VNNI)) {
        add_products(c, xl_cpu_products_avx512vnni);
        names[1] = "-vnni";
    }
    if (c->kernels.bit == XLSTM_CPU_AVX512 && (allowed & XLSTM_CPU_AMX)) {
        c->kernels.product_bf16[XLSTM_BF16] = xl_cpu_products_amx[0];
        c->kernels.product[XLSTM_BF16] = xl_cpu_products_amx[1];
        c->kernels.pack[XL_CPU_PACK_TILES] = xl_cpu_packs_amx[0];
        c->kernels.pack[XL_CPU_PACK_SPLIT] = xl_cpu_packs_amx[1];
        c->kernels.tile[XL_CPU_PACK_TILES] = c->kernels.tile[XL_CPU_PACK_SPLIT] = 16;
        names[2] = "-amx";
    }
#elif defined(__aarch64__)
    if (c->kernels.bit == XLSTM_CPU_NEON && (allowed & XLSTM_CPU_DOTPROD)) {
        add_products(c, xl_cpu_products_dotprod);
        names[0] = "-dotprod";
    }
#else
    (void)allowed;
    (void)add_products;
#endif
    snprintf(c->features, sizeof c->features, "%s%s%s%s", c->kernels.name, names[0], names[1],
             names[2]);
}

static int choose_kernels(xl_cpu *c, xlstm_error *err)
{
    static const xl_cpu_kernels *const tables[] = {
#if defined(__x86_64__)
        &xl_cpu_kernels_avx512, &xl_cpu_kernels_avx2,
#elif defined(__aarch64__)
        &xl_cpu_kernels_neon,
#endif
        &xl_cpu_kernels_generic,
    };
    uint32_t found = machine_features(), allowed = c->o.cpu_mask ? found & c->o.cpu_mask : found;
    for (size_t i = 0; i < XL_COUNT(tables); i++) {
        if (!(tables[i]->bit & allowed)) continue;
        c->kernels = *tables[i];
#if defined(__x86_64__)
        c->kernels.kept = __builtin_cpu_is("intel"); /* measured: docs/performance.md */
#endif
        add_extensions(c, allowed);
        return XLSTM_OK;
    }
    return xl_fail(err, XLSTM_E_UNSUPPORTED,
                   "cpu backend: none of the allowed instruction sets (mask 0x%x) is on this machine (0x%x)",
                   c->o.cpu_mask, found);
}

/* ---- pieces of work ----------------------------------------------------------------------------------------------- */

typedef struct piece_job {
    xl_task_fn fn;
    void *arg;
} piece_job;

static void run_piece(void *arg, uint32_t piece, uint32_t worker)
{
    const piece_job *job = arg;
#if defined(__x86_64__)
    enum { FLUSH_RESULTS = 0x8000, FLUSH_OPERANDS = 0x0040 };
    unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | FLUSH_RESULTS | FLUSH_OPERANDS);
    job->fn(job->arg, piece, worker);
    _mm_setcsr(mode);
#elif defined(__aarch64__)
    enum { FLUSH = 1 << 24 };
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | FLUSH));
    job->fn(job->arg, piece, worker);
    __asm__ volatile("msr fpcr, %0" : : "r"(mode));
#else
    job->fn(job->arg, piece, worker);
#endif
}

void xl_cpu_run(xl_cpu *c, uint32_t pieces, xl_task_fn fn, void *arg)
{
    piece_job job = {fn, arg};
    xl_pool_run(c->pool, pieces, run_piece, &job);
}

/* ---- open and close --------------------------------------------------------------------------------------------- */

static void cpu_close(xl_backend *be)
{
    if (!be) return;
    xl_cpu *c = xl_cpu_of(be);
    for (uint32_t t = 0; c->workers && t < c->threads; t++) {
        xl_cpu_worker *w = &c->workers[t];
        void *const all[] = {w->sums, w->decoded, w->q, w->k_turned, w->k_weighed, w->p, w->log_weight,
                             w->num, w->v, w->C, w->n, w->row};
        for (size_t i = 0; i < XL_COUNT(all); i++) xl_release(all[i]);
    }
    xl_release(c->workers);
    for (int p = 0; p < XL_CPU_PACKS; p++) xl_release(c->packed[p]);
    void *const gates[] = {c->gates.i, c->gates.lf, c->gates.m, c->gates.carry, c->gates.weight, c->gates.den};
    for (size_t i = 0; i < XL_COUNT(gates); i++) xl_release(gates[i]);
    xl_release(c->n_start);
    xl_release(c->faults);
    xl_pool_free(c->pool);
    xl_release(c->ahead); /* which the pool's threads look at until they end */
    xl_release(c);
}

/* Sets *out to count * each floats; false when memory is short or the product overflows. */
static bool floats(float **out, size_t count, size_t each, xlstm_error *err)
{
    size_t n;
    if (!xl_mul(&n, count, each)) {
        xl_fail(err, XLSTM_E_MEMORY, "cpu backend: scratch of %zu x %zu numbers is too large", count, each);
        return false;
    }
    *out = xl_calloc(XL_MAX(n, (size_t)1), sizeof(float), err);
    return *out != NULL;
}

static bool worker_scratch(xl_cpu *c, xl_cpu_worker *w, xlstm_error *err)
{
    size_t dq = c->o.head_qk, L = c->piece_max, T = XL_MIN(L, (size_t)XL_CPU_QUERY_TILE), W = c->columns;
    size_t each = XL_MAX((size_t)c->kernels.panel * XL_CPU_PANELS, (size_t)XL_CPU_DOT_ROWS);
    return floats(&w->sums, XL_CPU_MAX_ROWS, each, err) && floats(&w->q, T, dq, err) &&
           floats(&w->k_turned, dq, c->piece_row, err) && floats(&w->k_weighed, L, dq, err) &&
           floats(&w->p, T, c->piece_row, err) && floats(&w->log_weight, 1, c->piece_row, err) &&
           floats(&w->num, T, W, err) && floats(&w->v, L, W, err) && floats(&w->n, 1, dq, err) &&
           floats(&w->row, 1, XL_MAX(dq, (size_t)c->o.head_v), err) &&
           (c->layout.dtype == XLSTM_F32 || floats(&w->C, dq, W, err));
}

/* While the fastest threads wait, memory rests. So they fetch what they begin the next product with, to a part of the second-level
 * cache. Two or three threads wait too little for it to pay (docs/performance.md). */
static bool fetch_ahead(xl_cpu *c, xlstm_error *err)
{
    enum { LEAST_THREADS = 4, USUAL = 1 << 20, PART = 4 };
    if (c->threads < LEAST_THREADS) return true;
    long cache = 0;
#ifdef _SC_LEVEL2_CACHE_SIZE
    cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#endif
    c->ahead_bytes = (cache > 0 ? (size_t)cache : USUAL) / PART;
    c->products = 4 * c->o.num_blocks + 1;
    c->ahead = xl_calloc((size_t)c->products * c->threads, sizeof *c->ahead, err);
    return c->ahead != NULL;
}

static int cpu_open(xl_backend **out, const xl_backend_options *options, xlstm_error *err)
{
    *out = NULL;
    xl_cpu *c = xl_calloc(1, sizeof *c, err);
    if (!c) return XLSTM_E_MEMORY;
    c->base.ops = &xl_cpu_backend;
    c->o = *options;
    int result = choose_kernels(c, err);
    if (result == XLSTM_OK)
        result = xl_state_layout_make(&c->layout, options->state, options->num_blocks, options->num_heads,
                                      options->head_qk, options->head_v, err);
    if (result == XLSTM_OK && c->layout.dtype == XLSTM_F64)
        result = xl_fail(err, XLSTM_E_UNSUPPORTED,
                         "cpu backend: a float64 state needs the backend \"reference64\"; here float32, bfloat16, int8");
    if (result == XLSTM_OK) result = xl_pool_new(&c->pool, options->threads, err);
    if (result != XLSTM_OK) goto fail;
    c->threads = xl_pool_threads(c->pool);

    size_t rows = options->max_rows, heads = options->num_heads;
    c->piece_max = XL_MIN(rows, (size_t)options->chunk_size);
    c->piece_row = xl_round_up(c->piece_max, XL_ALIGN / sizeof(float));
    /* The scores of a chunk are computed for every share of the columns again. */
    uint32_t most = options->num_heads >= 4 * c->threads ? 2 * XL_CPU_COLUMNS : XL_CPU_COLUMNS;
    c->columns = c->layout.dtype == XLSTM_I8 ? options->head_v : XL_MIN(options->head_v, most);
    result = XLSTM_E_MEMORY;
    c->faults = xl_calloc(rows, sizeof *c->faults, err);
    c->workers = xl_calloc(c->threads, sizeof *c->workers, err);
    if (!c->faults || !c->workers || !fetch_ahead(c, err)) goto fail;
    if (!floats(&c->gates.i, heads, rows, err) || !floats(&c->gates.lf, heads, rows, err) ||
        !floats(&c->gates.m, heads, rows, err) || !floats(&c->gates.carry, heads, rows, err) ||
        !floats(&c->gates.weight, heads, rows, err) || !floats(&c->gates.den, heads, rows, err) ||
        !floats(&c->n_start, rows, heads * options->head_qk, err))
        goto fail;
    for (uint32_t t = 0; t < c->threads; t++)
        if (!worker_scratch(c, &c->workers[t], err)) goto fail;
    *out = &c->base;
    return XLSTM_OK;
fail:
    cpu_close(&c->base);
    return result;
}

static void cpu_describe(const xl_backend *be, char *out, size_t size)
{
    const xl_cpu *c = (const xl_cpu *)be;
    snprintf(out, size, "cpu (%s%s, %u thread%s)", c->features, c->o.no_repack ? ", weights in place" : "", c->threads,
             c->threads == 1 ? "" : "s");
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

static void cpu_matrix_free(xl_backend *be, xl_matrix *m)
{
    (void)be;
    if (!m) return;
    xl_release(m->vector);
    xl_release(m->panels);
    xl_release(m);
}

/* The format a plain stored format is held in. */
static xlstm_dtype held_dtype(xlstm_dtype stored, xlstm_dtype hold)
{
    if (xl_dtype_get(stored)->block > 1) return stored;
    if (hold == XLSTM_BF16 || hold == XLSTM_F16) return hold;
    return stored == XLSTM_F64 ? XLSTM_F32 : stored;
}

static int new_vector(xl_matrix *m, const xl_tensor *t, const void *bytes, uint64_t row0, xlstm_error *err)
{
    size_t skip, size;
    if (!xl_dtype_row_bytes(&skip, t->dtype, row0) || !xl_dtype_row_bytes(&size, t->dtype, m->rows))
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "tensor %s: a vector of %s cannot be cut there", t->name,
                       xlstm_dtype_name(t->dtype));
    m->vector = xl_calloc(m->rows, sizeof(float), err);
    if (!m->vector) return XLSTM_E_MEMORY;
    xl_decode_row(m->vector, (const uint8_t *)bytes + skip, t->dtype, m->rows);
    m->dtype = XLSTM_F32;
    m->cols = 1;
    return XLSTM_OK;
}

static int cpu_matrix_new(xl_backend *be, xl_matrix **out, bool *borrows, const xl_tensor *t, const void *bytes,
                          uint64_t row0, uint64_t rows, xlstm_dtype hold, unsigned usage, xlstm_error *err)
{
    xl_cpu *c = xl_cpu_of(be);
    *out = NULL;
    *borrows = false;
    xl_matrix *m = xl_calloc(1, sizeof *m, err);
    if (!m) return XLSTM_E_MEMORY;
    m->rows = rows;
    int result;
    if (t->rank == 1) {
        result = new_vector(m, t, bytes, row0, err);
        if (result != XLSTM_OK) goto fail;
        *out = m;
        return XLSTM_OK;
    }
    m->cols = t->shape[1];
    m->dtype = held_dtype(t->dtype, hold);
    const xl_cpu_product *products = c->kernels.product;
    if (c->o.activations == XLSTM_BF16 && c->kernels.product_bf16[m->dtype].fn) products = c->kernels.product_bf16;
    m->product = products[m->dtype];
    if (!xl_dtype_row_bytes(&m->row_bytes, t->dtype, m->cols) || t->dtype == XLSTM_I8) {
        result = xl_fail(err, XLSTM_E_UNSUPPORTED, "tensor %s: rows of %zu elements do not fill %s blocks", t->name,
                         m->cols, xlstm_dtype_name(t->dtype));
        goto fail;
    }
    const uint8_t *first = (const uint8_t *)bytes + row0 * m->row_bytes;
    bool in_place = t->dtype == m->dtype && (c->o.no_repack || !m->product.fn);
    if (usage == XL_USE_ROWS || in_place) {
        m->lookup = m->dtype == t->dtype ? XLSTM_DTYPE_DEFAULT : m->dtype;
        m->dtype = t->dtype;
        m->bytes = first;
        *borrows = true;
    } else {
        result = xl_cpu_repack(c, m, first, t->dtype, m->row_bytes, err);
        if (result != XLSTM_OK) goto fail;
        if ((usage & XL_USE_ROWS) && xl_dtype_get(m->dtype)->block > 1) { /* tied: rows are looked up in the file */
            m->bytes = first;
            *borrows = true;
        }
    }
    if (usage & XL_USE_MATMUL) {
        result = xl_cpu_reserve(c, m, err);
        if (result != XLSTM_OK) goto fail;
    }
    *out = m;
    return XLSTM_OK;
fail:
    cpu_matrix_free(be, m);
    return result;
}

static size_t cpu_matrix_bytes(const xl_matrix *m)
{
    if (m->vector) return m->rows * sizeof(float);
    return m->panels ? m->total_bytes : m->rows * m->row_bytes;
}

/* ---- buffers and states ----------------------------------------------------------------------------------------- */

static void cpu_buffer_free(xl_backend *be, xl_buffer *b)
{
    (void)be;
    if (!b) return;
    xl_release(b->data);
    xl_release(b);
}

static int cpu_buffer_new(xl_backend *be, xl_buffer **out, size_t rows, size_t width, xlstm_error *err)
{
    *out = NULL;
    xl_buffer *b = xl_calloc(1, sizeof *b, err);
    if (!b) return XLSTM_E_MEMORY;
    b->width = width;
    if (!floats(&b->data, rows, width, err)) {
        cpu_buffer_free(be, b);
        return XLSTM_E_MEMORY;
    }
    *out = b;
    return XLSTM_OK;
}

static int cpu_buffer_read(xl_backend *be, const xl_buffer *b, size_t first, float *out, size_t n, xlstm_error *err)
{
    (void)be;
    (void)err;
    memcpy(out, b->data + first, n * sizeof *out);
    return XLSTM_OK;
}

static int cpu_buffer_write(xl_backend *be, xl_buffer *b, size_t first, const float *in, size_t n, xlstm_error *err)
{
    (void)err;
    xl_cpu *c = xl_cpu_of(be);
    c->kernels.round(b->data + first, in, n, c->o.activations);
    return XLSTM_OK;
}

static void cpu_store_free(xl_backend *be, xl_store *s)
{
    (void)be;
    if (!s) return;
    xl_release(s->bytes);
    xl_release(s);
}

static int cpu_store_new(xl_backend *be, xl_store **out, xlstm_error *err)
{
    *out = NULL;
    xl_store *s = xl_calloc(1, sizeof *s, err);
    if (!s) return XLSTM_E_MEMORY;
    s->bytes = xl_calloc(1, xl_cpu_of(be)->layout.total_bytes, err);
    if (!s->bytes) {
        cpu_store_free(be, s);
        return XLSTM_E_MEMORY;
    }
    *out = s;
    return XLSTM_OK;
}

static int cpu_store_zero(xl_backend *be, xl_store *s, xlstm_error *err)
{
    (void)err;
    memset(s->bytes, 0, xl_cpu_of(be)->layout.total_bytes);
    return XLSTM_OK;
}

static int cpu_store_copy(xl_backend *be, xl_store *to, const xl_store *from, xlstm_error *err)
{
    (void)err;
    memcpy(to->bytes, from->bytes, xl_cpu_of(be)->layout.total_bytes);
    return XLSTM_OK;
}

static int cpu_store_read(xl_backend *be, const xl_store *s, void *host, xlstm_error *err)
{
    (void)err;
    memcpy(host, s->bytes, xl_cpu_of(be)->layout.total_bytes);
    return XLSTM_OK;
}

static int cpu_store_write(xl_backend *be, xl_store *s, const void *host, xlstm_error *err)
{
    (void)err;
    memcpy(s->bytes, host, xl_cpu_of(be)->layout.total_bytes);
    return XLSTM_OK;
}

static const xl_state_layout *cpu_layout(const xl_backend *be) { return &((const xl_cpu *)be)->layout; }

/* ---- a pass ----------------------------------------------------------------------------------------------------- */

static int cpu_begin(xl_backend *be, const xl_batch *batch, bool *replay, xlstm_error *err)
{
    (void)err;
    xl_cpu *c = xl_cpu_of(be);
    c->batch = batch;
    c->product = 0;
    memset(c->faults, 0, batch->rows * sizeof *c->faults);
    *replay = false;
    return XLSTM_OK;
}

static int cpu_submit(xl_backend *be, uint32_t *faults, xlstm_error *err)
{
    (void)err;
    xl_cpu *c = xl_cpu_of(be);
    memcpy(faults, c->faults, c->batch->rows * sizeof *faults);
    c->batch = NULL;
    return XLSTM_OK;
}

/* Arguments of the operations that treat every row alike. */
typedef struct row_job {
    xl_cpu *c;
    float *y;
    const float *x, *z;
    const xl_matrix *matrix;
    const xl_norm *norm;
    uint32_t rows, width, fault;
    float cap;
    bool out_rows;
    void (*fn)(const struct row_job *job, size_t row);
    uint32_t pieces, least; /* least: fewest rows worth a piece; 0: one */
} row_job;

static void row_piece(void *arg, uint32_t piece, uint32_t worker)
{
    (void)worker;
    const row_job *job = arg;
    size_t first = (size_t)job->rows * piece / job->pieces, end = (size_t)job->rows * (piece + 1) / job->pieces;
    for (size_t row = first; row < end; row++) job->fn(job, row);
}

static void each_row(row_job *job)
{
    uint32_t least = XL_MAX(job->least, 1u);
    job->pieces = XL_MIN((job->rows + least - 1) / least, 4 * job->c->threads);
    xl_cpu_run(job->c, job->pieces, row_piece, job);
}

/* Norm statistics are rounded at every step only when norm_reduction_force_float32 is off. */
static xlstm_dtype stats_dtype(const xl_cpu *c) { return c->o.norm_float32 ? XLSTM_F32 : c->o.activations; }

/* Faults of gathered rows belong to the row they came from. */
static void fault_at(const row_job *job, size_t row, uint32_t code)
{
    xl_cpu_fault(job->c, job->out_rows ? job->c->batch->out_rows[row] : row, code);
}

static void embed_row(const row_job *job, size_t row)
{
    const xl_matrix *m = job->matrix;
    float *y = job->y + row * m->cols;
    size_t id = (size_t)job->c->batch->ids[row];
    if (m->bytes)
        xl_decode_row(y, m->bytes + id * m->row_bytes, m->dtype, m->cols);
    else
        xl_cpu_panel_row(job->c, y, m, id);
    if (m->lookup != XLSTM_DTYPE_DEFAULT) job->c->kernels.round(y, y, m->cols, m->lookup);
    job->c->kernels.round(y, y, m->cols, job->c->o.activations);
}

static void cpu_embed(xl_backend *be, xl_buffer *x, const xl_matrix *embedding)
{
    xl_cpu *c = xl_cpu_of(be);
    each_row(&(row_job){.c = c, .y = x->data, .matrix = embedding, .rows = c->batch->rows, .fn = embed_row});
}

static void rmsnorm_row(const row_job *job, size_t row)
{
    const xl_norm *n = job->norm;
    if (!job->c->kernels.rmsnorm(job->y + row * n->width, job->x + row * n->width, n->weight->vector,
                                 n->bias ? n->bias->vector : NULL, n->width, n->eps, stats_dtype(job->c),
                                 job->c->o.activations))
        fault_at(job, row, n->fault);
}

static void cpu_rmsnorm(xl_backend *be, xl_buffer *y, const xl_buffer *x, const xl_norm *norm, bool out_rows)
{
    xl_cpu *c = xl_cpu_of(be);
    each_row(&(row_job){.c = c, .y = y->data, .x = x->data, .norm = norm, .out_rows = out_rows,
                        .rows = out_rows ? c->batch->n_out : c->batch->rows, .fn = rmsnorm_row});
}

/* `row` counts heads of rows, so that a single row is work for several threads. */
static void mhnorm_head(const row_job *job, size_t row)
{
    xl_cpu *c = job->c;
    const xl_norm *n = job->norm;
    uint32_t dv = c->o.head_v;
    size_t channel = row % c->o.num_heads * dv, at = row * dv;
    if (!c->kernels.mhnorm_gate(job->y + at, job->x + at, job->z + at, n->weight->vector + channel,
                                n->bias ? n->bias->vector + channel : NULL, dv, n->eps, stats_dtype(c),
                                c->o.activations))
        xl_cpu_fault(c, row / c->o.num_heads, n->fault);
}

static void cpu_mhnorm_gate(xl_backend *be, xl_buffer *g, const xl_buffer *h, const xl_buffer *o, const xl_norm *norm)
{
    xl_cpu *c = xl_cpu_of(be);
    each_row(&(row_job){.c = c, .y = g->data, .x = h->data, .z = o->data, .norm = norm,
                        .rows = c->batch->rows * c->o.num_heads, .least = 1024 / c->o.head_v, .fn = mhnorm_head});
}

enum { SWIGLU_PART = 1024 };

/* `row` counts parts of all values, for the same reason. */
static void swiglu_part(const row_job *job, size_t row)
{
    size_t at = row * SWIGLU_PART, n = (size_t)job->c->batch->rows * job->width;
    job->c->kernels.swiglu(job->y + at, job->x + at, job->z + at, XL_MIN(n - at, (size_t)SWIGLU_PART),
                           job->c->o.activations);
}

static void cpu_swiglu(xl_backend *be, xl_buffer *a, const xl_buffer *gate, const xl_buffer *up)
{
    xl_cpu *c = xl_cpu_of(be);
    size_t n = (size_t)c->batch->rows * c->o.ffn_dim;
    each_row(&(row_job){.c = c, .y = a->data, .x = gate->data, .z = up->data, .width = c->o.ffn_dim,
                        .rows = (uint32_t)((n + SWIGLU_PART - 1) / SWIGLU_PART), .fn = swiglu_part});
}

static void add_row(const row_job *job, size_t row)
{
    size_t at = row * job->width;
    job->c->kernels.add(job->y + at, job->x + at, job->width, job->c->o.activations);
}

static void cpu_add(xl_backend *be, xl_buffer *x, const xl_buffer *y, uint32_t width)
{
    xl_cpu *c = xl_cpu_of(be);
    each_row(&(row_job){.c = c, .y = x->data, .x = y->data, .rows = c->batch->rows, .width = width, .fn = add_row});
}

static void gather_row(const row_job *job, size_t row)
{
    memcpy(job->y + row * job->width, job->x + (size_t)job->c->batch->out_rows[row] * job->width,
           job->width * sizeof(float));
}

static void cpu_gather(xl_backend *be, xl_buffer *y, const xl_buffer *x, uint32_t width)
{
    xl_cpu *c = xl_cpu_of(be);
    each_row(&(row_job){.c = c, .y = y->data, .x = x->data, .rows = c->batch->n_out, .width = width,
                        .fn = gather_row});
}

static void softcap_row(const row_job *job, size_t row)
{
    if (!job->c->kernels.softcap(job->y + row * job->width, job->width, job->cap)) fault_at(job, row, job->fault);
}

static void cpu_softcap(xl_backend *be, xl_buffer *logits, uint32_t width, float cap, uint32_t fault)
{
    xl_cpu *c = xl_cpu_of(be);
    each_row(&(row_job){.c = c, .y = logits->data, .rows = c->batch->n_out, .width = width, .cap = cap, .fault = fault,
                        .out_rows = true, .fn = softcap_row});
}

const xl_backend_ops xl_cpu_backend = {
    .name = "cpu",
    .open = cpu_open,
    .close = cpu_close,
    .describe = cpu_describe,
    .matrix_new = cpu_matrix_new,
    .matrix_free = cpu_matrix_free,
    .matrix_bytes = cpu_matrix_bytes,
    .buffer_new = cpu_buffer_new,
    .buffer_free = cpu_buffer_free,
    .buffer_read = cpu_buffer_read,
    .buffer_write = cpu_buffer_write,
    .store_new = cpu_store_new,
    .store_free = cpu_store_free,
    .store_zero = cpu_store_zero,
    .store_copy = cpu_store_copy,
    .store_read = cpu_store_read,
    .store_write = cpu_store_write,
    .layout = cpu_layout,
    .begin = cpu_begin,
    .embed = cpu_embed,
    .rmsnorm = cpu_rmsnorm,
    .linear = xl_cpu_linear,
    .mlstm = xl_cpu_mlstm,
    .mhnorm_gate = cpu_mhnorm_gate,
    .swiglu = cpu_swiglu,
    .add = cpu_add,
    .gather = cpu_gather,
    .softcap = cpu_softcap,
    .submit = cpu_submit,
};
