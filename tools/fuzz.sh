#!/usr/bin/env bash
# Builds every tests/fuzz_*.c with libFuzzer, ASan and UBSan and runs each over a copy of its corpus
# (tests/corpus/NAME): tools/fuzz.sh SECONDS. A crash leaves its input in build-fuzz/. Exit 77: no clang.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-5}
cmake=$(command -v .venv/bin/cmake || echo cmake)

probe=$(mktemp -d)
trap 'rm -rf "$probe"' EXIT
echo 'int LLVMFuzzerTestOneInput(const char *d, long n) { return d && n < 0; }' >"$probe/probe.c"
if ! clang -fsanitize=fuzzer,address,undefined "$probe/probe.c" -o "$probe/probe" 2>/dev/null; then
    echo "skip: no clang with libFuzzer"
    exit 77
fi
"$cmake" --preset fuzz >build-fuzz.log 2>&1 || { cat build-fuzz.log; exit 1; }
rm -f build-fuzz.log
"$cmake" --build --preset fuzz >build-fuzz/build.log 2>&1 || { cat build-fuzz/build.log; exit 1; }

fuzz_one()
{
    name=$1
    seconds=$2
    rm -rf "build-fuzz/corpus/$name"
    mkdir -p "build-fuzz/corpus/$name"
    if [ -d "tests/corpus/$name" ]; then cp -r "tests/corpus/$name/." "build-fuzz/corpus/$name/"; fi
    if "build-fuzz/tests/fuzz_$name" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -max_len=65536 \
        -artifact_prefix="build-fuzz/$name-" "build-fuzz/corpus/$name" >"build-fuzz/$name.log" 2>&1; then
        runs=$(sed -n 's/^Done \([0-9]*\) runs.*/\1/p' "build-fuzz/$name.log")
        echo "ok   fuzz_$name: $runs inputs in $seconds s"
    else
        tail -n 40 "build-fuzz/$name.log"
        echo "FAIL fuzz_$name: see build-fuzz/$name.log; the input is build-fuzz/$name-*"
        return 1
    fi
}
export -f fuzz_one
# shellcheck disable=SC2016 # $0 is for the inner shell
for source in tests/fuzz_*.c; do
    [ -e "$source" ] || continue
    name=${source#tests/fuzz_}
    echo "${name%.c}"
done | xargs -r -P "$(nproc)" -I{} bash -c 'fuzz_one {} "$0"' "$seconds"
