/*
 * state_history.c — the ring of snapshots behind undo and regenerate: the oldest are forgotten past a byte budget.
 */
#include "state.h"

struct xlstm_history {
    size_t budget, bytes;
    xlstm_state **states; /* [capacity], oldest first; `count` from `first` on, wrapping */
    size_t first, count, capacity;
};

static xlstm_state **slot(const xlstm_history *h, size_t i) { return &h->states[(h->first + i) % h->capacity]; }

static size_t bytes_of(const xlstm_state *s)
{
    return s->layout.total_bytes + (s->logits != NULL ? s->vocab_size * sizeof(float) : 0);
}

static void drop(xlstm_history *h, size_t i)
{
    h->bytes -= bytes_of(*slot(h, i));
    xlstm_state_free(*slot(h, i));
}

int xlstm_history_new(xlstm_history **out, size_t budget_bytes, xlstm_error *err)
{
    *out = xl_calloc(1, sizeof(**out), err);
    if (*out == NULL) return XLSTM_E_MEMORY;
    (*out)->budget = budget_bytes;
    return XLSTM_OK;
}

void xlstm_history_free(xlstm_history *h)
{
    if (h == NULL) return;
    for (size_t i = 0; i < h->count; i++) xlstm_state_free(*slot(h, i));
    xl_release(h->states);
    xl_release(h);
}

int xlstm_history_push(xlstm_history *h, const xlstm_session *session, xlstm_error *err)
{
    if (h->count == h->capacity) {
        size_t capacity = h->capacity != 0 ? 2 * h->capacity : 8;
        xlstm_state **states = xl_calloc(capacity, sizeof(xlstm_state *), err);
        if (states == NULL) return XLSTM_E_MEMORY;
        for (size_t i = 0; i < h->count; i++) states[i] = *slot(h, i);
        xl_release(h->states);
        h->states = states;
        h->capacity = capacity;
        h->first = 0;
    }
    xlstm_state *s;
    int result = xlstm_state_snapshot(&s, session, err);
    if (result != XLSTM_OK) return result;
    h->count++;
    *slot(h, h->count - 1) = s;
    h->bytes += bytes_of(s);
    while (h->bytes > h->budget && h->count > 1) {
        drop(h, 0);
        h->first = (h->first + 1) % h->capacity;
        h->count--;
    }
    return XLSTM_OK;
}

size_t xlstm_history_count(const xlstm_history *h) { return h->count; }

uint64_t xlstm_history_position(const xlstm_history *h, size_t back)
{
    return back < h->count ? (*slot(h, h->count - 1 - back))->position : 0;
}

int xlstm_history_restore(xlstm_history *h, xlstm_session *session, size_t back, xlstm_error *err)
{
    if (back >= h->count) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "the history holds %zu snapshots: there is none %zu steps back", h->count,
                       back);
    }
    int result = xlstm_state_restore(session, *slot(h, h->count - 1 - back), err);
    if (result != XLSTM_OK) return result;
    for (; back > 0; back--) {
        drop(h, h->count - 1);
        h->count--;
    }
    return XLSTM_OK;
}
