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
#include "quantize.h"

#include <math.h>

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
    char small[16] = ""; /* longer than any of them; letters of ASCII, whatever the locale */
    const char *plain = strncmp(name, "torch.", 6) == 0 ? name + 6 : name;
    for (size_t i = 0; i + 1 < sizeof(small) && plain[i] != '\0'; i++)
        small[i] = (char)(plain[i] >= 'A' && plain[i] <= 'Z' ? plain[i] + 32 : plain[i]);
    for (int i = 0; i < XLSTM_DTYPE_COUNT; i++)
        if (strcmp(small, traits[i].name) == 0) {
            *out = (xlstm_dtype)i;
            return XLSTM_OK;
        }
    for (size_t i = 0; i < XL_COUNT(others); i++)
        if (strcmp(small, others[i].name) == 0) {
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

/* 6-bit scale and minimum of group g (0..7) out of the 12 packed bytes of a Q4_K or Q5_K block. */
static void k_scale(const uint8_t *s, int g, uint8_t *scale, uint8_t *min)
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
        k_scale(b + 4, g, &scale, &min);
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

static uint8_t nearest_i8(float x)
{
    return (uint8_t)(int8_t)(fabsf(x) < 1e9f ? XL_MAX(-127, XL_MIN(127, (int)lrintf(x))) : 0);
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
        for (size_t i = 0; i < n; i++) b[i] = nearest_i8(in[i]);
        break;
    case XLSTM_Q8_0:
    case XLSTM_Q6_K:
    case XLSTM_Q5_K:
    case XLSTM_Q4_K:
    case XLSTM_Q4_0:
        xl_quantize_row(out, in, dtype, n, NULL);
        break;
    case XLSTM_DTYPE_DEFAULT:
    case XLSTM_DTYPE_COUNT:
        break;
    }
}
