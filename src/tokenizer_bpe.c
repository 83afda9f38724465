/*
 * tokenizer_bpe.c — byte-pair merging of one word. The pair of the lowest rank is merged first, the leftmost among
 * equals. Words of a few symbols are scanned for it; longer ones keep a heap, so that a word of a million bytes costs
 * n log n. Before any merging: a word that is a token and known to merge into just this token is looked up, and a small
 * cache remembers words that become several ids.
 */
#include "tokenizer.h"

#include <string.h>

enum { SCAN_MAX = 48 }; /* symbols up to which scanning beats the heap */

int xl_encoder_push(xl_encoder *e, int32_t id)
{
    if (e->n == e->capacity) {
        size_t capacity = e->capacity ? e->capacity * 2 : 64, bytes;
        if (!xl_mul(&bytes, capacity, sizeof *e->ids)) return xl_fail(e->err, XLSTM_E_MEMORY, "too many tokens");
        int32_t *ids = xl_grow(e->ids, bytes, e->err);
        if (ids == NULL) return XLSTM_E_MEMORY;
        e->ids = ids;
        e->capacity = capacity;
    }
    e->ids[e->n++] = id;
    return XLSTM_OK;
}

/* Room for n symbols. Contents are lost. */
static int reserve_symbols(xl_encoder *e, size_t n)
{
    if (n <= e->symbol_capacity) return XLSTM_OK;
    size_t capacity = XL_MAX(n, (size_t)256);
    xl_release(e->symbols);
    e->symbol_capacity = 0;
    e->symbols = xl_calloc(capacity, 3 * sizeof *e->symbols, e->err);
    if (e->symbols == NULL) return XLSTM_E_MEMORY;
    e->previous = e->symbols + capacity;
    e->next = e->previous + capacity;
    e->symbol_capacity = capacity;
    return XLSTM_OK;
}

/* ---- the first symbols of a word -------------------------------------------------------------------------------- */

/* What a character without a token turns into. An unknown token waits in *unknown, because a following one may fuse
 * with it; bytes of a fallback do not flush it. */
static size_t add_missing(const xlstm_tokenizer *t, uint32_t *symbols, size_t n, const char *s, size_t size,
                          int32_t *unknown)
{
    if (t->byte_fallback) {
        bool all = true;
        for (size_t i = 0; i < size; i++) all = all && t->fallback_id[(uint8_t)s[i]] >= 0;
        if (all) {
            for (size_t i = 0; i < size; i++) symbols[n++] = (uint32_t)t->fallback_id[(uint8_t)s[i]];
            return n;
        }
    }
    if (t->unk_id < 0) return n;
    if (*unknown >= 0 && !t->fuse_unk) symbols[n++] = (uint32_t)*unknown;
    *unknown = t->unk_id;
    return n;
}

/* Returns the number of symbols: at most one per byte of the text in characters. */
static size_t first_symbols(const xlstm_tokenizer *t, uint32_t *symbols, const char *s, size_t size, bool raw)
{
    size_t n = 0;
    int32_t unknown = -1;
    const uint8_t *p = (const uint8_t *)s, *end = p + size;
    while (p < end) {
        const uint8_t *at = p;
        int32_t id;
        if (raw) {
            id = t->byte_id[*p++];
        } else {
            xl_utf8_next(&p);
            id = xl_names_find(&t->spelling, (const char *)at, (size_t)(p - at));
            if (id >= 0 && (t->flags[id] & XL_TOKEN_MODEL) == 0) id = -1;
        }
        if (id >= 0) {
            if (unknown >= 0) symbols[n++] = (uint32_t)unknown;
            unknown = -1;
            symbols[n++] = (uint32_t)id;
        } else if (raw) {
            char bytes[4];
            size_t length = xl_utf8_put(bytes, xl_byte_char(*at));
            n = add_missing(t, symbols, n, bytes, length, &unknown);
        } else {
            n = add_missing(t, symbols, n, (const char *)at, (size_t)(p - at), &unknown);
        }
    }
    if (unknown >= 0) symbols[n++] = (uint32_t)unknown;
    return n;
}

/* ---- merging ---------------------------------------------------------------------------------------------------- */

/* What merging the pair at each place would give; rank UINT32_MAX: no merge. */
typedef struct scan {
    uint32_t rank[SCAN_MAX], id[SCAN_MAX];
} scan;

static void look_up(scan *pairs, const xl_merges *merges, const uint32_t *symbols, size_t i)
{
    const xl_merge *m = xl_merges_find(merges, symbols[i], symbols[i + 1]);
    pairs->rank[i] = m == NULL ? UINT32_MAX : m->rank;
    pairs->id[i] = m == NULL ? 0 : m->id;
}

static size_t merge_by_scan(const xl_merges *merges, uint32_t *symbols, size_t n)
{
    scan pairs;
    for (size_t i = 0; i + 1 < n; i++) look_up(&pairs, merges, symbols, i);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++) {
            if (pairs.rank[i] < pairs.rank[best]) best = i;
        }
        if (pairs.rank[best] == UINT32_MAX) break;
        symbols[best] = pairs.id[best];
        n--;
        for (size_t i = best + 1; i < n; i++) symbols[i] = symbols[i + 1];
        for (size_t i = best + 1; i + 1 < n; i++) {
            pairs.rank[i] = pairs.rank[i + 1];
            pairs.id[i] = pairs.id[i + 1];
        }
        if (best + 1 < n) look_up(&pairs, merges, symbols, best);
        if (best > 0) look_up(&pairs, merges, symbols, best - 1);
    }
    return n;
}

/* Heap entries are rank << 32 | position of the left symbol. */
static void sift_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t x = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= x) break;
        heap[i] = heap[child];
    }
    heap[i] = x;
}

static int heap_push(xl_encoder *e, uint64_t x)
{
    if (e->heap_size == e->heap_capacity) {
        size_t capacity = e->heap_capacity ? e->heap_capacity * 2 : 256, bytes;
        if (!xl_mul(&bytes, capacity, sizeof *e->heap)) return xl_fail(e->err, XLSTM_E_MEMORY, "a word is too long");
        uint64_t *heap = xl_grow(e->heap, bytes, e->err);
        if (heap == NULL) return XLSTM_E_MEMORY;
        e->heap = heap;
        e->heap_capacity = capacity;
    }
    size_t i = e->heap_size++;
    for (; i > 0 && e->heap[(i - 1) / 2] > x; i = (i - 1) / 2) e->heap[i] = e->heap[(i - 1) / 2];
    e->heap[i] = x;
    return XLSTM_OK;
}

static int push_pair(xl_encoder *e, uint32_t left, uint32_t right)
{
    const xl_merge *m = xl_merges_find(&e->t->merges, e->symbols[left], e->symbols[right]);
    return m == NULL ? XLSTM_OK : heap_push(e, (uint64_t)m->rank << 32 | left);
}

/* Merged-away symbols are marked; `next` of the last and `previous` of the first are UINT32_MAX. */
static int merge_by_heap(xl_encoder *e, size_t *count)
{
    const uint32_t none = UINT32_MAX, gone = UINT32_MAX;
    uint32_t *symbols = e->symbols, *previous = e->previous, *next = e->next;
    size_t n = *count;
    int status;
    e->heap_size = 0;
    for (size_t i = 0; i < n; i++) {
        previous[i] = i == 0 ? none : (uint32_t)i - 1;
        next[i] = i + 1 == n ? none : (uint32_t)i + 1;
        if (i + 1 < n && (status = push_pair(e, (uint32_t)i, (uint32_t)i + 1)) != XLSTM_OK) return status;
    }
    while (e->heap_size > 0) {
        uint64_t top = e->heap[0];
        e->heap[0] = e->heap[--e->heap_size];
        if (e->heap_size > 0) sift_down(e->heap, e->heap_size, 0);
        uint32_t left = (uint32_t)top, right = next[left];
        if (symbols[left] == gone || right == none) continue;
        const xl_merge *m = xl_merges_find(&e->t->merges, symbols[left], symbols[right]);
        if (m == NULL || m->rank != (uint32_t)(top >> 32)) continue; /* an entry that later merges made stale */
        symbols[left] = m->id;
        symbols[right] = gone;
        next[left] = next[right];
        if (next[left] != none) previous[next[left]] = left;
        if (previous[left] != none && (status = push_pair(e, previous[left], left)) != XLSTM_OK) return status;
        if (next[left] != none && (status = push_pair(e, left, next[left])) != XLSTM_OK) return status;
    }
    size_t out = 0;
    for (size_t i = 0; i < n; i++) {
        if (symbols[i] != gone) symbols[out++] = symbols[i];
    }
    *count = out;
    return XLSTM_OK;
}

/* The word's ids into e->symbols. */
static int merge_word(xl_encoder *e, const char *s, size_t size, bool raw, size_t *n)
{
    if (size >= UINT32_MAX / 4) return xl_fail(e->err, XLSTM_E_ARGUMENT, "a word of %zu bytes is too long", size);
    int status = reserve_symbols(e, raw ? 2 * size : size);
    if (status != XLSTM_OK) return status;
    *n = first_symbols(e->t, e->symbols, s, size, raw);
    if (*n > SCAN_MAX) return merge_by_heap(e, n);
    *n = merge_by_scan(&e->t->merges, e->symbols, *n);
    return XLSTM_OK;
}

/* ---- words ------------------------------------------------------------------------------------------------------ */

static xl_cached_word *cache_slot(xl_encoder *e, const char *s, size_t n)
{
    if (n > XL_WORD_CACHE_TEXT || n == 0) return NULL;
    if (e->cache == NULL) {
        if (++e->words < 64) return NULL; /* a short text does not repay clearing it */
        e->cache = xl_calloc(XL_WORD_CACHE, sizeof *e->cache, NULL);
        if (e->cache == NULL) return NULL;
    }
    return &e->cache[xl_hash(s, n, 1) % XL_WORD_CACHE];
}

static int bpe_piece(xl_encoder *e, const char *s, size_t n, bool raw)
{
    const xlstm_tokenizer *t = e->t;
    int32_t id = xl_names_find(raw ? &t->raw : &t->spelling, s, n);
    if (id >= 0 && (t->flags[id] & XL_TOKEN_MODEL) == 0) id = -1;
    uint8_t whole = id < 0 ? XL_WHOLE_NO : atomic_load_explicit(&t->whole[id], memory_order_relaxed);
    if (whole == XL_WHOLE_YES) return xl_encoder_push(e, id);

    xl_cached_word *cached = cache_slot(e, s, n);
    if (cached != NULL && cached->length == n && memcmp(cached->text, s, n) == 0) {
        int status = XLSTM_OK;
        for (size_t i = 0; i < cached->n && status == XLSTM_OK; i++) status = xl_encoder_push(e, cached->ids[i]);
        return status;
    }
    size_t count = 0;
    int status = merge_word(e, s, n, raw, &count);
    if (status != XLSTM_OK) return status;
    if (whole == XL_WHOLE_UNKNOWN) {
        bool yes = count == 1 && e->symbols[0] == (uint32_t)id;
        atomic_store_explicit(&t->whole[id], yes ? XL_WHOLE_YES : XL_WHOLE_NO, memory_order_relaxed);
    }
    for (size_t i = 0; i < count && status == XLSTM_OK; i++) status = xl_encoder_push(e, (int32_t)e->symbols[i]);
    if (cached != NULL && count <= XL_WORD_CACHE_IDS) {
        cached->length = (uint8_t)n;
        cached->n = (uint8_t)count;
        memcpy(cached->text, s, n);
        for (size_t i = 0; i < count; i++) cached->ids[i] = (int32_t)e->symbols[i];
    }
    return status;
}

static bool is_glue(const xlstm_tokenizer *t, uint32_t code)
{
    for (uint32_t i = 0; i < t->n_glue; i++) {
        if (t->glue[i] == code) return true;
    }
    return false;
}

/* Both sides of a cut must be characters with a token of their own, else unknown tokens might reach across. */
static bool has_token(const xlstm_tokenizer *t, const char *s, size_t n)
{
    int32_t id = xl_names_find(&t->spelling, s, n);
    return id >= 0 && (t->flags[id] & XL_TOKEN_MODEL) != 0;
}

int xl_bpe_word(xl_encoder *e, const char *s, size_t n, bool raw)
{
    static const char mark[] = "\xe2\x96\x81";
    const xlstm_tokenizer *t = e->t;
    if (t->ignore_merges) {
        int32_t id = xl_names_find(raw ? &t->raw : &t->spelling, s, n);
        if (id >= 0 && (t->flags[id] & XL_TOKEN_MODEL) != 0) return xl_encoder_push(e, id);
    }
    if (raw || !t->cut_at_mark) return bpe_piece(e, s, n, raw);

    /* A whole text may come as one word: cut it where no merge can reach across. */
    const char *from = s, *at = s, *end = s + n;
    while (at < end && (at = memmem(at, (size_t)(end - at), mark, 3)) != NULL) {
        const uint8_t *before = (const uint8_t *)at;
        if (at > from && !is_glue(t, xl_utf8_previous(&before)) &&
            has_token(t, (const char *)before, (size_t)(at - (const char *)before))) {
            int status = bpe_piece(e, from, (size_t)(at - from), false);
            if (status != XLSTM_OK) return status;
            from = at;
        }
        at += 3;
    }
    return from < end ? bpe_piece(e, from, (size_t)(end - from), false) : XLSTM_OK;
}
