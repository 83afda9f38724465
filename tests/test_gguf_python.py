"""GGUF files against the public Python package gguf: what it reads from ours, what we read from its files, blocks both ways.
Skipped without the packages gguf and numpy. Also here: conversions that are killed or interrupted."""

import json
import os
import pty
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest

try:
    import gguf
    import numpy as np
except ImportError:
    print("skip: no Python packages gguf and numpy")
    sys.exit(77)

PROGRAM = os.path.abspath(os.environ.get("XLSTM", "build/xlstm"))
MODEL = os.path.abspath("models/xlstm-stories-10m")
FORMATS = ["f32", "f16", "bf16", "q8_0", "q6_k", "q5_k", "q4_k", "q4_0"]
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith("XLSTM")}


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        cls.addClassCleanup(shutil.rmtree, cls.folder)

    def run_program(self, *arguments, status=0):
        done = subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, timeout=600, env=ENVIRONMENT)
        self.assertEqual(done.returncode, status, done.stderr.decode(errors="replace"))
        return done.stdout.decode()

    def path(self, name):
        return os.path.join(self.folder, name)

    def logits(self, model):
        return self.run_program("logits", "-m", model, "--backend", "reference", "-p", "Once upon a time there was")

    def convert(self, kind, *arguments, model=MODEL, name=None):
        path = self.path(name or f"{kind}.gguf")
        if not os.path.exists(path):
            self.run_program("quantize", "-q", "--type", kind, *arguments, model, path)
        return path


def tensors(path):
    return {t.name: t for t in gguf.GGUFReader(path).tensors}


def values(tensor):
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])


class Reading(Case):
    """Our files in the eyes of the package."""

    def test_values_of_every_format(self):
        """The package decodes our blocks to the bits that we decode them to."""
        for kind in FORMATS:
            with self.subTest(kind):
                path = self.convert(kind)
                ours = tensors(self.convert("f32", model=path, name=f"{kind}-decoded.gguf"))
                theirs = tensors(path)
                self.assertEqual(set(ours), set(theirs))
                for name, tensor in theirs.items():
                    expected = values(ours[name])
                    self.assertEqual(expected.dtype, np.float32)
                    got = values(tensor).astype(np.float32)
                    self.assertTrue(np.array_equal(got.view(np.uint32), expected.view(np.uint32)), name)

    def test_encoders_of_the_package(self):
        """Q8_0 and Q4_0 without importance, bfloat16 and float16: the same bytes as the package makes."""
        exact = tensors(self.convert("f32"))
        checked = 0
        for kind in ["q8_0", "q4_0", "bf16", "f16"]:
            for name, tensor in tensors(self.convert(kind)).items():
                if tensor.tensor_type not in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q6_K):
                    expected = gguf.quants.quantize(values(exact[name]), tensor.tensor_type)
                    self.assertEqual(expected.tobytes(), tensor.data.tobytes(), name)
                    checked += 1
        self.assertGreater(checked, 4 * 70)

    def test_keys(self):
        reader = gguf.GGUFReader(self.convert("q4_k"))
        keys = {name: field.contents() for name, field in reader.fields.items()}
        with open(os.path.join(MODEL, "config.json")) as file:
            config = json.load(file)
        self.assertEqual(keys["general.architecture"], "xlstm")
        self.assertEqual(keys["general.name"], "xlstm-stories-10m")
        self.assertEqual(keys["general.file_type"], gguf.LlamaFileType.MOSTLY_Q4_K_S)
        self.assertEqual(keys["xlstm.block_count"], config["num_blocks"])
        self.assertEqual(keys["xlstm.embedding_length"], config["embedding_dim"])
        self.assertEqual(keys["xlstm.vocab_size"], config["vocab_size"])
        self.assertEqual(np.float32(keys["xlstm.norm_epsilon"]), np.float32(config["norm_eps"]))
        self.assertEqual(keys["xlstm.torch_dtype"], config["dtype"])
        self.assertEqual(keys["tokenizer.ggml.bos_token_id"], config["bos_token_id"])
        self.assertEqual(keys["tokenizer.ggml.padding_token_id"], config["pad_token_id"])
        for key, name in [("tokenizer.huggingface.json", "tokenizer.json"),
                          ("xlstm.tokenizer_config", "tokenizer_config.json"),
                          ("xlstm.generation_config", "generation_config.json")]:
            with open(os.path.join(MODEL, name)) as file:
                self.assertEqual(keys[key], file.read())

    def test_shapes_and_alignment(self):
        reader = gguf.GGUFReader(self.convert("q4_k"))
        down = next(t for t in reader.tensors if t.name == "blk.3.ffn_down.weight")
        self.assertEqual(list(down.shape), [704, 256])  # innermost first
        self.assertEqual(down.tensor_type, gguf.GGMLQuantizationType.Q4_0)
        for tensor in reader.tensors:
            self.assertEqual(tensor.data_offset % 32, 0)
            if "igate" in tensor.name or "fgate" in tensor.name or "norm" in tensor.name:
                self.assertEqual(tensor.tensor_type, gguf.GGMLQuantizationType.F32, tensor.name)

    def test_imatrix(self):
        text, matrix = self.path("text"), self.path("im.gguf")
        with open(text, "w") as file:
            file.write("Once upon a time there was a little dog who lived by the sea. " * 20)
        self.run_program("imatrix", "-q", "-m", MODEL, "-f", text, "-n", 200, "-o", matrix)
        found = tensors(matrix)
        self.assertEqual(len(found), 2 * (10 * 8 + 1))
        self.assertEqual(list(found["blk.9.ffn_down.weight.in_sum2"].data.shape), [1, 704])
        self.assertTrue((found["output.weight.in_sum2"].data > 0).all())
        counts = {float(t.data.reshape(-1)[0]) for name, t in found.items() if name.endswith(".counts")}
        self.assertEqual(counts, {200, 201})  # the head does not see the begin-of-sequence token that was put in front
        plain, fitted = self.convert("q4_k"), self.convert("q4_k", "-i", matrix, name="fitted.gguf")
        a, b = tensors(plain), tensors(fitted)
        exact = tensors(self.convert("f32"))
        for name in a:
            if a[name].tensor_type == gguf.GGMLQuantizationType.Q4_K:
                weight = found[name + ".in_sum2"].data
                error = [(weight * (values(t[name]) - values(exact[name])) ** 2).sum() for t in (a, b)]
                self.assertLess(error[1], error[0], name)


class Writing(Case):
    """Files that the package writes, in our eyes."""

    def test_copy(self):
        for kind in ["q8_0", "q4_k", "bf16"]:
            source = self.convert(kind)
            reader, copy = gguf.GGUFReader(source), self.path(f"{kind}-copy.gguf")
            writer = gguf.GGUFWriter(copy, "xlstm")
            writer.add_array("some.list", ["a", "b"])  # a key of a kind that is not ours
            for name, field in reader.fields.items():
                if name.startswith("GGUF.") or name == "general.architecture":
                    continue
                writer.add_key_value(name, field.contents(), field.types[0])
            for tensor in reader.tensors:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            self.assertEqual(self.logits(source), self.logits(copy))
            facts = [json.loads(self.run_program("info", "--json", "-m", path)) for path in (source, copy)]
            for fact in facts:
                del fact["path"]
            self.assertEqual(*facts)


class RoundTrip(Case):
    def test_the_shipped_model(self):
        """From the folder to GGUF: logits, tokens and facts stay."""
        folder = json.loads(self.run_program("info", "--json", "-m", MODEL))
        for kind in ["bf16", "f32"]:
            path = self.convert(kind)
            self.assertEqual(self.logits(MODEL), self.logits(path))
            facts = json.loads(self.run_program("info", "--json", "-m", path))
            for key in set(folder) - {"path", "format", "weight_bytes", "stored_dtype", "numerics", "fingerprint"}:
                self.assertEqual(folder[key], facts[key], key)
            for key in folder["numerics"]:
                self.assertEqual(folder["numerics"][key]["value"], facts["numerics"][key]["value"], key)
            text = "Where are you going? \u00e9\u4f60 <|endoftext|>"
            self.assertEqual(*[self.run_program("tokenize", "-m", m, "-p", text) for m in (MODEL, path)])


class Endings(Case):
    """The file that is being written has no name, or a temporary one; what had the name before stays."""

    def setUp(self):
        super().setUp()
        self.target = self.path("big.gguf")
        with open(self.target, "wb") as file:
            file.write(b"what was here before")

    def written(self, process):
        """Bytes that are in the unfinished file."""
        sizes = [0]
        for fd in os.listdir(f"/proc/{process.pid}/fd"):
            try:
                link, status = os.readlink(f"/proc/{process.pid}/fd/{fd}"), os.stat(f"/proc/{process.pid}/fd/{fd}")
            except OSError:
                continue
            if link.startswith(self.folder + "/") and stat.S_ISREG(status.st_mode):
                sizes.append(status.st_size)
        return max(sizes)

    def start(self, least):
        process = subprocess.Popen([PROGRAM, "quantize", "-q", "-t", "1", "--type", "q4_k", "preset:125m", self.target],
                                   env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while self.written(process) < least:
            self.assertLess(time.monotonic(), deadline)
            self.assertIsNone(process.poll())
            time.sleep(0.01)
        return process

    def check(self):
        with open(self.target, "rb") as file:
            self.assertEqual(file.read(), b"what was here before")
        nameless = True
        try:
            os.close(os.open(self.folder, os.O_TMPFILE | os.O_RDWR))
        except OSError:
            nameless = False
        for name in os.listdir(self.folder):
            if name != "big.gguf":
                self.assertFalse(nameless, name)
                self.assertRegex(name, r"^big\.gguf\..{6}$")
                os.unlink(self.path(name))

    def test_interrupted(self):
        process = self.start(1 << 20)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(60), 130)
        self.assertEqual(os.listdir(self.folder), ["big.gguf"])
        self.check()

    def test_killed_at_any_moment(self):
        for least in (0, 1, 5 << 20, 20 << 20, 40 << 20):
            process = self.start(least)
            process.send_signal(signal.SIGKILL if least % 2 == 0 else signal.SIGTERM)
            self.assertLess(process.wait(60), 0)
            self.check()

    def test_progress_with_the_time_that_is_left(self):
        leader, follower = pty.openpty()
        process = subprocess.Popen([PROGRAM, "quantize", "-t", "1", "--type", "q5_k", "preset:410m", self.target],
                                   env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=follower)
        os.close(follower)
        seen, deadline = b"", time.monotonic() + 60
        while b" left" not in seen and time.monotonic() < deadline and process.poll() is None:
            if select.select([leader], [], [], 1)[0]:
                seen += os.read(leader, 4096)
        process.kill()
        process.wait(60)
        os.close(leader)
        self.assertRegex(seen, rb"converting \[#*\.+\] +\d+ %, \d+:\d\d left")


if __name__ == "__main__":
    unittest.main()
