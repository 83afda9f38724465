#!/usr/bin/env bash
# A tour of states in under a minute: a long document is read once, then asked five questions in parallel, edited, undone
# and taken up again by another process; each time with the price of reading the document anew beside it.
#   tools/demo_state.sh [DOCUMENT]
set -euo pipefail
cd "$(dirname "$0")/.."
xlstm=${XLSTM:-build/xlstm}
[ -x "$xlstm" ] || { echo "build first: make" >&2; exit 1; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

document=${1:-}
if [ -z "$document" ]; then
    document=$folder/document.txt
    sentences=("Once upon a time a little rabbit lived in the green forest." "Every morning he ran down to the brook to look for
his friends." "\"Good morning,\" said the old turtle, \"have you seen the fox?\"" "But the fox was far away on the other side of the hill."
        "Then the sun went down and all the little birds flew home to bed." "The squirrel laughed and hid a nut in the hollow tree.")
    for ((i = 0; i < 1200; i++)); do
        printf '%s %s\n' "${sentences[i % 6]}" "${sentences[(i * 5 + i / 7) % 6]}"
    done >"$document"
fi

now() { date +%s%N; }
took() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.2f s", (b - a) / 1e9 }'; }
ask() { "$xlstm" generate -q --no-echo --max-tokens 24 --temperature 0.7 --seed 1 "$@" | tr '\n' ' '; }
questions=("The rabbit said:" "The fox came and" "At night the turtle" "What did the squirrel do? He" "In the end they all")

echo "== read $(wc -c <"$document") bytes once"
start=$(now)
"$xlstm" ingest -q -f "$document" --state-out "$folder/document.state"
once=$(took "$start")
"$xlstm" state describe "$folder/document.state" | sed -n '2p;5p'
echo "   $once"

echo "== fork it five times, ask five questions in parallel"
start=$(now)
for i in 0 1 2 3 4; do
    ask --state-in "$folder/document.state" -p " ${questions[i]}" --state-out "$folder/fork$i.state" >"$folder/answer$i" &
done
wait
forked=$(took "$start")
for i in 0 1 2 3 4; do echo "   ${questions[i]} ...$(cat "$folder/answer$i")"; done
echo "   $forked for all five"

echo "== the first question with the document read again"
cat "$document" >"$folder/long.txt"
printf ' %s' "${questions[0]}" >>"$folder/long.txt"
start=$(now)
again=$(ask --prompt-file "$folder/long.txt")
reread=$(took "$start")
echo "   $reread, five of them five times that; the answer:$again"

echo "== edit: the second question in other words, from the same fork"
start=$(now)
echo "   The fox slept and ...$(ask --state-in "$folder/document.state" -p " The fox slept and")"
edited=$(took "$start")
echo "   $edited"

echo "== a conversation that is undone: kept in a store, forked before a turn, the turn taken back"
start=$(now)
store=(--store "$folder/store")
"$xlstm" session put "$folder/document.state" --name talk "${store[@]}" >/dev/null
"$xlstm" session fork talk --name before "${store[@]}" >/dev/null
say() { "$xlstm" session resume "$1" -q -p "$2" --max-tokens 16 --temperature 0.7 --seed 2 "${store[@]}" | tr '\n' ' '; }
first=$(say talk " And then")
"$xlstm" session rm talk "${store[@]}"
"$xlstm" session rename before talk "${store[@]}"
second=$(say talk " And then")
[ "$first" = "$second" ] || { echo "the undone turn came out differently" >&2; exit 1; }
echo "   And then$second   (twice the same, $(took "$start"))"

echo "== taken up by another process: $("$xlstm" session list "${store[@]}" | tr -s ' ')"
start=$(now)
echo "   The next day ...$(say talk " The next day")"
resumed=$(took "$start")

echo
printf '%-46s %s\n' "read the document once" "$once" "five forked questions" "$forked" "one question, document read again" "$reread" \
    "one edited question from the state" "$edited" "one turn resumed from the store" "$resumed"
