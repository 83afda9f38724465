"""States, endless texts and stored sessions through the program: what it prints, what it refuses, and that killing it
at any moment costs nothing but time."""

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import tempfile
import time
import unittest

PROGRAM = os.path.abspath(os.environ.get("XLSTM", "build/xlstm"))
MODEL = os.path.abspath("models/xlstm-stories-10m")
HEADER = 4096


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("XLSTM")}


def start(*arguments, **more):
    return subprocess.Popen([PROGRAM, *map(str, arguments)], env=environment(), stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


def run(*arguments, stdin=b""):
    done = subprocess.run([PROGRAM, *map(str, arguments)], input=stdin, capture_output=True, timeout=300,
                          env=environment())
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def make_tiny(folder):
    """A model that reads a million tokens a second: one block of width 8, random weights, the shipped tokenizer."""
    rng = random.Random(1)
    dim, vocab, heads, qk, v, ffn = 8, 4096, 2, 4, 8, 8
    block, layer = "backbone.blocks.0.", "backbone.blocks.0.mlstm_layer."
    shapes = {"backbone.embeddings.weight": (vocab, dim), "lm_head.weight": (vocab, dim),
              "backbone.out_norm.weight": (dim,), block + "norm_mlstm.weight": (dim,), block + "norm_ffn.weight": (dim,),
              layer + "q.weight": (qk, dim), layer + "k.weight": (qk, dim), layer + "v.weight": (v, dim),
              layer + "ogate_preact.weight": (v, dim), layer + "igate_preact.weight": (heads, dim),
              layer + "igate_preact.bias": (heads,), layer + "fgate_preact.weight": (heads, dim),
              layer + "fgate_preact.bias": (heads,), layer + "multihead_norm.weight": (v,),
              layer + "out_proj.weight": (dim, v), block + "ffn.proj_up_gate.weight": (ffn, dim),
              block + "ffn.proj_up.weight": (ffn, dim), block + "ffn.proj_down.weight": (dim, ffn)}
    header, data = {}, b""
    for name, shape in shapes.items():
        count = shape[0] * (shape[1] if len(shape) > 1 else 1)
        values = struct.pack(f"<{count}f", *(rng.gauss(0, 0.5) for _ in range(count)))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
    config = {"model_type": "xlstm", "vocab_size": vocab, "embedding_dim": dim, "hidden_size": dim, "num_blocks": 1,
              "num_hidden_layers": 1, "num_heads": heads, "use_bias": False, "qk_dim_factor": 0.5, "v_dim_factor": 1.0,
              "ffn_proj_factor": 1.0, "ffn_round_up_to_multiple_of": 1, "weight_mode": "single", "chunk_size": 64,
              "bos_token_id": 0, "eos_token_id": 0}
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    for name in "tokenizer.json", "tokenizer_config.json":
        shutil.copy(os.path.join(MODEL, name), folder)


def body(path):
    with open(path, "rb") as file:
        return file.read()[HEADER:]


def story(size, seed):
    """Text with the difficult places: runs of spaces, empty lines, several scripts, bytes that are no UTF-8."""
    rng = random.Random(seed)
    pieces = ["Once upon a time", " there was", " a rabbit", ".", "\n", "\n\n", "  ", "\t", " \n ", "'s", "1234", "...", "é", "日本語",
              "e\u0301", "\r\n", " <|endoftext|>", "<|endoftext|>", "😀", "—", "A" * 40, " "]
    text = b""
    while len(text) < size:
        text += b"\xff\xc3" if rng.random() < 0.005 else rng.choice(pieces).encode()
    return text[:size]


class Base(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, data):
        with open(self.path(name), "wb") as file:
            file.write(data)
        return self.path(name)

    def ok(self, *arguments, stdin=b""):
        code, out, err = run(*arguments, stdin=stdin)
        self.assertEqual(code, 0, err)
        return out

    def refused(self, code, part, *arguments, stdin=b""):
        got, _, err = run(*arguments, stdin=stdin)
        self.assertEqual(got, code, err)
        self.assertIn(part, err)
        self.assertEqual(len(err.strip().splitlines()), 1, err)

    def state(self, name, text, *more):
        self.ok("generate", "-m", MODEL, "-p", text, "--max-tokens", 0, "--state-out", self.path(name), *more)
        return self.path(name)


class StateCommand(Base):
    def test_describe_and_verify(self):
        path = self.state("a", "Once upon a time")
        facts = json.loads(self.ok("state", "describe", path, "--json"))[0]
        self.assertEqual((facts["num_blocks"], facts["num_heads"], facts["dtype"]), (10, 4, "float32"))
        self.assertEqual(facts["file_bytes"], os.path.getsize(path))
        text = self.ok("state", "describe", path)
        self.assertIn(facts["fingerprint"], text)
        self.assertIn("whole", self.ok("state", "verify", path))
        with open(path, "r+b") as file:
            file.seek(HEADER + 1000)
            byte = file.read(1)
            file.seek(HEADER + 1000)
            file.write(bytes([byte[0] ^ 1]))
        self.refused(1, "checksum", "state", "verify", path)
        self.refused(1, "checksum", "generate", "-m", MODEL, "--state-in", path)
        self.refused(1, "not an xLSTM state file", "state", "describe", self.write("junk", b"junk" * 3000))
        self.refused(2, "did you mean describe", "state", "descibe", path)
        self.refused(2, "usage: xlstm state diff", "state", "diff", path)

    def test_convert_diff_mix(self):
        a, b = self.state("a", "Once upon a time"), self.state("b", "The little rabbit")
        for dtype in "bfloat16", "int8":
            low, back = self.path("low"), self.path("back")
            self.ok("state", "convert", a, low, "--to", dtype, "--note", "small")
            facts = json.loads(self.ok("state", "describe", low, "--json"))[0]
            self.assertEqual((facts["dtype"], facts["note"]), (dtype, "small"))
            self.refused(1, "--state-dtype " + dtype, "generate", "-m", MODEL, "--state-in", low)
            self.ok("generate", "-m", MODEL, "--state-in", low, "--state-dtype", dtype, "--max-tokens", 3)
            self.ok("state", "convert", low, back, "--to", "float32")
            heads = json.loads(self.ok("state", "diff", a, back, "--json"))
            self.assertTrue(heads["same_tokens"])
            for head in heads["heads"]:
                self.assertLess(head["C"][2], 0.03 * head["C"][0])
        heads = json.loads(self.ok("state", "diff", a, b, "--json"))
        self.assertFalse(heads["same_tokens"])
        self.assertEqual(len(heads["heads"]), 40)
        self.ok("state", "mix", self.path("m"), a, b, "--weights", "1,0")
        self.assertEqual(body(self.path("m")), body(a)[:len(body(self.path("m")))])
        self.ok("state", "mix", self.path("m"), a, b)
        self.ok("generate", "-m", MODEL, "--state-in", self.path("m"), "-p", " and", "--max-tokens", 3)
        self.refused(2, "expected 2 numbers", "state", "mix", self.path("m"), a, b, "--weights", "1,x")

    def test_export_for_other_programs(self):
        a = self.state("a", "Once upon a time")
        for name in "a.npz", "a.safetensors":
            self.ok("state", "export", a, self.path(name))
            self.ok("state", "import", self.path(name), self.path("back"))
            self.assertEqual(body(self.path("back")), body(a))
        try:
            import numpy
        except ImportError:
            self.skipTest("no numpy")
        arrays = dict(numpy.load(self.path("a.npz")))
        self.assertEqual(arrays["block.9.C"].shape, (4, 32, 64))
        self.assertEqual(arrays["block.0.m"].shape, (4,))
        self.assertEqual(arrays["logits"].shape, (4096,))
        numpy.savez(self.path("again.npz"), **arrays)
        self.ok("state", "import", self.path("again.npz"), self.path("back"))
        self.assertEqual(body(self.path("back")), body(a))
        arrays["block.3.C"] = arrays["block.3.C"] * 0
        numpy.savez(self.path("again.npz"), **arrays)
        self.ok("state", "import", self.path("again.npz"), self.path("back"))
        heads = json.loads(self.ok("state", "diff", a, self.path("back"), "--json"))["heads"]
        self.assertEqual({h["block"] for h in heads if h["C"][2] > 0}, {3})
        numpy.savez_compressed(self.path("again.npz"), **arrays)
        self.refused(1, "compressed", "state", "import", self.path("again.npz"), self.path("back"))
        try:
            from safetensors.numpy import load_file, save_file
        except ImportError:
            self.skipTest("no safetensors")
        tensors = load_file(self.path("a.safetensors"))
        original = dict(numpy.load(self.path("a.npz")))
        for name, value in tensors.items():
            self.assertTrue((value == original[name]).all(), name)
        save_file(tensors, self.path("again.safetensors"))
        self.ok("state", "import", self.path("again.safetensors"), self.path("back"))
        self.assertEqual(body(self.path("back")), body(a))


class Ingest(Base):
    def setUp(self):
        super().setUp()
        self.tiny = self.path("tiny")
        os.mkdir(self.tiny)
        make_tiny(self.tiny)

    def ingest(self, text, out, *more):
        return run("ingest", "-m", self.tiny, "-f", text, "--state-out", out, *more)

    def test_same_as_one_prompt(self):
        for size, seed in (1, 1), (300, 2), (20000, 3):
            text = self.write("t", story(size, seed))
            whole, parts = self.path("whole"), self.path("parts")
            self.ok("generate", "-m", self.tiny, "--prompt-file", text, "--max-tokens", 0, "--state-out", whole)
            self.ok("ingest", "-m", self.tiny, "-f", text, "--state-out", parts)
            self.assertEqual(body(whole), body(parts))
            self.ok("ingest", "-m", self.tiny, "-f", "-", "--state-out", parts, stdin=story(size, seed))
            self.assertEqual(body(whole), body(parts))

    def test_ids_over_window_borders(self):
        text = story(700000, 4)
        self.write("t", text)
        out = json.loads(self.ok("ingest", "-m", self.tiny, "-f", self.path("t"), "--state-out", self.path("s"), "--json"))
        ids = self.ok("tokenize", "-m", self.tiny, stdin=text).strip().split(",")
        self.assertEqual(out["bytes"], len(text))
        self.assertEqual(out["tokens"], len(ids))
        facts = json.loads(self.ok("state", "describe", self.path("s"), "--json"))[0]
        self.ok("generate", "-m", self.tiny, "--prompt-file", self.path("t"), "--max-tokens", 0, "--state-out",
                self.path("w"))
        self.assertEqual(json.loads(self.ok("state", "describe", self.path("w"), "--json"))[0]["token_hash"],
                         facts["token_hash"])
        self.assertEqual(body(self.path("w")), body(self.path("s")))

    def test_killed_and_resumed(self):
        text = self.write("t", story(1200000, 5))
        whole, out = self.path("whole"), self.path("out")
        self.ok("ingest", "-m", self.tiny, "-f", text, "--state-out", whole)
        rng = random.Random(6)
        kills = 0
        for _ in range(40):
            child = start("ingest", "-m", self.tiny, "-f", text, "--state-out", out, "--resume", "--checkpoint-every", 4096,
                          "-q")
            deadline = time.time() + rng.uniform(0.05, 0.6)
            while child.poll() is None and time.time() < deadline:
                time.sleep(0.01)
            if child.poll() is None:
                child.send_signal(signal.SIGKILL if rng.random() < 0.7 else signal.SIGINT)
                kills += 1
            _, err = child.communicate(timeout=60)
            self.assertIn(child.returncode, (0, -signal.SIGKILL, -signal.SIGINT, 130), err)
            if os.path.exists(out):
                self.ok("state", "verify", out)
            if child.returncode == 0:
                break
        self.assertGreater(kills, 0)
        self.ok("ingest", "-m", self.tiny, "-f", text, "--state-out", out, "--resume")
        self.assertEqual(body(whole), body(out))
        _, _, err = self.ingest(text, out, "--resume")
        self.assertIn("read to its end before", err)

    def test_refusals(self):
        text, out = self.write("t", story(3000, 7)), self.path("out")
        self.refused(1, "empty", "ingest", "-m", self.tiny, "-f", self.write("e", b""), "--state-out", out)
        self.assertFalse(os.path.exists(out))
        self.refused(1, "cannot open", "ingest", "-m", self.tiny, "-f", self.path("none"), "--state-out", out)
        self.refused(1, "folder", "ingest", "-m", self.tiny, "-f", self.folder, "--state-out", out)
        self.refused(2, "--state-out", "ingest", "-m", self.tiny, "-f", text)
        other = self.path("other")
        self.ok("generate", "-m", self.tiny, "-p", "Once", "--max-tokens", 0, "--state-out", other)
        self.refused(1, "not a checkpoint", "ingest", "-m", self.tiny, "-f", text, "--state-out", other, "--resume")
        self.assertEqual(self.ingest(text, out)[0], 0)
        changed = self.write("t", b"X" + story(3000, 7)[1:])
        self.refused(1, "differs from the text", "ingest", "-m", self.tiny, "-f", changed, "--state-out", out, "--resume")

    def test_memory_does_not_grow(self):
        def peak(size):
            text = self.write("t", (b"Once upon a time there was a little rabbit who lived in a wood.\n" * (size // 65 + 1)))
            child = start("ingest", "-m", self.tiny, "-f", text, "--state-out", self.path("s"), "-q")
            most = 0
            while child.poll() is None:
                try:
                    with open(f"/proc/{child.pid}/status", encoding="ascii") as status:
                        for line in status:
                            if line.startswith("VmHWM"):
                                most = int(line.split()[1])
                except OSError:
                    pass
                time.sleep(0.01)
            child.communicate()
            self.assertEqual(child.returncode, 0)
            return most

        if not os.path.exists("/proc/self/status"):
            self.skipTest("no /proc")
        short, long = peak(500000), peak(2000000)
        print(f"peak memory: {short} kB for 0.5 MB of text, {long} kB for 2 MB")
        self.assertLess(long, short + 1024)


class PrefixCache(Base):
    def test_generate(self):
        text = " ".join(f"The rabbit counted to {i}." for i in range(120))
        common = ["-m", MODEL, "--temperature", 0, "--max-tokens", 6]
        cached = [*common, "--prefix-cache", self.path("cache"), "--stats"]
        reused = []
        for prompt in text, text, text + " And then", text[:300], text[:300] + " but":
            code, out, err = run("generate", "-p", prompt, *cached)
            self.assertEqual(code, 0, err)
            line = next(line for line in err.splitlines() if line.startswith("cache")).split()
            reused.append((int(line[1]), int(line[3])))
            self.assertEqual(out, self.ok("generate", "-p", prompt, *common))
        self.assertEqual(reused[0][0], 0)
        self.assertEqual(reused[1][0], reused[1][1])
        self.assertGreater(reused[2][0] + 64, reused[0][1])
        self.assertGreater(reused[4][0] + 64, reused[3][1])
        self.refused(2, "--state-in", "generate", "-p", "x", "--state-in", "x", *cached)


class SessionCommand(Base):
    def session(self, *arguments):
        return self.ok("session", *arguments, "--store", self.path("store"))

    def test_life(self):
        model = ["-m", MODEL, "--temperature", 0]
        first = self.session("resume", "bob", "--create", "-p", "Once upon a time", "--max-tokens", 8, *model)
        self.assertEqual(self.session("fork", "bob", "--name", "eve"), "2\n")
        second = self.session("resume", "bob", "-p", " Then", "--max-tokens", 8, *model)
        again = self.session("resume", "2", "-p", " Then", "--max-tokens", 8, *model)
        self.assertEqual(second, again)
        # what a single process says when it is told the same
        state = self.path("s")
        self.assertEqual(self.ok("generate", "-p", "Once upon a time", "--max-tokens", 8, "--no-echo", "--state-out", state,
                                 *model), first)
        self.assertEqual(self.ok("generate", "--state-in", state, "-p", " Then", "--max-tokens", 8, "--no-echo", *model),
                         second)
        entries = json.loads(self.session("list", "--json"))
        self.assertEqual({e["name"] for e in entries}, {"bob", "eve"})
        self.session("get", "bob", self.path("out"))
        self.assertEqual(self.session("put", self.path("out"), "--name", "carl"), "3\n")
        self.session("rename", "carl", "dora")
        self.assertIn("dora", self.session("show", "3"))
        self.session("rm", "bob", "dora")
        self.assertEqual([e["name"] for e in json.loads(self.session("list", "--json"))], ["eve"])
        self.assertEqual(self.session("expire", "--idle", "1d"), "0\n")
        self.assertEqual(self.session("expire", "--idle", "0s"), "1\n")
        self.assertEqual(self.session("list"), "")

    def test_refusals(self):
        store = ["--store", self.path("store")]
        self.refused(1, "no session \"bob\"", "session", "resume", "bob", "-p", "x", "-m", MODEL, *store)
        self.refused(1, "no session \"bob\"", "session", "rm", "bob", *store)
        self.refused(2, "--idle", "session", "expire", *store)
        self.refused(2, "--idle", "session", "expire", "--idle", "3x", *store)
        self.refused(2, "did you mean list", "session", "lst", *store)
        self.refused(1, "No such file", "session", "list", "--store", self.path("a/b/c"))


if __name__ == "__main__":
    unittest.main()
