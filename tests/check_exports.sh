#!/usr/bin/env bash
# The shared library exports xlstm_* only, and every function that the header declares; the soname carries the version.
set -euo pipefail
library=$BUILD/libxlstm.so
if ! command -v nm >/dev/null; then
    echo "skip: no nm"
    exit 77
fi
exported=$(nm -D --defined-only "$library" | awk '{print $NF}' | sed 's/@.*//' | sort -u)
if echo "$exported" | grep -v '^xlstm_'; then
    echo "wrong: the symbols above are exported"
    exit 1
fi
# Declarations begin with XLSTM_API; the name is what stands before the first parenthesis.
declared=$(tr '\n' ' ' <include/xlstm.h | grep -oE 'XLSTM_API [^(;]*\(' | grep -oE 'xlstm_[a-z0-9_]+\($' | tr -d '(' |
    sort -u)
[ "$(echo "$declared" | wc -l)" -gt 20 ] || { echo "wrong: found too few declarations in xlstm.h"; exit 1; }
if ! missing=$(comm -23 <(echo "$declared") <(echo "$exported")) || [ -n "$missing" ]; then
    echo "wrong: declared in xlstm.h, not exported:"
    echo "$missing"
    exit 1
fi
if surplus=$(comm -13 <(echo "$declared") <(echo "$exported")) && [ -n "$surplus" ]; then
    echo "wrong: exported, not declared in xlstm.h:"
    echo "$surplus"
    exit 1
fi
if command -v readelf >/dev/null; then
    readelf -d "$library" | grep -qE 'SONAME.*\[libxlstm\.so\.[0-9]+\]' || { echo "wrong: no versioned soname"; exit 1; }
fi
echo "$(echo "$exported" | wc -l) functions exported"
