#!/usr/bin/env python3
"""Compares `xlstm tokenize` with Hugging Face `tokenizers`, id by id and byte by byte, over text made to be hard.

Two kinds of tokenizer files: the real ones of ../shared/data/tokenizers where they exist, and small ones trained here
that between them use every component the library supports. Exit status 77 without the Python package.

    python3 tests/test_tokenizer_parity.py [--full]      --full: every code point, longer random text
    python3 tests/test_tokenizer_parity.py --write       makes tests/data/tokenizer for test_tokenizer.c
"""
import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
import unicodedata

try:
    import tokenizers
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers import trainers
except ImportError:
    print("skip: the Python package tokenizers is not installed")
    sys.exit(77)

REAL = "../shared/data/tokenizers"
SMALL = "tests/data/tokenizer"
SEED = 20240511

# ---- text -----------------------------------------------------------------------------------------------------------

WORDS = """the quick brown fox don't I'LL we've they're it's o'clock can't 'Tis 'twas ſhe'ſ Straße naïve café cafe\u0301
Ångström A\u030angstro\u0308m 你好世界 日本語テキスト ひらがな カタカナ 한국어 \u1100\u1161\u11a8 \u1107\u1172\u11a7 각\u11a8 \uac00\u11a7
สวัสดีชาวโลก नमस्ते দেবনাগরী தமிழ் മലയാളം ಕನ್ನಡ العربية مُحَمَّد עִבְרִית שָׁלוֹם Ελληνικά ἄνθρωπος Кириллица Й И\u0306 ქართული
Հայերեն አማርኛ ᏣᎳᎩ 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 🙂 👩‍👩‍👧‍👦 👍🏽 🇩🇪🇫🇷 ❤️ ☎︎ 1234567 3.14159 ١٢٣٤ ४५६ Ⅳ ½ ² ³¼ ①② 〇一二 12,345.67 0x1F
foo_bar fooBar HTTPServer C++ #include <a.h> a=b&&c||!d {"k":[1,2]} http://x.org/?q=1&r=%20 e-mail@host.tld -- --- … — “quoted”
‘single’ «guillemets» （全角） ＡＢＣ １２３ ﬁ ﬀ ǆ ẛ̣ \u212b \u2126 İ ı ẞ \u1ac4 a\u0315\u0300\u05ae\u1ac4b \u0344 \u0958 \u2adc q\u0307\u0323 \ufb1d
<|endoftext|> <s> </s> <unk> <|im_start|> <0x41> ▁ ▁▁ ▁a▁ Ġ Ċ ĠĠ <pad> [MASK]""".split()
SPACES = [" ", " ", " ", " ", "  ", "   ", "        ", "\n", "\n\n", "\r\n", "\t", "\t\t", " \n", "\n ", " \t ", "\u00a0",
          "\u3000", "\u2003", "\u2028", "\u0085", "\u200b", "\ufeff", "\u180e", "", "", "\r", "\x0b\x0c", "\x1c"]
PICKED = [0, 1, 8, 9, 10, 13, 27, 31, 127, 0x80, 0x85, 0xA0, 0xAD, 0xFF, 0x17F, 0x300, 0x301, 0x34F, 0x5D0, 0x627, 0x64E,
          0xE33, 0x11A7, 0x1161, 0x200D, 0x200E, 0x202E, 0x2066, 0x20E3, 0xFE0F, 0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF, 0xE000,
          0x1F1E6, 0x1F3FB, 0xE0001, 0xE0061, 0x10FFFF, 0x378, 0x1AC4, 0x31350, 0x2EBF0, 0x1E4D0, 0x11F00, 0x1C89, 0xA7DC]


def random_text(rng, specials, pieces):
    out = []
    for _ in range(rng.randrange(1, pieces)):
        kind = rng.random()
        if kind < 0.55:
            out.append(rng.choice(WORDS))
        elif kind < 0.65:
            out.append(chr(rng.choice(PICKED)))
        elif kind < 0.70:
            out.append(chr(rng.choice([rng.randrange(0x300, 0x370), rng.randrange(0x590, 0x700),
                                       rng.randrange(0x900, 0x1200), rng.randrange(0x1100, 0x1200)])))
        elif kind < 0.74:
            c = rng.randrange(0x110000)
            out.append(chr(c) if not 0xD800 <= c < 0xE000 else "\ufffd")
        elif kind < 0.80:
            out.append(rng.choice("'’`\"-_.,;:!?()[]/\\") * rng.randrange(1, 4))
        elif kind < 0.84:
            out.append(rng.choice(SPACES) * rng.randrange(1, 40))
        elif specials:
            out.append(rng.choice(specials))
        if rng.random() < 0.8:
            out.append(rng.choice(SPACES))
    return "".join(out)


def code_points(full):
    """Every code point between letters, digits and spaces; by default unassigned ones are sampled."""
    chosen = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000 and
              (full or c % 211 == 0 or unicodedata.category(chr(c)) not in ("Cn", "Co", "Lo", "So") or c < 0x3100)]
    for i in range(0, len(chosen), 100):
        yield "".join("a%s1 %s'%s" % (chr(c), chr(c), chr(c)) for c in chosen[i:i + 100])
    for i in range(0, len(chosen), 200):  # neighbours of their own kind
        yield "".join(map(chr, chosen[i:i + 200]))


def texts(specials, full):
    rng = random.Random(SEED)
    yield from ["", " ", "a", "\n", "\0", "a\0b", "'", "''s", " 's", "\u017f", "'\u017f", "▁", " ▁ ", "\ufffd"]
    yield from WORDS
    yield from SPACES
    for s in specials:
        yield from [s, s + s, "a" + s + "b", " " + s + " ", "  " + s + "\n\n", s[:-1] + s, s[1:], s.upper()]
    for _ in range(20000 if full else 1500):
        yield random_text(rng, specials, 24)
    for n in (31, 32, 33, 47, 48, 49, 50, 97, 300):  # around the borders of the merging algorithms
        yield "".join(rng.choice("aeinorst") for _ in range(n))
        yield "".join(rng.choice("ab") for _ in range(n))
        yield "aa" * n
    yield from code_points(full)


def long_words(full):
    rng = random.Random(SEED + 1)
    n = 1000000
    yield "a" * n
    yield "".join(rng.choice("etaoinshrdlu") for _ in range(n))
    yield " " * n
    if full:
        yield "语" * (n // 3)
        yield "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(n // 3))
        yield "e" + "".join(chr(rng.randrange(0x300, 0x345)) for _ in range(n // 20))
        yield "\u1100\u1161\u11a8" * (n // 9)
        yield "1" * n
        yield "\n" * n
        yield "▁" * (n // 3)


# ---- small tokenizers -----------------------------------------------------------------------------------------------

O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
DEEPSEEK = "|".join([
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""", r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

CORPUS = [" ".join(WORDS), "  ".join(WORDS).lower(), "\n".join(WORDS), "It's a test; we don't mind, they'll see.\n" * 9,
          "The cat sat on the mat. The dog ate the hat. 1234 5678 99\n" * 20, "    if (a == b) {\n        return 0;\n    }\n" * 9]


def build(pre, norm=None, decoder=None, post=None, added=(), vocab=330, **model):
    """A tokenizer trained on CORPUS. The model's flags are set afterwards, because training ignores some."""
    byte_level = any(isinstance(p, pre_tokenizers.ByteLevel) for p in pre)
    t = Tokenizer(models.BPE(**{k: v for k, v in model.items() if k in ("unk_token", "fuse_unk", "byte_fallback")}))
    if norm:
        t.normalizer = normalizers.Sequence(norm) if len(norm) > 1 else norm[0]
    if pre:
        t.pre_tokenizer = pre_tokenizers.Sequence(pre) if len(pre) > 1 else pre[0]
    special = ["<unk>", "<s>", "</s>"]
    if model.get("byte_fallback"):
        special += ["<0x%02X>" % b for b in range(256)]
        vocab += 256
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    t.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=vocab, special_tokens=special, initial_alphabet=alphabet,
                                                      limit_alphabet=256 if byte_level else 120, show_progress=False))
    j = json.loads(t.to_str())
    j["added_tokens"] = [a for a in j["added_tokens"] if not a["content"].startswith("<0x")]
    j["model"].update({k: v for k, v in model.items() if k != "unk_token"})
    t = Tokenizer.from_str(json.dumps(j))
    if decoder:
        t.decoder = decoders.Sequence(decoder) if len(decoder) > 1 else decoder[0]
    if post:
        t.post_processor = post
    t.add_tokens([a for a in added if not a.special])
    t.add_special_tokens([a for a in added if a.special])
    return t


def small_tokenizers():
    BL, Split, Meta = pre_tokenizers.ByteLevel, pre_tokenizers.Split, pre_tokenizers.Metaspace
    bl = [decoders.ByteLevel()]
    llama = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    odd = [AddedToken("<|left|>", lstrip=True, special=True), AddedToken("<|right|>", rstrip=True, normalized=False),
           AddedToken("<|both|>", lstrip=True, rstrip=True), AddedToken("word", single_word=True, normalized=True),
           AddedToken("quick brown", normalized=True), AddedToken("    ", normalized=True), AddedToken("quick brown fox"),
           AddedToken("Straße", normalized=True, single_word=True, lstrip=True), AddedToken("\n\n", normalized=False),
           AddedToken("é", normalized=True), AddedToken("<|mask|>", special=True, normalized=False, single_word=True)]
    # White space that a normaliser strips to nothing would match everywhere and never end.
    solid = [a for a in odd if a.content.strip()]
    template = processors.TemplateProcessing(single="<s> $A </s>", pair="$A $B", special_tokens=[("<s>", 1), ("</s>", 2)])
    yield "gpt2", build([BL(add_prefix_space=False)], decoder=bl, added=odd)
    yield "neox", build([BL(add_prefix_space=False)], [normalizers.NFC()], bl, processors.ByteLevel(), odd)
    yield "prefix", build([BL(add_prefix_space=True)], [normalizers.NFD()], bl, template, odd)
    yield "llama3", build([Split(Regex(LLAMA3), "isolated"), BL(False, use_regex=False)], None, bl,
                          processors.Sequence([processors.ByteLevel(), template]), odd[:4], ignore_merges=True)
    yield "qwen2", build([Split(Regex(QWEN2), "removed", invert=True), BL(False, use_regex=False)], [normalizers.NFC()], bl)
    yield "o200k", build([Split(Regex(O200K), "isolated"), BL(False, use_regex=False)], None, bl)
    yield "deepseek", build([Split(Regex(r"\p{N}{1,3}"), "isolated"), Split(Regex("[一-龥぀-ゟ゠-ヿ]+"), "isolated"),
                             Split(Regex(DEEPSEEK), "isolated"), BL(False, use_regex=False)], None, bl)
    yield "falcon", build([pre_tokenizers.Punctuation("contiguous"), BL(False), pre_tokenizers.Digits(False),
                           Split(Regex("[0-9][0-9][0-9]"), "isolated")], None, bl)
    yield "starcoder", build([pre_tokenizers.Digits(True), BL(False)], None, bl)
    yield "previous", build([Split(" ", "merged_with_previous"), Split(Regex("[aeiou]+"), "merged_with_next"),
                             BL(True, use_regex=False)], None, bl)
    yield "contiguous", build([Split(Regex(r"\w"), "contiguous"), pre_tokenizers.Punctuation("merged_with_next"),
                               Split(Regex("é|x*"), "merged_with_previous"), BL(False, use_regex=False)], None, bl)
    yield "han", build([Split(Regex(r"\p{Han}+|\p{Lu}|(?<=\d)\D|\W"), "isolated"), BL(False, use_regex=False)], None, bl)
    yield "llama2", build([], [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")], llama, template,
                          odd[:3], byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    yield "llama2new", build([Meta("▁", "first", split=False)], None, llama, template, odd[:3], byte_fallback=True,
                             unk_token="<unk>")
    yield "metaspace", build([Meta("▁", "always")], [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")],
                             [decoders.Metaspace("▁", "always")], None, odd, fuse_unk=True, unk_token="<unk>")
    yield "never", build([Meta("▁", "never")], [normalizers.Strip(), normalizers.Lowercase()],
                         [decoders.Metaspace("▁", "never")], None, solid, fuse_unk=False, unk_token="<unk>")
    yield "words", build([pre_tokenizers.Whitespace()], [normalizers.NFKD(), normalizers.Lowercase()], None, None, odd)
    yield "spaces", build([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Digits(True), pre_tokenizers.Punctuation()],
                          [normalizers.Strip(True, False)], [decoders.Fuse(), decoders.Replace("the", "THE"),
                                                             decoders.Strip("a", 2, 0)], None, odd[:2])


# ---- comparing ------------------------------------------------------------------------------------------------------

def program_lines(program, path, flags, lines):
    run = subprocess.run([program, "tokenize", "-m", path, "--jsonl"] + flags, input="".join(l + "\n" for l in lines),
                         capture_output=True, text=True, encoding="utf-8")
    if run.returncode != 0:
        sys.exit("FAILED: %s %s: exit status %d: %s" % (path, " ".join(flags), run.returncode, run.stderr.strip()[-400:]))
    out = [json.loads(l) for l in run.stdout.split("\n")[:-1]]
    assert len(out) == len(lines), (len(out), len(lines))
    return out


def compare(what, name, inputs, ours, theirs, failures):
    bad = [i for i in range(len(inputs)) if ours[i] != theirs[i]]
    for i in bad[:3]:
        a, b = ours[i], theirs[i]
        at = next((k for k in range(min(len(a), len(b))) if a[k] != b[k]), min(len(a), len(b)))
        print("FAILED: %s: %s: %.200s: differs at %d: ours %s, theirs %s" %
              (name, what, ascii(inputs[i]), at, ascii(a[at:at + 12]), ascii(b[at:at + 12])))
    if bad:
        failures.append("%s: %s: %d of %d" % (name, what, len(bad), len(inputs)))


def check(program, name, path, hf, full, failures):
    start = time.time()
    small = name.startswith("small-") and not full
    specials = sorted(t.content for t in hf.get_added_tokens_decoder().values())[:20]
    hf.no_truncation()
    hf.no_padding()
    cases = list(texts(specials, full))
    if small:
        cases = cases[::4]
    words = list(long_words(full))[:1 if small else None]
    quoted = [json.dumps(c) for c in cases]
    plain = [e.ids for e in hf.encode_batch_fast(cases, add_special_tokens=False)]
    compare("ids", name, cases, program_lines(program, path, [], quoted), plain, failures)
    few = range(0, len(cases), 5)
    compare("ids with special tokens", name, [cases[i] for i in few],
            program_lines(program, path, ["--special"], [quoted[i] for i in few]),
            [e.ids for e in hf.encode_batch_fast([cases[i] for i in few])], failures)
    hf.encode_special_tokens = True
    compare("ids of literal text", name, [cases[i] for i in few],
            program_lines(program, path, ["--literal"], [quoted[i] for i in few]),
            [e.ids for e in hf.encode_batch_fast([cases[i] for i in few], add_special_tokens=False)], failures)
    hf.encode_special_tokens = False
    compare("ids of long words", name, words, program_lines(program, path, [], [json.dumps(w) for w in words]),
            [hf.encode(w, add_special_tokens=False).ids for w in words], failures)
    rng = random.Random(SEED + 2)
    known = sorted(hf.get_vocab(with_added_tokens=True).values())
    lists = [plain[i] for i in few]
    lists += [[rng.choice(known) for _ in range(rng.randrange(0, 30))] for _ in range(4000 if full else 400)]
    lists += [[i] for i in (known if full else known[::17])]
    for flags, skip in (([], False), (["--skip-special"], True)):
        compare("decoded text" + " without special tokens" * skip, name, lists,
                program_lines(program, path, ["--decode"] + flags, [json.dumps(l) for l in lists]),
                hf.decode_batch(lists, skip_special_tokens=skip), failures)
    print("%s: %d texts, %d id lists, %.1f s" % (name, len(cases) + len(words), len(lists), time.time() - start), flush=True)


def check_invalid(program, path, hf, failures):
    """Bytes that are no UTF-8, on standard input: U+FFFD for each maximal invalid part, as Python replaces them too."""
    rng = random.Random(SEED + 3)
    seeds = [b"\xff", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\x80\x80",
             "é語🙂".encode(), b"abc ", b"\xe0\x9f\xbf", b"\xf8\x88", b"\xf0\x80\x80\x80"]
    cases = [b"".join(rng.choice(seeds)[:rng.randrange(1, 9)] for _ in range(rng.randrange(1, 30))) for _ in range(40)]
    ours, theirs = [], []
    for c in cases:
        run = subprocess.run([program, "tokenize", "-m", path, "--json"], input=c, capture_output=True, check=True)
        ours.append(json.loads(run.stdout))
        theirs.append(hf.encode(c.decode("utf-8", "replace"), add_special_tokens=False).ids)
    compare("ids of invalid UTF-8", path, cases, ours, theirs, failures)


def write_small():
    """tests/data/tokenizer: NAME.json and NAME.jsonl with what Hugging Face makes of a few hundred texts."""
    os.makedirs(SMALL, exist_ok=True)
    for name, hf in small_tokenizers():
        j = json.loads(hf.to_str())
        with open("%s/%s.json" % (SMALL, name), "w", encoding="utf-8") as f:
            json.dump(j, f, ensure_ascii=False, separators=(",", ":"))
        hf = Tokenizer.from_str(json.dumps(j))
        specials = sorted(t.content for t in hf.get_added_tokens_decoder().values())
        rng = random.Random(SEED + 4)
        cases = ["", " ", "\n", "\0", " ▁ "] + [random_text(rng, specials, 12) for _ in range(24)]
        with open("%s/%s.jsonl" % (SMALL, name), "w", encoding="utf-8") as f:
            for c in cases:
                ids = hf.encode(c, add_special_tokens=False).ids
                hf.encode_special_tokens = True
                literal = hf.encode(c, add_special_tokens=False).ids
                hf.encode_special_tokens = False
                line = {"text": c, "ids": ids, "special": hf.encode(c).ids, "literal": literal,
                        "decoded": hf.decode(ids, skip_special_tokens=False), "skipped": hf.decode(ids)}
                for key, same in (("special", "ids"), ("literal", "ids"), ("skipped", "decoded")):
                    if line[key] == line[same]:
                        del line[key]
                f.write(json.dumps(line, separators=(",", ":")) + "\n")
    print("wrote %s with tokenizers %s" % (SMALL, tokenizers.__version__))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", help="one tokenizer by name")
    parser.add_argument("--program", default=os.environ.get("XLSTM", "build/xlstm"))
    args = parser.parse_args()
    if args.write:
        write_small()
        return 0
    if not os.path.exists(args.program):
        print("skip: %s is not built" % args.program)
        return 77
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    print("tokenizers %s, seed %d" % (tokenizers.__version__, SEED))
    failures = []
    real = sorted(n for n in (os.listdir(REAL) if os.path.isdir(REAL) else [])
                  if os.path.exists("%s/%s/tokenizer.json" % (REAL, n)))
    if not real:
        print("skip: real tokenizer files: %s does not exist" % REAL)
    files = {name: "%s/%s/tokenizer.json" % (REAL, name) for name in real}
    files["stories"] = "models/xlstm-stories-10m/tokenizer.json"
    for name, path in files.items():
        if args.only in (None, name):
            check(args.program, name, path, Tokenizer.from_file(path), args.full, failures)
    with tempfile.TemporaryDirectory() as folder:
        for name, hf in small_tokenizers():
            if args.only in (None, "small-" + name):
                path = os.path.join(folder, name + ".json")
                hf.save(path)
                check(args.program, "small-" + name, path, Tokenizer.from_file(path), args.full, failures)
                if name == "neox":
                    check_invalid(args.program, path, hf, failures)
    for f in failures:
        print("FAILED: " + f)
    print("%d failures" % len(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
