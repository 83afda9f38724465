#!/usr/bin/env bash
# make check: everything that can be verified here without a download. Builds, runs, counts; the last line is
# "N passed, N failed, N skipped". A unit is a cmocka test, a script, a fuzz target; whatever could not run is counted
# as skipped and its reason printed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
tools/deps.sh test || exit 1
cmake=$(command -v .venv/bin/cmake || echo cmake)
ctest=$(command -v .venv/bin/ctest || echo ctest)
jobs=$(nproc)
start=$SECONDS
log=$(mktemp -d)
trap 'rm -rf "$log"' EXIT
: >"$log/skips"
passed=0 failed=0 skipped=0

count()
{
    passed=$((passed + $1))
    failed=$((failed + $2))
    skipped=$((skipped + $3))
    printf '     %d passed, %d failed, %d skipped (%d s so far)\n' "$1" "$2" "$3" $((SECONDS - start))
}

skip()
{
    echo "$1" >>"$log/skips"
    count 0 0 1
}

build()
{
    echo "==== $1: build"
    if ! "$cmake" --preset "$1" >"$log/build" 2>&1 || ! "$cmake" --build --preset "$1" >>"$log/build" 2>&1; then
        grep -vE '^\[[0-9]+/[0-9]+\]' "$log/build" | tail -n 60
        count 0 1 0
        return 1
    fi
}

# Reads a verbose ctest log. A program of cmocka or of Python's unittest counts as the tests it reports, anything else
# as one; a line that starts with "skip:" is a skipped part and its reason.
tally()
{
    awk -v name="$1" -v skips="$log/skips" '
        function number(text, key) {
            return match(text, key "[0-9]+") ? substr(text, RSTART + length(key), RLENGTH - length(key)) : 0
        }
        /^ *[0-9]+: / {
            id = $1; sub(/:$/, "", id)
            line = $0; sub(/^ *[0-9]+: ?/, "", line)
            if (line ~ /^\[       OK \]/) { ok[id]++; cases[id] = 1 }
            else if (line ~ /^\[  SKIPPED \] [A-Za-z_]/ && !((id, line) in seen)) {
                seen[id, line] = 1; skip[id]++; cases[id] = 1
                sub(/^\[  SKIPPED \] /, "", line); why[id] = why[id] "\n" line (reason[id] ? ": " reason[id] : "")
                reason[id] = ""
            }
            else if (line ~ /^\[  FAILED  \] [0-9]+ test\(s\), listed below/) {
                split(line, word, " "); bad[id] = word[4]; cases[id] = 1
            }
            else if (line ~ /^Ran [0-9]+ tests? in /) { split(line, word, " "); ok[id] += word[2]; cases[id] = 1 }
            else if (line ~ /^(FAILED|OK) \(.*\)$/) {
                n = number(line, "failures=") + number(line, "errors="); bad[id] += n; ok[id] -= n
                n = number(line, "skipped="); skip[id] += n; ok[id] -= n
                if (n) why[id] = why[id] "\n" n " parts" (reason[id] ? ": " reason[id] : "")
            }
            else if (line ~ /^skip: /) { sub(/^skip: /, "", line); reason[id] = line; if (!cases[id]) loose[id]++ }
        }
        / Test +#[0-9]+: / {
            match($0, /#[0-9]+/); id = substr($0, RSTART + 1, RLENGTH - 1)
            rest = substr($0, RSTART + RLENGTH + 2); split(rest, word, " "); title = word[1]
            if ($0 ~ /\*\*\*Skipped/) { s++; print name " " title ": " reason[id] >> skips }
            else {
                p += ok[id]; s += skip[id]
                n = split(why[id], lines, "\n")
                for (i = 2; i <= n; i++) print name " " title " " lines[i] >> skips
                if ($0 ~ / Passed /) {
                    if (!cases[id]) { p++; if (loose[id]) { s += loose[id]; print name " " title ": " reason[id] >> skips } }
                } else f += bad[id] ? bad[id] : 1
            }
        }
        END { print p + 0, f + 0, s + 0 }' "$2"
}

# What the failed tests of a log printed.
failures()
{
    awk '/^ *[0-9]+: / { id = $1; sub(/:$/, "", id); if (!/\[ RUN|\[       OK/) text[id] = text[id] $0 "\n" }
        / Test +#[0-9]+: .*\*\*\*/ && !/\*\*\*Skipped/ {
            match($0, /#[0-9]+/); id = substr($0, RSTART + 1, RLENGTH - 1)
            if (!shown[id]++) printf "%s\n%s", $0, text[id]
        }' "$1" | tail -n 300
}

tests()
{
    preset=$1
    shift
    echo "==== $preset: tests"
    "$ctest" --preset "$preset" -V -j "$jobs" --timeout 600 "$@" >"$log/tests" 2>&1
    status=$?
    grep -E '^ *[0-9]+/[0-9]+ Test' "$log/tests" | sed 's/^/     /'
    read -r p f s < <(tally "$preset" "$log/tests")
    if [ $status -ne 0 ]; then
        failures "$log/tests"
        if [ "$f" = 0 ]; then f=1; fi
    fi
    count "$p" "$f" "$s"
}

if build release; then tests release; fi

if build asan-ubsan; then
    ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 tests asan-ubsan
fi

# The sanitizer's memory map does not bear full address randomisation on newer kernels.
if build tsan; then
    setarch_r=()
    if setarch -R true 2>/dev/null; then setarch_r=(setarch -R); fi
    ctest_plain=$ctest
    if [ ${#setarch_r[@]} -gt 0 ]; then
        printf '#!/bin/sh\nexec setarch -R %s "$@"\n' "$ctest_plain" >"$log/ctest"
        chmod +x "$log/ctest"
        ctest=$log/ctest
    fi
    TSAN_OPTIONS=halt_on_error=1 tests tsan
    ctest=$ctest_plain
fi

echo "==== clang: build"
if command -v clang >/dev/null; then
    if build clang; then count 1 0 0; fi
else
    skip "clang: not installed"
fi

# The kernels run under emulation in check_aarch64 always; the other unit tests only when asked for: FULL=1 make check.
if [ -z "${FULL:-}" ]; then
    echo "==== aarch64"
    skip "aarch64: the whole unit suite under emulation runs with FULL=1 (its kernels were tested above)"
elif ! command -v aarch64-linux-gnu-gcc >/dev/null || ! command -v qemu-aarch64-static >/dev/null ||
    ! [ -e /usr/lib/aarch64-linux-gnu/libcmocka.so ]; then
    echo "==== aarch64"
    skip "aarch64: cross compiler, qemu or libraries are missing (make deps)"
elif build aarch64; then
    tests aarch64
fi

echo "==== cuda: build"
if ! command -v nvcc >/dev/null && ! [ -x /usr/local/cuda/bin/nvcc ]; then
    skip "cuda: nvcc is not installed"
elif "$cmake" --preset release -B build-cuda -DXLSTM_CUDA_ARCHITECTURES=90 >"$log/build" 2>&1 &&
    "$cmake" --build build-cuda --target xlstm_cuda test_cuda >>"$log/build" 2>&1; then
    count 1 0 0
    build-cuda/test_cuda >"$log/cuda" 2>&1
    case $? in
    0) count 1 0 0 ;;
    77) skip "$(sed -n 's/^skip: //p' "$log/cuda")" ;;
    *)
        tail -n 60 "$log/cuda"
        count 0 1 0
        ;;
    esac
else
    grep -vE '^\[[0-9]+/[0-9]+\]' "$log/build" | tail -n 60
    count 0 1 0
fi

echo "==== fuzz smoke"
tools/fuzz.sh 4 >"$log/fuzz" 2>&1
status=$?
cat "$log/fuzz"
if [ $status -eq 77 ]; then
    skip "fuzz: $(sed -n 's/^skip: //p' "$log/fuzz")"
else
    p=$(grep -c '^ok ' "$log/fuzz")
    f=$(grep -c '^FAIL ' "$log/fuzz")
    if [ $status -ne 0 ] && [ "$f" = 0 ]; then f=1; fi
    count "$p" "$f" 0
fi

if [ -s "$log/skips" ]; then
    echo "==== skipped"
    sed 's/^/     /' "$log/skips"
fi
echo "==== $((SECONDS - start)) s"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
