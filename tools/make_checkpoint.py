"""Writes a synthetic checkpoint in the form Hugging Face publishes: config.json, shards of safetensors with their index,
and the tokenizer of the model that ships. The weights are random, in scale like trained ones; nothing sensible comes out.

    make_checkpoint.py FOLDER                    # the 7B geometry in float32: 27.5 GB, six shards, 483 tensors
    make_checkpoint.py FOLDER --geometry tiny    # or 1b, 410m

Values are made and written a piece at a time, so memory stays small. For measuring conversion and start-up at real size.
"""

import argparse
import json
import os
import shutil
import struct
import sys

import numpy as np

# name: vocabulary, width, blocks, heads, q and k width, v width, feed-forward width
GEOMETRIES = {
    "7b": (50304, 4096, 32, 8, 2048, 4096, 10944),
    "1b": (50304, 2048, 16, 4, 1024, 2048, 5504),
    "410m": (50304, 1024, 24, 4, 512, 1024, 2752),
    "tiny": (512, 256, 2, 4, 128, 256, 704),
}
SHARD = 5_000_000_000  # bytes at most, as save_pretrained splits
PIECE = 1 << 22  # values made at a time


def tensors(V, D, blocks, NH, Q, Vd, F):
    """(name, shape, mean, deviation), in the order of the modules."""
    small = (2 / (5 * D)) ** 0.5
    out = [("backbone.embeddings.weight", (V, D), 0, small)]
    for b in range(blocks):
        block = [
            ("norm_mlstm.weight", (D,), 1, 0.05),
            ("mlstm_layer.q.weight", (Q, D), 0, small),
            ("mlstm_layer.k.weight", (Q, D), 0, small),
            ("mlstm_layer.v.weight", (Vd, D), 0, small),
            ("mlstm_layer.ogate_preact.weight", (Vd, D), 0, small),
            ("mlstm_layer.igate_preact.weight", (NH, D), 0, 1.5 / D**0.5),
            ("mlstm_layer.igate_preact.bias", (NH,), -7, 2),
            ("mlstm_layer.fgate_preact.weight", (NH, D), 0, 0.5 / D**0.5),
            ("mlstm_layer.fgate_preact.bias", (NH,), 4.5, 1),
            ("mlstm_layer.multihead_norm.weight", (Vd,), 1, 0.05),
            ("mlstm_layer.out_proj.weight", (D, Vd), 0, 2 / (blocks * Vd**0.5)),
            ("norm_ffn.weight", (D,), 1, 0.05),
            ("ffn.proj_up_gate.weight", (F, D), 0, small),
            ("ffn.proj_up.weight", (F, D), 0, small),
            ("ffn.proj_down.weight", (D, F), 0, 2 / (blocks * F**0.5)),
        ]
        out += [(f"backbone.blocks.{b}.{name}", *rest) for name, *rest in block]
    return [*out, ("backbone.out_norm.weight", (D,), 1, 0.05), ("lm_head.weight", (V, D), 0, small)]


def cut(items):
    """Tensors in groups that a shard holds."""
    shards, size = [[]], 0
    for item in items:
        n = 4 * int(np.prod(item[1]))
        if size + n > SHARD:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += n
    return shards


def write_shard(path, items, generator, note):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _, _ in items:
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, shape, mean, deviation in items:
            left = int(np.prod(shape))
            while left:
                n = min(left, PIECE)
                values = generator.standard_normal(n, dtype=np.float32)
                values *= np.float32(deviation)
                values += np.float32(mean)
                file.write(values)
                left -= n
                note(4 * n)
    return at


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="7b")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    geometry = GEOMETRIES[options.geometry]
    V, D, blocks, NH, Q, Vd, _ = geometry
    model = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "models", "xlstm-stories-10m")
    os.makedirs(options.folder, exist_ok=True)
    with open(os.path.join(model, "config.json")) as file:
        config = json.load(file)
    config |= {"dtype": "float32", "embedding_dim": D, "hidden_size": D, "num_blocks": blocks, "num_heads": NH,
               "num_hidden_layers": blocks, "vocab_size": V, "qk_dim_factor": Q / D, "v_dim_factor": Vd / D}
    items = tensors(*geometry)
    shards, total = cut(items), sum(4 * int(np.prod(shape)) for _, shape, _, _ in items)
    done, generator = [0], np.random.Generator(np.random.SFC64(options.seed))

    def note(n):
        done[0] += n
        if sys.stderr.isatty():
            print(f"\r{done[0] / 1e9:.1f} of {total / 1e9:.1f} GB", end="", file=sys.stderr)

    weight_map = {}
    for i, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(os.path.join(options.folder, name), shard, generator, note)
        weight_map |= {item[0]: name for item in shard}
    if len(shards) > 1:
        with open(os.path.join(options.folder, "model.safetensors.index.json"), "w") as file:
            json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file, indent=2, sort_keys=True)
    with open(os.path.join(options.folder, "config.json"), "w") as file:
        json.dump(config, file, indent=2)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(os.path.join(model, name), options.folder)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    print(f"{options.folder}: {len(items)} tensors, {total:,} bytes, {len(shards)} shards")


if __name__ == "__main__":
    main()
