"""Hugging Face transformers as a source of reference numbers: loading in float32, logits, greedy ids, stages.

Shared by make_golden.py and parity.py. Everything runs on the CPU in float32 with transformers' own native kernels;
the stored weights are widened, never rounded.
"""

import numpy as np
import torch
import transformers

transformers.utils.logging.disable_progress_bar()

def from_pretrained(folder, dtype):
    """Without transformers' initialisation, which raises for the fused layout."""
    original = transformers.PreTrainedModel._initialize_weights
    transformers.PreTrainedModel._initialize_weights = lambda self, module, *rest: None
    try:
        return transformers.xLSTMForCausalLM.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    finally:
        transformers.PreTrainedModel._initialize_weights = original


def load(folder):
    """The checkpoint in float32. A missing head is tied by hand: transformers does not tie xLSTM heads itself."""
    from transformers.models.xlstm import modeling_xlstm

    if modeling_xlstm.external_xlstm:
        raise SystemExit("the xlstm package is installed: transformers would use its kernels; use an environment without it")
    model, info = from_pretrained(folder, torch.float32)
    missing = set(info["missing_keys"])
    if "lm_head.weight" in missing:
        missing.discard("lm_head.weight")
        with torch.no_grad():
            model.lm_head.weight.copy_(model.backbone.embeddings.weight)
    if missing or info["unexpected_keys"] or info["mismatched_keys"]:
        raise SystemExit(f"{folder}: tensors do not fit: {info}")
    return model.eval()


def cache_fits(model):
    """transformers rounds the cache's head sizes up to multiples of 64; where that differs it cannot carry a state."""
    config = model.config
    return (int(config.hidden_size * config.qk_dim_factor) == config.qk_dim
            and int(config.hidden_size * config.v_dim_factor) == config.v_dim)


@torch.no_grad()
def logits(model, ids):
    """float32 [S, V] of one prompt, from a fresh state."""
    return model(torch.tensor([list(ids)]), use_cache=False).logits[0].numpy()


@torch.no_grad()
def greedy(model, ids, count, carried):
    """`count` greedy ids, with a carried cache or by reading everything again each time."""
    out, cache = [], None
    feed = list(ids)
    for _ in range(count):
        result = model(torch.tensor([feed]), use_cache=carried, cache_params=cache)
        out.append(int(torch.argmax(result.logits[0, -1])))
        cache = result.cache_params if carried else None
        feed = [out[-1]] if carried else feed + [out[-1]]
    return out


@torch.no_grad()
def mean_nll(model, ids, slab=2048):
    """Mean negative log-likelihood (nats) of ids[1:], one endless stream: the state is carried through the whole text."""
    cache, total, hits = None, 0.0, 0
    for start in range(0, len(ids) - 1, slab):
        part = ids[start : min(start + slab, len(ids) - 1)]
        target = torch.tensor(ids[start + 1 : start + 1 + len(part)])
        result = model(torch.tensor([part]), use_cache=True, cache_params=cache)
        cache = result.cache_params
        rows = result.logits[0].double()
        total += float((torch.logsumexp(rows, -1) - rows.gather(1, target[:, None])[:, 0]).sum())
        hits += int((rows.argmax(-1) == target).sum())
    return total / (len(ids) - 1), hits / (len(ids) - 1)


@torch.no_grad()
def stages(model, ids, blocks=None):
    """(block, stage) -> float32 [S, width] for one prompt; block -1 is outside the blocks. Names as in reference.py."""
    out, hooks = {}, []
    NH = model.config.num_heads

    def keep(block, stage, value):
        out[(block, stage)] = value.detach().reshape(len(ids), -1).numpy().copy()

    def heads(value):  # [1, NH, S, d] -> [S, NH d]
        return value[0].transpose(0, 1)

    def on(module, function, before=False):
        register = module.register_forward_pre_hook if before else module.register_forward_hook
        hooks.append(register(function, with_kwargs=True))

    def wire(b, block):
        layer, ffn = block.mlstm_layer, block.ffn
        on(block.norm_mlstm, lambda m, a, k, y: (keep(b, "x_in", a[0]), keep(b, "norm_mlstm", y))[:0] or None)
        if hasattr(layer, "igate_preact"):
            on(layer.igate_preact, lambda m, a, k, y: keep(b, "igate_preact", y))
            on(layer.fgate_preact, lambda m, a, k, y: keep(b, "fgate_preact", y))
            on(layer.ogate_preact, lambda m, a, k, y: keep(b, "ogate_preact", y))
        else:
            on(layer.ifgate_preact, lambda m, a, k, y: (keep(b, "igate_preact", y[..., :NH]), keep(b, "fgate_preact", y[..., NH:]))[:0] or None)
            on(layer.qkv_opreact, lambda m, a, k, y: keep(b, "ogate_preact", y[..., 2 * layer.qk_dim + layer.v_dim :]))

        def backend(m, a, k, y):
            for name, key in (("q", "query"), ("k", "key"), ("v", "value")):
                keep(b, name, heads(k[key]))
            keep(b, "igate", k["igate"][0].T)
            keep(b, "fgate", k["fgate"][0].T)
            keep(b, "h", heads(y[0]))

        on(layer.mlstm_backend, backend)
        on(layer.multihead_norm, lambda m, a, k, y: keep(b, "mhnorm", y))
        on(layer.out_proj, lambda m, a, k, y: (keep(b, "gated", a[0]), keep(b, "out_proj", y))[:0] or None)
        on(block.norm_ffn, lambda m, a, k, y: (keep(b, "x_mid", a[0]), keep(b, "norm_ffn", y))[:0] or None)
        if hasattr(ffn, "proj_up_gate"):
            on(ffn.proj_up_gate, lambda m, a, k, y: keep(b, "proj_up_gate", y))
            on(ffn.proj_up, lambda m, a, k, y: keep(b, "proj_up", y))
        else:
            F = ffn.up_proj_dim
            on(ffn.proj_up_gate_z, lambda m, a, k, y: (keep(b, "proj_up_gate", y[..., :F]), keep(b, "proj_up", y[..., F:]))[:0] or None)
        on(ffn.proj_down, lambda m, a, k, y: (keep(b, "ffn_product", a[0]), keep(b, "proj_down", y))[:0] or None)
        on(block, lambda m, a, k, y: keep(b, "x_out", y[0]))

    for b, block in enumerate(model.backbone.blocks):
        if blocks is None or b in blocks:
            wire(b, block)
    on(model.backbone.out_norm, lambda m, a, k, y: keep(-1, "out_norm", y))
    try:
        keep(-1, "logits", model(torch.tensor([list(ids)]), use_cache=False).logits)
    finally:
        for hook in hooks:
            hook.remove()
    return out


def versions():
    return {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}
