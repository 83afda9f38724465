/*
 * unicode.c — see unicode.h. Normalisation works on segments: a character whose class lacks XL_COMPOSES begins a new
 * one, so that text without such characters is only scanned.
 */
#include "unicode.h"

#include <stdlib.h>
#include <string.h>

enum { HANGUL_S = 0xac00, HANGUL_L = 0x1100, HANGUL_V = 0x1161, HANGUL_T = 0x11a7 };
enum { HANGUL_LS = 19, HANGUL_VS = 21, HANGUL_TS = 28, HANGUL_SS = HANGUL_LS * HANGUL_VS * HANGUL_TS };

size_t xl_utf8_put(char out[4], uint32_t code)
{
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    if (code < 0x800) {
        out[0] = (char)(0xc0 | code >> 6);
        out[1] = (char)(0x80 | (code & 0x3f));
        return 2;
    }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12);
        out[1] = (char)(0x80 | (code >> 6 & 0x3f));
        out[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18);
    out[1] = (char)(0x80 | (code >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code >> 6 & 0x3f));
    out[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}

int xl_utf8_check(const uint8_t *s, size_t n, bool *incomplete)
{
    *incomplete = false;
    if (s[0] < 0x80) return 1;
    if (s[0] < 0xc2 || s[0] > 0xf4) return -1;
    int length = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
    /* The second byte's range excludes overlong forms, surrogates and values above 0x10ffff. */
    uint8_t low = s[0] == 0xe0 ? 0xa0 : s[0] == 0xf0 ? 0x90 : 0x80;
    uint8_t high = s[0] == 0xed ? 0x9f : s[0] == 0xf4 ? 0x8f : 0xbf;
    for (int i = 1; i < length; i++) {
        if ((size_t)i == n) {
            *incomplete = true;
            return -i;
        }
        if (s[i] < low || s[i] > high) return -i;
        low = 0x80;
        high = 0xbf;
    }
    return length;
}

size_t xl_utf8_valid(const char *s, size_t n)
{
    const uint8_t *p = (const uint8_t *)s;
    size_t i = 0;
    while (i < n) {
        uint64_t word;
        if (n - i >= 8 && (memcpy(&word, p + i, 8), (word & 0x8080808080808080u) == 0)) {
            i += 8;
            continue;
        }
        bool incomplete;
        int length = xl_utf8_check(p + i, n - i, &incomplete);
        if (length < 0) return i;
        i += (size_t)length;
    }
    return n;
}

/* ---- normal forms ----------------------------------------------------------------------------------------------- */

/* Code points of one segment, with their combining classes. */
typedef struct segment {
    uint32_t *code;
    uint8_t *ccc;
    size_t n, capacity;
    bool failed;
} segment;

static uint8_t combining_class(uint32_t code)
{
    if (code < 0x300) return 0;
    size_t low = 0, high = xl_unicode_n_combining;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const xl_unicode_range *r = &xl_unicode_combining[middle];
        if (code < r->first) high = middle;
        else if (code > r->last) low = middle + 1;
        else return (uint8_t)r->value;
    }
    return 0;
}

static const xl_unicode_decomposition *find_decomposition(const xl_unicode_decomposition *table, size_t n,
                                                          uint32_t code)
{
    size_t low = 0, high = n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (code < table[middle].code) high = middle;
        else if (code > table[middle].code) low = middle + 1;
        else return &table[middle];
    }
    return NULL;
}

static uint32_t compose(uint32_t a, uint32_t b)
{
    if (a - HANGUL_L < HANGUL_LS && b - HANGUL_V < HANGUL_VS) {
        return HANGUL_S + ((a - HANGUL_L) * HANGUL_VS + (b - HANGUL_V)) * HANGUL_TS;
    }
    if (a - HANGUL_S < HANGUL_SS && (a - HANGUL_S) % HANGUL_TS == 0 && b - HANGUL_T - 1 < HANGUL_TS - 1) {
        return a + (b - HANGUL_T);
    }
    size_t low = 0, high = xl_unicode_n_pairs;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const xl_unicode_pair *p = &xl_unicode_pairs[middle];
        if (a < p->first || (a == p->first && b < p->second)) high = middle;
        else if (a > p->first || b > p->second) low = middle + 1;
        else return p->composed;
    }
    return 0;
}

static void push(segment *s, uint32_t code)
{
    if (s->n == s->capacity) {
        size_t capacity = s->capacity ? s->capacity * 2 : 64;
        uint32_t *codes = realloc(s->code, capacity * sizeof *codes);
        if (codes != NULL) s->code = codes;
        uint8_t *classes = realloc(s->ccc, capacity);
        if (classes != NULL) s->ccc = classes;
        if (codes == NULL || classes == NULL) {
            s->failed = true;
            return;
        }
        s->capacity = capacity;
    }
    s->code[s->n] = code;
    s->ccc[s->n++] = combining_class(code);
}

static void push_decomposed(segment *s, uint32_t code, bool compatible)
{
    if (code < 0xa0) {
        push(s, code);
        return;
    }
    if (code - HANGUL_S < HANGUL_SS) {
        uint32_t i = code - HANGUL_S;
        push(s, HANGUL_L + i / (HANGUL_VS * HANGUL_TS));
        push(s, HANGUL_V + i / HANGUL_TS % HANGUL_VS);
        if (i % HANGUL_TS != 0) push(s, HANGUL_T + i % HANGUL_TS);
        return;
    }
    const xl_unicode_decomposition *d = NULL;
    if (compatible) d = find_decomposition(xl_unicode_compatible, xl_unicode_n_compatible, code);
    if (d == NULL) d = find_decomposition(xl_unicode_canonical, xl_unicode_n_canonical, code);
    if (d == NULL) {
        push(s, code);
        return;
    }
    for (size_t i = 0; i < d->length; i++) push(s, xl_unicode_pool[d->offset + i]);
}

/* Stable sort of the marks [from, to) by combining class: by insertion when few, by counting when many. */
static void order_marks(segment *s, size_t from, size_t to)
{
    if (to - from < 32) {
        for (size_t i = from + 1; i < to; i++) {
            uint32_t code = s->code[i];
            uint8_t ccc = s->ccc[i];
            size_t j = i;
            for (; j > from && s->ccc[j - 1] > ccc; j--) {
                s->code[j] = s->code[j - 1];
                s->ccc[j] = s->ccc[j - 1];
            }
            s->code[j] = code;
            s->ccc[j] = ccc;
        }
        return;
    }
    size_t start[257] = {0};
    for (size_t i = from; i < to; i++) start[s->ccc[i] + 1]++;
    for (size_t k = 0; k < 256; k++) start[k + 1] += start[k];
    uint32_t *codes = malloc((to - from) * sizeof *codes);
    if (codes == NULL) {
        s->failed = true;
        return;
    }
    for (size_t i = from; i < to; i++) codes[start[s->ccc[i]]++] = s->code[i];
    memcpy(s->code + from, codes, (to - from) * sizeof *codes);
    size_t i = from;
    for (size_t k = 0; k < 256; k++) {
        while (i < from + start[k]) s->ccc[i++] = (uint8_t)k;
    }
    free(codes);
}

static void order(segment *s)
{
    for (size_t i = 0; i < s->n && !s->failed; i++) {
        if (s->ccc[i] == 0) continue;
        size_t from = i;
        while (i < s->n && s->ccc[i] != 0) i++;
        if (i - from > 1) order_marks(s, from, i);
    }
}

static void recompose(segment *s)
{
    size_t out = 0, starter = SIZE_MAX;
    for (size_t i = 0; i < s->n; i++) {
        uint32_t code = s->code[i];
        uint8_t ccc = s->ccc[i];
        /* Marks stand in ascending order, so only the one kept last can be in the way. */
        bool blocked = starter == SIZE_MAX || (out > starter + 1 && s->ccc[out - 1] >= ccc);
        uint32_t composed = blocked ? 0 : compose(s->code[starter], code);
        if (composed != 0) {
            s->code[starter] = composed;
            continue;
        }
        if (ccc == 0) starter = out;
        s->code[out] = code;
        s->ccc[out++] = ccc;
    }
    s->n = out;
}

/* The start of the segment that ends before s[i]. */
static size_t segment_start(const char *s, size_t i)
{
    const uint8_t *p = (const uint8_t *)s + i;
    while (p > (const uint8_t *)s) {
        if ((xl_class(xl_utf8_previous(&p)) & XL_COMPOSES) == 0) break;
    }
    return (size_t)(p - (const uint8_t *)s);
}

size_t xl_normal_prefix(xl_form form, const char *s, size_t n)
{
    const uint8_t *start = (const uint8_t *)s, *p = start, *end = start + n;
    while (p < end) {
        /* Below U+0300 NFC changes nothing. */
        uint64_t word;
        if (end - p >= 8 && (memcpy(&word, p, 8), (word & 0x8080808080808080u) == 0)) {
            p += 8;
            continue;
        }
        const uint8_t *at = p;
        uint32_t code = xl_utf8_next(&p);
        if (code < 0x80) continue;
        if (form != XL_NFC || (xl_class(code) & XL_COMPOSES)) return segment_start(s, (size_t)(at - start));
    }
    return n;
}

int xl_normalize(xl_text *out, xl_form form, const char *s, size_t n, xlstm_error *err)
{
    const uint8_t *p = (const uint8_t *)s, *end = p + n;
    segment seg = {0};
    while (p < end && !seg.failed) {
        size_t same = xl_normal_prefix(form, (const char *)p, (size_t)(end - p));
        xl_text_add(out, (const char *)p, same);
        p += same;
        seg.n = 0;
        /* What follows up to the next certain border: for NFC a character that never composes, else ASCII. */
        const uint8_t *from = p;
        while (p < end) {
            const uint8_t *at = p;
            uint32_t code = xl_utf8_next(&p);
            bool border = form == XL_NFC ? (xl_class(code) & XL_COMPOSES) == 0 : code < 0x80;
            if (border && at != from) {
                p = at;
                break;
            }
            push_decomposed(&seg, code, form == XL_NFKC || form == XL_NFKD);
        }
        order(&seg);
        if (form == XL_NFC || form == XL_NFKC) recompose(&seg);
        for (size_t i = 0; i < seg.n; i++) {
            char bytes[4];
            xl_text_add(out, bytes, xl_utf8_put(bytes, seg.code[i]));
        }
    }
    free(seg.code);
    free(seg.ccc);
    if (seg.failed || out->failed)
        return xl_fail(err, XLSTM_E_MEMORY, "out of memory normalising %zu bytes of text", n);
    return XLSTM_OK;
}

void xl_lower(xl_text *out, const char *s, size_t n)
{
    const uint8_t *p = (const uint8_t *)s, *end = p + n;
    while (p < end) {
        const uint8_t *at = p;
        uint32_t code = xl_utf8_next(&p);
        size_t low = 0, high = xl_unicode_n_lower;
        uint32_t to = code;
        if (code < 0x80) {
            if (code >= 'A' && code <= 'Z') to = code + 32;
        } else if (code == 0x130) { /* the one letter whose lower case is two: i and a dot above */
            xl_text_add(out, "i\xcc\x87", 3);
            continue;
        } else {
            while (low < high) {
                size_t middle = (low + high) / 2;
                if (code < xl_unicode_lower[middle].from) high = middle;
                else if (code > xl_unicode_lower[middle].from) low = middle + 1;
                else {
                    to = xl_unicode_lower[middle].to;
                    break;
                }
            }
        }
        if (to == code) {
            xl_text_add(out, (const char *)at, (size_t)(p - at));
        } else {
            char bytes[4];
            xl_text_add(out, bytes, xl_utf8_put(bytes, to));
        }
    }
}
