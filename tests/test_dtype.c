/* test_dtype.c — number formats against independent definitions: half precision over every bit pattern, ggml blocks
 * against what the public gguf package decodes and encodes (golden/ggml_blocks.bin), K encoders by their error. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "dtype.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t seed = 0x9e3779b97f4a7c15u;
static double uniform(void) /* (0, 1) */
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return ((double)(seed >> 11) + 0.5) * 0x1p-53;
}
static float normal(void) { return (float)(sqrt(-2 * log(uniform())) * cos(6.283185307179586 * uniform())); }

static void test_f16_all(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        int e = (int)(h >> 10 & 31), m = (int)(h & 1023);
        float x = xl_f16_to_f32((uint16_t)h);
        if (e == 31) {
            assert_true(m ? isnan(x) : isinf(x));
            assert_true(m ? isnan(xl_f16_to_f32(xl_f32_to_f16(x))) : xl_f32_to_f16(x) == h);
            continue;
        }
        double want = (e ? ldexp(1024 + m, e - 25) : ldexp(m, -24)) * (h & 0x8000 ? -1 : 1);
        assert_true((double)x == want && !signbit(x) == !signbit(want));
        assert_int_equal(xl_f32_to_f16(x), h);
        /* the midpoint to the next value goes to the even one, its neighbours to the nearer one */
        if (h < 0x7bff) {
            float next = xl_f16_to_f32((uint16_t)(h + 1)), middle = (x + next) / 2;
            assert_int_equal(xl_f32_to_f16(middle), h & 1 ? h + 1 : h);
            assert_int_equal(xl_f32_to_f16(nextafterf(middle, 0)), h);
            assert_int_equal(xl_f32_to_f16(nextafterf(middle, INFINITY)), h + 1);
        }
    }
    assert_int_equal(xl_f32_to_f16(65519.996f), 0x7bff);
    assert_int_equal(xl_f32_to_f16(65520.0f), 0x7c00);
    assert_int_equal(xl_f32_to_f16(-1e30f), 0xfc00);
}

static void test_bf16(void **state)
{
    (void)state;
    assert_int_equal(xl_f32_to_bf16(1.0f), 0x3f80);
    assert_int_equal(xl_f32_to_bf16(xl_float_of(0x3f808000)), 0x3f80); /* tie to even */
    assert_int_equal(xl_f32_to_bf16(xl_float_of(0x3f818000)), 0x3f82);
    assert_int_equal(xl_f32_to_bf16(xl_float_of(0x3f808001)), 0x3f81);
    assert_int_equal(xl_f32_to_bf16(xl_float_of(0x7f7fffff)), 0x7f80);
    assert_true(isnan(xl_bf16_to_f32(xl_f32_to_bf16(xl_float_of(0x7f800001))))); /* NaN whose payload is all low */
    assert_true(isnan(xl_bf16_to_f32(xl_f32_to_bf16(xl_float_of(0xffffffff)))));
    for (uint32_t h = 0; h < 65536; h++)
        if ((h & 0x7f80) != 0x7f80) assert_int_equal(xl_f32_to_bf16(xl_bf16_to_f32((uint16_t)h)), h);
}

static void test_names(void **state)
{
    (void)state;
    xlstm_error err;
    for (int i = 0; i < XLSTM_DTYPE_COUNT; i++) {
        xlstm_dtype d = XLSTM_DTYPE_COUNT;
        assert_int_equal(xlstm_dtype_parse(&d, xlstm_dtype_name((xlstm_dtype)i), &err), 0);
        assert_int_equal(d, i);
    }
    static const struct { const char *name; xlstm_dtype dtype; } names[] = {
        {"torch.bfloat16", XLSTM_BF16}, {"BF16", XLSTM_BF16}, {"fp32", XLSTM_F32},
        {"Half", XLSTM_F16},            {"Q4_K", XLSTM_Q4_K}, {"double", XLSTM_F64},
    };
    for (size_t i = 0; i < XL_COUNT(names); i++) {
        xlstm_dtype d = XLSTM_DTYPE_COUNT;
        assert_int_equal(xlstm_dtype_parse(&d, names[i].name, &err), 0);
        assert_int_equal(d, names[i].dtype);
    }
    xlstm_dtype d;
    assert_int_equal(xlstm_dtype_parse(&d, "float33", &err), XLSTM_E_ARGUMENT);
    assert_non_null(strstr(err.message, "float33"));
    assert_int_equal(xlstm_dtype_parse(&d, "", NULL), XLSTM_E_ARGUMENT);
    size_t bytes;
    assert_true(xl_dtype_row_bytes(&bytes, XLSTM_Q4_K, 512) && bytes == 288);
    assert_false(xl_dtype_row_bytes(&bytes, XLSTM_Q8_0, 33));
    assert_false(xl_dtype_row_bytes(&bytes, XLSTM_F32, SIZE_MAX / 2));
}

static void test_public_package(void **state)
{
    (void)state;
    FILE *f = fopen("tests/golden/ggml_blocks.bin", "rb");
    assert_non_null(f);
    int decoded = 0, encoded = 0;
    struct { uint32_t kind; char name[8]; uint32_t values, bytes; } head;
    while (fread(&head, sizeof head, 1, f) == 1) {
        float *values = malloc(head.values * sizeof(float)), *ours = malloc(head.values * sizeof(float));
        uint8_t *bytes = malloc(head.bytes), *our_bytes = malloc(head.bytes);
        assert_int_equal(fread(values, sizeof(float), head.values, f), head.values);
        assert_int_equal(fread(bytes, 1, head.bytes, f), head.bytes);
        xlstm_dtype dtype;
        size_t size;
        assert_int_equal(xlstm_dtype_parse(&dtype, head.name, NULL), 0);
        assert_true(xl_dtype_row_bytes(&size, dtype, head.values) && size == head.bytes);
        if (head.kind == 1) {
            xl_decode_row(ours, bytes, dtype, head.values);
            assert_memory_equal(ours, values, head.values * sizeof(float));
            decoded++;
        } else {
            xl_encode_row(our_bytes, values, dtype, head.values);
            assert_memory_equal(our_bytes, bytes, head.bytes);
            encoded++;
        }
        free(values);
        free(ours);
        free(bytes);
        free(our_bytes);
    }
    fclose(f);
    assert_int_equal(decoded, 5);
    assert_int_equal(encoded, 2);
}

/* Relative rms error of an encode-decode round trip over normal values of several scales. */
static double round_trip(xlstm_dtype dtype)
{
    enum { N = 256 * 64 };
    static float x[N], y[N];
    static uint8_t bytes[N * 8];
    double error = 0, power = 0;
    for (int i = 0; i < N; i++) x[i] = normal() * expf(0.1f * (float)(i / 256 % 10));
    xl_encode_row(bytes, x, dtype, N);
    xl_decode_row(y, bytes, dtype, N);
    for (int i = 0; i < N; i++) {
        error += (double)(x[i] - y[i]) * (x[i] - y[i]);
        power += (double)x[i] * x[i];
    }
    return sqrt(error / power);
}

static void test_encoders(void **state)
{
    (void)state;
    printf("seed %llx\n", (unsigned long long)seed);
    static const struct { xlstm_dtype dtype; double limit; } cases[] = {
        {XLSTM_F64, 0},       {XLSTM_F32, 0},       {XLSTM_F16, 3e-4},    {XLSTM_BF16, 2e-3},  {XLSTM_Q8_0, 6e-3},
        {XLSTM_Q6_K, 1.8e-2}, {XLSTM_Q5_K, 3.7e-2}, {XLSTM_Q4_K, 7.5e-2}, {XLSTM_Q4_0, 0.095},
    };
    for (size_t i = 0; i < XL_COUNT(cases); i++) {
        double e = round_trip(cases[i].dtype);
        printf("%-9s relative rms %.2e\n", xlstm_dtype_name(cases[i].dtype), e);
        assert_true(e <= cases[i].limit);
    }
}

static void test_encoders_take_anything(void **state)
{
    (void)state;
    static const float odd[] = {0, -0.0f, INFINITY, -INFINITY, NAN, 1e38f, -1e38f, 1e-42f, 65504, 1};
    static const xlstm_dtype dtypes[] = {XLSTM_Q8_0, XLSTM_Q6_K, XLSTM_Q5_K, XLSTM_Q4_K, XLSTM_Q4_0, XLSTM_F16};
    float x[256], y[256];
    uint8_t bytes[1024];
    for (size_t d = 0; d < XL_COUNT(dtypes); d++)
        for (int round = 0; round < 100; round++) {
            for (int i = 0; i < 256; i++) x[i] = round == 0 ? 0 : odd[(size_t)(uniform() * XL_COUNT(odd)) % XL_COUNT(odd)];
            xl_encode_row(bytes, x, dtypes[d], 256);
            xl_decode_row(y, bytes, dtypes[d], 256);
            if (round == 0)
                for (int i = 0; i < 256; i++) assert_true(y[i] == 0);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f16_all),        cmocka_unit_test(test_bf16),     cmocka_unit_test(test_names),
        cmocka_unit_test(test_public_package), cmocka_unit_test(test_encoders),
        cmocka_unit_test(test_encoders_take_anything),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}
