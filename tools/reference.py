#!/usr/bin/env python3
"""The xLSTM Large forward pass, straight from its formulas, in numpy float64 or float32.

This is docs/model.md in executable form: written to be read, used as the oracle of the tests. It shares no code with
the engine. It reads what Hugging Face saves (config.json, one or many safetensors files; single or fused layout,
tied, biased; F32, F16, BF16) and computes logits with the recurrent cell, or with the chunkwise form.

    tools/reference.py MODEL --ids 1,2,3                    logits of the last token as JSON
    tools/reference.py MODEL --ids 1,2,3 --all --chunk 64   every row, cell in chunks of 64
    tools/reference.py MODEL --self-check                   step against chunk, state carry, norms

Shapes: S tokens, D embedding width, NH heads, dq and dv their key and value widths, Qd = NH dq, Vd = NH dv, F FFN
width, V vocabulary. Linear weights are [out, in].
"""

import argparse
import json
import math
import os
import sys

import numpy as np

# ---- files ----------------------------------------------------------------------------------------------------------


def read_safetensors(path):
    """name -> float32 or float64 array, whatever the storage format."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        data = file.read()
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[begin:end]
        if entry["dtype"] == "BF16":  # the upper half of a float32
            values = (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = np.frombuffer(raw, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[entry["dtype"]])
            if entry["dtype"] == "F16":
                values = values.astype(np.float32)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def read_folder(folder):
    """config.json and all tensors of a Hugging Face folder."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    index = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index):
        with open(index, encoding="utf-8") as file:
            files = sorted(set(json.load(file)["weight_map"].values()))
    else:
        files = ["model.safetensors"]
    tensors = {}
    for name in files:
        tensors.update(read_safetensors(os.path.join(folder, name)))
    return config, tensors


# ---- elementary functions ---------------------------------------------------------------------------------------------


def log_sigmoid(x):
    """-log(1 + exp(-x)) without overflow or cancellation."""
    return np.where(x >= 0, -np.log1p(np.exp(-np.abs(x))), x - np.log1p(np.exp(-np.abs(x))))


def sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def soft_cap(x, cap):
    return x if not cap else cap * np.tanh(x / cap)


def rms_norm(x, weight, bias, eps):
    y = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight
    return y if bias is None else y + bias


def multihead_layer_norm(h, weight, bias, eps):
    """h [S, NH, dv]: each head is centred and scaled by its own statistics, then weight [Vd] applies by channel."""
    centred = h - np.mean(h, axis=-1, keepdims=True)
    y = centred / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + eps)
    y = y.reshape(h.shape[0], -1) * weight
    return y if bias is None else y + bias


# ---- the mLSTM cell -----------------------------------------------------------------------------------------------------
# q, k [S, NH, dq], v [S, NH, dv], i, f [S, NH] already capped. State: C [NH, dq, dv], n [NH, dq], m [NH], zero at the
# start, m included. C and n are the true sums times exp(-m); keys are stored unscaled, q is scaled at read-out.


def cell_step(q, k, v, i, f, state, eps):
    """Token by token. Returns h [S, NH, dv], the new state, and the per-token scalars for tracing."""
    C, n, m = (a.copy() for a in state)
    scale = q.dtype.type(q.shape[-1] ** -0.5)
    h = np.empty_like(v)
    scalars = {name: np.empty_like(i) for name in ("lf", "m", "fa", "ia", "qn", "den")}
    for t in range(q.shape[0]):
        lf = log_sigmoid(f[t])
        m_new = np.maximum(lf + m, i[t])
        fa = np.exp(lf + m - m_new)
        ia = np.exp(i[t] - m_new)
        m = m_new
        C = fa[:, None, None] * C + (ia[:, None] * k[t])[:, :, None] * v[t][:, None, :]
        n = fa[:, None] * n + ia[:, None] * k[t]
        sq = scale * q[t]
        num = np.einsum("ha,hab->hb", sq, C)
        qn = np.sum(sq * n, axis=-1)
        den = np.maximum(np.abs(qn), np.exp(-m)) + q.dtype.type(eps)
        h[t] = num / den[:, None]
        for name, value in (("lf", lf), ("m", m), ("fa", fa), ("ia", ia), ("qn", qn), ("den", den)):
            scalars[name][t] = value
    return h, (C, n, m), scalars


def cell_chunk(q, k, v, i, f, state, eps):
    """All rows of one chunk at once; the same numbers as cell_step up to rounding."""
    C, n, m = state
    S = q.shape[0]
    scale = q.dtype.type(q.shape[-1] ** -0.5)
    b = np.cumsum(log_sigmoid(f), axis=0)  # [S, NH], inclusive
    past = np.tril(np.ones((S, S), bool))[:, :, None]  # row t sees columns j <= t
    log_d = np.where(past, b[:, None, :] - b[None, :, :] + i[None, :, :], -np.inf)  # [S, S, NH]
    M = np.maximum(b + m, np.max(log_d, axis=1))  # [S, NH]
    P = scale * np.einsum("tha,jha->tjh", q, k) * np.exp(log_d - M[:, None, :])
    beta = np.exp(b + m - M)
    num = scale * beta[:, :, None] * np.einsum("tha,hab->thb", q, C) + np.einsum("tjh,jhb->thb", P, v)
    qn = scale * beta * np.einsum("tha,ha->th", q, n) + np.sum(P, axis=1)
    h = num / (np.maximum(np.abs(qn), np.exp(-M)) + q.dtype.type(eps))[:, :, None]

    G = b[-1]
    a = G - b + i
    m_new = np.maximum(G + m, np.max(a, axis=0))
    keep = np.exp(G + m - m_new)
    weight = np.exp(a - m_new)[:, :, None] * k
    C_new = keep[:, None, None] * C + np.einsum("jha,jhb->hab", weight, v)
    n_new = keep[:, None] * n + np.sum(weight, axis=0)
    return h, (C_new, n_new, m_new)


# ---- the model ----------------------------------------------------------------------------------------------------------


class Model:
    """Weights under the names of the single layout, in the dtype of the computation."""

    def __init__(self, folder, dtype=np.float64):
        config, tensors = read_folder(folder)
        self.dtype = np.dtype(dtype)
        self.config = config
        self.D = config.get("embedding_dim") or config["hidden_size"]
        self.blocks = config.get("num_blocks") or config["num_hidden_layers"]
        self.NH = config["num_heads"]
        self.Qd = int(self.D * config.get("qk_dim_factor", 0.5))
        self.Vd = int(self.D * config.get("v_dim_factor", 1.0))
        m = config.get("ffn_round_up_to_multiple_of", 64)
        self.F = int((self.D * config.get("ffn_proj_factor", 2.667) + (m - 1)) // m * m)
        self.norm_eps = config.get("norm_eps", 1e-6)
        self.eps = config.get("eps", 1e-6)
        self.gate_cap = config.get("gate_soft_cap", 15.0)
        self.logit_cap = config.get("output_logit_soft_cap", 30.0)
        self.w = {name: value.astype(self.dtype) for name, value in self._single(tensors).items()}
        self.w.setdefault("lm_head.weight", self.w["backbone.embeddings.weight"])
        self.V = self.w["lm_head.weight"].shape[0]

    def _single(self, tensors):
        """Splits fused tensors: q k v o, i f, gate up, along their first dimension."""
        parts = {
            "mlstm_layer.qkv_opreact": (
                ("mlstm_layer.q", self.Qd),
                ("mlstm_layer.k", self.Qd),
                ("mlstm_layer.v", self.Vd),
                ("mlstm_layer.ogate_preact", self.Vd),
            ),
            "mlstm_layer.ifgate_preact": (("mlstm_layer.igate_preact", self.NH), ("mlstm_layer.fgate_preact", self.NH)),
            "ffn.proj_up_gate_z": (("ffn.proj_up_gate", self.F), ("ffn.proj_up", self.F)),
        }
        out = {}
        for name, value in tensors.items():
            fused = next((p for p in parts if "." + p + "." in name), None)
            if fused is None:
                out[name] = value
                continue
            row = 0
            for part, rows in parts[fused]:
                out[name.replace(fused, part)] = value[row : row + rows]
                row += rows
        return out

    def fresh_state(self):
        """Per block C, n, m: all zero."""
        dq, dv = self.Qd // self.NH, self.Vd // self.NH
        return [
            (np.zeros((self.NH, dq, dv), self.dtype), np.zeros((self.NH, dq), self.dtype), np.zeros(self.NH, self.dtype))
            for _ in range(self.blocks)
        ]

    def _linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        bias = self.w.get(name + ".bias")
        return y if bias is None else y + bias

    def _block(self, b, x, state, chunk, trace):
        p = f"backbone.blocks.{b}."
        S, NH = x.shape[0], self.NH

        def keep(stage, value):
            if trace is not None:
                trace[f"{b}.{stage}"] = np.asarray(value).reshape(S, -1)
            return value

        keep("x_in", x)
        u = keep("norm_mlstm", rms_norm(x, self.w[p + "norm_mlstm.weight"], self.w.get(p + "norm_mlstm.bias"), self.norm_eps))
        q = keep("q", self._linear(u, p + "mlstm_layer.q"))
        k = keep("k", self._linear(u, p + "mlstm_layer.k"))
        v = keep("v", self._linear(u, p + "mlstm_layer.v"))
        o = keep("ogate_preact", self._linear(u, p + "mlstm_layer.ogate_preact"))
        i_raw = keep("igate_preact", self._linear(u, p + "mlstm_layer.igate_preact"))
        f_raw = keep("fgate_preact", self._linear(u, p + "mlstm_layer.fgate_preact"))
        i = keep("igate", soft_cap(i_raw, self.gate_cap))
        f = keep("fgate", soft_cap(f_raw, self.gate_cap))
        q, k, v = (a.reshape(S, NH, -1) for a in (q, k, v))
        if chunk:
            h = np.empty_like(v)
            for t in range(0, S, chunk):
                part = slice(t, min(t + chunk, S))
                h[part], state = cell_chunk(q[part], k[part], v[part], i[part], f[part], state, self.eps)
        else:
            h, state, scalars = cell_step(q, k, v, i, f, state, self.eps)
            for name, value in scalars.items():
                keep(name, value)
        keep("h", h)
        g = multihead_layer_norm(
            h, self.w[p + "mlstm_layer.multihead_norm.weight"], self.w.get(p + "mlstm_layer.multihead_norm.bias"), self.norm_eps
        )
        keep("mhnorm", g)
        g = keep("gated", sigmoid(o) * g)
        x = keep("x_mid", x + keep("out_proj", self._linear(g, p + "mlstm_layer.out_proj")))
        w = keep("norm_ffn", rms_norm(x, self.w[p + "norm_ffn.weight"], self.w.get(p + "norm_ffn.bias"), self.norm_eps))
        gate = keep("proj_up_gate", self._linear(w, p + "ffn.proj_up_gate"))
        up = keep("proj_up", self._linear(w, p + "ffn.proj_up"))
        a = keep("ffn_product", gate * sigmoid(gate) * up)
        x = keep("x_out", x + keep("proj_down", self._linear(a, p + "ffn.proj_down")))
        return x, state

    def forward(self, ids, state=None, chunk=0, trace=None, last=False):
        """Logits [S, V] (or [1, V] with `last`) and the new state. chunk 0: the recurrent cell."""
        state = self.fresh_state() if state is None else list(state)
        x = self.w["backbone.embeddings.weight"][np.asarray(ids, dtype=np.int64)]
        for b in range(self.blocks):
            x, state[b] = self._block(b, x, state[b], chunk, trace)
        if last:
            x = x[-1:]
        if "backbone.out_norm.weight" in self.w:
            x = rms_norm(x, self.w["backbone.out_norm.weight"], self.w.get("backbone.out_norm.bias"), self.norm_eps)
        if trace is not None:
            trace["-1.out_norm"] = x
        logits = soft_cap(x @ self.w["lm_head.weight"].T, self.logit_cap)
        return logits, state

    def greedy(self, logits, state, count):
        """`count` ids that follow a last row of logits, the lowest on ties, and the smallest lead of a winner over the
        second best."""
        out, lead = [], math.inf
        for _ in range(count):
            best = int(np.argmax(logits))
            lead = min(lead, float(logits[best] - np.partition(logits, -2)[-2]))
            out.append(best)
            rows, state = self.forward([best], state)
            logits = rows[-1]
        return out, lead


def self_check(model):
    """The properties that need no outside reference. Returns the worst step-against-chunk difference."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, model.V, 150)
    step, state = model.forward(ids)
    worst = 0.0
    for chunk in (1, 7, 16, 64, 150):
        logits, other = model.forward(ids, chunk=chunk)
        worst = max(worst, float(np.max(np.abs(logits - step))))
        for (C, n, m), (C2, n2, m2) in zip(state, other):
            assert np.allclose(m, m2, rtol=0, atol=1e-11 if model.dtype == np.float64 else 1e-4)
            worst = max(worst, float(np.max(np.abs(C - C2)) / max(1.0, np.max(np.abs(C)))))
    for cut in (1, 63, 64, 130):  # state carry
        head, carried = model.forward(ids[:cut], chunk=64)
        tail, _ = model.forward(ids[cut:], carried)
        worst = max(worst, float(np.max(np.abs(np.concatenate([head, tail]) - step))))
    constant = multihead_layer_norm(np.full((1, 2, 8), 3.0), np.ones(16), None, 1e-6)
    assert np.all(constant == 0), "a constant head must normalise to zero"
    return worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--ids", default="", help="comma-separated token ids")
    parser.add_argument("--all", action="store_true", help="logits of every row")
    parser.add_argument("--chunk", type=int, default=0, help="tokens a chunk; 0: token by token")
    parser.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    parser.add_argument("--trace", metavar="FILE.npz", help="write every stage of every block")
    parser.add_argument("--self-check", action="store_true")
    args = parser.parse_args()
    model = Model(args.model, np.dtype(args.dtype))
    if args.self_check:
        print(f"{args.model}: step against chunk {self_check(model):.3g}")
        return
    ids = [int(word) for word in args.ids.split(",") if word]
    if not ids or min(ids) < 0 or max(ids) >= model.V:
        sys.exit(f"--ids: need ids between 0 and {model.V - 1}")
    trace = {} if args.trace else None
    logits, _ = model.forward(ids, chunk=args.chunk, trace=trace)
    if args.trace:
        np.savez(args.trace, **trace)
    json.dump({"ids": ids, "logits": (logits if args.all else logits[-1]).tolist()}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
