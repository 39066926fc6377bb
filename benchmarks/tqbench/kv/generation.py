"""A prompt and greedy steps through one cache, timed."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import torch
from transformers import DynamicCache, QuantizedCache, StaticCache

from tqkv.cache import TurboQuantCache

from ..errors import Unavailable

__all__ = ["Case", "timed"]

_PACKAGES = {"quanto": ("optimum.quanto", "optimum-quanto"), "hqq": ("hqq", "hqq")}
_WARM = 2  # steps before a capture


@dataclass(frozen=True)
class Case:
    """What is run: a model in evaluation mode, rows, tokens of the random prompt, tokens decoded, seed."""

    model: Any
    batch: int
    tokens: int
    steps: int
    seed: int

    def prompt(self) -> torch.Tensor:
        """Tokens int64 [batch, tokens]."""
        chance = torch.Generator().manual_seed(self.seed)
        size = self.model.config.get_text_config(decoder=True).vocab_size
        return torch.randint(2, size, (self.batch, self.tokens), generator=chance).to(self.model.device)


def timed(
    case: Case, name: str, packed: Mapping[str, Any] | None, window: Mapping[str, int]
) -> dict[str, float]:
    """Seconds of one run: `prefill_seconds`, `first_token_seconds` (the cache made, and the token on the host),
    `decode_seconds`; `peak_bytes` beside the weights (0 without a CUDA device); `fused`, `fallback` calls.

    Raises
    ------
    Unavailable
        Where the cache cannot run here; says why.
    """
    device, graph = case.model.device, name.endswith(" graph")
    on_gpu = device.type == "cuda"
    if graph and not on_gpu:
        raise Unavailable("graphs need a CUDA device")
    case.model.set_attn_implementation("sdpa" if packed is None else "turboquant")
    ids = case.prompt()
    gc.collect()
    before = 0
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    try:
        with torch.no_grad():
            return _run(case, name, packed, window, ids, before)
    except torch.OutOfMemoryError as error:
        raise Unavailable("out of memory") from error


def _run(
    case: Case, name: str, packed: Mapping[str, Any] | None, window: Mapping[str, int], ids: Any, before: int
) -> dict[str, float]:
    model, device = case.model, case.model.device
    few = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    start = _now(device)
    cache = _cache(case, name, packed, window)
    made = _now(device)
    logits = model(ids, past_key_values=cache, use_cache=True, **few).logits
    filled = _now(device)
    token = logits[:, -1:].argmax(-1)
    token.tolist()
    first = _now(device)
    position = torch.full((case.batch, 1), case.tokens, device=device)

    def step() -> None:
        out = model(token, position_ids=position, past_key_values=cache, use_cache=True).logits
        token.copy_(out[:, -1:].argmax(-1))
        position.add_(1)

    call = _captured(step) if name.endswith(" graph") else step
    begin = _now(device)
    for _ in range(case.steps):
        call()
    token.tolist()
    end = _now(device)
    stats = getattr(cache, "stats", None)
    return {
        "prefill_seconds": filled - made,
        "first_token_seconds": first - start,
        "decode_seconds": end - begin,
        "peak_bytes": torch.cuda.max_memory_allocated() - before if device.type == "cuda" else 0,
        "fused": getattr(stats, "fused", 0),
        "fallback": getattr(stats, "fallback", 0),
    }


def _cache(case: Case, name: str, packed: Mapping[str, Any] | None, window: Mapping[str, int]) -> Any:
    config, kind = case.model.config, name.split(" ")[0]
    room = case.tokens + case.steps + _WARM + 2
    if packed is not None:
        options: dict[str, Any] = {**packed, **window}
        if " " in name:
            options["max_length"] = max(room, sum(window.values()) + 16)
        try:
            return TurboQuantCache(config, **options)
        except ValueError as error:
            raise Unavailable(str(error)) from error
    if kind == "dynamic":
        return DynamicCache(config=config)
    if kind == "static":
        return StaticCache(config=config, max_cache_len=room)
    backend, bits = kind.split("-")
    module, package = _PACKAGES[backend]
    if not _installed(module):
        raise Unavailable(f"{package} is not installed: pip install {package}")
    try:
        axis = {"axis_key": 1, "axis_value": 1} if backend == "hqq" else {}
        return QuantizedCache(backend, config, nbits=int(bits), **axis)
    except (ImportError, ValueError) as error:
        raise Unavailable(str(error).splitlines()[0]) from error


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _captured(step: Callable[[], None]) -> Callable[[], Any]:
    """The step as a CUDA graph, after a few of them on a side stream."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()
