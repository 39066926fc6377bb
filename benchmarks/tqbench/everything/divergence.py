"""Real keys and values through the codes, and what that does to the model's predictions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..checks import Check, at_least, at_most
from .context import Context
from .quoted import REVIEW
from .texts import sample_text

__all__ = ["check_distortion"]

GROUP = "Distortion of the cache"
_RATES = (2.0, 2.5, 3.0, 3.5, 4.0)
_QUICK_RATES = (2.0, 2.5, 3.0, 3.5)
_PAPER = {"code": "mse", "centre_keys": False}  # Algorithm 1 as printed
_MOST = {2.0: 0.25, 2.5: 0.12, 3.0: 0.06, 3.5: 0.035, 4.0: 0.02}  # nats, of the probe
_AGREEMENT = 0.9  # at the bits that needles require
Row = dict[str, Any]


def check_distortion(context: Context) -> tuple[list[Check], Row]:
    """Error of stored keys and values, divergence of the logits, and agreement of the most likely token."""
    import torch

    from ..kv.distortion import measure

    model, tokenizer = _model(context)
    size, count = (512, 2) if context.options.quick else (1024, 4)
    ids = tokenizer(sample_text(context))["input_ids"][: size * count]
    windows = torch.tensor(ids[: len(ids) // size * size]).view(-1, size)
    rates = _QUICK_RATES if context.options.quick else _RATES
    settings = [{"bits": bits} | code for bits in rates for code in ({"code": "chain"}, _PAPER)]
    rows = [
        setting | row.as_dict()
        for setting, row in zip(settings, measure(model, windows, settings), strict=True)
    ]
    errors = [_errors(model, windows[:1], bits) for bits in rates]
    record = {"suite": "all-distortion", "tokens": windows.numel(), "results": rows, "errors": errors}
    return judge(rows, errors, context), record


def judge(rows: list[Row], errors: list[Row], context: Context) -> list[Check]:
    """The checks of measured rows."""
    chain = {row["bits"]: row for row in rows if row["code"] == "chain"}
    scalar = {row["bits"]: row for row in rows if row["code"] == "mse"}
    checks = [
        at_most(
            GROUP,
            f"{row['bits']:g} bits: relative squared error of real {what}",
            row[what],
            1.1 * row["theory"],
            theory=row["theory"],
            review=REVIEW["proxy"] if row["bits"] == context.options.needle_bits else "",
            reason="theory: of random vectors",
        )
        for row in errors
        for what in ("keys", "values")
    ]
    for bits, row in chain.items():
        limit = _MOST[bits] if context.is_probe else 2 * _MOST[bits]
        checks.append(
            at_most(
                GROUP,
                f"chain, {bits:g} bits: divergence of the logits",
                row["divergence"],
                limit,
                warn=2 * limit,
                reason=f"nats; {row['effective_bits']:.3g} bits with scales; perplexity "
                f"{_grown(row):+.2f}%; same token {100 * row['agreement']:.1f}%",
            )
        )
        checks.append(
            at_least(
                GROUP,
                f"{bits:g} bits: divergence of the paper's mse over that of chain",
                scalar[bits]["divergence"] / row["divergence"],
                2.2,
                warn=1.5,
                reason=f"mse {scalar[bits]['divergence']:.4g}, chain {row['divergence']:.4g} nats",
            )
        )
    checks += [
        at_most(
            GROUP,
            f"divergence of chain at {bits:g} bits over that of mse at {bits + 0.5:g}",
            chain[bits]["divergence"] / scalar[bits + 0.5]["divergence"],
            1.0,
        )
        for bits in chain
        if bits + 0.5 in scalar
    ]
    bits = context.options.needle_bits
    if bits in chain:
        checks.append(
            at_least(
                GROUP,
                f"chain, {bits:g} bits: agreement of the most likely token",
                chain[bits]["agreement"],
                _AGREEMENT,
                warn=_AGREEMENT - 0.05,
            )
        )
    return checks


def _grown(row: Row) -> float:
    """Growth of the perplexity in percent."""
    return 100 * math.expm1(row["loss"] - row["full_loss"])


def _model(context: Context) -> tuple[Any, Any]:
    """The model in float32 when it is the probe, whose logits are then exact enough on a GPU as well."""
    loaded = context.loaded
    if context.is_probe and str(loaded.model.dtype) != "torch.float32":
        from ..kv.models import load_model

        loaded = load_model(replace(context.kv_options("distortion"), dtype="float32"))
    return loaded.model, loaded.tokenizer


def _errors(model: Any, window: Any, bits: float) -> Row:
    """Mean over layers, heads and tokens of |x - x_hat|^2 / |x|^2, of keys and of values."""
    import torch
    from transformers import DynamicCache

    from tqcore.chain import chain_mse
    from tqkv.cache import TurboQuantCache

    full = DynamicCache(config=model.config)
    packed = TurboQuantCache(model.config, bits=bits, sink_tokens=0, recent_tokens=0)
    with torch.inference_mode():
        for cache in (full, packed):
            model(window.to(model.device), past_key_values=cache, use_cache=True)
        sums: dict[str, list[float]] = {"keys": [], "values": []}
        for layer in packed.packed_layers:
            exact: Any = full.layers[layer.layer_idx]
            for what, decoded in zip(sums, layer.decoded(), strict=True):
                x = getattr(exact, what).float()
                sums[what].append(float(((x - decoded.float()) ** 2).sum(-1).div((x**2).sum(-1)).mean()))
    lost = chain_mse(bits, 2)
    return {"bits": bits, "theory": lost / (1 - lost)} | {k: sum(v) / len(v) for k, v in sums.items()}
