"""What `tq bench all` is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..errors import BenchError

__all__ = ["STEPS", "AllOptions"]

# name -> what it checks, in the order in which they run
STEPS: dict[str, str] = {
    "theory": "compression, rotation, distortion, bias and error of inner products",
    "model": "the model loads, predicts, and answers through a packed cache",
    "memory": "bytes of the cache, and the review's table",
    "needle": "needles in a haystack from the packed cache",
    "longbench": "LongBench's tasks from the packed cache",
    "distortion": "real keys and values through the codes, divergence of the logits, the most likely token",
    "throughput": "decoding beside full precision",
    "attention": "the attention kernel alone",
    "ann": "the index beside product quantization",
}


@dataclass(frozen=True)
class AllOptions:
    """Options of a run.

    Attributes
    ----------
    quick : bool
        Small grids everywhere: minutes instead of a quarter of an hour.
    only : tuple of str
        Names of `STEPS`; empty runs all.
    model_id, local_files_only, dtype, device, attn_implementation, text_dir, longbench_dir
        As in `tqbench.kv.options.KVOptions`; `longbench_dir` is the folder of LongBench's files.
    seed : int
        Seed of everything.
    longbench_e : bool
        The files of LongBench-E in `longbench_dir` instead of those of LongBench.
    longbench_examples : int
        Examples of every file of `longbench_dir`.
    needle_bits, longbench_bits : float
        Bits at which needles and LongBench must equal full precision.
    pq_speedup : float
        How many times faster than product quantization the index must be built.
    scalar_bits : int
        Bits at which the scalar code must find `recall` of the neighbours.
    recall : float
        Recall 10@10 asked of the scalar code.
    repeats, warmup : int
        Timed repeats of every figure of speed, and untimed ones before.
    out, name : str
        Folder of records and reports, and their name without suffix (None: from suite and time).
    fresh : bool
        Begin anew instead of going on after an interruption.
    """

    quick: bool = False
    only: tuple[str, ...] = ()
    model_id: str = "probe"
    local_files_only: bool = False
    dtype: str = "auto"
    device: str = "auto"
    attn_implementation: str = "auto"
    text_dir: str | None = None
    longbench_dir: str | None = None
    longbench_e: bool = False
    longbench_examples: int = 6
    seed: int = 0
    needle_bits: float = 3.5
    longbench_bits: float = 3.5
    pq_speedup: float = 5.0
    scalar_bits: int = 4
    recall: float = 0.9
    repeats: int = 3
    warmup: int = 1
    out: str = "tq-results"
    name: str | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in STEPS]
        if unknown:
            raise BenchError(f"only must be of {', '.join(STEPS)}, got {', '.join(unknown)}")
        for name, low in (
            ("longbench_examples", 1),
            ("repeats", 1),
            ("warmup", 0),
            ("seed", 0),
            ("pq_speedup", 0),
            ("scalar_bits", 1),
        ):
            if getattr(self, name) < low:
                raise BenchError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.longbench_e and not self.longbench_dir:
            raise BenchError("longbench_e needs longbench_dir, got none")
        if not 0 <= self.recall <= 1:
            raise BenchError(f"recall must be from 0 to 1, got {self.recall}")

    def steps(self) -> list[str]:
        """The steps that run, in order."""
        return [name for name in STEPS if not self.only or name in self.only]

    def settings(self) -> dict[str, Any]:
        """What results depend on: all but where they are written and which steps run."""
        return {k: v for k, v in asdict(self).items() if k not in ("only", "out", "name", "fresh")}
