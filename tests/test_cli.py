"""The program as its users meet it: every command of the contract, run as a process. Needs only Python's library."""

import csv
import io
import json
import math
import os
import pty
import re
import select
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import xml.etree.ElementTree

PROGRAM = os.path.abspath(os.environ.get("XLSTM", "build/xlstm"))
MODEL = os.path.abspath("models/xlstm-stories-10m")
PROMPT = "Once upon a time"


def clean_environment(extra=None):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XLSTM")}
    kept.update(extra or {})
    return kept


def run(*arguments, stdin=b"", env=None, program=PROGRAM):
    """(exit status, standard output, standard error), outputs as bytes."""
    done = subprocess.run([program, *map(str, arguments)], input=stdin, capture_output=True, timeout=300,
                          env=clean_environment(env))
    return done.returncode, done.stdout, done.stderr


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)


class Case(unittest.TestCase):
    def ok(self, *arguments, **options):
        status, out, err = run(*arguments, **options)
        self.assertEqual(status, 0, err.decode(errors="replace"))
        return out.decode()

    def fails(self, expected, *arguments, says=(), **options):
        status, out, err = run(*arguments, **options)
        text = err.decode(errors="replace")
        self.assertEqual(status, expected, text)
        self.assertEqual(out, b"")
        for part in [says] if isinstance(says, str) else says:
            self.assertIn(part, text)
        return text

    def greedy(self, *arguments):
        return json.loads(self.ok("generate", "--temperature", 0, "--output", "json", *arguments))

    def interrupt_reading(self, *arguments, says):
        """Ctrl-C while a long prompt is read: nothing is generated, and the message says what became of it."""
        write(self.path("long"), b"The king and the queen went to the forest. " * 40000)
        process = subprocess.Popen([PROGRAM, *arguments, "-f", self.path("long"), "--backend", "reference"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment())
        time.sleep(2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertIn(process.returncode, (130, -signal.SIGINT))  # the latter if it came while the model was opened
        self.assertEqual(out, b"")
        if process.returncode == 130:
            self.assertIn(says, err.decode())

    def setUp(self):
        self.folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.folder)

    def path(self, name):
        return os.path.join(self.folder, name)

    def model_copy(self, *left_out):
        """A folder of links to the model's files, without some of them."""
        folder = self.path("model")
        os.mkdir(folder)
        for name in os.listdir(MODEL):
            if name not in left_out:
                os.symlink(os.path.join(MODEL, name), os.path.join(folder, name))
        return folder


class Usage(Case):
    def test_help(self):
        text = self.ok("--help")
        self.assertIn("generate", text)
        for command in re.findall(r"^  (\w+) {2,}\w", text, re.M):
            out = self.ok(command, "--help")
            self.assertTrue(out.startswith("xlstm " + command))
            self.assertEqual(out, self.ok("help", command))
            self.assertLessEqual(max(map(len, out.splitlines())), 100)
        self.assertRegex(self.ok("--version"), r"^xlstm \d+\.\d+\.\d+\n$")

    def test_every_flag_of_the_contract_exists(self):
        out = self.ok("generate", "--help")
        for flag in """max-tokens temperature top-k top-p min-p repetition-penalty presence-penalty frequency-penalty
                       seed stop stop-id ignore-eos prompt prompt-file prompt-ids output no-echo stats escape
                       interactive info show-wiring wiring-style state-in state-out dtype kernel-dtype state-dtype
                       norm-reduction-float32 threads chunk-size backend bos""".split():
            self.assertRegex(out, rf"--{flag}\b")

    def test_usage_errors(self):
        self.fails(2)
        self.fails(2, "generte", says="did you mean generate?")
        self.fails(2, "generate", "--tempreature", 1, says="did you mean --temperature?")
        self.fails(2, "generate", "--zzz", says="unknown option --zzz")
        self.fails(2, "generate", "-Z", says="unknown option -Z")
        self.fails(2, "generate", "text", says='unexpected argument "text"')
        self.fails(2, "generate", "--seed", says="needs a value")
        self.fails(2, "generate", "--no-echo=1", says="takes no value")
        self.fails(2, "generate", "--top-p", "1.5", says="a number from 0 to 1")
        self.fails(2, "generate", "--top-k", "-1", says="--top-k")
        self.fails(2, "generate", "--temperature", "nan")
        self.fails(2, "generate", "--threads", "2x")
        self.fails(2, "generate", "--bos", "maybe", says="auto|on|off")
        self.fails(2, "generate", "--dtype", "float7", says="float7")
        self.fails(2, "generate", "--cpu-mask", "avx3", says="avx512")
        self.fails(2, "generate", "--logit-bias", "5", says="ID=BIAS")
        self.fails(2, "generate", "--prompt-ids", "1,2,x", says='"x"')
        self.fails(2, "generate", "--prompt-ids", "4096", says=("4096", "4095"))
        self.fails(2, "generate", "-p", "a", "--prompt-ids", "1", says="one of")
        self.fails(2, "generate", "-n", 2, "--state-out", "f", says="--state-out")
        self.fails(2, "generate", "--interactive", "-p", "a")
        self.fails(2, "generate", "--bos", "off", "-p", "", says="--bos off")
        self.fails(2, "logits", says="at least one token")
        self.fails(2, "tokenize", "--json", "--jsonl")

    def test_run_time_errors(self):
        self.fails(1, "generate", "-m", "/no/such/model", says="/no/such/model")
        self.fails(1, "generate", "-f", "/no/such/file", says="/no/such/file")
        self.fails(1, "generate", "--state-in", "/no/such/state", says="/no/such/state")
        self.fails(1, "tokenize", "-m", "/no/such", "-p", "a", says="/no/such")
        write(self.path("bad"), b"not a state" * 100)
        self.fails(1, "generate", "--state-in", self.path("bad"), says="bad")
        self.assertEqual(run("generate", "--max-tokens", 0, "--state-out", "/no/such/folder/f")[0], 1)

    def test_environment_twins(self):
        env = {"XLSTM_MAX_TOKENS": "3", "XLSTM_TEMPERATURE": "0", "XLSTM_OUTPUT": "ids", "XLSTM_NO_ECHO": "1"}
        ids = self.ok("generate", "-p", PROMPT, env=env).strip().split(",")
        self.assertEqual(len(ids), 3)
        more = self.ok("generate", "-p", PROMPT, "--max-tokens", 4, env=env).strip().split(",")
        self.assertEqual(more[:3], ids)
        self.assertEqual(len(more), 4)
        self.fails(2, "generate", env={"XLSTM_TOP_K": "many"}, says="XLSTM_TOP_K")
        self.fails(1, "info", env={"XLSTM_MODEL": "/no/such"}, says="/no/such")
        stopped = self.ok("generate", "-p", PROMPT, "--output", "json",
                          env={"XLSTM_STOP": "zzz\n there", "XLSTM_TEMPERATURE": "0"})
        self.assertEqual(json.loads(stopped)["stop_text"], " there")

    def test_default_model(self):
        bin_folder = self.path("bin")
        os.mkdir(bin_folder)
        program = shutil.copy(PROGRAM, bin_folder)
        self.fails(2, "info", program=program, says="XLSTM_MODEL")
        os.makedirs(self.path("share/xlstm"))
        os.symlink(os.path.dirname(MODEL), self.path("share/xlstm/models"))
        self.assertIn("xlstm-stories-10m", self.ok("info", program=program))

    def test_written_files_are_current(self):
        for name, arguments in [("docs/xlstm.1", ["__man"]), ("completions/xlstm.bash", ["__complete", "bash"]),
                                ("completions/xlstm.zsh", ["__complete", "zsh"]),
                                ("completions/xlstm.fish", ["__complete", "fish"])]:
            self.assertEqual(self.ok(*arguments), read(name).decode(),
                             f"{name} is out of date: build/xlstm {' '.join(arguments)} > {name}")
        for shell, name in [("bash", "xlstm.bash"), ("zsh", "xlstm.zsh"), ("fish", "xlstm.fish")]:
            if shutil.which(shell):
                subprocess.run([shell, "-n", "completions/" + name], check=True)


class EnvironmentTwins(Case):
    """XLSTM_NAME stands in for --name unless the command line has a word on the matter."""

    def test_the_command_line_overrides_rivals(self):
        common = ["generate", "--temperature", 0, "--max-tokens", 2, "--output", "ids"]
        ids = self.ok(*common, "--prompt-ids", "1,2")
        text = self.ok(*common, "-p", "x")
        write(self.path("x"), b"x")
        for name, value in [("PROMPT", "foo"), ("PROMPT_FILE", "/no/such"), ("INTERACTIVE", "1"), ("PROMPT_IDS", "5")]:
            env = {"XLSTM_" + name: value}
            self.assertEqual(self.ok(*common, "--prompt-ids", "1,2", env=env), ids, name)
            self.assertEqual(self.ok(*common, "-p", "x", env=env), text, name)
            self.assertEqual(self.ok(*common, "-f", self.path("x"), env=env), text, name)
            self.assertEqual(self.ok(*common, "-i", stdin=b"x\n", env=env), text, name)
        kl = {"XLSTM_KL": self.path("missing")}
        self.ok("perplexity", "-p", "abcd", "--kl-base", self.path("base"), env=kl)
        self.ok("perplexity", "-p", "abcd", "--kl", self.path("base"), env={"XLSTM_KL_BASE": self.path("other")})
        self.assertFalse(os.path.exists(self.path("other")))
        self.assertRegex(self.ok("tokenize", "--jsonl", "-p", '"x"', env={"XLSTM_JSON": "1"}), r"^\[\d+\]\n$")
        self.assertRegex(self.ok("tokenize", "--json", "-p", '"x"', env={"XLSTM_JSONL": "1"}), r"^\[\d+, ?\d+")

    def test_rivals_of_a_state(self):
        state, other, cache = self.path("state"), self.path("other"), self.path("cache")
        self.ok("generate", "-p", "x", "--max-tokens", 0, "--state-out", state)
        start = ["generate", "--temperature", 0, "--max-tokens", 2, "--no-echo"]
        expected = self.ok(*start, "--state-in", state)
        self.assertEqual(self.ok(*start, "--state-in", state, env={"XLSTM_PREFIX_CACHE": cache}), expected)
        self.assertFalse(os.path.exists(cache))
        self.ok(*start, "-p", "x", "--prefix-cache", cache, env={"XLSTM_STATE_IN": "/no/such"})
        self.assertTrue(os.path.exists(cache))
        self.ok(*start, "-p", "x", "-n", 2, env={"XLSTM_STATE_OUT": other})
        self.ok(*start, "-i", stdin=b"x\n", env={"XLSTM_STATE_OUT": other})
        self.assertFalse(os.path.exists(other))
        self.ok(*start, "-p", "x", "-n", 1, env={"XLSTM_STATE_OUT": other})
        self.assertTrue(os.path.exists(other))
        self.ok(*start, "-p", "x", "--state-out", state, env={"XLSTM_SAMPLES": "2"})
        write(self.path("text"), b"some words")
        ingest = ["ingest", "-f", self.path("text"), "--state-out", self.path("read")]
        self.ok(*ingest, env={"XLSTM_STATE_IN": state})
        self.ok(*ingest, "--resume", env={"XLSTM_STATE_IN": "/no/such"})

    def test_rivals_of_a_measurement(self):
        quick = ["bench", "--repetitions", 1, "--tokens", 1, "--batch", 1, "--no-prefill", "--threads", 1, "--csv"]
        preset = self.ok(*quick, "--preset", "tiny", "-T", "f32", env={"XLSTM_JSON": "1", "XLSTM_MODEL": "/no/such",
                                                                        "XLSTM_THREAD_COUNTS": "2,3"})
        self.assertEqual([row["threads"] for row in csv.DictReader(io.StringIO(preset))], ["1"])
        model = self.ok(*quick, "-m", MODEL, env={"XLSTM_PRESET": "tiny", "XLSTM_TYPE": "f32"})
        self.assertIn("xlstm-stories-10m", model)

    def test_rivals_from_one_place_conflict(self):
        self.fails(2, "generate", env={"XLSTM_PROMPT": "a", "XLSTM_PROMPT_IDS": "1"}, says="one of")
        self.fails(2, "generate", env={"XLSTM_PROMPT": "a", "XLSTM_INTERACTIVE": "1"}, says="--interactive")
        self.fails(2, "generate", "-p", "a", "-i", says="--interactive")
        self.fails(2, "perplexity", "-p", "abcd", "--kl", "a", "--kl-base", "b", says="one of")
        self.fails(2, "tokenize", "-p", "a", env={"XLSTM_JSON": "1", "XLSTM_JSONL": "1"}, says="one of")
        self.fails(2, "generate", "--state-in", "a", "--prefix-cache", "b", says="--prefix-cache")

    def test_a_chat_takes_a_state_and_a_cache(self):
        state, cache = self.path("state"), self.path("cache")
        self.ok("generate", "-p", "x", "--max-tokens", 0, "--state-out", state)
        self.ok("chat", "--state-in", state, "--max-tokens", 1, stdin=b"x\n", env={"XLSTM_PREFIX_CACHE": cache})
        self.assertTrue(os.path.exists(cache))

    def test_values_that_are_not_asked_for_may_be_wrong(self):
        short = ["generate", "-p", "x", "--max-tokens", 1]
        self.ok(*short, "--temperature", 0.5, env={"XLSTM_TEMPERATURE": "abc"})
        self.ok(*short, "--logit-bias", "1=2", env={"XLSTM_LOGIT_BIAS": "abc"})
        self.assertTrue(self.ok("generate", "--help", env={"XLSTM_SEED": "x"}).startswith("xlstm generate"))
        self.fails(2, *short, env={"XLSTM_SEED": "x"}, says='XLSTM_SEED is "x"')

    def test_lists_are_replaced(self):
        common = ["generate", "--temperature", 0, "--max-tokens", 2, "--output", "ids", "--prompt-ids", "1"]
        ids = self.ok(*common, "--prompt-ids", "2")
        self.assertEqual(self.ok(*common, "--prompt-ids", "2", env={"XLSTM_PROMPT_IDS": "7"}), ids)
        self.assertTrue(ids.startswith("1,2,"))

    def test_options_without_a_twin(self):
        self.fails(2, "imatrix", "-p", "some words", env={"XLSTM_OUTPUT": self.path("json")}, says="--output FILE")
        self.assertFalse(os.path.exists(self.path("json")))
        self.ok("bench", "--repetitions", 1, "--no-prefill", "--no-decode", env={"XLSTM_TOKENS": "many"})
        self.fails(2, "perplexity", "-p", "abcd", env={"XLSTM_TOKENS": "many"}, says="XLSTM_TOKENS")
        for command, option in (("imatrix", "output"), ("bench", "tokens")):
            self.assertIn(f"Every option but --{option} has an environment twin", self.ok(command, "--help"))
            self.assertIn(f"xlstm {command} \\-\\-{option}\n", self.ok("__man"))


class WrongOptions(Case):
    def test_beginnings_of_several_options(self):
        for typed in ("--state", "--state=x"):
            self.fails(2, "generate", typed, "x",
                       says="--state is not an option; did you mean --state-in, --state-out or --state-dtype?\n")
        self.fails(2, "generate", "--st", "x", says=("--st is not an option; did you mean --stop, ", " or --state-dtype?"))
        self.ok("generate", "-p", "x", "--max-t", 1)
        self.fails(2, "generate", "--=x", says="unknown option --=x\n")

    def test_numbers_that_float32_does_not_hold(self):
        for value in ("1e300", "3.5e38", "inf"):
            self.fails(2, "generate", "--temperature", value, says=f'--temperature is "{value}"')
        for value in ("1=1e39", "1=-1e39", "1=inf"):
            self.fails(2, "generate", "--logit-bias", value, says=f'--logit-bias is "{value}"')
        self.ok("generate", "-p", "x", "--max-tokens", 1, "--logit-bias", "1=-inf", "--logit-bias", "2=-1e38")

    def test_lists_in_the_man_page(self):
        manual = self.ok("__man")
        self.assertIn(".TP 28\nverify FILE...\ncheck every byte against the checksum\n.TP 28\n", manual)
        self.assertIn(".TP\nrename SESSION NAME\n.TP\nrm SESSION...\n.TP 28\n", manual)
        self.assertIn("is not scored.\n.br\nTo compare", manual)


class Generate(Case):
    def test_forms_of_output_agree(self):
        j = self.greedy("-p", PROMPT, "--max-tokens", 12)
        self.assertEqual(j["prompt"], PROMPT)
        self.assertEqual(len(j["ids"]), 12)
        self.assertEqual(j["stop_reason"], "length")
        common = ["generate", "--temperature", 0, "--max-tokens", 12]
        self.assertEqual(self.ok(*common, "-p", PROMPT), PROMPT + j["text"] + "\n")
        self.assertEqual(self.ok(*common, "-p", PROMPT, "--no-echo"), j["text"] + "\n")
        ids = ",".join(map(str, j["prompt_ids"] + j["ids"])) + "\n"
        self.assertEqual(self.ok(*common, "-p", PROMPT, "--output", "ids"), ids)
        prompt_ids = ",".join(map(str, j["prompt_ids"]))
        self.assertEqual(self.ok(*common, "--prompt-ids", prompt_ids, "--output", "ids"), ids)
        self.assertEqual(self.ok(*common, "--prompt-ids", prompt_ids), PROMPT + j["text"] + "\n")
        short = self.greedy("-p", PROMPT, "--max-tokens", 12, "--no-echo")
        self.assertNotIn("prompt", short)
        self.assertEqual(short["text"], j["text"])
        write(self.path("p"), PROMPT.encode())
        self.assertEqual(self.ok(*common, "-f", self.path("p")), PROMPT + j["text"] + "\n")
        self.assertEqual(self.ok(*common, "-f", "-", stdin=PROMPT.encode()), PROMPT + j["text"] + "\n")

    def test_escape(self):
        j = self.greedy("-p", r"A\n\tB \u00e9\x41\\", "--escape", "--max-tokens", 1)
        self.assertEqual(j["prompt"], "A\n\tB \u00e9A\\")
        self.assertEqual(self.greedy("-p", r"A\n", "--max-tokens", 1)["prompt"], r"A\n")

    def test_empty_prompt_begins_from_nothing(self):
        a = self.greedy("--max-tokens", 5)
        self.assertEqual(a["prompt_ids"], [])
        self.assertEqual(a["ids"], self.greedy("--prompt-ids", "0", "--max-tokens", 5)["ids"])

    def test_seed(self):
        def text(seed, *more):
            return self.ok("generate", "-p", PROMPT, "--max-tokens", 12, "--seed", seed, *more)
        self.assertEqual(text(7), text(7))
        self.assertGreater(len({text(s) for s in range(4)}), 2)
        self.assertEqual(text(7, "--top-k", 1), text(8, "--top-p", "1e-9"))

    def test_samples_are_what_single_runs_give(self):
        common = ["generate", "-p", PROMPT, "--max-tokens", 10, "--output", "json"]
        lines = self.ok(*common, "-n", 3, "--seed", 5).splitlines()
        self.assertEqual(len(lines), 3)
        for i, line in enumerate(lines):
            sample = json.loads(line)
            alone = json.loads(self.ok(*common, "--seed", 5 + i))
            self.assertEqual((sample["index"], sample["seed"]), (i, 5 + i))
            self.assertEqual(sample["ids"], alone["ids"])
        text = self.ok("generate", "-p", PROMPT, "--max-tokens", 3, "-n", 2, "--seed", 5)
        self.assertRegex(text, r"(?s)^--- 1 of 2 ---\nOnce.*\n--- 2 of 2 ---\nOnce.*\n$")

    def test_stop_texts_at_every_place(self):
        whole = self.greedy("-p", PROMPT, "--max-tokens", 14)["text"]
        tried = 0
        for start in range(0, len(whole) - 8, 9):
            for length in (1, 4, 8):
                stop = whole[start:start + length]
                expected = whole[:whole.index(stop)]
                out = self.ok("generate", "--temperature", 0, "-p", PROMPT, "--max-tokens", 14, "--no-echo", "--stop",
                              stop, "--stop", "never")
                self.assertEqual(out, expected + "\n", repr(stop))
                tried += 1
        self.assertGreater(tried, 8)

    def test_stop_text_that_is_never_completed(self):
        whole = self.greedy("-p", PROMPT, "--max-tokens", 6)
        j = self.greedy("-p", PROMPT, "--max-tokens", 6, "--stop", whole["text"][-4:] + "@@@")
        self.assertEqual((j["text"], j["ids"], j["stop_reason"]), (whole["text"], whole["ids"], "length"))

    def test_earliest_of_several_stops(self):
        whole = self.greedy("-p", PROMPT, "--max-tokens", 14)["text"]
        j = self.greedy("-p", PROMPT, "--max-tokens", 14, "--stop", whole[20:24], "--stop", whole[9:14])
        self.assertEqual(j["text"], whole[:min(whole.index(whole[20:24]), whole.index(whole[9:14]))])
        self.assertEqual(j["stop_reason"], "stop_text")

    def test_stop_ids_and_eos(self):
        ids = self.greedy("-p", PROMPT, "--max-tokens", 12)["ids"]
        j = self.greedy("-p", PROMPT, "--max-tokens", 12, "--stop-id", ids[5])
        self.assertEqual(j["ids"], ids[:ids.index(ids[5])])
        self.assertEqual((j["stop_reason"], j["stop_id"]), ("stop_id", ids[5]))
        forced = self.greedy("-p", PROMPT, "--max-tokens", 12, "--logit-bias", "0=1000")
        self.assertEqual((forced["ids"], forced["stop_reason"], forced["stop_id"]), ([], "eos", 0))
        ignored = self.greedy("-p", PROMPT, "--max-tokens", 4, "--logit-bias", "0=1000", "--ignore-eos")
        self.assertEqual(ignored["ids"], [0, 0, 0, 0])
        banned = self.greedy("-p", PROMPT, "--max-tokens", 4, "--logit-bias", f"{ids[0]}=-inf")
        self.assertNotEqual(banned["ids"][0], ids[0])

    def test_without_tokenizer(self):
        model = self.model_copy("tokenizer.json", "tokenizer_config.json")
        ids = self.ok("generate", "-m", model, "--prompt-ids", "5,6,7", "--temperature", 0, "--max-tokens", 4)
        self.assertRegex(ids, r"^5,6,7(,\d+){4}\n$")
        j = self.ok("generate", "-m", model, "--prompt-ids", "5,6,7", "--output", "json", "--max-tokens", 4)
        self.assertNotIn("text", json.loads(j))
        self.fails(1, "generate", "-m", model, "-p", "a", says="tokenizer")
        self.fails(1, "generate", "-m", model, "--prompt-ids", "5", "--output", "text", says="tokenizer")
        self.fails(1, "generate", "-m", model, "--prompt-ids", "5", "--stop", "a", says="tokenizer")
        self.fails(1, "chat", "-m", model, says="tokenizer")
        self.assertIn("logits", self.ok("logits", "-m", model, "--prompt-ids", "5"))

    def test_standard_output_holds_results_alone(self):
        status, out, err = run("generate", "-p", PROMPT, "--max-tokens", 3, "--temperature", 0, "--stats", "--info",
                               "--show-wiring", "--wiring-style", "ascii")
        self.assertEqual(status, 0)
        self.assertEqual(out.decode(), self.ok("generate", "-p", PROMPT, "--max-tokens", 3, "--temperature", 0))
        err.decode("ascii")
        for part in (b"tok/s", b"seed", b"embedding", b"parameters", b"norm_mlstm"):
            self.assertIn(part, err)

    def test_closed_and_full_output(self):
        process = subprocess.Popen([PROGRAM, "generate", "-p", PROMPT, "--max-tokens", "100000", "--ignore-eos"],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=clean_environment())
        process.stdout.read(20)
        process.stdout.close()
        self.assertEqual(process.wait(60), 0)
        self.assertEqual(process.stderr.read(), b"")
        process.stderr.close()
        if os.path.exists("/dev/full"):
            with open("/dev/full", "w") as full:
                done = subprocess.run([PROGRAM, "generate", "-p", PROMPT, "--max-tokens", "3"], stdout=full,
                                      stderr=subprocess.PIPE, env=clean_environment())
            self.assertEqual(done.returncode, 1)
            self.assertIn(b"standard output", done.stderr)

    def test_interrupt(self):
        state = self.path("state")
        process = subprocess.Popen([PROGRAM, "generate", "-p", PROMPT, "--max-tokens", "100000", "--ignore-eos", "--stats",
                                    "--state-out", state], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env=clean_environment())
        start = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertTrue((start + rest).endswith(b"\n"))
        self.assertIn(b"tok/s", err)
        self.ok("generate", "--state-in", state, "--max-tokens", 2)

    def test_interrupt_while_reading(self):
        """What was read in part is not saved."""
        self.interrupt_reading("generate", "--state-out", self.path("s"), says="no state was saved")
        self.assertFalse(os.path.exists(self.path("s")))

    def test_interactive(self):
        out = self.ok("generate", "--interactive", "--temperature", 0, "--max-tokens", 4,
                      stdin=b"Once upon a time\n\nThe king\nOnce upon a time\n")
        lines = out.splitlines()
        self.assertEqual(len(lines), 3)
        self.assertEqual(lines[0], lines[2])
        self.assertEqual(lines[1], self.ok("generate", "-p", "The king", "--temperature", 0, "--max-tokens", 4).strip())

    def test_penalties_change_the_text(self):
        plain = self.greedy("-p", PROMPT, "--max-tokens", 20)
        for flag, value in (("--repetition-penalty", 1.5), ("--presence-penalty", 3), ("--frequency-penalty", 2)):
            self.assertNotEqual(self.greedy("-p", PROMPT, "--max-tokens", 20, flag, value)["ids"], plain["ids"], flag)


class Outputs(Case):
    """Where results cannot be written is said before any work is done; nothing but regular files is replaced."""

    def test_impossible_outputs(self):
        os.mkdir(self.path("folder"))
        os.mkfifo(self.path("pipe"))
        os.symlink("nowhere", self.path("dangling"))
        write(self.path("text"), b"Once upon a time " * 3000)
        commands = (("generate", "-p", PROMPT, "--state-out"), ("ingest", "-f", self.path("text"), "--state-out"),
                    ("imatrix", "-f", self.path("text"), "-o"), ("perplexity", "-p", PROMPT, "--kl-base"),
                    ("convert", MODEL), ("quantize", "--type", "q8_0", MODEL))
        for command in commands:
            for name, says in ((self.path("folder"), "found a folder"), (self.path("pipe"), "found a device or pipe"),
                               (self.path("dangling"), "link"), (self.path("none/x"), "none"), ("", "empty")):
                status, out, err = run(*command, name)
                self.assertIn(status, (1, 2), (command, name))
                self.assertEqual(out, b"", (command, name))
                self.assertIn(says, err.decode(), (command, name))
        self.assertTrue(stat.S_ISFIFO(os.stat(self.path("pipe")).st_mode))
        self.assertEqual(sorted(os.listdir(self.folder)), ["dangling", "folder", "pipe", "text"])

    def test_a_tokenizer_without_a_limit_is_converted(self):
        """transformers writes 10^30 for a tokenizer without a limit."""
        model = self.model_copy()
        config = json.loads(read(os.path.join(MODEL, "tokenizer_config.json")))
        config.update(model_max_length=1000000000000000019884624838656, chat_template="{{ messages }}")
        os.remove(os.path.join(model, "tokenizer_config.json"))
        write(os.path.join(model, "tokenizer_config.json"), json.dumps(config).encode())
        self.ok("convert", "-q", model, self.path("x.gguf"))
        for where in (model, self.path("x.gguf")):
            facts = json.loads(self.ok("info", "-m", where, "--json"))
            self.assertTrue(facts["chat_template"])
            self.assertEqual(self.greedy("-m", where, "-p", PROMPT, "--max-tokens", 5)["ids"],
                             self.greedy("-p", PROMPT, "--max-tokens", 5)["ids"])

    def test_links_are_followed(self):
        for command, option in (("generate", "--state-out"), ("perplexity", "--kl-base")):
            write(self.path("target"), b"")
            os.symlink("target", self.path("link"))
            self.ok(command, "-p", PROMPT, *(("--max-tokens", 1) if command == "generate" else ()), option, self.path("link"))
            self.assertTrue(os.path.islink(self.path("link")))
            self.assertGreater(os.path.getsize(self.path("target")), 1000)
            os.remove(self.path("link"))

    def test_size_limit(self):
        limited = ["sh", "-c", 'ulimit -f 100; exec "$@"', "sh", PROGRAM, "convert", "-q", MODEL, self.path("x.gguf")]
        done = subprocess.run(limited, capture_output=True, env=clean_environment())
        self.assertEqual(done.returncode, 1, done)
        self.assertIn(b"x.gguf: cannot write: File too large", done.stderr)
        self.assertEqual(os.listdir(self.folder), [])

    def test_closed_streams(self):
        """A closed standard stream is not mistaken for a file that is opened later."""
        for command in ("generate -f - --max-tokens 3", "generate -i", "perplexity -f -", "tokenize"):
            done = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", PROGRAM, *command.split()], capture_output=True,
                                  env=clean_environment(), timeout=60)
            self.assertEqual(done.returncode, 1, (command, done))
            self.assertIn(b"cannot read standard input", done.stderr)
            self.assertEqual(done.stdout, b"")
        for close in (">&-", "2>&-", "<&- >&- 2>&-"):
            subprocess.run(["sh", "-c", f'exec "$@" {close}', "sh", PROGRAM, "convert", MODEL, self.path("x.gguf")],
                           env=clean_environment())
            self.ok("info", "-m", self.path("x.gguf"))

    def test_drawing_that_cannot_be_written(self):
        with open("/dev/full", "wb") as full:
            done = subprocess.run([PROGRAM, "info", "--wiring"], stdout=full, stderr=subprocess.PIPE, env=clean_environment())
        self.assertEqual(done.returncode, 1)

    def test_a_plugin_of_another_version_is_refused(self):
        compiler = os.environ.get("CC", "cc")
        if not shutil.which(compiler.split()[0]):
            self.skipTest("no C compiler")
        write(self.path("p.c"), b"const unsigned xlstm_cuda_plugin[6] = {1, 2, 3};")
        subprocess.run([*compiler.split(), "-shared", "-fPIC", "-o", self.path("libxlstm_cuda.so"), self.path("p.c")], check=True)
        status, _, err = run("generate", "-p", "x", "--backend", "cuda", env=clean_environment({"LD_LIBRARY_PATH": self.folder}))
        self.assertEqual(status, 1)
        if b"looking for" not in err and b"NVIDIA" not in err:  # a plugin beside the program comes first
            self.assertIn(b"built with another version of xlstm", err)


class State(Case):
    def test_goes_on_as_if_it_had_never_ended(self):
        whole = self.greedy("-p", PROMPT, "--max-tokens", 20)
        for first in (0, 1, 7):
            a = self.greedy("-p", PROMPT, "--max-tokens", first, "--state-out", self.path("s"))
            b = self.greedy("--state-in", self.path("s"), "--max-tokens", 20 - first)
            self.assertEqual(a["ids"] + b["ids"], whole["ids"])
            self.assertEqual(a["text"] + b["text"], whole["text"])

    def test_blocks_on_two_backends(self):
        """The first blocks elsewhere: the same text, and states that either way of running goes on from."""
        plain = ("--temperature", 0, "--output", "ids", "--no-echo", "--dtype", "float32")
        want = self.ok("generate", "-p", PROMPT, *plain, "--max-tokens", 40).strip().split(",")
        for k in 1, 4, 9, 10, 99:
            env = {"XLSTM_BACKEND": "reference", "XLSTM_OFFLOAD_BLOCKS": str(k)}
            got = self.ok("generate", "-p", PROMPT, *plain, "--max-tokens", 40, env=env).strip().split(",")
            self.assertEqual(got, want)
        split = ("--backend", "reference", "--offload-blocks", 4)
        for first, second in (split, ()), ((), split):
            self.ok("generate", "-p", PROMPT, *plain, *first, "--max-tokens", 15, "--state-out", self.path("s"))
            rest = self.ok("generate", "--state-in", self.path("s"), *plain, *second, "--max-tokens", 25)
            self.assertEqual(rest.strip().split(","), want[15:])
        status, _, err = run("generate", "-p", PROMPT, *plain, *split, "--max-tokens", 1, "--stats")
        self.assertEqual(status, 0)
        self.assertRegex(err.decode(), r"reference \(.*\) for blocks 0\.\.3, cpu \(.*\) for the rest")
        self.fails(2, "generate", "-p", PROMPT, "--offload-blocks", 4, says="--backend")
        self.fails(2, "generate", "-p", PROMPT, "--offload-blocks", -1, says="--offload-blocks")
        self.fails(1, "generate", "-p", PROMPT, "--offload-blocks", 4, "--backend", "reference64", says="float64")
        self.ok("info", "--offload-blocks", 4)
        self.fails(1, "generate", "-p", PROMPT, "--device", 1, says=("device 1", "cpu", "--backend cuda --device 1"))
        self.fails(2, "generate", "-p", PROMPT, "--device", -1, says="--device")

    def test_prompt_after_a_state(self):
        self.ok("generate", "--prompt-ids", "3244,786", "--max-tokens", 0, "--state-out", self.path("s"))
        a = self.greedy("--state-in", self.path("s"), "--prompt-ids", "260,543", "--max-tokens", 8)
        self.assertEqual(a["ids"], self.greedy("--prompt-ids", "3244,786,260,543", "--max-tokens", 8)["ids"])

    def test_stop_text_leaves_no_trace_in_the_state(self):
        whole = self.greedy("-p", PROMPT, "--max-tokens", 16)
        ids = whole["ids"]
        for k in (3, 6):  # the stop text begins where token k ends
            kept = self.greedy("-p", PROMPT, "--max-tokens", k)["text"]
            stop = whole["text"][len(kept):len(kept) + 7]
            if whole["text"].index(stop) != len(kept):
                continue
            j = self.greedy("-p", PROMPT, "--max-tokens", 16, "--stop", stop, "--state-out", self.path("s"))
            self.assertEqual(j["ids"], ids[:k])
            b = self.greedy("--state-in", self.path("s"), "--max-tokens", 16 - k)
            self.assertEqual(b["ids"], ids[k:])

    def test_wrong_model(self):
        self.ok("generate", "-p", PROMPT, "--max-tokens", 0, "--state-out", self.path("s"))
        data = bytearray(read(self.path("s")))
        data[len(data) // 2] ^= 1
        write(self.path("s"), data)
        self.fails(1, "generate", "--state-in", self.path("s"), says=self.path("s"))

    def test_poisoned_state_is_not_saved(self):
        model = self.model_copy()
        index = json.loads(read(os.path.join(MODEL, "model.safetensors.index.json")))
        name = next(n for n in index["weight_map"] if n.endswith("norm_ffn.weight"))
        shard = os.path.join(model, index["weight_map"][name])
        data = bytearray(read(shard))
        size = struct.unpack("<Q", data[:8])[0]
        tensor = json.loads(data[8:8 + size])[name]
        self.assertEqual(tensor["dtype"], "BF16")
        at = 8 + size + tensor["data_offsets"][0]
        data[at:at + 2] = b"\xc0\x7f"
        os.remove(shard)
        write(shard, data)
        for more in ([], ["--state-out", self.path("s")], ["--output", "json"]):
            status, _, err = run("generate", "-m", model, "-p", PROMPT, "--max-tokens", 3, *more)
            self.assertEqual(status, 1)
            self.assertIn(b"consider enabling norm_reduction_force_float32 or using float32 compute dtype", err)
            self.assertFalse(os.path.exists(self.path("s")))
        self.assertEqual(run("logits", "-m", model, "-p", PROMPT)[0], 1)
        status, out, err = run("chat", "-m", model, stdin=f"hi\n/save {self.path('c')}\n".encode())
        self.assertEqual(status, 1)
        self.assertIn(b"norm_reduction_force_float32", err)


class Logits(Case):
    def test_rows(self):
        ids = [5 + 7 * i % 4000 for i in range(150)]
        text = ",".join(map(str, ids))
        every = json.loads(self.ok("logits", "--prompt-ids", text, "--all"))
        last = json.loads(self.ok("logits", "--prompt-ids", text))
        self.assertEqual(every["ids"], ids)
        self.assertEqual((len(every["logits"]), len(every["logits"][0]), len(last["logits"])), (150, 4096, 4096))
        self.assertEqual(every["logits"][-1], last["logits"])
        first = json.loads(self.ok("logits", "--prompt-ids", ids[0]))
        self.assertEqual(len(first["logits"]), 4096)  # no row for BOS
        for x in last["logits"][:200]:
            self.assertEqual(float("%.9g" % struct.unpack("f", struct.pack("f", x))[0]), x)
        without = json.loads(self.ok("logits", "--prompt-ids", ids[0], "--bos", "off"))
        self.assertNotEqual(without["logits"], first["logits"])

    def test_text_and_state(self):
        a = json.loads(self.ok("logits", "-p", PROMPT))
        text = ",".join(map(str, a["ids"]))
        self.assertEqual(json.loads(self.ok("logits", "--prompt-ids", text)), a)
        self.ok("generate", "--prompt-ids", ",".join(map(str, a["ids"][:2])), "--max-tokens", 0, "--state-out",
                self.path("s"))
        b = json.loads(self.ok("logits", "--prompt-ids", ",".join(map(str, a["ids"][2:])), "--state-in", self.path("s")))
        worst = max(abs(x - y) for x, y in zip(a["logits"], b["logits"]))
        self.assertLess(worst, 2e-4)


class Tokenize(Case):
    def test_text_and_back(self):
        texts = ["hello world", " two  spaces\n\ttab", "na\u00efve \u4f60\u597d \U0001f469\u200d\U0001f680", "", "x" * 5000]
        for text in texts:
            ids = self.ok("tokenize", stdin=text.encode())
            self.assertEqual(self.ok("tokenize", "-d", stdin=ids.encode()), text)
            self.assertEqual(json.loads(self.ok("tokenize", "--json", stdin=text.encode())),
                             [int(i) for i in ids.split(",") if i.strip()])
            if text:
                self.assertEqual(self.ok("tokenize", "-p", text), ids)
        lines = "".join(json.dumps(t) + "\n" for t in texts)
        listed = self.ok("tokenize", "--jsonl", stdin=lines.encode())
        self.assertEqual(len(listed.splitlines()), len(texts))
        back = self.ok("tokenize", "--jsonl", "--decode", stdin=listed.encode())
        self.assertEqual([json.loads(line) for line in back.splitlines()], texts)

    def test_special_tokens(self):
        self.assertEqual(self.ok("tokenize", "-p", "<|endoftext|>"), "0\n")
        self.assertNotEqual(self.ok("tokenize", "-p", "<|endoftext|>", "--literal"), "0\n")
        self.assertEqual(self.ok("tokenize", "-d", "-p", "0"), "<|endoftext|>")
        self.assertEqual(self.ok("tokenize", "-d", "--skip-special", "-p", "0"), "")

    def test_tokenizer_alone(self):
        expected = self.ok("tokenize", "-p", PROMPT)
        shutil.copy(os.path.join(MODEL, "tokenizer.json"), self.folder)
        self.assertEqual(self.ok("tokenize", "-m", self.folder, "-p", PROMPT), expected)
        self.assertEqual(self.ok("tokenize", "-m", self.path("tokenizer.json"), "-p", PROMPT), expected)

    def test_bad_input(self):
        self.assertEqual(run("tokenize", "--jsonl", stdin=b'"a"\n3\n')[0], 1)
        self.fails(1, "tokenize", "--jsonl", stdin=b'"\xff"\n', says="line 1")
        self.fails(1, "tokenize", "-d", stdin=b"1,2,rabbit", says="rabbit")
        self.fails(1, "tokenize", "-d", stdin=b"99999", says="99999")
        self.ok("tokenize", stdin=b"\xff\xfe\x00invalid")


class Info(Case):
    def test_json(self):
        facts = json.loads(self.ok("info", "--json", "--tensors", "--wiring"))
        self.assertEqual((facts["num_blocks"], facts["embedding_dim"], facts["vocab_size"]), (10, 256, 4096))
        self.assertEqual(facts["norm_eps"], 1e-6)
        self.assertEqual(set(facts["numerics"]), {"weights", "activations", "kernel", "state", "norm_reduction_float32"})
        self.assertEqual(facts["numerics"]["norm_reduction_float32"]["value"], True)
        elements = 0
        for tensor in facts["tensors"]:
            count = 1
            for n in tensor["shape"]:
                count *= n
            elements += count
        self.assertEqual(elements, facts["parameters"])
        off = json.loads(self.ok("info", "--json", "--norm-reduction-float32", "off", "--state-dtype", "bf16"))
        self.assertEqual(off["numerics"]["norm_reduction_float32"]["value"], False)
        self.assertIn("option", off["numerics"]["norm_reduction_float32"]["source"])
        self.assertEqual(off["numerics"]["state"]["value"], "bfloat16")

    def test_text_and_wiring(self):
        text = self.ok("info")
        for part in ("10,153,808", "20.3 MB", "from config.json", "<|endoftext|>"):
            self.assertIn(part, text)
        drawing = self.ok("info", "--wiring", "--wiring-style", "ascii")
        self.assertTrue(drawing.isascii())
        self.assertFalse(self.ok("info", "--wiring").isascii())


class Numbers(Case):
    """perplexity, trace, diagnose and bench: what they print must hold together."""
    IDS = "5,77,300,12,9,1000,42,8,8,64,200,31"

    def test_perplexity_agrees_with_logits(self):
        got = json.loads(self.ok("perplexity", "--prompt-ids", self.IDS, "--json"))
        ids = [int(x) for x in self.IDS.split(",")]
        rows = json.loads(self.ok("logits", "--prompt-ids", "0," + self.IDS, "--all"))["logits"]
        total = 0.0
        for row, target in zip(rows, ids):  # row of BOS predicts the first token
            top = max(row)
            total += top + math.log(sum(math.exp(x - top) for x in row)) - row[target]
        self.assertEqual(got["tokens"], len(ids))
        self.assertAlmostEqual(got["nll"], total / len(ids), places=5)
        self.assertAlmostEqual(got["ppl"] / math.exp(got["nll"]), 1, places=7)
        off = json.loads(self.ok("perplexity", "--prompt-ids", self.IDS, "--bos", "off", "--json"))
        self.assertEqual(off["tokens"], len(ids) - 1)  # nothing predicts the first one

    def test_windows_score_every_token_once(self):
        for window, stride in ((5, 5), (6, 2), (100, 100)):
            got = json.loads(self.ok("perplexity", "--prompt-ids", self.IDS, "--window", window, "--stride", stride, "--json"))
            self.assertEqual(got["tokens"], 12)
        status, _, err = run("perplexity", "--prompt-ids", self.IDS, "--window", 4, "--stride", 5)
        self.assertEqual(status, 2, err)

    def test_kl_to_itself_is_nothing_and_to_another_precision_little(self):
        base = self.path("base")
        plain = json.loads(self.ok("perplexity", "--prompt-ids", self.IDS, "--kl-base", base, "--json"))
        same = json.loads(self.ok("perplexity", "--prompt-ids", self.IDS, "--kl", base, "--json"))
        self.assertLess(same["kl"]["max"], 1e-12)
        self.assertEqual(same["top1_agreement"], 1)
        self.assertAlmostEqual(same["base_nll"], plain["nll"], places=9)
        other = json.loads(self.ok("perplexity", "--prompt-ids", self.IDS, "--dtype", "bfloat16", "--kl", base, "--json"))
        self.assertTrue(1e-8 < other["kl"]["mean"] < 0.05)
        self.assertLessEqual(other["kl"]["median"], other["kl"]["p99"])
        for wrong in ("5,77,300", self.IDS.replace("300", "301")):
            status, _, err = run("perplexity", "--prompt-ids", wrong, "--kl", base)
            self.assertEqual(status, 1)
            self.assertIn(b"same text", err)
        with open(base, "r+b") as f:
            f.truncate(os.path.getsize(base) - 1)
        self.assertEqual(run("perplexity", "--prompt-ids", self.IDS, "--kl", base)[0], 1)

    def test_trace_lists_every_stage(self):
        folder = self.path("dump")
        os.mkdir(folder)
        rows = json.loads(self.ok("trace", "--prompt-ids", "0,5,9", "--json", "--dump", folder))
        self.assertEqual([r["stage"] for r in rows if r["block"] == 9][:4], ["x_in", "norm_mlstm", "q", "k"])
        self.assertEqual(len(rows), 10 * 20 + 2)
        self.assertTrue(all(r["nan"] == 0 and r["inf"] == 0 and r["min"] <= r["mean"] <= r["max"] for r in rows))
        q = next(r for r in rows if r["block"] == 3 and r["stage"] == "q")
        self.assertEqual(q["count"], 3 * 128)
        data = read(os.path.join(folder, "003.q.npy"))
        self.assertIn(b"(3, 128)", data[:128])
        values = struct.unpack("<384f", data[128:])
        self.assertAlmostEqual(min(values), q["min"], places=5)

    def test_diagnose_gives_a_verdict(self):
        verdicts = json.loads(self.ok("diagnose", "--json"))
        self.assertFalse([v for v in verdicts if v["verdict"] == "FAIL"])
        self.assertTrue({"file", "shapes", "weights", "dummy ids", "real text", "step = chunk", "oracle", "tokenizer", "BOS",
                         "EOS"} <= {v["check"] for v in verdicts})
        bad = self.path("bad")
        shutil.copytree(MODEL, bad)
        name = os.path.join(bad, "model-00002-of-00003.safetensors")
        os.chmod(name, 0o644)
        with open(name, "r+b") as f:
            size = struct.unpack("<Q", f.read(8))[0]
            header = json.loads(f.read(size))
            tensor = "backbone.blocks.7.mlstm_layer.v.weight"
            f.seek(8 + size + header[tensor]["data_offsets"][0] + 2 * 256 * 70)
            f.write(struct.pack("<H", 0x7FC0))
        status, out, _ = run("diagnose", "-m", bad, "--json")
        self.assertEqual(status, 1)
        text = " ".join(v["detail"] for v in json.loads(out) if v["verdict"] == "FAIL")
        self.assertIn(tensor + "[70][0] is not finite", text)
        self.assertIn("block 7, stage v, head 1, channel 6", text)
        status, _, err = run("generate", "-m", bad, "-p", "Hello")
        self.assertEqual(status, 1)
        self.assertIn(b"stage v", err)

    def test_bench_reports_shares(self):
        got = json.loads(self.ok("bench", "-r", 1, "-b", "1,2", "--prompt-lengths", "64", "-n", 2, "--json"))
        self.assertEqual([(r["test"], r["batch"]) for r in got["results"]], [("decode", 1), ("decode", 2), ("prefill", 1)])
        self.assertTrue(all(r["tokens_per_second"] > 0 and r["share"] > 0 for r in got["results"]))
        one, two, prompt = got["results"]
        self.assertEqual((one["gain"], prompt["gain"]), (1, None))
        self.assertTrue(0 < two["gain"] < 20)
        alone = json.loads(self.ok("bench", "-r", 1, "-b", "2", "--no-prefill", "-n", 2, "--json"))["results"]
        self.assertEqual((alone[0]["logits_hash"], alone[0]["gain"]), (two["logits_hash"], 1))
        again = json.loads(self.ok("bench", "-r", 1, "-b", "1,2", "--prompt-lengths", "64", "-n", 3, "--threads", 1, "--json"))
        self.assertEqual([r["logits_hash"] for r in got["results"]], [r["logits_hash"] for r in again["results"]])

    def test_bench_measures_every_combination(self):
        out = self.ok("bench", "--preset", "tiny", "--type", "bf16", "--type", "q8_0", "--activations", "f32",
                      "--activations", "bf16", "--thread-counts", "1,2", "-r", 1, "-n", 2, "-b", 3, "--prompt-lengths", 40, "--csv")
        rows = list(csv.DictReader(io.StringIO(out)))
        self.assertEqual(len(rows), 2 * 2 * 2 * 2)
        key = ("threads", "weights", "activations", "test")
        self.assertEqual(len({tuple(r[k] for k in key) for r in rows}), 16)
        hashes = {}
        for r in rows:
            self.assertTrue(r["backend"].startswith("cpu (") and r["cpu"] and r["model"].startswith("preset:tiny:"))
            self.assertEqual((r["state"], r["batch"], r["length"]),
                             ("float32", "3", "1") if r["test"] == "decode" else ("float32", "1", "40"))
            gb, gflop = float(r["gb_per_second"]), float(r["gflop_per_second"])
            self.assertAlmostEqual(gflop / gb / float(r["flop_per_byte"]), 1, places=3)
            self.assertTrue(gb > 0 and float(r["read_gb_per_second"]) > 0 and float(r["best_share"]) > 0 and r["best_peak"])
            hashes.setdefault((r["weights"], r["activations"], r["test"]), set()).add(r["logits_hash"])
        self.assertTrue(all(len(h) == 1 for h in hashes.values()))  # whatever the number of threads
        self.assertEqual(len({next(iter(h)) for h in hashes.values()}), 8)

    def test_bench_against_stated_limits(self):
        got = json.loads(self.ok("bench", "-r", 1, "-b", 1, "-n", 2, "--prompt-lengths", 16, "--limit-read", 50, "--limit-peak", 200,
                                 "--json"))
        for r in got["results"]:
            self.assertEqual((r["kernel_peak"], r["best_peak"]), ("given", "given"))
            self.assertAlmostEqual(r["read_share"], r["gb_per_second"] / 50, places=3)
            self.assertAlmostEqual(r["best_share"], r["gflop_per_second"] / 200, places=3)
        for flags in (["--thread-counts", "0"], ["--batch", "0"], ["--activations", "f7"], ["--type", "bf16"]):
            self.assertEqual(run("bench", *flags)[0], 2, flags)

    def test_bench_names_the_wrong_option(self):
        for flags, says in ((["--batch", "4097"], ("--batch:", "1 to 4096", "4097")), (["--batch", "1,0"], ("--batch:", "found 0")),
                            (["--prompt-lengths", "1000001"], ("--prompt-lengths:", "1000000", "1000001")),
                            (["--thread-counts", "9999"], "--thread-counts:"), (["--type", "foo"], ("--type:", "'foo'")),
                            (["--activations", "q8_0"], ("--activations:", "float32", "q8_0"))):
            self.assertNotIn("--dtype", self.fails(2, "bench", "--preset", "tiny", *flags, says=says))

    def test_bench_ends_soon_after_ctrl_c(self):
        for wait in 0.5, 1.5, 3:  # while the limits are first measured, and later
            process = subprocess.Popen([PROGRAM, "bench", "--preset", "tiny", "-r", "100", "--json"], stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, env=clean_environment())
            time.sleep(wait)
            started = time.time()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
            self.assertEqual((process.returncode, err), (130, b""))
            self.assertLess(time.time() - started, 20)  # a tenth of a second on a quiet machine; the whole takes minutes
            if out:
                json.loads(out)

    def test_roofline_plots(self):
        names = ("cpu,backend,threads,model,weights,activations,state,test,batch,length,tokens_per_second,spread,gb_per_second,"
                 "gflop_per_second,read_gb_per_second,read_share,kernel_peak,kernel_gflop_per_second,kernel_share,best_peak,"
                 "best_gflop_per_second,best_share,flop_per_byte,logits_hash")
        rows = ['A & B <chip>,"cpu (avx512, 2 threads)",2,preset:7b:q8_0,q8_0,float32,float32,decode,%d,1,5,0.1,40,%d,60,0.66,avx512-vnni,'
                '2000,0.02,amx-int8,9000,0.01,%g,00' % (b, 40 * b, b) for b in (1, 8)]
        rows.append('A & B <chip>,"cpu (avx512, 2 threads)",2,preset:7b:bf16,bfloat16,bfloat16,float32,prefill,1,512,80,0.1,2,900,50,0.03,'
                    'avx512-bf16,1000,0.9,amx-bf16,4000,0.2,500,00')
        write(self.path("a.csv"), "\n".join([names, *rows, ""]).encode())
        lines = ['{"device":"cuda (0: Some GPU)","weights":"bfloat16","activations":"bfloat16","state":"bfloat16","blocks":32,'
                 '"weight_bytes":13319555072,"state_bytes":67241984,"read_bytes_per_s":4.0e+12}',
                 '{"decode":1,"ms":3.9,"tokens_per_s":256}', '{"part":"cell","rows":1,"us_each":6}', '{"prefill":512,"ms":14}', ""]
        write(self.path("b.json"), "\n".join(lines).encode())
        for name, points, more in (("a.csv", 3, []), ("b.json", 2, ["--peak", "a product=785e12"])):
            done = subprocess.run([sys.executable, "tools/roofline.py", self.path(name), "-o", self.path("plot.svg"), *more],
                                  capture_output=True)
            self.assertEqual(done.returncode, 0, done.stderr.decode())
            root = xml.etree.ElementTree.fromstring(read(self.path("plot.svg")))
            texts = ["".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text")]
            numbers = [t for t in texts if t in ("1", "8", "512")]
            self.assertGreaterEqual(len(numbers), points)
            self.assertNotIn("nan", read(self.path("plot.svg")).decode())
            self.assertTrue(any(t.startswith("A & B <chip>: xlstm, 7b" if points == 3 else "Some GPU: xlstm, 7b") for t in texts))
            roofs = ["read 60 GB/s", "amx-int8", "avx512-bf16"] if points == 3 else ["read 4 TB/s", "a product"]
            for roof in roofs:
                self.assertTrue(any(t.startswith(roof) for t in texts), (roof, texts))


class Chat(Case):
    def talk(self, *lines, expected=0, more=()):
        status, out, err = run("chat", "--max-tokens", 8, "--seed", 3, *more, stdin="".join(x + "\n" for x in lines).encode())
        self.assertEqual(status, expected, err.decode())
        return out.decode(), err.decode()

    def test_commands(self):
        state = self.path("s")
        out, err = self.talk("Hello", f"/save {state}", "/list", "/fork other", "More", "/list", "/switch main", "/list",
                             "/undo", "/list", "/undo", "/reset", f"/load {state}", "/list", "/stats", "/help", "//x",
                             "/quit", "never said")
        self.assertTrue(out.strip())
        counts = [int(n) for n in re.findall(r"main: (\d+) tokens", err)]
        self.assertEqual(counts[0], counts[1])
        self.assertEqual(counts[0], counts[2])
        self.assertEqual(counts[3], 0)
        self.assertIn("nothing to undo", err)
        self.assertIn("/regenerate", err)
        self.assertGreater(int(re.findall(r"other: (\d+) tokens", err)[0]), counts[0])
        info = self.talk(f"/load {state}", "/list", more=["-q"])[1]
        self.assertIn(f"main: {counts[0]} tokens", info)
        self.assertIn(f"main: {counts[0]} tokens", self.talk("/list", more=["--state-in", state])[1])

    def test_first_turns_come_from_the_prefix_cache(self):
        folder = self.path("cache")
        plain = self.talk("Hello there, dear bear", more=["--temperature", "0"])[0]
        for read in (True, False):  # the second time the whole turn was read before
            out, err = self.talk("Hello there, dear bear", more=["--temperature", "0", "--stats", "--prefix-cache", folder])
            self.assertEqual(out, plain)
            tokens = int(re.search(r"prompt\s+(\d+) tokens", err)[1])
            self.assertEqual(tokens > 0, read)

    def test_undo_reaches_back_over_several_turns(self):
        out, err = self.talk("One", "/list", "Two", "/list", "Three", "/undo", "/list", "/undo", "/list", "/undo", "/list",
                             "/undo")
        counts = [int(n) for n in re.findall(r"main: (\d+) tokens", err)]
        self.assertEqual(counts, [counts[0], counts[1], counts[1], counts[0], 0])
        self.assertIn("nothing to undo", err)

    def test_turns_go_on_from_the_state(self):
        """A second turn is the same after a fork, and after a turn that was taken back."""
        first = self.talk("Hello", more=["--temperature", "0"])[0]
        both = self.talk("Hello", "And then?", more=["--temperature", "0"])[0]
        self.assertTrue(both.startswith(first))
        forked = self.talk("Hello", "/fork b", "And then?", more=["--temperature", "0"])[0]
        self.assertEqual(forked, both)
        undone = self.talk("Hello", "Nonsense 12345", "/undo", "And then?", more=["--temperature", "0"])[0]
        self.assertTrue(undone.endswith(both[len(first):]))
        again = self.talk("Hello", "/regenerate", more=["--temperature", "0"])[0]
        self.assertEqual(again, first * 2)

    def test_errors(self):
        for line, says in (("/sav x", "did you mean /save"), ("/save", "needs a FILE"), ("/undo 3", "takes nothing"),
                           ("/switch nowhere", "no conversation named nowhere"), ("/load /no/such", "/no/such"),
                           ("/fork main", "already")):
            self.assertIn(says, self.talk(line, expected=1)[1])

    def test_continued_line_and_prefixes(self):
        err = self.talk("Hello\\", "there", "/undo", "/undo")[1]  # one turn, not two
        self.assertEqual((err.count("is forgotten"), err.count("nothing to undo")), (1, 1))
        out = self.talk("Hello", more=["--user-prefix", "Q: ", "--assistant-prefix", r"\nA:", "--escape", "--system", "S"])
        self.assertTrue(out[0].strip())


    def test_chat_template(self):
        """What is read is exactly what the template says, turn by turn."""
        template = self.path("t.jinja")
        write(template, b"{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>{% endfor %}"
                        b"{% if add_generation_prompt %}<assistant>{% endif %}")
        more = ["--chat-template", template, "--temperature", "0", "--system", "Be kind."]
        out, err = self.talk("Hello", "/list", "And?", "/list", more=more)
        counts = [int(n) for n in re.findall(r"main: (\d+) tokens", err)]

        def length(text):
            return len(json.loads(self.ok("tokenize", "--json", "-p", text)))
        first = "<system>Be kind.<|endoftext|><user>Hello<|endoftext|><assistant>"
        answer = json.loads(self.ok("generate", "-p", first, "--temperature", 0, "--max-tokens", 8, "--output", "json"))
        self.assertEqual(counts[0], 1 + length(first) + len(answer["ids"]))
        self.assertTrue(out.startswith(answer["text"].lstrip()))
        self.assertGreaterEqual(counts[1], counts[0] + length("<|endoftext|><user>And?<|endoftext|><assistant>"))
        write(template, b"{{ raise_exception('no system, please') }}")
        self.assertIn("no system, please", self.talk("Hello", expected=1, more=more)[1])
        model = self.model_copy()
        config = json.loads(read(os.path.join(MODEL, "tokenizer_config.json")))
        config["chat_template"] = "{{ raise_exception('its own') }}"
        os.remove(os.path.join(model, "tokenizer_config.json"))
        write(os.path.join(model, "tokenizer_config.json"), json.dumps(config).encode())
        self.assertIn("its own", self.talk("Hello", expected=1, more=["-m", model])[1])
        self.assertNotIn("its own", self.talk("Hello", more=["-m", model, "--chat-template", "plain"])[1])
        self.assertTrue(json.loads(self.ok("info", "-m", model, "--json"))["chat_template"])


class Sessions(Case):
    def session(self, *arguments):
        return ["session", *arguments, "--store", self.path("store")]

    def listed(self):
        return json.loads(self.ok(*self.session("list", "--json")))

    def start(self, *arguments):
        return subprocess.Popen([PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env=clean_environment())

    def test_interrupted_text_is_kept(self):
        process = self.start(*self.session("resume", "s", "--create", "-p", PROMPT, "--max-tokens", "1000000", "--ignore-eos"))
        process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130, err)
        self.assertTrue(out.endswith(b"\n"))
        position = self.listed()[0]["position"]
        self.assertGreater(position, 10)
        self.ok(*self.session("resume", "s", "--max-tokens", 2))
        self.assertEqual(self.listed()[0]["position"], position + 2)

    def test_interrupted_while_reading(self):
        self.interrupt_reading(*self.session("resume", "s", "--create"), says="interrupted while reading the prompt; nothing was stored")
        self.assertEqual(self.listed(), [])

    def test_names_are_refused_before_anything_is_said(self):
        for name, says in (("a\nb", "control character"), ("n" * 300, "300 bytes"), ("7", "letter"), ("", "empty")):
            self.fails(2, *self.session("resume", name, "--create", "-p", PROMPT), says=says)
        self.fails(1, *self.session("resume", "7", "-p", PROMPT), says='no session "7"')
        self.ok(*self.session("resume", "s", "--create", "-p", PROMPT, "--max-tokens", 1))
        self.fails(1, *self.session("fork", "s", "--name", "1"), says="letter")
        self.fails(1, *self.session("rename", "s", "1"), says="letter")
        self.fails(1, *self.session("show", "+1"), says="no session")
        self.ok(*self.session("resume", "1", "--create", "-p", PROMPT, "--max-tokens", 1))
        self.assertEqual([e["name"] for e in self.listed()], ["s"])
        self.ok(*self.session("rename", "1", ""))
        self.assertEqual([e["name"] for e in self.listed()], [""])


class Stops(Case):
    """Stop rules that could never be met are refused, as are texts that a NUL would cut."""

    def test_of_every_command(self):
        for command in (["generate"], ["chat"], ["session", "resume", "s", "--create", "--store", self.path("store")]):
            prompt = [] if command == ["chat"] else ["-p", PROMPT]
            for flags, says in ((["--stop="], "--stop is empty"), (["--stop-id", "99999"], ("--stop-id: 99999", "4095")),
                                (["--escape", "--stop", r"\0"], "--stop")):
                self.fails(2, *command, *prompt, *flags, says=says)
        for flags in (["--stop", r"a\0b"], ["--system", r"a\0b"], ["--user-prefix", r"\x00"]):
            self.fails(2, "chat", "--escape", *flags, says=(flags[0], "NUL"))
        self.fails(2, *command, "-p", PROMPT, "--escape", "--stop", r"a\0b", says="NUL")
        self.fails(1, "chat", "--logit-bias", "99999=1", says="99999")

    def test_turn_with_a_nul(self):
        status, out, err = run("chat", "--max-tokens", 2, stdin=b"Hello\0there\n/list\n\0\n")
        self.assertEqual((status, out), (1, b""))
        self.assertEqual(err.count(b"NUL"), 2)
        self.assertIn(b"main: 0 tokens", err)


class UnreadableInput(Case):
    def test_is_not_the_end_of_the_text(self):
        folder = os.open(self.folder, os.O_RDONLY)
        self.addCleanup(os.close, folder)
        for command in (["chat"], ["tokenize"], ["tokenize", "--jsonl"], ["tokenize", "--jsonl", "--decode"]):
            done = subprocess.run([PROGRAM, *command], stdin=folder, capture_output=True, env=clean_environment())
            self.assertEqual((done.returncode, done.stdout), (1, b""), command)
            self.assertEqual(done.stderr.count(b"cannot read standard input: Is a directory"), 1)


class Terminal(Case):
    """A person at a keyboard, played by a pseudo terminal."""

    def start(self, *arguments):
        pid, fd = pty.fork()
        if pid == 0:
            env = clean_environment({"TERM": "xterm", "HOME": self.folder, "LC_ALL": "C.UTF-8"})
            env.pop("XDG_STATE_HOME", None)
            os.execve(PROGRAM, [PROGRAM, *arguments], env)
        self.pid, self.fd, self.seen = pid, fd, b""
        self.addCleanup(os.close, fd)

    def wait_for(self, text, seconds=60):
        """Reads until `text` comes after what was waited for before."""
        end = time.time() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.time()))
            if not ready:
                self.fail(f"{text!r} did not come, but {self.seen!r}")
            try:
                data = os.read(self.fd, 4096)
            except OSError:
                data = b""
            if not data:
                self.fail(f"{text!r} did not come before the end, but {self.seen!r}")
            self.seen += data
        before, self.seen = self.seen.split(text, 1)
        return before

    def send(self, data):
        os.write(self.fd, data)

    def exit_status(self):
        """After Ctrl-D or /quit. The line editor shows its prompt a moment before it listens, and a Ctrl-D that comes in
        between is lost to it, so it is pressed again, as a person would."""
        end = time.time() + 60
        pressed = time.time()
        while time.time() < end:
            if time.time() > pressed + 2:
                pressed = time.time()
                self.send(b"\x04")
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if select.select([self.fd], [], [], 0.05)[0]:
                try:
                    os.read(self.fd, 4096)
                except OSError:
                    pass
        os.kill(self.pid, signal.SIGKILL)
        self.fail("the program did not end")

    def test_chat(self):
        self.start("chat", "--max-tokens", "4", "--seed", "1", "--stats")
        self.wait_for(b"Ctrl-D leaves")
        self.wait_for(b"> ")
        self.send(b"Hello\r")
        self.wait_for(b"memory")
        self.wait_for(b"> ")
        self.send(b"half a line\x03")
        self.wait_for(b"^C")
        self.wait_for(b"> ")
        self.send(b"\x1b[200~first line\nsecond\tline\x1b[201~")
        self.wait_for("second".encode())
        self.send(b" end\r")
        self.wait_for(b"memory")
        self.wait_for(b"> ")
        self.send(b"/list\r")
        self.wait_for(b"* main")
        self.wait_for(b"> ")
        self.send(b"\x04")
        self.assertEqual(self.exit_status(), 0)
        history = read(self.path(".local/state/xlstm/history"))
        self.assertIn(b"Hello", history)
        self.assertEqual(os.stat(self.path(".local/state/xlstm/history")).st_mode & 0o777, 0o600)

    def test_ctrl_c_stops_the_answer_only(self):
        self.start("chat", "--max-tokens", "1000000", "--ignore-eos", "--seed", "1", "--user-prefix", "")
        self.wait_for(b"> ")
        self.send(b"Hello\r")
        self.wait_for(b"\x1b[?2004l")  # the line was taken
        time.sleep(1.5)
        self.send(b"\x03")
        self.wait_for(b"> ")
        self.send(b"/list\r")
        self.wait_for(b"tokens read")
        self.wait_for(b"> ")
        self.send(b"/quit\r")
        self.assertEqual(self.exit_status(), 0)

    def test_interactive(self):
        self.start("generate", "--interactive", "--max-tokens", "3", "--temperature", "0")
        self.wait_for(b"> ")
        self.send(b"Once upon\r")
        self.wait_for(b"Once upon a time")
        self.wait_for(b"> ")
        self.send(b"\x04")
        self.assertEqual(self.exit_status(), 0)


if __name__ == "__main__":
    if not os.path.exists(PROGRAM):
        print(f"skip: {PROGRAM} is not built")
        sys.exit(77)
    unittest.main()
