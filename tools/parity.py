#!/usr/bin/env python3
"""Compares any xLSTM checkpoint folder with Hugging Face transformers: every stage of every block, logits, greedy ids.

    .venv/bin/pip install -r tools/requirements-hf.txt
    make parity MODEL=DIR                                   or: tools/parity.py --library build/libxlstm.so --model DIR

Both sides compute in float32 from the stored weights (transformers in memory: 4 bytes a parameter). Differences are given
as a share of the stage's largest value. Exit status 0: within the bounds; 1: not; 77: packages are missing.
"""

import argparse
import ctypes
import os
import sys

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, str(max(1, len(os.sched_getaffinity(0)) // 2)))

try:
    import numpy as np

    import hf
except ImportError as missing:
    print(f"skip: {missing}; pip install -r tools/requirements-hf.txt")
    sys.exit(77)

STAGE_BOUND = 1e-4  # of the stage's largest value; grows with depth in any float32 computation
LOGIT_ABSOLUTE, LOGIT_RELATIVE = 2e-4, 5e-5
LENGTHS = (1, 2, 17, 63, 64, 65, 130, 257)

# Just enough of include/xlstm.h.
XLSTM_F32, XLSTM_OFF, XLSTM_WANT_LAST, XLSTM_WANT_ALL = 2, 2, 1, 2
TRACE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_float),
                         ctypes.c_size_t, ctypes.c_size_t)


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 1020)]


class Options(ctypes.Structure):  # the first members; the rest stays zero, which means the defaults
    _fields_ = [("dtype", ctypes.c_int), ("kernel_dtype", ctypes.c_int), ("state_dtype", ctypes.c_int),
                ("norm_reduction_float32", ctypes.c_int), ("bos", ctypes.c_int), ("obey_config_eos", ctypes.c_bool),
                ("backend", ctypes.c_char_p), ("rest", ctypes.c_char * 512)]


class Segment(ctypes.Structure):
    _fields_ = [("session", ctypes.c_void_p), ("tokens", ctypes.POINTER(ctypes.c_int32)), ("count", ctypes.c_size_t),
                ("want", ctypes.c_int), ("logits", ctypes.POINTER(ctypes.c_float)), ("status", ctypes.c_int),
                ("sampler", ctypes.c_void_p), ("id", ctypes.c_int32)]


class Engine:
    """libxlstm in float32, without automatic BOS."""

    def __init__(self, library, folder, backend, vocab_size):
        self.lib = ctypes.CDLL(os.path.abspath(library))
        self.error, self.model, self.V = Error(), ctypes.c_void_p(), vocab_size
        options = Options(dtype=XLSTM_F32, bos=XLSTM_OFF, backend=backend.encode() if backend else None)
        self._call("xlstm_model_open", ctypes.byref(self.model), folder.encode(), ctypes.byref(options))

    def _call(self, name, *arguments):
        if getattr(self.lib, name)(*arguments, ctypes.byref(self.error)) != 0:
            sys.exit(self.error.message.decode())

    def session(self):
        session = ctypes.c_void_p()
        self._call("xlstm_session_new", ctypes.byref(session), self.model)
        return session

    def free(self, session):
        self.lib.xlstm_session_free(session)

    def read(self, session, ids):
        """float32 [len(ids), V]."""
        rows = np.empty((len(ids), self.V), np.float32)
        segment = Segment(session, (ctypes.c_int32 * len(ids))(*ids), len(ids), XLSTM_WANT_ALL,
                          rows.ctypes.data_as(ctypes.POINTER(ctypes.c_float)))
        self._call("xlstm_evaluate", self.model, ctypes.byref(segment), ctypes.c_size_t(1))
        return rows

    def stages(self, ids):
        out, session = {}, self.session()

        def note(_, block, stage, values, rows, width):
            out[(block, stage.decode())] = np.ctypeslib.as_array(values, (rows, width)).copy()

        callback = TRACE(note)
        self.lib.xlstm_session_set_trace(session, callback, None)
        self.read(session, ids)
        self.free(session)
        return out

    def logits(self, ids):
        session = self.session()
        rows = self.read(session, ids)
        self.free(session)
        return rows

    def greedy(self, ids, count):
        session = self.session()
        out, row = [], self.read(session, ids)[-1]
        for _ in range(count):
            out.append(int(np.argmax(row)))
            row = self.read(session, out[-1:])[-1]
        self.free(session)
        return out


def share(a, b):
    """Largest difference as a share of the largest value of b; NaN counts as infinite."""
    off = float(np.max(np.abs(a - b))) / max(float(np.max(np.abs(b))), 1e-30)
    return off if off == off else float("inf")


def compare_stages(engine, model, ids):
    ours, theirs = engine.stages(ids), hf.stages(model, ids)
    names = [stage for block, stage in ours if block == 0]
    absent = [key for key in ours if key not in theirs]
    if absent:
        sys.exit(f"transformers shows no stage {absent[0]}")
    print(f"Stages of a prompt of {len(ids)} tokens, largest difference as a share of the stage's largest value")
    print(f"{'stage':14} {'worst':>9} {'in block':>8}   {'block 0':>9} {'last':>9}")
    blocks = 1 + max(block for block, _ in ours)
    worst = 0.0
    for stage in names:
        found = [share(ours[(b, stage)], theirs[(b, stage)]) for b in range(blocks)]
        at = int(np.argmax(found))
        worst = max(worst, found[at])
        print(f"{stage:14} {found[at]:9.1e} {at:8d}   {found[0]:9.1e} {found[-1]:9.1e}{'' if found[at] <= STAGE_BOUND else '   <-- too much'}")
    for stage in ("out_norm", "logits"):
        off = share(ours[(-1, stage)], theirs[(-1, stage)])
        worst = max(worst, off)
        print(f"{stage:14} {off:9.1e}{'' if off <= STAGE_BOUND else '   <-- too much'}")
    return worst <= STAGE_BOUND


def compare_logits(engine, model, prompts, count):
    fine = True
    print("\nLogits of all rows and greedy ids")
    for ids in prompts:
        a, b = engine.logits(ids), hf.logits(model, ids)
        off, relative = float(np.max(np.abs(a - b))), share(a, b)
        ours, theirs = engine.greedy(ids, count), hf.greedy(model, ids, count, hf.cache_fits(model))
        same = next((i for i, (x, y) in enumerate(zip(ours, theirs)) if x != y), count)
        good = off <= LOGIT_ABSOLUTE and relative <= LOGIT_RELATIVE
        text = f"{same} of {count} greedy ids equal"
        if same < count:  # a tie within the bound may go either way
            row = np.sort(hf.logits(model, ids + theirs[:same])[-1])
            lead = float(row[-1] - row[-2])
            text += f", then a lead of {lead:.1e}"
            good = good and lead <= LOGIT_ABSOLUTE
        fine = fine and good
        print(f"{len(ids):5d} tokens: {off:.1e} absolute, {relative:.1e} of the largest; {text}"
              + ("" if good else "   <-- too much"), flush=True)
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--library", default="build/libxlstm.so")
    parser.add_argument("--model", required=True, help="a Hugging Face xLSTM folder")
    parser.add_argument("--backend", help="reference, reference64, cpu, cuda; default: the best")
    parser.add_argument("--text", metavar="FILE", help="prompts from this text instead of random ids; needs tokenizer.json")
    parser.add_argument("--greedy", type=int, default=24, help="greedy ids after each prompt")
    args = parser.parse_args()
    model = hf.load(args.model)
    V = model.config.vocab_size
    engine = Engine(args.library, args.model, args.backend, V)
    if args.text:
        from tokenizers import Tokenizer

        with open(args.text, encoding="utf-8") as file:
            ids = Tokenizer.from_file(os.path.join(args.model, "tokenizer.json")).encode(file.read(20000)).ids
        prompts = [([model.config.bos_token_id or 0] + ids)[:length] for length in LENGTHS]
    else:
        rng = np.random.default_rng(1)
        prompts = [rng.integers(0, V, length).tolist() for length in LENGTHS]
    fine = compare_stages(engine, model, prompts[2])
    fine = compare_logits(engine, model, prompts, args.greedy) and fine
    print("\nwithin the bounds" if fine else "\nNOT within the bounds")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
