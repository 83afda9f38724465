/*
 * tokenizer.h — the inside of a tokenizer: what tokenizer.json says, in the form that encoding and decoding use.
 *
 *   tokenizer.c         opening, the public questions
 *   tokenizer_read.c    tokenizer.json and tokenizer_config.json -> struct xlstm_tokenizer
 *   tokenizer_vocab.c   hash tables over spellings and merges, the trie of added tokens
 *   tokenizer_split.c   patterns: exact splitters for the well-known expressions, PCRE2 for the rest
 *   tokenizer_encode.c  text -> added tokens, normalisers, pre-tokenizers, post-processor
 *   tokenizer_bpe.c     word -> ids
 *   tokenizer_decode.c  ids -> text, all at once or one by one
 *
 * The measure is Hugging Face `tokenizers`: same ids, same text. docs/tokenizer.md lists what is supported. Layer 4.
 */
#ifndef XL_TOKENIZER_H
#define XL_TOKENIZER_H

#include "base.h"
#include "json.h"
#include "unicode.h"

#include <stdatomic.h>

#define XL_TOKENIZER_FILE_LIMIT ((size_t)128 << 20) /* bytes of tokenizer.json */
#define XL_TOKEN_ID_LIMIT (1u << 22)                /* ids are below it: what a file may make us allocate */
#define XL_ADDED_TOKEN_LIMIT 1024u                  /* bytes of an added token's text */
#define XL_STEPS 16u                                /* normalisers, pre-tokenizers, decoders after flattening */

/* ---- names: id -> bytes and back -------------------------------------------------------------------------------- */

typedef struct xl_names {
    char *text;       /* all names, each followed by NUL */
    uint32_t *start;  /* [n_ids] offset in text; UINT32_MAX: no name */
    uint32_t *length; /* [n_ids] bytes */
    uint32_t *slots;  /* [mask + 1] id + 1, 0: free */
    uint32_t n_ids, mask, longest;
    size_t text_size, text_capacity;
} xl_names;

/* For ids below n_ids and at most n_names names. */
int xl_names_new(xl_names *out, uint32_t n_ids, size_t n_names, xlstm_error *err);
void xl_names_free(xl_names *names);
/* The id must be free. Returns 0, or 1 if the name is taken (nothing is done), or an error. */
int xl_names_add(xl_names *names, uint32_t id, const char *s, size_t n, xlstm_error *err);
/* -1: none. */
int32_t xl_names_find(const xl_names *names, const char *s, size_t n);
static inline const char *xl_names_get(const xl_names *names, uint32_t id)
{
    return id < names->n_ids && names->start[id] != UINT32_MAX ? names->text + names->start[id] : NULL;
}

/* ---- merges ----------------------------------------------------------------------------------------------------- */

typedef struct xl_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: free slot */
    uint32_t rank, id;
} xl_merge;

typedef struct xl_merges {
    xl_merge *slots; /* [mask + 1] */
    uint64_t mask;
} xl_merges;

int xl_merges_new(xl_merges *out, size_t n, xlstm_error *err);
void xl_merges_set(xl_merges *merges, uint32_t left, uint32_t right, uint32_t rank, uint32_t id);
static inline const xl_merge *xl_merges_find(const xl_merges *merges, uint32_t left, uint32_t right)
{
    uint64_t pair = (uint64_t)left << 32 | right;
    uint64_t i = pair * 0x9e3779b97f4a7c15u;
    for (i = (i ^ i >> 32) & merges->mask;; i = (i + 1) & merges->mask) {
        const xl_merge *m = &merges->slots[i];
        if (m->pair == pair) return m;
        if (m->pair == UINT64_MAX) return NULL;
    }
}

/* ---- added tokens ----------------------------------------------------------------------------------------------- */

typedef struct xl_added {
    uint32_t id;
    char *shown; /* what decoding starts from where the normaliser changes the text; else NULL. Owned */
    size_t shown_size;
    bool special, normalized, lstrip, rstrip, single_word;
} xl_added;

/* Finds the longest of many texts at a position. */
typedef struct xl_trie {
    uint64_t *keys;   /* [mask + 1] node << 8 | byte; UINT64_MAX: free */
    uint32_t *nodes;  /* [mask + 1] the child */
    int32_t *accept;  /* [n_nodes] what was given to xl_trie_add; -1: no text ends here */
    uint32_t n_nodes; /* 0: empty trie */
    uint64_t mask;
    bool first[256]; /* bytes that a text starts with */
} xl_trie;

int xl_trie_new(xl_trie *out, size_t total_bytes, xlstm_error *err);
void xl_trie_free(xl_trie *trie);
/* The first of equal texts counts; empty ones are ignored. */
void xl_trie_add(xl_trie *trie, const char *s, size_t n, int32_t value);
/* The value of the longest text at s and its length, or -1. */
int32_t xl_trie_match(const xl_trie *trie, const char *s, size_t n, size_t *length);

/* ---- patterns --------------------------------------------------------------------------------------------------- */

typedef enum xl_pattern_kind {
    XL_PATTERN_GPT2,    /* the GPT-2 and GPT-NeoX expression */
    XL_PATTERN_CL100K,  /* the GPT-4, Llama-3 and Qwen2 expressions, which differ in number_max */
    XL_PATTERN_CLASS,   /* one character with a bit of class_mask */
    XL_PATTERN_WORDS,   /* \w+|[^\w\s]+ */
    XL_PATTERN_LITERAL, /* a text; an empty one never matches */
    XL_PATTERN_REGEX,   /* anything else: PCRE2 */
} xl_pattern_kind;

typedef struct xl_pattern {
    xl_pattern_kind kind;
    uint32_t number_max; /* longest run of digits; UINT32_MAX: any */
    unsigned class_mask;
    char *text; /* literal or expression, owned */
    size_t text_size;
    struct pcre2_real_code_8 *code;
} xl_pattern;

/* `where`: file and field, for messages. */
int xl_pattern_regex(xl_pattern *out, const char *source, size_t n, const char *where, xlstm_error *err);
int xl_pattern_literal(xl_pattern *out, const char *text, size_t n, xlstm_error *err);
void xl_pattern_free(xl_pattern *pattern);
/* Every character of a text belongs to a match: no gaps. */
static inline bool xl_pattern_covers(const xl_pattern *p) { return p->kind <= XL_PATTERN_CL100K; }
/* End of the match at s < end, for patterns that cover. */
const char *xl_pattern_step(const xl_pattern *p, const char *s, const char *end);

/* Goes through the matches in one text, which is valid UTF-8. */
typedef struct xl_matcher {
    const xl_pattern *pattern;
    const char *s, *subject; /* subject: s with stand-ins for characters that PCRE2 does not know */
    size_t n, at, last_end;
    bool matched; /* last_end is one */
    xl_text stand_in;
    struct pcre2_real_match_data_8 *data;
    struct pcre2_real_match_context_8 *limits;
} xl_matcher;

/* Zero a matcher before its first start; starting again reuses its memory. */
int xl_matcher_start(xl_matcher *m, const xl_pattern *p, const char *s, size_t n, xlstm_error *err);
/* 1 and [*from, *to), 0 when there are no more, or an error. */
int xl_matcher_next(xl_matcher *m, size_t *from, size_t *to, xlstm_error *err);
void xl_matcher_free(xl_matcher *m);

/* ---- the pipeline ----------------------------------------------------------------------------------------------- */

typedef enum xl_behavior {
    XL_REMOVED,
    XL_ISOLATED,
    XL_MERGED_WITH_PREVIOUS,
    XL_MERGED_WITH_NEXT,
    XL_CONTIGUOUS
} xl_behavior;

typedef enum xl_step_kind {
    /* normalisers */
    XL_STEP_FORM,
    XL_STEP_LOWER,
    XL_STEP_STRIP_SPACE,
    XL_STEP_PREPEND,
    /* normaliser and decoder */
    XL_STEP_REPLACE,
    /* pre-tokenizers */
    XL_STEP_SPLIT,
    /* pre-tokenizers and decoders */
    XL_STEP_BYTE_LEVEL,
    XL_STEP_METASPACE,
    /* decoders */
    XL_STEP_BYTE_FALLBACK,
    XL_STEP_FUSE,
    XL_STEP_STRIP,
    XL_STEP_JOIN, /* no decoder: spaces between tokens */
} xl_step_kind;

typedef struct xl_step {
    xl_step_kind kind;
    xl_form form;
    xl_pattern pattern;   /* SPLIT, REPLACE, BYTE_LEVEL, METASPACE (the mark) */
    xl_behavior behavior; /* SPLIT */
    bool invert;          /* SPLIT */
    bool use_pattern;     /* BYTE_LEVEL, METASPACE: split as well */
    bool prefix;          /* BYTE_LEVEL: space, METASPACE: mark in front */
    bool prefix_first;    /* METASPACE: only at the start of the text */
    bool left, right;     /* STRIP_SPACE */
    char *text;           /* PREPEND, REPLACE, STRIP: one character. Owned */
    size_t text_size;     /* bytes of text */
    uint32_t start, stop; /* STRIP: at most so many */
    bool fused;           /* decoders: the input is one token that arrives in parts */
} xl_step;

struct xlstm_tokenizer {
    xl_names spelling; /* every token */
    xl_names raw;      /* model tokens as the bytes they stand for, where the last pre-tokenizer is ByteLevel */
    uint8_t *flags;    /* [spelling.n_ids] XL_TOKEN_* */
    /* [spelling.n_ids] whether a token's own text becomes just this token: found out when first asked. The answer is
     * the same for every thread, so relaxed order is enough. */
    _Atomic uint8_t *whole;
    xl_merges merges;
    int32_t byte_id[256];     /* model token of a byte's stand-in character; -1: none */
    int32_t fallback_id[256]; /* model token "<0x..>"; -1: none */
    int32_t unk_id;           /* -1: characters without a token vanish */
    bool fuse_unk, byte_fallback, ignore_merges;
    bool cut_at_mark;  /* no merge crosses the border in front of U+2581 but behind a character of `glue` */
    uint32_t glue[32]; /* characters; U+2581 is always one */
    uint32_t n_glue;

    xl_added *added; /* [n_added] ascending ids */
    uint32_t n_added;
    xl_trie raw_trie, normal_trie; /* added tokens sought before and after normalisation */

    xl_step normalizers[XL_STEPS], splitters[XL_STEPS], decoders[XL_STEPS];
    uint32_t n_normalizers, n_splitters, n_decoders;

    int32_t *prefix, *suffix; /* what the post-processor adds */
    uint32_t n_prefix, n_suffix;

    int32_t bos, end_of_text;
    xlstm_switch adds_bos;
    char *chat_template;
};

enum { XL_TOKEN_MODEL = 1, XL_TOKEN_ADDED = 2, XL_TOKEN_SPECIAL = 4, XL_TOKEN_SHOWN = 8 /* xl_added.shown is set */ };
enum { XL_WHOLE_UNKNOWN, XL_WHOLE_YES, XL_WHOLE_NO };

/* ByteLevel's stand-ins: a printable character for every byte. */
uint32_t xl_byte_char(uint8_t byte);
int xl_char_byte(uint32_t code); /* -1: no stand-in */
/* The bytes that a text of stand-ins means; false (out restored) if another character is in it. */
bool xl_bytes_of(xl_text *out, const char *s, size_t n);

/* The added token of an id, NULL if it is none. */
const xl_added *xl_added_find(const xlstm_tokenizer *t, uint32_t id);

/* Fills a zeroed tokenizer; `name` for messages. What was allocated is freed by xlstm_tokenizer_free. */
int xl_tokenizer_read(xlstm_tokenizer *t, const char *json, size_t size, const char *name, xlstm_error *err);
/* Optional: tokenizer_config.json, and the text of chat_template.jinja (NULL: none). After xl_tokenizer_read. */
int xl_tokenizer_read_config(xlstm_tokenizer *t, const char *json, size_t size, const char *name, xlstm_error *err);

/* ---- encoding --------------------------------------------------------------------------------------------------- */

#define XL_WORD_CACHE_TEXT 30
#define XL_WORD_CACHE_IDS 8
#define XL_WORD_CACHE 4096u

/* A word that became several ids. */
typedef struct xl_cached_word {
    uint8_t length, n; /* length 0: free */
    char text[XL_WORD_CACHE_TEXT];
    int32_t ids[XL_WORD_CACHE_IDS];
} xl_cached_word;

typedef struct xl_encoder {
    const xlstm_tokenizer *t;
    unsigned flags;
    int32_t *ids;
    size_t n, capacity;
    xl_text normal[2];            /* normalised text, in turns */
    xl_text scratch[XL_STEPS][2]; /* of each pre-tokenizer: transformed text, one piece of it */
    xl_matcher matcher[XL_STEPS], replacer[XL_STEPS];
    /* the word being merged: [n_symbols] */
    uint32_t *symbols, *previous, *next;
    size_t symbol_capacity;
    uint64_t *heap;
    size_t heap_size, heap_capacity;
    xl_cached_word *cache; /* [XL_WORD_CACHE] */
    size_t words;
    xlstm_error *err;
} xl_encoder;

int xl_encoder_push(xl_encoder *e, int32_t id);
/* Adds the ids of a word. raw: the word is bytes, else characters as in the vocabulary. */
int xl_bpe_word(xl_encoder *e, const char *s, size_t n, bool raw);
/* Runs the normalisers; *out is s itself or in e->normal. */
int xl_encoder_normalize(xl_encoder *e, const char **out, size_t *size, const char *s, size_t n);
void xl_encoder_free(xl_encoder *e);

#endif
