"""The probe: a small language model trained for these benchmarks, kept in the repository and not in the wheel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import BenchError

__all__ = ["WEIGHTS", "load_probe", "probe_folder", "probe_text", "quantize", "restore"]

WEIGHTS = "model-int8.safetensors"
"""Name of the file of weights: int8 rows, and under the matrix's name with `.scale` one float32 scale a row."""
_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)
_ADVICE = (
    "it is part of the repository (benchmarks/probe/model) and not of the wheel: run from a checkout of tqann, or set "
    "TQ_PROBE to a copy of that folder"
)


def probe_folder() -> Path:
    """The folder of the probe's weights and tokenizer.

    `TQ_PROBE` names it; otherwise `benchmarks/probe/model` is looked for in the working folder, in the folders above
    it, and in the checkout that an editable installation comes from.

    Raises
    ------
    BenchError
        If the folder is not found or lacks a file.
    """
    named = os.environ.get("TQ_PROBE")
    if named:
        folder = Path(named)
    else:
        here = Path.cwd()
        roots = [here, *here.parents, Path(__file__).resolve().parents[3]]
        found = (root / "benchmarks" / "probe" / "model" for root in roots)
        folder = next((f for f in found if (f / WEIGHTS).is_file()), None)
        if folder is None:
            raise BenchError(f"the probe model was not found in {here} or above; {_ADVICE}")
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise BenchError(f"the probe model in {folder} lacks {', '.join(missing)}; {_ADVICE}")
    return folder


def probe_text() -> str:
    """Text that the probe wrote itself, articles apart by a blank line: the suites' built-in text.

    Raises
    ------
    BenchError
        If it is not there.
    """
    path = probe_folder() / "text.txt"
    if not path.is_file():
        raise BenchError(f"the probe model in {path.parent} lacks {path.name}; {_ADVICE}")
    return path.read_text(encoding="utf-8")


def quantize(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights as they are stored: matrices in int8 with one scale a row, vectors in bfloat16.

    Parameters
    ----------
    state : mapping of str to torch.Tensor
        Parameters by name.

    Returns
    -------
    dict of str to torch.Tensor
        For each matrix int8 [rows, columns] under its name, and float32 [rows] under its name with `.scale`.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        if value.dim() == 2:
            scale = value.float().abs().amax(1).clamp(min=1e-12) / 127
            stored[name] = (value.float() / scale[:, None]).round().to(torch.int8)
            stored[f"{name}.scale"] = scale
        else:
            stored[name] = value.to(torch.bfloat16)
    return stored


def restore(stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Parameters in float32 from what `quantize` gave.

    Raises
    ------
    BenchError
        If a scale is missing or does not fit its matrix.
    """
    state: dict[str, torch.Tensor] = {}
    for name, value in stored.items():
        if value.dtype == torch.int8:
            scale = stored.get(f"{name}.scale")
            if scale is None or scale.shape != value.shape[:1]:
                raise BenchError(
                    f"the probe's weights must have one scale a row of {name}; fetch {WEIGHTS} again"
                )
            state[name] = value.float() * scale[:, None]
        elif not name.endswith(".scale"):
            state[name] = value.float()
    return state


def load_probe(
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attn_implementation: str = "sdpa",
) -> tuple[Any, Any]:
    """The probe as a plain `Qwen3ForCausalLM` in evaluation mode, and its tokenizer.

    Parameters
    ----------
    dtype : torch.dtype
        Type of the weights in memory.
    device : str or torch.device
        Where they live.
    attn_implementation : str
        As in transformers.

    Returns
    -------
    model, tokenizer
        As transformers' `from_pretrained` gives them.

    Raises
    ------
    BenchError
        If the probe or a package is missing, or the weights do not fit the configuration.
    """
    folder = probe_folder()
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise BenchError(f"the probe model needs {error.name}; pip install 'tqann[kv]'") from error
    try:
        state = restore(load_file(str(folder / WEIGHTS)))
    except SafetensorError as error:
        raise BenchError(f"{folder / WEIGHTS} is not a whole file of weights ({error}); {_ADVICE}") from error
    config = AutoConfig.from_pretrained(str(folder))
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation=attn_implementation, dtype=torch.float32
    )
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise BenchError(
            f"the weights in {folder} do not fit its config.json ({error}); {_ADVICE}"
        ) from error
    if unexpected or set(missing) - {"lm_head.weight"}:
        names = ", ".join(sorted([*unexpected, *missing])[:4])
        raise BenchError(f"the weights in {folder} do not fit its config.json: {names}; {_ADVICE}")
    model.tie_weights()
    return model.to(device=device, dtype=dtype).eval(), AutoTokenizer.from_pretrained(str(folder))
