/*
 * session.c — sessions and the ragged batch: checks the segments, inserts BOS, cuts the tokens into passes that fit the
 * buffers, and hands logits, faults and chosen ids back to the segments they belong to.
 *
 * Cuts. A pass takes at most max_rows rows, and no more sequences than the backend has room for at a time. A segment
 * whose rows do not fit is cut where its sequence's position is a multiple of the chunk size, and nowhere else: the cell
 * rounds at the same places whatever shares the pass, so results are bit-identical in any company.
 *
 * Choices. A backend that samples makes the plain ones inside the pass; their random numbers are drawn when the last
 * token enters. The others, and all on other backends, are made here from the logits. Either way a sampler draws in the
 * order of segments.
 */
#include "session.h"

#include "sampler.h"

/* ---- life ------------------------------------------------------------------------------------------------------- */

/* A store some freed session left, its contents unknown, or NULL. */
static xl_store *take_idle(xlstm_model *m)
{
    pthread_mutex_lock(&m->idle_lock);
    xl_store *store = m->n_idle > 0 ? m->idle[--m->n_idle] : NULL;
    pthread_mutex_unlock(&m->idle_lock);
    return store;
}

static void give_idle(xlstm_model *m, xl_store *store)
{
    if (store == NULL) return;
    pthread_mutex_lock(&m->idle_lock);
    bool keep = m->n_idle < XL_IDLE_STORES && (m->n_idle + 1) * m->info.state_bytes <= XL_IDLE_BYTES;
    if (keep) m->idle[m->n_idle++] = store;
    pthread_mutex_unlock(&m->idle_lock);
    if (!keep) m->backend->ops->store_free(m->backend, store);
}

/* A session whose state is that of `source`, or zero if that is NULL. */
static int session_make(xlstm_session **out, xlstm_model *model, const xl_store *source, xlstm_error *err)
{
    *out = NULL;
    if (model->backend == NULL) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "the model was opened with headers_only: no session can be made");
    }
    const xl_backend_ops *ops = model->backend->ops;
    xlstm_session *s = xl_calloc(1, sizeof(*s), err);
    if (s == NULL) return XLSTM_E_MEMORY;
    s->model = model;
    int result = XLSTM_E_MEMORY;
    s->logits = xl_alloc(model->info.vocab_size * sizeof(float), err);
    if (s->logits != NULL) {
        s->store = take_idle(model);
        bool fresh = s->store == NULL;
        result = fresh ? ops->store_new(model->backend, &s->store, err) : XLSTM_OK;
        if (result == XLSTM_OK && source != NULL) {
            result = ops->store_copy(model->backend, s->store, source, err);
        } else if (result == XLSTM_OK && !fresh) {
            result = ops->store_zero(model->backend, s->store, err);
        }
    }
    if (result != XLSTM_OK) {
        xlstm_session_free(s);
        return result;
    }
    *out = s;
    return XLSTM_OK;
}

int xlstm_session_new(xlstm_session **out, xlstm_model *model, xlstm_error *err)
{
    return session_make(out, model, NULL, err);
}

int xlstm_session_fork(xlstm_session **out, const xlstm_session *source, xlstm_error *err)
{
    *out = NULL;
    if (source->poisoned) {
        return xl_fail(err, XLSTM_E_NONFINITE,
                       "the session is poisoned by a non-finite value and is not forked; reset or restore it");
    }
    int result = session_make(out, source->model, source->store, err);
    if (result != XLSTM_OK) return result;
    xlstm_session *s = *out;
    s->position = source->position;
    s->token_hash = source->token_hash;
    s->has_logits = source->has_logits;
    if (s->has_logits) memcpy(s->logits, source->logits, s->model->info.vocab_size * sizeof(float));
    return XLSTM_OK;
}

void xlstm_session_free(xlstm_session *s)
{
    if (s == NULL) return;
    give_idle(s->model, s->store);
    xl_release(s->logits);
    xl_release(s);
}

int xlstm_session_reset(xlstm_session *s, xlstm_error *err)
{
    int result = s->model->backend->ops->store_zero(s->model->backend, s->store, err);
    if (result != XLSTM_OK) return result;
    s->position = 0;
    s->token_hash = 0;
    s->has_logits = false;
    s->poisoned = false;
    return XLSTM_OK;
}

xlstm_model *xlstm_session_model(const xlstm_session *session) { return session->model; }
uint64_t xlstm_session_position(const xlstm_session *session) { return session->position; }
uint64_t xlstm_session_token_hash(const xlstm_session *session) { return session->token_hash; }
const float *xlstm_session_logits(const xlstm_session *session) { return session->has_logits ? session->logits : NULL; }

void xlstm_session_set_trace(xlstm_session *session, xlstm_trace_fn fn, void *user)
{
    session->trace = (xl_trace){fn, user};
}

uint64_t xl_token_hash(uint64_t before, int32_t token) { return xl_hash(&token, sizeof(token), before); }

/* ---- checks ----------------------------------------------------------------------------------------------------- */

static int check_segment(const xlstm_model *m, xlstm_segment *g, size_t i, xlstm_error *err)
{
    xlstm_session *s = g->session;
    if (s == NULL || s->model != m) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "segment %zu: its session belongs to another model", i);
    }
    if (s->busy) return xl_fail(err, XLSTM_E_ARGUMENT, "segment %zu: its session is in the batch twice", i);
    if (g->count == 0 || g->tokens == NULL) return xl_fail(err, XLSTM_E_ARGUMENT, "segment %zu: it has no tokens", i);
    for (size_t t = 0; t < g->count; t++) {
        if (g->tokens[t] < 0 || (uint32_t)g->tokens[t] >= m->info.vocab_size) {
            return xl_fail(err, XLSTM_E_ARGUMENT, "segment %zu: token %zu is id %d, expected 0 .. %u", i, t,
                           g->tokens[t], m->info.vocab_size - 1);
        }
    }
    if (g->sampler != NULL && xl_sampler_size(g->sampler) > m->info.vocab_size) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "segment %zu: its sampler chooses among %u ids, the model has %u", i,
                       xl_sampler_size(g->sampler), m->info.vocab_size);
    }
    return XLSTM_OK;
}

/* ---- passes ----------------------------------------------------------------------------------------------------- */

typedef struct pass {
    xlstm_model *m;
    xlstm_segment *segments;
    xl_batch batch;
    const xl_trace *trace;
} pass;

/* Rows the segment still has to read. */
static size_t rows_left(const xlstm_segment *g)
{
    return g->status != XLSTM_OK ? 0 : g->count - g->session->taken + (g->session->bos_due ? 1 : 0);
}

/* How many of `left` rows at `position` may enter a pass that has `room` rows free: all, or up to a chunk border. */
static size_t cut(uint64_t position, size_t left, size_t room, size_t chunk)
{
    if (left <= room) return left;
    uint64_t border = (position + room) / chunk * chunk;
    return border > position ? (size_t)(border - position) : 0;
}

/* Leaves the choice from output row `out` to the backend, if it can make it; returns the sample's index or -1. */
static int32_t ask_backend(pass *p, xlstm_sampler *sampler, uint32_t out)
{
    xlstm_model *m = p->m;
    const xlstm_sampler_options *o = xl_sampler_plain(sampler);
    if (m->backend->ops->sample == NULL || o == NULL) return -1;
    m->samples[p->batch.n_samples] = (xl_sample){.out = out,
                                                 .n_tokens = xl_sampler_size(sampler),
                                                 .top_k = o->top_k,
                                                 .temperature = o->temperature,
                                                 .top_p = o->top_p,
                                                 .min_p = o->min_p,
                                                 .uniform = xl_sampler_draw(sampler)};
    return (int32_t)p->batch.n_samples++;
}

/* Puts as much of a segment into the pass as fits; returns whether anything did. */
static bool enter(pass *p, uint32_t index)
{
    xlstm_model *m = p->m;
    xlstm_segment *g = &p->segments[index];
    xlstm_session *s = g->session;
    size_t n = cut(s->position, rows_left(g), m->max_rows - p->batch.rows, m->config.chunk_size);
    if (n == 0) return false;
    m->runs[p->batch.n_runs++] = (xl_run){p->batch.rows, (uint32_t)n, s->position, s->store};
    for (size_t i = 0; i < n; i++) {
        uint32_t row = p->batch.rows++;
        bool bos = s->bos_due;
        m->ids[row] = bos ? m->info.bos_id : g->tokens[s->taken];
        m->pass[row] = (xl_pass_row){index, bos ? -1 : (int64_t)s->taken, -1};
        s->token_hash = xl_token_hash(s->token_hash, m->ids[row]);
        s->position++;
        if (bos) {
            s->bos_due = false;
            continue;
        }
        bool last = ++s->taken == g->count, sampled = last && g->sampler != NULL;
        if (!sampled && g->want != XLSTM_WANT_ALL && !(g->want == XLSTM_WANT_LAST && last)) continue;
        if (sampled) m->pass[row].sample = ask_backend(p, g->sampler, p->batch.n_out);
        m->out_rows[p->batch.n_out++] = row;
    }
    return true;
}

static const char *const stage_names[XL_STAGES] = {
    "norm_mlstm", "mlstm cell", "multihead_norm", "norm_ffn", "out_norm", "logits",
};

static int report_fault(const xlstm_model *m, uint32_t code, uint64_t position, size_t segment, size_t n,
                        xlstm_error *err)
{
    uint32_t block = (code - 1) / XL_STAGES, stage = (code - 1) % XL_STAGES;
    char where[64] = "after the last block", which[48] = "";
    if (block < m->info.num_blocks) snprintf(where, sizeof(where), "in block %u", block);
    if (n > 1) snprintf(which, sizeof(which), " of segment %zu", segment);
    return xl_fail(err, XLSTM_E_NONFINITE,
                   "non-finite value (NaN or Inf) %s, stage %s, at token position %llu%s; consider enabling "
                   "norm_reduction_force_float32 or using float32 compute dtype instead of bfloat16",
                   where, stage_names[stage], (unsigned long long)position, which);
}

/* Gives an output row's logits to its segment and makes the choice from them that the backend did not make. Failing to
 * choose is the segment's failure. */
static int settle_row(pass *p, uint32_t out, xlstm_error *err)
{
    xlstm_model *m = p->m;
    const xl_pass_row *row = &m->pass[m->out_rows[out]];
    xlstm_segment *g = &p->segments[row->segment];
    xlstm_session *s = g->session;
    size_t V = m->info.vocab_size;
    bool last = (size_t)row->token + 1 == g->count, sampled = last && g->sampler != NULL;
    if (sampled && row->sample >= 0) {
        g->id = m->chosen[row->sample];
        sampled = g->id < 0; /* the sampler says why */
    }
    float *to = NULL;
    if (g->want != XLSTM_WANT_NONE && g->logits != NULL)
        to = g->logits + (g->want == XLSTM_WANT_ALL ? (size_t)row->token * V : 0);
    else if (sampled || (last && g->want != XLSTM_WANT_NONE)) to = s->logits;
    if (to == NULL) return XLSTM_OK;
    int result = m->backend->ops->buffer_read(m->backend, m->b.logits, out * V, to, V, err);
    if (result != XLSTM_OK) return result;
    if (last && g->want != XLSTM_WANT_NONE) {
        if (to != s->logits) memcpy(s->logits, to, V * sizeof(float));
        s->has_logits = true;
    }
    return sampled ? g->status = xlstm_sampler_choose(&g->id, g->sampler, to, err) : XLSTM_OK;
}

/* Gives the rows' faults, logits and choices to their segments. */
static int settle(pass *p, size_t n_segments, xlstm_error *err)
{
    xlstm_model *m = p->m;
    int first = XLSTM_OK;
    for (uint32_t r = 0; r < p->batch.n_runs; r++) {
        const xl_run *run = &m->runs[r];
        uint32_t index = m->pass[run->row].segment;
        xlstm_segment *g = &p->segments[index];
        /* The earliest operation is nearest to the origin: within a chunk, NaN can reach older tokens later on. */
        uint32_t worst = UINT32_MAX;
        for (uint32_t row = run->row; row < run->row + run->count; row++) {
            if (m->faults[row] != 0 && (worst == UINT32_MAX || m->faults[row] < m->faults[worst])) worst = row;
        }
        if (worst == UINT32_MAX) continue;
        g->session->poisoned = true;
        g->session->has_logits = false;
        g->status = report_fault(m, m->faults[worst], run->position + (worst - run->row), index, n_segments,
                                 first == XLSTM_OK ? err : NULL);
        if (first == XLSTM_OK) first = g->status;
    }
    for (uint32_t i = 0; i < p->batch.n_out; i++) {
        xlstm_segment *g = &p->segments[m->pass[m->out_rows[i]].segment];
        if (g->status != XLSTM_OK) continue;
        int result = settle_row(p, i, first == XLSTM_OK ? err : NULL);
        if (result != XLSTM_OK && g->status == XLSTM_OK) { /* the device failed, not the choice */
            g->status = result;
            g->id = -1;
        }
        if (first == XLSTM_OK) first = result;
    }
    return first;
}

/* Whether segment i would choose before an earlier one, from `open` on, that shares its sampler and is not read to its end. */
static bool out_of_turn(const xlstm_segment *segments, size_t open, size_t i)
{
    if (segments[i].sampler == NULL) return false;
    for (size_t j = open; j < i; j++) {
        if (segments[j].sampler == segments[i].sampler && rows_left(&segments[j]) > 0) return true;
    }
    return false;
}

/* Runs one pass over what fits; *done is set when nothing was left. A traced session has its passes to itself. */
static int run_pass(xlstm_model *m, xlstm_segment *segments, size_t n, bool *done, xlstm_error *err)
{
    pass p = {
        .m = m,
        .segments = segments,
        .batch = {.ids = m->ids, .runs = m->runs, .out_rows = m->out_rows, .samples = m->samples, .chosen = m->chosen}};
    const xl_backend_ops *ops = m->backend->ops;
    uint32_t most_runs = ops->most_runs != NULL ? ops->most_runs(m->backend) : m->max_rows;
    size_t open = n; /* the first segment that this pass does not read to its end */
    for (size_t i = 0; i < n && p.batch.rows < m->max_rows && p.batch.n_runs < most_runs; i++) {
        if (rows_left(&segments[i]) == 0 || out_of_turn(segments, open, i)) continue;
        bool traced = segments[i].session->trace.fn != NULL;
        if (traced && p.batch.rows > 0) break;
        bool entered = enter(&p, (uint32_t)i);
        if (traced) p.trace = &segments[i].session->trace;
        if (open == n && rows_left(&segments[i]) > 0) open = i;
        if (traced || !entered) break;
    }
    *done = p.batch.rows == 0;
    if (*done) return XLSTM_OK;
    p.batch.traced = p.trace != NULL;
    int result = xl_forward(m, &p.batch, p.trace, err);
    if (result == XLSTM_OK) return settle(&p, n, err);
    /* A device failed: no session of the pass can be trusted. */
    for (uint32_t r = 0; r < p.batch.n_runs; r++) {
        xlstm_segment *g = &segments[m->pass[m->runs[r].row].segment];
        g->status = result;
        g->session->poisoned = true;
        g->session->has_logits = false;
    }
    return result;
}

int xlstm_evaluate(xlstm_model *m, xlstm_segment *segments, size_t n, xlstm_error *err)
{
    if (n == 0) return XLSTM_OK;
    if (m->backend == NULL) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "the model was opened with headers_only: it cannot evaluate");
    }
    if (n > UINT32_MAX) return xl_fail(err, XLSTM_E_ARGUMENT, "%zu segments are too many", n);
    pthread_mutex_lock(&m->lock);
    int result = XLSTM_OK;
    size_t checked = 0;
    for (; checked < n && result == XLSTM_OK; checked++) {
        xlstm_segment *g = &segments[checked];
        result = check_segment(m, g, checked, err);
        if (result == XLSTM_OK) g->session->busy = true;
    }
    if (result != XLSTM_OK) checked--; /* the last one is not marked */
    for (size_t i = 0; i < checked; i++) segments[i].session->busy = false;
    int refused = result;
    for (size_t i = 0; i < n; i++) {
        xlstm_segment *g = &segments[i];
        xlstm_session *s = g->session;
        g->id = -1;
        g->status = refused;
        if (refused != XLSTM_OK) continue;
        if (s->poisoned) {
            g->status = xl_fail(result == XLSTM_OK ? err : NULL, XLSTM_E_NONFINITE,
                                "segment %zu: its session is poisoned by an earlier non-finite value; reset or restore it", i);
            if (result == XLSTM_OK) result = g->status;
        }
        s->taken = 0;
        s->has_logits = false;
        s->bos_due = m->info.bos_auto && s->position == 0 && g->tokens[0] != m->info.bos_id;
    }
    for (bool done = refused != XLSTM_OK; !done;) {
        int status = run_pass(m, segments, n, &done, result == XLSTM_OK ? err : NULL);
        if (result == XLSTM_OK) result = status;
    }
    pthread_mutex_unlock(&m->lock);
    return result;
}

int xlstm_prefill(xlstm_session *session, const int32_t *tokens, size_t count, xlstm_error *err)
{
    xlstm_segment g = {.session = session, .tokens = tokens, .count = count, .want = XLSTM_WANT_LAST};
    return xlstm_evaluate(session->model, &g, 1, err);
}

int xlstm_decode(xlstm_session *session, int32_t token, xlstm_error *err)
{
    return xlstm_prefill(session, &token, 1, err);
}
