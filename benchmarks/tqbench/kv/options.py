"""What a suite of `tq bench kv` is told."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BenchError

__all__ = ["KVOptions"]

_CODES = ("chain", "mse", "prod")
_DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class KVOptions:
    """Options of all suites; a suite reads those that concern it.

    Attributes
    ----------
    suite : str
        A name of `tqbench.kv.registry.SUITES`.
    model_id : str
        "probe" for the model of the repository, or a name or folder as transformers takes it. [throughput, attention]
        "random:NAME" for random weights of that size, "random:tiny-NAME" for few of them.
    local_files_only : bool
        Use no network.
    dtype, device, attn_implementation : str
        Of the model; "auto" chooses by what there is.
    bits : tuple of float
        Bits per dimension of the packed caches; empty takes the suite's own.
    code : tuple of str
        Codes: "chain", "mse", "prod"; empty takes the suite's own.
    seed : int
        Where chance begins.
    quick : bool
        A small grid, for a look.
    text_dir : str, optional
        Folder of .txt files.
    out, name : str
        Folder of the record, and its name without suffix (None: from suite and model).
    fresh : bool
        Begin anew instead of going on after an interruption.
    lengths, depths, tasks, samples
        [needle] Axes of the grid; empty or None takes the defaults. [memory] `lengths` are tokens held. [distortion]
        `lengths` is the size of a window of text, `samples` how many. [throughput] `samples` are tokens decoded.
    batches : tuple of int
        [throughput, attention] Rows of a batch.
    heads : tuple of str
        [attention] QUERY/KEY-VALUE/DIMENSION, such as "32/8/128"; empty takes the model's.
    caches : tuple of str
        [throughput] Names of caches; empty takes all.
    repeats : int, optional
        [throughput, attention] Timed repeats.
    data_dir : str, optional
        [longbench] Folder of <task>.jsonl files; None downloads them. There `tasks` are names of files, `lengths` is
        one number, of tokens that prompts are cut to, and `samples` are examples of a task.
    longbench_e, no_chat : bool
        [longbench] LongBench-E instead of LongBench; no chat template.
    sink_tokens, recent_tokens : int
        Tokens kept in full precision, as in `TurboQuantCache`.
    """

    suite: str = "needle"
    model_id: str = "probe"
    local_files_only: bool = False
    dtype: str = "auto"
    device: str = "auto"
    attn_implementation: str = "auto"
    bits: tuple[float, ...] = ()
    code: tuple[str, ...] = ()
    seed: int = 0
    quick: bool = False
    text_dir: str | None = None
    out: str = "tq-results"
    name: str | None = None
    fresh: bool = False
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = ()
    tasks: tuple[str, ...] = ()
    samples: int | None = None
    batches: tuple[int, ...] = ()
    heads: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    repeats: int | None = None
    data_dir: str | None = None
    longbench_e: bool = False
    no_chat: bool = False
    sink_tokens: int = 4
    recent_tokens: int = 128

    def __post_init__(self) -> None:
        whole = self.suite == "distortion"
        if not self.bits:
            object.__setattr__(self, "bits", (2.0, 2.5, 3.0, 3.5, 4.0) if whole else (2.0, 3.5))
        if not self.code:
            object.__setattr__(self, "code", _CODES if whole else ("chain",))
        for code in self.code:
            if code not in _CODES:
                raise BenchError(f"code must be one of {', '.join(_CODES)}, got {code!r}")
        if self.dtype not in _DTYPES:
            raise BenchError(f"dtype must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")
        if any(length < 1 for length in self.lengths):
            raise BenchError(f"lengths must be at least 1, got {self.lengths}")
        if any(not 0 <= depth <= 1 for depth in self.depths):
            raise BenchError(f"depths must be from 0 to 1, got {self.depths}")
        if any(batch < 1 for batch in self.batches):
            raise BenchError(f"batches must be at least 1, got {self.batches}")
        for name in ("samples", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BenchError(f"{name} must be at least 1, got {value}")

    def packed(self) -> list[dict[str, float | str]]:
        """Every rate with every code that has it (`prod` has whole bits alone), as arguments of a cache."""
        return [
            {"bits": bits, "code": code}
            for code in self.code
            for bits in self.bits
            if code != "prod" or float(bits).is_integer()
        ]
