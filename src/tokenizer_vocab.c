/*
 * tokenizer_vocab.c — lookup structures of the tokenizer: names, merges, the trie of added tokens, and the stand-in
 * characters of byte-level vocabularies. Sizes come from counted input and are bounded by the reader.
 */
#include "tokenizer.h"

#include <string.h>

static size_t power_of_two(size_t n)
{
    size_t p = 16;
    while (p < n) p *= 2;
    return p;
}

/* ---- names ------------------------------------------------------------------------------------------------------ */

int xl_names_new(xl_names *out, uint32_t n_ids, size_t n_names, xlstm_error *err)
{
    *out = (xl_names){0};
    size_t slots = power_of_two(2 * n_names + 1);
    out->n_ids = n_ids;
    out->mask = (uint32_t)slots - 1;
    out->start = xl_calloc((size_t)n_ids + 1, sizeof *out->start, err);
    out->length = xl_calloc((size_t)n_ids + 1, sizeof *out->length, err);
    out->slots = xl_calloc(slots, sizeof *out->slots, err);
    if (out->start == NULL || out->length == NULL || out->slots == NULL) {
        xl_names_free(out);
        return XLSTM_E_MEMORY;
    }
    memset(out->start, 0xff, (size_t)n_ids * sizeof *out->start);
    return XLSTM_OK;
}

void xl_names_free(xl_names *names)
{
    xl_release(names->text);
    xl_release(names->start);
    xl_release(names->length);
    xl_release(names->slots);
    *names = (xl_names){0};
}

/* The slot that holds the name, or the free one where it belongs. */
static uint32_t *find_slot(const xl_names *names, const char *s, size_t n)
{
    for (uint32_t i = (uint32_t)xl_hash(s, n, 0) & names->mask;; i = (i + 1) & names->mask) {
        uint32_t id = names->slots[i];
        if (id == 0) return &names->slots[i];
        id--;
        if (names->length[id] == n && memcmp(names->text + names->start[id], s, n) == 0) return &names->slots[i];
    }
}

int xl_names_add(xl_names *names, uint32_t id, const char *s, size_t n, xlstm_error *err)
{
    uint32_t *slot = find_slot(names, s, n);
    if (*slot != 0) return 1;
    if (names->text_capacity - names->text_size < n + 1) {
        size_t capacity = XL_MAX(names->text_capacity * 2, names->text_size + n + 1);
        char *text = xl_grow(names->text, capacity, err);
        if (text == NULL) return XLSTM_E_MEMORY;
        names->text = text;
        names->text_capacity = capacity;
    }
    names->start[id] = (uint32_t)names->text_size;
    names->length[id] = (uint32_t)n;
    memcpy(names->text + names->text_size, s, n);
    names->text[names->text_size + n] = '\0';
    names->text_size += n + 1;
    names->longest = XL_MAX(names->longest, (uint32_t)n);
    *slot = id + 1;
    return XLSTM_OK;
}

int32_t xl_names_find(const xl_names *names, const char *s, size_t n)
{
    if (n > names->longest || names->slots == NULL) return -1;
    return (int32_t)*find_slot(names, s, n) - 1;
}

/* ---- merges ----------------------------------------------------------------------------------------------------- */

int xl_merges_new(xl_merges *out, size_t n, xlstm_error *err)
{
    size_t slots = power_of_two(2 * n + 1), bytes;
    if (!xl_mul(&bytes, slots, sizeof(xl_merge))) return xl_fail(err, XLSTM_E_MEMORY, "%zu merges are too many", n);
    out->slots = xl_alloc(bytes, err);
    if (out->slots == NULL) return XLSTM_E_MEMORY;
    memset(out->slots, 0xff, bytes);
    out->mask = slots - 1;
    return XLSTM_OK;
}

void xl_merges_set(xl_merges *merges, uint32_t left, uint32_t right, uint32_t rank, uint32_t id)
{
    xl_merge *m = (xl_merge *)xl_merges_find(merges, left, right);
    if (m == NULL) {
        uint64_t pair = (uint64_t)left << 32 | right;
        uint64_t i = pair * 0x9e3779b97f4a7c15u;
        for (i = (i ^ i >> 32) & merges->mask; merges->slots[i].pair != UINT64_MAX;) i = (i + 1) & merges->mask;
        m = &merges->slots[i];
        m->pair = pair;
    }
    m->rank = rank;
    m->id = id;
}

/* ---- trie ------------------------------------------------------------------------------------------------------- */

int xl_trie_new(xl_trie *out, size_t total_bytes, xlstm_error *err)
{
    *out = (xl_trie){0};
    if (total_bytes == 0) return XLSTM_OK;
    size_t slots = power_of_two(2 * total_bytes + 1);
    out->mask = slots - 1;
    out->keys = xl_calloc(slots, sizeof *out->keys, err);
    out->nodes = xl_calloc(slots, sizeof *out->nodes, err);
    out->accept = xl_calloc(total_bytes + 1, sizeof *out->accept, err);
    if (out->keys == NULL || out->nodes == NULL || out->accept == NULL) {
        xl_trie_free(out);
        return XLSTM_E_MEMORY;
    }
    memset(out->keys, 0xff, slots * sizeof *out->keys);
    out->accept[0] = -1;
    out->n_nodes = 1;
    return XLSTM_OK;
}

void xl_trie_free(xl_trie *trie)
{
    xl_release(trie->keys);
    xl_release(trie->nodes);
    xl_release(trie->accept);
    *trie = (xl_trie){0};
}

/* The slot of a node's child, or the free one where it belongs. */
static uint64_t child_slot(const xl_trie *trie, uint32_t node, uint8_t byte)
{
    uint64_t key = (uint64_t)node << 8 | byte;
    uint64_t i = key * 0x9e3779b97f4a7c15u;
    for (i = (i ^ i >> 32) & trie->mask; trie->keys[i] != UINT64_MAX; i = (i + 1) & trie->mask) {
        if (trie->keys[i] == key) break;
    }
    return i;
}

void xl_trie_add(xl_trie *trie, const char *s, size_t n, int32_t value)
{
    if (n == 0) return;
    uint32_t node = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t slot = child_slot(trie, node, (uint8_t)s[i]);
        if (trie->keys[slot] == UINT64_MAX) {
            trie->keys[slot] = (uint64_t)node << 8 | (uint8_t)s[i];
            trie->nodes[slot] = trie->n_nodes;
            trie->accept[trie->n_nodes++] = -1;
        }
        node = trie->nodes[slot];
    }
    if (trie->accept[node] < 0) trie->accept[node] = value;
    trie->first[(uint8_t)s[0]] = true;
}

int32_t xl_trie_match(const xl_trie *trie, const char *s, size_t n, size_t *length)
{
    uint32_t node = 0;
    int32_t best = -1;
    for (size_t i = 0; i < n; i++) {
        uint64_t slot = child_slot(trie, node, (uint8_t)s[i]);
        if (trie->keys[slot] == UINT64_MAX) break;
        node = trie->nodes[slot];
        if (trie->accept[node] >= 0) {
            best = trie->accept[node];
            *length = i + 1;
        }
    }
    return best;
}

/* ---- byte stand-ins --------------------------------------------------------------------------------------------- */

/* Printable Latin-1 characters stand for themselves; the 68 other bytes get U+0100 and up, in order. */
static bool stands_for_itself(uint32_t c) { return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xff && c != 0xad); }

uint32_t xl_byte_char(uint8_t byte)
{
    if (stands_for_itself(byte)) return byte;
    if (byte <= 0x20) return 0x100u + byte;
    if (byte <= 0xa0) return 0x121u + (byte - 0x7fu);
    return 0x143;
}

int xl_char_byte(uint32_t code)
{
    if (code < 0x100) return stands_for_itself(code) ? (int)code : -1;
    if (code <= 0x120) return (int)(code - 0x100);
    if (code <= 0x142) return (int)(code - 0x121 + 0x7f);
    return code == 0x143 ? 0xad : -1;
}

bool xl_bytes_of(xl_text *out, const char *s, size_t n)
{
    size_t before = out->size;
    const uint8_t *p = (const uint8_t *)s, *end = p + n;
    while (p < end) {
        int byte = xl_char_byte(xl_utf8_next(&p));
        if (byte < 0) {
            out->size = before;
            return false;
        }
        char c = (char)byte;
        xl_text_add(out, &c, 1);
    }
    return true;
}
