/*
 * cpu_cell.h — everything of one instruction set that is no product with weights: norms, activations, and the pieces of
 * the mLSTM cell. Included once by its file, after cpu_product.h.
 *   GR, GN   rows and vectors of a tile of `gemm`; GR is at most 6
 *   SN       vectors of C a step keeps sums for in registers
 */

static void round_values(float *out, const float *in, size_t n, xlstm_dtype dtype)
{
    for (size_t i = 0; i < n; i += VW) v_put(out, v_round_to(v_get(in, i, n), dtype), i, n);
}

static float dot(const float *a, const float *b, uint32_t n)
{
    V sum = {0};
    for (size_t i = 0; i < n; i += VW) sum = FMA(v_get(a, i, n), v_get(b, i, n), sum);
    return v_sum(sum);
}

static void scale(float *out, const float *in, float factor, uint32_t n)
{
    for (size_t i = 0; i < n; i += VW) v_put(out, v_get(in, i, n) * factor, i, n);
}

static void blend(float *out, const float *in, float keep, float factor, uint32_t n)
{
    V k = v_all(keep), f = v_all(factor);
    for (size_t i = 0; i < n; i += VW) v_put(out, FMA(f, v_get(in, i, n), k * v_get(out, i, n)), i, n);
}

/* ---- norms and activations -------------------------------------------------------------------------------------- */

/* Sum of squares over four vectors added in a fixed order. */
INLINE float sum_squares(const float *x, float mean, uint32_t n, xlstm_dtype stats)
{
    V sum[4] = {{0}, {0}, {0}, {0}};
    uint32_t i = 0, a = 0;
    for (; i + VW <= n; i += VW, a = (a + 1) & 3) {
        V d = v_round_to(v_load(x + i) - mean, stats);
        sum[a] += v_round_to(d * d, stats);
    }
    if (i < n) {
        V d = v_round_to(v_load_part(x + i, n - i) - mean, stats), square = v_round_to(d * d, stats), kept = {0};
        memcpy(&kept, &square, (n - i) * 4);
        sum[a] += kept;
    }
    return v_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

static bool rmsnorm(float *y, const float *x, const float *weight, const float *bias, uint32_t n, float eps,
                    xlstm_dtype stats, xlstm_dtype round)
{
    float squares = sum_squares(x, 0, n, stats);
    float mean = round_to(squares / (float)n, stats);
    V factor = v_all(round_to(1.0f / sqrtf(round_to(mean + eps, stats)), stats));
    for (size_t i = 0; i < n; i += VW) {
        V v = v_round_to(v_get(x, i, n) * factor, stats) * v_get(weight, i, n);
        if (bias) v += v_get(bias, i, n);
        v_put(y, v_round_to(v, round), i, n);
    }
    return xl_is_finite(squares);
}

static bool mhnorm_gate(float *g, const float *h, const float *o, const float *weight, const float *bias, uint32_t n,
                        float eps, xlstm_dtype stats, xlstm_dtype round)
{
    V sum = {0};
    for (size_t i = 0; i < n; i += VW) sum += v_get(h, i, n);
    float mean = round_to(v_sum(sum) / (float)n, stats);
    float squares = sum_squares(h, mean, n, stats);
    float variance = round_to(squares / (float)n, stats);
    V factor = v_all(round_to(1.0f / sqrtf(round_to(variance + eps, stats)), stats));
    for (size_t i = 0; i < n; i += VW) {
        V v = v_round_to(v_round_to(v_get(h, i, n) - mean, stats) * factor, stats) * v_get(weight, i, n);
        if (bias) v += v_get(bias, i, n);
        v_put(g, v_round_to(v_sigmoid(v_get(o, i, n)) * v, round), i, n);
    }
    return xl_is_finite(squares);
}

static void swiglu(float *a, const float *gate, const float *up, size_t n, xlstm_dtype round)
{
    for (size_t i = 0; i < n; i += VW) {
        V x = v_get(gate, i, n);
        v_put(a, v_round_to(x * v_sigmoid(x) * v_get(up, i, n), round), i, n);
    }
}

static void add_values(float *x, const float *y, size_t n, xlstm_dtype round)
{
    for (size_t i = 0; i < n; i += VW) v_put(x, v_round_to(v_get(x, i, n) + v_get(y, i, n), round), i, n);
}

static bool softcap(float *x, size_t n, float cap)
{
    VU largest = {0};
    for (size_t i = 0; i < n; i += VW) {
        V v = v_get(x, i, n);
        if (cap > 0) v = cap * v_tanh(v / cap);
        VU bits = (VU)v & 0x7f800000u;
        largest |= (VU)((VI)(bits == 0x7f800000u));
        v_put(x, v, i, n);
    }
    uint32_t any[VW], bad = 0;
    memcpy(any, &largest, sizeof any);
    for (int i = 0; i < VW; i++) bad |= any[i];
    return bad == 0;
}

/* ---- small products of the chunk form --------------------------------------------------------------------------- */

/* Columns of B are copied to a panel first, [K][nv][VW]: rows of a state lie so far apart that they push each other out of the
 * first-level cache. */
enum { GEMM_K = 256 };
_Static_assert(GR <= 6, "GEMM_CASE has no more");

INLINE void gemm_tile(const xl_cpu_gemm *g, const V *panel, uint32_t k0, uint32_t m, uint32_t n, int mr, int nv, bool whole)
{
    V sum[GR][GN];
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) sum[r][v] = (V){0};
    const float *a = g->a + m * g->a_row + k0 * g->a_k;
    const uint32_t K = XL_MIN(g->K - k0, (uint32_t)GEMM_K);
    for (uint32_t k = 0; k < K; k++, a += g->a_k, panel += nv)
        UNROLL for (int r = 0; r < mr; r++) {
            V x = v_all(a[(size_t)r * g->a_row]);
            UNROLL for (int v = 0; v < nv; v++) sum[r][v] = FMA(x, panel[v], sum[r][v]);
        }
    UNROLL for (int r = 0; r < mr; r++)
        UNROLL for (int v = 0; v < nv; v++) {
            float *at = g->out + (m + (uint32_t)r) * g->out_row + n + v * VW;
            const size_t part = whole ? VW : g->N - n;
            V y = sum[r][v];
            if (k0 > 0)
                y += v_get(at, 0, part);
            else if (g->keep)
                y = FMA(v_all(g->scale), v_get(at, 0, part), y);
            v_put(at, y, 0, part);
        }
}

#define GEMM_CASE(r) \
    case r: \
        if (r <= GR) gemm_tile(g, panel, k0, m, n, r <= GR ? r : GR, nv, whole); \
        break;
INLINE void gemm_columns(const xl_cpu_gemm *g, uint32_t n, int nv, bool whole)
{
    V panel[GEMM_K * GN];
    const uint32_t tiles = xl_cpu_tiles(g->M, GR);
    for (uint32_t k0 = 0; k0 < g->K; k0 += GEMM_K) {
        const float *b = g->b + k0 * g->b_row + n;
        for (uint32_t k = 0; k < XL_MIN(g->K - k0, (uint32_t)GEMM_K); k++, b += g->b_row)
            UNROLL for (int v = 0; v < nv; v++)
                panel[k * (uint32_t)nv + (uint32_t)v] = v_get(b + v * VW, 0, whole ? VW : g->N - n);
        for (uint32_t t = 0, m = 0; t < tiles; m += xl_cpu_tile_rows(g->M, GR, t++))
            switch (xl_cpu_tile_rows(g->M, GR, t)) {
                GEMM_CASE(1) GEMM_CASE(2) GEMM_CASE(3) GEMM_CASE(4) GEMM_CASE(5) GEMM_CASE(6)
            default: break;
            }
    }
}

static void gemm(const xl_cpu_gemm *g)
{
    uint32_t n = 0;
    for (; n + GN * VW <= g->N; n += GN * VW) gemm_columns(g, n, GN, true);
    for (; n + VW <= g->N; n += VW) gemm_columns(g, n, 1, true);
    if (n < g->N) gemm_columns(g, n, 1, false);
}

static float weigh(float *p, float *log_weight, float forget, float M, uint32_t n)
{
    V sum = {0};
    for (size_t i = 0; i < n; i += VW) {
        V w = v_get(log_weight, i, n) + forget;
        v_put(log_weight, w, i, n);
        V y = v_get(p, i, n) * v_exp(w - M);
        v_put(p, y, i, n);
        sum += i + VW <= n ? y : v_load_part((const float *)&y, n - i);
    }
    return v_sum(sum);
}

static void quotient(float *out, const float *in, float den, uint32_t n, xlstm_dtype round)
{
    for (size_t i = 0; i < n; i += VW) v_put(out, v_round_to(v_get(in, i, n) / den, round), i, n);
}

/* ---- state ------------------------------------------------------------------------------------------------------ */

static void load_state(float *out, const uint8_t *in, xlstm_dtype dtype, uint32_t n)
{
    if (dtype == XLSTM_F32) {
        memcpy(out, in, (size_t)n * 4);
        return;
    }
    float factor = 1;
    if (dtype == XLSTM_I8) memcpy(&factor, in + n, 4);
    uint32_t i = 0;
    for (; i + VW <= n; i += VW) {
        if (dtype == XLSTM_BF16) {
            v_store(out + i, v_from_bf16(u_load16(in + 2 * i)));
        } else {
            v_store(out + i, v_load_i8(in + i) * factor);
        }
    }
    for (; i < n; i++) {
        uint16_t h;
        memcpy(&h, in + 2 * (dtype == XLSTM_BF16 ? i : 0), 2);
        out[i] = dtype == XLSTM_BF16 ? xl_bf16_to_f32(h) : (float)(int8_t)in[i] * factor;
    }
}

/* int8: nearest even of x / scale, scale = largest |x| / 127 of the row. NaN or Inf make the scale what they are, and the
 * levels nothing. */
INLINE void save_levels(uint8_t *out, const float *in, float largest, uint32_t n)
{
    float step = largest / 127.0f;
    V inverse = v_all(step > 0 && xl_is_finite(step) ? 1.0f / step : 0), zero = {0};
    memcpy(out + n, &step, 4);
    uint32_t i = 0;
    for (; i + VW <= n; i += VW) {
        V x = v_load(in + i);
        B b = v_to_bytes(v_level((xl_is_finite(step) ? x : zero) * inverse));
        memcpy(out + i, &b, VW);
    }
    if (i < n) {
        B b = v_to_bytes(v_level((xl_is_finite(step) ? v_load_part(in + i, n - i) : zero) * inverse));
        memcpy(out + i, &b, n - i);
    }
}

static void save_state(uint8_t *out, const float *in, xlstm_dtype dtype, uint32_t n)
{
    if (dtype == XLSTM_F32) {
        memcpy(out, in, (size_t)n * 4);
        return;
    }
    uint32_t i = 0;
    if (dtype == XLSTM_BF16) {
        for (; i + VW <= n; i += VW) u_store16(out + 2 * i, v_to_bf16(v_load(in + i)));
        for (; i < n; i++) {
            uint16_t h = xl_f32_to_bf16(in[i]);
            memcpy(out + 2 * i, &h, 2);
        }
        return;
    }
    VI top = {0};
    for (; i < n; i += VW) top = v_larger(top, v_get(in, i, n));
    save_levels(out, in, v_largest(top), n);
}

INLINE V state_get(const uint8_t *p, xlstm_dtype dtype)
{
    return dtype == XLSTM_F32 ? (V)u_load(p) : v_from_bf16(u_load16(p));
}

INLINE void state_put(uint8_t *p, V v, xlstm_dtype dtype)
{
    if (dtype == XLSTM_F32)
        memcpy(p, &v, sizeof v);
    else
        u_store16(p, v_to_bf16(v));
}

/* Of the row of C that follows `row` after FETCH_ROWS others; may lie past the last. Only a part of each row is read, which the
 * machine's own prefetcher does not see through. */
enum { FETCH_ROWS = 8 };
INLINE void fetch_row(const xl_cpu_step *s, const uint8_t *row, size_t bytes)
{
    const uintptr_t at = (uintptr_t)row + FETCH_ROWS * s->c_row_bytes;
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch((const void *)(at + i), 1);
}

/* nv vectors of columns from `at` on: one pass over these columns of C. */
INLINE void step_columns(const xl_cpu_step *s, uint32_t at, int nv, xlstm_dtype dtype, float den)
{
    V sum[SN], v[SN], forget = v_all(s->forget);
    size_t bytes = dtype == XLSTM_F32 ? 4 : 2;
    UNROLL for (int j = 0; j < nv; j++) {
        sum[j] = (V){0};
        v[j] = v_load(s->v + at + j * VW);
    }
    uint8_t *C = s->C + at * bytes;
    for (uint32_t a = 0; a < s->dq; a++, C += s->c_row_bytes) {
        V kw = v_all(s->kw[a]), q = v_all(s->q[a]);
        fetch_row(s, C, (size_t)nv * VW * bytes);
        UNROLL for (int j = 0; j < nv; j++) {
            uint8_t *p = C + (size_t)j * VW * bytes;
            V c = FMA(kw, v[j], forget * state_get(p, dtype));
            state_put(p, c, dtype);
            sum[j] = FMA(q, c, sum[j]);
        }
    }
    UNROLL for (int j = 0; j < nv; j++) v_store(s->h + at + j * VW, v_round_to(sum[j] / den, s->round));
}

INLINE void step_plain(const xl_cpu_step *s, xlstm_dtype dtype, float den)
{
    uint32_t at = 0;
    size_t bytes = dtype == XLSTM_F32 ? 4 : 2;
    for (; at + SN * VW <= s->width; at += SN * VW) step_columns(s, at, SN, dtype, den);
    for (; at + VW <= s->width; at += VW) step_columns(s, at, 1, dtype, den);
    uint32_t n = s->width - at;
    if (n == 0) return;
    V sum = {0}, v = v_load_part(s->v + at, n), forget = v_all(s->forget);
    uint8_t *C = s->C + at * bytes;
    for (uint32_t a = 0; a < s->dq; a++, C += s->c_row_bytes) {
        uint8_t part[4 * VW] = {0};
        memcpy(part, C, n * bytes);
        V c = FMA(v_all(s->kw[a]), v, forget * state_get(part, dtype));
        state_put(part, c, dtype);
        memcpy(C, part, n * bytes);
        sum = FMA(v_all(s->q[a]), c, sum);
    }
    v_store_part(s->h + at, v_round_to(sum / den, s->round), n);
}

/* nv vectors of a row whose levels are worth `keep` each, from column i on: into scratch memory, and what they add to the sums. */
INLINE void step_levels(const xl_cpu_step *s, const uint8_t *C, uint32_t a, float keep, uint32_t i, int nv, VI top[4])
{
    V kw = v_all(s->kw[a]), q = v_all(s->q[a]), factor = v_all(keep);
    const float *v = s->v + i;
    float *row = s->row + i, *sum = s->sums + i;
    UNROLL for (int j = 0; j < nv; j++) {
        V c = FMA(kw, v_load(v + j * VW), factor * v_load_i8(C + i + j * VW));
        v_store(row + j * VW, c);
        v_store(sum + j * VW, FMA(q, c, v_load(sum + j * VW)));
        top[j] = v_larger(top[j], c);
    }
}

/* The values of a row share a scale: it is updated as float32 in scratch memory, then packed again. */
static void step_int8(const xl_cpu_step *s, float den)
{
    uint32_t n = s->width;
    memset(s->sums, 0, n * sizeof *s->sums);
    for (uint32_t a = 0; a < s->dq; a++) {
        uint8_t *C = s->C + a * s->c_row_bytes;
        float scale;
        memcpy(&scale, C + n, 4);
        float keep = s->forget * scale;
        VI top[4] = {{0}, {0}, {0}, {0}};
        uint32_t i = 0;
        fetch_row(s, C, n);
        for (; i + 4 * VW <= n; i += 4 * VW) step_levels(s, C, a, keep, i, 4, top);
        for (; i + VW <= n; i += VW) step_levels(s, C, a, keep, i, 1, top);
        for (int j = 1; j < 4; j++) top[0] = v_larger(top[0], (V)top[j]);
        if (i < n) {
            uint8_t part[VW] = {0};
            memcpy(part, C + i, n - i);
            V c = FMA(v_all(s->kw[a]), v_load_part(s->v + i, n - i), v_all(keep) * v_load_i8(part));
            v_store_part(s->row + i, c, n - i);
            v_store_part(s->sums + i, FMA(v_all(s->q[a]), c, v_load_part(s->sums + i, n - i)), n - i);
            top[0] = v_larger(top[0], v_load_part(s->row + i, n - i));
        }
        save_levels(C, s->row, v_largest(top[0]), n);
    }
    quotient(s->h, s->sums, den, n, s->round);
}

static void step(const xl_cpu_step *s, float den)
{
    if (s->dtype == XLSTM_F32)
        step_plain(s, XLSTM_F32, den);
    else if (s->dtype == XLSTM_BF16)
        step_plain(s, XLSTM_BF16, den);
    else
        step_int8(s, den);
}

#define CELL_KERNELS \
    .finish = finish, .dots = dots, .round = round_values, .rmsnorm = rmsnorm, .mhnorm_gate = mhnorm_gate, \
    .swiglu = swiglu, .add = add_values, .softcap = softcap, .dot = dot, .scale = scale, .blend = blend, .gemm = gemm, \
    .step = step, .weigh = weigh, .quotient = quotient, .load_state = load_state, .save_state = save_state
