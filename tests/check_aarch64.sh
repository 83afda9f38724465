#!/bin/bash
# Cross-compiles the cpu backend and its kernel tests for 64-bit Arm and runs them under user emulation, for a processor
# with and one without the dot product extension. Skipped (77) where compiler or emulator are missing.
set -euo pipefail
compiler=${AARCH64_CC:-aarch64-linux-gnu-gcc}
emulator=${AARCH64_RUN:-qemu-aarch64-static}
command -v "$compiler" >/dev/null || { echo "skip: no $compiler"; exit 77; }
command -v "$emulator" >/dev/null || { echo "skip: no $emulator"; exit 77; }
[ -f /usr/include/xxhash.h ] || { echo "skip: no /usr/include/xxhash.h"; exit 77; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# the hash header is architecture-independent and needs no library when inlined
flags=(-std=gnu11 -D_GNU_SOURCE -DXXH_INLINE_ALL -O2 -Wall -Wextra -Werror -fno-math-errno -ffp-contract=off
       -Iinclude -Isrc -idirafter /usr/include)
for source in src/base.c src/dtype.c src/quantize.c src/threads.c src/backend.c src/ref/*.c src/cpu/*.c; do
    extra=()
    case $source in
    *_avx2.c | *_avx512*.c | *_amx.c) continue ;;
    *_dotprod.c) extra=(-march=armv8.2-a+dotprod) ;;
    esac
    "$compiler" "${flags[@]}" "${extra[@]}" -c "$source" -o "$folder/$(basename "$source" .c).o"
done
"$compiler" "${flags[@]}" -DSTANDALONE -static tests/test_kernels.c "$folder"/*.o -lm -lpthread -o "$folder/kernels"
"$emulator" -cpu cortex-a72 "$folder/kernels" | tee "$folder/base"
"$emulator" -cpu max "$folder/kernels" | tee "$folder/max"
grep -q "cpu (neon, " "$folder/base"
grep -q "cpu (neon-dotprod, " "$folder/max"
