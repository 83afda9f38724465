/*
 * test_cuda.cu — every operation of the cuda backend against the float64 reference backend, through the same vtable:
 * ragged shapes, every weight format, guard rows and poisoned outputs, runs of mixed length, replayed passes, fault
 * codes. Needs a GPU; prints one line a group and the worst error. `test_cuda quick` leaves out the large shapes,
 * `test_cuda race` most of them (for compute-sanitizer); the name of a group runs it alone; `device=1` takes the second GPU.
 */
#include "cuda_device.cuh"
extern "C" {
#include "ref/ref_backend.h"
#include "sampler.h"
}

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

static uint64_t seed = 0x243f6a8885a308d3ull;
static bool quick, race;
static int failures, checks;

static double uniform()
{
    seed += 0x9e3779b97f4a7c15ull;
    uint64_t z = seed;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}
static float normal() { return (float)((uniform() + uniform() + uniform() + uniform() - 2) * 1.732); }

#define MUST(call)                                                                                                     \
    do {                                                                                                               \
        if ((call) != XLSTM_OK) {                                                                                      \
            printf("FAILED %s:%d: %s: %s\n", __FILE__, __LINE__, #call, err.message);                                  \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static xlstm_error err;

static void check(const char *what, const std::string &detail, double error, double limit)
{
    checks++;
    if (error <= limit) return; /* NaN never passes */
    failures++;
    if (failures <= 60) printf("FAIL %-14s %-70s error %.3g limit %.3g\n", what, detail.c_str(), error, limit);
}

static double distance(const std::vector<float> &a, const std::vector<float> &b)
{
    double d = 0, n = 0;
    for (size_t i = 0; i < a.size(); i++) {
        d += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        n += (double)b[i] * b[i];
    }
    return n > 0 ? sqrt(d / n) : sqrt(d);
}

/* The share of pieces of `width` values that are further apart than `limit`. */
static double share_beyond(const std::vector<float> &a, const std::vector<float> &b, size_t width, double limit)
{
    size_t beyond = 0;
    for (size_t i = 0; i < a.size(); i += width) {
        std::vector<float> x(a.begin() + (ptrdiff_t)i, a.begin() + (ptrdiff_t)(i + width)),
            y(b.begin() + (ptrdiff_t)i, b.begin() + (ptrdiff_t)(i + width));
        beyond += !(distance(x, y) <= limit);
    }
    return (double)beyond / (double)(a.size() / width);
}

/* ---- the two backends side by side ------------------------------------------------------------------------------ */

struct twin_matrix {
    xl_matrix *c, *r;
    std::vector<uint8_t> bytes;
};
struct twin_buffer {
    xl_buffer *c, *r;
    size_t rows, width;
};
struct twin_store {
    xl_store *c, *r;
};

struct twins {
    xl_backend *c, *r;
    xl_backend_options o;
    bool single; /* r is the float32 reference, which rounds states as the options say; else the float64 one */
    std::vector<uint32_t> fc, fr;

    explicit twins(const xl_backend_options &options, bool with_single = false) : o(options), single(with_single)
    {
        MUST(xlstm_cuda_backend()->open(&c, &o, &err));
        MUST((single ? &xl_reference_backend : &xl_reference64_backend)->open(&r, &o, &err));
        fc.resize(o.max_rows);
        fr.resize(o.max_rows);
    }
    ~twins()
    {
        c->ops->close(c);
        r->ops->close(r);
    }

    twin_matrix matrix(xlstm_dtype t, size_t rows, size_t cols, double scale, bool vector = false,
                       unsigned usage = XL_USE_MATMUL)
    {
        twin_matrix m;
        size_t row_bytes = 0;
        if (!xl_dtype_row_bytes(&row_bytes, t, cols)) exit(2);
        m.bytes.resize(rows * row_bytes);
        std::vector<float> row(cols);
        for (size_t i = 0; i < rows; i++) {
            for (float &x : row) x = (float)(normal() * scale) + (vector ? 1.0f : 0.0f);
            xl_encode_row(m.bytes.data() + i * row_bytes, row.data(), t, cols);
        }
        xl_tensor tensor = {};
        tensor.name = "test";
        tensor.dtype = t;
        tensor.rank = vector ? 1 : 2;
        tensor.shape[0] = vector ? cols : rows;
        tensor.shape[1] = cols;
        tensor.bytes = m.bytes.size();
        bool borrows;
        MUST(c->ops->matrix_new(c, &m.c, &borrows, &tensor, m.bytes.data(), 0, vector ? cols : rows,
                                XLSTM_DTYPE_DEFAULT, usage, &err));
        MUST(r->ops->matrix_new(r, &m.r, &borrows, &tensor, m.bytes.data(), 0, vector ? cols : rows,
                                XLSTM_DTYPE_DEFAULT, usage, &err));
        return m;
    }
    void drop(twin_matrix &m)
    {
        c->ops->matrix_free(c, m.c);
        r->ops->matrix_free(r, m.r);
    }
    twin_buffer buffer(size_t rows, size_t width)
    {
        twin_buffer b = {nullptr, nullptr, rows, width};
        MUST(c->ops->buffer_new(c, &b.c, rows, width, &err));
        MUST(r->ops->buffer_new(r, &b.r, rows, width, &err));
        return b;
    }
    void drop(twin_buffer &b)
    {
        c->ops->buffer_free(c, b.c);
        r->ops->buffer_free(r, b.r);
    }
    /* Random values, the same in both, as activations are stored. */
    void fill(twin_buffer &b, double scale, bool wide = false)
    {
        size_t n = b.rows * b.width;
        xlstm_dtype t = wide ? XLSTM_F32 : o.activations;
        std::vector<float> row(n);
        for (float &x : row) x = (float)(normal() * scale);
        std::vector<uint8_t> bytes(n * 4);
        xl_encode_row(bytes.data(), row.data(), t, n);
        xl_decode_row(row.data(), bytes.data(), t, n);
        cudaDeviceSynchronize();
        cudaMemcpy(b.c->data, bytes.data(), n * cuda_size(t), cudaMemcpyHostToDevice);
        cudaDeviceSynchronize();
        b.c->dtype = t;
        for (size_t i = 0; i < n; i++) set_r(b, i, row[i]);
    }
    void set_r(twin_buffer &b, size_t i, float x)
    {
        if (single) (*(float **)b.r)[i] = x;
        else (*(double **)b.r)[i] = x;
    }
    /* One float32 value, NaN say, in both. */
    void set(twin_buffer &b, size_t i, float x)
    {
        cudaDeviceSynchronize();
        cudaMemcpy(b.c->data + i * sizeof(float), &x, sizeof(float), cudaMemcpyHostToDevice);
        cudaDeviceSynchronize();
        set_r(b, i, x);
    }
    void poison(twin_buffer &b)
    {
        cudaDeviceSynchronize();
        cudaMemset(b.c->data, 0xff, b.rows * b.width * 4);
        cudaDeviceSynchronize();
    }
    std::vector<float> read_c(twin_buffer &b, size_t n)
    {
        std::vector<float> out(n);
        MUST(c->ops->buffer_read(c, b.c, 0, out.data(), n, &err));
        return out;
    }
    std::vector<float> read_r(twin_buffer &b, size_t n)
    {
        std::vector<float> out(n);
        MUST(r->ops->buffer_read(r, b.r, 0, out.data(), n, &err));
        return out;
    }
    /* Rows beyond `rows` must still be poison. */
    void guard(const char *what, const std::string &detail, twin_buffer &b, size_t rows)
    {
        size_t size = cuda_size(b.c->dtype), from = rows * b.width * size, to = b.rows * b.width * size;
        if (from >= to) return;
        std::vector<uint8_t> bytes(to - from);
        cudaMemcpy(bytes.data(), b.c->data + from, bytes.size(), cudaMemcpyDeviceToHost);
        size_t bad = 0;
        for (uint8_t x : bytes) bad += x != 0xff;
        check(what, detail + " guard", (double)bad, 0);
    }
    void compare(const char *what, const std::string &detail, twin_buffer &b, size_t rows, double limit)
    {
        check(what, detail, distance(read_c(b, rows * b.width), read_r(b, rows * b.width)), limit);
    }
    template <typename F> void pass(const xl_batch &batch_c, const xl_batch &batch_r, F ops)
    {
        bool replay;
        MUST(r->ops->begin(r, &batch_r, &replay, &err));
        ops(r, false);
        MUST(r->ops->submit(r, fr.data(), &err));
        MUST(c->ops->begin(c, &batch_c, &replay, &err));
        if (!replay) ops(c, true);
        MUST(c->ops->submit(c, fc.data(), &err));
    }
};

static uint32_t gpu; /* that the tests run on */

static xl_backend_options options_for(xlstm_dtype act)
{
    xl_backend_options o = {};
    o.device = gpu;
    o.max_rows = 320;
    o.max_runs = 16;
    o.chunk_size = 64;
    o.activations = act;
    o.norm_float32 = true;
    o.num_blocks = 2;
    o.num_heads = 4;
    o.head_qk = 16;
    o.head_v = 32;
    o.embedding_dim = 128;
    o.ffn_dim = 192;
    o.vocab_size = 100;
    o.state = XLSTM_F32;
    return o;
}

/* One run a row, each of its own store is not needed by stateless operations: the store pointers are never followed. */
struct plain_batch {
    std::vector<int32_t> ids;
    std::vector<uint32_t> out;
    std::vector<xl_run> runs;
    xl_batch b;
    plain_batch(uint32_t rows, xl_store *store, std::vector<uint32_t> out_rows = {}, uint32_t vocab = 100)
        : ids(rows), out(out_rows)
    {
        for (int32_t &id : ids) id = (int32_t)(uniform() * vocab);
        xl_run run = {0, rows, 0, store};
        runs.push_back(run);
        b = {};
        b.ids = ids.data();
        b.rows = rows;
        b.runs = runs.data();
        b.n_runs = 1;
        b.out_rows = out.data();
        b.n_out = (uint32_t)out.size();
        b.traced = true;
    }
};

static const char *name(xlstm_dtype t) { return xlstm_dtype_name(t); }

/* ---- linear ----------------------------------------------------------------------------------------------------- */

static double tolerance(xlstm_dtype act, bool rough)
{
    if (act == XLSTM_F32) return 3e-6;
    if (act == XLSTM_F16) return 4e-4;
    return rough ? 4e-3 : 2.5e-3;
}

static void test_linear()
{
    const xlstm_dtype acts[] = {XLSTM_F32, XLSTM_BF16, XLSTM_F16};
    const xlstm_dtype types[] = {XLSTM_F32,  XLSTM_BF16, XLSTM_F16,  XLSTM_Q8_0,
                                 XLSTM_Q4_0, XLSTM_Q4_K, XLSTM_Q5_K, XLSTM_Q6_K};
    const size_t shapes[][2] = {{40, 96}, {17, 40}, {304, 768}, {8, 256}, {130, 1312}, {5, 33}};
    const uint32_t row_counts[] = {1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 70, 200};
    int before = checks;
    for (xlstm_dtype act : acts) {
        twins t(options_for(act));
        xl_store *sc, *sr;
        MUST(t.c->ops->store_new(t.c, &sc, &err));
        MUST(t.r->ops->store_new(t.r, &sr, &err));
        for (xlstm_dtype type : types) {
            for (const size_t *shape : shapes) {
                size_t n = shape[0], k = shape[1], row_bytes;
                if (!xl_dtype_row_bytes(&row_bytes, type, k)) continue;
                /* a group: the matrix, a second one added, float32 gates with bias side by side */
                twin_matrix w = t.matrix(type, n, k, 0.1), w2 = t.matrix(type, n, k, 0.1),
                            g = t.matrix(XLSTM_F32, 4, k, 0.1), bias = t.matrix(XLSTM_F32, 1, 4, 1, true),
                            bias_n = t.matrix(XLSTM_BF16, 1, n, 1, true);
                for (uint32_t rows : row_counts) {
                    if ((quick && rows > 33) || (race && rows != 2 && rows != 17)) continue;
                    twin_buffer x = t.buffer(rows + 2, k), y = t.buffer(rows + 2, n), y2 = t.buffer(rows + 2, n),
                                gates = t.buffer(rows + 2, 8);
                    t.fill(x, 1);
                    t.fill(y2, 1);
                    t.poison(y);
                    t.poison(gates);
                    gates.c->dtype = XLSTM_F32;
                    plain_batch bc(rows, sc), br(rows, sr);
                    t.pass(bc.b, br.b, [&](xl_backend *be, bool cuda) {
                        auto pick = [&](twin_matrix &m) { return cuda ? m.c : m.r; };
                        auto place = [&](twin_buffer &b) { return cuda ? b.c : b.r; };
                        xl_linear group[4] = {};
                        group[0].weight = pick(w), group[0].bias = pick(bias_n), group[0].out = place(y),
                        group[0].stride = (uint32_t)n;
                        group[1].weight = pick(w2), group[1].out = place(y2), group[1].stride = (uint32_t)n,
                        group[1].add = true;
                        group[2].weight = pick(g), group[2].bias = pick(bias), group[2].out = place(gates),
                        group[2].stride = 8;
                        group[2].wide = true;
                        group[3] = group[2];
                        group[3].column = 4;
                        be->ops->linear(be, group, 4, place(x), false);
                    });
                    std::string detail = std::string(name(act)) + " x " + name(type) + " [" + std::to_string(n) + "," +
                                         std::to_string(k) + "] rows " + std::to_string(rows);
                    bool rough = act == XLSTM_BF16 && rows > 17;
                    t.compare("linear", detail, y, rows, tolerance(act, rough));
                    t.compare("linear add", detail, y2, rows, tolerance(act, rough));
                    t.compare("linear wide", detail, gates, rows, act == XLSTM_F32 || rows <= 64 ? 3e-6 : 4e-3);
                    if (rows <= 5) { /* larger products may round rows up */
                        t.guard("linear", detail, y, rows);
                        t.guard("linear wide", detail, gates, rows);
                    }
                    t.drop(x), t.drop(y), t.drop(y2), t.drop(gates);
                }
                t.drop(w), t.drop(w2), t.drop(g), t.drop(bias), t.drop(bias_n);
            }
        }
        t.c->ops->store_free(t.c, sc);
        t.r->ops->store_free(t.r, sr);
    }
    printf("linear: %d checks, %d failures so far\n", checks - before, failures);
}

/* ---- norms and products ------------------------------------------- */

static void test_elementwise()
{
    int before = checks;
    for (xlstm_dtype act : {XLSTM_F32, XLSTM_BF16, XLSTM_F16}) {
        for (int variant = 0; variant < 4; variant++) {
            xl_backend_options o = options_for(act);
            o.norm_float32 = variant != 1;
            if (variant == 2) o.embedding_dim = 100, o.ffn_dim = 90, o.num_heads = 3, o.head_v = 20;
            if (variant == 3) o.embedding_dim = 1024, o.ffn_dim = 2752, o.num_heads = 4, o.head_v = 256;
            uint32_t D = o.embedding_dim, F = o.ffn_dim, Vd = o.num_heads * o.head_v, V = o.vocab_size;
            twins t(o);
            xl_store *sc, *sr;
            MUST(t.c->ops->store_new(t.c, &sc, &err));
            MUST(t.r->ops->store_new(t.r, &sr, &err));
            double limit = act == XLSTM_F32 ? 3e-6 : act == XLSTM_F16 ? 6e-4 : 4e-3;
            twin_matrix emb = t.matrix(XLSTM_BF16, V, D, 1, false, XL_USE_ROWS),
                        wn = t.matrix(XLSTM_F32, 1, D, 0.1, true), wb = t.matrix(XLSTM_F32, 1, D, 0.1, true),
                        wm = t.matrix(XLSTM_F32, 1, Vd, 0.1, true), w1 = t.matrix(XLSTM_BF16, F, D, 0.05),
                        w2 = t.matrix(XLSTM_BF16, D, F, 0.05), w3 = t.matrix(XLSTM_BF16, D, Vd, 0.05),
                        wv = t.matrix(XLSTM_BF16, V, D, 0.1);
            for (uint32_t rows : {1u, 2u, 4u, 5u, 37u}) {
                twin_buffer x = t.buffer(rows + 1, D), u = t.buffer(rows + 1, D), y = t.buffer(rows + 1, F),
                            z = t.buffer(rows + 1, F), p = t.buffer(rows + 1, F), h = t.buffer(rows + 1, Vd),
                            ob = t.buffer(rows + 1, Vd), g = t.buffer(rows + 1, Vd), last = t.buffer(rows + 1, D),
                            logits = t.buffer(rows + 1, V);
                std::vector<uint32_t> out;
                for (uint32_t i = 0; i < rows; i += 2) out.push_back(i);
                for (int traced = 0; traced < 2; traced++) {
                    t.fill(h, 1), t.fill(ob, 1);
                    for (twin_buffer *b : {&x, &u, &y, &z, &p, &g, &last, &logits}) t.poison(*b);
                    plain_batch bc(rows, sc, out), br(rows, sr, out);
                    br.ids = bc.ids;
                    br.b.ids = br.ids.data();
                    t.pass(bc.b, br.b, [&](xl_backend *be, bool cuda) {
                        auto pick = [&](twin_matrix &m) { return cuda ? m.c : m.r; };
                        auto place = [&](twin_buffer &b) { return cuda ? b.c : b.r; };
                        float dummy;
                        /* reading in between makes operations run one by one */
                        auto cut = [&](twin_buffer &b) {
                            if (traced) MUST(be->ops->buffer_read(be, place(b), 0, &dummy, 1, &err));
                        };
                        xl_norm norm = {pick(wn), variant == 3 ? pick(wb) : nullptr, D, 1e-6f, 7};
                        xl_norm mh = {pick(wm), nullptr, Vd, 1e-6f, 9};
                        be->ops->embed(be, place(x), pick(emb));
                        be->ops->rmsnorm(be, place(u), place(x), &norm, false);
                        cut(u);
                        xl_linear group[2] = {};
                        group[0].weight = pick(w1), group[0].out = place(y), group[0].stride = F;
                        group[1] = group[0];
                        group[1].out = place(z);
                        be->ops->linear(be, group, 2, place(u), false);
                        be->ops->swiglu(be, place(p), place(y), place(z));
                        cut(p);
                        xl_linear down = {};
                        down.weight = pick(w2), down.out = place(x), down.stride = D, down.add = true;
                        be->ops->linear(be, &down, 1, place(p), false);
                        be->ops->mhnorm_gate(be, place(g), place(h), place(ob), &mh);
                        cut(g);
                        down.weight = pick(w3);
                        be->ops->linear(be, &down, 1, place(g), false);
                        if (traced) be->ops->add(be, place(x), place(u), D);
                        be->ops->gather(be, place(last), place(x), D);
                        norm.fault = 11;
                        be->ops->rmsnorm(be, place(u), place(last), &norm, true);
                        cut(u);
                        xl_linear head = {};
                        head.weight = pick(wv), head.out = place(logits), head.stride = V, head.wide = true;
                        be->ops->linear(be, &head, 1, place(u), true);
                        be->ops->softcap(be, place(logits), V, variant == 2 ? 0 : 30, 13);
                    });
                    std::string detail = std::string(name(act)) + " variant " + std::to_string(variant) + " rows " +
                                         std::to_string(rows) + (traced ? " one by one" : "");
                    double loose = limit * 3;
                    t.compare("swiglu in", detail, y, rows, loose);
                    t.compare("residual", detail, x, rows, loose);
                    t.compare("logits", detail, logits, out.size(), loose);
                    if (traced) {
                        t.compare("norm", detail, last, out.size(), loose);
                        t.compare("mhnorm", detail, g, rows, limit);
                        t.guard("mhnorm", detail, g, rows);
                        t.guard("swiglu", detail, p, rows);
                        t.guard("logits", detail, logits, out.size());
                    }
                    uint32_t faults = 0;
                    for (uint32_t i = 0; i < rows; i++) faults += t.fc[i];
                    check("faults", detail, faults, 0);
                }
                for (twin_buffer *b : {&x, &u, &y, &z, &p, &h, &ob, &g, &last, &logits}) t.drop(*b);
            }
            for (twin_matrix *m : {&emb, &wn, &wb, &wm, &w1, &w2, &w3, &wv}) t.drop(*m);
        }
    }
    printf("elementwise: %d checks, %d failures so far\n", checks - before, failures);
}

static void test_faults()
{
    int before = checks;
    for (uint32_t rows : {3u, 9u}) {
        xl_backend_options o = options_for(XLSTM_BF16);
        twins t(o);
        uint32_t D = o.embedding_dim, V = o.vocab_size, NH = o.num_heads;
        xl_store *sc, *sr;
        MUST(t.c->ops->store_new(t.c, &sc, &err));
        MUST(t.r->ops->store_new(t.r, &sr, &err));
        twin_matrix wn = t.matrix(XLSTM_F32, 1, D, 0.1, true), wv = t.matrix(XLSTM_BF16, V, D, 0.1);
        twin_buffer x = t.buffer(rows, D), u = t.buffer(rows, D), q = t.buffer(rows, NH * o.head_qk),
                    v = t.buffer(rows, NH * o.head_v), h = t.buffer(rows, NH * o.head_v),
                    gates = t.buffer(rows, 2 * NH), logits = t.buffer(rows, V), last = t.buffer(rows, D);
        t.fill(x, 1), t.fill(q, 1), t.fill(v, 1), t.fill(gates, 1, true);
        float inf = INFINITY, nan = NAN;
        uint16_t bad = xl_f32_to_bf16(nan);
        cudaMemcpy(x.c->data + (1 * D + 5) * 2, &bad, 2, cudaMemcpyHostToDevice);
        (*(double **)x.r)[1 * D + 5] = nan;
        cudaMemcpy(gates.c->data + (2 * 2 * NH + 1) * 4, &inf, 4, cudaMemcpyHostToDevice);
        (*(double **)gates.r)[2 * 2 * NH + 1] = inf;
        std::vector<uint32_t> out = {0, 1};
        plain_batch bc(rows, sc, out), br(rows, sr, out);
        t.pass(bc.b, br.b, [&](xl_backend *be, bool cuda) {
            auto pick = [&](twin_matrix &m) { return cuda ? m.c : m.r; };
            auto place = [&](twin_buffer &b) { return cuda ? b.c : b.r; };
            xl_mlstm cell = {place(h), place(q), place(q), place(v), place(gates), 0, 0, 1e-6f, 21};
            be->ops->mlstm(be, &cell);
            be->ops->gather(be, place(last), place(x), D);
            xl_norm norm = {pick(wn), nullptr, D, 1e-6f, 22};
            be->ops->rmsnorm(be, place(u), place(last), &norm, true);
            xl_linear head = {};
            head.weight = pick(wv), head.out = place(logits), head.stride = V, head.wide = true;
            be->ops->linear(be, &head, 1, place(u), true);
            be->ops->softcap(be, place(logits), V, 30, 23);
        });
        for (uint32_t i = 0; i < rows; i++)
            check("fault", "rows " + std::to_string(rows) + " row " + std::to_string(i),
                  fabs((double)t.fc[i] - t.fr[i]), 0);
    }
    printf("faults: %d checks, %d failures so far\n", checks - before, failures);
}

/* ---- cell ------------------------------------------------------------------------------------------------------- */

static std::vector<float> state_values(const xl_state_layout *l, const std::vector<uint8_t> &bytes, int part)
{
    std::vector<float> out;
    auto add = [&](const uint8_t *p, xlstm_dtype t, size_t n) {
        for (size_t i = 0; i < n && t == XLSTM_I8; i++) {
            const uint8_t *row = p + i / l->head_v * l->c_row_bytes;
            float scale;
            memcpy(&scale, row + l->head_v, 4);
            out.push_back((float)(int8_t)row[i % l->head_v] * scale);
        }
        for (size_t i = 0; i < n && t != XLSTM_I8; i++) {
            if (t == XLSTM_F64) {
                double x;
                memcpy(&x, p + 8 * i, 8);
                out.push_back((float)x);
            } else if (t == XLSTM_F32) {
                float x;
                memcpy(&x, p + 4 * i, 4);
                out.push_back(x);
            } else {
                uint16_t x;
                memcpy(&x, p + 2 * i, 2);
                out.push_back(xl_bf16_to_f32(x));
            }
        }
    };
    for (uint32_t b = 0; b < l->num_blocks; b++) {
        for (uint32_t h = 0; h < l->num_heads; h++) {
            if (part == 0) add(bytes.data() + xl_state_c_offset(l, b, h), l->dtype, (size_t)l->head_qk * l->head_v);
            if (part == 1) add(bytes.data() + xl_state_n_offset(l, b, h), l->n_dtype, l->head_qk);
            if (part == 2) add(bytes.data() + xl_state_m_offset(l, b, h), l->m_dtype, 1);
        }
    }
    return out;
}

static void test_cells(bool int8)
{
    struct geometry {
        uint32_t heads, dq, dv, chunk;
    } const geometries[] = {{4, 16, 32, 64},  {2, 96, 192, 64}, {3, 40, 72, 16},  {1, 256, 512, 64},
                            {2, 64, 36, 100}, {2, 24, 50, 7},   {1, 300, 64, 64}, {16, 64, 256, 64}};
    struct numbers {
        xlstm_dtype act, kernel, state;
        double limit, state_limit;
    } const kinds[] = {{XLSTM_F32, XLSTM_DTYPE_DEFAULT, XLSTM_F32, 1e-4, 1e-5},
                       {XLSTM_BF16, XLSTM_DTYPE_DEFAULT, XLSTM_F32, 1.2e-2, 8e-3},
                       {XLSTM_BF16, XLSTM_DTYPE_DEFAULT, XLSTM_BF16, 4e-2, 1.2e-2},
                       {XLSTM_F32, XLSTM_BF16, XLSTM_F32, 1e-4, 1e-5},
                       {XLSTM_F16, XLSTM_DTYPE_DEFAULT, XLSTM_F32, 1e-3, 1e-4},
                       /* a step's denominator may nearly vanish, and then the noise of int8 is large in h: this is for
                        * the state; test_int8 and test_int8_prompts look at h */
                       {XLSTM_F32, XLSTM_DTYPE_DEFAULT, XLSTM_I8, 2e-1, 2e-2},
                       {XLSTM_BF16, XLSTM_BF16, XLSTM_I8, 2e-1, 2e-2}};
    int before = checks;
    for (const geometry &g : geometries) {
        for (const numbers &k : kinds) {
            if ((k.state == XLSTM_I8) != int8) continue;
            if ((quick && g.dq >= 256 && k.act != XLSTM_BF16) || (race && g.dq < 64 && g.chunk == 64)) continue;
            xl_backend_options o = options_for(k.act);
            o.num_blocks = 2;
            o.num_heads = g.heads;
            o.head_qk = g.dq;
            o.head_v = g.dv;
            o.chunk_size = g.chunk;
            o.kernel = k.kernel;
            o.state = k.state;
            twins t(o);
            const uint32_t counts[3][4] = {{1, 150, 17, 5}, {1, 1, 1, 1}, {70, 1, 64, 130}};
            twin_store s[4];
            for (twin_store &one : s) {
                MUST(t.c->ops->store_new(t.c, &one.c, &err));
                MUST(t.r->ops->store_new(t.r, &one.r, &err));
            }
            uint64_t position[4] = {};
            for (int round = 0; round < 3; round++) {
                uint32_t rows = 0;
                xl_run rc[4], rr[4];
                for (int i = 0; i < 4; i++) {
                    rc[i] = {rows, counts[round][i], position[i], s[i].c};
                    rr[i] = {rows, counts[round][i], position[i], s[i].r};
                    rows += counts[round][i];
                    position[i] += counts[round][i];
                }
                twin_buffer q = t.buffer(rows, g.heads * g.dq), kk = t.buffer(rows, g.heads * g.dq),
                            v = t.buffer(rows, g.heads * g.dv), gates = t.buffer(rows, 2 * g.heads),
                            h = t.buffer(rows + 2, g.heads * g.dv);
                t.fill(q, 1), t.fill(kk, 1), t.fill(v, 1), t.fill(gates, 4, true), t.poison(h);
                std::vector<int32_t> ids(rows);
                xl_batch bc = {}, br = {};
                bc.ids = br.ids = ids.data();
                bc.rows = br.rows = rows;
                bc.runs = rc, br.runs = rr;
                bc.n_runs = br.n_runs = 4;
                t.pass(bc, br, [&](xl_backend *be, bool cuda) {
                    auto place = [&](twin_buffer &b) { return cuda ? b.c : b.r; };
                    for (uint32_t block = 0; block < 2; block++) {
                        xl_mlstm cell = {place(h), place(q), place(kk), place(v), place(gates), block, 15.0f, 1e-6f, 5};
                        be->ops->mlstm(be, &cell);
                    }
                });
                std::string detail = std::string(name(k.act)) + " kernel " + name(k.kernel) + " state " +
                                     name(k.state) + " heads " + std::to_string(g.heads) + " dq " +
                                     std::to_string(g.dq) + " dv " + std::to_string(g.dv) + " chunk " +
                                     std::to_string(g.chunk) + " round " + std::to_string(round);
                if (k.state == XLSTM_BF16) {
                    /* where a denominator nearly vanishes, roundings of C and n are large in h, and such a row would
                     * decide the distance of all */
                    size_t pieces = (size_t)rows * g.heads, n = pieces * g.dv;
                    check("cell h", detail, share_beyond(t.read_c(h, n), t.read_r(h, n), g.dv, k.limit),
                          std::max(0.02, 1.0 / (double)pieces));
                } else {
                    t.compare("cell h", detail, h, rows, k.limit);
                }
                t.guard("cell h", detail, h, rows);
                for (uint32_t i = 0; i < rows; i++) check("cell fault", detail, t.fc[i], 0);
                for (int i = 0; i < 4; i++) {
                    const xl_state_layout *lc = t.c->ops->layout(t.c), *lr = t.r->ops->layout(t.r);
                    std::vector<uint8_t> a(lc->total_bytes), b(lr->total_bytes);
                    MUST(t.c->ops->store_read(t.c, s[i].c, a.data(), &err));
                    MUST(t.r->ops->store_read(t.r, s[i].r, b.data(), &err));
                    for (int part = 0; part < 3; part++) {
                        check(part == 0   ? "state C"
                              : part == 1 ? "state n"
                                          : "state m",
                              detail + " run " + std::to_string(i),
                              distance(state_values(lc, a, part), state_values(lr, b, part)),
                              part == 2 ? (int8 ? 1e-4 : 3e-5) : k.state_limit);
                    }
                    /* through the host and a device copy, the bytes must come back */
                    if (round == 1) {
                        std::vector<uint8_t> again(lc->total_bytes);
                        xl_store *copy;
                        MUST(t.c->ops->store_new(t.c, &copy, &err));
                        MUST(t.c->ops->store_copy(t.c, copy, s[i].c, &err));
                        MUST(t.c->ops->store_zero(t.c, s[i].c, &err));
                        MUST(t.c->ops->store_read(t.c, copy, again.data(), &err));
                        check("state copy", detail, memcmp(a.data(), again.data(), a.size()) != 0, 0);
                        MUST(t.c->ops->store_write(t.c, s[i].c, a.data(), &err));
                        MUST(t.c->ops->store_read(t.c, s[i].c, again.data(), &err));
                        check("state write", detail, memcmp(a.data(), again.data(), a.size()) != 0, 0);
                        t.c->ops->store_free(t.c, copy);
                    }
                }
                t.drop(q), t.drop(kk), t.drop(v), t.drop(gates), t.drop(h);
            }
            for (twin_store &one : s) {
                t.c->ops->store_free(t.c, one.c);
                t.r->ops->store_free(t.r, one.r);
            }
        }
    }
    printf("%s: %d checks, %d failures so far\n", int8 ? "int8 cell" : "cell", checks - before, failures);
}

static void test_cell() { test_cells(false); }
static void test_int8_cell() { test_cells(true); }

#include "test_sampling.cuh"
#include "test_states.cuh"

/* ---- replay ----------------------------------------------------------------------------------------------------- */

static void test_replay()
{
    int before = checks;
    for (xlstm_dtype act : {XLSTM_F32, XLSTM_BF16}) {
        for (uint32_t rows : {1u, 3u, 40u}) {
            xl_backend_options o = options_for(act);
            uint32_t D = o.embedding_dim, V = o.vocab_size, Qd = o.num_heads * o.head_qk, Vd = o.num_heads * o.head_v;
            o.max_runs = 64;
            twins t(o);
            std::vector<twin_store> s(rows);
            for (twin_store &one : s) {
                MUST(t.c->ops->store_new(t.c, &one.c, &err));
                MUST(t.r->ops->store_new(t.r, &one.r, &err));
            }
            twin_matrix emb = t.matrix(XLSTM_BF16, V, D, 1, false, XL_USE_ROWS | XL_USE_MATMUL),
                        wn = t.matrix(XLSTM_F32, 1, D, 0.1, true), wm = t.matrix(XLSTM_F32, 1, Vd, 0.1, true),
                        wq = t.matrix(XLSTM_BF16, Qd, D, 0.1), wk = t.matrix(XLSTM_BF16, Qd, D, 0.1),
                        wv = t.matrix(XLSTM_BF16, Vd, D, 0.1), wo = t.matrix(XLSTM_BF16, Vd, D, 0.1),
                        wi = t.matrix(XLSTM_F32, o.num_heads, D, 0.1), wp = t.matrix(XLSTM_BF16, D, Vd, 0.1);
            twin_buffer x = t.buffer(rows, D), u = t.buffer(rows, D), q = t.buffer(rows, Qd), k = t.buffer(rows, Qd),
                        v = t.buffer(rows, Vd), ob = t.buffer(rows, Vd), h = t.buffer(rows, Vd), g = t.buffer(rows, Vd),
                        gates = t.buffer(rows, 2 * o.num_heads), last = t.buffer(rows, D), logits = t.buffer(rows, V);
            for (int step = 0; step < 5; step++) {
                plain_batch bc(rows, nullptr), br(rows, nullptr);
                std::vector<xl_run> rc(rows), rr(rows);
                std::vector<uint32_t> out(rows);
                for (uint32_t i = 0; i < rows; i++) {
                    uint32_t at = step == 4 ? rows - 1 - i : i; /* other sessions in other rows: only tables change */
                    rc[i] = {i, 1, (uint64_t)step, s[at].c};
                    rr[i] = {i, 1, (uint64_t)step, s[at].r};
                    out[i] = i;
                }
                br.ids = bc.ids;
                for (plain_batch *b : {&bc, &br}) {
                    b->b.ids = b->ids.data();
                    b->b.runs = b == &bc ? rc.data() : rr.data();
                    b->b.n_runs = rows;
                    b->b.out_rows = out.data();
                    b->b.n_out = rows;
                    b->b.traced = false;
                }
                /* every second row is sampled; what is asked differs from pass to pass and is part of the table */
                std::vector<xl_sample> samples;
                std::vector<xlstm_sampler *> samplers;
                uint64_t kept = seed; /* for the numbers of the model */
                for (uint32_t i = 0; i < rows; i += 2) {
                    xlstm_sampler_options rules = random_rules(V);
                    xlstm_sampler *device;
                    samplers.emplace_back();
                    MUST(xlstm_sampler_new(&samplers.back(), V, &rules, &err));
                    MUST(xlstm_sampler_copy(&device, samplers.back(), &err));
                    const xlstm_sampler_options *plain = xl_sampler_plain(device);
                    samples.push_back(
                        {i, V, plain->top_k, plain->temperature, plain->top_p, plain->min_p, xl_sampler_draw(device)});
                    xlstm_sampler_free(device);
                }
                seed = kept;
                std::vector<int32_t> chosen(samples.size(), -7);
                bc.b.samples = samples.data();
                bc.b.n_samples = (uint32_t)samples.size();
                bc.b.chosen = chosen.data();
                bool ran = false;
                t.pass(bc.b, br.b, [&](xl_backend *be, bool cuda) {
                    ran = cuda;
                    auto pick = [&](twin_matrix &m) { return cuda ? m.c : m.r; };
                    auto place = [&](twin_buffer &b) { return cuda ? b.c : b.r; };
                    be->ops->embed(be, place(x), pick(emb));
                    for (uint32_t block = 0; block < o.num_blocks; block++) {
                        xl_norm norm = {pick(wn), nullptr, D, 1e-6f, 1}, mh = {pick(wm), nullptr, Vd, 1e-6f, 2};
                        be->ops->rmsnorm(be, place(u), place(x), &norm, false);
                        xl_linear l[6] = {};
                        l[0].weight = pick(wq), l[0].out = place(q), l[0].stride = Qd;
                        l[1].weight = pick(wk), l[1].out = place(k), l[1].stride = Qd;
                        l[2].weight = pick(wv), l[2].out = place(v), l[2].stride = Vd;
                        l[3].weight = pick(wo), l[3].out = place(ob), l[3].stride = Vd;
                        l[4].weight = pick(wi), l[4].out = place(gates), l[4].stride = 2 * o.num_heads,
                        l[4].wide = true;
                        l[5] = l[4];
                        l[5].column = o.num_heads;
                        be->ops->linear(be, l, 6, place(u), false);
                        xl_mlstm cell = {place(h), place(q), place(k), place(v), place(gates), block, 15.0f, 1e-6f, 3};
                        be->ops->mlstm(be, &cell);
                        be->ops->mhnorm_gate(be, place(g), place(h), place(ob), &mh);
                        xl_linear p = {};
                        p.weight = pick(wp), p.out = place(x), p.stride = D, p.add = true;
                        be->ops->linear(be, &p, 1, place(g), false);
                    }
                    be->ops->gather(be, place(last), place(x), D);
                    xl_norm norm = {pick(wn), nullptr, D, 1e-6f, 4};
                    be->ops->rmsnorm(be, place(u), place(last), &norm, true);
                    xl_linear head = {};
                    head.weight = pick(emb), head.out = place(logits), head.stride = V, head.wide = true;
                    be->ops->linear(be, &head, 1, place(u), true);
                    be->ops->softcap(be, place(logits), V, 30, 5);
                    if (cuda) be->ops->sample(be, place(logits), V);
                });
                std::string detail =
                    std::string(name(act)) + " rows " + std::to_string(rows) + " step " + std::to_string(step);
                std::vector<float> values = t.read_c(logits, (size_t)rows * V);
                for (size_t i = 0; i < samples.size(); i++) {
                    int32_t id;
                    MUST(xlstm_sampler_choose(&id, samplers[i], values.data() + samples[i].out * V, &err));
                    check("replay sample", detail, chosen[i] != id, 0);
                    xlstm_sampler_free(samplers[i]);
                }
                t.compare("replay", detail, logits, rows, act == XLSTM_F32 ? 2e-5 : 2e-2);
                check("replayed", detail, ran != (step < 2), 0);
            }
            for (twin_buffer *b : {&x, &u, &q, &k, &v, &ob, &h, &g, &gates, &last, &logits}) t.drop(*b);
            for (twin_matrix *m : {&emb, &wn, &wm, &wq, &wk, &wv, &wo, &wi, &wp}) t.drop(*m);
        }
    }
    printf("replay: %d checks, %d failures so far\n", checks - before, failures);
}

/* What buffer_write puts into a buffer is read again, rounded to the activation format; more than a staging buffer. */
static void test_buffers()
{
    for (xlstm_dtype act : {XLSTM_F32, XLSTM_BF16, XLSTM_F16}) {
        xl_backend_options o = options_for(act);
        twins t(o);
        twin_buffer b = t.buffer(5, 1000003);
        std::vector<float> in(4900000), back;
        for (float &x : in) x = (float)normal();
        for (xl_backend *be : {t.c, t.r})
            MUST(be->ops->buffer_write(be, be == t.c ? b.c : b.r, 777, in.data(), in.size(), &err));
        t.compare("buffers", name(act), b, 5, 0);
        t.drop(b);
    }
}

/* ---- products in block formats: long rows, and values that are not numbers ------------------------------------------ */

static void test_block_formats()
{
    int before = checks;
    for (xlstm_dtype act : {XLSTM_F32, XLSTM_BF16, XLSTM_F16}) {
        twins t(options_for(act));
        xl_store *sc, *sr;
        MUST(t.c->ops->store_new(t.c, &sc, &err));
        MUST(t.r->ops->store_new(t.r, &sr, &err));
        for (xlstm_dtype type : {XLSTM_Q8_0, XLSTM_Q4_0, XLSTM_Q4_K, XLSTM_Q5_K, XLSTM_Q6_K}) {
            bool k_quant = type != XLSTM_Q8_0 && type != XLSTM_Q4_0;
            for (uint32_t k : {10944u, 4096u, 2080u, 32u}) {
                if ((k_quant && k % 256 != 0) || (race && k > 4096)) continue;
                uint32_t n = k > 4096 ? 24 : 40;
                twin_matrix w = t.matrix(type, n, k, 0.1);
                for (uint32_t rows : {1u, 2u, 3u, 9u, 17u}) {
                    if (race && rows != 2 && rows != 9) continue;
                    /* outliers, and columns that are a million times smaller than their neighbours */
                    twin_buffer x = t.buffer(rows, k), y = t.buffer(rows, n);
                    for (int kind = 0; kind < 3; kind++) {
                        t.fill(x, 1);
                        uint32_t bad = rows / 2;
                        double *to = *(double **)x.r;
                        auto set = [&](size_t i, float v) {
                            uint8_t bytes[4];
                            xl_encode_row(bytes, &v, act, 1);
                            xl_decode_row(&v, bytes, act, 1);
                            cudaMemcpy(x.c->data + i * cuda_size(act), bytes, cuda_size(act), cudaMemcpyHostToDevice);
                            to[i] = v;
                        };
                        if (kind == 1) {
                            for (size_t i = 0; i < (size_t)rows * k; i += 97) set(i, (float)to[i] * 1000);
                        }
                        if (kind == 2) set((size_t)bad * k + k / 2, rows % 2 == 0 ? INFINITY : NAN);
                        t.poison(y);
                        plain_batch bc(rows, sc), br(rows, sr);
                        t.pass(bc.b, br.b, [&](xl_backend *be, bool cuda) {
                            xl_linear l = {};
                            l.weight = cuda ? w.c : w.r, l.out = cuda ? y.c : y.r, l.stride = n;
                            be->ops->linear(be, &l, 1, cuda ? x.c : x.r, false);
                        });
                        std::string detail = std::string(name(act)) + " x " + name(type) + " k " + std::to_string(k) +
                                             " rows " + std::to_string(rows) + " kind " + std::to_string(kind);
                        if (kind < 2) {
                            t.compare("block", detail, y, rows, tolerance(act, true));
                            continue;
                        }
                        std::vector<float> a = t.read_c(y, (size_t)rows * n), b = t.read_r(y, (size_t)rows * n);
                        uint32_t finite = 0;
                        for (uint32_t i = 0; i < n; i++) finite += xl_is_finite(a[(size_t)bad * n + i]);
                        check("block not finite", detail, finite, 0);
                        a.erase(a.begin() + (ptrdiff_t)((size_t)bad * n),
                                a.begin() + (ptrdiff_t)((size_t)(bad + 1) * n));
                        b.erase(b.begin() + (ptrdiff_t)((size_t)bad * n),
                                b.begin() + (ptrdiff_t)((size_t)(bad + 1) * n));
                        check("block beside", detail, distance(a, b), tolerance(act, true));
                    }
                    t.drop(x), t.drop(y);
                }
                t.drop(w);
            }
        }
        t.c->ops->store_free(t.c, sc);
        t.r->ops->store_free(t.r, sr);
    }
    printf("block formats: %d checks, %d failures so far\n", checks - before, failures);
}

/* ---- norms, output gate and swiglu inside the products ---------------------------------------------------------------- */

static void test_fused()
{
    int before = checks;
    for (xlstm_dtype act : {XLSTM_F32, XLSTM_BF16, XLSTM_F16}) {
        for (xlstm_dtype type :
             {XLSTM_BF16, XLSTM_F32, XLSTM_F16, XLSTM_Q8_0, XLSTM_Q4_0, XLSTM_Q4_K, XLSTM_Q5_K, XLSTM_Q6_K}) {
            if (race && type != XLSTM_BF16 && type != XLSTM_Q4_K) continue;
            bool k_quant = type == XLSTM_Q4_K || type == XLSTM_Q5_K || type == XLSTM_Q6_K;
            for (uint32_t rows : {1u, 2u, 3u}) {
                xl_backend_options o = options_for(act);
                /* one trip of the block's warps over the columns, and two */
                o.embedding_dim = rows == 1 && (type == XLSTM_BF16 || type == XLSTM_Q8_0) ? 2304 : 512;
                o.num_heads = 2;
                o.head_v = type == XLSTM_Q8_0 ? 512 : 256;
                o.ffn_dim = k_quant ? 768 : cuda_plain(type) ? 712 : 736;
                uint32_t D = o.embedding_dim, V = o.vocab_size, F = o.ffn_dim, Qd = o.num_heads * o.head_qk,
                         Vd = o.num_heads * o.head_v;
                twins t(o);
                std::vector<twin_store> s(rows);
                for (twin_store &one : s) {
                    MUST(t.c->ops->store_new(t.c, &one.c, &err));
                    MUST(t.r->ops->store_new(t.r, &one.r, &err));
                }
                twin_matrix emb = t.matrix(XLSTM_BF16, V, D, 1, false, XL_USE_ROWS),
                            wn = t.matrix(XLSTM_F32, 1, D, 0.1, true), wm = t.matrix(XLSTM_F32, 1, Vd, 0.1, true),
                            wq = t.matrix(type, Qd, D, 0.05), wk = t.matrix(type, Qd, D, 0.05),
                            wv = t.matrix(type, Vd, D, 0.05), wo = t.matrix(type, Vd, D, 0.05),
                            wi = t.matrix(XLSTM_F32, o.num_heads, D, 0.05), wp = t.matrix(type, D, Vd, 0.05),
                            wg = t.matrix(type, F, D, 0.05), wu = t.matrix(type, F, D, 0.05),
                            wd = t.matrix(type, D, F, 0.05), wh = t.matrix(type, V, D, 0.05);
                twin_buffer x = t.buffer(rows, D), u = t.buffer(rows, D), q = t.buffer(rows, Qd),
                            k = t.buffer(rows, Qd), v = t.buffer(rows, Vd), ob = t.buffer(rows, Vd),
                            h = t.buffer(rows, Vd), g = t.buffer(rows, Vd), gates = t.buffer(rows, 2 * o.num_heads),
                            y = t.buffer(rows, F), z = t.buffer(rows, F), p = t.buffer(rows, F),
                            last = t.buffer(rows, D), logits = t.buffer(rows, V);
                for (int step = 0; step < 3; step++) {
                    plain_batch bc(rows, nullptr), br(rows, nullptr);
                    std::vector<xl_run> rc(rows), rr(rows);
                    std::vector<uint32_t> out(rows);
                    for (uint32_t i = 0; i < rows; i++) {
                        rc[i] = {i, 1, (uint64_t)step, s[i].c};
                        rr[i] = {i, 1, (uint64_t)step, s[i].r};
                        out[i] = i;
                    }
                    br.ids = bc.ids;
                    for (plain_batch *b : {&bc, &br}) {
                        b->b.ids = b->ids.data();
                        b->b.runs = b == &bc ? rc.data() : rr.data();
                        b->b.n_runs = rows;
                        b->b.out_rows = out.data();
                        b->b.n_out = rows;
                        b->b.traced = false;
                    }
                    t.pass(bc.b, br.b, [&](xl_backend *be, bool cuda) {
                        auto pick = [&](twin_matrix &m) { return cuda ? m.c : m.r; };
                        auto place = [&](twin_buffer &b) { return cuda ? b.c : b.r; };
                        xl_norm norm = {pick(wn), nullptr, D, 1e-6f, 1}, mh = {pick(wm), nullptr, Vd, 1e-6f, 2};
                        be->ops->embed(be, place(x), pick(emb));
                        be->ops->rmsnorm(be, place(u), place(x), &norm, false);
                        xl_linear l[6] = {};
                        l[0].weight = pick(wq), l[0].out = place(q), l[0].stride = Qd;
                        l[1].weight = pick(wk), l[1].out = place(k), l[1].stride = Qd;
                        l[2].weight = pick(wv), l[2].out = place(v), l[2].stride = Vd;
                        l[3].weight = pick(wo), l[3].out = place(ob), l[3].stride = Vd;
                        l[4].weight = pick(wi), l[4].out = place(gates), l[4].stride = 2 * o.num_heads,
                        l[4].wide = true;
                        l[5] = l[4];
                        l[5].column = o.num_heads;
                        be->ops->linear(be, l, 6, place(u), false);
                        xl_mlstm cell = {place(h), place(q), place(k), place(v), place(gates), 0, 15.0f, 1e-6f, 3};
                        be->ops->mlstm(be, &cell);
                        be->ops->mhnorm_gate(be, place(g), place(h), place(ob), &mh);
                        xl_linear one = {};
                        one.weight = pick(wp), one.out = place(x), one.stride = D, one.add = true;
                        be->ops->linear(be, &one, 1, place(g), false);
                        be->ops->rmsnorm(be, place(u), place(x), &norm, false);
                        xl_linear two[2] = {};
                        two[0].weight = pick(wg), two[0].out = place(y), two[0].stride = F;
                        two[1].weight = pick(wu), two[1].out = place(z), two[1].stride = F;
                        be->ops->linear(be, two, 2, place(u), false);
                        be->ops->swiglu(be, place(p), place(y), place(z));
                        one.weight = pick(wd);
                        be->ops->linear(be, &one, 1, place(p), false);
                        be->ops->gather(be, place(last), place(x), D);
                        be->ops->rmsnorm(be, place(u), place(last), &norm, true);
                        xl_linear head = {};
                        head.weight = pick(wh), head.out = place(logits), head.stride = V, head.wide = true;
                        be->ops->linear(be, &head, 1, place(u), true);
                        be->ops->softcap(be, place(logits), V, 30, 5);
                    });
                    std::string detail = std::string(name(act)) + " x " + name(type) + " rows " + std::to_string(rows) +
                                         " step " + std::to_string(step);
                    double limit = act == XLSTM_F32 ? 1e-4 : act == XLSTM_F16 ? 5e-3 : 4e-2;
                    t.compare("fused x", detail, x, rows, limit);
                    t.compare("fused p", detail, p, rows, limit);
                    t.compare("fused gates", detail, gates, rows, limit);
                    t.compare("fused logits", detail, logits, rows, limit);
                    uint32_t faults = 0;
                    for (uint32_t i = 0; i < rows; i++) faults += t.fc[i];
                    check("fused faults", detail, faults, 0);
                }
                /* a bad value is reported where the reference reports it */
                for (int which = 0; which < 2; which++) {
                    t.fill(x, 1), t.fill(h, 1), t.fill(ob, 1);
                    twin_buffer &b = which == 0 ? x : h;
                    float nan = NAN;
                    uint8_t bytes[4];
                    xl_encode_row(bytes, &nan, act, 1);
                    size_t at = (size_t)(rows - 1) * b.width + 7;
                    cudaMemcpy(b.c->data + at * cuda_size(act), bytes, cuda_size(act), cudaMemcpyHostToDevice);
                    (*(double **)b.r)[at] = nan;
                    plain_batch bc(rows, s[0].c), br(rows, s[0].r);
                    bc.b.traced = br.b.traced = false;
                    t.pass(bc.b, br.b, [&](xl_backend *be, bool cuda) {
                        auto pick = [&](twin_matrix &m) { return cuda ? m.c : m.r; };
                        auto place = [&](twin_buffer &m) { return cuda ? m.c : m.r; };
                        xl_norm norm = {pick(wn), nullptr, D, 1e-6f, 1}, mh = {pick(wm), nullptr, Vd, 1e-6f, 2};
                        xl_linear l = {};
                        if (which == 0) {
                            be->ops->rmsnorm(be, place(u), place(x), &norm, false);
                            l.weight = pick(wv), l.out = place(v), l.stride = Vd;
                            be->ops->linear(be, &l, 1, place(u), false);
                        } else {
                            be->ops->mhnorm_gate(be, place(g), place(h), place(ob), &mh);
                            l.weight = pick(wp), l.out = place(x), l.stride = D;
                            be->ops->linear(be, &l, 1, place(g), false);
                        }
                    });
                    for (uint32_t i = 0; i < rows; i++)
                        check("fused fault", std::string(name(act)) + " rows " + std::to_string(rows),
                              fabs((double)t.fc[i] - t.fr[i]), 0);
                }
                for (twin_buffer *b : {&x, &u, &q, &k, &v, &ob, &h, &g, &gates, &y, &z, &p, &last, &logits}) t.drop(*b);
                for (twin_matrix *m : {&emb, &wn, &wm, &wq, &wk, &wv, &wo, &wi, &wp, &wg, &wu, &wd, &wh}) t.drop(*m);
                for (twin_store &one : s) {
                    t.c->ops->store_free(t.c, one.c);
                    t.r->ops->store_free(t.r, one.r);
                }
            }
        }
    }
    printf("fused: %d checks, %d failures so far\n", checks - before, failures);
}

static void test_errors()
{
    xl_backend_options o = options_for(XLSTM_F32);
    xl_backend *be;
    o.device = 1000;
    check("errors", "device", xlstm_cuda_backend()->open(&be, &o, &err) != XLSTM_E_ARGUMENT, 0);
    o.device = gpu;
    MUST(xlstm_cuda_backend()->open(&be, &o, &err));
    xl_buffer *b;
    check("errors", "memory", be->ops->buffer_new(be, &b, 1u << 30, 1u << 12, &err) != XLSTM_E_MEMORY, 0);
    printf("as it should be: %s\n", err.message);
    char text[64];
    be->ops->describe(be, text, sizeof(text));
    printf("%s\n", text);
    be->ops->close(be);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)();
        bool fresh; /* begins with the first random numbers, alone or after others */
    } groups[] = {{"errors", test_errors, false},
                  {"buffers", test_buffers, true},
                  {"elementwise", test_elementwise, false},
                  {"cell", test_cell, false},
                  {"faults", test_faults, false},
                  {"replay", test_replay, false},
                  {"linear", test_linear, false},
                  {"blocks", test_block_formats, true},
                  {"fused", test_fused, true},
                  {"int8", test_int8, true},
                  {"int8-cell", test_int8_cell, true},
                  {"int8-prompts", test_int8_prompts, true},
                  {"int8-turns", test_int8_turns, true},
                  {"poison", test_poison, true},
                  {"spill", test_spill, true},
                  {"threads", test_threads, true},
                  {"devices", test_devices, true},
                  {"sample", test_sample, true}};
    setvbuf(stdout, nullptr, _IOLBF, 0);
    const char *only = nullptr;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "race") == 0) race = quick = true;
        else if (strcmp(argv[i], "quick") == 0) quick = true;
        else if (sscanf(argv[i], "device=%u", &gpu) == 1) continue;
        else only = argv[i];
    }
    xl_backend_options o = options_for(XLSTM_F32);
    xl_backend *probe;
    if (xlstm_cuda_backend()->open(&probe, &o, &err) != XLSTM_OK) {
        printf("skip: %s\n", err.message);
        return 77;
    }
    probe->ops->close(probe);
    printf("seed %llx\n", (unsigned long long)seed);
    const uint64_t start = seed;
    for (const auto &group : groups) {
        if (group.fresh) seed = start;
        if (only == nullptr || strcmp(only, group.name) == 0) group.run();
    }
    printf("%s: %d checks, %d failures\n", failures == 0 && checks > 0 ? "PASSED" : "FAILED", checks, failures);
    return failures != 0 || checks == 0;
}
