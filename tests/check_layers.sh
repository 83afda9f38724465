#!/usr/bin/env bash
# Includes point one way: base <- tensors <- backends <- model graph <- session, tokenizer, sampler <- program.
# Every file of src/ has a layer here; a file may include headers of its own layer and of lower ones. Beyond that:
# backends do not see each other, the tokenizer and the sampler know no model, the program sees xlstm.h alone, and
# nothing includes a test.
set -euo pipefail

layer_of()
{
    case $1 in
    xlstm.h | base.* | json.* | threads.*) echo 0 ;;
    dtype* | weights* | gguf* | quantize*) echo 1 ;;
    backend* | split_backend* | ref/* | cpu/* | cuda/*) echo 2 ;;
    wiring* | config* | model* | forward*) echo 3 ;;
    session* | state* | prefix_cache* | locate* | tokenizer* | unicode* | sampler* | chat_template*) echo 4 ;;
    convert* | imatrix*) echo 4 ;;
    *) echo none ;;
    esac
}

failures=0
wrong()
{
    echo "wrong: $*"
    failures=$((failures + 1))
}

checked=0
for path in src/*.[ch] src/*/*.[ch] src/*/*.cu src/*/*.cuh; do
    [ -e "$path" ] || continue
    file=${path#src/}
    layer=$(layer_of "$file")
    if [ "$layer" = none ]; then
        wrong "$path has no layer in tests/check_layers.sh"
        continue
    fi
    folder=$(dirname "$file")
    while read -r name; do
        name=$(basename "$name")
        if [ "$name" = xlstm.h ]; then
            target=xlstm.h
        elif [ -e "src/$folder/$name" ]; then
            target=${folder#.}/$name
            target=${target#/}
        else
            target=$(cd src && find . -name "$name" | sed 's|^\./||' | head -n 1)
        fi
        [ -n "$target" ] || { wrong "$path includes \"$name\", which is not in src/"; continue; }
        checked=$((checked + 1))
        other=$(layer_of "$target")
        if [ "$other" = none ] || [ "$other" -gt "$layer" ]; then
            wrong "$path (layer $layer) includes $target (layer $other)"
        fi
        case $target in
        */*) # a folder is a backend's private room
            [ "$(dirname "$target")" = "$folder" ] || [ "$file" = backend.c ] ||
                wrong "$path includes $target, which is private to its folder"
            ;;
        esac
        case $file:$target in
        tokenizer*:session* | tokenizer*:state* | tokenizer*:model* | tokenizer*:forward* | tokenizer*:backend* | \
            sampler*:session* | sampler*:state* | sampler*:model* | sampler*:forward* | sampler*:backend* | \
            sampler*:tokenizer*)
            wrong "$path includes $target: it works without a model"
            ;;
        esac
    done < <(sed -n 's/^ *# *include *"\([^"]*\)".*/\1/p' "$path")
done

for path in cli/*.[ch]; do
    [ -e "$path" ] || continue
    while read -r name; do
        checked=$((checked + 1))
        [ "$name" = xlstm.h ] || [ -e "cli/$name" ] || wrong "$path includes \"$name\": the program sees xlstm.h alone"
    done < <(sed -n 's/^ *# *include *"\([^"]*\)".*/\1/p' "$path")
done

# The library neither ends the process nor prints nor reads the environment.
if grep -nE '(^|[^a-z_])(exit|_exit|abort|getenv|v?f?printf|f?puts|f?putc|putchar|perror|system) *\(' \
    src/*.[ch] src/ref/*.[ch] src/cpu/*.[ch] src/cuda/*.cu src/cuda/*.cuh 2>/dev/null | grep -vE '^[^:]+:[0-9]+: *(\*|//|/\*)'; then
    wrong "the calls above have no place in a library"
fi

echo "$checked includes checked"
[ "$checked" -gt 0 ] && [ "$failures" -eq 0 ]
