/*
 * dtype.c — the number formats as scalar code: sizes, names, half precision, and decoding and encoding of rows. This is
 * the executable definition of every weight format; the vector kernels are tested against it.
 *
 * ggml block formats (little endian, d and dmin are IEEE half):
 *   Q8_0  32 values   d, int8 q[32]                                                        x = d q
 *   Q4_0  32 values   d, 16 bytes: low nibbles are values 0..15, high nibbles 16..31       x = d (q - 8)
 *   Q4_K  256 values  d, dmin, 12 bytes of 6-bit scales and minima for 8 groups of 32, 128 bytes of nibbles:
 *                     32 bytes hold two groups, low nibbles the first                      x = d sc q - dmin mn
 *   Q5_K  256 values  as Q4_K with 32 bytes of fifth bits (bit g of byte l: group g) before the nibbles
 *   Q6_K  256 values  128 bytes low nibbles, 64 bytes upper bit pairs, int8 sc[16] for groups of 16, d
 *                                                                                          x = d sc (q - 32)
 */
#include "dtype.h"

#include <math.h>
#include <strings.h>

static const xl_dtype_traits traits[XLSTM_DTYPE_COUNT] = {
    [XLSTM_DTYPE_DEFAULT] = {"default", 1, 0},
    [XLSTM_F64] = {"float64", 1, 8},
    [XLSTM_F32] = {"float32", 1, 4},
    [XLSTM_F16] = {"float16", 1, 2},
    [XLSTM_BF16] = {"bfloat16", 1, 2},
    [XLSTM_I8] = {"int8", 1, 1},
    [XLSTM_Q8_0] = {"q8_0", 32, 34},
    [XLSTM_Q6_K] = {"q6_k", 256, 210},
    [XLSTM_Q5_K] = {"q5_k", 256, 176},
    [XLSTM_Q4_K] = {"q4_k", 256, 144},
    [XLSTM_Q4_0] = {"q4_0", 32, 18},
};

const xl_dtype_traits *xl_dtype_get(xlstm_dtype dtype)
{
    return &traits[(unsigned)dtype < XLSTM_DTYPE_COUNT ? dtype : XLSTM_DTYPE_DEFAULT];
}

const char *xlstm_dtype_name(xlstm_dtype dtype) { return xl_dtype_get(dtype)->name; }

int xlstm_dtype_parse(xlstm_dtype *out, const char *name, xlstm_error *err)
{
    static const struct { const char *name; xlstm_dtype dtype; } others[] = {
        {"f64", XLSTM_F64},   {"fp64", XLSTM_F64},  {"double", XLSTM_F64}, {"f32", XLSTM_F32},
        {"fp32", XLSTM_F32},  {"float", XLSTM_F32}, {"f16", XLSTM_F16},    {"fp16", XLSTM_F16},
        {"half", XLSTM_F16},  {"bf16", XLSTM_BF16}, {"i8", XLSTM_I8},      {"auto", XLSTM_DTYPE_DEFAULT},
    };
    const char *plain = strncasecmp(name, "torch.", 6) == 0 ? name + 6 : name;
    for (int i = 0; i < XLSTM_DTYPE_COUNT; i++)
        if (strcasecmp(plain, traits[i].name) == 0) {
            *out = (xlstm_dtype)i;
            return XLSTM_OK;
        }
    for (size_t i = 0; i < XL_COUNT(others); i++)
        if (strcasecmp(plain, others[i].name) == 0) {
            *out = others[i].dtype;
            return XLSTM_OK;
        }
    return xl_fail(err, XLSTM_E_ARGUMENT,
                   "unknown number format '%.40s': expected float32, float16, bfloat16, float64, int8, q8_0, q6_k, "
                   "q5_k, q4_k or q4_0",
                   name);
}

bool xl_dtype_row_bytes(size_t *out, xlstm_dtype dtype, size_t n)
{
    const xl_dtype_traits *t = xl_dtype_get(dtype);
    return n % t->block == 0 && xl_mul(out, n / t->block, t->block_bytes);
}

/* ---- half precision --------------------------------------------------------------------------------------------- */

float xl_f16_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = (h >> 10) & 31u, fraction = h & 0x3ffu;
    if (exponent == 31) return xl_float_of(sign | 0x7f800000u | fraction << 13 | (fraction ? 0x400000u : 0));
    if (exponent != 0) return xl_float_of(sign | (exponent + 112) << 23 | fraction << 13);
    float x = (float)fraction * 0x1p-24f;
    return sign ? -x : x;
}

uint16_t xl_f32_to_f16(float x)
{
    uint32_t u = xl_bits_of(x), sign = (u >> 16) & 0x8000u;
    u &= 0x7fffffffu;
    if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | (u >> 13 & 0x1ffu));
    if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* 65520 and above round to infinity */
    if (u < 0x38800000u) { /* below 2^-14: adding 0.5 leaves the multiple of 2^-24, rounded to even, in the low bits */
        float magnitude = xl_float_of(u) + 0.5f;
        return (uint16_t)(sign | (xl_bits_of(magnitude) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((u - 0x38000000u + 0xfffu + (u >> 13 & 1u)) >> 13));
}

/* ---- decoding --------------------------------------------------------------------------------------------------- */

static uint16_t load16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static void store16(uint8_t *p, uint16_t v) { p[0] = (uint8_t)v; p[1] = (uint8_t)(v >> 8); }

void xl_dtype_k_scale(const uint8_t *s, int g, uint8_t *scale, uint8_t *min)
{
    if (g < 4) {
        *scale = s[g] & 63;
        *min = s[g + 4] & 63;
    } else {
        *scale = (uint8_t)((s[g + 4] & 15) | (s[g - 4] >> 6) << 4);
        *min = (uint8_t)((s[g + 4] >> 4) | (s[g] >> 6) << 4);
    }
}

static void decode_q8_0(float *out, const uint8_t *b)
{
    float d = xl_f16_to_f32(load16(b));
    for (int i = 0; i < 32; i++) out[i] = d * (float)(int8_t)b[2 + i];
}

static void decode_q4_0(float *out, const uint8_t *b)
{
    float d = xl_f16_to_f32(load16(b));
    for (int i = 0; i < 16; i++) {
        out[i] = d * (float)((b[2 + i] & 15) - 8);
        out[i + 16] = d * (float)((b[2 + i] >> 4) - 8);
    }
}

/* Q4_K and, with fifth bits at `high`, Q5_K. */
static void decode_q45_k(float *out, const uint8_t *b, const uint8_t *high, const uint8_t *nibbles)
{
    float d = xl_f16_to_f32(load16(b)), dmin = xl_f16_to_f32(load16(b + 2));
    for (int g = 0; g < 8; g++) {
        uint8_t scale, min;
        xl_dtype_k_scale(b + 4, g, &scale, &min);
        float step = d * (float)scale, offset = dmin * (float)min;
        const uint8_t *q = nibbles + g / 2 * 32;
        for (int i = 0; i < 32; i++) {
            int v = g & 1 ? q[i] >> 4 : q[i] & 15;
            if (high && (high[i] >> g & 1)) v += 16;
            out[g * 32 + i] = step * (float)v - offset;
        }
    }
}

static void decode_q6_k(float *out, const uint8_t *b)
{
    const uint8_t *low = b, *high = b + 128, *scales = b + 192;
    float d = xl_f16_to_f32(load16(b + 208));
    for (int i = 0; i < 256; i++) {
        int half = i / 128, quarter = i % 128 / 32, l = i % 32;
        uint8_t nibbles = low[half * 64 + (quarter & 1) * 32 + l];
        int v = (quarter < 2 ? nibbles & 15 : nibbles >> 4) | (high[half * 32 + l] >> (2 * quarter) & 3) << 4;
        out[i] = d * (float)(int8_t)scales[i / 16] * (float)(v - 32);
    }
}

void xl_decode_row(float *out, const void *in, xlstm_dtype dtype, size_t n)
{
    const uint8_t *b = in;
    switch (dtype) {
    case XLSTM_F64:
        for (size_t i = 0; i < n; i++) {
            double x;
            memcpy(&x, b + 8 * i, 8);
            out[i] = (float)x;
        }
        break;
    case XLSTM_F32:
        memcpy(out, in, n * sizeof *out);
        break;
    case XLSTM_F16:
        for (size_t i = 0; i < n; i++) out[i] = xl_f16_to_f32(load16(b + 2 * i));
        break;
    case XLSTM_BF16:
        for (size_t i = 0; i < n; i++) out[i] = xl_bf16_to_f32(load16(b + 2 * i));
        break;
    case XLSTM_I8:
        for (size_t i = 0; i < n; i++) out[i] = (float)(int8_t)b[i];
        break;
    case XLSTM_Q8_0:
        for (size_t i = 0; i < n; i += 32, b += 34) decode_q8_0(out + i, b);
        break;
    case XLSTM_Q4_0:
        for (size_t i = 0; i < n; i += 32, b += 18) decode_q4_0(out + i, b);
        break;
    case XLSTM_Q4_K:
        for (size_t i = 0; i < n; i += 256, b += 144) decode_q45_k(out + i, b, NULL, b + 16);
        break;
    case XLSTM_Q5_K:
        for (size_t i = 0; i < n; i += 256, b += 176) decode_q45_k(out + i, b, b + 16, b + 48);
        break;
    case XLSTM_Q6_K:
        for (size_t i = 0; i < n; i += 256, b += 210) decode_q6_k(out + i, b);
        break;
    case XLSTM_DTYPE_DEFAULT:
    case XLSTM_DTYPE_COUNT:
        break;
    }
}

/* ---- encoding --------------------------------------------------------------------------------------------------- */

static int clamp_int(int v, int low, int high) { return v < low ? low : v > high ? high : v; }

/* Nearest integer; NaN and what no int holds become 0, so that hostile values cannot raise undefined behaviour. */
static int nearest(float x) { return fabsf(x) < 1e9f ? (int)lrintf(x) : 0; }

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

static void encode_q4_0(uint8_t *b, const float *in)
{
    float top = 0, value = 0;
    for (int i = 0; i < 32; i++)
        if (fabsf(in[i]) > top) {
            top = fabsf(in[i]);
            value = in[i];
        }
    float d = value / -8.0f, inverse = d != 0 ? 1.0f / d : 0;
    store16(b, xl_f32_to_f16(d));
    uint8_t q[32];
    for (int i = 0; i < 32; i++) {
        float v = in[i] * inverse + 8.5f; /* two roundings: never fused */
        q[i] = (uint8_t)(v >= 0 && v < 16 ? (int)v : v >= 16 ? 15 : 0);
    }
    for (int i = 0; i < 16; i++) b[2 + i] = (uint8_t)(q[i] | q[i + 16] << 4);
}

/* Least squares for x ~ scale * q - min with q in [0, top], min >= 0: starts from the range of x, then tries a grid of
 * slightly different steps; for each, q by rounding and (scale, min) by linear regression. Errors are weighted by
 * sqrt(mean x^2) + |x|: large weights matter more. */
static void fit_affine(const float *x, int n, int top, float *scale, float *min)
{
    float low = 0, high = x[0], squares = 0;
    for (int i = 0; i < n; i++) {
        low = fminf(low, x[i]);
        high = fmaxf(high, x[i]);
        squares += x[i] * x[i];
    }
    *scale = 0;
    *min = -low;
    if (!(high > low)) return;
    float base = sqrtf(squares / (float)n);
    double best = INFINITY;
    for (int trial = -1; trial <= 20; trial++) {
        float range = (float)top + (trial < 0 ? 0.0f : -1.0f + 0.1f * (float)trial);
        float inverse = range / (high - low);
        double sw = 0, sx = 0, sq = 0, sqq = 0, sxq = 0, sxx = 0;
        for (int i = 0; i < n; i++) {
            double w = base + fabsf(x[i]), q = clamp_int(nearest(inverse * (x[i] - low)), 0, top);
            sw += w;
            sx += w * x[i];
            sxx += w * x[i] * x[i];
            sq += w * q;
            sqq += w * q * q;
            sxq += w * x[i] * q;
        }
        double det = sw * sqq - sq * sq;
        if (!(det > 0)) continue;
        double a = (sw * sxq - sx * sq) / det, c = (sqq * sx - sq * sxq) / det;
        if (c > 0) {
            c = 0;
            a = sxq / sqq;
        }
        double error = sxx + a * a * sqq + c * c * sw - 2 * a * sxq - 2 * c * sx + 2 * a * c * sq;
        if (error < best) {
            best = error;
            *scale = (float)a;
            *min = (float)-c;
        }
    }
}

static void encode_q45_k(uint8_t *b, const float *in, int top, uint8_t *high, uint8_t *nibbles)
{
    float scales[8], mins[8], top_scale = 0, top_min = 0;
    for (int g = 0; g < 8; g++) {
        fit_affine(in + 32 * g, 32, top, &scales[g], &mins[g]);
        top_scale = fmaxf(top_scale, scales[g]);
        top_min = fmaxf(top_min, mins[g]);
    }
    uint16_t d16 = xl_f32_to_f16(top_scale / 63.0f), min16 = xl_f32_to_f16(top_min / 63.0f);
    store16(b, d16);
    store16(b + 2, min16);
    float d = xl_f16_to_f32(d16), dmin = xl_f16_to_f32(min16);
    uint8_t *packed = b + 4;
    memset(packed, 0, 12);
    if (high) memset(high, 0, 32);
    memset(nibbles, 0, 128);
    for (int g = 0; g < 8; g++) {
        int scale = d > 0 ? clamp_int(nearest(scales[g] / d), 0, 63) : 0;
        int min = dmin > 0 ? clamp_int(nearest(mins[g] / dmin), 0, 63) : 0;
        if (g < 4) {
            packed[g] |= (uint8_t)scale;
            packed[g + 4] |= (uint8_t)min;
        } else {
            packed[g + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
            packed[g - 4] |= (uint8_t)(scale >> 4 << 6);
            packed[g] |= (uint8_t)(min >> 4 << 6);
        }
        float step = d * (float)scale, offset = dmin * (float)min;
        if (!(step > 0)) continue;
        for (int i = 0; i < 32; i++) {
            int q = clamp_int(nearest((in[32 * g + i] + offset) / step), 0, top);
            nibbles[g / 2 * 32 + i] |= (uint8_t)((q & 15) << (g & 1 ? 4 : 0));
            if (high && q > 15) high[i] |= (uint8_t)(1u << g);
        }
    }
}

/* Least squares for x ~ scale * q with q in [-32, 31]; errors weighted by x^2. The sign of scale follows the extreme
 * value, which uses the side with one more step. */
static float fit_symmetric(const float *x, int n)
{
    float top = 0, value = 0;
    for (int i = 0; i < n; i++)
        if (fabsf(x[i]) > top) {
            top = fabsf(x[i]);
            value = x[i];
        }
    if (!(top > 1e-15f)) return 0;
    float scale = 0;
    double best = -1;
    for (int trial = -9; trial <= 9; trial++) {
        float inverse = -(32.0f + 0.1f * (float)trial) / value;
        double sxq = 0, sqq = 0;
        for (int i = 0; i < n; i++) {
            double w = (double)x[i] * x[i], q = clamp_int(nearest(inverse * x[i]), -32, 31);
            sxq += w * x[i] * q;
            sqq += w * q * q;
        }
        if (sqq > 0 && sxq * sxq / sqq > best) {
            best = sxq * sxq / sqq;
            scale = (float)(sxq / sqq);
        }
    }
    return scale;
}

static void encode_q6_k(uint8_t *b, const float *in)
{
    float scales[16], top = 0, extreme = 0;
    for (int g = 0; g < 16; g++) {
        scales[g] = fit_symmetric(in + 16 * g, 16);
        if (fabsf(scales[g]) > top) {
            top = fabsf(scales[g]);
            extreme = scales[g];
        }
    }
    memset(b, 0, 210);
    uint16_t d16 = xl_f32_to_f16(extreme / -128.0f);
    store16(b + 208, d16);
    float d = xl_f16_to_f32(d16);
    for (int i = 0; i < 256; i++) {
        int scale = d != 0 ? clamp_int(nearest(scales[i / 16] / d), -128, 127) : 0;
        b[192 + i / 16] = (uint8_t)(int8_t)scale;
        float step = d * (float)scale;
        int q = 32 + (step != 0 ? clamp_int(nearest(in[i] / step), -32, 31) : 0);
        int half = i / 128, quarter = i % 128 / 32, l = i % 32;
        b[half * 64 + (quarter & 1) * 32 + l] |= (uint8_t)((q & 15) << (quarter < 2 ? 0 : 4));
        b[128 + half * 32 + l] |= (uint8_t)(q >> 4 << (2 * quarter));
    }
}

void xl_encode_row(void *out, const float *in, xlstm_dtype dtype, size_t n)
{
    uint8_t *b = out;
    switch (dtype) {
    case XLSTM_F64:
        for (size_t i = 0; i < n; i++) {
            double x = in[i];
            memcpy(b + 8 * i, &x, 8);
        }
        break;
    case XLSTM_F32:
        memcpy(out, in, n * sizeof *in);
        break;
    case XLSTM_F16:
        for (size_t i = 0; i < n; i++) store16(b + 2 * i, xl_f32_to_f16(in[i]));
        break;
    case XLSTM_BF16:
        for (size_t i = 0; i < n; i++) store16(b + 2 * i, xl_f32_to_bf16(in[i]));
        break;
    case XLSTM_I8:
        for (size_t i = 0; i < n; i++) b[i] = (uint8_t)(int8_t)clamp_int(nearest(in[i]), -127, 127);
        break;
    case XLSTM_Q8_0:
        for (size_t i = 0; i < n; i += 32, b += 34) encode_q8_0(b, in + i);
        break;
    case XLSTM_Q4_0:
        for (size_t i = 0; i < n; i += 32, b += 18) encode_q4_0(b, in + i);
        break;
    case XLSTM_Q4_K:
        for (size_t i = 0; i < n; i += 256, b += 144) encode_q45_k(b, in + i, 15, NULL, b + 16);
        break;
    case XLSTM_Q5_K:
        for (size_t i = 0; i < n; i += 256, b += 176) encode_q45_k(b, in + i, 31, b + 16, b + 48);
        break;
    case XLSTM_Q6_K:
        for (size_t i = 0; i < n; i += 256, b += 210) encode_q6_k(b, in + i);
        break;
    case XLSTM_DTYPE_DEFAULT:
    case XLSTM_DTYPE_COUNT:
        break;
    }
}
