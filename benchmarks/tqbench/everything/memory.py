"""Bytes of the cache, and the review's table of Qwen3.6-27B counted again."""

from __future__ import annotations

from typing import Any

from ..checks import Check, at_least, at_most, close_to
from ..kv.models import load_config
from .context import Context
from .quoted import PAPER, REVIEW

__all__ = ["check_memory"]

GROUP = "Memory of the KV cache"
_BITS = 2.5  # of the review's table
_SCALARS = 32  # bits that a vector's scalars, window and tables may take


def check_memory(context: Context) -> tuple[list[Check], dict[str, Any]]:
    """The review's bytes and ratios, the ratio of the cache alone, and a real layer beside its count."""
    record = context.run("memory", bits=(_BITS, context.options.needle_bits), code=("chain",))
    checks = []
    for row in record["review"]:
        tokens = f"{row['tokens']:,} tokens"
        low, high = row["implied_weights_gib"]
        printed = f"{row['review_ratio']:.2f}"
        checks += [
            close_to(
                GROUP,
                f"Qwen3.6-27B, {tokens}: GiB of keys and values in bfloat16",
                row["kv_gib"],
                row["review_kv_gib"],
                0,
                review=f"{row['review_kv_gib']:.1f}",
            ),
            at_most(
                GROUP,
                f"Qwen3.6-27B, {tokens}: ratio of all memory as the review counts, off its value",
                abs(row["ratio_review_weights"] - row["review_ratio"]),
                0.005,
                review=printed,
                reason=f"{row['ratio_review_weights']:.3f} with weights of {low:.1f} to {high:.1f} GiB, which its "
                "ratios imply; codes alone",
            ),
            close_to(
                GROUP,
                f"Qwen3.6-27B, {tokens}: ratio of all memory, everything counted",
                row["ratio"],
                row["review_ratio"],
                0.02,
                review=printed,
                reason=f"theory: the review's; weights of {row['weights_gib']:.1f} GiB, scales and window included",
            ),
        ]
    config = load_config(context.kv_options("memory")).get_text_config()
    dimensions = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    longest = max(row["tokens"] for row in record["results"])
    for row in record["results"]:
        if row["tokens"] != longest:
            continue
        bits = row["bits"]
        printed = bits == _BITS
        checks.append(
            at_least(
                GROUP,
                f"{record['dataset']['name']}, {longest:,} tokens, {bits:g} bits: ratio of the cache alone",
                row["kv_ratio"],
                16 / (bits + _SCALARS / dimensions),
                theory=16 / bits,
                paper=PAPER["ratio"] if printed else "",
                review=REVIEW["ratio"] if printed else "",
                reason="theory: codes alone; ours has scales, window and tables too, which may take 32 bits a "
                "vector",
            )
        )
    checks += [
        close_to(
            GROUP,
            f"{row['code']}, {row['bits']:g} bits: bytes of a real layer of {row['tokens']} tokens",
            row["measured"],
            row["counted"],
            0,
            reason="theory: as counted",
        )
        for row in record["measured"]
    ]
    return checks, record
