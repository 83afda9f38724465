/*
 * cpu_linear.c — products with weights: repacking a matrix into panels, packing activations, and cutting a group of
 * products into pieces of one panel (or a few rows in place) for the pool.
 */
#include "cpu_internal.h"

/* ---- repacking -------------------------------------------------------------------------------------------------- */

enum { REPACK_COLUMNS = 256 }; /* even */

typedef struct repack_job {
    const xl_cpu *c;
    xl_matrix *m;
    const uint8_t *bytes;
    xlstm_dtype stored;
    size_t row_bytes;
    float *decoded; /* [threads][cols] when the format changes; NULL otherwise */
} repack_job;

/* Bytes of a weight row inside a panel. */
static size_t panel_row_bytes(const xl_matrix *m)
{
    const xl_dtype_traits *t = xl_dtype_get(m->dtype);
    if (m->dtype == XLSTM_BF16) return (m->cols + (m->cols & 1)) * 2;
    return m->cols / t->block * t->block_bytes;
}

/* Copies n items of `size` bytes of row r to their places in a panel: items of a row are `width` items apart. */
static uint8_t *spread_items(uint8_t *panel, size_t width, size_t r, const uint8_t *in, size_t n, size_t size)
{
    for (size_t i = 0; i < n; i++) memcpy(panel + (i * width + r) * size, in + i * size, size);
    return panel + n * width * size;
}

/* Row r of a panel from a row of ggml blocks; the layouts are described in cpu_quant.h. */
static void place_blocks(uint8_t *panel, size_t width, size_t r, const uint8_t *in, const xl_matrix *m)
{
    const xl_dtype_traits *t = xl_dtype_get(m->dtype);
    for (size_t k = 0; k < m->cols; k += t->block, in += t->block_bytes) {
        uint8_t scratch[32];
        switch (m->dtype) {
        case XLSTM_Q8_0:
            panel = spread_items(panel, width, r, in, 1, 2);
            for (int i = 0; i < 32; i++) scratch[i] = in[2 + i] ^ 0x80;
            panel = spread_items(panel, width, r, scratch, 8, 4);
            break;
        case XLSTM_Q4_0:
            panel = spread_items(panel, width, r, in, 1, 2);
            panel = spread_items(panel, width, r, in + 2, 4, 4);
            break;
        case XLSTM_Q6_K:
            panel = spread_items(panel, width, r, in + 208, 1, 2);
            panel = spread_items(panel, width, r, in + 192, 16, 1);
            for (int g = 0; g < 16; g++) {
                panel = spread_items(panel, width, r, in + 128 + 4 * g, 1, 4);
                panel = spread_items(panel, width, r, in + g / 8 * 64 + g % 8 * 4, 1, 4);
                panel = spread_items(panel, width, r, in + g / 8 * 64 + g % 8 * 4 + 32, 1, 4);
            }
            break;
        default: /* Q4_K, Q5_K */
            panel = spread_items(panel, width, r, in, 2, 2);
            panel = spread_items(panel, width, r, in + 4, (t->block_bytes - 4) / 4, 4);
        }
    }
}

/* Columns k .. k+n-1 of row r of a panel from a plain row of the panel's own format; k is even. */
static void place_plain(uint8_t *panel, size_t width, size_t r, const uint8_t *in, const xl_matrix *m, size_t k, size_t n)
{
    size_t size = m->dtype == XLSTM_F32 ? 4 : 2;
    panel += k * width * size;
    in += k * size;
    if (m->dtype != XLSTM_BF16) {
        spread_items(panel, width, r, in, n, size);
        return;
    }
    panel = spread_items(panel, width, r, in, n / 2, 4);
    if (n & 1) {
        uint8_t last[4] = {in[2 * n - 2], in[2 * n - 1], 0, 0};
        spread_items(panel, width, r, last, 1, 4);
    }
}

static void repack_panel(void *arg, uint32_t p, uint32_t worker)
{
    const repack_job *job = arg;
    const xl_matrix *m = job->m;
    size_t first = (size_t)p * job->c->kernels.panel, width = xl_cpu_panel_width(job->c, m, p);
    uint8_t *panel = m->panels + p * m->panel_bytes;
    /* rows past the end are zeros */
    if (first + width > m->rows) memset(panel, 0, panel_row_bytes(m) * width);
    /* Plain rows that need no conversion: some columns of all rows at a time, so that this part of the panel stays in the
     * first-level cache. */
    bool blocks = xl_dtype_get(m->dtype)->block > 1;
    size_t step = blocks || job->decoded ? m->cols : REPACK_COLUMNS;
    for (size_t k = 0; k < m->cols; k += step)
        for (size_t r = 0; r < width && first + r < m->rows; r++) {
            const uint8_t *in = job->bytes + (first + r) * job->row_bytes;
            if (job->decoded) {
                float *row = job->decoded + worker * m->cols;
                xl_decode_row(row, in, job->stored, m->cols);
                if (m->dtype != XLSTM_F32) xl_encode_row(row, row, m->dtype, m->cols); /* narrower: from the front */
                in = (const uint8_t *)row;
            }
            if (blocks)
                place_blocks(panel, width, r, in, m);
            else
                place_plain(panel, width, r, in, m, k, XL_MIN(m->cols - k, step));
        }
}

int xl_cpu_repack(xl_cpu *c, xl_matrix *m, const uint8_t *bytes, xlstm_dtype stored, size_t row_bytes,
                  xlstm_error *err)
{
    size_t panels = (m->rows + c->kernels.panel - 1) / c->kernels.panel;
    m->panel_bytes = panel_row_bytes(m) * c->kernels.panel;
    size_t last = panel_row_bytes(m) * xl_cpu_panel_width(c, m, panels - 1);
    m->total_bytes = (panels - 1) * m->panel_bytes + last;
    m->panels = xl_alloc(m->total_bytes, err);
    if (!m->panels) return XLSTM_E_MEMORY;
    repack_job job = {c, m, bytes, stored, row_bytes, NULL};
    if (stored != m->dtype) {
        job.decoded = xl_calloc(c->threads * m->cols, sizeof(float), err);
        if (!job.decoded) return XLSTM_E_MEMORY;
    }
    xl_pool_run(c->pool, (uint32_t)panels, repack_panel, &job);
    xl_release(job.decoded);
    return XLSTM_OK;
}

/* One weight row out of its panel, as float32. */
void xl_cpu_panel_row(const xl_cpu *c, float *out, const xl_matrix *m, size_t row)
{
    size_t p = row / c->kernels.panel, r = row % c->kernels.panel, width = xl_cpu_panel_width(c, m, p);
    const uint8_t *panel = m->panels + p * m->panel_bytes;
    for (size_t k = 0; k < m->cols; k++) {
        uint16_t h;
        switch (m->dtype) {
        case XLSTM_F32:
            memcpy(&out[k], panel + (k * width + r) * 4, 4);
            break;
        case XLSTM_F16:
            memcpy(&h, panel + (k * width + r) * 2, 2);
            out[k] = xl_f16_to_f32(h);
            break;
        default:
            memcpy(&h, panel + ((k / 2 * width + r) * 2 + k % 2) * 2, 2);
            out[k] = xl_bf16_to_f32(h);
        }
    }
}

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* Bytes of one packed row. */
static size_t packed_row(xl_cpu_pack pack, size_t cols)
{
    switch (pack) {
    case XL_CPU_PACK_F32:
        return (cols + (cols & 1)) * 4;
    case XL_CPU_PACK_BF16:
        return (cols + (cols & 1)) * 2;
    case XL_CPU_PACK_Q8:
        return xl_cpu_q8_row(cols);
    case XL_CPU_PACK_SPLIT:
        return xl_round_up(cols, 32) * 6;
    default:
        return xl_round_up(cols, 32) * 2;
    }
}

int xl_cpu_reserve(xl_cpu *c, const xl_matrix *m, xlstm_error *err)
{
    if (!m->panels) {
        if (xl_dtype_get(m->dtype)->block == 1 || m->cols <= c->decoded_cols) return XLSTM_OK;
        for (uint32_t t = 0; t < c->threads; t++) {
            xl_release(c->workers[t].decoded);
            c->workers[t].decoded = xl_calloc(m->cols, sizeof(float), err);
            if (!c->workers[t].decoded) return XLSTM_E_MEMORY;
        }
        c->decoded_cols = m->cols;
        return XLSTM_OK;
    }
    xl_cpu_pack pack = m->product.pack;
    if (m->cols <= c->packed_cols[pack]) return XLSTM_OK;
    xl_release(c->packed[pack]);
    c->packed[pack] = xl_alloc(packed_row(pack, m->cols) * c->o.max_rows, err);
    c->packed_cols[pack] = c->packed[pack] ? m->cols : 0;
    return c->packed[pack] ? XLSTM_OK : XLSTM_E_MEMORY;
}

typedef struct linear_job {
    xl_cpu *c;
    const xl_linear *group;
    const float *x;
    size_t cols;
    uint32_t rows, n;
    xl_cpu_pack pack;
    uint32_t start[9]; /* first piece of each product of the group */
    uint32_t chunks;   /* of at most MAX_ROWS rows each, as evenly as possible */
    uint32_t side;     /* panels a piece takes, */
    bool in_turn;      /* one after the other, or side by side */
} linear_job;

static uint32_t chunk_rows(const linear_job *job, uint32_t chunk)
{
    return xl_cpu_tile_rows(job->rows, XL_CPU_MAX_ROWS, chunk);
}

static uint32_t chunk_first(const linear_job *job, uint32_t chunk)
{
    return xl_cpu_tile_first(job->rows, XL_CPU_MAX_ROWS, chunk);
}

static void pack_chunk_tile(void *arg, uint32_t piece, uint32_t worker)
{
    (void)worker;
    const linear_job *job = arg;
    const xl_cpu_kernels *kn = &job->c->kernels;
    uint32_t most = kn->tile[job->pack], per_chunk = xl_cpu_tiles(XL_CPU_MAX_ROWS, most), chunk = piece / per_chunk, t = piece % per_chunk;
    uint32_t rows = chunk_rows(job, chunk), row = chunk_first(job, chunk);
    if (t >= xl_cpu_tiles(rows, most)) return;
    row += xl_cpu_tile_first(rows, most, t);
    kn->pack[job->pack](job->c->packed[job->pack] + row * packed_row(job->pack, job->cols), job->x + row * job->cols,
                        job->cols, xl_cpu_tile_rows(rows, most, t), job->cols);
}

/* ---- products --------------------------------------------------------------------------------------------------- */

/* Weight rows of a piece: some panels, or a few rows in place. */
static size_t piece_rows(const linear_job *job, const xl_matrix *m)
{
    return m->panels ? job->side * job->c->kernels.panel : XL_CPU_DOT_ROWS;
}

static void linear_piece(void *arg, uint32_t piece, uint32_t worker)
{
    const linear_job *job = arg;
    xl_cpu *c = job->c;
    const xl_cpu_kernels *kn = &c->kernels;
    uint32_t at = 0;
    while (piece >= job->start[at + 1]) at++;
    const xl_linear *l = &job->group[at];
    const xl_matrix *m = l->weight;
    uint32_t chunk = (piece - job->start[at]) % job->chunks, part = (piece - job->start[at]) / job->chunks;
    uint32_t rows = chunk_rows(job, chunk), row = chunk_first(job, chunk);
    size_t each = piece_rows(job, m), first = part * each, end = XL_MIN(m->rows, first + each), width = each;
    float *sums = c->workers[worker].sums;
    if (m->panels) {
        const uint8_t *x = c->packed[m->product.pack] + row * packed_row(m->product.pack, job->cols);
        size_t p = first / kn->panel, last = (end - 1) / kn->panel;
        xl_cpu_panels panels = {m->panels + p * m->panel_bytes, m->panel_bytes, (uint32_t)(last - p + 1),
                                xl_cpu_panel_width(c, m, last), job->in_turn, kn->kept};
        m->product.fn(sums, &panels, x, rows, job->cols);
        width = kn->panel;
    } else {
        for (size_t o = first; o < end; o++)
            kn->dots(sums + o - first, width, m->bytes + o * m->row_bytes, m->dtype, job->x + row * job->cols,
                     job->cols, rows, job->cols, c->workers[worker].decoded);
    }
    kn->finish(&(xl_cpu_results){.out = l->out->data + (size_t)row * l->stride + l->column + first, .sums = sums,
                                 .out_row = l->stride, .rows = rows, .n = (uint32_t)(end - first), .width = (uint32_t)width,
                                 .bias = l->bias ? l->bias->vector + first : NULL, .add = l->add,
                                 .round = l->wide ? XLSTM_F32 : c->o.activations});
}

/* Notes where each thread begins to read weights in this product, for the next pass, and has those that wait fetch what the next
 * product begins with, as the last pass had it: passes are alike. Many rows take longer to multiply than to fetch. */
static void fetch_next(const linear_job *job)
{
    enum { FEW_ROWS = 16 };
    xl_cpu *c = job->c;
    uint32_t index = c->product++;
    if (!c->ahead) return;
    if (job->rows > FEW_ROWS || index >= c->products) {
        xl_pool_fetch(c->pool, NULL);
        return;
    }
    uint32_t pieces = job->start[job->n];
    xl_pool_ahead *own = c->ahead + (size_t)index * c->threads;
    for (uint32_t t = 0, at = 0; t < c->threads; t++) {
        uint32_t piece = xl_pool_first(c->pool, pieces, t), end = xl_pool_first(c->pool, pieces, t + 1);
        while (piece >= job->start[at + 1]) at++;
        const xl_matrix *m = job->group[at].weight;
        size_t each = m->panels ? m->panel_bytes * job->side : m->row_bytes * XL_CPU_DOT_ROWS;
        size_t bytes = (XL_MIN(end, job->start[at + 1]) - piece) * each;
        uintptr_t first = (uintptr_t)(m->panels ? m->panels : m->bytes) + (piece - job->start[at]) * each;
        atomic_store_explicit(&own[t].first, first, memory_order_relaxed);
        atomic_store_explicit(&own[t].end, first + XL_MIN(bytes, c->ahead_bytes), memory_order_relaxed);
    }
    xl_pool_fetch(c->pool, c->ahead + (size_t)((index + 1) % c->products) * c->threads);
}

void xl_cpu_linear(xl_backend *be, const xl_linear *group, uint32_t n, const xl_buffer *x, bool out_rows)
{
    xl_cpu *c = xl_cpu_of(be);
    linear_job job = {.c = c, .group = group, .x = x->data, .cols = group[0].weight->cols, .n = n,
                      .rows = out_rows ? c->batch->n_out : c->batch->rows};
    if (job.rows == 0) return;
    job.chunks = xl_cpu_tiles(job.rows, XL_CPU_MAX_ROWS);
    /* Few rows: panels one after the other, so that taking a piece costs little beside reading it. Many, which no longer fit in
     * the second-level cache: activations are read once for several panels. Both as long as that leaves every thread some
     * pieces, because threads are not equally fast. */
    size_t panels = 0;
    for (uint32_t i = 0; i < n; i++) panels += group[i].weight->rows / c->kernels.panel;
    job.in_turn = job.rows <= 8 * c->kernels.tile[XL_CPU_PACK_F32];
    job.side = (uint32_t)XL_MIN(panels * job.chunks / ((job.in_turn ? 16 : 4) * c->threads), (size_t)XL_CPU_PANELS);
    if (job.side == 0) job.side = 1;
    bool wanted[XL_CPU_PACKS] = {false};
    for (uint32_t i = 0; i < n; i++) {
        const xl_matrix *m = group[i].weight;
        size_t each = piece_rows(&job, m);
        job.start[i + 1] = job.start[i] + (uint32_t)((m->rows + each - 1) / each) * job.chunks;
        if (m->panels) wanted[m->product.pack] = true;
    }
    for (int p = 0; p < XL_CPU_PACKS; p++)
        if (wanted[p]) {
            job.pack = (xl_cpu_pack)p;
            uint32_t tiles = xl_cpu_tiles(XL_MIN(job.rows, (uint32_t)XL_CPU_MAX_ROWS), c->kernels.tile[p]) * job.chunks;
            xl_cpu_run(c, tiles, pack_chunk_tile, &job);
        }
    fetch_next(&job);
    xl_cpu_run(c, job.start[n], linear_piece, &job);
}
