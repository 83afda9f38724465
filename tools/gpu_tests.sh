#!/bin/bash
# On a machine with an NVIDIA GPU: builds the cuda backend for it, runs its tests, the same under compute-sanitizer, the
# shipped model split between cuda and cpu, and the benchmark. Arguments: folder for the build (default build-cuda) and
# for the results (default bench).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build-cuda}
results=${2:-bench}
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DXLSTM_CUDA=ON -DXLSTM_CUDA_ARCHITECTURES="$capability"
cmake --build "$build" --parallel --target xlstm_cuda xlstm test_cuda cuda_bench
"$build/test_cuda"
# greedy ids in float32, and a state begun on both and gone on with on the cpu
greedy()
{
    "$build/xlstm" generate --temperature 0 --dtype float32 --output ids --no-echo "$@"
}
state=$(mktemp)
want=$(greedy -p "Once upon a time" --max-tokens 200)
for blocks in 0 1 5 9 10; do
    split=(--backend cuda --offload-blocks "$blocks")
    got=$(greedy -p "Once upon a time" --max-tokens 200 "${split[@]}")
    half=$(greedy -p "Once upon a time" --max-tokens 100 "${split[@]}" --state-out "$state")
    rest=$(greedy --state-in "$state" --max-tokens 100)
    if [ "$got" != "$want" ] || [ "$half,$rest" != "$want" ]; then
        echo "FAILED: $blocks blocks on cuda give other ids than the cpu"
        exit 1
    fi
    echo "$blocks blocks on cuda (0: all): 200 greedy ids as on the cpu"
done
rm -f "$state"
if command -v compute-sanitizer > /dev/null; then
    compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 "$build/test_cuda" quick
    # cublasLt's own kernels (nvjet) synchronise in ways that racecheck does not know
    races=$(mktemp)
    compute-sanitizer --tool racecheck --print-limit 100000 "$build/test_cuda" race | tee "$races" | grep -v "^===" || true
    grep -q "^PASSED" "$races"
    if grep "Race reported" "$races" | grep -v nvjet; then
        echo "FAILED: races in kernels of this project"
        exit 1
    fi
    rm -f "$races"
else
    echo "skip: compute-sanitizer is not on the path"
fi
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr 'A-Z ' 'a-z_')
"$build/cuda_bench" --decode 1,2,4,8,16,32,64 --parts --prefill 512,2048,8192 | tee "$results/cuda_${name}_bf16.json"
for state in bf16 int8; do
    "$build/cuda_bench" --state $state --decode 1,64 | tee "$results/cuda_${name}_bf16_state_$state.json"
done
for format in q8_0 q6_k q4_k q4_0; do
    "$build/cuda_bench" --weights $format --decode 1,8 --prefill 512 | tee "$results/cuda_${name}_$format.json"
done
"$build/cuda_bench" --weights f32 --act f32 --decode 1,8 --prefill 512 | tee "$results/cuda_${name}_f32.json"
if command -v python3 > /dev/null; then
    python3 tools/roofline.py "$results/cuda_${name}"_*.json -o "$results/cuda_$name.svg"
fi
