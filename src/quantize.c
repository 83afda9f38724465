/*
 * quantize.c — the encoders of the ggml block formats: which scales and digits a block gets. See dtype.c for the layouts.
 *
 * Q8_0 and the plain Q4_0 take their scale from the extreme value. The others minimise the weighted square error
 * sum w (x - decoded x)^2 in three steps: each group of 16 or 32 values finds its scale (and minimum) by trying a grid of
 * steps, rounding, and regressing; the block's half-precision factors follow from the largest; then small integers and
 * factors are improved in turns against what decoding will really give. All sums run over four lanes in a fixed order.
 */
#include "quantize.h"

#include <math.h>

enum { ROUNDS = 2 }; /* of improving integers, then factors */

static void store16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static int clamp_int(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

/* Nearest integer; NaN and what no int holds become 0, so that hostile values cannot raise undefined behaviour. */
static int nearest(float x) { return fabsf(x) < 1e9f ? (int)lrintf(x) : 0; }

/* ---- four lanes ------------------------------------------------------------------------------------------------- */

typedef float lanes __attribute__((vector_size(16)));
typedef int32_t masks __attribute__((vector_size(16)));

static inline lanes load(const float *p)
{
    lanes v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static inline lanes all(float x) { return (lanes){x, x, x, x}; }
static inline lanes pick(masks m, lanes a, lanes b) { return (lanes)((m & (masks)a) | (~m & (masks)b)); }
static inline double total(lanes v) { return ((double)v[0] + v[1]) + ((double)v[2] + v[3]); }

/* The nearest integer in low .. high, ties to even; NaN gives low. Adding 1.5 * 2^23 leaves no bits for a fraction. */
static inline lanes digits(lanes x, float low, float high)
{
    x = pick(x > all(low), x, all(low));
    x = pick(x < all(high), x, all(high));
    return (x + all(12582912.0f)) - all(12582912.0f);
}

/* ---- formats of 32 values --------------------------------------------------------------------------------------- */

static void encode_q8_0(uint8_t *b, const float *in)
{
    float top = 0;
    for (int i = 0; i < 32; i++) top = fmaxf(top, fabsf(in[i]));
    float d = top / 127.0f, inverse = d != 0 ? 1.0f / d : 0;
    store16(b, xl_f32_to_f16(d));
    for (int i = 0; i < 32; i++) {
        float q = roundf(in[i] * inverse);
        b[2 + i] = (uint8_t)(int8_t)(fabsf(q) <= 127.0f ? (int)q : 0);
    }
}

/* The value furthest from 0. */
static float extreme(const float *x, int n)
{
    float top = 0, value = 0;
    for (int i = 0; i < n; i++) {
        if (fabsf(x[i]) > top) {
            top = fabsf(x[i]);
            value = x[i];
        }
    }
    return value;
}

static void encode_q4_0(uint8_t *b, const float *in)
{
    float d = extreme(in, 32) / -8.0f, inverse = d != 0 ? 1.0f / d : 0;
    store16(b, xl_f32_to_f16(d));
    uint8_t q[32];
    for (int i = 0; i < 32; i++) {
        float v = in[i] * inverse + 8.5f; /* two roundings: never fused */
        q[i] = (uint8_t)(v >= 0 && v < 16 ? (int)v : v >= 16 ? 15 : 0);
    }
    for (int i = 0; i < 16; i++) b[2 + i] = (uint8_t)(q[i] | q[i + 16] << 4);
}

/* ---- x ~ step q, q in low .. -low - 1 --------------------------------------------------------------------------- */

/* sum w x q and sum w q^2 for q = digits(inverse x). */
static void sums_symmetric(double *xq, double *qq, const float *x, const float *w, int n, float inverse, float low)
{
    lanes sxq = all(0), sqq = all(0);
    for (int i = 0; i < n; i += 4) {
        lanes v = load(x + i), q = digits(v * all(inverse), low, -low - 1), wq = load(w + i) * q;
        sxq += wq * v;
        sqq += wq * q;
    }
    *xq = total(sxq);
    *qq = total(sqq);
}

/* The step of the least weighted error: a grid around the one that lets the extreme value use the last digit, then a
 * second rounding with the best. The extreme takes the side with one more digit, or in half of the trials the other. */
static float fit_symmetric(const float *x, const float *w, int n, float low)
{
    float value = extreme(x, n), step = 0;
    double best = -1, xq, qq;
    if (!(fabsf(value) > 1e-30f)) return 0;
    for (int trial = -9; trial <= 9; trial++) {
        for (int side = 0; side < 2; side++) {
            float last = side == 0 ? low : -low - 1;
            sums_symmetric(&xq, &qq, x, w, n, last * (1 + 0.0125f * (float)trial) / value, low);
            if (qq > 0 && xq * xq > best * qq) {
                best = xq * xq / qq;
                step = (float)(xq / qq);
            }
        }
    }
    if (step != 0) {
        sums_symmetric(&xq, &qq, x, w, n, 1 / step, low);
        if (qq > 0) step = (float)(xq / qq);
    }
    return step;
}

/* The digits for a given step, and the weighted error they leave. */
static double round_symmetric(float *q, const float *x, const float *w, int n, float step, float low)
{
    lanes error = all(0);
    float inverse = step != 0 ? 1 / step : 0;
    for (int i = 0; i < n; i += 4) {
        lanes v = load(x + i), digit = digits(v * all(inverse), low, -low - 1), r = digit * all(step) - v;
        error += load(w + i) * r * r;
        memcpy(q + i, &digit, sizeof(digit));
    }
    return total(error);
}

static void encode_q4_0_weighted(uint8_t *b, const float *in, const float *w)
{
    float step = fit_symmetric(in, w, 32, -8), q[32];
    uint16_t d = xl_f32_to_f16(step);
    (void)round_symmetric(q, in, w, 32, xl_f16_to_f32(d), -8);
    store16(b, d);
    for (int i = 0; i < 16; i++) b[2 + i] = (uint8_t)((int)q[i] + 8) | (uint8_t)(((int)q[i + 16] + 8) << 4);
}

/* One choice of everything in a Q6_K block. */
typedef struct block6 {
    float d;
    int scale[16];
    float q[256]; /* -32 .. 31 */
    double error;
} block6;

/* Each group's scale: the nearest to what it would like, or a neighbour that does better with digits as they round. */
static void choose_scales6(block6 *b, const float *x, const float *w, const float *wish)
{
    float q[16];
    b->error = 0;
    for (int g = 0; g < 16; g++) {
        int middle = b->d != 0 ? nearest(wish[g] / b->d) : 0;
        double best = INFINITY;
        for (int near = -1; near <= 1; near++) {
            int scale = clamp_int(middle + near, -128, 127);
            double error = round_symmetric(q, x + 16 * g, w + 16 * g, 16, b->d * (float)scale, -32);
            if (near == -1 || error < best) {
                best = error;
                b->scale[g] = scale;
                memcpy(b->q + 16 * g, q, sizeof(q));
            }
        }
        b->error += best;
    }
}

/* The factor that suits digits and scales best. */
static float best_factor6(const block6 *b, const float *x, const float *w)
{
    double xa = 0, aa = 0;
    for (int i = 0; i < 256; i++) {
        double a = (double)b->q[i] * b->scale[i / 16];
        xa += w[i] * a * x[i];
        aa += w[i] * a * a;
    }
    return aa > 0 ? (float)(xa / aa) : b->d;
}

static void encode_q6_k(uint8_t *out, const float *in, const float *w)
{
    float wish[16], d;
    for (int g = 0; g < 16; g++) wish[g] = fit_symmetric(in + 16 * g, w + 16 * g, 16, -32);
    block6 best = {.error = INFINITY}, b;
    d = extreme(wish, 16) / -128.0f;
    for (int round = 0; round <= ROUNDS; round++) {
        b.d = xl_f16_to_f32(xl_f32_to_f16(d));
        choose_scales6(&b, in, w, wish);
        if (round > 0 && !(b.error < best.error)) break;
        best = b;
        d = best_factor6(&b, in, w);
    }
    memset(out, 0, 210);
    store16(out + 208, xl_f32_to_f16(best.d));
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i % 128 / 32, l = i % 32, q = (int)best.q[i] + 32;
        out[192 + i / 16] = (uint8_t)(int8_t)best.scale[i / 16];
        out[half * 64 + (quarter & 1) * 32 + l] |= (uint8_t)((q & 15) << (quarter < 2 ? 0 : 4));
        out[128 + half * 32 + l] |= (uint8_t)(q >> 4 << (2 * quarter));
    }
}

/* ---- x ~ step q - offset, q in 0 .. top ------------------------------------------------------------------------- */

typedef struct affine {
    float step, offset; /* both >= 0 */
} affine;

/* Rounds to digits of the given line, then regresses: the line that suits them best, and the error it leaves. */
static double regress(affine *out, const float *x, const float *w, float inverse, float low, float top)
{
    lanes sw = all(0), sx = all(0), sxx = all(0), sq = all(0), sqq = all(0), sxq = all(0);
    for (int i = 0; i < 32; i += 4) {
        lanes v = load(x + i), weight = load(w + i), wx = weight * v;
        lanes q = digits((v - all(low)) * all(inverse), 0, top), wq = weight * q;
        sw += weight;
        sx += wx;
        sxx += wx * v;
        sq += wq;
        sqq += wq * q;
        sxq += wq * v;
    }
    double w1 = total(sw), x1 = total(sx), q1 = total(sq), q2 = total(sqq), xq = total(sxq), det = w1 * q2 - q1 * q1;
    if (!(det > 0)) return INFINITY;
    double a = (w1 * xq - x1 * q1) / det, c = (q2 * x1 - q1 * xq) / det;
    if (c > 0) {
        c = 0;
        a = xq / q2;
    }
    if (!(a > 0)) return INFINITY;
    *out = (affine){(float)a, (float)-c};
    return total(sxx) + a * a * q2 + c * c * w1 - 2 * a * xq - 2 * c * x1 + 2 * a * c * q1;
}

static affine fit_affine(const float *x, const float *w, float top)
{
    float low = 0, high = x[0];
    for (int i = 0; i < 32; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
    }
    affine best = {0, -low}, line;
    if (!(high > low)) return best;
    double least = INFINITY;
    for (int trial = -10; trial <= 10; trial++) {
        float inverse = (top + 0.1f * (float)trial) / (high - low);
        double error = regress(&line, x, w, inverse, low, top);
        if (error < least) {
            least = error;
            best = line;
        }
    }
    if (best.step > 0 && regress(&line, x, w, 1 / best.step, -best.offset, top) < least) best = line;
    return best;
}

static double round_affine(float *q, const float *x, const float *w, float step, float offset, float top)
{
    lanes error = all(0);
    float inverse = step > 0 ? 1 / step : 0;
    for (int i = 0; i < 32; i += 4) {
        lanes v = load(x + i), digit = digits((v + all(offset)) * all(inverse), 0, top);
        lanes r = (digit * all(step) - all(offset)) - v;
        error += load(w + i) * r * r;
        memcpy(q + i, &digit, sizeof(digit));
    }
    return total(error);
}

/* One choice of everything in a Q4_K or Q5_K block. */
typedef struct block45 {
    float d, dmin;
    int scale[8], min[8]; /* 0 .. 63 */
    float q[256];         /* 0 .. top */
    double error;
} block45;

static void choose_scales45(block45 *b, const float *x, const float *w, const affine *wish, float top)
{
    float q[32];
    b->error = 0;
    for (int g = 0; g < 8; g++) {
        int scale = b->d > 0 ? nearest(wish[g].step / b->d) : 0, min = b->dmin > 0 ? nearest(wish[g].offset / b->dmin) : 0;
        double best = INFINITY;
        for (int near = 0; near < 9; near++) {
            int s = clamp_int(scale + near / 3 - 1, 0, 63), m = clamp_int(min + near % 3 - 1, 0, 63);
            double error = round_affine(q, x + 32 * g, w + 32 * g, b->d * (float)s, b->dmin * (float)m, top);
            if (near == 0 || error < best) {
                best = error;
                b->scale[g] = s;
                b->min[g] = m;
                memcpy(b->q + 32 * g, q, sizeof(q));
            }
        }
        b->error += best;
    }
}

/* The factors that suit digits, scales and minima best. */
static void best_factors45(float *d, float *dmin, const block45 *b, const float *x, const float *w)
{
    double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
    for (int g = 0; g < 8; g++) {
        double w1 = 0, q1 = 0, q2 = 0, xq = 0, x1 = 0, s = b->scale[g], m = b->min[g];
        for (int i = 32 * g; i < 32 * g + 32; i++) {
            double q = b->q[i];
            w1 += w[i];
            q1 += w[i] * q;
            q2 += w[i] * q * q;
            x1 += (double)w[i] * x[i];
            xq += w[i] * q * x[i];
        }
        aa += s * s * q2;
        ab -= s * m * q1;
        bb += m * m * w1;
        xa += s * xq;
        xb -= m * x1;
    }
    double det = aa * bb - ab * ab;
    if (det > 1e-9 * aa * bb) {
        double first = (xa * bb - xb * ab) / det, second = (xb * aa - xa * ab) / det;
        if (first > 0 && second > 0) {
            *d = (float)first;
            *dmin = (float)second;
        }
    } else if (aa > 0 && xa > 0 && !(bb > 0)) {
        *d = (float)(xa / aa);
    }
}

/* Q4_K, and Q5_K with its fifth bits at `high`. */
static void encode_q45_k(uint8_t *out, const float *in, const float *w, float top, uint8_t *high, uint8_t *nibbles)
{
    affine wish[8];
    float d = 0, dmin = 0;
    for (int g = 0; g < 8; g++) {
        wish[g] = fit_affine(in + 32 * g, w + 32 * g, top);
        d = fmaxf(d, wish[g].step / 63.0f);
        dmin = fmaxf(dmin, wish[g].offset / 63.0f);
    }
    block45 best = {.error = INFINITY}, b;
    for (int round = 0; round <= ROUNDS; round++) {
        b.d = xl_f16_to_f32(xl_f32_to_f16(d));
        b.dmin = xl_f16_to_f32(xl_f32_to_f16(dmin));
        choose_scales45(&b, in, w, wish, top);
        if (round > 0 && !(b.error < best.error)) break;
        best = b;
        best_factors45(&d, &dmin, &b, in, w);
    }
    store16(out, xl_f32_to_f16(best.d));
    store16(out + 2, xl_f32_to_f16(best.dmin));
    uint8_t *packed = out + 4;
    memset(packed, 0, 12);
    if (high != NULL) memset(high, 0, 32);
    memset(nibbles, 0, 128);
    for (int g = 0; g < 8; g++) {
        int scale = best.scale[g], min = best.min[g];
        if (g < 4) {
            packed[g] |= (uint8_t)scale;
            packed[g + 4] |= (uint8_t)min;
        } else {
            packed[g + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
            packed[g - 4] |= (uint8_t)(scale >> 4 << 6);
            packed[g] |= (uint8_t)(min >> 4 << 6);
        }
        for (int i = 0; i < 32; i++) {
            int q = (int)best.q[32 * g + i];
            nibbles[g / 2 * 32 + i] |= (uint8_t)((q & 15) << (g & 1 ? 4 : 0));
            if (high != NULL && q > 15) high[i] |= (uint8_t)(1u << g);
        }
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

/* Weights of the errors of n values: the importance of their columns relative to the block's mean, and a little for all so
 * that what was never seen still gets digits. */
static void weigh(float *w, const float *importance, int n)
{
    float sum = 0;
    for (int i = 0; importance != NULL && i < n; i++) sum += importance[i];
    for (int i = 0; i < n; i++) w[i] = importance != NULL && sum > 0 ? importance[i] / sum * (float)n + 1e-3f : 1;
}

void xl_quantize_row(void *out, const float *in, xlstm_dtype dtype, size_t n, const float *importance)
{
    const xl_dtype_traits *t = xl_dtype_get(dtype);
    uint8_t *b = out;
    float w[256];
    for (size_t i = 0; i < n; i += t->block, b += t->block_bytes) {
        if (importance != NULL || i == 0) weigh(w, importance != NULL ? importance + i : NULL, (int)t->block);
        switch (dtype) {
        case XLSTM_Q8_0: encode_q8_0(b, in + i); break;
        case XLSTM_Q6_K: encode_q6_k(b, in + i, w); break;
        case XLSTM_Q5_K: encode_q45_k(b, in + i, w, 31, b + 16, b + 48); break;
        case XLSTM_Q4_K: encode_q45_k(b, in + i, w, 15, NULL, b + 16); break;
        case XLSTM_Q4_0:
            if (importance != NULL) {
                encode_q4_0_weighted(b, in + i, w);
            } else {
                encode_q4_0(b, in + i);
            }
            break;
        default: return;
        }
    }
}
