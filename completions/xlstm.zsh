#compdef xlstm
# zsh completion for xlstm; written by `xlstm __complete zsh`
_xlstm() {
    local -a commands
    commands=(
        'generate:continue a text, streaming'
        'chat:talk with a model; the conversation can be forked, undone and saved'
        'info:show what a model is: sizes, numeric settings, tokens, wiring'
        'logits:print the logits after a prompt as JSON'
        'tokenize:turn text into token ids, or ids into text'
        'perplexity:measure how well a model predicts a text, and compare models by KL divergence'
        'trace:show the ranges of every stage of the forward pass, block by block'
        'diagnose:check a doubtful checkpoint: files, weights, numerics, tokenizer'
        'bench:measure reading and decoding speed against this machine's limits'
        'ingest:read a text of any length into a state file'
        'state:describe, check, compare, convert and mix saved states'
        'session:conversations that are kept on disk: resume, fork, list, expire'
        'convert:write a model as one GGUF file'
        'quantize:write a model in smaller formats'
        'imatrix:record what a model uses its weights for, to quantize it better'
    )
    if (( CURRENT == 2 )); then
        _describe command commands
        return
    fi
    local command=$words[2]
    shift words
    (( CURRENT-- ))
    case $command in
    generate)
        _arguments \
            {-p,--prompt}'=[the text to read]:TEXT: ' \
            {-f,--prompt-file}'=[read the text from a file, byte for byte]:FILE:_files' \
            '*'--prompt-ids'=[token ids instead of text\: 1,2,3]:IDS: ' \
            --escape'[interpret \n, \t, \xHH, \uHHHH and the like in --prompt and --stop]' \
            --max-tokens'=[end after N new tokens]:N: ' \
            {-n,--samples}'=[K different continuations]:K: ' \
            --temperature'=[1 samples as the model says, less is safer, 0 always takes the likeliest token]:T: ' \
            --top-k'=[choose among the K likeliest tokens]:K: ' \
            --top-p'=[choose among the likeliest tokens that together reach P, the crossing one included]:P: ' \
            --min-p'=[drop tokens below P times the likeliest]:P: ' \
            --repetition-penalty'=[divide the logits of tokens seen, prompt included]:R: ' \
            --frequency-penalty'=[subtract F from a token'\''s logit for each time it was seen]:F: ' \
            --presence-penalty'=[subtract F once from the logits of tokens seen]:F: ' \
            --penalty-window'=[how many last tokens the penalties look at]:N: ' \
            '*'--logit-bias'=[add to a token'\''s logit, -inf forbids it]:ID=BIAS: ' \
            --seed'=[same seed, same text]:N: ' \
            '*'--stop'=[end before this text appears]:TEXT: ' \
            '*'--stop-id'=[end at these token ids]:IDS: ' \
            --ignore-eos'[go on past the model'\''s end-of-text tokens]' \
            {-o,--output}'=[what to print]:output:(auto text ids json)' \
            --no-echo'[print the continuation without the prompt]' \
            --stats'[tokens a second, memory and seed on standard error]' \
            --info'[describe the model on standard error first]' \
            --show-wiring'[draw the model'\''s wiring on standard error first]' \
            --wiring-style'=[characters of the drawing]:wiring-style:(unicode ascii)' \
            {-i,--interactive}'[ask for prompts line by line]' \
            --state-in'=[begin where a saved state stands]:FILE:_files' \
            --state-out'=[save the state after the last token]:FILE:_files' \
            --prefix-cache'=[keep states of prompts here]:FOLDER: ' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    chat)
        _arguments \
            --max-tokens'=[end an answer after N tokens]:N: ' \
            {-s,--system}'=[what the model is told before the first turn]:TEXT: ' \
            --chat-template'=[a template]:FILE:_files' \
            --user-prefix'=[what stands before your words without a template]:TEXT: ' \
            --assistant-prefix'=[what stands before the answer without a template]:TEXT: ' \
            --state-in'=[go on with a saved conversation]:FILE:_files' \
            --prefix-cache'=[keep states of first turns here]:FOLDER: ' \
            --escape'[interpret \n and the like in the texts above and in --stop]' \
            --no-history'[do not keep typed lines in the history file]' \
            --stats'[timings on standard error after every answer]' \
            --temperature'=[1 samples as the model says, less is safer, 0 always takes the likeliest token]:T: ' \
            --top-k'=[choose among the K likeliest tokens]:K: ' \
            --top-p'=[choose among the likeliest tokens that together reach P, the crossing one included]:P: ' \
            --min-p'=[drop tokens below P times the likeliest]:P: ' \
            --repetition-penalty'=[divide the logits of tokens seen, prompt included]:R: ' \
            --frequency-penalty'=[subtract F from a token'\''s logit for each time it was seen]:F: ' \
            --presence-penalty'=[subtract F once from the logits of tokens seen]:F: ' \
            --penalty-window'=[how many last tokens the penalties look at]:N: ' \
            '*'--logit-bias'=[add to a token'\''s logit, -inf forbids it]:ID=BIAS: ' \
            --seed'=[same seed, same text]:N: ' \
            '*'--stop'=[end before this text appears]:TEXT: ' \
            '*'--stop-id'=[end at these token ids]:IDS: ' \
            --ignore-eos'[go on past the model'\''s end-of-text tokens]' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    info)
        _arguments \
            {-j,--json}'[print JSON]' \
            --wiring'[draw the wiring found in the tensors]' \
            --wiring-style'=[characters of the drawing]:wiring-style:(unicode ascii)' \
            --tensors'[list every tensor]' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    logits)
        _arguments \
            {-p,--prompt}'=[the text to read]:TEXT: ' \
            {-f,--prompt-file}'=[read the text from a file, byte for byte]:FILE:_files' \
            '*'--prompt-ids'=[token ids instead of text\: 1,2,3]:IDS: ' \
            --escape'[interpret \n, \t, \xHH, \uHHHH and the like in --prompt and --stop]' \
            {-a,--all}'[a row for every token, not only for the last]' \
            --state-in'=[begin where a saved state stands]:FILE:_files' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    tokenize)
        _arguments \
            {-m,--model}'=[a folder with tokenizer.json, such a file itself, or a .gguf file]:PATH:_files' \
            {-p,--prompt}'=[the text]:TEXT: ' \
            {-d,--decode}'[from ids to text]' \
            {-j,--json}'[ids as a JSON list]' \
            --jsonl'[one JSON string a line in, one list of ids a line out]' \
            --special'[add the tokens the tokenizer puts around a text]' \
            --literal'[read special tokens spelled out in the text as plain text]' \
            --skip-special'[with --decode\: leave special tokens out]' \
            '*:file:_files'
        ;;
    perplexity)
        _arguments \
            {-p,--prompt}'=[the text to read]:TEXT: ' \
            {-f,--prompt-file}'=[read the text from a file, byte for byte]:FILE:_files' \
            '*'--prompt-ids'=[token ids instead of text\: 1,2,3]:IDS: ' \
            --escape'[interpret \n, \t, \xHH, \uHHHH and the like in --prompt and --stop]' \
            {-n,--tokens}'=[use only the first N tokens of the text]:N: ' \
            {-w,--window}'=[cut the text into windows of N tokens that each start fresh]:N: ' \
            --stride'=[windows begin N tokens apart and count only what earlier ones did not]:N: ' \
            --kl-base'=[write the logits there, to compare others with]:FILE:_files' \
            --kl'=[compare with the logits that --kl-base wrote from the same text]:FILE:_files' \
            --state-in'=[begin where a saved state stands]:FILE:_files' \
            --json'[one JSON object]' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    trace)
        _arguments \
            {-p,--prompt}'=[the text to read]:TEXT: ' \
            {-f,--prompt-file}'=[read the text from a file, byte for byte]:FILE:_files' \
            '*'--prompt-ids'=[token ids instead of text\: 1,2,3]:IDS: ' \
            --escape'[interpret \n, \t, \xHH, \uHHHH and the like in --prompt and --stop]' \
            --json'[a JSON list, one object for each block and stage]' \
            --dump'=[also write each stage'\''s values there as BLOCK.STAGE.npy, float32 \[tokens, width\]]:FOLDER: ' \
            --state-in'=[begin where a saved state stands]:FILE:_files' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    diagnose)
        _arguments \
            --json'[a JSON list of verdicts]' \
            --quick'[leave out what reads every byte of the files\: hashes and weight statistics]' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    bench)
        _arguments \
            --preset'=[random weights of a geometry, made in memory\: 7b, 1b, 410m, 125m, tiny]:NAME: ' \
            '*'{-T,--type}'=[weight formats of a preset, one measurement each\: bf16, f32, f16, q8_0, q6_k, q5_k, q4_k, q4_0]:TYPE: ' \
            '*'--activations'=[as --dtype, one measurement each]:TYPE: ' \
            '*'--prompt-lengths'=[tokens to read at once]:N,N: ' \
            '*'{-b,--batch}'=[sequences decoded together]:N,N: ' \
            '*'--thread-counts'=[as --threads, one measurement each]:N,N: ' \
            {-r,--repetitions}'=[how often each is measured, decoding three times as often]:N: ' \
            {-n,--tokens}'=[decode steps in one measurement]:N: ' \
            --no-prefill'[leave out reading]' \
            --no-decode'[leave out decoding]' \
            --limit-read'=[judge by this read bandwidth instead of measuring\: for devices, whose limits are not measured]:GB/S: ' \
            --limit-peak'=[judge by this multiply-add peak, likewise]:GFLOP/S: ' \
            --json'[one JSON object]' \
            --csv'[comma-separated lines]' \
            --md'[a Markdown table]' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    ingest)
        _arguments \
            {-f,--file}'=[the text]:FILE:_files' \
            --state-out'=[where the state goes]:FILE:_files' \
            --state-in'=[begin where a saved state stands]:FILE:_files' \
            --checkpoint-every'=[save the state every N tokens]:N: ' \
            --resume'[go on from the checkpoint in --state-out, or begin if there is none]' \
            {-j,--json}'[print what was done as JSON]' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    state)
        _arguments \
            --to'=[convert\: float32, bfloat16, int8 or float64]:DTYPE: ' \
            --weights'=[mix\: one number a file]:W,W,...: ' \
            --note'=[convert, mix, import\: a note for the new file]:TEXT: ' \
            {-j,--json}'[describe, diff\: print JSON]' \
            '*:file:_files'
        ;;
    session)
        _arguments \
            --store'=[where sessions are kept]:FOLDER: ' \
            --name'=[fork, put\: the new session'\''s name]:NAME: ' \
            --create'[resume\: begin a session of that name if there is none]' \
            --idle'=[expire\: not used for this long\: 30d, 12h, 90m, 5s]:AGE: ' \
            --max-tokens'=[resume\: end after N new tokens]:N: ' \
            --stats'[resume\: tokens a second on standard error]' \
            {-j,--json}'[list, show\: print JSON]' \
            {-p,--prompt}'=[the text to read]:TEXT: ' \
            {-f,--prompt-file}'=[read the text from a file, byte for byte]:FILE:_files' \
            '*'--prompt-ids'=[token ids instead of text\: 1,2,3]:IDS: ' \
            --escape'[interpret \n, \t, \xHH, \uHHHH and the like in --prompt and --stop]' \
            --temperature'=[1 samples as the model says, less is safer, 0 always takes the likeliest token]:T: ' \
            --top-k'=[choose among the K likeliest tokens]:K: ' \
            --top-p'=[choose among the likeliest tokens that together reach P, the crossing one included]:P: ' \
            --min-p'=[drop tokens below P times the likeliest]:P: ' \
            --repetition-penalty'=[divide the logits of tokens seen, prompt included]:R: ' \
            --frequency-penalty'=[subtract F from a token'\''s logit for each time it was seen]:F: ' \
            --presence-penalty'=[subtract F once from the logits of tokens seen]:F: ' \
            --penalty-window'=[how many last tokens the penalties look at]:N: ' \
            '*'--logit-bias'=[add to a token'\''s logit, -inf forbids it]:ID=BIAS: ' \
            --seed'=[same seed, same text]:N: ' \
            '*'--stop'=[end before this text appears]:TEXT: ' \
            '*'--stop-id'=[end at these token ids]:IDS: ' \
            --ignore-eos'[go on past the model'\''s end-of-text tokens]' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    convert)
        _arguments \
            {-T,--type}'=[format of embedding, head and large matrices\: float32, float16, bfloat16, q8_0, q6_k, q5_k, q4_k or q4_0]:TYPE: ' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-t,--threads}'=[threads to encode with]:N: ' \
            {-v,--verbose}'[say which tensors get another format than asked for]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    quantize)
        _arguments \
            {-i,--imatrix}'=[importance matrix that `xlstm imatrix` made\: spend precision where the model uses it]:FILE:_files' \
            --type-embedding'=[format of the embedding]:TYPE: ' \
            --type-head'=[format of the head]:TYPE: ' \
            '*'--tensor'=[format of the tensors that match, by GGUF name\: ffn_down=q8_0, '\''blk.\[0-3\].*=q6_k'\'']:PATTERN=TYPE: ' \
            {-T,--type}'=[format of embedding, head and large matrices\: float32, float16, bfloat16, q8_0, q6_k, q5_k, q4_k or q4_0]:TYPE: ' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-t,--threads}'=[threads to encode with]:N: ' \
            {-v,--verbose}'[say which tensors get another format than asked for]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    imatrix)
        _arguments \
            {-p,--prompt}'=[the text to read]:TEXT: ' \
            {-f,--prompt-file}'=[read the text from a file, byte for byte]:FILE:_files' \
            '*'--prompt-ids'=[token ids instead of text\: 1,2,3]:IDS: ' \
            --escape'[interpret \n, \t, \xHH, \uHHHH and the like in --prompt and --stop]' \
            {-o,--output}'=[where to write the matrix, a GGUF file]:FILE:_files' \
            {-n,--tokens}'=[use only the first N tokens of the text]:N: ' \
            {-w,--window}'=[cut the text into windows of N tokens that each start fresh]:N: ' \
            {-m,--model}'=[a Hugging Face or NX-AI folder, a .safetensors or .gguf file, or preset\:7b]:PATH:_files' \
            --dtype'=[weights and activations\: float32, bfloat16 or float16]:TYPE: ' \
            --kernel-dtype'=[round the inputs of the mLSTM kernel to this type]:TYPE: ' \
            --state-dtype'=[recurrent state\: float32, bfloat16 or int8]:TYPE: ' \
            --norm-reduction-float32'=[compute all norms in float32]:norm-reduction-float32:(auto on off)' \
            {-t,--threads}'=[threads to compute with]:N: ' \
            --chunk-size'=[tokens a chunk while reading a prompt]:N: ' \
            --backend'=[cpu, cuda, reference or reference64]:NAME: ' \
            --device'=[which GPU, where there are several]:N: ' \
            --device-states'=[most sessions whose states are in GPU memory at once, the others wait in host memory]:N: ' \
            --offload-blocks'=[run only the first K blocks on the backend, the rest on the cpu]:K: ' \
            --cpu-mask'=[instruction sets the cpu backend may use\: scalar, avx2, avx512, avx512-bf16, avx512-vnni, amx, neon, dotprod]:NAMES: ' \
            --bos'=[put the begin-of-sequence token in front of a fresh text]:bos:(auto on off)' \
            --obey-config-eos'[stop at the eos_token_id of config.json even if it is a printable word]' \
            --no-repack'[use the weights as they lie in the file]' \
            '*'--set'=[override a key of config.json, or stand in for it]:KEY=VALUE: ' \
            {-v,--verbose}'[more notes on standard error]' \
            {-q,--quiet}'[no warnings and no progress on standard error]' \
            '*:file:_files'
        ;;
    esac
}
_xlstm "$@"
