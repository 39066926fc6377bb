"""The model loads, predicts text, and says the same through a packed cache whose window holds everything."""

from __future__ import annotations

import math
from typing import Any

from ..checks import Check, at_least, at_most
from .context import Context
from .quoted import REVIEW
from .texts import sample_text

__all__ = ["check_model"]

GROUP = "Model loading"
_TOKENS = 512
_WINDOWS = 4


def check_model(context: Context) -> tuple[list[Check], dict[str, Any] | None]:
    """Parameters, perplexity of a text, and logits through `TurboQuantCache` beside `DynamicCache`."""
    import torch
    from transformers import DynamicCache

    from tqkv.cache import TurboQuantCache

    loaded = context.loaded
    model, tokenizer = loaded.model, loaded.tokenizer
    ids = tokenizer(sample_text(context))["input_ids"][: _WINDOWS * _TOKENS]
    ids = torch.tensor(ids[: len(ids) // _TOKENS * _TOKENS] or ids, device=model.device)
    rows = ids.view(-1, min(_TOKENS, len(ids)))
    with torch.inference_mode():
        logits = model(rows, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
        part, size = rows[:1, :128], model.config.get_text_config()
        said = []
        for cache in (DynamicCache(config=model.config), TurboQuantCache(model.config, recent_tokens=256)):
            model(part[:, :-8], past_key_values=cache, use_cache=True)
            said.append(model(part[:, -8:], past_key_values=cache, use_cache=True).logits.float())
        full, packed = said
        apart = float((full - packed).abs().max() / full.abs().max())
    exact = model.dtype == torch.float32
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    heads = f"{size.num_attention_heads} heads, {size.num_key_value_heads} of keys"
    what = f"{loaded.name}: {size.num_hidden_layers} layers, {heads}"
    return [
        at_least(
            GROUP,
            "parameters, millions",
            millions,
            0.001,
            review=REVIEW["model"],
            reason=what,
        ),
        at_most(
            GROUP,
            f"perplexity of {len(rows)} windows of {rows.shape[1]} tokens",
            math.exp(min(50.0, float(loss))),
            _limit(context),
            reason="its own text"
            if context.is_probe
            else "a short English text; the limit is that of a guess",
        ),
        at_most(
            GROUP,
            "logits through a packed cache whose window holds all: relative difference",
            apart,
            1e-4 if exact else 0.05,
            reason=f"attention {model.config._attn_implementation}, {str(model.dtype).removeprefix('torch.')}",
        ),
    ], None


def _limit(context: Context) -> float:
    """Perplexity that the model may have: the probe's is known; a guess has the size of the vocabulary."""
    return 25.0 if context.is_probe else 1.05 * context.loaded.model.config.get_text_config().vocab_size
