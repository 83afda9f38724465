"""Speed of Hugging Face transformers' own xLSTM code on the 7B geometry with random weights, for docs/performance.md.

    peer_hf.py [--geometry 7b|tiny] [--dtype bfloat16|float32] [--device cpu|cuda] [--threads N] [--batches 1,8]

Reading a prompt is timed as the blocks over all tokens and the head over the last, which is what generating needs (the
model's own forward computes every token's logits). Stands alone: PyTorch and transformers >= 5.17 are all it needs, no checkpoint and no network. Prints one JSON object a line
as each number is there, so that a run that is cut short still tells something. About a minute on 16 cores, 16 GB.
"""

import argparse
import inspect
import json
import os
import statistics
import sys
import time

started = time.monotonic()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

GEOMETRIES = {  # width, blocks, heads, vocabulary
    "7b": (4096, 32, 8, 50304),
    "1b": (2048, 16, 4, 50304),
    "tiny": (256, 2, 4, 512),
}


def say(**facts):
    print(json.dumps({**facts, "at_seconds": round(time.monotonic() - started, 2)}), flush=True)


def fill(torch, model, device, dtype):
    """Random weights, copied from one pool: drawing seven billion numbers would take minutes."""
    generator = torch.Generator().manual_seed(1)
    pool = torch.randn(1 << 22, generator=generator).to(dtype).to(device)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1)
            elif name.endswith("igate_preact.bias"):
                parameter.fill_(-7)
            elif name.endswith("fgate_preact.bias"):
                parameter.fill_(4.5)
            else:
                flat, deviation = parameter.view(-1), (2 / (5 * parameter.shape[-1])) ** 0.5
                scaled = pool * deviation
                for at in range(0, flat.numel(), scaled.numel()):
                    part = flat[at : at + scaled.numel()]
                    part.copy_(scaled[: part.numel()])
        for name, buffer in model.named_buffers():
            say(note=f"buffer {name} is filled with zeros")
            buffer.zero_()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="7b")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="all processors without it")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--seconds", type=float, default=80, help="no new measurement begins after so many")
    options = parser.parse_args()

    import torch
    import transformers

    try:
        from transformers.models.xlstm import modeling_xlstm
    except ImportError:
        raise SystemExit(f"transformers {transformers.__version__} has no xLSTM; 5.17 or newer is needed") from None

    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    dtype = getattr(torch, options.dtype)
    D, blocks, heads, vocabulary = GEOMETRIES[options.geometry]
    config = transformers.xLSTMConfig(vocab_size=vocabulary, hidden_size=D, embedding_dim=D, num_hidden_layers=blocks,
                                      num_blocks=blocks, num_heads=heads, autocast_kernel_dtype=options.dtype)
    with torch.device("meta"):
        model = transformers.xLSTMForCausalLM(config)
    model = model.to(dtype).to_empty(device=options.device).eval()
    fill(torch, model, options.device, dtype)
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown")
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu
    say(device=device, threads=torch.get_num_threads(), torch=torch.__version__, transformers=transformers.__version__,
        external_kernels=bool(modeling_xlstm.external_xlstm), geometry=options.geometry, dtype=options.dtype,
        parameters=sum(p.numel() for p in model.parameters()))

    def timed(function):
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        begun = time.monotonic()
        out = function()
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        return out, time.monotonic() - begun

    def late():
        return time.monotonic() - started > options.seconds

    def ids(batch, length):
        return (torch.arange(batch * length, device=options.device) * 7919 % vocabulary).view(batch, length)

    def read(length):
        return model.lm_head(model.backbone(ids(1, length), use_cache=True)[0][:, -1])

    # newer releases call the argument cache, older ones cache_params
    argument = "cache" if "cache" in inspect.signature(model.forward).parameters else "cache_params"

    with torch.inference_mode():
        timed(lambda: read(64))  # a short prompt first: libraries choose and pack kernels at first use
        batches = [int(n) for n in options.batches.split(",")]
        for what in (batches[0], "prefill", *batches[1:]):
            if late():
                say(note=f"no time for {what}")
                continue
            if what == "prefill":
                for _ in range(2):
                    logits, seconds = timed(lambda: read(options.prompt))
                    say(test="prefill", length=options.prompt, tokens_per_second=round(options.prompt / seconds, 3),
                        seconds=round(seconds, 4), finite=bool(torch.isfinite(logits.float()).all()))
                    if late():
                        break
                continue
            out = model(ids(what, 16), use_cache=True)
            cache, taken = getattr(out, argument), []
            for step in range(options.steps + 2):
                out, seconds = timed(lambda: model(ids(what, 1), **{argument: cache}, use_cache=True))
                cache = getattr(out, argument)
                if step >= 2:  # the first ones warm up
                    taken.append(seconds)
                if late() and len(taken) >= 2:
                    break
            middle = statistics.median(taken)
            say(test="decode", batch=what, tokens_per_second=round(what / middle, 4), seconds=round(middle, 5),
                steps=len(taken), fastest=round(min(taken), 5), slowest=round(max(taken), 5),
                finite=bool(torch.isfinite(out.logits.float()).all()))
    say(note="done")


if __name__ == "__main__":
    sys.exit(main())
