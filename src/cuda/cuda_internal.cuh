/*
 * cuda_internal.cuh — what the files of the cuda backend share: the objects behind the opaque types, the tables a pass
 * leaves on the device, and the launchers. Launchers enqueue on be->stream and never synchronise. Layer 2.
 */
#ifndef XL_CUDA_INTERNAL_CUH
#define XL_CUDA_INTERNAL_CUH

extern "C" {
#include "backend.h"
}

#include <cuda_runtime.h>

#include <mutex>
#include <vector>

/* Weights on the device. Plain formats: [out][pitch] elements, the rest of a row zero. Block formats: tiles of 16
 * rows, see cuda_quant.cuh; K-quants other than Q4_K are held as 8-bit values with one scale per 16. */
struct xl_matrix {
    xlstm_dtype dtype; /* as stored in the file, after `hold` */
    uint32_t rank;
    uint32_t out, in;
    size_t pitch;    /* plain: elements a row */
    uint8_t *data;   /* vectors: float [in] */
    uint8_t *scales; /* block formats, inside the same allocation */
    uint8_t *rows;   /* block formats used by embed: float [out][in] */
    size_t bytes;
};

/* Room for [rows][width] float32; `dtype` says what it holds now (logits are float32 in every mode). */
struct xl_buffer {
    uint8_t *data;
    size_t rows, width;
    xlstm_dtype dtype;
};

/* [num_blocks][NH][dq][dv] C in the state dtype, then n and m twice in float32: a pass reads one copy and writes the
 * other, because all tiles of a head read them while one writes. int8: a block's scales [NH][dq] come after its values.
 * The bytes are on the device or, while others need the room there, in host memory. */
struct xl_store {
    uint8_t *data;           /* on the device, or NULL */
    uint8_t *host;           /* in host memory, or NULL */
    bool pinned;             /* how `host` was allocated */
    uint32_t parity;         /* which copy of n and m is current */
    uint64_t pass;           /* the last one it took part in */
    xl_store *newer, *older; /* in use on the device: by last use. Free: `older` is the next */
};

/* Host memory for one state. */
struct cuda_host_block {
    uint8_t *bytes;
    bool pinned;
};
enum { SPARE_BLOCKS = 4 }; /* most kept for the next state that has to leave the device */

/* A run as kernels see it; pointers are those of block 0. */
struct cuda_run {
    uint8_t *c;
    uint8_t *packed; /* int8 states, several tokens: C of block 0; `c` is then room for the float32 C of any block */
    const float *n_in, *m_in;
    float *n_out, *m_out;
    uint64_t position;
    uint32_t row, count;
    uint32_t chunk0, n_chunks; /* its pieces in the chunk table */
};

/* A piece of a run: ends at a multiple of the piece size since the start of the sequence, or with the run; where the state
 * is rounded at chunk borders, at those, and at multiples of the piece size inside a chunk. */
struct cuda_chunk {
    uint32_t row, count;
};

/* A choice from an output row; n_tokens 0: none is wanted. */
struct cuda_sample {
    double uniform;
    uint32_t n_tokens, top_k;
    float temperature, top_p, min_p;
};

enum { CHUNK = 128, CHUNKED_FROM = 16 }; /* largest piece size; tokens of a run from which the chunkwise form is used */
enum { COUNTERS = 2048 }; /* kernels of a pass that hand out work */

struct cuda_op {
    enum kind_t { EMBED, RMSNORM, LINEAR, MLSTM, MHNORM, SWIGLU, ADD, GATHER, SOFTCAP, SAMPLE } kind;
    xl_buffer *y;
    const xl_buffer *x, *x2;
    const xl_matrix *matrix;
    xl_norm norm;
    xl_mlstm mlstm;
    xl_linear group[8];
    uint32_t n, width, fault;
    float cap;
    bool out_rows;
};

struct cuda_graph {
    uint32_t rows, n_out;
    bool sampled;
    uint64_t used;        /* pass number, for replacement */
    cudaGraphExec_t exec; /* NULL: seen once */
};

struct cuda_gemm;

struct cuda_backend {
    xl_backend base;
    xl_backend_options opt;
    xl_state_layout layout;
    int device, sms, arch; /* arch: 90 for 9.0 */
    size_t smem_max;       /* bytes a block can have */
    char device_name[128];
    cudaStream_t stream;
    bool overlap; /* programmatic dependent launch works here */

    /* one upload a pass: ids, out_rows, runs, chunks, samples */
    uint8_t *host_table, *device_table;
    size_t table_bytes;
    int32_t *ids;
    uint32_t *out_rows;
    cuda_run *runs; /* of one token first, then the other stepped ones, then chunked ones */
    const cuda_run *host_runs; /* the same, in the host's copy */
    cuda_chunk *chunks;
    size_t max_chunks;
    cuda_sample *samples;          /* [n_out] */
    int32_t *chosen, *host_chosen; /* [n_out] */
    float *sample_weights;         /* [sample_blocks][vocab_size] */
    uint32_t sample_blocks;
    uint32_t *counters, *faults, *host_faults; /* counters [COUNTERS], then faults: one clearing */
    uint32_t n_counters;                       /* handed to kernels of this pass */
    uint8_t *intra;                            /* chunkwise scratch */
    size_t intra_bytes;

    /* the pass */
    xl_batch batch;
    uint32_t n_single, n_step, n_chunked, n_chunks; /* n_step counts the single ones, too */
    std::vector<cuda_op> ops;
    bool open_pass, flushed, replay, after_kernel;
    bool decode; /* every run is one token */
    cudaError_t failed;
    char failed_what[160];
    std::vector<cuda_graph> graphs;
    uint64_t passes;

    /* States. A pass holds the lock from begin to submit, other operations on states while they run: a state of the
     * batch stays where it is, and nobody's copies end up in a recording. */
    std::recursive_mutex states_lock;
    xl_store *newest, *oldest, *free_stores; /* newest and oldest of those in use on the device */
    uint32_t n_blocks, n_spilled;            /* blocks on the device, free ones included; stores in host memory */
    cuda_host_block spares[SPARE_BLOCKS];    /* at least one whenever a store is in host memory: begin allocates none */
    uint32_t n_spares;
    bool holding;                                /* a pass has the lock */
    size_t store_bytes, c_block, n_copy, m_copy; /* bytes of C a block, floats of one copy of n and of m */
    /* int8 states only */
    size_t c_scales;   /* where the scales of a block lie behind its values */
    uint8_t *unpacked; /* [unpacked_runs][unpacked_bytes]: float32 C of one block */
    size_t unpacked_bytes;
    uint32_t unpacked_runs;
    float *partial;    /* [sms][dv] shares of h */
    uint32_t *tickets; /* [sms] shares that are ready; each use leaves them 0 */

    /* memory */
    uint8_t *pinned[2];
    cudaEvent_t pinned_free[2];
    uint8_t *raw[2]; /* device side of the same, for conversion */
    uint32_t next_pinned;

    cuda_gemm *gemm; /* NULL: cublasLt not found */
    char gemm_note[160];
    uint8_t *scratch; /* dequantised weights, split activations */
    size_t scratch_bytes;
};

static inline cuda_backend *cuda_of(xl_backend *be) { return (cuda_backend *)be; }
static inline const cuda_backend *cuda_of(const xl_backend *be) { return (const cuda_backend *)be; }

/* Makes the backend's device the current one of this thread. */
int cuda_enter(const cuda_backend *be, xlstm_error *err);
/* Remembers the first failure of a pass. */
void cuda_note(cuda_backend *be, cudaError_t code, const char *what);
int cuda_fail(xlstm_error *err, cudaError_t code, const char *what);
int cuda_alloc(cuda_backend *be, void **out, size_t bytes, const char *what, xlstm_error *err);
/* Scratch of at least `bytes`, grown outside captures only. NULL on failure (noted). */
void *cuda_scratch(cuda_backend *be, size_t bytes);

static inline bool cuda_plain(xlstm_dtype t) { return t == XLSTM_F32 || t == XLSTM_F16 || t == XLSTM_BF16; }
static inline size_t cuda_size(xlstm_dtype t) { return t == XLSTM_F32 ? 4 : 2; }

/* Launches with the attributes that let a kernel start while its predecessor drains. */
template <typename... P, typename... A>
static inline void cuda_launch(cuda_backend *be, const char *what, void (*kernel)(P...), dim3 grid, dim3 block,
                               size_t smem, A... args)
{
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = be->stream;
    config.attrs = &attribute;
    config.numAttrs = be->overlap && be->after_kernel ? 1 : 0;
    cudaError_t code = cudaLaunchKernelEx(&config, kernel, P(args)...);
    if (code != cudaSuccess) cuda_note(be, code, what);
    be->after_kernel = true;
}

/* cuda_states.cu */
void cuda_states_open(cuda_backend *be); /* sizes */
/* Brings the states of a batch to the device and keeps them there until released. Copies are enqueued. */
int cuda_states_hold(cuda_backend *be, const xl_batch *batch, xlstm_error *err);
void cuda_states_release(cuda_backend *be);
uint32_t cuda_most_runs(xl_backend *base);
void cuda_states_close(cuda_backend *be);
int cuda_store_new(xl_backend *base, xl_store **out, xlstm_error *err);
void cuda_store_free(xl_backend *base, xl_store *s);
int cuda_store_zero(xl_backend *base, xl_store *s, xlstm_error *err);
int cuda_store_copy(xl_backend *base, xl_store *to, const xl_store *from, xlstm_error *err);
int cuda_store_read(xl_backend *base, const xl_store *s, void *host, xlstm_error *err);
int cuda_store_write(xl_backend *base, xl_store *s, const void *host, xlstm_error *err);
/* Where copy 0 or 1 of n and of m lies in a store. */
static inline size_t cuda_n_at(const cuda_backend *be, uint32_t copy)
{
    return be->c_block * be->opt.num_blocks + copy * be->n_copy * sizeof(float);
}
static inline size_t cuda_m_at(const cuda_backend *be, uint32_t copy)
{
    return cuda_n_at(be, 2) + copy * be->m_copy * sizeof(float);
}

/* cuda_elementwise.cu */
void cuda_run_embed(cuda_backend *be, const cuda_op *op);
void cuda_run_rmsnorm(cuda_backend *be, const cuda_op *op, uint32_t rows);
void cuda_run_mhnorm(cuda_backend *be, const cuda_op *op, uint32_t rows);
void cuda_run_swiglu(cuda_backend *be, const cuda_op *op, uint32_t rows);
void cuda_run_add(cuda_backend *be, const cuda_op *op, uint32_t rows);
void cuda_run_gather(cuda_backend *be, const cuda_op *op);
void cuda_run_softcap(cuda_backend *be, const cuda_op *op);
/* dst[rows][dst_pitch] = convert(src[rows][cols]), the rest of each row zero; plain dtypes. */
void cuda_run_convert(cudaStream_t stream, void *dst, xlstm_dtype dst_type, size_t dst_pitch, const void *src,
                      xlstm_dtype src_type, size_t rows, size_t cols);
/* hi, mid, lo: bf16 [n] parts of float x whose sum is x to 24 bits; the third (and second) may be NULL */
void cuda_run_split(cuda_backend *be, void *parts, size_t stride, uint32_t n_parts, const xl_buffer *x, size_t n);
void cuda_run_bias(cuda_backend *be, const xl_linear *l, uint32_t rows);

/* cuda_linear.cu */
void cuda_run_linear(cuda_backend *be, const cuda_op *op, uint32_t rows);
/* For few rows the products do the norm in front of them, and a swiglu behind them, themselves: then those operations
 * launch nothing, and their buffers in between are not written. Never in traced passes. */
bool cuda_norm_goes_through(const cuda_backend *be, const cuda_op *norm, uint32_t rows);
bool cuda_swiglu_is_done(const cuda_backend *be, const cuda_op *swiglu, uint32_t rows);
cudaError_t cuda_linear_setup(cuda_backend *be);

/* cuda_gemm.cu: large products through cublasLt */
int cuda_gemm_open(cuda_backend *be);
void cuda_gemm_close(cuda_backend *be);
/* A stream for work beside large products: it starts after what the backend's stream has, and must be joined. */
cudaStream_t cuda_gemm_fork(cuda_backend *be);
void cuda_gemm_join(cuda_backend *be);
/* A second product with the same x: how far its weights and output lie from the first's, in elements. */
struct cuda_pair {
    int64_t w, y;
};
/* y[m][ldy] (+)= x[m][ldx] w[n][ldw]^T, and a second time for a `pair`; false: no algorithm */
bool cuda_gemm_run(cuda_backend *be, void *y, xlstm_dtype y_type, size_t ldy, const void *x, size_t ldx, const void *w,
                   size_t ldw, xlstm_dtype xw_type, uint32_t m, uint32_t n, uint32_t k, bool add,
                   const cuda_pair *pair = nullptr);

/* cuda_mlstm.cu */
void cuda_run_mlstm(cuda_backend *be, const cuda_op *op);
/* Stepped runs first .. first + n - 1; C of the block, float32 or bfloat16, lies c_block bytes behind a run's c. */
void cuda_run_steps(cuda_backend *be, const cuda_op *op, uint32_t first, uint32_t n, size_t c_block);
cudaError_t cuda_mlstm_setup(cuda_backend *be);
bool cuda_chunkwise_fits(const cuda_backend *be);
size_t cuda_chunk_scratch(const cuda_backend *be); /* bytes, given max_chunks */
uint32_t cuda_piece_size(const cuda_backend *be); /* most tokens a piece */
/* Tokens of a sequence after which a piece ends, too: where C is rounded to the state's format. */
static inline uint32_t cuda_piece_period(const cuda_backend *be)
{
    return be->opt.state == XLSTM_BF16 ? be->opt.chunk_size : cuda_piece_size(be);
}

/* cuda_int8.cu: int8 states */
int cuda_int8_open(cuda_backend *be, xlstm_error *err);
void cuda_int8_close(cuda_backend *be);
void cuda_run_int8(cuda_backend *be, const cuda_op *op);

/* cuda_sample.cu */
int cuda_sample_open(cuda_backend *be, xlstm_error *err);
void cuda_run_sample(cuda_backend *be, const cuda_op *op);

/* cuda_quant.cu */
bool cuda_quant_supported(xlstm_dtype t);
/* Bytes of a matrix in tiles: values and scales. */
void cuda_quant_sizes(xlstm_dtype t, uint32_t out, uint32_t in, size_t *values, size_t *scales);
/* Repacks `rows` rows from the file's layout; row0 is a multiple of 16. */
void cuda_quant_repack(cudaStream_t stream, xl_matrix *m, const void *src, uint32_t row0, uint32_t rows);
/* Rows row0.. of a tiled matrix to plain [rows][pitch]. */
void cuda_quant_unpack(cuda_backend *be, void *dst, xlstm_dtype dst_type, size_t pitch, const xl_matrix *m,
                       uint32_t row0, uint32_t rows);
/* The file's rows to float32. */
void cuda_quant_decode(cudaStream_t stream, float *dst, size_t pitch, const void *src, xlstm_dtype t, uint32_t rows,
                       uint32_t in);

extern "C" __attribute__((visibility("default"))) const xl_backend_ops *xlstm_cuda_backend(void);
extern "C" __attribute__((visibility("default"))) const xl_plugin xlstm_cuda_plugin;

#endif
