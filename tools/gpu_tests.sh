#!/bin/bash
# On a machine with an NVIDIA GPU: builds the cuda backend for it, runs its tests, the same under compute-sanitizer, and
# the benchmark. Arguments: folder for the build (default build-cuda) and for the results (default bench).
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:-build-cuda}
results=${2:-bench}
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DXLSTM_CUDA=ON -DXLSTM_CUDA_ARCHITECTURES="$capability"
cmake --build "$build" --parallel --target xlstm_cuda test_cuda cuda_bench
"$build/test_cuda"
if command -v compute-sanitizer > /dev/null; then
    compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 "$build/test_cuda" quick
    compute-sanitizer --tool racecheck --error-exitcode 1 "$build/test_cuda" race
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
