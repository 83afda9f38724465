/*
 * imatrix.c — the importance matrix: sums of squares of the inputs of every large matrix, gathered as a trace, written and
 * read as GGUF. Matrices with one input (q, k, v, output gate; the two halves of the feed-forward part) share a sum.
 */
#include "imatrix.h"

#include "gguf_write.h"

#include <math.h>

/* The stages that matrices read. */
enum { NORM_MLSTM, GATED, NORM_FFN, FFN_PRODUCT, INPUTS };
static const char *const stages[INPUTS] = {"norm_mlstm", "gated", "norm_ffn", "ffn_product"};

static const struct {
    const char *name; /* in "blk.N." */
    int input;        /* -1: no large matrix */
} roles[XL_ROLES] = {
    [XL_NORM_MLSTM] = {"mlstm_norm", -1},   [XL_Q] = {"mlstm_q", NORM_MLSTM},
    [XL_K] = {"mlstm_k", NORM_MLSTM},       [XL_V] = {"mlstm_v", NORM_MLSTM},
    [XL_OGATE] = {"mlstm_ogate", NORM_MLSTM}, [XL_IGATE] = {"mlstm_igate", -1},
    [XL_FGATE] = {"mlstm_fgate", -1},       [XL_MHNORM] = {"mlstm_head_norm", -1},
    [XL_OUT_PROJ] = {"mlstm_out", GATED},   [XL_NORM_FFN] = {"ffn_norm", -1},
    [XL_FFN_GATE] = {"ffn_gate", NORM_FFN}, [XL_FFN_UP] = {"ffn_up", NORM_FFN},
    [XL_FFN_DOWN] = {"ffn_down", FFN_PRODUCT},
};

void xl_gguf_name(char out[XL_GGUF_NAME], uint32_t block, xl_role role, bool bias)
{
    snprintf(out, XL_GGUF_NAME, "blk.%u.%s.%s", block, roles[role].name, bias ? "bias" : "weight");
}

typedef struct sums {
    double *squares; /* [width] over all rows seen */
    uint32_t width;
    uint64_t rows;
} sums;

struct xlstm_imatrix {
    uint32_t num_blocks, vocab_size, chunk_size;
    bool tied;
    sums *inputs; /* [num_blocks][INPUTS], then the head's */
};

static sums *sums_of(const xlstm_imatrix *im, uint32_t block, int input) { return &im->inputs[block * INPUTS + (uint32_t)input]; }
static sums *head_sums(const xlstm_imatrix *im) { return &im->inputs[im->num_blocks * INPUTS]; }

int xlstm_imatrix_new(xlstm_imatrix **out, const xlstm_model *model, xlstm_error *err)
{
    const xl_dims *d = &model->config.dims;
    const uint32_t widths[INPUTS] = {d->embedding_dim, d->v_dim, d->embedding_dim, d->ffn_dim};
    *out = NULL;
    xlstm_imatrix *im = xl_calloc(1, sizeof(*im), err);
    if (im == NULL) return XLSTM_E_MEMORY;
    im->num_blocks = d->num_blocks;
    im->chunk_size = model->config.chunk_size;
    im->tied = model->info.tied;
    size_t n = (size_t)d->num_blocks * INPUTS + 1;
    im->inputs = xl_calloc(n, sizeof(*im->inputs), err);
    for (size_t i = 0; im->inputs != NULL && i < n; i++) {
        sums *s = &im->inputs[i];
        s->width = i + 1 < n ? widths[i % INPUTS] : d->embedding_dim;
        s->squares = xl_calloc(s->width, sizeof(*s->squares), err);
        if (s->squares == NULL) {
            xlstm_imatrix_free(im);
            return XLSTM_E_MEMORY;
        }
    }
    if (im->inputs == NULL) {
        xlstm_imatrix_free(im);
        return XLSTM_E_MEMORY;
    }
    *out = im;
    return XLSTM_OK;
}

void xlstm_imatrix_free(xlstm_imatrix *im)
{
    if (im == NULL) return;
    size_t n = (size_t)im->num_blocks * INPUTS + 1;
    for (size_t i = 0; im->inputs != NULL && i < n; i++) xl_release(im->inputs[i].squares);
    xl_release(im->inputs);
    xl_release(im);
}

void xlstm_imatrix_observe(void *imatrix, int block, const char *stage, const float *values, size_t rows, size_t width)
{
    xlstm_imatrix *im = imatrix;
    sums *s = NULL;
    if (block < 0 && strcmp(stage, "out_norm") == 0) s = head_sums(im);
    for (int i = 0; block >= 0 && (uint32_t)block < im->num_blocks && i < INPUTS; i++) {
        if (strcmp(stage, stages[i]) == 0) s = sums_of(im, (uint32_t)block, i);
    }
    if (s == NULL || s->width != width) return;
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < width; c++) s->squares[c] += (double)values[r * width + c] * values[r * width + c];
    }
    s->rows += rows;
}

uint64_t xlstm_imatrix_tokens(const xlstm_imatrix *im) { return im->inputs[0].rows; }

/* ---- file ------------------------------------------------------------------------------------------------------- */

enum { MAX_WIDTH = 1 << 24 };

typedef int (*each_fn)(xl_gguf_writer *g, const char *tensor, const sums *s, xlstm_error *err);

static int declare(xl_gguf_writer *g, const char *tensor, const sums *s, xlstm_error *err)
{
    char name[2 * XL_GGUF_NAME];
    const uint64_t shape[2] = {1, s->width}, one[2] = {1, 1};
    snprintf(name, sizeof(name), "%s.in_sum2", tensor);
    int result = xl_gguf_declare(g, name, XLSTM_F32, 2, shape, err);
    snprintf(name, sizeof(name), "%s.counts", tensor);
    return result == XLSTM_OK ? xl_gguf_declare(g, name, XLSTM_F32, 2, one, err) : result;
}

static int write(xl_gguf_writer *g, const char *tensor, const sums *s, xlstm_error *err)
{
    (void)tensor;
    for (uint32_t c = 0; c < s->width; c++) {
        float square = (float)s->squares[c];
        int result = xl_gguf_data(g, &square, sizeof(square), err);
        if (result != XLSTM_OK) return result;
    }
    float count = (float)s->rows;
    return xl_gguf_data(g, &count, sizeof(count), err);
}

static int each(const xlstm_imatrix *im, xl_gguf_writer *g, each_fn fn, xlstm_error *err)
{
    int result = XLSTM_OK;
    for (uint32_t b = 0; b < im->num_blocks; b++) {
        for (int role = 0; role < XL_ROLES && result == XLSTM_OK; role++) {
            char name[XL_GGUF_NAME];
            if (roles[role].input < 0) continue;
            xl_gguf_name(name, b, (xl_role)role, false);
            result = fn(g, name, sums_of(im, b, roles[role].input), err);
        }
    }
    if (result != XLSTM_OK) return result;
    return fn(g, im->tied ? "token_embd.weight" : "output.weight", head_sums(im), err);
}

int xlstm_imatrix_save(const xlstm_imatrix *im, const char *path, xlstm_error *err)
{
    xl_gguf_writer g;
    if (xlstm_imatrix_tokens(im) == 0 || head_sums(im)->rows == 0) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "%s: the importance matrix has seen no text", path);
    }
    for (size_t i = 0; i <= (size_t)im->num_blocks * INPUTS; i++) {
        for (uint32_t c = 0; c < im->inputs[i].width; c++) {
            if (!xl_is_finite((float)im->inputs[i].squares[c])) {
                return xl_fail(err, XLSTM_E_NONFINITE, "%s: activations were not finite while the text was read", path);
            }
        }
    }
    int result = xl_gguf_create(&g, path, err);
    if (result != XLSTM_OK) return result;
    xl_gguf_put_text(&g, "general.type", "imatrix", strlen("imatrix"));
    xl_gguf_put_text(&g, "general.architecture", "xlstm", strlen("xlstm"));
    xl_gguf_put_u32(&g, "imatrix.chunk_size", im->chunk_size);
    xl_gguf_put_u32(&g, "imatrix.chunk_count", (uint32_t)(xlstm_imatrix_tokens(im) / im->chunk_size));
    result = each(im, &g, declare, err);
    if (result == XLSTM_OK) result = xl_gguf_begin(&g, err);
    if (result == XLSTM_OK) result = each(im, &g, write, err);
    if (result == XLSTM_OK) return xl_gguf_commit(&g, err);
    xl_gguf_abort(&g);
    return result;
}

int xl_imatrix_find(const float **out, xl_weights *w, const char *tensor, uint64_t columns, const char *path,
                    xlstm_error *err)
{
    char name[2 * XL_GGUF_NAME];
    snprintf(name, sizeof(name), "%s.in_sum2", tensor);
    const xl_tensor *t = xl_weights_find(w, name);
    if (t == NULL) {
        return xl_fail(err, XLSTM_E_MISMATCH,
                       "%s: no tensor '%s'; make the importance matrix with the model that is converted", path, name);
    }
    if (t->dtype != XLSTM_F32 || columns > MAX_WIDTH || t->bytes != columns * sizeof(float)) {
        char shape[XL_SHAPE_TEXT];
        return xl_fail(err, XLSTM_E_MISMATCH, "%s: tensor '%s': expected %llu float32 values, found %s %s", path, name,
                       (unsigned long long)columns, t->type, xl_shape_text(shape, t));
    }
    const void *bytes;
    int result = xl_weights_data(&bytes, w, t, err);
    if (result != XLSTM_OK) return result;
    const float *values = bytes;
    for (uint64_t c = 0; c < columns; c++) {
        if (!xl_is_finite(values[c]) || values[c] < 0) {
            return xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%s': value %llu is %g, expected none below zero", path, name,
                           (unsigned long long)c, (double)values[c]);
        }
    }
    snprintf(name, sizeof(name), "%s.counts", tensor);
    const xl_tensor *counts = xl_weights_find(w, name);
    if (counts == NULL || counts->dtype != XLSTM_F32 || counts->bytes != sizeof(float)) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: expected a tensor '%s' of one float32 value", path, name);
    }
    result = xl_weights_data(&bytes, w, counts, err);
    if (result != XLSTM_OK) return result;
    const float count = *(const float *)bytes;
    if (!xl_is_finite(count) || count <= 0) {
        return xl_fail(err, XLSTM_E_FORMAT, "%s: tensor '%s': expected how much text was read, found %g", path, name, (double)count);
    }
    *out = values;
    return XLSTM_OK;
}
