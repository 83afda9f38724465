#!/usr/bin/env bash
# make bench: measures the geometry that fits this machine's memory, and writes bench/CPU.csv and its roofline plot
# bench/CPU.svg, CPU being a short form of the processor's name. PRESET, TYPES (a list), REPETITIONS and MINUTES override
# what is measured; after MINUTES (14) it stops with what there is.
set -euo pipefail
cd "$(dirname "$0")/.."
program=${XLSTM:-build/xlstm}
available=$(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo)
if [ -z "${PRESET:-}" ]; then
    PRESET=410m
    if [ "$available" -ge 5 ]; then PRESET=1b; fi
    if [ "$available" -ge 20 ]; then PRESET=7b; fi
fi
cpu=$(sed -n 's/^model name[^:]*: *//p' /proc/cpuinfo | head -n 1)
slug=$(echo "${cpu:-$(uname -m)}" | sed -E 's/\((R|TM|r|tm)\)//g; s/@.*//; s/ (CPU|Processor|[0-9]+-Core)( |$)/ /g' |
    tr '[:upper:]' '[:lower:]' | sed -E 's/[^a-z0-9]+/_/g; s/^_|_$//g')
csv=bench/$slug.csv
minutes=${MINUTES:-14}
echo "preset $PRESET; a line for each measurement; the whole takes up to $minutes minutes"

# measure ACTIVATIONS TYPE...: appends to the table, with what is left of the time
measure()
{
    left=$((60 * minutes - SECONDS)) status=0 types=()
    if [ "$left" -le 0 ]; then return; fi
    activations=$1
    shift
    for type in "$@"; do types+=(--type "$type"); done
    timeout --signal=INT "$left" "$program" bench --preset "$PRESET" "${types[@]}" --activations "$activations" \
        --batch 1,4,8,16 --prompt-lengths 64,512 --repetitions "${REPETITIONS:-3}" --csv |
        if [ -s "$csv.part" ]; then tail -n +2; else cat; fi | tee -a "$csv.part" || status=$?
    case $status in
    0) ;;
    124 | 130) echo "stopped early" ;;
    *)
        rm -f "$csv.part"
        exit "$status"
        ;;
    esac
}

rm -f "$csv.part"
read -ra all <<<"${TYPES:-bf16 q8_0 q4_k q4_0}"
measure bf16 "${all[@]}"
plain=()
for type in "${all[@]}"; do
    case $type in bf16 | f32 | f16) plain+=("$type") ;; esac # block formats multiply int8 whatever the activations are
done
if [ ${#plain[@]} -gt 0 ]; then measure f32 "${plain[@]}"; fi
mv "$csv.part" "$csv"
sh tools/python.sh tools/roofline.py "$csv" -o "bench/$slug.svg"
echo "$csv and bench/$slug.svg are written"
