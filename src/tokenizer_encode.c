/*
 * tokenizer_encode.c — text to ids, in the order of Hugging Face `tokenizers`: added tokens that are sought in the
 * text as it is; what lies between them is normalised; added tokens that are sought in normalised text; what lies
 * between those goes through the pre-tokenizers, each cutting the pieces of the one before; every last piece is a word
 * for tokenizer_bpe.c. Pieces are handed down as they are found, so no list of them is ever built.
 */
#include "tokenizer.h"

#include <string.h>

typedef int (*gap_fn)(xl_encoder *e, const char *s, size_t n, bool first);

static int out_of_memory(xl_encoder *e, size_t n)
{
    return xl_fail(e->err, XLSTM_E_MEMORY, "out of memory encoding a text of %zu bytes", n);
}

/* ---- added tokens ----------------------------------------------------------------------------------------------- */

static bool word_before(const char *s, size_t at)
{
    const uint8_t *p = (const uint8_t *)s + at;
    return at > 0 && (xl_class(xl_utf8_previous(&p)) & XL_WORD) != 0;
}

static bool word_after(const char *s, size_t at, size_t n)
{
    const uint8_t *p = (const uint8_t *)s + at;
    return at < n && (xl_class(xl_utf8_next(&p)) & XL_WORD) != 0;
}

static size_t spaces_before(const char *s, size_t at)
{
    const uint8_t *p = (const uint8_t *)s + at;
    while (p > (const uint8_t *)s) {
        const uint8_t *q = p;
        if ((xl_class(xl_utf8_previous(&q)) & XL_SPACE) == 0) break;
        p = q;
    }
    return (size_t)(p - (const uint8_t *)s);
}

static size_t spaces_after(const char *s, size_t at, size_t n)
{
    const uint8_t *p = (const uint8_t *)s + at, *end = (const uint8_t *)s + n;
    while (p < end) {
        const uint8_t *q = p;
        if ((xl_class(xl_utf8_next(&q)) & XL_SPACE) == 0) break;
        p = q;
    }
    return (size_t)(p - (const uint8_t *)s);
}

/* Pushes the added tokens found in s and calls `gap` for what lies between them. */
static int split_added(xl_encoder *e, const xl_trie *trie, const char *s, size_t n, bool first, gap_fn gap)
{
    if (n == 0) return XLSTM_OK;
    if (trie->n_nodes == 0) return gap(e, s, n, first);
    size_t from = 0, at = 0;
    int status = XLSTM_OK;
    while (status == XLSTM_OK && at < n) {
        while (at < n && !trie->first[(uint8_t)s[at]]) at++;
        size_t length = 0;
        int32_t found = at < n ? xl_trie_match(trie, s + at, n - at, &length) : -1;
        if (found < 0) {
            at++;
            continue;
        }
        size_t start = at, stop = at + length;
        at = stop; /* the search goes on here even if this match is discarded */
        const xl_added *a = &e->t->added[found];
        if (a->special && (e->flags & XLSTM_ENCODE_LITERAL)) continue;
        if (a->single_word && (word_before(s, start) || word_after(s, stop, n))) continue;
        if (a->lstrip) start = XL_MAX(spaces_before(s, start), from);
        if (a->rstrip) stop = spaces_after(s, stop, n);
        if (from < start) status = gap(e, s + from, start - from, first && from == 0);
        if (status == XLSTM_OK) status = xl_encoder_push(e, (int32_t)a->id);
        from = stop;
    }
    if (status == XLSTM_OK && from < n) status = gap(e, s + from, n - from, first && from == 0);
    return status;
}

/* ---- normalisers ------------------------------------------------------------------------------------------------ */

static int replace(xl_encoder *e, xl_text *out, const xl_step *step, xl_matcher *m, const char *s, size_t n)
{
    int status = xl_matcher_start(m, &step->pattern, s, n, e->err);
    if (status != XLSTM_OK) return status;
    size_t done = 0, from, to;
    while ((status = xl_matcher_next(m, &from, &to, e->err)) == 1) {
        xl_text_add(out, s + done, from - done);
        xl_text_add(out, step->text, step->text_size);
        done = to;
    }
    xl_text_add(out, s + done, n - done);
    return status;
}

int xl_encoder_normalize(xl_encoder *e, const char **result, size_t *size, const char *s, size_t n)
{
    int in = -1; /* which buffer s is in */
    for (uint32_t i = 0; i < e->t->n_normalizers; i++) {
        const xl_step *step = &e->t->normalizers[i];
        xl_text *out = &e->normal[in == 0 ? 1 : 0];
        out->size = 0;
        int status = XLSTM_OK;
        switch (step->kind) {
        case XL_STEP_FORM:
            if (xl_normal_prefix(step->form, s, n) == n) continue;
            status = xl_normalize(out, step->form, s, n, e->err);
            break;
        case XL_STEP_LOWER:
            xl_lower(out, s, n);
            break;
        case XL_STEP_STRIP_SPACE: {
            size_t from = step->left ? spaces_after(s, 0, n) : 0;
            size_t to = step->right && from < n ? spaces_before(s, n) : n;
            s += from;
            n = to - from;
            continue;
        }
        case XL_STEP_PREPEND:
            if (n == 0) continue;
            xl_text_add(out, step->text, step->text_size);
            xl_text_add(out, s, n);
            break;
        default:
            status = replace(e, out, step, &e->replacer[i], s, n);
            break;
        }
        if (status != XLSTM_OK) return status;
        xl_text_add(out, "", 0);
        if (out->failed) return out_of_memory(e, n);
        in = in == 0 ? 1 : 0;
        s = out->data;
        n = out->size;
    }
    *result = s;
    *size = n;
    return XLSTM_OK;
}

/* ---- pre-tokenizers --------------------------------------------------------------------------------------------- */

static int run_splitter(xl_encoder *e, uint32_t i, const char *s, size_t n, bool first);

/* The pieces a pattern cuts a text into, by behaviour. `piece` gets them in order; empty ones are dropped. */
typedef struct cutter {
    xl_encoder *e;
    uint32_t step;
    const char *s;
    bool first;
    xl_behavior behavior;
    bool pending; /* [from, to) waits for what follows */
    size_t from, to;
    bool previous; /* the event before was a match */
} cutter;

static int hand_down(cutter *c, size_t from, size_t to)
{
    if (from == to) return XLSTM_OK;
    return run_splitter(c->e, c->step + 1, c->s + from, to - from, c->first && from == 0);
}

static int flush(cutter *c)
{
    if (!c->pending) return XLSTM_OK;
    c->pending = false;
    return hand_down(c, c->from, c->to);
}

/* One event: a match or a gap. All events together are the whole text. */
static int event(cutter *c, size_t from, size_t to, bool match)
{
    int status = XLSTM_OK;
    bool previous = c->previous;
    c->previous = match;
    switch (c->behavior) {
    case XL_REMOVED:
        return match ? XLSTM_OK : hand_down(c, from, to);
    case XL_ISOLATED:
        return hand_down(c, from, to);
    case XL_CONTIGUOUS:
        if (c->pending && match == previous) break;
        status = flush(c);
        c->from = from;
        break;
    case XL_MERGED_WITH_PREVIOUS:
        if (c->pending && match && !previous) break;
        status = flush(c);
        c->from = from;
        break;
    case XL_MERGED_WITH_NEXT:
        if (c->pending && previous && !match) break;
        status = flush(c);
        c->from = from;
        break;
    }
    c->to = to;
    c->pending = true;
    return status;
}

static int split(xl_encoder *e, uint32_t i, const xl_pattern *pattern, xl_behavior behavior, bool invert, const char *s,
                 size_t n, bool first)
{
    int status = XLSTM_OK;
    if (xl_pattern_covers(pattern) && (behavior == XL_ISOLATED || (behavior == XL_REMOVED && invert))) {
        const char *end = s + n;
        for (const char *p = s, *q; p < end && status == XLSTM_OK; p = q) {
            q = xl_pattern_step(pattern, p, end);
            status = run_splitter(e, i + 1, p, (size_t)(q - p), first && p == s);
        }
        return status;
    }
    cutter c = {.e = e, .step = i, .s = s, .first = first, .behavior = behavior};
    xl_matcher *m = &e->matcher[i];
    status = xl_matcher_start(m, pattern, s, n, e->err);
    if (status != XLSTM_OK) return status;
    size_t done = 0, from, to;
    while ((status = xl_matcher_next(m, &from, &to, e->err)) == 1) {
        if (done < from && (status = event(&c, done, from, invert)) != XLSTM_OK) return status;
        if ((status = event(&c, from, to, !invert)) != XLSTM_OK) return status;
        done = to;
    }
    if (status == XLSTM_OK && done < n) status = event(&c, done, n, invert);
    return status == XLSTM_OK ? flush(&c) : status;
}

/* A piece of ByteLevel: bytes for the vocabulary, or their stand-in characters for a later pre-tokenizer. */
static int hand_down_bytes(xl_encoder *e, uint32_t i, const char *s, size_t n, bool first)
{
    if (i + 1 == e->t->n_splitters) return xl_bpe_word(e, s, n, true);
    xl_text *out = &e->scratch[i][1];
    out->size = 0;
    for (size_t k = 0; k < n; k++) {
        char bytes[4];
        xl_text_add(out, bytes, xl_utf8_put(bytes, xl_byte_char((uint8_t)s[k])));
    }
    if (out->failed) return out_of_memory(e, n);
    return run_splitter(e, i + 1, out->data, out->size, first);
}

static int byte_level(xl_encoder *e, uint32_t i, const char *s, size_t n, bool first)
{
    const xl_step *step = &e->t->splitters[i];
    if (step->prefix && s[0] != ' ') {
        xl_text *out = &e->scratch[i][0];
        out->size = 0;
        xl_text_add(out, " ", 1);
        xl_text_add(out, s, n);
        if (out->failed) return out_of_memory(e, n);
        s = out->data;
        n = out->size;
    }
    if (!step->use_pattern) return hand_down_bytes(e, i, s, n, first);
    const char *end = s + n;
    int status = XLSTM_OK;
    for (const char *p = s, *q; p < end && status == XLSTM_OK; p = q) {
        q = xl_pattern_step(&step->pattern, p, end);
        status = hand_down_bytes(e, i, p, (size_t)(q - p), first && p == s);
    }
    return status;
}

static int metaspace(xl_encoder *e, uint32_t i, const char *s, size_t n, bool first)
{
    const xl_step *step = &e->t->splitters[i];
    const char *mark = step->pattern.text;
    size_t size = step->pattern.text_size;
    xl_text *out = &e->scratch[i][0];
    out->size = 0;
    bool starts_with_mark = s[0] == ' ' || (n >= size && memcmp(s, mark, size) == 0);
    if (step->prefix && !starts_with_mark && (first || !step->prefix_first)) xl_text_add(out, mark, size);
    for (const char *p = s, *end = s + n; p < end;) {
        const char *space = memchr(p, ' ', (size_t)(end - p));
        xl_text_add(out, p, (size_t)((space == NULL ? end : space) - p));
        if (space == NULL) break;
        xl_text_add(out, mark, size);
        p = space + 1;
    }
    if (out->failed) return out_of_memory(e, n);
    if (!step->use_pattern) return run_splitter(e, i + 1, out->data, out->size, first);
    return split(e, i, &step->pattern, XL_MERGED_WITH_NEXT, false, out->data, out->size, first);
}

static int run_splitter(xl_encoder *e, uint32_t i, const char *s, size_t n, bool first)
{
    if (n == 0) return XLSTM_OK;
    if (i == e->t->n_splitters) return xl_bpe_word(e, s, n, false);
    const xl_step *step = &e->t->splitters[i];
    if (step->kind == XL_STEP_BYTE_LEVEL) return byte_level(e, i, s, n, first);
    if (step->kind == XL_STEP_METASPACE) return metaspace(e, i, s, n, first);
    return split(e, i, &step->pattern, step->behavior, step->invert, s, n, first);
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static int normalized_gap(xl_encoder *e, const char *s, size_t n, bool first)
{
    return run_splitter(e, 0, s, n, first);
}

static int plain_gap(xl_encoder *e, const char *s, size_t n, bool first)
{
    int status = xl_encoder_normalize(e, &s, &n, s, n);
    if (status != XLSTM_OK) return status;
    return split_added(e, &e->t->normal_trie, s, n, first, normalized_gap);
}

void xl_encoder_free(xl_encoder *e)
{
    xl_release(e->ids);
    for (size_t k = 0; k < 2; k++) {
        xl_release(e->normal[k].data);
        for (size_t i = 0; i < XL_STEPS; i++) xl_release(e->scratch[i][k].data);
    }
    for (size_t i = 0; i < XL_STEPS; i++) {
        xl_matcher_free(&e->matcher[i]);
        xl_matcher_free(&e->replacer[i]);
    }
    xl_release(e->symbols);
    xl_release(e->heap);
    xl_release(e->cache);
    *e = (xl_encoder){0};
}

/* A copy in which U+FFFD stands for every maximal invalid part. */
static char *replace_invalid(size_t *size, const char *s, size_t n, xlstm_error *err)
{
    xl_text out = {0};
    for (size_t i = 0; i < n;) {
        size_t valid = xl_utf8_valid(s + i, n - i);
        xl_text_add(&out, s + i, valid);
        i += valid;
        if (i == n) break;
        bool incomplete;
        int length = xl_utf8_check((const uint8_t *)s + i, n - i, &incomplete);
        xl_text_add(&out, "\xef\xbf\xbd", 3);
        i += (size_t)-length;
    }
    return xl_text_end(&out, size, err);
}

int xlstm_tokenizer_encode(int32_t **ids, size_t *n, const xlstm_tokenizer *tokenizer, const char *text, size_t size,
                           unsigned flags, xlstm_error *err)
{
    *ids = NULL;
    *n = 0;
    if (size > INT32_MAX) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "expected a text of at most 2 GB, found %zu bytes; encode it in parts",
                       size);
    }
    char *copy = NULL;
    if (xl_utf8_valid(text, size) < size) {
        copy = replace_invalid(&size, text, size, err);
        if (copy == NULL) return XLSTM_E_MEMORY;
        text = copy;
    }
    xl_encoder e = {.t = tokenizer, .flags = flags, .err = err};
    int status = XLSTM_OK;
    bool special = (flags & XLSTM_ENCODE_SPECIAL) != 0;
    for (uint32_t i = 0; special && i < tokenizer->n_prefix && status == XLSTM_OK; i++) {
        status = xl_encoder_push(&e, tokenizer->prefix[i]);
    }
    if (status == XLSTM_OK) status = split_added(&e, &tokenizer->raw_trie, text, size, true, plain_gap);
    for (uint32_t i = 0; special && i < tokenizer->n_suffix && status == XLSTM_OK; i++) {
        status = xl_encoder_push(&e, tokenizer->suffix[i]);
    }
    if (status == XLSTM_OK) {
        *ids = e.ids;
        *n = e.n;
        e.ids = NULL;
    }
    xl_encoder_free(&e);
    xl_release(copy);
    return status;
}
