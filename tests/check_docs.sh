#!/usr/bin/env bash
# What the documents promise exists: program commands and flags, make targets, files and links; no path of anyone's
# machine. Man page and completions know the same flags as the program.
set -euo pipefail
failures=0
wrong()
{
    echo "wrong: $*"
    failures=$((failures + 1))
}

mapfile -t documents < <(find README.md CONTRIBUTING.md THIRD_PARTY.md docs models examples -name '*.md' -o -name '*.1' | sort)

if grep -nE '/(home|root|Users|tmp|opt|mnt|work)/' "${documents[@]}"; then wrong "the paths above are of one machine"; fi

# Links and file names.
for document in "${documents[@]}"; do
    while read -r link; do
        case $link in http*) continue ;; esac
        [ -e "$(dirname "$document")/$link" ] || wrong "$document links to $link"
    done < <(grep -oE '\]\([^)#: ]+' "$document" | sed 's/](//')
    while read -r name; do
        case $name in *NAME*) continue ;; esac # stands for any
        [ -e "$name" ] || wrong "$document names $name"
    done < <(grep -ohE '\b(docs|src|tests|tools|examples|include|cmake|bench)/[A-Za-z0-9_/.-]+\.(md|c|h|sh|py|txt|cu)\b' "$document" | sort -u)
done

# make targets
while read -r target; do
    grep -qE "^([a-z ]+ )?$target( [a-z ]+)?:" Makefile || wrong "there is no make $target"
done < <(grep -ohE '(^|[`[:space:]])make [a-z]+' README.md CONTRIBUTING.md docs/*.md | sed -nE 's/.*make ([a-z]+)$/\1/p' |
    grep -xE 'demo|check|bench|install|deps|format|lint|parity|fuzz|clean|help' | sort -u)

# commands and flags: every command's help is the truth
if [ ! -x "$XLSTM" ]; then
    echo "skip: no program"
    [ "$failures" -eq 0 ] && exit 77
    exit 1
fi
mapfile -t commands < <("$XLSTM" --help | sed -nE '/^Commands/,/^$/s/^  ([a-z]+) +[A-Za-z].*/\1/p')
[ "${#commands[@]}" -ge 4 ] || wrong "found too few commands in xlstm --help"
declare -A known
for command in "${commands[@]}"; do
    while read -r flag; do known[$flag]=$command; done < <("$XLSTM" "$command" --help | grep -oE '(^|[ ,])--?[a-z][a-z0-9-]*' | tr -d ' ,')
done
mentioned=0
while read -r line; do
    command=$(echo "$line" | sed -nE 's/.*xlstm ([a-z]+)( .*)?$/\1/p')
    if [ -n "$command" ]; then
        printf '%s\n' "${commands[@]}" | grep -qx "$command" || wrong "no such command: $line"
        help=$("$XLSTM" "$command" --help 2>/dev/null || true)
        for flag in $(echo "$line" | sed 's/"[^"]*"//g; s/#.*//' | grep -oE '(^| )--?[a-z][a-z0-9-]*' || true); do
            mentioned=$((mentioned + 1))
            grep -qE -- "(^|[ ,])$flag\b" <<< "$help" || wrong "$command has no $flag: $line"
        done
    fi
done < <(grep -hE '^    (build/)?xlstm [a-z]+' "${documents[@]}")
[ "$mentioned" -gt 5 ] || wrong "found only $mentioned flags in the documents"

manual=$(sed 's/\\f[A-Z]/ /g; s/\\//g' docs/xlstm.1)
for flag in "${!known[@]}"; do
    case $flag in --?*) ;; *) continue ;; esac
    name=${flag#--}
    grep -qE -- "(^|[^a-z0-9-])--$name([^a-z0-9-]|$)" <<< "$manual" || wrong "docs/xlstm.1 does not mention $flag (${known[$flag]})"
    for shell in bash zsh fish; do
        case $shell in fish) form="-l $name" ;; *) form="--$name" ;; esac
        grep -qE -- "(^|[^a-z0-9-])$form([^a-z0-9-]|$)" "completions/xlstm.$shell" || wrong "completions/xlstm.$shell does not know $flag"
    done
done

echo "${#commands[@]} commands, ${#known[@]} flags, ${#documents[@]} documents"
[ "$failures" -eq 0 ]
