/*
 * tokenizer_split.c — patterns of pre-tokenizers. The expressions that nearly every byte-level tokenizer uses are
 * hand-written over our class table: exact where a regular-expression library has other Unicode tables, and faster.
 * Every other expression goes to PCRE2. Where PCRE2 means something else than Oniguruma, which the files were written
 * for, the expression is rewritten or refused, and characters newer than PCRE2's tables are matched by a stand-in of
 * the same category.
 */
#include "tokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string.h>

enum {
    KIND_OTHER = 0,
    KIND_LETTER = XL_LETTER,
    KIND_NUMBER = XL_NUMBER,
    KIND_SPACE = XL_SPACE,
    KIND_MASK = XL_LETTER | XL_NUMBER | XL_SPACE
};

static const char gpt2_source[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
static const char cl100k_head[] = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|";
static const char cl100k_tail[] = "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/* ---- hand-written splitters ------------------------------------------------------------------------------------- */

static inline unsigned next_kind(const uint8_t **p) { return xl_class(xl_utf8_next(p)) & KIND_MASK; }

static inline const uint8_t *skip_kind(const uint8_t *p, const uint8_t *end, unsigned kind)
{
    while (p < end) {
        const uint8_t *q = p;
        if (next_kind(&q) != kind) break;
        p = q;
    }
    return p;
}

/* Length of 's 't 'm 'd 're 've 'll at p, which is an apostrophe; 0: none. */
static size_t contraction(const uint8_t *p, const uint8_t *end, bool any_case)
{
    if (end - p < 2) return 0;
    uint8_t fold = any_case ? 0x20 : 0;
    uint8_t a = p[1] | (p[1] < 0x80 ? fold : 0);
    if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
    if (end - p < 3) return 0;
    if (any_case && p[1] == 0xc5 && p[2] == 0xbf) return 3; /* the long s folds to s */
    uint8_t b = p[2] | (p[2] < 0x80 ? fold : 0);
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? 3 : 0;
}

/* White space from p, where q is behind the first character: all of it at the end of the text, else all but the last
 * character, else the only one. With `lines` it ends behind its last line break. */
static const uint8_t *spaces(const uint8_t *p, const uint8_t *q, const uint8_t *end, bool lines)
{
    const uint8_t *last = p, *line = lines && (*p == '\r' || *p == '\n') ? q : NULL;
    while (q < end) {
        const uint8_t *r = q;
        if (next_kind(&r) != KIND_SPACE) break;
        if (lines && (*q == '\r' || *q == '\n')) line = r;
        last = q;
        q = r;
    }
    if (line != NULL) return line;
    return q == end || last == p ? q : last;
}

static const uint8_t *step_gpt2(const uint8_t *p, const uint8_t *end)
{
    if (*p == '\'') {
        size_t n = contraction(p, end, false);
        if (n > 0) return p + n;
    }
    const uint8_t *q = p;
    unsigned kind = next_kind(&q);
    if (*p == ' ' && q < end) {
        const uint8_t *r = q;
        unsigned after = next_kind(&r);
        if (after != KIND_SPACE) return skip_kind(r, end, after);
    }
    return kind == KIND_SPACE ? spaces(p, q, end, false) : skip_kind(q, end, kind);
}

static const uint8_t *step_cl100k(const uint8_t *p, const uint8_t *end, uint32_t number_max)
{
    if (*p == '\'') {
        size_t n = contraction(p, end, true);
        if (n > 0) return p + n;
    }
    const uint8_t *q = p, *r;
    unsigned kind = next_kind(&q), after = KIND_SPACE;
    if (kind == KIND_LETTER) return skip_kind(q, end, KIND_LETTER);
    if (kind == KIND_NUMBER) {
        for (uint32_t n = 1; n < number_max && q < end; n++) {
            r = q;
            if (next_kind(&r) != KIND_NUMBER) break;
            q = r;
        }
        return q;
    }
    r = q;
    if (q < end) after = next_kind(&r);
    if (after == KIND_LETTER && *p != '\r' && *p != '\n') return skip_kind(r, end, KIND_LETTER);
    if (kind == KIND_OTHER || (*p == ' ' && q < end && after == KIND_OTHER)) {
        q = skip_kind(q, end, KIND_OTHER);
        while (q < end && (*q == '\r' || *q == '\n')) q++;
        return q;
    }
    return spaces(p, q, end, true);
}

const char *xl_pattern_step(const xl_pattern *p, const char *s, const char *end)
{
    const uint8_t *from = (const uint8_t *)s, *to = (const uint8_t *)end;
    return (const char *)(p->kind == XL_PATTERN_GPT2 ? step_gpt2(from, to) : step_cl100k(from, to, p->number_max));
}

/* Recognises the expressions above, whatever their longest number. */
static bool known_expression(xl_pattern *out, const char *source, size_t n)
{
    if (n == sizeof gpt2_source - 1 && memcmp(source, gpt2_source, n) == 0) {
        out->kind = XL_PATTERN_GPT2;
        return true;
    }
    static const struct {
        const char *number;
        uint32_t max;
    } numbers[] = {{"\\p{N}", 1}, {"\\p{N}{1,2}", 2}, {"\\p{N}{1,3}", 3}, {"\\p{N}+", UINT32_MAX}};
    size_t head = sizeof cl100k_head - 1, tail = sizeof cl100k_tail - 1;
    for (size_t i = 0; i < XL_COUNT(numbers); i++) {
        size_t middle = strlen(numbers[i].number);
        if (n == head + middle + tail && memcmp(source, cl100k_head, head) == 0 &&
            memcmp(source + head, numbers[i].number, middle) == 0 &&
            memcmp(source + head + middle, cl100k_tail, tail) == 0) {
            out->kind = XL_PATTERN_CL100K;
            out->number_max = numbers[i].max;
            return true;
        }
    }
    return false;
}

/* ---- PCRE2 ------------------------------------------------------------------------------------------------------ */

static int refuse(xlstm_error *err, const char *where, const char *what)
{
    return xl_fail(err, XLSTM_E_UNSUPPORTED,
                   "%s: the regular expression uses %s, which this build cannot match as Hugging Face does", where,
                   what);
}

/* \p{Name}: one- and two-letter categories as they are; scripts by their own property, not by script extensions. */
static int rewrite_property(xl_text *out, const char *s, size_t n, size_t *used, const char *where, xlstm_error *err)
{
    size_t close = 3;
    while (close < n && s[close] != '}') close++;
    if (n < 4 || s[2] != '{' || close == n) return refuse(err, where, "\\p without {name}");
    size_t name = 3;
    bool negative = s[1] == 'P';
    if (s[name] == '^') {
        negative = !negative;
        name++;
    }
    const char *script = close - name > 2 ? "sc:" : "";
    xl_text_addf(out, "\\%c{%s%.*s}", negative ? 'P' : 'p', script, (int)(close - name), s + name);
    *used = close + 1;
    return XLSTM_OK;
}

/* Oniguruma's \w: letters, marks, numbers but for fractions and the like, connectors, circled letters. */
#define WORD_ITEMS                                                                                                     \
    "\\p{L}\\p{M}\\p{Nd}\\p{Nl}\\p{Pc}\\x{24b6}-\\x{24e9}\\x{1f130}-\\x{1f149}\\x{1f150}-\\x{1f169}\\x{1f170}-\\x{1f189}"

static int rewrite(xl_text *out, const char *s, size_t n, const char *where, xlstm_error *err)
{
    bool in_class = false;
    for (size_t i = 0; i < n;) {
        char c = s[i];
        if (c == '\\' && i + 1 < n) {
            char d = s[i + 1];
            size_t used = 2;
            int status = XLSTM_OK;
            if (d == 'p' || d == 'P') status = rewrite_property(out, s + i, n - i, &used, where, err);
            else if (d == 'w') xl_text_addf(out, in_class ? "%s" : "[%s]", WORD_ITEMS);
            else if (d == 'W' && !in_class) xl_text_addf(out, "[^%s]", WORD_ITEMS);
            else if (d == 'W') status = refuse(err, where, "\\W in a character class");
            else if (d == 'h' || d == 'H') status = refuse(err, where, "\\h");
            else if (d == 'b' && in_class) xl_text_addf(out, "\\x08");
            else if (d == 'b' || d == 'B') status = refuse(err, where, "\\b or \\B");
            else if (d == 'R' || d == 'X' || d == 'K' || d == 'Q' || d == 'E' || d == 'C' || d == 'y' || d == 'Y')
                status = refuse(err, where, "\\R, \\X, \\K, \\Q, \\E, \\C or \\y");
            else xl_text_add(out, s + i, 2);
            if (status != XLSTM_OK) return status;
            i += used;
            continue;
        }
        if (in_class && c == '&' && i + 1 < n && s[i + 1] == '&') return refuse(err, where, "&& in a character class");
        if (in_class && c == '[' && (i + 1 == n || s[i + 1] != ':'))
            return refuse(err, where, "nested character classes");
        if (in_class && c == '[') return refuse(err, where, "[:name:] classes");
        if (!in_class && c == '(' && i + 2 < n && s[i + 1] == '?') {
            if (memchr(":=!>#<i-m", s[i + 2], 9) == NULL) return refuse(err, where, "an unusual (?...) group");
            /* (?m) is PCRE2's (?s). */
            for (size_t k = i + 2; k < n && strchr("imx-", s[k]) != NULL; k++) {
                if (s[k] == 'm' || s[k] == 'x') return refuse(err, where, "(?m) or (?x)");
            }
        }
        xl_text_add(out, &c, 1);
        if (!in_class && c == '[') {
            in_class = true;
            if (i + 1 < n && s[i + 1] == '^') xl_text_add(out, s + ++i, 1);
            if (i + 1 < n && s[i + 1] == ']') xl_text_add(out, s + ++i, 1);
        } else if (in_class && c == ']') {
            in_class = false;
        }
        i++;
    }
    return out->failed ? xl_fail(err, XLSTM_E_MEMORY, "out of memory for a regular expression") : XLSTM_OK;
}

int xl_pattern_regex(xl_pattern *out, const char *source, size_t n, const char *where, xlstm_error *err)
{
    *out = (xl_pattern){0};
    if (known_expression(out, source, n)) return XLSTM_OK;
    out->kind = XL_PATTERN_REGEX;
    if (n > 65536) {
        return xl_fail(err, XLSTM_E_UNSUPPORTED, "%s: expected a regular expression of at most 65536 bytes, found %zu",
                       where, n);
    }
    xl_text text = {0};
    pcre2_compile_context *context = NULL;
    int status = rewrite(&text, source, n, where, err);
    if (status != XLSTM_OK) goto done;
    context = pcre2_compile_context_create(NULL);
    if (context == NULL) {
        status = xl_fail(err, XLSTM_E_MEMORY, "out of memory for a regular expression");
        goto done;
    }
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_parens_nest_limit(context, 100);
    int code;
    size_t at;
    out->code = pcre2_compile((PCRE2_SPTR)text.data, text.size,
                              PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &code, &at, context);
    if (out->code == NULL) {
        char reason[160];
        pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
        status = xl_fail(err, XLSTM_E_FORMAT, "%s: bad regular expression: %s", where, reason);
        goto done;
    }
    pcre2_jit_compile(out->code, PCRE2_JIT_COMPLETE); /* without it the interpreter is used */
done:
    pcre2_compile_context_free(context);
    xl_release(text.data);
    return status;
}

int xl_pattern_literal(xl_pattern *out, const char *text, size_t n, xlstm_error *err)
{
    *out = (xl_pattern){.kind = XL_PATTERN_LITERAL, .text_size = n};
    out->text = xl_alloc(n + 1, err);
    if (out->text == NULL) return XLSTM_E_MEMORY;
    memcpy(out->text, text, n);
    out->text[n] = '\0';
    return XLSTM_OK;
}

void xl_pattern_free(xl_pattern *pattern)
{
    xl_release(pattern->text);
    pcre2_code_free(pattern->code);
    *pattern = (xl_pattern){0};
}

/* ---- matching --------------------------------------------------------------------------------------------------- */

static uint32_t stand_in(uint32_t code)
{
    size_t low = 0, high = xl_unicode_n_newer;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const xl_unicode_range *r = &xl_unicode_newer[middle];
        if (code < r->first) high = middle;
        else if (code > r->last) low = middle + 1;
        else return r->value;
    }
    return code;
}

/* The subject with every newer character replaced by its stand-in, which is as long; s itself when there is none. */
static void replace_newer(xl_matcher *m)
{
    const uint8_t *p = (const uint8_t *)m->s, *end = p + m->n;
    m->subject = m->s;
    while (p < end) {
        const uint8_t *at = p;
        uint32_t code = xl_utf8_next(&p);
        if (code < 0x80 || (xl_class(code) & XL_NEWER) == 0) continue;
        if (m->subject == m->s) {
            m->stand_in.size = 0;
            xl_text_add(&m->stand_in, m->s, m->n);
            if (m->stand_in.failed) return;
            m->subject = m->stand_in.data;
        }
        char bytes[4];
        size_t n = xl_utf8_put(bytes, stand_in(code));
        if (n == (size_t)(p - at)) memcpy(m->stand_in.data + (at - (const uint8_t *)m->s), bytes, n);
    }
}

int xl_matcher_start(xl_matcher *m, const xl_pattern *p, const char *s, size_t n, xlstm_error *err)
{
    m->pattern = p;
    m->s = m->subject = s;
    m->n = n;
    m->at = 0;
    m->matched = false;
    if (p->kind != XL_PATTERN_REGEX) return XLSTM_OK;
    replace_newer(m);
    if (m->data == NULL) m->data = pcre2_match_data_create(1, NULL);
    if (m->limits == NULL) m->limits = pcre2_match_context_create(NULL);
    if (m->data == NULL || m->limits == NULL || m->stand_in.failed)
        return xl_fail(err, XLSTM_E_MEMORY, "out of memory to match %zu bytes", n);
    /* A few steps back for every byte are normal; an expression that explodes is stopped early. */
    pcre2_set_match_limit(m->limits, (uint32_t)XL_MIN((size_t)UINT32_MAX, 100000 + 32 * n));
    return XLSTM_OK;
}

static int next_regex(xl_matcher *m, size_t *from, size_t *to, xlstm_error *err)
{
    while (m->at <= m->n) {
        int found =
            pcre2_match(m->pattern->code, (PCRE2_SPTR)m->subject, m->n, m->at, PCRE2_NO_UTF_CHECK, m->data, m->limits);
        if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
            found = pcre2_match(m->pattern->code, (PCRE2_SPTR)m->subject, m->n, m->at,
                                PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, m->data, m->limits);
        }
        if (found == PCRE2_ERROR_NOMATCH) return 0;
        if (found < 0) {
            char reason[160];
            pcre2_get_error_message(found, (PCRE2_UCHAR *)reason, sizeof reason);
            return xl_fail(err, XLSTM_E_UNSUPPORTED, "the tokenizer's regular expression gave up on %zu bytes: %s",
                           m->n, reason);
        }
        const size_t *match = pcre2_get_ovector_pointer(m->data);
        if (match[1] > match[0] || !m->matched || match[0] != m->last_end) {
            m->matched = true;
            m->at = m->last_end = match[1];
            *from = match[0];
            *to = match[1];
            return 1;
        }
        /* An empty match right behind the last one does not count: go on behind the next character. */
        if (m->at == m->n) return 0;
        const uint8_t *p = (const uint8_t *)m->s + m->at;
        xl_utf8_next(&p);
        m->at = (size_t)(p - (const uint8_t *)m->s);
    }
    return 0;
}

/* The next run of characters of one kind, word or other, that are not space. */
static int next_words(xl_matcher *m, size_t *from, size_t *to)
{
    const uint8_t *start = (const uint8_t *)m->s, *p = start + m->at, *end = start + m->n;
    unsigned kind = 0;
    for (; p < end;) {
        const uint8_t *at = p;
        unsigned class = xl_class(xl_utf8_next(&p));
        unsigned here = class & XL_WORD ? XL_WORD : class & XL_SPACE ? 0 : XL_SPACE;
        if (kind != 0 && here != kind) {
            p = at;
            break;
        }
        if (here != 0 && kind == 0) {
            kind = here;
            *from = (size_t)(at - start);
        }
    }
    m->at = *to = (size_t)(p - start);
    return kind != 0;
}

int xl_matcher_next(xl_matcher *m, size_t *from, size_t *to, xlstm_error *err)
{
    if (m->pattern->kind == XL_PATTERN_REGEX) return next_regex(m, from, to, err);
    if (m->at >= m->n) return 0;
    const char *s = m->s + m->at;
    switch (m->pattern->kind) {
    case XL_PATTERN_GPT2:
    case XL_PATTERN_CL100K:
        *from = m->at;
        *to = m->at = (size_t)(xl_pattern_step(m->pattern, s, m->s + m->n) - m->s);
        return 1;
    case XL_PATTERN_WORDS:
        return next_words(m, from, to);
    case XL_PATTERN_LITERAL: {
        if (m->pattern->text_size == 0) return 0;
        const char *found = memmem(s, m->n - m->at, m->pattern->text, m->pattern->text_size);
        if (found == NULL) return 0;
        *from = (size_t)(found - m->s);
        *to = m->at = *from + m->pattern->text_size;
        return 1;
    }
    default:
        break;
    }
    const uint8_t *p = (const uint8_t *)s, *end = (const uint8_t *)m->s + m->n;
    while (p < end) {
        const uint8_t *at = p;
        if ((xl_class(xl_utf8_next(&p)) & m->pattern->class_mask) == 0) continue;
        *from = (size_t)(at - (const uint8_t *)m->s);
        *to = m->at = (size_t)(p - (const uint8_t *)m->s);
        return 1;
    }
    return 0;
}

void xl_matcher_free(xl_matcher *m)
{
    xl_release(m->stand_in.data);
    pcre2_match_data_free(m->data);
    pcre2_match_context_free(m->limits);
    *m = (xl_matcher){0};
}
