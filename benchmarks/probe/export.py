"""The trained network on disk as transformers reads it, and in memory as transformers runs it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from network import Shape
from safetensors.torch import load_file, save_file
from tokenizer import save_tokenizer
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from tqbench.kv.probe import WEIGHTS, quantize, restore

__all__ = ["CHECKPOINT", "export", "load_checkpoint", "save_checkpoint", "transformers_model"]

CHECKPOINT = "checkpoint.safetensors"
"""Name of the file of parameters in bfloat16, from which training can go on."""


def save_checkpoint(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write parameters in bfloat16."""
    save_file(
        {name: value.detach().bfloat16().cpu() for name, value in state.items()}, str(folder / CHECKPOINT)
    )


def load_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """The parameters that `save_checkpoint` wrote, or where it did not, those of the 8-bit weights.

    Raises
    ------
    FileNotFoundError
        If the folder has neither.
    """
    for name in (CHECKPOINT, WEIGHTS):
        if (folder / name).is_file():
            return restore(load_file(str(folder / name)))
    raise FileNotFoundError(f"--init must name a folder with {CHECKPOINT} or {WEIGHTS}, got {folder}")


def export(shape: Shape, state: Mapping[str, torch.Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    """Write config.json, the tokenizer, and the weights in int8 with one scale a row."""
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n", encoding="utf-8")
    save_tokenizer(tokenizer, folder)
    stored = {name: value.cpu().contiguous() for name, value in quantize(state).items()}
    save_file(stored, str(folder / WEIGHTS), metadata={"format": "pt"})


def transformers_model(
    shape: Shape, state: Mapping[str, torch.Tensor], device: str, dtype: torch.dtype
) -> Any:
    """The network as a `Qwen3ForCausalLM` in evaluation mode.

    Raises
    ------
    ValueError
        If `state` lacks a parameter or has one too many.
    """
    config: PretrainedConfig = AutoConfig.for_model(**shape.config())
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32)
    whole = {name: value.detach().float().cpu() for name, value in state.items()}
    missing, unexpected = model.load_state_dict(whole, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ValueError(
            f"state must have the model's parameters; these differ: {[*missing, *unexpected][:4]}"
        )
    model.tie_weights()
    return model.to(device=device, dtype=dtype).eval()
