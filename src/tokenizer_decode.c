/*
 * tokenizer_decode.c — ids to text. The decoders of tokenizer.json form a chain of small machines: each is fed tokens
 * (or, behind Fuse and ByteLevel, parts of the one token that is left) and feeds the next as soon as its output is
 * certain. Decoding a whole list is the same as feeding it id by id and finishing, so that both agree by construction.
 * What is fed is always whole characters.
 */
#include "tokenizer.h"

#include <string.h>

typedef struct machine {
    xl_text held;   /* input that is not certain yet */
    xl_text result; /* a token being rewritten */
    size_t count;   /* tokens, or characters stripped, so far */
    xl_matcher matcher;
} machine;

struct xlstm_stream {
    const xlstm_tokenizer *t;
    bool skip_special, finished;
    machine machines[XL_STEPS];
    xl_text out;
    int status; /* of a failing regular expression */
    xlstm_error *err;
};

static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */

static void feed(xlstm_stream *s, uint32_t i, const char *text, size_t n);

/* ---- one decoder each ------------------------------------------------------------------------------------------- */

/* Hands on what of m->held is valid, U+FFFD for what is not, and keeps a character that may still be completed. */
static void flush_bytes(xlstm_stream *s, uint32_t i, bool last)
{
    xl_text *held = &s->machines[i].held;
    size_t at = 0;
    while (at < held->size) {
        size_t valid = xl_utf8_valid(held->data + at, held->size - at);
        if (valid > 0) feed(s, i + 1, held->data + at, valid);
        at += valid;
        if (at == held->size) break;
        bool incomplete;
        int length = xl_utf8_check((const uint8_t *)held->data + at, held->size - at, &incomplete);
        if (incomplete && !last) break;
        feed(s, i + 1, replacement, 3);
        at += (size_t)-length;
    }
    if (at > 0) memmove(held->data, held->data + at, held->size - at);
    held->size -= at;
}

static void byte_level(xlstm_stream *s, uint32_t i, const char *text, size_t n)
{
    xl_text *held = &s->machines[i].held;
    if (!xl_bytes_of(held, text, n)) xl_text_add(held, text, n);
    flush_bytes(s, i, false);
}

static int hex_digit(unsigned char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 32;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* "<0x..>" with two digits, or a plus sign and one, as Rust reads numbers; -1 if the token is another. */
static int fallback_byte(const char *s, size_t n)
{
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>') return -1;
    int high = s[3] == '+' ? 0 : hex_digit((unsigned char)s[3]), low = hex_digit((unsigned char)s[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* A run of byte tokens is text if all of it is valid, else one U+FFFD a byte. */
static void end_run(xlstm_stream *s, uint32_t i)
{
    xl_text *held = &s->machines[i].held;
    if (held->size == 0) return;
    if (xl_utf8_valid(held->data, held->size) == held->size) {
        feed(s, i + 1, held->data, held->size);
    } else {
        for (size_t k = 0; k < held->size; k++) feed(s, i + 1, replacement, 3);
    }
    held->size = 0;
}

static void byte_fallback(xlstm_stream *s, uint32_t i, const char *text, size_t n)
{
    int byte = fallback_byte(text, n);
    if (byte >= 0) {
        char c = (char)byte;
        xl_text_add(&s->machines[i].held, &c, 1);
        return;
    }
    end_run(s, i);
    feed(s, i + 1, text, n);
}

static void replace(xlstm_stream *s, uint32_t i, const char *text, size_t n)
{
    const xl_step *step = &s->t->decoders[i];
    machine *m = &s->machines[i];
    m->result.size = 0;
    size_t done = 0, from, to;
    int status = xl_matcher_start(&m->matcher, &step->pattern, text, n, s->err);
    while (status == XLSTM_OK && (status = xl_matcher_next(&m->matcher, &from, &to, s->err)) == 1) {
        xl_text_add(&m->result, text + done, from - done);
        xl_text_add(&m->result, step->text, step->text_size);
        done = to;
        status = XLSTM_OK;
    }
    if (status < 0) s->status = status;
    xl_text_add(&m->result, text + done, n - done);
    if (!m->result.failed) feed(s, i + 1, m->result.data, m->result.size);
}

/* Bytes at the end of s that may be the start of the pattern. */
static size_t open_end(const char *s, size_t n, const xl_pattern *p)
{
    size_t k = p->text_size == 0 ? 0 : XL_MIN(n, p->text_size - 1);
    while (k > 0 && memcmp(s + n - k, p->text, k) != 0) k--;
    return k;
}

/* The same for a token that arrives in parts: an unfinished match waits. */
static void replace_in_parts(xlstm_stream *s, uint32_t i, const char *text, size_t n, bool last)
{
    const xl_step *step = &s->t->decoders[i];
    machine *m = &s->machines[i];
    xl_text_add(&m->held, text, n);
    if (m->held.failed) return;
    const char *p = m->held.data, *end = p + m->held.size, *found;
    size_t size = step->pattern.text_size;
    while (size > 0 && (found = memmem(p, (size_t)(end - p), step->pattern.text, size)) != NULL) {
        feed(s, i + 1, p, (size_t)(found - p));
        feed(s, i + 1, step->text, step->text_size);
        p = found + size;
    }
    size_t keep = last ? 0 : open_end(p, (size_t)(end - p), &step->pattern);
    feed(s, i + 1, p, (size_t)(end - p) - keep);
    memmove(m->held.data, end - keep, keep);
    m->held.size = keep;
}

/* Removes up to `start` characters at the front and `stop` at the back. */
static void strip(xlstm_stream *s, uint32_t i, const char *text, size_t n)
{
    const xl_step *step = &s->t->decoders[i];
    size_t size = step->text_size;
    for (uint32_t k = 0; k < step->start && n >= size && memcmp(text, step->text, size) == 0; k++) {
        text += size;
        n -= size;
    }
    for (uint32_t k = 0; k < step->stop && n >= size && memcmp(text + n - size, step->text, size) == 0; k++) n -= size;
    feed(s, i + 1, text, n);
}

/* The same in parts: the front is counted, a tail that may be the back waits. */
static void strip_in_parts(xlstm_stream *s, uint32_t i, const char *text, size_t n, bool last)
{
    const xl_step *step = &s->t->decoders[i];
    machine *m = &s->machines[i];
    size_t size = step->text_size;
    while (n > 0 && m->count < step->start) {
        if (n < size || memcmp(text, step->text, size) != 0) {
            m->count = step->start;
            break;
        }
        m->count++;
        text += size;
        n -= size;
    }
    xl_text_add(&m->held, text, n);
    if (m->held.failed) return;
    size_t end = m->held.size, from = end;
    for (uint32_t k = 0; k < step->stop && from >= size; k++) {
        if (memcmp(m->held.data + from - size, step->text, size) != 0) break;
        from -= size;
    }
    feed(s, i + 1, m->held.data, from);
    memmove(m->held.data, m->held.data + from, end - from);
    m->held.size = last ? 0 : end - from;
}

/* The mark is a space, but nothing in the first token. */
static void metaspace(xlstm_stream *s, uint32_t i, const char *text, size_t n)
{
    const xl_step *step = &s->t->decoders[i];
    machine *m = &s->machines[i];
    bool drop = m->count++ == 0 && step->prefix;
    m->result.size = 0;
    const char *end = text + n, *found;
    while ((found = memmem(text, (size_t)(end - text), step->pattern.text, step->pattern.text_size)) != NULL) {
        xl_text_add(&m->result, text, (size_t)(found - text));
        if (!drop) xl_text_add(&m->result, " ", 1);
        text = found + step->pattern.text_size;
    }
    xl_text_add(&m->result, text, (size_t)(end - text));
    if (!m->result.failed) feed(s, i + 1, m->result.data, m->result.size);
}

/* ---- the chain -------------------------------------------------------------------------------------------------- */

/* A whole token. */
static void feed_token(xlstm_stream *s, uint32_t i, const char *text, size_t n)
{
    switch (s->t->decoders[i].kind) {
    case XL_STEP_BYTE_LEVEL:
        byte_level(s, i, text, n);
        break;
    case XL_STEP_BYTE_FALLBACK:
        byte_fallback(s, i, text, n);
        break;
    case XL_STEP_REPLACE:
        replace(s, i, text, n);
        break;
    case XL_STEP_STRIP:
        strip(s, i, text, n);
        break;
    case XL_STEP_METASPACE:
        metaspace(s, i, text, n);
        break;
    case XL_STEP_JOIN:
        if (s->machines[i].count++ > 0) feed(s, i + 1, " ", 1);
        feed(s, i + 1, text, n);
        break;
    default:
        feed(s, i + 1, text, n);
        break; /* FUSE: what follows is marked as fused */
    }
}

/* A decoder that must see the one token in full. */
static bool needs_all(const xl_step *step)
{
    return step->fused && (step->kind == XL_STEP_BYTE_LEVEL || step->kind == XL_STEP_BYTE_FALLBACK ||
                           step->kind == XL_STEP_METASPACE ||
                           (step->kind == XL_STEP_REPLACE && step->pattern.kind != XL_PATTERN_LITERAL));
}

static void feed(xlstm_stream *s, uint32_t i, const char *text, size_t n)
{
    if (i == s->t->n_decoders) {
        xl_text_add(&s->out, text, n);
        return;
    }
    const xl_step *step = &s->t->decoders[i];
    if (needs_all(step)) xl_text_add(&s->machines[i].result, text, n);
    else if (step->fused && step->kind == XL_STEP_REPLACE) replace_in_parts(s, i, text, n, false);
    else if (step->fused && step->kind == XL_STEP_STRIP) strip_in_parts(s, i, text, n, false);
    else feed_token(s, i, text, n);
}

/* Tells every decoder in turn that nothing follows. */
static int finish(xlstm_stream *s, xlstm_error *err)
{
    for (uint32_t i = 0; i < s->t->n_decoders; i++) {
        const xl_step *step = &s->t->decoders[i];
        machine *m = &s->machines[i];
        if (needs_all(step)) {
            size_t n;
            char *all = xl_text_end(&m->result, &n, err);
            if (all == NULL) return XLSTM_E_MEMORY;
            feed_token(s, i, all, n);
            xl_release(all);
        } else if (step->fused && step->kind == XL_STEP_REPLACE) {
            replace_in_parts(s, i, "", 0, true);
        } else if (step->fused && step->kind == XL_STEP_STRIP) {
            strip_in_parts(s, i, "", 0, true);
        }
        if (step->kind == XL_STEP_BYTE_LEVEL) flush_bytes(s, i, true);
        if (step->kind == XL_STEP_BYTE_FALLBACK) end_run(s, i);
    }
    return XLSTM_OK;
}

static int check(const xlstm_stream *s, xlstm_error *err)
{
    bool failed = s->out.failed;
    for (uint32_t i = 0; i < s->t->n_decoders; i++) {
        failed = failed || s->machines[i].held.failed || s->machines[i].result.failed;
    }
    return failed ? xl_fail(err, XLSTM_E_MEMORY, "out of memory decoding tokens") : s->status;
}

static int push(xlstm_stream *s, int32_t id, xlstm_error *err)
{
    const xlstm_tokenizer *t = s->t;
    const char *text = id < 0 ? NULL : xl_names_get(&t->spelling, (uint32_t)id);
    if (text == NULL) {
        return xl_fail(err, XLSTM_E_ARGUMENT, "token id %d: the tokenizer has no such id; it knows 0 .. %u", id,
                       t->spelling.n_ids == 0 ? 0 : t->spelling.n_ids - 1);
    }
    if (s->skip_special && (t->flags[id] & XL_TOKEN_SPECIAL)) return XLSTM_OK;
    size_t n = t->spelling.length[id];
    if (t->flags[id] & XL_TOKEN_SHOWN) {
        const xl_added *a = xl_added_find(t, (uint32_t)id);
        text = a->shown;
        n = a->shown_size;
    }
    s->err = err;
    feed(s, 0, text, n);
    return check(s, err);
}

/* ---- public ----------------------------------------------------------------------------------------------------- */

int xlstm_stream_new(xlstm_stream **out, const xlstm_tokenizer *tokenizer, bool skip_special, xlstm_error *err)
{
    *out = xl_calloc(1, sizeof **out, err);
    if (*out == NULL) return XLSTM_E_MEMORY;
    (*out)->t = tokenizer;
    (*out)->skip_special = skip_special;
    return XLSTM_OK;
}

void xlstm_stream_free(xlstm_stream *stream)
{
    if (stream == NULL) return;
    for (size_t i = 0; i < XL_STEPS; i++) {
        xl_release(stream->machines[i].held.data);
        xl_release(stream->machines[i].result.data);
        xl_matcher_free(&stream->machines[i].matcher);
    }
    xl_release(stream->out.data);
    xl_release(stream);
}

int xlstm_stream_push(const char **text, size_t *size, xlstm_stream *stream, int32_t id, xlstm_error *err)
{
    *text = "";
    *size = 0;
    stream->out.size = 0;
    if (stream->finished) return xl_fail(err, XLSTM_E_ARGUMENT, "the stream is finished; start a new one");
    int status = push(stream, id, err);
    if (status != XLSTM_OK || stream->out.size == 0) return status;
    *text = stream->out.data;
    *size = stream->out.size;
    return XLSTM_OK;
}

int xlstm_stream_finish(const char **text, size_t *size, xlstm_stream *stream, xlstm_error *err)
{
    *text = "";
    *size = 0;
    stream->out.size = 0;
    if (stream->finished) return XLSTM_OK;
    stream->finished = true;
    stream->err = err;
    int status = finish(stream, err);
    if (status == XLSTM_OK) status = check(stream, err);
    if (status != XLSTM_OK || stream->out.size == 0) return status;
    *text = stream->out.data;
    *size = stream->out.size;
    return XLSTM_OK;
}

int xlstm_tokenizer_decode(char **text, size_t *size, const xlstm_tokenizer *tokenizer, const int32_t *ids, size_t n,
                           bool skip_special, xlstm_error *err)
{
    *text = NULL;
    *size = 0;
    xlstm_stream *s;
    int status = xlstm_stream_new(&s, tokenizer, skip_special, err);
    for (size_t i = 0; i < n && status == XLSTM_OK; i++) status = push(s, ids[i], err);
    if (status == XLSTM_OK) {
        s->err = err;
        status = finish(s, err);
        if (status == XLSTM_OK) status = check(s, err);
    }
    if (status == XLSTM_OK) {
        *text = xl_text_end(&s->out, size, err);
        if (*text == NULL) status = XLSTM_E_MEMORY;
    }
    xlstm_stream_free(s);
    return status;
}
