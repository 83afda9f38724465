# bash completion for xlstm; written by `xlstm __complete bash`
# shellcheck shell=bash disable=SC2207
_xlstm()
{
    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command=${COMP_WORDS[1]}
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W 'generate chat info logits tokenize perplexity trace diagnose help --help --version' -- "$word"))
        return
    fi
    case $command:$before in
    generate:--prompt | generate:-p) :; return ;;
    generate:--prompt-file | generate:-f) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    generate:--prompt-ids) :; return ;;
    generate:--max-tokens) :; return ;;
    generate:--samples | generate:-n) :; return ;;
    generate:--temperature) :; return ;;
    generate:--top-k) :; return ;;
    generate:--top-p) :; return ;;
    generate:--min-p) :; return ;;
    generate:--repetition-penalty) :; return ;;
    generate:--frequency-penalty) :; return ;;
    generate:--presence-penalty) :; return ;;
    generate:--penalty-window) :; return ;;
    generate:--logit-bias) :; return ;;
    generate:--seed) :; return ;;
    generate:--stop) :; return ;;
    generate:--stop-id) :; return ;;
    generate:--output | generate:-o) COMPREPLY=($(compgen -W 'auto text ids json' -- "$word")); return ;;
    generate:--wiring-style) COMPREPLY=($(compgen -W 'unicode ascii' -- "$word")); return ;;
    generate:--state-in) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    generate:--state-out) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    generate:--model | generate:-m) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    generate:--dtype) :; return ;;
    generate:--kernel-dtype) :; return ;;
    generate:--state-dtype) :; return ;;
    generate:--norm-reduction-float32) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    generate:--threads | generate:-t) :; return ;;
    generate:--chunk-size) :; return ;;
    generate:--backend) :; return ;;
    generate:--cpu-mask) :; return ;;
    generate:--bos) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    generate:--set) :; return ;;
    chat:--max-tokens) :; return ;;
    chat:--system | chat:-s) :; return ;;
    chat:--user-prefix) :; return ;;
    chat:--assistant-prefix) :; return ;;
    chat:--state-in) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    chat:--temperature) :; return ;;
    chat:--top-k) :; return ;;
    chat:--top-p) :; return ;;
    chat:--min-p) :; return ;;
    chat:--repetition-penalty) :; return ;;
    chat:--frequency-penalty) :; return ;;
    chat:--presence-penalty) :; return ;;
    chat:--penalty-window) :; return ;;
    chat:--logit-bias) :; return ;;
    chat:--seed) :; return ;;
    chat:--stop) :; return ;;
    chat:--stop-id) :; return ;;
    chat:--model | chat:-m) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    chat:--dtype) :; return ;;
    chat:--kernel-dtype) :; return ;;
    chat:--state-dtype) :; return ;;
    chat:--norm-reduction-float32) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    chat:--threads | chat:-t) :; return ;;
    chat:--chunk-size) :; return ;;
    chat:--backend) :; return ;;
    chat:--cpu-mask) :; return ;;
    chat:--bos) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    chat:--set) :; return ;;
    info:--wiring-style) COMPREPLY=($(compgen -W 'unicode ascii' -- "$word")); return ;;
    info:--model | info:-m) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    info:--dtype) :; return ;;
    info:--kernel-dtype) :; return ;;
    info:--state-dtype) :; return ;;
    info:--norm-reduction-float32) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    info:--threads | info:-t) :; return ;;
    info:--chunk-size) :; return ;;
    info:--backend) :; return ;;
    info:--cpu-mask) :; return ;;
    info:--bos) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    info:--set) :; return ;;
    logits:--prompt | logits:-p) :; return ;;
    logits:--prompt-file | logits:-f) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    logits:--prompt-ids) :; return ;;
    logits:--state-in) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    logits:--model | logits:-m) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    logits:--dtype) :; return ;;
    logits:--kernel-dtype) :; return ;;
    logits:--state-dtype) :; return ;;
    logits:--norm-reduction-float32) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    logits:--threads | logits:-t) :; return ;;
    logits:--chunk-size) :; return ;;
    logits:--backend) :; return ;;
    logits:--cpu-mask) :; return ;;
    logits:--bos) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    logits:--set) :; return ;;
    tokenize:--model | tokenize:-m) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    tokenize:--prompt | tokenize:-p) :; return ;;
    perplexity:--prompt | perplexity:-p) :; return ;;
    perplexity:--prompt-file | perplexity:-f) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    perplexity:--prompt-ids) :; return ;;
    perplexity:--tokens | perplexity:-n) :; return ;;
    perplexity:--window | perplexity:-w) :; return ;;
    perplexity:--stride) :; return ;;
    perplexity:--kl-base) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    perplexity:--kl) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    perplexity:--state-in) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    perplexity:--model | perplexity:-m) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    perplexity:--dtype) :; return ;;
    perplexity:--kernel-dtype) :; return ;;
    perplexity:--state-dtype) :; return ;;
    perplexity:--norm-reduction-float32) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    perplexity:--threads | perplexity:-t) :; return ;;
    perplexity:--chunk-size) :; return ;;
    perplexity:--backend) :; return ;;
    perplexity:--cpu-mask) :; return ;;
    perplexity:--bos) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    perplexity:--set) :; return ;;
    trace:--prompt | trace:-p) :; return ;;
    trace:--prompt-file | trace:-f) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    trace:--prompt-ids) :; return ;;
    trace:--dump) :; return ;;
    trace:--state-in) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    trace:--model | trace:-m) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    trace:--dtype) :; return ;;
    trace:--kernel-dtype) :; return ;;
    trace:--state-dtype) :; return ;;
    trace:--norm-reduction-float32) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    trace:--threads | trace:-t) :; return ;;
    trace:--chunk-size) :; return ;;
    trace:--backend) :; return ;;
    trace:--cpu-mask) :; return ;;
    trace:--bos) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    trace:--set) :; return ;;
    diagnose:--model | diagnose:-m) compopt -o filenames; COMPREPLY=($(compgen -f -- "$word")); return ;;
    diagnose:--dtype) :; return ;;
    diagnose:--kernel-dtype) :; return ;;
    diagnose:--state-dtype) :; return ;;
    diagnose:--norm-reduction-float32) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    diagnose:--threads | diagnose:-t) :; return ;;
    diagnose:--chunk-size) :; return ;;
    diagnose:--backend) :; return ;;
    diagnose:--cpu-mask) :; return ;;
    diagnose:--bos) COMPREPLY=($(compgen -W 'auto on off' -- "$word")); return ;;
    diagnose:--set) :; return ;;
    esac
    case $command in
    generate) COMPREPLY=($(compgen -W '--help --prompt --prompt-file --prompt-ids --escape --max-tokens --samples --temperature --top-k --top-p --min-p --repetition-penalty --frequency-penalty --presence-penalty --penalty-window --logit-bias --seed --stop --stop-id --ignore-eos --output --no-echo --stats --info --show-wiring --wiring-style --interactive --state-in --state-out --model --dtype --kernel-dtype --state-dtype --norm-reduction-float32 --threads --chunk-size --backend --cpu-mask --bos --obey-config-eos --no-repack --set --verbose --quiet' -- "$word")) ;;
    chat) COMPREPLY=($(compgen -W '--help --max-tokens --system --user-prefix --assistant-prefix --state-in --escape --no-history --stats --temperature --top-k --top-p --min-p --repetition-penalty --frequency-penalty --presence-penalty --penalty-window --logit-bias --seed --stop --stop-id --ignore-eos --model --dtype --kernel-dtype --state-dtype --norm-reduction-float32 --threads --chunk-size --backend --cpu-mask --bos --obey-config-eos --no-repack --set --verbose --quiet' -- "$word")) ;;
    info) COMPREPLY=($(compgen -W '--help --json --wiring --wiring-style --tensors --model --dtype --kernel-dtype --state-dtype --norm-reduction-float32 --threads --chunk-size --backend --cpu-mask --bos --obey-config-eos --no-repack --set --verbose --quiet' -- "$word")) ;;
    logits) COMPREPLY=($(compgen -W '--help --prompt --prompt-file --prompt-ids --escape --all --state-in --model --dtype --kernel-dtype --state-dtype --norm-reduction-float32 --threads --chunk-size --backend --cpu-mask --bos --obey-config-eos --no-repack --set --verbose --quiet' -- "$word")) ;;
    tokenize) COMPREPLY=($(compgen -W '--help --model --prompt --decode --json --jsonl --special --literal --skip-special' -- "$word")) ;;
    perplexity) COMPREPLY=($(compgen -W '--help --prompt --prompt-file --prompt-ids --escape --tokens --window --stride --kl-base --kl --state-in --json --model --dtype --kernel-dtype --state-dtype --norm-reduction-float32 --threads --chunk-size --backend --cpu-mask --bos --obey-config-eos --no-repack --set --verbose --quiet' -- "$word")) ;;
    trace) COMPREPLY=($(compgen -W '--help --prompt --prompt-file --prompt-ids --escape --json --dump --state-in --model --dtype --kernel-dtype --state-dtype --norm-reduction-float32 --threads --chunk-size --backend --cpu-mask --bos --obey-config-eos --no-repack --set --verbose --quiet' -- "$word")) ;;
    diagnose) COMPREPLY=($(compgen -W '--help --json --quick --model --dtype --kernel-dtype --state-dtype --norm-reduction-float32 --threads --chunk-size --backend --cpu-mask --bos --obey-config-eos --no-repack --set --verbose --quiet' -- "$word")) ;;
    esac
}
complete -F _xlstm xlstm
