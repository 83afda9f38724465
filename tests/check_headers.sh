#!/usr/bin/env bash
# xlstm.h compiles alone, as strict C11, as C17 and as C++, with every warning on; each internal header compiles alone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
printf '#include "xlstm.h"\nint main(void) { return xlstm_version() == 0; }\n' >"$folder/user.c"
cp "$folder/user.c" "$folder/user.cpp"

compile()
{
    if ! "$@" -fsyntax-only -Iinclude 2>"$folder/log"; then
        echo "wrong: $*"
        cat "$folder/log"
        exit 1
    fi
    echo "ok: $*" | sed "s|$folder/||"
}

strict=(-Wall -Wextra -Wpedantic -pedantic-errors -Wshadow -Wconversion -Werror)
for cc in "$CC" gcc clang; do
    command -v "$cc" >/dev/null || continue
    compile "$cc" -std=c11 "${strict[@]}" "$folder/user.c"
    compile "$cc" -std=c17 "${strict[@]}" "$folder/user.c"
    for header in src/*.h; do
        compile "$cc" -std=gnu11 -D_GNU_SOURCE -Wall -Wextra -Wshadow -Wconversion -Werror -Wno-unused-function -Isrc \
            -x c "$header"
    done
done
found=false
for cxx in g++ clang++; do
    command -v "$cxx" >/dev/null || continue
    echo 'int main() { return 0; }' >"$folder/probe.cpp"
    "$cxx" -fsyntax-only "$folder/probe.cpp" 2>/dev/null || continue
    found=true
    compile "$cxx" -std=c++11 "${strict[@]}" "$folder/user.cpp"
    compile "$cxx" -std=c++20 "${strict[@]}" "$folder/user.cpp"
done
$found || echo "skip: no C++ compiler"
