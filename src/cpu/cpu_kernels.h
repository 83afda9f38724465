/*
 * cpu_kernels.h — the table of kernels that one instruction set supplies. cpu_backend.c picks a table at run time; the
 * rest of the backend knows lanes, panels and tiles only through it. All kernels run on one thread, and the order in
 * which a result is summed up depends on nothing but the sizes of its own row.
 */
#ifndef XL_CPU_KERNELS_H
#define XL_CPU_KERNELS_H

#include "../dtype.h"

/* Products run over K in blocks of this many elements: each block is summed up by itself, then added to the total. That
 * order is part of the result; how many panels a thread takes side by side (at most PANELS) only decides what stays in
 * cache. The matrix unit's blocks are longer (cpu_amx.c). */
enum { XL_CPU_K_BLOCK = 256, XL_CPU_PANELS = 4 };

/* How a product wants its activations. Rows are split evenly into tiles (xl_cpu_tile_rows); a tile of r rows is stored
 * K-major: r values of k = 0, r values of k = 1, ... */
typedef enum xl_cpu_pack {
    XL_CPU_PACK_F32,  /* [K][r] float32; odd K is padded with a zero */
    XL_CPU_PACK_BF16, /* [K/2][r][2] bfloat16; odd K is padded with a zero */
    XL_CPU_PACK_Q8,   /* int8, see below */
    XL_CPU_PACK_TILES, /* [K/32][r][32] bfloat16, padded with zeros, for the matrix unit */
    XL_CPU_PACK_SPLIT, /* [K/32][3][r][32] bfloat16: float32 as the sum of three */
    XL_CPU_PACKS
} xl_cpu_pack;

/* Int8 activations: groups of 256 (the last may be shorter), each GROUP bytes and then BLOCK bytes for every 32, times r:
 *   group  float32 step [r], int16 sums of the levels of blocks 0 and 2, 1 and 3, 4 and 6, 5 and 7, times 2^e times SUMS [4][r][2]
 *   block  the bits of float32 1.5 * 2^(23 + e) [r]; the same less 128, less 8 times the sum of the levels [r], less 32 times
 *          that of the first 16, of the last 16 [r], where sums of products begin if weights are stored with such an
 *          offset; int8 levels [r][32]
 * An activation is level * 2^e * step, with e <= 0 the block's. */
enum { XL_CPU_Q8_GROUP = 20, XL_CPU_Q8_BLOCK = 52, XL_CPU_Q8_SUMS = 8 };
static inline size_t xl_cpu_q8_row(size_t K) { return (K + 255) / 256 * XL_CPU_Q8_GROUP + K / 32 * XL_CPU_Q8_BLOCK; }

/* Neighbouring panels of a matrix: full ones, but the last may be narrower (one vector of rows). */
typedef struct xl_cpu_panels {
    const uint8_t *first;
    size_t bytes; /* from one panel to the next */
    uint32_t count, last_width;
    bool in_turn; /* one panel after the other, for few rows; else blocks of K of all panels */
    bool kept; /* weights fetched ahead stay in the second-level cache; else they pass it, as data that is used once */
} xl_cpu_panels;

/* out [count][rows][panel] = x W^T; columns from a narrow panel's width on are left alone. */
typedef void (*xl_cpu_product_fn)(float *out, const xl_cpu_panels *w, const void *x, uint32_t rows, size_t K);
/* Packs one tile of rows. */
typedef void (*xl_cpu_pack_fn)(void *out, const float *x, size_t x_row, uint32_t rows, size_t K);
typedef struct xl_cpu_product {
    xl_cpu_product_fn fn; /* NULL: this format has no panels here */
    xl_cpu_pack pack;
} xl_cpu_product;

/* How a product's sums become results: bias, rounding, and the sum with what is there, rounded again. */
typedef struct xl_cpu_results {
    float *out;        /* [rows] of n, out_row apart */
    const float *sums; /* [n / width, rounded up][rows][width] */
    size_t out_row;
    uint32_t rows, n, width; /* width: a multiple of lanes */
    const float *bias;       /* [n] or NULL */
    bool add;                /* to what `out` holds */
    xlstm_dtype round;       /* F32: none */
} xl_cpu_results;

/* out (+)= A B with A(m, k) = a[m * a_row + k * a_k], B(k, n) = b[k * b_row + n]. */
typedef struct xl_cpu_gemm {
    float *out;
    const float *a, *b;
    size_t out_row, a_row, a_k, b_row;
    uint32_t M, N, K;
    bool keep;   /* out = scale * out + A B; else out = A B */
    float scale;
} xl_cpu_gemm;

/* One token through `width` columns of a head's C: c = forget c + kw v, sum += q c. */
typedef struct xl_cpu_step {
    uint8_t *C;          /* first row, at the first of these columns */
    size_t c_row_bytes;
    xlstm_dtype dtype;   /* F32, BF16; I8 needs all columns at once */
    const float *q, *kw; /* [dq] scaled queries, input gate times keys */
    const float *v;      /* [width] */
    float forget;
    float *h;            /* out [width]: sums / den */
    float *sums, *row;   /* scratch [width] of this thread, I8 only: beside a line of h other threads write */
    uint32_t dq, width;
    xlstm_dtype round;   /* of h */
} xl_cpu_step;

typedef struct xl_cpu_kernels {
    bool kept; /* xl_cpu_panels.kept */
    const char *name;
    uint32_t bit;   /* XLSTM_CPU_* */
    uint32_t lanes; /* floats in a vector: the width of a narrow panel */
    uint32_t panel; /* weight rows in a full panel */
    uint32_t tile[XL_CPU_PACKS]; /* most rows of a packed tile */
    xl_cpu_product product[XLSTM_DTYPE_COUNT];      /* by weight format */
    xl_cpu_product product_bf16[XLSTM_DTYPE_COUNT]; /* the same when activations are bfloat16 */

    xl_cpu_pack_fn pack[XL_CPU_PACKS];
    /* out[r * out_row] = row `w` (any dtype) times x rows; `scratch` [K] for block formats */
    void (*dots)(float *out, size_t out_row, const void *w, xlstm_dtype dtype, const float *x, size_t x_row,
                 uint32_t rows, size_t K, float *scratch);
    void (*finish)(const xl_cpu_results *r);

    void (*round)(float *out, const float *in, size_t n, xlstm_dtype dtype);
    /* false: the statistics are not finite. `stats`: what they are rounded to at every step (F32: not at all) */
    bool (*rmsnorm)(float *y, const float *x, const float *weight, const float *bias, uint32_t n, float eps,
                    xlstm_dtype stats, xlstm_dtype round);
    bool (*mhnorm_gate)(float *g, const float *h, const float *o, const float *weight, const float *bias, uint32_t n,
                        float eps, xlstm_dtype stats, xlstm_dtype round);
    void (*swiglu)(float *a, const float *gate, const float *up, size_t n, xlstm_dtype round);
    void (*add)(float *x, const float *y, size_t n, xlstm_dtype round);
    bool (*softcap)(float *x, size_t n, float cap); /* false: something is not finite */

    float (*dot)(const float *a, const float *b, uint32_t n);
    void (*scale)(float *out, const float *in, float factor, uint32_t n);              /* out = factor in */
    void (*blend)(float *out, const float *in, float keep, float factor, uint32_t n);  /* out = keep out + factor in */
    void (*gemm)(const xl_cpu_gemm *g);
    void (*step)(const xl_cpu_step *s, float den);
    /* p[j] *= exp(log_weight[j] - M) for j < n, after log_weight[j] += forget; returns the sum of p */
    float (*weigh)(float *p, float *log_weight, float forget, float M, uint32_t n);
    void (*quotient)(float *out, const float *in, float den, uint32_t n, xlstm_dtype round);
    /* rows of a state between their number format and float32 */
    void (*load_state)(float *out, const uint8_t *in, xlstm_dtype dtype, uint32_t n);
    void (*save_state)(uint8_t *out, const float *in, xlstm_dtype dtype, uint32_t n);
} xl_cpu_kernels;

/* Rows of tile t when `rows` rows are split into the fewest tiles of at most `most`, as evenly as possible. */
static inline uint32_t xl_cpu_tiles(uint32_t rows, uint32_t most) { return (rows + most - 1) / most; }
static inline uint32_t xl_cpu_tile_rows(uint32_t rows, uint32_t most, uint32_t t)
{
    uint32_t tiles = xl_cpu_tiles(rows, most);
    return rows / tiles + (t < rows % tiles);
}
/* Row that tile t begins with. */
static inline uint32_t xl_cpu_tile_first(uint32_t rows, uint32_t most, uint32_t t)
{
    uint32_t tiles = xl_cpu_tiles(rows, most);
    return rows / tiles * t + (t < rows % tiles ? t : rows % tiles);
}

extern const xl_cpu_kernels xl_cpu_kernels_generic;
#if defined(__x86_64__)
extern const xl_cpu_kernels xl_cpu_kernels_avx2, xl_cpu_kernels_avx512;
extern const xl_cpu_product_fn xl_cpu_product_bf16_avx512bf16;
extern const xl_cpu_product_fn xl_cpu_products_avx512vnni[XLSTM_DTYPE_COUNT];
/* Bfloat16 weights on the matrix unit: with bfloat16 activations, with float32 activations. */
extern const xl_cpu_product xl_cpu_products_amx[2];
extern const xl_cpu_pack_fn xl_cpu_packs_amx[2];
#elif defined(__aarch64__)
extern const xl_cpu_kernels xl_cpu_kernels_neon;
extern const xl_cpu_product_fn xl_cpu_products_dotprod[XLSTM_DTYPE_COUNT];
#endif

#endif
