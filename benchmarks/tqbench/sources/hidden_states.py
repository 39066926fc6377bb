"""Hidden states of a Hugging Face causal language model as vectors, one per passage of text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import BenchError
from ..folders import cache_folder
from ..progress import track
from .dataset import Dataset, split_rows
from .options import SourceOptions

__all__ = ["cut_passages", "embed_passages", "load_hidden_states", "load_model"]

_EXTRA = "pip install 'tqann[bench,kv]'"
_PASSAGE_CHARACTERS = 400


def load_hidden_states(options: SourceOptions) -> Dataset:
    """Pooled hidden states of the passages of a corpus, unit length, cached on disk.

    Raises
    ------
    BenchError
        When a package, the weights or the text is missing; the message says how to get it.
    """
    _check(options)
    if options.local_files_only:
        os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    cached = _cache_path(options)
    if options.use_cache and cached.is_file():
        rows = np.load(cached)
    else:
        model, tokenizer = load_model(options)
        passages = list(_passages(options))
        rows = embed_passages(model, tokenizer, passages, options)
        if options.use_cache:
            partial = cached.with_suffix(f".{os.getpid()}.npy")
            np.save(partial, rows)
            partial.replace(cached)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    base, queries, held_out = split_rows(
        rows, options.nq or min(500, len(rows) // 10), len(rows) // 4, options.seed
    )
    short = Path(options.model_id).name
    description = f"{options.pooling}-pooled hidden states of {short}, layer {options.layer}, unit length"
    return Dataset(f"qwen-{short}", description, base, queries, "ip", held_out).limited(options)


def _check(options: SourceOptions) -> None:
    if options.pooling not in ("mean", "last"):
        raise BenchError(f'pooling must be "mean" or "last", got {options.pooling!r}')
    for name in ("batch_size", "max_passages", "max_length"):
        if getattr(options, name) < 1:
            raise BenchError(f"{name} must be at least 1, got {getattr(options, name)}")


def _cache_path(options: SourceOptions) -> Path:
    names = ("model_id", "pooling", "layer", "dtype", "text_dir", "dataset", "max_passages", "max_length")
    config: dict[str, Any] = {name: value for name, value in asdict(options).items() if name in names}
    if options.text_dir is not None:
        config["files"] = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in _text_files(options)]
    if Path(options.model_id).is_dir():
        weights = sorted(Path(options.model_id).glob("*.safetensors"))
        config["weights"] = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in weights]
    key = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder("hidden_states") / f"{key}.npy"


def load_model(options: SourceOptions) -> tuple[Any, Any]:
    """Model (in evaluation mode, on its device) and tokenizer.

    Raises
    ------
    BenchError
        When torch or transformers is not installed, or the weights cannot be had.
    """
    try:
        import torch
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise BenchError(f"source qwen needs {error.name}, which is not installed: {_EXTRA}") from error
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = options.dtype
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in ("float32", "float16", "bfloat16"):
        raise BenchError(f"dtype must be auto, float32, float16 or bfloat16, got {options.dtype!r}")
    arguments = {"local_files_only": options.local_files_only}
    try:
        tokenizer = AutoTokenizer.from_pretrained(options.model_id, **arguments)
        model = AutoModel.from_pretrained(
            options.model_id, dtype=getattr(torch, dtype), use_safetensors=True, **arguments
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise BenchError(
            f"the model {options.model_id!r} cannot be loaded ({first}); download it where there is a "
            f"network with `hf download {options.model_id}`, or give a local folder with --model-id FOLDER"
        ) from error
    return model.eval().to(device), tokenizer


def _text_files(options: SourceOptions) -> list[Path]:
    folder = Path(options.text_dir or "")
    if not folder.is_dir():
        raise BenchError(f"text_dir must be a folder with .txt files, got {options.text_dir!r}")
    found = sorted(folder.glob("**/*.txt"))
    if not found:
        raise BenchError(f"no .txt file in {options.text_dir}")
    return found


def _passages(options: SourceOptions) -> Iterator[str]:
    if options.text_dir is not None:
        texts: Iterable[str] = (p.read_text(encoding="utf-8", errors="replace") for p in _text_files(options))
    else:
        texts = _dataset_texts(options)
    count = 0
    for text in texts:
        for passage in cut_passages(text):
            yield passage
            count += 1
            if count == options.max_passages:
                return


def _dataset_texts(options: SourceOptions) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise BenchError(
            f"a corpus of the hub needs datasets: {_EXTRA}; or give --text-dir FOLDER"
        ) from error
    name, config, split, column = [*options.dataset.split(":"), "", "", ""][:4]
    try:
        rows = load_dataset(
            name, config or None, split=split or "train", streaming=not options.local_files_only
        )
        for row in cast("Iterable[Mapping[str, str]]", rows):  # as a split was named
            yield row[column or "text"]
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise BenchError(
            f"the corpus {options.dataset!r} cannot be read ({first}); give --dataset "
            "NAME:CONFIG:SPLIT:COLUMN, or text of your own with --text-dir FOLDER"
        ) from error


def cut_passages(text: str, characters: int = _PASSAGE_CHARACTERS) -> Iterator[str]:
    """Runs of whole paragraphs of about `characters` characters; longer paragraphs are cut at a space."""
    held = ""
    for paragraph in text.split("\n"):
        held = f"{held} {paragraph.strip()}".strip()
        while len(held) >= characters:
            end = held.find(" ", characters)
            end = len(held) if end < 0 else end
            yield held[:end]
            held = held[end:].strip()
    if len(held) >= characters // 2:
        yield held


def embed_passages(
    model: Any,
    tokenizer: Any,
    passages: list[str],
    options: SourceOptions,
    progress: Callable[..., Iterable[int]] = track,
) -> np.ndarray:
    """Pooled hidden states, float32 [len(passages), hidden size]; passages are cut to `max_length` tokens."""
    import torch

    if len(passages) < 3:
        raise BenchError(f"at least 3 passages of text are needed, got {len(passages)}")
    device = next(model.parameters()).device
    encoded = [tokenizer(p, truncation=True, max_length=options.max_length)["input_ids"] for p in passages]
    if not all(encoded):
        raise BenchError("a passage has no tokens; the tokenizer does not fit the text")
    order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
    out: np.ndarray | None = None
    starts = range(0, len(order), options.batch_size)
    for start in progress(starts, "hidden states", total=len(starts)):
        batch = order[start : start + options.batch_size]
        width = max(len(encoded[i]) for i in batch)
        ids = torch.zeros((len(batch), width), dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, i in enumerate(batch):
            ids[row, : len(encoded[i])] = torch.tensor(encoded[i])
            mask[row, : len(encoded[i])] = 1
        pooled = _pool(model, ids.to(device), mask.to(device), options)
        if out is None:
            out = np.empty((len(passages), pooled.shape[1]), dtype=np.float32)
        out[batch] = pooled
    assert out is not None  # noqa: S101 - there was at least one batch
    return out


def _pool(model: Any, ids: Any, mask: Any, options: SourceOptions) -> np.ndarray:
    import torch

    with torch.inference_mode():
        states = model(
            input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
        ).hidden_states
    if not -len(states) <= options.layer < len(states):
        raise BenchError(f"layer must be in -{len(states)} .. {len(states) - 1}, got {options.layer}")
    state = states[options.layer].float()
    if options.pooling == "last":
        pooled = state[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
    else:
        weight = mask[:, :, None].to(state.dtype)
        pooled = (state * weight).sum(1) / weight.sum(1)
    return pooled.cpu().numpy()
