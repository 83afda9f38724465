/*
 * cuda_gemm.cu — large products through cublasLt, which is opened when the backend is (it is half a gigabyte and not
 * every machine has it). For each new shape the library's first suggestions are timed on the device and the best is
 * kept.
 */
#include "cuda_internal.cuh"

#include <cublasLt.h>
#include <dlfcn.h>

namespace
{

constexpr size_t WORKSPACE = 64u << 20;
constexpr int SUGGESTIONS = 24, MANY_ROWS = 128, SUGGESTIONS_MANY = 8, TRIES = 3; /* few rows: short to time */

struct plan {
    uint32_t m, n, k;
    size_t ldx, ldw, ldy;
    xlstm_dtype y_type, xw_type;
    bool add, paired;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t x, w, y;
    cublasLtMatmulAlgo_t algo;
    bool usable;
};

cudaDataType_t cuda_type(xlstm_dtype t)
{
    return t == XLSTM_BF16 ? CUDA_R_16BF : t == XLSTM_F16 ? CUDA_R_16F : CUDA_R_32F;
}

} // namespace

struct cuda_gemm {
    void *library;
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatrixLayoutSetAttribute) layout_set;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) suggest;
    cublasLtHandle_t handle;
    void *workspace;
    cudaStream_t side; /* for what runs beside large products */
    cudaEvent_t forked, joined;
    std::vector<plan> plans;
};

static void release(cuda_gemm *g, bool bound)
{
    for (plan &p : g->plans) {
        g->layout_destroy(p.x);
        g->layout_destroy(p.w);
        g->layout_destroy(p.y);
        g->desc_destroy(p.desc);
    }
    if (g->side != nullptr) cudaStreamDestroy(g->side);
    for (cudaEvent_t event : {g->forked, g->joined}) {
        if (event != nullptr) cudaEventDestroy(event);
    }
    if (bound && g->handle != nullptr) g->destroy(g->handle);
    cudaFree(g->workspace);
    dlclose(g->library);
    delete g;
}

int cuda_gemm_open(cuda_backend *be)
{
    static const char *const names[] = {"libcublasLt.so.13",
                                        "libcublasLt.so.12",
                                        "libcublasLt.so",
                                        "/usr/local/cuda/lib64/libcublasLt.so",
                                        "/usr/local/cuda/lib64/libcublasLt.so.13",
                                        "/usr/local/cuda/lib64/libcublasLt.so.12"};
    void *library = nullptr;
    for (size_t i = 0; i < XL_COUNT(names) && library == nullptr; i++)
        library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        snprintf(be->gemm_note, sizeof(be->gemm_note),
                 "libcublasLt was not found: prompts run on the decode kernels, more slowly");
        return XLSTM_E_DEVICE;
    }
    cuda_gemm *g = new cuda_gemm();
    g->library = library;
    bool found = true;
    auto bind = [&](auto &function, const char *name) {
        *(void **)&function = dlsym(library, name);
        if (function == nullptr) found = false;
    };
    bind(g->create, "cublasLtCreate");
    bind(g->destroy, "cublasLtDestroy");
    bind(g->matmul, "cublasLtMatmul");
    bind(g->desc_create, "cublasLtMatmulDescCreate");
    bind(g->desc_destroy, "cublasLtMatmulDescDestroy");
    bind(g->desc_set, "cublasLtMatmulDescSetAttribute");
    bind(g->layout_create, "cublasLtMatrixLayoutCreate");
    bind(g->layout_destroy, "cublasLtMatrixLayoutDestroy");
    bind(g->layout_set, "cublasLtMatrixLayoutSetAttribute");
    bind(g->preference_create, "cublasLtMatmulPreferenceCreate");
    bind(g->preference_destroy, "cublasLtMatmulPreferenceDestroy");
    bind(g->preference_set, "cublasLtMatmulPreferenceSetAttribute");
    bind(g->suggest, "cublasLtMatmulAlgoGetHeuristic");
    if (!found || g->create(&g->handle) != CUBLAS_STATUS_SUCCESS ||
        cudaMalloc(&g->workspace, WORKSPACE) != cudaSuccess ||
        cudaStreamCreateWithFlags(&g->side, cudaStreamNonBlocking) != cudaSuccess ||
        cudaEventCreateWithFlags(&g->forked, cudaEventDisableTiming) != cudaSuccess ||
        cudaEventCreateWithFlags(&g->joined, cudaEventDisableTiming) != cudaSuccess) {
        release(g, found);
        (void)cudaGetLastError();
        snprintf(be->gemm_note, sizeof(be->gemm_note),
                 "libcublasLt could not be set up: prompts run on the decode kernels");
        return XLSTM_E_DEVICE;
    }
    be->gemm = g;
    return XLSTM_OK;
}

void cuda_gemm_close(cuda_backend *be)
{
    if (be->gemm != nullptr) release(be->gemm, true);
    be->gemm = nullptr;
}

cudaStream_t cuda_gemm_fork(cuda_backend *be)
{
    cuda_gemm *g = be->gemm;
    cudaError_t code = cudaEventRecord(g->forked, be->stream);
    if (code == cudaSuccess) code = cudaStreamWaitEvent(g->side, g->forked, 0);
    if (code != cudaSuccess) cuda_note(be, code, "forking a stream");
    return g->side;
}

void cuda_gemm_join(cuda_backend *be)
{
    cuda_gemm *g = be->gemm;
    cudaError_t code = cudaEventRecord(g->joined, g->side);
    if (code == cudaSuccess) code = cudaStreamWaitEvent(be->stream, g->joined, 0);
    if (code != cudaSuccess) cuda_note(be, code, "joining a stream");
    be->after_kernel = false;
}

/* `cold`: overwritten before each try, so that weights come from memory as they will. */
static float time_once(cuda_gemm *g, cuda_backend *be, const plan &p, const cublasLtMatmulAlgo_t *algo, const void *w,
                       const void *x, void *y, void *cold, size_t cold_bytes, cudaEvent_t from, cudaEvent_t to)
{
    float one = 1, beta = p.add ? 1.0f : 0.0f, best = 1e30f;
    for (int i = 0; i < TRIES + 1; i++) { /* the first warms up */
        if (cold != nullptr) cudaMemsetAsync(cold, i, cold_bytes, be->stream);
        cudaEventRecord(from, be->stream);
        if (g->matmul(g->handle, p.desc, &one, w, p.w, x, p.x, &beta, y, p.y, y, p.y, algo, g->workspace, WORKSPACE,
                      be->stream) != CUBLAS_STATUS_SUCCESS) {
            return 1e30f;
        }
        cudaEventRecord(to, be->stream);
        if (cudaEventSynchronize(to) != cudaSuccess) return 1e30f;
        float ms = 0;
        cudaEventElapsedTime(&ms, from, to);
        if (i > 0 && ms < best) best = ms;
    }
    return best;
}

static void set_strides(cuda_gemm *g, const plan &p, int64_t w, int64_t y)
{
    g->layout_set(p.w, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &w, sizeof(w));
    g->layout_set(p.y, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &y, sizeof(y));
}

/* cublasLt counts columns first: the row-major y [m][ldy] is its n x m matrix, and y^T = (w)^T' x^T'. */
static plan make_plan(cuda_gemm *g, cuda_backend *be, plan p, const void *w, const void *x, const cuda_pair *pair,
                      bool capturing)
{
    cublasOperation_t transpose = CUBLAS_OP_T;
    p.usable = false;
    g->desc_create(&p.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    g->desc_set(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof(transpose));
    g->layout_create(&p.w, cuda_type(p.xw_type), p.k, p.n, (int64_t)p.ldw);
    g->layout_create(&p.x, cuda_type(p.xw_type), p.k, p.m, (int64_t)p.ldx);
    g->layout_create(&p.y, cuda_type(p.y_type), p.n, p.m, (int64_t)p.ldy);
    if (pair != nullptr) {
        int32_t two = 2;
        for (cublasLtMatrixLayout_t layout : {p.w, p.x, p.y})
            g->layout_set(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &two, sizeof(two));
        set_strides(g, p, pair->w, pair->y);
    }
    size_t y_bytes = (size_t)p.m * p.ldy * cuda_size(p.y_type) * (pair != nullptr ? 2 : 1);
    cublasLtMatmulPreference_t preference;
    if (g->preference_create(&preference) != CUBLAS_STATUS_SUCCESS) return p;
    size_t workspace = WORKSPACE;
    g->preference_set(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof(workspace));
    cublasLtMatmulHeuristicResult_t results[SUGGESTIONS];
    int n = 0;
    if (g->suggest(g->handle, p.desc, p.w, p.x, p.y, p.y, preference, p.m <= MANY_ROWS ? SUGGESTIONS : SUGGESTIONS_MANY,
                   results, &n) != CUBLAS_STATUS_SUCCESS)
        n = 0;
    g->preference_destroy(preference);
    if (n == 0) return p;
    p.usable = true;
    p.algo = results[0].algo;
    if (n == 1 || capturing) return p;
    /* timed into memory of its own: with `add` the true output must not change */
    void *y = nullptr, *cold = nullptr;
    cudaEvent_t from, to;
    if (cudaMalloc(&y, y_bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        return p;
    }
    int cache = 0;
    cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, be->device);
    size_t cold_bytes = 2 * (size_t)cache;
    if (p.m > MANY_ROWS || cache <= 0 || cudaMalloc(&cold, cold_bytes) != cudaSuccess) {
        (void)cudaGetLastError();
        cold = nullptr;
    }
    cudaEventCreate(&from);
    cudaEventCreate(&to);
    if (pair != nullptr) set_strides(g, p, pair->w, (int64_t)(p.m * p.ldy));
    cudaMemsetAsync(y, 0, y_bytes, be->stream);
    float best = 1e30f;
    for (int i = 0; i < n; i++) {
        float ms = time_once(g, be, p, &results[i].algo, w, x, y, cold, cold_bytes, from, to);
        if (ms < best) {
            best = ms;
            p.algo = results[i].algo;
        }
    }
    cudaEventDestroy(from);
    cudaEventDestroy(to);
    cudaFree(y);
    cudaFree(cold);
    return p;
}

bool cuda_gemm_run(cuda_backend *be, void *y, xlstm_dtype y_type, size_t ldy, const void *x, size_t ldx, const void *w,
                   size_t ldw, xlstm_dtype xw_type, uint32_t m, uint32_t n, uint32_t k, bool add, const cuda_pair *pair)
{
    cuda_gemm *g = be->gemm;
    if (g == nullptr) return false;
    const plan *found = nullptr;
    for (const plan &p : g->plans) {
        if (p.m == m && p.n == n && p.k == k && p.ldx == ldx && p.ldw == ldw && p.ldy == ldy && p.y_type == y_type &&
            p.xw_type == xw_type && p.add == add && p.paired == (pair != nullptr)) {
            found = &p;
        }
    }
    if (found == nullptr) {
        plan p = {};
        p.m = m, p.n = n, p.k = k;
        p.ldx = ldx, p.ldw = ldw, p.ldy = ldy;
        p.y_type = y_type, p.xw_type = xw_type;
        p.add = add;
        p.paired = pair != nullptr;
        cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
        cudaStreamIsCapturing(be->stream, &status);
        g->plans.push_back(make_plan(g, be, p, w, x, pair, status != cudaStreamCaptureStatusNone));
        found = &g->plans.back();
    }
    if (!found->usable) return false;
    float one = 1, beta = add ? 1.0f : 0.0f;
    if (pair != nullptr) set_strides(g, *found, pair->w, pair->y);
    be->after_kernel = false;
    return g->matmul(g->handle, found->desc, &one, w, found->w, x, found->x, &beta, y, found->y, y, found->y,
                     &found->algo, g->workspace, WORKSPACE, be->stream) == CUBLAS_STATUS_SUCCESS;
}
