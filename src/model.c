/*
 * model.c — opening a checkpoint: find the files, discover the wiring, resolve the settings, prepare the weights one
 * tensor at a time, make the buffers of a pass. Everything a user can ask about a model is collected here.
 */
#include "model.h"

#include "json.h"
#include "split_backend.h"

#include <math.h>
#include <stdlib.h>

enum { MAX_ROWS_HOST = 512, MAX_ROWS_DEVICE = 2048, MAX_ROWS = 1 << 20, CONFIG_LIMIT = 4 << 20 };

/* ---- warnings --------------------------------------------------------------------------------------------------- */

/* The log that model code writes to: keeps warnings for xlstm_model_warning and passes everything on. */
static void keep_warning(void *user, xlstm_log_level level, const char *line)
{
    xlstm_model *m = user;
    if (level == XLSTM_LOG_WARNING) {
        char **grown = xl_grow(m->warnings, (m->n_warnings + 1) * sizeof(*grown), NULL);
        if (grown != NULL) {
            m->warnings = grown;
            m->warnings[m->n_warnings] = xl_strdup(line, NULL);
            if (m->warnings[m->n_warnings] != NULL) m->n_warnings++;
        }
    }
    if (m->log.fn != NULL) m->log.fn(m->log.user, level, line);
}

/* ---- vocabulary: who may be sampled, what starts and what ends a text ----------------------------------------------- */

static void add_stop_id(xlstm_model_info *info, int64_t id)
{
    if (id < 0 || id >= info->vocab_size) return;
    for (uint32_t i = 0; i < info->n_stop_ids; i++) {
        if (info->stop_ids[i] == id) return;
    }
    if (info->n_stop_ids < XL_COUNT(info->stop_ids)) info->stop_ids[info->n_stop_ids++] = (int32_t)id;
}

/* An end id out of a settings file. One that the tokenizer prints as ordinary text ("!" in released 7B files) would cut
 * texts short, so it is only obeyed on request. */
static void consider_end_id(xlstm_model *m, const xlstm_model_options *o, int64_t id, const char *source,
                            const xl_log *log)
{
    const xlstm_tokenizer *t = m->tokenizer;
    if (id < 0) return;
    if (id >= m->info.vocab_size) {
        xl_logf(log, XLSTM_LOG_WARNING, "%s: eos_token_id %lld is outside the vocabulary of %u and is ignored", source,
                (long long)id, m->info.vocab_size);
        return;
    }
    bool printable = t != NULL && !xlstm_tokenizer_is_special(t, (int32_t)id) &&
                     xlstm_tokenizer_token(t, (int32_t)id) != NULL;
    if (printable && !o->obey_config_eos) {
        xl_logf(log, XLSTM_LOG_WARNING,
                "%s: eos_token_id %lld is the ordinary text \"%s\" and is not obeyed; --obey-config-eos obeys it", source,
                (long long)id, xlstm_tokenizer_token(t, (int32_t)id));
        return;
    }
    add_stop_id(&m->info, id);
}

/* What comes of a failure with a file that a model can do without: only a warning if the file is damaged or not understood. If
 * memory or the disk failed, it may be good. */
static int forgive(int result, const xlstm_error *why, const char *consequence, const xl_log *log, xlstm_error *err)
{
    if (result == XLSTM_E_FORMAT || result == XLSTM_E_UNSUPPORTED) {
        xl_logf(log, XLSTM_LOG_WARNING, "%s; %s", why->message, consequence);
        return XLSTM_OK;
    }
    if (result != XLSTM_OK && err != NULL) *err = *why;
    return result;
}

/* Inside the weights' file, else beside it; *root NULL if there is none. */
static int read_generation_config(json_t **root, const xlstm_model *m, const char *folder, xlstm_error *err)
{
    const char *inside = xl_weights_generation_config(m->weights);
    *root = NULL;
    if (inside != NULL) return xl_json_parse(root, inside, strlen(inside), "generation_config.json", false, err);
    if (folder == NULL) return XLSTM_OK;
    char *path = xl_join(folder, "generation_config.json", err);
    if (path == NULL) return XLSTM_E_MEMORY;
    int result = xl_is_file(path) ? xl_json_read(root, path, CONFIG_LIMIT, false, err) : XLSTM_OK;
    xl_release(path);
    return result;
}

static int consider_generation_config(xlstm_model *m, const xlstm_model_options *o, const char *folder,
                                      const xl_log *log, xlstm_error *err)
{
    xlstm_error why;
    json_t *root;
    int result = read_generation_config(&root, m, folder, &why);
    json_t *eos = json_object_get(root, "eos_token_id"), *item;
    size_t i;
    if (json_is_integer(eos)) consider_end_id(m, o, json_integer_value(eos), "generation_config.json", log);
    json_array_foreach(eos, i, item)
    {
        if (json_is_integer(item)) consider_end_id(m, o, json_integer_value(item), "generation_config.json", log);
    }
    json_decref(root);
    return forgive(result, &why, "the file is ignored", log, err);
}

static int resolve_vocabulary(xlstm_model *m, const xlstm_model_options *o, const char *folder, const xl_log *log,
                              xlstm_error *err)
{
    xlstm_model_info *info = &m->info;
    const xl_config *c = &m->config;
    const xlstm_tokenizer *t = m->tokenizer;
    uint32_t size = t != NULL ? xlstm_tokenizer_size(t) : info->vocab_size;
    info->n_tokens = XL_MIN(size, info->vocab_size);
    if (size > info->vocab_size) {
        xl_logf(log, XLSTM_LOG_WARNING, "the tokenizer has %u ids but the model's vocabulary only %u", size,
                info->vocab_size);
    }
    info->bos_id = c->bos_id;
    info->eos_id = c->eos_id;
    info->pad_id = c->pad_id;
    if (info->bos_id < 0 && t != NULL) info->bos_id = xlstm_tokenizer_bos(t);
    if (info->bos_id >= (int64_t)info->vocab_size) info->bos_id = -1;
    const char *source = "nothing asks for it";
    if (o->bos != XLSTM_AUTO) {
        info->bos_auto = o->bos == XLSTM_ON;
        source = "option";
    } else if (c->force_bos) {
        info->bos_auto = true;
        source = "config.json force_bos_token_insert";
    } else if (t != NULL && xlstm_tokenizer_adds_bos(t) == XLSTM_ON) {
        info->bos_auto = true;
        source = "tokenizer";
    }
    if (info->bos_auto && info->bos_id < 0) {
        xl_logf(log, XLSTM_LOG_WARNING, "a BOS token is asked for (%s) but no bos_token_id is known; none is inserted",
                source);
        info->bos_auto = false;
    }
    snprintf(info->bos_source, sizeof(info->bos_source), "%s", source);

    if (t != NULL) add_stop_id(info, xlstm_tokenizer_end_of_text(t));
    consider_end_id(m, o, c->eos_id, "config.json", log);
    return consider_generation_config(m, o, folder, log, err);
}

/* A model without a usable tokenizer still runs on token ids. */
static int open_tokenizer(xlstm_model *m, const char *folder, const xl_log *log, xlstm_error *err)
{
    xlstm_error why;
    int result = XLSTM_OK;
    const char *config = NULL, *embedded = xl_weights_tokenizer(m->weights, &config);
    if (embedded != NULL) {
        result = xlstm_tokenizer_open_memory(&m->tokenizer, embedded, strlen(embedded), config,
                                             config != NULL ? strlen(config) : 0, &why);
    } else if (folder != NULL) {
        char *path = xl_join(folder, "tokenizer.json", err);
        if (path == NULL) return XLSTM_E_MEMORY;
        if (xl_is_file(path)) result = xlstm_tokenizer_open(&m->tokenizer, folder, &why);
        xl_release(path);
    }
    return forgive(result, &why, "the model can be used with token ids only", log, err);
}

/* ---- weights ---------------------------------------------------------------------------------------------------- */

typedef struct loading {
    xlstm_model *m;
    const xlstm_model_options *o;
    uint64_t done, total; /* bytes */
    xlstm_error *err;
} loading;

/* In the file. */
static uint64_t slice_bytes(const xl_slice *s)
{
    if (s->t == NULL) return 0;
    return s->t->bytes / XL_MAX(s->t->rank > 0 ? s->t->shape[0] : 1, 1u) * s->rows;
}

static bool is_float(xlstm_dtype d) { return d == XLSTM_F32 || d == XLSTM_F16 || d == XLSTM_BF16 || d == XLSTM_F64; }

/* Says where what is made next will be used, to a backend that must know. */
static void place(xlstm_model *m, uint32_t block)
{
    if (m->backend->ops->place != NULL) m->backend->ops->place(m->backend, block);
}

/* Prepares one slice. `next` is what will be prepared after it: its pages are asked for early, and those of `slice` are
 * given back unless the backend uses them in place or `next` is cut from the same tensor. */
static int prepare(loading *l, xl_matrix **out, const xl_slice *slice, const xl_slice *next, unsigned usage, bool exact)
{
    xlstm_model *m = l->m;
    const xl_tensor *t = slice->t;
    const xl_backend_ops *ops = m->backend->ops;
    xlstm_dtype hold = XLSTM_DTYPE_DEFAULT, want = m->config.numerics.weights.dtype;
    if (!exact && is_float(t->dtype) && is_float(want) &&
        xl_dtype_get(want)->block_bytes < xl_dtype_get(t->dtype)->block_bytes) {
        hold = want;
    }
    if (next != NULL && next->t != NULL && next->t != t) xl_weights_want(m->weights, next->t);
    const void *bytes;
    int result = xl_weights_data(&bytes, m->weights, t, l->err);
    if (result != XLSTM_OK) return result;
    bool borrows = false;
    result = ops->matrix_new(m->backend, out, &borrows, t, bytes, slice->row0, slice->rows, hold, usage, l->err);
    if (result != XLSTM_OK) return result;
    if (borrows) xl_weights_keep(m->weights, t); /* other slices of it may not be borrowed */
    if (next == NULL || next->t != t) xl_weights_drop(m->weights, t);
    m->info.weight_bytes += ops->matrix_bytes(*out);
    l->done += slice_bytes(slice);
    if (l->o->progress != NULL) l->o->progress(l->o->progress_user, "loading weights", XL_MIN(l->done, l->total), l->total);
    return XLSTM_OK;
}

static bool keeps_precision(xl_role role)
{
    return role == XL_IGATE || role == XL_FGATE || role == XL_NORM_MLSTM || role == XL_NORM_FFN || role == XL_MHNORM;
}

static int load_weights(xlstm_model *m, const xlstm_model_options *o, xlstm_error *err)
{
    loading l = {.m = m, .o = o, .err = err};
    const xl_wiring *w = &m->wiring;
    for (size_t i = 0; i < xl_weights_count(m->weights); i++) l.total += xl_weights_at(m->weights, i)->bytes;
    m->blocks = xl_calloc(w->dims.num_blocks, sizeof(*m->blocks), err);
    if (m->blocks == NULL) return XLSTM_E_MEMORY;
    xl_slice embedding = {w->embedding, 0, w->dims.vocab_size}, head = {w->head, 0, w->dims.vocab_size};
    bool tied = w->head == w->embedding;
    place(m, 0);
    int result = prepare(&l, &m->embedding, &embedding, NULL, tied ? XL_USE_MATMUL | XL_USE_ROWS : XL_USE_ROWS, false);
    for (uint32_t i = 0; result == XLSTM_OK && i < w->dims.num_blocks; i++) {
        const xl_block_wiring *b = &w->blocks[i];
        place(m, i);
        for (int role = 0; result == XLSTM_OK && role < XL_ROLES; role++) {
            const xl_slice *next = role + 1 < XL_ROLES               ? &b->weight[role + 1]
                                   : i + 1 < w->dims.num_blocks ? &w->blocks[i + 1].weight[0]
                                                                : &head;
            result = prepare(&l, &m->blocks[i].weight[role], &b->weight[role], next, XL_USE_MATMUL,
                             keeps_precision((xl_role)role));
            if (result == XLSTM_OK && b->bias[role].t != NULL) {
                result = prepare(&l, &m->blocks[i].bias[role], &b->bias[role], NULL, XL_USE_MATMUL, true);
            }
        }
    }
    place(m, w->dims.num_blocks);
    if (result == XLSTM_OK && w->out_norm.t != NULL) {
        result = prepare(&l, &m->out_norm, &w->out_norm, NULL, XL_USE_MATMUL, true);
    }
    if (result == XLSTM_OK && w->out_norm_bias.t != NULL) {
        result = prepare(&l, &m->out_norm_bias, &w->out_norm_bias, NULL, XL_USE_MATMUL, true);
    }
    if (result != XLSTM_OK) return result;
    if (tied) {
        m->head = m->embedding;
        return XLSTM_OK;
    }
    return prepare(&l, &m->head, &head, NULL, XL_USE_MATMUL, false);
}

/* ---- a model too large for its device ---------------------------------------------------------------------------- */

static size_t device_room(const xlstm_model *m)
{
    return m->backend->ops->room != NULL ? m->backend->ops->room(m->backend) : SIZE_MAX;
}

void xl_advise_offload(const xlstm_model *m, size_t room, xlstm_error *err)
{
    enum { STATES = 4 }; /* sessions to leave room for */
    const double spare = 0.95;
    const xl_wiring *w = &m->wiring;
    const xl_dims *d = &m->config.dims;
    size_t left = device_room(m);
    if (err == NULL || m->blocks == NULL || room == SIZE_MAX || left > room) return;
    const xl_slice embedding = {w->embedding, 0, d->vocab_size}, head = {w->head, 0, d->vocab_size};
    double first = (double)slice_bytes(&embedding), all = 0, read = m->embedding != NULL ? first : 0;
    uint32_t wanted = m->offloaded != 0 ? m->offloaded : d->num_blocks, held = 0;
    for (uint32_t i = 0; i < d->num_blocks; i++) {
        double block = 0;
        for (int role = 0; role < XL_ROLES; role++) block += (double)slice_bytes(&w->blocks[i].weight[role]);
        all += block;
        if (i >= wanted || m->blocks[i].weight[XL_ROLES - 1] == NULL) continue;
        read += block;
        held++;
    }
    if (held == wanted && m->offloaded != 0) return; /* then it may be the host's memory that ran out */
    if (held == wanted) held--;
    if (m->head != NULL && m->head != m->embedding) read += (double)slice_bytes(&head);
    /* `scale`: what a byte of the file comes to on the device */
    double scale = read > 0 ? (double)(room - left) / read : 1;
    double row = 4.0 * d->embedding_dim + 2.0 * d->qk_dim + 4.0 * d->v_dim + 3.0 * d->ffn_dim + 2.0 * d->num_heads;
    double fixed = first * scale + row * sizeof(float) * m->max_rows;
    double each = (all * scale + (double)STATES * (double)m->info.state_bytes) / d->num_blocks;
    double fit = (spare * (double)room - fixed) / each;
    uint32_t n = fit < held ? (uint32_t)XL_MAX(fit, 0.0) : held;
    if (n == 0) return;
    size_t used = strlen(err->message);
    snprintf(err->message + used, sizeof(err->message) - used, "; about %u of the %u blocks fit: --offload-blocks %u",
             n, d->num_blocks, n);
}

/* ---- facts ------------------------------------------------------------------------------------------------------ */

static uint64_t elements(const xl_slice *s)
{
    if (s->t == NULL) return 0;
    uint64_t n = s->rows;
    for (uint32_t i = 1; i < s->t->rank; i++) n *= s->t->shape[i];
    return n;
}

static void count_parameters(xlstm_model *m)
{
    const xl_wiring *w = &m->wiring;
    uint64_t n = (uint64_t)w->dims.vocab_size * w->dims.embedding_dim * (w->head == w->embedding ? 1 : 2);
    n += elements(&w->out_norm) + elements(&w->out_norm_bias);
    for (uint32_t i = 0; i < w->dims.num_blocks; i++) {
        for (int role = 0; role < XL_ROLES; role++) {
            n += elements(&w->blocks[i].weight[role]) + elements(&w->blocks[i].bias[role]);
        }
    }
    m->info.parameters = n;
}

/* The format that holds most bytes. */
static xlstm_dtype stored_dtype(const xl_weights *w)
{
    uint64_t bytes[XLSTM_DTYPE_COUNT] = {0};
    for (size_t i = 0; i < xl_weights_count(w); i++) {
        const xl_tensor *t = xl_weights_at(w, i);
        bytes[t->dtype] += t->bytes;
    }
    xlstm_dtype best = XLSTM_DTYPE_DEFAULT;
    for (int d = 0; d < XLSTM_DTYPE_COUNT; d++) {
        if (bytes[d] > bytes[best]) best = (xlstm_dtype)d;
    }
    return best;
}

static void collect_facts(xlstm_model *m, const char *path)
{
    xlstm_model_info *i = &m->info;
    const xl_config *c = &m->config;
    const xl_dims *d = &c->dims;
    i->vocab_size = d->vocab_size;
    i->embedding_dim = d->embedding_dim;
    i->num_blocks = d->num_blocks;
    i->num_heads = d->num_heads;
    i->qk_dim = d->qk_dim;
    i->v_dim = d->v_dim;
    i->ffn_dim = d->ffn_dim;
    i->chunk_size = c->chunk_size;
    i->norm_eps = c->norm_eps;
    i->cell_eps = c->cell_eps;
    i->gate_soft_cap = c->gate_soft_cap;
    i->logit_soft_cap = c->logit_soft_cap;
    i->use_bias = m->wiring.use_bias;
    i->tied = m->wiring.head == m->wiring.embedding;
    i->fused = m->wiring.fused;
    i->out_norm = m->wiring.out_norm.t != NULL;
    i->weights = c->numerics.weights;
    i->activations = c->numerics.activations;
    i->kernel = c->numerics.kernel;
    i->state = c->numerics.state;
    i->norm_float32 = c->numerics.norm_float32;
    i->stored_dtype = stored_dtype(m->weights);
    snprintf(i->path, sizeof(i->path), "%s", path);
    snprintf(i->format, sizeof(i->format), "%s", xl_weights_format(m->weights));
    count_parameters(m);
}

/* The mark of a faulty conversion: embeddings in another number format than the rest. */
static void compare_embedding_dtype(const xlstm_model *m, const xl_log *log)
{
    xlstm_dtype embedding = m->wiring.embedding->dtype, rest = m->info.stored_dtype;
    if (embedding == rest || !is_float(embedding) || !is_float(rest)) return;
    xl_logf(log, XLSTM_LOG_WARNING, "%s is %s but most weights are %s; such a mixture often means a faulty conversion",
            m->wiring.embedding->name, xlstm_dtype_name(embedding), xlstm_dtype_name(rest));
}

/* ---- open and free ---------------------------------------------------------------------------------------------- */

/* Text of config.json: beside the weights, or inside them; *text NULL if there is none. Freed by the caller. */
static int read_config(char **text, const xlstm_model *m, const char *folder, xlstm_error *err)
{
    *text = NULL;
    const char *inside = xl_weights_config(m->weights);
    if (inside != NULL) {
        *text = xl_strdup(inside, err);
        return *text != NULL ? XLSTM_OK : XLSTM_E_MEMORY;
    }
    if (folder == NULL) return XLSTM_OK;
    char *path = xl_join(folder, "config.json", err);
    if (path == NULL) return XLSTM_E_MEMORY;
    size_t size;
    int result = xl_is_file(path) ? xl_read_file(text, &size, path, CONFIG_LIMIT, err) : XLSTM_OK;
    if (result == XLSTM_OK && *text != NULL && strlen(*text) != size) {
        result = xl_fail(err, XLSTM_E_FORMAT, "%s: holds a NUL character, expected JSON text", path);
    }
    xl_release(path);
    return result;
}

/* What messages call the place that settings come from. */
static const char *config_source(const xl_weights *w)
{
    if (xl_weights_config(w) == NULL) return "config.json";
    return strcmp(xl_weights_format(w), "safetensors") == 0 ? "config.yaml" : xl_weights_format(w);
}

char *xl_model_folder(const char *path, xlstm_error *err)
{
    if (xl_is_folder(path)) return xl_strdup(path, err);
    const char *slash = strrchr(path, '/');
    if (slash == NULL) return xl_strdup(".", err);
    return xl_printf(err, "%.*s", (int)(slash - path), path);
}

static int make_backend(xlstm_model *m, const xlstm_model_options *o, const xl_log *log, xlstm_error *err)
{
    const xl_config *c = &m->config;
    const xl_dims *d = &c->dims;
    if (o->offload_blocks < d->num_blocks) m->offloaded = o->offload_blocks;
    uint32_t rows = o->max_rows != 0                                           ? o->max_rows
                    : xl_backend_is_device(o->backend) && m->offloaded == 0 ? MAX_ROWS_DEVICE
                                                                            : MAX_ROWS_HOST;
    if (rows > MAX_ROWS) return xl_fail(err, XLSTM_E_ARGUMENT, "max_rows: expected at most %d, found %u", MAX_ROWS, rows);
    m->max_rows = XL_MAX(rows, c->chunk_size); /* a whole chunk must fit in a pass */
    m->info.max_rows = m->max_rows;
    xl_backend_options options = {
        .threads = o->threads,
        .cpu_mask = o->cpu_mask,
        .no_repack = o->no_repack,
        .max_rows = m->max_rows,
        .max_runs = m->max_rows,
        .chunk_size = c->chunk_size,
        .activations = c->numerics.activations.dtype,
        .kernel = c->numerics.kernel.dtype,
        .norm_float32 = c->numerics.norm_float32.on,
        .num_blocks = d->num_blocks,
        .num_heads = d->num_heads,
        .head_qk = d->head_qk,
        .head_v = d->head_v,
        .embedding_dim = d->embedding_dim,
        .ffn_dim = d->ffn_dim,
        .vocab_size = d->vocab_size,
        .state = c->numerics.state.dtype,
        .device = o->device,
        .device_states = o->device_states,
        .log = log,
    };
    if (o->offload_blocks != 0 && o->backend == NULL) {
        return xl_fail(err, XLSTM_E_ARGUMENT,
                       "%u blocks shall be offloaded, but no backend is named for them; name it, as in --backend cuda "
                       "--offload-blocks %u",
                       o->offload_blocks, o->offload_blocks);
    }
    if (o->device != 0 && !xl_backend_is_device(o->backend)) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "device %u: the backend %s runs on processors; choose one with devices, as in --backend "
                       "cuda --device %u", o->device, o->backend == NULL ? "cpu" : o->backend, o->device);
    }
    int result = m->offloaded != 0 ? xl_split_open(&m->backend, o->backend, "cpu", m->offloaded, &options, err)
                                   : xl_backend_open(&m->backend, o->backend, &options, err);
    if (result != XLSTM_OK) return result;
    m->backend->ops->describe(m->backend, m->info.backend, sizeof(m->info.backend));
    m->info.state_bytes = m->backend->ops->layout(m->backend)->total_bytes;
    m->info.state.dtype = m->backend->ops->layout(m->backend)->dtype;
    return XLSTM_OK;
}

/* Every buffer of a pass with its width in elements; those that only the head uses come last. */
typedef struct buffer_plan {
    xl_buffer **buffer;
    uint32_t width;
} buffer_plan;
enum { BUFFERS = 14, BLOCK_BUFFERS = BUFFERS - 2 };

static void plan_buffers(buffer_plan plan[BUFFERS], xlstm_model *m)
{
    const xl_dims *d = &m->config.dims;
    xl_pass_buffers *b = &m->b;
    uint32_t D = d->embedding_dim;
    const buffer_plan all[BUFFERS] = {
        {&b->x, D},           {&b->u, D},           {&b->q, d->qk_dim},       {&b->k, d->qk_dim},    {&b->v, d->v_dim},
        {&b->o, d->v_dim},    {&b->h, d->v_dim},    {&b->g, d->v_dim},        {&b->gates, 2 * d->num_heads},
        {&b->up, d->ffn_dim}, {&b->gate, d->ffn_dim}, {&b->product, d->ffn_dim}, {&b->last, D},         {&b->logits, d->vocab_size},
    };
    memcpy(plan, all, sizeof(all));
}

static int make_pass(xlstm_model *m, xlstm_error *err)
{
    buffer_plan plan[BUFFERS];
    plan_buffers(plan, m);
    for (size_t i = 0; i < BUFFERS; i++) {
        place(m, i < BLOCK_BUFFERS ? XL_ANY_BLOCK : m->config.dims.num_blocks);
        int result = m->backend->ops->buffer_new(m->backend, plan[i].buffer, m->max_rows, plan[i].width, err);
        if (result != XLSTM_OK) return result;
    }
    m->ids = xl_calloc(m->max_rows, sizeof(*m->ids), err);
    m->runs = xl_calloc(m->max_rows, sizeof(*m->runs), err);
    m->out_rows = xl_calloc(m->max_rows, sizeof(*m->out_rows), err);
    m->faults = xl_calloc(m->max_rows, sizeof(*m->faults), err);
    m->pass = xl_calloc(m->max_rows, sizeof(*m->pass), err);
    m->samples = xl_calloc(m->max_rows, sizeof(*m->samples), err);
    m->chosen = xl_calloc(m->max_rows, sizeof(*m->chosen), err);
    bool made = m->ids != NULL && m->runs != NULL && m->out_rows != NULL && m->faults != NULL && m->pass != NULL &&
                m->samples != NULL && m->chosen != NULL;
    return made ? XLSTM_OK : XLSTM_E_MEMORY;
}

int xlstm_model_open(xlstm_model **out, const char *path, const xlstm_model_options *options, xlstm_error *err)
{
    static const xlstm_model_options defaults = {0};
    const xlstm_model_options *o = options != NULL ? options : &defaults;
    *out = NULL;
    xlstm_model *m = xl_calloc(1, sizeof(*m), err);
    if (m == NULL) return XLSTM_E_MEMORY;
    pthread_mutex_init(&m->lock, NULL);
    pthread_mutex_init(&m->idle_lock, NULL);
    m->log = (xl_log){o->log, o->log_user};
    xl_log log = {keep_warning, m};
    char *config = NULL, *folder = NULL;
    int result = XLSTM_E_MEMORY;
    if (strncmp(path, "preset:", 7) != 0) {
        folder = xl_model_folder(path, err);
        if (folder == NULL) goto fail;
    }
    if ((result = xl_weights_open(&m->weights, path, &log, err)) != XLSTM_OK) goto fail;
    if ((result = xl_wiring_discover(&m->wiring, m->weights, &log, err)) != XLSTM_OK) goto fail;
    if ((result = read_config(&config, m, folder, err)) != XLSTM_OK) goto fail;
    result = xl_config_resolve(&m->config, config, config_source(m->weights), &m->wiring, o, &log, err);
    if (result != XLSTM_OK) goto fail;
    if (m->config.tied) m->wiring.head = m->wiring.embedding;
    collect_facts(m, path);
    compare_embedding_dtype(m, &log);
    if ((result = open_tokenizer(m, folder, &log, err)) != XLSTM_OK) goto fail;
    if ((result = resolve_vocabulary(m, o, folder, &log, err)) != XLSTM_OK) goto fail;
    if (o->headers_only) {
        const xl_dims *d = &m->config.dims;
        xl_state_layout layout;
        result = xl_state_layout_make(&layout, m->config.numerics.state.dtype, d->num_blocks, d->num_heads, d->head_qk,
                                      d->head_v, err);
        if (result != XLSTM_OK) goto fail;
        m->info.state_bytes = layout.total_bytes;
        for (size_t i = 0; i < xl_weights_count(m->weights); i++) {
            m->info.weight_bytes += xl_weights_at(m->weights, i)->bytes;
        }
    } else {
        if ((result = make_backend(m, o, &log, err)) != XLSTM_OK) goto fail;
        if ((result = xl_weights_fingerprint(&m->info.fingerprint, m->weights, err)) != XLSTM_OK) goto fail;
        size_t room = device_room(m);
        if ((result = load_weights(m, o, err)) == XLSTM_OK) result = make_pass(m, err);
        if (result == XLSTM_E_MEMORY) xl_advise_offload(m, room, err);
        if (result != XLSTM_OK) goto fail;
    }
    xl_release(config);
    xl_release(folder);
    *out = m;
    return XLSTM_OK;
fail:
    xl_release(config);
    xl_release(folder);
    xlstm_model_free(m);
    return result;
}

static void free_weights(xlstm_model *m)
{
    const xl_backend_ops *ops = m->backend->ops;
    if (m->head != m->embedding) ops->matrix_free(m->backend, m->head);
    ops->matrix_free(m->backend, m->embedding);
    ops->matrix_free(m->backend, m->out_norm);
    ops->matrix_free(m->backend, m->out_norm_bias);
    for (uint32_t i = 0; m->blocks != NULL && i < m->wiring.dims.num_blocks; i++) {
        for (int role = 0; role < XL_ROLES; role++) {
            ops->matrix_free(m->backend, m->blocks[i].weight[role]);
            ops->matrix_free(m->backend, m->blocks[i].bias[role]);
        }
    }
    xl_release(m->blocks);
}

void xlstm_model_free(xlstm_model *m)
{
    if (m == NULL) return;
    if (m->backend != NULL) {
        buffer_plan plan[BUFFERS];
        plan_buffers(plan, m);
        for (size_t i = 0; i < BUFFERS; i++) m->backend->ops->buffer_free(m->backend, *plan[i].buffer);
        free_weights(m);
        for (uint32_t i = 0; i < m->n_idle; i++) m->backend->ops->store_free(m->backend, m->idle[i]);
        m->backend->ops->close(m->backend);
    }
    xl_release(m->ids);
    xl_release(m->runs);
    xl_release(m->out_rows);
    xl_release(m->faults);
    xl_release(m->pass);
    xl_release(m->samples);
    xl_release(m->chosen);
    xlstm_tokenizer_free(m->tokenizer);
    xl_wiring_free(&m->wiring);
    xl_weights_close(m->weights);
    for (size_t i = 0; i < m->n_warnings; i++) xl_release(m->warnings[i]);
    xl_release(m->warnings);
    pthread_mutex_destroy(&m->idle_lock);
    pthread_mutex_destroy(&m->lock);
    xl_release(m);
}

/* ---- questions -------------------------------------------------------------------------------------------------- */

const xlstm_model_info *xlstm_model_get_info(const xlstm_model *model) { return &model->info; }

const char *xlstm_model_warning(const xlstm_model *model, size_t i)
{
    return i < model->n_warnings ? model->warnings[i] : NULL;
}

size_t xlstm_model_tensor_count(const xlstm_model *model) { return xl_weights_count(model->weights); }

void xlstm_model_tensor(const xlstm_model *model, size_t i, xlstm_tensor_info *out)
{
    const xl_tensor *t = xl_weights_at(model->weights, i);
    *out = (xlstm_tensor_info){.name = t->name,
                               .file = xl_weights_file(model->weights, t->file),
                               .dtype = t->dtype,
                               .rank = t->rank,
                               .bytes = t->bytes};
    memcpy(out->shape, t->shape, sizeof(out->shape));
}

int xlstm_model_tensor_stats(xlstm_tensor_stats *out, xlstm_model *model, size_t i, xlstm_error *err)
{
    const xl_tensor *t = xl_weights_at(model->weights, i);
    size_t n = 1, row = 1, row_bytes;
    for (uint32_t a = 0; a < t->rank; a++) n *= t->shape[a];
    if (t->rank > 0) row = t->shape[t->rank - 1];
    *out = (xlstm_tensor_stats){.count = n, .min = INFINITY, .max = -INFINITY};
    if (!xl_dtype_row_bytes(&row_bytes, t->dtype, row)) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "tensor %s: its values cannot be read", t->name);
    }
    float *values = xl_alloc(row * sizeof(float), err);
    if (values == NULL) return XLSTM_E_MEMORY;
    pthread_mutex_lock(&model->lock);
    const void *bytes;
    int result = xl_weights_data(&bytes, model->weights, t, err);
    double sum = 0, squares = 0;
    for (size_t r = 0; result == XLSTM_OK && r < n / XL_MAX(row, (size_t)1); r++) {
        xl_decode_row(values, (const uint8_t *)bytes + r * row_bytes, t->dtype, row);
        for (size_t k = 0; k < row; k++) {
            double x = values[k];
            if (!xl_is_finite(values[k])) {
                *(isnan(x) ? &out->nan : &out->inf) += 1;
                continue;
            }
            if (x < out->min) out->min = x;
            if (x > out->max) out->max = x;
            sum += x;
            squares += x * x;
        }
    }
    pthread_mutex_unlock(&model->lock);
    xl_release(values);
    double finite = (double)(n - out->nan - out->inf);
    out->mean = finite > 0 ? sum / finite : 0;
    out->rms = finite > 0 ? sqrt(squares / finite) : 0;
    return result;
}

int xlstm_model_draw_wiring(char **out, const xlstm_model *model, bool unicode, xlstm_error *err)
{
    xl_text text = {0};
    xl_wiring_draw(&text, &model->wiring, unicode);
    *out = xl_text_end(&text, NULL, err);
    return *out != NULL ? XLSTM_OK : XLSTM_E_MEMORY;
}

const xlstm_tokenizer *xlstm_model_tokenizer(const xlstm_model *model) { return model->tokenizer; }
