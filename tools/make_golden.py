#!/usr/bin/env python3
"""Writes tests/golden/: small random checkpoints saved by Hugging Face transformers, with its float32 logits and
greedy ids, the float64 logits of reference.py, and reference numbers for the model that ships.

    python3 -m venv .venv && .venv/bin/pip install -r tools/requirements-hf.txt
    .venv/bin/python tools/make_golden.py                       everything (a few minutes on two cores)
    .venv/bin/python tools/make_golden.py single fused          some models
    .venv/bin/python tools/make_golden.py --shipped MODEL --text FILE ...   numbers of the shipped model

The format is described in tests/golden/README.md. transformers' own initialisation would close every gate, so the weights
here are drawn from normal distributions that keep gates, norms and logits lively. Prompts are redrawn until each greedy
choice leads the runner-up by MIN_LEAD, so that equal ids are a fair demand on any correct implementation, and until
transformers' own float32 logits lie within MAX_ERROR of float64: now and then a query is nearly orthogonal to all its
keys, the multi-head norm magnifies the rounding of that tiny sum, and no float32 implementation could be held to it.
"""

import argparse
import json
import os
import shutil
import tempfile
import zlib

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # spinning threads cost more than they bring here
    os.environ.setdefault(variable, "1")

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import xLSTMConfig, xLSTMForCausalLM

from transformers.initialization import no_init_weights

import hf
import reference

LENGTHS = (1, 2, 17, 63, 64, 65, 130, 257, 1000)
ALL_ROWS = (1, 2, 17, 65)  # of these prompts every row is recorded, of the others the last
GREEDY = 24
LONG = 33  # the shipped model's prompt with 200 greedy ids
MIN_LEAD = 0.01
MAX_ERROR = 3e-5  # absolute, on logits
ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..")

# name -> what differs from BASE. "storage", "shard", "tied", "stages", "caps" and "faint" are ours, the rest is config.json.
BASE = dict(vocab_size=211, hidden_size=64, num_hidden_layers=2, num_heads=4, ffn_proj_factor=2.667, chunk_size=64)
MODELS = {
    "single": dict(vocab_size=257),
    "fused": dict(vocab_size=257, weight_mode="fused", like="single"),
    "tied": dict(num_heads=2, tied=True, storage="float16"),
    "biased": dict(use_bias=True, v_dim_factor=2.0, ffn_proj_factor=1.5, ffn_round_up_to_multiple_of=16, stages=True),
    "biased-fused": dict(use_bias=True, v_dim_factor=2.0, ffn_proj_factor=1.5, ffn_round_up_to_multiple_of=16, weight_mode="fused", like="biased"),
    "chunk16": dict(chunk_size=16, storage="bfloat16"),
    "chunk48": dict(chunk_size=48, storage="bfloat16"),
    "odd": dict(hidden_size=75, num_heads=3, qk_dim_factor=0.48, ffn_proj_factor=2.3, ffn_round_up_to_multiple_of=13),
    "bf16": dict(num_hidden_layers=3, storage="bfloat16"),
    "deep": dict(hidden_size=32, num_heads=2, num_hidden_layers=12, storage="bfloat16", shard="60KB"),
    "one-head": dict(num_heads=1, num_hidden_layers=1, storage="float16"),
    "head48": dict(num_heads=2, qk_dim_factor=1.5, v_dim_factor=3.0, storage="bfloat16"),
    "head64": dict(num_heads=2, qk_dim_factor=2.0, v_dim_factor=4.0, storage="bfloat16"),
    "head96": dict(num_heads=2, qk_dim_factor=3.0, v_dim_factor=6.0, num_hidden_layers=1, storage="bfloat16"),
    "head256": dict(hidden_size=32, num_heads=2, qk_dim_factor=16.0, v_dim_factor=32.0, storage="bfloat16"),
    "wide384": dict(hidden_size=384, num_hidden_layers=1, ffn_proj_factor=0.125, ffn_round_up_to_multiple_of=16, tied=True, storage="bfloat16"),
    "caps": dict(caps=True, storage="bfloat16"),
    "faint": dict(faint=True, storage="bfloat16"),
}


def seed_of(name):
    return zlib.crc32(name.encode())


def draw(name, shape, D, rng, kind, tied):
    """One tensor of the single layout. kind "caps": gates far beyond the soft cap on both sides. "faint": what heads put
    out is so small that norm_eps, and with it the cell's denominator, counts; in the first half of the heads because the
    input gate is nearly closed (denominator exp(-m)), in the others because q, k and v are tiny (denominator |q.n| and eps).
    """

    def normal(std):
        return rng.normal(0.0, std, shape)

    fan = shape[-1] ** -0.5
    if "norm" in name:
        return normal(0.2) if name.endswith("bias") else rng.uniform(0.5, 1.5, shape)
    if "igate" in name:
        if kind == "faint" and name.endswith("bias"):
            return np.repeat([-8.0, 50.0], shape[0] // 2)
        if kind == "caps":
            return np.resize([50.0, -50.0], shape) if name.endswith("bias") else normal(2 * fan)
        return rng.uniform(-2.0, 1.0, shape) if name.endswith("bias") else normal(fan)
    if "fgate" in name:
        if kind == "caps":
            return np.resize([50.0, 50.0, -50.0, -50.0], shape) if name.endswith("bias") else normal(2 * fan)
        return np.linspace(1.0, 5.0, shape[0]) if name.endswith("bias") else normal(0.7 * fan)
    if name.endswith("bias"):
        return normal(0.3)
    if "embeddings" in name:
        return normal(2 / D**0.5 if tied else 1.0)
    if "lm_head" in name:
        return normal(2.5 * fan)
    if "out_proj" in name or "proj_down" in name:
        return normal(0.7 * fan)
    value = normal(1.2 * fan)
    if kind == "faint" and any(part in name for part in (".q.", ".k.", ".v.")):
        value[shape[0] // 2 :] *= 1e-3 if ".v." in name else 3e-3
    return value


def fuse(tensors):
    """The fused layout of the same weights."""
    groups = {
        "mlstm_layer.qkv_opreact": ["mlstm_layer.q", "mlstm_layer.k", "mlstm_layer.v", "mlstm_layer.ogate_preact"],
        "mlstm_layer.ifgate_preact": ["mlstm_layer.igate_preact", "mlstm_layer.fgate_preact"],
        "ffn.proj_up_gate_z": ["ffn.proj_up_gate", "ffn.proj_up"],
    }
    out = dict(tensors)
    for name in tensors:
        for fused, parts in groups.items():
            for end in (".weight", ".bias"):
                if name.endswith("." + parts[0] + end):
                    stem = name[: -len(parts[0] + end)]
                    out[stem + fused + end] = torch.cat([out.pop(stem + part + end) for part in parts])
    return out


def build(name, folder):
    """Makes the checkpoint: random tensors -> transformers -> save_pretrained."""
    spec = {**BASE, **MODELS[name]}
    like = spec.pop("like", name)
    storage = getattr(torch, spec.pop("storage", "float32"))
    shard, tied = spec.pop("shard", "5GB"), spec.pop("tied", False)
    kind = "caps" if spec.pop("caps", False) else "faint" if spec.pop("faint", False) else ""
    spec.pop("stages", None)
    config = xLSTMConfig(**spec, tie_word_embeddings=tied, eos_token_id=0)

    with torch.device("meta"), no_init_weights():  # shapes only
        shapes = {n: tuple(t.shape) for n, t in xLSTMForCausalLM(xLSTMConfig(**{**spec, "weight_mode": "single"})).state_dict().items()}
    rng = np.random.default_rng(seed_of(like))
    drawn = {n: draw(n, shape, config.hidden_size, rng, kind, tied) for n, shape in shapes.items()}
    for n in drawn:  # keys lean towards their queries, as trained ones do; sums of random signs would be ill-conditioned
        if ".mlstm_layer.k." in n:
            drawn[n] = 0.7 * (drawn[n] + drawn[n.replace("layer.k.", "layer.q.")])
    tensors = {n: torch.tensor(value).to(storage) for n, value in drawn.items()}
    if tied:
        tensors["lm_head.weight"] = tensors["backbone.embeddings.weight"].clone()
    if config.weight_mode == "fused":
        tensors = fuse(tensors)

    with tempfile.TemporaryDirectory() as raw:
        config.save_pretrained(raw)
        save_file(tensors, os.path.join(raw, "model.safetensors"), {"format": "pt"})
        model = hf.from_pretrained(raw, storage)[0]
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=shard)
    path = os.path.join(folder, "model.safetensors")
    if tied and "lm_head.weight" in load_file(path):  # transformers has no tying for this class and saves both
        kept = {n: t for n, t in load_file(path).items() if n != "lm_head.weight"}
        save_file(kept, path, {"format": "pt"})
    generation = os.path.join(folder, "generation_config.json")
    if os.path.exists(generation):
        os.remove(generation)


class Writer:
    """golden.bin and the entries of golden.json that point into it by byte offset."""

    def __init__(self):
        self.data = bytearray()

    def put(self, array, dtype):
        self.data += b"\0" * (-len(self.data) % 8)
        offset = len(self.data)
        self.data += np.ascontiguousarray(array, dtype).tobytes()
        return offset

    def save(self, folder, entry):
        os.makedirs(folder, exist_ok=True)
        with open(os.path.join(folder, "golden.bin"), "wb") as file:
            file.write(self.data)
        text = json.dumps(entry, indent=1)
        with open(os.path.join(folder, "golden.json"), "w", encoding="utf-8") as file:
            file.write(flatten_lists(text) + "\n")


def flatten_lists(text):
    """Lists of numbers on one line each."""
    import re

    return re.sub(r"\[\s+([-\d][^\[\]{}]*?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)


def prompt_entry(writer, model, oracle, ids, count, all_rows, min_lead):
    """One prompt's record, or None when float32 cannot be asked to reproduce it."""
    ids = [int(i) for i in ids]
    exact, state = oracle.forward(ids)
    expected, lead = oracle.greedy(exact[-1], state, count)
    if lead < min_lead:
        return None
    first = 0 if all_rows else len(ids) - 1
    rows = hf.logits(model, ids)[first:]
    error = float(np.max(np.abs(rows - exact[first:])))
    if error > MAX_ERROR:
        return None
    carried = hf.cache_fits(model)
    greedy = hf.greedy(model, ids, count, carried)
    assert greedy == expected, f"the oracle's greedy ids differ: {expected}, transformers: {greedy}"
    if carried and len(ids) == 17:
        assert greedy == hf.greedy(model, ids, count, False), "carried and re-read greedy ids differ"
    scale = float(np.max(np.abs(exact[first:])))
    return dict(ids=ids, first_row=first, logits=writer.put(rows, "<f4"), oracle=writer.put(exact[-1], "<f8"),
                hf_error=error, scale=scale, greedy=greedy, lead=lead)


def stage_entries(writer, model, oracle, ids, blocks):
    trace = {}
    oracle.forward(ids, trace=trace)
    entries, worst = [], 0.0
    for (block, stage), values in sorted(hf.stages(model, ids, blocks).items()):
        if stage == "logits":
            continue
        exact = trace[f"{block}.{stage}"]
        worst = max(worst, float(np.max(np.abs(values - exact)) / np.max(np.abs(exact))))
        entries.append(dict(block=block, stage=stage, width=values.shape[1], values=writer.put(values, "<f4")))
    return dict(ids=[int(i) for i in ids], entries=entries), worst


def make_random(name):
    folder = os.path.join(ROOT, "tests", "golden", name)
    build(name, folder)
    model, oracle = hf.load(folder), reference.Model(folder)
    writer, rng = Writer(), np.random.default_rng(seed_of(name) + 1)
    prompts = []
    for length in LENGTHS:
        for _ in range(100):
            ids = rng.integers(0, oracle.V, length)
            entry = prompt_entry(writer, model, oracle, ids, GREEDY, length in ALL_ROWS, MIN_LEAD)
            if entry is not None:
                break
        else:
            raise SystemExit(f"{name}: no fair prompt of {length} tokens in 100 draws")
        prompts.append(entry)
    golden = dict(format=1, model=name, **hf.versions(), vocab_size=oracle.V, prompts=prompts)
    stage_error = 0.0
    if MODELS[name].get("stages"):
        golden["stages"], stage_error = stage_entries(writer, model, oracle, rng.integers(0, oracle.V, 20), {0, oracle.blocks - 1})
    writer.save(folder, golden)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    print(f"{name:14} {size / 1e3:7.0f} kB, step against chunk {reference.self_check(oracle):.1e}, {summary(prompts, stage_error)}",
          flush=True)


def summary(prompts, stage_error):
    text = (f"transformers against float64: {max(p['hf_error'] for p in prompts):.1e} absolute,"
            f" {max(p['hf_error'] / p['scale'] for p in prompts):.1e} of the largest logit; lead {min(p['lead'] for p in prompts):.3f}")
    return text + (f"; stages {stage_error:.1e}" if stage_error else "")


def make_shipped(folder, texts):
    """The shipped model on real text: prompts from the first text, perplexity of the head of every text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    model, oracle = hf.load(folder), reference.Model(folder)
    writer = Writer()

    def encode(text):
        return [0] + tokenizer.encode(text, add_special_tokens=False).ids

    with open(texts[0], encoding="utf-8") as file:
        stream = file.read(40000)
    documents = [d.strip() for d in stream.split("<|endoftext|>") if len(d) > 4000]
    prompts = []
    paragraphs = [p for d in documents for p in d.split("\n\n") if len(p) > 60]
    for index, length in enumerate((*LENGTHS, LONG)):
        count = 200 if length == LONG else GREEDY
        for start in range(index, len(paragraphs)):  # another place for every prompt, moved on until it is fair
            ids = encode("\n\n".join(paragraphs[start:]))[:length]
            entry = prompt_entry(writer, model, oracle, ids, count, False, 0 if length == 1 else MIN_LEAD / 10)
            print(f"shipped: {len(ids)} tokens from paragraph {start}: {'kept' if entry else 'redrawn'}", flush=True)
            if entry is not None:
                break
        assert entry is not None and len(entry["ids"]) == length
        prompts.append(entry)
    stages, stage_error = stage_entries(writer, model, oracle, prompts[2]["ids"][:12], {0, oracle.blocks - 1})

    perplexity = []
    out = os.path.join(ROOT, "tests", "golden", "shipped")
    os.makedirs(out, exist_ok=True)
    with open(texts[0], "rb") as file, open(os.path.join(out, "text.txt"), "wb") as copy:
        data = file.read(8000)
        copy.write(data[: data.rindex(b"\n") + 1])
    for path in [copy.name, *texts]:
        with open(path, "rb") as file:
            data = file.read(40000)
        data = data[: data.rindex(b"\n") + 1]
        ids = encode(data.decode("utf-8"))
        mean, hits = hf.mean_nll(model, ids)
        perplexity.append(dict(file=os.path.basename(path), bytes=len(data), tokens=len(ids) - 1, nll=mean, top1=hits))
        print(perplexity[-1], flush=True)
    writer.save(out, dict(format=1, model="shipped", **hf.versions(), vocab_size=oracle.V, prompts=prompts, stages=stages,
                          perplexity=perplexity))
    print("shipped: " + summary(prompts, stage_error), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*")
    parser.add_argument("--shipped", metavar="MODEL", help="folder of the model that ships")
    parser.add_argument("--text", nargs="+", default=[], help="text files; prompts come from the first")
    args = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    names = args.models or ([] if args.shipped else list(MODELS))
    for name in names:
        make_random(name)
    if args.shipped:
        make_shipped(args.shipped, args.text)


if __name__ == "__main__":
    main()
