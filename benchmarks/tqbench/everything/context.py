"""What the steps share: the options, and the model, loaded once."""

from __future__ import annotations

import inspect
from functools import cached_property
from typing import Any

from ..kv.options import KVOptions
from ..kv.registry import load_suite
from .options import AllOptions

__all__ = ["Context"]


class Context:
    """Options of the run and the model that its suites share.

    Parameters
    ----------
    options : AllOptions
        What was asked.
    """

    def __init__(self, options: AllOptions) -> None:
        self.options = options
        self._begun: set[str] = set()

    def kv_options(self, suite: str, **more: Any) -> KVOptions:
        """Options of a suite of `tq bench kv`: those of this run, and `more`."""
        o = self.options
        shared = {
            "model_id": o.model_id,
            "local_files_only": o.local_files_only,
            "dtype": o.dtype,
            "device": o.device,
            "attn_implementation": o.attn_implementation,
            "seed": o.seed,
            "quick": o.quick,
            "text_dir": o.text_dir,
            "out": o.out,
            "fresh": o.fresh,
        }
        return KVOptions(suite=suite, **(shared | more))

    def run(self, suite: str, **more: Any) -> dict[str, Any]:
        """The record of a suite; those that take a loaded model share one."""
        run = load_suite(suite).run
        shared = {"loaded": self.loaded} if "loaded" in inspect.signature(run).parameters else {}
        # a second call must not drop what the first has written
        fresh = self.options.fresh and suite not in self._begun
        self._begun.add(suite)
        return run(self.kv_options(suite, **({"fresh": fresh} | more)), **shared)

    @cached_property
    def loaded(self) -> Any:
        """The model; BenchError when it, its weights or a package is missing."""
        from ..kv.models import load_model

        return load_model(self.kv_options("needle"))

    @property
    def is_probe(self) -> bool:
        """Whether the model is the probe of the repository, whose scores are known."""
        return self.options.model_id == "probe"

    @cached_property
    def device_name(self) -> str:
        """Name of the CUDA device that the suites run on; empty when they run on the processor."""
        try:
            import torch
        except ImportError:
            return ""
        asked = self.options.device
        chosen = "cuda" if asked == "auto" else asked
        there = chosen.startswith("cuda") and torch.cuda.is_available()
        return torch.cuda.get_device_name(chosen) if there else ""
