"""What the TurboQuant paper and its public review print, quoted as theirs: the only place where it is written down.

The paper is arXiv 2504.19874. The review is "TurboQuant: True or False", a harness run on Qwen3.6-27B on one GPU of
96 GB, with quantization simulated by rewriting tensors. Values of theory come from `tqbench.paper`, and the review's
table of memory from `tqbench.kv.memory`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..kv.memory import REVIEW as REVIEW_MEMORY
from ..paper.suite import REVIEW_RATIO
from ..paper.theory import BITS, PAPER_DISTORTION, PAPER_PRODUCT, bound, shannon

__all__ = ["PAPER", "REVIEW"]


def _list(values: Iterable[float | str]) -> str:
    return ", ".join(f"{value:.3g}" if isinstance(value, float) else str(value) for value in values)


PAPER = {
    "distortion": _list(PAPER_DISTORTION.values()),
    "upper bound": _list(bound(b) for b in BITS),
    "lower bound": _list(shannon(b) for b in BITS),
    "product": _list(PAPER_PRODUCT.values()),
    "shrinking": "2/pi = 0.637",
    "unbiased": "1",
    "two stages": "Algorithm 2",
    "ratio": "4.5x and more",
    "needle": "0.997, full precision 0.997",
    "longbench-3.5": "50.06, full precision 50.06",
    "longbench-2.5": "49.44, full precision 50.06",
    "neutral": "quality-neutral at 3.5 bits, marginal loss at 2.5",
    "recall": "above PQ",
    "index": "0.0013 s, PQ 239.75 s",
}
REVIEW = {
    "passes": "passes",
    "model": "loads in bfloat16, SDPA",
    "proxy": "passes, rewritten tensors",
    "compression": "8.0x",
    "ratios": "8.0x, 6.4x",
    "ratio": "6.4x of the cache alone",
    "bias": f"{REVIEW_RATIO}x",
    "gib": _list(f"{kv:.1f}" for kv, _ in REVIEW_MEMORY.values()),
    "total": _list(f"{ratio:.2f}" for _, ratio in REVIEW_MEMORY.values()),
    "needle": "as full precision at 3.5 bits",
    "longbench": "as full precision at 3.5 bits",
    "decode": "0.75 of full precision",
    "recall": "PQ ahead",
    "index": "faster than PQ",
    "one bit": "fails at 1 bit",
    "scalar": "passes at its required bits",
}
