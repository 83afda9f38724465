/*
 * convert.c — any checkpoint to one GGUF file: which format each tensor gets, the keys, and the data in pieces of rows
 * that the threads encode and one thread writes. docs/gguf.md is the contract. Reading belongs to weights*.c, encoding to
 * quantize.c, the container to gguf_write.c.
 */
#include "gguf_write.h"
#include "imatrix.h"
#include "quantize.h"
#include "threads.h"
#include "unicode.h"

#include <fnmatch.h>

enum {
    PIECE = 1 << 18,       /* values that a thread encodes at a time, at least a row */
    BATCH = 64,            /* pieces between two writes */
    TEXT_LIMIT = 64 << 20, /* bytes of tokenizer.json and its like */
};

/* One tensor of the result. */
typedef struct item {
    char name[XL_GGUF_NAME];
    xl_slice slice;
    uint64_t columns; /* of a row; a vector is one row */
    bool large;       /* may be quantised; otherwise float32 */
    bool tabled;      /* the embedding, whose rows are looked up: no input, no importance */
    bool named;       /* its format was asked for by name */
    bool fitted;      /* got another format than asked for: no need to be bit-exact with ggml's quantiser of it */
    xlstm_dtype dtype;
    const float *importance; /* [columns] or NULL */
} item;

typedef struct conversion {
    xlstm_model *m;
    const xlstm_convert_options *o;
    xl_log log;
    item *items;
    size_t n_items;
    xl_weights *imatrix;
    float *ones; /* [most columns]: an importance that asks for the best fit and prefers nothing */
    xl_pool *pool;
    uint64_t done, total; /* values */
    xl_gguf_writer g;
    xlstm_error *err;
} conversion;

static const char *base_name(const char *path, size_t *size)
{
    size_t end = strlen(path), start;
    while (end > 1 && path[end - 1] == '/') end--;
    for (start = end; start > 0 && path[start - 1] != '/';) start--;
    *size = end - start;
    return path + start;
}

/* ---- which tensors, in which formats ------------------------------------------------------------------------------ */

static bool is_large(xl_role role)
{
    return role == XL_Q || role == XL_K || role == XL_V || role == XL_OGATE || role == XL_OUT_PROJ ||
           role == XL_FFN_GATE || role == XL_FFN_UP || role == XL_FFN_DOWN;
}

static bool is_block_format(xlstm_dtype d) { return xl_dtype_get(d)->block > 1; }

static bool is_target(xlstm_dtype d)
{
    return d == XLSTM_F32 || d == XLSTM_F16 || d == XLSTM_BF16 || is_block_format(d);
}

static item *add_item(conversion *c, xl_slice slice, bool large)
{
    item *it = &c->items[c->n_items];
    if (slice.t == NULL) return NULL;
    *it = (item){.slice = slice, .large = large};
    it->columns = slice.t->rank > 1 ? slice.t->shape[1] : slice.rows;
    c->n_items++;
    return it;
}

static int list_items(conversion *c)
{
    const xl_wiring *w = &c->m->wiring;
    const uint64_t V = w->dims.vocab_size;
    c->items = xl_calloc((size_t)w->dims.num_blocks * XL_ROLES * 2 + 4, sizeof(*c->items), c->err);
    if (c->items == NULL) return XLSTM_E_MEMORY;
    item *it = add_item(c, (xl_slice){w->embedding, 0, V}, true);
    it->tabled = w->head != w->embedding;
    snprintf(it->name, sizeof(it->name), "token_embd.weight");
    for (uint32_t b = 0; b < w->dims.num_blocks; b++) {
        for (int role = 0; role < XL_ROLES; role++) {
            it = add_item(c, w->blocks[b].weight[role], is_large((xl_role)role));
            if (it != NULL) xl_gguf_name(it->name, b, (xl_role)role, false);
            it = add_item(c, w->blocks[b].bias[role], false);
            if (it != NULL) xl_gguf_name(it->name, b, (xl_role)role, true);
        }
    }
    it = add_item(c, w->out_norm, false);
    if (it != NULL) snprintf(it->name, sizeof(it->name), "output_norm.weight");
    it = add_item(c, w->out_norm_bias, false);
    if (it != NULL) snprintf(it->name, sizeof(it->name), "output_norm.bias");
    if (w->head != w->embedding) {
        it = add_item(c, (xl_slice){w->head, 0, V}, true);
        snprintf(it->name, sizeof(it->name), "output.weight");
    }
    return XLSTM_OK;
}

/* "ffn_down" and "blk.3.ffn_down" mean "blk.3.ffn_down.weight" too. */
static bool matches(const char *pattern, const char *name)
{
    char plain[XL_GGUF_NAME];
    snprintf(plain, sizeof(plain), "%s", name);
    char *end = strrchr(plain, '.'), *part;
    if (fnmatch(pattern, name, 0) == 0) return true;
    if (end != NULL) *end = '\0';
    part = strrchr(plain, '.');
    return fnmatch(pattern, plain, 0) == 0 || (part != NULL && fnmatch(pattern, part + 1, 0) == 0);
}

static int apply_override(conversion *c, const char *text)
{
    const char *equals = strrchr(text, '=');
    char pattern[256];
    if (equals == NULL || equals == text || (size_t)(equals - text) >= sizeof(pattern)) {
        return xl_fail(c->err, XLSTM_E_ARGUMENT, "tensor type '%.200s': expected PATTERN=TYPE, such as ffn_down=q8_0", text);
    }
    snprintf(pattern, sizeof(pattern), "%.*s", (int)(equals - text), text);
    xlstm_dtype dtype;
    int result = xlstm_dtype_parse(&dtype, equals + 1, c->err);
    if (result != XLSTM_OK) return result;
    if (!is_target(dtype)) {
        return xl_fail(c->err, XLSTM_E_ARGUMENT, "tensor type '%.200s': %s is no format for weights", text,
                       xlstm_dtype_name(dtype));
    }
    size_t found = 0;
    const char *small = NULL;
    for (size_t i = 0; i < c->n_items; i++) {
        if (!matches(pattern, c->items[i].name)) continue;
        if (c->items[i].large) {
            c->items[i].dtype = dtype;
            c->items[i].named = true;
            found++;
        } else {
            small = c->items[i].name;
        }
    }
    if (found > 0) return XLSTM_OK;
    if (small != NULL) {
        return xl_fail(c->err, XLSTM_E_ARGUMENT, "tensor type '%.200s': '%s' stays float32, as norms, gates and biases do",
                       text, small);
    }
    return xl_fail(c->err, XLSTM_E_ARGUMENT, "tensor type '%.200s': no tensor of this model matches; expected names such as "
                   "token_embd, output, mlstm_q, ffn_down or blk.3.ffn_up", text);
}

/* What a tensor gets whose rows are no whole blocks of the format: the next one up in bits that has blocks of 32. */
static xlstm_dtype fallback(xlstm_dtype dtype, uint64_t columns)
{
    if (columns % xl_dtype_get(dtype)->block == 0) return dtype;
    if (columns % xl_dtype_get(XLSTM_Q8_0)->block != 0) return XLSTM_BF16;
    return dtype == XLSTM_Q4_K ? XLSTM_Q4_0 : XLSTM_Q8_0;
}

/* Embedding and head keep more: every token passes through them, and looking rows up costs no time. */
static xlstm_dtype outer_format(xlstm_dtype type)
{
    return type == XLSTM_Q5_K || type == XLSTM_Q4_K || type == XLSTM_Q4_0 ? XLSTM_Q6_K : type;
}

static int choose_formats(conversion *c)
{
    const xlstm_convert_options *o = c->o;
    const xlstm_dtype asked[] = {o->type, o->embedding, o->head};
    for (size_t i = 0; i < XL_COUNT(asked); i++) {
        if (asked[i] != XLSTM_DTYPE_DEFAULT && !is_target(asked[i])) {
            return xl_fail(c->err, XLSTM_E_ARGUMENT, "%s is no format for weights; expected float32, float16, bfloat16, q8_0, "
                           "q6_k, q5_k, q4_k or q4_0", xlstm_dtype_name(asked[i]));
        }
    }
    for (size_t i = 0; i < c->n_items; i++) {
        item *it = &c->items[i];
        xlstm_dtype dtype = o->type;
        const bool embedding = i == 0, head = strcmp(it->name, "output.weight") == 0 || (embedding && !it->tabled);
        if (embedding || head) dtype = outer_format(dtype);
        if (head && o->head != XLSTM_DTYPE_DEFAULT) dtype = o->head;
        if (embedding && o->embedding != XLSTM_DTYPE_DEFAULT) dtype = o->embedding;
        it->named = (head && dtype == o->head) || (embedding && dtype == o->embedding);
        if (dtype == XLSTM_DTYPE_DEFAULT) dtype = it->slice.t->dtype;
        it->dtype = it->large ? dtype : XLSTM_F32;
    }
    for (size_t i = 0; i < o->n_tensors; i++) {
        int result = apply_override(c, o->tensors[i]);
        if (result != XLSTM_OK) return result;
    }
    for (size_t i = 0; i < c->n_items; i++) {
        item *it = &c->items[i];
        xlstm_dtype fits = fallback(it->dtype, it->columns);
        if (fits == it->dtype) continue;
        xl_logf(&c->log, it->named ? XLSTM_LOG_WARNING : XLSTM_LOG_INFO, "%s: rows of %llu values are no multiple of the %u in a block of %s: %s", it->name,
                (unsigned long long)it->columns, xl_dtype_get(it->dtype)->block, xlstm_dtype_name(it->dtype),
                xlstm_dtype_name(fits));
        it->dtype = fits;
        it->fitted = true;
    }
    return XLSTM_OK;
}

/* Names of another, larger model tell that the importance matrix is that one's. */
static int check_importances(conversion *c)
{
    static const char end[] = ".in_sum2";
    for (size_t i = 0; i < xl_weights_count(c->imatrix); i++) {
        const char *name = xl_weights_at(c->imatrix, i)->name;
        const size_t n = strlen(name), stem = n - XL_MIN(n, strlen(end));
        if (strcmp(name + stem, end) != 0) continue;
        size_t found = 0;
        while (found < c->n_items && (strlen(c->items[found].name) != stem || memcmp(c->items[found].name, name, stem) != 0)) found++;
        if (found < c->n_items && c->items[found].large) continue;
        return xl_fail(c->err, XLSTM_E_MISMATCH, "%s: tensor '%s': the model that is converted has no such matrix; make the "
                       "importance matrix with that model", c->o->imatrix, name);
    }
    return XLSTM_OK;
}

static int find_importances(conversion *c)
{
    const char *path = c->o->imatrix;
    uint64_t most = 1;
    for (size_t i = 0; i < c->n_items; i++) most = XL_MAX(most, c->items[i].columns);
    c->ones = xl_alloc(most * sizeof(*c->ones), c->err);
    if (c->ones == NULL) return XLSTM_E_MEMORY;
    for (uint64_t i = 0; i < most; i++) c->ones[i] = 1;
    int result = path != NULL ? xl_weights_open_typed(&c->imatrix, path, "imatrix", c->err) : XLSTM_OK;
    if (path != NULL && result == XLSTM_OK) result = check_importances(c);
    for (size_t i = 0; i < c->n_items && result == XLSTM_OK; i++) {
        item *it = &c->items[i];
        if (it->fitted) it->importance = c->ones;
        if (path == NULL || !is_block_format(it->dtype) || it->tabled) continue;
        result = xl_imatrix_find(&it->importance, c->imatrix, it->name, it->columns, path, c->err);
    }
    return result;
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

static void put_text(xl_gguf_writer *g, const char *key, const char *text)
{
    if (text != NULL) xl_gguf_put_text(g, key, text, strlen(text));
}

static void put_id(xl_gguf_writer *g, const char *key, int32_t id)
{
    if (id >= 0) xl_gguf_put_u32(g, key, (uint32_t)id);
}

/* ggml's number for "mostly this format". */
static uint32_t file_type(const conversion *c)
{
    static const uint32_t numbers[XLSTM_DTYPE_COUNT] = {
        [XLSTM_F32] = 0,   [XLSTM_F16] = 1,   [XLSTM_BF16] = 32, [XLSTM_Q8_0] = 7,
        [XLSTM_Q6_K] = 18, [XLSTM_Q5_K] = 16, [XLSTM_Q4_K] = 14, [XLSTM_Q4_0] = 2,
    };
    uint64_t values[XLSTM_DTYPE_COUNT] = {0};
    xlstm_dtype most = XLSTM_F32;
    for (size_t i = 0; i < c->n_items; i++) values[c->items[i].dtype] += c->items[i].slice.rows * c->items[i].columns;
    for (int d = 0; d < XLSTM_DTYPE_COUNT; d++) {
        if (values[d] > values[most]) most = (xlstm_dtype)d;
    }
    return numbers[most];
}

static void put_settings(conversion *c, const char *path)
{
    xl_gguf_writer *g = &c->g;
    const xl_config *f = &c->m->config;
    const xl_dims *d = &f->dims;
    const xl_numerics *n = &f->numerics;
    size_t size;
    const char *name = base_name(path, &size);
    put_text(g, "general.architecture", "xlstm");
    put_text(g, "general.type", "model");
    if (xl_utf8_valid(name, size) == size) xl_gguf_put_text(g, "general.name", name, size);
    xl_gguf_put_u32(g, "general.file_type", file_type(c));
    xl_gguf_put_u32(g, "general.quantization_version", 2);
    xl_gguf_put_u32(g, "xlstm.block_count", d->num_blocks);
    xl_gguf_put_u32(g, "xlstm.embedding_length", d->embedding_dim);
    xl_gguf_put_u32(g, "xlstm.head_count", d->num_heads);
    xl_gguf_put_u32(g, "xlstm.key_length", d->head_qk);
    xl_gguf_put_u32(g, "xlstm.value_length", d->head_v);
    xl_gguf_put_u32(g, "xlstm.feed_forward_length", d->ffn_dim);
    xl_gguf_put_u32(g, "xlstm.vocab_size", d->vocab_size);
    xl_gguf_put_u32(g, "xlstm.context_length", INT32_MAX);
    xl_gguf_put_f32(g, "xlstm.norm_epsilon", f->norm_eps);
    xl_gguf_put_f32(g, "xlstm.cell_epsilon", f->cell_eps);
    xl_gguf_put_f32(g, "xlstm.gate_soft_cap", f->gate_soft_cap);
    xl_gguf_put_f32(g, "xlstm.logit_soft_cap", f->logit_soft_cap);
    xl_gguf_put_u32(g, "xlstm.chunk_size", f->chunk_size);
    if (c->m->wiring.out_norm.t == NULL) xl_gguf_put_bool(g, "xlstm.add_out_norm", false);
    if (n->config_weights != XLSTM_DTYPE_DEFAULT) put_text(g, "xlstm.torch_dtype", xlstm_dtype_name(n->config_weights));
    if (n->config_kernel != XLSTM_DTYPE_DEFAULT) {
        put_text(g, "xlstm.autocast_kernel_dtype", xlstm_dtype_name(n->config_kernel));
    }
    put_text(g, "xlstm.inference_state_dtype", xlstm_dtype_name(n->state.dtype));
    xl_gguf_put_bool(g, "xlstm.norm_reduction_force_float32", n->norm_float32.on);
    if (f->force_bos) xl_gguf_put_bool(g, "xlstm.force_bos_token_insert", true);
    put_id(g, "tokenizer.ggml.bos_token_id", f->bos_id);
    put_id(g, "tokenizer.ggml.eos_token_id", f->eos_id);
    put_id(g, "tokenizer.ggml.padding_token_id", f->pad_id);
}

/* Copies folder/file into a key if it is there. */
static int put_file(conversion *c, const char *key, const char *folder, const char *file)
{
    char *path = xl_join(folder, file, c->err), *text = NULL;
    size_t size = 0;
    if (path == NULL) return XLSTM_E_MEMORY;
    int result = xl_is_file(path) ? xl_read_file(&text, &size, path, TEXT_LIMIT, c->err) : XLSTM_OK;
    if (text != NULL && strlen(text) == size && xl_utf8_valid(text, size) == size) xl_gguf_put_text(&c->g, key, text, size);
    xl_release(text);
    xl_release(path);
    return result;
}

/* Tokenizer and end tokens: embedded in the source, or files beside it. Also a tokenizer that this version does not understand. */
static int put_tokenizer(conversion *c, const char *path)
{
    xlstm_model *m = c->m;
    const char *config, *json = xl_weights_tokenizer(m->weights, &config), *ends = xl_weights_generation_config(m->weights);
    const bool preset = strncmp(path, "preset:", 7) == 0;
    char *folder = preset ? NULL : xl_model_folder(path, c->err);
    if (folder == NULL && !preset) return XLSTM_E_MEMORY;
    int result = XLSTM_OK;
    put_text(&c->g, "xlstm.generation_config", ends);
    if (ends == NULL && folder != NULL) result = put_file(c, "xlstm.generation_config", folder, "generation_config.json");
    if (json != NULL) {
        put_text(&c->g, "tokenizer.huggingface.json", json);
        put_text(&c->g, "xlstm.tokenizer_config", config);
    } else if (folder != NULL) {
        if (result == XLSTM_OK) result = put_file(c, "tokenizer.huggingface.json", folder, "tokenizer.json");
        if (result == XLSTM_OK) result = put_file(c, "xlstm.tokenizer_config", folder, "tokenizer_config.json");
    }
    if (m->tokenizer != NULL) put_text(&c->g, "tokenizer.chat_template", xlstm_tokenizer_chat_template(m->tokenizer));
    xl_release(folder);
    return result;
}

/* ---- data ------------------------------------------------------------------------------------------------------- */

/* Some rows of one tensor, cut into pieces of whole rows. */
typedef struct batch {
    const item *it;
    const uint8_t *in; /* first row */
    uint8_t *out;
    uint64_t rows, piece; /* rows in all and in a piece */
    size_t in_row, out_row; /* bytes */
    float *scratch;       /* [threads][columns] */
    uint64_t bad;         /* first value, counted from the batch's start, that the format cannot hold; else UINT64_MAX */
} batch;

static void note_bad(batch *b, uint64_t at)
{
    uint64_t first = __atomic_load_n(&b->bad, __ATOMIC_RELAXED);
    while (at < first && !__atomic_compare_exchange_n(&b->bad, &first, at, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
}

static void encode_piece(void *arg, uint32_t piece, uint32_t worker)
{
    batch *b = arg;
    const item *it = b->it;
    const uint64_t n = it->columns;
    float *values = b->scratch + worker * n;
    const bool block = is_block_format(it->dtype), narrow = block || it->dtype == XLSTM_F16;
    for (uint64_t r = piece * b->piece; r < XL_MIN(b->rows, (piece + 1) * b->piece); r++) {
        xl_decode_row(values, b->in + r * b->in_row, it->slice.t->dtype, n);
        for (uint64_t i = 0; narrow && i < n; i++) {
            if (xl_bits_of(values[i]) << 1 <= 0x477fe000u << 1) continue; /* at most 65504 */
            if (!block && !xl_is_finite(values[i])) continue;             /* which float16 has too */
            note_bad(b, r * n + i);
            return;
        }
        if (block) {
            xl_quantize_row(b->out + r * b->out_row, values, it->dtype, n, it->importance);
        } else {
            xl_encode_row(b->out + r * b->out_row, values, it->dtype, n);
        }
    }
}

static int give_up(conversion *c)
{
    return xl_fail(c->err, XLSTM_E_IO, "%s: stopped on request; nothing was written", c->g.file.path);
}

static int report(conversion *c, uint64_t values)
{
    c->done += values;
    if (c->o->progress != NULL) c->o->progress(c->o->progress_user, "converting", c->done, c->total);
    return c->o->stop != NULL && c->o->stop(c->o->stop_user) ? give_up(c) : XLSTM_OK;
}

static int bad_value(conversion *c, const item *it, uint64_t row, uint64_t column)
{
    return xl_fail(c->err, XLSTM_E_UNSUPPORTED,
                   "tensor '%s': the value at row %llu, column %llu is not finite or beyond 65504, which %s cannot hold; "
                   "use bfloat16 or float32",
                   it->slice.t->name, (unsigned long long)row, (unsigned long long)column, xlstm_dtype_name(it->dtype));
}

/* `next` is what will be read after this one. */
static int write_item(conversion *c, const item *it, const item *next)
{
    xl_weights *w = c->m->weights;
    const xl_tensor *t = it->slice.t;
    const uint64_t rows = t->rank > 1 ? it->slice.rows : 1;
    const void *data;
    size_t in_row, out_row;
    if (next != NULL && next->slice.t != t) xl_weights_want(w, next->slice.t);
    int result = xl_weights_data(&data, w, t, c->err);
    if (result != XLSTM_OK) return result;
    if (!xl_dtype_row_bytes(&in_row, t->dtype, it->columns) || !xl_dtype_row_bytes(&out_row, it->dtype, it->columns)) {
        return xl_fail(c->err, XLSTM_E_UNSUPPORTED, "tensor '%s': its rows are no whole blocks", t->name);
    }
    const uint8_t *in = (const uint8_t *)data + (t->rank > 1 ? it->slice.row0 * in_row : it->slice.row0 * in_row / it->columns);
    const bool same = t->dtype == it->dtype;
    const uint64_t piece = XL_MAX(1u, PIECE / it->columns), most = piece * BATCH;
    batch b = {.it = it, .piece = piece, .in_row = in_row, .out_row = out_row};
    if (!same) {
        b.scratch = xl_alloc(xl_pool_threads(c->pool) * it->columns * sizeof(float), c->err);
        b.out = b.scratch != NULL ? xl_alloc(XL_MIN(most, rows) * out_row, c->err) : NULL;
        if (b.out == NULL) result = XLSTM_E_MEMORY;
    }
    for (uint64_t r = 0; r < rows && result == XLSTM_OK; r += b.rows) {
        b.rows = XL_MIN(most, rows - r);
        b.in = in + r * in_row;
        b.bad = UINT64_MAX;
        if (!same) xl_pool_run(c->pool, (uint32_t)((b.rows + piece - 1) / piece), encode_piece, &b);
        if (b.bad != UINT64_MAX) {
            result = bad_value(c, it, it->slice.row0 + r + b.bad / it->columns, b.bad % it->columns);
        } else {
            result = xl_gguf_data(&c->g, same ? b.in : b.out, b.rows * out_row, c->err);
        }
        if (result == XLSTM_OK) result = report(c, b.rows * it->columns);
        if (rows > most) xl_weights_drop_part(w, t, (size_t)(b.in - (const uint8_t *)data), b.rows * in_row);
    }
    xl_release(b.scratch);
    xl_release(b.out);
    if (next == NULL || next->slice.t != t) xl_weights_drop(w, t);
    return result;
}

static int write_file(conversion *c, const char *path)
{
    put_settings(c, path);
    int result = put_tokenizer(c, path);
    for (size_t i = 0; i < c->n_items && result == XLSTM_OK; i++) {
        const item *it = &c->items[i];
        const bool matrix = it->slice.t->rank > 1;
        const uint64_t shape[2] = {matrix ? it->slice.rows : it->columns, it->columns};
        result = xl_gguf_declare(&c->g, it->name, it->dtype, matrix ? 2 : 1, shape, c->err);
        c->total += (matrix ? it->slice.rows : 1) * it->columns;
    }
    if (result == XLSTM_OK) result = xl_gguf_begin(&c->g, c->err);
    for (size_t i = 0; i < c->n_items && result == XLSTM_OK; i++) {
        result = write_item(c, &c->items[i], i + 1 < c->n_items ? &c->items[i + 1] : NULL);
    }
    return result == XLSTM_OK ? xl_gguf_commit(&c->g, c->err) : result;
}

/* A name that promises more files would keep the result from being opened. */
static int check_name(const char *out, xlstm_error *err)
{
    unsigned number, count;
    if (xl_gguf_split_name(out, &number, &count) == 0) return XLSTM_OK;
    return xl_fail(err, XLSTM_E_ARGUMENT, "%s: this is the name of a part of a split model, but one file is written; leave out "
                   "-%05u-of-%05u", out, number, count);
}

int xlstm_convert(const char *path, const char *out, const xlstm_convert_options *options, xlstm_error *err)
{
    static const xlstm_convert_options defaults;
    const xlstm_convert_options *o = options != NULL ? options : &defaults;
    conversion c = {.o = o, .log = {o->log, o->log_user}, .err = err};
    const xlstm_model_options facts = {
        .headers_only = true, .set = o->set, .n_set = o->n_set, .log = o->log, .log_user = o->log_user};
    int result = check_name(out, err);
    if (result == XLSTM_OK) result = xlstm_model_open(&c.m, path, &facts, err);
    if (result == XLSTM_OK) result = list_items(&c);
    if (result == XLSTM_OK) result = choose_formats(&c);
    if (result == XLSTM_OK) result = find_importances(&c);
    if (result == XLSTM_OK) result = xl_pool_new(&c.pool, o->threads, err);
    if (result == XLSTM_OK) result = xl_gguf_create(&c.g, out, err);
    if (result == XLSTM_OK) result = write_file(&c, path);
    xl_gguf_abort(&c.g);
    xl_pool_free(c.pool);
    xl_weights_close(c.imatrix);
    xl_release(c.items);
    xl_release(c.ones);
    xlstm_model_free(c.m);
    return result;
}
