#!/usr/bin/env bash
# clang-tidy, cppcheck and shellcheck over the tree: tools/lint.sh FILE... (C files and headers)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
status=0
sources=()
for file in "$@"; do
    case $file in
    *.h) ;;
    *) if grep -qF "/$file\"" build/compile_commands.json; then sources+=("$file"); fi ;;
    esac
done

printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -n 4 clang-tidy -p build --quiet || status=1
cppcheck --quiet --std=c11 --enable=warning,portability,performance --inline-suppr --error-exitcode=1 \
    --suppress=missingIncludeSystem --suppress=shiftTooManyBits --suppress='nullPointer:tests/*' \
    -I include -I src "${sources[@]}" || status=1
git ls-files '*.sh' .ci/run | xargs shellcheck || status=1
exit $status
