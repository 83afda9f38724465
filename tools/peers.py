"""Speed next to llama.cpp: the same type of weights, models of the same size, the same machine, in alternating rounds.

    peers.py                                    # bf16, q8_0, q4_k and q4_0 of 7B; about 40 minutes on two cores
    peers.py --types q4_0 --rounds 1            # a quick look
    peers.py --llama 125m --preset 125m         # a try-out that takes a minute

llama.cpp comes as the PyPI package llama-cpp-python, compiled here for this very machine, in a virtual environment of its
own (.venv-peers). It runs a Llama-architecture model with random weights that this script writes: 32 blocks 4096 wide,
feed-forward 11008, vocabulary 50304, 6.89 billion weights, against the 6.87 billion of `xlstm bench --preset 7b`. Every
matrix has the type asked for. Both decode from an empty context, where attention costs llama.cpp least. Prints a Markdown
table and writes JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv-peers")
PACKAGES = ["llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.2.6"]
# blocks, width, feed-forward width, heads, vocabulary
LLAMAS = {"7b": (32, 4096, 11008, 32, 50304), "1b": (16, 2048, 5632, 16, 50304), "125m": (12, 768, 2048, 12, 50304)}
PROMPT, SEQUENCES = 512, 8


# ---- the model for llama.cpp -------------------------------------------------------------------------------------------

def random_rows(generator, kind, rows, columns):
    """Bytes [rows, bytes of a row]: random digits under scales that give a deviation of about 0.02."""
    import numpy as np

    def half(x):
        return np.frombuffer(np.float16(x).tobytes(), np.uint8)

    if kind == "bf16":
        values = generator.standard_normal(rows * columns, dtype=np.float32) * np.float32(0.02)
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8).reshape(rows, -1)
    size, bytes_of = {"q8_0": (32, 34), "q4_0": (32, 18), "q4_k": (256, 144)}[kind]
    blocks = np.frombuffer(generator.bytes(rows * columns // size * bytes_of), np.uint8).reshape(-1, bytes_of).copy()
    if kind == "q4_k":
        blocks[:, 0:2], blocks[:, 2:4] = half(0.02 / 4.61 / 48), half(0.02 * 7.5 / 4.61 / 48)
        blocks[:, 4:12], blocks[:, 12:16] = 0xF0, 0
    else:
        blocks[:, 0:2] = half(0.02 / (73.9 if kind == "q8_0" else 4.61))
    return blocks.reshape(rows, -1)


def write_llama(path, kind, geometry):
    """Tensor by tensor: memory stays small."""
    import gguf
    import numpy as np

    blocks, width, ffn, heads, vocabulary = geometry
    types = gguf.GGMLQuantizationType
    raw = {"bf16": types.BF16, "q8_0": types.Q8_0, "q4_k": types.Q4_K, "q4_0": types.Q4_0}[kind]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(width)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    plan = [("token_embd.weight", vocabulary, width)]
    for b in range(blocks):
        plan += [(f"blk.{b}.{name}.weight", rows, columns) for name, rows, columns in (
            ("attn_norm", 0, width), ("attn_q", width, width), ("attn_k", width, width), ("attn_v", width, width),
            ("attn_output", width, width), ("ffn_norm", 0, width), ("ffn_gate", ffn, width), ("ffn_up", ffn, width),
            ("ffn_down", width, ffn))]
    plan += [("output_norm.weight", 0, width), ("output.weight", vocabulary, width)]
    total = 0
    for name, rows, columns in plan:
        if rows:
            size, bytes_of = gguf.GGML_QUANT_SIZES[raw]
            row = columns // size * bytes_of
            writer.add_tensor_info(name, [rows, row], np.dtype(np.uint8), rows * row, raw)
            total += rows * row if name != "token_embd.weight" else 0
        else:
            writer.add_tensor_info(name, [columns], np.dtype(np.float32), 4 * columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.Generator(np.random.SFC64(1))
    for name, rows, columns in plan:
        writer.write_tensor_data(random_rows(generator, kind, rows, columns) if rows else np.ones(columns, np.float32))
    writer.close()
    return total


# ---- one round of each -------------------------------------------------------------------------------------------------

def llama_round(path, threads):
    """Runs in a process of its own; prints one JSON object."""
    import ctypes

    import llama_cpp as api

    quiet = api.llama_log_callback(lambda level, text, user: None)
    api.llama_log_set(quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    settings = api.llama_model_default_params()
    settings.n_gpu_layers = 0
    started = time.monotonic()
    model = api.llama_model_load_from_file(path.encode(), settings)
    if not model:
        raise SystemExit(f"llama.cpp does not open {path}")
    out = {"load_seconds": time.monotonic() - started, "system": api.llama_print_system_info().decode().strip()}

    def context(sequences, length):
        c = api.llama_context_default_params()
        c.n_ctx, c.n_batch, c.n_ubatch, c.n_seq_max = sequences * length, PROMPT, PROMPT, sequences
        c.n_threads = c.n_threads_batch = threads
        ctx = api.llama_init_from_model(model, c)
        if not ctx:
            raise SystemExit("llama.cpp makes no context")
        return ctx

    def evaluate(ctx, batch, entries):
        """entries: (id, position, sequence, whether logits are wanted)"""
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        begun = time.monotonic()
        status = api.llama_decode(ctx, batch)
        api.llama_synchronize(ctx)
        if status:
            raise SystemExit(f"llama_decode failed: {status}")
        return time.monotonic() - begun

    batch = api.llama_batch_init(PROMPT, 0, 1)
    for sequences in (1, SEQUENCES):
        ctx, taken, position = context(sequences, 256), [], 0
        while position < 3 or (sum(taken) < 3 and position < 200):
            entries = [(1000 + 37 * (position * sequences + s), position, s, 1) for s in range(sequences)]
            seconds = evaluate(ctx, batch, entries)
            if position >= 2:  # the first ones warm up
                taken.append(seconds)
            position += 1
        out[f"decode {sequences}"] = sequences * len(taken) / sum(taken)
        api.llama_free(ctx)
    ctx = context(1, PROMPT)
    prompt = [(1000 + 37 * i, i, 0, i == PROMPT - 1) for i in range(PROMPT)]
    evaluate(ctx, batch, prompt[:32])
    api.llama_memory_clear(api.llama_get_memory(ctx), True)
    out[f"prefill {PROMPT}"] = PROMPT / evaluate(ctx, batch, prompt)
    print(json.dumps(out), flush=True)
    os._exit(0)  # nothing that is slow to tear down


def xlstm_round(program, preset, kind, activations, threads):
    command = [program, "bench", "--preset", preset, "--type", kind, "--activations", activations, "--batch", f"1,{SEQUENCES}",
               "--prompt-lengths", str(PROMPT), "--repetitions", "1", "--threads", str(threads), "--json", "--quiet"]
    results = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["results"]
    out = {f"{r['test']} {r['batch'] if r['test'] == 'decode' else r['length']}": r["tokens_per_second"] for r in results}
    return out | {"backend": results[0]["backend"], "shares": {r["test"] + f" {r['batch']}": r["share"] for r in results}}


def compare(kind, options, threads):
    os.makedirs(options.work, exist_ok=True)
    path = os.path.join(options.work, f"llama_{options.llama}_{kind}.gguf")
    print(f"{kind}: writing {path}", file=sys.stderr, flush=True)
    read = write_llama(path, kind, LLAMAS[options.llama])
    rounds = []
    try:
        for r in range(options.rounds):
            one = subprocess.run([sys.executable, os.path.abspath(__file__), "--worker", path, "--threads", str(threads)],
                                 check=True, capture_output=True, text=True).stdout
            pair = {"load": os.getloadavg()[0], "llama.cpp": json.loads(one)}
            print(f"{kind}: round {r + 1}, llama.cpp: {figures(pair['llama.cpp'])}", file=sys.stderr, flush=True)
            pair["xlstm"] = xlstm_round(options.program, options.preset, kind, options.activations, threads)
            print(f"{kind}: round {r + 1}, xlstm:     {figures(pair['xlstm'])}", file=sys.stderr, flush=True)
            rounds.append(pair)
    finally:
        if not options.keep:
            os.remove(path)
    return {"type": kind, "activations": options.activations, "llama_bytes_a_step": read, "rounds": rounds}


def tests_of(result):
    return [k for k in result["rounds"][0]["llama.cpp"] if k.split()[0] in ("decode", "prefill")]


def figures(one):
    return ", ".join(f"{k} {v:.2f}" for k, v in one.items() if k.split()[0] in ("decode", "prefill")) + " tokens/s"


def table(results):
    lines = ["| weights | test | llama.cpp, tokens/s | xlstm, tokens/s | ratio | ratios of the rounds |",
             "|---|---|--:|--:|--:|---|"]
    for result in results:
        for test in tests_of(result):
            theirs = [r["llama.cpp"][test] for r in result["rounds"]]
            ours = [r["xlstm"][test] for r in result["rounds"]]
            ratios = [a / b for a, b in zip(ours, theirs)]
            lines.append(f"| {result['type']} | {test} | {statistics.median(theirs):.2f} | {statistics.median(ours):.2f} | "
                         f"{statistics.median(ratios):.2f} | {', '.join(f'{x:.2f}' for x in ratios)} |")
    return "\n".join(lines)


def own_environment():
    """Restarts with the packages installed, unless they are here already."""
    python = os.path.join(VENV, "bin", "python3")
    if os.path.realpath(sys.prefix) == os.path.realpath(VENV):
        return
    ready = os.path.exists(python) and subprocess.run([python, "-c", "import llama_cpp, gguf"], capture_output=True).returncode == 0
    if not ready:
        print("installing " + " ".join(PACKAGES) + " (llama.cpp is compiled, which takes minutes)", file=sys.stderr)
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", VENV], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-binary", "llama-cpp-python",
                        *PACKAGES], check=True, env=os.environ | {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count())})
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default="bf16,q8_0,q4_k,q4_0")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of both; all processors without it")
    parser.add_argument("--activations", default="bf16", help="of xlstm; llama.cpp rounds its own to the weights' kind")
    parser.add_argument("--llama", choices=LLAMAS, default="7b", help="geometry that llama.cpp runs")
    parser.add_argument("--preset", default="7b", help="geometry that xlstm runs")
    parser.add_argument("--program", default=os.path.join(ROOT, "build", "xlstm"))
    parser.add_argument("--work", default=os.path.join(ROOT, "build", "peers"), help="folder for llama.cpp's model files")
    parser.add_argument("--keep", action="store_true", help="do not delete those files")
    parser.add_argument("-o", "--output", help="JSON with every number")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    own_environment()
    threads = options.threads or len(os.sched_getaffinity(0))
    if options.worker:
        llama_round(options.worker, threads)
    if os.getloadavg()[0] > 0.3 * threads:
        print(f"warning: the load is {os.getloadavg()[0]:.1f}. Threads that wait for each other by spinning, as llama.cpp's do, "
              "collapse beside other work: these numbers will say little", file=sys.stderr)
    results = []
    for kind in options.types.split(","):
        results.append(compare(kind, options, threads))
        if options.output:
            with open(options.output, "w") as file:
                json.dump({"threads": threads, "packages": PACKAGES, "llama": LLAMAS[options.llama],
                           "preset": options.preset, "results": results}, file, indent=1)
    print(table(results))


if __name__ == "__main__":
    main()
