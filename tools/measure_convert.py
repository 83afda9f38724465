"""What converting a large checkpoint takes: time and memory, whether a kill leaves anything, whether the result is right.

    make_checkpoint.py big                          # 27.5 GB of float32, if there is no real checkpoint
    measure_convert.py big --types bf16,q8_0,q4_k   # about a quarter of an hour on two cores; needs 14 GB of disk beside it

Anonymous memory is limited to 2 GB by the system while the program runs (RLIMIT_DATA); resident memory, mapped pages of
the checkpoint included, is sampled. Needs the packages gguf and numpy (.venv/bin/python3). Prints a Markdown table.
"""

import argparse
import json
import os
import pty
import random
import re
import resource
import select
import signal
import subprocess
import sys
import time

import gguf
import numpy as np

LIMIT = 2_000_000_000
MARK = b"an older result"


def start(options, kind, target, stderr):
    return subprocess.Popen([options.program, "convert", "--type", kind, options.checkpoint, target], stderr=stderr,
                            stdout=subprocess.DEVNULL, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT)))


def status_of(pid):
    """VmHWM, RssAnon, RssFile in bytes."""
    try:
        with open(f"/proc/{pid}/status") as file:
            text = file.read()
    except OSError:
        return None
    found = {k: int(v) * 1024 for k, v in re.findall(r"^(VmHWM|RssAnon|RssFile|RssShmem):\s+(\d+) kB", text, re.M)}
    return found or None


def convert(options, kind, target):
    leader, follower = pty.openpty()
    begun, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start(options, kind, target, follower)
    os.close(follower)
    peak, shown = {}, b""
    while process.poll() is None:
        for key, value in (status_of(process.pid) or {}).items():
            peak[key] = max(peak.get(key, 0), value)
        if select.select([leader], [], [], 0.05)[0]:
            try:
                shown = (shown + os.read(leader, 4096))[-4096:]
            except OSError:
                pass
    seconds, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    os.close(leader)
    text = re.sub(rb"\x1b\[K", b"", shown).decode(errors="replace")
    if process.returncode:
        raise SystemExit(f"convert --type {kind} failed: {text[-500:]}")
    progress = re.findall(r"converting [^\r]*left", text)
    return {"type": kind, "seconds": seconds, "processor": processor, "bytes": os.path.getsize(target), "peak": peak,
            "progress": progress[-1] if progress else ""}


def kills(options, kind, target):
    folder, name = os.path.split(target)
    generator = random.Random(1)
    for i in range(options.kills):
        with open(target, "wb") as file:
            file.write(MARK)
        wait = generator.uniform(0.1, options.kill_seconds)
        process = start(options, kind, target, subprocess.DEVNULL)
        time.sleep(wait)
        process.send_signal((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[i % 3])
        process.wait(60)
        with open(target, "rb") as file:
            if file.read(64) != MARK:
                raise SystemExit(f"killed after {wait:.1f} s: the old file is not what it was")
        left = [n for n in os.listdir(folder or ".") if n.startswith(name) and n != name]
        if left:
            raise SystemExit(f"killed after {wait:.1f} s: left behind: {left}")
    os.remove(target)
    return options.kills


def shard_tensor(folder, name):
    """One float32 tensor of the checkpoint."""
    index, shard = os.path.join(folder, "model.safetensors.index.json"), "model.safetensors"
    if os.path.exists(index):
        with open(index) as file:
            shard = json.load(file)["weight_map"][name]
    shard = os.path.join(folder, shard)
    with open(shard, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
    assert entry["dtype"] == "F32"
    return np.memmap(shard, np.float32, "r", 8 + size + entry["data_offsets"][0], tuple(entry["shape"]))


def compare(options, target):
    """The file in the eyes of the package gguf: one tensor's bytes, or what they decode to."""
    ours = next(t for t in gguf.GGUFReader(target).tensors if t.name == "blk.17.mlstm_v.weight")
    values = np.array(shard_tensor(options.checkpoint, "backbone.blocks.17.mlstm_layer.v.weight"))
    try:
        theirs = gguf.quants.quantize(values, ours.tensor_type)
    except NotImplementedError:
        decoded = gguf.quants.dequantize(ours.data, ours.tensor_type).reshape(values.shape)
        error = float(np.sqrt(np.mean((decoded - values) ** 2) / np.mean(values**2)))
        if error > 0.1:
            raise SystemExit(f"{target}: {ours.name} is off by {error:.3f}")
        return f"decodes within {100 * error:.1f} %"
    if not np.array_equal(np.asarray(ours.data).reshape(-1).view(np.uint8), theirs.reshape(-1).view(np.uint8)):
        raise SystemExit(f"{target}: the bytes of {ours.name} are not the package's")
    return "same bytes"


def opens(options, target):
    subprocess.run([options.program, "info", "-m", target], check=True, stdout=subprocess.DEVNULL)
    with open("/proc/meminfo") as file:
        free = int(re.search(r"MemAvailable:\s+(\d+)", file.read())[1]) * 1024
    if free < 1.15 * os.path.getsize(target):
        return "opened; not enough memory to generate"
    begun = time.monotonic()
    out = subprocess.run([options.program, "generate", "-m", target, "--no-repack", "--prompt-ids", "5,6,7", "--max-tokens", "2",
                          "--output", "ids", "--temperature", "0"], check=True, capture_output=True, text=True).stdout
    assert len(out.strip().split(",")) == 5, out
    return f"generates ({time.monotonic() - begun:.0f} s)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--types", default="bf16,q8_0,q4_k")
    parser.add_argument("--program", default="build/xlstm")
    parser.add_argument("--target", default="converted.gguf", help="written, measured and deleted")
    parser.add_argument("--kills", type=int, default=9)
    parser.add_argument("--kill-seconds", type=float, default=12, help="kills come after 0.1 to so many seconds")
    options = parser.parse_args()
    target = os.path.abspath(options.target)
    print(f"{kills(options, options.types.split(',')[0], target)} kills: the old file stayed, nothing was left", flush=True)
    print("| type | seconds | of processors | GB | peak resident, anonymous, mapped, GB | result |\n|---|--:|--:|--:|---|---|")
    for kind in options.types.split(","):
        r = convert(options, kind, target)
        peak = [r["peak"].get(k, 0) / 1e9 for k in ("VmHWM", "RssAnon", "RssFile")]
        print(f"| {kind} | {r['seconds']:.0f} | {r['processor']:.0f} | {r['bytes'] / 1e9:.2f} | {peak[0]:.2f}, {peak[1]:.2f}, {peak[2]:.2f} | "
              f"{compare(options, target)}, {opens(options, target)} |", flush=True)
        print(f"last progress of {kind}: {r['progress']}", file=sys.stderr)
        if r["peak"].get("VmHWM", 0) > LIMIT:
            raise SystemExit("resident memory passed 2 GB")
        os.remove(target)


if __name__ == "__main__":
    main()
