/*
 * wiring.c — finds out what every tensor of a checkpoint does, and checks that all are there and fit. See wiring.h.
 *
 * Three passes: each name is parsed into (block, part, weight or bias) or one of the tensors outside the blocks; the
 * parts are put into their slots; the dimensions are read off a few shapes and every slot is checked against them.
 *   V, D  embedding [V, D]          NH   igate_preact [NH, D] (or half of ifgate_preact)
 *   Vd    out_proj [D, Vd]          Qd   q [Qd, D] (or what is left of qkv_opreact)
 *   F     proj_down [D, F]
 */
#include "wiring.h"

#include <stdlib.h>

/* ---- names ------------------------------------------------------------------------------------------------------ */

/* The parts of a block, the fused ones after the roles. */
enum { QKVO = XL_ROLES, IFGATE, UP_GATE_Z, PARTS };

static const struct {
    const char *name, *gguf; /* after "blocks.N." or "blk.N.", before ".weight" */
} parts[PARTS] = {
    [XL_NORM_MLSTM] = {"norm_mlstm", "mlstm_norm"},
    [XL_Q] = {"mlstm_layer.q", "mlstm_q"},
    [XL_K] = {"mlstm_layer.k", "mlstm_k"},
    [XL_V] = {"mlstm_layer.v", "mlstm_v"},
    [XL_OGATE] = {"mlstm_layer.ogate_preact", "mlstm_ogate"},
    [XL_IGATE] = {"mlstm_layer.igate_preact", "mlstm_igate"},
    [XL_FGATE] = {"mlstm_layer.fgate_preact", "mlstm_fgate"},
    [XL_MHNORM] = {"mlstm_layer.multihead_norm", "mlstm_head_norm"},
    [XL_OUT_PROJ] = {"mlstm_layer.out_proj", "mlstm_out"},
    [XL_NORM_FFN] = {"norm_ffn", "ffn_norm"},
    [XL_FFN_GATE] = {"ffn.proj_up_gate", "ffn_gate"},
    [XL_FFN_UP] = {"ffn.proj_up", "ffn_up"},
    [XL_FFN_DOWN] = {"ffn.proj_down", "ffn_down"},
    [QKVO] = {"mlstm_layer.qkv_opreact", "mlstm_qkvo"},
    [IFGATE] = {"mlstm_layer.ifgate_preact", "mlstm_ifgate"},
    [UP_GATE_Z] = {"ffn.proj_up_gate_z", "ffn_gate_up"},
};

static const struct {
    const char *name;
    int part;
} other_names[] = {{"mlstm_layer.query", XL_Q}, {"mlstm_layer.key", XL_K}, {"mlstm_layer.value", XL_V}};

/* Outside the blocks. */
enum { EMBEDDING, OUT_NORM, OUT_NORM_BIAS, HEAD, GLOBALS };
enum { HUGGINGFACE, NX_AI, BARE, GGUF, SCHEMES };
static const char *const scheme_names[SCHEMES] = {"huggingface", "nx-ai", "bare", "gguf"};
static const char *const block_prefixes[SCHEMES] = {"backbone.blocks.", "backbone.blocks.", "blocks.", "blk."};
static const char *const global_names[GLOBALS][SCHEMES] = {
    [EMBEDDING] = {"backbone.embeddings.weight", "embedding.weight", "embeddings.weight", "token_embd.weight"},
    [OUT_NORM] = {"backbone.out_norm.weight", "backbone.out_norm.weight", "out_norm.weight", "output_norm.weight"},
    [OUT_NORM_BIAS] = {"backbone.out_norm.bias", "backbone.out_norm.bias", "out_norm.bias", "output_norm.bias"},
    [HEAD] = {"lm_head.weight", "lm_head.weight", "lm_head.weight", "output.weight"},
};

/* Words in the names of blocks that other architectures use. */
static const struct {
    const char *word, *kind;
} foreign[] = {
    {"slstm", "an sLSTM block"},
    {"self_attn", "an attention block"},
    {"attention", "an attention block"},
    {"attn", "an attention block"},
    {"mamba", "a Mamba block"},
    {"conv1d", "a block with a convolution"},
    {"mlstm_cell", "an mLSTM block of the 2024 architecture"},
};

const char *xl_role_name(xl_role role)
{
    const char *name = parts[role].name, *dot = strchr(name, '.');
    return dot == NULL ? name : dot + 1;
}

typedef struct parsed {
    int global; /* EMBEDDING .. HEAD, or -1: in a block */
    uint32_t block;
    int part; /* or -1: unknown */
    bool bias;
} parsed;

/* "12.rest" -> 12 and rest; NULL unless it is a plain number of at most six digits. */
static const char *parse_number(uint32_t *out, const char *s)
{
    uint32_t n = 0;
    const char *p = s;
    while (*p >= '0' && *p <= '9' && p - s < 7) n = n * 10 + (uint32_t)(*p++ - '0');
    if (p == s || p - s > 6 || *p != '.' || (*s == '0' && p - s > 1)) return NULL;
    *out = n;
    return p + 1;
}

static bool is_part(const char *s, size_t n, const char *name) { return strlen(name) == n && memcmp(s, name, n) == 0; }

/* `rest` is what follows the block number. */
static void parse_part(parsed *p, const char *rest, bool gguf)
{
    const char *dot = strrchr(rest, '.');
    p->part = -1;
    if (dot == NULL || (strcmp(dot, ".weight") != 0 && strcmp(dot, ".bias") != 0)) return;
    p->bias = dot[1] == 'b';
    size_t n = (size_t)(dot - rest);
    for (int i = 0; i < PARTS; i++) {
        if (is_part(rest, n, gguf ? parts[i].gguf : parts[i].name)) p->part = i;
    }
    for (size_t i = 0; !gguf && i < XL_COUNT(other_names); i++) {
        if (is_part(rest, n, other_names[i].name)) p->part = other_names[i].part;
    }
}

/* False: not a name of this architecture. */
static bool parse_name(parsed *p, const char *name)
{
    *p = (parsed){.global = -1, .part = -1};
    for (int g = 0; g < GLOBALS; g++) {
        for (int s = 0; s < SCHEMES; s++) {
            if (strcmp(name, global_names[g][s]) == 0) {
                p->global = g;
                return true;
            }
        }
    }
    for (int s = 0; s < SCHEMES; s++) {
        size_t n = strlen(block_prefixes[s]);
        const char *rest = strncmp(name, block_prefixes[s], n) == 0 ? parse_number(&p->block, name + n) : NULL;
        if (rest == NULL) continue;
        parse_part(p, rest, s == GGUF);
        return true;
    }
    return false;
}

/* ---- building --------------------------------------------------------------------------------------------------- */

/* The tensors of a block by part, before fused ones are cut into slices. */
typedef struct block_parts {
    const xl_tensor *weight[PARTS], *bias[PARTS];
} block_parts;

typedef struct builder {
    xl_wiring *out;
    const xl_weights *w;
    xlstm_error *err;
    const xl_tensor *globals[GLOBALS];
    block_parts *blocks;
    uint32_t num_blocks, n_views;
    int scheme;
} builder;

/* The name a tensor would have in this checkpoint. */
static const char *expected_name(const builder *b, char out[128], uint32_t block, int part, bool bias)
{
    snprintf(out, 128, "%s%u.%s.%s", block_prefixes[b->scheme], block,
             b->scheme == GGUF ? parts[part].gguf : parts[part].name, bias ? "bias" : "weight");
    return out;
}

static int refuse_name(const builder *b, const xl_tensor *t, const parsed *p, bool known)
{
    const char *file = xl_weights_file(b->w, t->file);
    if (known) {
        for (size_t i = 0; i < XL_COUNT(foreign); i++) {
            if (strstr(t->name, foreign[i].word) == NULL) continue;
            return xl_fail(b->err, XLSTM_E_UNSUPPORTED,
                           "%s: block %u is %s, which is not supported (tensor '%s'); expected mLSTM blocks of the "
                           "xLSTM Large architecture",
                           file, p->block, foreign[i].kind, t->name);
        }
    }
    if (strncmp(t->name, "xlstm_block_stack.", 18) == 0 || strncmp(t->name, "token_embedding.", 16) == 0) {
        return xl_fail(b->err, XLSTM_E_UNSUPPORTED,
                       "%s: tensor '%s' belongs to the 2024 xLSTM architecture, which is not supported; expected xLSTM "
                       "Large (backbone.blocks.0.mlstm_layer.q.weight, ...)",
                       file, t->name);
    }
    return xl_fail(b->err, XLSTM_E_FORMAT,
                   "%s: surplus tensor '%s': an xLSTM Large model has no use for it (names look like "
                   "backbone.blocks.0.mlstm_layer.q.weight)",
                   file, t->name);
}

static int put(const builder *b, const xl_tensor **slot, const xl_tensor *t)
{
    if (*slot != NULL) {
        return xl_fail(b->err, XLSTM_E_FORMAT, "tensors '%s' and '%s' are two names for the same thing; expected one",
                       (*slot)->name, t->name);
    }
    *slot = t;
    return XLSTM_OK;
}

/* Block numbers must be 0 .. n-1. */
static int count_blocks(builder *b)
{
    size_t n = xl_weights_count(b->w), limit = n;
    uint32_t highest = 0;
    bool any = false;
    bool *seen = xl_calloc(limit + 1, sizeof(*seen), b->err);
    if (seen == NULL) return XLSTM_E_MEMORY;
    const xl_tensor *last = NULL;
    for (size_t i = 0; i < n; i++) {
        parsed p;
        const xl_tensor *t = xl_weights_at(b->w, i);
        if (!parse_name(&p, t->name) || p.global >= 0) continue;
        if (p.block <= limit) seen[p.block] = true;
        if (!any || p.block > highest) last = t;
        highest = XL_MAX(highest, p.block);
        any = true;
    }
    uint32_t gap = 0;
    while (gap <= highest && gap <= limit && seen[gap]) gap++;
    xl_release(seen);
    if (!any) {
        return xl_fail(b->err, XLSTM_E_FORMAT,
                       "%s: no xLSTM block among %zu tensors (the first is '%.200s'): expected names like "
                       "backbone.blocks.0.mlstm_layer.q.weight",
                       xl_weights_file(b->w, 0), n, n > 0 ? xl_weights_at(b->w, 0)->name : "");
    }
    if (gap <= highest) {
        return xl_fail(b->err, XLSTM_E_FORMAT, "%s: block %u is missing, but there is '%s': block numbers must have no gap",
                       xl_weights_file(b->w, last->file), gap, last->name);
    }
    b->num_blocks = highest + 1;
    return XLSTM_OK;
}

static int assign(builder *b)
{
    for (size_t i = 0; i < xl_weights_count(b->w); i++) {
        const xl_tensor *t = xl_weights_at(b->w, i);
        parsed p;
        bool known = parse_name(&p, t->name);
        if (!known || (p.global < 0 && p.part < 0)) return refuse_name(b, t, &p, known);
        const xl_tensor **slot = &b->globals[p.global >= 0 ? p.global : 0];
        if (p.global < 0) {
            block_parts *block = &b->blocks[p.block];
            slot = p.bias ? &block->bias[p.part] : &block->weight[p.part];
        }
        int result = put(b, slot, t);
        if (result != XLSTM_OK) return result;
    }
    if (b->globals[EMBEDDING] == NULL) {
        return xl_fail(b->err, XLSTM_E_FORMAT,
                       "%s: the embedding is missing: expected 'backbone.embeddings.weight', 'embedding.weight', "
                       "'embeddings.weight' or 'token_embd.weight'", xl_weights_file(b->w, 0));
    }
    b->scheme = 0;
    while (strcmp(b->globals[EMBEDDING]->name, global_names[EMBEDDING][b->scheme]) != 0) b->scheme++;
    return XLSTM_OK;
}

/* ---- shapes ----------------------------------------------------------------------------------------------------- */

static int wrong_shape(const builder *b, const xl_tensor *t, const char *expected)
{
    char found[XL_SHAPE_TEXT];
    return xl_fail(b->err, XLSTM_E_FORMAT, "%s: tensor '%s': expected shape %s, found %s",
                   xl_weights_file(b->w, t->file), t->name, expected, xl_shape_text(found, t));
}

/* Whether the engine computes with this dtype; block formats only in large matrices. */
static int check_dtype(const builder *b, const xl_tensor *t, bool matrix)
{
    bool plain = t->dtype == XLSTM_F32 || t->dtype == XLSTM_F16 || t->dtype == XLSTM_BF16;
    bool block = xl_dtype_get(t->dtype)->block > 1;
    if (plain || (block && matrix)) return XLSTM_OK;
    return xl_fail(b->err, XLSTM_E_UNSUPPORTED, "%s: tensor '%s' is stored as %s, expected float32, float16 or bfloat16%s",
                   xl_weights_file(b->w, t->file), t->name, t->type, matrix ? " or a supported block format" : "");
}

/* cols 0: a vector of `rows`. */
static int check(const builder *b, const xl_tensor *t, uint64_t rows, uint64_t cols, bool quantizable)
{
    char expected[64];
    if (cols == 0) {
        snprintf(expected, sizeof(expected), "[%llu]", (unsigned long long)rows);
        if (t->rank != 1 || t->shape[0] != rows) return wrong_shape(b, t, expected);
    } else {
        snprintf(expected, sizeof(expected), "[%llu, %llu]", (unsigned long long)rows, (unsigned long long)cols);
        if (t->rank != 2 || t->shape[0] != rows || t->shape[1] != cols) return wrong_shape(b, t, expected);
    }
    return check_dtype(b, t, quantizable);
}

static const xl_tensor *first_of(const block_parts *block, int single, int fused)
{
    return block->weight[fused] != NULL ? block->weight[fused] : block->weight[single];
}

/* A dimension of block 0 that defines one of xl_dims; 0 with the error set when the tensor is missing or no matrix. */
static uint64_t defining(const builder *b, int single, int fused, uint32_t axis)
{
    const xl_tensor *t = first_of(&b->blocks[0], single, fused);
    char name[128];
    if (t == NULL) {
        xl_fail(b->err, XLSTM_E_FORMAT, "tensor '%s' is missing", expected_name(b, name, 0, single, false));
        return 0;
    }
    if (t->rank != 2 || t->shape[0] == 0 || t->shape[1] == 0 || t->shape[axis] > INT32_MAX) {
        wrong_shape(b, t, "a matrix [out, in]");
        return 0;
    }
    return t->shape[axis];
}

static int find_dims(builder *b)
{
    const block_parts *block = &b->blocks[0];
    const xl_tensor *e = b->globals[EMBEDDING];
    if (e->rank != 2 || e->shape[0] == 0 || e->shape[1] == 0 || e->shape[0] > INT32_MAX || e->shape[1] > INT32_MAX) {
        return wrong_shape(b, e, "[vocabulary, embedding_dim]");
    }
    uint64_t heads = defining(b, XL_IGATE, IFGATE, 0);
    uint64_t v = heads > 0 ? defining(b, XL_OUT_PROJ, XL_OUT_PROJ, 1) : 0;
    uint64_t q = v > 0 ? defining(b, XL_Q, QKVO, 0) : 0;
    uint64_t f = q > 0 ? defining(b, XL_FFN_DOWN, XL_FFN_DOWN, 1) : 0;
    if (f == 0) return XLSTM_E_FORMAT;
    if (block->weight[IFGATE] != NULL) {
        if (heads % 2 != 0) return wrong_shape(b, block->weight[IFGATE], "[2 heads, embedding_dim]");
        heads /= 2;
    }
    if (block->weight[QKVO] != NULL) {
        if (q <= 2 * v || q % 2 != 0) {
            char expected[96];
            snprintf(expected, sizeof(expected), "[2 Qd + 2 Vd, embedding_dim] with Vd = %llu from out_proj",
                     (unsigned long long)v);
            return wrong_shape(b, block->weight[QKVO], expected);
        }
        q = q / 2 - v;
    }
    if (q % heads != 0 || v % heads != 0) {
        return xl_fail(b->err, XLSTM_E_FORMAT,
                       "%llu heads (rows of %s) divide neither or only one of the widths of q (%llu) and v (%llu)",
                       (unsigned long long)heads, xl_role_name(XL_IGATE), (unsigned long long)q, (unsigned long long)v);
    }
    b->out->dims = (xl_dims){
        .vocab_size = (uint32_t)e->shape[0],
        .embedding_dim = (uint32_t)e->shape[1],
        .num_blocks = b->num_blocks,
        .num_heads = (uint32_t)heads,
        .qk_dim = (uint32_t)q,
        .v_dim = (uint32_t)v,
        .head_qk = (uint32_t)(q / heads),
        .head_v = (uint32_t)(v / heads),
        .ffn_dim = (uint32_t)f,
    };
    return XLSTM_OK;
}

/* Rows and columns of a part; columns 0: a vector. */
static void part_shape(const xl_dims *d, int part, uint64_t *rows, uint64_t *cols)
{
    *cols = d->embedding_dim;
    switch (part) {
    case XL_NORM_MLSTM:
    case XL_NORM_FFN: *rows = d->embedding_dim; *cols = 0; break;
    case XL_Q:
    case XL_K: *rows = d->qk_dim; break;
    case XL_V:
    case XL_OGATE: *rows = d->v_dim; break;
    case XL_IGATE:
    case XL_FGATE: *rows = d->num_heads; break;
    case XL_MHNORM: *rows = d->v_dim; *cols = 0; break;
    case XL_OUT_PROJ: *rows = d->embedding_dim; *cols = d->v_dim; break;
    case XL_FFN_GATE:
    case XL_FFN_UP: *rows = d->ffn_dim; break;
    case XL_FFN_DOWN: *rows = d->embedding_dim; *cols = d->ffn_dim; break;
    case QKVO: *rows = 2 * ((uint64_t)d->qk_dim + d->v_dim); break;
    case IFGATE: *rows = 2 * (uint64_t)d->num_heads; break;
    default: *rows = 2 * (uint64_t)d->ffn_dim; break;
    }
}

/* The fused part that may stand for a role, and the role's place in it. */
static int fused_part(int role, const xl_dims *d, uint64_t *row0)
{
    uint64_t q = d->qk_dim, v = d->v_dim;
    switch (role) {
    case XL_Q: *row0 = 0; return QKVO;
    case XL_K: *row0 = q; return QKVO;
    case XL_V: *row0 = 2 * q; return QKVO;
    case XL_OGATE: *row0 = 2 * q + v; return QKVO;
    case XL_IGATE: *row0 = 0; return IFGATE;
    case XL_FGATE: *row0 = d->num_heads; return IFGATE;
    case XL_FFN_GATE: *row0 = 0; return UP_GATE_Z;
    case XL_FFN_UP: *row0 = d->ffn_dim; return UP_GATE_Z;
    default: *row0 = 0; return -1;
    }
}

static bool is_gate(int part) { return part == XL_IGATE || part == XL_FGATE || part == IFGATE; }

/* The multi-head norm may be stored [NH, head_v]: the same numbers in the same order, so a flat view is used. */
static const xl_tensor *flat_view(builder *b, const xl_tensor *t)
{
    const xl_dims *d = &b->out->dims;
    if (t->rank != 2 || t->shape[0] != d->num_heads || t->shape[1] != d->head_v) return t;
    xl_tensor *view = &b->out->views[b->n_views++];
    *view = *t;
    view->rank = 1;
    view->shape[0] = d->v_dim;
    view->shape[1] = 0;
    return view;
}

/* Slot of one role: its own tensor or its rows of a fused one. */
static int fill_role(builder *b, uint32_t block, int role)
{
    const xl_dims *d = &b->out->dims;
    const block_parts *found = &b->blocks[block];
    xl_block_wiring *slots = &b->out->blocks[block];
    uint64_t row0, rows, cols, fused_rows = 0;
    char name[128];
    int fused = fused_part(role, d, &row0);
    part_shape(d, role, &rows, &cols);
    const xl_tensor *weight = found->weight[role], *bias = found->bias[role];
    bool is_fused = fused >= 0 && found->weight[fused] != NULL;
    if (is_fused) {
        if (weight != NULL || bias != NULL) {
            return xl_fail(b->err, XLSTM_E_FORMAT, "tensors '%s' and '%s' are two names for the same thing; expected one",
                           (weight != NULL ? weight : bias)->name, found->weight[fused]->name);
        }
        weight = found->weight[fused];
        bias = found->bias[fused];
        part_shape(d, fused, &fused_rows, &cols);
        b->out->fused = true;
    } else {
        row0 = 0;
        if (fused >= 0 && found->bias[fused] != NULL) {
            return xl_fail(b->err, XLSTM_E_FORMAT, "surplus tensor '%s': its weight is not there",
                           found->bias[fused]->name);
        }
    }
    if (weight == NULL) {
        char shape[64];
        snprintf(shape, sizeof(shape), cols > 0 ? "[%llu, %llu]" : "[%llu]", (unsigned long long)rows,
                 (unsigned long long)cols);
        return xl_fail(b->err, XLSTM_E_FORMAT, "%s: tensor '%s' is missing: expected shape %s; is this a part of a model? Then "
                       "name the folder", xl_weights_file(b->w, 0), expected_name(b, name, block, role, false), shape);
    }
    if (role == XL_MHNORM) {
        weight = flat_view(b, weight);
        if (bias != NULL) bias = flat_view(b, bias);
    }
    int result = check(b, weight, is_fused ? fused_rows : rows, cols, cols > 0 && !is_gate(role));
    if (result == XLSTM_OK && bias != NULL) result = check(b, bias, is_fused ? fused_rows : rows, 0, false);
    if (result != XLSTM_OK) return result;
    slots->weight[role] = (xl_slice){weight, row0, rows};
    slots->bias[role] = (xl_slice){bias, row0, bias != NULL ? rows : 0};
    bool wants_bias = b->out->use_bias || is_gate(role);
    if (wants_bias == (bias != NULL)) return XLSTM_OK;
    if (bias == NULL) {
        return xl_fail(b->err, XLSTM_E_FORMAT, "tensor '%s' is missing: %s",
                       expected_name(b, name, block, is_fused ? fused : role, true),
                       is_gate(role) ? "the gates always have a bias" : "other parts of this checkpoint have a bias");
    }
    return xl_fail(b->err, XLSTM_E_FORMAT, "surplus tensor '%s': other parts of this checkpoint have no bias", bias->name);
}

static int fill_globals(builder *b)
{
    xl_wiring *out = b->out;
    const xl_dims *d = &out->dims;
    const xl_tensor *norm = b->globals[OUT_NORM], *bias = b->globals[OUT_NORM_BIAS];
    out->embedding = b->globals[EMBEDDING];
    out->tied = b->globals[HEAD] == NULL;
    out->head = out->tied ? out->embedding : b->globals[HEAD];
    int result = check(b, out->embedding, d->vocab_size, d->embedding_dim, true);
    if (result == XLSTM_OK) result = check(b, out->head, d->vocab_size, d->embedding_dim, true);
    if (result == XLSTM_OK && norm != NULL) result = check(b, norm, d->embedding_dim, 0, false);
    if (result == XLSTM_OK && bias != NULL) result = check(b, bias, d->embedding_dim, 0, false);
    if (result == XLSTM_OK && norm == NULL && bias != NULL) {
        result = xl_fail(b->err, XLSTM_E_FORMAT, "surplus tensor '%s': there is no out_norm weight", bias->name);
    }
    if (result != XLSTM_OK) return result;
    if (norm != NULL) out->out_norm = (xl_slice){norm, 0, d->embedding_dim};
    if (bias != NULL) out->out_norm_bias = (xl_slice){bias, 0, d->embedding_dim};
    return XLSTM_OK;
}

int xl_wiring_discover(xl_wiring *out, const xl_weights *w, const xl_log *log, xlstm_error *err)
{
    (void)log;
    *out = (xl_wiring){0};
    builder b = {.out = out, .w = w, .err = err};
    int result = count_blocks(&b);
    if (result != XLSTM_OK) goto done;
    result = XLSTM_E_MEMORY;
    b.blocks = xl_calloc(b.num_blocks, sizeof(*b.blocks), err);
    if (b.blocks == NULL) goto done;
    out->blocks = xl_calloc(b.num_blocks, sizeof(*out->blocks), err);
    if (out->blocks == NULL) goto done;
    out->views = xl_calloc(b.num_blocks, 2 * sizeof(*out->views), err);
    if (out->views == NULL) goto done;
    result = assign(&b);
    if (result == XLSTM_OK) result = find_dims(&b);
    if (result != XLSTM_OK) goto done;
    out->use_bias = b.blocks[0].bias[XL_OUT_PROJ] != NULL; /* the others must follow it */
    snprintf(out->scheme, sizeof(out->scheme), "%s", scheme_names[b.scheme]);
    result = fill_globals(&b);
    for (uint32_t i = 0; i < b.num_blocks && result == XLSTM_OK; i++) {
        for (int role = 0; role < XL_ROLES && result == XLSTM_OK; role++) result = fill_role(&b, i, role);
    }
done:
    xl_release(b.blocks);
    if (result != XLSTM_OK) xl_wiring_free(out);
    return result;
}

void xl_wiring_free(xl_wiring *wiring)
{
    xl_release(wiring->blocks);
    xl_release(wiring->views);
    *wiring = (xl_wiring){0};
}
