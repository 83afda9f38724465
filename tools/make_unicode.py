#!/usr/bin/env python3
"""Writes src/unicode_tables.c: the Unicode facts the tokenizer needs, read off the PyPI package `tokenizers`.

Asking the package itself, code point by code point, instead of a Unicode data file makes our classes equal to those of
Hugging Face `tokenizers`: its parts carry tables of different Unicode versions (regular expressions 16, normalisation
and punctuation older), and every one of them is visible in token ids.

    python3 tools/make_unicode.py > src/unicode_tables.c        (about three minutes)
"""
import sys
import unicodedata

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CODES = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
ALL = "".join(map(chr, CODES))
HANGUL = range(0xAC00, 0xAC00 + 11172)

nfc, nfd = normalizers.NFC().normalize_str, normalizers.NFD().normalize_str
nfkd = normalizers.NFKD().normalize_str
lower = normalizers.Lowercase().normalize_str


def matching(pattern):
    """Code points that a one-character pattern matches."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    kept = set()
    for piece, _ in split.pre_tokenize_str(ALL):
        kept.update(piece)
    return {c for c in CODES if chr(c) not in kept}


def isolated(split):
    """Code points that a pre-tokenizer cuts out of letters."""
    return {ord(p) for p, _ in split.pre_tokenize_str("a".join(map(chr, CODES))) if len(p) == 1 and p != "a"}


def classes():
    word = set()
    for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str("".join(chr(c) + "\x01 " for c in CODES if c != 1)):
        if "\x01" not in piece:
            word.update(map(ord, piece))
    space = isolated(pre_tokenizers.Split(Regex(r"\s"), "isolated"))
    left = {c for piece, _ in pre_tokenizers.WhitespaceSplit().pre_tokenize_str(ALL) for c in map(ord, piece)}
    assert space == set(CODES) - left, "two ideas of white space"
    return {
        "LETTER": matching(r"\p{L}"),
        "NUMBER": matching(r"\p{N}"),
        "SPACE": space,
        "WORD": word,
        "NUMERIC": isolated(pre_tokenizers.Digits(individual_digits=True)),
        "PUNCT": isolated(pre_tokenizers.Punctuation("isolated")),
    }


def combining_classes():
    """Canonical combining classes as the normaliser orders by them; values between known ones would be an error."""
    def before(x, y):  # does x overtake y?
        return nfd("a" + y + x) == "a" + x + y

    low, high = "\u0334", "\u0345"  # the least and the greatest class
    known = {}
    for c in CODES:
        x, k = chr(c), unicodedata.combining(chr(c))
        if k and k not in known and (x in low + high or before(x, high) and before(low, x)):
            known[k] = x
    order = sorted(known)
    assert known[order[0]] == low and known[order[-1]] == high
    for i, k in enumerate(order):
        for j in order[i + 1:]:
            assert before(known[k], known[j]) and not before(known[j], known[k])
    out = {}
    for c in CODES:
        x = chr(c)
        if c in HANGUL or nfd(x) != x:
            continue
        if x != high and before(x, high) or x != low and before(low, x):
            match = [k for k in order if x == known[k] or not before(x, known[k]) and not before(known[k], x)]
            assert len(match) == 1, hex(c)
            out[c] = match[0]
    return out


def decompositions():
    canonical, compatible = {}, {}
    for c in CODES:
        if c in HANGUL:
            continue
        d, k = nfd(chr(c)), nfkd(chr(c))
        if d != chr(c):
            canonical[c] = d
        if k != d:
            compatible[c] = k
    return canonical, compatible


def compositions(canonical):
    pairs = {}
    for c, d in canonical.items():
        if len(d) < 2 or nfc(chr(c)) != chr(c):
            continue
        first = nfc(d[:-1])
        assert len(first) == 1 and nfc(first + d[-1]) == chr(c), hex(c)
        pairs[ord(first), ord(d[-1])] = c
    return pairs


def newer_than_pcre(han):
    """(first, last, stand-in): code points whose category a Unicode 14 library does not know, and an older character
    of the same category (of the Han script where they are) and UTF-8 length; U+180E, which PCRE2 takes for a space."""
    category = {}
    for name in ("Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co").split():
        for c in matching(r"\p{%s}" % name):
            category[c] = name
    stand_in, ranges = {}, []
    for c in CODES:
        if category.get(c) == unicodedata.category(chr(c)):
            key = category[c], len(chr(c).encode()), c in han
            stand_in.setdefault(key, c)
    for c in CODES:
        if category.get(c, "Cn") == unicodedata.category(chr(c)) and c != 0x180E:
            continue
        key = category.get(c, "Cn"), len(chr(c).encode()), c in han
        if c == 0x180E:
            to = 0x200B
        elif key in stand_in:
            to = stand_in[key]
        elif key[0] == "Nl":  # none of three bytes less: a four-byte number of another kind
            to = stand_in["No", key[1], False]
        else:
            raise SystemExit("no stand-in for U+%04X %s" % (c, key))
        if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == to:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, to])
    return ranges


def rows(items, per_line):
    items = list(items)
    return "".join("    " + ", ".join(items[i:i + per_line]) + ",\n" for i in range(0, len(items), per_line))


def main():
    out = sys.stdout.write
    sets = classes()
    ccc = combining_classes()
    canonical, compatible = decompositions()
    pairs = compositions(canonical)
    sets["COMPOSES"] = (set(ccc) | {c for c in CODES if nfc(chr(c)) != chr(c)} | {b for _, b in pairs}
                        | set(range(0x1161, 0x1176)) | set(range(0x11A8, 0x11C3)))
    lowered = {c: lower(chr(c)) for c in CODES if lower(chr(c)) != chr(c)}
    long = {c for c, s in lowered.items() if len(s) > 1}
    assert long == {0x130} and lowered[0x130] == "i\u0307"
    del lowered[0x130]

    newer = newer_than_pcre(matching(r"\p{Han}"))
    sets["NEWER"] = {c for first, last, _ in newer for c in range(first, last + 1)}
    bits = ["LETTER", "NUMBER", "SPACE", "WORD", "NUMERIC", "PUNCT", "COMPOSES", "NEWER"]
    of = [sum(1 << i for i, b in enumerate(bits) if c in sets[b]) for c in range(0x110000)]
    pages, index = {}, []
    for p in range(0x1100):
        index.append(pages.setdefault(tuple(of[p * 256:p * 256 + 256]), len(pages)))
    assert len(pages) <= 256

    pool, where = [], {}

    def pooled(text):
        if text not in where:
            where[text] = len(pool)
            pool.extend(map(ord, text))
        return where[text]

    def decomposition_rows(table):
        return rows(("{0x%x, %d, %d}" % (c, pooled(d), len(d)) for c, d in sorted(table.items())), 6)

    ranges = []
    for c, k in sorted(ccc.items()):
        if ranges and ranges[-1][1] == c - 1 and ranges[-1][2] == k:
            ranges[-1][1] = c
        else:
            ranges.append([c, c, k])

    out("/* unicode_tables.c — generated by tools/make_unicode.py from the PyPI package tokenizers %s. Do not edit.\n"
        " * Layer 0. */\n#include \"unicode.h\"\n\n/* clang-format off */\n" % tokenizers.__version__)
    out("const uint8_t xl_unicode_page[0x1100] = {\n%s};\n\n" % rows(map(str, index), 40))
    out("const uint8_t xl_unicode_class_of[][256] = {\n")
    for page in pages:
        out("  {\n%s  },\n" % rows(map(str, page), 64).replace(", ", ","))
    out("};\n\n")
    canonical_rows, compatible_rows = decomposition_rows(canonical), decomposition_rows(compatible)
    out("const uint32_t xl_unicode_pool[] = {\n%s};\n\n" % rows(("0x%x" % c for c in pool), 16))
    for name, count, kind, text in (
            ("canonical", len(canonical), "decomposition", canonical_rows),
            ("compatible", len(compatible), "decomposition", compatible_rows),
            ("combining", len(ranges), "range", rows(("{0x%x, 0x%x, %d}" % tuple(r) for r in ranges), 6)),
            ("pairs", len(pairs), "pair",
             rows(("{0x%x, 0x%x, 0x%x}" % (a, b, c) for (a, b), c in sorted(pairs.items())), 5)),
            ("lower", len(lowered), "mapping",
             rows(("{0x%x, 0x%x}" % (c, ord(s)) for c, s in sorted(lowered.items())), 7))):
        out("const xl_unicode_%s xl_unicode_%s[] = {\n%s};\nconst size_t xl_unicode_n_%s = %d;\n\n"
            % (kind, name, text, name, count))
    out("const xl_unicode_range xl_unicode_newer[] = {\n%s};\nconst size_t xl_unicode_n_newer = %d;\n"
        % (rows(("{0x%x, 0x%x, 0x%x}" % tuple(r) for r in newer), 5), len(newer)))
    print("%d pages, %d canonical, %d compatible, %d pairs, %d combining ranges, %d lower, %d newer ranges" %
          (len(pages), len(canonical), len(compatible), len(pairs), len(ranges), len(lowered), len(newer)),
          file=sys.stderr)


if __name__ == "__main__":
    main()
