"""What the TurboQuant paper and its public review print, quoted as theirs: the only place where it is written down.

The paper is arXiv 2504.19874. The review is "TurboQuant: True or False", a harness run on Qwen3.6-27B on one GPU of
96 GB, with quantization simulated by rewriting tensors. What both print about theory is in `tqbench.paper`, and the
review's table of memory in `tqbench.kv.memory`.
"""

from __future__ import annotations

__all__ = ["PAPER", "REVIEW"]

PAPER = {
    "needle": "0.997",
    "needle-full": "0.997",
    "longbench-3.5": "50.06, full cache 50.06",
    "longbench-2.5": "49.44, full cache 50.06",
    "ratio": "4.5x and more",
    "recall": "above PQ",
    "index": "0.0013 s, PQ 239.75 s (4 bits, d = 1536)",
}
REVIEW = {
    "model": "loads in bfloat16, SDPA",
    "proxy": "simulated on real keys and values",
    "ratio": "6.4x of the cache alone",
    "needle": "equal at 3.5 bits",
    "longbench": "equal at 3.5 bits",
    "decode": "0.75 of full precision",
    "recall": "PQ ahead",
    "index": "faster than PQ",
    "one bit": "fails",
    "scalar": "passes at its required bits",
}
