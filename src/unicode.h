/*
 * unicode.h — UTF-8, character classes, normalisation forms and lower case, equal to what Hugging Face `tokenizers`
 * does (tools/make_unicode.py says how the tables were made). Knows nothing of tokenizers. Layer 0.
 */
#ifndef XL_UNICODE_H
#define XL_UNICODE_H

#include "base.h"

/* Bits of a code point's class. */
enum {
    XL_LETTER = 1,    /* general category L */
    XL_NUMBER = 2,    /* N */
    XL_SPACE = 4,     /* White_Space */
    XL_WORD = 8,      /* \w of UTS 18: alphabetic, marks, decimal digits, connectors, joiners */
    XL_NUMERIC = 16,  /* N, by another version of Unicode than XL_NUMBER */
    XL_PUNCT = 32,    /* ASCII punctuation or category P, by a third version */
    XL_COMPOSES = 64, /* may change, or change its neighbours, under NFC; never set at the start of a segment */
    XL_NEWER = 128
}; /* in xl_unicode_newer */

typedef struct xl_unicode_decomposition {
    uint32_t code;
    uint16_t offset, length; /* in xl_unicode_pool; full decompositions */
} xl_unicode_decomposition;
typedef struct xl_unicode_range {
    uint32_t first, last, value;
} xl_unicode_range;
typedef struct xl_unicode_pair {
    uint32_t first, second, composed;
} xl_unicode_pair;
typedef struct xl_unicode_mapping {
    uint32_t from, to;
} xl_unicode_mapping;

/* Generated; all sorted. */
extern const uint8_t xl_unicode_page[0x1100];
extern const uint8_t xl_unicode_class_of[][256];
extern const uint32_t xl_unicode_pool[];
extern const xl_unicode_decomposition xl_unicode_canonical[], xl_unicode_compatible[];
extern const xl_unicode_range xl_unicode_combining[]; /* value: canonical combining class */
extern const xl_unicode_range xl_unicode_newer[];     /* value: a stand-in that Unicode 14 knows, of the same kind */
extern const xl_unicode_pair xl_unicode_pairs[];
extern const xl_unicode_mapping xl_unicode_lower[];
extern const size_t xl_unicode_n_canonical, xl_unicode_n_compatible, xl_unicode_n_combining, xl_unicode_n_newer,
    xl_unicode_n_pairs, xl_unicode_n_lower;

/* Any value below 0x110000. */
static inline unsigned xl_class(uint32_t code) { return xl_unicode_class_of[xl_unicode_page[code >> 8]][code & 255u]; }

/* Decodes the character at s, which is valid UTF-8, and moves s behind it. */
static inline uint32_t xl_utf8_next(const uint8_t **s)
{
    const uint8_t *p = *s;
    if (p[0] < 0x80) {
        *s = p + 1;
        return p[0];
    }
    if (p[0] < 0xe0) {
        *s = p + 2;
        return (uint32_t)(p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    }
    if (p[0] < 0xf0) {
        *s = p + 3;
        return (uint32_t)(p[0] & 0x0f) << 12 | (uint32_t)(p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    }
    *s = p + 4;
    return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3f) << 12 | (uint32_t)(p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

/* The character that ends before s, in valid UTF-8; moves s to its start. */
static inline uint32_t xl_utf8_previous(const uint8_t **s)
{
    do --*s;
    while ((**s & 0xc0) == 0x80);
    const uint8_t *p = *s;
    return xl_utf8_next(&p);
}

/* Writes 1 .. 4 bytes and returns how many. */
size_t xl_utf8_put(char out[4], uint32_t code);
/* Length of the character at s if it is valid (1 .. 4), else minus the length of the maximal invalid part, which one
 * U+FFFD stands for. *incomplete: the bytes are a proper prefix of a valid character cut by the end. n >= 1. */
int xl_utf8_check(const uint8_t *s, size_t n, bool *incomplete);
/* Bytes at the start of s that are valid UTF-8. */
size_t xl_utf8_valid(const char *s, size_t n);

typedef enum xl_form { XL_NFC, XL_NFD, XL_NFKC, XL_NFKD } xl_form;
/* Bytes at the start of valid UTF-8 that the form leaves as they are, cut where a change may begin. */
size_t xl_normal_prefix(xl_form form, const char *s, size_t n);
/* Adds the normal form of valid UTF-8 to out. */
int xl_normalize(xl_text *out, xl_form form, const char *s, size_t n, xlstm_error *err);
/* Adds the lower-case form, character by character. */
void xl_lower(xl_text *out, const char *s, size_t n);

#endif
