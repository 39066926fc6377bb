"""What a packed cache does to a model's predictions: divergence of its logits, every token seen through its code.

As a program it measures the chain and the paper's code at every rate and writes a record:
``python -m tqbench.kv.distortion --model FOLDER --text FILE --out benchmarks/results --name NAME``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.modeling_utils import AttentionInterface

from tqkv.attention import register
from tqkv.cache import TurboQuantCache
from tqkv.config import RATES, TILE_TOKENS
from tqkv.view import ATTENTION

from ..records import new_record, write_record

__all__ = ["Distortion", "main", "measure"]


@dataclass
class Distortion:
    """Predictions from a packed cache against those from full precision, means over tokens.

    Attributes
    ----------
    tokens : int
        Predictions compared.
    divergence : float
        KL divergence of the packed predictions from the full-precision ones, in nats.
    agreement : float
        Share of tokens with the same most likely next token.
    loss, full_loss : float
        Cross entropy of the text, packed and in full precision, in nats.
    effective_bits : float
        Bits per dimension of keys and values, scales included.
    """

    tokens: int
    divergence: float
    agreement: float
    loss: float
    full_loss: float
    effective_bits: float

    def as_dict(self) -> dict[str, float]:
        """The fields by name, for a record."""
        return asdict(self)


def measure(
    model: PreTrainedModel, windows: torch.Tensor, settings: Sequence[Mapping[str, Any]]
) -> list[Distortion]:
    """Distortion of caches on text, teacher-forced: each query sees all keys and values, its own too, through the code.

    A window is given to the cache whole, which packs all of it (no sinks, no recent tokens), with the window's queries
    at hand for calibrated plans; attention then runs over what the cache decodes. The codes are those that decoding
    would read.

    Parameters
    ----------
    model : PreTrainedModel
        A causal language model in evaluation mode, best in float32.
    windows : torch.Tensor
        int64 [n, tokens], tokens a multiple of 16.
    settings : sequence of mapping
        Keyword arguments of `TurboQuantCache`, one mapping for each cache to measure.

    Returns
    -------
    list of Distortion
        One for each of `settings`.

    Raises
    ------
    ValueError
        If windows would not be packed whole.
    """
    if windows.shape[1] % TILE_TOKENS:
        raise ValueError(f"windows must have a multiple of {TILE_TOKENS} tokens, got {windows.shape[1]}")
    sums = torch.zeros(len(settings), 4, dtype=torch.float64)
    bits = [0.0] * len(settings)
    with torch.no_grad():
        for window in windows:
            ids = window[None].to(model.device)
            full = model(ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
            target = ids[0, 1:, None]
            for index, options in enumerate(settings):
                cache = TurboQuantCache(model.config, sink_tokens=0, recent_tokens=0, **options)
                with _reading(model, cache):
                    logits = model(ids, past_key_values=cache).logits[0, :-1]
                packed = logits.float().log_softmax(-1)
                sums[index] += torch.stack([
                    functional.kl_div(packed, full, reduction="sum", log_target=True),
                    (packed.argmax(-1) == full.argmax(-1)).sum(),
                    -packed.gather(1, target).sum(),
                    -full.gather(1, target).sum(),
                ]).double().cpu()  # fmt: skip
                bits[index] = cache.effective_bits
    tokens = windows.shape[0] * (windows.shape[1] - 1)
    means = (sums / tokens).tolist()
    return [Distortion(tokens, *row, effective_bits=b) for row, b in zip(means, bits, strict=True)]


@contextmanager
def _reading(model: PreTrainedModel, cache: TurboQuantCache) -> Iterator[None]:
    """Let the model's attention run, causally, over what `cache` has stored instead of what it is given."""

    def attention(
        module: Any, query: torch.Tensor, *_: Any, scaling: float | None = None, **__: Any
    ) -> tuple[torch.Tensor, None]:
        layer = cache.layers[module.layer_idx]
        layer.take(query)
        keys, values = layer.decoded()
        out = functional.scaled_dot_product_attention(
            query, keys, values, is_causal=True, scale=scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register(ATTENTION, attention)
    usual: Any = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(usual)
        register()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure a model on a text and write the record."""
    parser = argparse.ArgumentParser(description="Divergence of a model's predictions under packed caches.")
    parser.add_argument("--model", required=True, help="model and tokenizer, as transformers loads them")
    parser.add_argument("--text", type=Path, required=True, help="text file, UTF-8")
    parser.add_argument("--windows", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a window, a multiple of 16")
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--name", default="kv-distortion")
    options = parser.parse_args(arguments)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        options.model, dtype=torch.float32, use_safetensors=True
    )
    model = model.to(device).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    wanted = options.windows * options.tokens
    ids = tokenizer(options.text.read_text(encoding="utf-8")[: 8 * wanted])["input_ids"]
    if len(ids) < wanted:
        parser.error(f"--text must have {wanted} tokens, got {len(ids)}")
    windows = torch.tensor(ids[:wanted]).view(options.windows, options.tokens)
    settings = [
        {"bits": bits} | more
        for bits in RATES
        for more in ({"code": "chain"}, {"code": "mse", "centre_keys": False})
    ]
    rows = [
        setting | row.as_dict()
        for setting, row in zip(settings, measure(model, windows, settings), strict=True)
    ]
    text = {"name": options.text.stem, "windows": options.windows, "tokens": options.tokens}
    write_record(
        new_record("kv-distortion", dataset=text, settings={"model": Path(options.model).name}, results=rows),
        options.out,
        options.name,
    )
    for row in rows:
        print(
            f"{row['bits']:g} {row['code']:5} {row['divergence']:.4f} {row['agreement']:.3f} {row['loss']:.4f}"
        )


if __name__ == "__main__":
    main()
